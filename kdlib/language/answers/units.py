"""The words behind a number: a scale ("million", "thirds", "万"), a unit, or the things that were counted.

A table of our own, for a library of units knows neither "sq. ft.", "miles per hour" and 平方米 nor that
"clips" may be a unit and "thirds" none. What may change the number ("or more", "squared", 以上) is refused.
"""

import functools
import re
from collections.abc import Collection
from fractions import Fraction
from itertools import product
from typing import NamedTuple

__all__ = ["Measure", "Unit", "conversions", "measure", "opposed", "scaled", "says_which_way"]


class Unit(NamedTuple):
    """A multiple of base units, which are written alike in all units of one kind: 1000 and "m s^-1"."""

    factor: Fraction
    kind: str


class Measure(NamedTuple):
    """What a number measures or counts: possible units (a pound is mass or money), or else words.

    And the words that say which way, such as "north" and "less".
    """

    units: tuple[Unit, ...] = ()
    things: tuple[str, ...] = ()


# Base units are the first of their line; then names and how many of the base unit they are.
_LINES = """
m meter metre 米|里 500|inch inches in 英寸 0.0254|foot feet ft 0.3048|yard yd 0.9144|mile mi 英里 1609.344
kg 千克 公斤|g gram gramme gm 克 0.001|tonne 吨 1000|pound lb lbs 磅 0.45359237|ounce oz 0.028349523125|斤 0.5
s second sec 秒|min minute 分钟 60|h hour hr 小时 3600|day 天 日 86400|week wk 周 星期 604800
month 月 个月|year yr 年 岁 12|decade 120|century centuries 1200
L l liter litre 升|
gallon gal|quart qt 0.25|pint 0.125|cup 0.0625|tablespoon tbsp 0.00390625|teaspoon tsp 1/768
A amp ampere 安|
V volt 伏|
W watt 瓦|
N newton 牛|
J joule 焦|cal calorie 4.184
Hz hertz 赫|
Pa pascal 帕|
K kelvin|
C coulomb|
F farad|
ohm Ohm|
mol mole 摩尔|
B byte|
b bit|
T tesla|
dollar usd $ bucks 美元|cent ¢ 0.01
euro eur € 欧元|
pound gbp £ 英镑|pence 0.01
yuan cny rmb ¥ 元 块 人民币|角 0.1
yen jpy ¥ 日元|
rupee rs inr ₹ 卢比|
won ₩|
rad radian|
degree deg \\degree 度|
degree-C celsius|
degree-F fahrenheit|
% percent percentage pct|
o'clock 点|
acre|
hectare|
"""
_EXACT_CASE = {
    "A", "V", "W", "N", "J", "K", "C", "F", "B", "b", "T", "L", "l", "m", "g", "s", "h", "Hz", "Pa",
}  # fmt: skip
_PREFIXES = {
    "k": 3, "M": 6, "G": 9, "T": 12, "c": -2, "d": -1, "m": -3, "\u00b5": -6, "u": -6, "n": -9, "p": -12,
    "h": 2, "kilo": 3, "mega": 6, "giga": 9, "tera": 12, "centi": -2, "deci": -1, "milli": -3, "micro": -6,
    "nano": -9, "hecto": 2, "千": 3, "厘": -2, "分": -1, "毫": -3, "微": -6, "纳": -9, "兆": 6,
}  # fmt: skip
_PREFIXED = {
    "m", "meter", "metre", "米", "g", "gram", "gramme", "克", "s", "second", "秒", "L", "l", "liter",
    "litre", "升", "A", "amp", "ampere", "V", "volt", "伏", "W", "watt", "瓦", "N", "newton", "牛", "J",
    "joule", "焦", "Hz", "hertz", "赫", "Pa", "pascal", "帕", "cal", "calorie", "C", "F", "ohm", "mol",
    "mole", "B", "byte", "b", "bit", "T",
}  # fmt: skip
_ALIASES = {
    "mph": "mile/h", "kph": "km/h", "kmph": "km/h", "kmh": "km/h", "mps": "m/s", "fps": "ft/s",
    "rpm": "turn/min", "cc": "cm^3", "sqm": "m^2", "sqft": "ft^2", "kwh": "kW h", "公里": "km",
}  # fmt: skip


