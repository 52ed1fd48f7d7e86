"""Texts as token ids: what is trained on, what is only read, and in which order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from kdlib.runtime import substream

__all__ = [
    "EpochOrder", "Packing", "TokenExample", "collate", "collate_prompts", "kept_columns", "model_inputs",
    "tokenize", "tokenize_prompts",
]  # fmt: skip

Packing = Literal["rows", "one row"]


class HasStatement(Protocol):
    """A `Problem` or a `Trace`."""

    statement: str


class HasText(HasStatement, Protocol):
    """A `Trace`: `text` is the completion, without end-of-text token."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenExample:
    """A prompt and what is to follow it, as token ids.

    Attributes:
        prompt: with the template's generation prompt.
        completion: with the closing end-of-text token.
        first: how many tokens the completions of all examples before it have: the row of its first one among
            teacher outputs that were stored token by token.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...] = ()
    first: int = 0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[HasStatement | tuple[str, str] | str]
) -> list[TokenExample]:
    """The statements as user turns, with the template's generation prompt (`<think>\\n` where it has one).

    Raises:
        ValueError: no examples, a tokenizer without chat template, or something that is no example.
    """
    statements = [statement for statement, _, _ in map(_parts, examples)]
    return [TokenExample(prompt) for prompt in _prompts(tokenizer, statements)]


def tokenize(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[HasText | tuple[str, str]]
) -> list[TokenExample]:
    """Statements and completions: user turn, generation prompt, completion, end-of-text token.

    Prompt and completion are encoded apart, as they are in generation: a token never spans both. A `Trace`
    that was cut off (`finished` is False) gets no end-of-text token.

    Raises:
        ValueError: no examples, a completion that repeats the `<think>` of the generation prompt, a tokenizer
            without chat template or end-of-text token, or something that is no example.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer has no eos_token; expected one, for a completion to end with")
    statements, texts, finished = zip(*map(_parts, examples), strict=True) if len(examples) else ((), (), ())
    if None in texts:
        raise ValueError(f"examples[{texts.index(None)}] has no completion; expected a Trace or a pair")
    prompts = _prompts(tokenizer, statements)
    _check_thought_opened_once(tokenizer, prompts[0], texts)
    texts = [text.removesuffix(tokenizer.eos_token) for text in texts]
    completions = tokenizer(texts, add_special_tokens=False)["input_ids"]
    completions = [
        (*completion, tokenizer.eos_token_id) if whole else tuple(completion)
        for completion, whole in zip(completions, finished, strict=True)
    ]
    firsts = accumulate(map(len, completions), initial=0)
    return [TokenExample(*parts) for parts in zip(prompts, completions, firsts, strict=False)]


def collate(
    examples: Sequence[TokenExample], pad: int, packing: Packing | None = None
) -> dict[str, Tensor]:
    """One batch of R rows of L tokens, padded on the right.

    Only completions are to be predicted. Which positions those are follows from the lengths, never from the
    id of a token: end-of-text may serve as padding too.

    Args:
        examples: N of them.
        pad: token id of the padding.
        packing: None gives each example a row. "rows" lays short ones end to end, in as few rows of the
            longest one's length as first-fit decreasing finds; "one row" all of them in one. Packed examples
            do not see each other: their position_ids begin at 0 again, by which transformers knows them where
            there is no attention mask. (Its flash attention knows them in a single row only.)

    Returns:
        input_ids (R, L); attention_mask (R, L), 0 on padding, or when packed position_ids (R, L); targets
        (n,), the tokens to predict, example by example; kept (m,), columns of the logits, those that predict
        any of them and, without packing, all behind; places (n,), where in these (R, m) the predictions
        stand, flattened; stored (n,), the targets' rows among teacher outputs, see `TokenExample.first`.
    """
    lengths = [len(example) for example in examples]
    layout = _layout(lengths, packing)
    width = max(sum(lengths[number] for number in row) for row in layout)
    input_ids = torch.full((len(layout), width), pad)
    positions = torch.zeros_like(input_ids)
    columns, row_of = [torch.empty(0)] * len(examples), [0] * len(examples)
    for row, numbers in enumerate(layout):
        end = 0
        for number in numbers:
            example, start = examples[number], end
            end += lengths[number]
            input_ids[row, start:end] = torch.tensor([*example.prompt, *example.completion])
            positions[row, start:end] = torch.arange(end - start)
            # The logits of column t predict the token of column t + 1.
            columns[number] = torch.arange(start + len(example.prompt) - 1, end - 1)
            row_of[number] = row
        positions[row, end:] = torch.arange(width - end)
    if packing is None:
        # All columns from the first one on, which are a slice of the logits and need no copy.
        first = min(len(example.prompt) for example in examples) - 1
        kept, column = torch.arange(first, width), torch.cat(columns) - first
    else:
        kept, column = torch.cat(columns).unique(return_inverse=True)
    counts = torch.tensor([len(example.completion) for example in examples])
    batch = {
        "input_ids": input_ids,
        "targets": torch.tensor([t for e in examples for t in e.completion], dtype=torch.long),
        "kept": kept,
        "places": torch.tensor(row_of).repeat_interleave(counts) * len(kept) + column,
        "stored": torch.cat([torch.arange(e.first, e.first + len(e.completion)) for e in examples]),
    }
    if packing is None:
        own = torch.tensor(lengths)
        return batch | {"attention_mask": (torch.arange(width) < own[:, None]).long()}
    return batch | {"position_ids": positions}


