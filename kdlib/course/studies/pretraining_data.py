"""What a base model has read before anybody distils into it: sums, and single cages solved.

DeepSeek-R1's students, Qwen2.5-Math and Llama, had seen mathematics before, too. What a base model has never
seen here is a chain of cages.
"""

import random
from collections.abc import Sequence

from kdlib.language.puzzles.make import make_puzzle
from kdlib.language.puzzles.puzzle import ANIMALS, Puzzle
from kdlib.language.puzzles.text import statement, written_solution

Text = tuple[str, str]  # (statement, completion) as `distill_language_model` takes it
SUMS_A_ROW = 6
# Differences of two-digit numbers take a tiny model longest: as often as all other sums together.
WEIGHTS = (2, 8, 1, 4, 1)


def pretraining_data(
    puzzles: Sequence[Puzzle], *, heads: tuple[int, int], animals: Sequence[str], seed: int = 0
) -> list[Text]:
    """Each puzzle in both styles and without steps, and as many rows of sums."""
    styles = ("suppose", "equations")
    solved = [(statement(p), written_solution(p, style)) for p in puzzles for style in styles]
    answers = [(statement(p), written_solution(p, think=False)) for p in puzzles]
    return solved + answers + sums(3 * len(puzzles), heads=heads, animals=animals, seed=seed)


def sums(count: int, *, heads: tuple[int, int], animals: Sequence[str], seed: int = 0) -> list[Text]:
    """Rows of sums such as puzzles in this range are made of, each row with its results."""
    rng, rows = random.Random(f"{seed} sums"), []
    for _ in range(count):
        cages = (make_puzzle("pair", rng=rng, heads=heads, animals=animals) for _ in range(SUMS_A_ROW))
        row = [_sum(cage, heads[1], rng) for cage in cages]
        asked = ", ".join(left for left, _ in row)
        done = ", ".join(f"{left} = {value}" for left, value in row)
        rows.append((f" {asked}?", f" {done}.\n</think>\n\nAnswer: {row[-1][1]}."))
    return rows


def _sum(puzzle: Puzzle, most: int, rng: random.Random) -> tuple[str, int]:
    (cage,) = puzzle.cages
    few, many = sorted(ANIMALS[name].legs for name in cage.animals)
    heads, missing, gap = cage.heads, cage.feet - few * cage.heads, many - few
    count = missing // gap
    more = rng.randint(1, max(1, most - count))
    kinds = [
        (f"{heads} × {few}", few * heads),
        (f"{cage.feet} − {few * heads}", missing),
        (f"{missing} ÷ {gap}", count),
        (f"{heads} − {count}", heads - count),
        (f"{count} + {more}", count + more),
    ]
    return rng.choices(kinds, WEIGHTS)[0]
