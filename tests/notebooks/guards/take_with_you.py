"""The cell that readers copy into their own project works there."""

import ast
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from . import prose
from .page import Page, tree

HEADING = "Take it with you"
SECONDS = 120
# None in sys.modules makes every `import kdlib` fail, however it is spelled. runpy leaves a real
# `__main__` with a file behind it, which data loaders with workers need.
ALONE = (
    "import runpy, sys; sys.modules['kdlib'] = None; "
    "runpy.run_path(sys.argv[1], run_name='__main__')"
)


def take_with_you(page: Page) -> list[str]:
    """One cell under its heading, without kdlib, that runs alone in an empty folder."""
    cells = page.tagged("take-with-you")
    if page.kind != "main":
        return [page.complain(i, "only a main notebook has a take-with-you cell") for i in cells]
    if len(cells) != 1:
        expected = f"expected one cell tagged take-with-you, found {len(cells)}"
        return [page.complain(cells[1] if cells else None, expected)]
    index = cells[0]
    cell = page.cells[index]
    if cell.cell_type != "code":
        return [page.complain(index, "expected the take-with-you cell to be code")]
    complaints = []
    above = page.cells[index - 1] if index else None
    titles = prose.headings(above.source) if above and above.cell_type == "markdown" else []
    if not any(HEADING in text for _, text, _ in titles):
        complaints.append(
            page.complain(index, f"expected a heading '{HEADING}' in the Markdown cell above")
        )
    if "kdlib" in imported(tree(cell)):
        complaints.append(page.complain(index, "expected public libraries only, found kdlib"))
    else:
        complaints += [page.complain(index, text) for text in run_alone(cell.source)]
    return complaints


def imported(module: ast.Module) -> set[str]:
    """The packages that a syntax tree imports, by their first name."""
    names = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def run_alone(source: str, seconds: float = SECONDS) -> list[str]:
    """Run code in a fresh interpreter, in an empty folder, without kdlib and without network hubs.

    Returns what is wrong: it failed, took too long, or warned.
    """
    environment = os.environ | {
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as elsewhere:
        script = Path(elsewhere) / "cell.py"
        script.write_text(source, encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", ALONE, str(script)],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [f"expected to run alone within {seconds:g} s, stopped it"]
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode:
        return [f"expected to run alone without kdlib, it failed: {last}"]
    # Third-party imports may warn developers; `-W error` would punish the cell for those. What
    # reaches stderr under the default filters is what a reader would see.
    if "Warning" in done.stderr:
        return [f"expected to run alone without a warning, found: {done.stderr.strip()[:300]}"]
    return []
