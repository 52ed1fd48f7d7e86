"""Solutions compared with a search through all counts."""

import random
import re
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdlib.language.puzzles.puzzle import ANIMALS, Cage, Fact, Puzzle
from kdlib.language.puzzles.solve import solve


def all_solutions(puzzle: Puzzle) -> list[tuple[dict[str, int], ...]]:
    """Every set of counts that fits what is said, found by trying."""
    found = [()]
    for cage in puzzle.cages:
        extended = []
        for before in found:
            heads = cage.heads
            if heads is None:
                heads = list(before[-1].values())[-1] + cage.more
            for counts in product(range(heads + 1), repeat=len(cage.animals)):
                held = dict(zip(cage.animals, counts, strict=True))
                feet = sum(ANIMALS[name].legs * count for name, count in held.items())
                fact = cage.fact
                if (
                    sum(counts) == heads
                    and feet == cage.feet
                    and (fact is None or held[fact.first] == fact.times * held[fact.second] + fact.more)
                ):
                    extended.append((*before, held))
        found = extended
    return found


@st.composite
def facts(draw, animals):
    first, second = draw(st.permutations(animals))[:2]
    times = draw(st.integers(1, 4))
    return Fact(first, second, times=times, more=draw(st.integers(0, 4)) if times == 1 else 0)


@st.composite
def single_cages(draw):
    size = draw(st.integers(2, 3))
    animals = tuple(draw(st.permutations(list(ANIMALS)))[:size])
    counts = draw(st.lists(st.integers(0, 5), min_size=size, max_size=size).filter(any))
    feet = sum(ANIMALS[name].legs * count for name, count in zip(animals, counts, strict=True))
    feet = max(0, feet + draw(st.sampled_from([0, 0, 0, 0, 1, 2, -2, 4, -6, 20, -20])))
    fact = draw(st.none() | facts(animals)) if size == 3 else None
    return Puzzle((Cage(animals, sum(counts), feet, fact),))


@st.composite
def chains(draw):
    cages, names = [], list(ANIMALS)
    heads = draw(st.integers(1, 6))
    for position in range(draw(st.integers(2, 4))):
        link = cages[-1].animals[-1] if cages else None
        # Animals of equal legs often: they leave a choice open that later cages may settle.
        pairs = [(a, b) for a in names for b in names if a != b and link not in (a, b)]
        alike = [pair for pair in pairs if ANIMALS[pair[0]].legs == ANIMALS[pair[1]].legs]
        animals = draw(st.sampled_from(alike if draw(st.integers(0, 2)) == 0 else pairs))
        more = draw(st.integers(0, 2)) if position else 0
        heads += more
        last = draw(st.integers(0, heads))
        feet = ANIMALS[animals[0]].legs * (heads - last) + ANIMALS[animals[1]].legs * last
        feet = max(0, feet + draw(st.sampled_from([0] * 8 + [1, 2, -2])))
        cages.append(Cage(animals, None if position else heads, feet, more=more))
        heads = last
    return Puzzle(tuple(cages))


def check(puzzle):
    found, solution = all_solutions(puzzle), solve(puzzle)
    assert solution.status == ("impossible" if not found else "unique" if len(found) == 1 else "ambiguous")
    if len(found) == 1:
        assert solution.counts == found[0]
        assert solution.reason == ""
        return
    assert solution.counts is None
    assert len(solution.reason) > 10
    if found:
        # Both sets of counts that the reason gives are solutions, of the cage that it names.
        number = int(match[1]) if (match := re.match(r"cage (\d)", solution.reason)) else 1
        for example_text in solution.reason.split("there may be ")[1].split(", or "):
            counts = [int(count) for count in re.findall(r"\d+", example_text)]
            assert counts in [list(row[number - 1].values()) for row in found]


