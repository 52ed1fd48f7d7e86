"""What an answer says: counts of things, a number with its unit, words, or a formula."""

import re
from fractions import Fraction
from typing import NamedTuple

from kdlib.language.answers.mathematics import same_mathematics
from kdlib.language.answers.normalise import NUMERAL, TEXT_COMMAND, plain, without_latex, words

__all__ = ["is_answer", "same_answer"]


def is_answer(content: str) -> bool:
    """Whether a text is nothing but counts, a number or a formula."""
    return _counts(content) is not None or _number(content) is not None or _is_formula(content)


def same_answer(answer: str, expected: str) -> bool:
    """Whether two answers of at most some thousand characters say the same.

    Counts as mappings, numbers exactly, words as words; everything else is left to math-verify.
    """
    if (counts := _counts(expected)) is not None:
        return _same_counts(_counts(answer), counts)
    number, other = _number(expected), _number(answer)
    if number is not None and other is not None:
        return _same_number(other, number)
    if words(answer) == words(expected):
        return True
    return _is_formula(answer) and _is_formula(expected) and same_mathematics(answer, expected)


_NUMBER = re.compile(
    rf"(?:(?P<label>[A-Za-z])\s?=\s?)?(?P<sign>[-+]?)\s?(?P<currency>[$€£¥]?)\s?(?P<inner>[-+]?)"
    rf"(?P<whole>{NUMERAL})(?![0-9.])(?:\s?/\s?(?P<under>{NUMERAL})|\s(?P<top>[0-9]++)\s?/\s?(?P<bottom>[0-9]++))?"
    r"(?P<rest>(?![0-9,./]).*+|)",
    re.DOTALL,
)
_LEAD = re.compile(
    r"\A(?:(?:so|thus|therefore|hence|then)\b,?\s)?"
    r"(?:(?:it|that|this) is|there (?:are|were|is|was)|(?:we|they|you) have|the (?:last )?cage holds"
    r"|is|are|有|共有|是)\s?",
    re.IGNORECASE,
)
_TIMES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12, "万": 10**4, "亿": 10**8,
}  # fmt: skip
# Words that make another number of the one before them, or another answer.
_NOT_UNITS = {
    "or", "and", "half", "plus", "minus", "times", "over", "divided", "to", "than", "between", "but", "not",
    "if", "mod", "sin", "cos", "tan", "log", "exp", "sqrt",
}  # fmt: skip
_UNITS = {
    "$": "dollar", "usd": "dollar", "€": "euro", "eur": "euro", "£": "pound", "¥": "yuan", "元": "yuan",
    "%": "percent",
    "mm": "millimeter", "cm": "centimeter", "km": "kilometer", "kg": "kilogram", "mg": "milligram",
    "ml": "milliliter", "hr": "hour", "hrs": "hour", "min": "minute", "mins": "minute", "sec": "second",
    "ft": "foot", "feet": "foot", "in": "inch", "mi": "mile", "lb": "pound", "lbs": "pound", "oz": "ounce",
    "am": "am", "pm": "pm", "只": "只", "个": "个",
}  # fmt: skip


class _Number(NamedTuple):
    value: Fraction
    unit: str | None
    label: str | None


def _number(answer: str) -> _Number | None:
    found = _NUMBER.fullmatch(_LEAD.sub("", without_latex(answer)))
    if found is None or (found["sign"] and found["inner"]) or (found["top"] and "." in found["whole"]):
        return None
    whole, under, top, bottom = (
        Fraction((found[name] or default).replace(",", ""))
        for name, default in (("whole", ""), ("under", "1"), ("top", "0"), ("bottom", "1"))
    )
    scale, unit = _unit(found["rest"])
    currency = _UNITS.get(found["currency"])
    if not (under and bottom) or unit is None or (unit and currency and currency not in _forms(unit)):
        return None
    value = scale * (whole / under + top / bottom)
    if "-" in (found["sign"], found["inner"]):
        value = -value
    return _Number(value, unit or currency, found["label"])


_WORD = re.compile(r"[^\W\d_]++(?:['’.-][^\W\d_]*+)*+|[%$]")