_DERIVED = {
    "N": (1, "kg m s^-2"), "J": (1, "kg m^2 s^-2"), "W": (1, "kg m^2 s^-3"), "Pa": (1, "kg m^-1 s^-2"),
    "L": (Fraction(1, 1000), "m^3"),
}  # fmt: skip


def _table() -> dict[str, list[Unit]]:
    table: dict[str, list[Unit]] = {}
    for line in _LINES.strip().splitlines():
        base = line.split()[0].rstrip("|")
        times, kind = _DERIVED.get(base, (1, base))
        for entry in filter(None, line.split("|")):
            names = entry.split()
            factor = Fraction(names.pop() if re.fullmatch(r"[0-9./]+", names[-1]) else 1) * times
            for name in names:
                table.setdefault(name, []).append(Unit(factor, kind))
                for prefix, power in _PREFIXES.items() if name in _PREFIXED else ():
                    if (len(prefix) > 2) == (len(name) > 3) and prefix.isascii() == name.isascii():
                        table.setdefault(prefix + name, []).append(Unit(factor * Fraction(10) ** power, kind))
    return table


_UNITS = _table()
_SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "lakh": 10**5, "lac": 10**5, "crore": 10**7, "百": 10**2, "千": 10**3, "万": 10**4, "亿": 10**8,
    "成": Fraction(1, 10), "half": Fraction(1, 2), "halves": Fraction(1, 2), "third": Fraction(1, 3),
    "quarter": Fraction(1, 4), "fourth": Fraction(1, 4), "fifth": Fraction(1, 5), "sixth": Fraction(1, 6),
    "seventh": Fraction(1, 7), "eighth": Fraction(1, 8), "ninth": Fraction(1, 9), "tenth": Fraction(1, 10),
    "twelfth": Fraction(1, 12), "hundredth": Fraction(1, 100), "thousandth": Fraction(1, 1000),
}  # fmt: skip
# Words that make another number of the one before them, or take the answer back.
_CHANGING = {
    "or", "and", "half", "halves", "plus", "minus", "times", "over", "divided", "multiplied", "to",
    "than", "between", "but", "not", "no", "never", "none", "if", "unless", "mod", "least",
    "most", "a.m", "p.m", "am", "pm", "score", "gross", "minimum", "maximum", "fold", "modulo",
    "sin", "cos", "tan", "log", "ln", "exp",
    "sqrt", "root", "factorial", "pi", "negative", "positive", "wrong", "incorrect", "false", "too",
    "except", "without", "choose", "power", "isn't", "isnt", "doesn't", "wasn't", "cannot", "can't",
    "rejected", "impossible", "invalid", "or/and", "thirds", "quarters", "fifths", "short", "nor",
    "neither", "instead", "either", "fewer", "factorials", "thousand", "million", "billion", "hundred",
    "lakh", "crore", "dozen",
}  # fmt: skip
_CHANGING_CHINESE = re.compile(
    "[半以多余几不非负至到减加乘除或和与折超近左点内外倒错]|次方|的[倍平立一因]|分之|次幂|阶乘|平方$|立方$"
)
_VERBS = {
    "is", "are", "was", "were", "does", "do", "did", "has", "have", "had", "can", "could", "should",
    "would", "will", "may", "might", "be", "must", "fails",
}  # fmt: skip
_ENDS = {
    "of", "in", "for", "from", "on", "at", "by", "with", "during", "after", "before", "left",
    "remaining", "total", "altogether", "each", "apart", "away", "later", "ago", "old", "tall", "long",
    "wide", "high", "deep", "thick", "more", "less", "longer", "shorter", "taller", "older", "younger",
    "sold", "there", "that", "which", "who", "were", "was", "are", "is", "have", "has", "had", "will",
    "would", "can", "per", "this", "these", "those", "as", "because", "since", "so",
}  # fmt: skip
# Words that say which way, by sides: answers with words of two sides are different.
_OPPOSITES = [
    [set(side.split()) for side in line.split("|")]
    for line in """
north northward northwards|south southward southwards|east eastward eastwards|west westward westwards\
|northeast north-east|northwest north-west|southeast south-east|southwest south-west
left|right
up upward upwards uphill upstream|down downward downwards downhill downstream
above|below under beneath
forward forwards ahead|backward backwards behind
inside|outside
clockwise|counterclockwise counter-clockwise anticlockwise anti-clockwise
increase increased rise rose growth gain gained profit surplus won more greater larger bigger higher\
|decrease decreased drop dropped fall fell decline reduction loss lost deficit less smaller lower
older|younger
longer taller|shorter
heavier|lighter
faster quicker|slower
hotter warmer|colder cooler
wider|narrower
early earlier before ago sooner|late later after afterwards
deposit deposited|withdrawal withdrawn
""".strip().splitlines()
]
_WAYS = {word for sides in _OPPOSITES for side in sides for word in side}
_PER = {"/", "per", "a", "an", "each", "every", "每"}
_TOKEN = re.compile(
    r"\\degree|(?:\^\s*\{?\s*|(?<=[a-z])(?=[23](?!\d)))([-+]?[0-9]+)\s*\}?|\\mu(?![a-z])|[^\W\d_]+(?:['’.-][^\W\d_]+)*\.?|\S"
)


