"""Checkpoints of training: taken up again in one process, and refused with the reason."""

import errno
import json
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from full_disk import full_after
from torch import nn

from kdlib.data import Examples
from kdlib.losses.kd import kd_loss
from kdlib.storage import JsonLines, load_tensors, save_tensors
from kdlib.training import fit


def pictures(count=21, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 3, 3, generator=generator)
    return Examples(images, torch.randint(0, 3, (count,), generator=generator), torch.arange(count))


def network(dropout=0.3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


SETTINGS = {"epochs": 3, "lr": 1e-2, "batch_size": 5, "device": "cpu", "seed": 0}  # five steps an epoch


class Stopping:
    """Cross-entropy that raises after so many steps, as Ctrl-C would."""

    def __init__(self, after=None):
        self.after, self.steps = after, 0

    def __call__(self, student_logits, teacher_logits, labels):
        if self.steps == self.after:
            raise KeyboardInterrupt
        self.steps += 1
        return nn.functional.cross_entropy(student_logits, labels)


def run(path, *, student=None, after=None, **changed):
    student = student or network()
    loss = Stopping(after)
    settings = {"data": pictures(), "loss": loss, "checkpoint": path, **SETTINGS, **changed}
    if after is None:
        history = facts(fit(student, **settings))
    else:
        with pytest.raises(KeyboardInterrupt):
            fit(student, **settings)
        history = None
    return student.state_dict(), history, loss.steps


def facts(history):
    """A history as plain values, which can be compared."""
    scores = [{**vars(s), "correct": s.correct.tolist()} for s in history.validation]
    return {**vars(history), "validation": scores}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


# --- taking a run up again -------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "redone"), [(None, 3), (4, 0), (3, 2), (100, 8)])
@pytest.mark.parametrize("changed", [{}, {"validation": pictures(9, 1), "clip": 0.5}])
def test_an_interrupted_run_ends_as_an_undisturbed_one(path, every, redone, changed):
    expected, undisturbed, steps = run(None, **changed)
    run(path, after=8, checkpoint_every=every, **changed)
    found, history, more = run(path, checkpoint_every=every, **changed)
    assert same(found, expected)
    assert history == undisturbed
    assert more == steps - 8 + redone


@pytest.mark.parametrize("every", [None, 4, 7, 100])
def test_a_finished_run_returns_at_once_with_its_weights_and_history(path, every):
    validation = pictures(9, 1)
    expected, history, _ = run(path, checkpoint_every=every, validation=validation)
    before = path.read_bytes()
    found, again, steps = run(path, checkpoint_every=every, validation=validation)
    assert steps == 0
    assert same(found, expected)
    assert again == history
    assert path.read_bytes() == before


def test_a_checkpoint_makes_no_difference_to_training(path):
    assert same(run(path, checkpoint_every=2)[0], run(None)[0])


def test_leftovers_of_killed_writers_are_removed_and_nothing_else_is(tmp_path):
    path, log = tmp_path / "run[1].safetensors", tmp_path / "log.jsonl"
    ours = [tmp_path / ".run[1].safetensors.7-ab.part", tmp_path / ".log.jsonl.7-ab.part"]
    others = [tmp_path / ".run1.safetensors.7-ab.part", tmp_path / "run[1].safetensors.part"]
    for file in ours + others:
        file.write_bytes(b"half")
    run(path, log=log)
    assert not any(file.exists() for file in ours)
    assert all(file.exists() for file in others)


# --- refusals --------------------------------------------------------------------------------------


def other_loss(student_logits, teacher_logits, labels):
    return nn.functional.cross_entropy(student_logits, labels)


def frozen():
    model = network()
    next(layer for layer in model if isinstance(layer, nn.Linear)).requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"lr": 2e-2}, "lr was 0.01, is 0.02"),
        ({"epochs": 4}, "epochs was 3, is 4"),
        ({"batch_size": 7}, "batch_size was 5, is 7"),
        ({"weight_decay": 0.0}, "weight_decay was 0.0001, is 0.0"),
        ({"clip": 1.0}, "clip was None, is 1.0"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"precision": "bf16"}, "precision was no, is bf16"),
        ({"data": pictures(seed=1)}, "data was"),
        ({"validation": pictures(9)}, "validation was None, is"),
        ({"teacher": torch.zeros(21, 3)}, "teacher was None, is"),
        ({"loss": other_loss}, "loss was Stopping, is other_loss"),
        ({"watch": {"more": other_loss}}, r"watch was \[\], is \['more'\]"),
        ({"student": network(dropout=0.2)}, "student was"),
        ({"student": frozen()}, r"frozen was None, is \['1.weight'"),
        ({"lr": 2e-2, "seed": 1}, "lr was 0.01, is 0.02; seed was 0, is 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_run_is_refused_and_left_alone(path, changed, reason):
    run(path, after=7)
    before = path.read_bytes()
    student = changed.get("student") or network()
    start = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(ValueError, match=f"belongs to another run: .*{reason}.*Delete it to start anew"):
        run(path, **{**changed, "student": student})
    assert path.read_bytes() == before
    assert same(student.state_dict(), start)


def test_a_teacher_whose_weights_have_changed_is_refused(path):
    teacher = network()
    run(path, teacher=teacher)
    run(path, teacher=network())  # an equal one is none other
    with torch.no_grad():
        teacher[1].weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match="teacher was"):
        run(path, teacher=teacher)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (partial(kd_loss, temperature=3.0, alpha=0.5), "temperature': '2.0'.*temperature': '3.0'"),
        (kd_loss, "loss was"),
        (partial(other_loss), "other_loss"),
    ],
)
def test_a_partial_is_known_by_its_arguments(path, other, reason):
    settings = {"teacher": torch.zeros(21, 3)}
    run(path, loss=partial(kd_loss, temperature=2.0, alpha=0.5), **settings)
    run(path, loss=partial(kd_loss, temperature=2.0, alpha=0.5), **settings)
    with pytest.raises(ValueError, match=reason):
        run(path, loss=other, **settings)


