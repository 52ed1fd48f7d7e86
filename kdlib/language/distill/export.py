"""Traces as data that TRL's SFTTrainer reads.

Where a run outgrows `distill_language_model`, TRL takes over (sequence parallelism, LoRA, its serving). Of
the forms that SFTTrainer takes (TRL 1.16) two mean the same there, token by token:

- **Token ids with labels** (`form="tokens"`), which are −100 on the prompt: TRL uses them as they are.
- **Prompt and completion as texts** (`form="text"`), which people can read. TRL encodes both as one text.
  That gives other tokens where one spans the border, a second bos where the tokenizer adds one, and an end to
  what was cut off. Examples that would change are refused.

A conversation (`messages`) does not: the chat template of DeepSeek-R1 drops what stands before `</think>`,
and the student would learn bare answers. Nor do token ids with `completion_mask`: without columns named
prompt and completion TRL drops the mask, and the student would learn the prompts too.
"""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from kdlib.language.distill.batches import TokenExample, tokenize
from kdlib.language.models.chat import apply_template
from kdlib.language.traces.file import Trace
from kdlib.storage import replaced

_TRL_LENGTH = 1024  # of SFTConfig(max_length) by default


def export_for_trl(
    traces: Sequence[Trace | tuple[str, str]], tokenizer: PreTrainedTokenizerBase, path: str | os.PathLike,
    *, form: Literal["tokens", "text"] = "tokens",
) -> str:  # fmt: skip
    """Write texts as JSON lines for `trl.SFTTrainer`: the tokens that `distill_language_model` learns from.

    Returned is what was written, and how it is read.

    Args:
        traces: as for `distill_language_model`. Leave out beforehand, by `filter_traces`, what is wrong; for
            a template that opens no thought `with_thought` does, as in `run_pipeline` and both commands.
        tokenizer: the student's, with its chat template.
        path: the file; written whole or not at all, in place of what was there.
        form: "tokens", input_ids and labels; or "text", prompt and completion.

    Raises:
        ValueError: what `tokenize` refuses, or with "text" an example that TRL would encode otherwise.
    """
    if form not in ("tokens", "text"):
        raise ValueError(f'form must be "tokens" or "text"; got {form!r}')
    encoded = tokenize(tokenizer, traces)
    rows = _as_texts(tokenizer, traces, encoded) if form == "text" else map(_as_tokens, encoded)
    with replaced(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    lengths = [len(example) for example in encoded]
    learnt, cut = sum(len(e.completion) for e in encoded), sum(length > _TRL_LENGTH for length in lengths)
    return (
        f"{len(encoded):,} texts of {sum(lengths):,} tokens, {learnt:,} of them to be learnt, "
        f"the longest of {max(lengths):,}: {path}\n"
        f'datasets.load_dataset("json", data_files="{path}", split="train") reads them.\n'
        f"Give SFTConfig max_length=None, or {max(lengths)} with packing: its default, {_TRL_LENGTH:,}, "
        f"would cut {cut:,} of them."
    )


def _as_tokens(example: TokenExample) -> dict[str, list[int]]:
    # -100 is PyTorch's and TRL's label of a token that does not count.
    labels = [-100] * len(example.prompt) + [*example.completion]
    return {"input_ids": [*example.prompt, *example.completion], "labels": labels}


def _as_texts(
    tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace | tuple[str, str]],
    encoded: Sequence[TokenExample],
) -> Iterator[dict[str, str]]:  # fmt: skip
    eos = tokenizer.eos_token
    # Where encoding a text puts one in front, TRL's will do so too.
    added = tokenizer.bos_token if tokenizer("")["input_ids"] == [tokenizer.bos_token_id] else ""
    for number, (trace, example) in enumerate(zip(traces, encoded, strict=True)):
        statement, text = trace if isinstance(trace, tuple) else (trace.statement, trace.text)
        turns = [{"role": "user", "content": statement}]
        prompt = apply_template(tokenizer, turns, tokenize=False)
        prompt = prompt.removeprefix(added)
        completion = text.removesuffix(eos) + eos  # which TRL would add
        expected = [[*example.prompt], [*example.prompt, *example.completion]]
        if tokenizer([prompt, prompt + completion])["input_ids"] != expected:
            raise ValueError(
                f"traces[{number}], which ends with {text[-60:]!r}, has other tokens when TRL encodes "
                "prompt, completion and end-of-text token as one text; use form='tokens', or leave it "
                "out (if it was cut off, it has no end)"
            )
        yield {"prompt": prompt, "completion": completion}
