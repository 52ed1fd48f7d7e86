"""Short cells, plain Python, figures that are shown, prose that is finished."""

import ast
import re

from . import prose
from .functions import kdlib_definitions
from .page import Page, tags, tree

LINE = 80
LINES = 25
# Take it with you is one piece that runs alone, with device, batches, evaluation and saving.
LINES_TO_TAKE = 60
# What ties a notebook to one working directory, or changes the reader's process for what is run after it.
OF_THE_PROCESS = re.compile(
    r"""["']\.\.[/\\"']|\bos\.(?:chdir|putenv)\b|"""
    r"\bos\.environ(?:\[[^\]]*\] *\|?=(?!=)|\.(?:update|setdefault)| *\|=)"
)
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX)\b")


def style(page: Page) -> list[str]:
    """Lines and cells stay short, figures end with plots.show, no TODO is left in the prose."""
    complaints = []
    not_figures = _not_figures(page)
    for index, cell in page.code():
        lines = cell.source.splitlines()
        for number, line in enumerate(lines, start=1):
            if len(line) >= LINE:
                expected = f"expected under {LINE} characters in line {number}, found {len(line)}"
                complaints.append(page.complain(index, expected))
        most = LINES_TO_TAKE if "take-with-you" in tags(cell) else LINES
        if len(lines) >= most:
            complaints.append(
                page.complain(index, f"expected under {most} lines, found {len(lines)}")
            )
        if found := OF_THE_PROCESS.search(cell.source):
            expected = f"expected code that runs in any folder and leaves the process alone, found {found[0]}"
            complaints.append(page.complain(index, expected))
        if not cell.source.strip():
            complaints.append(page.complain(index, "expected code, found an empty cell"))
        try:
            ast.parse(cell.source)
        except SyntaxError as error:
            expected = f"expected plain Python without magics, line {error.lineno}: {error.msg}"
            complaints.append(page.complain(index, expected))
        complaints += [page.complain(index, text) for text in _figure(tree(cell), not_figures)]
    for index, cell in page.markdown():
        visible = prose.without_code(cell.source)
        for match in UNFINISHED.finditer(visible):
            line = prose.line_of(visible, match.start())
            complaints.append(
                page.complain(index, f"expected finished prose, found {match.group()}", line=line)
            )
    return complaints


def _figure(module: ast.Module, not_figures: set[str]) -> list[str]:
    drawn = [
        name for name in _plots_calls(module) if name != "show" and name not in not_figures
    ]
    last = module.body[-1] if module.body else None
    shown = isinstance(last, ast.Expr) and "show" in _plots_calls(last)
    if drawn and not shown:
        return [f"expected plots.show(…) at the end of a cell that calls plots.{drawn[0]}"]
    return []


def _plots_calls(node: ast.AST) -> list[str]:
    """Names that are called on ``plots`` or ``kdlib.course.plots``, as the cell runs, not in functions."""
    if isinstance(node, ast.Lambda | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return []
    names = [name for child in ast.iter_child_nodes(node) for name in _plots_calls(child)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner, name = ast.unparse(node.func.value), node.func.attr
        if owner in ("plots", "kdlib.course.plots"):
            names.append(name)
    return names


def _not_figures(page: Page) -> set[str]:
    """Functions of kdlib.course.plots whose annotation says that they return something else."""
    return {
        name.removeprefix("kdlib.course.plots.")
        for name, node in kdlib_definitions(page.root).items()
        if name.startswith("kdlib.course.plots.")
        and isinstance(node, ast.FunctionDef)
        and node.returns is not None
        and "Figure" not in ast.unparse(node.returns)
    }
