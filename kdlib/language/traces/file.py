"""The file of traces: JSON lines that survive a kill at any moment. `kdlib.language.traces.collect` is the face."""

import glob
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from kdlib.storage import DamagedFile, ForeignFile, replaced

__all__ = ["Trace", "TraceFile", "load_traces"]

_FORMAT, _VERSION = "kdlib traces", 1
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
        well_formed: `kdlib.language.answers.final_answer.has_format`: the thought closed once, an answer after it.
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


class TraceFile:
    """Traces on disk, open for more; to be used in a `with` statement.

    The first line says what the file is bound to, each further line is a trace or a note; each ends with a
    checksum. Lines are only ever appended. What a kill leaves of a line is cut off when the file is opened
    again.

    Args:
        path: the file, with one name `.NAME.lock` beside it; None keeps everything in memory.
        settings: what must be equal for traces to belong together, as JSON values.

    Attributes:
        traces: what the file holds, by key and sample.
        notes: what else it holds, in the order it was written: what traces from elsewhere have cost.

    Raises (on entering):
        ForeignFile: something else has written it, or it is bound to other settings.
        DamagedFile: a line has changed since it was written.
        TimeoutError: another process is writing to it.
    """

    def __init__(self, path: str | os.PathLike | None, settings: Mapping[str, object]) -> None:
        self.traces: dict[tuple[str, int], Trace] = {}
        self.notes: list[Mapping[str, object]] = []
        self._given, self._settings = path, json.loads(json.dumps(settings))
        self._file = None

    def __enter__(self) -> "TraceFile":
        if self._given is None:
            return self
        # Resolved, so that two names of one file share the lock.
        path = Path(self._given).resolve()
        with ExitStack() as held:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
            try:
                held.enter_context(lock)
            except Timeout as error:
                raise TimeoutError(
                    f"another process is collecting traces into {path}; wait for it, or choose another path"
                ) from error
            for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
                left.unlink(missing_ok=True)
            if not path.exists() or not path.stat().st_size:
                header = {"format": _FORMAT, "version": _VERSION, "settings": self._settings}
                with replaced(path) as file:
                    file.write(_line(header))
            self._take_up(path)
            self._file = held.enter_context(open(path, "ab"))
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._held.close()

    def append(self, traces: Iterable[Trace], notes: Iterable[Mapping[str, object]] = ()) -> None:
        """Add traces, and notes as JSON values before them; when this returns they are on the disk."""
        traces, notes = list(traces), list(notes)
        if self._file is not None:
            records = [*({_NOTE: note} for note in notes), *map(asdict, traces)]
            self._file.write(b"".join(map(_line, records)))
            self._file.flush()
            os.fsync(self._file.fileno())
        self.notes += notes
        self.traces |= {(trace.key, trace.sample): trace for trace in traces}

    def _take_up(self, path: Path) -> None:
        settings, records, whole = _read(path)
        if settings != self._settings:
            names = [n for n in {**settings, **self._settings} if settings.get(n) != self._settings.get(n)]
            changes = [
                f"the {name} has changed since it was written"
                if name in ("model", "tokenizer")
                else f"{name} was {settings.get(name)}, is {self._settings.get(name)}"
                for name in names
            ]
            raise ForeignFile(f"{path} holds other traces: {'; '.join(changes)}. To collect anew, {_REMAKE}")
        for number, record in enumerate(records, 2):
            if _NOTE in record:
                self.notes.append(record[_NOTE])
                continue
            trace = Trace(**record)
            if (trace.key, trace.sample) in self.traces:
                raise DamagedFile(
                    f"line {number} of {path} repeats sample {trace.sample} of {trace.key!r}; delete it"
                )
            self.traces[trace.key, trace.sample] = trace
        if whole < path.stat().st_size:
            os.truncate(path, whole)


def load_traces(path: str | os.PathLike) -> list[Trace]:
    """The traces of a file that `collect_traces` has written or is writing, in the order they were written.

    Raises:
        FileNotFoundError: there is no such file.
        ForeignFile: something else has written it.
        DamagedFile: a line has changed since it was written.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return [Trace(**record) for record in _read(path)[1] if _NOTE not in record]


def _read(path: Path) -> tuple[dict, list[dict], int]:
    """Settings, records, and how many bytes they take; what stands after the last line end is no line."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    # At line feeds only: JSON leaves the other line ends of Unicode as they are.
    first, *lines = content[:whole].split(b"\n")[:-1] or [b""]
    header = _parsed(first)
    if header is None or header.get("format") != _FORMAT:
        raise ForeignFile(f"{path} is not by collect_traces, or its first line has changed; {_REMAKE}")
    if header["version"] != _VERSION:
        raise ForeignFile(
            f"{path} is of version {header['version']}, this kdlib reads version {_VERSION}: use the kdlib "
            f"that wrote it, or {_REMAKE}"
        )
    records = []
    for number, line in enumerate(lines, 2):
        record = _parsed(line)
        if record is None:
            raise DamagedFile(
                f"line {number} of {path} has changed since it was written; delete that line, and "
                f"collect_traces samples it again"
            )
        records.append(record)
    return header["settings"], records, whole


def _line(record: Mapping[str, object]) -> bytes:
    body = json.dumps(record, ensure_ascii=False).encode()
    return body[:-1] + _checksum(body) + b"\n"


def _parsed(line: bytes) -> dict | None:
    """The record of a line, None where it is not as it was written."""
    body, end = line[: -len(_checksum(b""))] + b"}", line[-len(_checksum(b"")) :]
    if end != _checksum(body):
        return None
    return json.loads(body)


def _checksum(body: bytes) -> bytes:
    return b', "crc32": "%08x"}' % zlib.crc32(body)
