"""Heavy notebooks are executed on their real recipe only if something that they run has changed.

A heavy notebook has a smaller recipe in its metadata, `kdlib.small_recipe`, on which tests/notebooks always
executes it, and `kdlib.fingerprint`, that of its sources when `make record` last stored its outputs.
`make test-all`, that is `pytest --nbval --all-notebooks`, executes everything.
"""

import json
from pathlib import Path

from kdlib.course.build.sources import notebook_fingerprint

ROOT = Path(__file__).parent


def unchanged() -> list[Path]:
    """The heavy notebooks whose stored outputs come from the sources as they are now."""
    found = []
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        stored = notebook["metadata"].get("kdlib", {})
        if "small_recipe" in stored and stored.get("fingerprint") == notebook_fingerprint(notebook, ROOT):
            found.append(path)
    return found


def left_out(config) -> list[Path]:
    if not config.getoption("nbval", default=False) or config.getoption("all_notebooks"):
        return []
    return unchanged()


def pytest_addoption(parser):
    parser.addoption(
        "--all-notebooks", action="store_true", help="with --nbval: execute unchanged heavy notebooks too"
    )


def pytest_collection_modifyitems(config, items):
    heavy = left_out(config)
    dropped = [item for item in items if item.path in heavy]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item.path not in heavy]


def pytest_terminal_summary(terminalreporter, config):
    if heavy := left_out(config):
        names = ", ".join(path.stem for path in heavy)
        terminalreporter.write_line(
            f"Not executed on the real recipe, as nothing that they run has changed: {names} "
            "(make test-all does)"
        )
