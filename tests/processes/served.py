"""A cache of what a server says, made by processes that are killed ten times; a part of traces.py.

FOLDER holds the cache, and what each process told, as `runs` returns it.
"""

import os
import random
import time
from pathlib import Path

from forks import InTwoParts, Tell, ended, telling, told_until
from small_models import pairs, word_tokenizer

from kdlib import storage
from kdlib.cache.journal import Journal
from kdlib.cache.tokens import CachedTokens
from kdlib.language.distill.served import cache_served_tokens

TEXTS, ROWS, CONCURRENCY = pairs(60, seed=8), 40, 2

# As in traces.py, after how many occurrences of which moment. "unnamed": all bytes of a file are there, under
# another name; "named": it has its name; "torn" and "flushed": a reply is in the journal in part, or whole
# but perhaps not on the disk; "kept": it is. "later": up to a tenth of a second after a reply was kept.
FIRST = [("unnamed", 1), ("unnamed", 2)]  # the manifest; the journal
KILLS = [
    ("torn", 1), ("torn", 3), ("flushed", 2), ("kept", 2), ("unnamed", 1), ("unnamed", 2), ("named", 1),
    ("later", 2),
]  # fmt: skip


def announce(tell: Tell) -> None:
    """Make this process tell of the moments."""
    replace, append = os.replace, Journal.append

    def telling_replace(source, target):
        tell("unnamed")
        replace(source, target)
        tell("named")

    def telling_append(*arguments):
        append(*arguments)
        tell("kept")
        tell("later")

    def opened(path, mode, **_):
        file = open(path, mode, buffering=0)  # noqa: SIM115
        if mode != "a+b":
            return file
        return InTwoParts(
            file, lambda length: random.randrange(1, length), lambda: tell("torn"), lambda: tell("flushed")
        )

    Journal.append, storage.os.replace, storage.open = telling_append, telling_replace, opened


def runs(folder: Path, url: str, chance: random.Random) -> list[dict]:
    """Ten processes that are killed and one that comes to its end: of each its moment, status and words."""
    CachedTokens.SHARD_ROWS = ROWS
    kills = [*FIRST, *chance.sample(KILLS, len(KILLS))]
    return [run(folder, url, *one, chance.randrange(2**31)) for one in [*kills, ("end", 1)]]


def run(folder: Path, url: str, moment: str, count: int, seed: int) -> dict:
    def work(tell: Tell) -> None:
        random.seed(seed)
        announce(tell)
        cache_served_tokens(
            url, "teacher", word_tokenizer(), TEXTS, folder, top_k=5, concurrency=CONCURRENCY, timeout=20
        )

    child, pipe = telling(work, None if moment == "later" else (moment, count))
    told = told_until(pipe, moment, count)
    if moment == "later":
        time.sleep(random.Random(seed).uniform(0, 0.1))
    rest, status = ended(child, pipe, kill=moment != "end")
    return {"moment": moment, "status": status, "told": (told + rest).decode().split()}
