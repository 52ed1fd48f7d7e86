"""What stands in data/results/reasoning.json: it hangs together, and says what the course says."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from kdlib.course.studies.reasoning import PAIRS, report
from kdlib.course.studies.reasoning_arms import ARMS, CHAINS
from kdlib.course.studies.records import load_results, scores_of, verdicts

FILE = Path(__file__).resolve().parents[2] / "data" / "results" / "reasoning.json"
SEEDS = 5


@pytest.fixture(scope="module")
def results():
    return load_results("reasoning.json")


def situations(results):
    yield from results["arms"].items()
    yield "weak", results["weak"]["arms"]
    yield "easy", results["easy"]
    yield from results["counts"].items()


def test_versions_are_named_and_no_place_on_a_machine(results):
    wanted = {"torch", "python", "platform", "cpu_count", "accelerator", "threads"}
    assert wanted <= set(results["environment"])
    text = FILE.read_text(encoding="utf-8")
    assert not any(place in text for place in ("/work", "/home", "/tmp", "/root", " at 0x"))


def test_the_recipe_is_the_package_s(results):
    assert results["recipe"] == json.loads(json.dumps(asdict(CHAINS)))


def test_every_arm_has_all_seeds(results):
    assert set(results["arms"]["compute"]) == set(ARMS)
    for _, arms in situations(results):
        for column in arms.values():
            assert {len(values) for values in column.values()} == {SEEDS}


def test_accuracy_is_the_share_of_the_stored_bits(results):
    for name, arms in situations(results):
        for column in arms.values():
            for scores in scores_of(column):
                assert len(scores.correct) == (100 if name == "easy" else results["parts"]["test"])
                assert scores.correct.double().mean().item() == pytest.approx(scores.accuracy)


def test_verdicts_follow_from_the_columns(results):
    by = dict(situations(results))
    for situation, pairs in PAIRS.items():
        assert set(results["verdicts"][situation]) == {f"{ours} against {theirs}" for ours, theirs in pairs}
        for pair, again in verdicts(by[situation], pairs).items():
            assert results["verdicts"][situation][pair]["text"] == again["text"]


def test_all_arms_read_as_many_tokens_where_compute_is_equal(results):
    arms = results["arms"]["compute"]
    for seed in range(SEEDS):
        budget = arms["verified"]["tokens"][seed]
        for arm in set(ARMS) - {"on-policy"}:
            assert arms[arm]["tokens"][seed] == pytest.approx(budget, rel=0.01)
        # On-policy: what it reads, and what it writes and learns from at 4/3 of the price of reading.
        assert arms["on-policy"]["tokens"][seed] < 0.7 * budget


def test_settings_are_the_best_on_validation(results):
    means = {}
    for run in results["choices"]:
        name = run["key"][0].removeprefix(f"{run['arm']}-{run['seed']}-")
        means.setdefault(run["arm"], {}).setdefault(name, []).append(run["validation"])
    best = {arm: max(by, key=lambda name: sum(by[name])) for arm, by in means.items()}
    recipe = results["recipe"]
    assert best == {
        "answers": f"lr={recipe['answers_lr']}",
        "verified": f"lr={recipe['student']['lr']}",
        "logits": f"alpha={recipe['alpha']}-temperature={recipe['temperature']}",
    }


def test_the_student_is_at_least_five_times_smaller_and_the_teacher_right_19_times_in_20(results):
    assert results["teacher"]["parameters"] >= 5 * results["student"]["parameters"]
    assert results["teacher"]["accuracy"] >= 0.95


def test_steps_are_needed_for_chains(results):
    verdict = results["verdicts"]["compute"]["verified against answers"]
    assert verdict["verdict"] == "better" and verdict["difference"] > 0.2


def test_steps_are_not_needed_for_the_easy_puzzle(results):
    assert results["verdicts"]["easy"]["suppose against answers"]["verdict"] != "better"


def test_nobody_answers_beyond_the_trained_range(results):
    assert all(share < 0.1 for column in results["arms"]["compute"].values() for share in column["beyond"])


def test_the_report_can_be_printed(results):
    text = report(results)
    assert "verified against answers" in text and "pass@k" in text
