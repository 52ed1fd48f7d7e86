"""Puzzles that are drawn, and the splits."""

import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from kdlib.language.puzzles.make import make_puzzle, puzzle_splits
from kdlib.language.puzzles.puzzle import ANIMALS, Cage, Puzzle
from kdlib.language.puzzles.solve import solve
from kdlib.language.puzzles.text import statement

FARM = ("chickens", "rabbits")
THREE = ("chickens", "rabbits", "ants")


def draws(kind, number=300, seed=0, **options):
    rng = random.Random(seed)
    return [make_puzzle(kind, rng=rng, **options) for _ in range(number)]


@pytest.mark.parametrize(("kind", "cages"), [("pair", 1), ("chain", 2)])
def test_always_one_answer_with_heads_animals_and_length_as_asked(kind, cages):
    names = ("chickens", "cranes", "spiders", "crabs", "ants")
    puzzles = draws(kind, heads=(7, 11), animals=names)
    for puzzle in puzzles:
        solution = solve(puzzle)
        assert solution.status == "unique"
        assert min(count for held in solution.counts for count in held.values()) >= 1
        assert puzzle.kind == kind and len(puzzle.cages) == cages
        legs = [[ANIMALS[name].legs for name in cage.animals] for cage in puzzle.cages]
        assert all(few < many for few, many in legs)
        assert all(before.animals[-1] not in cage.animals for before, cage in pairwise(puzzle.cages))
    assert {puzzle.cages[0].heads for puzzle in puzzles} == set(range(7, 12))
    assert {name for puzzle in puzzles for cage in puzzle.cages for name in cage.animals} == set(names)
    wide = draws(kind)
    assert all(2 <= puzzle.cages[0].heads <= 50 for puzzle in wide)
    assert {name for puzzle in wide for cage in puzzle.cages for name in cage.animals} == set(ANIMALS)


def test_the_first_draws_of_a_seed_are_those_of_the_committed_results():
    pairs, chains = draws("pair", 3), draws("chain", 2, heads=(2, 8), animals=THREE)
    assert [puzzle.key for puzzle in pairs] == [
        "spiders+crabs:28:242", "rabbits+ants:27:140", "cranes+dogs:34:106",
    ]  # fmt: skip
    assert [puzzle.key for puzzle in chains] == [
        "rabbits+ants>ants:6:32|chickens+rabbits:+1:16", "chickens+ants>ants:6:24|chickens+rabbits:+5:20",
    ]  # fmt: skip


def as_likely_as_said(drawn, chances):
    counted, size = Counter(drawn), len(drawn)
    assert set(counted) == set(chances) and sum(chances.values()) == pytest.approx(1)
    chi_square = sum((counted[row] - size * chance) ** 2 / (size * chance) for row, chance in chances.items())
    degrees = len(chances) - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5  # mean and standard deviation


def test_all_counts_of_a_cage_are_equally_likely():
    held = [solve(puzzle).counts[0] for puzzle in draws("pair", 4_000, heads=(3, 7), animals=FARM)]
    rows = [(heads, many) for heads in range(3, 8) for many in range(1, heads)]
    as_likely_as_said(
        [(sum(counts.values()), counts["rabbits"]) for counts in held], dict.fromkeys(rows, 1 / len(rows))
    )


@pytest.mark.parametrize(("low", "high"), [(2, 5), (4, 7)])
def test_chains_stay_within_bounds_and_are_as_likely_as_said(low, high):
    drawn, chances = [], {}
    for puzzle in draws("chain", 4_000, heads=(low, high), animals=THREE):
        first, second = (list(counts.values()) for counts in solve(puzzle).counts)
        drawn.append((sum(first), first[-1], sum(second), second[-1]))
        assert puzzle.cages[0].heads == sum(first) and puzzle.cages[1].heads is None
        assert puzzle.cages[1].more == sum(second) - first[-1] >= 1
    low = max(low, 3)
    for total in range(low, high + 1):
        for last in range(1, total):
            following = range(max(low, last + 1), high + 1)
            for heads in following:
                for share in range(1, heads):
                    chance = 1 / (high + 1 - low) / (total - 1) / len(following) / (heads - 1)
                    chances[total, last, heads, share] = chance
    as_likely_as_said(drawn, chances)


