"""Cages of animals, and puzzles made of them: what is asked, whether it can be answered or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

__all__ = ["ANIMALS", "Animal", "Cage", "Fact", "Kind", "Puzzle", "check_names", "count_of", "listing"]

Kind = Literal["pair", "three", "chain"]


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


def listing(parts: Sequence[str]) -> str:
    """"a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _check_whole(argument: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{argument} must be a whole number of at least {least}; got {value!r}")


def check_names(argument: str, names: Sequence[str]) -> None:
    """Refuse names that are not in `ANIMALS`, and names given twice."""
    for name in names:
        if name not in ANIMALS:
            raise ValueError(f"{argument} must be names from {', '.join(ANIMALS)}; got {name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"{argument} must be different from each other; got {tuple(names)}")


@dataclass(frozen=True)
class Fact:
    """The third fact of a cage of three: first = times × second + more.

    Attributes:
        first, second: names of two animals of the cage.
        times: at least 1; 2 is "twice as many".
        more: at least 0, and 0 unless times is 1; "3 more ants than chickens".
    """

    first: str
    second: str
    times: int = 1
    more: int = 0

    def __post_init__(self) -> None:
        _check_whole("times", self.times, 1)
        _check_whole("more", self.more, 0)
        if self.times > 1 and self.more:
            raise ValueError(
                f"a fact is a multiple or a difference, not both; got times = {self.times} and "
                f"more = {self.more}: leave one of them out"
            )
        if self.first == self.second:
            raise ValueError(f"a fact compares two different animals; got {self.first!r} twice")


@dataclass(frozen=True)
class Cage:
    """Animals of two or three kinds that are counted together.

    Attributes:
        animals: names from `ANIMALS`.
        heads: how many animals there are; None: as many as the cage before holds of its LAST animal, and
            `more` besides.
        feet: of all animals together.
        fact: what is known besides, of a cage of three.
        more: at least 0, and 0 unless heads is None: how many heads there are beyond those animals.
    """

    animals: tuple[str, ...]
    heads: int | None
    feet: int
    fact: Fact | None = None
    more: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "animals", tuple(self.animals))  # so that a list is hashable too
        check_names("animals", self.animals)
        if len(self.animals) not in (2, 3):
            raise ValueError(f"animals must be 2 or 3 names; got {len(self.animals)}: {self.animals}")
        if self.heads is not None:
            _check_whole("heads", self.heads, 1)
        _check_whole("feet", self.feet, 0)
        _check_whole("more", self.more, 0)
        if self.more and self.heads is not None:
            raise ValueError(
                f"more is for a cage that takes its heads from the one before; got more = {self.more} and "
                f"heads = {self.heads}: leave more out, or give heads = None"
            )
        if self.fact is not None:
            if len(self.animals) != 3:
                raise ValueError("fact is for a cage of three animals; a cage of two is settled without it")
            for name in (self.fact.first, self.fact.second):
                if name not in self.animals:
                    raise ValueError(f"fact must be about animals of the cage, {self.animals}; got {name!r}")

    @property
    def legs(self) -> tuple[int, ...]:
        """Feet of one animal, in the order of `animals`."""
        return tuple(ANIMALS[name].legs for name in self.animals)

    def third(self) -> str:
        """The animal of which the fact says nothing."""
        return next(name for name in self.animals if name not in (self.fact.first, self.fact.second))

    def excess(self) -> int:
        """Feet that one `second` with `times` of `first` have more than as many heads of the third animal.

        0 means that the fact says nothing new: exchanging the two leaves heads and feet as they are.
        """
        legs = dict(zip(self.animals, self.legs, strict=True))
        group = legs[self.fact.second] + self.fact.times * legs[self.fact.first]
        return group - legs[self.third()] * (1 + self.fact.times)


@dataclass(frozen=True)
class Puzzle:
    """One cage, or a chain of cages of two; asked for is what the last cage holds.

    In a chain, every cage but the first has `heads=None`, and may have `more`.
    """

    cages: tuple[Cage, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "cages", tuple(self.cages))
        if not self.cages or self.cages[0].heads is None:
            raise ValueError("cages must begin with one whose heads are given")
        for before, cage in zip(self.cages, self.cages[1:], strict=False):
            if cage.heads is not None:
                raise ValueError(
                    "heads must be None in every cage after the first, which takes them from the one before; "
                    f"got {cage.heads}"
                )
            if len(before.animals) != 2 or len(cage.animals) != 2:
                raise ValueError("a chain is made of cages of two animals; got one of three")
            if before.animals[-1] in cage.animals:
                raise ValueError(
                    f"{before.animals[-1]!r} gives the heads of the next cage and cannot be in that cage too"
                )

    @property
    def kind(self) -> Kind:
        """"pair", "three" or "chain"."""
        if len(self.cages) > 1:
            return "chain"
        return "pair" if len(self.cages[0].animals) == 2 else "three"

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
            part += f":{cage.feet}"
            if (fact := cage.fact) is not None:
                names = (fact.first, fact.second)
                if fact.times == 1 and not fact.more:  # as many ants as chickens, as many chickens as ants
                    names = tuple(sorted(names))
                part += f":{names[0]}={fact.times}*{names[1]}+{fact.more}"
            parts.append(part)
        return "|".join(parts)
