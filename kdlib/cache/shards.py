"""A folder of a teacher's outputs: what it is bound to, its files, and when it is refused.

`kdlib.cache.images` is the public face for images, `kdlib.cache.tokens` for the tokens of texts.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

from kdlib.storage import (
    DamagedFile,
    describe_changes,
    fingerprint,
    load_tensors,
    save_tensors,
    write_json,
    writing,
)

__all__ = ["Cache", "read_manifest"]


class Cache:
    """A teacher's outputs for the rows of its data, once or for several epochs.

    `manifest.json` holds what they are bound to, JSON values, among them `rows` and `epochs`; each shard, a
    safetensors file, a run of rows of one epoch. A process that is killed loses the shard in the making and
    nothing else. Shards are verified when first asked for, and then stay mapped, not copied.
    """

    MAKER: ClassVar[str]  # the function that writes such a cache
    SHARD_ROWS: ClassVar[int]  # what a killed process may have to compute again
    ADVICE: ClassVar[str] = ""  # to end a refusal with

    def __init__(self, folder: str | os.PathLike, manifest: Mapping[str, object]) -> None:
        self.folder = Path(folder)
        self.manifest = {"maker": self.MAKER, "shard_rows": self.SHARD_ROWS, **manifest}
        self.fingerprint = fingerprint(self.manifest)
        self._mapped: dict[tuple[int, int], dict[str, Tensor]] = {}

    def __len__(self) -> int:
        """Number of rows."""
        return self.manifest["rows"]

    def fill(
        self, make: Callable[[int, range], Mapping[str, Tensor]], *, overwrite: bool, progress: bool,
        finish: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Make every shard that is missing, damaged or of another cache; one process at a time.

        `make` gives the tensors of a run of rows of an epoch; `finish` is called when all are there.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock").acquire()
        with lock:
            self._claim(overwrite)
            for left in self.folder.glob(".*.part"):
                left.unlink(missing_ok=True)  # of a process that was killed
            for epoch, rows in tqdm([*self._shards()], desc="teacher", disable=not progress, leave=False):
                shard = (epoch, rows.start)
                try:
                    self._load(*shard)
                except (FileNotFoundError, DamagedFile):
                    save_tensors(self._path(*shard), make(epoch, rows), self._label(*shard))
            finish()

    def require(self, **run: object) -> None:
        """Refuse a training run, of which these are entries of the manifest, that the cache does not fit."""
        if reasons := describe_changes({name: self.manifest.get(name) for name in run}, run):
            raise ValueError(
                f"the teacher outputs in {self.folder} do not belong to this run: {reasons}. Make them anew "
                f"with {self.MAKER}, in another folder or with overwrite=True{self.ADVICE}"
            )

    def gather(self, epoch: int, rows: Tensor) -> dict[str, Tensor]:
        """The stored tensors for (B) int64 rows, in any order, repeated or not; on the rows' device.

        FileNotFoundError, DamagedFile: a shard has gone, or changed. IndexError: a row outside the data.
        """
        asked = rows.cpu()
        if len(asked) and not 0 <= asked.min() <= asked.max() < len(self):
            raise IndexError(f"rows must lie in 0 … {len(self) - 1}; got {asked.min()} to {asked.max()}")
        starts = asked - asked % self.manifest["shard_rows"]
        chosen: dict[str, Tensor] = {}
        for start in starts.unique().tolist() or [0]:
            where = (starts == start).nonzero().squeeze(1)
            for name, tensor in self._load(epoch, start).items():
                if name not in chosen:
                    chosen[name] = tensor.new_empty(len(asked), *tensor.shape[1:])
                chosen[name][where] = tensor[asked[where] - start]
        return {name: tensor.to(rows.device) for name, tensor in chosen.items()}

    def whole(self, name: str) -> Tensor:
        """One of the stored tensors for all epochs and rows: (epochs, rows, …) on the CPU."""
        parts = [self._load(epoch, rows.start)[name] for epoch, rows in self._shards()]
        return torch.cat(parts).unflatten(0, (self.manifest["epochs"], len(self)))

    def _shards(self) -> Iterator[tuple[int, range]]:
        """Epoch and rows of each."""
        size = self.manifest["shard_rows"]
        for epoch in range(self.manifest["epochs"]):
            for start in range(0, len(self), size):
                yield epoch, range(start, min(start + size, len(self)))

    def _path(self, epoch: int, start: int) -> Path:
        return self.folder / f"{epoch:04d}-{start:010d}.safetensors"

    def _label(self, epoch: int, start: int) -> dict[str, object]:
        return {"cache": self.fingerprint, "epoch": epoch, "start": start}

    def _load(self, epoch: int, start: int) -> dict[str, Tensor]:
        if (epoch, start) not in self._mapped:
            path = self._path(epoch, start)
            try:
                tensors, label = load_tensors(path)
                if label != self._label(epoch, start):
                    raise DamagedFile(f"{path} belongs to another cache")
            except (FileNotFoundError, DamagedFile) as error:
                raise type(error)(
                    f"{error}; call {self.MAKER} with the same arguments, which makes it again"
                ) from error
            self._mapped[epoch, start] = tensors
        return self._mapped[epoch, start]

    def _claim(self, overwrite: bool) -> None:
        if (held := read_manifest(self.folder, self.MAKER)) is not None:
            if not overwrite and (reasons := describe_changes(held, self.manifest)):
                raise ValueError(
                    f"{self.folder} holds another cache: {reasons}. Delete it, choose another folder, or "
                    f"pass overwrite=True to {self.MAKER}"
                )
            if not overwrite:
                return
        elif others := sorted(self.folder.glob("[!.]*")):
            name = others[0].name
            raise ValueError(f"{self.folder} holds files that are no cache, such as {name}; choose another")
        for old in self.folder.glob("[0-9]*-[0-9]*.safetensors"):
            old.unlink(missing_ok=True)
        write_json(self.folder / "manifest.json", self.manifest)


def read_manifest(folder: Path, *makers: str) -> dict | None:
    """What the cache in a folder is bound to; None if there is none; a ValueError if it is not by these."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        held = json.loads(path.read_bytes())
    except ValueError:
        held = None
    if not isinstance(held, dict) or held.get("maker") not in makers:
        said = " or ".join(makers)
        raise ValueError(f"{path} was not written by {said}, or has changed since; choose another folder")
    return held
