"""Puzzles of heads and feet solved exactly, or why they have no single answer.

With counts a and b of animals of l < m legs, heads H and feet F,

    a + b = H,   l·a + m·b = F   ⟹   b = (F − l·H) / (m − l)

so there is an answer if b is a whole number between 0 and H. All arithmetic is on integers of any size.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from kdlib.language.puzzles.puzzle import Animal, Puzzle

__all__ = ["Solution", "solve"]


@dataclass(frozen=True)
class Solution:
    """What the numbers of a puzzle say."""

    status: Literal["unique", "impossible", "ambiguous"]  # how many sets of whole numbers ≥ 0 fit
    counts: tuple[dict[str, int], ...] | None = None  # for each cage, by name; None unless unique
    reason: str = ""  # why there is no single answer


def solve(puzzle: Puzzle) -> Solution:
    """The counts of a puzzle, or why they cannot be known; a ValueError for what is no `Puzzle`."""
    if not isinstance(puzzle, Puzzle):
        raise ValueError(f"puzzle must be a Puzzle, as make_puzzle gives; got {puzzle!r:.60}")
    counts: list[dict[str, int]] = []
    for number, cage in enumerate(puzzle.cages, start=1):
        heads = cage.heads if cage.heads is not None else [*counts[-1].values()][-1] + cage.more
        few, many = cage.by_legs()
        gap = many.legs - few.legs
        where = f"cage {number}: " if len(puzzle.cages) > 1 else ""
        if reason := _misfit(few, many, heads, cage.feet):
            return Solution("impossible", reason=where + reason)
        if not gap and heads:
            reason = (
                f"{few.name} and {many.name} have {few.legs} feet each: there may be {few.counted(0)} and "
                f"{many.counted(heads)}, or {few.counted(1)} and {many.counted(heads - 1)}"
            )
            return Solution("ambiguous", reason=where + reason)
        of_many = (cage.feet - few.legs * heads) // gap if gap else 0
        counts.append({name: of_many if name == many.name else heads - of_many for name in cage.animals})
    return Solution("unique", tuple(counts))


def _misfit(few: Animal, many: Animal, heads: int, feet: int) -> str:
    """Why the feet do not suit the heads; empty if they do."""
    if feet % 2:
        return f"each animal has an even number of feet, but {feet} is odd"
    least, most = few.legs * heads, many.legs * heads
    if feet < least:
        all_few = f"at least {few.legs} × {heads} = {least} feet (all {few.name})"
        return f"{heads} heads have {all_few}, but there are {feet}"
    if feet > most:
        all_many = f"at most {many.legs} × {heads} = {most} feet (all {many.name})"
        return f"{heads} heads have {all_many}, but there are {feet}"
    extra, gap = feet - least, many.legs - few.legs
    if gap and extra % gap:
        take = f"would take {many.counted(Fraction(extra, gap))}, for each has {gap} more"
        return f"{extra} feet more than {few.counted(heads)} have {take}"
    return ""
