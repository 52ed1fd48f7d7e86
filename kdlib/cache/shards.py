"""The folder of a teacher cache: what it is bound to, how its shards are laid out, and when it is refused.

`kdlib.cache.images` is the public face for images, `kdlib.cache.tokens` for the tokens of texts.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from kdlib.losses.divergences import RULED_OUT
from kdlib.losses.top_k import TopK, top_k_of
from kdlib.storage import DamagedFile, ForeignFile, fingerprint, load_tensors, replaced, save_tensors

__all__ = ["DTYPES", "Manifest", "Shards", "as_class", "claim", "read_manifest"]

_MANIFEST, _VERSION = "manifest.json", 1
_SHARD = re.compile(r"\.?[0-9a-f]{8}-\d{6}\.safetensors(\..*\.part)?")

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

    @classmethod
    def complete(cls) -> str:
        """What helps against gaps."""
        return f"call {cls.MAKER} with the same arguments: it makes what is missing or damaged again"

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
        """(B, …, C) float32 logits in the form that goes to disk.

        Raises:
            ValueError: a logit too large for the dtype.
        """
        if self.top_k is None:
            return {"logits": _rounded(logits, DTYPES[self.dtype])}
        return self.packed(top_k_of(logits, self.top_k))

    def packed(self, kept: TopK) -> dict[str, Tensor]:
        """The form that goes to disk.

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
        return reasons + [
            f"{name} was {getattr(self, name)}, is {getattr(now, name)}"
            for name in self.SETTINGS
            if getattr(self, name) != getattr(now, name)
        ]


class Shards:
    """The files of one cache.

    Shards are read when first asked for, their checksum compared, and stay mapped, not copied: memory holds
    the pages in use, and the system may drop them.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._prefix = manifest.fingerprint[:8]
        self._mapped: dict[int, dict[str, Tensor]] = {}

    def path(self, shard: int) -> Path:
        # The fingerprint in the name keeps writers of different caches out of each other's files.
        return self.folder / f"{self._prefix}-{shard:06d}.safetensors"

    def missing(self) -> list[int]:
        """Shards without a file; those that have one may be damaged."""
        return [shard for shard in range(self.manifest.shards) if not self.path(shard).is_file()]

    def load(self, shard: int) -> dict[str, Tensor]:
        """The tensors of a shard, verified.

        Raises:
            FileNotFoundError: it is missing.
            ForeignFile: it belongs to another cache, or to nothing of ours.
            DamagedFile: it is not what was written.
        """
        epoch, first, stop = self.manifest.rows(shard)
        which = f"shard {shard} (rows {first} to {stop - 1} of epoch {epoch})"
        complete, remake = self.manifest.complete(), self.manifest.remake()
        try:
            tensors, label = load_tensors(self.path(shard))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{which} is missing: {error}. {_sentence(complete)}") from error
        except ForeignFile as error:
            raise ForeignFile(f"{which}: {error}. {_sentence(remake)}") from error
        except DamagedFile as error:
            raise DamagedFile(f"{which}: {error}. {_sentence(complete)}") from error
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        if label != self._label(shard) or found != self.manifest.layout(stop - first):
            raise ForeignFile(f"{which}: {self.path(shard)} belongs to another cache or place; {remake}")
        return tensors

    def is_sound(self, shard: int) -> bool:
        """Whether a shard need not be made (again).

        Raises:
            ForeignFile: something else lies in its place, and is not ours to replace.
        """
        try:
            self.load(shard)
        except ForeignFile:
            raise
        except (FileNotFoundError, DamagedFile):
            return False
        return True

    def save(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard, unless the folder has been given to another cache meanwhile.

        Raises:
            ValueError: it has.
        """
        try:
            self._check_owner()
            save_tensors(self.path(shard), tensors, self._label(shard))
        except FileNotFoundError:
            # Our unfinished file was swept up: by a writer of this cache who was done first, or of another.
            self._check_owner()
            if not self.is_sound(shard):
                raise

    def fill(self, make: Callable[[int], Mapping[str, Tensor]], *, progress: bool) -> None:
        """Make every shard that is missing or damaged; what killed writers left unfinished is deleted."""
        todo = list(range(self.manifest.shards))
        while todo:
            for shard in tqdm(todo, desc="teacher", disable=not progress, leave=False):
                if not self.is_sound(shard):
                    self.save(shard, make(shard))
            # Not empty only where someone else began the same cache anew with overwrite=True meanwhile.
            todo = self.missing()
        for path in self.folder.glob(f".{self._prefix}-*.part"):
            path.unlink(missing_ok=True)

    def check_whole(self, *, verify: bool) -> None:
        """See that no shard is missing and, with `verify`, that each is what was written.

        Raises:
            FileNotFoundError: one is missing. ValueError: one is damaged or foreign.
        """
        if missing := self.missing():
            raise FileNotFoundError(
                f"the cache in {self.folder} is incomplete: {len(missing)} of {self.manifest.shards} shards "
                f"are missing, the first is shard {missing[0]}; {self.manifest.complete()}"
            )
        if verify:
            for shard in range(self.manifest.shards):
                self.mapped(shard)

    def gather(self, epoch: int, rows: Tensor) -> dict[str, Tensor]:
        """Stored tensors for (B) rows, on the CPU."""
        m = self.manifest
        home = rows // m.shard_rows
        chosen: dict[str, Tensor] = {}
        for number in home.unique().tolist() or [0]:
            where = (home == number).nonzero().squeeze(1)
            for name, tensor in self.mapped(epoch * m.per_epoch + number).items():
                if name not in chosen:
                    chosen[name] = tensor.new_empty(len(rows), *tensor.shape[1:])
                chosen[name][where] = tensor[rows[where] - number * m.shard_rows]
        return chosen

    def whole(self, device: torch.device) -> dict[str, Tensor]:
        """Everything as tensors (epochs, N, …) on a device."""
        m = self.manifest
        whole: dict[str, Tensor] = {}
        for shard in range(m.shards):
            epoch, first, stop = m.rows(shard)
            for name, tensor in self.mapped(shard).items():
                if name not in whole:
                    shape = (m.epochs, m.examples, *tensor.shape[1:])
                    whole[name] = torch.empty(shape, dtype=tensor.dtype, device=device)
                whole[name][epoch, first:stop] = tensor
        self._mapped = {}
        return whole

    def mapped(self, shard: int) -> dict[str, Tensor]:
        """As `load`, verified once. Indices of 16 bits come as int16; `as_class` undoes that."""
        if shard not in self._mapped:
            tensors = self.load(shard)
            if self.manifest.top_k is not None and tensors["indices"].dtype == torch.uint16:
                # Few operations know uint16; the same bits as int16 can be gathered on every device.
                tensors["indices"] = tensors["indices"].view(torch.int16)
            self._mapped[shard] = tensors
        return self._mapped[shard]

    def _label(self, shard: int) -> dict[str, object]:
        return {"cache": self.manifest.fingerprint, "shard": shard}

    def _check_owner(self) -> None:
        if read_manifest(self.folder, type(self.manifest)) != self.manifest:
            raise ValueError(
                f"another process has replaced or deleted the cache in {self.folder} meanwhile; choose a "
                f"folder for each cache"
            )


