import json

import pytest

from kdlib.language.distill.run_folder import claim, newest_checkpoint

RUN = {"lr": 0.1, "examples": "abc", "sizes": (1, 2)}


def checkpoint(folder, step, state=None):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def whole(step):
    return json.dumps({"global_step": step, "log_history": []})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_checkpoint_is_the_newest_that_is_whole(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    checkpoint(tmp_path, 9, whole(9))
    checkpoint(tmp_path, 10, whole(10))
    checkpoint(tmp_path, 11)
    checkpoint(tmp_path, 12, whole(12)[:-1])
    checkpoint(tmp_path, 13, "")
    checkpoint(tmp_path, 14, "14")
    checkpoint(tmp_path, 15, whole(5))  # copied from elsewhere
    (tmp_path / "checkpoint-99").write_text("a file")
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-10", 10)


def test_what_is_not_whole_is_removed_and_nothing_else(tmp_path):
    claim(tmp_path, RUN, resume=True)
    checkpoint(tmp_path, 5, whole(5))
    checkpoint(tmp_path, 10)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    claim(tmp_path, RUN, resume=True)
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-best", "notes.txt", "run.json"]
    claim(tmp_path, RUN, resume=False)
    assert names(tmp_path) == ["checkpoint-best", "notes.txt", "run.json"]


def test_a_folder_of_another_run_is_refused_and_left_alone(tmp_path):
    claim(tmp_path, RUN, resume=True)
    checkpoint(tmp_path, 5, whole(5))
    checkpoint(tmp_path, 10)
    other = {"lr": 0.2, "examples": "abc", "sizes": [1, 2], "alpha": 0.5}
    message = r"another run: alpha was None, is 0.5; lr was 0.1, is 0.2\. Choose another .* resume=False"
    with pytest.raises(ValueError, match=message):
        claim(tmp_path, other, resume=True)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-5", "run.json"]
    claim(tmp_path, RUN, resume=True)  # the record is still that of the first

    claim(tmp_path, other, resume=False)
    assert newest_checkpoint(tmp_path) is None
    claim(tmp_path, other, resume=True)


def test_checkpoints_of_something_else_are_never_removed(tmp_path):
    checkpoint(tmp_path, 5, whole(5))
    for resume in (True, False):
        with pytest.raises(ValueError, match="holds checkpoint-5, but no run.json"):
            claim(tmp_path, RUN, resume=resume)
    assert names(tmp_path) == ["checkpoint-5"]


def test_a_record_that_cannot_be_read(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json cannot be read"):
        claim(tmp_path, RUN, resume=True)
