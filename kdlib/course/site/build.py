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

    It lands in `out`, by default `build/site`, in place of what was there; the Chinese edition, where there
    is one, in a folder of it. Nothing is executed. Raises `ValueError` if Sphinx has anything to warn of: a
    link that leads nowhere, a formula that cannot be drawn; the site of before is then still there.
    """
    require("site", "furo", "math_core", "myst_nb", "sphinx", "sphinx_copybutton")
    out = root / SITE if out is None else out
    editions = {"": ["README"]}
    if (root / "README.zh.md").is_file() and any((root / "notebooks" / "zh").glob("*.ipynb")):
        editions["zh"] = ["README.zh", "--tag", "zh"]
    with tempfile.TemporaryDirectory() as folder:
        for name, options in editions.items():
            _run_sphinx(root, Path(folder) / f"edition-{name}" / "pages", *options)
        shutil.rmtree(out, ignore_errors=True)
        for name in editions:
            shutil.copytree(Path(folder) / f"edition-{name}" / "pages", out / name)
    return out / "index.html"


def _run_sphinx(root: Path, out: Path, first: str, *options: str) -> None:
    doctrees = out.parent / "doctrees"  # a folder more beside `out` is myst-nb's
    command = [sys.executable, "-m", "sphinx", "--builder", "html", "--quiet", "--jobs", "auto",
               "--fail-on-warning", "--conf-dir", str(root / "kdlib/course/site"), *options,
               "--doctree-dir", str(doctrees), str(root), str(out)]  # fmt: skip
    run = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        errors="replace",
    )  # fmt: skip
    if run.returncode:
        raise ValueError(f"the site of {root} cannot be built:\n{run.stderr.strip()}")
    shutil.copyfile(out / f"{first}.html", out / "index.html")
