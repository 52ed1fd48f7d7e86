"""Figures to reach: made-up rows, at the limit and just beyond it."""

import math

import pytest

from benchmarks.race import Row
from benchmarks.targets import Target, judged_targets, targets_table


def gpu_rows(**changed):
    """Every figure exactly at its limit."""
    v = {
        "floor": 1.35, "liger": 1.5, "peak": 2.3e9, "chunked": 4 * 2.3e9, "eager": 30 * 2.3e9,
        "forward": 1.4, "reverse": 1.4, "jsd": 1.4, "faster": 0.2, "small": 1.0, "quarter": 0.35,
        "loss": 1e-4, "steps": 1.0,
    } | changed  # fmt: skip
    rows = [
        Row("linear", "forward", "eager PyTorch", seconds=0.3, peak_bytes=v["eager"]),
        Row("linear", "forward", "Liger chunked JSD", seconds=0.5, peak_bytes=v["chunked"]),
        Row("linear", "forward", "Liger fused linear JSD", note="out of memory"),
        Row("linear", "forward", "Liger fused linear KL", seconds=0.04 * v["liger"], peak_bytes=1),
        Row("linear", "forward", "kdlib", seconds=0.04, peak_bytes=v["peak"], matrix_share=1 / v["floor"],
            loss_error=1e-6, gradient_steps=v["steps"]),
    ]  # fmt: skip
    for case in ("forward", "reverse", "jsd"):
        rows.append(Row("logits", case, "eager PyTorch", seconds=0.1, loss_error=1.0, gradient_steps=99.0))
        rows.append(Row("logits", case, "kdlib", seconds=0.02, time_ratio=v["faster"],
                        copy_share=1 / v[case], loss_error=v["loss"], gradient_steps=0.5))  # fmt: skip
    rows += [
        Row("sizes", "linear, forward, 256 tokens", "kdlib", seconds=1, time_ratio=v["small"]),
        Row("sizes", "linear, forward, 512 tokens", "kdlib", seconds=1, time_ratio=0.1),
        Row("masked", "forward", "kdlib, all tokens", seconds=1, time_ratio=1.0),
        Row("masked", "forward", "kdlib, 25% of the tokens", seconds=1, time_ratio=v["quarter"]),
    ]
    return rows


def verdicts(rows, device="cuda"):
    return [target.reached for target in judged_targets(rows, device)]


def test_every_figure_at_its_limit_is_reached():
    assert verdicts(gpu_rows()) == ["yes"] * 14


@pytest.mark.parametrize(
    ("change", "missed"),
    [({"floor": 1.36}, [0]), ({"liger": 1.49}, [1]), ({"peak": 2.31e9}, [2, 3, 4]),
     ({"chunked": 4 * 2.29e9}, [3]), ({"eager": 29 * 2.3e9}, [4]), ({"forward": 1.41}, [5]),
     ({"reverse": 1.41}, [7]), ({"jsd": 1.41}, [9]), ({"faster": 0.201}, [6, 8]), ({"small": 1.001}, [10]),
     ({"quarter": 0.351}, [11]), ({"loss": 1.01e-4}, [12]), ({"steps": 1.01}, [13]),
     ({"steps": math.inf}, [13])],
)  # fmt: skip
def test_a_figure_just_missed_is_not_reached(change, missed):
    found = verdicts(gpu_rows(**change))
    assert [place for place, said in enumerate(found) if said != "yes"] == missed
    assert {found[place] for place in missed} == {"no"}


def test_figures_of_a_cpu():
    def rows(time=1.15, memory=0.2, pictures=1.25, texts=1.25):
        return [
            Row("linear", "forward", "kdlib", seconds=1, time_ratio=time, memory_ratio=memory),
            Row("training", "pictures", "cached teacher", seconds=1, time_ratio=pictures),
            Row("training", "texts", "cached teacher", seconds=1, time_ratio=texts),
        ]

    assert verdicts(rows(), "cpu") == ["yes"] * 4
    assert verdicts(rows(time=1.151), "cpu") == ["no", "yes", "yes", "yes"]
    assert verdicts(rows(memory=0.201), "cpu") == ["yes", "no", "yes", "yes"]
    assert verdicts(rows(pictures=1.26), "cpu") == ["yes", "yes", "no", "yes"]
    assert verdicts(rows(texts=1.26), "cpu") == ["yes", "yes", "yes", "no"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_was_not_measured_is_not_reached(device):
    assert set(verdicts([], device)) == {"not measured"}
    failed = [Row(task, case, "kdlib", note="out of memory")
              for task in ("linear", "logits", "sizes", "masked") for case in ("forward", "jsd")]  # fmt: skip
    assert set(verdicts(failed, device)) == {"not measured"}


def test_nan_is_not_reached():
    assert Target("a", 1.0, math.nan).reached == Target("a", 1.0, math.nan, at_least=True).reached == "no"


def test_the_table_shows_limit_value_and_verdict():
    text = targets_table([Target("speed", 1.5, 1.499, at_least=True), Target("size", 2.0, None)])
    _, first, second = text.splitlines()
    assert first.split() == ["speed", "≥", "1.5", "1.5", "no"]
    assert second.split() == ["size", "≤", "2", "not", "measured"]
