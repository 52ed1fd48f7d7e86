"""Puzzles of heads and feet, drawn at random: always with exactly one answer, told apart by a key.

"A cage holds chickens and rabbits: 10 heads and 28 feet. How many of each?" is the first of a family. Other
animals have other numbers of legs, and in a chain the answer of one cage is needed for the next. The puzzle
is about 1,500 years old: Sunzi Suanjing, chapter 3, problem 31 (35 heads, 94 feet).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from kdlib.arguments import check_counts, check_whole
from kdlib.language.puzzles.puzzle import ANIMALS, Cage, Kind, Puzzle, check_names

__all__ = ["PuzzleSplits", "make_puzzle", "puzzle_splits"]


def make_puzzle(
    kind: Kind = "pair", *, rng: random.Random, heads: tuple[int, int] = (2, 50),
    animals: Sequence[str] = tuple(ANIMALS),
) -> Puzzle:  # fmt: skip
    """Draw a puzzle that has exactly one answer, with at least one animal of every kind it names.

    Of a single cage all counts that fit `heads` are equally likely. In a chain the second cage has at least
    one head more than it takes from the first; cage by cage, all possible numbers of heads are equally
    likely, and with each of them all counts.

    Args:
        kind: "pair", one cage, or "chain", two, of which the second takes up the animal with more legs.
        heads: least (2, or 3 in a chain, if it is less) and largest number of heads of every cage.
        animals: names to choose from. Animals of one cage differ in legs.

    Raises:
        ValueError: no such kind, range or name, or no such puzzle.
    """
    if not isinstance(rng, random.Random):
        raise ValueError(f"rng must be a random.Random, such as random.Random(0); got {rng!r}")
    low, high = _range(kind, heads)
    _check_animals(kind, animals)
    drawn = [_draw_pair(rng, low, high) if kind == "pair" else _draw_counts(rng, low, high)]
    if kind == "chain":
        drawn.append(_draw_counts(rng, max(low, drawn[0][1] + 1), high))
    cages: list[Cage] = []
    link, linked = None, 0
    for total, of_many in drawn:
        few, many = _choose(rng, [name for name in animals if name != link])
        feet = ANIMALS[few].legs * (total - of_many) + ANIMALS[many].legs * of_many
        cages.append(Cage((few, many), None if link else total, feet, more=total - linked if link else 0))
        link, linked = many, of_many
    return Puzzle(tuple(cages))


def _range(kind: str, heads: tuple[int, int], argument: str = "heads") -> tuple[int, int]:
    if kind not in ("pair", "chain"):
        raise ValueError(f'kind must be "pair" or "chain"; got {kind!r}')
    if not isinstance(heads, Sequence) or len(heads) != 2:
        raise ValueError(f"{argument} must be (least, largest); got {heads!r}")
    check_counts(least=0, **{f"{argument}[{place}]": number for place, number in enumerate(heads)})
    least = 3 if kind == "chain" else 2  # for each animal to be there
    low, high = max(heads[0], least), heads[1]
    if low > high:
        raise ValueError(f"{argument} must be (least, largest) and reach {least} for a {kind}; got {heads}")
    return low, high


def _check_animals(kind: Kind, animals: Sequence[str]) -> None:
    check_names("animals", animals)
    for link in animals if kind == "chain" else [None]:
        if len({ANIMALS[name].legs for name in animals if name != link}) < 2:
            besides = f" besides {link!r}, which gives heads to the next cage" if link else ""
            raise ValueError(f"animals must have 2 different numbers of legs{besides}; got {animals}")


def _draw_pair(rng: random.Random, low: int, high: int) -> tuple[int, int]:
    """Heads, and how many of them have more legs: every such pair equally likely."""
    while True:  # rejection: there are heads − 1 pairs of so many heads
        heads = rng.randint(low, high)
        if rng.randrange(high - 1) < heads - 1:
            return heads, rng.randrange(1, heads)


def _draw_counts(rng: random.Random, low: int, high: int) -> tuple[int, int]:
    """Heads, and how many of them have more legs: first the one, then the other equally likely."""
    heads = rng.randint(low, high)
    return heads, rng.randint(1, heads - 1)


def _choose(rng: random.Random, names: list[str]) -> list[str]:
    """Two animals of different legs, fewer first."""
    while True:
        chosen = sorted(rng.sample(names, 2), key=lambda name: ANIMALS[name].legs)
        if ANIMALS[chosen[0]].legs < ANIMALS[chosen[1]].legs:
            return chosen


@dataclass(frozen=True)
class PuzzleSplits:
    """Disjoint sets of puzzles, by their keys; `beyond` is from another range of heads than the others."""

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
    kind: Kind = "pair", *, train: int, validation: int, test: int, beyond: int = 0,
    heads: tuple[int, int] = (2, 50), beyond_heads: tuple[int, int] = (51, 99), seed: int = 0,
    animals: Sequence[str] = tuple(ANIMALS),
) -> PuzzleSplits:  # fmt: skip
    """Draw disjoint sets of puzzles; for the same arguments always the same ones.

    `kind`, `heads` and `animals` are as for `make_puzzle`; `beyond_heads`, for the last part, must not
    overlap `heads`. A ValueError refuses more puzzles than there are.
    """
    check_counts(least=0, train=train, validation=validation, test=test, beyond=beyond)
    check_whole("seed", seed)
    low, high = _range(kind, heads)
    outside: list[Puzzle] = []
    if beyond:
        beyond_low, beyond_high = _range(kind, beyond_heads, "beyond_heads")
        if beyond_low <= high and low <= beyond_high:
            raise ValueError(f"beyond_heads must not overlap heads = {heads}; got {beyond_heads}")
        outside = _distinct(beyond, random.Random(f"{seed} beyond"), kind, beyond_heads, animals)
    inside = _distinct(train + validation + test, random.Random(f"{seed} within"), kind, heads, animals)
    return PuzzleSplits(
        tuple(inside[:train]), tuple(inside[train : train + validation]), tuple(inside[train + validation :]),
        tuple(outside),
    )  # fmt: skip


def _distinct(
    size: int, rng: random.Random, kind: Kind, heads: tuple[int, int], animals: Sequence[str]
) -> list[Puzzle]:
    """Puzzles with different keys, in an order that says nothing of them."""
    found: dict[str, Puzzle] = {}
    misses = 0
    # Whether more exist is judged by 40 · n draws in a row of the n known ones. One left out with a tenth of
    # the average chance would have been drawn with probability 1 − e^−4; most are left out together.
    while len(found) < size and misses < 40 * len(found) + 400:
        puzzle = make_puzzle(kind, rng=rng, heads=heads, animals=animals)
        misses = misses + 1 if puzzle.key in found else 0
        found.setdefault(puzzle.key, puzzle)
    if len(found) < size:
        raise ValueError(
            f"there are no {size} different puzzles of kind {kind!r} with {heads[0]} to {heads[1]} heads, "
            f"only {len(found)} were found: ask for fewer, widen heads or allow more animals"
        )
    puzzles = list(found.values())
    rng.shuffle(puzzles)  # with unequal chances the likely ones come first
    return puzzles
