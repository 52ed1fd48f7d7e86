"""Labelled images, their train, validation and test parts, and the batches that training sees of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from kdlib.arguments import check_class_indices, check_whole, refuse, shortened
from kdlib.extras import require
from kdlib.runtime import substream
from kdlib.storage import fingerprint

__all__ = [
    "Batch", "Examples", "LoaderData", "Splits", "TrainingData", "as_float", "stratified_folds",
    "training_data",
]  # fmt: skip


class Batch(NamedTuple):
    """What one step sees, on the training device."""

    images: Tensor  # (B, …) float32 in [0, 1]
    labels: Tensor  # (B) int64; −100 where an example has no label
    rows: Tensor | None  # (B) positions in the data set; None if not known, as of a torch DataLoader
    epoch: int = 0  # the one whose crops these are


class TrainingData(Protocol):
    """What `fit` trains on: `Examples` as they are, or a loader from `kdlib.vision.loader`.

    An example looks the same whenever its row, epoch and seed are the same.
    """

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Self: ...

    def batches(self, chunks: Iterable[Tensor], *, epoch: int = 0, seed: int = 0) -> Iterator[Batch]:
        """One batch for each chunk of rows, a tensor (B) of positions on the CPU."""

    def fingerprint(self) -> str:
        """Stands for images, labels, their order and what is done to them."""

    def inputs_fingerprint(self) -> str:
        """The same without the labels: for a teacher's outputs, which do not depend on them."""


def as_float(images: Tensor) -> Tensor:
    """uint8 images in 0 … 255 as float32 in [0, 1]; others unchanged."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


@dataclass(frozen=True)
class Examples:
    """Labelled images held as tensors."""

    images: Tensor  # (N, channels, height, width) float32 in [0, 1], or uint8 in 0 … 255
    labels: Tensor  # (N) int64 class indices; −100 where an example has no label
    index: Tensor  # (N) int64 position of each image in the original data set

    def __post_init__(self) -> None:
        for column in fields(self):
            if not isinstance(value := getattr(self, column.name), Tensor):
                refuse(column.name, value, f"a tensor, as torch.as_tensor({column.name})")
        if not self.images.is_floating_point() and self.images.dtype != torch.uint8:
            refuse("images", self.images, "float32 in [0, 1], or uint8 in 0 … 255")
        check_class_indices("labels", self.labels)
        if not len(self.images) == len(self.labels) == len(self.index):
            sizes = f"{len(self.images)} images, {len(self.labels)} labels and {len(self.index)} indices"
            raise ValueError(f"expected one label and one index for each image; got {sizes}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Self:
        """The chosen rows: a slice, positions, or a bool mask."""
        return self._each(lambda column: column[rows])

    def to(self, device: torch.device | str) -> Self:
        return self._each(lambda column: column.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{column.name: change(getattr(self, column.name)) for column in fields(self)})

    def batches(self, chunks: Iterable[Tensor], *, epoch: int = 0, seed: int = 0) -> Iterator[Batch]:
        """See `TrainingData`: the images as they are, whatever the epoch."""
        for rows in chunks:
            rows = rows.to(self.images.device)
            yield Batch(as_float(self.images[rows]), self.labels[rows], rows, epoch)

    def fingerprint(self) -> str:
        return fingerprint(self.images, self.labels)

    def inputs_fingerprint(self) -> str:
        return fingerprint(self.images)


@dataclass(frozen=True)
class Splits:
    """Three disjoint parts of one data set. Choose on validation; touch test once."""

    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[str, ...]  # name of each, by label
    skipped: tuple[str, ...] = ()  # what was found and left out, each with the reason
    passed_over: int = 0  # other files found, which are no pictures by their names

    def __str__(self) -> str:
        parts = (len(self.train), len(self.validation), len(self.test))
        text = "{} training, {} validation and {} test images, {} classes".format(*parts, len(self.classes))
        counts = {"left out": len(self.skipped), "other files passed over": self.passed_over}
        others = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return f"{text} ({others})" if others else text


class LoaderData:
    """A torch `DataLoader` of (images, labels), as `fit` goes through it.

    Before each epoch and each batch torch's random numbers are set from (seed, epoch, batch), so that order
    and augmentation come again when a run is resumed. Python's and NumPy's are left alone.
    """

    def __init__(self, loader: DataLoader, device: torch.device | None = None) -> None:
        self._loader, self._device = loader, device
        try:
            self._steps = len(loader)
        except TypeError as error:
            raise ValueError(
                "data is a DataLoader without a length, which the learning rate's cycle needs; expected a "
                "dataset with __len__"
            ) from error
        sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        self._sampler = sampler.sampler if type(sampler) is BatchSampler else sampler

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._steps

    def to(self, device: torch.device) -> "LoaderData":
        return LoaderData(self._loader, device)

    def check_order(self) -> None:
        """Refuse, by a ValueError, a loader whose order or augmentation no seed brings back."""
        kind = type(self._sampler)
        seeded = kind in (list, tuple) or kind.__module__ == "torch.utils.data.sampler"
        if isinstance(self._loader.dataset, IterableDataset):
            reason = "its IterableDataset decides on the order"
        elif self._loader.persistent_workers:
            reason = "persistent_workers carry their random numbers from one epoch to the next"
        elif seeded or getattr(self._sampler, "generator", None) is not None:
            return
        else:
            reason = f"its {kind.__name__} has no generator that could be seeded"
        raise ValueError(
            f"a checkpoint, or training in several processes, needs a DataLoader whose order follows from a "
            f"seed: {reason}. Expected shuffle=True or False, or a sampler with a generator, without "
            f"persistent_workers"
        )

    def in_order(self) -> Iterator[Batch]:
        """The batches as the loader gives them; a ValueError if they are not (images, labels)."""
        for found in self._loader:
            if not isinstance(found, tuple | list) or [isinstance(x, Tensor) for x in found] != [True, True]:
                raise ValueError(
                    f"data is a DataLoader that yields {type(found).__name__}; expected batches (images, "
                    f"labels), two tensors"
                )
            check_class_indices("the second part of data's batches", found[1])
            images, labels = (part.to(self._device, non_blocking=True) for part in found)
            yield Batch(as_float(images), labels, None)

    def epoch(self, epoch: int, seed: int, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch but for the first ones."""
        if skip >= len(self):
            return
        for generator in (self._loader.generator, getattr(self._sampler, "generator", None)):
            if generator is not None:
                generator.manual_seed(substream(seed, "order", epoch))
        torch.manual_seed(substream(seed, "order", epoch))
        batches = self.in_order()
        for number in range(len(self)):
            torch.manual_seed(substream(seed, f"batch of epoch {epoch}", number))
            batch = next(batches)
            if number >= skip:
                yield batch

    def fingerprint(self) -> str:
        """Stands for kind, length and first example of the data set, and for how batches are made of it."""
        dataset = self._loader.dataset
        known = [type(dataset).__name__, type(self._sampler).__name__, self._loader.batch_size, len(self)]
        if not isinstance(dataset, IterableDataset):
            with torch.random.fork_rng([]):
                torch.manual_seed(0)
                first = tree_leaves(dataset[0])
            known += [p if isinstance(p, Tensor | int | float) else type(p).__name__ for p in first]
            known.append(len(self._sampler))
        return fingerprint(*known)


