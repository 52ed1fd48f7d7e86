"""Puzzles of heads and feet solved exactly, or why they have no single answer.

With counts a and b of animals of l < m legs, heads H and feet F,

    a + b = H,   l·a + m·b = F   ⟹   b = (F − l·H) / (m − l)

so there is an answer if b is a whole number between 0 and H. All arithmetic is on integers of any size.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from kdlib.language.puzzles.puzzle import ANIMALS, Cage, Puzzle, count_of

__all__ = ["Solution", "Status", "solve"]

Status = Literal["unique", "impossible", "ambiguous"]


@dataclass(frozen=True)
class Solution:
    """What can be said of a puzzle.

    Attributes:
        status: "unique", "impossible" (no whole numbers ≥ 0 fit) or "ambiguous" (more than one set does).
        counts: of a unique puzzle, for each cage the number of each animal by name; otherwise None.
        reason: why there is no single answer, for a reader; empty for a unique puzzle.
    """

    status: Status
    counts: tuple[dict[str, int], ...] | None
    reason: str


def solve(puzzle: Puzzle) -> Solution:
    """The counts of a puzzle, or why they cannot be known."""
    counts: list[dict[str, int]] = []
    link = None
    for number, cage in enumerate(puzzle.cages, start=1):
        where = f"cage {number}: " if len(puzzle.cages) > 1 else ""
        heads = cage.heads if link is None else counts[-1][link] + cage.more
        if reason := _misfit(cage, heads):
            return Solution("impossible", None, where + reason)
        few, many = cage.by_legs()
        legs = ANIMALS[few].legs
        gap = ANIMALS[many].legs - legs
        if not gap and heads:
            reason = (
                f"{few} and {many} have {legs} feet each: there may be {count_of(0, few)} and "
                f"{count_of(heads, many)}, or {count_of(1, few)} and {count_of(heads - 1, many)}"
            )
            return Solution("ambiguous", None, where + reason)
        of_many = (cage.feet - legs * heads) // gap if gap else 0
        held = {few: heads - of_many, many: of_many}
        counts.append({name: held[name] for name in cage.animals})
        link = cage.animals[-1]
    return Solution("unique", tuple(counts), "")


def _misfit(cage: Cage, heads: int) -> str:
    """Why the feet do not suit the heads; empty if they do."""
    few, many = cage.by_legs()
    least, most, feet = ANIMALS[few].legs, ANIMALS[many].legs, cage.feet
    if feet % 2:
        return f"each animal has an even number of feet, but {feet} is odd"
    bound = None
    if feet < least * heads:
        bound, legs, name = "least", least, few
    elif feet > most * heads:
        bound, legs, name = "most", most, many
    if bound:
        return (
            f"{heads} heads have at {bound} {legs} × {heads} = {legs * heads} feet (all {name}), "
            f"but there are {feet}"
        )
    extra, gap = feet - least * heads, most - least
    if gap and extra % gap:
        return (
            f"{extra} feet more than {count_of(heads, few)} have would take "
            f"{count_of(Fraction(extra, gap), many)}, for each has {gap} more"
        )
    return ""
