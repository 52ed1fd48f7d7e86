"""Texts as token ids: what is learned, what is only read, and in which order."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import get_length_grouped_indices

from kdlib.language.models.chat import apply_template, date_in_template
from kdlib.language.problems import Problem, check_text
from kdlib.language.traces.file import Trace
from kdlib.runtime import substream

Packing = Literal["rows", "one row"]


@dataclass(frozen=True, slots=True)
class TokenExample:
    """A prompt and its completion, as token ids."""

    prompt: tuple[int, ...]  # with the template's generation prompt
    completion: tuple[int, ...] = ()  # with the closing end-of-text token
    first: int = 0  # the row of its first completion token in a cache of teacher outputs
    teacher_prompt: tuple[int, ...] | None = None  # what a teacher reads in place of `prompt`

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Problem | Trace | tuple[str, str] | str] | Sequence[TokenExample],
    name: str = "tokenizer",
) -> list[TokenExample]:
    """The statements as user turns, with the template's generation prompt (`<think>\\n` where it has one).

    Of examples that are token ids already the prompts. `name` is that of the argument with the tokenizer.

    Raises:
        ValueError: no examples, one that is none or has an empty prompt, a tokenizer without chat template or
            end-of-text token.
    """
    if isinstance(examples, str | os.PathLike):
        raise ValueError(
            f"examples is {str(examples)!r:.80}; expected traces or problems: load_traces and load_problems "
            "read them from a file"
        )
    if not isinstance(examples, Sequence):
        raise ValueError(f"examples is {examples!r:.60}; expected a list of traces, or of pairs of texts")
    if not examples:
        raise ValueError("examples is empty; expected at least one")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(f"{name} is {tokenizer!r:.60}; expected one, such as load_checkpoint gives")
    if all(isinstance(example, TokenExample) for example in examples):
        prompts = [example.prompt for example in examples]
    else:
        if tokenizer.eos_token is None:
            raise ValueError(f"{name} has no eos_token; expected one, for a completion to end with")
        if tokenizer.chat_template is None:
            raise ValueError(f"{name} has no chat_template; expected one, or set {name}.chat_template")
        turns = [[{"role": "user", "content": read_example(example)[0]}] for example in examples]
        prompts = apply_template(tokenizer, turns, return_dict=True)["input_ids"]
    if empty := [number for number, prompt in enumerate(prompts) if not len(prompt)]:
        raise ValueError(f"examples[{empty[0]}] has no prompt; expected one for its first token to follow")
    return [TokenExample(tuple(prompt)) for prompt in prompts]


def dated(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[object], whose: str = "the"
) -> dict[str, str]:
    """What a run on these examples is bound to beside their tokens: the date in the prompts, if any."""
    return {} if all(isinstance(e, TokenExample) for e in examples) else date_in_template(tokenizer, whose)


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Trace | tuple[str, str]] | Sequence[TokenExample],
    name: str = "tokenizer",
) -> list[TokenExample]:
    """Statements and completions: user turn, generation prompt, completion, end-of-text token.

    Prompt and completion are encoded apart, as they are in generation: a token never spans both. A `Trace`
    that was cut off (`finished` is False) gets no end-of-text token.

    Raises:
        ValueError: as `tokenize_prompts`, or a completion that repeats the prompt's `<think>`.
    """
    asked = tokenize_prompts(tokenizer, examples, name)
    if isinstance(examples[0], TokenExample):
        return _numbered(examples, [example.completion for example in examples])
    opens_thought = tokenizer.decode(asked[0].prompt).rstrip().endswith("<think>")
    texts, ends = [], []
    for number, example in enumerate(examples):
        _, text, finished = read_example(example)
        if text is None:
            raise ValueError(f"examples[{number}] has no completion; expected a Trace or a pair")
        if opens_thought and text.lstrip().startswith("<think>"):
            raise ValueError(
                f"examples[{number}] has a completion that begins with <think>, which the chat template has "
                f"already written; expected what follows it: drop {text[: text.index('<think>') + 7]!r}"
            )
        texts.append(text.removesuffix(tokenizer.eos_token))
        ends.append((tokenizer.eos_token_id,) * finished)
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    completions = [(*ids, *end) for ids, end in zip(encoded, ends, strict=True)]
    return _numbered(asked, completions)


def _numbered(asked: Sequence[TokenExample], completions: Sequence[tuple]) -> list[TokenExample]:
    firsts = accumulate(map(len, completions), initial=0)
    rows = zip(asked, completions, firsts, strict=False)
    return [replace(example, completion=ids, first=first) for example, ids, first in rows]


def tokenize_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> list[TokenExample]:
    """Each answer of the assistant in a conversation as a completion of all that was said before it.

    Raises:
        ValueError: a tokenizer without chat template or end-of-text token.
    """
    if tokenizer.chat_template is None or tokenizer.eos_token is None:
        raise ValueError("tokenizer lacks a chat_template or an eos_token; expected both for a conversation")
    turns = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            asked = apply_template(tokenizer, list(messages[:number]), return_dict=True)["input_ids"]
            said = tokenizer(message["content"], add_special_tokens=False)["input_ids"]
            turns.append(TokenExample(tuple(asked), (*said, tokenizer.eos_token_id)))
    return turns


def read_example(example: object) -> tuple[str, str | None, bool]:
    """Statement, completion or None, and whether the completion came to its end."""
    pair = example
    if not isinstance(example, tuple):
        pair = getattr(example, "statement", example), getattr(example, "text", None)
    match pair:
        case (str(statement), str() | None as text):
            check_text("a statement of examples", statement)
            check_text("a completion of examples", text or "")
            return statement, text, getattr(example, "finished", True)
    raise ValueError(f"examples holds {example!r}; expected a Trace or a pair (statement, completion)")


def collate(
    examples: Sequence[TokenExample], pad: int, packing: Packing | None = None
) -> dict[str, Tensor]:
    """One batch of R rows of L tokens, padded on the right; what counts follows from the lengths alone.

    Args:
        packing: None gives each example a row. "rows" lays short ones end to end, in as few rows of the
            longest one's length as first-fit decreasing finds; "one row" all of them in one. Packed examples
            do not see each other: their position_ids begin at 0 again, by which transformers knows them where
            there is no attention mask (its flash attention in a single row only).

    Returns:
        input_ids (R, L); attention_mask (R, L), 0 on padding, or when packed position_ids (R, L); targets
        (n,), the completion tokens, example by example; kept (m,), the columns of the logits that predict any
        of them (without packing, all from the first on); places (n,), where in these (R, m) the predictions
        stand, flattened; stored (n,), the targets' rows in a cache of teacher outputs. Where the examples
        have prompts for a teacher, teacher: a batch of these before the same completions, in the same order.
    """
    lengths = [len(example) for example in examples]
    rows = _rows(lengths, packing)
    width = max(sum(lengths[number] for number in row) for row in rows)
    input_ids = torch.full((len(rows), width), pad)
    position_ids = torch.arange(width).repeat(len(rows), 1)
    predicting = [torch.empty(0)] * len(examples)  # flattened positions in (R, L)
    for place, row in enumerate(rows):
        end = 0
        for number in row:
            example, start, end = examples[number], end, end + lengths[number]
            input_ids[place, start:end] = torch.tensor(example.prompt + example.completion)
            position_ids[place, end:] = torch.arange(width - end)
            # The logits of column t predict the token of column t + 1.
            predicting[number] = place * width + torch.arange(start + len(example.prompt) - 1, end - 1)
    flat = torch.cat(predicting)
    row, column = flat // width, flat % width
    if packing is None:
        # All columns from the first one on, which are a slice of the logits and need no copy.
        first = min(len(example.prompt) for example in examples) - 1
        kept, column = torch.arange(first, width), column - first
        attends = {"attention_mask": (torch.arange(width) < torch.tensor(lengths)[:, None]).long()}
    else:
        kept, column = column.unique(return_inverse=True)
        attends = {"position_ids": position_ids}
    if examples[0].teacher_prompt is not None:
        others = [replace(e, prompt=e.teacher_prompt, teacher_prompt=None) for e in examples]
        attends["teacher"] = collate(others, pad, packing)
    return attends | {
        "input_ids": input_ids,
        "targets": torch.tensor([t for e in examples for t in e.completion], dtype=torch.long),
        "kept": kept,
        "places": row * len(kept) + column,
        "stored": torch.cat([torch.arange(e.first, e.first + len(e.completion)) for e in examples]),
    }


def _rows(lengths: Sequence[int], packing: Packing | None) -> list[list[int]]:
    """The numbers of the examples that stand in each row."""
    if packing is None:
        return [[number] for number in range(len(lengths))]
    if packing == "one row":
        return [list(range(len(lengths)))]
    rows: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        free = max(lengths) - lengths[number]
        row = next((row for row in rows if sum(lengths[other] for other in row) <= free), None)
        if row is None:
            rows.append(row := [])
        row.append(number)
    return rows


def forward_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor | int | bool]:
    """The arguments of a model's forward for a batch of `collate`; its logits are those of columns `kept`."""
    attends = "attention_mask" if "attention_mask" in batch else "position_ids"
    # As a number of last columns they are a slice of the hidden states and no copy.
    kept = len(batch["kept"]) if attends == "attention_mask" else batch["kept"]
    inputs = {name: batch[name] for name in ("input_ids", attends)}
    return inputs | {"logits_to_keep": kept, "use_cache": False}


@dataclass(eq=False)
class EpochOrder(Sampler[int]):
    """A fresh order of the examples each epoch, which follows from seed, epoch and their number alone.

    So arms of a comparison meet their examples in the same order, and a resumed run goes on in it.
    """

    lengths: Sequence[int]  # of the examples, in tokens
    seed: int
    group: int | None = None  # number of examples in a step, if these are to be of similar length
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(substream(self.seed, "order", self.epoch))
        if self.group is None:
            return iter(torch.randperm(len(self), generator=generator).tolist())
        return iter(get_length_grouped_indices(self.lengths, self.group, generator=generator))
