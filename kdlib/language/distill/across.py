"""A teacher with another tokenizer: it reads the same texts in its own tokens, by its own chat template.

It is compared with the student where both have read the same, which is where the groups of
`kdlib.language.distill.alignment` begin, and the end of a text: "aligned" by `aligned_loss`, "uld" by
`uld_loss` (whose paper compares the i-th tokens, wherever they stand). The soft term is the sum over these
places by the number of the student's tokens. The hard term is divided by the same, so that α weighs nats of
the same texts, and with the same tokens on both sides a run is the ordinary one.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from types import SimpleNamespace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.cache.tokens import CachedTokens
from kdlib.language.distill.alignment import groups_of, share_classes
from kdlib.language.distill.batches import TokenExample, collate, read_example, tokenize
from kdlib.language.distill.forward import move, predictions
from kdlib.language.distill.fsdp import sharding
from kdlib.language.models.positions import check_positions
from kdlib.language.models.token_bytes import TokenBytes
from kdlib.language.models.vocabulary import check_same_tokens
from kdlib.losses.cross_tokenizer import Tokens, aligned_loss, uld_loss
from kdlib.losses.divergences import LossSettings
from kdlib.storage import fingerprint

Across = Literal["aligned", "uld"]


def across_teacher(
    across: Across | None, teacher: PreTrainedModel | CachedTokens | None, tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None, examples: Sequence[object], *, divergence: str | None,
    **unfit: object,
) -> "PreTrainedModel | CachedTokens | AcrossTeacher | None":  # fmt: skip
    """The teacher of `distill_language_model`, unchanged or as `across_tokenizers` wants it.

    Args:
        unfit: arguments that do not go with it: each must be None, False or 0.
    """
    if across is None:
        return teacher
    if across not in get_args(Across):
        raise ValueError(f'across_tokenizers must be None, "aligned" or "uld"; got {across!r}')
    if not isinstance(teacher, PreTrainedModel):
        raise ValueError(
            f"across_tokenizers={across!r} needs a model as teacher, which reads its own tokens; got "
            f"{teacher!r:.60}"
        )
    if not isinstance(teacher_tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"across_tokenizers={across!r} needs teacher_tokenizer, by which the teacher reads the texts; "
            f"got {teacher_tokenizer!r:.60}. Leave across_tokenizers out where both have the same"
        )
    if wrong := [f"{name}={value!r}" for name, value in unfit.items() if value]:
        raise ValueError(
            f"across_tokenizers={across!r} with {', '.join(wrong)}; expected completions that the examples "
            "have, behind each model's own prompt, and all logits of both, held at once: leave the other out"
        )
    if across == "uld" and divergence is not None:
        raise ValueError(f'divergence={divergence!r} with across_tokenizers="uld", a distance itself')
    if sharding():
        raise ValueError(f"across_tokenizers={across!r} under FSDP2; expected one process, or ddp")
    return AcrossTeacher(teacher, across, tokenizer, teacher_tokenizer, examples)


class _Pair(NamedTuple):
    """A text in the teacher's tokens, and for each token of the completion its group, on both sides."""

    example: TokenExample
    groups: Tensor  # (student's tokens)
    teacher_groups: Tensor  # (teacher's tokens)


class Grouped(NamedTuple):
    """What a teacher with other tokens says of a batch, and how the student's targets are grouped."""

    across: Across
    teacher: Tokens
    groups: Tensor  # (n) the group of each of the student's targets
    firsts: Tensor  # (G) where in the n each group begins
    classes: Tensor  # (V) of the student's tokens
    count: int  # of classes

    def loss(self, logits: Tensor, targets: Tensor, settings: LossSettings) -> Tensor:
        """The sum over groups, from the student's (n, V) logits that predict its n targets."""
        if self.across == "uld":
            return uld_loss(
                logits[self.firsts], self.teacher.logits[self.teacher.firsts],
                temperature=settings.temperature, reduction="sum",
            )  # fmt: skip
        student = Tokens(logits, targets, self.groups, self.firsts, self.classes)
        return aligned_loss(
            student, self.teacher, self.count, temperature=settings.temperature,
            divergence=settings.divergence, beta=settings.beta, reduction="sum",
        )  # fmt: skip


