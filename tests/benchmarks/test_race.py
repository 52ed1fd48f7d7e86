"""Rounds in turn, peaks of memory, rows of contenders that work and of those that fail."""

import itertools
import statistics
from dataclasses import replace

import pytest
import torch

from benchmarks import race as module
from benchmarks.contenders import Contender, NotComparable, contenders
from benchmarks.measuring import copy_rate, matrix_rate, ratio, seconds_in_turn, seconds_of, this_machine
from benchmarks.problems import IGNORED, Setting, Sizes, make_problem
from benchmarks.race import Rates, Row, arms_in_turn, race
from kdlib import cost

CPU = torch.device("cpu")
SIZES = Sizes(64, 512, 16, 32, torch.float32)
RATES = Rates(1e12, 1e9)
EAGER = contenders("linear")[0]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A search for garbage takes a third of a second here."""
    monkeypatch.setattr(cost.gc, "collect", lambda *generation: 0)


class Clock:
    """Time passes only where a test says so."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(cost.time, "perf_counter", lambda: self.now)

    def taking(self, *seconds, log=None, name=""):
        left = itertools.cycle(seconds)

        def run():
            self.now += next(left)
            if log is not None:
                log.append(name)

        return run


def contender(name, make):
    return Contender(name, "linear", make)


def failing(error):
    def make(setting, device):
        def loss(*tensors):
            raise error

        return loss

    return make


# --- measuring --------------------------------------------------------------------------------------


def test_arms_take_turns_and_warm_up_is_not_timed(monkeypatch):
    clock, log = Clock(monkeypatch), []
    arms = {"a": clock.taking(9, 1, 2, log=log, name="a"), "b": clock.taking(7, 3, 4, log=log, name="b")}
    seconds = seconds_in_turn(arms, "cpu", rounds=2, warm_up=1)
    assert seconds == {"a": [1, 2], "b": [3, 4]}
    assert log == ["a", "b", "a", "b", "a", "b"]
    assert seconds_of(clock.taking(5), "cpu", rounds=3) == [5, 5, 5]
    with pytest.raises(ValueError, match="rounds must be at least 1; got 0"):
        seconds_of(lambda: None, "cpu", rounds=0)


def test_a_ratio_is_the_median_of_the_rounds_own():
    """A machine that is three times slower in the second round slows both."""
    assert ratio([2, 6, 2.2], [1, 3, 1]) == 2
    assert ratio([1, 1, 10], [2, 1, 1]) == 1


def test_rates_are_those_of_this_machine():
    """Three measurements of the same: within the swings of a shared machine."""
    matrix, copy = matrix_rate("cpu", torch.float32), copy_rate("cpu")
    whole = this_machine("cpu")
    assert 0.2 < matrix / whole.flops < 5 and 0.2 < copy / whole.bandwidth < 5
    assert matrix > 1e9 and copy > 1e8


# --- races ------------------------------------------------------------------------------------------


def test_a_row_says_what_its_contender_took(monkeypatch):
    taken = {"eager PyTorch": [0.2, 0.4, 0.6], "kdlib": [0.1, 0.1, 0.3]}
    monkeypatch.setattr(module, "seconds_in_turn", lambda arms, *a, **k: {name: taken[name] for name in arms})
    monkeypatch.setattr(module, "peak_memory", lambda run, device: next(peaks))
    peaks = iter([4000, 1000])
    problem = make_problem("linear", SIZES, CPU)
    eager, ours = race(
        "linear", "forward", [EAGER, contenders("linear")[-1]], problem, Setting(), RATES, rounds=3,
        checked=16,
    )  # fmt: skip
    assert (eager.seconds, eager.time_ratio, eager.peak_bytes, eager.memory_ratio) == (0.4, 1, 4000, 1)
    assert (eager.low, eager.high) == (pytest.approx(0.24), pytest.approx(0.56))
    assert ours.seconds == 0.1 and ours.memory_ratio == 0.25
    assert ours.time_ratio == pytest.approx(statistics.median([0.1 / 0.2, 0.1 / 0.4, 0.3 / 0.6]))
    assert ours.matrix_share == pytest.approx(2 * 64 * 512 * (3 * 16 + 32) / 1e12 / 0.1)
    assert ours.copy_share is None and ours.note == ""
    assert ours.loss_error < 1e-6 and 0 < ours.gradient_error < 1e-5

    peaks = iter([4000])
    (given,) = race(
        "logits", "jsd", contenders("logits")[:1], make_problem("logits", SIZES, CPU), Setting("jsd"), RATES,
        rounds=3, checked=16,
    )  # fmt: skip
    assert given.copy_share == pytest.approx(7 * 64 * 512 * 4 / 1e9 / 0.4)
    assert given.matrix_share is None


