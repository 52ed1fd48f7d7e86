"""Exercises: a stub, a hint, a check that says "not yet", and a solution that satisfies it."""

import ast
import builtins
import re

from . import prose
from .page import Cell, Page, read, running, tags, text_output, tree

AT_LEAST = 3
NUMBERED = re.compile(r"(exercise|check|solution)-(\d+)")


def exercises(page: Page) -> list[str]:
    """Every exercise of a main notebook is complete, here and in its solution notebook."""
    if page.kind != "main":
        return []
    complaints, count = _numbering(page)
    claimed: set[int] = set()
    for k in range(1, count + 1):
        complaints += _exercise(page, k, claimed)
    path = page.path.parent / "solutions" / page.path.name
    if not path.is_file():
        return [*complaints, page.complain(None, f"expected its solutions in solutions/{path.name}")]
    solution = read(path, page.root)
    for k in range(1, count + 1):
        complaints += _solution(page, solution, k)
    for index, cell in enumerate(solution.cells):
        extra = [k for kind, k in _numbers(cell) if kind == "solution" and k > count]
        if extra:
            complaints.append(solution.complain(index, f"expected an exercise-{extra[0]} to solve"))
    return complaints


def _numbers(cell: Cell) -> list[tuple[str, int]]:
    matches = (NUMBERED.fullmatch(tag) for tag in tags(cell))
    return [(match.group(1), int(match.group(2))) for match in matches if match]


def _numbering(page: Page) -> tuple[list[str], int]:
    """Complaints about the numbers, and how many exercises to look at."""
    complaints = []
    order = []
    for index, cell in enumerate(page.cells):
        for kind, k in _numbers(cell):
            if kind == "solution":
                complaints.append(page.complain(index, "expected solutions in solutions/ only"))
            elif kind == "exercise":
                order.append((index, k))
    for expected, (index, k) in enumerate(order, start=1):
        if k != expected:
            complaints.append(page.complain(index, f"expected exercise-{expected}, found {k}"))
            break
    if len(order) < AT_LEAST:
        expected = f"expected at least {AT_LEAST} exercises, found {len(order)}"
        complaints.append(page.complain(order[-1][0] if order else None, expected))
    return complaints, max((k for _, k in order), default=0)


def _one(page: Page, tag: str) -> tuple[int | None, list[str]]:
    """The code cell with this tag, or what is wrong with it."""
    found = page.tagged(tag)
    if len(found) != 1:
        where = found[1] if found else None
        return None, [page.complain(where, f"expected one cell tagged {tag}, found {len(found)}")]
    if page.cells[found[0]].cell_type != "code":
        return None, [page.complain(found[0], f"expected {tag} to be a code cell")]
    return found[0], []


def _exercise(page: Page, k: int, claimed: set[int]) -> list[str]:
    stub, complaints = _one(page, f"exercise-{k}")
    check, more = _one(page, f"check-{k}")
    complaints += more
    if check is None:
        return complaints
    if stub is not None and stub > check:
        complaints.append(page.complain(check, f"expected check-{k} below exercise-{k}"))
    complaints += _check_cell(page, check, k)
    previous = page.tagged(f"check-{k - 1}")
    start = previous[0] + 1 if previous else 0
    places = list(range(start, check))
    # Right after its check is a place for a hint too, unless the next exercise begins there.
    if check + 1 < len(page.cells) and not prose.headings(page.cells[check + 1].source):
        places.append(check + 1)
    hint = next((i for i in places if i not in claimed and is_hint(page.cells[i])), None)
    if hint is None:
        expected = f"expected a hint for exercise {k}: <details><summary>Hint</summary> … </details>"
        complaints.append(page.complain(check if stub is None else stub, expected))
    else:
        claimed.add(hint)
    return complaints + _says(page, check, wanted="not yet", never="correct")


def _solution(page: Page, solution: Page, k: int) -> list[str]:
    answer, complaints = _one(solution, f"solution-{k}")
    check, more = _one(solution, f"check-{k}")
    complaints += more
    if check is None:
        return complaints
    asked = page.tagged(f"check-{k}")
    if asked and page.cells[asked[0]].source != solution.cells[check].source:
        expected = f"expected check-{k} letter for letter as in the notebook"
        complaints.append(solution.complain(check, expected))
    if answer is not None:
        following = next((i for i, _ in solution.code() if i > answer), None)
        if following != check:
            complaints.append(
                solution.complain(answer, f"expected check-{k} as the next code cell")
            )
        if unknown := _unknown(page, tree(solution.cells[answer])):
            expected = f"expected a solution to paste into the notebook, which knows no {', '.join(unknown)}"
            complaints.append(solution.complain(answer, expected))
    return complaints + _says(solution, check, wanted="correct", never="not yet")


def _unknown(page: Page, solution: ast.Module) -> list[str]:
    """Names that a solution uses and neither it nor any other cell of the notebook has given."""
    cells = (tree(cell) for _, cell in page.code() if "take-with-you" not in tags(cell))
    given = set(dir(builtins)).union(*map(_given, [solution, *cells]))
    return sorted({node.id for node in ast.walk(solution) if isinstance(node, ast.Name)} - given)


def _given(module: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def _check_cell(page: Page, index: int, k: int) -> list[str]:
    cell = page.cells[index]
    complaints = []
    if "nbval-ignore-output" in tags(cell):
        complaints.append(page.complain(index, "expected a check whose output nbval compares"))
    guarded = [
        node
        for node in running(tree(cell).body)
        if isinstance(node, ast.With) and f"Exercise {k}" in _self_check_titles(node)
    ]
    if not guarded:
        complaints.append(page.complain(index, f'expected `with self_check("Exercise {k}"):`'))
    elif not any(isinstance(node, ast.Assert) for with_ in guarded for node in ast.walk(with_)):
        complaints.append(page.complain(index, "expected an assert under self_check"))
    return complaints


def _self_check_titles(node: ast.With) -> list[object]:
    return [
        call.args[0].value
        for call in (item.context_expr for item in node.items)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).rpartition(".")[2] == "self_check"
        and call.args
        and isinstance(call.args[0], ast.Constant)
    ]


def _says(page: Page, index: int, *, wanted: str, never: str) -> list[str]:
    text = text_output(page.cells[index]).lower()
    complaints = []
    if not re.search(rf"\b{wanted}\b", text):
        complaints.append(page.complain(index, f"expected the stored output to say '{wanted}'"))
    if re.search(rf"\b{never}\b", text):
        complaints.append(page.complain(index, f"expected no '{never}' in the stored output"))
    return complaints


def is_hint(cell: Cell) -> bool:
    """A Markdown cell with something to say in a collapsed ``<details>``."""
    if cell.cell_type != "markdown":
        return False
    match = re.search(
        r"<details>\s*<summary>.*?hint.*?</summary>(.*?)</details>", cell.source, re.S | re.I
    )
    return bool(match and match.group(1).strip())
