"""The teacher's outputs on disk: run it once, distil from it as often as you like.

What a cache may stand for depends on the data:

- **Data that look the same in every epoch** (`Examples`, or a loader without augmentation): one pass is
  enough, for every seed and any number of epochs.
- **Augmented data**: crops depend on (seed, epoch, row) alone, so a cache with `epochs=E` holds the teacher's
  logits for exactly the crops that `fit(seed=seed, epochs=E)` will show. It serves that seed and up to E
  epochs, whatever the temperature, the loss and the student.
- **Clean outputs for augmented training**, by caching `loader.examples` once: the logits of the whole picture
  then stand for all its crops. Beyer et al. 2022 (arXiv 2106.05237) call this a fixed teacher, and found a
  consistent one better over long training.

A folder holds `manifest.json`, with the fingerprints of teacher and data, and one safetensors file for each
shard, a run of rows of one epoch. Every file appears whole or not at all: a process that is killed loses the
shard in the making and nothing else.
"""

import math
import os
from pathlib import Path
from typing import Self

import psutil
import torch
from torch import Tensor, nn

from kdlib.cache.shards import DTYPES, Manifest, Shards, as_class, claim, read_manifest
from kdlib.data import Batch, Examples, TrainingData, as_float
from kdlib.runtime import best_device, eval_mode
from kdlib.storage import fingerprint

__all__ = ["CachedTeacher", "cache_teacher", "open_cache"]


class CachedTeacher:
    """Teacher outputs of a complete cache; made by `cache_teacher` and `open_cache`.

    Shards are read when their rows are first asked for; `to` brings everything onto a device, so that a step
    is one index operation.
    """

    def __init__(self, folder: str | os.PathLike, manifest: Manifest) -> None:
        self.folder = Path(folder)
        self._manifest = manifest
        self._shards = Shards(self.folder, manifest)
        self._held: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Number of examples."""
        return self._manifest.examples

    @property
    def classes(self) -> int:
        """C, the length of the last axis of the logits."""
        return self._manifest.shape[-1]

    @property
    def epochs(self) -> int:
        """Passes over the data that are stored."""
        return self._manifest.epochs

    @property
    def seed(self) -> int | None:
        """Seed of the augmentation; None where the data look the same for every seed."""
        return self._manifest.seed

    @property
    def fingerprint(self) -> str:
        """Stands for teacher, data, seed, epochs and form of storage."""
        return self._manifest.fingerprint

    @property
    def bytes_per_example(self) -> int:
        """Bytes that one example takes in one epoch, on disk as on the device.

        All classes: places × C × bytes of the dtype. Top k: places × (k × (bytes of the dtype + bytes of an
        index) + 4), an index taking 1 byte up to 256 classes, 2 up to 65,536, 4 beyond. Places are the
        positions of an example: 1 for a picture, L for L tokens.
        """
        return self._manifest.bytes_per_example

    def __str__(self) -> str:
        m = self._manifest
        places = f"{' × '.join(map(str, m.shape[:-1]))} positions, " if len(m.shape) > 1 else ""
        kept = "" if m.top_k is None else f"top {m.top_k} of "
        total = self.bytes_per_example * len(self) * self.epochs
        return (
            f"teacher outputs of {len(self):,} examples, {self.epochs} epoch{'s' * (self.epochs != 1)}, "
            f"{places}{kept}{self.classes:,} classes in {m.dtype}: "
            f"{self.bytes_per_example:,} bytes an example and epoch, {total / 1e6:,.1f} MB"
        )

    def check(self, data: TrainingData, *, seed: int, epochs: int) -> None:
        """Refuse a training run that this cache does not belong to.

        Args:
            data: what the student will be trained on: the data that were cached or, for a cache of clean
                outputs, a loader that augments them. Labels may differ: the teacher did not see them.
            seed, epochs: as given to `fit`.

        Raises:
            ValueError: saying what differs and how to fix it.
        """
        m = self._manifest
        if not self._belongs_to(data):
            raise ValueError(
                f"the teacher outputs in {self.folder} were made from other data: {m.DATA_CHANGED}. Make "
                f"them for these with cache_teacher, in another folder or with overwrite=True"
            )
        if m.varies and seed != m.seed:
            raise ValueError(
                f"the teacher outputs in {self.folder} were made for the crops of seed={m.seed}; got "
                f"seed={seed}, which shows others. Train with seed={m.seed}, make a cache with seed={seed}, "
                f"or cache the images without augmentation once, which serves every seed"
            )
        if m.varies and epochs > m.epochs:
            raise ValueError(
                f"the teacher outputs in {self.folder} hold the crops of {m.epochs} epochs; training takes "
                f"{epochs}. Make a cache with epochs={epochs}, or cache the images without augmentation "
                f"once, which serves any number"
            )

    def _belongs_to(self, data: TrainingData) -> bool:
        if len(data) != len(self):
            return False
        if self._manifest.data == data.inputs_fingerprint():
            return True
        clean = None if self._manifest.varies else _unaugmented(data)
        return clean is not None and self._manifest.data == clean.inputs_fingerprint()

    def to(self, device: torch.device | str) -> Self:
        """Hold all outputs as tensors on a device, if they fit into half of its free memory; else read files.

        Raises:
            ValueError: a damaged shard. FileNotFoundError: a missing one.
        """
        device = torch.empty(0, device=device).device  # with its number: "cuda" is the current one
        on_gpu = device.type == "cuda"
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
        if self.bytes_per_example * len(self) * self.epochs > free / 2:
            self._held = {}
        elif not self._held or next(iter(self._held.values())).device != device:
            self._held = self._shards.whole(device)
        return self

    def prepare(self, data: TrainingData, device: torch.device, *, epochs: int, seed: int) -> None:
        """As a `Teacher` of `fit`: `check`, then `to`."""
        self.check(data, seed=seed, epochs=epochs)
        self.to(device)

    def teacher_logits(self, epoch: int, batch: Batch) -> Tensor:
        """As a `Teacher` of `fit`: `logits` of the batch's rows."""
        return self.logits(epoch, batch.rows)

    def logits(self, epoch: int, rows: Tensor) -> Tensor:
        """The teacher's logits for some rows in one epoch.

        With top-k the mass of the other classes is spread evenly over them. That is a proper distribution,
        and at T = 1 exact for the k classes kept and for the mass of the others, up to the rounding of the
        dtype. At other T it is an approximation, the better the larger k.

        Args:
            epoch: counted from 0. Where the data look the same in every epoch, any epoch will do.
            rows: (B) int64 positions in the data, on any device, in any order, repeated or not.

        Returns:
            (B, …, C) float32 on the device of the rows.

        Raises:
            ValueError: an epoch that is not stored, or a damaged shard. FileNotFoundError: a missing one.
            IndexError: a row outside the data. (On a CUDA device: its own assertion.)
        """
        m = self._manifest
        if not m.varies:
            epoch = 0
        elif not 0 <= epoch < m.epochs:
            raise ValueError(
                f"epoch must lie in 0 … {m.epochs - 1}, as stored in {self.folder}; got {epoch}. Make a "
                f"cache with more epochs"
            )
        if rows.device.type == "cpu" and len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows must lie in 0 … {len(self) - 1}; got {rows.min()} to {rows.max()}")
        if self._held:
            stored = {name: tensor[epoch][rows.to(tensor.device)] for name, tensor in self._held.items()}
        else:
            stored = self._shards.gather(epoch, rows.cpu())
        stored = {name: tensor.to(rows.device) for name, tensor in stored.items()}
        if m.top_k is None:
            return stored["logits"].float()
        # Without others the logarithm does not matter: every place is overwritten.
        each = (stored["log_tail"] - math.log(max(self.classes - m.top_k, 1))).unsqueeze(-1)
        dense = each.expand(*each.shape[:-1], self.classes).clone()
        return dense.scatter_(-1, as_class(stored["indices"]), stored["values"].float())

