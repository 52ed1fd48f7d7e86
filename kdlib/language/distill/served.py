"""A teacher that is only a server: what it says of texts goes into the cache of the largest logits.

    cached = cache_served_tokens(
        "http://localhost:8000/v1", "Qwen/Qwen2.5-32B-Instruct", tokenizer, traces, "teacher-outputs",
        token_budget=5_000_000,
    )
    distill_language_model(student, tokenizer, traces, teacher=cached, steps=1000)

with `vllm serve Qwen/Qwen2.5-32B-Instruct --max-logprobs 64`, say.

**What it costs.** SmolLM2 behind vLLM 0.32 and the same model here, in float32, on 6,120 tokens of English
(data/results/served_teacher.json): with k = 64 the loss of a student is the live teacher's. Forward KL is off
by at most 0.00007 nats, the reverse by 0.0013, which is 0.04 % of that of a student without a third of its
blocks; for a student without one block it is 0.00002. Both kinds of teacher leave out how the student spreads
the tail, see `kdlib.losses.top_k`.
"""

import os
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import get_args

from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from kdlib.arguments import check_counts, refuse
from kdlib.cache.journal import Journal
from kdlib.cache.tokens import CachedTokens, ServedTokens
from kdlib.language.collector import Collector
from kdlib.language.distill.batches import TokenExample, dated, tokenize
from kdlib.language.distill.prompt_logprobs import Api, ScoringServer
from kdlib.language.distill.prompts import TeacherPrompt, as_read, teacher_prompts
from kdlib.language.models.vocabulary import check_same_tokens
from kdlib.language.server import Failure, Usage
from kdlib.language.traces.file import Trace
from kdlib.losses.top_k import TopK

__all__ = ["TokensMissing", "cache_served_tokens"]


class TokensMissing(RuntimeError):
    """A server's outputs are missing: `reasons` by the number of the text; none where the budget is used up.

    What arrived is kept; the same call asks for what is missing.
    """

    def __init__(self, message: str, reasons: dict[int, str]) -> None:
        super().__init__(message)
        self.reasons = reasons


