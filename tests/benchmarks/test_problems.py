"""Sizes in operations and bytes, inputs, and how errors are told."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import contenders
from benchmarks.problems import IGNORED, Errors, Setting, Sizes, errors, make_problem

CPU = torch.device("cpu")
ISSUE = Sizes(8192, 151_936, 1536, 3584, torch.bfloat16)


def test_floors_at_the_sizes_of_the_benchmark():
    """20.4 TFLOP take 26 ms at 784 TFLOP/s; at 4.3 TB/s five times 2.49 GB take 2.9 ms, seven 4.1 ms."""
    assert ISSUE.operations(Setting()) / 784e12 == pytest.approx(26e-3, rel=0.01)
    assert ISSUE.traffic(Setting()) / 4.3e12 == pytest.approx(2.9e-3, rel=0.01)
    assert ISSUE.traffic(Setting("reverse")) == ISSUE.traffic(Setting())
    assert ISSUE.traffic(Setting("jsd")) / 4.3e12 == pytest.approx(4.05e-3, rel=0.01)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_operations_are_those_that_torch_counts(alpha):
    sizes = Sizes(32, 96, 8, 12, torch.float32)
    setting = Setting(alpha=alpha)
    problem = make_problem("linear", sizes, CPU)
    eager = contenders("linear")[0]
    with FlopCounterMode(display=False) as counter:
        eager.run(eager.make(setting, CPU), problem)
    assert sizes.operations(setting) == counter.get_total_flops()
    quarter = Sizes(32, 96, 8, 12, torch.float32, counted=0.25)
    assert quarter.operations(setting) == counter.get_total_flops() // 4
    # Without a teacher its product is not needed.
    assert sizes.operations(Setting(alpha=1.0)) == 2 * 32 * 96 * 3 * 8


def test_a_token_that_does_not_count_is_written_once():
    quarter = Sizes(32, 96, 8, 12, torch.bfloat16, counted=0.25)
    assert quarter.traffic(Setting("jsd")) == 2 * 96 * (7 * 8 + 24)
    assert quarter.traffic(Setting(alpha=1.0)) == 2 * 96 * (3 * 8 + 24)


@pytest.mark.parametrize("kind", ["linear", "logits"])
def test_problems_are_what_their_sizes_say(kind):
    sizes = Sizes(200, 300, 64, 80, torch.bfloat16, counted=0.25)
    problem = make_problem(kind, sizes, CPU)
    assert problem.kind == kind
    logits = problem.inputs[0] @ problem.inputs[1].T if kind == "linear" else problem.inputs[0]
    assert logits.shape == (200, 300) and logits.dtype == torch.bfloat16
    assert logits.float().std().item() == pytest.approx(2, rel=0.1)
    assert all(tensor.requires_grad for tensor in problem.inputs)
    assert not any(tensor.requires_grad for tensor in problem.teacher)
    counted = problem.labels != IGNORED
    assert counted.sum() == 50 and 0 < counted[:100].sum() < 50
    again = make_problem(kind, sizes, CPU)
    assert torch.equal(again.inputs[0], problem.inputs[0]) and torch.equal(again.labels, problem.labels)

    few = problem.counting(7)
    kept = few.labels != IGNORED
    assert kept.sum() == 7 == few.sizes.counted_tokens
    assert torch.equal(few.labels[kept], problem.labels[kept])
    assert problem.counting(1000).sizes.counted_tokens == 50


def test_errors_in_steps_and_shares():
    problem = make_problem("logits", Sizes(8, 32, 4, 4, torch.float32), CPU)
    eager = contenders("logits")[0]
    loss, (gradient,) = eager.run(eager.make(Setting(), CPU), problem)
    largest = gradient.abs().max().item()
    exact = errors(problem, Setting(), loss, (gradient,))
    assert exact.loss < 1e-6 and exact.gradient < 1e-6

    off = gradient.clone()
    off[3, 5] += 0.01 * largest
    found = errors(problem, Setting(), 1.001 * loss, (off,))
    assert found.loss == pytest.approx(1e-3, rel=0.01)
    assert found.gradient == pytest.approx(0.01, rel=0.01)
    gap = 2.0 ** (math.floor(math.log2(largest)) - 23)
    assert found.steps == pytest.approx(0.01 * largest / gap, rel=0.01)

    # Rounded once to bfloat16, a gradient is within half a step.
    rounded = errors(problem, Setting(), loss, (gradient.bfloat16(),))
    assert 0.1 < rounded.steps <= 0.51
    assert errors(problem, Setting(), loss, (gradient * math.nan,)) == Errors(exact.loss, math.inf, math.inf)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"tokens": 0}, "tokens must be at least 1; got 0"), ({"vocabulary": 1}, "must be at least 2"),
     ({"counted": 0.0}, "counted must be in"), ({"counted": 1.5}, "got 1.5")],
)  # fmt: skip
def test_sizes_that_are_none_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        replace(Sizes(4, 8, 2, 2, torch.float32), **change)


def test_settings_that_are_none_are_refused():
    with pytest.raises(ValueError, match="temperature"):
        Setting(temperature=0.0)
    with pytest.raises(ValueError, match="alpha"):
        Setting(alpha=1.5)
