"""The card that opens a notebook, and the minutes that README.md promises."""

import json
import re
from pathlib import Path

from . import prose
from .page import Page, read, tags

FIELDS = ("You will be able to", "You need first", "Run time", "Download", "Headline result")
MINUTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:<!--.*?-->)?\s*min\b")
# Below this many minutes the start of a kernel weighs more than the notebook.
NOISE = 0.1


def card(page: Page) -> list[str]:
    """A main notebook opens with a complete card; the others open with their title."""
    if not page.cells or page.cells[0].cell_type != "markdown":
        return [page.complain(0 if page.cells else None, "expected a Markdown cell with the title")]
    first = page.cells[0]
    complaints = []
    if not any(level == 1 and text for level, text, _ in prose.headings(first.source)):
        complaints.append(page.complain(0, "expected a title, '# …', in the first cell"))
    cards = page.tagged("card")
    if page.kind != "main":
        return complaints + [page.complain(i, "only a main notebook has a card") for i in cards]
    if "card" not in tags(first):
        complaints.append(page.complain(0, "expected the tag 'card' on the first cell"))
    complaints += [page.complain(i, "expected one card, the first cell") for i in cards if i]
    values = fields(first.source)
    for name in FIELDS:
        if name not in values:
            complaints.append(page.complain(0, f"expected a row '{name}' in the card"))
        elif not prose.rendered(values[name]):
            complaints.append(page.complain(0, f"expected the card to say something at '{name}'"))
    if values.get("Run time"):
        complaints += [page.complain(0, text) for text in _run_time(page, values["Run time"])]
    return complaints


def readme(page: Page) -> list[str]:
    """README.md has a row for each main notebook, with the minutes that were measured."""
    if page.kind != "main":
        return []
    path = page.root / "README.md"
    if not path.is_file():
        return [page.complain(None, "expected README.md with a table row for this notebook")]
    document = read(path, page.root)
    text = document.cells[0].source
    header: list[str] = []
    for row in prose.table_rows(text):
        targets = [prose.split_target(link.target)[0] for link in prose.links(" ".join(row))]
        if not any((page.root / target).resolve() == page.path.resolve() for target in targets):
            if not targets:
                header = row
            continue
        line = prose.line_of(text, text.find(targets[0]))
        found = _minutes_of_row(row, header)
        if found is None:
            expected = f"expected the minutes of {page.path.name} in its table row"
            return [document.complain(0, expected, line=line)]
        return [document.complain(0, text, line=line) for text in _compare(page, found)]
    return [document.complain(0, f"expected a table row that links to {page.path.name}")]


def fields(source: str) -> dict[str, str]:
    """The rows of a card: field name to what stands beside it."""
    rows = [row for row in prose.table_rows(source) if len(row) >= 2]
    return {prose.rendered(row[0]).rstrip(":").strip(): " ".join(row[1:]) for row in rows}


def _minutes_of_row(row: list[str], header: list[str]) -> float | None:
    match = MINUTES.search(" | ".join(row))
    if match:
        return float(match.group(1))
    for name, value in zip(header, row, strict=False):
        match = re.match(r"\W*(\d+(?:\.\d+)?)", value)
        if re.search(r"\bmin(utes?)?\b", name, re.I) and match:
            return float(match.group(1))
    return None


def _run_time(page: Page, value: str) -> list[str]:
    """Minutes on two cores that were measured, then what is known of a GPU."""
    cpu, separator, gpu = value.partition("GPU:")
    match = MINUTES.search(cpu)
    if not match or not separator:
        return [
            "expected the run time as '0.7 min on two CPU cores; GPU: not measured', "
            f"found {prose.rendered(value)!r}"
        ]
    complaints = _compare(page, float(match.group(1)))
    if re.search(r"\d", prose.COMMENT.sub("", gpu)) and "<!--results:" not in gpu:
        complaints.append("expected a results marker behind the GPU time, or 'GPU: not measured'")
    return complaints


def _compare(page: Page, said: float) -> list[str]:
    measured = measured_minutes(page.root, page.path.stem)
    if measured is None:
        return [
            f"expected minutes/{page.path.stem} in data/results/course.json; `make record` adds it"
        ]
    ratio = max(said, NOISE) / max(measured, NOISE)
    if 0.5 <= ratio <= 2:
        return []
    return [
        f"expected about {measured:.2g} min for {page.path.stem}, as measured in "
        f"data/results/course.json, found {said:g} min"
    ]


def measured_minutes(root: Path, name: str) -> float | None:
    """The minutes `make record` wrote down for a notebook, None where it did not."""
    path = root / "data" / "results" / "course.json"
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8")).get("minutes", {}).get(name)
