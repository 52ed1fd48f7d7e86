"""What has arrived for a cache and is paid for, before there is enough of it for a file of the cache."""

import base64
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from kdlib.storage import DamagedFile, JsonLines, is_sound, sealed

__all__ = ["Journal"]

_FORMAT = "kdlib journal of a cache"


class Journal:
    """Tensors of single texts, and what all texts have cost, in a file that survives a kill at any moment.

    Attributes:
        held: the tensors, by the number of the text.
        spent: tokens that were paid for, by all runs together.

    Raises:
        DamagedFile: a line has changed since it was written.
    """

    def __init__(self, path: Path, bound: str, *, anew: bool) -> None:
        """Open, or begin where there is none, or that of another cache than the one it is bound to."""
        self._lines, self._bound = JsonLines(path), bound
        self.held: dict[int, Mapping[str, Tensor]] = {}
        self.spent = 0
        self._records: dict[int, Mapping[str, object]] = {}
        header, *records = self._read() or [{}]
        if anew or header.get("format") != _FORMAT or header.get("cache") != bound:
            self._rewrite()
            return
        for record in (header, *records):
            self._take(record)

    def append(
        self, spent: int, text: int | None = None, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        """Add what was paid, with the tensors of a text where it brought some; then it is on the disk."""
        record: dict[str, object] = {"spent": spent}
        if text is not None:
            packed = base64.b64encode(safetensors.torch.save(dict(tensors)))
            record |= {"text": text, "tensors": packed.decode()}
        self._lines.append(sealed(record))
        self._take(record)

    def drop_before(self, text: int) -> None:
        """Forget the tensors of the texts up to this one, which are in the cache; what they cost stays."""
        if any(number < text for number in self.held):
            self.held = {number: tensors for number, tensors in self.held.items() if number >= text}
            self._records = {number: self._records[number] for number in self.held}
            self._rewrite()

    def _take(self, record: Mapping[str, object]) -> None:
        self.spent += record["spent"]
        if "text" in record:
            packed = base64.b64decode(record["tensors"])
            self.held[record["text"]] = safetensors.torch.load(packed)
            self._records[record["text"]] = record

    def _read(self) -> list[dict]:
        records = list(self._lines)
        for number, record in enumerate(records, 1):
            if not is_sound(record):
                raise DamagedFile(
                    f"line {number} of {self._lines.path} has changed since it was written; delete that "
                    "line, and the server is asked again"
                )
        return records

    def _rewrite(self) -> None:
        kept = [{**record, "spent": 0} for record in self._records.values()]
        header = {"format": _FORMAT, "cache": self._bound, "spent": self.spent}
        self._lines.replace(map(sealed, [header, *kept]))
