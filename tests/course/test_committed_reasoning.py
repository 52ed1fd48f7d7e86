"""What stands in data/results/reasoning.json: it hangs together, and says what the course says."""

import json
from dataclasses import asdict

import pytest

from kdlib.course.studies.reasoning import (
    COMPARED,
    FURTHER_RATES,
    HANDOVERS,
    LEARNING_RATES,
    PAIRS,
    report,
)
from kdlib.course.studies.reasoning_arms import ARMS, CHAINS, WRITING
from kdlib.course.studies.records import load_results, scores_of
from kdlib.metrics import compare, holm

SEEDS = 5


@pytest.fixture(scope="module")
def results():
    return load_results("reasoning.json")


def situations(results):
    yield from results["arms"].items()
    yield "weak", results["weak"]["arms"]
    further = results["further"]
    yield "further", {f"{way} after {n}": arms[way] for n, arms in further.items() for way in arms}


def test_the_recipe_is_the_package_s(results):
    assert results["recipe"] == json.loads(json.dumps(asdict(CHAINS)))


def test_every_arm_has_all_seeds(results):
    assert set(results["arms"]["compute"]) == set(COMPARED)
    assert {*COMPARED, *results["weak"]["arms"]} == set(ARMS)
    for _, arms in situations(results):
        for column in arms.values():
            assert {len(values) for values in column.values()} == {SEEDS}


def test_accuracy_is_the_share_of_the_stored_bits(results):
    for _, arms in situations(results):
        for column in arms.values():
            for scores in scores_of(column):
                assert len(scores.correct) == results["parts"]["test"]
                assert scores.correct.double().mean().item() == pytest.approx(scores.accuracy)


def test_verdicts_follow_from_the_columns_and_each_table_is_corrected(results):
    by = dict(situations(results))
    for situation, pairs in PAIRS.items():
        again = holm({
            f"{ours} against {theirs}": compare(
                scores_of(by[situation][ours]), scores_of(by[situation][theirs]), names=(ours, theirs)
            )
            for ours, theirs in pairs
        })  # fmt: skip
        stored = {pair: verdict["text"] for pair, verdict in results["verdicts"][situation].items()}
        assert stored == {pair: str(verdict) for pair, verdict in again.items()}


def test_all_arms_read_as_many_tokens_where_compute_is_equal(results):
    arms = results["arms"]["compute"]
    for seed in range(SEEDS):
        budget = arms["verified"]["tokens"][seed]
        for arm in COMPARED:
            assert arms[arm]["tokens"][seed] == pytest.approx(budget, rel=0.01)


def test_students_that_go_on_pay_alike(results):
    for share, arms in results["further"].items():
        assert set(arms) == {"start", *HANDOVERS[float(share)]}
        price = {
            way: [learnt + written * WRITING for learnt, written in zip(
                arms[way]["learnt"], arms[way]["written"], strict=True)]
            for way in arms if way != "start"
        }  # fmt: skip
        for way, paid in price.items():
            # In whole steps, and what a student writes is as long as it likes: prompts are not counted here.
            assert paid == pytest.approx(price["verified"], rel=0.15), (share, way)


def test_settings_are_the_best_on_validation(results):
    means, recipe = {}, results["recipe"]
    for run in results["choices"]:
        arm, setting = run["arm"], run["key"][0].removeprefix(f"{run['arm']}-{run['seed']}-")
        part = "further" if "after" in setting else "first"
        means.setdefault((part, arm), {}).setdefault(float(setting.rpartition("lr=")[2]), []).append(
            run["validation"]
        )
    chosen = {
        ("first", "answers"): recipe["answers_lr"], ("first", "verified"): recipe["student"]["lr"],
        ("further", "verified"): recipe["further"]["lr"], ("further", "on-policy"): recipe["on_policy_lr"],
    }  # fmt: skip
    assert means.keys() == chosen.keys()
    for key, by in means.items():
        assert sorted(by) == list(FURTHER_RATES if key[0] == "further" else LEARNING_RATES)
        assert sum(by[chosen[key]]) == max(map(sum, by.values())), key


def test_the_student_is_at_least_five_times_smaller_and_the_teacher_right_19_times_in_20(results):
    assert results["teacher"]["parameters"] >= 5 * results["student"]["parameters"]
    assert results["teacher"]["accuracy"] >= 0.95


def test_steps_are_needed_for_chains(results):
    verdict = results["verdicts"]["compute"]["verified against answers"]
    assert verdict["verdict"] == "better" and verdict["difference"] > 0.2


def test_verification_is_needed_where_the_teacher_is_often_wrong(results):
    weak, verdict = results["weak"], results["verdicts"]["weak"]["verified against unverified"]
    assert weak["pass_rate"] < 0.5
    assert verdict["verdict"] == "better" and verdict["difference"] > 0.2
    assert min(weak["arms"]["verified"]["accuracy"]) > weak["teacher"]["accuracy"]


def test_own_texts_come_after_traces(results):
    verdicts = results["verdicts"]["further"]
    early = verdicts.pop("on-policy after 0.25 against verified after 0.25")
    assert early["verdict"] == "worse" and early["difference"] < -0.2
    assert {late["verdict"] for late in verdicts.values()} == {"inconclusive"}
    assert max(late["difference"] for late in verdicts.values()) < 0.0


def test_nobody_answers_beyond_the_trained_range(results):
    assert all(share < 0.1 for column in results["arms"]["compute"].values() for share in column["beyond"])


def test_the_report_can_be_printed(results):
    text = report(results)
    assert "verified against answers" in text and "on-policy after 0.5" in text