def cache_served_tokens(
    url: str, model: str, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Trace | tuple[str, str]],
    folder: str | os.PathLike, *, teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    teacher_prompt: TeacherPrompt | None = None, top_k: int = 64, compact: bool = False, api: Api = "vllm",
    concurrency: int = 8, token_budget: int | None = None, retries: int = 8, timeout: float = 600.0,
    key_variable: str | None = None, overwrite: bool = False, progress: bool = False,
) -> CachedTokens:  # fmt: skip
    """Ask a server what its model thinks of each token of texts, and store it as `cache_teacher_tokens` does.

    The server gets token ids, by vLLM's `/v1/completions` with `prompt_logprobs` or by SGLang's `/generate`:
    the texts are those that the student will read, token by token, and no chat template of the server's comes
    in; with `teacher_prompt="own"` the prompts are those of `teacher_tokenizer`. A reply counts if it is
    about these ids, with the top_k largest for each. Its log-probabilities are at T = 1, and so is the cache:
    the mass of the tokens that were not kept is known there alone.

    Each reply goes to the disk as it arrives, together with what it cost; a run that was killed or
    interrupted continues, and only requests in flight are lost. The cache is bound to the texts, the prompts
    that are read, the model's name, top_k and `compact`, not to the address. What is repeated after a
    failure, and when all is given up, is as for `collect_remote_traces`.

    Args:
        url: up to /v1: "http://localhost:8000/v1".
        model: its name there; SGLang's `/generate` does not look at it.
        tokenizer, examples, teacher_tokenizer: as for `distill_language_model`. Give the teacher's where
            there is one, to be compared with the student's; that the server has it shows in its replies.
        teacher_prompt: as for `cache_teacher_tokens`; nats cannot be told beforehand.
        folder, compact, overwrite: as for `cache_teacher_tokens`.
        top_k: how many log-probabilities to keep; vLLM gives 20, or as many as its --max-logprobs says.
        api: whose server it is, "vllm" or "sglang". The second is read as SGLang's source writes it; no
            server of that kind has been asked.
        concurrency: requests in flight at once.
        token_budget: tokens that may be sent to the server, by all runs into this folder together. It stops
            before a text that could go beyond. Not counted is what failed, or was in flight when a run was
            killed.
        retries, timeout, key_variable: as for `collect_remote_traces`.
        progress: show a progress bar.

    Raises:
        ValueError: bad arguments; tokenizers that differ; a folder with another cache or other files; what
            `collect_remote_traces` says of addresses and keys.
        TokensMissing: requests failed for good, or the budget is used up; it says why.
    """
    check_counts(concurrency=concurrency, token_budget=token_budget)
    check_counts(least=0, retries=retries)
    if api not in get_args(Api):
        refuse("api", api, "vllm or sglang")
    width = check_same_tokens(tokenizer, teacher_tokenizer)
    encoded = tokenize(tokenizer, examples)
    asked, other = teacher_prompts(teacher_prompt, model, teacher_tokenizer, tokenizer, examples, encoded)
    read, bound = as_read(teacher_prompt, asked, teacher_tokenizer, examples)
    cached = ServedTokens.of(
        folder, encoded, model, width, top_k, 1.0, compact, **dated(tokenizer, examples), **bound
    )
    if other is not None:
        other.tell(None)
    server = ScoringServer(str(url).rstrip("/"), model, key_variable, retries, timeout)
    server.api = api

    @cache
    def journal() -> Journal:
        """Opened where nobody else writes into the folder."""
        return Journal(cached.folder / "arrived.jsonl", cached.fingerprint, anew=overwrite)

    with server.connected() as portal, tqdm(desc="texts", total=len(encoded), disable=not progress) as bar:

        def outputs(epoch: int, rows: range) -> dict[str, Tensor]:
            texts = cached.texts(rows)
            journal().drop_before(texts.start)
            waiting = deque(
                text for text in texts if encoded[text].completion and text not in journal().held
            )
            bar.n = texts.stop - len(waiting)
            collector = TokenCollector(
                server=server, bar=bar, waiting=waiting, concurrency=concurrency, retries=retries,
                readable=rows.start > 0 or bool(journal().held), examples=read, cached=cached,
                journal=journal(), budget=token_budget,
            )  # fmt: skip
            collector.collect(portal)
            if collector.failures or waiting:
                raise TokensMissing(collector.missing(), collector.failures)
            return cached.joined(rows, journal().held)

        def finish() -> None:
            journal().drop_before(len(encoded))

        cached.fill(outputs, overwrite=overwrite, progress=False, finish=finish)
    return cached


@dataclass(kw_only=True)
class TokenCollector(Collector[int, tuple[TopK, Usage]]):
    """Asks about texts, by their numbers, and puts what arrives into a journal."""

    server: ScoringServer
    examples: Sequence[TokenExample]
    cached: CachedTokens
    journal: Journal
    budget: int | None

    def has_room(self, asked: Collection[int]) -> bool:
        needed = sum(len(self.examples[text]) for text in asked)
        return self.budget is None or self.journal.spent + needed <= self.budget

    async def ask(self, asked: int, again: int) -> tuple[TopK, Usage] | Failure:
        prompt, completion = self.examples[asked].prompt, self.examples[asked].completion
        m = self.cached.manifest
        return await self.server.ask((*prompt, *completion), len(prompt), m["top_k"], m["width"])

    def store(self, asked: int, outcome: tuple[TopK, Usage] | Failure) -> None:
        """The tensors and what they cost, in one piece; the cost also where there is nothing else."""
        if isinstance(outcome, Failure):
            if spent := outcome.usage.get("input_tokens"):
                self.journal.append(spent)
            return
        top, usage = outcome
        spent = usage.get("input_tokens", len(self.examples[asked]))
        self.journal.append(spent, asked, self.cached.packed(top))

    def missing(self) -> str:
        """Why something is."""
        have = (
            f"{len(self.journal.held):,} texts are kept beside the files of {self.cached.folder}; "
            f"{self.journal.spent:,} tokens spent"
        )
        if self.failures:
            summary = self.summary(f"examples[{next(iter(self.failures))}]")
            return f"{summary}. {have}; the same call asks for the others"
        text = self.waiting[0]
        return (
            f"token_budget={self.budget:,} has no room for examples[{text}] of "
            f"{len(self.examples[text]):,} tokens: {have}. With a larger one the same call continues"
        )