def scaled(text: str) -> tuple[Fraction, str]:
    """How many times the number is meant, by the words that come first; and the other words."""
    scale = Fraction(1)
    while found := re.match(r"\s*(?:([A-Za-z]+)\b|([百千万亿成])(?![克米瓦升卡帕分人]))", text):
        word = (found[1] or found[2]).lower()
        word = word if word in _SCALES else word.removesuffix("s")
        if word not in _SCALES:
            break
        scale, text = scale * _SCALES[word], text[found.end() :]
    return scale, text


def measure(text: str) -> Measure | None:
    """What the words behind a number say that it is; None for words that change the number."""
    text = re.sub(r"\A[\[(](.*)[\])]\Z", r"\1", text.strip()).strip()
    text = (
        re.sub("平方|立方", lambda found: " square " if found[0] == "平方" else " cubic ", text)
        if len(text) > 2
        else text
    )
    text = re.sub(r"\bUS(?=[\s$]+(?:dollar|\Z))|\bU\.S\.(?=\s*dollar)", "", text)
    tokens = [found for found in _TOKEN.finditer(text) if found[0] not in "()·*.,;"]
    words = {found[0].lower().strip(".") for found in tokens}
    if words == {"times"}:  # how many times
        return Measure()
    if (
        len(tokens) > 30
        or (words & _CHANGING)
        or any(found[0].isdecimal() and found[1] is None for found in tokens)
    ):
        return None
    if tokens and re.search(
        r"(?<!mon)(?<!ma)(?<!pa)(?<!ba)(?<!bir)(?<!clo)(?<!you)ths?\Z", tokens[0][0].lower()
    ):  # tenths
        return None
    if tokens and tokens[0][0].lower() in _VERBS or _CHANGING_CHINESE.search(text):
        return None
    return _parsed([(found[0], found[1]) for found in tokens], text)


def says_which_way(word: str) -> bool:
    """Whether a word behind a number names no thing, but a direction or the sign of a change."""
    return word in _WAYS


def opposed(one: Collection[str], other: Collection[str]) -> bool:
    """Whether the words of two answers are opposites; those of one alone are not missed in the other."""
    for sides in _OPPOSITES if one and other else ():
        first, second = (
            {place for place, side in enumerate(sides) if not side.isdisjoint(words)}
            for words in (one, other)
        )
        if first and second and first.isdisjoint(second):
            return True
    return False


