"""Files that are whole or not there: tensors, fingerprints, and how a damaged file is noticed."""

import glob
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

__all__ = [
    "DamagedFile", "ForeignFile", "JsonLines", "fingerprint", "identity", "load_tensors", "remove_leftovers",
    "replaced", "save_tensors",
]  # fmt: skip

_METADATA = "kdlib"


class DamagedFile(ValueError):
    """A file that is not what was written: truncated, altered, or of another kind."""


class ForeignFile(DamagedFile):
    """A sound file that something else has written."""


@contextmanager
def replaced(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Write a file that appears under its name whole, or not at all.

    The bytes go to a temporary name beside it, reach the disk, and are renamed. A process that is
    killed meanwhile leaves the old file as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each writer, be it a thread or a process on another machine.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: Path) -> None:
    """Delete what processes left that were killed while they wrote this file with `replaced`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        left.unlink(missing_ok=True)


class JsonLines:
    """Records in a file, one JSON object a line, which survive a kill at any moment.

    What a killed process wrote of a line is not read, and is cut off before the next line is written.
    Processes can share a file: each takes a lock, the file `.NAME.lock` beside it, while it writes.

    Attributes:
        path: the file, resolved, so that two names of one file share the lock.
        lock: to hold the file for longer than one write.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path).resolve()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))

    def __iter__(self) -> Iterator[dict]:
        """The records so far.

        Raises:
            DamagedFile: on reaching a line that is no JSON object.
        """
        content = self.path.read_bytes() if self.path.exists() else b""
        # At line feeds only: JSON leaves the other line ends of Unicode as they are.
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise DamagedFile(f"line {number} of {self.path} is not a JSON object; delete that line")
            yield record

    def append(self, *records: Mapping[str, object]) -> None:
        """Add records; when this returns they are on the disk."""
        with self.lock, open(self.path, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(_lines(records))
            file.flush()
            os.fsync(file.fileno())

    def replace(self, records: Iterable[Mapping[str, object]]) -> None:
        """Begin the file anew with these records; it has all of them or is as it was."""
        with self.lock:
            remove_leftovers(self.path)
            with replaced(self.path) as file:
                file.write(_lines(records))


def _lines(records: Iterable[Mapping[str, object]]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def fingerprint(*parts: object) -> str:
    """32 hexadecimal digits that stand for tensors, modules, bytes and plain values, in their order.

    A tensor counts with its shape, dtype and values, wherever it lies; a module with its class, its
    printed architecture and its state; everything else as JSON.

    Raises:
        TypeError: a part that is none of these.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            _add(digest, "module", repr(part).encode())
            for name, value in part.state_dict().items():
                _add(digest, "name", name.encode())
                _add_value(digest, value)
        else:
            _add_value(digest, part)
    return digest.hexdigest()[:32]


def identity(function: object) -> object:
    """Stands for a function: its name, with the arguments of a `functools.partial`, as JSON values.

    Two functions of the same name cannot be told apart, whatever they close over; nor can two lambdas.
    """
    if isinstance(function, partial):
        keywords = {name: _argument(value) for name, value in function.keywords.items()}
        return [identity(function.func), [_argument(value) for value in function.args], keywords]
    return getattr(function, "__qualname__", type(function).__name__)


def _argument(value: object) -> object:
    # A function prints with its address, which is another one in each process; a long tensor, in part.
    if isinstance(value, Tensor):
        return fingerprint(value)
    return identity(value) if callable(value) else str(value)


def save_tensors(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None
) -> None:
    """Tensors and JSON metadata as one safetensors file with a checksum, written whole or not at all."""
    # Clones: safetensors refuses two names for one piece of memory, and wants contiguous tensors.
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(metadata or {}, sort_keys=True)
    # One entry: safetensors writes several in an order that changes from run to run.
    header = json.dumps({"metadata": text, "sha256": _checksum(tensors, text)}, sort_keys=True)
    payload = save(tensors, {_METADATA: header})
    with replaced(path) as file:
        file.write(payload)


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """Tensors and metadata as `save_tensors` wrote them, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ForeignFile: something else has written it.
        DamagedFile: it cannot be read or its checksum is wrong; the message says how to fix it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(_METADATA)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedFile(f"{path} is truncated or damaged ({error}); delete it and make it again") from error
    if header is None:
        raise ForeignFile(f"{path} was not written by kdlib: it holds no checksum; choose another name")
    try:
        written = json.loads(header)
        text, checksum = written["metadata"], written["sha256"]
        sound = checksum == _checksum(tensors, text)
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise DamagedFile(f"{path} has changed since it was written; delete it and make it again")
    return tensors, json.loads(text)


def _checksum(tensors: Mapping[str, Tensor], metadata: str) -> str:
    digest = hashlib.sha256()
    _add(digest, "metadata", metadata.encode())
    for name in sorted(tensors):
        _add(digest, "name", name.encode())
        _add_value(digest, tensors[name])
    return digest.hexdigest()


def _add_value(digest, value: object) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        # The bytes themselves: numpy has no bfloat16.
        content = memoryview(value.reshape(-1).view(torch.uint8).numpy())
        _add(digest, f"{value.dtype} {tuple(value.shape)}", content)
    elif isinstance(value, bytes):
        _add(digest, "bytes", value)
    else:
        _add(digest, "json", json.dumps(value, sort_keys=True).encode())


def _add(digest, kind: str, content: bytes | memoryview) -> None:
    # The length goes first, so that no two lists of parts run together into the same bytes.
    digest.update(f"{kind} {len(content)}\n".encode())
    digest.update(content)
