"""Cat or dog with a real teacher: a network that knows ImageNet, and a student a tenth of its size.

The protocol is that of `cat_or_dog`, with these differences. The teacher is a pretrained network under a
logistic regression, which the first half of the pictures is for. The student is made of the teacher's first
stages. In `all` the students have every training picture with its label, and two begin with new weights; in
`few` some labels of the other half, and the rest of it without. In `teachers` the student of a teacher
trained from nothing, on the first half too, stands beside the student of the real one.

A student sees a fixed number of crops of each picture, the same ones with every seed: the teacher has looked
at each once, with the same crop before both (Beyer et al. 2022, "Knowledge distillation: a good teacher is
patient and consistent", arXiv 2106.05237).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

from torch import nn

from kdlib.cache.images import CachedTeacher, cache_teacher
from kdlib.course.studies import cat_or_dog_arms as ways
from kdlib.course.studies.cat_or_dog import SETTINGS, CatOrDogStudy, folder_of
from kdlib.data import Examples
from kdlib.places import CACHE, DOWNLOADS
from kdlib.storage import fingerprint
from kdlib.vision.loader import Augmentation, Loader
from kdlib.vision.nets import convnet
from kdlib.vision.photos import load_photos
from kdlib.vision.pretrained import load_pretrained
from kdlib.vision.probe import Probe, fit_probe
from kdlib.vision.prune import prune_stages

FROM_NOTHING = "from nothing"
NEW = ", new weights"
TOLD = ("pseudo-labels", "distilled", "distilled, no labels")


@dataclass(frozen=True)
class PretrainedStudy(CatOrDogStudy):
    """The study with a pretrained teacher, by the name that `load_pretrained` knows."""

    teacher: str = "efficientnet-lite0"
    downloads: Path = DOWNLOADS
    settings: ClassVar[Mapping[str, tuple]] = {
        **{arm: SETTINGS[arm] for arm in ("alone", "pseudo-labels", "distilled")},
        f"alone{NEW}": SETTINGS["alone"][:1],  # the whole budget, which new weights need
    }

    @property
    def main_teacher(self) -> str:
        return self.teacher

    @property
    def pairs(self) -> dict[str, tuple]:
        of_few = (*((arm, "alone") for arm in TOLD), *((arm, "pseudo-labels") for arm in TOLD[1:]))
        of_all = (*((arm, "alone") for arm in TOLD[:2]), ("distilled", "pseudo-labels"),
                  (f"distilled{NEW}", f"alone{NEW}"), ("alone", f"alone{NEW}"))  # fmt: skip
        return {"all": of_all, "few": of_few, "teachers": ((self.teacher, FROM_NOTHING),)}

    def train_student(self, situation: str, arm: str, seed: int, setting: float) -> nn.Module:
        """One arm with one seed, as in `CatOrDogStudy`; an interrupted run goes on from its last epoch."""
        training, teacher = self.recipe.student, self.teacher
        name = f"{situation}-{arm}-{seed}-{setting:g}".replace(",", "").replace(" ", "-")
        if situation == "teachers":
            teacher, arm = arm, "distilled"
        if arm.endswith(NEW):
            training, arm = replace(training, build=partial(new_weights, training.build)), arm[: -len(NEW)]
        known, everything = self._pictures(situation, seed)
        pictures = known if arm == "alone" else everything
        share = 1.0 if arm.startswith("distilled") else setting
        return ways.train(
            training, pictures, seed=seed, epochs=self._epochs_of(pictures, share),
            loss=ways.arms(setting)[arm],
            teacher=None if arm == "alone" else self._cached(teacher, pictures),
            checkpoint=self.folder / "students" / f"{name}.safetensors",
        )[0]

    def _cached(self, teacher: str, pictures: Examples) -> CachedTeacher:
        """The teacher's logits of all crops there are of these pictures, for every seed and every arm."""
        crops = Loader(pictures, self.recipe.student.augmentation)
        name = f"logits-{teacher}-{fingerprint(pictures.images)[:8]}".replace(" ", "-")
        return cache_teacher(
            self._teachers[teacher], crops, self.folder / name, batch_size=128, progress=self.progress
        )

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
        return {
            "all": ("alone", *TOLD[:2], f"alone{NEW}", f"distilled{NEW}"), "few": ("alone", *TOLD),
            "teachers": (FROM_NOTHING, self.teacher),
        }.get(situation, ())  # fmt: skip

    def _describe_teacher(self, name: str) -> dict[str, object]:
        if name == FROM_NOTHING:
            return {"epochs": self.recipe.teacher.epochs}
        file = self.downloads / f"{self.teacher}.safetensors"
        return {"strength": self._probe[1], "weights": fingerprint(file.read_bytes())}

    def _networks(self) -> dict[str, nn.Module]:
        return {"teacher": self._teachers[self.teacher], "student": self.recipe.student.build()}


def new_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """What is built, with weights drawn anew: what the copied ones were worth."""
    model = build()
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def pruned(teacher: str, *, share: float, size: int, classes: int = 2) -> nn.Module:
    """The first stages of a pretrained network, see `prune_stages`."""
    pretrained = load_pretrained(teacher, root=DOWNLOADS, progress=False)
    return prune_stages(pretrained, share=share, size=size, classes=classes)


def pretrained_recipe(teacher: str, size: int) -> ways.PictureRecipe:
    """For photographs of `size`; chosen on the validation part of 3,000 cats and dogs at 128×128."""
    pixels = min(size, 64)
    nothing = partial(convnet, (32, 64, 128, 128), depth=2, stride=2, dropout=0.3, pixels=pixels)
    crops = Augmentation(crop=size // 8, zoom=0.6, views=4)
    return ways.PictureRecipe(
        replace(ways.photo_recipe(size).teacher, build=nothing),
        ways.Training(partial(pruned, teacher, share=0.1, size=round(0.75 * size)), 4, 3e-3, batch_size=32,
                      weight_decay=1e-2, augmentation=crops),
    )  # fmt: skip


def prepare_pretrained(
    teacher: str, data: str, *, size: int | None = None, seeds: int = 10, labels: int = 100,
    epochs: float = 1.0, work: str | os.PathLike = CACHE / "experiment", progress: bool = True,
    leave_out: Sequence[str] = (),
) -> PretrainedStudy:
    """The study and its pictures, by the options of `python -m kdlib experiment --teacher NAME`."""
    if data == "sketches":
        raise ValueError(f"--teacher {teacher} knows photographs; expected some, not sketches")
    size = size or 128
    recipe = pretrained_recipe(teacher, size)
    recipe = ways.PictureRecipe(recipe.teacher.scaled(epochs), recipe.student.scaled(epochs))
    splits = load_photos(data, size=size, progress=progress)
    load_pretrained(teacher, root=DOWNLOADS, progress=progress)  # fetched now, with a progress bar
    folder = folder_of(splits, recipe, labels, teacher, work=work)
    rest = (seeds, labels, progress, tuple(leave_out), teacher, DOWNLOADS)
    return PretrainedStudy(splits, recipe, folder, *rest)
