"""python tests/processes/traces.py FOLDER SEED: collects traces once undisturbed, and once killed ten times.

Each process is a fork of this one, which computes nothing, and tells through a pipe where it is. It is killed
at random moments, and at moments too short to hit, where it stands still until it is killed. FOLDER holds
undisturbed.jsonl and killed.jsonl; what the last process of each returned, as NAME.returned.json; kills.json.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from forks import telling, told_to_the_end, told_until
from transformers import Qwen2Config, Qwen2ForCausalLM

from kdlib import storage
from kdlib.language.problems import Problem
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer
from kdlib.language.traces import file as trace_file
from kdlib.language.traces.collect import collect_traces
from kdlib.language.traces.generate import Writer

PROBLEMS, SAMPLES, BATCH = 40, 4, 8

# After how many occurrences of which moment the process is killed, and up to how many seconds later. "batch":
# the model writes a batch, and goes on. At the others the process stands still. "header": the first line has
# no name yet; "torn": a part of a batch's bytes is in the file; "flushed": all are, and may not be on the
# disk; "kept": they are.
PLAN = [
    ("header", 1, 0.0), ("batch", 1, 0.0), ("torn", 1, 0.0), ("batch", 2, 0.1), ("flushed", 1, 0.0),
    ("batch", 3, 0.1), ("torn", 2, 0.0), ("kept", 1, 0.0), ("batch", 1, 0.2), ("torn", 1, 0.0),
]  # fmt: skip


def odd(text: str, answer: str) -> bool:
    """A verifier that has an opinion on what an untrained model writes."""
    return len(text) % 2 == 1


def collect(path: Path, tell: Callable[[str], None]) -> None:
    announce(tell)
    tokenizer = puzzle_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    # After a torn batch the batches are others: in float64, so that their rounding makes no other token.
    model = Qwen2ForCausalLM(config).double()
    problems = [Problem(f"k{n}", f"{n} heads" + " and feet" * (n % 4), str(n)) for n in range(PROBLEMS)]
    traces = collect_traces(
        model, tokenizer, problems, path, samples=SAMPLES, temperature=1.0, max_new_tokens=16,
        batch_size=BATCH, seed=5, verify=odd,
    )  # fmt: skip
    path.with_suffix(".returned.json").write_text(json.dumps([asdict(trace) for trace in traces]))


def announce(tell: Callable[[str], None]) -> None:
    """Make this process tell of the moments."""
    write, append, replace = Writer.write, trace_file.TraceFile.append, os.replace

    def telling_write(writer, prompts, seeds):
        tell("batch")
        return write(writer, prompts, seeds)

    def telling_append(file, traces):
        append(file, traces)
        tell("kept")

    def telling_replace(source, target):
        tell("header")
        replace(source, target)

    Writer.write, trace_file.TraceFile.append = telling_write, telling_append
    storage.os.replace = telling_replace
    storage.open = lambda path, mode: in_halves(path, mode, tell)


def in_halves(path: Path, mode: str, tell: Callable[[str], None]):
    """Open a file; what is appended goes into it in two parts."""
    file = open(path, mode)  # noqa: SIM115
    if mode != "a+b":
        return file
    write, flush = file.write, file.flush

    class Halves:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            file.close()

        def __getattr__(self, name):
            return getattr(file, name)

        def write(self, content: bytes) -> None:
            middle = random.randrange(1, len(content))
            write(content[:middle])
            flush()
            tell("torn")
            write(content[middle:])

        def flush(self) -> None:
            flush()
            tell("flushed")

    return Halves()


def process(path: Path, stand_still: tuple[str, int] | None, seed: int) -> tuple[int, int]:
    """A fork that collects, and the end of the pipe that it tells its moments to."""

    def work(tell: Callable[[str], None]) -> None:
        random.seed(seed)
        collect(path, tell)

    return telling(work, stand_still)


def killed(path: Path, moment: str, count: int, delay: float, seed: int) -> dict[str, object]:
    """Collect until the moment, wait, kill: what the process had told by then, and what it left."""
    child, pipe = process(path, (moment, count) if moment != "batch" else None, seed)
    told, refused = told_until(pipe, moment, count), None
    if moment == "kept":  # it is alive, and holds the file
        try:
            with trace_file.TraceFile(path, {}):
                pass
        except TimeoutError as error:
            refused = str(error)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    told += told_to_the_end(pipe)
    told = told.decode().split()
    content = path.read_bytes() if path.exists() else b""
    return {
        "moment": moment, "refused": refused,
        "batches": told.count("batch"), "last": told[-1] if told else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "torn": not content.endswith(b"\n"), "lines": content.count(b"\n"),
        "leftovers": len(list(path.parent.glob(f".{path.name}.*.part"))),
    }  # fmt: skip


def finished(path: Path) -> int:
    """Collect to the end; the number of batches it took."""
    child, pipe = process(path, None, 0)
    told = told_to_the_end(pipe)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("collecting failed")
    return told.decode().split().count("batch")


def main(folder: Path, seed: int) -> None:
    """Ten kills, at moments that follow from the seed and delays that do not quite."""
    chance = random.Random(seed)
    whole = finished(folder / "undisturbed.jsonl")
    first, *others = PLAN
    chance.shuffle(others)
    path = folder / "killed.jsonl"
    kills = [killed(path, m, n, chance.uniform(0, d), chance.random()) for m, n, d in [first, *others]]
    last = finished(path)
    (folder / "kills.json").write_text(json.dumps({"whole": whole, "last": last, "kills": kills}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
