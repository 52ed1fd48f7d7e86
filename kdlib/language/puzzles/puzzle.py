"""Cages of two kinds of animals, and puzzles made of them.

A puzzle is one cage, or a chain of cages in which an animal of one gives the number of heads in the next.
"""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

__all__ = ["ANIMALS", "Animal", "Cage", "Kind", "Puzzle", "check_names", "count_of"]

Kind = Literal["pair", "chain"]


@dataclass(frozen=True)
class Animal:
    """What lives in a cage.

    Attributes:
        name: English plural in lower case, by which it is known everywhere.
        singular: English singular.
        chinese: Chinese name.
        legs: feet of one animal.
    """

    name: str
    singular: str
    chinese: str
    legs: int


# Chickens and cranes, rabbits and dogs, ants and beetles have as many legs as each other: such a pair cannot
# be told apart by counting, and `solve` must say so.
ANIMALS: dict[str, Animal] = {
    animal.name: animal
    for animal in (
        Animal("snakes", "snake", "蛇", 0),
        Animal("chickens", "chicken", "鸡", 2),
        Animal("cranes", "crane", "鹤", 2),
        Animal("rabbits", "rabbit", "兔", 4),
        Animal("dogs", "dog", "狗", 4),
        Animal("ants", "ant", "蚂蚁", 6),
        Animal("beetles", "beetle", "甲虫", 6),
        Animal("spiders", "spider", "蜘蛛", 8),
        Animal("crabs", "crab", "螃蟹", 10),
    )
}


def count_of(number: int | Fraction, name: str) -> str:
    """A number of animals in English: "1 chicken", "6 chickens"."""
    return f"{number} {ANIMALS[name].singular if number == 1 else name}"


def _check_whole(argument: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{argument} must be a whole number of at least {least}; got {value!r}")


def check_names(argument: str, names: tuple[str, ...]) -> None:
    """Refuse names that are not in `ANIMALS`, and names given twice."""
    for name in names:
        if name not in ANIMALS:
            raise ValueError(f"{argument} must be names from {', '.join(ANIMALS)}; got {name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"{argument} must be different from each other; got {names}")


@dataclass(frozen=True)
class Cage:
    """Animals of two kinds that are counted together.

    Attributes:
        animals: two names from `ANIMALS`.
        heads: how many animals there are; None: as many as the cage before holds of its LAST animal, and
            `more` besides.
        feet: of all animals together.
        more: at least 0, and 0 unless heads is None: how many heads there are beyond those animals.
    """

    animals: tuple[str, str]
    heads: int | None
    feet: int
    more: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "animals", tuple(self.animals))  # so that a list is hashable too
        check_names("animals", self.animals)
        if len(self.animals) != 2:
            raise ValueError(f"animals must be 2 names; got {len(self.animals)}: {self.animals}")
        if self.heads is not None:
            _check_whole("heads", self.heads, 1)
        _check_whole("feet", self.feet, 0)
        _check_whole("more", self.more, 0)
        if self.more and self.heads is not None:
            raise ValueError(
                f"more is for a cage that takes its heads from the one before; got more = {self.more} and "
                f"heads = {self.heads}: leave more out, or give heads = None"
            )

    @property
    def legs(self) -> tuple[int, int]:
        """Feet of one animal, in the order of `animals`."""
        return tuple(ANIMALS[name].legs for name in self.animals)

    def by_legs(self) -> tuple[str, str]:
        """The animals, the one with fewer legs first; of equal ones, the one named first."""
        return tuple(sorted(self.animals, key=lambda name: ANIMALS[name].legs))


@dataclass(frozen=True)
class Puzzle:
    """One cage, or a chain of cages; asked for is what the last cage holds.

    In a chain, every cage but the first has `heads=None`, and may have `more`. Every cage but the last has
    animals of different legs, so that its own heads and feet settle what it holds.
    """

    cages: tuple[Cage, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "cages", tuple(self.cages))
        if not self.cages or self.cages[0].heads is None:
            raise ValueError("cages must begin with one whose heads are given")
        for before, cage in pairwise(self.cages):
            if cage.heads is not None:
                raise ValueError(
                    "heads must be None in every cage after the first, which takes them from the one before; "
                    f"got {cage.heads}"
                )
            link = before.animals[-1]
            if link in cage.animals:
                raise ValueError(f"{link!r} gives the heads of the next cage and cannot be in that cage too")
            if before.legs[0] == before.legs[1]:
                raise ValueError(
                    f"{before.animals[0]!r} and {link!r} have as many legs as each other and cannot be told "
                    "apart by counting; a cage before the last must hold animals of different legs"
                )

    @property
    def kind(self) -> Kind:
        """One cage is a "pair" of animals, several are a "chain"."""
        return "chain" if len(self.cages) > 1 else "pair"

    @property
    def key(self) -> str:
        """The same for the same problem, in whatever order or language it is told: what splits go by."""
        parts = []
        for position, cage in enumerate(self.cages):
            part = "+".join(sorted(cage.animals, key=lambda name: (ANIMALS[name].legs, name)))
            if position + 1 < len(self.cages):
                part += f">{cage.animals[-1]}"
            if cage.heads is not None:
                part += f":{cage.heads}"
            elif cage.more:
                part += f":+{cage.more}"
            parts.append(f"{part}:{cage.feet}")
        return "|".join(parts)