class AcrossTeacher:
    """For a batch of `collate` a teacher's logits of the same completions in its own tokens, in groups.

    Args:
        teacher: its model, which runs at each step in eval mode without gradients.
        across: "aligned" or "uld".
        tokenizer, teacher_tokenizer: the student's and the teacher's.
        examples: as `distill_language_model` takes them; texts.

    Raises:
        ValueError: a text that either tokenizer changes (see `TokenBytes.ends`), an example without text,
            a teacher with fewer logits than tokens, or with fewer positions than its tokens of a text.
    """

    def __init__(
        self, teacher: PreTrainedModel, across: Across, tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase, examples: Sequence[object],
    ) -> None:  # fmt: skip
        self.model, self.across = teacher, across
        check_same_tokens(teacher_tokenizer, None, teacher=teacher)
        encoded = tokenize(tokenizer, examples)
        if any(isinstance(example, TokenExample) for example in examples):
            raise ValueError("examples are token ids; expected texts, which another tokenizer can read")
        texts = []
        for statement, text, finished in map(read_example, examples):
            text = text.removesuffix(tokenizer.eos_token)
            texts.append(SimpleNamespace(statement=statement, text=text, finished=finished))
        read = tokenize(teacher_tokenizer, texts, "teacher_tokenizer")
        check_positions("examples", [*map(len, read)], {"teacher": teacher})
        self._sides = TokenBytes(tokenizer), TokenBytes(teacher_tokenizer)
        self._pairs = [self._pair(*row) for row in zip(texts, encoded, read, strict=True)]
        self._starts = torch.tensor([example.first for example in encoded])
        pad = teacher_tokenizer.pad_token_id
        self._pad = teacher_tokenizer.eos_token_id if pad is None else pad

    def _pair(self, given: SimpleNamespace, *encoded: TokenExample) -> _Pair:
        if not all(example.completion for example in encoded):
            raise ValueError("examples holds a completion without text and end; leave it out")
        # The end of both stands behind the same text: a group of its own.
        completions = [example.completion[: len(example.completion) - given.finished] for example in encoded]
        ends = [side.ends(ids, given.text) for side, ids in zip(self._sides, completions, strict=True)]
        groups = groups_of(*ends)
        numbers = (
            [number for number, places in enumerate(side) for _ in places] + [len(groups)] * given.finished
            for side in ([group.student for group in groups], [group.teacher for group in groups])
        )
        return _Pair(encoded[1], *map(torch.tensor, numbers))

    @cached_property
    def fingerprint(self) -> str:
        """Of the model, and of what it reads."""
        return fingerprint(self.model, [[p.example.prompt, p.example.completion] for p in self._pairs])

    @cached_property
    def _classes(self) -> tuple[Tensor, Tensor, int]:
        found = share_classes(*self._sides)
        device = self.model.device
        student, teacher = (torch.tensor(side, device=device) for side in (found.student, found.teacher))
        return student, teacher, found.count

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor]) -> Grouped:
        device, stored = batch["stored"].device, batch["stored"].cpu()
        move(self.model.eval(), device)  # where it is from the second step on
        # The rows that a cache would have of the batch's targets tell which examples these are.
        numbers = torch.searchsorted(self._starts, stored[torch.isin(stored, self._starts)])
        pairs = [self._pairs[number] for number in numbers]
        own = {name: part.to(device) for name, part in collate([p.example for p in pairs], self._pad).items()}
        classes, teacher_classes, count = self._classes
        logits = predictions(self.model, own)[:, : len(teacher_classes)]
        groups, firsts = _of_a_batch([pair.groups for pair in pairs], device)
        sides = _of_a_batch([pair.teacher_groups for pair in pairs], device)
        teacher = Tokens(logits, own["targets"], *sides, teacher_classes)
        return Grouped(self.across, teacher, groups, firsts, classes, count)


def _of_a_batch(parts: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """The groups of several texts numbered on, and where each begins."""
    before = accumulate((int(part[-1]) + 1 for part in parts[:-1]), initial=0)
    groups = torch.cat([part + number for part, number in zip(parts, before, strict=True)])
    firsts = groups.diff(prepend=groups.new_full((1,), -1)).nonzero().flatten()
    return groups.to(device), firsts.to(device)
