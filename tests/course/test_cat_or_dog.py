"""The cat-or-dog experiment: from a folder by one command, resumable, the test part touched once."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from course_pictures import folder_of_pictures

from kdlib.__main__ import main
from kdlib.course.studies import cat_or_dog as experiment
from kdlib.course.studies.cat_or_dog import SETTINGS, CatOrDogStudy, prepare, report
from kdlib.course.studies.cat_or_dog_arms import PictureRecipe, Training
from kdlib.course.studies.records import scores_of
from kdlib.metrics import compare, holm
from kdlib.training import predict
from kdlib.vision.nets import convnet
from kdlib.vision.sketches import load_sketches

TINY = PictureRecipe(
    teacher=Training(partial(convnet, (8, 8), stride=2), epochs=2, lr=3e-3, batch_size=32),
    student=Training(partial(convnet, (4,), stride=2), epochs=2, lr=1e-2, batch_size=32),
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    data = load_sketches(120, 30, 40, size=16)
    return CatOrDogStudy(data, TINY, tmp_path_factory.mktemp("study"), seeds=2, labels=10, progress=False)


@pytest.fixture(scope="module")
def results(study):
    return study.results()


def test_results_hold_every_arm_of_every_situation_and_are_json(results):
    assert json.loads(json.dumps(results)) == results
    assert set(results["arms"]) == {"all", "few", "teachers", "sizes"}
    few = {"alone", "pseudo-labels", "distilled", "distilled, no labels"}
    assert set(results["arms"]["few"]) == few
    assert set(results["arms"]["all"]) == few | {"smoothed", "distilled, fine-tuned", "truth"}
    assert set(results["arms"]["teachers"]) == set(results["teachers"]) == {"quarter", "half", "standard"}
    sizes = {f"{arm}, {n}" for arm in ("alone", "distilled", "truth") for n in (4, 15, 45)}
    assert set(results["arms"]["sizes"]) == set(results["spread"]) == sizes
    assert all(len(c) == 2 for by in results["arms"].values() for arm in by.values() for c in arm.values())


def test_no_label_that_the_teacher_learnt_from_is_in_the_other_half(study):
    """Cut in three: the teacher's pictures, the few with labels, and those whose labels nobody has."""
    own, other = study._halves
    assert len(own) == len(other) == 60
    assert not set(own.index.tolist()) & set(other.index.tolist())
    assert set(own.index.tolist()) | set(other.index.tolist()) == set(range(120))


def test_students_of_few_labels_see_the_other_half_alone_and_other_labels_with_each_seed(study, monkeypatch):
    told = []

    def spy(training, data, **how):
        told.append(data)
        return training.build(), None

    monkeypatch.setattr(experiment.ways, "train", spy)
    other = set(study._halves[1].index.tolist())
    for seed in (0, 1):
        study.train_student("few", "alone", seed, 1.0)
        study.train_student("sizes", "alone, 15", seed, 1.0)
    few, sample, again, sample_again = (set(data.index.tolist()) for data in told)
    assert len(few) == len(again) == 10 and len(sample) == 15
    assert few != again and sample != sample_again
    assert (few | again | sample | sample_again) <= other


def test_students_of_a_size_are_told_labels_soft_labels_or_the_truth(study, results, monkeypatch):
    told = {}

    def spy(training, data, *, teacher=None, loss, **how):
        told[arm] = (data, teacher, loss)
        return training.build(), None

    monkeypatch.setattr(experiment.ways, "train", spy)
    teacher = study._teachers["standard"]
    monkeypatch.setitem(study.__dict__, "_teachers", {"standard": teacher})
    for arm in ("alone", "distilled", "truth"):
        study.train_student("sizes", f"{arm}, 15", 3, 1.0)
    pictures = [data for data, _, _ in told.values()]
    assert all(torch.equal(pictures[0].index, others.index) for others in pictures[1:])
    assert told["alone"][1] is None
    assert torch.equal(told["truth"][1], pictures[0].true_logits)
    assert torch.allclose(told["distilled"][1], predict(teacher, pictures[0].images))


def test_verdicts_are_those_of_compare_on_the_stored_columns_corrected_for_their_number(results):
    tables = {"all", "all, NLL", "few", "few, NLL", "teachers", "sizes", "sizes, KL"}
    assert set(results["verdicts"]) == tables
    for table, verdicts in results["verdicts"].items():
        situation, loss = table.partition(", ")[::2]
        if loss == "KL":  # example by example, of which only the means are stored
            continue
        by, column = results["arms"][situation], "nll" if loss else None
        scores = {
            arm: [-nats for nats in columns[column]] if loss else scores_of(columns)
            for arm, columns in by.items()
        }
        again = holm({
            pair: compare(
                scores[ours], scores[theirs], names=(ours, theirs), unit="nats less" if loss else "accuracy"
            )
            for pair, (ours, theirs) in ((pair, pair.split(" against ")) for pair in verdicts)
        })  # fmt: skip
        for pair, verdict in verdicts.items():
            assert verdict["text"] == str(again[pair])
            assert verdict["verdict"] == again[pair].verdict


