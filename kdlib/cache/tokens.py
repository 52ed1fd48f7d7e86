"""A teacher's outputs for every token of its texts, on disk: run it once, distil from it often.

Of each token of each completion the k largest of the teacher's logits at the position that predicts it are
kept, as log-probabilities, and the mass of all other tokens. With k = 64 and more than 32,768 tokens in the
vocabulary that is 64 · (2 + 4) + 4 = 388 bytes a token; all 151,665 logits in bfloat16 would be 303,330.

Log-probabilities rather than logits: they do not come near the end of float16's range at −65,504, and its
11 bits are off by up to one part in 2,048, bfloat16's 8 bits by one in 256. `kdlib.cache.compact` is a second
format: a third of the bytes, and what it costs.

`kdlib.language.distill.teachers.cache_teacher_tokens` writes such a cache of a model's outputs,
`kdlib.language.distill.served.cache_served_tokens` of what a server says.
"""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from kdlib.cache.compact import compact_bytes, pack, unpack
from kdlib.cache.shards import Cache, read_manifest
from kdlib.losses.top_k import TopK
from kdlib.storage import fingerprint

__all__ = ["CachedTokens", "ServedTokens", "open_token_cache"]


class Example(Protocol):
    """Token ids, as `kdlib.language.distill.batches.tokenize` makes them."""

    prompt: Sequence[int]
    completion: Sequence[int]


class CachedTokens(Cache):
    """The teacher's k largest log-probabilities for each completion token; made by `cache_teacher_tokens`.

    The tokens of a text are consecutive rows, in the order of the texts.

    Attributes:
        manifest: fingerprints of `teacher` and `texts`, `width` (number of logits that belong to a token),
            `top_k`, `temperature` of the log-probabilities, `lengths` (completion tokens of each text). Where
            it is so `compact`; `teacher_prompts`, the fingerprint of prompts of the teacher's own; and the
            dates that chat templates wrote.
        starts: the first row of each text, and the number of rows.
    """

    MAKER = "cache_teacher_tokens"
    SHARD_ROWS = 262_144

    def __init__(self, folder: str | os.PathLike, manifest: dict[str, object]) -> None:
        super().__init__(folder, manifest)
        self.starts = (0, *accumulate(self.manifest["lengths"]))

    @classmethod
    def of(
        cls, folder: str | os.PathLike, examples: Sequence[Example], teacher: str, width: int, top_k: int,
        temperature: float, compact: bool = False, **more: object,
    ) -> Self:  # fmt: skip
        """That of a teacher, by its fingerprint, and texts; to be filled. `more` it is bound to as well."""
        if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= width:
            raise ValueError(f"top_k must be a whole number from 1 to the {width} tokens; got {top_k}")
        lengths = [len(example.completion) for example in examples]
        if not sum(lengths):
            raise ValueError("examples hold no completion tokens; expected at least one")
        # Only where it is true: caches of earlier versions do not have it, and stay what they are.
        more |= {"compact": True} if compact else {}
        return cls(folder, {
            "rows": sum(lengths), "epochs": 1, "teacher": teacher, "texts": _fingerprint(examples),
            "width": width, "top_k": top_k, "temperature": float(temperature), "lengths": lengths, **more,
        })  # fmt: skip

    @property
    def bytes_per_token(self) -> int:
        if self._compact:
            return compact_bytes(self.manifest["top_k"], self.manifest["width"])
        return self.manifest["top_k"] * (2 + self._index_dtype.itemsize) + 4

    @property
    def _compact(self) -> bool:
        return self.manifest.get("compact", False)

    @property
    def _index_dtype(self) -> torch.dtype:
        return torch.int16 if self.manifest["width"] <= 2**15 else torch.int32

    def __str__(self) -> str:
        m = self.manifest
        return (
            f"teacher outputs of {len(self):,} tokens in {len(m['lengths']):,} texts, "
            f"T = {m['temperature']:g}, top {m['top_k']} of {m['width']:,} "
            f"{'packed into bits' if self._compact else 'in float16'}: "
            f"{self.bytes_per_token:,} bytes a token, {self.bytes_per_token * len(self) / 1e6:,.1f} MB"
        )

    def packed(self, top: TopK) -> dict[str, Tensor]:
        """As it goes to disk."""
        if self._compact:
            return pack(top, self.manifest["width"])
        # At the end of float16's range a probability is 0, but the token is not ruled out.
        values = top.values.clamp(min=torch.finfo(torch.float16).min)
        return {
            "values": values.masked_fill(top.values.isinf(), -torch.inf).half(),
            "indices": top.indices.to(self._index_dtype),
            "log_tail": top.log_tail.float(),
        }

    def texts(self, rows: range) -> range:
        """Those that have some of these rows; texts that cross their borders belong to both sides."""
        return range(bisect_right(self.starts, rows.start) - 1, bisect_left(self.starts, rows.stop))

    def joined(self, rows: range, found: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of some rows, from those of each of their texts."""
        texts = [text for text in self.texts(rows) if self.manifest["lengths"][text]]
        start = rows.start - self.starts[texts[0]]
        return {
            name: torch.cat([found[text][name] for text in texts])[start : start + len(rows)]
            for name in found[texts[0]]
        }

    def top_k(self, rows: Tensor) -> TopK:
        """The teacher's outputs at (n) int64 rows: log-probabilities at the manifest's T, over all tokens.

        `TopK` of float32 values (n, k), int64 indices (n, k) and float32 log_tail (n), on the rows' device;
        its log_total is 0 up to rounding. Errors as for `gather`.
        """
        stored = self.gather(0, rows)
        if self._compact:
            return unpack(stored, self.manifest["width"])
        return TopK(stored["values"].float(), stored["indices"].long(), stored["log_tail"])

    def __call__(self, batch: dict[str, Tensor]) -> TopK:
        """As a teacher: its outputs for the targets of a batch, as `collate` in language/distill makes it."""
        return self.top_k(batch["stored"])

    def check(self, examples: Sequence[Example], temperature: float, width: int, **more: object) -> None:
        """Refuse, by a ValueError that says why, a training run that this cache does not belong to.

        The loss must have the cache's T: the mass of the tokens that were not kept is known at it alone.
        """
        self.require(texts=_fingerprint(examples), temperature=temperature, width=width, **more)


class ServedTokens(CachedTokens):
    """As a server has told them; made by `cache_served_tokens`. Its `teacher` is the model's name there."""

    MAKER = "cache_served_tokens"


def open_token_cache(folder: str | os.PathLike) -> CachedTokens:
    """A cache that `cache_teacher_tokens` or `cache_served_tokens` has written.

    Raises:
        FileNotFoundError, ValueError: there is none; something else is in the folder.
    """
    kinds = {kind.MAKER: kind for kind in (CachedTokens, ServedTokens)}
    manifest = read_manifest(Path(folder), *kinds)
    if manifest is None:
        raise FileNotFoundError(f"there is no cache in {folder}; make one with {CachedTokens.MAKER}")
    return kinds[manifest["maker"]](folder, manifest)


def _fingerprint(examples: Sequence[Example]) -> str:
    """Stands for the tokens, and for where each prompt and completion ends."""
    tokens = torch.tensor([token for e in examples for part in (e.prompt, e.completion) for token in part])
    lengths = torch.tensor([[len(e.prompt), len(e.completion)] for e in examples])
    return fingerprint(tokens, lengths)
