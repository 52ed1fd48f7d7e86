"""Files that are whole or not there: what a damaged one is called, and what a fingerprint stands for."""

import errno
import hashlib
import json
import os
import struct
import sys
import threading
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from kdlib.losses.kd import kd_loss
from kdlib.storage import (
    DamagedFile,
    ForeignFile,
    JsonLines,
    fingerprint,
    identity,
    load_tensors,
    replaced,
    save_tensors,
    writing,
)
from kdlib.vision.nets import digit_cnn

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
          torch.uint8, torch.uint16, torch.bool]


def written(path, **metadata):
    tensors = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([True, False])}
    save_tensors(path, tensors, metadata)
    return tensors


# --- what comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)], ids=str)
def test_a_tensor_comes_back_as_it_was(tmp_path, dtype, shape):
    tensor = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_tensors(tmp_path / "file", {"tensor": tensor})
    back = load_tensors(tmp_path / "file")[0]["tensor"]
    assert back.dtype == dtype and back.shape == shape and torch.equal(back, tensor)


def test_views_that_share_memory_come_back_as_they_were(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    save_tensors(tmp_path / "file", {"whole": whole, "across": whole.T, "every other": whole[::2]})
    back, _ = load_tensors(tmp_path / "file")
    assert torch.equal(back["across"], whole.T) and torch.equal(back["every other"], whole[::2])


@settings(max_examples=15)
@given(st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text() | st.lists(
    st.floats(allow_nan=False)), max_size=4))
def test_metadata_come_back_as_they_were(tmp_path_factory, metadata):
    path = tmp_path_factory.mktemp("metadata") / "file"
    save_tensors(path, {}, metadata)
    assert load_tensors(path) == ({}, metadata)


def test_numbers_as_keys_become_text_as_in_all_json(tmp_path):
    save_tensors(tmp_path / "file", {}, {10: "ten", 9: "nine"})
    assert load_tensors(tmp_path / "file")[1] == {"10": "ten", "9": "nine"}


def test_the_same_tensors_are_the_same_bytes(tmp_path):
    """Rust seeds each hash map anew, and safetensors writes metadata in the order of one."""
    written(tmp_path / "first", step=3, lr=0.1)
    for _ in range(20):
        tensors = {"b": torch.tensor([True, False]), "a": torch.arange(12.0).reshape(3, 4)}
        save_tensors(tmp_path / "again", tensors, {"lr": 0.1, "step": 3})
        assert (tmp_path / "again").read_bytes() == (tmp_path / "first").read_bytes()


# --- whole or not there ----------------------------------------------------------------------------


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="on purpose"), replaced(path) as file:
        file.write(b"half of the n")
        raise RuntimeError("on purpose")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_name_shows_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "folder" / "file"
    with replaced(path) as file:
        file.write(b"first")
        assert not path.exists()
    with replaced(path) as file:
        file.write(b"second")
        file.flush()
        assert path.read_bytes() == b"first"
    assert path.read_bytes() == b"second"


def test_bytes_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a)))
    written(tmp_path / "file")
    assert calls == ["fsync", "replace"]


def test_a_record_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    lines = JsonLines(tmp_path / "lines.jsonl")
    real, reached = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda file: (real(file), reached.append(lines.path.read_bytes())))
    lines.append({"a": 1}, {"b": 2})
    assert reached == [b'{"a": 1}\n{"b": 2}\n'] == [lines.path.read_bytes()]


def test_threads_that_write_one_file_at_once_leave_it_whole(tmp_path):
    path, failures, start = tmp_path / "file", [], threading.Barrier(4)

    def write(number):
        start.wait()
        try:
            for _ in range(10):
                save_tensors(path, {"number": torch.full((5000,), number)}, {"number": number})
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    tensors, metadata = load_tensors(path)
    assert (tensors["number"] == metadata["number"]).all()
    assert os.listdir(tmp_path) == ["file"]


# --- what cannot be written ------------------------------------------------------------------------


