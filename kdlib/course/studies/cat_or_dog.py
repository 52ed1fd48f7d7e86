"""Cat or dog, in full: what is a teacher worth, with error bars, on sketches or on photographs?

The training pictures are cut in three: a half with labels, on which the teacher is trained; and of the other
half the student's few labels, drawn by each seed anew, and a transfer set that nobody has labels of.

Situations. `all`: teacher and student have the same pictures and labels, the first half. `few`: the student
has a few labels of the other half, all of which the teacher scores: it has seen none of it. `teachers`: `all`
with teachers trained for a quarter, half and all of their epochs. `sizes`, for sketches: students of labels,
of soft labels and of the true posterior on parts of the other half, drawn by each seed anew.

Each arm has one setting (`SETTINGS`), chosen on validation among as many; the test part is scored once, with
what was chosen. Arms with the same seed share initialisation, order, crops and the largest number of steps.
Every finished run is on disk: an interrupted study goes on when it is started again.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdlib.cache.images import cache_teacher
from kdlib.cost import measure_cost
from kdlib.course.studies import cat_or_dog_arms as ways
from kdlib.course.studies.records import columns, once, pack_bits, verdicts
from kdlib.data import Examples, Splits
from kdlib.metrics import agreement, fit_temperature, interval, kl_to_teacher, score
from kdlib.places import CACHE
from kdlib.runtime import describe_environment
from kdlib.storage import fingerprint, identity
from kdlib.training import fit, predict
from kdlib.vision.loader import Loader
from kdlib.vision.photos import load_photos
from kdlib.vision.sketches import SketchExamples, load_sketches

CHOICE_SEEDS = 2
SITUATIONS = ("all", "few", "teachers", "sizes")
TEACHERS = {"quarter": 0.25, "half": 0.5, "standard": 1.0}  # shares of the recipe's epochs
SIZES = (0.0625, 0.25, 0.75)  # shares of the second half that students of `sizes` learn from
ARMS = (*ways.arms(1.0), "distilled, fine-tuned", "truth")
# One setting for each arm, chosen among three: the length of training as a share of the budget, how much
# labels are smoothed, or the temperature. An arm after a comma takes that of the arm before it.
LENGTHS = (1.0, 0.25, 0.0625)
SETTINGS = {"alone": LENGTHS, "smoothed": (0.1, 0.2, 0.4), "pseudo-labels": LENGTHS,
            "distilled": (1.0, 4.0, 16.0), "truth": LENGTHS}  # fmt: skip
PAIRS = {
    "all": (
        *((arm, "alone") for arm in ARMS if arm not in ("alone", "distilled, fine-tuned")),
        ("distilled", "pseudo-labels"), ("distilled, fine-tuned", "distilled"), ("truth", "distilled"),
    ),
    "few": (
        *((arm, "alone") for arm in ("pseudo-labels", "distilled", "distilled, no labels")),
        *((arm, "pseudo-labels") for arm in ("distilled", "distilled, no labels")),
    ),
    "teachers": (("quarter", "standard"), ("half", "standard")),
}  # fmt: skip
OF_SIZES = (("truth", "alone"), ("distilled", "alone"), ("truth", "distilled"))


@dataclass(frozen=True)
class CatOrDogStudy:
    """The study on one set of pictures, resumable from the folder of its teachers and finished runs."""

    data: Splits
    recipe: ways.PictureRecipe
    folder: Path
    seeds: int = 10  # paired runs of each arm
    labels: int = 100  # that the student has in the situation `few`
    progress: bool = True
    leave_out: tuple[str, ...] = ()  # situations that `results` does without
    main_teacher: ClassVar[str] = "standard"
    pairs: ClassVar[Mapping[str, tuple]] = PAIRS
    settings: ClassVar[Mapping[str, tuple]] = SETTINGS

    def run_situation(self, situation: str) -> dict[str, list[dict]]:
        """All runs of one situation, by arm; those on disk are not run again."""
        runs: dict[str, list[dict]] = {arm: [] for arm in self._arms(situation)}
        # Half of the seeds for `teachers`: each needs the logits of three teachers on its own crops.
        seeds = max(2, (self.seeds + 1) // 2) if situation == "teachers" else self.seeds
        jobs = [(arm, seed) for seed in range(seeds) for arm in runs]
        for arm, seed in tqdm(jobs, desc=situation, disable=not self.progress):
            runs[arm].append(self.run(situation, arm, seed, self.choose(situation, arm)))
        return runs

    def results(self) -> dict[str, object]:
        """Run what has not been run yet, and put everything together."""
        asked = [s for s in SITUATIONS if self._arms(s) and s not in self.leave_out]
        found = {s: self.run_situation(s) for s in asked}
        tests = {s: {arm: [run["test"] for run in runs] for arm, runs in found[s].items()} for s in found}
        by = {s: {arm: columns(runs, ("log_odds",)) for arm, runs in tests[s].items()} for s in tests}
        left_out, teachers = ("nll_rescaled", "agreement", "kl_to_teacher"), {}
        for name, model in self._teachers.items():
            known = {"train_accuracy": self._halves[0], "transfer_accuracy": self._halves[1]}
            teachers[name] = {k: v for k, v in self._test_figures(model).items() if k not in left_out} | {
                **self._describe_teacher(name),
                **{k: score(predict(model, part.images), part.labels).accuracy for k, part in known.items()},
            }
        reached = teachers[self.main_teacher]["accuracy"]
        example = torch.zeros(1, *self.data.train.images.shape[1:])
        costs = {name: measure_cost(network, example) for name, network in self._networks().items()}
        keep = ("parameters", "flops", "weight_bytes", "working_bytes")
        of_sizes = [(f"{ours}, {n}", f"{theirs}, {n}") for n in self._sizes for ours, theirs in OF_SIZES]
        pairs = self.pairs | {"sizes": of_sizes}
        results = {
            "environment": describe_environment(),
            "seeds": self.seeds,
            "data": self._describe_data(),
            "recipe": plain(asdict(self.recipe)),
            "chosen": {s: {arm: self.choose(s, arm) for arm in by[s]} for s in by},
            "choices": {s: self.choices(s) for s in by},
            "teachers": teachers,
            "cost": {name: {figure: getattr(cost, figure) for figure in keep} for name, cost in costs.items()}
            | {"latency_ratio": costs["teacher"].latency / costs["student"].latency},
            "arms": by,
            "verdicts": {s: verdicts(by[s], pairs[s], teacher_accuracy=reached) for s in by},
        }
        for situation in [s for s in ("all", "few") if s in by]:
            results["verdicts"][f"{situation}, NLL"] = verdicts(by[situation], pairs[situation], loss="nll")
        if "sizes" in by:
            odds = {
                arm: torch.tensor([run["log_odds"] for run in runs], dtype=torch.float64)
                for arm, runs in tests["sizes"].items()
            }
            truth = self.data.test.posterior[:, 1]
            far = {arm: {"kl": list(_divergence(truth, z))} for arm, z in odds.items()}
            results["verdicts"]["sizes, KL"] = verdicts(far, pairs["sizes"], loss="kl")
            results["spread"] = {arm: z.sigmoid().var(0).mean().sqrt().item() for arm, z in odds.items()}
        return results

    def choose(self, situation: str, arm: str) -> float:
        """The arm's setting of the highest mean accuracy on validation; of equals, the lowest log-loss."""
        if situation == "teachers":
            situation, arm = "all", "distilled"
        elif situation != "sizes" and arm not in self.settings:
            arm = "distilled"
        choices = self._choices(situation, arm)
        return max(choices, key=lambda choice: (choice["accuracy"], -choice["nll"]))["setting"]

    def choices(self, situation: str) -> dict[str, list[dict[str, float]]]:
        """What every setting of every arm that has some came to on validation; test stays closed."""
        arms = [arm for arm in self._arms(situation) if self._is_chosen(situation, arm)]
        return {arm: self._choices(situation, arm) for arm in arms}

    def _arms(self, situation: str) -> tuple[str, ...]:
        known = isinstance(self.data.train, SketchExamples)
        if situation == "sizes":
            arms = ("alone", "distilled", "truth")
            return tuple(f"{arm}, {n}" for n in self._sizes for arm in arms) if known else ()
        few = ("alone", "pseudo-labels", "distilled", "distilled, no labels")
        return {"all": ARMS if known else ARMS[:-1], "few": few, "teachers": tuple(TEACHERS)}[situation]

    def _is_chosen(self, situation: str, arm: str) -> bool:
        """Has the arm a setting of its own?"""
        return situation == "sizes" or (situation != "teachers" and arm in self.settings)

    def _choices(self, situation: str, arm: str) -> list[dict[str, float]]:
        def validated(setting: float) -> dict[str, float]:
            runs = [self.run(situation, arm, s, setting, test=False) for s in range(CHOICE_SEEDS)]
            means = {n: sum(run["validation"][n] for run in runs) / len(runs) for n in ("accuracy", "nll")}
            return {"setting": setting, **means}

        return [validated(setting) for setting in (LENGTHS if situation == "sizes" else self.settings[arm])]

    def run(self, situation: str, arm: str, seed: int, setting: float, *, test: bool = True) -> dict:
        """The figures of one student on validation and, if asked for, test; from disk if there."""
        if (situation, arm) == ("teachers", self.main_teacher):
            situation, arm = "all", "distilled"

        def run() -> dict:
            student, validation = self.train_student(situation, arm, seed, setting), self.data.validation
            figures = {"validation": _figures(predict(student, validation.images), validation)}
            if test:
                figures["test"] = self._test_figures(student)
                if situation == "sizes":
                    cat, dog = predict(student, self.data.test.images).double().unbind(1)
                    figures["test"]["log_odds"] = (dog - cat).round(decimals=2).tolist()
            return figures

        return once(self.folder / "runs.jsonl", [situation, arm, seed, setting, test], run)

    def train_student(self, situation: str, arm: str, seed: int, setting: float) -> nn.Module:
        """One arm with one seed: as many steps as the first half takes, or the share that `setting` is."""
        if situation == "sizes":
            return self._student_of_size(arm, seed, setting)
        own, training, teacher = self._halves[0], self.recipe.student, self.main_teacher
        if situation == "teachers":
            teacher, arm = arm, "distilled"
        known, everything = self._pictures(situation, seed)
        learn = partial(ways.train, training, seed=seed)
        if arm == "smoothed":
            return learn(known, loss=ways.arms(1.0, smoothing=setting)[arm])[0]
        if arm == "alone":
            return learn(known, epochs=self._epochs_of(known, setting), loss=ways.hard_labels)[0]
        if arm == "truth":
            truth, loss = everything.true_logits, ways.arms(1.0)["distilled, no labels"]
            return learn(everything, teacher=truth, loss=loss, epochs=self._epochs_of(own, setting))[0]
        crops = Loader(everything, training.augmentation)
        cached = cache_teacher(  # its logits on exactly the crops that this seed shows
            self._teachers[teacher], crops, self.folder / f"logits-{teacher}-{len(crops)}-{seed}-{situation}",
            epochs=training.epochs, seed=seed, batch_size=128, progress=self.progress,
        )
        if arm == "pseudo-labels":
            epochs = self._epochs_of(everything, setting)
            return learn(everything, teacher=cached, loss=ways.pseudo_labels, epochs=epochs)[0]
        losses = ways.arms(setting)
        if arm != "distilled, fine-tuned":
            return learn(everything, teacher=cached, loss=losses[arm])[0]
        # The article's last step, within the same budget: the last quarter of it on hard labels alone.
        last = max(1, training.epochs // 4)
        distilling = training.epochs - last
        student, _ = learn(everything, teacher=cached, loss=losses["distilled"], epochs=distilling)
        settings = {**training.settings, "lr": training.lr / 10}
        fit(student, crops, epochs=last, loss=ways.hard_labels, seed=seed, **settings)
        return student

    def _pictures(self, situation: str, seed: int) -> tuple[Examples, Examples]:
        """What a student has labels of, and all that it sees when it has a teacher."""
        own, other = self._halves
        return ways.hide_labels(other, self.labels, seed=seed) if situation == "few" else (own, own)

    def _student_of_size(self, arm: str, seed: int, setting: float) -> nn.Module:
        """Of labels, the teacher's soft labels or the posterior, one for each picture whatever its crop."""
        told, size = arm.split(", ")
        pictures, _ = ways.hide_labels(self._halves[1], int(size), seed=seed)
        teacher, loss = None, ways.hard_labels
        if told != "alone":
            loss = ways.arms(1.0)["distilled, no labels"]
            teacher = pictures.true_logits
        if told == "distilled":
            teacher = predict(self._teachers[self.main_teacher], pictures.images)
        epochs = self._epochs_of(pictures, setting)
        return ways.train(
            self.recipe.student, pictures, seed=seed, epochs=epochs, teacher=teacher, loss=loss
        )[0]

    @cached_property
    def _halves(self) -> tuple[Examples, Examples]:
        return ways.cut(self.data.train, len(self.data.train) // 2)

    @property
    def _sizes(self) -> list[int]:
        return [round(share * len(self._halves[1])) for share in SIZES]

    @cached_property
    def _teachers(self) -> dict[str, nn.Module]:
        """Trained on the first half, each for its share of the epochs; from their checkpoints if there."""
        return {
            name: ways.train(
                self.recipe.teacher.scaled(share), self._halves[0], seed=1000, progress=self.progress,
                checkpoint=self.folder / f"teacher-{name}.safetensors",
                log=self.folder / f"teacher-{name}.jsonl",
            )[0]
            for name, share in TEACHERS.items()
        }

    def _describe_teacher(self, name: str) -> dict[str, object]:
        return {"epochs": self.recipe.teacher.scaled(TEACHERS[name]).epochs}

    def _networks(self) -> dict[str, nn.Module]:
        return {"teacher": self.recipe.teacher.build(), "student": self.recipe.student.build()}

    def _epochs_of(self, known: Examples, share: float = 1.0) -> int:
        """Epochs of these pictures in a share of the student's budget of steps, at least one."""
        batch = self.recipe.student.batch_size
        steps = math.ceil(len(self._pictures("all", 0)[0]) / batch) * self.recipe.student.epochs
        return max(1, round(share * steps / math.ceil(len(known) / batch)))

    def _test_figures(self, model: nn.Module) -> dict[str, object]:
        logits, validation = (predict(model, part.images) for part in (self.data.test, self.data.validation))
        labels = self.data.test.labels
        temperature = fit_temperature(validation, self.data.validation.labels)
        rescaled = score(logits / temperature, labels)
        return _figures(logits, self.data.test) | {
            "temperature": temperature, "ece_rescaled": rescaled.ece, "nll_rescaled": rescaled.nll,
            "correct": pack_bits(score(logits, labels).correct),
            "agreement": agreement(logits, self._teacher_on_test),
            "kl_to_teacher": kl_to_teacher(logits, self._teacher_on_test),
        }

    @cached_property
    def _teacher_on_test(self) -> Tensor:
        return predict(self._teachers[self.main_teacher], self.data.test.images)

    def _describe_data(self) -> dict[str, object]:
        data = {part: len(getattr(self.data, part)) for part in ("train", "validation", "test")}
        own, other = self._halves
        data |= {"teacher": len(own), "transfer": len(other) - self.labels, "labels_few": self.labels,
                 "size": self.data.train.images.shape[-1], "left_out": len(self.data.skipped)}
        if isinstance(self.data.test, SketchExamples):
            doubtful = (self.data.test.posterior[:, 1] - 0.5).abs() < 0.3
            data["share_doubtful"] = doubtful.double().mean().item()
            likelier = self.data.test.posterior.argmax(1) == self.data.test.labels.cpu()
            data["bayes_accuracy"] = self.data.test.bayes_accuracy
            data["bayes_accuracy_here"] = likelier.double().mean().item()
        return data


def prepare(
    data: str, *, size: int | None = None, seeds: int = 10, labels: int = 100, epochs: float = 1.0,
    work: str | os.PathLike = CACHE / "experiment", progress: bool = True, leave_out: Sequence[str] = (),
) -> CatOrDogStudy:
    """The study and its pictures, by the options of `python -m kdlib experiment`."""
    size = size or (32 if data in ("sketches", "cifar10") else 64)
    if data == "sketches":
        recipe = ways.SKETCHES
        splits = load_sketches(4000, 1000, 2000, size=size, nuisance=0.5)
    else:
        recipe = ways.photo_recipe(size)
        splits = load_photos(data, size=size, progress=progress)
    recipe = ways.PictureRecipe(recipe.teacher.scaled(epochs), recipe.student.scaled(epochs))
    folder = folder_of(splits, recipe, labels, work=work)
    return CatOrDogStudy(splits, recipe, folder, seeds, labels, progress, tuple(leave_out))


def folder_of(
    splits: Splits, recipe: ways.PictureRecipe, labels: int, *teacher: str, work: str | os.PathLike
) -> Path:
    """Where a study keeps what it has finished: another folder for other pictures or another recipe."""
    stamps = splits.train.fingerprint(), splits.validation.fingerprint()
    return Path(work) / fingerprint(*teacher, *stamps, labels, plain(asdict(recipe)))[:12]


def report(results: Mapping) -> str:
    """A table for each situation, and the verdicts, each table of which is corrected for its number."""
    described = {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in results["data"].items()}
    lines = ["data: " + ", ".join(f"{k} {v}" for k, v in described.items())]
    for name, teacher in results["teachers"].items():
        right, seen, new = (100 * teacher[f"{part}accuracy"] for part in ("", "train_", "transfer_"))
        how = f"after {teacher['epochs']} epochs" if "epochs" in teacher else "pretrained, under a probe,"
        lines.append(f"teacher, {name}: {how} {right:.1f} % on test, {seen:.1f} % on its own pictures, "
                     f"{new:.1f} % on the other half; ECE {100 * teacher['ece']:.1f} %")
    for situation, by in results["arms"].items():
        head = f"{situation:26}{'accuracy (%)':>16}{'NLL (nats)':>12}{'ECE (%)':>9}{'rescaled':>10}"
        lines += ["", f"{head}{'agreement':>11}{'setting':>9}"]
        for arm, column in by.items():
            mean, half = interval(column["accuracy"])
            nll, ece, rescaled, same = (
                sum(column[name]) / len(column[name]) for name in ("nll", "ece", "ece_rescaled", "agreement")
            )
            setting = results["chosen"][situation][arm]
            lines.append(f"{arm:26}{100 * mean:9.2f} ± {100 * half:4.2f}{nll:12.3f}{100 * ece:9.1f}"
                         f"{100 * rescaled:10.1f}{100 * same:11.1f}{setting:9g}")
    for table, pairs in results["verdicts"].items():
        lines += [f"\n{table}: {pair}\n{verdict['text']}" for pair, verdict in pairs.items()]
    return "\n".join(lines)


def _divergence(truth: Tensor, log_odds: Tensor) -> Tensor:
    """Nats from true probabilities of a dog (N) to a model's log-odds (..., N), for each picture."""
    entropy = torch.special.entr(truth) + torch.special.entr(1 - truth)
    return -truth * F.logsigmoid(log_odds) - (1 - truth) * F.logsigmoid(-log_odds) - entropy


def _figures(logits: Tensor, data: Examples) -> dict[str, float]:
    scores = score(logits, data.labels.cpu())
    figures = {"accuracy": scores.accuracy, "nll": scores.nll, "ece": scores.ece}
    if isinstance(data, SketchExamples):
        figures["kl_from_truth"] = kl_to_teacher(logits, data.true_logits.cpu())
    return figures


def plain(value: object) -> object:
    """JSON values of a dataclass: what builds a network by its name and arguments."""
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    return identity(value) if callable(value) else value