@settings(max_examples=120, deadline=None)
@given(single_cages())
@example(Puzzle((Cage(("chickens", "cranes"), 3, 6),)))
@example(Puzzle((Cage(("chickens", "rabbits", "ants"), 6, 24, Fact("ants", "chickens")),)))
@example(Puzzle((Cage(("chickens", "rabbits", "ants"), 4, 26, Fact("ants", "chickens", more=4)),)))
@example(Puzzle((Cage(("chickens", "rabbits", "ants"), 4, 24, Fact("ants", "chickens", more=4)),)))
@example(Puzzle((Cage(("chickens", "rabbits", "ants"), 2, 12, Fact("ants", "chickens", more=4)),)))
@example(Puzzle((Cage(("snakes", "spiders", "crabs"), 9, 24),)))
def test_one_cage_as_by_search(puzzle):
    check(puzzle)


@settings(max_examples=150, deadline=None)
@given(chains())
# The first cage is settled only by the second.
@example(Puzzle((Cage(("chickens", "cranes"), 3, 6), Cage(("rabbits", "ants"), None, 4))))
# The first stays open though the last is settled: there are snakes enough for everything.
@example(
    Puzzle(
        (
            Cage(("chickens", "cranes"), 9, 18),
            Cage(("snakes", "rabbits"), None, 12),
            Cage(("ants", "crabs"), None, 22),
        )
    )
)
# The first and the third stay open, each by itself.
@example(
    Puzzle(
        (
            Cage(("chickens", "cranes"), 3, 6),
            Cage(("snakes", "chickens"), None, 4),
            Cage(("rabbits", "dogs"), None, 8),
        )
    )
)
# As before, but the third would need 3 heads where there are 2.
@example(
    Puzzle(
        (
            Cage(("chickens", "cranes"), 3, 6),
            Cage(("snakes", "chickens"), None, 4),
            Cage(("rabbits", "dogs"), None, 12),
        )
    )
)
# The feet would do for 4 cranes; there are 3 at most, and only an even number divides.
@example(Puzzle((Cage(("chickens", "cranes"), 3, 6), Cage(("ants", "crabs"), None, 24))))
@example(Puzzle((Cage(("chickens", "cranes"), 9, 18), Cage(("rabbits", "dogs"), None, 12))))
@example(Puzzle((Cage(("chickens", "cranes"), 9, 18), Cage(("rabbits", "dogs"), None, 13))))
@example(Puzzle((Cage(("chickens", "cranes"), 2, 4), Cage(("rabbits", "dogs"), None, 12))))
# Heads besides: 8 feet are 2 heads and so 1 crane, 4 feet would be −1.
@example(Puzzle((Cage(("chickens", "cranes"), 3, 6), Cage(("rabbits", "ants"), None, 8, more=1))))
@example(Puzzle((Cage(("chickens", "cranes"), 3, 6), Cage(("rabbits", "dogs"), None, 8, more=1))))
@example(Puzzle((Cage(("chickens", "cranes"), 3, 6), Cage(("rabbits", "dogs"), None, 4, more=2))))
# And those of a settled cage.
@example(Puzzle((Cage(("chickens", "rabbits"), 3, 6), Cage(("ants", "dogs"), None, 10, more=2))))
def test_chains_as_by_search(puzzle):
    check(puzzle)


def test_all_small_chains_with_heads_besides():
    """Settled by the first cage, by the second alone, or not at all, whatever the feet of the second."""
    seen = set()
    for first in (Cage(("chickens", "rabbits"), 3, 8), Cage(("chickens", "cranes"), 3, 6)):
        for animals in (("ants", "spiders"), ("spiders", "ants"), ("snakes", "ants"), ("ants", "beetles")):
            for more, feet in product(range(4), range(0, 50, 2)):
                puzzle = Puzzle((first, Cage(animals, None, feet, more=more)))
                check(puzzle)
                seen.add((more, solve(puzzle).status))
    assert len(seen) == 4 * 3


