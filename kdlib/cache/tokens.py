"""A teacher's outputs for every token of its texts, on disk: run it once, distil from it often.

Of each token of each completion the k largest of the teacher's logits at the position that predicts it are
kept, as log-probabilities, and the mass of all other tokens. With k = 64 and more than 65,536 tokens in the
vocabulary that is 64 · (2 + 4) + 4 = 388 bytes a token; all 151,665 logits in bfloat16 would be 303,330.

Log-probabilities rather than logits, because float16 is then the better choice: its 11 bits are off by up to
one part in 2,048, bfloat16's 8 bits by one in 256, and a log-probability does not come near the end of
float16's range at −65,504, where a logit may.

`kdlib.language.distill.teachers.cache_teacher_tokens` writes such a cache; the files are those of
`kdlib.cache.shards`, with a row for each token.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from kdlib.cache.shards import Manifest, Shards, as_class, claim, read_manifest
from kdlib.losses.top_k import TopK
from kdlib.storage import fingerprint

__all__ = ["CachedTokens", "TokenManifest", "open_token_cache"]

SHARD_ROWS = 262_144  # tokens of one file: what a killed process may have to compute again


class Example(Protocol):
    """Token ids, as `kdlib.language.distill.batches.tokenize` makes them."""

    prompt: Sequence[int]
    completion: Sequence[int]


@dataclass(frozen=True)
class TokenManifest(Manifest):
    """What a cache of tokens is bound to.

    Attributes:
        temperature: T of the stored log-probabilities.
        lengths: completion tokens of each text.
    """

    FORMAT: ClassVar[str] = "kdlib teacher outputs for tokens"
    MAKER: ClassVar[str] = "cache_teacher_tokens"
    DATA_CHANGED: ClassVar[str] = "the texts, their order or their tokens have changed"
    SETTINGS: ClassVar[tuple[str, ...]] = ("shape", "temperature", "top_k", "shard_rows")

    temperature: float
    lengths: tuple[int, ...]

    @classmethod
    def of(
        cls, examples: Sequence[Example], teacher: str, width: int, top_k: int, temperature: float
    ) -> "TokenManifest":
        """That of a teacher, by its fingerprint, and texts.

        Raises:
            ValueError: there is no token to store.
        """
        lengths = tuple(len(example.completion) for example in examples)
        if not sum(lengths):
            raise ValueError("examples hold no completion tokens; expected at least one")
        return cls(
            teacher=teacher, data=_fingerprint(examples), examples=sum(lengths), epochs=1, seed=None,
            varies=False, dtype="float16", top_k=top_k, shard_rows=SHARD_ROWS, shape=(width,),
            temperature=float(temperature), lengths=lengths,
        )  # fmt: skip


class CachedTokens:
    """The teacher's k largest log-probabilities for each completion token; made by `cache_teacher_tokens`.

    The tokens of a text are consecutive rows, in the order of the texts. Files are read when their rows are
    first asked for, with their checksum compared, and stay mapped, not copied.
    """

    def __init__(self, folder: str | os.PathLike, manifest: TokenManifest) -> None:
        self.folder, self.manifest = Path(folder), manifest
        self._shards = Shards(self.folder, manifest)
        self.starts = (0, *accumulate(manifest.lengths))
        """The first row of each text, and the number of rows."""

    def __len__(self) -> int:
        """Number of completion tokens, over all texts."""
        return self.manifest.examples

    def __str__(self) -> str:
        m = self.manifest
        return (
            f"teacher outputs of {len(self):,} tokens in {len(m.lengths):,} texts, T = {m.temperature:g}, "
            f"top {m.top_k} of {m.shape[-1]:,} in {m.dtype}: {m.bytes_per_example:,} bytes a token, "
            f"{m.bytes_per_example * len(self) / 1e6:,.1f} MB"
        )

    def top_k(self, rows: Tensor) -> TopK:
        """The teacher's outputs at some rows: log-probabilities at the manifest's T, over all tokens.

        Args:
            rows: (n) int64, on any device, in any order, repeated or not.

        Returns:
            `TopK` of float32 values (n, k), int64 indices (n, k) and float32 log_tail (n), on the rows'
            device; its log_total is 0 up to rounding.

        Raises:
            ValueError: a damaged file. FileNotFoundError: one that was deleted since the cache was opened.
        """
        stored = {n: part.to(rows.device) for n, part in self._shards.gather(0, rows.cpu()).items()}
        return TopK(stored["values"].float(), as_class(stored["indices"]), stored["log_tail"])

    def __call__(self, batch: dict[str, Tensor]) -> TopK:
        """As a teacher: its outputs for the targets of a batch, as `collate` in language/distill makes it."""
        return self.top_k(batch["stored"])

    def check(self, examples: Sequence[Example], temperature: float, width: int) -> None:
        """Refuse a training run that this cache does not belong to.

        Args:
            examples: what the student will be trained on, in its order.
            temperature: T of the loss: the mass of the tokens that were not kept is known at one only.
            width: number of logits to compare.

        Raises:
            ValueError: saying what differs and how to fix it.
        """
        wanted = replace(
            self.manifest, data=_fingerprint(examples), temperature=temperature, shape=(width,)
        )
        if reasons := self.manifest.differences(wanted):
            raise ValueError(
                f"the teacher outputs in {self.folder} do not belong to this run: {'; '.join(reasons)}. Make "
                f"them anew with {self.manifest.MAKER}, in another folder or with overwrite=True"
            )

    def fill(
        self, make: Callable[[range], dict[str, Tensor]], *, overwrite: bool = False, progress: bool = False
    ) -> None:
        """Take the folder for this cache, and make every file that is missing or damaged.

        Args:
            make: from the rows of a file to its tensors, as `Manifest.packed` gives them.
            overwrite: replace whatever cache of tokens the folder holds.

        Raises:
            ValueError: the folder holds another cache or other files.
        """
        claim(self.folder, self.manifest, overwrite=overwrite)
        self._shards.fill(lambda shard: make(range(*self.manifest.rows(shard)[1:])), progress=progress)


def open_token_cache(folder: str | os.PathLike) -> CachedTokens:
    """A cache that `cache_teacher_tokens` has written.

    Raises:
        FileNotFoundError: there is no cache, or a file is missing.
        ValueError: something else is in the folder.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, TokenManifest)
    if manifest is None:
        raise FileNotFoundError(f"there is no cache in {folder}; make one with {TokenManifest.MAKER}")
    cached = CachedTokens(folder, manifest)
    cached._shards.check_whole(verify=False)
    return cached


def _fingerprint(examples: Sequence[Example]) -> str:
    tokens = torch.tensor([token for e in examples for part in (e.prompt, e.completion) for token in part])
    lengths = torch.tensor([[len(e.prompt), len(e.completion)] for e in examples])
    return fingerprint(tokens, lengths)
