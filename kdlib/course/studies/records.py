"""What finished runs of an experiment leave behind: a line each, and which test examples were right."""

import json
import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdlib.storage import JsonLines, replaced

__all__ = ["RunLog", "pack", "unpack", "write_results"]


class RunLog:
    """Finished runs, one JSON line each, on disk before the next begins; processes can share the file."""

    def __init__(self, path: str | os.PathLike) -> None:
        self._lines = JsonLines(path)
        self._runs: dict[str, dict] = {}
        self._read = 0

    def find(self, key: Sequence) -> dict | None:
        """The run with this key, a JSON list, if it has finished."""
        size = self._lines.path.stat().st_size if self._lines.path.exists() else 0
        if size != self._read:
            self._runs = {json.dumps(run["key"]): run for run in self._lines}
            self._read = size
        return self._runs.get(json.dumps(key))

    def append(self, run: dict) -> None:
        """Record a run, which holds its key under "key"."""
        self._lines.append(run)


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
