"""A notebook as the guards see it: its cells, their tags, and how a complaint names one of them."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

Cell = NotebookNode


@dataclass(frozen=True)
class Page:
    """One notebook, where it stands, and the root of the checkout it belongs to.

    A Markdown file is a page with a single Markdown cell, so that the guards on links and numbers
    read README.md and the notebooks with the same eyes.
    """

    node: NotebookNode
    path: Path
    root: Path

    @property
    def kind(self) -> str:
        """``main``, ``glossary``, ``solution`` or ``document``."""
        if self.path.suffix != ".ipynb":
            return "document"
        if self.path.parent.name == "solutions":
            return "solution"
        return "glossary" if self.path.stem == "glossary" else "main"

    @property
    def cells(self) -> list[Cell]:
        return self.node.cells

    def code(self) -> Iterator[tuple[int, Cell]]:
        """Code cells with their index."""
        return ((i, cell) for i, cell in enumerate(self.cells) if cell.cell_type == "code")

    def markdown(self) -> Iterator[tuple[int, Cell]]:
        """Markdown cells with their index."""
        return ((i, cell) for i, cell in enumerate(self.cells) if cell.cell_type == "markdown")

    def tagged(self, tag: str) -> list[int]:
        """Indices of the cells that carry ``tag``."""
        return [i for i, cell in enumerate(self.cells) if tag in tags(cell)]

    def complain(self, index: int | None, expected: str, *, line: int | None = None) -> str:
        """One complaint: where (cells are counted from 1, lines of a document too) and what."""
        try:
            where = self.path.relative_to(self.root).as_posix()
        except ValueError:
            where = self.path.name
        if self.kind == "document":
            return f"{where}, line {line or 1}: {expected}"
        if index is None:
            return f"{where}: {expected}"
        return f"{where}, cell {index + 1} ({first_line(self.cells[index])!r}): {expected}"


def read(path: Path, root: Path) -> Page:
    """The page at ``path``: a notebook, or a Markdown file as one Markdown cell."""
    if path.suffix == ".ipynb":
        return Page(nbformat.read(path, as_version=4), path, root)
    cell = nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))
    return Page(nbformat.v4.new_notebook(cells=[cell]), path, root)


def tags(cell: Cell) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def first_line(cell: Cell, width: int = 60) -> str:
    """The first line that is not blank, cut to ``width``."""
    line = next((line.strip() for line in cell.source.splitlines() if line.strip()), "")
    return line if len(line) <= width else line[: width - 1] + "…"


def tree(cell: Cell) -> ast.Module:
    """The syntax tree of a code cell; empty where it is not plain Python, which `style` reports."""
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


def running(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the cell does: into ``if``, ``with``, ``for``, not into functions."""
    for node in nodes:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for block in ("body", "orelse", "finalbody"):
            yield from running(getattr(node, block, []))
        for handler in getattr(node, "handlers", []):
            yield from running(handler.body)


def text_output(cell: Cell) -> str:
    """Everything a code cell shows as text."""
    parts = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            parts.append(output.text)
        elif output.output_type == "error":
            parts.append("\n".join([output.ename, output.evalue, *output.traceback]))
        else:
            parts += [
                value
                for mime, value in output.get("data", {}).items()
                if isinstance(value, str) and (mime.startswith("text/") or mime.endswith("xml"))
            ]
    return "\n".join(parts)
