"""Finished runs: found by whoever shares the file."""

import json

import torch
from hypothesis import given
from hypothesis import strategies as st

from kdlib.course.studies.records import RunLog, pack, unpack


def run(number, **figures):
    return {"key": ["arm", number, True], "accuracy": number / 7, **figures}


def test_a_run_is_found_by_its_key_alone_and_is_what_was_written(tmp_path):
    log = RunLog(tmp_path / "deep" / "runs.jsonl")
    assert log.find(["arm", 1, True]) is None
    log.append(run(1, loss=0.1 + 0.2, correct=["3f", 6]))
    assert log.find(["arm", 1, True]) == run(1, loss=0.1 + 0.2, correct=["3f", 6])
    assert log.find(("arm", 1, True)) is not None  # JSON knows lists only
    for other in (["arm", 1, False], ["arm", "1", True], ["arm", 1], ["arm", 2, True]):
        assert log.find(other) is None


def test_each_run_is_a_line_on_disk_before_the_next_begins(tmp_path):
    path = tmp_path / "runs.jsonl"
    log = RunLog(path)
    for number in range(3):
        log.append(run(number))
        assert [json.loads(line) for line in path.read_text().splitlines()] == [*map(run, range(number + 1))]


def test_what_another_process_appends_is_found(tmp_path):
    path = tmp_path / "runs.jsonl"
    ours, theirs = RunLog(path), RunLog(path)
    ours.append(run(0))
    assert theirs.find(run(0)["key"]) == run(0)
    theirs.append(run(1))
    assert ours.find(run(1)["key"]) == run(1)
    assert ours.find(run(0)["key"]) == run(0)


def test_of_a_run_done_twice_the_last_counts(tmp_path):
    log = RunLog(tmp_path / "runs.jsonl")
    log.append(run(1, seconds=5))
    log.append(run(1, seconds=9))
    assert log.find(run(1)["key"])["seconds"] == 9


@given(st.lists(st.booleans(), min_size=1, max_size=130))
def test_right_answers_are_the_same_after_packing(answers):
    packed = json.loads(json.dumps(pack(torch.tensor(answers))))
    assert unpack(*packed).tolist() == answers
    assert unpack(*packed).dtype == torch.bool
    assert len(packed[0]) <= -(-len(answers) // 4)  # a digit holds four


def test_the_first_example_is_the_highest_digit():
    assert pack(torch.tensor([True, False, False, False, False, True])) == ["21", 6]
    assert unpack("0", 3).tolist() == [False] * 3
