"""The routes of teaching.md: their minutes add up, their parts and questions exist, as on the slides.

That each part is a heading of its notebook is what the guard `links` asks of every document.
"""

import re
from pathlib import Path

import pytest
from guards import documents, prose

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "notebooks" / "teaching.md"
ROUTES = {"The 90-minute route": 90, "The half-day route": 240}


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", GUIDE.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_guide_is_read_by_the_guards():
    assert GUIDE in documents(ROOT)


@pytest.mark.parametrize("route", ROUTES)
def test_minutes_of_a_route_add_up(route: str):
    header, *rows = prose.table_rows(sections()[route])
    assert header == ["Minutes", "Part", "What happens"]
    assert sum(int(minutes) for minutes, *_ in rows) == ROUTES[route]
    linked = [row for row in rows if prose.links(row[1])]
    assert len(linked) >= len(rows) - 3, "breaks and the last part have no heading"
    for row in linked:
        assert ".ipynb#" in prose.links(row[1])[0].target, "a part is a heading of a notebook"


def test_every_question_of_a_route_is_asked_and_answered():
    listed = re.findall(r"^(\d+)\. \*\*.+?\?\*\* \S", sections()["Questions to ask the room"], re.M | re.S)
    assert listed == [f"{k + 1}" for k in range(len(listed))]
    used = {k for route in ROUTES for k in re.findall(r"Question (\d+)", sections()[route])}
    assert used == set(listed)


def one_line(text: str) -> str:
    """Without the line breaks of the file and the marks of a quotation."""
    return re.sub(r"\s+(?:> )?", " ", text)


@pytest.mark.parametrize(("folder", "minutes", "question"), [("", "min", "Question"), ("zh", "分钟", "问题")])
def test_slides_have_the_parts_minutes_and_questions_of_the_short_route(folder, minutes, question):
    pages = [GUIDE.parent / folder / name for name in ("teaching.md", "slides.md")]
    guide, slides = (re.split("^## ", page.read_text(encoding="utf-8"), flags=re.M) for page in pages)
    asked = dict(re.findall(r"(\d)\. \*\*(.+?)\*\*", one_line("".join(guide))))
    _, *rows = prose.table_rows(guide[1])
    for row, part in zip(rows, slides[1:], strict=True):
        title, length, _ = re.split(r"\n+", part, maxsplit=2)
        (heading,), (start,) = prose.links(row[1]), prose.links(length)
        assert (title, start.target) == (heading.text, heading.target)
        assert re.match(rf"{row[0]} {minutes}\b", length)
        for number in re.findall(rf"{question} (\d)", row[2]):
            before, _, text = one_line(part).partition(f"**{question} {number}")
            assert text.lstrip("*. ").startswith(asked[number])
            assert "<!--" not in before, f"{title}: a figure stands before the question that it answers"