def test_every_arm_has_as_many_settings_and_takes_the_best_on_validation(results):
    assert {len(settings) for settings in SETTINGS.values()} == {3}
    for situation, arms in results["choices"].items():
        for arm, choices in arms.items():
            assert len(choices) == 3
            best = max(choices, key=lambda c: (c["accuracy"], -c["nll"]))
            assert results["chosen"][situation][arm] == best["setting"]
    assert set(results["choices"]["all"]) == set(SETTINGS)
    assert set(results["choices"]["few"]) == {"alone", "pseudo-labels", "distilled"}
    for arm in ("distilled, no labels", "distilled, fine-tuned"):
        assert results["chosen"]["all"][arm] == results["chosen"]["all"]["distilled"]


def test_choosing_never_looks_at_the_test_part(study, results):
    runs = [json.loads(line) for line in (study.folder / "runs.jsonl").read_text().splitlines()]
    choosing = [run for run in runs if not run["key"][-1]]
    assert len(choosing) == 2 * 3 * (5 + 3 + 9)  # seeds, settings, arms of `all`, `few` and `sizes`
    assert all("test" not in run for run in choosing)
    for situation, arm, _, setting, test in (run["key"] for run in runs):
        assert not test or setting == results["chosen"][situation][arm]


def test_spread_and_divergence_are_those_of_the_students_probabilities(study, results):
    runs = [json.loads(line) for line in (study.folder / "runs.jsonl").read_text().splitlines()]
    truth = study.data.test.posterior
    odds = [
        torch.tensor(run["test"]["log_odds"]).double()
        for run in runs if run["key"][:2] == ["sizes", "alone, 15"] and run["key"][-1]
    ]  # fmt: skip
    said = [torch.stack([torch.sigmoid(-z), torch.sigmoid(z)], 1) for z in odds]
    spread = torch.stack([p[:, 1] for p in said]).var(0).mean().sqrt().item()
    assert results["spread"]["alone, 15"] == pytest.approx(spread)
    for run, p in enumerate(said):
        far = experiment._divergence(truth[:, 1], odds[run])
        assert torch.allclose(far, torch.nn.functional.kl_div(p.log(), truth, reduction="none").sum(1))
        stored = results["arms"]["sizes"]["alone, 15"]["kl_from_truth"][run]
        assert far.mean().item() == pytest.approx(stored, abs=2e-3)


def test_a_second_call_trains_nothing_and_comes_to_the_same(study, results, monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("trained again")

    monkeypatch.setattr(CatOrDogStudy, "train_student", refuse)
    again = replace(study).results()
    assert again["arms"] == results["arms"]
    assert again["verdicts"] == results["verdicts"]


def test_a_run_cut_off_while_it_was_written_is_run_again(study, results):
    path = study.folder / "runs.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    again = replace(study).results()
    assert again["arms"] == results["arms"]
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_few_labels_take_as_many_steps_as_all(study):
    few, own = study.data.train[:10], study._halves[0]
    batches = -(-60 // 32) * TINY.student.epochs
    assert study._epochs_of(few) == batches
    assert study._epochs_of(few, 0.5) == batches // 2
    assert study._epochs_of(own) == TINY.student.epochs
    assert study._epochs_of(own, 0.01) == 1


def test_the_report_names_every_arm_and_verdict(results):
    text = report(results)
    for by in results["arms"].values():
        assert all(arm in text for arm in by)
    assert text.count("verdict: ") == sum(len(verdicts) for verdicts in results["verdicts"].values())


def test_nothing_in_results_depends_on_where_or_when_they_were_made(results):
    text = json.dumps(results["recipe"])
    assert " at 0x" not in text and "/" not in text


def test_the_work_of_another_recipe_or_other_pictures_lies_elsewhere(tmp_path, monkeypatch):
    small = partial(load_sketches, validation=10, test=10, nuisance=0.5)
    monkeypatch.setattr(experiment, "load_sketches", lambda *counts, size, nuisance: small(20, size=size))
    folders = [
        prepare("sketches", work=tmp_path, **changed).folder
        for changed in ({}, {}, {"epochs": 2.0}, {"size": 16}, {"labels": 4})
    ]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 4


def test_one_seed_and_a_missing_folder_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["experiment", "sketches", "--seeds", "1"])
    assert "an interval needs at least 2" in capsys.readouterr().err
    assert main(["experiment", str(tmp_path / "nowhere"), "--quiet"]) == 1
    assert "nowhere" in capsys.readouterr().err


def run_on(folder, tmp_path, capsys):
    out = tmp_path / "out.json"
    command = ["experiment", str(folder), "--size", "16", "--epochs", "0.02", "--seeds", "2", "--labels", "6",
               "--quiet"]  # fmt: skip
    with pytest.warns(UserWarning, match="broken.jpg"):
        status = main([*command, "--work", str(tmp_path / "work"), "--out", str(out)])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "distilled against alone" in printed.out
    return json.loads(out.read_text())


def spoil(folder):
    """Two files that are no pictures."""
    (folder / "train" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (folder / "train" / "dog" / "empty.png").touch()


def test_one_command_runs_it_on_a_folder_with_broken_files(tmp_path, capsys):
    folder = folder_of_pictures(tmp_path / "pictures")
    spoil(folder)
    results = run_on(folder, tmp_path, capsys)
    assert results["data"]["left_out"] == 2
    assert results["data"]["train"] + results["data"]["validation"] == 32
    assert results["data"]["test"] == 12
