"""python tests/processes/remote_traces.py FOLDER URL MODEL SEED: traces from a server, killed seven times.

Each process is a fork of this one, which has no threads, and tells through a pipe where it is. It is killed
at random moments, and at moments too short to hit, where it stands still until it is killed. FOLDER holds
killed.jsonl; kills.json: of each process how it ended, and what it said that it had kept.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from forks import telling, told_to_the_end, told_until
from traces import in_halves, odd

from kdlib import storage
from kdlib.language.problems import Problem
from kdlib.language.traces import asking
from kdlib.language.traces import file as trace_file
from kdlib.language.traces.remote import TracesMissing, collect_remote_traces

PROBLEMS, SAMPLES, CONCURRENCY = 12, 3, 4

# After how many occurrences of which moment a process is killed, and up to how many seconds later. "header":
# the first line has no name yet; "torn": a part of a reply's bytes is in the file; "flushed": all are, and
# may not be on the disk; at these it stands still. "kept": they are on the disk.
PLAN = [
    ("header", 1, 0.0), ("kept", 3, 0.05), ("torn", 2, 0.0), ("kept", 1, 0.1), ("flushed", 3, 0.0),
    ("torn", 1, 0.0), ("kept", 5, 0.05),
]  # fmt: skip


def problems() -> list[Problem]:
    return [Problem(f"k{n}", f"{n} heads" + " and feet" * (n % 4), str(n)) for n in range(PROBLEMS)]


def collect(path: Path, url: str, model: str, tell: Callable[[str], None]) -> None:
    append, replace = trace_file.TraceFile.append, os.replace

    def telling_append(file, traces, notes=()):
        append(file, traces, notes)
        for trace in traces:
            told = json.dumps([trace.key, trace.sample, trace.text]).encode().hex()
            tell(f"kept\n{told}")

    def telling_replace(source, target):
        tell("header")
        replace(source, target)

    trace_file.TraceFile.append, storage.os.replace = telling_append, telling_replace
    storage.open = lambda path, mode: in_halves(path, mode, tell)
    asking.pause_before = lambda attempt, wait: 0.0
    collect_remote_traces(
        url, model, problems(), path, samples=SAMPLES, temperature=1.0, top_p=1.0, max_new_tokens=12,
        concurrency=CONCURRENCY, retries=20, timeout=20, verify=odd,
    )  # fmt: skip


def killed(
    path: Path, url: str, model: str, moment: str, count: int, delay: float, seed: int
) -> dict[str, object]:
    """Collect until the moment, wait, kill: how it ended, and what it had told by then."""

    def work(tell: Callable[[str], None]) -> None:
        random.seed(seed)
        collect(path, url, model, tell)

    child, pipe = telling(work, (moment, count) if moment != "kept" else None)
    told = told_until(pipe, moment, count)
    time.sleep(delay)
    if moment != "end":
        os.kill(child, signal.SIGKILL)
    told = (told + told_to_the_end(pipe)).decode().split()
    moments = ("header", "torn", "flushed", "kept")
    _, status = os.waitpid(child, 0)
    content = path.read_bytes() if path.exists() else b""
    return {
        "moment": moment, "status": status, "torn": not content.endswith(b"\n"),
        "kept": [json.loads(bytes.fromhex(line)) for line in told if line not in moments],
    }  # fmt: skip


def main(folder: Path, url: str, model: str, seed: int) -> None:
    with suppress(TracesMissing):  # imports what is imported late, once for all forks
        collect_remote_traces("http://127.0.0.1:9", model, problems()[:1], retries=0)
    chance = random.Random(seed)
    first, *others = PLAN
    chance.shuffle(others)
    path = folder / "killed.jsonl"
    runs = [
        killed(path, url, model, moment, count, chance.uniform(0, delay), chance.randrange(2**31))
        for moment, count, delay in [first, *others, ("end", 1, 0.0)]
    ]
    (folder / "kills.json").write_text(json.dumps(runs))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    main(Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4]))
