"""Solutions compared with a search through all counts."""

import random
import re
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdlib.language.puzzles.puzzle import ANIMALS, Cage, Puzzle
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
            for first in range(heads + 1):
                held = dict(zip(cage.animals, (first, heads - first), strict=True))
                if sum(ANIMALS[name].legs * count for name, count in held.items()) == cage.feet:
                    extended.append((*before, held))
        found = extended
    return found


@st.composite
def chains(draw):
    cages, names = [], list(ANIMALS)
    length = draw(st.integers(2, 4))
    heads = draw(st.integers(1, 6))
    for position in range(length):
        link = cages[-1].animals[-1] if cages else None
        pairs = [(a, b) for a in names for b in names if a != b and link not in (a, b)]
        if position + 1 < length:
            pairs = [pair for pair in pairs if ANIMALS[pair[0]].legs != ANIMALS[pair[1]].legs]
        animals = draw(st.sampled_from(pairs))
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


@settings(max_examples=100, deadline=None)
@given(chains())
# No head is left to share between animals of equal legs.
@example(Puzzle((Cage(("chickens", "rabbits"), 3, 6), Cage(("ants", "beetles"), None, 0))))
# Heads besides, of a cage that passes on none.
@example(Puzzle((Cage(("chickens", "rabbits"), 3, 6), Cage(("ants", "dogs"), None, 10, more=2))))
def test_chains_as_by_search(puzzle):
    check(puzzle)


def test_all_small_pairs():
    """Every pair of animals with up to 4 heads, whatever the feet."""
    for animals in product(ANIMALS, repeat=2):
        if animals[0] != animals[1]:
            for heads, feet in product(range(1, 5), range(0, 43)):
                check(Puzzle((Cage(animals, heads, feet),)))


@pytest.mark.parametrize("digits", [5, 300])
def test_numbers_of_any_size(digits):
    rng = random.Random(digits)
    few, many = (rng.randrange(10**digits) for _ in range(2))
    pair = Puzzle((Cage(("spiders", "chickens"), few + many, 8 * few + 2 * many),))
    assert solve(pair).counts == ({"spiders": few, "chickens": many},)
    chain = Puzzle((*pair.cages, Cage(("ants", "snakes"), None, 6 * (many // 3))))
    assert solve(chain).counts[1] == {"ants": many // 3, "snakes": many - many // 3}
    chain = Puzzle((*pair.cages, Cage(("ants", "snakes"), None, 6 * few, more=few)))
    assert solve(chain).counts[1] == {"ants": few, "snakes": many}


@pytest.mark.parametrize(
    ("animals", "feet", "reason"),
    [
        (("chickens", "rabbits"), 27, "each animal has an even number of feet, but 27 is odd"),
        (
            ("chickens", "rabbits"), 18,
            "10 heads have at least 2 × 10 = 20 feet (all chickens), but there are 18",
        ),
        (
            ("chickens", "rabbits"), 42,
            "10 heads have at most 4 × 10 = 40 feet (all rabbits), but there are 42",
        ),
        (
            ("chickens", "spiders"), 24,
            "4 feet more than 10 chickens have would take 2/3 spiders, for each has 6 more",
        ),
        (
            ("chickens", "cranes"), 20,
            "chickens and cranes have 2 feet each: "
            "there may be 0 chickens and 10 cranes, or 1 chicken and 9 cranes",
        ),
    ],
)  # fmt: skip
def test_reasons(animals, feet, reason):
    solution = solve(Puzzle((Cage(animals, 10, feet),)))
    status = "ambiguous" if ", or " in reason else "impossible"
    assert (solution.status, solution.counts, solution.reason) == (status, None, reason)


def test_a_reason_names_the_cage_of_a_chain():
    first = Cage(("chickens", "rabbits"), 10, 28)
    assert solve(Puzzle((first, Cage(("ants", "spiders"), None, 40, more=3)))).reason == (
        "cage 2: 7 heads have at least 6 × 7 = 42 feet (all ants), but there are 40"
    )
