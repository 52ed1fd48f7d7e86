"""What finished runs of an experiment leave behind: a line each, and which test examples were right."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from kdlib.storage import replaced

__all__ = ["RunLog", "pack", "unpack", "write_results"]


class RunLog:
    """Finished runs, one JSON line each, on disk before the next begins; processes can share it.

    Args:
        path: the file; a last line that was not written whole is cut off. With one name `.NAME.lock` beside
            it, once something is written.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._runs: dict[str, dict] = {}
        self._read = 0
        if not self._is_whole():
            with self._alone():
                self._mend()

    def find(self, key: Sequence) -> dict | None:
        """The run with this key, a JSON list, if it has finished."""
        if self._path.exists() and self._path.stat().st_size != self._read:
            text = self._path.read_bytes()
            whole = text[: text.rfind(b"\n") + 1]
            self._runs = {json.dumps(run["key"]): run for run in map(json.loads, whole.splitlines())}
            self._read = len(whole)
        return self._runs.get(json.dumps(key))

    def append(self, run: dict) -> None:
        """Write a run down; it holds its key under "key"."""
        line = json.dumps(run) + "\n"
        with self._alone():
            self._mend()
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())

    def _alone(self) -> FileLock:
        return FileLock(self._path.with_name(f".{self._path.name}.lock"))

    def _is_whole(self) -> bool:
        return not self._path.exists() or self._path.read_bytes()[-1:] in (b"", b"\n")

    def _mend(self) -> None:
        """Cut off what a killed process wrote of its last line; no other writes meanwhile."""
        if not self._is_whole():
            text = self._path.read_bytes()
            with replaced(self._path) as file:
                file.write(text[: text.rfind(b"\n") + 1])


def pack(correct: Tensor) -> list:
    """(N,) bool as hexadecimal digits, and N: small, and yet pairs two models example by example."""
    bits = "".join("1" if right else "0" for right in correct.tolist())
    return [f"{int(bits, 2):x}", len(bits)]


def unpack(digits: str, count: int) -> Tensor:
    """What `pack` was given."""
    return torch.tensor([bit == "1" for bit in f"{int(digits, 16):0{count}b}"])


def write_results(path: str | os.PathLike, results: Mapping) -> None:
    """Results as JSON for people to read too, whole or not at all."""
    with replaced(path) as file:
        file.write((json.dumps(results, indent=1) + "\n").encode())
