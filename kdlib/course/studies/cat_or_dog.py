"""Cat or dog, in full: what is a teacher worth, with error bars, on sketches or on photographs?

Three situations. `all`: teacher and student have the same labels. `few`: the student has a few labels, and
the teacher scores all images as a transfer set. `teachers`: the first situation with teachers trained for a
quarter, once and twice as long.

T and α are chosen on validation, in each situation anew; the test part is scored once, with the chosen pair.
Arms with the same seed share initialisation, order, crops and number of steps. Every finished run is on disk:
an interrupted study goes on when it is started again.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdlib.cache.images import cache_teacher
from kdlib.cost import measure_cost
from kdlib.course.studies import cat_or_dog_arms as ways
from kdlib.course.studies.records import columns, once, pack_bits, verdicts
from kdlib.data import Examples, Splits
from kdlib.metrics import agreement, fit_temperature, interval, kl_to_teacher, score
from kdlib.runtime import describe_environment
from kdlib.storage import fingerprint, identity
from kdlib.training import fit, predict
from kdlib.vision.loader import Loader
from kdlib.vision.photos import load_photos
from kdlib.vision.sketches import SketchExamples, load_sketches

TEMPERATURES, ALPHAS, CHOICE_SEEDS = (1.0, 2.0, 4.0, 8.0), (0.1, 0.5), 2
SITUATIONS = ("all", "few", "teachers")
TEACHERS = {"quarter": 0.25, "standard": 1.0, "double": 2.0}  # shares of the recipe's epochs
ARMS = (*ways.arms(1.0, 0.0), "distilled, fine-tuned")
FROM_TRUTH = "distilled from the truth"

# Each arm against its baseline, and against the other arms that ask the same question.
_PAIRS = (
    *((arm, "alone") for arm in (*ARMS, FROM_TRUTH) if arm != "alone"),
    *(("distilled", other) for other in ("smoothed", "pseudo-labels", "distilled, no labels")),
    ("distilled, fine-tuned", "distilled"),
)
PAIRS = {"all": _PAIRS, "few": _PAIRS, "teachers": (("quarter", "standard"), ("double", "standard"))}


@dataclass(frozen=True)
class CatOrDogStudy:
    """The study on one set of pictures, resumable from the folder of its teachers and finished runs."""

    data: Splits
    recipe: ways.PictureRecipe
    folder: Path
    seeds: int = 10  # paired runs of each arm
    labels: int = 300  # that the student has in the situation `few`
    progress: bool = True

    def run_situation(self, situation: str) -> dict[str, list[dict]]:
        """All runs of one situation, by arm; those on disk are not run again."""
        pair = self.choose("few" if situation == "few" else "all")
        names, seeds = ARMS, self.seeds
        if situation == "teachers":
            # Half of the seeds: each needs the logits of three teachers on its own crops.
            names, seeds = tuple(TEACHERS), max(2, (seeds + 1) // 2)
        elif situation == "all" and isinstance(self.data.train, SketchExamples):
            names = (*ARMS, FROM_TRUTH)
        runs: dict[str, list[dict]] = {arm: [] for arm in names}
        jobs = [(arm, seed) for seed in range(seeds) for arm in names]
        for arm, seed in tqdm(jobs, desc=situation, disable=not self.progress):
            runs[arm].append(self.run(situation, arm, seed, *pair))
        return runs

    def results(self) -> dict[str, object]:
        """Run what has not been run yet, and put everything together."""
        found = {situation: self.run_situation(situation) for situation in SITUATIONS}
        by = {s: {arm: columns(run["test"] for run in runs) for arm, runs in found[s].items()} for s in found}
        choices = {situation: self._choices(situation) for situation in ("all", "few")}
        known, left_out, teachers = self.data.train, ("nll_rescaled", "agreement", "kl_to_teacher"), {}
        for name, model in self._teachers.items():
            teachers[name] = {k: v for k, v in self._test_figures(model).items() if k not in left_out} | {
                "epochs": self.recipe.teacher.scaled(TEACHERS[name]).epochs,
                "train_accuracy": score(predict(model, known.images), known.labels).accuracy,
            }
        reached = teachers["standard"]["accuracy"]
        example = torch.zeros(1, *known.images.shape[1:])
        costs = {name: measure_cost(network.build(), example) for name, network in vars(self.recipe).items()}
        keep = ("parameters", "flops", "weight_bytes", "working_bytes")
        return {
            "environment": describe_environment(),
            "data": self._describe_data(),
            "recipe": _plain(asdict(self.recipe)),
            "chosen": {s: dict(zip(("temperature", "alpha"), self.choose(s), strict=True)) for s in choices},
            "choices": choices,
            "teachers": teachers,
            "cost": {name: {figure: getattr(cost, figure) for figure in keep} for name, cost in costs.items()}
            | {"latency_ratio": costs["teacher"].latency / costs["student"].latency},
            "arms": by,
            "verdicts": {s: verdicts(by[s], PAIRS[s], teacher_accuracy=reached) for s in by},
        }

    def choose(self, situation: str) -> tuple[float, float]:
        """(T, α) of the highest mean accuracy on validation; of equals, the lowest log-loss."""
        best = _best(self._choices(situation))
        return best["temperature"], best["alpha"]

    def _choices(self, situation: str) -> list[dict[str, float]]:
        """First T, with the first α; then the other α at the best T: one axis at a time, as time is short."""

        def validated(t: float, alpha: float) -> dict[str, float]:
            runs = [self.run(situation, "distilled", s, t, alpha, test=False) for s in range(CHOICE_SEEDS)]
            means = {n: sum(run["validation"][n] for run in runs) / len(runs) for n in ("accuracy", "nll")}
            return {"temperature": t, "alpha": alpha, **means}

        rows = [validated(t, ALPHAS[0]) for t in TEMPERATURES]
        return rows + [validated(_best(rows)["temperature"], alpha) for alpha in ALPHAS[1:]]

    def run(
        self, situation: str, arm: str, seed: int, temperature: float, alpha: float, *, test: bool = True
    ) -> dict:
        """The figures of one student on validation and, if asked for, test; from disk if there."""
        if (situation, arm) == ("teachers", "standard"):
            situation, arm = "all", "distilled"
        setting = [situation, arm, seed, temperature, alpha]

        def run() -> dict:
            student, validation = self.train_student(*setting), self.data.validation
            figures = {"validation": _figures(predict(student, validation.images), validation)}
            return figures | ({"test": self._test_figures(student)} if test else {})

        return once(self.folder / "runs.jsonl", [*setting, test], run)

    def train_student(
        self, situation: str, arm: str, seed: int, temperature: float, alpha: float
    ) -> nn.Module:
        """One arm with one seed: always as many steps as the whole training part takes."""
        training, teacher, losses = self.recipe.student, "standard", ways.arms(temperature, alpha)
        if situation == "teachers":
            teacher, arm = arm, "distilled"
        known, everything = self.data.train, self.data.train
        if situation == "few":
            known, everything = ways.hide_labels(self.data.train, self.labels)
        if arm in ("alone", "smoothed"):
            return ways.train(training, known, seed=seed, epochs=self._epochs_of(known), loss=losses[arm])[0]
        distil = partial(ways.train, training, everything, seed=seed)
        if arm == FROM_TRUTH:
            return distil(teacher=everything.true_logits, loss=ways.arms(1.0, 0.0)["distilled"])[0]
        cached = cache_teacher(  # its logits on exactly the crops that this seed shows
            self._teachers[teacher], Loader(self.data.train, training.augmentation),
            self.folder / f"logits-{teacher}-{seed}", epochs=training.epochs, seed=seed, batch_size=128,
            progress=self.progress,
        )
        if arm != "distilled, fine-tuned":
            return distil(teacher=cached, loss=losses[arm])[0]
        # The article's last step, within the same budget: the last quarter of it on hard labels alone.
        distilling = training.epochs * 3 // 4
        student, _ = distil(teacher=cached, loss=losses["distilled"], epochs=distilling)
        epochs = max(1, self._epochs_of(known) * (training.epochs - distilling) // training.epochs)
        crops, settings = Loader(known, training.augmentation), {**training.settings, "lr": training.lr / 10}
        fit(student, crops, epochs=epochs, loss=ways.hard_labels, seed=seed, **settings)
        return student

    @cached_property
    def _teachers(self) -> dict[str, nn.Module]:
        """Trained on all labels, each for its share of the epochs; from their checkpoints if there."""
        return {
            name: ways.train(
                self.recipe.teacher.scaled(share), self.data.train, seed=1000, progress=self.progress,
                checkpoint=self.folder / f"teacher-{name}.safetensors",
                log=self.folder / f"teacher-{name}.jsonl",
            )[0]
            for name, share in TEACHERS.items()
        }

    def _epochs_of(self, known: Examples) -> int:
        batch = self.recipe.student.batch_size
        steps = math.ceil(len(self.data.train) / batch) * self.recipe.student.epochs
        return round(steps / math.ceil(len(known) / batch))

    def _test_figures(self, model: nn.Module) -> dict[str, object]:
        logits, validation = (predict(model, part.images) for part in (self.data.test, self.data.validation))
        labels = self.data.test.labels
        teacher = predict(self._teachers["standard"], self.data.test.images)
        temperature = fit_temperature(validation, self.data.validation.labels)
        rescaled = score(logits / temperature, labels)
        return _figures(logits, self.data.test) | {
            "temperature": temperature, "ece_rescaled": rescaled.ece, "nll_rescaled": rescaled.nll,
            "correct": pack_bits(score(logits, labels).correct),
            "agreement": agreement(logits, teacher), "kl_to_teacher": kl_to_teacher(logits, teacher),
        }

    def _describe_data(self) -> dict[str, object]:
        data = {part: len(getattr(self.data, part)) for part in ("train", "validation", "test")}
        data |= {"size": self.data.train.images.shape[-1], "labels_few": self.labels,
                 "left_out": len(self.data.skipped)}
        if isinstance(self.data.test, SketchExamples):
            likelier = self.data.test.posterior.argmax(1) == self.data.test.labels.cpu()
            data["bayes_accuracy"] = self.data.test.bayes_accuracy
            data["bayes_accuracy_here"] = likelier.double().mean().item()
        return data


def prepare(
    data: str, *, size: int | None = None, seeds: int = 10, labels: int | None = None, epochs: float = 1.0,
    work: str | os.PathLike = "data/cache/experiment", progress: bool = True,
) -> CatOrDogStudy:
    """The study and its pictures, by the options of `python -m kdlib experiment`."""
    size = size or (32 if data in ("sketches", "cifar10") else 64)
    if data == "sketches":
        recipe, labels = ways.SKETCHES, labels or 100
        splits = load_sketches(4000, 1000, 2000, size=size, nuisance=0.5)
    else:
        recipe, labels = ways.photo_recipe(size), labels or 300
        splits = load_photos(data, size=size, progress=progress)
    recipe = ways.PictureRecipe(recipe.teacher.scaled(epochs), recipe.student.scaled(epochs))
    stamps = splits.train.fingerprint(), splits.validation.fingerprint()
    stamp = fingerprint(*stamps, labels, _plain(asdict(recipe)))
    return CatOrDogStudy(splits, recipe, Path(work) / stamp[:12], seeds, labels, progress)


def report(results: Mapping) -> str:
    """A table for each situation, and the verdicts."""
    described = {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in results["data"].items()}
    lines = ["data: " + ", ".join(f"{k} {v}" for k, v in described.items())]
    for name, teacher in results["teachers"].items():
        lines.append(f"teacher, {name}: {100 * teacher['accuracy']:.1f} % after {teacher['epochs']} epochs, "
                     f"ECE {100 * teacher['ece']:.1f} %")
    for situation, by in results["arms"].items():
        chosen = results["chosen"]["few" if situation == "few" else "all"]
        head = f"{'':26}{'accuracy (%)':>16}{'NLL (nats)':>12}{'ECE (%)':>9}{'rescaled':>10}{'agreement':>11}"
        lines += ["", f"{situation}: T = {chosen['temperature']:g}, alpha = {chosen['alpha']:g}", head]
        for arm, column in by.items():
            mean, half = interval(column["accuracy"])
            nll, ece, rescaled, same = (
                sum(column[name]) / len(column[name]) for name in ("nll", "ece", "ece_rescaled", "agreement")
            )
            lines.append(f"{arm:26}{100 * mean:9.2f} ± {100 * half:4.2f}{nll:12.3f}{100 * ece:9.1f}"
                         f"{100 * rescaled:10.1f}{100 * same:11.1f}")
        for pair, verdict in results["verdicts"][situation].items():
            lines += [f"\n{pair}", verdict["text"]]
    return "\n".join(lines)


def _best(choices: list[dict[str, float]]) -> dict[str, float]:
    return max(choices, key=lambda choice: (choice["accuracy"], -choice["nll"]))


def _figures(logits: Tensor, data: Examples) -> dict[str, float]:
    scores = score(logits, data.labels.cpu())
    figures = {"accuracy": scores.accuracy, "nll": scores.nll, "ece": scores.ece}
    if isinstance(data, SketchExamples):
        figures["kl_from_truth"] = kl_to_teacher(logits, data.true_logits.cpu())
    return figures


def _plain(value: object) -> object:
    """JSON values of a dataclass: what builds a network by its name and arguments."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return identity(value) if callable(value) else value
