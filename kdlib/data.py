"""Labelled images, and their train, validation and test parts: what every data set here returns."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from kdlib.storage import fingerprint


class Batch(NamedTuple):
    """What one step sees.

    Attributes:
        images: (B, …) float32 in [0, 1], on the training device.
        labels: (B) int64; −100 where an example has no label.
        rows: (B) positions of the examples in their data set, on the training device.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor


class TrainingData(Protocol):
    """What `fit` trains on: `Examples` as they are, or a loader from `kdlib.vision.loader`.

    A batch depends on (chunk, epoch, seed) alone. However often training is interrupted and however many
    processes share it, the same example is seen as the same crop in the same epoch.
    """

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Self:
        """The same data, batches coming on this device."""
        ...

    def batches(self, chunks: Iterable[Tensor], *, epoch: int = 0, seed: int = 0) -> Iterator[Batch]:
        """One batch for each chunk of rows, a chunk being a tensor (B) of positions on the CPU."""
        ...

    def fingerprint(self) -> str:
        """Stands for images, labels, their order and what is done to them."""
        ...

    def inputs_fingerprint(self) -> str:
        """The same without the labels: for a teacher's outputs, which do not depend on them."""
        ...


def as_float(images: Tensor) -> Tensor:
    """uint8 images in 0 … 255 as float32 in [0, 1]; others unchanged."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


@dataclass(frozen=True)
class Examples:
    """Labelled images held as tensors.

    Attributes:
        images: (N, channels, height, width) float32 in [0, 1], or uint8 in 0 … 255.
        labels: (N) int64 class indices; −100 where an example has no label.
        index: (N) int64 position of each image in the original data set.
    """

    images: Tensor
    labels: Tensor
    index: Tensor

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.labels) == len(self.index):
            raise ValueError(
                f"expected one label and one index for each image; got {len(self.images)} images, "
                f"{len(self.labels)} labels and {len(self.index)} indices"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Self:
        """The chosen rows: a slice, positions, or a bool mask."""
        return self._each(lambda column: column[rows])

    def to(self, device: torch.device | str) -> Self:
        """The same examples on another device."""
        return self._each(lambda column: column.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{column.name: change(getattr(self, column.name)) for column in fields(self)})

    def batches(self, chunks: Iterable[Tensor], *, epoch: int = 0, seed: int = 0) -> Iterator[Batch]:
        """See `TrainingData`: the images as they are, whatever the epoch."""
        for rows in chunks:
            rows = rows.to(self.images.device)
            yield Batch(as_float(self.images[rows]), self.labels[rows], rows)

    def fingerprint(self) -> str:
        """Stands for images and labels, in their order."""
        return fingerprint(self.images, self.labels)

    def inputs_fingerprint(self) -> str:
        """Stands for the images, in their order."""
        return fingerprint(self.images)


@dataclass(frozen=True)
class Splits:
    """Three disjoint parts of one data set. Choose on validation; touch test once.

    Attributes:
        train, validation, test: the parts.
        classes: name of each class, by label.
        skipped: what was found and left out, each with the reason.
    """

    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = (len(self.train), len(self.validation), len(self.test))
        text = "{} training, {} validation and {} test images, {} classes".format(*parts, len(self.classes))
        return f"{text} ({len(self.skipped)} left out)" if self.skipped else text
