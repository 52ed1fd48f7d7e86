"""How well a language model predicts texts, and how near it comes to its teacher, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.arguments import check_counts
from kdlib.language.distill.batches import TokenExample, collate, tokenize
from kdlib.language.distill.forward import predictions
from kdlib.language.models.positions import check_positions
from kdlib.language.models.vocabulary import check_same_tokens
from kdlib.language.traces.file import Trace
from kdlib.losses.divergences import RULED_OUT, kl_divergence
from kdlib.runtime import eval_mode

__all__ = ["TextScores", "score_texts"]

_ROWS = 512  # whose probabilities are looked at together: with 151,665 tokens 310 MB in float32


@dataclass(frozen=True)
class TextScores:
    """Means over the learned tokens of n texts, 0 where a text has none; print it.

    Attributes:
        tokens: how many of each text count, (n) int64.
        nll: mean negative log-likelihood of each text's tokens in nats, (n) float64.
        kl: mean KL(teacher‖student) of each text at T = 1 in nats, (n); None without a teacher.
        agreement: share of each text's positions where both find the same token likeliest (Stanton et al.
            2021, arXiv 2106.05945, §3), (n); None without a teacher.
    """

    tokens: Tensor
    nll: Tensor
    kl: Tensor | None = None
    agreement: Tensor | None = None

    def mean(self, name: str) -> float:
        """Of "nll", "kl" or "agreement", over all tokens."""
        return float((getattr(self, name) * self.tokens).sum() / self.tokens.sum())

    def by_text(self, name: str) -> list[float]:
        """What each text adds: its mean, weighted by its tokens, so that their mean is `mean(name)`."""
        weights = self.tokens / self.tokens.double().mean()
        return [round(x, 5) for x in (getattr(self, name) * weights).tolist()]

    def __str__(self) -> str:
        text = f"NLL {self.mean('nll'):.3f} nats a token"
        if self.kl is not None:
            text += (
                f", KL to the teacher {self.mean('kl'):.3f} nats, the same likeliest token in "
                f"{self.mean('agreement'):.1%}"
            )
        return f"{text} ({self.tokens.sum():,} tokens of {len(self.tokens):,} texts held back)"


@torch.no_grad()
def score_texts(
    student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Trace | tuple[str, str]] | Sequence[TokenExample], *,
    teacher: PreTrainedModel | None = None, teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    batch_tokens: int = 2048, progress: bool = False,
) -> TextScores:  # fmt: skip
    """Score a model on completions, each token given all before it; with a teacher, against its distribution.

    Args:
        student, tokenizer, examples, teacher, teacher_tokenizer: as for `distill_language_model`; both models
            on one device, in eval mode while they are scored. Logits beyond the tokens do not count. Behind a
            `TokenExample.teacher_prompt` the teacher reads that, and may be the same model.
        batch_tokens: of one forward pass, padding included; a longer text goes alone.

    Raises:
        ValueError: no examples, vocabularies that differ, or a text longer than a model's positions.
    """
    models = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    check_counts(batch_tokens=batch_tokens)
    encoded = tokenize(tokenizer, examples)
    width = check_same_tokens(tokenizer, teacher_tokenizer, **models)
    check_positions("examples", [*map(len, encoded)], models)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    found: dict[int, Tensor] = {}
    left = sorted(range(len(encoded)), key=lambda number: -len(encoded[number]))
    with (
        eval_mode(student), eval_mode(teacher if teacher is not None else student),
        tqdm(desc="scored", total=len(left), disable=not progress, leave=False) as bar,
    ):  # fmt: skip
        while left:
            count = max(1, batch_tokens // len(encoded[left[0]]))  # all are padded to the first
            numbers, left = left[:count], left[count:]
            batch = collate([encoded[number] for number in numbers], pad)
            batch = send_to_device(batch, student.device)
            figures = _of_tokens(student, teacher, batch, width)
            lengths = [len(encoded[number].completion) for number in numbers]
            for number, part in zip(numbers, figures.split(lengths, dim=1), strict=True):
                found[number] = part.sum(dim=1) / max(1, part.shape[1])
            bar.update(len(numbers))
    table = torch.stack([found[number] for number in range(len(encoded))], dim=1)
    return TextScores(torch.tensor([len(e.completion) for e in encoded]), *table)


def _of_tokens(
    student: PreTrainedModel, teacher: PreTrainedModel | None, batch: dict[str, Tensor], width: int
) -> Tensor:
    """(1, n) float64 NLL of the n targets of a batch; with a teacher (3, n): and KL, and agreement."""
    logits = predictions(student, batch)[:, :width]
    teachers = None if teacher is None else predictions(teacher, batch.get("teacher", batch))[:, :width]
    columns = []
    for start in range(0, len(logits), _ROWS):
        rows = slice(start, start + _ROWS)
        log_q = logits[rows].float().log_softmax(-1).clamp(min=RULED_OUT)
        figures = [-log_q.gather(-1, batch["targets"][rows].unsqueeze(-1)).squeeze(-1)]
        if teachers is not None:
            log_p = teachers[rows].float().log_softmax(-1).clamp(min=RULED_OUT)
            figures += [kl_divergence(log_p, log_q), (log_p.argmax(-1) == log_q.argmax(-1)).float()]
        columns.append(torch.stack(figures).double().cpu())
    return torch.cat(columns, dim=1)