@torch.no_grad()
def cache_teacher(
    teacher: nn.Module,
    data: TrainingData,
    folder: str | os.PathLike,
    *,
    epochs: int = 1,
    seed: int = 0,
    top_k: int | None = None,
    dtype: torch.dtype = torch.float32,
    shard_rows: int = 4096,
    batch_size: int = 512,
    device: torch.device | str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> CachedTeacher:
    """Run the teacher over the data, in eval mode without gradients, and store its logits.

    Called again with the same arguments, it verifies what is there and makes only what is missing or damaged.
    Which epochs and seeds a cache can be used for stands at the head of `kdlib.cache.images`.

    Args:
        teacher: images (B, …) -> logits (B, …, C); moved to the device.
        data: what the student will be trained on, or the same without augmentation.
        folder: a folder of its own; made if need be.
        epochs: passes over the data. 1 is enough for data without augmentation.
        seed: the one `fit` will be given; without augmentation any.
        top_k: keep only the k largest logits and the mass of the others; None keeps all classes.
        dtype: of the stored logits: float32; float16, off by up to one part in 2,048, for logits within
            ±65,504; or bfloat16, off by up to one part in 256.
        shard_rows: rows of one file: what a killed process may have to compute again.
        batch_size: rows of one forward pass. Results of different batch sizes agree up to rounding.
        device: where the teacher runs; default `best_device()`.
        overwrite: replace whatever cache the folder holds.
        progress: show a progress bar.

    Returns:
        The complete `CachedTeacher`.

    Raises:
        ValueError: bad arguments; a folder with another cache or other files; logits that are not finite
            or do not fit the dtype. The message says how to fix it.
    """
    _check_arguments(data, epochs, top_k, dtype, shard_rows, batch_size)
    folder = Path(folder)
    read_manifest(folder, overwrite=overwrite)  # refuses before the teacher runs
    device = torch.device(device) if device is not None else best_device()
    teacher, data = teacher.to(device), data.to(device)
    seen, images, varies = _look_at(data, seed)
    with eval_mode(teacher):
        shape = tuple(_output(teacher, images).shape[1:])
        if top_k is not None and top_k > shape[-1]:
            raise ValueError(f"top_k must be at most the {shape[-1]} classes; got {top_k}")
        manifest = Manifest(
            teacher=fingerprint(teacher), data=seen, examples=len(data), epochs=epochs,
            seed=seed if varies else None, varies=varies, dtype=str(dtype).removeprefix("torch."),
            top_k=top_k, shard_rows=shard_rows, shape=shape,
        )  # fmt: skip
        claim(folder, manifest, overwrite=overwrite)
        cached = CachedTeacher(folder, manifest)
        cached._shards.fill(
            lambda shard: _compute(teacher, data, manifest, shard, seed, batch_size), progress=progress
        )
    return cached


def open_cache(
    folder: str | os.PathLike, *, teacher: nn.Module | None = None, data: TrainingData | None = None
) -> CachedTeacher:
    """A cache that `cache_teacher` has written. Checksums are compared at the first use of each shard.

    Args:
        folder: where it is.
        teacher: if given, must be the one that was cached.
        data: if given, must be the data that were cached or, for a cache of clean outputs, a loader that
            augments them. `CachedTeacher.check` also compares seed and epochs.

    Raises:
        FileNotFoundError: there is no cache, or a shard is missing.
        ValueError: it is damaged, or belongs to another teacher or other data.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise FileNotFoundError(f"there is no cache in {folder}; make one with cache_teacher")
    cached = CachedTeacher(folder, manifest)
    cached._shards.check_whole(verify=False)
    if teacher is not None and fingerprint(teacher) != manifest.teacher:
        raise ValueError(
            f"the teacher has changed since the cache in {folder} was written; {manifest.remake()}"
        )
    if data is not None and not cached._belongs_to(data):
        raise ValueError(
            f"{manifest.DATA_CHANGED} since the cache in {folder} was written; {manifest.remake()}"
        )
    return cached


def _unaugmented(data: TrainingData) -> Examples | None:
    examples = getattr(data, "examples", None)
    return examples if isinstance(examples, Examples) else None


def _look_at(data: TrainingData, seed: int) -> tuple[str, Tensor, bool]:
    """Fingerprint of what the teacher sees, some images, and whether they change with epoch or seed."""
    rows = torch.linspace(0, len(data) - 1, min(len(data), 16)).long()
    # 32 draws or more: a flip with probability one half goes unseen once in 2^32 times.
    others = [(seed, 1 + n) for n in range(-(-32 // len(rows)))] + [(seed + 1, 0)]

    def look(seed: int, epoch: int) -> Tensor:
        return next(iter(data.batches([rows], epoch=epoch, seed=seed))).images

    first = look(seed, 0)
    varies = not all(torch.equal(first, look(*other)) for other in others)
    clean = _unaugmented(data)
    if not varies and clean is not None:
        unchanged = as_float(clean.images[rows.to(clean.images.device)])
        if torch.equal(first, unchanged.to(first.device)):
            # A loader that does nothing: as if it were not there.
            return clean.inputs_fingerprint(), first, varies
    return data.inputs_fingerprint(), first, varies


def _output(teacher: nn.Module, images: Tensor) -> Tensor:
    logits = teacher(images)
    sound = isinstance(logits, Tensor) and logits.is_floating_point() and logits.dim() > 1
    if not sound or len(logits) != len(images):
        got = type(logits).__name__
        if isinstance(logits, Tensor):
            got = f"{logits.dtype} of shape {tuple(logits.shape)}"
        raise ValueError(
            f"teacher must return floating logits ({len(images)}, …, C) for {len(images)} images; got {got}. "
            f"Wrap it in a module that returns its logits alone"
        )
    return logits


def _compute(
    teacher: nn.Module, data: TrainingData, manifest: Manifest, shard: int, seed: int, batch_size: int
) -> dict[str, Tensor]:
    epoch, first, stop = manifest.rows(shard)
    parts = []
    for batch in data.batches(torch.arange(first, stop).split(batch_size), epoch=epoch, seed=seed):
        logits = _output(teacher, batch.images).float()
        # The largest tells all: NaN and +inf come through, and −inf means that no class is left.
        if not logits.amax(-1).isfinite().all():
            raise ValueError(
                f"the teacher's logits in rows {batch.rows[0]} to {batch.rows[-1]} of epoch {epoch} are not "
                f"finite; look at its weights and at these images"
            )
        parts.append({name: tensor.cpu() for name, tensor in manifest.stored(logits).items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _check_arguments(
    data: TrainingData, epochs: int, top_k: int | None, dtype: torch.dtype, shard_rows: int, batch_size: int
) -> None:
    if len(data) == 0:
        raise ValueError("data holds no examples; expected at least one")
    counts = {"epochs": epochs, "top_k": top_k, "shard_rows": shard_rows, "batch_size": batch_size}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more; got {value}")
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be float32, float16 or bfloat16; got {dtype}")
