"""What an answer says, taken apart: lists, pairs, intervals, equations, and in them numbers with units.

Only the layout is read here, by brackets, commas and relations; what a formula is worth, sympy decides
(`kdlib.language.answers.equality`). Nodes are lists, so that they travel as JSON:

    ["leaf", tex, number, units, things]   number: a fraction as text, "" for a formula; units: [factor, kind]
                                           things: words, with those that say which way
    ["list", items]                        1, 2: in no order, unless compared with a pair
    ["brackets", "[", ")", items]          (1, 2), an interval or a pair; {1, 2} for a set
    ["chain", relations, sides, labels]    x = 7/2 = 3.5, 2 < x, each side a node, and as it is written
    ["operator", name, items]              unions and what else joins sets
    ["ratio", items], ["clock", minutes, half, minute, ratio], ["date", numbers]; 4:12 may be a ratio, too
"""

import re
from fractions import Fraction

from kdlib.language.answers.numerals import is_too_large, number
from kdlib.language.answers.units import Measure, measure, scaled

__all__ = ["read"]

_DEEPEST, _MOST = 8, 60

# Layout


def read(text: str, depth: int = 0) -> list | None:
    """The node of a canonical text; None for words, and for what is not understood."""
    text = _stripped(text)
    if not text or depth > _DEEPEST:
        return None
    if is_too_large(text):
        return None
    if special := _clock(text) or _date(text) or _ratio(text):
        return special
    if r"\pm" in text or r"\mp" in text:
        return _both_signs(text, depth)
    if leaf := _quantity(text):
        return leaf
    for cut in (_list, _chain, _operator, _brackets):
        if (node := cut(text, depth)) is not None:
            return node or None
    return _leaf(text)


def _stripped(text: str) -> str:
    text = re.sub(r"\A(?:[\s*`_]|\$(?=\s*[^\d\s.]))+|(?:[\s*`;,。]|(?<!\\)[.])+\Z", "", text)
    return re.sub(r"\A\{([^{}]*)\}\Z", r"\1", text).strip()


def _pieces(text: str, separator: re.Pattern) -> list[str]:
    """The parts of a text between separators that stand in no brackets."""
    parts, begin, depth, place = [], 0, 0, 0
    while place < len(text):
        found = separator.match(text, place) if depth == 0 else None
        if found and found.end() > place:
            parts.append(text[begin:place])
            parts.append(found[0].strip())
            begin = place = found.end()
            continue
        if text[place] == "\\" and place + 1 < len(text) and text[place + 1] not in "{}":
            place += len(re.match(r"\\(?:[A-Za-z]+|.)", text[place:], re.DOTALL)[0])
            continue
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[place], 0)
        place += 1
    return [*parts, text[begin:]]


_SEPARATOR = re.compile(r";|,(?=\s)|(?<!\d),|,(?!\d{3}(?!\d)|\d{2},)|\s?\b(?:and|or)\b\s?|和|或")
_INNER = re.compile(r";|,|\s?\b(?:and|or)\b\s?")
_SPOKEN = re.compile(  # 1 hour 30 minutes
    r"(?<![\\A-Za-z])([a-z]{1,20}|(?:ft|in|yd|mi|hrs?|mins?|secs?|lbs?|oz|gal)\.)\s+(?=\d)"
)
_HARMLESS = re.compile(r"[A-Za-z' .]+")


def _list(text: str, depth: int, separator: re.Pattern = _SEPARATOR) -> list | None:
    parts = [part.strip() for part in _pieces(_SPOKEN.sub(r"\1, ", text), separator)]
    if len(parts) < 3:
        return None
    items, joints = [part for part in parts[::2] if part], parts[1::2]
    if len(items) > _MOST:
        return []
    nodes = [read(item, depth + 1) for item in items]
    if None in nodes and nodes[0] is not None:
        first = nodes.index(None)  # "72 clips, altogether"
        tail = " ".join(items[first:])
        if (
            "or" in joints
            or "或" in joints
            or not _HARMLESS.fullmatch(tail)
            or measure(f"things {tail}") is None
        ):
            return []
        nodes = nodes[:first]
    if not nodes or None in nodes:
        return []
    return nodes[0] if len(nodes) == 1 else _summed(nodes) or ["list", nodes]


def _summed(nodes: list[list]) -> list | None:
    """One quantity for "1 hour 30 minutes": units of one kind, each smaller than the one before."""
    if any(node[0] != "leaf" or not node[2] or len(node[3]) != 1 for node in nodes):
        return None
    units = [(Fraction(factor), kind) for node in nodes for factor, kind in node[3]]
    if len({kind for _, kind in units}) > 1 or any(
        one[0] <= two[0] for one, two in zip(units, units[1:], strict=False)
    ):
        return None
    total = (
        sum(Fraction(node[2]) * factor for node, (factor, _) in zip(nodes, units, strict=True)) / units[0][0]
    )
    return ["leaf", "", str(total), nodes[0][3], [word for node in nodes for word in node[4]]]


