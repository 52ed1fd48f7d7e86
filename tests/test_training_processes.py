"""Training in real processes: killed at any moment and taken up again; two that share each batch."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdlib.storage import load_tensors

SCRIPTS = Path(__file__).with_name("processes")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks, which Windows lacks")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Everything in tests/processes, run once: the folder it left, and the seed of the kills."""
    folder, seed = tmp_path_factory.mktemp("processes"), secrets.randbelow(2**31)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parents[1])}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_CPU"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, SCRIPTS, folder, str(seed)],
        env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-4000:]}"
    return folder, seed


# --- kill -9 ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kills(outcome):
    return json.loads((outcome[0] / "kills" / "kills.json").read_text())


def test_each_process_was_killed_at_its_moment(kills):
    assert len(kills["kills"]) == 8
    for kill in kills["kills"]:
        assert kill["signal"] == 9 and not kill["done"]
        assert kill["last"] == kill["moment"], "it was there, and nowhere else"
        assert (kill["moment"] == "log torn") == kill["torn log"]
        assert bool(kill["leftovers"]) == (kill["moment"] in ("checkpoint torn", "checkpoint unnamed"))
        for size in kill["leftovers"]:
            assert (size < 0.6 * kills["size"]) == (kill["moment"] == "checkpoint torn")


def test_while_it_lived_no_other_could_train_into_its_files(kills):
    assert all(kill["refused"] for kill in kills["kills"])


def test_a_killed_run_goes_on_from_its_last_checkpoint(kills):
    for kill in kills["kills"]:
        saved = max((step for step in range(0, kill["steps"] + 1, 3)), default=0)
        assert kills["steps"] - saved <= kill["resumed"] <= kills["steps"] - saved + 3, kill


def test_each_ends_with_the_very_weights_history_and_log_of_an_undisturbed_run(outcome, kills):
    folder, seed = outcome

    def results(name):
        lines = (folder / "kills" / name / "log.jsonl").read_text().splitlines()
        log = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
        return *load_tensors(folder / "kills" / name / "result.safetensors"), log

    expected, history, log = results("undisturbed")
    assert [line["epoch"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert len(history["history"]["validation"]) == 6
    for kill in kills["kills"]:
        weights, other, lines = results(kill["moment"])
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[k], v) for k, v in expected.items()), f"{kill}, seed {seed}"
        assert (other, lines) == (history, log), f"{kill}, seed {seed}"
        left = {path.name for path in (folder / "kills" / kill["moment"]).iterdir()}
        files = {"run.safetensors", "log.jsonl"}
        assert left == {*files, "result.safetensors", *(f".{name}.lock" for name in files)}


# --- two processes ---------------------------------------------------------------------------------


@pytest.fixture
def ran(outcome):
    """(processes, rank, name of a run) -> its gradients (steps, P), weights by name, and the rest."""

    def read(processes, rank, name):
        path = outcome[0] / "shares" / processes / str(rank) / f"{name}.safetensors"
        tensors, metadata = load_tensors(path)
        gradients = [tensors[key] for key in sorted(tensors) if key.startswith("gradient/")]
        weights = {k.removeprefix("weights/"): v for k, v in tensors.items() if k.startswith("weights/")}
        return (torch.stack(gradients) if gradients else None), weights, metadata

    return read


def assert_close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance)


def test_launched_processes_find_each_other_on_a_machine_without_accelerator(ran):
    assert ran("one", 0, "place")[2] == {"processes": 1}
    assert [ran("two", rank, "place")[2] for rank in (0, 1)] == [{"processes": 2}] * 2


# "five": batches of 8, 8, 8, 5, a clipped gradient, crops; "single": the last batch is one example, so that
# one of the processes has none.
@pytest.mark.parametrize(("name", "steps"), [("five", 12), ("single", 15)])
def test_two_processes_give_the_gradients_and_weights_of_one_with_the_same_batches(ran, name, steps):
    gradients, weights, _ = ran("one", 0, name)
    assert len(gradients) == steps
    for rank in (0, 1):
        shared, came_to, metadata = ran("two", rank, name)
        # The first step differs by the order of a sum alone; Adam carries that on.
        torch.testing.assert_close(shared[0], gradients[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(shared, gradients, rtol=1e-3, atol=1e-5)
        assert_close(came_to, weights, rtol=1e-4, atol=1e-5)
        assert not metadata["patched"]
    first, second = ran("two", 0, name), ran("two", 1, name)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(value, second[1][key]) for key, value in first[1].items())


def test_the_clipped_gradient_is_that_of_the_whole_batch(ran):
    norms = ran("two", 0, "five")[0].norm(dim=1)
    assert norms.max() <= 0.05 * (1 + 1e-4)
    assert (norms > 0.05 * (1 - 1e-3)).any()  # the bound was in force


@pytest.mark.parametrize("name", ["five", "single"])
def test_losses_and_watched_means_are_those_of_one_process_and_alike_in_both(ran, name):
    expected = ran("one", 0, name)[2]["history"]
    histories = [ran("two", rank, name)[2]["history"] for rank in (0, 1)]
    assert histories[0] == histories[1]
    assert histories[0]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert histories[0]["watched"]["gap"] == pytest.approx(expected["watched"]["gap"], rel=1e-4)
    for found, wanted in zip(histories[0]["validation"], expected["validation"], strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)


def test_one_process_writes_the_checkpoint_and_both_resume_from_it(ran, outcome):
    whole = ran("two", 0, "whole")
    for rank in (0, 1):
        assert ran("two", rank, "first")[2]["error"] == "InterruptedError: by the test"
        gradients, weights, metadata = ran("two", rank, "resumed")
        assert len(gradients) == 12 - 6  # from the checkpoint after six steps
        assert all(torch.equal(weights[name], value) for name, value in whole[1].items())
        assert metadata["history"] == whole[2]["history"]
    log = (outcome[0] / "shares" / "two" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1, 2, 3]  # written by one of them


def test_two_processes_take_up_what_one_has_left(ran):
    expected = ran("one", 0, "taken")
    assert len(expected[0]) == 6
    for rank in (0, 1):
        gradients, weights, metadata = ran("two", rank, "taken")
        torch.testing.assert_close(gradients, expected[0], rtol=1e-3, atol=1e-5)
        assert_close(weights, expected[1], rtol=1e-4, atol=1e-5)
        # The epoch that was cut in two counts each example once.
        assert metadata["history"]["loss"] == pytest.approx(expected[2]["history"]["loss"], rel=1e-5)


def test_statistics_of_batch_normalisation_end_alike_in_both_processes(ran):
    first, second = ran("two", 0, "normed")[1], ran("two", 1, "normed")[1]
    assert any("running_var" in name for name in first)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_both_processes_stop_when_the_loss_of_one_is_not_finite(ran, outcome):
    for rank in (0, 1):
        assert "FloatingPointError: the loss of epoch 1 is nan" in ran("two", rank, "nan")[2]["error"]
    assert not (outcome[0] / "shares" / "two" / "nan.safetensors").exists()


def test_precision_can_change_between_runs_of_launched_processes(ran):
    before, half, after = (ran("two", 0, name)[1] for name in ("before", "bf16", "after"))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not all(torch.equal(value, half[name]) for name, value in before.items())
    assert_close(half, before, rtol=0.1, atol=0.05)


def test_a_device_other_than_the_launched_one_is_refused(ran):
    assert "device is meta, but this process was launched on cpu" in ran("two", 0, "device")[2]["error"]
