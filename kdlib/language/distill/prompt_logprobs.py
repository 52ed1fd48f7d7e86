"""What a server says about the tokens of a text that it is given: requests, and how replies are read.

vLLM answers `prompt_logprobs: k` with an entry for each token of the prompt. Entry i is about token i, after
those before it, so that the first is null; it holds the k likeliest tokens, and as one more the token that
stands there, if it is none of them. This is how a reply is known to be about the text that was sent.

SGLang's own `/generate` gives the same numbers in two lists, `input_top_logprobs` and `input_token_logprobs`.

**The tail** is what the k leave of 1. Servers compute a softmax in float32: logits of 20 are rounded by 1e-6,
and so is the sum. Where less than 1e-5 is left, the tail is therefore held within a factor of 8 of k · p_k,
p_k being the last of the k: it would be that if probabilities fell like 1/rank². More than (V − k) · p_k it
cannot be.

**A padded vocabulary.** Qwen2.5's models at 1.5B have 151,936 logits for 151,665 tokens. Those beyond, which
a server counts and `kdlib` does not, are taken out where they are among the k, and the others are normalised.
In their place stand tokens that the server did not name, each with the mean of the tail.
"""

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Literal

import httpx
import torch
from torch import Tensor

from kdlib.language.server import Failure, Server, Usage
from kdlib.losses.top_k import TopK

__all__ = ["Api", "ScoringServer", "read_prompt_logprobs"]

Api = Literal["vllm", "sglang"]

_ROUNDING = 1e-3  # of what may be above 1; servers compute in bfloat16 too
_UNSURE = 1e-5  # a rest of 1 that may be rounding
_BEYOND = 1e-2  # of the probability on what is no token, above which it is another tokenizer's


class ScoringServer(Server):
    """A model that says how likely the tokens of a text are, as for `cache_served_tokens`.

    Attributes:
        api: how it is asked: "vllm" by /completions, "sglang" by its /generate, beside /v1.
    """

    api: Api = "vllm"
    REFUSED = "vLLM needs --max-logprobs of top_k, and --max-model-len of one more than a text has tokens"

    async def ask(self, ids: Sequence[int], first: int, k: int, width: int) -> tuple[TopK, Usage] | Failure:
        """The k largest at the tokens from the `first` on, and what the request cost."""

        async def send() -> object:
            if self.api == "sglang":
                return await self._generate(ids, k)
            return await self.client.completions.with_raw_response.create(
                model=self.model,
                prompt=list(ids),
                max_tokens=1,  # vLLM refuses 0 unless it is to repeat the text as well
                temperature=1.0,
                extra_headers=self.headers,
                extra_body={"prompt_logprobs": k},
            )

        return await self.reply(send, lambda body: read_prompt_logprobs(body, ids, first, k, width))

    async def _generate(self, ids: Sequence[int], k: int) -> object:
        response = await self.client.post(
            self.url.removesuffix("/v1") + "/generate",
            cast_to=httpx.Response,
            body={
                "input_ids": list(ids), "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
                "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": k,
            },
            options={"headers": self.headers or {}},
        )  # fmt: skip
        return SimpleNamespace(http_response=response)


def read_prompt_logprobs(
    body: object, ids: Sequence[int], first: int, k: int, width: int
) -> tuple[TopK, Usage]:
    """Read the body of vLLM's completion or of SGLang's generation, decoded from JSON.

    Args:
        ids: the text that was sent.
        first: from which of its tokens on the log-probabilities are wanted, at least 1.
        k: how many were asked for.
        width: number of logits that belong to a token.

    Returns:
        Log-probabilities (n, k), largest first, tokens (n, k) and log_tail (n), float32, of the n tokens from
        the first on; and the input and output tokens that the server counted.

    Raises:
        Failure: it is none; is about another text; has fewer than k, or what are no probabilities.
    """
    usage = _usage(body)
    entries = _entries(body, usage)
    if len(entries) != len(ids):
        said = f"the reply is about {len(entries)} tokens; expected the {len(ids)} that were sent"
        raise Failure(said, usage, "shape")
    rows = [_row(entries[place], place, ids[place], k, usage) for place in range(first, len(ids))]
    values = torch.tensor([[value for _, value in row] for row in rows], dtype=torch.float64)
    indices = torch.tensor([[token for token, _ in row] for row in rows])
    if (total := values.logsumexp(-1).amax()) > math.log1p(_ROUNDING):
        raise Failure(f"probabilities add up to {total.exp():.4g}; expected at most 1", usage, "shape")
    return _with_tail(values, indices, width, usage), usage


