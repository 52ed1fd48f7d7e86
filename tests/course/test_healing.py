"""The healing study on a model of four layers: every part runs, resumes, and means what it says."""

import json
from dataclasses import asdict

import pytest
import torch
from small_models import llama, pairs, word_tokenizer

from kdlib.cli import healing as command
from kdlib.course.studies import healing
from kdlib.course.studies.healing import ARMS, FIGURES, HealingRecipe, HealingStudy, report
from kdlib.course.studies.real_model import python_texts
from kdlib.language.distill.scores import score_texts
from kdlib.storage import fingerprint

TINY = HealingRecipe(
    layers=(3, 2), context=12, steps=3, batch_size=2, lrs=(1e-3, 3e-3), top_k=8, measured_on=4, validation=3,
    test=6, further_steps=2, precision="no",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healing")
    llama(4, num_hidden_layers=4, initializer_range=0.3).save_pretrained(folder / "teacher")
    word_tokenizer().save_pretrained(folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def study(place):
    texts = [f"{one} {two}" for one, two in pairs(80, seed=2, statement=9, completion=30)]
    model = str(place / "teacher")
    folder = place / "work" / fingerprint(json.dumps(asdict(TINY)), model)[:12]  # the command's
    return HealingStudy(folder, model, TINY, texts=texts)


@pytest.fixture(scope="module")
def results(study):
    return study.results(range(2))


def test_every_arm_is_there_with_all_seeds_and_the_report_tells_of_it(results):
    assert json.loads(json.dumps(results))["seeds"] == 2
    for layers in ("3", "2"):
        found = results["students"][layers]
        assert len(found["kept"]) == int(layers)
        assert set(found["arms"]) == set(ARMS)
        assert set(found["further"]) == ({"logits", "on-policy"} if layers == "2" else set())
        for column in (*found["arms"].values(), *found["further"].values()):
            assert {len(values) for values in column.values()} == {2}
            for nll, by_text in zip(column["nll"], column["nll_by_text"], strict=True):
                assert sum(by_text) / len(by_text) == pytest.approx(nll, abs=1e-4)
    cut, found = (results["students"]["2"][part] for part in ("untrained", "arms"))
    closed = 1 - (found["both"]["kl"][0] + found["both"]["kl"][1]) / 2 / cut["kl"]
    assert results["students"]["2"]["gap_closed"]["both"] == pytest.approx(closed)
    text = report(results)
    assert "3 layers, " in text and "then on-policy" in text and "KL, logits against cross-entropy" in text
    # Less is better: a verdict's difference is how much nearer the arm is.
    arms = results["students"]["2"]["arms"]
    nearer = sum(arms["cross-entropy"]["kl"]) / 2 - sum(arms["logits"]["kl"]) / 2
    verdict = results["verdicts"]["2"]["kl"]["logits against cross-entropy"]
    assert verdict["difference"] == pytest.approx(nearer, abs=1e-4)


def test_the_teacher_is_no_distance_from_itself_and_a_cut_one_is(results):
    assert results["teacher"]["kl"] == pytest.approx(0, abs=1e-5) and results["teacher"]["agreement"] == 1
    assert results["students"]["2"]["untrained"]["kl"] > 0.1


def test_the_kept_blocks_are_those_that_change_most(study):
    ranked = torch.tensor(study.importance).topk(2).indices.tolist()
    assert study.kept(2) == sorted(ranked) and set(study.kept(2)) < set(study.kept(3))


def test_parts_share_no_text_and_all_arms_of_a_seed_have_the_same_pieces(study):
    decoded = {
        name: {study.tokenizer.decode(p.prompt + p.completion) for p in part}
        for name, part in study.parts.items()
    }
    assert not decoded["train"] & decoded["test"] and not decoded["validation"] & decoded["test"]
    assert len(study.drawn(0)) == TINY.steps * TINY.batch_size
    assert study.drawn(0) == study.drawn(0) != study.drawn(1)


def test_the_chosen_rate_is_that_of_the_best_score_on_validation(study):
    for arm in ("cross-entropy", "logits"):
        tried = {lr: study.run(arm, 2, 0, lr, test=False)["kl"] for lr in TINY.lrs}
        assert study.chosen(arm) == min(tried, key=tried.get)


def test_what_is_finished_is_not_done_again(study, results, monkeypatch):
    monkeypatch.setattr(healing, "distill_language_model", None)
    assert HealingStudy(study.folder, study.checkpoint, TINY, texts=study.texts).results(range(2)) == results


def test_a_run_is_what_its_name_says(study, results):
    run = study.run("logits", 2, 1, study.chosen("logits"))
    student = study.pruned(2)
    pieces = study.drawn(1)
    healing.distill_language_model(
        student, study.tokenizer, pieces, teacher=study.teacher, alpha=0.0, steps=TINY.steps, lr=run["lr"],
        batch_size=TINY.batch_size, seed=1,
    )
    again = score_texts(student, study.tokenizer, study.parts["test"], teacher=study.teacher)
    for name in FIGURES:
        assert run[name] == pytest.approx(again.mean(name), rel=1e-5)


def test_python_ships_enough_english():
    texts = python_texts()
    assert len(texts) > 500 and sum(map(len, texts)) > 800_000
    assert any("list comprehension" in text for text in texts) and len(set(texts)) == len(texts)


def test_the_command_goes_on_with_what_is_there_and_writes_the_results(
    place, study, results, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(healing, "SMOLLM2", TINY)
    monkeypatch.setattr(healing, "python_texts", lambda: study.texts)
    monkeypatch.setattr(healing, "distill_language_model", None)
    given = ["--model", study.checkpoint, "--work", str(place / "work"), "--out", str(tmp_path / "out.json")]
    assert command.main([*given, "--seeds", "2", "--quiet"]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["students"] == json.loads(json.dumps(results["students"]))
    assert written["model"]["checkpoint"] == "teacher" and str(place) not in json.dumps(written)
    assert "then on-policy" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["--seeds", "1"])