def _layout(lengths: Sequence[int], packing: Packing | None) -> list[list[int]]:
    """Which examples stand in each row."""
    if packing is None:
        return [[number] for number in range(len(lengths))]
    if packing == "one row":
        return [list(range(len(lengths)))]
    rows, rooms = [], []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        fitting = (row for row, room in enumerate(rooms) if room >= lengths[number])
        row = next(fitting, len(rows))
        if row == len(rows):
            rows.append([])
            rooms.append(max(lengths))
        rows[row].append(number)
        rooms[row] -= lengths[number]
    return rows


def model_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor | bool]:
    """What the forward of a model is given of a batch of `collate`."""
    names = ("input_ids", "attention_mask", "position_ids")
    return {name: batch[name] for name in names if name in batch} | {"use_cache": False}


def kept_columns(batch: dict[str, Tensor]) -> Tensor | int:
    """The columns that predict a token of any row, as `logits_to_keep` of transformers has them: how many of
    the last ones, which is a slice and no copy, where each text has a row; which ones, where rows are packed.
    """
    return len(batch["kept"]) if "attention_mask" in batch else batch["kept"]


def collate_prompts(examples: Sequence[TokenExample], pad: int) -> dict[str, Tensor]:
    """Prompts padded on the left, for generation: input_ids and attention_mask, both (N, longest prompt)."""
    length = max(len(example.prompt) for example in examples)
    input_ids = torch.full((len(examples), length), pad)
    attention_mask = torch.zeros(len(examples), length, dtype=torch.long)
    for row, example in enumerate(examples):
        input_ids[row, length - len(example.prompt):] = torch.tensor(example.prompt)
        attention_mask[row, length - len(example.prompt):] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


class EpochOrder(Sampler[int]):
    """A fresh order of the examples each epoch, which follows from seed, epoch and their number alone.

    So arms of a comparison meet their examples in the same order, and a resumed run goes on in it.

    Args:
        lengths: of the examples, in tokens.
        seed: of the order.
        group: examples that share a step, if they shall be of similar length (which saves padding; the order
            then depends on the lengths too); None mixes all.
    """

    def __init__(self, lengths: Sequence[int], seed: int, group: int | None = None) -> None:
        self._lengths, self._seed, self._group, self._epoch = list(lengths), seed, group, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(substream(self._seed, "order", self._epoch))
        order = torch.randperm(len(self), generator=generator).tolist()
        if self._group is None:
            return iter(order)
        # Sorted among fifty groups only, so that the groups differ from epoch to epoch; transformers'
        # own grouping would also take each fifty from long to short.
        size = 50 * self._group
        pools = (order[start:start + size] for start in range(0, len(order), size))
        order = [row for pool in pools for row in sorted(pool, key=self._lengths.__getitem__)]
        groups = [order[start:start + self._group] for start in range(0, len(order), self._group)]
        rest = groups.pop() if len(groups[-1]) < self._group else []  # must not shift the borders of others
        mixed = torch.randperm(len(groups), generator=generator).tolist()
        return iter([row for number in mixed for row in groups[number]] + rest)


def _parts(example: object) -> tuple[str, str | None, bool]:
    """Statement, completion or None, and whether the completion came to its end."""
    if isinstance(example, str):
        return example, None, True
    if isinstance(example, tuple) and len(example) == 2 and all(isinstance(part, str) for part in example):
        return *example, True
    statement, text = getattr(example, "statement", None), getattr(example, "text", None)
    if isinstance(statement, str) and (text is None or isinstance(text, str)):
        return statement, text, getattr(example, "finished", True)
    raise ValueError(f"examples holds {example!r}; expected a Trace or a pair (statement, completion)")


def _prompts(tokenizer: PreTrainedTokenizerBase, statements: Sequence[str]) -> list[tuple[int, ...]]:
    if not statements:
        raise ValueError("examples is empty; expected at least one")
    if tokenizer.chat_template is None:
        raise ValueError("tokenizer has no chat_template; expected one, or set tokenizer.chat_template")
    turns = [[{"role": "user", "content": statement}] for statement in statements]
    encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    return [tuple(ids) for ids in encoded["input_ids"]]


def _check_thought_opened_once(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], texts: Sequence[str]
) -> None:
    if not tokenizer.decode(prompt).rstrip().endswith("<think>"):
        return
    for number, text in enumerate(texts):
        if text.lstrip().startswith("<think>"):
            raise ValueError(
                f"examples[{number}] has a completion that begins with <think>, which the chat template has "
                f"already written; expected what follows it: drop {text[: text.index('<think>') + 7]!r}"
            )
