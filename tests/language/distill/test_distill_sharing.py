"""Two processes train like one, with whole models (DDP) or with parts of them (FSDP2): see sharing.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sharing import SAVED, STEPS, WAYS
from transformers import AutoModelForCausalLM

from kdlib.language.distill import fsdp as sharding
from kdlib.storage import load_tensors

HERE = Path(__file__).parents[1]
SHARED = [name for name in WAYS if name != "one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharing")
    command = [sys.executable, "-W", "error", HERE / "sharing.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == done.stderr == ""
    return folder


def same(folder, name, other, steps):
    found, facts = load_tensors(folder / f"{name}.safetensors")
    expected, reference = load_tensors(folder / f"{other}.safetensors")
    assert len(reference["history"]["loss"]) == steps
    assert facts["history"]["tokens"] == reference["history"]["tokens"]
    for term in ("loss", "hard", "soft"):
        assert facts["history"][term] == pytest.approx(reference["history"][term], rel=1e-5)
    weights = [key for key in expected if key.startswith("weights/")]
    gradients = sorted(key for key in found if key.startswith("gradient/"))
    # A run that was taken up computes the gradients of the rest only.
    theirs = sorted(key for key in expected if key.startswith("gradient/"))[-len(gradients) :]
    assert weights and gradients
    for key in weights:
        torch.testing.assert_close(found[key], expected[key], atol=1e-9, rtol=0)
    for ours, key in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(found[ours], expected[key], atol=1e-9, rtol=0)
    return found, facts


@pytest.mark.parametrize("name", SHARED)
def test_gradients_of_each_step_and_weights_are_those_of_one_process(folder, name):
    found, facts = same(folder, name, "one", STEPS)
    assert sum(key.startswith("gradient/") for key in found) == STEPS
    expected = [name.startswith("fsdp")] * 2
    assert facts["sharded"] == facts["layers"] == expected  # student and teacher, and the layers of both


@pytest.mark.parametrize("name", ["one", *SHARED])
def test_a_run_that_is_taken_up_ends_as_if_it_had_not_been_interrupted(folder, name):
    found, _ = same(folder, f"{name}_resumed", "one", STEPS)
    assert sum(key.startswith("gradient/") for key in found) == STEPS - SAVED


@pytest.mark.parametrize("name", SHARED)
def test_the_trained_model_is_saved_whole(folder, name):
    weights, _ = load_tensors(folder / f"{name}.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder / f"run_{name}")
    assert model.dtype == torch.float64
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[f"weights/{key}"])
    kept = {path.name for path in (folder / f"run_{name}" / f"checkpoint-{STEPS}").iterdir()}
    assert ("model.safetensors" in kept) == (name != "fsdp_in_parts")


def test_the_largest_logits_of_a_sharded_teacher(folder):
    same(folder, "fsdp_top", "one_top", 2)


@pytest.mark.parametrize("name", SHARED)
def test_the_loss_inside_of_the_forward_that_processes_share(folder, name):
    _, facts = same(folder, f"{name}_fused", "one_fused", 2)
    assert facts["sharded"] == [name.startswith("fsdp")] * 2
    if name.startswith("fsdp"):
        assert facts["split"] == [True, False]  # the teacher's output layer, and once it is gathered


@pytest.mark.parametrize(
    "name", ["one_adapted_resumed", "ddp_adapted", "fsdp_adapted", "fsdp_adapted_resumed"]
)
def test_adapters_and_maps_between_hidden_states_are_shared_and_merged(folder, name):
    _, facts = same(folder, name, "one_adapted", 2)
    _, reference = load_tensors(folder / "one_adapted.safetensors")
    assert facts["history"]["hidden"] == pytest.approx(reference["history"]["hidden"], rel=1e-9)
    saved = load_file(folder / f"run_{name}" / "model.safetensors")
    weights, _ = load_tensors(folder / f"{name}.safetensors")
    assert {f"weights/{key}" for key in saved} == {key for key in weights if key.startswith("weights/")}
    assert all(torch.equal(value, weights[f"weights/{key}"]) for key, value in saved.items())


def test_in_bfloat16_the_loss_and_the_length_of_its_gradient_are_those_of_one_process(folder):
    (found, facts), (expected, reference) = (
        load_tensors(folder / f"{name}_bf16.safetensors") for name in ("fsdp", "one")
    )
    assert facts["sharded"] == [True, True]
    for term in ("loss", "hard"):
        assert facts["history"][term] == pytest.approx(reference["history"][term], rel=1e-4)
    # All of FSDP2's arithmetic is in bfloat16, autocast's is not: a soft term of 0.013 tells.
    assert facts["history"]["soft"] == pytest.approx(reference["history"]["soft"], rel=1e-3)
    ours, theirs = found["gradient/00"].double(), expected["gradient/00"].double()
    assert (ours @ theirs / theirs.square().sum()).item() == pytest.approx(1, abs=6e-4)


def test_a_sharded_student_writes_and_learns_from_it(folder):
    _, facts = load_tensors(folder / "fsdp_on_policy.safetensors")
    tokens = facts["history"]["tokens"]
    assert len(tokens) == 2 and all(16 <= count <= 16 * 7 for count in tokens)
    assert facts["sharded"] == [True, True]


def test_the_command_does_with_two_processes_what_it_does_with_one(folder):
    here = folder / "command"
    one, two = (json.loads((here / name / "report.json").read_text()) for name in ("one", "fsdp"))
    assert two["processes"] == 2 and one["processes"] == 1
    same = ["problems", "traces", "correct", "kept", "steps", "tokens", "before", "after"]
    assert [two[key] for key in same] == [one[key] for key in same]
    assert one["steps"] == STEPS and one["correct"] == 1
    assert two["last_loss"] == pytest.approx(one["last_loss"], rel=1e-3)
    weights, expected = (load_file(here / name / "student" / "model.safetensors") for name in ("fsdp", "one"))
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, atol=2e-3, rtol=0)
    assert json.loads((here / "fsdp" / "student" / "run.json").read_text())["sharding"] == "fsdp2"
    told, nothing = ((here / f"fsdp_{rank}.txt").read_text() for rank in (0, 1))
    assert told.count("4 traces of 4 problems") == 1
    assert nothing == ""  # the first process speaks for both


def test_sharding_is_as_it_was_launched(monkeypatch):
    assert sharding.sharding() is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    assert sharding.sharding() is None  # one process has nobody to share with
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="FSDP_VERSION is 1; expected 2: fsdp_version: 2 in accelerate's"):
        sharding.sharding()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert sharding.sharding() == "fsdp2"
