"""Puzzles of heads and feet, drawn at random: always with exactly one answer, told apart by a key.

"A cage holds chickens and rabbits: 10 heads and 28 feet. How many of each?" is the first of a family. Other
animals have other numbers of legs, and in a chain the answer of one cage is needed for the next. The puzzle
is about 1,500 years old: Sunzi Suanjing, chapter 3, problem 31 (35 heads, 94 feet).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from kdlib.language.puzzles.puzzle import ANIMALS, Cage, Kind, Puzzle, check_names

__all__ = ["PuzzleSplits", "make_puzzle", "puzzle_splits"]


def make_puzzle(
    kind: Kind = "pair",
    *,
    rng: random.Random,
    heads: tuple[int, int] = (2, 50),
    animals: Sequence[str] | None = None,
    cages: int = 2,
) -> Puzzle:
    """Draw a puzzle that has exactly one answer, with at least one animal of every kind it names.

    Of a single cage all counts that fit `heads` are equally likely, so that large numbers are drawn more
    often than small ones. In a chain every cage after the first has at least one head more than it takes
    from the cage before, so that numbers need not get smaller; cage by cage, all numbers of heads that may
    follow the cage before are equally likely, and with each of them all counts.

    Args:
        kind: "pair", one cage, or "chain", in which the next cage asks for the animal with more legs.
        rng: source of randomness; the same state gives the same puzzle.
        heads: least and largest number of heads of every cage, both included. The least is raised to what
            `kind` needs: 2, or in a chain cages + 1.
        animals: names to choose from; all of `ANIMALS` when None. Animals of one cage differ in legs.
        cages: length of a chain, at least 2.

    Raises:
        ValueError: for a kind, range, length or name that is none, or if no such puzzle exists.
    """
    low, high = _check_heads(kind, heads, cages)
    names = _check_animals(kind, animals)
    totals = _draw_chain(rng, low, high, cages) if kind == "chain" else [_draw_pair(rng, low, high)]
    drawn: list[Cage] = []
    before = link = None
    for total, last in totals:
        few, many = _choose(rng, [name for name in names if name != link])
        feet = ANIMALS[few].legs * (total - last) + ANIMALS[many].legs * last
        if before is None:
            drawn.append(Cage((few, many), total, feet))
        else:
            drawn.append(Cage((few, many), None, feet, more=total - before))
        before, link = last, many
    return Puzzle(tuple(drawn))


def _check_heads(kind: str, heads: tuple[int, int], cages: int, argument: str = "heads") -> tuple[int, int]:
    if kind not in ("pair", "chain"):
        raise ValueError(f'kind must be "pair" or "chain"; got {kind!r}')
    if kind == "chain" and (not isinstance(cages, int) or cages < 2):
        raise ValueError(f"cages, the length of a chain, must be at least 2; got {cages!r}")
    whole = isinstance(heads, Sequence) and all(isinstance(bound, int) for bound in heads)
    if not whole or len(heads) != 2 or heads[0] > heads[1]:
        raise ValueError(f"{argument} must be (least, largest), two whole numbers; got {heads!r}")
    least = cages + 1 if kind == "chain" else 2
    if heads[1] < least:
        raise ValueError(
            f"{argument} must reach {least} for kind {kind!r}, for each animal to be there; got {heads!r}"
        )
    return max(heads[0], least), heads[1]


def _check_animals(kind: Kind, animals: Sequence[str] | None) -> list[str]:
    names = list(ANIMALS if animals is None else animals)
    check_names("animals", names)
    if not _differ(names):
        raise ValueError(f"animals must have at least 2 different numbers of legs; got {names}")
    for name in names if kind == "chain" else ():
        if not _differ([other for other in names if other != name]):
            raise ValueError(
                f"animals of a chain must hold two of different legs besides {name!r}, which cannot be in "
                f"the cage whose heads it gives; got {names}"
            )
    return names


def _differ(names: Sequence[str]) -> bool:
    return len({ANIMALS[name].legs for name in names}) >= 2


def _draw_pair(rng: random.Random, low: int, high: int) -> tuple[int, int]:
    """Heads, and how many of them have more legs: every such pair equally likely."""
    while True:  # rejection: there are heads − 1 pairs of so many heads
        heads = rng.randint(low, high)
        if rng.randrange(high - 1) < heads - 1:
            return heads, rng.randrange(1, heads)


def _draw_chain(rng: random.Random, low: int, high: int, cages: int) -> list[tuple[int, int]]:
    """For each cage its heads, and how many of them have more legs: fewer than the heads of the next."""
    drawn, least = [], low
    for _ in range(cages):
        heads = rng.randint(least, high)
        last = rng.randint(1, heads - 1)
        drawn.append((heads, last))
        least = max(low, last + 1)  # ≤ heads ≤ high
    return drawn


def _choose(rng: random.Random, names: list[str]) -> list[str]:
    """Two animals of different legs, fewer first."""
    while True:
        chosen = rng.sample(names, 2)
        if _differ(chosen):
            return sorted(chosen, key=lambda name: ANIMALS[name].legs)


@dataclass(frozen=True)
class PuzzleSplits:
    """Disjoint sets of puzzles: no key occurs twice, in one part or in two.

    Attributes:
        train, validation, test: from the same range of heads.
        beyond: from another, for what was not trained.
    """

    train: tuple[Puzzle, ...]
    validation: tuple[Puzzle, ...]
    test: tuple[Puzzle, ...]
    beyond: tuple[Puzzle, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.train)} training, {len(self.validation)} validation and {len(self.test)} test "
            f"puzzles, {len(self.beyond)} beyond their range"
        )


def puzzle_splits(
    kind: Kind = "pair",
    *,
    train: int,
    validation: int,
    test: int,
    beyond: int = 0,
    heads: tuple[int, int] = (2, 50),
    beyond_heads: tuple[int, int] = (51, 99),
    seed: int = 0,
    animals: Sequence[str] | None = None,
    cages: int = 2,
) -> PuzzleSplits:
    """Draw disjoint sets of puzzles; for the same arguments always the same ones.

    Args:
        train, validation, test, beyond: how many puzzles of each.
        heads, beyond_heads: least and largest number of heads of every cage, both included, of the first
            three and of the last. They must not overlap.
        seed: of the draw.
        kind, animals, cages: as for `make_puzzle`.

    Raises:
        ValueError: if there are not as many different puzzles, or for arguments that `make_puzzle` refuses.
    """
    sizes = {"train": train, "validation": validation, "test": test, "beyond": beyond}
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError(f"{name} must be a whole number of at least 0; got {size!r}")
    low, high = _check_heads(kind, heads, cages)
    options = {"kind": kind, "animals": animals, "cages": cages}
    outside: list[Puzzle] = []
    if beyond:
        beyond_low, beyond_high = _check_heads(kind, beyond_heads, cages, "beyond_heads")
        if beyond_low <= high and low <= beyond_high:
            raise ValueError(f"beyond_heads must not overlap heads = {heads}; got {beyond_heads}")
        outside = _distinct(beyond, random.Random(f"{seed} beyond"), beyond_heads, options)
    inside = _distinct(train + validation + test, random.Random(f"{seed} within"), heads, options)
    return PuzzleSplits(
        tuple(inside[:train]), tuple(inside[train : train + validation]), tuple(inside[train + validation :]),
        tuple(outside),
    )  # fmt: skip


def _distinct(size: int, rng: random.Random, heads: tuple[int, int], options: dict) -> list[Puzzle]:
    """Puzzles with different keys, in an order that says nothing of them."""
    found: dict[str, Puzzle] = {}
    misses = 0
    # Whether more exist is judged by 40 · n draws in a row of the n known ones. One left out with a tenth of
    # the average chance would have been drawn with probability 1 − e^−4; most are left out together.
    while len(found) < size and misses < 40 * len(found) + 400:
        puzzle = make_puzzle(rng=rng, heads=heads, **options)
        misses = misses + 1 if puzzle.key in found else 0
        found.setdefault(puzzle.key, puzzle)
    if len(found) < size:
        raise ValueError(
            f"there are no {size} different puzzles of kind {options['kind']!r} with {heads[0]} to {heads[1]}"
            f" heads, only {len(found)} were found: ask for fewer, widen heads or allow more animals"
        )
    puzzles = list(found.values())
    rng.shuffle(puzzles)  # with unequal chances the likely ones come first
    return puzzles
