"""The arithmetic in a text, checked step by step.

A step is one equality whose sides are numbers and + − × ÷: "28 − 20 = 8". "2y = 28 − 20 = 8" holds one (2y is
no number), "2 × 7 = 20 − 6 = 14" two. What stands next to a letter, a power, or anything else that is not
read here belongs to a larger expression and is left alone: what is reported as wrong should be wrong. So is
what words may make right: "half of 20 + 5 = 15", "17 ÷ 5 = 3 remainder 2", "60 × 2 = 2 hours".

Read, too: brackets, %, ≈, currencies (which change nothing), \\times, \\cdot, \\div, \\frac{1}{2}. GSM8K's
annotations <<48/2=24>> count once although the text repeats them. Nothing is evaluated as code.
"""

import ast
import functools
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from kdlib.language.answers.normalise import NUMERAL, plain
from kdlib.language.answers.units import Unit, conversions, measure, scaled

__all__ = ["SEARCHED", "Step", "arithmetic_steps", "first_wrong_step"]

# What bounds the cost, in characters: of the text, from its beginning, and of one side of an equality.
SEARCHED, _LONGEST = 150_000, 400


@dataclass(frozen=True)
class Step:
    """One equality as it is written, and whether it is true.

    A decimal may be rounded as written where the other side multiplies or divides: 1 ÷ 3 = 0.33; after ≈ a
    whole number may be, too. 40% is 40 or 0.4.
    """

    text: str  # "28 − 20 = 8"
    left: str  # "28 − 20"
    value: Fraction  # what the left side comes to, exactly
    claimed: Fraction  # what the right side comes to
    correct: bool
    start: int  # where the equality begins in the text that was searched


def arithmetic_steps(text: str) -> list[Step]:
    """The steps of a text, in its order."""
    return list(_steps(text[:SEARCHED]))


def first_wrong_step(text: str) -> Step | None:
    """The first step that is wrong; None where all are right, or where there is none."""
    return next((step for step in _steps(text[:SEARCHED]) if not step.correct), None)


# Replacements keep the length of the text, so that a step is found where it was written.
_SIGNS = (
    (r"[×·⋅∙]|\\(?:times|cdot)(?![a-zA-Z])|(?<=[0-9) ])[xX](?=\s?[$€£¥]?[0-9])", "*"),
    (r"÷|\\div(?![a-zA-Z])", "/"),
    (r"\\approx(?![a-zA-Z])", "≈"),
    (r"\\%|(?<=[0-9])\s?per\s?cent(?![a-zA-Z])", "%"),
    (r"\\[$,;:! ]|[$€£¥&]|\\(?:left|right)(?![a-zA-Z])", " "),
    (r"^[^\S\n]*+[-*•](?=\s)", " "),  # the mark of an item
    (r"-(?=\s++[^\W\d_])", " "),  # a dash between parts of a sentence
)
_FRACTION = re.compile(r"\\[dt]?frac\s?\{\s?([0-9]++)\s?\}\s?\{\s?([0-9]++)\s?\}")
_MIXED = re.compile(rf"(?<![0-9.,])([0-9]++)\s?{_FRACTION.pattern}")
_EQUALITIES = re.compile(
    r"(?:[-+*/()%0-9≈]|=(?![=>])|\.(?=[0-9])|(?<=[0-9])[,:](?=[0-9])|[^\S\n]|\n[^\S\n]*+(?=[=≈]))++"
)
# Next to these a number is part of something larger. The word "a" is no variable.
_LARGER = r"[\^_!|~√²³¼-¾⅐-⅞…≠≤≥±]|\.\.|(?<!<)<(?!<)|(?<!>)>(?!>)"
_BEFORE = re.compile(rf"(?:{_LARGER}|\\[A-Za-z]+|(?<![^\W\d_])[A-Za-z])\Z")
_AFTER = re.compile(rf"{_LARGER}|\\[A-Za-z]|(?![aAI] [A-Za-z]{{2}})[A-Za-z](?![A-Za-z'’])")


def _steps(written: str) -> Iterator[Step]:
    text = plain(written)
    for pattern, sign in _SIGNS:
        text = re.sub(pattern, lambda found, sign=sign: sign.rjust(len(found[0])), text, flags=re.MULTILINE)
    text = _MIXED.sub(lambda found: f"({f'{found[1]}+{found[2]}/{found[3]}'.ljust(len(found[0]) - 2)})", text)
    text = _FRACTION.sub(lambda found: f"({f'{found[1]}/{found[2]}'.ljust(len(found[0]) - 2)})", text)
    for found in _EQUALITIES.finditer(text):
        signs = [place for place in range(*found.span()) if text[place] in "=≈"]
        edges = [found.start() - 1, *signs, found.end()]
        sides = [text[before + 1 : after] for before, after in pairwise(edges)]
        if signs:
            sides[0] = _first_side(sides[0], text, found.start())
            sides[-1] = _last_side(sides[-1], text, found.end())
        for place, (left, right) in zip(signs, pairwise(sides), strict=True):
            start, end = place - len(left.lstrip()), place + 1 + len(right.rstrip())
            left, right = left.strip(), right.strip()
            value, claimed = _value(left), _value(right)
            if value is None or claimed is None or not re.search("[-+*/]", left[1:] + right[1:]):
                continue
            correct = _agree(left, right, value, claimed, about=text[place] == "≈")
            if not correct and (
                (place == signs[0] and _MADE_BEFORE.search(text, max(found.start() - 40, 0), found.start()))
                or (place == signs[-1] and _made_behind(text[end : end + 60], value, claimed))
                or any(map(_TAKEN_OFF.search, (left, right)))
            ):
                continue
            yield Step(written[start:end], written[start : start + len(left)], value, claimed, correct, start)


