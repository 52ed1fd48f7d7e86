"""The file of traces: JSON lines that survive a kill at any moment."""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import Timeout

from kdlib.language.problems import Problem
from kdlib.storage import DamagedFile, ForeignFile, JsonLines, differences

__all__ = ["Asked", "Trace", "TraceFile", "load_traces"]

Asked = tuple[Problem, int]  # a problem, and the number of a sample

_HEADER = {"format": "kdlib traces", "version": 1}
_REMAKE = "delete it, or choose another path"
_NOTE = "note"  # the one name in the record of a note


@dataclass(frozen=True)
class Trace:
    """One answer of a model to one problem, thought included.

    Attributes:
        key, statement, answer: the problem: its identity, the user's turn, the reference answer.
        sample: number among the samples of this problem, from 0.
        text: all that the model wrote after the prompt of the chat template (which may end with `<think>`),
            without the end-of-sequence token.
        tokens: how many it wrote, that of the end included.
        finished: whether it wrote the end; otherwise `max_new_tokens` cut it off.
        correct: whether it is finished and the verifier accepts it.
        well_formed: whether it closes its thought once and answers after it (`has_format`).
    """

    key: str
    statement: str
    answer: str
    sample: int
    text: str
    tokens: int
    finished: bool
    correct: bool
    well_formed: bool

    @property
    def asked(self) -> Asked:
        """What it answers."""
        return Problem(self.key, self.statement, self.answer), self.sample


class TraceFile:
    """Traces on disk, open for more; to be used in a `with` statement.

    The first line says what the file is bound to, each further line is a trace or a note; each ends with a
    checksum. Lines are only ever appended.

    Args:
        path: the file, with one name `.NAME.lock` beside it; None keeps everything in memory.
        settings: what must be equal for traces to belong together, as JSON values.

    Attributes:
        traces: what the file holds, by problem and sample.
        notes: what else it holds, in the order it was written: what traces from a server have cost.

    Raises (on entering):
        ForeignFile: something else has written it, or it is bound to other settings.
        DamagedFile: a line has changed since it was written.
        TimeoutError: another process is writing to it.
    """

    def __init__(self, path: str | os.PathLike | None, settings: Mapping[str, object]) -> None:
        self.traces: dict[Asked, Trace] = {}
        self.notes: list[Mapping[str, object]] = []
        self._lines = None if path is None else JsonLines(path)
        self._settings = settings

    def __enter__(self) -> "TraceFile":
        if self._lines is None:
            return self
        try:
            self._lines.lock.acquire(timeout=0)
        except Timeout as error:
            raise TimeoutError(
                f"another process is collecting traces into {self._lines.path}; wait for it, or choose "
                f"another path"
            ) from error
        try:
            self._load()
        except BaseException:
            self._lines.lock.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._lines is not None:
            self._lines.lock.release()

    def append(self, traces: Iterable[Trace], notes: Iterable[Mapping[str, object]] = ()) -> None:
        """Add traces, and notes as JSON values before them; when this returns they are on the disk."""
        traces, notes = list(traces), list(notes)
        if self._lines is not None:
            records = [*({_NOTE: note} for note in notes), *map(asdict, traces)]
            self._lines.append(*map(_sealed, records))
        self.notes += notes
        self.traces |= {trace.asked: trace for trace in traces}

    def _load(self) -> None:
        path = self._lines.path
        if not path.exists() or not path.stat().st_size:
            self._lines.replace([_sealed({**_HEADER, "settings": self._settings})])
        settings, records = _read(self._lines)
        if changes := differences(settings, self._settings):
            raise ForeignFile(f"{path} holds other traces: {changes}. To collect anew, {_REMAKE}")
        self.notes = [record[_NOTE] for record in records if _NOTE in record]
        traces = [Trace(**record) for record in records if _NOTE not in record]
        self.traces = {trace.asked: trace for trace in traces}


def load_traces(path: str | os.PathLike) -> list[Trace]:
    """The traces of a file that `collect_traces` has written or is writing, in the order they were written.

    Raises:
        FileNotFoundError: there is no such file.
        ForeignFile: something else has written it.
        DamagedFile: a line has changed since it was written.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return [Trace(**record) for record in _read(JsonLines(path))[1] if _NOTE not in record]


def _read(lines: JsonLines) -> tuple[dict, list[dict]]:
    """Settings and records of a file of traces."""
    records = iter(lines)
    try:
        header = next(records, {})
    except DamagedFile:
        header = {}
    if not _is_sound(header) or not header.items() >= _HEADER.items():
        raise ForeignFile(
            f"{lines.path} is not by this version's collect_traces, or its first line has changed; {_REMAKE}"
        )
    found = []
    for number, record in enumerate(records, 2):
        if not _is_sound(record):
            raise DamagedFile(
                f"line {number} of {lines.path} has changed since it was written; delete that line, and "
                f"collect_traces samples it again"
            )
        found.append(record)
    return header["settings"], found


def _sealed(record: Mapping[str, object]) -> dict[str, object]:
    """With a checksum."""
    return {**record, "crc32": f"{zlib.crc32(json.dumps(record, ensure_ascii=False).encode()):08x}"}


def _is_sound(record: dict[str, object]) -> bool:
    """Whether a record is as it was sealed; its checksum is removed."""
    return record.pop("crc32", None) == _sealed(record)["crc32"]
