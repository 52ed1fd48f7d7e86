"""Heavy notebooks are executed on their real recipe only if something that they run has changed.

A heavy notebook has a smaller recipe in its metadata, `kdlib.small_recipe`, on which tests/notebooks always
executes it, and `kdlib.fingerprint`, that of its sources when `make record` last stored its outputs.
`make test-all`, that is `pytest --nbval --all-notebooks`, executes everything.

The Chinese notebooks have the code and outputs of the English ones, which tests/notebooks compares: they are
not executed.

A notebook of a real model names it in `kdlib.download`. It is left out as long as `data/downloads` lacks it:
the test of the small recipe fetches it, and is skipped where that fails.
"""

import json
from functools import cache
from pathlib import Path

from kdlib.course.build.sources import notebook_fingerprint

ROOT = Path(__file__).parent
collect_ignore = ["notebooks/zh"]
DOWNLOADS = ROOT / "data" / "downloads"


def notebooks() -> dict[Path, dict]:
    folder = ROOT / "notebooks"
    paths = sorted(set(folder.rglob("*.ipynb")) - set((folder / "zh").rglob("*.ipynb")))
    return {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}


@cache  # the summary asks again
def unchanged() -> list[Path]:
    """The heavy notebooks whose stored outputs come from the sources as they are now."""
    found = []
    for path, notebook in notebooks().items():
        stored = notebook["metadata"].get("kdlib", {})
        if "small_recipe" in stored and stored.get("fingerprint") == notebook_fingerprint(notebook, ROOT):
            found.append(path)
    return found


def not_fetched() -> list[Path]:
    """The notebooks of a real model that is not there."""
    needed = {
        path: notebook["metadata"].get("kdlib", {}).get("download") for path, notebook in notebooks().items()
    }
    return [path for path, name in needed.items() if name and not (DOWNLOADS / name).exists()]


def left_out(config) -> dict[str, list[Path]]:
    """Why, and which notebooks are not executed on their real recipe."""
    if not config.getoption("nbval", default=False):
        return {}
    found = {"as what they download is not there (python -m kdlib fetch)": not_fetched()}
    if not config.getoption("all_notebooks"):
        found["as nothing that they run has changed (make test-all does)"] = unchanged()
    return {why: paths for why, paths in found.items() if paths}


def pytest_addoption(parser):
    parser.addoption(
        "--all-notebooks", action="store_true", help="with --nbval: execute unchanged heavy notebooks too"
    )


def pytest_collection_modifyitems(config, items):
    heavy = {path for paths in left_out(config).values() for path in paths}
    dropped = [item for item in items if item.path in heavy]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item.path not in heavy]


def pytest_terminal_summary(terminalreporter, config):
    for why, paths in left_out(config).items():
        names = ", ".join(path.stem for path in paths)
        terminalreporter.write_line(f"Not executed on the real recipe, {why}: {names}")