@pytest.fixture
def little_room():
    """Files of 1,000 bytes at most, as `ulimit -f` sets it, while the fixture's function is called."""
    resource = pytest.importorskip("resource")

    def limited(write):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def test_a_file_that_may_not_be_so_large_is_named_and_the_old_one_stays(tmp_path, little_room):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=r"cannot write .*/file \(.*\): it would be larger.*ulimit.*again"):
        little_room(lambda: save_tensors(path, {"a": torch.zeros(1000)}))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    save_tensors(path, {"a": torch.zeros(1000)})
    assert load_tensors(path)[0]["a"].shape == (1000,)


@pytest.mark.parametrize("records", [[{"a": "x" * 2000}], [{"a": "x" * 600}, {"b": 1}, {"c": "y" * 600}]])
def test_lines_for_which_there_is_no_room_leave_nothing_and_can_be_added_later(
    tmp_path, little_room, records
):
    lines = JsonLines(tmp_path / "lines.jsonl")
    lines.append({"first": 1})
    whole = lines.path.read_bytes()
    with pytest.raises(OSError, match="cannot write .*lines.jsonl .*larger"):
        little_room(lambda: lines.append(*records))
    assert lines.path.read_bytes() == whole
    with pytest.raises(OSError, match="cannot write .*lines.jsonl .*larger"):
        little_room(lambda: lines.replace(records))
    assert lines.path.read_bytes() == whole
    assert {*os.listdir(tmp_path)} <= {"lines.jsonl", ".lines.jsonl.lock"}
    lines.append(*records)
    assert list(lines) == [{"first": 1}, *records]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_is_full_or_fails_is_told_with_the_file(tmp_path, monkeypatch, number):
    lines = JsonLines(tmp_path / "lines.jsonl")
    lines.append({"first": 1})

    def fails(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    for write in (lambda: lines.append({"b": 2}), lambda: save_tensors(tmp_path / "lines.jsonl", {})):
        with pytest.raises(OSError, match="write .*lines.jsonl .*(make room|choose another)") as raised:
            write()
        assert raised.value.errno == number
        assert list(lines) == [{"first": 1}]


def test_a_path_that_goes_through_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "deep" / "lines.jsonl"
    for write in (lambda: JsonLines(path), lambda: save_tensors(path, {})):
        with pytest.raises(OSError, match="cannot write .*deep/lines.jsonl .*expected a folder"):
            write()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/sys is of Linux")
def test_a_place_where_nobody_may_write_is_named():
    path = "/sys/lines.jsonl"
    for write in (lambda: JsonLines(path).append({}), lambda: save_tensors(path, {})):
        with pytest.raises(PermissionError, match=f"cannot write {path} .*you may not write there"):
            write()


@pytest.mark.parametrize("name", ["", ".", "folder"])
def test_a_folder_is_no_file_of_lines(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=f"{name!r} is a folder; expected the name of a file"):
        JsonLines(name)
    with pytest.raises(OSError, match="cannot write .*this is a folder|is a folder"):
        save_tensors(tmp_path / "folder", {})
    assert os.listdir(tmp_path) == ["folder"]


def test_errors_of_other_files_and_other_libraries_stay_as_they_are(tmp_path):
    missing = Path("elsewhere/none")
    with pytest.raises(FileNotFoundError, match="elsewhere/none'$"), replaced(tmp_path / "file"):
        missing.read_bytes()
    with pytest.raises(TimeoutError, match="^mine$"), writing(tmp_path / "file"):
        raise TimeoutError("mine")
    assert os.listdir(tmp_path) == []


# --- damage ----------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_tensors(tmp_path / "nothing")


def test_every_truncation_is_named(tmp_path):
    path = tmp_path / "file"
    written(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFile, match="file is truncated or damaged .*; delete it and make it again"):
            load_tensors(path)


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "file"
    tensors = written(path, step=3)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (0, 6):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(DamagedFile):
                load_tensors(path)
    path.write_bytes(whole)
    assert torch.equal(load_tensors(path)[0]["a"], tensors["a"])


def test_bytes_appended_are_noticed(tmp_path):
    path = tmp_path / "file"
    written(path)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DamagedFile, match="is truncated or damaged"):
        load_tensors(path)


