"""Files that are whole or not there: tensors, fingerprints, and how a damaged file is noticed."""

import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dis import get_instructions
from functools import partial
from inspect import getclosurevars
from pathlib import Path
from types import FunctionType
from typing import BinaryIO

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn


class DamagedFile(ValueError):
    """A file that is not what was written: truncated, altered, or of another kind."""


class ForeignFile(DamagedFile):
    """A sound file that something else has written."""


_FIXES = {
    errno.ENOSPC: "the disk is full; make room there, or choose another place",
    errno.EDQUOT: "your share of the disk is used up; make room there, or choose another place",
    errno.EFBIG: "it would be larger than a file may be; raise the limit (ulimit -f), or choose another disk",
    errno.EIO: "the disk is full or fails; make room there, or choose another place",
    errno.EROFS: "the disk can only be read; choose another place",
    errno.EACCES: "you may not write there; change the permissions, or choose another place",
    errno.EPERM: "you may not write there; change the permissions, or choose another place",
    errno.ENOTDIR: "a part of this path is a file; expected a folder",
    errno.EEXIST: "a part of this path is a file; expected a folder",
    errno.EISDIR: "this is a folder; expected the name of a file",
}


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """What keeps a file or folder from being written inside is told as an OSError with its name and a fix."""
    path = Path(path)
    try:
        yield
    except OSError as error:
        about = Path(error.filename) if isinstance(error.filename, str) else path
        told = isinstance(error.__cause__, OSError)
        # One that knows no number is another library's, and one of a file elsewhere no matter of this file.
        near = about in path.parents or {about, *about.parents} & {path, path.parent}
        if told or error.errno is None or not near:
            raise
        reason = os.strerror(error.errno)
        fix = _FIXES.get(error.errno, "choose another place")
        # The number makes it of the same class, as PermissionError.
        raise OSError(error.errno, f"cannot write {path} ({reason}): {fix}. Then start again") from error


