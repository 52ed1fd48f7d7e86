"""The tasks of the study on a real model: disjoint, verified, and worked out without a wrong step."""

import random
import sys
from types import SimpleNamespace

import pytest

from kdlib.course.studies import verifiable_tasks
from kdlib.course.studies.verifiable_tasks import FAMILIES, load_task, read_loosely
from kdlib.language.answers.final_answer import first_wrong_step, verify_answer
from kdlib.language.problems import Problem
from kdlib.language.traces.collect import judged_trace
from kdlib.language.traces.generate import Completion

SIZES = {"train": 12, "validation": 4, "test": 6, "beyond": 5}


class SumsInStead:
    """What `reasoning_gym.create_dataset("chain_sum", …)` gives, for where it is not installed."""

    def __init__(self, name, seed, size, *, min_terms, max_terms, min_digits, max_digits):
        assert (name, min_digits, max_digits) == ("chain_sum", 1, 2)
        self.seed, self.size, self.terms, self.config = seed, size, (min_terms, max_terms), min_terms

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        rng = random.Random(self.seed + number)
        terms = [str(rng.randint(0, 99)) for _ in range(rng.randint(*self.terms))]
        expression = " ".join(word for term in terms for word in (rng.choice("+-"), term))[2:]
        answer = str(eval(expression))  # of numbers and signs drawn above
        return {"question": f"{expression} =", "answer": answer, "metadata": {"expression": expression}}

    def score_answer(self, answer, entry):
        return 0.0 if answer is None else 1.0 if int(answer) == int(entry["answer"]) else 0.5


@pytest.fixture
def in_stead(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", SimpleNamespace(create_dataset=SumsInStead))


def written(solved, text):
    return judged_trace(solved.problem, 0, Completion(text, 9, finished=True), verify_answer)


def check(task):
    parts = {part: getattr(task, part) for part in SIZES}
    assert {part: len(some) for part, some in parts.items()} == SIZES
    everything = [solved for some in parts.values() for solved in some]
    assert len({solved.problem.key for solved in everything}) == len(everything)
    assert len({solved.problem.statement for solved in everything}) == len(everything)
    for one, other in zip(everything, everything[1:], strict=False):
        for text in filter(None, (one.trace, one.answer)):
            assert first_wrong_step(text) is None and text.endswith(one.answer)
            right = written(one, text)
            assert right.correct and task.verify(right) and read_loosely(text, one.problem.answer)
        if one.problem.answer != other.problem.answer:
            wrong = written(one, other.answer)
            assert not wrong.correct and not task.verify(wrong)
            assert not read_loosely(other.answer, one.problem.answer)
    assert not task.verify(judged_trace(one.problem, 0, Completion(one.answer, 9, False), verify_answer))


def test_cages_within_and_beyond():
    task = load_task("cages", **SIZES)
    check(task)
    heads = {part: [int(s.problem.key.split(":")[1]) for s in getattr(task, part)] for part in SIZES}
    assert max(heads["train"]) <= 16 < min(heads["beyond"])


def test_sums_are_worked_out_from_left_to_right(in_stead):
    task = load_task("chain_sum", **SIZES)
    check(task)
    assert max(s.problem.statement.count(" ") // 2 for s in task.train) <= 4
    # The larger problems are no longer versions of the others.
    longer = {s.problem.statement.split()[0] for s in task.beyond}
    assert longer != {s.problem.statement.split()[0] for s in task.train[:5]}
    sums = verifiable_tasks.FAMILIES["chain_sum"].work_out({"metadata": {"expression": "4 - 9 + 20"}})
    assert sums == "4 - 9 = -5. -5 + 20 = 15."


def test_a_part_of_the_points_is_no_right_answer(in_stead):
    task = load_task("chain_sum", **SIZES)
    assert not task.verify(written(task.test[0], f"Answer: {int(task.test[0].problem.answer) + 1}."))


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_of_reasoning_gym(name):
    pytest.importorskip("reasoning_gym", reason="the extra gym is not installed: it needs a C compiler")
    check(load_task(name, **SIZES))


def test_refusals_say_what_to_do(monkeypatch, in_stead):
    with pytest.raises(ValueError, match="cages, leg_counting"):
        load_task("riddles", **SIZES)
    with pytest.raises(ValueError, match="ask for fewer"):
        monkeypatch.setattr(SumsInStead, "__len__", lambda self: 3)
        load_task("chain_sum", **SIZES)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"kdlib\[gym\]"):
        load_task("chain_sum", **SIZES)


def test_loose_reading_takes_the_last_numbers_in_whatever_words():
    both = "3 chickens and 4 rabbits"
    assert read_loosely("With 1 rabbit … so there are **4 rabbits**, and 3 chickens.", both)
    assert not read_loosely("3 chickens, 4 rabbits? No: 2 chickens and 5 rabbits.", both)
    assert not read_loosely("4 rabbits.", both)
    assert read_loosely("In total 1,082 legs.", "1082") and read_loosely("so x - 3 = -5", "-5")
    assert not read_loosely("82 or 83", "82") and not read_loosely("none", "82")


def test_a_problem_is_asked_as_it_is_written(in_stead):
    solved = load_task("chain_sum", **SIZES).test[0]
    assert solved.problem == Problem(
        f"chain_sum {solved.problem.statement}", solved.problem.statement, solved.problem.answer
    )
