"""Puzzles that are drawn, and the splits."""

import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise, permutations

import pytest

from kdlib.language.puzzles.make import MULTIPLES, make_puzzle, puzzle_splits, solve
from kdlib.language.puzzles.puzzle import ANIMALS, Cage, Fact, Puzzle
from kdlib.language.puzzles.text import statement

KINDS = ("pair", "three", "chain")
FARM = ("chickens", "rabbits")
THREE = ("chickens", "rabbits", "spiders")


def draws(kind, number=300, seed=0, **options):
    rng = random.Random(seed)
    return [make_puzzle(kind, rng=rng, **options) for _ in range(number)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_always_one_answer_with_at_least_one_of_each(kind, shuffle):
    for puzzle in draws(kind, heads=(2, 9), shuffle=shuffle):
        solution = solve(puzzle)
        assert puzzle.kind == kind
        assert solution.status == "unique"
        assert min(count for held in solution.counts for count in held.values()) >= 1
        for cage in puzzle.cages:
            assert len(set(cage.legs)) == len(cage.legs)
            assert shuffle or list(cage.legs) == sorted(cage.legs)
    shuffled = [cage for puzzle in draws(kind, shuffle=True) for cage in puzzle.cages]
    assert any(list(cage.legs) != sorted(cage.legs) for cage in shuffled)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_animals_and_length_are_as_asked(kind):
    names = ("chickens", "cranes", "spiders", "crabs", "ants")
    puzzles = draws(kind, heads=(7, 11), animals=names, cages=3)
    assert {puzzle.cages[0].heads for puzzle in puzzles} == set(range(7, 12))
    assert {name for puzzle in puzzles for cage in puzzle.cages for name in cage.animals} == set(names)
    assert {len(puzzle.cages) for puzzle in puzzles} == {3 if kind == "chain" else 1}
    wide = draws(kind)
    assert all(2 <= puzzle.cages[0].heads <= 50 for puzzle in wide)
    assert {name for puzzle in wide for cage in puzzle.cages for name in cage.animals} == set(ANIMALS)


@pytest.mark.parametrize("more", [False, True])
def test_the_animal_that_links_two_cages_is_in_the_first_only(more):
    others = Counter()
    for puzzle in draws("chain", cages=5, animals=("chickens", "rabbits", "ants"), shuffle=True, more=more):
        for before, cage in pairwise(puzzle.cages):
            assert before.animals[-1] not in cage.animals
    for puzzle in draws("chain", 2_000, shuffle=True, more=more):
        first, second = puzzle.cages
        others[first.animals[0] in second.animals] += 1
    # Nothing else is barred: of the 25 or 26 pairs of other animals, legs different, 6 or 7 hold the first.
    assert 0.2 < others[True] / others.total() < 0.3


@pytest.mark.parametrize(("low", "high", "cages"), [(4, 8, 2), (2, 8, 3), (5, 6, 4)])
def test_rising_chains_stay_within_bounds_and_reach_all_of_them(low, high, cages):
    low_drawn = max(low, cages + 1)
    heads_seen = [set() for _ in range(cages)]
    rows_seen = set()
    for puzzle in draws("chain", 2_000, heads=(low, high), cages=cages, more=True, shuffle=True):
        held = solve(puzzle).counts
        heads = [sum(counts.values()) for counts in held]
        last = [counts[cage.animals[-1]] for counts, cage in zip(held, puzzle.cages, strict=True)]
        assert all(low_drawn <= number <= high for number in heads)
        assert puzzle.cages[0].heads == heads[0] and puzzle.cages[0].more == 0
        for before, number, cage in zip(last, heads[1:], puzzle.cages[1:], strict=False):
            assert cage.heads is None and cage.more == number - before >= 1
        for seen, number in zip(heads_seen, heads, strict=True):
            seen.add(number)
        rows_seen.add((heads[0], last[0], heads[1]))
    assert heads_seen == [set(range(low_drawn, high + 1))] * cages
    # Every share of the first cage, and after it every number of heads that is larger and within bounds.
    assert rows_seen == {
        (total, last, following)
        for total in range(low_drawn, high + 1)
        for last in range(1, total)
        for following in range(max(low_drawn, last + 1), high + 1)
    }


def test_rising_chains_are_as_likely_as_said():
    size = 4_000
    counted, expected = Counter(), {}
    for puzzle in draws("chain", size, heads=(3, 6), animals=("chickens", "rabbits", "ants"), more=True):
        first, second = (list(counts.values()) for counts in solve(puzzle).counts)
        counted[sum(first), first[-1], sum(second), second[-1]] += 1
    for total in range(3, 7):
        for last in range(1, total):
            least = max(3, last + 1)
            for following in range(least, 7):
                for share in range(1, following):
                    chance = 1 / (4 * (total - 1) * (7 - least) * (following - 1))
                    expected[total, last, following, share] = size * chance
    assert set(counted) == set(expected) and sum(expected.values()) == pytest.approx(size)
    chi_square = sum((counted[row] - mean) ** 2 / mean for row, mean in expected.items())
    degrees = len(expected) - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


def test_more_is_of_chains_alone():
    for kind in ("pair", "three"):
        assert draws(kind, more=True) == draws(kind)
    assert all(cage.more == 0 for puzzle in draws("chain") for cage in puzzle.cages)
    # What it is for: in the sixth cage, numbers are still large.
    means = []
    for more in (False, True):
        puzzles = draws("chain", cages=6, more=more)
        means.append(sum(sum(solve(puzzle).counts[5].values()) for puzzle in puzzles) / len(puzzles))
    assert means[0] < 15 and means[1] > 25


@pytest.mark.parametrize(
    ("kind", "animals", "number"),
    # heads 3 … 7: C(7, 2) pairs of (heads, rabbits), less the one with 2 heads; C(7, 3) falling triples
    [("pair", FARM, 20), ("chain", ("chickens", "rabbits", "ants"), 35)],
)
def test_all_counts_are_equally_likely(kind, animals, number):
    size = 4_000
    counted = Counter()
    for puzzle in draws(kind, size, heads=(3, 7), animals=animals):
        held = solve(puzzle).counts
        counted[sum(held[0].values()), *(list(cage.values())[-1] for cage in held)] += 1
    assert len(counted) == number
    expected = size / number
    chi_square = sum((count - expected) ** 2 / expected for count in counted.values())
    # Mean number − 1, standard deviation √(2 · (number − 1)).
    assert chi_square < number - 1 + 4 * (2 * (number - 1)) ** 0.5


def test_numbers_of_any_size_are_drawn_at_once():
    for kind, more in [*zip(KINDS, [False] * 3, strict=True), ("chain", True)]:
        (puzzle,) = draws(kind, 1, heads=(10**40, 10**41), more=more)
        assert 10**40 <= puzzle.cages[0].heads <= 10**41
        solution = solve(puzzle)
        assert solution.status == "unique"
        assert not more or 10**40 <= sum(solution.counts[1].values()) <= 10**41


def test_third_facts_of_both_forms():
    facts = [puzzle.cages[0].fact for puzzle in draws("three", 600)]
    assert {fact.times for fact in facts} == set(MULTIPLES)
    assert 0.4 < sum(fact.more > 0 for fact in facts) / len(facts) < 0.6


def test_the_seed_decides():
    for more in (False, True):
        assert draws("chain", seed=5, more=more) == draws("chain", seed=5, more=more)
        assert draws("chain", seed=5, more=more) != draws("chain", seed=6, more=more)
    code = (
        "from kdlib.language.puzzles.make import puzzle_splits\n"
        "for more in (False, True):\n"
        "    splits = puzzle_splits('chain', train=9, validation=3, test=3, beyond=4, seed=3, more=more)\n"
        "    print(repr(splits))"
    )
    # Another process has another hash seed.
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    (printed,) = runs
    assert printed.count("PuzzleSplits") == 2


@pytest.mark.parametrize(("kind", "more"), [*zip(KINDS, [False] * 3, strict=True), ("chain", True)])
def test_splits_are_disjoint_by_problem(kind, more):
    # Few enough puzzles for the same ones to be drawn again and again.
    splits = puzzle_splits(
        kind, train=90, validation=30, test=40, beyond=60, heads=(3, 11), beyond_heads=(12, 15),
        animals=("chickens", "rabbits", "spiders"), shuffle=True, seed=2, more=more,
    )  # fmt: skip
    parts = (splits.train, splits.validation, splits.test, splits.beyond)
    assert [len(part) for part in parts] == [90, 30, 40, 60]
    keys = [puzzle.key for part in parts for puzzle in part]
    assert len(set(keys)) == 220
    assert len({statement(puzzle) for part in parts for puzzle in part}) == 220
    for part in parts[:3]:
        assert all(3 <= puzzle.cages[0].heads <= 11 for puzzle in part)
    assert all(12 <= puzzle.cages[0].heads <= 15 for puzzle in splits.beyond)
    if more:  # then every cage is within the range of its part
        for part, low, high in zip(parts, (3, 3, 3, 12), (11, 11, 11, 15), strict=True):
            heads = {sum(counts.values()) for puzzle in part for counts in solve(puzzle).counts[1:]}
            assert heads <= set(range(low, high + 1)) and max(heads) == high
            assert all(puzzle.cages[1].more for puzzle in part)
    assert str(splits) == "90 training, 30 validation and 40 test puzzles, 60 beyond their range"


def test_splits_are_of_one_kind_of_numbers():
    """Nearly all there are: those found last are rarely drawn, and must not all end up in the test part."""
    splits = puzzle_splits("three", train=520, validation=0, test=520, heads=(3, 13), animals=THREE)
    means = []
    for part in (splits.train, splits.test):
        small = [puzzle.cages[0].fact.more == 0 for puzzle in part]
        means.append(sum(small) / len(small))
    assert abs(means[0] - means[1]) < 0.12  # standard error 0.026


def test_seeds_differ_and_beyond_is_independent_of_the_rest():
    sizes = {"train": 20, "validation": 5, "test": 5}
    first = puzzle_splits("pair", **sizes, beyond=10, seed=1)
    assert first == puzzle_splits("pair", **sizes, beyond=10, seed=1)
    assert first.train != puzzle_splits("pair", **sizes, beyond=10, seed=2).train
    assert first.train == puzzle_splits("pair", **sizes, seed=1).train


def all_keys(kind, low, high):
    """Keys of all puzzles of a range, found by trying: at least one of each, exactly one answer."""
    keys = set()
    if kind == "pair":
        for heads in range(low, high + 1):
            for many in range(1, heads):
                keys.add(Puzzle((Cage(FARM, heads, 2 * (heads - many) + 4 * many),)).key)
        return keys
    for heads in range(low, high + 1):
        for a in range(1, heads - 1):
            for b in range(1, heads - a):
                held = dict(zip(THREE, (a, b, heads - a - b), strict=True))
                feet = sum(ANIMALS[name].legs * count for name, count in held.items())
                for first, second in permutations(THREE, 2):
                    facts = [Fact(first, second, k) for k in MULTIPLES if held[first] == k * held[second]]
                    if held[first] > held[second]:
                        facts.append(Fact(first, second, more=held[first] - held[second]))
                    for fact in facts:
                        puzzle = Puzzle((Cage(THREE, heads, feet, fact),))
                        if solve(puzzle).status == "unique":
                            keys.add(puzzle.key)
    return keys


@pytest.mark.parametrize(
    ("kind", "animals", "heads"), [("pair", FARM, (2, 20)), ("three", THREE, (3, 6))], ids=["pair", "three"]
)
def test_all_puzzles_there_are_and_no_more(kind, animals, heads):
    keys = all_keys(kind, *heads)
    if kind == "pair":
        assert len(keys) == 190
    splits = puzzle_splits(
        kind, train=len(keys) - 10, validation=0, test=10, heads=heads, animals=animals, seed=4
    )
    assert {puzzle.key for puzzle in splits.train + splits.test} == keys
    message = f"no {len(keys) + 1} different puzzles.*only {len(keys)} were found"
    with pytest.raises(ValueError, match=message):
        puzzle_splits(kind, train=len(keys), validation=0, test=1, heads=heads, animals=animals)


def test_key_is_the_problem_not_the_wording():
    one = Puzzle((Cage(("chickens", "rabbits"), 10, 28),))
    other = Puzzle((Cage(("rabbits", "chickens"), 10, 28),))
    assert one.key == other.key == "chickens+rabbits:10:28"
    # In a chain it matters which animal comes last.
    chains = [Puzzle((*p.cages, Cage(("ants", "spiders"), None, 28))).key for p in (one, other)]
    assert chains == [
        "chickens+rabbits>rabbits:10:28|ants+spiders:28",
        "chickens+rabbits>chickens:10:28|ants+spiders:28",
    ]
    # Heads besides are no heads, and none of them is none.
    first = Cage(("chickens", "rabbits"), 10, 28)
    besides = [Puzzle((first, Cage(("spiders", "ants"), None, 28, more=more))).key for more in (0, 3, 28)]
    assert besides == [
        "chickens+rabbits>rabbits:10:28|ants+spiders:28",
        "chickens+rabbits>rabbits:10:28|ants+spiders:+3:28",
        "chickens+rabbits>rabbits:10:28|ants+spiders:+28:28",
    ]
    same = {
        Puzzle((Cage(animals, 6, 20, fact),)).key
        for animals in permutations(("chickens", "rabbits", "spiders"))
        for fact in (Fact("spiders", "chickens"), Fact("chickens", "spiders"))
    }
    assert len(same) == 1
    different = {
        Puzzle((Cage(THREE, 6, 20, fact),)).key
        for fact in (
            None, Fact("spiders", "chickens"), Fact("spiders", "rabbits"),
            Fact("spiders", "chickens", more=1), Fact("chickens", "spiders", more=1),
            Fact("spiders", "chickens", 2), Fact("chickens", "spiders", 2),
        )
    }  # fmt: skip
    assert len(different) == 7


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
        (lambda: make_puzzle("four", rng=RNG), 'kind must be "pair", "three" or "chain"; got \'four\''),
        (lambda: make_puzzle(rng=RNG, heads=(9, 3)), r"heads must be \(least, largest\).*got \(9, 3\)"),
        (lambda: make_puzzle(rng=RNG, heads=7), "heads must be"),
        (lambda: make_puzzle(rng=RNG, heads=(2.0, 9)), "heads must be"),
        (lambda: make_puzzle("three", rng=RNG, heads=(1, 2)), "heads must reach 3.*got \\(1, 2\\)"),
        (lambda: make_puzzle("chain", rng=RNG, heads=(2, 4), cages=4), "heads must reach 5"),
        (lambda: make_puzzle("chain", rng=RNG, cages=1), "cages, the length of a chain.*got 1"),
        (lambda: make_puzzle(rng=RNG, animals=("cows", "rabbits")), "snakes, chickens.*got 'cows'"),
        (lambda: make_puzzle(rng=RNG, animals=("dogs", "dogs")), "different from each other"),
        (lambda: make_puzzle(rng=RNG, animals=("dogs", "rabbits")), "at least 2 different numbers of legs"),
        (lambda: make_puzzle("three", rng=RNG, animals=FARM), "at least 3 different numbers of legs"),
        (lambda: make_puzzle("chain", rng=RNG, animals=FARM), "two of different legs besides 'chickens'"),
        (
            lambda: puzzle_splits(train=1, validation=1, test=1, beyond=1, beyond_heads=(50, 60)),
            r"beyond_heads must not overlap heads = \(2, 50\); got \(50, 60\)",
        ),
        (lambda: puzzle_splits(train=1, validation=-1, test=1), "validation must be .* got -1"),
        (lambda: puzzle_splits(train=1, validation=1, test=1.0), "test must be .* got 1.0"),
        (lambda: Cage(("chickens",), 1, 2), "2 or 3 names"),
        (lambda: Cage(("chickens", "cows"), 1, 2), "got 'cows'"),
        (lambda: Cage(("chickens", "chickens"), 1, 2), "different from each other"),
        (lambda: Cage(FARM, 0, 2), "heads must be a whole number of at least 1; got 0"),
        (lambda: Cage(FARM, 2, -2), "feet must be a whole number of at least 0; got -2"),
        (lambda: Cage(FARM, 2, 4.0), "feet must be a whole number"),
        (lambda: Cage(FARM, 2, 4, Fact("chickens", "rabbits")), "fact is for a cage of three"),
        (lambda: Cage(THREE, 2, 4, Fact("chickens", "dogs")), "fact must be about animals.*'dogs'"),
        (lambda: Cage(FARM, None, 4, more=-1), "more must be a whole number of at least 0; got -1"),
        (lambda: Cage(FARM, None, 4, more=1.0), "more must be a whole number.*got 1.0"),
        (lambda: Cage(FARM, 2, 4, more=1), "got more = 1 and heads = 2: leave more out"),
        (lambda: make_puzzle("chain", rng=RNG, heads=(2, 4), cages=4, more=True), "heads must reach 5"),
        (lambda: Fact("dogs", "ants", times=2, more=1), "times = 2 and more = 1"),
        (lambda: Fact("dogs", "ants", times=0), "times must be a whole number of at least 1"),
        (lambda: Fact("dogs", "dogs"), "two different animals"),
        (lambda: Puzzle(()), "cages must begin with one whose heads are given"),
        (lambda: Puzzle((Cage(FARM, None, 28),)), "cages must begin with one whose heads are given"),
        (lambda: Puzzle((ONE, Cage(("ants", "dogs"), 3, 14))), "heads must be None.*got 3"),
        (lambda: Puzzle((ONE, Cage(("ants", "rabbits"), None, 20))), "'rabbits' gives the heads"),
        (lambda: Puzzle((ONE, Cage(("ants", "dogs", "crabs"), None, 20))), "cages of two animals"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
