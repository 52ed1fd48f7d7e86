"""The arithmetic in a text, checked step by step.

A step is one equality whose sides are numbers and + − × ÷: "28 − 20 = 8". A chain is several, so that
"2y = 28 − 20 = 8" holds one (2y is no number) and "2 × 7 = 20 − 6 = 14" two. What stands next to a letter,
a power, or anything else that is not read here belongs to a larger expression and is left alone: what is
reported as wrong should be wrong.

Read: + - − – * × · ⋅ ÷ / and x between numbers, \\times, \\cdot, \\div, \\frac{1}{2}, brackets, commas of
thousands, decimals, %, currencies (which change nothing), = and ≈, full-width characters, and GSM8K's
annotations <<48/2=24>>, which count once although the text repeats them.

Nothing is evaluated as code. The cost is bounded: see `SEARCHED`, `MOST_TOKENS` and `MOST_DIGITS`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from kdlib.language.answers.characters import plain

__all__ = ["MOST_DIGITS", "MOST_TOKENS", "SEARCHED", "Step", "arithmetic_steps", "first_wrong_step"]

SEARCHED = 200_000
"""Characters that are read, from the beginning; a thought of 32,768 tokens is shorter."""
MOST_TOKENS, MOST_DIGITS = 200, 40
"""The longest side of an equality, in numbers, operators and brackets; the longest number."""


@dataclass(frozen=True)
class Step:
    """One equality as it is written, and whether it is true.

    Attributes:
        text: the equality, "28 − 20 = 8".
        left: its left side, "28 − 20".
        claimed: what the right side comes to.
        value: what the left side comes to, exactly.
        correct: whether these are equal. A decimal may be rounded as written where the other side
            multiplies or divides: 1 ÷ 3 = 0.33; after ≈ a whole number may be, too. A side "40%" counts as
            40 or as 0.4.
        start: where the equality begins in the text that was searched.
    """

    text: str
    left: str
    claimed: Fraction
    value: Fraction
    correct: bool
    start: int


def arithmetic_steps(text: str) -> list[Step]:
    """The steps of a text, in its order."""
    return list(_steps(text))


def first_wrong_step(text: str) -> Step | None:
    """The first step that is wrong; None where all are right, or where there is none."""
    return next((step for step in _steps(text) if not step.correct), None)


# Tokens


class _Token(NamedTuple):
    kind: str  # "number", "+", "-", "*", "/", "(", ")", "%", "=", "≈"; "unknown", "end" (of what can go on)
    start: int
    end: int
    value: Fraction | None = None
    places: int = 0  # decimals as written; -1 for \frac
    spaced: bool = False  # whether a blank follows


_NUMERAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++"
_TOKEN = re.compile(
    rf"""
    (?P<fraction>\\[dt]?frac\s?\{{\s?(?P<top>[0-9]{{1,20}}+)\s?\}}\s?\{{\s?(?P<bottom>[0-9]{{1,20}}+)\s?\}})
    |(?P<number>{_NUMERAL})
    |(?P<equal>\s*+&?=(?![=>])|\s*+&?≈|\s*+\\approx\b)
    |(?P<newline>(?:\n|\A)\s*+[-*•]\s|\n\s*+|\\\\)
    |(?P<space>[^\S\n]++|\\[,;:! ]|[$€£¥&]|\\\$|\\(?:left|right)(?![a-zA-Z]))
    |(?P<operator>[-+*/×·⋅÷∙]|\\(?:times|cdot|div)(?![a-zA-Z])|(?<=[0-9) ])[xX](?=\s?[$€£¥]?[0-9]))
    |(?P<bracket>[()])
    |(?P<percent>\\?%)
    |(?P<annotation><<|>>)
    |(?P<unknown>[\^_!|~√²³]++|[<>]|\\[a-zA-Z]++|\.\.\.?|…|[≠≤≥±]|(?<=[0-9])[:,](?=[0-9])|[A-Za-z](?![A-Za-z'’]))
    |(?P<word>[^\W\d_]++)
    |(?P<other>[{{}}\[\]\#"';?@`]++|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_OPERATORS = dict.fromkeys(("×", "·", "⋅", "∙", "*", "x", "X", r"\times", r"\cdot"), "*")
_OPERATORS |= {"÷": "/", "/": "/", r"\div": "/", "+": "+", "-": "-"}
_SIDE = frozenset({"number", "+", "-", "*", "/", "(", ")", "%"})


def _tokens(text: str) -> Iterator[_Token]:
    for found in _TOKEN.finditer(text):
        kind, start, end = found.lastgroup, found.start(), found.end()
        if kind == "space":
            continue
        if kind == "number":
            yield _number(found, text)
        elif found["fraction"]:
            top, bottom = int(found["top"]), int(found["bottom"])
            value = Fraction(top, bottom) if bottom else None
            yield _Token("number" if bottom else "unknown", start, end, value, places=-1)
        elif kind == "equal":
            yield _Token("=" if "=" in found[0] else "≈", start, end)
        elif kind == "operator":
            yield _Token(_OPERATORS[found[0]], start, end, spaced=text[end : end + 1].isspace())
        elif kind == "bracket":
            yield _Token(found[0], start, end)
        elif kind == "percent":
            yield _Token("%", start, end)
        elif kind == "unknown" and not _is_article(found, text):
            yield _Token("unknown", start, end)
        else:
            yield _Token("end", start, end)


def _number(found: re.Match, text: str) -> _Token:
    numeral = found[0].replace(",", "")
    if len(numeral) > MOST_DIGITS:
        return _Token("unknown", found.start(), found.end())
    return _Token(
        "number", found.start(), found.end(), Fraction(numeral), len(numeral.partition(".")[2]),
        spaced=text[found.end() : found.end() + 1].isspace(),
    )  # fmt: skip


def _is_article(found: re.Match, text: str) -> bool:
    """The word "a" or "I", which is no variable: apart from the number, and a word comes next."""
    return (
        found[0] in ("a", "A", "I")
        and text[max(found.start() - 1, 0) : found.start()] in ("", " ", "\n")
        and re.match(r" [A-Za-z]{2}", text[found.end() : found.end() + 3]) is not None
    )


# Steps


def _steps(text: str) -> Iterator[Step]:
    text = text[:SEARCHED]
    tokens = [_Token("end", 0, 0), *_tokens(plain(text)), _Token("end", len(text), len(text))]
    for place, token in enumerate(tokens):
        if token.kind in ("=", "≈"):
            step = _step(text, _left(tokens, place), _right(tokens, place), token.kind == "≈")
            if step is not None:
                yield step


def _left(tokens: list[_Token], place: int) -> list[_Token] | None:
    first = place
    while tokens[first - 1].kind in _SIDE and place - first <= MOST_TOKENS:
        first -= 1
    side, before = tokens[first:place], tokens[first - 1].kind
    if before == "unknown" or len(side) > MOST_TOKENS or not side:
        return None
    # "5 apples - 2 = 3" takes from apples, "that gives -2 + 5 = 3" has a sign.
    signed = side[0].kind in "+-" and (before in "=≈" or not side[0].spaced)
    return side if signed or side[0].kind in ("number", "(") else None


def _right(tokens: list[_Token], place: int) -> list[_Token] | None:
    last = place + 1
    while tokens[last].kind in _SIDE and last - place <= MOST_TOKENS + 1:
        last += 1
    side, after = tokens[place + 1 : last], tokens[last].kind
    if after == "unknown" or len(side) > MOST_TOKENS:
        return None
    if len(side) > 1 and side[-1].kind == "-" and side[-1].spaced and after == "end":
        side = side[:-1]  # a dash between parts of a sentence
    if side and side[-1].kind == "(":
        side = side[:-1]  # "2 + 3 = 5 (fives)"
    while side and side[-1].kind == ")" and sum((t.kind == "(") - (t.kind == ")") for t in side) < 0:
        side = side[:-1]  # "(so 2 + 3 = 5)"
    return side


def _step(text: str, left: list[_Token] | None, right: list[_Token] | None, about: bool) -> Step | None:
    if not left or not right:
        return None
    while left[0].kind == "(" and sum((t.kind == "(") - (t.kind == ")") for t in left) > 0:
        left = left[1:]  # "(2 + 3 = 5)"
    computes = any(token.kind in "+-*/" for side in (left, right) for token in side[1:])
    value, claimed = _value(left), _value(right)
    if not computes or value is None or claimed is None:
        return None
    written = right if _is_plain(right) else left
    exact, rounded, other = (value, claimed, left) if written is right else (claimed, value, right)
    readings = {rounded, 100 * rounded} if written[-1].kind == "%" else {rounded}
    correct = exact in readings
    if not correct and _is_plain(written):
        places = next(token.places for token in written if token.kind == "number")
        # Sums of decimals are exact as written; products and quotients are what people round.
        inexact = any(token.kind in "*/%" or token.places < 0 for token in other)
        if about and places >= 0 or inexact and places > 0:
            correct = any(abs(exact - reading) <= Fraction(1, 2 * 10**places) for reading in readings)
    if written is right and len(readings) > 1 and abs(value - claimed) > abs(value - 100 * claimed):
        claimed *= 100  # "40%" that means 40
    start, end = left[0].start, right[-1].end
    return Step(text[start:end], text[start : left[-1].end], claimed, value, correct, start)


def _is_plain(side: list[_Token]) -> bool:
    """A number as written, perhaps with a sign or a percent sign: nothing that computes."""
    kinds = [token.kind for token in side]
    return [kind for kind in kinds if kind not in ("+", "-", "%")] == ["number"] and kinds.index("number") < 2


# Values: a small parser (sums of products of signed, bracketed numbers), in exact fractions


def _value(side: list[_Token]) -> Fraction | None:
    """What a side comes to; None if it is no expression, or divides by zero."""
    try:
        value, place = _sum(side, 0)
    except (ValueError, ZeroDivisionError):
        return None
    return value if place == len(side) else None


def _kind(side: list[_Token], place: int) -> str:
    return side[place].kind if place < len(side) else "end"


def _sum(side: list[_Token], place: int) -> tuple[Fraction, int]:
    value, place = _product(side, place)
    while (kind := _kind(side, place)) in ("+", "-"):
        term, place = _product(side, place + 1)
        value = value + term if kind == "+" else value - term
    return value, place


def _product(side: list[_Token], place: int) -> tuple[Fraction, int]:
    value, place = _factor(side, place)
    while (kind := _kind(side, place)) in ("*", "/", "("):
        # 2(3 + 4) multiplies; so does (1 + 1)(3 + 4).
        factor, place = _factor(side, place if kind == "(" else place + 1)
        value = value / factor if kind == "/" else value * factor
    return value, place


def _factor(side: list[_Token], place: int) -> tuple[Fraction, int]:
    kind = _kind(side, place)
    if kind in ("+", "-"):
        if _kind(side, place + 1) not in ("number", "("):
            raise ValueError("two signs")
        value, place = _factor(side, place + 1)
        return (-value if kind == "-" else value), place
    if kind == "(":
        value, place = _sum(side, place + 1)
        if _kind(side, place) != ")":
            raise ValueError("a bracket is left open")
        place += 1
    elif kind == "number":
        value, place = side[place].value, place + 1
    else:
        raise ValueError("a number is missing")
    if _kind(side, place) == "%":
        value, place = value / 100, place + 1
    return value, place