@functools.lru_cache(maxsize=200)
def conversions(unit: Unit) -> frozenset[Fraction]:
    """How many of other units one of this is: for an hour 60, 3600 and others."""
    others = (other for entry in _UNITS.values() for other in entry)
    return frozenset(unit.factor / other.factor for other in others if other.kind == unit.kind)


def _parsed(tokens: list[tuple[str, str | None]], text: str) -> Measure | None:
    parts: list[tuple[tuple[Unit, ...], int]] = []  # units and their powers
    things: list[str] = []
    sign, power = 1, 1
    place = 0
    while place < len(tokens):
        token, exponent = tokens[place]
        place += 1
        word = token.lower().strip(".")
        if exponent or word in ("squared", "cubed"):
            if not parts:
                return None
            times = int(exponent or {"squared": 2, "cubed": 3}[word])
            parts[-1] = parts[-1][0], parts[-1][1] * times
            continue
        if word in ("square", "sq", "cubic", "cu"):
            power = 2 if word.startswith("sq") else 3
            continue
        if word in _PER and (parts or things):
            sign = -1
            continue
        if word == "\\mu" and place < len(tokens):
            token, place = "\u00b5" + tokens[place][0], place + 1
        after = tokens[place][0] if place < len(tokens) else ""
        units = (
            () if word == "in" and token != "in." and re.match("[a-z]{3}", after) else _known(token, after)
        )
        if units is None:
            return None
        if units and not things or sign < 0:
            units = units or (Unit(Fraction(1), _singular(word)),)
            if things:
                parts, things = [((Unit(Fraction(1), _singular(things[-1])),), 1)], []
            place += units[0].kind in ("degree-C", "degree-F") and word != "celsius" and "degree" in word
            parts.append((units, sign * power))
            sign, power = 1, 1
        elif parts or word in _ENDS:
            break
        elif word.isascii() and len(word) < 3:
            return None
        elif word not in ("unit", "units") and word not in _WAYS:
            things.append(word)
    if power != 1 and not any(word[0].startswith("unit") for word in tokens):
        return None
    words = (token.lower().strip(".") for token, _ in tokens)
    ways = tuple(word for word in words if word in _WAYS)
    return Measure(_product(parts), ways) if parts else Measure(things=(*things, *ways))


def _known(token: str, after: str) -> tuple[Unit, ...] | None:
    """The units of a name: () for a name that is none, None for a letter that is none."""
    word = token.strip(".")
    if word.lower() in ("\\degree", "degree", "degrees", "度") and re.match(
        r"(?:C|F|[Cc]elsius|[Ff]ahrenheit)\b", after
    ):
        return (Unit(Fraction(1), f"degree-{after[0].upper()}"),)
    for name in (word, word.lower(), *(word.lower().removesuffix(end) for end in ("s", "es"))):
        if name in _UNITS and (name in word or name not in _EXACT_CASE):
            return tuple(_UNITS[name])
        if name in _ALIASES:
            parsed = _parsed([(found[0], found[1]) for found in _TOKEN.finditer(_ALIASES[name])], "")
            return parsed and parsed.units
    return None if len(word) == 1 and word.isascii() else ()


def _singular(word: str) -> str:
    return re.sub(r"(?<=[a-z]{2})(?:(?<=i)es|s)\Z", "", word).replace("ie", "y")


def _product(parts: list[tuple[tuple[Unit, ...], int]]) -> tuple[Unit, ...]:
    """All readings of a product of units."""
    readings = []
    for chosen in product(*(units[:2] for units, _ in parts[:6])):
        factor, powers = Fraction(1), {}
        for unit, (_, power) in zip(chosen, parts, strict=False):
            factor *= unit.factor**power
            for base in unit.kind.split():
                name, _, times = base.partition("^")
                powers[name] = powers.get(name, 0) + int(times or 1) * power
        kind = " ".join(
            f"{name}^{times}" if times != 1 else name for name, times in sorted(powers.items()) if times
        )
        readings.append(Unit(factor, kind))
    return tuple(dict.fromkeys(readings))
