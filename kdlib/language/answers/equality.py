"""Whether two answers that `kdlib.language.answers.reading` took apart are equal.

Numbers are compared as fractions, here and now. Formulas need SymPy: `same` then raises `NeedsAlgebra`, and
`kdlib.language.answers.algebra` decides. There two formulas are equal
if they have one value, to forty digits, wherever their letters are given numbers; what is rational is
compared exactly. Nothing is rounded: 0.333 is not 1/3. What cannot be decided is not equal.

math-verify's own comparison takes everything below 1e-17 for equal, folds the case of letters and drops
primes and bases (https://github.com/huggingface/Math-Verify), so that only its LaTeX parser is used.
"""

import re
from fractions import Fraction
from itertools import pairwise

from kdlib.language.answers.units import opposed, says_which_way

__all__ = ["Algebra", "NeedsAlgebra", "same"]

_EQUAL = {"=", r"\approx", "≈", "=="}


class NeedsAlgebra(Exception):
    """Two formulas have to be compared."""


class Algebra:
    """What `same` asks about formulas in LaTeX; this one leaves every question to the process."""

    def equal(self, one: str, other: str) -> bool:
        """Whether two formulas have one value."""
        raise NeedsAlgebra

    def proportional(self, one: tuple[str, str], other: tuple[str, str]) -> int:
        """The sign of the constant between left − right of two relations; 0 if there is none."""
        raise NeedsAlgebra

    def same_set(self, one: list, other: list) -> bool:
        """Whether two nodes are one set of numbers, as x > 3 and (3, ∞)."""
        raise NeedsAlgebra


def same(one: list, other: list, algebra: Algebra) -> bool:
    """Whether two nodes say the same."""
    one, other = _chained(one, algebra), _chained(other, algebra)
    if one is None or other is None:
        return False
    if one[0] == other[0]:
        return _ALIKE[one[0]](one, other, algebra)
    for first, second in ((one, other), (other, one)):
        if (first[0], second[0]) in _MIXED:
            return _MIXED[first[0], second[0]](first, second, algebra)
    return _as_sets(one, other, algebra)


# Leaves


def _leaves(one: list, other: list, algebra: Algebra) -> bool:
    """Units that both give agree; one that one side leaves out is not missed; 50% is 50 or 1/2.

    So do words that say which way: miles north are miles, but not miles south.
    """
    (_, _, _, units, words), (_, _, _, other_units, other_words) = one, other
    if opposed(words, other_words):
        return False
    things, other_things = (
        [word for word in said if not says_which_way(word)] for said in (words, other_words)
    )
    if (units and other_things) or (other_units and things) or not _same_things(things, other_things):
        return False
    if units and other_units:
        factors = [(f, g) for f, kind in units for g, other_kind in other_units if kind == other_kind]
    else:
        factors = [("1", "1")]
        pure = {"%": "1/100", "degree": "pi", "rad": "1"}
        factors += [(pure[kind], "1") for _, kind in units if kind in pure]
        factors += [("1", pure[kind]) for _, kind in other_units if kind in pure]
    return any(_same_value(one, factor, other, other_factor, algebra) for factor, other_factor in factors)


def _same_things(one: list[str], other: list[str]) -> bool:
    """Red balls are balls, but neither are they blue ones, nor are apple trees apples."""
    short, long = sorted((one, other), key=len)
    if not short or long[: len(short)] == short:
        return True
    return [_forms(word) & _forms(last) for word, last in zip(short, long[-len(short) :], strict=True)].count(
        set()
    ) == 0


def _forms(word: str) -> set[str]:
    """A word, and what its singular may be."""
    endings = (("s", ""), ("es", ""), ("ies", "y"))
    return {word} | {word[: -len(end)] + instead for end, instead in endings if word.endswith(end)}


def _same_value(one: list, factor: str, other: list, other_factor: str, algebra: Algebra) -> bool:
    if one[2] and other[2] and "pi" not in (factor, other_factor):
        return Fraction(one[2]) * Fraction(factor) == Fraction(other[2]) * Fraction(other_factor)
    texts = [re.sub(r"\s", "", node[1]) for node in (one, other)]
    if texts[0] == texts[1] and factor == other_factor and not (one[2] or other[2]):
        return True
    if all(re.fullmatch(r"[A-Za-z]{2,}", text) for text in texts):  # names, of points or in Roman numbers
        return False
    return algebra.equal(_formula(one, factor), _formula(other, other_factor))


