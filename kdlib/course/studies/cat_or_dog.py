"""Cat or dog, in full: what is a teacher worth, with error bars, on sketches or on photographs?

Three situations. `all`: teacher and student have the same labels. `few`: the student has a few labels, and
the teacher scores all the other images, unlabelled for the student, as a transfer set. `teachers`: the
student of the first situation with teachers trained for a quarter, once and twice as long (half the seeds).

T and α are chosen on the validation part, in each situation anew; the test part is scored once, with the
chosen pair. Arms with the same seed share initialisation, order, crops and number of steps. Every finished
run is on disk: an interrupted study goes on when it is started again.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdlib.cache.images import CachedTeacher, cache_teacher
from kdlib.cost import measure_cost
from kdlib.course.studies.cat_or_dog_arms import (
    SKETCHES,
    PictureRecipe,
    arms,
    hard_labels,
    hide_labels,
    photo_recipe,
    train,
)
from kdlib.course.studies.records import columns, once, pack_bits, verdicts
from kdlib.data import Examples, Splits
from kdlib.metrics import agreement, fit_temperature, kl_to_teacher, score
from kdlib.runtime import describe_environment
from kdlib.storage import fingerprint, identity
from kdlib.training import fit, predict
from kdlib.vision.loader import Loader
from kdlib.vision.photos import load_photos
from kdlib.vision.sketches import SketchExamples, load_sketches

__all__ = ["SITUATIONS", "CatOrDogStudy", "prepare"]

TEMPERATURES, ALPHAS, CHOICE_SEEDS = (1.0, 2.0, 4.0, 8.0), (0.1, 0.5), 2
SITUATIONS = ("all", "few", "teachers")
TEACHER_SEED, TEACHERS = 1000, {"quarter": 0.25, "standard": 1.0, "double": 2.0}
ARMS = (*arms(1.0, 0.0), "distilled, fine-tuned")

# Each arm against its baseline, and against the other arms that ask the same question.
_PAIRS = (
    *((arm, "alone") for arm in (*ARMS, "distilled from the truth") if arm != "alone"),
    *(("distilled", other) for other in ("smoothed", "pseudo-labels", "distilled, no labels")),
    ("distilled, fine-tuned", "distilled"),
)
PAIRS = {"all": _PAIRS, "few": _PAIRS, "teachers": (("quarter", "standard"), ("double", "standard"))}


@dataclass(frozen=True)
class CatOrDogStudy:
    """The study on one set of pictures, resumable from its folder.

    Attributes:
        data: the three parts; the teacher learns from the labels of the whole training part.
        recipe: networks and their training.
        folder: where teachers, their outputs and finished runs are kept.
        seeds: number of paired runs of each arm.
        labels: number of labels that the student has in the situation `few`.
        progress: show progress bars.
    """

    data: Splits
    recipe: PictureRecipe
    folder: Path
    seeds: int = 10
    labels: int = 300
    progress: bool = True

    def run_situation(self, situation: str) -> dict[str, list[dict]]:
        """All runs of one situation, by arm; those on disk are not run again."""
        pair = self.choose("few" if situation == "few" else "all")
        # Half of them with three teachers: each seed needs the logits of each teacher on its own crops.
        seeds = max(2, (self.seeds + 1) // 2) if situation == "teachers" else self.seeds
        names = TEACHERS if situation == "teachers" else ARMS
        if isinstance(self.data.train, SketchExamples) and situation == "all":
            names = (*ARMS, "distilled from the truth")
        jobs = [(seed, arm) for seed in range(seeds) for arm in names]
        runs: dict[str, list[dict]] = {arm: [] for arm in names}
        for seed, arm in tqdm(jobs, desc=situation, disable=not self.progress):
            runs[arm].append(self.run(situation, arm, seed, *pair))
        return runs

    def results(self) -> dict[str, object]:
        """Run what has not been run yet, and put everything together."""
        found = {situation: self.run_situation(situation) for situation in SITUATIONS}
        by = {s: {arm: columns(run["test"] for run in runs) for arm, runs in found[s].items()} for s in found}
        choices = {situation: self._choices(situation) for situation in ("all", "few")}
        teachers = {name: self._describe_teacher(name) for name in TEACHERS}
        reached = teachers["standard"]["accuracy"]
        return {
            "environment": describe_environment(),
            "data": self._describe_data(),
            "recipe": {name: _plain(asdict(training)) for name, training in vars(self.recipe).items()},
            "chosen": {s: dict(zip(("temperature", "alpha"), self.choose(s), strict=True)) for s in choices},
            "choices": choices,
            "teachers": teachers,
            "cost": self._cost(),
            "arms": by,
            "verdicts": {s: verdicts(by[s], PAIRS[s], teacher_accuracy=reached) for s in by},
        }

    def choose(self, situation: str) -> tuple[float, float]:
        """(T, α) of the highest mean accuracy on validation; of equals, the lowest log-loss."""
        best = max(self._choices(situation), key=_goodness)
        return best["temperature"], best["alpha"]

    def _choices(self, situation: str) -> list[dict[str, float]]:
        """First T, with the first α; then the other α at the best T: one axis at a time, as time is short."""
        rows = [self._choice(situation, temperature, ALPHAS[0]) for temperature in TEMPERATURES]
        temperature = max(rows, key=_goodness)["temperature"]
        return rows + [self._choice(situation, temperature, alpha) for alpha in ALPHAS[1:]]

    def _choice(self, situation: str, temperature: float, alpha: float) -> dict[str, float]:
        runs = [
            self.run(situation, "distilled", seed, temperature, alpha, test=False)["validation"]
            for seed in range(CHOICE_SEEDS)
        ]
        means = {name: sum(run[name] for run in runs) / len(runs) for name in ("accuracy", "nll")}
        return {"temperature": temperature, "alpha": alpha, **means}

    def run(
        self, situation: str, arm: str, seed: int, temperature: float, alpha: float, *, test: bool = True
    ) -> dict:
        """The figures of one trained student, from disk if it was trained before."""
        if (situation, arm) == ("teachers", "standard"):
            situation, arm = "all", "distilled"
        setting = [situation, arm, seed, temperature, alpha]
        return once(self.folder / "runs.jsonl", [*setting, test],
                    lambda: self.measure(self.train_student(*setting), test=test))  # fmt: skip

    def train_student(
        self, situation: str, arm: str, seed: int, temperature: float, alpha: float
    ) -> nn.Module:
        """One arm with one seed: always as many steps as the whole training part takes."""
        training, teacher = self.recipe.student, "standard"
        if situation == "teachers":
            teacher, arm = arm, "distilled"
        known, everything = self.data.train, self.data.train
        if situation == "few":
            known, everything = hide_labels(self.data.train, self.labels)
        losses = arms(temperature, alpha)
        if arm in ("alone", "smoothed"):
            return train(training, known, seed=seed, epochs=self._epochs_of(known), loss=losses[arm])[0]
        distil = partial(train, training, everything, seed=seed)
        if arm == "distilled from the truth":
            return distil(teacher=everything.true_logits, loss=arms(1.0, 0.0)["distilled"])[0]
        cached = self.cached_teacher(teacher, seed)
        if arm != "distilled, fine-tuned":
            return distil(teacher=cached, loss=losses[arm])[0]
        # The article's last step, within the same budget: the last quarter of it on hard labels alone.
        distilling = training.epochs * 3 // 4
        student, _ = distil(teacher=cached, loss=losses["distilled"], epochs=distilling)
        epochs = max(1, self._epochs_of(known) * (training.epochs - distilling) // training.epochs)
        settings = {**training.settings, "lr": training.lr / 10}
        crops = Loader(known, training.augmentation)
        fit(student, crops, epochs=epochs, loss=hard_labels, seed=seed, **settings)
        return student

    def measure(self, student: nn.Module, *, test: bool) -> dict[str, object]:
        """Scores on validation and, if asked for, on test: there also after fitting one temperature."""
        validation = self.data.validation
        figures = {"validation": _figures(predict(student, validation.images), validation)}
        if test:
            logits, teacher = predict(student, self.data.test.images), self._test_logits
            figures["test"] = self._test_figures(student) | {
                "agreement": agreement(logits, teacher), "kl_to_teacher": kl_to_teacher(logits, teacher)
            }  # fmt: skip
        return figures

    def teacher(self, name: str = "standard") -> nn.Module:
        """Trained on all labels, for its share of the recipe's epochs; from its checkpoint if there."""
        files = {"checkpoint": f"teacher-{name}.safetensors", "log": f"teacher-{name}.jsonl"}
        model, _ = train(
            self.recipe.teacher.scaled(TEACHERS[name]), self.data.train, seed=TEACHER_SEED,
            progress=self.progress, **{kind: self.folder / file for kind, file in files.items()},
        )  # fmt: skip
        return model

    def cached_teacher(self, name: str, seed: int) -> CachedTeacher:
        """A teacher's logits on exactly the crops that this seed shows."""
        return cache_teacher(
            self._teachers[name], Loader(self.data.train, self.recipe.student.augmentation),
            self.folder / f"logits-{name}-{seed}", epochs=self.recipe.student.epochs, seed=seed,
            batch_size=128, progress=self.progress,
        )  # fmt: skip

    @cached_property
    def _teachers(self) -> Mapping[str, nn.Module]:
        return {name: self.teacher(name) for name in TEACHERS}

    @cached_property
    def _test_logits(self) -> Tensor:
        return predict(self._teachers["standard"], self.data.test.images)

    def _epochs_of(self, known: Examples) -> int:
        batch = self.recipe.student.batch_size
        steps = -(-len(self.data.train) // batch) * self.recipe.student.epochs
        return round(steps / -(-len(known) // batch))

    def _test_figures(self, model: nn.Module) -> dict[str, object]:
        logits, labels = predict(model, self.data.test.images), self.data.test.labels
        validation = predict(model, self.data.validation.images)
        temperature = fit_temperature(validation, self.data.validation.labels)
        rescaled = score(logits / temperature, labels)
        return _figures(logits, self.data.test) | {
            "temperature": temperature, "ece_rescaled": rescaled.ece, "nll_rescaled": rescaled.nll,
            "correct": pack_bits(score(logits, labels).correct),
        }  # fmt: skip

    def _describe_data(self) -> dict[str, object]:
        parts = {part: len(getattr(self.data, part)) for part in ("train", "validation", "test")}
        size, left_out = self.data.train.images.shape[-1], len(self.data.skipped)
        data = {**parts, "size": size, "labels_few": self.labels, "left_out": left_out}
        if isinstance(self.data.test, SketchExamples):
            likelier = self.data.test.posterior.argmax(1) == self.data.test.labels.cpu()
            data["bayes_accuracy"] = self.data.test.bayes_accuracy
            data["bayes_accuracy_here"] = likelier.double().mean().item()
        return data

    def _describe_teacher(self, name: str) -> dict[str, object]:
        model, train_part = self._teachers[name], self.data.train
        figures = self._test_figures(model)
        del figures["nll_rescaled"]
        return figures | {
            "epochs": self.recipe.teacher.scaled(TEACHERS[name]).epochs,
            "train_accuracy": score(predict(model, train_part.images), train_part.labels).accuracy,
        }

    def _cost(self) -> dict[str, object]:
        example = torch.zeros(1, *self.data.train.images.shape[1:])
        costs = {name: measure_cost(network.build(), example) for name, network in vars(self.recipe).items()}
        keep = ("parameters", "flops", "weight_bytes", "working_bytes")
        return {
            **{name: {figure: getattr(cost, figure) for figure in keep} for name, cost in costs.items()},
            "latency_ratio": costs["teacher"].latency / costs["student"].latency,
        }


def prepare(
    data: str, *, size: int | None = None, seeds: int = 10, labels: int | None = None, epochs: float = 1.0,
    work: str | os.PathLike = "data/cache/experiment", progress: bool = True,
) -> CatOrDogStudy:
    """Load the pictures and lay out the study; the arguments are the options of `python -m kdlib experiment`.

    Raises:
        ValueError, OSError: as `load_photos` and `load_sketches` raise them.
    """
    size = size or (32 if data in ("sketches", "cifar10") else 64)
    if data == "sketches":
        recipe, labels = SKETCHES, labels or 100
        splits = load_sketches(4000, 1000, 2000, size=size, nuisance=0.5)
    else:
        recipe, labels = photo_recipe(size), labels or 300
        splits = load_photos(data, size=size, progress=progress)
    recipe = recipe.scaled(epochs)
    identity = fingerprint(
        splits.train.fingerprint(), splits.validation.fingerprint(), labels, _plain(asdict(recipe))
    )
    return CatOrDogStudy(splits, recipe, Path(work) / identity[:12], seeds, labels, progress)


def _goodness(choice: Mapping[str, float]) -> tuple[float, float]:
    return choice["accuracy"], -choice["nll"]


def _figures(logits: Tensor, data: Examples) -> dict[str, float]:
    scores = score(logits, data.labels.cpu())
    figures = {"accuracy": scores.accuracy, "nll": scores.nll, "ece": scores.ece}
    if isinstance(data, SketchExamples):
        figures["kl_from_truth"] = kl_to_teacher(logits, data.true_logits.cpu())
    return figures


def _plain(settings: Mapping) -> dict:
    """JSON values of a dataclass: what builds a network by its name and arguments."""
    return {
        k: _plain(v) if isinstance(v, Mapping) else identity(v) if callable(v) else v
        for k, v in settings.items()
    }
