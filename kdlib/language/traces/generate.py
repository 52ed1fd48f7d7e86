"""Completions of a causal language model; each with random numbers of its own, whatever the batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from kdlib.language.models.chat import apply_template
from kdlib.language.models.positions import positions_of

__all__ = ["Completion", "Writer"]


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt."""

    text: str  # without the end-of-sequence token, with other special tokens
    tokens: int  # that of the end included
    finished: bool  # whether the end was written; otherwise `max_new_tokens` cut it off


class Writer:
    """A model and its tokenizer with the settings they write with; see `collect_traces`.

    The model's own generation settings (repetition penalty, top-k, …) are set aside. Tokens that only the
    model has, as padding of its vocabulary, are never chosen.

    Raises:
        ValueError: tokenizer and model do not fit together.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, temperature: float, top_p: float,
        max_new_tokens: int,
    ) -> None:  # fmt: skip
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer has no end-of-sequence token, so nothing would end; set eos_token")
        if tokenizer.chat_template is None:
            raise ValueError("tokenizer has no chat_template; expected one, or set tokenizer.chat_template")
        self._known = max(tokenizer.get_vocab().values()) + 1
        rows = model.get_input_embeddings().weight.shape[0]
        if self._known > rows:
            raise ValueError(
                f"tokenizer has {self._known} tokens, but model embeds {rows}: load both from one place, "
                f"or call model.resize_token_embeddings({self._known})"
            )
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.top_p, self.max_new_tokens = temperature, top_p, max_new_tokens
        self._ends = [tokenizer.eos_token_id]
        own = model.generation_config.eos_token_id
        # A model made from a configuration has one number, its class's default, which means nothing here.
        if isinstance(own, list) and tokenizer.eos_token_id in own:
            self._ends = own

    def prompt(self, statement: str) -> list[int]:
        """Token ids of the statement as the user's turn, up to where the model begins.

        Raises:
            ValueError: it leaves fewer than `max_new_tokens` of the model's positions.
        """
        turn = [{"role": "user", "content": statement}]
        ids = apply_template(self.tokenizer, turn, return_dict=False)
        positions = positions_of(self.model)
        if positions is not None and len(ids) + self.max_new_tokens > positions:
            raise ValueError(
                f"max_new_tokens is {self.max_new_tokens}, but the model has {positions} positions, and the "
                f"prompt {statement[:60]!r} takes {len(ids)} of them; expected at most {positions - len(ids)}"
            )
        return ids

    def write(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Completion]:
        """A completion for each prompt, all in one batch, each with a seed of its own.

        Raises:
            FloatingPointError: logits that are not finite.
        """
        device, ids = self.model.device, [torch.tensor(prompt) for prompt in prompts]
        ids = pad_sequence(ids, batch_first=True, padding_value=-1, padding_side="left").to(device)
        longest = ids.shape[1]
        uniforms = self._uniforms(seeds).to(device)
        choice = TokenChoice(uniforms, longest, self._known, self.temperature, self.top_p)
        settings = GenerationConfig(
            # The choice leaves one token with a finite score; finding that takes no random number.
            do_sample=False, max_new_tokens=self.max_new_tokens, use_cache=True,
            eos_token_id=self._ends, pad_token_id=self._ends[0],
        )  # fmt: skip
        # What these settings leave open, generate takes from the model's own.
        own, self.model.generation_config = self.model.generation_config, GenerationConfig()
        try:
            written = self.model.generate(
                input_ids=ids.clamp(min=0), attention_mask=(ids >= 0).long(), generation_config=settings,
                logits_processor=LogitsProcessorList([choice]),
            )  # fmt: skip
        finally:
            self.model.generation_config = own
        if not choice.finite:
            raise FloatingPointError("the model's logits are not finite; if it is float16, try bfloat16")
        return [self._completion(row) for row in written[:, longest:].tolist()]

    def _uniforms(self, seeds: Sequence[int]) -> Tensor:
        """(B, max_new_tokens) numbers in [0, 1)."""
        if not self.temperature:
            return torch.empty(len(seeds), 0)
        # Philox takes the whole seed as its key; torch's generator on the CPU would take 32 bits of it.
        streams = [np.random.Generator(np.random.Philox(key=seed)) for seed in seeds]
        return torch.from_numpy(np.stack([s.random(self.max_new_tokens, np.float32) for s in streams]))

    def _completion(self, ids: list[int]) -> Completion:
        end = next((place for place, token in enumerate(ids) if token in self._ends), None)
        # Special tokens are kept: some tokenizers count </think> among them.
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Completion(text, len(ids) if end is None else end + 1, end is not None)


class TokenChoice(LogitsProcessor):
    """Chooses a token in each row, by that row's own uniform numbers, and rules out all others.

    It inverts the distribution that transformers' temperature and top-p leave: the first token, in the order
    of the vocabulary, up to which the probabilities add up to more than the row's number. Afterwards `finite`
    says whether all logits were numbers, −∞ among them.

    Args:
        uniforms: (B, steps) in [0, 1).
        start: length of the prompts, so that the step is known.
        known: tokens from this one on are never chosen.
    """

    def __init__(self, uniforms: Tensor, start: int, known: int, temperature: float, top_p: float) -> None:
        self._uniforms, self._start, self._known = uniforms, start, known
        self._temperature, self._share, self._top_p = temperature, top_p, TopPLogitsWarper(float(top_p))
        # Kept on the device: asking would wait for it at each step.
        self.finite = torch.ones((), dtype=torch.bool, device=uniforms.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) float32 scores with one finite number a row, for (B, L) tokens so far."""
        self.finite &= scores.amax(-1).isfinite().all()
        known = scores[:, : self._known]
        if self._temperature == 0:
            chosen = known.argmax(-1)
        else:
            uniforms = self._uniforms[:, input_ids.shape[1] - self._start]
            chosen = self._drawn(known / self._temperature, uniforms)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0)

    def _drawn(self, scores: Tensor, uniforms: Tensor) -> Tensor:
        probabilities = scores.softmax(-1)
        if self._share == 1:
            return inverted(probabilities, uniforms)
        largest, chosen = probabilities.max(-1)
        # Where one token holds the whole share there is no choice, as mostly in a trained model; and top-p
        # sorts its rows, which on a CPU takes as long as a small model.
        open_rows = (largest < self._share).nonzero().squeeze(1)
        if len(open_rows):
            left = self._top_p(None, scores[open_rows]).softmax(-1)
            chosen[open_rows] = inverted(left, uniforms[open_rows])
        return chosen


def inverted(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """(B) classes from (B, C) probabilities: the quantile of each row's uniform number in [0, 1).

    A class of probability 0 is never chosen, whatever the rounding of the sums.
    """
    # At such classes the sum counts as 0: a parallel scan may round it above its neighbours'.
    cumulative = probabilities.cumsum(-1).masked_fill_(probabilities == 0, 0)
    total = cumulative.amax(-1)
    below_total = torch.nextafter(total, torch.zeros_like(total))
    reached = torch.minimum(uniforms * total, below_total)
    return (cumulative > reached[:, None]).int().argmax(-1)
