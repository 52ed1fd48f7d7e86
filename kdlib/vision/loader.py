"""Batches of augmented images from a data set that lies on the training device as a whole.

A crop depends on (seed, epoch, row) alone, or with `views` on (epoch modulo views, row), not on the batch it
is in. Teacher and student therefore see the same crop, a cache of teacher outputs can belong to it, and an
interrupted run sees what a whole one sees.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from kdlib.arguments import check_number, check_whole
from kdlib.data import Batch, Examples, as_float
from kdlib.runtime import substream
from kdlib.storage import fingerprint


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image, drawn anew in each epoch."""

    flip: bool = True  # mirror left and right, with probability one half
    crop: int = 4  # shift by up to this many pixels in each direction; what comes in is a reflection
    # Side in pixels of a grey square at a random place, perhaps in part outside; 0 for none (DeVries and
    # Taylor 2017, arXiv 1708.04552).
    cutout: int = 0
    # Enlarge: the side of what is left of a picture is a share of at least this much; 1 leaves its size.
    zoom: float = 1.0
    # So many crops of each picture, the same for every seed, which come again and again; 0 draws new ones for
    # each epoch and seed. A large teacher then looks at each crop once, whatever is learnt from it.
    views: int = 0

    def draw(self, count: int, height: int, width: int, *, epoch: int, seed: int) -> Tensor:
        """(count, 6) int64 on the CPU: shift down, right, mirrored or not, cutout's y, x, zoom in 1/1000."""
        if self.views:
            epoch, seed = epoch % self.views, 0
        generator = torch.Generator().manual_seed(substream(seed, "crop", epoch))

        def whole(low: int, high: int) -> Tensor:
            return torch.randint(low, high, (count,), generator=generator)

        down, right = whole(-self.crop, self.crop + 1), whole(-self.crop, self.crop + 1)
        mirrored = whole(0, 2) if self.flip else torch.zeros_like(down)
        cut_y, cut_x, side = whole(0, height), whole(0, width), whole(round(1000 * self.zoom), 1001)
        return torch.stack([down, right, mirrored, cut_y, cut_x, side], dim=1)


_NONE = Augmentation(flip=False, crop=0)


class Loader:
    """A data set held on the training device, with augmentation done there, a batch at a time.

    Images are uint8 (N, C, H, W) or float32 in [0, 1]. One gather makes the crops of a batch, channels last,
    which convolutions prefer. Without an augmentation the images stay as they are.
    """

    def __init__(self, examples: Examples, augmentation: Augmentation | None = None) -> None:
        self.augmentation = augmentation or _NONE
        height, width = examples.images.shape[-2:]
        for name in ("crop", "cutout", "views"):
            check_whole(name, getattr(self.augmentation, name))
        check_number("zoom", self.augmentation.zoom)
        crop, cutout = self.augmentation.crop, self.augmentation.cutout
        if not 0 <= crop < min(height, width) or cutout < 0:  # a crop could not be reflected so far
            raise ValueError(
                f"crop must lie in 0 … {min(height, width) - 1}, below the images' {height}×{width} pixels, "
                f"and cutout be 0 or more; got {crop} and {cutout}"
            )
        if not 0 < self.augmentation.zoom <= 1 or self.augmentation.views < 0:
            raise ValueError(
                f"zoom is a share above 0 and up to 1, and views a number of crops, 0 for ever new ones; got "
                f"{self.augmentation.zoom} and {self.augmentation.views}"
            )
        images = examples.images.contiguous(memory_format=torch.channels_last)
        self.examples = Examples(images, examples.labels, examples.index)

    def __len__(self) -> int:
        return len(self.examples)

    def to(self, device: torch.device | str) -> "Loader":
        return Loader(self.examples.to(device), self.augmentation)

    def batches(self, chunks: Iterable[Tensor], *, epoch: int = 0, seed: int = 0) -> Iterator[Batch]:
        """One `Batch` for each chunk of rows; see `kdlib.data.TrainingData`."""
        height, width = self.examples.images.shape[-2:]
        labels = self.examples.labels
        drawn = self.augmentation.draw(len(self), height, width, epoch=epoch, seed=seed).to(labels.device)
        for rows in chunks:
            rows = rows.to(labels.device)
            yield Batch(as_float(self._crops(rows, drawn[rows])), labels[rows], rows, epoch)

    def _crops(self, rows: Tensor, drawn: Tensor) -> Tensor:
        down, right, mirrored, cut_y, cut_x, side = drawn.unsqueeze(-1).unbind(1)
        pixels = self.examples.images.permute(0, 2, 3, 1)
        height, width = pixels.shape[1:3]
        y, x = torch.arange(height, device=rows.device), torch.arange(width, device=rows.device)
        from_y = _reflected(_enlarged(y, side, height) + down, height)
        seen_x = torch.where(mirrored.bool(), width - 1 - x, x)
        from_x = _reflected(_enlarged(seen_x, side, width) + right, width)
        crops = pixels[rows[:, None, None], from_y[:, :, None], from_x[:, None, :]]
        if side := self.augmentation.cutout:
            start = -(side // 2)
            hidden_y, hidden_x = ((start <= d) & (d < start + side) for d in (y - cut_y, x - cut_x))
            hidden = hidden_y[:, :, None, None] & hidden_x[:, None, :, None]
            crops.masked_fill_(hidden, 128 if crops.dtype == torch.uint8 else 128 / 255)
        return crops.permute(0, 3, 1, 2)

    @property
    def views(self) -> int:
        """Different crops of a picture: 1 without augmentation; 0 where each epoch and seed has its own."""
        return 1 if self.augmentation == _NONE else self.augmentation.views

    def fingerprint(self) -> str:
        return fingerprint(self.examples.fingerprint(), asdict(self.augmentation))

    def inputs_fingerprint(self) -> str:
        """Without augmentation that of the examples."""
        clean = self.examples.inputs_fingerprint()
        return clean if self.augmentation == _NONE else fingerprint(clean, asdict(self.augmentation))


def _enlarged(position: Tensor, side: Tensor, size: int) -> Tensor:
    """Where each pixel comes from when the middle `side` thousandths of `size` fill the picture."""
    return ((2 * position + 1 - size) * side + 1000 * size) // 2000


def _reflected(position: Tensor, size: int) -> Tensor:
    """Positions outside 0 … size − 1 mirrored at the outermost pixel, as padding_mode="reflect" does."""
    return size - 1 - (size - 1 - position.abs()).abs()
