"""Puzzles of heads and feet, drawn at random: always with exactly one answer, told apart by a key.

"A cage holds chickens and rabbits: 10 heads and 28 feet. How many of each?" is the first of a family. Other
animals have other numbers of legs, three animals need a third fact, and in a chain the answer of one cage
gives the number of heads in the next. With counts a and b, legs l < m, heads H and feet F,

    a + b = H,   l·a + m·b = F   ⟹   b = (F − l·H) / (m − l)

so a puzzle has an answer if b is a whole number between 0 and H. The puzzle is about 1,500 years old: Sunzi
Suanjing, chapter 3, problem 31 (35 heads, 94 feet).

`solve` comes from `kdlib.language.puzzles.solve`; `kdlib.language.puzzles.text` puts puzzles and solutions in words.
"""

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kdlib.language.puzzles.puzzle import ANIMALS, Animal, Cage, Fact, Kind, Puzzle, check_names
from kdlib.language.puzzles.solve import Solution, solve

__all__ = [
    "ANIMALS", "Animal", "Cage", "Fact", "Puzzle", "PuzzleSplits", "Solution",
    "make_puzzle", "puzzle_splits", "solve",
]  # fmt: skip

MULTIPLES = (1, 2, 3, 4)  # of the third fact: as many, twice as many, …


def make_puzzle(
    kind: Kind = "pair",
    *,
    rng: random.Random,
    heads: tuple[int, int] = (2, 50),
    animals: Sequence[str] | None = None,
    cages: int = 2,
    more: bool = False,
    shuffle: bool = False,
) -> Puzzle:
    """Draw a puzzle that has exactly one answer, with at least one animal of every kind it names.

    All counts that fit `heads` are equally likely, so that large numbers are drawn more often than small
    ones (but see `more`). The fact about three animals is, with equal chances, a difference or a multiple (1
    to 4 times); all that fit are equally likely among their like.

    Args:
        kind: "pair", "three" or "chain".
        rng: source of randomness; the same state gives the same puzzle.
        heads: least and largest number of heads, both included; in a chain, of the first cage. The least is
            raised to what `kind` needs: 2, 3, or in a chain cages + 1.
        animals: names to choose from; all of `ANIMALS` when None. Animals of one cage differ in legs.
        cages: length of a chain, at least 2.
        more: in a chain, whether every cage but the first has at least one head more than it takes from the
            cage before, so that numbers need not get smaller from cage to cage. Then `heads` bounds every
            cage; cage by cage, all numbers of heads that may follow the cage before are equally likely, and
            with each of them all counts.
        shuffle: whether animals are named in any order; otherwise those with fewer legs come first. In a
            chain the next cage asks for the animal named last.

    Raises:
        ValueError: for a kind, range, length or name that is none, or if no such puzzle exists.
    """
    low, high = _check_request(kind, heads, cages)
    names = _check_animals(kind, animals)
    if kind == "three":
        return Puzzle((_draw_three(rng, low, high, names, shuffle),))
    length = cages if kind == "chain" else 1
    rising = more and kind == "chain"
    rows = _rising(rng, low, high, length) if rising else list(pairwise(_falling(rng, low, high, length)))
    drawn: list[Cage] = []
    before = 0
    for position, (total, last) in enumerate(rows):
        chosen = _choose(rng, names, 2, drawn[-1].animals[-1:] if drawn else ())
        if shuffle:
            rng.shuffle(chosen)
        first_legs, last_legs = (ANIMALS[name].legs for name in chosen)
        feet = first_legs * (total - last) + last_legs * last
        if position:
            drawn.append(Cage(tuple(chosen), None, feet, more=total - before))
        else:
            drawn.append(Cage(tuple(chosen), total, feet))
        before = last
    return Puzzle(tuple(drawn))


def _check_request(kind: str, heads: tuple[int, int], cages: int, argument: str = "heads") -> tuple[int, int]:
    if kind not in ("pair", "three", "chain"):
        raise ValueError(f'kind must be "pair", "three" or "chain"; got {kind!r}')
    if kind == "chain" and (not isinstance(cages, int) or cages < 2):
        raise ValueError(f"cages, the length of a chain, must be at least 2; got {cages!r}")
    try:
        low, high = heads
    except (TypeError, ValueError):
        low = high = None
    if not all(isinstance(bound, int) for bound in (low, high)) or low > high:
        raise ValueError(f"{argument} must be (least, largest), two whole numbers; got {heads!r}")
    least = {"pair": 2, "three": 3, "chain": cages + 1}[kind]
    if high < least:
        raise ValueError(
            f"{argument} must reach {least} for kind {kind!r}, for each animal to be there; got {heads!r}"
        )
    return max(low, least), high


def _check_animals(kind: Kind, animals: Sequence[str] | None) -> list[str]:
    names = list(ANIMALS) if animals is None else list(animals)
    check_names("animals", names)
    size = 3 if kind == "three" else 2
    if not _differ(names, size):
        raise ValueError(f"animals must have at least {size} different numbers of legs; got {names}")
    if kind == "chain":
        for name in names:
            if not _differ([other for other in names if other != name], 2):
                raise ValueError(
                    f"animals of a chain must hold two of different legs besides {name!r}, which cannot be "
                    f"in the cage whose heads it gives; got {names}"
                )
    return names


