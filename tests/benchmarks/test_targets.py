"""Figures to reach: made-up rows, at the limit and just beyond it."""

import math

import pytest

from benchmarks.race import Row
from benchmarks.targets import Target, judged_targets, targets_table


def gpu_rows(**changed):
    """Every figure exactly at its limit."""
    v = {
        "floor": 1.30, "liger": 1.15, "peak": 2.2e9, "leanest": 2.2e9, "eager": 14 * 2.2e9,
        "forward": 1.4, "reverse": 1.4, "jsd": 1.4, "odd": 1.4, "odd jsd": 1.4, "faster": 0.2, "small": 1.0,
        "quarter": 0.35, "loss": 1e-4, "steps": 1.0, "fused": 5.0, "precise": 2.0,
    } | changed  # fmt: skip
    rows = [
        Row("linear", "forward", "eager PyTorch", seconds=0.3, peak_bytes=v["eager"], gradient_steps=5.0),
        Row("linear", "forward", "Liger chunked JSD", seconds=0.5, peak_bytes=v["leanest"]),
        Row("linear", "forward", "Liger fused linear JSD", note="out of memory"),
        Row("linear", "forward", "Liger fused linear KL", seconds=0.04 * v["liger"], peak_bytes=1e10),
        Row("linear", "forward", "kdlib", seconds=0.04, peak_bytes=v["peak"], matrix_share=1 / v["floor"],
            loss_error=1e-6, gradient_steps=v["fused"]),
        Row("linear", "forward", "kdlib, float32 logits", seconds=0.03, peak_bytes=1,
            gradient_steps=v["precise"]),
    ]  # fmt: skip
    for case in ("forward", "reverse", "jsd"):
        rows.append(Row("logits", case, "eager PyTorch", seconds=0.1, loss_error=1.0, gradient_steps=99.0))
        rows.append(Row("logits", case, "kdlib", seconds=0.02, time_ratio=v["faster"],
                        copy_share=1 / v[case], loss_error=v["loss"], gradient_steps=0.5))  # fmt: skip
        odd = v["odd jsd" if case == "jsd" else "odd"]
        rows += [
            Row("shapes", f"{case}, {name}", "kdlib", seconds=0.02, copy_share=1 / limit, loss_error=1e-6,
                gradient_steps=v["steps"])
            for name, limit in (("50,257 classes", 1.1), ("logits[:, :151665]", odd))
        ]  # fmt: skip
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
    assert verdicts(gpu_rows()) == ["yes"] * 19


@pytest.mark.parametrize(
    ("change", "missed"),
    [({"floor": 1.31}, [0]), ({"liger": 1.14}, [1]), ({"peak": 2.21e9}, [2, 3, 4]),
     ({"eager": 13.9 * 2.2e9}, [3]), ({"leanest": 2.19e9}, [4]), ({"forward": 1.41}, [5]),
     ({"odd": 1.41}, [6, 9]), ({"faster": 0.201}, [7, 10]), ({"reverse": 1.41}, [8]), ({"jsd": 1.41}, [11]),
     ({"odd jsd": 1.41}, [12]), ({"small": 1.001}, [13]), ({"quarter": 0.351}, [14]),
     ({"loss": 1.01e-4}, [15]), ({"steps": 1.01}, [16]), ({"steps": math.inf}, [16]), ({"fused": 5.1}, [17]),
     ({"precise": 2.1}, [18])],
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
              for task in ("linear", "logits", "shapes", "sizes", "masked")
              for case in ("forward", "jsd", "forward, 50,257 classes")]  # fmt: skip
    assert set(verdicts(failed, device)) == {"not measured"}


def test_nan_is_not_reached():
    assert Target("a", 1.0, math.nan).reached == Target("a", 1.0, math.nan, at_least=True).reached == "no"


def test_the_table_shows_limit_value_and_verdict():
    text = targets_table([
        Target("speed", 1.5, 1.499, at_least=True), Target("size", 2.0, None, calculated=1.25)
    ])  # fmt: skip
    head, first, second = text.splitlines()
    assert first.split() == ["speed", "≥", "1.5", "1.5", "no"]
    assert second.split() == ["size", "≤", "2", "1.25", "not", "measured"]
    assert head.index("calculated") + len("calculated") == second.index("1.25") + len("1.25")


def test_what_is_calculated_is_not_taken_for_measured():
    figures = {"floor": 1.1, "forward": 1.0, "forward unaligned": 1.2, "small": 0.5}
    targets = judged_targets([], "cuda", figures)
    assert {target.reached for target in targets} == {"not measured"}
    assert {target.calculated for target in targets} == {None, *figures.values()}
    stored = [target.as_json() for target in targets]
    assert stored[0]["calculated"] == 1.1 and stored[0]["value"] is None
    assert "calculated" not in stored[1]


def test_each_figure_that_is_calculated_has_a_target():
    """And each target one, but for errors."""
    names = (
        "floor", "liger", "memory", "memory against eager", "memory against the leanest", "small", "quarter",
        "forward eager", "reverse eager",
        *(case + more for case in ("forward", "reverse", "jsd") for more in ("", " unaligned")),
    )  # fmt: skip
    figures = dict(zip(names, range(len(names)), strict=True))
    targets = judged_targets([], "cuda", figures)
    assert sorted(t.calculated for t in targets if t.calculated is not None) == list(range(len(names)))
    assert all("error" in t.name for t in targets if t.calculated is None)
