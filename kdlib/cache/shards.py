"""The folder of a teacher cache: what it is bound to, how its shards are laid out, and when it is refused.

`kdlib.cache.images` is the public face for images, `kdlib.cache.tokens` for the tokens of texts.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

from kdlib.losses.divergences import RULED_OUT
from kdlib.losses.top_k import TopK, top_k_of
from kdlib.storage import DamagedFile, ForeignFile, fingerprint, load_tensors, replaced, save_tensors

__all__ = ["DTYPES", "Manifest", "Shards", "as_class", "claim", "read_manifest"]

_VERSION = 1
_SHARDS = "????????-??????.safetensors"

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Manifest:
    """What a cache is bound to.

    Attributes:
        teacher, data: fingerprints of the module and of what it saw.
        varies: whether the data look different in each epoch and for each seed.
        seed: None where they do not.
        dtype: name of the stored logits' dtype.
        shape: (…, C), what the teacher returns for one example.

    A kind of cache of its own is a subclass with more fields.
    """

    FORMAT: ClassVar[str] = "kdlib teacher outputs"
    MAKER: ClassVar[str] = "cache_teacher"
    DATA_CHANGED: ClassVar[str] = "the images, their order or their augmentation have changed"
    SETTINGS: ClassVar[tuple[str, ...]] = ("epochs", "seed", "dtype", "top_k", "shard_rows")

    teacher: str
    data: str
    examples: int
    epochs: int
    seed: int | None
    varies: bool
    dtype: str
    top_k: int | None
    shard_rows: int
    shape: tuple[int, ...]

    @classmethod
    def remake(cls) -> str:
        """What helps against a cache in the way."""
        return f"delete the folder, choose another, or pass overwrite=True to {cls.MAKER}"

    @property
    def fingerprint(self) -> str:
        return fingerprint(asdict(self))

    @property
    def per_epoch(self) -> int:
        """Shards of one epoch."""
        return -(-self.examples // self.shard_rows)

    @property
    def shards(self) -> int:
        return self.epochs * self.per_epoch

    def rows(self, shard: int) -> tuple[int, int, int]:
        """Epoch, first row, and the row after the last."""
        epoch, number = divmod(shard, self.per_epoch)
        return epoch, number * self.shard_rows, min((number + 1) * self.shard_rows, self.examples)

    def layout(self, count: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of the tensors that hold `count` examples."""
        dtype, (*places, classes) = DTYPES[self.dtype], self.shape
        if self.top_k is None:
            return {"logits": (dtype, (count, *self.shape))}
        kept = (count, *places, self.top_k)
        return {
            "values": (dtype, kept),
            "indices": (_index_dtype(classes), kept),
            "log_tail": (torch.float32, (count, *places)),
        }

    @property
    def bytes_per_example(self) -> int:
        return sum(dtype.itemsize * prod(shape) for dtype, shape in self.layout(1).values())

    def stored(self, logits: Tensor) -> dict[str, Tensor]:
        """(B, …, C) float32 logits in the form that goes to disk; errors as for `packed`."""
        if self.top_k is None:
            return {"logits": _rounded(logits, DTYPES[self.dtype])}
        return self.packed(top_k_of(logits, self.top_k))

    def packed(self, kept: TopK) -> dict[str, Tensor]:
        """The largest k in the form that goes to disk.

        Raises:
            ValueError: a value too large for the dtype.
        """
        return {
            "values": _rounded(kept.values, DTYPES[self.dtype]),
            "indices": kept.indices.to(_index_dtype(self.shape[-1])),
            "log_tail": kept.log_tail.float(),
        }

    def differences(self, now: "Manifest") -> list[str]:
        """Why the cache of this manifest cannot serve for `now`; shapes follow from teacher and data."""
        reasons = []
        if self.teacher != now.teacher:
            reasons.append("the teacher has changed since it was written")
        if (self.data, self.examples) != (now.data, now.examples):
            reasons.append(f"{self.DATA_CHANGED} since it was written")
        for name in self.SETTINGS:
            if (before := getattr(self, name)) != (after := getattr(now, name)):
                reasons.append(f"{name} was {before}, is {after}")
        return reasons


