"""The teacher's opinion on every token of its texts, on disk: run it once, distil from it often.

Of each token of each completion the k largest of the teacher's logits at the place that predicts it are kept,
as log-probabilities, and the mass of all other tokens. With k = 64 and more than 65,536 tokens in the
vocabulary that is 64 · (2 + 4) + 4 = 388 bytes a token; all 151,665 logits in bfloat16 would be 303,330.

Log-probabilities rather than logits, because float16 is then the better choice: its 11 bits are off by up to
one part in 2,048, bfloat16's 8 bits by one in 256, and a log-probability does not come near the end of
float16's range at −65,504, where a logit may.

The files are those of `kdlib.cache.images`: a row for each token, a file for each run of rows. Whoever is killed
loses the file in the making and nothing else; two processes that write the same cache make the same files.
"""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.cache.shards import DTYPES, Manifest, Shards, as_class, claim, read_manifest
from kdlib.language.distill.batches import HasText, TokenExample, collate, tokenize
from kdlib.language.distill.teachers import can_narrow, kept_logits
from kdlib.language.models.vocabulary import check_same_tokens
from kdlib.losses.top_k import TopK, top_k_of
from kdlib.runtime import best_device, eval_mode
from kdlib.storage import fingerprint

__all__ = ["CachedTokens", "cache_teacher_tokens", "open_token_cache"]

_ROWS = 256  # whose logits are looked at together: with 151,665 tokens 155 MB in float32


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
    SETTINGS: ClassVar[tuple[str, ...]] = ("shape", "temperature", "dtype", "top_k", "shard_rows")

    temperature: float
    lengths: tuple[int, ...]


class CachedTokens:
    """The teacher's k largest log-probabilities for each completion token; made by `cache_teacher_tokens`.

    The tokens of a text are consecutive rows, in the order of the texts. Files are read when their rows are
    first asked for, with their checksum compared, and stay mapped, not copied.
    """

    def __init__(self, folder: str | os.PathLike, manifest: TokenManifest) -> None:
        self.folder = Path(folder)
        self._manifest = manifest
        self._shards = Shards(self.folder, manifest)
        self._starts = [0, *accumulate(manifest.lengths)]

    def __len__(self) -> int:
        """Number of completion tokens, over all texts."""
        return self._manifest.examples

    @property
    def examples(self) -> int:
        """Number of texts."""
        return len(self._manifest.lengths)

    @property
    def width(self) -> int:
        """Number of tokens that the teacher chose from: `real_tokens` of the tokenizer."""
        return self._manifest.shape[-1]

    @property
    def k(self) -> int:
        """How many are kept at each place."""
        return self._manifest.top_k

    @property
    def temperature(self) -> float:
        """T of the stored log-probabilities, the one that the student must be compared at."""
        return self._manifest.temperature

    @property
    def fingerprint(self) -> str:
        """Stands for teacher, texts, temperature and form of storage."""
        return self._manifest.fingerprint

    @property
    def bytes_per_token(self) -> int:
        """On disk: k × (bytes of the dtype + bytes of an index) + 4.

        An index takes 1 byte up to 256 tokens, 2 up to 65,536, 4 beyond.
        """
        return self._manifest.bytes_per_example

    def __str__(self) -> str:
        return (
            f"teacher outputs of {len(self):,} tokens in {self.examples:,} texts, T = {self.temperature:g}, "
            f"top {self.k} of {self.width:,} in {self._manifest.dtype}: "
            f"{self.bytes_per_token:,} bytes a token, {self.bytes_per_token * len(self) / 1e6:,.1f} MB"
        )

    def rows_of(self, example: int) -> range:
        """The rows of a text's completion tokens; texts count from 0 in the order they were given.

        Raises:
            IndexError: there is no such text.
        """
        if not 0 <= example < self.examples:
            raise IndexError(f"example must lie in 0 … {self.examples - 1}; got {example}")
        return range(self._starts[example], self._starts[example + 1])

    def top_k(self, rows: Tensor) -> TopK:
        """What the teacher said at some rows: log-probabilities at `temperature`, over all `width` tokens.

        Args:
            rows: (n) int64, on any device, in any order, repeated or not.

        Returns:
            `TopK` of float32 values (n, k), int64 indices (n, k) and float32 log_tail (n), on the rows'
            device; its log_total is 0 up to the rounding of the dtype.

        Raises:
            ValueError: rows of another kind, or a damaged file. FileNotFoundError: a file that was deleted
                since the cache was opened. IndexError: a row that there is not.
        """
        if rows.dtype != torch.int64 or rows.dim() != 1:
            raise ValueError(
                f"rows must be int64 of shape (n); got {rows.dtype} of shape {tuple(rows.shape)}"
            )
        at = rows.cpu()
        if len(at) and not (at.min() >= 0 and at.max() < len(self)):
            raise IndexError(f"rows must lie in 0 … {len(self) - 1}; got {at.min()} to {at.max()}")
        stored = {name: part.to(rows.device) for name, part in self._shards.gather(0, at).items()}
        return TopK(stored["values"].float(), as_class(stored["indices"]), stored["log_tail"])

    def check(
        self, examples: Sequence[TokenExample], temperature: float, *, width: int | None = None
    ) -> None:
        """Refuse a training run that this cache does not belong to.

        Args:
            examples: what the student will be trained on, encoded by `tokenize`, in its order.
            temperature: T of the loss.
            width: number of logits to compare; None does not look.

        Raises:
            ValueError: saying what differs and how to mend it.
        """
        if self._manifest.data != _fingerprint(examples):
            raise ValueError(
                f"the teacher outputs in {self.folder} were made for other texts: "
                f"{self._manifest.DATA_CHANGED}. Make them for these with cache_teacher_tokens, in another "
                f"folder or with overwrite=True"
            )
        if temperature != self.temperature:
            raise ValueError(
                f"the teacher outputs in {self.folder} were made at temperature={self.temperature:g}; got "
                f"temperature={temperature:g}. Train at {self.temperature:g}, or make them anew: the mass of "
                f"the tokens that were not kept is known at one temperature only"
            )
        if width not in (None, self.width):
            raise ValueError(
                f"the teacher outputs in {self.folder} are over {self.width:,} tokens; the student's "
                f"tokenizer has {width:,}. Make them with that tokenizer"
            )