def test_a_file_of_something_else_is_told_from_a_damaged_one(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "other", {"format": "pt"})
    with pytest.raises(ForeignFile, match="was not written by kdlib"):
        load_tensors(tmp_path / "other")
    (tmp_path / "text").write_text("Dear reader, this is no tensor at all.")
    with pytest.raises(DamagedFile, match="is truncated or damaged"):
        load_tensors(tmp_path / "text")


@pytest.mark.parametrize("header", [b"[]", b"null", b'{"a": 3}', b'{"a": {}}', b"\xff\xfe", b"{"])
def test_a_header_of_garbage_is_damage_and_nothing_worse(tmp_path, header):
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(DamagedFile):
        load_tensors(tmp_path / "file")


# --- lines -----------------------------------------------------------------------------------------


def test_lines_come_back_as_they_were_and_anyone_can_read_them(tmp_path):
    records = [{"a": 0.1 + 0.2, "b": [1, None]}, {"鸡兔": "\u2028\x85 \n"}, {}]
    lines = JsonLines(tmp_path / "deep" / "lines.jsonl")
    assert list(lines) == []
    lines.append(*records[:2])
    lines.append(records[2])
    assert list(lines) == list(JsonLines(str(lines.path))) == records
    text = lines.path.read_bytes().decode()
    assert "鸡兔" in text and [json.loads(line) for line in text.split("\n")[:-1]] == records
    lines.replace(records[:1])
    assert list(lines) == records[:1]


@pytest.mark.parametrize("kept", [1, 12, -1])
def test_what_a_killed_process_wrote_of_a_line_is_not_read_and_cut_off(tmp_path, kept):
    lines = JsonLines(tmp_path / "lines.jsonl")
    for existing in ([], [{"whole": 1}]):
        lines.replace(existing)
        with open(lines.path, "ab") as file:
            file.write(b'{"torn": "' + b"x" * 20 + b'"}'[:kept])
        assert list(lines) == existing
        lines.append({"next": 2})
        assert list(lines) == [*existing, {"next": 2}]


@pytest.mark.parametrize("line", [b"notes of mine", b"[1]", b"\xff\xfe", b""])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    lines = JsonLines(tmp_path / "lines.jsonl")
    lines.append({"a": 1})
    with open(lines.path, "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(DamagedFile, match="line 2 of .*lines.jsonl is not a JSON object"):
        list(lines)


def test_writers_that_share_a_file_lose_nothing(tmp_path):
    def write(name):
        lines = JsonLines(tmp_path / "lines.jsonl")  # its own lock, as another process has
        for number in range(40):
            lines.append({"name": name, "number": number, "filling": "x" * 5000})

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = sorted((record["name"], record["number"]) for record in JsonLines(tmp_path / "lines.jsonl"))
    assert found == list(product("ab", range(40)))


# --- fingerprints ----------------------------------------------------------------------------------


def test_a_fingerprint_is_the_same_on_every_machine():
    """Caches and checkpoints outlive the process: the rule is spelled out here, and must not drift."""
    parts = (torch.arange(3, dtype=torch.int16), {"b": 1, "a": [2.5, None]}, b"bytes")
    spelled_out = (
        b"torch.int16 (3,) 6\n" + struct.pack("<3h", 0, 1, 2)
        + b'json 26\n{"a": [2.5, null], "b": 1}'
        + b"bytes 5\nbytes"
    )
    assert fingerprint(*parts) == hashlib.sha256(spelled_out).hexdigest()[:32]


def test_a_fingerprint_looks_at_values_not_at_memory():
    image = torch.rand(2, 3, 4, 5)
    assert fingerprint(image) == fingerprint(image.to(memory_format=torch.channels_last))
    assert fingerprint(image[::2]) == fingerprint(image[::2].clone())
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


DIFFERENT = {
    "order": ((1, 2), (2, 1)),
    "number of parts": ((b"a", b"b"), (b"ab",)),
    "a separator in a part": ((b"a", b"b"), (b"a\0b",)),
    "text against bytes": (('"a"',), (b'"a"',)),
    "number against bytes": ((1,), (b"1",)),
    "one value": ((torch.tensor([1.0, 2.0]),), (torch.tensor([1.0, 2.5]),)),
    "the sign of a zero": ((torch.tensor([0.0]),), (torch.tensor([-0.0]),)),
    "shape": ((torch.zeros(2, 3),), (torch.zeros(3, 2),)),
    "dtype": ((torch.zeros(2, dtype=torch.int32),), (torch.zeros(2),)),
    "empty shapes": ((torch.zeros(0, 3),), (torch.zeros(3, 0),)),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_differs_has_another_fingerprint(case):
    one, other = DIFFERENT[case]
    assert fingerprint(*one) != fingerprint(*other)


def test_a_module_counts_with_weights_buffers_and_architecture():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.1))
    seen = {fingerprint(model)}
    assert fingerprint(model.eval()) in seen, "the mode is not the model"
    with torch.no_grad():
        model[0].weight.view(-1)[7] += 1e-3
    seen.add(fingerprint(model))
    model[1].running_var[1] = 2
    seen.add(fingerprint(model))
    model[2] = nn.GELU()
    seen.add(fingerprint(model))
    model[3].p = 0.2
    seen.add(fingerprint(model))
    assert len(seen) == 5