@contextmanager
def replaced(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Write a file that appears under its name whole, or not at all: a kill leaves the old one as it was.

    An OSError says why it cannot be written, and what to do; nothing of it is left then.
    """
    path = Path(path)
    # A name of its own for each writer, be it a thread or a process on another machine.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


@contextmanager
def saving(folder: str | os.PathLike) -> Iterator[None]:
    """Let another library fill a folder: where it cannot, the folder is removed, and `writing` says why.

    safetensors and torch.save raise errors of their own, of which the text alone says what the system said.
    """
    folder = Path(folder)
    try:
        with writing(folder):
            try:
                yield
            except (SafetensorError, RuntimeError) as error:
                number = re.search(r"\(os error (\d+)\)", str(error))
                # https://github.com/pytorch/pytorch/blob/v2.8.0/caffe2/serialize/inline_container.cc#L875
                if number is None and not re.search("PytorchStreamWriter|inline_container", str(error)):
                    raise
                code = int(number[1]) if number else errno.EIO
                raise OSError(code, os.strerror(code)) from error
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_leftovers(path: Path) -> None:
    """Delete what processes left that were killed while they wrote this file with `replaced`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        left.unlink(missing_ok=True)


class JsonLines:
    """Records in a file, one JSON object a line, which survive a kill at any moment.

    What a killed process wrote of a line is not read, and is cut off before the next line is written.
    Processes can share a file: each holds the lock `.NAME.lock` beside it while it writes.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path).resolve()
        if self.path.is_dir():
            raise ValueError(f"{str(path)!r} is a folder; expected the name of a file in it")
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))

    def __iter__(self) -> Iterator[dict]:
        """The records so far; a `DamagedFile` on reaching a line that is no JSON object."""
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
        """Add records; when this returns they are on the disk. Where an OSError says why not, none is."""
        # Without a buffer: that would try again, when it is closed, what could not be written.
        with writing(self.path), self.lock, open(self.path, "a+b", buffering=0) as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.seek(0)
                    file.truncate(file.readall().rfind(b"\n") + 1)
            before, left = file.seek(0, os.SEEK_END), memoryview(_lines(records))
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(before)
                raise

    def replace(self, records: Iterable[Mapping[str, object]]) -> None:
        """Begin the file anew with these records; it has all of them or is as it was."""
        with writing(self.path), self.lock:
            remove_leftovers(self.path)
            with replaced(self.path) as file:
                file.write(_lines(records))


def _lines(records: Iterable[Mapping[str, object]]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def sealed(record: Mapping[str, object]) -> dict[str, object]:
    """A record with a checksum."""
    return {**record, "crc32": f"{zlib.crc32(json.dumps(record, ensure_ascii=False).encode()):08x}"}


def is_sound(record: dict[str, object]) -> bool:
    """Whether a record is as it was sealed; its checksum is removed."""
    return record.pop("crc32", None) == sealed(record)["crc32"]


def write_json(path: str | os.PathLike, content: object) -> None:
    """JSON for people to read too, whole or not at all."""
    with replaced(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def fingerprint(*parts: object) -> str:
    """32 hexadecimal digits that stand for tensors, modules, bytes and JSON values, in their order.

    A tensor counts with shape, dtype and values; a module with its printed architecture and its state.
    """
    digest = hashlib.sha256()
    for kind, content in _described(parts):
        # The length goes first, so that no two lists of parts run together into the same bytes.
        digest.update(f"{kind} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:32]


def _described(parts: Iterable[object]) -> Iterator[tuple[str, bytes | memoryview]]:
    for part in parts:
        if isinstance(part, nn.Module):
            yield "module", repr(part).encode()
            for name, value in part.state_dict().items():
                yield "name", name.encode()
                yield from _described([value])
        elif isinstance(part, Tensor):
            values = part.detach().cpu().contiguous()
            # The bytes themselves: numpy has no bfloat16.
            content = memoryview(values.reshape(-1).view(torch.uint8).numpy())
            yield f"{part.dtype} {tuple(part.shape)}", content
        elif isinstance(part, bytes):
            yield "bytes", part
        else:
            yield "json", json.dumps(part, sort_keys=True).encode()


def identity(value: object) -> object:
    """Stands for a function or a module, as JSON values: its name, and the values that it carries.

    These are the arguments of a `functools.partial`; the weights and plain attributes of a module; and of a
    function made on the spot, as a lambda, plain defaults, and what it reads (and does not set) of the
    function around it. Two lambdas of one name that differ in their text alone cannot be told apart.
    """
    if isinstance(value, partial):
        keywords = {name: identity(argument) for name, argument in value.keywords.items()}
        return [identity(value.func), [identity(argument) for argument in value.args], keywords]
    if isinstance(value, Tensor):
        return fingerprint(value)  # a long one prints in part only
    if isinstance(value, nn.Module):
        return [type(value).__qualname__, fingerprint(value), _plain(vars(value), "training")]
    if isinstance(value, FunctionType) and "<" in value.__qualname__:
        defaults = dict(enumerate(value.__defaults__ or ())) | (value.__kwdefaults__ or {})
        counted = {step.argval for step in get_instructions(value) if step.opname == "STORE_DEREF"}
        if carried := _plain(getclosurevars(value).nonlocals | defaults, *counted):
            return [value.__qualname__, carried]
    # A function prints with its address, which is another one in each process.
    return getattr(value, "__qualname__", type(value).__name__) if callable(value) else str(value)


def _plain(values: Mapping[object, object], *but: str) -> dict[str, object]:
    """Numbers, texts and tensors among some values, by name."""
    kept = {str(name): held for name, held in values.items() if isinstance(held, int | float | str | Tensor)}
    return {name: identity(held) for name, held in kept.items() if name not in but and name[0] != "_"}


def describe_changes(saved: Mapping[str, object], now: Mapping[str, object]) -> str:
    """What is not the same, as "lr was 0.1, is 0.2; seed was 0, is 1"; the empty text if nothing differs."""
    now = json.loads(json.dumps(now))  # tuples to lists, as in what was saved
    names = [name for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
    return "; ".join(f"{name} was {saved.get(name)}, is {now.get(name)}" for name in names)


def save_tensors(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None
) -> None:
    """Tensors and JSON metadata as one safetensors file with a checksum, written whole or not at all."""
    # Clones: safetensors refuses two names for one piece of memory, and wants contiguous tensors.
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(metadata or {}, sort_keys=True)
    # One entry: safetensors writes several in an order that changes from run to run.
    payload = save(tensors, {"kdlib": f"{_checksum(tensors, text)} {text}"})
    with replaced(path) as file:
        file.write(payload)


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """Tensors and metadata as `save_tensors` wrote them, on the CPU; or a `DamagedFile`, a `ForeignFile`."""
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get("kdlib")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedFile(f"{path} is truncated or damaged ({error}); delete it and make it again") from error
    if header is None:
        raise ForeignFile(f"{path} was not written by kdlib: it holds no checksum; choose another name")
    checksum, _, text = header.partition(" ")
    if checksum != _checksum(tensors, text):
        raise DamagedFile(f"{path} has changed since it was written; delete it and make it again")
    return tensors, json.loads(text)


def _checksum(tensors: Mapping[str, Tensor], metadata: str) -> str:
    return fingerprint(metadata, *(part for named in sorted(tensors.items()) for part in named))