def test_a_truncated_or_altered_checkpoint_is_refused_and_stays(path):
    run(path, after=7)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-20] ^= 1
    for spoilt, reason in [
        (whole[: len(whole) // 2], "is truncated"),
        (whole[:3], "is truncated"),
        (b"", "is truncated"),
        (bytes(flipped), "has changed since it was written"),
    ]:
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match=rf"run\.safetensors {reason}.*; delete it"):
            run(path)
        assert path.read_bytes() == spoilt
    path.write_bytes(whole)
    assert run(path)[2] == 10


def test_a_file_that_is_no_checkpoint_is_refused_and_stays(path):
    path.write_bytes(b"notes of mine, " * 100)
    with pytest.raises(ValueError, match="run.safetensors"):
        run(path)
    assert path.read_bytes().startswith(b"notes")
    save_tensors(path, {"a": torch.zeros(2)})
    with pytest.raises(ValueError, match="is not a checkpoint of fit; choose another name"):
        run(path)


@pytest.mark.parametrize("content", [b"#!/bin/sh\n", b"a", b"{}", b"\x89PNG\r\n\x1a\n\0\0", b"PK\3\4 etc"])
def test_nobody_is_told_to_delete_a_file_of_theirs(path, tmp_path, content):
    for name in ("checkpoint", "log"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"is not a {name} of fit; choose another name") as raised:
            run(None, **{name: path})
        assert "elete it" not in str(raised.value) and path.read_bytes() == content


@pytest.mark.parametrize("name", ["checkpoint", "log"])
def test_what_can_be_no_file_is_refused_before_the_first_step(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    for value, error, message in [
        ("", ValueError, f"{name} is ''; expected the name of a file"),
        (True, ValueError, f"{name} is True; expected the name of a file"),
        (tmp_path, ValueError, f"{name} is the folder .*; expected a file, such as"),
        ("/dev/null", ValueError, f"{name} is /dev/null, which is no regular file"),
        (tmp_path / "file" / "run", OSError, "cannot write .*run .*: a part of this path is a file"),
    ]:
        loss = Stopping()
        with pytest.raises(error, match=message):
            fit(network(), pictures(), loss=loss, **{name: value}, **SETTINGS)
        assert loss.steps == 0
    with pytest.raises(ValueError, match="log and checkpoint are both .*file; expected two"):
        run(tmp_path / "other_file", log=tmp_path / "other_file")


# --- one run at a time -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoint", "log"])
def test_two_runs_do_not_share_a_file(tmp_path, name):
    path, seen = tmp_path / "run", []

    def loss(student_logits, teacher_logits, labels):
        if not seen:
            before = sorted(file.name for file in tmp_path.iterdir())
            with pytest.raises(TimeoutError, match=f"another process is training into .*run; wait.*{name}"):
                fit(network(), pictures(), **{name: path}, **SETTINGS)
            assert sorted(file.name for file in tmp_path.iterdir()) == before
            seen.append(before)
        return nn.functional.cross_entropy(student_logits, labels)

    fit(network(), pictures(), loss=loss, **{name: path}, **SETTINGS)
    fit(network(), pictures(), loss=loss, **{name: path}, **SETTINGS)  # the first has let go of it
    assert seen


def test_a_run_that_failed_has_let_go_of_its_files(path):
    run(path, after=7)
    run(path)


# --- no room ---------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size):
    """The system refuses to write more into a file."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("name", "size"), [("checkpoint", 2000), ("log", 150)])
def test_where_there_is_no_room_the_file_is_named_and_the_run_goes_on_later(tmp_path, name, size):
    path, log = tmp_path / "run", tmp_path / "log"
    expected, undisturbed, _ = run(None)
    given = {"checkpoint": {"checkpoint": path}, "log": {"log": log}}[name]
    refused = f"cannot write .*{'run' if name == 'checkpoint' else 'log'} .*raise the limit"
    with files_of_at_most(size), pytest.raises(OSError, match=refused) as raised:
        fit(network(), pictures(), loss=Stopping(), **given, **SETTINGS)
    assert raised.value.errno == errno.EFBIG
    assert not list(tmp_path.glob(".*.part")) and not path.exists()
    assert name == "checkpoint" or [*JsonLines(log)] and log.read_bytes().endswith(b"\n")
    found, history, _ = run(path, log=log)
    assert same(found, expected) and history == undisturbed
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [1, 2, 3]


def test_a_full_disk_leaves_the_last_checkpoint(path):
    """As the system tells it, when the third checkpoint is written."""
    expected, undisturbed, _ = run(None)
    with full_after(2), pytest.raises(OSError, match="No space left.*make room"):
        fit(network(), pictures(), loss=Stopping(), checkpoint=path, checkpoint_every=4, **SETTINGS)
    assert load_tensors(path)[1]["history"]["steps"] == 8
    found, history, steps = run(path, checkpoint_every=4)
    assert same(found, expected) and history == undisturbed and steps == 15 - 8


# --- the log ---------------------------------------------------------------------------------------


def test_a_resumed_log_keeps_the_lines_of_the_epochs_done_and_writes_the_others_again(path, tmp_path):
    log = tmp_path / "deeper" / "log.jsonl"
    run(path, log=log, after=12)  # the checkpoint holds two epochs
    whole = log.read_text()
    log.write_bytes((whole + '{"epoch": 3}\n{"epoch": 4, "lo').encode())  # cut off in the middle
    run(path, log=log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert log.read_text().startswith(whole)
    assert "loss" in lines[2]
    assert all(line["seconds"] >= 0 for line in lines)


def test_a_new_run_does_not_add_to_the_log_of_another(tmp_path):
    for _ in range(2):
        run(None, log=tmp_path / "log.jsonl")
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
