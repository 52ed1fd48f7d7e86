"""The cat-or-dog experiment: from a folder by one command, resumable, the test part touched once."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

from kdlib.__main__ import main
from kdlib.course.studies import cat_or_dog as experiment
from kdlib.course.studies.cat_or_dog import ALPHAS, TEMPERATURES, CatOrDogStudy, prepare, report
from kdlib.course.studies.cat_or_dog_arms import PictureRecipe, Training
from kdlib.course.studies.records import scores_of
from kdlib.metrics import compare, holm
from kdlib.vision.nets import convnet
from kdlib.vision.sketches import load_sketches

TINY = PictureRecipe(
    teacher=Training(partial(convnet, (8, 8), stride=2), epochs=2, lr=3e-3, batch_size=32),
    student=Training(partial(convnet, (4,), stride=2), epochs=2, lr=1e-2, batch_size=32),
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    data = load_sketches(60, 30, 40, size=16)
    return CatOrDogStudy(data, TINY, tmp_path_factory.mktemp("study"), seeds=2, labels=10, progress=False)


@pytest.fixture(scope="module")
def results(study):
    return study.results()


def test_results_hold_every_arm_of_every_situation_and_are_json(results):
    assert json.loads(json.dumps(results)) == results
    assert set(results["arms"]) == {"all", "few", "teachers"}
    shared = {
        "alone", "smoothed", "pseudo-labels", "distilled", "distilled, no labels", "distilled, fine-tuned",
    }  # fmt: skip
    assert set(results["arms"]["few"]) == shared
    assert set(results["arms"]["all"]) == shared | {"distilled from the truth"}
    assert set(results["arms"]["teachers"]) == set(results["teachers"]) == {"quarter", "standard", "double"}
    assert all(len(c) == 2 for by in results["arms"].values() for arm in by.values() for c in arm.values())


def test_verdicts_are_those_of_compare_on_the_stored_columns_corrected_for_their_number(results):
    for situation, verdicts in results["verdicts"].items():
        by = results["arms"][situation]
        again = holm({
            pair: compare(scores_of(by[ours]), scores_of(by[theirs]), names=(ours, theirs))
            for pair, (ours, theirs) in ((pair, pair.split(" against ")) for pair in verdicts)
        })  # fmt: skip
        for pair, verdict in verdicts.items():
            assert verdict["text"] == str(again[pair])
            assert verdict["verdict"] == again[pair].verdict


def test_temperature_and_alpha_are_the_best_on_validation(results):
    for situation, choices in results["choices"].items():
        first, others = choices[: len(TEMPERATURES)], choices[len(TEMPERATURES) :]
        assert [(c["temperature"], c["alpha"]) for c in first] == [(t, ALPHAS[0]) for t in TEMPERATURES]
        assert [c["alpha"] for c in others] == [*ALPHAS[1:]]
        warmest = max(first, key=lambda c: (c["accuracy"], -c["nll"]))["temperature"]
        assert {c["temperature"] for c in others} == {warmest}
        best = max(c["accuracy"] for c in choices)
        chosen = results["chosen"][situation]
        picked = next(
            c for c in choices if (c["temperature"], c["alpha"]) == (chosen["temperature"], chosen["alpha"])
        )
        assert picked["accuracy"] == best


def test_choosing_never_looks_at_the_test_part(study, results):
    runs = [json.loads(line) for line in (study.folder / "runs.jsonl").read_text().splitlines()]
    choosing = [run for run in runs if not run["key"][-1]]
    assert len(choosing) == 2 * 2 * (len(TEMPERATURES) + len(ALPHAS) - 1)
    assert all("test" not in run for run in choosing)
    pairs = {tuple(run["key"][3:5]) for run in runs if run["key"][-1]}
    assert pairs <= {tuple(chosen.values()) for chosen in results["chosen"].values()}


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
    few = study.data.train[:10]
    batches = -(-60 // 32) * TINY.student.epochs
    assert study._epochs_of(few) == batches
    assert study._epochs_of(study.data.train) == TINY.student.epochs


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
    folder, random = tmp_path / "pictures", torch.Generator().manual_seed(0)
    for part, count in (("train", 16), ("test", 6)):
        for k, name in enumerate(("cat", "dog")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = 100 * k + torch.randint(100, (20, 24, 3), generator=random)
                picture = Image.fromarray(pixels.to(torch.uint8).numpy())
                picture.save(folder / part / name / f"{number}.png")
    spoil(folder)
    results = run_on(folder, tmp_path, capsys)
    assert results["data"]["left_out"] == 2
    assert results["data"]["train"] + results["data"]["validation"] == 32
    assert results["data"]["test"] == 12
