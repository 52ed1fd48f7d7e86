"""Cat or dog with a real teacher: a network that knows ImageNet, and a student a tenth of its size.

The protocol is that of `cat_or_dog`, with these differences. The teacher is a pretrained network under a
logistic regression, which the first half of the pictures is for. In `all` the students have every training
picture with its label; in `few` some labels of the other half, and the rest of it without. In `teachers` the
student of a teacher trained from nothing, on the first half too, stands beside the student of the real one.

A student sees a fixed number of crops of each picture again and again, at which the teacher has looked once:
with the same crop before both, and patience (Beyer et al. 2022, "Knowledge distillation: a good teacher is
patient and consistent", arXiv 2106.05237). One arm, "distilled, 1000 classes", is also told what the
teacher finds among the classes of ImageNet: outputs that are cut off when the student is done.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

from torch import nn

from kdlib.cache.images import CachedTeacher, cache_teacher
from kdlib.course.studies import cat_or_dog_arms as ways
from kdlib.course.studies.cat_or_dog import SETTINGS, CatOrDogStudy, plain
from kdlib.data import Examples
from kdlib.storage import fingerprint
from kdlib.vision.loader import Loader
from kdlib.vision.photos import load_photos
from kdlib.vision.pretrained import load_pretrained
from kdlib.vision.probe import Probe, fit_probe

DOWNLOADS = Path("data/downloads")
FROM_NOTHING = "from nothing"
KNOWN = "distilled, 1000 classes"
OURS = ("pseudo-labels", "distilled", "distilled, no labels", KNOWN)
AGAINST_ALONE = tuple((arm, "alone") for arm in OURS)
AGAINST_PSEUDO = tuple((arm, "pseudo-labels") for arm in OURS[1:])


@dataclass(frozen=True)
class PretrainedStudy(CatOrDogStudy):
    """The study with a pretrained teacher, by the name that `load_pretrained` knows."""

    teacher: str = "efficientnet-lite0"
    downloads: Path = DOWNLOADS
    settings: ClassVar[Mapping[str, tuple]] = {
        **{arm: SETTINGS[arm] for arm in ("alone", "smoothed", "pseudo-labels", "distilled")},
        KNOWN: SETTINGS["distilled"],
    }

    @property
    def main_teacher(self) -> str:
        return self.teacher

    @property
    def pairs(self) -> dict[str, tuple]:
        further = (("smoothed", "alone"), *AGAINST_ALONE, *AGAINST_PSEUDO, (KNOWN, "distilled"))
        return {
            "all": further, "few": further[1:], "teachers": ((self.teacher, FROM_NOTHING),)
        }  # fmt: skip

    def train_student(self, situation: str, arm: str, seed: int, setting: float) -> nn.Module:
        """One arm with one seed, as in `CatOrDogStudy`; an interrupted run goes on from its last epoch."""
        training, teacher, classes = self.recipe.student, self.teacher, len(self.data.classes)
        name = f"{situation}-{arm}-{seed}-{setting:g}".replace(",", "").replace(" ", "-")
        if situation == "teachers":
            teacher, arm = arm, "distilled"
        known, everything = self._pictures(situation, seed)
        untaught = arm in ("alone", "smoothed")
        pictures = known if untaught else everything
        if arm == KNOWN:
            behind = self._teachers[teacher].features.classifier.out_features
            training = replace(training, build=partial(training.build, classes=classes + behind))
            loss = partial(ways.all_classes, classes=classes, temperature=setting)
        else:
            smoothing = {"smoothing": setting} if arm == "smoothed" else {}
            loss = partial(ways.own_classes, loss=ways.arms(setting, **smoothing)[arm])
        share = setting if arm in ("alone", "pseudo-labels") else 1.0
        student, _ = ways.train(
            training, pictures, seed=seed, epochs=self._epochs_of(pictures, share), loss=loss,
            teacher=None if untaught else self._cached(teacher, pictures),
            checkpoint=self.folder / "students" / f"{name}.safetensors",
        )
        return ways.first_classes(student, classes)

    def _cached(self, teacher: str, pictures: Examples) -> CachedTeacher:
        """The teacher's logits of all crops there are of these pictures, for every seed and every arm."""
        model, crops = self._teachers[teacher], Loader(pictures, self.recipe.student.augmentation)
        if teacher != FROM_NOTHING:
            model = Probe(model.features, model.linear, known=True)
        name = f"logits-{teacher}-{fingerprint(pictures.images)[:8]}".replace(" ", "-")
        return cache_teacher(model, crops, self.folder / name, batch_size=128, progress=self.progress)

    @cached_property
    def _teachers(self) -> dict[str, nn.Module]:
        nothing = {} if "teachers" in self.leave_out else {
            FROM_NOTHING: ways.train(
                self.recipe.teacher, self._halves[0], seed=1000, progress=self.progress,
                checkpoint=self.folder / "teacher-from-nothing.safetensors",
                log=self.folder / "teacher-from-nothing.jsonl",
            )[0]
        }  # fmt: skip
        return {self.teacher: self._probe[0], **nothing}

    @cached_property
    def _probe(self) -> tuple[Probe, float]:
        pretrained = load_pretrained(self.teacher, root=self.downloads, progress=self.progress)
        return fit_probe(
            pretrained, self._halves[0], self.data.validation, cache=self.folder / "features",
            progress=self.progress,
        )

    def _pictures(self, situation: str, seed: int) -> tuple[Examples, Examples]:
        if situation == "few":
            return super()._pictures(situation, seed)
        return self.data.train, self.data.train

    def _arms(self, situation: str) -> tuple[str, ...]:
        arms = {"all": ("alone", "smoothed", *OURS), "few": ("alone", *OURS)}
        return arms.get(situation, (FROM_NOTHING, self.teacher) if situation == "teachers" else ())

    def _describe_teacher(self, name: str) -> dict[str, object]:
        if name == FROM_NOTHING:
            return {"epochs": self.recipe.teacher.epochs}
        file = self.downloads / f"{self.teacher}.safetensors"
        return {"strength": self._probe[1], "weights": fingerprint(file.read_bytes())}

    def _networks(self) -> dict[str, nn.Module]:
        return {"teacher": self._teachers[self.teacher], "student": self.recipe.student.build()}


def prepare_pretrained(
    teacher: str, data: str, *, size: int | None = None, seeds: int = 10, labels: int = 100,
    epochs: float = 1.0, work: str | os.PathLike = "data/cache/experiment", progress: bool = True,
    leave_out: Sequence[str] = (),
) -> PretrainedStudy:
    """The study and its pictures, by the options of `python -m kdlib experiment --teacher NAME`."""
    if data == "sketches":
        raise ValueError(f"--teacher {teacher} knows photographs; expected some, not sketches")
    size = size or 128
    recipe = ways.pretrained_recipe(size)
    recipe = ways.PictureRecipe(recipe.teacher.scaled(epochs), recipe.student.scaled(epochs))
    splits = load_photos(data, size=size, progress=progress)
    stamps = splits.train.fingerprint(), splits.validation.fingerprint()
    stamp = fingerprint(teacher, *stamps, labels, plain(asdict(recipe)))
    folder = Path(work) / stamp[:12]
    rest = (seeds, labels, progress, tuple(leave_out), teacher, DOWNLOADS)
    return PretrainedStudy(splits, recipe, folder, *rest)
