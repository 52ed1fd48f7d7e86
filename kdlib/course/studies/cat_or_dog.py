"""Cat or dog, in full: what is a teacher worth, with error bars, on sketches or on photographs?

    python -m kdlib experiment sketches
    python -m kdlib experiment path/to/photographs --labels 300 --seeds 10

Three situations. `all`: teacher and student have the same labels. `few`: the student has a few labels, and
the teacher scores all the other images, unlabelled for the student, as a transfer set. `teachers`: the
student of the first situation with teachers trained for a quarter, once and twice as long (half the seeds).

T and α are chosen on the validation part, in each situation anew; the test part is scored once, with the
chosen pair. Arms with the same seed share initialisation, order, crops and number of steps. Every finished
run is on disk: whoever is interrupted starts the command again.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdlib.cache.images import CachedTeacher, cache_teacher
from kdlib.checkpoint import describe
from kdlib.cost import measure_cost
from kdlib.course.studies.cat_or_dog_arms import (
    SKETCHES,
    Recipe,
    Training,
    arms,
    hard_labels,
    hide_labels,
    photo_recipe,
    train,
)
from kdlib.course.studies.cat_or_dog_results import columns, report, verdicts
from kdlib.course.studies.records import RunLog, pack, write_results
from kdlib.data import Examples, Splits
from kdlib.metrics import agreement, fit_temperature, kl_to_teacher, score
from kdlib.runtime import describe_environment
from kdlib.storage import fingerprint
from kdlib.training import fit, predict
from kdlib.vision.loader import Loader
from kdlib.vision.photos import load_photos
from kdlib.vision.sketches import SketchExamples, load_sketches

__all__ = ["Study", "main", "prepare"]

TEMPERATURES, ALPHAS, CHOICE_SEEDS = (1.0, 2.0, 4.0, 8.0), (0.1, 0.5), 2
SITUATIONS = ("all", "few", "teachers")
TEACHER_SEED, TEACHERS = 1000, {"quarter": 0.25, "standard": 1.0, "double": 2.0}


@dataclass(frozen=True)
class Study:
    """One experiment, resumable from its folder.

    Attributes:
        data: the three parts; the teacher learns from the labels of the whole training part.
        recipe: networks and their training.
        folder: where teachers, their outputs and finished runs are kept.
        seeds: number of paired runs of each arm.
        labels: number of labels that the student has in the situation `few`.
        progress: show progress bars.
    """

    data: Splits
    recipe: Recipe
    folder: Path
    seeds: int = 10
    labels: int = 300
    progress: bool = True

    def run_situation(self, situation: str) -> dict[str, list[dict]]:
        """All runs of one situation, by arm; those on disk are not run again."""
        pair = self.choose("few" if situation == "few" else "all")
        seeds = self.seeds
        if situation == "teachers":
            seeds = max(2, (seeds + 1) // 2)  # each needs what three teachers say about its crops
        jobs = [(seed, arm) for seed in range(seeds) for arm in self._arms(situation)]
        found: dict[str, list[dict]] = {}
        for seed, arm in tqdm(jobs, desc=situation, disable=not self.progress):
            found.setdefault(arm, []).append(self.run(situation, arm, seed, *pair, test=True))
        return found

    def results(self) -> dict[str, object]:
        """Run what has not been run yet, and put everything together."""
        found = {situation: self.run_situation(situation) for situation in SITUATIONS}
        chosen = {situation: self.choose(situation) for situation in ("all", "few")}
        return {
            "environment": describe_environment(),
            "data": self._describe_data(),
            "recipe": {name: _plain(asdict(t)) for name, t in vars(self.recipe).items() if name != "size"},
            "chosen": {s: {"temperature": t, "alpha": a} for s, (t, a) in chosen.items()},
            "choices": {situation: self._choices(situation) for situation in chosen},
            "teachers": {name: self._describe_teacher(name) for name in TEACHERS},
            "cost": self._cost(),
            "arms": {s: {arm: columns(runs) for arm, runs in by.items()} for s, by in found.items()},
            "verdicts": verdicts(found, self._describe_teacher("standard")["accuracy"]),
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
            self.run(situation, "distilled", seed, temperature, alpha, test=False)
            for seed in range(CHOICE_SEEDS)
        ]
        means = {k: sum(r["validation"][k] for r in runs) / len(runs) for k in ("accuracy", "nll")}
        return {"temperature": temperature, "alpha": alpha, **means}

    def run(
        self, situation: str, arm: str, seed: int, temperature: float, alpha: float, *, test: bool
    ) -> dict:
        """The figures of one trained student, from disk if it was trained before."""
        if (situation, arm) == ("teachers", "standard"):
            situation, arm = "all", "distilled"
        key = [situation, arm, seed, temperature, alpha, test]
        if (done := self._log.find(key)) is None:
            student = self.train_student(situation, arm, seed, temperature, alpha)
            done = {"key": key, **self.measure(student, test=test)}
            self._log.append(done)
        return done

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
        alone = partial(train, training, known, seed=seed, epochs=self._epochs_of(known))
        if arm in ("alone", "smoothed"):
            return alone(loss=losses[arm])[0]
        if arm == "distilled from the truth":
            truth = everything.true_logits
            return train(training, everything, seed=seed, teacher=truth, loss=arms(1.0, 0.0)["distilled"])[0]
        opinions = self.opinions(teacher, seed)
        if arm != "distilled, fine-tuned":
            return train(training, everything, seed=seed, teacher=opinions, loss=losses[arm])[0]
        # The article's last step, within the same budget: the last quarter of it on hard labels alone.
        distilling = training.epochs * 3 // 4
        student, _ = train(
            training, everything, seed=seed, epochs=distilling, teacher=opinions, loss=losses["distilled"]
        )
        settings = {**training.settings, "lr": training.lr / 10}
        epochs = max(1, self._epochs_of(known) * (training.epochs - distilling) // training.epochs)
        crops = Loader(known, training.augmentation)
        fit(student, crops, epochs=epochs, loss=hard_labels, seed=seed, **settings)
        return student

    def measure(self, student: nn.Module, *, test: bool) -> dict[str, object]:
        """Scores on validation and, if asked for, on test: there also after fitting one temperature."""
        validation = predict(student, self.data.validation.images)
        figures: dict[str, object] = {"validation": _figures(validation, self.data.validation)}
        if test:
            logits, teacher = predict(student, self.data.test.images), self._test_logits
            temperature = fit_temperature(validation, self.data.validation.labels)
            figures["test"] = _figures(logits, self.data.test) | {
                "temperature": temperature,
                "ece_rescaled": score(logits / temperature, self.data.test.labels).ece,
                "nll_rescaled": score(logits / temperature, self.data.test.labels).nll,
                "agreement": agreement(logits, teacher),
                "kl_to_teacher": kl_to_teacher(logits, teacher),
                "correct": pack(score(logits, self.data.test.labels).correct),
            }
        return figures

    def teacher(self, name: str = "standard") -> nn.Module:
        """Trained on all labels, for its share of the recipe's epochs; from its checkpoint if there."""
        training = self.recipe.teacher
        training = replace(training, epochs=max(1, round(TEACHERS[name] * training.epochs)))
        model, _ = train(
            training, self.data.train, seed=TEACHER_SEED, progress=self.progress,
            checkpoint=self.folder / f"teacher-{name}.safetensors",
            log=self.folder / f"teacher-{name}.jsonl",
        )
        return model

    def opinions(self, teacher: str, seed: int) -> CachedTeacher:
        """The teacher's logits on exactly the crops that this seed shows."""
        loader = Loader(self.data.train, self.recipe.student.augmentation)
        folder = self.folder / f"opinions-{teacher}-{seed}"
        return cache_teacher(
            self._teachers[teacher], loader, folder, epochs=self.recipe.student.epochs, seed=seed,
            batch_size=128, progress=self.progress,
        )

    @cached_property
    def _teachers(self) -> Mapping[str, nn.Module]:
        return {name: self.teacher(name) for name in TEACHERS}

    @cached_property
    def _test_logits(self) -> Tensor:
        return predict(self._teachers["standard"], self.data.test.images)

    @cached_property
    def _log(self) -> RunLog:
        return RunLog(self.folder / "runs.jsonl")

    def _arms(self, situation: str) -> list[str]:
        if situation == "teachers":
            return list(TEACHERS)
        names = [*arms(1.0, 0.0), "distilled, fine-tuned"]
        if isinstance(self.data.train, SketchExamples) and situation == "all":
            names.append("distilled from the truth")
        return names

    def _epochs_of(self, known: Examples) -> int:
        batch = self.recipe.student.batch_size
        steps = -(-len(self.data.train) // batch) * self.recipe.student.epochs
        return round(steps / -(-len(known) // batch))

    def _describe_data(self) -> dict[str, object]:
        parts = {part: len(getattr(self.data, part)) for part in ("train", "validation", "test")}
        left_out = len(self.data.skipped)
        data = {**parts, "size": self.recipe.size, "labels_few": self.labels, "left_out": left_out}
        if isinstance(self.data.test, SketchExamples):
            sure = self.data.test.posterior.argmax(1) == self.data.test.labels.cpu()
            data |= {"bayes_accuracy": self.data.test.bayes_accuracy,
                     "bayes_accuracy_here": sure.double().mean().item()}
        return data

    def _describe_teacher(self, name: str) -> dict[str, object]:
        model = self._teachers[name]
        validation = predict(model, self.data.validation.images)
        test = predict(model, self.data.test.images)
        temperature = fit_temperature(validation, self.data.validation.labels)
        return _figures(test, self.data.test) | {
            "epochs": max(1, round(TEACHERS[name] * self.recipe.teacher.epochs)),
            "temperature": temperature,
            "ece_rescaled": score(test / temperature, self.data.test.labels).ece,
            "train_accuracy": score(predict(model, self.data.train.images), self.data.train.labels).accuracy,
            "correct": pack(score(test, self.data.test.labels).correct),
        }

    def _cost(self) -> dict[str, object]:
        example = torch.zeros(1, 3, self.recipe.size, self.recipe.size)
        trainings = (self.recipe.teacher, self.recipe.student)
        teacher, student = (measure_cost(training.build(), example) for training in trainings)
        keep = ("parameters", "flops", "weight_bytes", "working_bytes")
        costs = {n: {k: getattr(c, k) for k in keep} for n, c in (("teacher", teacher), ("student", student))}
        return {**costs, "latency_ratio": teacher.latency / student.latency}


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m kdlib experiment`: run, print the report, write the results."""
    parser = argparse.ArgumentParser(prog="python -m kdlib experiment", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("data", help='"sketches", "pets", "cifar10", or a folder with train/CLASS/*.jpg and test/CLASS/*.jpg')
    add("--size", type=int, help="side of the pictures in pixels (sketches, cifar10: 32; photographs: 64)")
    add("--seeds", type=int, default=10, help="paired runs of each arm (%(default)s)")
    add("--labels", type=int, help="labels of the student in `few` (sketches: 100; photographs: 300)")
    add("--epochs", type=float, default=1.0, metavar="FACTOR", help="multiplies the recipe's epochs (1)")
    add("--work", type=Path, default=Path("data/cache/experiment"),
        help="where teachers and finished runs are kept (%(default)s)")
    add("--only", choices=SITUATIONS, help="run this situation and stop: to share the work of one "
        "experiment among processes, which the command without --only then puts together")
    add("--out", type=Path, help="write the results as JSON here")
    add("--quiet", action="store_true", help="no progress bars")
    given = parser.parse_args(argv)
    if given.seeds < 2:
        parser.error(f"--seeds {given.seeds}: an interval needs at least 2")
    try:
        study = prepare(given.data, size=given.size, seeds=given.seeds, labels=given.labels,
                        epochs=given.epochs, work=given.work, progress=not given.quiet)
        print(study.data)
        if given.only:
            study.run_situation(given.only)
            return 0
        results = study.results()
    except (ValueError, OSError) as error:
        print(f"kdlib experiment: {error}", file=sys.stderr)
        return 1
    if given.out is not None:
        write_results(given.out, results)
    print(report(results))
    return 0


def prepare(
    data: str, *, size: int | None = None, seeds: int = 10, labels: int | None = None, epochs: float = 1.0,
    work: str | os.PathLike = "data/cache/experiment", progress: bool = True,
) -> Study:
    """Load the pictures and lay out the study; see the command's options.

    Raises:
        ValueError, OSError: as `load_photos` and `load_sketches` raise them.
    """
    sketches = data == "sketches"
    size = size or (32 if data in ("sketches", "cifar10") else 64)
    recipe = replace(SKETCHES, size=size) if sketches else photo_recipe(size)
    recipe = replace(
        recipe, teacher=_scaled(recipe.teacher, epochs), student=_scaled(recipe.student, epochs)
    )
    labels = labels or (100 if sketches else 300)
    if sketches:
        splits = load_sketches(4000, 1000, 2000, size=size, nuisance=0.5)
    else:
        splits = load_photos(data, size=size, progress=progress)
    identity = fingerprint(splits.train.fingerprint(), splits.validation.fingerprint(), labels,
                           _plain(asdict(recipe)))
    return Study(splits, recipe, Path(work) / identity[:12], seeds, labels, progress)


def _goodness(choice: Mapping[str, float]) -> tuple[float, float]:
    return choice["accuracy"], -choice["nll"]


def _scaled(training: Training, factor: float) -> Training:
    return replace(training, epochs=max(1, round(factor * training.epochs)))


def _figures(logits: Tensor, data: Examples) -> dict[str, float]:
    scores = score(logits, data.labels.cpu())
    figures = {"accuracy": scores.accuracy, "nll": scores.nll, "ece": scores.ece}
    if isinstance(data, SketchExamples):
        figures["kl_from_truth"] = kl_to_teacher(logits, data.true_logits.cpu())
    return figures


def _plain(settings: Mapping) -> dict:
    """JSON values of a dataclass: what builds a network by its name and arguments."""
    return {
        k: _plain(v) if isinstance(v, Mapping) else describe(v) if callable(v) else v
        for k, v in settings.items()
    }