def as_class(indices: Tensor) -> Tensor:
    """int64 classes from indices as `Shards.mapped` gives them."""
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
    with replaced(folder / _MANIFEST) as file:
        file.write((json.dumps({**held, **asdict(manifest)}, indent=1) + "\n").encode())
    if overwrite:
        for path in folder.iterdir():
            if _SHARD.fullmatch(path.name):
                path.unlink(missing_ok=True)


AnyManifest = TypeVar("AnyManifest", bound=Manifest)


def read_manifest(
    folder: Path, kind: type[AnyManifest] = Manifest, *, overwrite: bool = False
) -> AnyManifest | None:
    """The manifest of the cache in a folder; None where the folder is new, or a cache in it to be replaced.

    Raises:
        ValueError: files that are no cache, also with `overwrite`; a manifest that is missing, damaged, or of
            a version that this kdlib does not know.
    """
    path = folder / _MANIFEST
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise ValueError(f"folder must be a folder; {folder} is a file")
    if not path.is_file():
        names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        foreign = [name for name in names if not _SHARD.fullmatch(name)]
        if foreign:
            raise ValueError(f"{folder} holds files that are no cache, such as {foreign[0]}; choose another")
        if names and not overwrite:
            raise ValueError(f"{folder} holds shards of a cache but no {_MANIFEST}; {kind.remake()}")
        return None
    try:
        held = json.loads(path.read_bytes())
    except ValueError as error:
        if overwrite:
            return None
        raise ValueError(f"{path} is damaged ({error}); {kind.remake()}") from error
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
        values = {f.name: held[f.name] for f in fields(kind)}
        # JSON knows lists only.
        manifest = kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})
        sound = held["fingerprint"] == manifest.fingerprint
    except (KeyError, TypeError):
        sound = False
    if not sound:
        raise ValueError(f"{path} has changed since it was written; {kind.remake()}")
    return manifest


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


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