def _entries(body: object, usage: Usage) -> list[object]:
    """Of each token of the text what vLLM says about it: log-probabilities by token."""
    body = body if isinstance(body, Mapping) else {"it": body}
    if isinstance(meta := body.get("meta_info"), Mapping):
        try:
            both = zip(meta["input_top_logprobs"], meta["input_token_logprobs"], strict=True)
            return [
                {str(token): {"logprob": value} for value, token, *_ in [*(likeliest or ()), itself]}
                for likeliest, itself in both
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise Failure(f"the reply's meta_info cannot be read: {error!r}", usage, "shape") from None
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise Failure(f"the reply has no choices: {dict(body)!r:.80}", usage)
    entries = choices[0].get("prompt_logprobs")
    if not isinstance(entries, list):
        said = "the reply has no prompt_logprobs; expected a server that gives them, such as vLLM"
        raise Failure(said, usage, "shape")
    return entries


def _usage(body: object) -> Usage:
    told = (body.get("usage") or body.get("meta_info")) if isinstance(body, Mapping) else None
    told = told if isinstance(told, Mapping) else {}
    counts = {"input_tokens": told.get("prompt_tokens"), "output_tokens": told.get("completion_tokens")}
    return {name: count for name, count in counts.items() if isinstance(count, int) and count >= 0}


def _row(entry: object, place: int, token: int, k: int, usage: Usage) -> list[tuple[int, float]]:
    """The k likeliest tokens at a place of the text, and their log-probabilities, largest first."""
    try:
        told = {int(number): float(one["logprob"]) for number, one in entry.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Failure(f"prompt_logprobs[{place}] is {entry!r:.80}", usage, "shape") from None
    if token not in told:
        said = f"prompt_logprobs[{place}] does not hold token {token}, which stands there in the text"
        raise Failure(said, usage, "shape")
    if len(told) < k:
        said = f"prompt_logprobs[{place}] holds {len(told)} tokens; expected top_k={k}"
        raise Failure(said, usage, "shape")
    if min(told) < 0 or not all(value <= _ROUNDING for value in told.values()):
        raise Failure(f"prompt_logprobs[{place}] holds no log-probabilities: {entry!r:.80}", usage, "shape")
    return sorted(told.items(), key=lambda one: -one[1])[:k]


def _with_tail(values: Tensor, indices: Tensor, width: int, usage: Usage) -> TopK:
    """Of log-probabilities (n, k) in float64 and their tokens; see the head of this file."""
    k, tokens = values.shape[-1], indices < width
    beyond = values.exp().masked_fill(tokens, 0.0).sum(-1)
    if (most := beyond.amax()) > _BEYOND:
        said = f"the model gives {most:.1%} to tokens from {width} on, which the tokenizer does not have"
        raise Failure(f"{said}; expected one tokenizer for both", usage, "shape")
    count = tokens.sum(-1)  # those that are tokens are at least one: most of the mass is theirs
    values = values.masked_fill(~tokens, -math.inf) - torch.log1p(-beyond).unsqueeze(-1)
    last = values.masked_fill(~tokens, math.inf).amin(-1)
    rest = -torch.expm1(values.logsumexp(-1).clamp(max=0.0))
    tail, usual = rest.log(), last + count.log()
    held = torch.maximum(torch.minimum(tail, usual + math.log(8)), usual - math.log(8))
    tail = torch.where(rest < _UNSURE, held, tail)
    others = (width - count).double()
    mean = torch.minimum(tail - others.log(), last)
    values = torch.where(tokens, values, mean.unsqueeze(-1))
    for row in (count < k).nonzero().flatten().tolist():
        named = set(indices[row].tolist())
        unnamed = (token for token in range(width) if token not in named)
        for place in (~tokens[row]).nonzero().flatten().tolist():
            indices[row, place] = next(unnamed)
    values, order = values.sort(dim=-1, descending=True)
    log_tail = mean + math.log(width - k) if k < width else torch.full_like(mean, -math.inf)
    return TopK(values.clamp(max=0.0).float(), indices.gather(-1, order), log_tail.float())
