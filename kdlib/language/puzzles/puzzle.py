"""Cages of two kinds of animals, and puzzles made of them.

A puzzle is one cage, or a chain of cages in which an animal of one gives the number of heads in the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal, NamedTuple

__all__ = ["ANIMALS", "Animal", "Cage", "Kind", "Puzzle", "check_names"]

Kind = Literal["pair", "chain"]


class Animal(NamedTuple):
    name: str  # by which it is known everywhere: the English plural
    singular: str
    chinese: str
    legs: int

    def counted(self, number: int | Fraction) -> str:
        """In English: "1 chicken", "6 chickens"."""
        return f"{number} {self.singular if number == 1 else self.name}"


# Chickens and cranes, rabbits and dogs, ants and beetles have as many legs as each other: such a pair cannot
# be told apart by counting, and `solve` must say so.
ANIMALS: dict[str, Animal] = {
    name: Animal(name, name[:-1], chinese, legs)
    for name, chinese, legs in (
        ("snakes", "蛇", 0), ("chickens", "鸡", 2), ("cranes", "鹤", 2), ("rabbits", "兔", 4),
        ("dogs", "狗", 4), ("ants", "蚂蚁", 6), ("beetles", "甲虫", 6), ("spiders", "蜘蛛", 8),
        ("crabs", "螃蟹", 10),
    )
}  # fmt: skip


def check_names(argument: str, names: Sequence[str]) -> None:
    """Refuse names that are not in `ANIMALS`, and names given twice."""
    for name in names:
        if name not in ANIMALS:
            raise ValueError(f"{argument} must be names from {', '.join(ANIMALS)}; got {name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"{argument} must be different from each other; got {names}")


@dataclass(frozen=True)
class Cage:
    """Animals of two kinds that are counted together."""

    animals: tuple[str, str]  # names from `ANIMALS`
    heads: int | None  # None: as many as the cage before holds of its LAST animal, and `more` besides
    feet: int  # of all animals together
    more: int = 0  # heads beyond those animals; 0 unless heads is None

    def __post_init__(self) -> None:
        check_names("animals", self.animals)
        if len(self.animals) != 2:
            raise ValueError(f"animals must be 2 names; got {len(self.animals)}: {self.animals}")
        heads = 1 if self.heads is None else self.heads
        for argument, value, least in (("heads", heads, 1), ("feet", self.feet, 0), ("more", self.more, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{argument} must be a whole number of at least {least}; got {value!r}")
        if self.more and self.heads is not None:
            raise ValueError(f"more = {self.more} is for a cage with heads = None; got heads = {self.heads}")

    def by_legs(self) -> list[Animal]:
        """The one with fewer legs first; of equal ones, the one named first."""
        return sorted((ANIMALS[name] for name in self.animals), key=lambda animal: animal.legs)


@dataclass(frozen=True)
class Puzzle:
    """One cage, or a chain of cages; asked for is what the last cage holds.

    In a chain, every cage but the first has `heads=None`, and may have `more`. Every cage but the last has
    animals of different legs, so that its own heads and feet settle what it holds.
    """

    cages: tuple[Cage, ...]

    def __post_init__(self) -> None:
        if not self.cages or self.cages[0].heads is None:
            raise ValueError("cages must begin with one whose heads are given")
        for before, cage in pairwise(self.cages):
            if cage.heads is not None:
                raise ValueError(f"heads must be None in every cage after the first; got {cage.heads}")
            link = before.animals[-1]
            if link in cage.animals:
                raise ValueError(f"{link!r} gives the heads of the next cage and cannot be in that cage too")
            few, many = before.by_legs()
            if few.legs == many.legs:
                raise ValueError(f"cages before the last need different legs; got {before.animals}")

    @property
    def kind(self) -> Kind:
        """One cage is a "pair" of animals, several are a "chain"."""
        return "chain" if len(self.cages) > 1 else "pair"

    @property
    def key(self) -> str:
        """The same for the same problem, in whatever order or language it is told: what splits go by."""
        parts = []
        for cage in self.cages:
            names = "+".join(sorted(cage.animals, key=lambda name: (ANIMALS[name].legs, name)))
            link = "" if cage is self.cages[-1] else f">{cage.animals[-1]}"
            more = f":+{cage.more}" if cage.more else ""
            heads = more if cage.heads is None else f":{cage.heads}"
            parts.append(f"{names}{link}{heads}:{cage.feet}")
        return "|".join(parts)
