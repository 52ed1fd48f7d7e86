"""Files that are whole or not there: tensors, fingerprints, and how a damaged file is noticed."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

__all__ = ["DamagedFile", "fingerprint", "load_tensors", "replaced", "save_tensors"]

_CHECKSUM, _METADATA = "sha256", "kdlib"


class DamagedFile(ValueError):
    """A file that is not what was written: truncated, altered, or of another kind."""


@contextmanager
def replaced(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Write a file that appears under its name whole, or not at all.

    The bytes go to a temporary name beside it, reach the disk, and are renamed. Whoever is killed
    meanwhile leaves the old file as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of one name for each process: two writers do not write into each other's file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
            digest.update(repr(part).encode())
            for name, value in part.state_dict().items():
                digest.update(name.encode())
                _add_tensor(digest, value)
        elif isinstance(part, Tensor):
            _add_tensor(digest, part)
        elif isinstance(part, bytes):
            digest.update(part)
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def save_tensors(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None
) -> None:
    """Tensors and JSON metadata as one safetensors file with a checksum, written whole or not at all."""
    # Clones: safetensors refuses two names for one piece of memory, and wants contiguous tensors.
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(metadata or {}, sort_keys=True)
    payload = save(tensors, {_METADATA: text, _CHECKSUM: _checksum(tensors, text)})
    with replaced(path) as file:
        file.write(payload)


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """Tensors and metadata as `save_tensors` wrote them, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it cannot be read or its checksum is wrong; the message says how to mend it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedFile(f"{path} cannot be read ({error}); delete it and make it again") from error
    if _CHECKSUM not in header or _METADATA not in header:
        raise DamagedFile(f"{path} was not written by kdlib: it holds no checksum; choose another name")
    if header[_CHECKSUM] != _checksum(tensors, header[_METADATA]):
        raise DamagedFile(f"{path} has changed since it was written; delete it and make it again")
    return tensors, json.loads(header[_METADATA])


def _checksum(tensors: Mapping[str, Tensor], metadata: str) -> str:
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        _add_tensor(digest, tensors[name])
    return digest.hexdigest()


def _add_tensor(digest, tensor: Tensor) -> None:
    tensor = tensor.detach().cpu().contiguous()
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    # The bytes themselves: numpy has no bfloat16.
    digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
