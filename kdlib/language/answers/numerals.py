"""Numbers as people write them, read exactly: 1,234.5, 1 000, 12,34,567, 1.6e-19, 1011_2, 2 3/4."""

import re
from fractions import Fraction

__all__ = ["is_too_large", "number"]

_LARGEST_EXPONENT, _LONGEST = 5_000, 400

# Digits in groups: 1,234,567 and 1 234 567 and 1'234 and 1_234; of India 12,34,567.
_WHOLE = (
    r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9]|,[0-9])|[0-9]{1,3}(?:[ '_][0-9]{3})++(?![0-9])"
    r"|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9]|,[0-9])|[0-9]++(?!,[0-9]{3}(?![0-9])))"
)
_DECIMAL = (
    r"(?:\.(?:(?P<fixed>[0-9]*+)\s?\\overline\{\s?(?P<repeat>[0-9]++)\s?\}"
    r"|(?P<places>[0-9]*+)(?P<dots>\s?\\ldots)?))?+"
)
_POWER = (
    r"(?:[eE](?P<e>[-+]?[0-9]++)(?![0-9.])|\s?(?:\\times|\\cdot|[x*])\s?10\s?\^\s?(?:\{\s?(?P<braced>[-+]?[0-9]++)\s?\}"
    r"|(?P<power>[-+]?[0-9]++)))?+"
)
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s?(?P<whole>{_WHOLE}|(?=\.[0-9]|\.\\)){_DECIMAL}{_POWER}"
    r"(?:_\{?\s?(?P<base>[0-9]++)\s?\}?)?+"
    r"(?:\s?/\s?(?P<under>[0-9]++(?:\.[0-9]++)?)(?![0-9.])|(?P<mixed>\s[0-9]++\s?/\s?[0-9]++)(?![0-9.]))?+"
)
_FRACTION = re.compile(
    r"(?P<sign>[-+]?)\s?(?P<whole>[0-9]++)?\s?\\frac\{\s?(?P<minus>-?)\s?(?P<top>[0-9]++(?:\.[0-9]++)?)\s?\}"
    r"\{\s?(?P<bottom>[0-9]++(?:\.[0-9]++)?)\s?\}"
)


def number(text: str) -> tuple[Fraction, str] | None:
    """The number at the beginning of a canonical text, exactly, and what follows; None without one."""
    if found := _FRACTION.match(text):
        if not Fraction(found["bottom"]):
            return None
        value = int(found["whole"] or 0) + Fraction(found["top"]) / Fraction(found["bottom"]) * (
            -1 if found["minus"] else 1
        )
        if found["whole"] and found["minus"]:
            return None
        return (-value if found["sign"] == "-" else value), text[found.end() :]
    found = _NUMBER.match(text)
    if found is None or len(found[0]) > _LONGEST:
        return None
    value = _value(found)
    return None if value is None else (-value if found["sign"] == "-" else value, text[found.end() :])


def _power(found: re.Match) -> int | None:
    """The power of ten; None for one that nobody computes."""
    written = found["e"] or found["braced"] or found["power"] or "0"
    return int(written) if len(written) < 9 and abs(int(written)) <= _LARGEST_EXPONENT else None


def _value(found: re.Match) -> Fraction | None:
    whole = re.sub("[, '_]", "", found["whole"]) or "0"
    places, fixed = found["places"] or "", found["fixed"] or ""
    if found["base"]:
        base = int(found["base"])
        plain = (
            not (places or fixed or found["repeat"])
            and 2 <= base <= 10
            and max(whole) < str(base - 1) + "\x00"
        )
        value = Fraction(int(whole, base)) if plain or base == 10 and not places else None
    elif found["repeat"]:
        value = Fraction(f"{whole}.{fixed or 0}") + Fraction(
            int(found["repeat"]), (10 ** len(found["repeat"]) - 1) * 10 ** len(fixed)
        )
    elif found["dots"]:
        again = re.fullmatch(r"([0-9]*?)([0-9]{1,6}?)\2{2,}", places)
        value = again and Fraction(f"{whole}.{again[1] or 0}") + Fraction(
            int(again[2]), (10 ** len(again[2]) - 1) * 10 ** len(again[1])
        )
    else:
        value = Fraction(f"{whole}.{places or 0}")
    power = _power(found)
    if value is None or power is None:
        return None
    value *= Fraction(10) ** power
    if found["under"]:
        return value / Fraction(found["under"]) if Fraction(found["under"]) else None
    if found["mixed"]:
        top, bottom = found["mixed"].split("/")
        return None if places or not int(bottom) else value + Fraction(int(top), int(bottom))
    return value


def is_too_large(text: str) -> bool:
    """Whether a text begins with a number whose power of ten nobody computes."""
    found = _NUMBER.match(text)
    return found is not None and _power(found) is None
