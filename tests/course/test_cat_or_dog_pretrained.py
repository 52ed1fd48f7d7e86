"""The experiment with a pretrained teacher: who sees what, what the teacher is asked once, what comes out."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from course_pictures import folder_of_pictures
from torch import nn
from torchvision import models

from kdlib.__main__ import main
from kdlib.course.studies import cat_or_dog_arms as ways
from kdlib.course.studies import cat_or_dog_pretrained as pretrained_study
from kdlib.course.studies.cat_or_dog import report
from kdlib.course.studies.cat_or_dog_pretrained import (
    FROM_NOTHING,
    PretrainedStudy,
    new_weights,
    pretrained_recipe,
)
from kdlib.data import Examples, Splits
from kdlib.training import predict
from kdlib.vision.loader import Augmentation, Loader
from kdlib.vision.nets import convnet
from kdlib.vision.photos import load_photos
from kdlib.vision.pretrained import NotFetched, Preprocess, Pretrained, load_pretrained
from kdlib.vision.probe import fit_probe

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT.parent / "shared" / "data" / "photos128"
NAME = "tiny"
VIEWS = 3
TINY = ways.PictureRecipe(
    ways.Training(partial(convnet, (6,), stride=2), 2, 3e-3, batch_size=32),
    ways.Training(
        partial(convnet, (4,), stride=2), 4, 1e-2, batch_size=32,
        augmentation=Augmentation(crop=2, zoom=0.7, views=VIEWS),
    ),
)  # fmt: skip


def tiny_network(name, **_):
    """Nine classes of pictures of 12×12."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 9)).eval()  # fmt: skip
    return Pretrained(model, Preprocess(12, (0.5,) * 3, (0.25,) * 3), tuple("abcdefghi"))