@pytest.mark.parametrize("kind", ["pair", "chain"])
def test_numbers_of_any_size_are_drawn_at_once(kind):
    (puzzle,) = draws(kind, 1, heads=(10**40, 10**41))
    solution = solve(puzzle)
    assert solution.status == "unique"
    assert all(10**40 <= sum(counts.values()) <= 10**41 for counts in solution.counts)


def test_the_seed_decides_and_beyond_is_independent_of_the_rest():
    sizes = {"train": 20, "validation": 5, "test": 5}
    first = puzzle_splits(**sizes, beyond=10, seed=1)
    assert first.train != puzzle_splits(**sizes, beyond=10, seed=2).train
    assert first.train == puzzle_splits(**sizes, seed=1).train
    # Another process has another hash seed.
    code = (
        "from kdlib.language.puzzles.make import puzzle_splits\n"
        "print(repr(puzzle_splits(train=20, validation=5, test=5, beyond=10, seed=1)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{first!r}\n"


@pytest.mark.parametrize("kind", ["pair", "chain"])
def test_splits_are_disjoint_by_problem(kind):
    # Few enough puzzles for the same ones to be drawn again and again.
    splits = puzzle_splits(
        kind, train=90, validation=30, test=40, beyond=60, heads=(3, 11), beyond_heads=(12, 15),
        animals=("chickens", "rabbits", "spiders"), seed=2,
    )  # fmt: skip
    parts = (splits.train, splits.validation, splits.test, splits.beyond)
    assert [len(part) for part in parts] == [90, 30, 40, 60]
    assert len({puzzle.key for part in parts for puzzle in part}) == 220
    assert len({statement(puzzle) for part in parts for puzzle in part}) == 220
    for part, low, high in zip(parts, (3, 3, 3, 12), (11, 11, 11, 15), strict=True):
        heads = {sum(counts.values()) for puzzle in part for counts in solve(puzzle).counts}
        assert heads <= set(range(low, high + 1)) and max(heads) == high
    assert str(splits) == "90 training, 30 validation and 40 test puzzles, 60 beyond their range"


def test_all_puzzles_there_are_and_no_more():
    keys = {
        Puzzle((Cage(FARM, heads, 2 * heads + 2 * many),)).key
        for heads in range(2, 21)
        for many in range(1, heads)
    }
    assert len(keys) == 190
    splits = puzzle_splits(train=180, validation=0, test=10, heads=(2, 20), animals=FARM, seed=4)
    assert {puzzle.key for puzzle in splits.train + splits.test} == keys
    # Large numbers, found first for they are likely, are not all in the first part.
    assert any(puzzle.cages[0].heads < 15 for puzzle in splits.test)
    with pytest.raises(ValueError, match="no 191 different puzzles.*only 190 were found"):
        puzzle_splits(train=190, validation=0, test=1, heads=(2, 20), animals=FARM)


def test_key_is_the_problem_not_the_wording():
    one, other = Cage(("chickens", "rabbits"), 10, 28), Cage(("rabbits", "chickens"), 10, 28)
    assert Puzzle((one,)).key == Puzzle((other,)).key == "chickens+rabbits:10:28"
    # In a chain it matters which animal comes last. Heads besides are no heads, and none of them is none.
    for first, link in ((one, "rabbits"), (other, "chickens")):
        for more, told in ((0, ""), (3, ":+3")):
            puzzle = Puzzle((first, Cage(("spiders", "ants"), None, 28, more=more)))
            assert puzzle.key == f"chickens+rabbits>{link}:10:28|ants+spiders{told}:28"


def test_animals():
    assert {name: animal.legs for name, animal in ANIMALS.items()} == {
        "snakes": 0, "chickens": 2, "cranes": 2, "rabbits": 4, "dogs": 4,
        "ants": 6, "beetles": 6, "spiders": 8, "crabs": 10,
    }  # fmt: skip
    assert all(animal.name == name and animal.singular == name[:-1] for name, animal in ANIMALS.items())


RNG = random.Random(0)
ONE = Cage(FARM, 10, 28)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_puzzle("three", rng=RNG), 'kind must be "pair" or "chain"; got \'three\''),
        (lambda: make_puzzle(rng=RNG, heads=(9, 3)), r"heads must be \(least, largest\).*got \(9, 3\)"),
        (lambda: make_puzzle(rng=RNG, heads=(0, 1)), "heads must .* reach 2.*got \\(0, 1\\)"),
        (lambda: make_puzzle("chain", rng=RNG, heads=(2, 2)), "heads must .* reach 3"),
        (lambda: make_puzzle(rng=RNG, animals=("cows", "rabbits")), "snakes, chickens.*got 'cows'"),
        (lambda: make_puzzle(rng=RNG, animals=("dogs", "dogs")), "different from each other"),
        (lambda: make_puzzle(rng=RNG, animals=("dogs", "rabbits")), "2 different numbers of legs; got"),
        (lambda: make_puzzle("chain", rng=RNG, animals=FARM), "different numbers of legs besides 'chickens'"),
        (
            lambda: puzzle_splits(train=1, validation=1, test=1, beyond=1, beyond_heads=(50, 60)),
            r"beyond_heads must not overlap heads = \(2, 50\); got \(50, 60\)",
        ),
        (lambda: puzzle_splits(train=1, validation=-1, test=1), "validation is -1; expected a whole"),
        (lambda: puzzle_splits(train=1.5, validation=1, test=1), "train is 1.5; expected a whole"),
        (lambda: puzzle_splits(train=1, validation=1, test=1, seed="a"), "seed is 'a'; expected a whole"),
        (lambda: make_puzzle(rng=0), r"rng must be a random.Random, such as random.Random\(0\); got 0"),
        (lambda: make_puzzle(rng=RNG, heads=9), r"heads must be \(least, largest\); got 9"),
        (lambda: make_puzzle(rng=RNG, heads=(2, 9.5)), r"heads\[1\] is 9.5; expected a whole number"),
        (lambda: solve("10 heads and 28 feet"), "puzzle must be a Puzzle, as make_puzzle gives; got '10"),
        (lambda: Cage(("chickens",), 1, 2), "2 names; got 1"),
        (lambda: Cage(("chickens", "rabbits", "ants"), 3, 12), "2 names; got 3"),
        (lambda: Cage(("chickens", "cows"), 1, 2), "got 'cows'"),
        (lambda: Cage(("chickens", "chickens"), 1, 2), "different from each other"),
        (lambda: Cage(FARM, 0, 2), "heads must be a whole number of at least 1; got 0"),
        (lambda: Cage(FARM, 2, -2), "feet must be a whole number of at least 0; got -2"),
        (lambda: Cage(FARM, 2, 4.0), "feet must be a whole number"),
        (lambda: Cage(FARM, None, 4, more=-1), "more must be a whole number of at least 0; got -1"),
        (lambda: Cage(FARM, 2, 4, more=1), "more = 1 is for a cage with heads = None; got heads = 2"),
        (lambda: Puzzle(()), "cages must begin with one whose heads are given"),
        (lambda: Puzzle((Cage(FARM, None, 28),)), "cages must begin with one whose heads are given"),
        (lambda: Puzzle((ONE, Cage(("ants", "dogs"), 3, 14))), "heads must be None.*got 3"),
        (lambda: Puzzle((ONE, Cage(("ants", "rabbits"), None, 20))), "'rabbits' gives the heads"),
        (
            lambda: Puzzle((Cage(("chickens", "cranes"), 3, 6), Cage(FARM, None, 4))),
            "need different legs; got .*'chickens', 'cranes'",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
