"""The ways to train a student that a distillation experiment compares, all with the same budget.

Each arm is a loss as `fit` takes it. Every arm starts from the same weights, sees the same examples in the
same order and takes as many steps: what differs is what the student is told about them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib.data import Examples
from kdlib.losses.kd import soft_target_loss
from kdlib.training import History, LossFunction, fit
from kdlib.vision.loader import Augmentation, Loader
from kdlib.vision.nets import convnet

UNLABELLED = -100  # the label of an example that has none


def hard_labels(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
    """Cross-entropy with the labels there are: the student alone. Zero where the batch has none."""
    return _mean_over_labelled(student_logits, labels)


def smoothed_labels(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, *, smoothing: float = 0.1
) -> Tensor:
    """Cross-entropy with labels mixed with the uniform one (Szegedy et al. 2016, arXiv 1512.00567v3, §7)."""
    return _mean_over_labelled(student_logits, labels, label_smoothing=smoothing)


def pseudo_labels(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the class the teacher finds likeliest (Lee 2013, "Pseudo-Label", ICML workshop)."""
    return F.cross_entropy(student_logits.float(), teacher_logits.argmax(-1))


def soft_targets(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *,
    temperature: float = 4.0, alpha: float = 0.1,
) -> Tensor:
    """Distillation with labels for some or all: α·CE over the labelled + (1 − α)·T²·KL over all.

    Each term is a mean over the examples it counts; `kd_loss` leaves an example without a label out of both.
    """
    hard = hard_labels(student_logits, None, labels)
    soft = soft_target_loss(student_logits, teacher_logits, temperature=temperature)
    return alpha * hard + (1 - alpha) * soft


def arms(temperature: float, alpha: float = 0.1, smoothing: float = 0.1) -> dict[str, LossFunction]:
    """The arms of the course by name; "alone" and "smoothed" do not look at the teacher."""
    return {
        "alone": hard_labels,
        "smoothed": partial(smoothed_labels, smoothing=smoothing),
        "pseudo-labels": pseudo_labels,
        "distilled": partial(soft_targets, temperature=temperature, alpha=alpha),
        "distilled, no labels": partial(soft_targets, temperature=temperature, alpha=0.0),
    }


def cut(data: Examples, teacher: int, *, seed: int = 0) -> tuple[Examples, Examples]:
    """The `teacher` pictures that a teacher is trained on, and the others: each class in the same number.

    `hide_labels` cuts the others once more: a student's few labels, and a transfer set that nobody has
    labels of. A teacher scores that set as it would score new pictures, for it was not trained on it.
    """
    own, rest = hide_labels(data, teacher, seed=seed)
    return own, data[rest.labels == UNLABELLED]


def hide_labels(data: Examples, keep: int, *, seed: int = 0) -> tuple[Examples, Examples]:
    """The labelled few, `keep` of them chosen by `seed`, and all with the other labels hidden (−100).

    Each class keeps the same number of labels, to within one; one that has too few is a ValueError.
    """
    classes = data.labels.unique().tolist()
    if not len(classes) <= keep <= len(data):
        raise ValueError(f"keep must be {len(classes)} to {len(data)} labels; got {keep}")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    labels, chosen = data.labels.cpu()[order], []
    for number, label in enumerate(classes):
        share = keep // len(classes) + (number < keep % len(classes))
        chosen.append(order[labels == label][:share])
        if len(chosen[-1]) < share:
            raise ValueError(f"class {label} has {len(chosen[-1])} examples, keep={keep} asks for {share}")
    kept = torch.cat(chosen).sort().values.to(data.labels.device)
    hidden = torch.full_like(data.labels, UNLABELLED)
    hidden[kept] = data.labels[kept]
    return data[kept], Examples(data.images, hidden, data.index)


@dataclass(frozen=True)
class Training:
    """How one network is built and trained; `augmentation` is that of its training images."""

    build: Callable[[], nn.Module]
    epochs: int
    lr: float
    batch_size: int = 64
    weight_decay: float = 1e-3
    augmentation: Augmentation = Augmentation()

    @property
    def settings(self) -> dict[str, float]:
        """What `fit` takes of it by name."""
        return {"lr": self.lr, "batch_size": self.batch_size, "weight_decay": self.weight_decay}

    def scaled(self, factor: float) -> "Training":
        """The same with more epochs, or fewer."""
        return replace(self, epochs=max(1, round(factor * self.epochs)))


@dataclass(frozen=True)
class PictureRecipe:
    """Teacher and student for one kind of pictures."""

    teacher: Training
    student: Training


def train(
    training: Training, data: Examples, *, seed: int, epochs: int | None = None, **how
) -> tuple[nn.Module, History]:
    """Build a network from the seed and train it; `how` goes to `fit`: teacher, loss, progress, …"""
    torch.manual_seed(seed)
    model = training.build()
    loader = Loader(data, training.augmentation)
    history = fit(model, loader, epochs=epochs or training.epochs, **training.settings, seed=seed, **how)
    return model, history


def _mean_over_labelled(student_logits: Tensor, labels: Tensor, **options) -> Tensor:
    total = F.cross_entropy(
        student_logits.float(), labels, ignore_index=UNLABELLED, reduction="sum", **options
    )
    # Not F.cross_entropy's own mean: it is NaN for a batch without a label.
    return total / (labels != UNLABELLED).sum().clamp(min=1)


SKETCHES = PictureRecipe(
    Training(partial(convnet, (16, 32, 64), depth=2), epochs=12, lr=3e-3, augmentation=Augmentation(crop=2)),
    Training(partial(convnet, (6, 12, 24), stride=2), epochs=12, lr=1e-2, augmentation=Augmentation(crop=2)),
)


def photo_recipe(size: int) -> PictureRecipe:
    """For some thousand photographs; chosen on the validation part of 3,000 cats and dogs at 64×64."""
    stride = 2 if size >= 48 else 1
    teacher = partial(convnet, (32, 64, 128, 128), depth=2, stride=stride, dropout=0.3)
    student = partial(convnet, (8, 16, 32, 32), stride=stride)
    crop, cutout = size // 8, size // 4
    return PictureRecipe(
        Training(teacher, 40, 3e-3, weight_decay=5e-3, augmentation=Augmentation(crop=crop, cutout=cutout)),
        Training(student, 16, 1e-2, augmentation=Augmentation(crop=crop)),
    )
