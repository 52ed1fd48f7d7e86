"""Build the site: `python -m kdlib course --site`."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from kdlib.extras import require

SITE = Path("build/site")


def build_site(root: Path, out: Path | None = None) -> Path:
    """The site of the course in `root`, from stored outputs; returns the first of its pages.

    It lands in `out`, by default `build/site`, in place of what was there; the Chinese edition and the
    slides, where there are any, in folders of it. Nothing is executed. Raises `ValueError` if Sphinx has
    anything to warn of: a link that leads nowhere, a formula that cannot be drawn; the site of before is then
    still there.
    """
    require("site", "furo", "math_core", "myst_nb", "sphinx", "sphinx_copybutton", "sphinx_revealjs")
    out = root / SITE if out is None else out
    settings = root / "kdlib/course/site"
    runs = {"": ["--builder", "html", "--conf-dir", str(settings)]}
    if (root / "README.zh.md").is_file() and any((root / "notebooks" / "zh").glob("*.ipynb")):
        runs["zh"] = [*runs[""], "--tag", "zh"]
    if (root / "notebooks" / "slides.md").is_file():
        # With one process: sphinx-revealjs says of none that it may read in parallel.
        slides = ["--builder", "revealjs", "--jobs", "1", "--conf-dir", str(settings / "slides")]
        runs = {"slides": slides} | runs  # first what is quickly found to be wrong
    with tempfile.TemporaryDirectory() as folder:
        for name, options in runs.items():
            _run_sphinx(root, Path(folder) / f"run-{name}" / "pages", *options)
        shutil.rmtree(out, ignore_errors=True)
        for name in runs:
            shutil.copytree(Path(folder) / f"run-{name}" / "pages", out / name, dirs_exist_ok=True)
    for first in (out / "README.html", out / "zh" / "README.zh.html"):
        if first.is_file():
            shutil.copyfile(first, first.with_name("index.html"))
    return out / "index.html"


def _run_sphinx(root: Path, out: Path, *options: str) -> None:
    doctrees = out.parent / "doctrees"  # a folder more beside `out` is myst-nb's
    command = [sys.executable, "-m", "sphinx", "--quiet", "--jobs", "auto", "--fail-on-warning", *options,
               "--doctree-dir", str(doctrees), str(root), str(out)]  # fmt: skip
    run = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        errors="replace",
    )  # fmt: skip
    if run.returncode:
        raise ValueError(f"the site of {root} cannot be built:\n{run.stderr.strip()}")