@torch.no_grad()
def cache_teacher_tokens(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[HasText | tuple[str, str]],
    folder: str | os.PathLike,
    *,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    top_k: int = 64,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float16,
    batch_size: int = 8,
    batch_tokens: int = 16_384,
    shard_rows: int = 65_536,
    device: torch.device | str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> CachedTokens:
    """Run the teacher over texts, in eval mode without gradients, and write down what it says of each token.

    Called again with the same arguments, it verifies what is there and makes only what is missing or damaged.

    Args:
        teacher: a causal language model; moved to the device, unless a device map has spread it.
        tokenizer: the student's. Logits beyond its tokens, which pad vocabularies, are cut off.
        examples: as for `distill_language_model`: traces, or pairs (statement, completion).
        folder: a folder of its own; made if need be.
        teacher_tokenizer: to be compared with `tokenizer`; None if the teacher's is the same.
        top_k: how many tokens to keep at each place.
        temperature: T of the loss that the student will be trained with.
        dtype: of the stored log-probabilities: float16, bfloat16 or float32.
        batch_size: texts of one forward pass; batch_tokens: their tokens, padding included. A longer text
            goes alone. The logits of a pass take up to batch_tokens × vocabulary × bytes of the teacher's
            dtype: 5 GB for 16,384 tokens of Qwen's in bfloat16. Results agree up to rounding.
        shard_rows: tokens of one file: what a killed process may have to compute again.
        device: where the teacher runs; default `best_device()`.
        overwrite: replace whatever cache of tokens the folder holds.
        progress: show a progress bar.

    Returns:
        The complete `CachedTokens`.

    Raises:
        ValueError: bad arguments; vocabularies that differ; a folder with another cache or other files;
            logits that are not finite. The message says how to mend it.
    """
    width = check_same_tokens(tokenizer, teacher_tokenizer, teacher=teacher)
    _check_arguments(top_k, temperature, dtype, batch_size, batch_tokens, shard_rows, width)
    encoded = tokenize(tokenizer, examples)
    lengths = tuple(len(example.completion) for example in encoded)
    if not sum(lengths):
        raise ValueError("examples hold no completion tokens; expected at least one")
    manifest = TokenManifest(
        teacher=fingerprint(teacher), data=_fingerprint(encoded), examples=sum(lengths), epochs=1, seed=None,
        varies=False, dtype=str(dtype).removeprefix("torch."), top_k=top_k, shard_rows=shard_rows,
        shape=(width,), temperature=float(temperature), lengths=lengths,
    )  # fmt: skip
    folder = Path(folder)
    claim(folder, manifest, overwrite=overwrite)
    if getattr(teacher, "hf_device_map", None) is None:
        teacher.to(device if device is not None else best_device())
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    cached = CachedTokens(folder, manifest)
    reader = _Reader(teacher, encoded, cached, pad, batch_size, batch_tokens)
    with eval_mode(teacher):
        cached._shards.fill(reader.shard, progress=progress)
    return cached


def open_token_cache(
    folder: str | os.PathLike,
    *,
    teacher: PreTrainedModel | None = None,
    examples: Sequence[TokenExample] | None = None,
    verify: bool = True,
) -> CachedTokens:
    """A cache that `cache_teacher_tokens` has written.

    Args:
        folder: where it is.
        teacher: if given, must be the one that was cached.
        examples: if given, must be the texts that were cached, encoded by `tokenize`.
        verify: read every file and compare its checksum now. False leaves that to the first use of each.

    Raises:
        FileNotFoundError: there is no cache, or a file is missing.
        ValueError: it is damaged, or belongs to another teacher or other texts.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, TokenManifest)
    if manifest is None:
        raise FileNotFoundError(f"there is no cache in {folder}; make one with {TokenManifest.MAKER}")
    cached = CachedTokens(folder, manifest)
    if teacher is not None and fingerprint(teacher) != manifest.teacher:
        raise ValueError(
            f"the teacher has changed since the cache in {folder} was written; {manifest.remake()}"
        )
    if examples is not None:
        cached.check(examples, cached.temperature)
    cached._shards.check_whole(verify=verify)
    return cached


class _Reader:
    """Runs the teacher over the texts of one file of rows after the other."""

    def __init__(
        self, teacher: PreTrainedModel, examples: Sequence[TokenExample], cached: CachedTokens, pad: int,
        batch_size: int, batch_tokens: int,
    ) -> None:  # fmt: skip
        self._teacher, self._examples, self._cached, self._pad = teacher, examples, cached, pad
        self._batch_size, self._batch_tokens = batch_size, batch_tokens
        self._narrowing = can_narrow(teacher)
        self._crossing: dict[int, dict[str, Tensor]] = {}

    def shard(self, number: int) -> dict[str, Tensor]:
        """The rows of a file, in the form that goes to disk."""
        manifest, starts = self._cached._manifest, self._cached._starts
        _, first, stop = manifest.rows(number)
        # The texts that overlap it, and of those the ones that cross its borders, which go alone: so no
        # rounding depends on which file was made first. They are kept for the next file.
        overlapping = range(bisect_right(starts, first) - 1, bisect_left(starts, stop))
        inside = [n for n in overlapping if first <= starts[n] and starts[n + 1] <= stop]
        crossing = [n for n in overlapping if not (first <= starts[n] and starts[n + 1] <= stop)]
        kept = {
            example: self._crossing[example] if example in self._crossing else self._read([example])[0]
            for example in crossing
        }
        self._crossing = kept
        found = dict(kept)
        for batch in self._batches(inside):
            found |= dict(zip(batch, self._read(batch), strict=True))
        order = sorted(found)
        offset = starts[order[0]]
        return {
            name: torch.cat([found[example][name] for example in order])[first - offset : stop - offset]
            for name in found[order[0]]
        }

    def _batches(self, examples: list[int]) -> Iterator[list[int]]:
        """Like lengths together leave little padding. The longest first: if memory runs out, then at once."""
        batch: list[int] = []
        for example in sorted(examples, key=lambda n: -len(self._examples[n])):
            # The first is the longest: all are padded to it.
            full = batch and (len(batch) + 1) * len(self._examples[batch[0]]) > self._batch_tokens
            if full or len(batch) == self._batch_size:
                yield batch
                batch = []
            batch.append(example)
        if batch:
            yield batch

    def _read(self, examples: list[int]) -> list[dict[str, Tensor]]:
        """Each text's rows, on the CPU."""
        chosen = [self._examples[number] for number in examples]
        batch = collate(chosen, self._pad)
        first = int(batch["kept"][0])
        inputs = {name: tensor.to(self._teacher.device) for name, tensor in batch.items()}
        # Rows are sliced: picking the counted positions would copy gigabytes.
        logits = kept_logits(self._teacher, inputs, self._narrowing)[..., : self._cached.width]
        found = []
        for number, example, row in zip(examples, chosen, logits, strict=True):
            predicting = row[len(example.prompt) - 1 - first : len(example) - 1 - first]
            parts = [self._packed(some, number) for some in predicting.split(_ROWS)]
            found.append({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        return found

    def _packed(self, logits: Tensor, number: int) -> dict[str, Tensor]:
        """(n, V) logits of one text as they go to disk, on the CPU."""
        manifest = self._cached._manifest
        top = top_k_of(logits, manifest.top_k, manifest.temperature)
        # The largest tells all: NaN and +inf come through, and −inf means that no token is left.
        if not top.values[:, 0].isfinite().all():
            raise ValueError(
                f"the teacher's logits for examples[{number}] are not finite; look at its weights, and "
                f"whether it overflows its dtype"
            )
        total = top.log_total
        # At the end of float16's range a probability is 0, but the token is not ruled out.
        values = (top.values - total.unsqueeze(-1)).clamp(min=torch.finfo(torch.float16).min)
        values = values.masked_fill(top.values.isinf(), -torch.inf)
        packed = manifest.packed(TopK(values, top.indices, top.log_tail - total))
        return {name: part.cpu() for name, part in packed.items()}


def _fingerprint(examples: Sequence[TokenExample]) -> str:
    tokens = torch.tensor([token for e in examples for part in (e.prompt, e.completion) for token in part])
    lengths = torch.tensor([[len(e.prompt), len(e.completion)] for e in examples])
    return fingerprint(tokens, lengths)


def _check_arguments(
    top_k: int, temperature: float, dtype: torch.dtype, batch_size: int, batch_tokens: int, shard_rows: int,
    width: int,
) -> None:  # fmt: skip
    counts = {"top_k": top_k, "batch_size": batch_size, "batch_tokens": batch_tokens,
              "shard_rows": shard_rows}  # fmt: skip
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1; got {value}")
    if top_k > width:
        raise ValueError(f"top_k must be at most the {width} tokens of the tokenizer; got {top_k}")
    if not isinstance(temperature, Real) or not (temperature > 0 and isfinite(temperature)):
        raise ValueError(f"temperature must be a positive finite number; got {temperature}")
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be float32, float16 or bfloat16; got {dtype}")
