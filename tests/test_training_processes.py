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


def test_ten_processes_were_killed_in_the_midst_of_training(kills):
    assert len(kills["kills"]) == 10
    for kill in kills["kills"]:
        assert kill["signal"] == 9
        assert kill["steps"] >= 1
        assert not kill["done"]
    lasts = [kill["last"] for kill in kills["kills"]]
    assert lasts.count("writing") >= 2  # in the middle of a checkpoint: the bytes are there, the name is not
    assert {"step", "writing", "written", "logged"} == set(lasts)
    # Nobody was so lucky as to begin anew and do it all in one go.
    assert kills["last"] < kills["steps"]
    assert sum(kill["steps"] for kill in kills["kills"]) + kills["last"] > kills["steps"]


def test_a_run_killed_ten_times_ends_with_the_very_weights_and_history_of_an_undisturbed_one(outcome):
    folder, seed = outcome
    (expected, one), (found, other) = (
        load_tensors(folder / "kills" / name / "result.safetensors") for name in ("undisturbed", "killed")
    )
    for name, value in expected.items():
        assert torch.equal(found[name], value), f"{name} differs, seed of the kills {seed}"
    assert found.keys() == expected.keys()
    assert other == one, f"seed of the kills {seed}"
    history = one["history"]
    assert len(history["loss"]) == len(history["validation"])
    assert history["watched"]["agreement"][-1] < 1


def test_the_log_of_a_killed_run_reads_like_that_of_an_undisturbed_one(outcome):
    def lines(name):
        text = (outcome[0] / "kills" / name / "log.jsonl").read_text()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]

    assert lines("killed") == lines("undisturbed")
    assert [line["epoch"] for line in lines("killed")] == list(range(1, len(lines("killed")) + 1))


def test_what_killed_writers_left_behind_is_removed(outcome, kills):
    assert any(kill["leftovers"] for kill in kills["kills"])
    left = {path.name for path in (outcome[0] / "kills" / "killed").iterdir()}
    assert left == {"run.safetensors", "log.jsonl", ".log.jsonl.lock", "result.safetensors"}


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
