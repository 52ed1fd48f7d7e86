"""Labelled images, and their train, validation and test parts: what every data set here returns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Labelled images held as tensors.

    Attributes:
        images: (N, channels, height, width) float32 in [0, 1].
        labels: (N) int64 class indices.
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

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> "Examples":
        """The chosen rows: a slice, positions, or a bool mask."""
        return Examples(self.images[rows], self.labels[rows], self.index[rows])

    def to(self, device: torch.device | str) -> "Examples":
        """The same examples on another device."""
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            index=self.index.to(device),
        )


@dataclass(frozen=True)
class Splits:
    """Three disjoint parts of one data set. Choose on validation; touch test once.

    Attributes:
        train, validation, test: the parts.
        classes: name of each class, by label.
    """

    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[str, ...]

    def __str__(self) -> str:
        parts = (len(self.train), len(self.validation), len(self.test))
        return "{} training, {} validation and {} test images, {} classes".format(
            *parts, len(self.classes)
        )