_RELATION = re.compile(r"(?<![<>!])=+|<(?!=)|>(?!=)|\\(?:leq|geq|neq|approx|in)(?![A-Za-z])|≈")


def _chain(text: str, depth: int) -> list | None:
    parts = [part.strip() for part in _pieces(text, _RELATION)]
    if len(parts) < 3 or len(parts) > 15 or re.search(r"\\(?:forall|exists|mid|pmod|bmod)|:", text):
        return None if len(parts) < 3 else []
    sides, relations = parts[::2], parts[1::2]
    if relations[0] == r"\in" and len(relations) == 1:
        return read(sides[1], depth + 1) or []
    nodes = [read(side, depth + 1) for side in sides]
    return (
        []
        if None in nodes[1:]
        else ["chain", relations, nodes, [re.sub(r"\s|[{}]", "", side) for side in sides]]
    )


_OPERATOR = re.compile(r"\\(?:cup|cap|setminus|backslash)(?![A-Za-z])")


def _operator(text: str, depth: int) -> list | None:
    parts = _pieces(text, _OPERATOR)
    names = set(parts[1::2])
    if not names:
        return None
    items = [read(part, depth + 1) for part in parts[::2]]
    return [] if len(names) > 1 or None in items else ["operator", names.pop(), items]


def _brackets(text: str, depth: int) -> list | None:
    opened, closed = (
        (text[:2], text[-2:]) if text.startswith(r"\{") and text.endswith(r"\}") else (text[0], text[-1])
    )
    if opened not in ("(", "[", "{", r"\{") or closed not in (")", "]", "}", r"\}") or not _wrapped(text):
        return None
    inner = text[len(opened) : -len(closed)].strip()
    if node := _list(inner, depth, _INNER):
        items = node[1] if node[0] == "list" else [node]
        return ["brackets", opened[-1], closed[-1], items]
    return [] if node == [] else read(inner, depth + 1) or []


def _wrapped(text: str) -> bool:
    """Whether the first bracket is closed by the last one."""
    depth = 0
    for place, sign in enumerate(text):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(sign, 0)
        if depth == 0 and sign in ")]}":
            return place == len(text) - 1
    return False


def _both_signs(text: str, depth: int) -> list | None:
    other = {r"\pm": "-", r"\mp": "+"}
    nodes = [
        read(re.sub(r"\\[pm]{2}(?![A-Za-z])", lambda found, signs=signs: signs[found[0]], text), depth + 1)
        for signs in ({r"\pm": "+", r"\mp": "-"}, other)
    ]
    return None if None in nodes else ["list", nodes]


# Times, dates, ratios

_HALF = r"(?:\s?(?P<half>[ap])\.?\s?m\.?)"


def _clock(text: str) -> list | None:
    found = re.fullmatch(
        rf"(?P<hour>[0-2]?[0-9]):(?P<minute>[0-5][0-9]){_HALF}?", text, re.IGNORECASE
    ) or re.fullmatch(rf"(?P<hour>[0-2]?[0-9]){_HALF}", text, re.IGNORECASE)
    if found is None:
        return None
    hour, minute = int(found["hour"]), int(found.groupdict().get("minute") or 0)
    half = (found["half"] or "").lower()
    if half:
        hour = hour % 12 + 12 * (half == "p")
    return [
        "clock",
        60 * hour + minute,
        half or ("p" if hour > 12 else ""),
        found.groupdict().get("minute") or "",
        _ratio(text),
    ]


def _date(text: str) -> list | None:
    found = re.fullmatch(
        r"(\d{4})([-/.])(\d\d?)\2(\d\d?)|(\d\d?)([-/.])(\d\d?)\6(\d{4}|\d\d)|(\d{4})年(\d\d?)月(\d\d?)日",
        text,
    )
    if found is None:
        return None
    year, _, month, day, *short, ideographic_year, ideographic_month, ideographic_day = found.groups()
    if short[0]:
        return ["date", "short", int(short[0]), int(short[2]), int(short[3])]
    return [
        "date",
        "long",
        *map(int, (year or ideographic_year, month or ideographic_month, day or ideographic_day)),
    ]


def _ratio(text: str) -> list | None:
    parts = text.split(":")
    if not 2 <= len(parts) <= 6 or any(
        re.search(r"[^\W\d_]{2}|[=<>,;]", re.sub(r"\\[A-Za-z]+", "", part)) for part in parts
    ):
        return None
    items = [read(part, _DEEPEST) for part in parts]
    return None if None in items else ["ratio", items]


