"""Batches of images for training: the whole set on the device, or streamed from files.

A crop depends on (seed, epoch, row) alone, not on the batch it is in. Teacher and student therefore see the
same crop, a cache of teacher outputs can belong to it, and an interrupted or shared training run sees what
an undisturbed one would have seen.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as v2

from kdlib.data import Batch, Examples, as_float
from kdlib.runtime import substream
from kdlib.storage import fingerprint
from kdlib.vision.photos import read_photo

__all__ = ["Augmentation", "Loader", "StreamingLoader"]


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image, drawn anew in each epoch.

    Attributes:
        flip: mirror left and right, with probability one half.
        crop: shift by up to this many pixels in each direction; what comes in is a reflection.
        cutout: side of a grey square at a random place, in pixels; 0 for none (DeVries and Taylor 2017,
            arXiv 1708.04552). At the border part of it falls outside.
    """

    flip: bool = True
    crop: int = 4
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.crop < 0 or self.cutout < 0:
            raise ValueError(f"crop and cutout are pixels, 0 or more; got {self.crop} and {self.cutout}")

    def draw(self, count: int, height: int, width: int, *, epoch: int, seed: int) -> Tensor:
        """(count, 5) int64 on the CPU, a row each: shift down, right, mirrored or not, cutout's y, x."""
        generator = torch.Generator().manual_seed(substream(seed, "crop", epoch))

        def whole(low: int, high: int) -> Tensor:
            return torch.randint(low, high, (count,), generator=generator)

        shifts = [whole(-self.crop, self.crop + 1) for _ in range(2)]
        mirrored = whole(0, 2) if self.flip else torch.zeros(count, dtype=torch.int64)
        return torch.stack([*shifts, mirrored, whole(0, height), whole(0, width)], dim=1)


NO_AUGMENTATION = Augmentation(flip=False, crop=0)


class Loader:
    """A data set held on the training device, with augmentation done there a batch at a time.

    No worker processes: one gather makes the crops of a batch, in channels-last order, which convolutions
    prefer. On a GPU nothing but row numbers crosses the bus.

    Args:
        examples: images uint8 (N, C, H, W), or float32 in [0, 1].
        augmentation: None for the images as they are.

    Raises:
        ValueError: crop not smaller than the images, which could not be reflected so far.
    """

    def __init__(self, examples: Examples, augmentation: Augmentation | None = None) -> None:
        self.augmentation = augmentation or NO_AUGMENTATION
        self.labels, self.index = examples.labels, examples.index
        _check_size(self.augmentation, examples.images.shape[-2:])
        self._pixels = examples.images.permute(0, 2, 3, 1).contiguous()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def examples(self) -> Examples:
        """The images without augmentation."""
        return Examples(self._pixels.permute(0, 3, 1, 2), self.labels, self.index)

    def to(self, device: torch.device | str) -> "Loader":
        """The same data on another device."""
        return Loader(self.examples.to(device), self.augmentation)

    def batches(self, chunks: Iterable[Tensor], *, epoch: int = 0, seed: int = 0) -> Iterator[Batch]:
        """One `Batch` for each chunk of rows; see `kdlib.data.TrainingData`."""
        height, width = self._pixels.shape[1:3]
        device = self._pixels.device
        drawn = self.augmentation.draw(len(self), height, width, epoch=epoch, seed=seed).to(device)
        for rows in chunks:
            rows = rows.to(device)
            yield Batch(as_float(self._crops(rows, drawn[rows])), self.labels[rows], rows)

    def _crops(self, rows: Tensor, drawn: Tensor) -> Tensor:
        down, right, mirrored, cut_y, cut_x = drawn.unsqueeze(-1).unbind(1)
        height, width = self._pixels.shape[1:3]
        y = torch.arange(height, device=rows.device)
        columns = torch.arange(width, device=rows.device)
        x = torch.where(mirrored.bool(), width - 1 - columns, columns)
        from_y, from_x = _reflected(y + down, height), _reflected(x + right, width)
        crops = self._pixels[rows[:, None, None], from_y[:, :, None], from_x[:, None, :]]
        if self.augmentation.cutout:
            side = self.augmentation.cutout
            hidden_y, hidden_x = _in_cutout(y, cut_y, side), _in_cutout(columns, cut_x, side)
            hidden = hidden_y[:, :, None, None] & hidden_x[:, None, :, None]
            crops.masked_fill_(hidden, _grey(crops.dtype))
        return crops.permute(0, 3, 1, 2)

    def fingerprint(self) -> str:
        """Stands for images, labels, order and augmentation."""
        return fingerprint(self.examples.fingerprint(), asdict(self.augmentation))

    def inputs_fingerprint(self) -> str:
        """Stands for images, order and augmentation."""
        return fingerprint(self.examples.inputs_fingerprint(), asdict(self.augmentation))