def test_a_module_with_state_that_is_no_tensor():
    class Counting(nn.Linear):
        calls = 0

        def get_extra_state(self):
            return {"calls": self.calls}

        def set_extra_state(self, state):
            self.calls = state["calls"]

    torch.manual_seed(0)
    model = Counting(2, 2)
    before = fingerprint(model)
    model.calls = 3
    assert fingerprint(model) != before


def test_two_models_of_one_seed_agree_and_of_two_seeds_do_not():
    def build(seed):
        torch.manual_seed(seed)
        return digit_cnn(4)

    assert fingerprint(build(0)) == fingerprint(build(0)) != fingerprint(build(1))


def test_what_cannot_be_named_is_refused():
    with pytest.raises(TypeError):
        fingerprint(object())


def test_the_identity_of_a_function_holds_no_address_and_tells_arguments_apart():
    def identified(**arguments):
        return json.dumps(identity(partial(kd_loss, **arguments)))

    assert "0x" not in identified(base=kd_loss, part=partial(kd_loss, 1), weight=torch.zeros(3))
    long = torch.zeros(5000)
    other = long.clone()
    other[2500] = 1  # which printing leaves out
    assert identified(weight=long) == identified(weight=long.clone()) != identified(weight=other)
    assert identified(base=kd_loss) != identified(base=F.cross_entropy)


def test_the_identity_of_a_loss_tells_the_values_that_it_carries():
    class Scaled(nn.Module):
        def __init__(self, by, weight):
            super().__init__()
            self.by = by
            self.register_buffer("weight", torch.tensor(weight))

    def made(by, seen=None):
        return lambda *three: (seen or []).append(by)

    def at(by):
        return lambda s, t, y, by=by: by

    def told(value):
        return json.dumps(identity(value))

    assert told(Scaled(1.0, 2.0)) == told(Scaled(1.0, 2.0).eval())
    assert told(Scaled(1.0, 2.0)) != told(Scaled(3.0, 2.0)) != told(Scaled(3.0, 4.0))
    assert told(nn.CrossEntropyLoss()) != told(nn.CrossEntropyLoss(label_smoothing=0.1))
    for make in (made, at):
        assert told(make(1.0)) == told(make(1.0)) != told(make(9.0))
    assert told(made(1.0, [])) == told(made(1.0, [5]))  # what is collected there is not what it is
    assert identity(kd_loss) == "kd_loss"
