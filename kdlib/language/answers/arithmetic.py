"""The arithmetic in a text, checked step by step.

A step is one equality whose sides are numbers and + − × ÷: "28 − 20 = 8". "2y = 28 − 20 = 8" holds one (2y is
no number), "2 × 7 = 20 − 6 = 14" two. What stands next to a letter, a power, or anything else that is not
read here belongs to a larger expression and is left alone: what is reported as wrong should be wrong.

Read: + - − – * × · ⋅ ÷ / and x between numbers, \\times, \\cdot, \\div, \\frac{1}{2}, brackets, commas of
thousands, decimals, %, currencies (which change nothing), = and ≈, full-width characters, and GSM8K's
annotations <<48/2=24>>, which count once although the text repeats them. Nothing is evaluated as code.
"""

import ast
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

__all__ = [
    "MOST_DIGITS", "NUMERAL", "SEARCHED", "Step", "arithmetic_steps", "first_wrong_step", "plain",
]  # fmt: skip

# What bounds the cost: characters that are read, from the beginning (a thought of 32,768 tokens is shorter);
# the longest side of an equality, in numbers, operators and brackets; the longest number.
SEARCHED, _MOST_TOKENS, MOST_DIGITS = 200_000, 200, 40


@dataclass(frozen=True)
class Step:
    """One equality as it is written, and whether it is true.

    Attributes:
        text: the equality, "28 − 20 = 8".
        left: its left side, "28 − 20".
        claimed: what the right side comes to.
        value: what the left side comes to, exactly.
        correct: whether these are equal. A decimal may be rounded as written where the other side
            multiplies or divides: 1 ÷ 3 = 0.33; after ≈ a whole number may be, too. 40% is 40 or 0.4.
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


# Characters that mean the same: full-width forms, dashes that are minus signs, blanks of every width.
_SAME = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # ！ to ～: digits, letters
_SAME[ord("，")] = ";"  # a Chinese comma is never one of thousands
_SAME |= dict.fromkeys(map(ord, "−–—‐‑‒﹣"), "-")
_SAME |= dict.fromkeys(map(ord, "\u00a0\u2002\u2003\u2007\u2009\u202f\u3000"), " ")
_SAME |= {ord("⁄"): "/", ord("∕"): "/", ord("﹪"): "%", ord("≒"): "≈", ord("￥"): "¥"}


def plain(text: str) -> str:
    """The text with one character for each of those that mean the same; as long as before.

    Not Unicode's NFKC, which makes "x2" of "x²".
    """
    return text.translate(_SAME)


# Tokens


class _Token(NamedTuple):
    kind: str  # "number", "+", "-", "*", "/", "(", ")", "%", "=", "≈"; "unknown", "end" (of what can go on)
    start: int
    end: int
    value: Fraction | None = None
    places: int = 0  # decimals as written; -1 for \frac
    spaced: bool = False  # whether a blank follows


NUMERAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)"
_TOKEN = re.compile(
    rf"""
    (?P<fraction>\\[dt]?frac\s?\{{\s?(?P<top>[0-9]{{1,20}}+)\s?\}}\s?\{{\s?(?P<bottom>[0-9]{{1,20}}+)\s?\}})
    |(?P<number>{NUMERAL})
    |(?P<equal>\s*+&?=(?![=>])|\s*+&?≈|\s*+\\approx\b)
    |(?:\n|\A)\s*+[-*•]\s|\n\s*+|\\\\  # the end of a line, and the mark of an item
    |(?P<space>[^\S\n]++|\\[,;:! ]|[$€£¥&]|\\\$|\\(?:left|right)(?![a-zA-Z]))
    |(?P<sign>[-+*/×·⋅÷∙()%]|\\%|\\(?:times|cdot|div)(?![a-zA-Z])|(?<=[0-9) ])[xX](?=\s?[$€£¥]?[0-9]))
    |<<|>>  # GSM8K's annotations
    |(?P<unknown>[\^_!|~√²³]++|[<>]|\\[a-zA-Z]++|\.\.\.?|…|[≠≤≥±]|(?<=[0-9])[:,](?=[0-9])|[A-Za-z](?![A-Za-z'’]))
    |[^\W\d_]++|[{{}}\[\]\#"';?@`]++|.
    """,
    re.VERBOSE | re.DOTALL,
)
_SIGNS = {sign: sign for sign in "+-*/()%"}
_SIGNS |= dict.fromkeys(("×", "·", "⋅", "∙", "x", "X", r"\times", r"\cdot"), "*")
_SIGNS |= {"÷": "/", r"\div": "/", r"\%": "%"}
_SIDE = frozenset({"number", *_SIGNS.values()})


def _tokens(text: str) -> Iterator[_Token]:
    for found in _TOKEN.finditer(text):
        kind, value, places = found.lastgroup or "end", None, 0
        if kind == "space":
            continue
        if kind == "number":
            numeral = found[0].replace(",", "")
            if len(numeral) > MOST_DIGITS:
                kind = "unknown"
            else:
                value, places = Fraction(numeral), len(numeral.partition(".")[2])
        elif kind == "fraction":
            top, bottom = int(found["top"]), int(found["bottom"])
            kind, value, places = ("number", Fraction(top, bottom), -1) if bottom else ("unknown", None, 0)
        elif kind == "equal":
            kind = "=" if "=" in found[0] else "≈"
        elif kind == "sign":
            kind = _SIGNS[found[0]]
        elif kind == "unknown" and _is_article(found, text):
            kind = "end"
        spaced = text[found.end() : found.end() + 1].isspace()
        yield _Token(kind, found.start(), found.end(), value, places, spaced)


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
    while tokens[first - 1].kind in _SIDE and place - first <= _MOST_TOKENS:
        first -= 1
    side, before = tokens[first:place], tokens[first - 1].kind
    if before == "unknown" or len(side) > _MOST_TOKENS or not side:
        return None
    # "5 apples - 2 = 3" takes from apples, "that gives -2 + 5 = 3" has a sign.
    signed = side[0].kind in "+-" and (before in "=≈" or not side[0].spaced)
    return side if signed or side[0].kind in ("number", "(") else None


def _right(tokens: list[_Token], place: int) -> list[_Token] | None:
    last = place + 1
    while tokens[last].kind in _SIDE and last - place <= _MOST_TOKENS + 1:
        last += 1
    side, after = tokens[place + 1 : last], tokens[last].kind
    if after == "unknown" or len(side) > _MOST_TOKENS:
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
    while left and left[0].kind == "(" and sum((t.kind == "(") - (t.kind == ")") for t in left) > 0:
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


# Values: Python's parser makes the tree (and runs nothing), exact fractions are computed from it


_OPERATIONS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def _value(side: list[_Token]) -> Fraction | None:
    """What a side comes to; None if it is no expression, or divides by zero."""
    parts, before = [], ""
    for place, token in enumerate(side):
        if token.kind == "(" and before in ("number", ")", "%"):
            parts.append("*")  # 2(3 + 4)
        parts.append({"number": f"[{place}]", "%": "**P"}.get(token.kind, token.kind))
        before = token.kind
    written = " ".join(parts)
    if re.search(r"(?:\A|[-+*/(] )[-+] [-+]", written):
        return None  # two signs before one number
    try:
        return _computed(ast.parse(written, mode="eval").body, side)
    except (SyntaxError, ValueError, ZeroDivisionError, MemoryError):
        return None


def _computed(tree: ast.expr, side: list[_Token]) -> Fraction:
    match tree:
        case ast.List([ast.Constant(place)]):
            return side[place].value
        case ast.BinOp(left, ast.Pow(), ast.Name()):  # per cent binds as tightly as a power
            return _computed(left, side) / 100
        case ast.BinOp(left, sign, right) if type(sign) in _OPERATIONS:
            return _OPERATIONS[type(sign)](_computed(left, side), _computed(right, side))
        case ast.UnaryOp(sign, number):
            value = _computed(number, side)
            return -value if isinstance(sign, ast.USub) else value
    raise ValueError("no expression")