def _unit(rest: str) -> tuple[int, str | None]:
    """What the number is to be multiplied by, and the unit's first word: "" without one, None if no unit."""
    parts = list(filter(None, re.split(r"[\s/]+|(?<=[%万亿])", rest)))
    scale = _TIMES.get(parts[0].lower(), 1) if parts else 1
    if scale > 1:
        del parts[0]
    if not parts:
        return scale, ""
    first = parts[0].lower().rstrip(".")
    known = first in _UNITS or not first.isascii()
    word = rest[0].isspace() and len(first) >= 3
    readable = all(part.lower() not in _NOT_UNITS and _WORD.fullmatch(part) for part in parts)
    return scale, _UNITS.get(first, first) if (known or word) and readable and len(parts) <= 12 else None


def _same_number(answer: _Number, expected: _Number) -> bool:
    for one, other in ((answer.label, expected.label), (answer.unit, expected.unit)):
        if one and other and _forms(one).isdisjoint(_forms(other)):
            return False
    if answer.value == expected.value:
        return True
    if (answer.unit == "percent") == (expected.unit == "percent") or (answer.unit and expected.unit):
        return False
    percent, pure = (answer, expected) if answer.unit == "percent" else (expected, answer)
    return percent.value / 100 == pure.value


# The animals of the puzzles: an answer may be in the other language.
_ENGLISH = {
    "蛇": "snake", "鸡": "chicken", "鹤": "crane", "兔": "rabbit", "狗": "dog", "蚂蚁": "ant",
    "甲虫": "beetle", "蜘蛛": "spider", "螃蟹": "crab",
}  # fmt: skip


def _forms(name: str) -> set[str]:
    """What the singular of a name may be, with English endings taken off; animals in English, too."""
    name = name.lower().replace("metre", "meter")
    forms = {name}
    for ending, instead in (("s", ""), ("es", ""), ("ies", "y"), ("子", "")):
        if name.endswith(ending) and len(name) > len(ending):
            forms.add(name[: -len(ending)] + instead)
    return forms | {_ENGLISH[form] for form in forms if form in _ENGLISH}


_BETWEEN = re.compile(
    r"\s*+(?:[;、&]|,(?!\d{3}(?!\d))|\band\b|和)(?:\s*+(?:,|\band\b|和))*+\s*+", re.IGNORECASE
)
_NAME = r"(?P<name>[^\W\d_]+?(?:[ '-][^\W\d_]+){0,3}?)"
_COUNT = rf"(?P<count>[-]?{NUMERAL})"
_ITEMS = (
    re.compile(rf"{_COUNT}\s*[只条头匹个隻條頭]?\s*{_NAME}"),
    re.compile(rf"{_NAME}\s*(?:[:=]|\bis\b|\bare\b|有|是|为)?\s*{_COUNT}\s*[只条头匹个隻條頭]?"),
)
_TRAIL = re.compile(r"\sin (?:the|this|that)(?: (?:last|second|third|other))? cage$", re.IGNORECASE)


def _counts(answer: str) -> dict[str, Fraction] | None:
    """Names and numbers of a list of at least two; None if the text is no such list."""
    text = _TRAIL.sub("", without_latex(answer).replace("$", ""))
    items = _BETWEEN.split(_LEAD.sub("", text))
    if len(items) < 2:
        return None
    counts: dict[str, Fraction] = {}
    for item in items:
        found = next(filter(None, (pattern.fullmatch(item) for pattern in _ITEMS)), None)
        name = found and found["name"]
        if not name or name in counts or not _NOT_UNITS.isdisjoint(name.lower().split()):
            return None
        counts[name] = Fraction(found["count"].replace(",", ""))
    return counts


def _same_counts(answer: dict[str, Fraction] | None, expected: dict[str, Fraction]) -> bool:
    if answer is None or len(answer) != len(expected):
        return False
    counts = {form: count for name, count in answer.items() for form in _forms(name)}
    return all(any(counts.get(form) == count for form in _forms(name)) for name, count in expected.items())


def _is_formula(answer: str) -> bool:
    """Whether a text may be mathematics in LaTeX: no word but commands, and something to compare."""
    text = TEXT_COMMAND.sub(" ", plain(answer))
    text = re.sub(r"\\(?:begin|end)\s*\{[a-z]+\*?\}|\\[A-Za-z]++|\b(?:or|and)\b", " ", text)
    return text.isascii() and re.search(r"[A-Za-z]{3}", text) is None and re.search(r"\w", text) is not None
