"""Puzzles of heads and feet solved exactly, or why they have no single answer.

With counts a and b of animals of l < m legs, heads H and feet F,

    a + b = H,   l·a + m·b = F   ⟹   b = (F − l·H) / (m − l)

so there is an answer if b is a whole number between 0 and H. All arithmetic is on integers of any size.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from kdlib.language.puzzles.puzzle import ANIMALS, Puzzle, count_of

__all__ = ["Solution", "solve"]


@dataclass(frozen=True)
class Solution:
    """What can be said of a puzzle.

    Attributes:
        status: "unique", "impossible" (no whole numbers ≥ 0 fit) or "ambiguous" (more than one set does).
        counts: of a unique puzzle, for each cage the number of each animal by name; otherwise None.
        reason: why there is no single answer, for a reader; empty for a unique puzzle.
    """

    status: Literal["unique", "impossible", "ambiguous"]
    counts: tuple[dict[str, int], ...] | None
    reason: str


def solve(puzzle: Puzzle) -> Solution:
    """The counts of a puzzle, or why they cannot be known."""
    counts: list[dict[str, int]] = []
    for number, cage in enumerate(puzzle.cages, start=1):
        heads = cage.heads if cage.heads is not None else [*counts[-1].values()][-1] + cage.more
        few, many = cage.by_legs()
        least, gap = ANIMALS[few].legs, ANIMALS[many].legs - ANIMALS[few].legs
        where = f"cage {number}: " if len(puzzle.cages) > 1 else ""
        if reason := _misfit(few, many, heads, cage.feet):
            return Solution("impossible", None, where + reason)
        if not gap and heads:
            reason = (
                f"{few} and {many} have {least} feet each: there may be {count_of(0, few)} and "
                f"{count_of(heads, many)}, or {count_of(1, few)} and {count_of(heads - 1, many)}"
            )
            return Solution("ambiguous", None, where + reason)
        of_many = (cage.feet - least * heads) // gap if gap else 0
        counts.append({name: of_many if name == many else heads - of_many for name in cage.animals})
    return Solution("unique", tuple(counts), "")


def _misfit(few: str, many: str, heads: int, feet: int) -> str:
    """Why the feet do not suit the heads; empty if they do."""
    least, most = ANIMALS[few].legs, ANIMALS[many].legs
    extra, gap = feet - least * heads, most - least
    if feet % 2:
        return f"each animal has an even number of feet, but {feet} is odd"
    if extra < 0:
        all_few = f"at least {least} × {heads} = {least * heads} feet (all {few})"
        return f"{heads} heads have {all_few}, but there are {feet}"
    if feet > most * heads:
        all_many = f"at most {most} × {heads} = {most * heads} feet (all {many})"
        return f"{heads} heads have {all_many}, but there are {feet}"
    if gap and extra % gap:
        take = f"would take {count_of(Fraction(extra, gap), many)}, for each has {gap} more"
        return f"{extra} feet more than {count_of(heads, few)} have {take}"
    return ""