class StreamingLoader:
    """The same batches read from files as they are needed, for sets larger than memory.

    Args:
        paths: image files, decoded and cut to squares as by `kdlib.load_photos`.
        labels: (N) class indices; −100 where a file has none.
        size: side of the squares in pixels.
        augmentation: None for the images as they are.
        workers: processes that decode; 0 decodes in this one.
        device: where batches come.

    Raises:
        ValueError: numbers of paths and labels that differ, or a crop not smaller than the size. While
            reading: a file that cannot be decoded, by its name.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        labels: Sequence[int] | Tensor,
        size: int,
        augmentation: Augmentation | None = None,
        *,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(paths) != len(labels):
            raise ValueError(
                f"expected one label for each file; got {len(paths)} paths and {len(labels)} labels"
            )
        self.augmentation = augmentation or NO_AUGMENTATION
        _check_size(self.augmentation, (size, size))
        self.paths, self.size, self.workers = [Path(p) for p in paths], size, workers
        self.device = torch.device(device)
        self.labels = torch.as_tensor(labels, dtype=torch.int64).to(self.device)

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device | str) -> "StreamingLoader":
        """The same files, batches coming on another device."""
        return StreamingLoader(
            self.paths, self.labels, self.size, self.augmentation, workers=self.workers, device=device
        )

    def batches(self, chunks: Iterable[Tensor], *, epoch: int = 0, seed: int = 0) -> Iterator[Batch]:
        """One `Batch` for each chunk of rows; see `kdlib.data.TrainingData`."""
        drawn = self.augmentation.draw(len(self), self.size, self.size, epoch=epoch, seed=seed)
        chunks = [rows.cpu() for rows in chunks]
        images = DataLoader(
            _Files(self.paths, self.size, drawn, self.augmentation.cutout),
            batch_sampler=[rows.tolist() for rows in chunks],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        for rows, batch in zip(chunks, images, strict=True):
            rows = rows.to(self.device)
            batch = batch.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            yield Batch(as_float(batch), self.labels[rows], rows)

    def fingerprint(self) -> str:
        """Stands for the files, by name, size and time of change, labels, order and augmentation."""
        return fingerprint(self.inputs_fingerprint(), self.labels)

    def inputs_fingerprint(self) -> str:
        """Stands for the files, their order and augmentation."""
        files = [(p.as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in self.paths]
        return fingerprint(files, self.size, asdict(self.augmentation))


@dataclass(frozen=True)
class _Files(Dataset):
    paths: Sequence[Path]
    size: int
    drawn: Tensor
    cutout: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor:
        image = read_photo(self.paths[row], self.size)
        down, right, mirrored, cut_y, cut_x = self.drawn[row].tolist()
        reach = max(abs(down), abs(right))
        if reach:
            image = v2.pad(image, [reach], padding_mode="reflect")
        image = v2.crop(image, reach + down, reach + right, self.size, self.size)
        if mirrored:
            image = v2.horizontal_flip(image)
        if self.cutout:
            (top, bottom), (first, last) = (_cutout_span(c, self.cutout, self.size) for c in (cut_y, cut_x))
            grey = torch.tensor(_grey(image.dtype), dtype=image.dtype)
            image = v2.erase(image, top, first, bottom - top, last - first, grey)
        return image


def _reflected(position: Tensor, size: int) -> Tensor:
    """Positions outside 0 … size − 1 mirrored at the outermost pixel, as padding_mode="reflect" does."""
    position = position.abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)


def _cutout_span(centre: int, side: int, size: int) -> tuple[int, int]:
    first = centre - side // 2
    return max(first, 0), min(first + side, size)


def _in_cutout(position: Tensor, centre: Tensor, side: int) -> Tensor:
    first = centre - side // 2
    return (position >= first) & (position < first + side)


def _grey(dtype: torch.dtype) -> float:
    return 128 if dtype == torch.uint8 else 128 / 255


def _check_size(augmentation: Augmentation, size: Sequence[int]) -> None:
    if augmentation.crop >= min(size):
        raise ValueError(
            f"crop={augmentation.crop} must be smaller than the images, {size[0]}×{size[1]} pixels"
        )