def test_a_contender_that_fails_says_why_and_the_others_go_on(monkeypatch):
    def refuses(setting, device):
        raise NotComparable("has no hard term")

    def missing(setting, device):
        raise ModuleNotFoundError("No module named 'peer'", name="peer")

    done = []
    rows = race(
        "linear", "forward",
        [EAGER, contender("refuses", refuses), contender("missing", missing),
         contender("broken", failing(RuntimeError("shapes\n differ"))),
         contender("full", failing(torch.OutOfMemoryError("CUDA out of memory"))),
         contender("full of CPU", failing(RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 GB"))),
         contenders("linear")[-1]],
        make_problem("linear", SIZES, CPU), Setting(), RATES, rounds=1, checked=16,
        on_done=lambda: done.append(1),
    )  # fmt: skip
    assert [row.contender for row in rows] == [
        "eager PyTorch", "refuses", "missing", "broken", "full", "full of CPU", "kdlib",
    ]  # fmt: skip
    assert [row.note for row in rows] == [
        "", "has no hard term", "not installed (peer)", "failed: RuntimeError: shapes", "out of memory",
        "out of memory", "",
    ]  # fmt: skip
    assert all((row.seconds is None) == bool(row.note) for row in rows)
    assert rows[-1].time_ratio > 0 and len(done) == len(rows) + 1


def test_a_contender_that_fails_in_the_rounds_drops_out():
    calls = itertools.count()

    def late(setting, device):
        def loss(student, teacher, labels):
            if next(calls) == 3:  # checked, measured, warmed up
                raise torch.OutOfMemoryError("later")
            return EAGER.make(setting, device)(student, teacher, labels)

        return loss

    rows = race(
        "linear", "forward", [EAGER, contender("late", late)], make_problem("linear", SIZES, CPU), Setting(),
        RATES, rounds=2, checked=16,
    )  # fmt: skip
    assert rows[0].seconds > 0 and rows[0].time_ratio == 1
    assert rows[1] == Row("linear", "forward", "late", 64, note="out of memory")


def test_without_the_first_contender_there_is_nothing_to_compare_with():
    entrants = [replace(EAGER, make=failing(torch.OutOfMemoryError("all of it"))), contenders("linear")[-1]]
    eager, ours = race(
        "linear", "forward", entrants, make_problem("linear", SIZES, CPU), Setting(), RATES, rounds=1,
        checked=16,
    )  # fmt: skip
    assert eager.note == "out of memory"
    assert ours.seconds > 0 and ours.peak_bytes > 0 and ours.time_ratio is ours.memory_ratio is None


def test_errors_are_those_of_the_tokens_that_are_checked():
    """A loss that is wrong in one token: seen when it is checked, not when it is not."""
    problem = make_problem("linear", SIZES, CPU)

    def wrong(setting, device):
        right = EAGER.make(setting, device)

        def loss(student, teacher, labels):
            return right(student, teacher, labels) + (labels[40] != IGNORED) * 1.0

        return loss

    def error(checked):
        (row,) = race("linear", "forward", [contender("wrong", wrong)], problem, Setting(), RATES, rounds=1,
                      checked=checked)  # fmt: skip
        return row.loss_error

    assert error(40) < 1e-6 and error(41) > 0.01


def test_arms_that_are_no_contenders(monkeypatch):
    clock = Clock(monkeypatch)
    plain, cached = arms_in_turn(
        "training", "pictures", {"plain": clock.taking(2), "cached": clock.taking(2.2)}, CPU, rounds=3,
        steps=4, examples=100,
    )  # fmt: skip
    assert (plain.seconds, plain.per_second, plain.time_ratio) == (pytest.approx(0.5), pytest.approx(50), 1)
    assert cached.time_ratio == pytest.approx(1.1) and cached.seconds == pytest.approx(0.55)
