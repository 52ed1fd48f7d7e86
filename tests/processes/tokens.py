"""python tests/processes/tokens.py FOLDER: caches a teacher's tokens once undisturbed, once killed often.

Each process is a fork of this one, which computes nothing, and tells through a pipe where it is; at the
moment of its end it stands still. FOLDER/undisturbed and FOLDER/killed are the caches; kills.json tells of
each kill what was there.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from forks import telling, told_to_the_end, told_until
from transformers import Qwen2Config, Qwen2ForCausalLM

from kdlib import storage
from kdlib.cache import tokens
from kdlib.language.distill.teachers import cache_teacher_tokens
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer

# "manifest": it has no name yet; "writing": a shard's bytes are on the disk, under another name; "written":
# it has its name; each after so many of its kind in this process.
PLAN = [("manifest", 1), ("writing", 1), ("written", 2), ("writing", 3)]
TEXTS = [(f"{n} heads", " and feet" * (3 + 5 * n % 17) + "\n</think>\n\n4") for n in range(14)]


def cache(folder: Path, tell) -> None:
    replace = os.replace

    def telling_replace(source, target):
        shard = Path(target).suffix == ".safetensors"
        tell("writing" if shard else "manifest")
        replace(source, target)
        tell("written" if shard else "begun")

    storage.os.replace = telling_replace
    tokenizer = puzzle_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    # More than half of the texts cross the border of two shards of 20 tokens.
    tokens.SHARD_ROWS = 20
    cache_teacher_tokens(Qwen2ForCausalLM(config), tokenizer, TEXTS, folder, top_k=6, device="cpu")


def process(folder: Path, stand_still: tuple[str, int] | None) -> tuple[int, int]:
    return telling(lambda tell: cache(folder, tell), stand_still)


def killed(folder: Path, moment: str, count: int) -> dict[str, object]:
    child, pipe = process(folder, (moment, count))
    told = told_until(pipe, moment, count)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    told += told_to_the_end(pipe)
    return {
        "moment": moment, "told": told.decode().split(),
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "files": sorted(path.name for path in folder.iterdir()),
    }  # fmt: skip


def finished(folder: Path) -> list[str]:
    child, pipe = process(folder, None)
    told = told_to_the_end(pipe)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("caching failed")
    return told.decode().split()


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    folder = Path(sys.argv[1])
    whole = finished(folder / "undisturbed")
    kills = [killed(folder / "killed", *moment) for moment in PLAN]
    last = finished(folder / "killed")
    (folder / "kills.json").write_text(json.dumps({"whole": whole, "kills": kills, "last": last}))
