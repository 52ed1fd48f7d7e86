"""Numbers in prose: each marker proves that the number before it was measured."""

import json
import math
import re
from decimal import Decimal
from functools import partial
from pathlib import Path

from . import prose
from .card import fields
from .page import Page, read, text_output

MARKER = re.compile(r"<!--\s*(\w+):\s*(.*?)\s*-->", re.S)
# A minus only where a number begins: in 3-5 the hyphen is a dash.
NUMBER = r"(?:(?<![\w.)\]])[-−])?(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][-+−]?\d+)?"
WRITTEN = re.compile(rf"({NUMBER})[*_]*([ \u00a0\u202f]?\\?%)?[*_]*[ \u00a0\u202f]?$")
TOKEN = re.compile(NUMBER)


def measured(page: Page) -> list[str]:
    """Every number with a marker equals what the marker points to."""
    complaints = []
    for index, cell in page.markdown():
        text = prose.without_code(cell.source)
        for marker in MARKER.finditer(text):
            expected = _marker(page, marker, text[: marker.start()])
            if expected:
                line = prose.line_of(text, marker.start())
                complaints.append(page.complain(index, expected, line=line))
    for index in page.tagged("card"):
        headline = fields(page.cells[index].source).get("Headline result", "")
        # The digit of ResNet-18 or T4 is a name, not a result.
        if re.search(r"(?<![\w-])\d", prose.COMMENT.sub("", headline)) and not (
            MARKER.search(prose.without_code(headline))
        ):
            complaints.append(page.complain(index, "expected a marker in 'Headline result'"))
    return complaints


def _marker(page: Page, marker: re.Match, before: str) -> str | None:
    kind, argument = marker.groups()
    if kind == "stored" and page.path.name == "slides.md":
        return _stored(page, argument)
    if kind not in ("out", "results"):
        return f"expected a marker 'out:' or 'results:', found '{kind}:'"
    written = WRITTEN.search(before)
    if not written:
        return f"expected a number right before the marker {marker.group()}, found {before[-20:]!r}"
    number, percent = written.groups()
    check = partial(_out, page) if kind == "out" else partial(_results, page.root)
    return check(argument, number, bool(percent))


def _stored(page: Page, argument: str) -> str | None:
    name, _, cell = argument.partition("/")
    there = _beside(page, f"{name}.ipynb")
    found = there and any(one.id == cell and one.get("outputs") for one in there.cells)
    return None if found else f"expected the cell {cell} with an output in {name}.ipynb"


def _beside(page: Page, name: str) -> Page | None:
    path = page.path.parent / name
    return read(path, page.root) if path.is_file() else None


def _out(page: Page, argument: str, number: str, percent: bool) -> str | None:
    name, _, tag = argument.rpartition(":")
    there = _beside(page, name) if name else page
    if there is None:
        return f"expected the notebook {name}"
    cells = there.tagged(f"result:{tag}")
    if len(cells) != 1:
        return f"expected one cell tagged result:{tag}, found {len(cells)}"
    text = text_output(there.cells[cells[0]])
    if plain(number) in {plain(token) for token in TOKEN.findall(text)}:
        return None
    # Enough of the output to find the right number in it.
    return f"expected {number} in the output of result:{tag}, found {' '.join(text.split())[:120]!r}"


def _results(root: Path, argument: str, number: str, percent: bool) -> str | None:
    name, _, inside = argument.partition(":")
    path = root / "data" / "results" / name
    if not name or not path.is_file():
        return f"expected the file data/results/{name}"
    value = json.loads(path.read_text(encoding="utf-8"))
    for key in inside.split("/"):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError, TypeError):
            return f"expected {inside} in data/results/{name}, there is no '{key}'"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"expected a number at {inside} in data/results/{name}, found {value!r}"
    if not math.isfinite(value):
        return f"expected a finite number at {inside} in data/results/{name}, found {value}"
    # A share is stored as 0.912 and read as 91.2 %; what is stored as a percentage stays.
    if percent and abs(value) <= 1 and "percent" not in inside.rpartition("/")[2]:
        value = value * 100
    if rounds_to(value, number):
        return None
    return f"expected {value:.6g}, rounded, from data/results/{argument}, found {number}"


def plain(number: str) -> str:
    """A number as a program prints it: ASCII minus, no thousands separators."""
    return number.replace("−", "-").replace(",", "").replace("e+", "e")


def rounds_to(value: float, number: str) -> bool:
    """Is ``number`` the value, rounded to the digits written?"""
    written = Decimal(plain(number))
    half = Decimal(5).scaleb(written.as_tuple().exponent - 1)
    # Either neighbour of a tie will do, and so will the last bits of a float.
    return abs(Decimal(repr(value)) - written) <= half * (1 + Decimal("1e-9"))
