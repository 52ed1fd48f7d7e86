"""A teacher's outputs for images, on disk: run it once, distil from it as often as you like.

What a cache may stand for depends on the data:

- **Data that look the same in every epoch** (`Examples`, or a loader without augmentation): one pass is
  enough, for every seed and any number of epochs.
- **Augmented data**: a cache with `epochs=E` holds the teacher's logits for exactly the crops that
  `fit(seed=seed, epochs=E)` will show. It serves that seed and up to E epochs, whatever loss and student.
- **A fixed number of crops of each picture** (`Augmentation(views=V)`): V passes, for every seed and any
  number of epochs.
- **Clean outputs for augmented training**, by caching `loader.examples` once: the logits of the whole picture
  stand for all its crops. Beyer et al. 2022 (arXiv 2106.05237) found that worse over long training.
"""

import os
from collections.abc import Mapping
from math import prod
from typing import Self

import torch
from torch import Tensor, nn

from kdlib.arguments import check_counts, refuse
from kdlib.cache.shards import Cache
from kdlib.data import Batch, Examples, TrainingData
from kdlib.runtime import eval_mode, usable_device
from kdlib.storage import fingerprint

__all__ = ["CachedTeacher", "cache_teacher"]


class CachedTeacher(Cache):
    """A teacher's logits in float32, for `fit`; made by `cache_teacher`.

    Attributes:
        manifest: fingerprints of `teacher` and `data`, `rows`, `epochs`, `shape` (…, C) of one example's
            logits, and `seed`: that of the augmentation, None where the data look the same for every seed and
            repeat after `epochs`.
    """

    MAKER = "cache_teacher"
    SHARD_ROWS = 4096
    ADVICE = "; outputs for images without augmentation serve every seed and any number of epochs"

    def __init__(self, folder: str | os.PathLike, manifest: Mapping[str, object]) -> None:
        super().__init__(folder, manifest)
        self._held: Tensor | None = None

    @property
    def bytes_per_example(self) -> int:
        """Bytes that one example takes in one epoch."""
        return 4 * prod(self.manifest["shape"])

    def __str__(self) -> str:
        epochs, each = self.manifest["epochs"], self.bytes_per_example
        return (
            f"teacher outputs of {len(self):,} examples, {epochs} epoch{'s' * (epochs != 1)}, "
            f"{self.manifest['shape'][-1]:,} classes in float32: {each:,} bytes an example and epoch, "
            f"{each * len(self) * epochs / 1e6:,.1f} MB"
        )

    def check(self, data: TrainingData, *, seed: int, epochs: int) -> None:
        """Refuse, by a ValueError that says why, a run of `fit` that this cache does not belong to.

        Labels may differ, and clean outputs serve a loader that augments the images.
        """
        m, seen = self.manifest, data.inputs_fingerprint()
        if m["seed"] is not None:
            self.require(data=seen, seed=seed, epochs=max(epochs, m["epochs"]))
        elif m["data"] not in (seen, _unaugmented(data)):
            self.require(data=seen)

    def prepare(self, data: TrainingData, device: torch.device, *, epochs: int, seed: int) -> Self:
        """`check`, then hold all logits on a GPU if half of its free memory suffices; else read files."""
        self.check(data, seed=seed, epochs=epochs)
        self._held = None
        if device.type == "cuda":
            size = self.bytes_per_example * len(self) * self.manifest["epochs"]
            if size <= torch.cuda.mem_get_info(device)[0] / 2:
                self._held = self.whole("logits").to(device)
        return self

    def __call__(self, batch: Batch) -> Tensor:
        """As a teacher: its logits for a batch."""
        return self.logits(batch.epoch, batch.rows)

    def logits(self, epoch: int, rows: Tensor) -> Tensor:
        """(B, …, C) float32: the teacher's logits for some rows in one epoch, see `gather`.

        Where the data repeat after so many epochs, any epoch will do; else a ValueError refuses one that is
        not stored.
        """
        epochs = self.manifest["epochs"]
        if self.manifest["seed"] is None:
            epoch %= epochs
        elif not 0 <= epoch < epochs:
            raise ValueError(
                f"epoch must lie in 0 … {epochs - 1}, as stored in {self.folder}; got {epoch}. Make a cache "
                f"with more epochs"
            )
        if self._held is not None and self._held.device == rows.device:
            return self._held[epoch][rows]
        return self.gather(epoch, rows)["logits"]


