"""The committed figures of the loss: what they promise, and what the README says about them."""

import csv
import json
import re
from pathlib import Path

import pytest

from benchmarks.race import Row
from benchmarks.targets import judged_targets

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "data" / "results"


@pytest.fixture(scope="module")
def results():
    return json.loads((RESULTS / "loss_cpu.json").read_text(encoding="utf-8"))


def row(results, contender, task="linear"):
    (found,) = [r for r in results["rows"] if (r["task"], r["contender"]) == (task, contender)]
    return found


def test_the_figures_to_reach_follow_from_the_rows(results):
    judged = judged_targets([Row(**fields) for fields in results["rows"]], "cpu")
    assert len(judged) == len(results["figures_to_reach"]) == 4
    for target, stored in zip(judged, results["figures_to_reach"], strict=True):
        assert target.as_json() == stored


def test_all_are_reached(results):
    assert [figure["reached"] for figure in results["figures_to_reach"]] == ["yes"] * 4


def test_they_are_of_the_size_that_is_asked_for(results):
    assert (results["sizes"]["tokens"], results["sizes"]["vocabulary"]) == (2048, 32_768)
    assert results["device"] == "cpu" and results["environment"]["accelerator"] == "none"
    assert {"torch", "trl", "liger_kernel", "python"} <= results["environment"].keys()


def test_the_table_holds_the_same(results):
    with open(RESULTS / "loss_cpu.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(results["rows"])
    for line, stored in zip(table, results["rows"], strict=True):
        assert line["contender"] == stored["contender"]
        assert stored["seconds"] is None or float(line["seconds"]) == stored["seconds"]


def test_the_readme_says_what_was_measured(results):
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    said = re.search(
        r"takes ([\d.]+) times as long as eager PyTorch, in ([\d.]+) of its extra memory; `torch.compile` of "
        r"the eager loss takes ([\d.]+) of the time and ([\d.]+) of the memory\.", readme,
    )  # fmt: skip
    ours, compiled = row(results, "kdlib"), row(results, "torch.compile")
    measured = [r[key] for r in (ours, compiled) for key in ("time_ratio", "memory_ratio")]
    assert [float(figure) for figure in said.groups()] == [pytest.approx(m, abs=0.00501) for m in measured]
    said = re.search(
        r"Liger's chunked loss takes ([\d.]+) of the time and ([\d.]+) of the memory; TRL's chunked one "
        r"([\d.]+) and ([\d.]+)\. .* ahead in both, ([\d.]+) and ([\d.]+), `kd_loss` with ([\d.]+) and "
        r"([\d.]+) second", readme,
    )  # fmt: skip
    others = [row(results, name) for name in ("Liger chunked JSD", "TRL chunked")]
    others += [row(results, name, "logits") for name in ("torch.compile", "kdlib")]
    measured = [r[key] for r in others for key in ("time_ratio", "memory_ratio")]
    assert [float(figure) for figure in said.groups()] == [pytest.approx(m, abs=0.00501) for m in measured]