def test_all_small_pairs():
    """Every pair of animals with up to 4 heads, whatever the feet."""
    for animals in product(ANIMALS, repeat=2):
        if animals[0] != animals[1]:
            for heads, feet in product(range(1, 5), range(0, 43)):
                check(Puzzle((Cage(animals, heads, feet),)))


@pytest.mark.parametrize("digits", [5, 30, 300])
def test_numbers_of_any_size(digits):
    rng = random.Random(digits)
    size = 10**digits
    for _ in range(50):
        few, many, other = (rng.randrange(size) for _ in range(3))
        pair = Puzzle((Cage(("spiders", "chickens"), few + many, 8 * few + 2 * many),))
        assert solve(pair).counts == ({"spiders": few, "chickens": many},)
        chain = Puzzle((*pair.cages, Cage(("ants", "snakes"), None, 6 * (many // 3))))
        assert solve(chain).counts[1] == {"ants": many // 3, "snakes": many - many // 3}
        chain = Puzzle((*pair.cages, Cage(("ants", "snakes"), None, 6 * few, more=few)))
        assert solve(chain).counts[1] == {"ants": few, "snakes": many}
        three = Cage(
            ("crabs", "rabbits", "ants"),
            4 * few + other,
            4 * other + 36 * few,
            Fact("crabs", "ants", times=3) if rng.random() < 0.5 else None,
        )
        # As many feet by other animals too, unless the fact is told.
        expected = "unique" if three.fact else "ambiguous"
        assert solve(Puzzle((three,))).status == expected
        if three.fact:
            assert solve(Puzzle((three,))).counts == ({"crabs": 3 * few, "rabbits": other, "ants": few},)


@pytest.mark.parametrize(
    ("cage", "status", "reason"),
    [
        (
            Cage(("chickens", "rabbits"), 10, 27),
            "impossible",
            "each animal has an even number of feet, but 27 is odd",
        ),
        (
            Cage(("chickens", "rabbits"), 10, 18),
            "impossible",
            "10 heads have at least 2 × 10 = 20 feet (all chickens), but there are 18",
        ),
        (
            Cage(("chickens", "rabbits"), 10, 42),
            "impossible",
            "10 heads have at most 4 × 10 = 40 feet (all rabbits), but there are 42",
        ),
        (
            Cage(("chickens", "spiders"), 10, 24),
            "impossible",
            "4 feet more than 10 chickens have would take 2/3 spiders, for each has 6 more",
        ),
        (
            Cage(("chickens", "cranes"), 3, 6),
            "ambiguous",
            "chickens and cranes have 2 feet each: "
            "there may be 0 chickens and 3 cranes, or 1 chicken and 2 cranes",
        ),
        (
            Cage(("chickens", "rabbits", "ants"), 10, 40, Fact("ants", "chickens")),
            "ambiguous",
            "the third fact adds nothing: ants with chickens have the feet of as many rabbits: there may be "
            "0 chickens, 10 rabbits and 0 ants, or 1 chicken, 8 rabbits and 1 ant",
        ),
        (
            Cage(("chickens", "rabbits", "ants"), 10, 40, Fact("rabbits", "chickens", times=2)),
            "impossible",
            "the three facts would make it 5/2 chickens",
        ),
    ],
)
def test_reasons(cage, status, reason):
    solution = solve(Puzzle((cage,)))
    assert (solution.status, solution.counts, solution.reason) == (status, None, reason)


def test_a_reason_names_the_cage_of_a_chain():
    puzzle = Puzzle((Cage(("chickens", "rabbits"), 10, 28), Cage(("ants", "spiders"), None, 22)))
    assert solve(puzzle).reason == (
        "cage 2: 4 heads have at least 6 × 4 = 24 feet (all ants), but there are 22"
    )
    puzzle = Puzzle((puzzle.cages[0], Cage(("ants", "spiders"), None, 40, more=3)))
    assert solve(puzzle).reason == (
        "cage 2: 7 heads have at least 6 × 7 = 42 feet (all ants), but there are 40"
    )
