"""The file of traces: JSON lines that survive a kill at any moment."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import Timeout

from kdlib.language.problems import Problem, check_path
from kdlib.storage import DamagedFile, ForeignFile, JsonLines, describe_changes, is_sound, sealed, writing

__all__ = ["Asked", "Trace", "TraceFile", "check_traces", "load_traces", "open_traces"]

Asked = tuple[Problem, int]  # a problem, and the number of a sample

_HEADER = {"format": "kdlib traces", "version": 1}
_REMAKE = "delete it, or choose another path"
_NOTE = "note"  # the one name in the record of a note


@dataclass(frozen=True)
class Trace:
    """One answer of a model to one problem, thought included."""

    key: str
    statement: str
    answer: str  # for reference
    sample: int  # number among the samples of this problem, from 0
    text: str  # what follows the chat template's prompt, which may end with <think>; without the end token
    tokens: int  # that of the end included
    finished: bool  # whether the end was written; otherwise `max_new_tokens` cut it off
    correct: bool  # finished, and accepted by the verifier
    well_formed: bool  # closes its thought once and answers after it (`has_format`)

    @property
    def asked(self) -> Asked:
        """What it answers."""
        return Problem(self.key, self.statement, self.answer), self.sample


def check_traces(traces: Iterable[Trace]) -> list[Trace]:
    """As a list; a ValueError says what was given instead of traces, and how to read them."""
    if isinstance(traces, str | os.PathLike):
        raise ValueError(f"traces is {str(traces)!r:.80}; expected traces: call load_traces with it")
    if not isinstance(traces, Iterable):
        raise ValueError(f"traces is {traces!r:.60}; expected a list of Trace")
    traces = list(traces)
    for number, trace in enumerate(traces):
        if not isinstance(trace, Trace):
            raise ValueError(
                f"traces[{number}] is {trace!r:.60}; expected a Trace, as collect_traces and load_traces give"
            )
    return traces


class TraceFile:
    """Traces in a file that `open_traces` has opened, or in memory.

    Attributes:
        traces: by problem and sample.
        notes: what else there is, in the order it was written: what traces from a server have cost.
    """

    def __init__(self, lines: JsonLines | None = None) -> None:
        self.traces: dict[Asked, Trace] = {}
        self.notes: list[dict] = []
        self._lines = lines

    def append(self, traces: Sequence[Trace], notes: Sequence[dict] = ()) -> None:
        """Add traces, and notes as JSON values before them; when this returns they are on the disk."""
        if self._lines is not None:
            records = [*({_NOTE: note} for note in notes), *map(asdict, traces)]
            self._lines.append(*map(sealed, records))
        self.notes += notes
        self.traces |= {trace.asked: trace for trace in traces}


@contextmanager
def open_traces(path: str | os.PathLike | None, settings: Mapping[str, object]) -> Iterator[TraceFile]:
    """A file of traces, made if need be, to which no other process writes meanwhile; in a `with` statement.

    The first line says what the file is bound to, each further line is a trace or a note; each ends with a
    checksum. Lines are only ever appended.

    Args:
        path: the file, with one name `.NAME.lock` beside it; None keeps everything in memory.
        settings: what must be equal for traces to belong together, as JSON values.

    Raises:
        ForeignFile: something else has written it, or it is bound to other settings.
        DamagedFile: a line has changed since it was written.
        TimeoutError: another process is writing to it.
        ValueError: what is no path, or a folder.
        OSError: it cannot be written; says why, and what to do.
    """
    if path is None:
        yield TraceFile()
        return
    check_path(path)
    lines = JsonLines(path)
    try:
        with writing(lines.path):
            lock = lines.lock.acquire(timeout=0)
    except Timeout as error:
        raise TimeoutError(
            f"another process is collecting traces into {path}; wait for it, or choose another path"
        ) from error
    with lock:
        if not lines.path.exists() or not lines.path.stat().st_size:
            lines.replace([sealed({**_HEADER, "settings": settings})])
        held, traces, notes = _read(lines)
        if changes := describe_changes(held, settings):
            raise ForeignFile(f"{path} holds other traces: {changes}. To collect anew, {_REMAKE}")
        file = TraceFile(lines)
        file.traces, file.notes = {trace.asked: trace for trace in traces}, notes
        yield file


def load_traces(path: str | os.PathLike) -> list[Trace]:
    """The traces of a file that `collect_traces` has written or is writing, in the order they were written.

    Raises:
        FileNotFoundError, ForeignFile, DamagedFile: there is none, not of traces, or a line has changed.
        ValueError: what is no path.
    """
    check_path(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return _read(JsonLines(path))[1]


def _read(lines: JsonLines) -> tuple[dict, list[Trace], list[dict]]:
    """Settings, traces and notes of a file."""
    records = iter(lines)
    try:
        header = next(records, {})
    except DamagedFile:
        header = {}
    if not is_sound(header) or not header.items() >= _HEADER.items():
        raise ForeignFile(
            f"{lines.path} is not by this version's collect_traces, or its first line has changed; {_REMAKE}"
        )
    traces, notes = [], []
    for number, record in enumerate(records, 2):
        if not is_sound(record):
            raise DamagedFile(
                f"line {number} of {lines.path} has changed since it was written; delete that line, and "
                f"collect_traces samples it again"
            )
        if _NOTE in record:
            notes.append(record[_NOTE])
        else:
            traces.append(Trace(**record))
    return header["settings"], traces, notes
