"""What stands under data/results/: it hangs together, and says what the course says."""

import json
from pathlib import Path

import pytest

from kdlib.course.studies.cat_or_dog import report
from kdlib.course.studies.records import load_results, scores_of, verdicts

RESULTS = Path(__file__).resolve().parents[2] / "data" / "results"
FILES = {"sketches": 10, "photos": 5}


@pytest.fixture(scope="module", params=FILES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def text(name):
    return (RESULTS / f"cat_or_dog_{name}.json").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results(text):
    return json.loads(text)


def load(name):
    return load_results(f"cat_or_dog_{name}.json")


def test_versions_and_hardware_are_named_and_no_place_on_a_machine(results, text):
    wanted = {"torch", "python", "platform", "cpu_count", "accelerator", "threads"}
    assert wanted <= set(results["environment"])
    assert not any(place in text for place in ("/work", "/home", "/tmp", "/root", " at 0x"))


def test_every_arm_has_all_seeds(results, name):
    for situation, by in results["arms"].items():
        expected = (FILES[name] + 1) // 2 if situation == "teachers" else FILES[name]
        for arm in by.values():
            assert {len(column) for column in arm.values()} == {expected}


def test_accuracy_is_the_share_of_the_stored_bits(results):
    for by in results["arms"].values():
        for arm in by.values():
            for scores in scores_of(arm):
                assert len(scores.correct) == results["data"]["test"]
                assert scores.correct.double().mean().item() == pytest.approx(scores.accuracy)


def test_verdicts_follow_from_the_columns(results):
    teacher = results["teachers"]["standard"]["accuracy"]
    for situation, stored in results["verdicts"].items():
        pairs = [pair.split(" against ") for pair in stored]
        again = verdicts(results["arms"][situation], pairs, teacher_accuracy=teacher)
        for pair in stored:
            text, numbers = again[pair].pop("text"), again[pair]
            assert stored[pair]["text"] == text
            assert {k: stored[pair][k] for k in numbers} == pytest.approx(numbers)


def test_temperature_and_alpha_are_the_best_on_validation(results):
    for situation, choices in results["choices"].items():
        best = max(choices, key=lambda choice: (choice["accuracy"], -choice["nll"]))
        assert results["chosen"][situation] == {k: best[k] for k in ("temperature", "alpha")}


def test_the_student_is_at_least_fifteen_times_smaller(results):
    cost = results["cost"]
    assert cost["teacher"]["parameters"] >= 15 * cost["student"]["parameters"]
    assert cost["teacher"]["flops"] > cost["student"]["flops"]


def test_the_report_can_be_printed(results):
    assert "distilled against alone" in report(results)


def test_sketches_reach_what_was_aimed_at_and_stay_below_bayes():
    results = load("sketches")
    alone = [scores.accuracy for scores in scores_of(results["arms"]["all"]["alone"])]
    teacher = results["teachers"]["standard"]["accuracy"]
    assert 0.95 <= teacher <= results["data"]["bayes_accuracy"]
    assert min(alone) >= 0.90 and max(alone) < teacher


@pytest.mark.parametrize("name", FILES)
def test_with_few_labels_and_a_transfer_set_distillation_gains_eight_points_or_more(name):
    verdict = load(name)["verdicts"]["few"]["distilled against alone"]
    assert verdict["verdict"] == "better"
    assert verdict["difference"] >= 0.08


def test_on_photographs_distillation_gains_two_points_or_more_with_all_labels_too():
    verdict = load("photos")["verdicts"]["all"]["distilled against alone"]
    assert verdict["difference"] >= 0.02
    assert verdict["low"] > 0


@pytest.mark.parametrize("situation", ["all", "few"])
def test_on_photographs_distilling_at_a_high_temperature_costs_calibration_which_one_number_mends(situation):
    column = load("photos")["arms"][situation]["distilled"]
    before, after = (sum(column[k]) / len(column[k]) for k in ("ece", "ece_rescaled"))
    assert after < before / 2
