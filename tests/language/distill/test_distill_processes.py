"""Real processes, killed: see distilling.py, which runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distilling import MOMENTS
from transformers import AutoModelForCausalLM

from kdlib.storage import load_tensors

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilling")
    command = [sys.executable, "-W", "error", HERE / "distilling.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == done.stderr == ""
    return folder


@pytest.mark.parametrize("name", list(MOMENTS))
def test_a_run_that_is_killed_and_taken_up_gives_the_same_curve(folder, name):
    report = json.loads((folder / "kills.json").read_text())[name]
    kills, last = report["killed"][:-1], report["killed"][-1]
    assert [tuple(kill["moment"]) for kill in kills] == MOMENTS[name]
    assert all(kill["signal"] == 9 for kill in kills) and last["signal"] is None
    assert report["undisturbed"]["steps"] == 5
    weights, whole = load_tensors(folder / f"{name}_undisturbed.safetensors")
    found, taken_up = load_tensors(folder / f"{name}_killed.safetensors")
    for history in (whole["history"], taken_up["history"]):
        assert history.pop("seconds") > 0
        assert history.pop("peak_memory") > 50e6  # an interpreter with PyTorch alone has more
    assert len(whole["history"]["loss"]) == 5
    assert taken_up["history"] == whole["history"]  # bit for bit
    assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_the_trainer_imports_peft_and_leaves_bitsandbytes_alone(folder):
    assert json.loads((folder / "kills.json").read_text())["imported"] == ["peft"]


def test_each_process_goes_on_from_the_newest_checkpoint_that_is_whole(folder):
    report = json.loads((folder / "kills.json").read_text())
    # A checkpoint every two steps: an unfinished one of step 2; that of 2, and half of 4; from 2 to the end.
    # The last process finds nothing left to do.
    assert [kill["steps"] for kill in report["texts"]["killed"]] == [2, 4, 3, 0]
    assert [kill["steps"] for kill in report["on_policy"]["killed"]] == [4, 2]
    assert [kill["steps"] for kill in report["adapted"]["killed"]] == [4, 3]
    left = sorted(path.name for path in (folder / "texts_killed").glob("checkpoint-*"))
    assert left == ["checkpoint-4", "checkpoint-5"]
    weights, _ = load_tensors(folder / "texts_killed.safetensors")
    for place in ("texts_killed", "texts_killed/checkpoint-5"):
        model = AutoModelForCausalLM.from_pretrained(folder / place)
        assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)
