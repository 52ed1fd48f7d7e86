"""How long a notebook takes its learner, by the rule of CONTRIBUTING.md, and what its card says."""

import re

from . import prose
from .page import Page, tags

FIELD = "Reading and exercises"
WORDS, LINES = 200, 12  # a minute, of prose and of code
FIGURE, EXERCISE = 0.5, 8  # minutes each
MOST = 120  # what takes longer is two notebooks


def minutes(page: Page) -> float:
    """Minutes to read prose, code and figures and to do the exercises; folded code is not read."""
    words = sum(len(_words(cell.source)) for _, cell in page.markdown())
    code = [cell for _, cell in page.code() if "claim" not in tags(cell)]
    lines = sum(bool(line.strip()) for cell in code for line in cell.source.splitlines())
    figures = sum(output.get("data", {}).get("image/png") is not None for cell in code
                  for output in cell.get("outputs", []))
    exercises = sum(tag.startswith("exercise-") for cell in code for tag in tags(cell))
    return words / WORDS + lines / LINES + figures * FIGURE + exercises * EXERCISE


def pace(page: Page) -> list[str]:
    """The card of a main notebook says how long it takes, and that is at most two hours."""
    cards = page.tagged("card")
    if page.kind != "main" or not cards:
        return []
    takes = minutes(page)
    complaints = []
    if takes > MOST:
        expected = f"expected at most {MOST} min of reading and exercises, found {takes:.0f}"
        complaints.append(page.complain(None, expected))
    table = prose.table_rows(page.cells[cards[0]].source)
    rows = {prose.rendered(row[0]): row[1] for row in table if len(row) > 1}
    said = re.fullmatch(r"(\d+) min", prose.rendered(rows.get(FIELD, "")))
    if not said or abs(int(said[1]) - takes) > max(5, 0.1 * takes):
        expected = f"expected '{5 * round(takes / 5)} min' at '{FIELD}'"
        complaints.append(page.complain(cards[0], f"{expected}, found {rows.get(FIELD, 'no such row')!r}"))
    return complaints


def _words(source: str) -> list[str]:
    return [word for word in prose.rendered(source).split() if re.search(r"\w", word)]