class Shards:
    """The files of one cache, a run of rows of one epoch each.

    They are read when first asked for, their checksum compared, and stay mapped, not copied: memory holds the
    pages in use, and the system may drop them.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._prefix = manifest.fingerprint[:8]
        self._mapped: dict[int, dict[str, Tensor]] = {}

    def path(self, shard: int) -> Path:
        return self.folder / f"{self._prefix}-{shard:06d}.safetensors"

    def load(self, shard: int) -> dict[str, Tensor]:
        """The tensors of a shard, verified at the first call. Indices of 16 bits come as int16.

        Raises:
            FileNotFoundError: it is missing.
            ForeignFile: it belongs to another cache, or to nothing of ours.
            DamagedFile: it is not what was written.
        """
        if shard in self._mapped:
            return self._mapped[shard]
        epoch, first, stop = self.manifest.rows(shard)
        which = f"shard {shard} (rows {first} to {stop - 1} of epoch {epoch})"
        try:
            tensors, label = load_tensors(self.path(shard))
            found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
            if label != self._label(shard) or found != self.manifest.layout(stop - first):
                raise ForeignFile(f"{self.path(shard)} belongs to another cache or place")
        except ForeignFile as error:
            raise ForeignFile(f"{which}: {error}; {self.manifest.remake()}") from error
        except (FileNotFoundError, DamagedFile) as error:
            raise type(error)(
                f"{which}: {error}; call {self.manifest.MAKER} with the same arguments: it makes what is "
                f"missing or damaged again"
            ) from error
        if "indices" in tensors and tensors["indices"].dtype == torch.uint16:
            # Few operations know uint16; the same bits as int16 can be gathered on every device.
            tensors["indices"] = tensors["indices"].view(torch.int16)
        self._mapped[shard] = tensors
        return tensors

    def fill(self, make: Callable[[int], Mapping[str, Tensor]], *, progress: bool) -> None:
        """Make every shard that is missing or damaged; one process at a time.

        Raises:
            ForeignFile: in the place of a shard lies something that is not ours to replace.
        """
        with FileLock(self.folder / ".lock"):
            for left in self.folder.glob(f".{self._prefix}-*.part"):
                left.unlink(missing_ok=True)  # of a process that was killed
            every = range(self.manifest.shards)
            for shard in tqdm(every, desc="teacher", disable=not progress, leave=False):
                try:
                    self.load(shard)
                except ForeignFile:
                    raise
                except (FileNotFoundError, DamagedFile):
                    save_tensors(self.path(shard), make(shard), self._label(shard))

    def check_whole(self, *, verify: bool) -> None:
        """See that no shard is missing and, with `verify`, that each is sound; errors as for `load`."""
        for shard in range(self.manifest.shards):
            if verify or not self.path(shard).is_file():
                self.load(shard)

    def gather(self, epoch: int, rows: Tensor) -> dict[str, Tensor]:
        """Stored tensors for (B) rows, on the CPU."""
        m = self.manifest
        home = rows // m.shard_rows
        chosen: dict[str, Tensor] = {}
        for number in home.unique().tolist() or [0]:
            where = (home == number).nonzero().squeeze(1)
            for name, tensor in self.load(epoch * m.per_epoch + number).items():
                if name not in chosen:
                    chosen[name] = tensor.new_empty(len(rows), *tensor.shape[1:])
                chosen[name][where] = tensor[rows[where] - number * m.shard_rows]
        return chosen

    def whole(self, device: torch.device) -> dict[str, Tensor]:
        """Everything as tensors (epochs, N, …) on a device."""
        parts = [self.load(shard) for shard in range(self.manifest.shards)]
        shape = (self.manifest.epochs, self.manifest.examples)
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: tensor.unflatten(0, shape).to(device) for name, tensor in whole.items()}

    def _label(self, shard: int) -> dict[str, object]:
        return {"cache": self.manifest.fingerprint, "shard": shard}


def as_class(indices: Tensor) -> Tensor:
    """int64 classes from indices as `Shards.load` gives them."""
    wide = indices.to(torch.int64)
    return wide & 0xFFFF if indices.dtype == torch.int16 else wide


def claim(folder: Path, manifest: Manifest, *, overwrite: bool) -> None:
    """Take a folder for a cache; with `overwrite` the shards of whatever cache it held are deleted.

    Raises:
        ValueError: it holds another cache, or what `read_manifest` refuses.
    """
    before = read_manifest(folder, type(manifest), overwrite=overwrite)
    if before is not None:
        if reasons := before.differences(manifest):
            why = "; ".join(reasons)
            raise ValueError(f"{folder} holds another cache: {why}. To go on, {manifest.remake()}")
        return
    held = {"format": manifest.FORMAT, "version": _VERSION, "fingerprint": manifest.fingerprint}
    with replaced(folder / "manifest.json") as file:
        file.write((json.dumps({**held, **asdict(manifest)}, indent=1) + "\n").encode())
    if overwrite:
        for path in folder.glob(_SHARDS):
            path.unlink(missing_ok=True)


AnyManifest = TypeVar("AnyManifest", bound=Manifest)


def read_manifest(
    folder: Path, kind: type[AnyManifest] = Manifest, *, overwrite: bool = False
) -> AnyManifest | None:
    """The manifest of the cache in a folder; None where the folder is new, or a cache in it to be replaced.

    Raises:
        ValueError: files that are no cache, also with `overwrite`; a manifest that is damaged, or of a
            version that this kdlib does not know.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"folder must be a folder; {folder} is a file")
        strangers = {*folder.glob("[!.]*")} - {*folder.glob(_SHARDS)}
        if strangers:
            one = min(strangers).name
            raise ValueError(f"{folder} holds files that are no cache, such as {one}; choose another")
        return None
    try:
        held = json.loads(path.read_bytes())
    except ValueError:
        held = {"format": kind.FORMAT, "version": _VERSION}  # half a manifest, which no fingerprint confirms
    if not isinstance(held, Mapping) or held.get("format") != kind.FORMAT:
        raise ValueError(f"{path} was not written by kdlib's {kind.MAKER}; choose another folder")
    if overwrite:
        return None
    if held.get("version") != _VERSION:
        raise ValueError(
            f"{path} is of version {held.get('version')}, this kdlib reads version {_VERSION}: use the kdlib "
            f"that wrote it, or {kind.remake()}"
        )
    try:
        # JSON knows lists only.
        values = {f.name: tuple(v) if isinstance(v := held[f.name], list) else v for f in fields(kind)}
        manifest = kind(**values)
        if held["fingerprint"] == manifest.fingerprint:
            return manifest
    except (KeyError, TypeError):
        pass
    raise ValueError(f"{path} has changed since it was written; {kind.remake()}")


def _rounded(logits: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = logits.to(dtype)
    # A class that is ruled out may become −inf: it has probability 0 either way.
    lost = rounded.isinf() & (logits > RULED_OUT)
    if lost.any():
        raise ValueError(
            f"a logit of {logits[lost][0].item():g} does not fit {dtype}; use dtype=torch.float32, or "
            f"torch.bfloat16, which reaches as far"
        )
    return rounded


def _index_dtype(classes: int) -> torch.dtype:
    if classes <= 2**8:
        return torch.uint8
    return torch.uint16 if classes <= 2**16 else torch.int32