def _formula(node: list, factor: str) -> str:
    formula = _latex(node[2]) if node[2] else node[1]
    return formula if factor == "1" else rf"({formula})\cdot{_latex(factor)}"


def _latex(number: str) -> str:
    if number == "pi":
        return r"\frac{\pi}{180}"
    top, _, bottom = number.partition("/")
    return rf"\frac{{{top}}}{{{bottom}}}" if bottom else top


# Equations and other relations

_NAME = re.compile(
    r"[(|]?(?:\\(?!frac|sqrt|sum|int|prod|lim|binom)[A-Za-z]+|[A-Za-z])(?:[A-Za-z0-9_'’|(),.]|\\[A-Za-z]+)*"
    r"(?:\^-1[A-Za-z0-9_'|(),]*)?"
)


def _has_letters(node: list | None) -> bool:
    if node is None or node[0] != "leaf":
        return True
    return (
        re.search(
            r"[A-Za-z]", re.sub(r"\\(?!alpha|beta|gamma|theta|lambda|mu|phi|omega)[A-Za-z]+", "", node[1])
        )
        is not None
    )


def _chained(node: list, algebra: Algebra) -> list | None:
    """A chain as ["named", name, values] where = gives a value, or ["relation", …]; None if wrong."""
    if node[0] != "chain":
        return node
    _, relations, sides, written = node
    if not _EQUAL.issuperset(relations):
        return None if None in sides else ["relation", relations, sides]
    about = written[0] == r"\pi" and relations[0] != "="  # no name, but a value that is about another
    if _NAME.fullmatch(written[0]) and not about and not (len(sides) == 2 and sides[1] is None):
        name, relations, sides = written[0], relations[1:], sides[1:]
    elif not written[0]:
        name, relations, sides = "", relations[1:], sides[1:]
    elif len(sides) == 2 and relations == ["="] and any(map(_has_letters, sides)):
        return None if None in sides else ["relation", relations, sides]
    else:
        name = ""
    if None in sides:
        return None
    values = [sides[0]]
    for relation, (left, right) in zip(relations, pairwise(sides), strict=True):
        if relation not in ("=", "==") or same(left, right, algebra):
            values.append(right)
        elif _has_letters(left):  # V = ab = 12
            values = [right]
        else:
            return None
    return ["named", name, values]


def _named(one: list, other: list, algebra: Algebra) -> bool:
    if not one[1] or not other[1] or one[1] == other[1]:
        return any(same(value, other_value, algebra) for value in one[2] for other_value in other[2])
    return _relations(_equation(one), _equation(other), algebra)


def _equation(named: list) -> list:
    if named[0] == "relation":
        return named
    return ["relation", ["="], [["leaf", named[1], "", [], []], named[2][-1]]]


def _named_and_bare(named: list, bare: list, algebra: Algebra) -> bool:
    return any(same(value, bare, algebra) for value in named[2])


def _relations(one: list, other: list, algebra: Algebra) -> bool:
    one, other = _upward(one), _upward(other)
    if one[1] != other[1]:
        return False
    if len(one[1]) > 1:
        return all(same(left, right, algebra) for left, right in zip(one[2], other[2], strict=True))
    if any(side[0] != "leaf" for side in (*one[2], *other[2])) or not any(
        map(_has_letters, (*one[2], *other[2]))
    ):
        return False
    sign = algebra.proportional(*(tuple(_formula(side, "1") for side in node[2]) for node in (one, other)))
    return sign > 0 or sign < 0 and one[1][0] in ("=", r"\neq")


def _upward(node: list) -> list:
    """The relation with < instead of >."""
    turned = {">": "<", r"\geq": r"\leq"}
    if not set(node[1]) <= set(turned):
        return node
    return ["relation", [turned[relation] for relation in reversed(node[1])], node[2][::-1]]


# Lists, pairs, sets


def _lists(one: list, other: list, algebra: Algebra) -> bool:
    return (
        _in_any_order(one[1], other[1], algebra)
        if _labels(one) == _labels(other)
        else _in_order(_arranged(one), _arranged(other), algebra)
    )


def _labels(node: list) -> list[str] | None:
    """The different names of a list of equations; None if there are none."""
    names = [item[3][0] for item in node[-1] if item[0] == "chain" and _NAME.fullmatch(item[3][0])]
    return sorted(names) if len(set(names)) == len(node[-1]) > 1 else None