def part(count, seed):
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    pixels = torch.randint(0, 130, (count, 3, 16, 16), generator=random) + 60 * labels.view(-1, 1, 1, 1)
    return Examples(pixels.to(torch.uint8), labels, torch.arange(count) + 1000 * seed)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("pretrained")
    (root / f"{NAME}.safetensors").write_bytes(b"weights")
    data = Splits(part(80, 1), part(24, 2), part(30, 3), ("cat", "dog"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained_study, "load_pretrained", tiny_network)
        yield PretrainedStudy(data, TINY, root / "work", 2, 10, False, (), NAME, root)


@pytest.fixture(scope="module")
def results(study):
    return study.results()


def test_results_hold_both_teachers_every_arm_and_are_json(results):
    assert json.loads(json.dumps(results)) == results
    told = {"alone", "pseudo-labels", "distilled"}
    assert {name: set(by) for name, by in results["arms"].items()} == {
        "all": {*told, "alone, new weights", "distilled, new weights"},
        "few": {*told, "distilled, no labels"}, "teachers": {FROM_NOTHING, NAME},
    }  # fmt: skip
    assert results["teachers"][FROM_NOTHING]["epochs"] == 2
    assert results["teachers"][NAME]["strength"] > 0 and "epochs" not in results["teachers"][NAME]
    assert results["arms"]["teachers"][NAME] == results["arms"]["all"]["distilled"]
    for table in ("all", "few"):
        assert {f"{arm} against alone" for arm in told - {"alone"}} <= set(results["verdicts"][table])
    assert "distilled, new weights against alone, new weights" in results["verdicts"]["all"]
    assert results["cost"]["teacher"]["parameters"] == 3 * 8 * 9 + 8 + 8 * 300 + 300 + 300 * 2 + 2
    text = report(results)
    assert "pretrained, under a probe" in text and "after 2 epochs" in text


def test_every_arm_with_settings_takes_the_best_of_them_on_validation(results):
    told = {"alone", "pseudo-labels", "distilled"}
    assert set(results["choices"]["few"]) == told
    assert set(results["choices"]["all"]) == told | {"alone, new weights"}
    for situation, arms in results["choices"].items():
        for arm, choices in arms.items():
            best = max(choices, key=lambda c: (c["accuracy"], -c["nll"]))
            assert len(choices) == (1 if "new" in arm else 3)
            assert results["chosen"][situation][arm] == best["setting"]
    assert results["chosen"]["few"]["distilled, no labels"] == results["chosen"]["few"]["distilled"]
    assert results["chosen"]["all"]["distilled, new weights"] == results["chosen"]["all"]["distilled"]


def spied(study, monkeypatch, *jobs):
    """(pictures, settings of `train`) of each job."""
    told = []

    def train(training, data, **how):
        told.append((training, data, how))
        return training.build(), None

    _ = study._teachers  # trained before
    monkeypatch.setattr(pretrained_study.ways, "train", train)
    for job in jobs:
        study.train_student(*job)
    return told


def test_who_sees_what(study, monkeypatch):
    """All pictures with their labels; or of the half that no teacher was trained on, a few labels."""
    told = spied(
        study, monkeypatch, ("all", "alone", 0, 1.0), ("all", "distilled", 0, 4.0),
        ("few", "alone", 0, 1.0), ("few", "distilled", 0, 4.0), ("few", "distilled", 1, 4.0),
    )  # fmt: skip
    own, other = (set(half.index.tolist()) for half in study._halves)
    seen = [set(data.index.tolist()) for _, data, _ in told]
    assert seen[0] == seen[1] == own | other and len(own) == len(other) == 40
    assert len(seen[2]) == 10 and seen[2] < other and seen[3] == seen[4] == other
    labelled = [data.index[data.labels >= 0].tolist() for _, data, _ in told]
    assert set(labelled[2]) == set(labelled[3]) != set(labelled[4]) and len(labelled[4]) == 10
    steps = [-(-len(data) // 32) * how["epochs"] for _, data, how in told]
    assert set(steps) == {3 * 4}  # three batches of all pictures, four times
    assert told[0][2]["teacher"] is None


def test_the_teacher_looks_once_at_each_picture_and_crop_for_all_seeds_and_arms(study, results, monkeypatch):
    teacher, asked = study._teachers[NAME], []
    hook = teacher.features.body.register_forward_hook(lambda *call: asked.append(len(call[2])))
    arms = ("distilled", "pseudo-labels", "distilled, new weights")
    jobs = [("all", arm, 7, 1.0) for arm in arms] + [("few", "distilled", 8, 1.0)]
    told = spied(study, monkeypatch, *jobs)
    hook.remove()
    assert asked == [1] * len(jobs)  # a single picture, for the number of classes
    for _, data, how in told:
        cached = how["teacher"]
        assert (cached.manifest["epochs"], cached.manifest["seed"]) == (VIEWS, None)
        (batch,) = Loader(data, TINY.student.augmentation).batches([torch.arange(5)], epoch=4, seed=9)
        logits = cached.logits(4, torch.arange(5))
        torch.testing.assert_close(logits, predict(teacher, batch.images))


def test_new_weights_are_new_and_the_rest_of_the_student_is_not(study, monkeypatch):
    told = spied(study, monkeypatch, ("all", "distilled", 0, 4.0), ("all", "distilled, new weights", 0, 4.0))
    torch.manual_seed(0)
    copied, new = (training.build() for training, _, _ in told)
    assert str(copied) == str(new) and not torch.equal(copied[1].weight, new[1].weight)
    torch.manual_seed(5)
    again = new_weights(told[0][0].build)
    torch.manual_seed(5)
    assert torch.equal(again[1].weight, new_weights(told[0][0].build)[1].weight)


def test_a_student_that_was_chosen_is_not_trained_again(study, results, monkeypatch):
    files = {path.name for path in (study.folder / "students").iterdir()}
    assert f"all-distilled-0-{results['chosen']['all']['distilled']:g}.safetensors" in files
    assert "all-alone-new-weights-0-1.safetensors" in files
    before = predict(study.train_student("all", "alone", 0, 1.0), study.data.test.images)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a: pytest.fail("trained again"))
    after = predict(study.train_student("all", "alone", 0, 1.0), study.data.test.images)
    assert torch.equal(before, after)
    again = replace(study).results()
    assert again["arms"] == results["arms"] and again["verdicts"] == results["verdicts"]


def test_the_student_is_at_most_a_tenth_of_the_teacher_and_made_of_it(monkeypatch):
    whole = models.get_model("resnet18", weights=None).eval()
    network = Pretrained(whole, Preprocess(64, (0.5,) * 3, (0.25,) * 3), ("class",) * 1000)
    monkeypatch.setattr(pretrained_study, "load_pretrained", lambda *a, **k: network)
    for size in (128, 16):
        recipe = pretrained_recipe("resnet18", size)
        student = recipe.student.build().eval()
        sizes = [sum(p.numel() for p in net.parameters()) for net in (student, whole)]
        assert sizes[0] <= 0.1 * sizes[1] and torch.equal(student[1].weight, whole.conv1.weight)
        images = torch.rand(2, 3, size, size)
        assert student(images).shape == recipe.teacher.build().eval()(images).shape == (2, 2)


def test_one_command_runs_it_on_a_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretrained_study, "load_pretrained", tiny_network)
    monkeypatch.setattr(pretrained_study, "DOWNLOADS", tmp_path)
    (tmp_path / f"{NAME}.safetensors").write_bytes(b"weights")
    out, folder = tmp_path / "out.json", folder_of_pictures(tmp_path / "pictures")
    options = ["--size", "16", "--epochs", "0.01", "--seeds", "2", "--labels", "6", "--quiet"]
    places = ["--work", str(tmp_path / "work"), "--out", str(out)]
    status = main(["experiment", str(folder), "--teacher", NAME, *options, *places])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "teacher, tiny: pretrained" in printed.out and "distilled against alone" in printed.out
    assert json.loads(out.read_text())["recipe"]["student"]["augmentation"]["views"] > 1


def test_settings_can_be_tried_on_validation_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(PretrainedStudy, "train_student", lambda self, *a: self.recipe.student.build())
    monkeypatch.setattr(PretrainedStudy, "_test_figures", lambda *a: pytest.fail("the test part was opened"))
    folder = folder_of_pictures(tmp_path / "pictures")
    status = main(["experiment", str(folder), "--teacher", NAME, "--size", "16", "--choose", "few", "--quiet",
                   "--labels", "6", "--work", str(tmp_path / "work")])  # fmt: skip
    assert status == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " nats" in line]
    assert len(lines) == 3 * 3 and lines[0].startswith("alone") and lines[-1].startswith("distilled")


def test_sketches_are_refused_and_so_is_a_name_that_nobody_knows(tmp_path, capsys):
    assert main(["experiment", "sketches", "--teacher", "efficientnet-lite0", "--quiet"]) == 1
    assert "expected some, not sketches" in capsys.readouterr().err


@pytest.mark.index
def test_the_real_teacher_under_a_probe_knows_cats_and_dogs(tmp_path):
    """On 200 pictures: 99 % with all, so much is sure with a tenth of them."""
    try:
        pretrained = load_pretrained("efficientnet-lite0", root=ROOT / "data" / "downloads", progress=False)
    except NotFetched as error:
        pytest.skip(str(error))
    if not PHOTOS.is_dir():
        pytest.skip("the network is there; no photographs here to try it on")
    data = load_photos(PHOTOS, size=128, cache=None, progress=False)
    train = ways.cut(data.train, 200)[0]
    validation, test = data.validation[::5], data.test[::5]
    probe, _ = fit_probe(pretrained, train, validation, cache=tmp_path)
    right = (predict(probe, test.images).argmax(1) == test.labels).float().mean()
    assert right > 0.93
