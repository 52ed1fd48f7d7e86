"""python tests/processes/traces.py FOLDER URL SEED: traces from a model and a server, killed again and again.

Each process is a fork of this one, which computes nothing, and tells through a pipe where it is. It is killed
at random moments, and at moments too short to hit, where it stands still until it is killed. FOLDER holds
undisturbed.jsonl, local.jsonl and remote.jsonl; kills.json: of each process what it told, and what it left.
Likewise a cache of what a server says, by served.py: FOLDER/served and served.json.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import served
import torch
from forks import InTwoParts, Tell, ended, telling, told_until
from openai import _base_client
from transformers import Qwen2Config, Qwen2ForCausalLM

from kdlib import storage
from kdlib.language import server as server_module
from kdlib.language.problems import Problem
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer
from kdlib.language.traces.collect import collect_traces
from kdlib.language.traces.file import TraceFile
from kdlib.language.traces.generate import Writer
from kdlib.language.traces.remote import TracesMissing, collect_remote_traces

PROBLEMS = [Problem(f"k{n}", f"{n} heads" + " and feet" * (n % 4), str(n)) for n in range(12)]

# After how many occurrences of which moment a process is killed. "header": the first line has no name yet;
# "batch": the model writes a batch, and goes on for up to a tenth of a second; "torn": a part of the bytes is
# in the file; "flushed": all are, and may not be on the disk; "kept": they are.
KILLS = {
    "local": [("header", 1), ("torn", 1), ("batch", 2), ("flushed", 1), ("kept", 1)],
    "remote": [("kept", 3), ("torn", 2), ("flushed", 3)],
}


def odd(text: str, answer: str) -> bool:
    """A verifier that accepts half of what an untrained model writes."""
    return len(text) % 2 == 1


def local(path: Path) -> None:
    tokenizer = puzzle_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    # After a torn batch the batches are others: in float64, so that their rounding makes no other token.
    model = Qwen2ForCausalLM(config).double()
    collect_traces(
        model, tokenizer, PROBLEMS, path, samples=3, temperature=1.0, max_new_tokens=16, batch_size=4,
        seed=5, verify=odd,
    )  # fmt: skip


def remote(path: Path, url: str) -> None:
    server_module._LONGEST_PAUSE = _base_client.INITIAL_RETRY_DELAY = 0.0
    collect_remote_traces(url, "teacher", PROBLEMS, path, samples=3, concurrency=4, timeout=20, verify=odd)


def announce(tell: Tell) -> None:
    """Make this process tell of the moments."""
    write, append, replace = Writer.write, TraceFile.append, os.replace

    def telling_write(writer, prompts, seeds):
        tell("batch")
        return write(writer, prompts, seeds)

    def telling_append(file, traces, notes=()):
        append(file, traces, notes)
        for _ in traces:
            tell("kept")

    def telling_replace(source, target):
        tell("header")
        replace(source, target)

    Writer.write, TraceFile.append = telling_write, telling_append
    storage.os.replace, storage.open = telling_replace, lambda path, mode, **_: opened(path, mode, tell)


def opened(path: Path, mode: str, tell: Tell):
    """A file; what is appended goes into it in two parts."""
    file = open(path, mode, buffering=0)  # noqa: SIM115
    if mode != "a+b":
        return file

    def anywhere(length: int) -> int:
        return random.randrange(1, length)

    return InTwoParts(file, anywhere, lambda: tell("torn"), lambda: tell("flushed"))


def killed(path: Path, collect: Callable[[Path], None], moment: str, count: int, seed: int) -> dict:
    """Collect until the moment, kill: what the process had told by then, and what it left."""

    def work(tell: Tell) -> None:
        random.seed(seed)
        announce(tell)
        collect(path)

    child, pipe = telling(work, None if moment == "batch" else (moment, count))
    told, refused = told_until(pipe, moment, count), None
    if moment == "kept":  # it is alive, and holds the file
        try:
            collect(path)
        except TimeoutError as error:
            refused = str(error)
    if moment == "batch":
        time.sleep(random.Random(seed).uniform(0, 0.1))
    rest, status = ended(child, pipe, kill=moment != "end")
    return {
        "file": path.name, "moment": moment, "refused": refused, "status": status,
        "told": (told + rest).decode().split(),
        "left": path.read_text(errors="replace") if path.exists() else "",
        "leftovers": len(list(path.parent.glob(f".{path.name}.*.part"))),
    }  # fmt: skip


def main(folder: Path, url: str, seed: int) -> None:
    # What is imported late is imported once for all forks; there is no server.
    with suppress(TracesMissing):
        collect_remote_traces("http://127.0.0.1:9", "teacher", PROBLEMS[:1], retries=0)
    chance = random.Random(seed)
    runs = [killed(folder / "undisturbed.jsonl", local, "end", 1, 0)]
    for name, collect in (("local", local), ("remote", lambda path: remote(path, url))):
        first, *others = KILLS[name]
        chance.shuffle(others)
        for moment, count in [first, *others, ("end", 1)]:
            runs.append(killed(folder / f"{name}.jsonl", collect, moment, count, chance.randrange(2**31)))
    (folder / "kills.json").write_text(json.dumps(runs))
    (folder / "served.json").write_text(json.dumps(served.runs(folder / "served", url, chance)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