def _differ(names: Sequence[str], size: int) -> bool:
    return len({ANIMALS[name].legs for name in names}) >= size


def _falling(rng: random.Random, low: int, high: int, length: int) -> list[int]:
    """length + 1 numbers ≥ 1 that fall, the first within low … high, every such row equally likely."""
    while True:  # rejection: there are C(first − 1, length) rows that begin with `first`
        first = rng.randint(low, high)
        if rng.randrange(math.comb(high - 1, length)) < math.comb(first - 1, length):
            break
    others: set[int] = set()  # random.sample refuses ranges beyond 2^63
    while len(others) < length:
        others.add(rng.randrange(1, first))
    return [first, *sorted(others, reverse=True)]


def _rising(rng: random.Random, low: int, high: int, length: int) -> list[tuple[int, int]]:
    """For each cage its heads within low … high, and how many of them are of the last kind.

    The last kind of a cage is fewer than the heads of the next.
    """
    rows, least = [], low
    for _ in range(length):
        total = rng.randint(least, high)
        last = rng.randint(1, total - 1)
        rows.append((total, last))
        least = max(low, last + 1)  # ≤ total ≤ high
    return rows


def _choose(rng: random.Random, names: list[str], size: int, barred: Collection[str] = ()) -> list[str]:
    """Animals of different legs, fewest first, none that is barred."""
    free = [name for name in names if name not in barred]
    while True:
        chosen = rng.sample(free, size)
        if _differ(chosen, size):
            return sorted(chosen, key=lambda name: ANIMALS[name].legs)


def _draw_three(rng: random.Random, low: int, high: int, names: list[str], shuffle: bool) -> Cage:
    multiple = rng.random() < 0.5
    while True:
        chosen = _choose(rng, names, 3)
        first, second, third = rng.sample(chosen, 3)
        if multiple:
            fact = Fact(first, second, times=rng.choice(MULTIPLES))
            heads, both = _falling(rng, low, high, 1)
            of_second, rest = divmod(both, 1 + fact.times)
            if rest:
                continue
            of_first = fact.times * of_second
        else:
            heads, both, part = _falling(rng, low, high, 2)
            of_first, of_second = max(part, both - part), min(part, both - part)
            if of_first == of_second:
                continue
            fact = Fact(first, second, more=of_first - of_second)
        counts = {first: of_first, second: of_second, third: heads - both}
        if shuffle:
            rng.shuffle(chosen)
        feet = sum(ANIMALS[name].legs * count for name, count in counts.items())
        cage = Cage(tuple(chosen), heads, feet, fact)
        if solve(Puzzle((cage,))).status == "unique":  # a fact may repeat what heads and feet say
            return cage


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
    more: bool = False,
    shuffle: bool = False,
) -> PuzzleSplits:
    """Draw disjoint sets of puzzles; for the same arguments always the same ones.

    Args:
        train, validation, test, beyond: how many puzzles of each.
        heads, beyond_heads: least and largest number of heads, both included (in a chain, of the first
            cage; with `more`, of every cage), of the first three and of the last. They must not overlap.
        seed: of the draw.
        kind, animals, cages, more, shuffle: as for `make_puzzle`.

    Raises:
        ValueError: if there are not as many different puzzles, or for arguments that `make_puzzle` refuses.
    """
    sizes = {"train": train, "validation": validation, "test": test, "beyond": beyond}
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError(f"{name} must be a whole number of at least 0; got {size!r}")
    low, high = _check_request(kind, heads, cages)
    options = {"animals": animals, "cages": cages, "more": more, "shuffle": shuffle}
    outside: list[Puzzle] = []
    if beyond:
        beyond_low, beyond_high = _check_request(kind, beyond_heads, cages, "beyond_heads")
        if beyond_low <= high and low <= beyond_high:
            raise ValueError(f"beyond_heads must not overlap heads = {heads}; got {beyond_heads}")
        outside = _distinct(kind, beyond, random.Random(f"{seed} beyond"), beyond_heads, options)
    inside = _distinct(kind, train + validation + test, random.Random(f"{seed} within"), heads, options)
    return PuzzleSplits(
        tuple(inside[:train]), tuple(inside[train : train + validation]), tuple(inside[train + validation :]),
        tuple(outside),
    )  # fmt: skip


def _distinct(
    kind: Kind, size: int, rng: random.Random, heads: tuple[int, int], options: dict
) -> list[Puzzle]:
    """Puzzles with different keys, in an order that says nothing of them."""
    found: dict[str, Puzzle] = {}
    misses = 0
    # Whether more exist is judged by 40 · n draws in a row of the n known ones. One left out with a tenth of
    # the average chance would have been drawn with probability 1 − e^−4; most are left out together.
    while len(found) < size and misses < 40 * len(found) + 400:
        puzzle = make_puzzle(kind, rng=rng, heads=heads, **options)
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
