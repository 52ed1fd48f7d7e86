"""Finished runs, found by all that share the file; columns of figures; what is packed comes back."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdlib.course.studies.records import (
    columns,
    load_results,
    once,
    pack_bits,
    scores_of,
    unpack_bits,
    verdicts,
)  # fmt: skip

FIGURES = {"accuracy": 0.1 + 0.2, "correct": ["3f", 6]}


def refuse():
    raise AssertionError("run again")


def test_a_run_is_made_once_and_found_by_its_key_alone(tmp_path):
    path = tmp_path / "deep" / "runs.jsonl"
    key = ["arm", 1, True]
    made = once(path, key, lambda: FIGURES)
    assert made == {"key": key, **FIGURES} == once(path, key, refuse)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [made]
    for other in (["arm", 1, False], ["arm", "1", True], ["arm", 1], ["arm", 2, True]):
        with pytest.raises(AssertionError, match="run again"):
            once(path, other, refuse)
        assert once(path, other, lambda: {"nll": 1.0}) == {"key": other, "nll": 1.0}
    assert once(path, key, refuse) == made


def test_a_run_that_was_not_written_whole_is_run_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    once(path, [1], lambda: FIGURES)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert once(path, [2], lambda: FIGURES) == {"key": [2], **FIGURES}
    assert once(path, [1], refuse) == {"key": [1], **FIGURES}


def test_columns_keep_the_order_of_the_runs():
    runs = [{"seed": 0, "nll": 2.0}, {"seed": 1, "nll": 1.0}]
    assert columns(runs, leave_out=("seed",)) == {"nll": [2.0, 1.0]}


def test_scores_are_those_of_runs_and_of_columns_and_unknown_ones_are_nan():
    runs = [{"accuracy": 0.5, "correct": pack_bits(torch.tensor([True, False]))}] * 2
    for arm in (runs, columns(runs)):
        for scores in scores_of(arm):
            assert scores.accuracy == 0.5 and scores.correct.tolist() == [True, False]
            assert math.isnan(scores.nll) and math.isnan(scores.ece)


def test_verdicts_are_on_the_arms_there_are_and_say_how_much_of_the_gap_was_closed():
    arms = {
        name: {"accuracy": accuracy, "correct": [["3", 2]] * 2}
        for name, accuracy in (("alone", [0.5, 0.6]), ("distilled", [0.7, 0.8]))
    }
    pairs = [("distilled", "alone"), ("alone", "distilled"), ("distilled", "nobody")]
    found = verdicts(arms, pairs, teacher_accuracy=0.95)
    assert list(found) == ["distilled against alone", "alone against distilled"]
    assert "corrected for 2 verdicts" in found["distilled against alone"]["text"]
    assert found["distilled against alone"]["gap_closed"] == pytest.approx(0.5)
    assert "gap_closed" not in found["alone against distilled"]
    assert "gap_closed" not in verdicts(arms, pairs)["distilled against alone"]


def test_a_loss_is_compared_with_less_being_better():
    arms = {"distilled": {"nll": [0.4, 0.5, 0.45]}, "alone": {"nll": [0.6, 0.7, 0.66]}}
    found = verdicts(arms, [("distilled", "alone")], loss="nll")["distilled against alone"]
    assert found["verdict"] == "better" and found["difference"] == pytest.approx(0.61 / 3)
    assert "nats less" in found["text"]
    by_example = {
        arm: {"kl": [torch.tensor([x, x + 0.2]) for x in runs["nll"]]} for arm, runs in arms.items()
    }
    whole = verdicts(by_example, [("distilled", "alone")], loss="kl")["distilled against alone"]
    assert whole["difference"] == pytest.approx(found["difference"])
    assert "2 test examples together" in whole["text"]


@given(st.lists(st.booleans(), min_size=1, max_size=130))
def test_right_answers_are_the_same_after_packing(answers):
    packed = json.loads(json.dumps(pack_bits(torch.tensor(answers))))
    assert unpack_bits(*packed).tolist() == answers
    assert unpack_bits(*packed).dtype == torch.bool
    assert len(packed[0]) <= -(-len(answers) // 4)  # a digit holds four


def test_the_first_example_is_the_highest_digit():
    assert pack_bits(torch.tensor([True, False, False, False, False, True])) == ["21", 6]
    assert unpack_bits("0", 3).tolist() == [False] * 3


def test_a_results_file_that_is_not_there_is_refused_with_what_helps():
    with pytest.raises(FileNotFoundError, match=r"nothing\.json: clone the course's repository"):
        load_results("nothing.json")