def _first_side(side: str, text: str, start: int) -> str:
    """Empty if it began before: "5 apples - 2 = 3" takes from apples, "that gives -2 + 5 = 3" has a sign."""
    if _BEFORE.search(text, max(start - 20, 0), start) or re.match(r"\s*[-+]\s", side):
        return ""
    if re.match(r"[A-Za-z]\(|\}\s*[-+*/]", text[max(start - 1, 0) : start] + side):  # sqrt(9), \sqrt{9}+2
        return ""
    opened = max(side.count("(") - side.count(")"), 0)
    return re.sub(rf"\A(?:\s*\(){{0,{opened}}}", "", side)  # "(2 + 3 = 5)"


def _last_side(side: str, text: str, end: int) -> str:
    """Empty if it goes on: "2 + 3 = 5x"."""
    if _AFTER.match(text, end) or len(side) > _LONGEST:
        return ""
    side = re.sub(r"\(\s*\Z", "", side)  # "2 + 3 = 5 (fives)"
    closed = max(side.count(")") - side.count("("), 0)
    return re.sub(rf"(?:\)\s*){{0,{closed}}}\Z", "", side)  # "(so 2 + 3 = 5)"


# Words that make another number of the one behind or before them. Only what would be wrong is left alone.
_PARTS = "(?:half|halves|(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth)s?)"
_MADE_BEFORE = re.compile(
    rf"(?:(?:[0-9%)}}]|\b{_PARTS})\s++of(?:\s++(?:the|this|that))?|\b(?:root|square|cube)\s++of|的"
    r"|\b(?:twice|thrice|double|triple|half|plus|minus|times|over|mod|(?:divided|multiplied)\s++by))\s*+(?:\}\s*+)?\Z",
    re.IGNORECASE,
)
_MADE_BEHIND = re.compile(
    r"[\s,;(]*+(?:mod\b|(?:(?:with|and)\s++)?(?:an?\s++|the\s++)?rem(?:ainder)?\b|(?:[a-z]++\s++)?with\s++[0-9]|余"
    r"|(?:pairs?|couples?|scores?|gross)\b"
    rf"|and\s++(?:[0-9]++\s?/|(?:[a-z]++[\s-])?{_PARTS}\b))",
    re.IGNORECASE,
)
_NAME = r"([A-Za-z]++|[\u4e00-\u9fff]{1,3})"
_UNIT = re.compile(rf"\s*+(?!in\b){_NAME}(?:,?\s*+(?:and\s++)?[0-9]++\s*+{_NAME})?")
_TAKEN_OFF = re.compile(rf"[0-9)]\s*[-+]\s*{NUMERAL}\s*%")  # 100 - 20% may be 80


def _made_behind(text: str, value: Fraction, claimed: Fraction) -> bool:
    """Whether the words behind a claim may make the value of it: a remainder, a scale, another unit."""
    if _MADE_BEHIND.match(text) or scaled(text)[0] != 1:
        return True
    found = _UNIT.match(text)
    units, smaller = (_units(found[1]), _units(found[2] or "")) if found else ((), ())
    if {unit.kind for unit in units} & {unit.kind for unit in smaller}:  # 2 hours and 30 minutes
        return True
    return bool(claimed) and any(value / claimed in conversions(unit) for unit in units)


@functools.lru_cache(maxsize=200)
def _units(words: str) -> tuple[Unit, ...]:
    """The units of an English word, or of what begins with one in Chinese."""
    names = [words] if words.isascii() else [words[:length] for length in (3, 2, 1)]
    return next((what.units for name in names if (what := measure(name)) and what.units), ())


_WRITTEN = re.compile(rf"[-+]?\s*{NUMERAL}\s*%?")


def _agree(left: str, right: str, value: Fraction, claimed: Fraction, about: bool) -> bool:
    """Whether two sides are equal, a number as it is written within its rounding."""
    if _WRITTEN.fullmatch(right):
        number, rounded, other, exact = right, claimed, left, value
    elif _WRITTEN.fullmatch(left):
        number, rounded, other, exact = left, value, right, claimed
    else:
        return value == claimed
    places = len(number.rstrip(" %").partition(".")[2])
    # Sums of decimals are exact as written; products and quotients are what people round.
    may_round = about or (places and re.search("[*/%]", other))
    error = Fraction(1, 2 * 10**places) if may_round else 0
    readings = (rounded, 100 * rounded) if number.endswith("%") else (rounded,)
    return any(abs(exact - reading) <= error for reading in readings)


# Values: Python's parser makes the tree (and runs nothing), exact fractions are computed from it.

_OPERAND = re.compile(rf"({NUMERAL})(\s*%)?")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def _value(side: str) -> Fraction | None:
    """What a side comes to; None if it is too long, no expression, or divides by zero."""
    if len(side) > _LONGEST or re.search(r"(?:^|[-+*/(])\s*[-+]\s*[-+]", side):  # two signs before a number
        return None
    side = re.sub(r"(?<=[0-9)%])\s*\(", "*(", side)  # 2(3 + 4)
    try:
        return _computed(ast.parse(_OPERAND.sub(_operand, side), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _operand(found: re.Match) -> str:
    number = Fraction(found[1].replace(",", ""))
    return f"({number / 100 if found[2] else number})"


def _computed(tree: ast.expr) -> Fraction:
    match tree:
        case ast.Constant(int(number)):
            return Fraction(number)
        case ast.BinOp(left, sign, right) if type(sign) in _OPERATORS:
            return _OPERATORS[type(sign)](_computed(left), _computed(right))
        case ast.UnaryOp(ast.UAdd() | ast.USub() as sign, number):
            return -_computed(number) if isinstance(sign, ast.USub) else _computed(number)
    raise ValueError("no expression")