def _arranged(node: list) -> list:
    """The items, those of x, y, z and the like in the order of their names."""
    names = _labels(node)
    sequence = names and (
        set(names) <= set("xyz") or set(names) <= set("abcd") or len({name[0] for name in names}) == 1
    )
    return sorted(node[-1], key=lambda item: item[3][0]) if sequence else node[-1]


def _in_order(one: list, other: list, algebra: Algebra) -> bool:
    return len(one) == len(other) and all(same(a, b, algebra) for a, b in zip(one, other, strict=True))


def _in_any_order(one: list, other: list, algebra: Algebra) -> bool:
    if len(one) != len(other):
        return False
    left = list(other)
    for item in one:
        match = next((place for place, candidate in enumerate(left) if same(item, candidate, algebra)), None)
        if match is None:
            return False
        del left[match]
    return True


def _brackets(one: list, other: list, algebra: Algebra) -> bool:
    if one[1:3] != other[1:3]:
        return False
    compare = _in_any_order if one[1] == "{" else _in_order
    return compare(one[3], other[3], algebra)


def _list_and_brackets(one: list, brackets: list, algebra: Algebra) -> bool:
    if brackets[1] == "{":
        return _in_any_order(one[1], brackets[3], algebra)
    if brackets[1:3] == ["(", ")"] or len(brackets[3]) > 2:
        return _in_order(_arranged(one), brackets[3], algebra)
    return _as_sets(one, brackets, algebra)


def _operators(one: list, other: list, algebra: Algebra) -> bool:
    compare = _in_order if one[1] == r"\setminus" else _in_any_order
    return one[1] == other[1] and compare(one[2], other[2], algebra) or _as_sets(one, other, algebra)


def _as_sets(one: list, other: list, algebra: Algebra) -> bool:
    kinds, letters = ("brackets", "operator", "relation", "list"), re.compile(r"\\(?:mathbb|emptyset)")
    sets = all(node[0] in kinds or letters.match(str(node[1])) for node in (one, other))
    return sets and {one[0], other[0]} != {"list"} and algebra.same_set(one, other)


# Ratios, times, dates


def _ratios(one: list, other: list, algebra: Algebra) -> bool:
    one, other = one[1], other[1]
    if len(one) != len(other):
        return False
    if all(item[0] == "leaf" and item[2] for item in (*one, *other)):
        first, second = ([Fraction(item[2]) for item in items] for items in (one, other))
        return (
            any(first)
            and any(second)
            and all(a * second[0] == b * first[0] for a, b in zip(first, second, strict=True))
        )
    return _in_order(one, other, algebra)


def _ratio_and_leaf(ratio: list, leaf: list, _algebra: Algebra) -> bool:
    numbers = [item[2] for item in (*ratio[1], leaf)]
    if len(numbers) != 3 or not all(numbers) or leaf[3] or leaf[4]:
        return False
    top, bottom, value = map(Fraction, numbers)
    return bottom != 0 and top / bottom == value


def _clocks(one: list, other: list, _algebra: Algebra) -> bool:
    day = 1440 if one[2] and other[2] else 720
    return (one[1] - other[1]) % day == 0


def _clock_and_leaf(clock: list, leaf: list, _algebra: Algebra) -> bool:
    """5 p.m. and 5, but not 5:00 and 5."""
    return (
        clock[3] == "" and leaf[2].isdecimal() and not leaf[4] and (clock[1] // 60 - int(leaf[2])) % 12 == 0
    )


def _clock_and_ratio(clock: list, ratio: list, algebra: Algebra) -> bool:
    """10:15 is 2:3 where it may be a ratio."""
    return clock[4] is not None and _ratios(clock[4], ratio, algebra)


_ALIKE = {
    "leaf": _leaves, "named": _named, "relation": _relations, "list": _lists, "brackets": _brackets,
    "operator": _operators, "ratio": _ratios, "clock": _clocks, "date": lambda one, other, _: one == other,
}  # fmt: skip
_MIXED = {
    **{("named", kind): _named_and_bare for kind in _ALIKE if kind not in ("named", "relation")},
    ("named", "relation"): lambda one, other, algebra: _relations(_equation(one), other, algebra),
    ("list", "brackets"): _list_and_brackets, ("ratio", "leaf"): _ratio_and_leaf,
    ("clock", "leaf"): _clock_and_leaf, ("clock", "ratio"): _clock_and_ratio,
}  # fmt: skip
