"""Tags: known ones only; no output goes unchecked without an assertion that could fail; claims are folded."""

import ast
import re

from .page import Page, tags, tree

IGNORE = "nbval-ignore-output"
FOLDED = "hide-input"  # MyST and Jupyter Book fold it; JupyterLab goes by the metadata
MARKDOWN_TAGS = re.compile(r"card")
CODE_TAGS = re.compile(
    rf"{IGNORE}|claim|{FOLDED}|widget|parameters|take-with-you|shown:[\w.]+|result:[\w-]+|(exercise|check|solution)-\d+"
)
# nbval reads these from comments as well, where no tag betrays them.
COMMENT_MARKER = re.compile(r"^\s*#+\s*(NBVAL_\w+|PYTEST_VALIDATE_IGNORE_OUTPUT)\s*$", re.M)


def claims(page: Page) -> list[str]:
    """Ignored outputs are answered by a claim; claims can fail; tags are spelled right."""
    complaints = []
    for index, cell in enumerate(page.cells):
        known = CODE_TAGS if cell.cell_type == "code" else MARKDOWN_TAGS
        expected = f"expected the tags of CONTRIBUTING.md on a {cell.cell_type} cell, found"
        complaints += [
            page.complain(index, f"{expected} '{tag}'")
            for tag in tags(cell)
            if not known.fullmatch(tag)
        ]
    code = list(page.code())
    for position, (index, cell) in enumerate(code):
        marks = tags(cell)
        marker = COMMENT_MARKER.search(cell.source)
        if marker:
            complaints.append(page.complain(index, f"expected a tag, not # {marker.group(1)}"))
        if "claim" in marks:
            complaints += [page.complain(index, text) for text in unfounded(tree(cell))]
        folded = FOLDED in marks, bool(cell.metadata.get("jupyter", {}).get("source_hidden"))
        if folded != ("claim" in marks,) * 2:
            expected = "a claim cell to be folded" if "claim" in marks else "only claim cells to be folded"
            how = f"tag {FOLDED} and jupyter.source_hidden; `make record` sets them"
            complaints.append(page.complain(index, f"expected {expected} ({how})"))
        if "widget" in marks and IGNORE not in marks:
            complaints.append(page.complain(index, f"expected the tag {IGNORE} beside 'widget'"))
        if IGNORE not in marks:
            continue
        if "claim" in marks:
            complaints.append(page.complain(index, f"expected a claim without the tag {IGNORE}"))
        elif "widget" not in marks:
            rest = (other for _, other in code[position + 1 :] if IGNORE not in tags(other))
            answer = next(rest, None)
            if answer is None or "claim" not in tags(answer):
                complaints.append(
                    page.complain(
                        index,
                        "expected the next code cell that is not ignored to carry 'claim' and "
                        "assert what this one shows",
                    )
                )
    return complaints


def unfounded(module: ast.Module) -> list[str]:
    """What is wrong with a cell that claims: no assert that runs, or one that cannot fail."""
    asserts = list(_asserts(module.body))
    if not asserts:
        return ["expected an assert"]
    return [
        f"expected an assert that can fail, found `{ast.unparse(node)[:60]}`"
        for node in asserts
        if always_true(node.test)
    ]


def _asserts(nodes: list[ast.stmt]) -> list[ast.Assert]:
    """Asserts that run with the cell and are not caught."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Assert):
            found.append(node)
        elif isinstance(node, ast.With | ast.For | ast.If):
            found += _asserts(node.body) + _asserts(getattr(node, "orelse", []))
    return found


def always_true(test: ast.expr) -> bool:
    """Is a condition true, or at least constant, by its form alone?"""
    if isinstance(test, ast.Tuple | ast.List | ast.Dict | ast.Set | ast.JoinedStr | ast.Lambda):
        return True
    if isinstance(test, ast.BoolOp):
        decide = any if isinstance(test.op, ast.Or) else all
        return decide(always_true(value) for value in test.values)
    if isinstance(test, ast.Compare):
        sides = [ast.dump(side) for side in (test.left, *test.comparators)]
        reflexive = all(isinstance(op, ast.Eq | ast.LtE | ast.GtE | ast.Is) for op in test.ops)
        # A call may return something else the second time: repeatability is a fair claim.
        calls = any(isinstance(node, ast.Call) for node in ast.walk(test))
        if reflexive and len(set(sides)) == 1 and not calls:
            return True
    return not any(isinstance(node, ast.Name | ast.Call) for node in ast.walk(test))
