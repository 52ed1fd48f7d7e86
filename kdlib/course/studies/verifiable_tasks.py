"""Problems whose answers a program verifies: cages of two animals, and families of reasoning-gym.

reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760; Apache-2.0) draws problems without end and brings a
verifier for each family. It is an extra of its own, `gym`, for one of its dependencies has to be compiled.
"""

import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from kdlib.language.answers.final_answer import final_answer
from kdlib.language.problems import Problem
from kdlib.language.puzzles.make import puzzle_splits
from kdlib.language.puzzles.puzzle import Puzzle
from kdlib.language.puzzles.text import problem, written_solution
from kdlib.language.traces.collect import Trace

CAGES = "cages"
ANIMALS = ("chickens", "rabbits", "ants", "spiders")
HEADS, BEYOND_HEADS = (2, 16), (17, 25)  # 720 problems within


@dataclass(frozen=True)
class Solved:
    """A problem and what a program writes to it."""

    problem: Problem
    answer: str  # alone, in the words with which the trace ends
    trace: str | None = None  # worked out step by step; None where no program here does so


@dataclass(frozen=True)
class Task:
    """Disjoint problems of one kind; `beyond` has larger ones than the others."""

    name: str
    train: tuple[Solved, ...]
    validation: tuple[Solved, ...]
    test: tuple[Solved, ...]
    beyond: tuple[Solved, ...]
    verify: Callable[[Trace], bool]  # the verifier that decides


class Family(NamedTuple):
    """A data set of reasoning-gym: its settings within and beyond the range, and what works them out."""

    within: dict[str, int]
    beyond: dict[str, int]
    work_out: Callable[[Mapping], str] | None = None


def load_task(name: str, *, train: int, validation: int, test: int, beyond: int) -> Task:
    """So many problems of a task, always the same ones: "cages", or a name in `FAMILIES`.

    Raises:
        ValueError: no such task, or fewer different problems than that.
        ImportError: reasoning-gym is not installed; it says how.
    """
    sizes = {"train": train, "validation": validation, "test": test, "beyond": beyond}
    if name == CAGES:
        splits = puzzle_splits("pair", **sizes, heads=HEADS, beyond_heads=BEYOND_HEADS, animals=ANIMALS)
        parts = {part: tuple(map(_cage, getattr(splits, part))) for part in sizes}
        return Task(name, **parts, verify=lambda trace: trace.correct)
    if name not in FAMILIES:
        raise ValueError(f"task must be one of {', '.join((CAGES, *FAMILIES))}; got {name!r}")
    return _of_gym(name, sizes)


def _cage(puzzle: Puzzle) -> Solved:
    # The tags are for models whose template opens a thought.
    thought, answer = written_solution(puzzle).split("\n</think>\n\n")
    return Solved(problem(puzzle), answer, f"{thought}\n{answer}")


def _of_gym(name: str, sizes: Mapping[str, int]) -> Task:
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # cellpylib's, once
            import reasoning_gym
    except ImportError as error:
        fix = 'pip install "kdlib[gym]" (in a checkout of the course: ".[gym]"), which needs a C compiler'
        raise ImportError(f"the task {name} needs the package reasoning-gym: {fix}") from error
    family, entries, parts = FAMILIES[name], {}, {}
    within = {part: count for part, count in sizes.items() if part != "beyond"}
    # Entry n is drawn with the random numbers of seed + n: near seeds would give longer versions of the same.
    ranges = (0, family.within, within), (10**6, family.beyond, {"beyond": sizes["beyond"]})
    for seed, settings, wanted in ranges:
        total = sum(wanted.values())
        data = reasoning_gym.create_dataset(name, seed=seed, size=20 * total + 100, **settings)
        found = _different(data, total, skip=entries)
        entries |= {f"{name} {question}": entry for question, entry in found.items()}
        solved = iter([_solved(name, entry, family.work_out) for entry in found.values()])
        parts |= {part: tuple(next(solved) for _ in range(count)) for part, count in wanted.items()}

    def verify(trace: Trace) -> bool:
        """Whether `score_answer` gives the whole point; a part of it is no right answer."""
        answer = final_answer(trace.text) if trace.finished else None
        return data.score_answer(answer, entries[trace.key]) == 1

    return Task(name, **parts, verify=verify)


def _different(data: object, count: int, skip: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """The first so many entries of different questions, by question."""
    found: dict[str, Mapping] = {}
    known = {entry["question"] for entry in skip.values()}
    for number in range(len(data)):
        if len(found) == count:
            break
        entry = data[number]
        if entry["question"] not in known:
            found.setdefault(entry["question"], entry)
    if len(found) < count:
        raise ValueError(f"there are no {count} different problems with {data.config}; ask for fewer")
    return found


def _solved(name: str, entry: Mapping, work_out: Callable[[Mapping], str] | None) -> Solved:
    question, answer = entry["question"], f"Answer: {entry['answer']}."
    trace = work_out and f"{work_out(entry)}\n{answer}"
    return Solved(Problem(f"{name} {question}", question.strip(), entry["answer"]), answer, trace)


def _count_legs(entry: Mapping) -> str:
    """Animal by animal, then their sum, one after the other."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS as LEGS

    held = entry["metadata"]["animals"]
    steps = [f"{name}: {number} × {LEGS[name]} = {number * LEGS[name]}." for name, number in held.items()]
    terms = [number * LEGS[name] for name, number in held.items()]
    sums = zip(accumulate(terms), terms[1:], strict=False)
    return " ".join([*steps, *(f"{before} + {term} = {before + term}." for before, term in sums)])


def _add_up(entry: Mapping) -> str:
    """From left to right."""
    value, *rest = entry["metadata"]["expression"].split()
    value, steps = int(value), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = {"+": operator.add, "-": operator.sub}[sign](value, int(term))
        steps.append(f"{value} {sign} {term} = {after}.")
        value = after
    return " ".join(steps)


_small_numbers = partial(dict, min_digits=1, max_digits=2)

FAMILIES = {
    "leg_counting": Family({"min_animals": 2, "max_animals": 3, "max_instances": 9},
                           {"min_animals": 4, "max_animals": 5, "max_instances": 9}, _count_legs),
    "chain_sum": Family(_small_numbers(min_terms=2, max_terms=4), _small_numbers(min_terms=5, max_terms=6),
                        _add_up),
    "simple_equations": Family({"min_terms": 2, "max_terms": 2, "max_value": 20},
                               {"min_terms": 3, "max_terms": 4, "max_value": 20}),
}  # fmt: skip


def read_loosely(text: str, answer: str) -> bool:
    """Whether the last numbers of a text are those of the answer, in whatever words it puts them.

    For models that were never shown how an answer is written here; generous on purpose: the number before
    each animal, else the last number of all.
    """
    if counts := re.findall(r"(\d+) ([a-z]+)", answer):
        said = {name: re.findall(rf"(\d+)\W+{name.removesuffix('s')}", text) for _, name in counts}
        return all(said[name] and said[name][-1] == number for number, name in counts)
    numbers = re.findall(r"(?<![\d.])-?\d[\d,]*", text)
    return bool(numbers) and numbers[-1].replace(",", "") == answer