@torch.no_grad()
def cache_teacher(
    teacher: nn.Module, data: TrainingData, folder: str | os.PathLike, *, epochs: int = 1, seed: int = 0,
    batch_size: int = 512, device: torch.device | str | None = None, overwrite: bool = False,
    progress: bool = False,
) -> CachedTeacher:  # fmt: skip
    """Run the teacher over the data, in eval mode without gradients, and store its logits.

    Called again with the same arguments, it makes only what is missing or damaged. Which epochs and seeds a
    cache can be used for stands at the head of `kdlib.cache.images`.

    Args:
        teacher: images (B, …) -> logits (B, …, C); moved to the device.
        data: what the student will be trained on, or the same without augmentation.
        folder: one of its own; made if need be.
        epochs: passes over the data; data without augmentation take one, and those with `views` as many.
        seed: the one `fit` will be given; without augmentation, or with `views`, any.
        batch_size: rows of one forward pass. Results of different batch sizes agree up to rounding.
        device: where the teacher runs; default `best_device()`.
        overwrite: replace whatever cache the folder holds.

    Raises:
        ValueError: bad arguments; a folder with another cache or other files; logits that are not finite.
    """
    if not hasattr(data, "inputs_fingerprint"):
        refuse("data", data, "Examples, or a Loader of them: a DataLoader does not say which rows it shows")
    check_counts(epochs=epochs, batch_size=batch_size)
    if not len(data):
        raise ValueError("data is empty; expected at least one example")
    device = usable_device(device)
    teacher, data = teacher.to(device), data.to(device)
    seen = data.inputs_fingerprint()
    # Passes after which the data repeat, for every seed; 0 if they never do.
    repeat = 1 if seen == _unaugmented(data) else getattr(data, "views", 0)

    def outputs(epoch: int, rows: range) -> dict[str, Tensor]:
        chunks = torch.arange(rows.start, rows.stop).split(batch_size)
        batches = data.batches(chunks, epoch=epoch, seed=seed)
        return {"logits": torch.cat([_logits(teacher, batch).cpu() for batch in batches])}

    with eval_mode(teacher):
        shape = outputs(0, range(1))["logits"].shape[1:]
        cached = CachedTeacher(folder, {
            "teacher": fingerprint(teacher), "data": seen, "rows": len(data), "shape": list(shape),
            "epochs": repeat or epochs, "seed": None if repeat else seed,
        })  # fmt: skip
        cached.fill(outputs, overwrite=overwrite, progress=progress)
    return cached


def _unaugmented(data: TrainingData) -> str | None:
    """Stands for the images as they are; None for data that do not tell them."""
    examples = getattr(data, "examples", data)
    return fingerprint(examples.images) if isinstance(examples, Examples) else None


def _logits(teacher: nn.Module, batch: Batch) -> Tensor:
    logits = teacher(batch.images)
    if not isinstance(logits, Tensor) or logits.dim() < 2 or len(logits) != len(batch.images):
        raise ValueError(
            f"teacher must return logits ({len(batch.images)}, …, C) for {len(batch.images)} images; got "
            f"{tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__}. Wrap it in a "
            f"module that returns its logits alone"
        )
    # The largest is enough: NaN and +inf come through, and −inf means that no class is left.
    if not logits.amax(-1).isfinite().all():
        raise ValueError(
            f"the teacher's logits in rows {batch.rows[0]} to {batch.rows[-1]} of epoch {batch.epoch} are "
            f"not finite; look at its weights and at these images"
        )
    return logits.float()
