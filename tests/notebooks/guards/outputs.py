"""Stored outputs: all there, clean, and the same on everybody's machine."""

import ast
import json
import re

import nbformat

from .page import Cell, Page, running, text_output, tree

ALT_LENGTH = 20
MEGABYTES = 3
# Only where a path begins: the path part of a URL follows a letter and is nobody's machine.
MACHINE = re.compile(
    r"(?<![\w.~/-])/(?:home|Users|root|tmp|work|workspace|mnt|opt|var|private|usr)/"
    r"|\b[A-Za-z]:\\{1,2}(?:Users|Windows|Program)|(?:site|dist)-packages|\.venv\b|ipykernel_\d+"
)
ADDRESS = re.compile(r"<[^<>\n]* at 0x[0-9a-fA-F]+[^<>\n]*>")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def outputs(page: Page) -> list[str]:
    """No error, warning, machine path or address; images described; every cell executed."""
    complaints = _notebook(page)
    for index, cell in enumerate(page.cells):
        for text in (cell.source, json.dumps(cell.metadata)):
            complaints += [page.complain(index, expected) for expected in _paths(text)]
    complaints += _counts(page)
    for index, cell in page.code():
        if cell.execution_count and not cell.outputs and shows(tree(cell)):
            complaints.append(page.complain(index, "expected the output of this cell to be stored"))
        for output in cell.outputs:
            complaints += [page.complain(index, expected) for expected in _output(output)]
        complaints += [page.complain(index, expected) for expected in _text(text_output(cell))]
    return complaints


def _counts(page: Page) -> list[str]:
    """Cells were executed in order; only the first that was not, as the others follow from it."""
    for count, (index, cell) in enumerate(page.code(), start=1):
        if cell.execution_count != count:
            expected = f"expected execution count {count}, found {cell.execution_count}"
            return [page.complain(index, f"{expected}; `make record` runs all cells in order")]
    return []


def _notebook(page: Page) -> list[str]:
    complaints = []
    kernel = page.node.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        complaints.append(page.complain(None, f"expected the kernel 'python3', found {kernel!r}"))
    if "widgets" in page.node.metadata:
        complaints.append(page.complain(None, "expected no widget state in the metadata"))
    complaints += [page.complain(None, text) for text in _paths(json.dumps(page.node.metadata))]
    size = len(nbformat.writes(page.node).encode()) / 1e6
    if size > MEGABYTES:
        complaints.append(page.complain(None, f"expected at most {MEGABYTES} MB, found {size:.1f}"))
    return complaints


def _output(output: Cell) -> list[str]:
    if output.output_type == "error":
        return [f"expected no error, found {output.ename}"]
    if output.output_type == "stream":
        return ["expected nothing on stderr"] if output.name == "stderr" else []
    complaints = []
    for mime in output.data:
        if mime == WIDGET_VIEW:
            complaints.append("expected no stored widget view: without its state it is an error")
        if mime.startswith("image/"):
            alt = output.metadata.get(mime, {}).get("alt", "").strip()
            if len(alt) < ALT_LENGTH:
                complaints.append(
                    f"expected alt text of {ALT_LENGTH} characters or more for {mime}, found {alt!r}"
                )
    return complaints


def _text(text: str) -> list[str]:
    complaints = _paths(text)
    if re.search(r"\w*Warning\b", text):
        complaints.append("expected no warning in the output")
    if "Traceback (most recent call last)" in text:
        complaints.append("expected no stack trace in the output")
    address = ADDRESS.search(text)
    if address:
        complaints.append(f"expected no memory address, found {address.group()!r}")
    return complaints


def _paths(text: str) -> list[str]:
    found = MACHINE.search(text)
    return [f"expected no path of a machine, found {found.group()!r}"] if found else []


def shows(module: ast.Module) -> bool:
    """Does running this code surely display something? Loops and branches may not."""
    for node in module.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            if ast.unparse(node.value.func) in {"print", "display", "plots.show"}:
                return True
        elif isinstance(node, ast.With) and any(
            isinstance(inner, ast.Expr) and shows(ast.Module([inner], []))
            for inner in running(node.body)
        ):
            return True
    last = module.body[-1] if module.body else None
    return isinstance(last, ast.Expr) and isinstance(
        last.value, ast.BinOp | ast.Compare | ast.Subscript | ast.Attribute | ast.Tuple | ast.List
    )