def training_data(name: str, data: object) -> "TrainingData | LoaderData":
    """The data as `fit` and `evaluate` take them; a `ValueError` says how to write what comes near."""
    if isinstance(data, DataLoader):
        data = LoaderData(data)
    if isinstance(data, LoaderData) or hasattr(data, "batches"):
        if not len(data):
            raise ValueError(f"{name} holds 0 examples; expected at least one")
        return data
    examples = "Examples(images, labels, torch.arange(len(labels))), Examples being that of kdlib.data"
    if isinstance(data, Splits):
        write = f"one part of them, as {name}.train"
    elif isinstance(data, Dataset):
        write = f"torch.utils.data.DataLoader({name}, batch_size=50, shuffle=True)"
    elif isinstance(data, tuple | list) and len(data) == 2:
        write = f"images and labels as {examples}"
    else:
        write = f"a torch DataLoader of (images, labels), a loader of kdlib.vision, or {examples}"
    raise ValueError(f"{name} is {shortened(data)}; expected {write}")


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Iterator[tuple[Sequence, Sequence]]:
    """(kept, held out) positions of each fold, every class in the same proportion, by scikit-learn.

    Raises:
        ValueError: fewer than two folds, or a class with one example, which its fold would know nothing of.
    """
    check_whole("folds", folds, least=2)
    classes, counts = labels.unique(return_counts=True)
    if len(alone := classes[counts < 2]) or counts.max() < folds:
        rare = alone[0] if len(alone) else classes[counts.argmax()]
        raise ValueError(
            f"class {rare.item()} has {counts[classes == rare].item()} of the {len(labels)} examples; "
            f"expected two or more of each class, and folds={folds} or more of one"
        )
    require("vision", "sklearn")
    from sklearn.model_selection import StratifiedKFold

    yield from StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels)
