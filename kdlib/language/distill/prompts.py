"""Whether a teacher is asked in its own words: the prompt of its chat template, or the student's.

Behind a prompt that it was not trained with a teacher says other things, and the student learns these. In a
public run, a base model's prompt "User: … Assistant:" before a chat model as teacher, its log-probabilities
were off by 0.287 nats a token: https://github.com/thinking-machines-lab/tinker-cookbook/pull/797
"""

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.arguments import refuse
from kdlib.cache.tokens import CachedTokens
from kdlib.language.distill.batches import TokenExample, dated, tokenize, tokenize_prompts
from kdlib.language.distill.forward import move
from kdlib.language.distill.fsdp import sharding
from kdlib.language.distill.scores import score_texts
from kdlib.language.distill.writing import write_completions
from kdlib.language.models.positions import positions_of
from kdlib.language.models.vocabulary import check_same_tokens
from kdlib.storage import fingerprint

TeacherPrompt = Literal["own", "student"]

_PROMPTS = "teacher_prompts"  # in the manifest of a cache behind its teacher's own
_SAMPLE, _WRITTEN = 32, 64  # examples to measure on, and tokens that the student writes where they have none
_SHOWN = 12  # tokens of each prompt, from a little before the first that differs


@dataclass(frozen=True)
class OtherPrompts:
    """Examples of which the teacher's chat template makes another prompt than the student's; print it."""

    examples: Sequence[TokenExample]  # these, with both prompts
    count: int  # of all examples
    tokenizer: PreTrainedTokenizerBase

    def __str__(self) -> str:
        ours, theirs = self.examples[0].prompt, self.examples[0].teacher_prompt
        pairs = enumerate(zip(ours, theirs, strict=False))
        place = next((n for n, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
        start = max(0, place - 4)
        shown = [self.tokenizer.decode(ids[start : start + _SHOWN]) for ids in (theirs, ours)]
        return (
            f"teacher_tokenizer's chat template makes another prompt of {len(self.examples):,} of "
            f"{self.count:,} examples: from token {start} on it has {shown[0]!r} in the first of them, "
            f"tokenizer's has {shown[1]!r}"
        )

    def nats(
        self, teacher: PreTrainedModel, student: PreTrainedModel | None, max_new_tokens: int
    ) -> float | None:
        """KL(teacher behind its own prompt ‖ teacher behind the student's), in nats a token of a sample.

        It is taken on the completions of the examples; where they have none, on such as the student writes.
        None where there is neither, or no text fits the teacher's positions behind both prompts.
        """
        told = [example for example in self.examples if example.completion]
        sample = told or self.examples
        sample = sample[:: max(1, len(sample) // _SAMPLE)][:_SAMPLE]
        if not told and student is not None:
            end = self.tokenizer.eos_token_id
            sample = write_completions(
                student, sample, max_new_tokens=min(_WRITTEN, max_new_tokens), temperature=1.0, ends=[end],
                pad=end, seed=0, width=check_same_tokens(self.tokenizer, None),
            )  # fmt: skip
        room = positions_of(teacher) or math.inf
        longest = [max(len(e.prompt), len(e.teacher_prompt)) + len(e.completion) for e in sample]
        sample = [e for e, length in zip(sample, longest, strict=True) if e.completion and length <= room]
        return score_texts(teacher, self.tokenizer, sample, teacher=teacher).mean("kl") if sample else None

    def tell(
        self, teacher: PreTrainedModel | CachedTokens | None, device: torch.device | None = None,
        student: PreTrainedModel | None = None, max_new_tokens: int = _WRITTEN, *,
        on_policy: bool | float = False,
    ) -> None:  # fmt: skip
        """Warn, once for all processes, of what the student's prompt does to the teacher.

        Where the examples have no completions the student writes some, of at most max_new_tokens.

        Raises:
            ValueError: the same, on-policy.
        """
        told = str(self)
        if isinstance(teacher, PreTrainedModel) and not sharding():
            for model in filter(None, (teacher, student)):
                move(model, device)
            if (nats := self.nats(teacher, student, max_new_tokens)) is not None:
                told += (
                    f". Behind the student's prompt the teacher is {nats:.3f} nats a token (KL) away from "
                    "what it says behind its own"
                )
        if isinstance(teacher, CachedTokens):
            told += (
                f". What {teacher.folder} holds it said behind the student's; a cache made with "
                'teacher_prompt="own" holds what it says behind its own'
            )
        else:
            told += '. With teacher_prompt="own" it reads its own before the same completions'
        told += '; with teacher_prompt="student" it reads the student\'s, and nothing is said'
        if on_policy:
            raise ValueError(f"on-policy both must read the same prompt, but {told}")
        if os.environ.get("RANK", "0") == "0":
            warnings.warn(told, stacklevel=3)


def teacher_prompts(
    chosen: TeacherPrompt | None, teacher: PreTrainedModel | CachedTokens | str | None,
    teacher_tokenizer: PreTrainedTokenizerBase | None, tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[object], encoded: list[TokenExample],
) -> tuple[list[TokenExample], OtherPrompts | None]:  # fmt: skip
    """The examples as the teacher is to read them, and where its template makes other prompts of them.

    Args:
        chosen: None where nobody has said which prompts the teacher reads; then it reads the student's.
        teacher: a model, its name on a server, or a cache, which keeps the prompts that were read for it.
        encoded: of the examples, with the student's prompts.

    Raises:
        ValueError: "own" prompts that nothing can make, or that open a thought which the completion opens
            again; a cache of another choice, or behind other prompts of the teacher's own.
    """
    if chosen not in (None, *get_args(TeacherPrompt)):
        refuse("teacher_prompt", chosen, 'None, "own" or "student"')
    own, given = chosen == "own", isinstance(examples[0], TokenExample)
    template = getattr(teacher_tokenizer, "chat_template", None)
    if chosen == "student":
        encoded = [replace(example, teacher_prompt=None) for example in encoded]
    if isinstance(teacher, CachedTokens) and (own or _PROMPTS in teacher.manifest):
        if chosen == "student" or _PROMPTS not in teacher.manifest:
            made = "own" if _PROMPTS in teacher.manifest else "student"
            raise ValueError(
                f'teacher_prompt="{chosen}" with a cache in {teacher.folder} of what the teacher said behind '
                f'prompts of "{made}"; make it with the same teacher_prompt'
            )
        if not given and template is not None:
            own_prompts = [e.prompt for e in tokenize_prompts(teacher_tokenizer, examples)]
            teacher.require(**_binding(own_prompts, teacher_tokenizer, examples))
        return encoded, None
    if own and (given or teacher_tokenizer is None or not isinstance(teacher, PreTrainedModel | str)):
        raise ValueError(
            'teacher_prompt="own" needs a model as teacher, and texts of which the chat template of '
            "teacher_tokenizer makes its prompts"
        )
    read = isinstance(teacher, PreTrainedModel | CachedTokens | str) and not given
    if chosen == "student" or not read or (template is None and not own):
        return encoded, None
    encode = tokenize if own and encoded[0].completion else tokenize_prompts
    made = encode(teacher_tokenizer, examples, "teacher_tokenizer")
    asked = [replace(e, teacher_prompt=o.prompt) for e, o in zip(encoded, made, strict=True)]
    other = [example for example in asked if example.teacher_prompt != example.prompt]
    if not other or not own:
        return encoded, OtherPrompts(other, len(asked), tokenizer) if other else None
    return asked, None


def as_read(
    chosen: TeacherPrompt | None, asked: list[TokenExample],
    teacher_tokenizer: PreTrainedTokenizerBase | None, examples: Sequence[object],
) -> tuple[list[TokenExample], dict[str, str]]:  # fmt: skip
    """What a teacher whose outputs are stored reads, from `teacher_prompts`; and what binds a cache to it."""
    if chosen != "own" and all(example.teacher_prompt is None for example in asked):
        return asked, {}
    own = [example.prompt if example.teacher_prompt is None else example.teacher_prompt for example in asked]
    read = [replace(e, prompt=prompt, teacher_prompt=None) for e, prompt in zip(asked, own, strict=True)]
    return read, _binding(own, teacher_tokenizer, examples)


def _binding(
    prompts: Sequence[tuple[int, ...]], tokenizer: PreTrainedTokenizerBase | None, examples: Sequence[object]
) -> dict[str, str]:
    """Entries of the manifest of a cache that a teacher made behind prompts of its own."""
    return {_PROMPTS: fingerprint(prompts)} | dated(tokenizer, examples, "teacher_tokenizer's")
