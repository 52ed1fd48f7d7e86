"""Ways to spoil the good notebook of the fixtures, and to hear what the guards say of it."""

import copy
from collections.abc import Callable
from pathlib import Path

from guards import GUARDS, Page, read
from nbformat import NotebookNode
from nbformat.v4 import new_output

COURSE = Path(__file__).parent / "fixtures" / "course"
GOOD = COURSE / "notebooks" / "00_good.ipynb"
Change = Callable[[NotebookNode], None]


def good() -> Page:
    """A fresh copy of the notebook that passes every guard."""
    return read(GOOD, COURSE)


def locate(node: NotebookNode, where: str) -> int:
    """The one cell with this tag, or else the first with this text."""
    for index, cell in enumerate(node.cells):
        if where in cell.metadata.get("tags", []):
            return index
    return next(index for index, cell in enumerate(node.cells) if where in cell.source)


def complaints_of(page: Page) -> dict[str, list[str]]:
    """The guards that complain, and what they say."""
    said = {name: guard(page) for name, guard in GUARDS.items()}
    return {name: complaints for name, complaints in said.items() if complaints}


def place_of(cell: int | None) -> str:
    """How a complaint about this cell begins; None is the notebook as a whole."""
    return f"notebooks/00_good.ipynb{': ' if cell is None else f', cell {cell + 1} ('}"


def source(where: str, old: str, new: str) -> Change:
    """Replace text in a cell's source, once."""

    def change(node: NotebookNode) -> None:
        cell = node.cells[locate(node, where)]
        assert old in cell.source
        cell.source = cell.source.replace(old, new, 1)

    return change


def append(where: str, text: str) -> Change:
    """Add text to a cell's source."""

    def change(node: NotebookNode) -> None:
        node.cells[locate(node, where)].source += text

    return change


def tag(where: str, add: str = "", drop: str = "") -> Change:
    """Add and drop a tag."""

    def change(node: NotebookNode) -> None:
        metadata = node.cells[locate(node, where)].metadata
        kept = [name for name in metadata.get("tags", []) if name != drop]
        metadata["tags"] = kept + ([add] if add else [])

    return change


def output(where: str, text: str) -> Change:
    """Replace the text of a cell's first output."""

    def change(node: NotebookNode) -> None:
        node.cells[locate(node, where)].outputs[0].text = text

    return change


def add_output(where: str, kind: str, **fields: object) -> Change:
    """Add an output to a cell."""

    def change(node: NotebookNode) -> None:
        node.cells[locate(node, where)].outputs.append(new_output(kind, **fields))

    return change


def insert(before: str, cell: NotebookNode) -> Change:
    """Insert a cell above another."""

    def change(node: NotebookNode) -> None:
        node.cells.insert(locate(node, before), copy.deepcopy(cell))
        recount(node)

    return change


def remove(*where: str) -> Change:
    """Remove cells."""

    def change(node: NotebookNode) -> None:
        for name in where:
            del node.cells[locate(node, name)]
        recount(node)

    return change


def swap(one: str, other: str) -> Change:
    """Swap two cells."""

    def change(node: NotebookNode) -> None:
        i, j = locate(node, one), locate(node, other)
        node.cells[i], node.cells[j] = node.cells[j], node.cells[i]
        recount(node)

    return change


def recount(node: NotebookNode) -> None:
    """Number the code cells as a run from top to bottom does."""
    code = [cell for cell in node.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count


def clear(where: str) -> Change:
    """Leave a cell without source."""

    def change(node: NotebookNode) -> None:
        node.cells[locate(node, where)].source = ""

    return change


def both(*changes: Change) -> Change:
    """One change after another."""

    def change(node: NotebookNode) -> None:
        for one in changes:
            one(node)

    return change


def no_outputs(where: str) -> Change:
    """Forget what a cell showed."""

    def change(node: NotebookNode) -> None:
        node.cells[locate(node, where)].outputs = []

    return change


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