# Leaves

_MONEY = re.compile(
    r"\A(?P<sign>[-+]?)\s*(?P<code>US\s?\$|A\$|C\$|HK\$|NT\$|S\$|[$€£¥₹₩]|(?:USD|EUR|GBP|CNY|RMB|JPY|INR|CHF|SEK|NOK|DKK|PLN|KRW|SGD|THB|BRL|MXN|ZAR|Rs\.?|AUD|CAD|HKD)(?![A-Za-z]))"
    r"\s*(?=[-+]?[\d.])"
)
_COUNTRY = {"A$": "dollar-AU", "AUD": "dollar-AU", "C$": "dollar-CA", "CAD": "dollar-CA", "HK$": "dollar-HK",
            "HKD": "dollar-HK", "NT$": "dollar-NT", "S$": "dollar-SG"}  # fmt: skip
_ORDINAL = re.compile(r"\A\s?(?:\^\s*\{?\s*)?(?:st|nd|rd|th)\b\s*\}?")
# Where words begin behind a value: two letters that are no command, one that stands apart, Chinese, a sign.
_WORDS = re.compile(
    r"(?<=[\s\d})\]])[A-Za-z]{2}(?<!\\[a-z]{2})|(?<=[\d})\]]\s)[A-Za-z](?=\s*(?:\Z|[/^·]|\s[A-Za-z]))"
    r"|[^\x00-\x7f]|[%$]|\\degree|\s\[|\s\((?=[A-Za-z]{3})|(?<=\s)\\mu\s?[A-Za-z]"
)


_TURNING = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")


def _quantity(text: str) -> list | None:
    """A number with its unit."""
    if chinese := re.fullmatch(r"(\d{1,9})分之(\d{1,9})", text):
        text = f"{chinese[2]}/{chinese[1]}"
    found = _MONEY.match(text)
    sign, money, text = (found["sign"], found["code"], text[found.end() :]) if found else ("", "", text)
    value = number(text)
    node = value and _measured("", value[0], value[1], money)
    return ["leaf", "", str(-Fraction(node[2])), *node[3:]] if node and sign == "-" else node


def _leaf(text: str) -> list | None:
    """A formula, with its unit if words follow."""
    for place in _WORDS.finditer(text):
        formula, words = text[: place.start()], text[place.start() :]
        words = " " * formula[-1:].isspace() + words
        if _TURNING.search(formula) and words.strip().startswith(r"\degree"):
            continue
        formula = formula.strip()
        if formula and _is_formula(formula) and (node := _measured(formula, None, words, "")):
            return node
    return ["leaf", text, "", [], []] if _is_formula(text) else None


def _measured(tex: str, value: Fraction | None, words: str, money: str) -> list | None:
    """The leaf of a value and the words behind it; None if they are no unit."""
    words = _ORDINAL.sub("", words)
    glued = re.match(r"([A-Za-z]+)", words)
    if glued and len(glued[1]) == 1:  # 5m is a product
        return None
    scale, words = scaled(words) if words.strip() else (Fraction(1), "")
    what = measure(words)
    if what is None or (glued and not what.units and not _ORDINAL.match(words) and scale == 1):
        return None
    units = [[str(unit.factor), unit.kind] for unit in what.units]
    if money:
        paid = Measure() if money in _COUNTRY else measure(re.sub(r"US\s?(?=\$)", "", money))
        kinds = [[str(unit.factor), unit.kind] for unit in paid.units]
        kinds = kinds or [["1", _COUNTRY.get(money, money)]]
        same = not units or any(kind == other for _, kind in units for _, other in kinds)
        if not same:  # $5 per hour
            return (
                None
                if not re.match(r"\s*(?:/|per|an?|each)\b", words)
                else ["leaf", tex, str(value) if value is not None else "", kinds, []]
            )
        units = units or kinds
    if value is None:
        return [
            "leaf",
            tex if scale == 1 else rf"\frac{{{scale.numerator}}}{{{scale.denominator}}}\cdot({tex})",
            "",
            units,
            list(what.things),
        ]
    value *= scale
    return ["leaf", "", str(value), units, list(what.things)]


_NAMES = re.compile(r"\\(?:begin|end)\s*\{[a-z]+\*?\}|\\[A-Za-z]++")


def _is_formula(text: str) -> bool:
    """Whether a text may be a formula: ASCII, no word but commands, and something to compare."""
    bare = _NAMES.sub(" ", text)
    return (
        text.isascii()
        and re.search(r"[A-Za-z]{3}|[A-Za-z]\.|[$%`\"]", bare) is None
        and re.search(r"\w|\\", text) is not None
    )
