"""Puzzles of heads and feet solved exactly, or why they have no single answer.

All arithmetic is on integers, without enumeration: numbers may be of any size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from kdlib.language.puzzles.puzzle import ANIMALS, Cage, Puzzle, count_of, listing

__all__ = ["Solution", "solve"]

Status = Literal["unique", "impossible", "ambiguous"]


@dataclass(frozen=True)
class Solution:
    """What can be said of a puzzle.

    Attributes:
        status: "unique", "impossible" (no whole numbers ≥ 0 fit) or "ambiguous" (more than one set does).
            A chain is unique if the animals of every cage are settled.
        counts: of a unique puzzle, for each cage the number of each animal by name; otherwise None.
        reason: why there is no single answer, for a reader; empty for a unique puzzle.
    """

    status: Status
    counts: tuple[dict[str, int], ...] | None
    reason: str


def solve(puzzle: Puzzle) -> Solution:
    """The counts of a puzzle, or why they cannot be known."""
    return _solve_three(puzzle.cages[0]) if puzzle.kind == "three" else _solve_pairs(puzzle.cages)


def _impossible(reason: str) -> Solution:
    return Solution("impossible", None, reason)


def _ambiguous(cage: Cage, first: Sequence[int], second: Sequence[int], why: str = "") -> Solution:
    either, other = (
        listing([count_of(number, name) for number, name in zip(counts, cage.animals, strict=True)])
        for counts in (first, second)
    )
    return Solution("ambiguous", None, f"{why}there may be {either}, or {other}")


def _misfit(cage: Cage, heads: int) -> str:
    """Why the feet do not suit the heads, whatever the third fact; empty if they do."""
    legs, feet = cage.legs, cage.feet
    fewest, most = min(legs), max(legs)
    if feet % 2 and not any(l % 2 for l in legs):  # noqa: E741
        return f"each animal has an even number of feet, but {feet} is odd"
    for bound, word, wrong in ((fewest, "least", feet < fewest * heads), (most, "most", feet > most * heads)):
        if wrong:
            name = cage.animals[legs.index(bound)]
            return (
                f"{heads} heads have at {word} {bound} × {heads} = {bound * heads} feet (all {name}), "
                f"but there are {feet}"
            )
    return ""


class _Line:
    """Counts that depend on one unknown whole number t, low ≤ t ≤ high: each is start + slope · t."""

    def __init__(self) -> None:
        self.counts: list[list[tuple[int, int]]] = []
        self.low = self.high = 0

    def _substitute(self, start: int, step: int) -> None:
        """t = start + step · s, with s as the new unknown; step > 0."""
        self.counts = [[(a + b * start, b * step) for a, b in cage] for cage in self.counts]
        self.low = -((start - self.low) // step)
        self.high = (self.high - start) // step

    def fix(self, t: int) -> bool:
        """Settle t; whether it is within bounds."""
        inside = self.low <= t <= self.high
        self.counts = [[(a + b * t, 0) for a, b in cage] for cage in self.counts]
        self.low = self.high = 0
        return inside

    def keep_multiples(self, start: int, slope: int, of: int) -> bool:
        """Keep the t for which start + slope · t is divisible by `of` > 0; whether there are any."""
        common = math.gcd(slope, of)
        if start % common:
            return False
        step = of // common
        first = -(start // common) * pow(slope // common, -1, step) % step
        self._substitute(first, step)
        return self.low <= self.high

    def keep_natural(self, start: int, slope: int) -> bool:
        """Keep the t for which start + slope · t ≥ 0; whether there are any."""
        if slope > 0:
            self.low = max(self.low, -(start // slope))
        elif slope < 0:
            self.high = min(self.high, start // -slope)
        return self.low <= self.high and (slope != 0 or start >= 0)

    def at(self, t: int) -> list[list[int]]:
        return [[a + b * t for a, b in cage] for cage in self.counts]


def _solve_pairs(cages: tuple[Cage, ...]) -> Solution:
    """Follow a chain; an unsettled cage leaves one unknown, which later cages may still settle."""
    line = _Line()
    unsettled = None  # by no later cage
    for number, cage in enumerate(cages, start=1):
        where = f"cage {number}: " if len(cages) > 1 else ""
        start, slope = line.counts[-1][-1] if line.counts else (cage.heads, 0)
        start += cage.more
        settled = line.low == line.high
        if settled:
            start, slope = start + slope * line.low, 0
            if reason := _misfit(cage, start):
                return _impossible(where + reason)
        unfit = f"{where}{cage.feet} feet do not go with any number of heads that the cages before allow"
        if cage.legs[0] == cage.legs[1]:
            # Heads must be feet / legs; how they are shared remains open. Only one kind has no legs.
            heads, rest = divmod(cage.feet, cage.legs[0])
            if slope:
                t, remainder = divmod(heads - start, slope)
                if rest or remainder or not line.fix(t):
                    return _impossible(unfit)
            elif rest or heads != start:
                return _impossible(unfit)
            if line.low < line.high:  # it does not bear on this cage (snakes took up the difference)
                unsettled = unsettled or _choice(cages, line)
            line.fix(line.low)
            line.counts.append([(0, 1), (heads, -1)])
            line.high = heads
            continue
        few, many = sorted((0, 1), key=cage.legs.__getitem__)
        least, gap = cage.legs[few], cage.legs[many] - cage.legs[few]
        line.counts.append([(start, slope)] * 2)  # takes part in the change of unknown
        if not line.keep_multiples(cage.feet - least * start, -least * slope, gap):
            extra = cage.feet - least * start
            names = cage.animals
            return _impossible(
                f"{where}{extra} feet more than {count_of(start, names[few])} have would take "
                f"{count_of(Fraction(extra, gap), names[many])}, for each has {gap} more"
                if settled
                else unfit
            )
        start, slope = line.counts[-1][0]
        high = ((cage.feet - least * start) // gap, -least * slope // gap)
        low = (start - high[0], slope - high[1])
        line.counts[-1] = [low, high] if few == 0 else [high, low]
        if not (line.keep_natural(*low) and line.keep_natural(*high)):
            return _impossible(unfit)
    if line.low < line.high:
        unsettled = unsettled or _choice(cages, line)
    return unsettled or _unique(cages, line.at(line.low))


def _choice(cages: Sequence[Cage], line: _Line) -> Solution:
    """Ambiguous: shown at the first cage that differs between two solutions."""
    first, second = line.at(line.low), line.at(line.low + 1)
    position = next(i for i, counts in enumerate(first) if counts != second[i])
    cage = cages[position]
    why = f"cage {position + 1}: " if len(cages) > 1 else ""
    if cage.legs[0] == cage.legs[1]:
        why += f"{listing(cage.animals)} have {cage.legs[0]} feet each: "
    return _ambiguous(cage, first[position], second[position], why)


def _unique(cages: Sequence[Cage], counts: Sequence[Sequence[int]]) -> Solution:
    named = tuple(dict(zip(cage.animals, row, strict=True)) for cage, row in zip(cages, counts, strict=True))
    return Solution("unique", named, "")


def _solve_three(cage: Cage) -> Solution:
    heads, feet = cage.heads, cage.feet
    if reason := _misfit(cage, heads):
        return _impossible(reason)
    if (fact := cage.fact) is None:
        return _solve_three_without_fact(cage)
    # Away with the surplus; each second with its share of firsts is a group, whose feet are compared with
    # those of as many heads of the third.
    leg = {name: ANIMALS[name].legs for name in cage.animals}
    third = cage.third()
    per_group = cage.excess()
    surplus = (feet - fact.more * leg[fact.first]) - leg[third] * (heads - fact.more)

    def counts(second: int | Fraction) -> list[int | Fraction]:
        first = fact.times * second + fact.more
        known = {fact.first: first, fact.second: second, third: heads - first - second}
        return [known[name] for name in cage.animals]

    if per_group:
        found = counts(Fraction(surplus, per_group))
        for number, name in zip(found, cage.animals, strict=True):
            if number.denominator != 1 or number < 0:
                return _impossible(f"the three facts would make it {count_of(number, name)}")
        return _unique([cage], [[int(number) for number in found]])
    same = f"the third fact adds nothing: {fact.first} with {fact.second} have the feet of as many {third}"
    most = (heads - fact.more) // (1 + fact.times)
    if surplus or most < 0:
        return _impossible(
            f"{same}, and {feet} feet do not fit" if surplus else f"there would be fewer than 0 {third}"
        )
    if most == 0:
        return _unique([cage], [counts(0)])
    return _ambiguous(cage, counts(0), counts(1), f"{same}: ")


def _solve_three_without_fact(cage: Cage) -> Solution:
    """Three unknowns, two facts: whole numbers ≥ 0 on a line."""
    low, middle, high = sorted(range(3), key=cage.legs.__getitem__)
    extra = cage.feet - cage.legs[low] * cage.heads
    steps = cage.legs[middle] - cage.legs[low], cage.legs[high] - cage.legs[low]
    common = math.gcd(*steps)
    if extra % common:
        return _impossible(
            f"{extra} feet more than {count_of(cage.heads, cage.animals[low])} have is no multiple of "
            f"{common}, and all differences of legs are"
        )
    small, large = (step // common for step in steps)
    line = _Line()
    start = extra // common * pow(small, -1, large) % large  # of the middle one, the least that is possible
    last = (extra // common - small * start) // large
    line.low, line.high = 0, cage.heads
    row = [(0, 0)] * 3
    row[middle], row[high] = (start, large), (last, -small)
    row[low] = (cage.heads - start - last, small - large)
    line.counts = [row]
    for count in row:
        if not line.keep_natural(*count):
            return _impossible(
                f"no whole numbers of {listing(cage.animals)} have {cage.heads} heads and {cage.feet} feet"
            )
    if line.low < line.high:
        (first,), (second,) = line.at(line.low), line.at(line.low + 1)
        return _ambiguous(cage, first, second, "three unknowns and two facts: ")
    return _unique([cage], line.at(line.low))
