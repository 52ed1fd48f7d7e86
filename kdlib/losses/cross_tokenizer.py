"""The distillation loss between models whose tokens differ.

Two definitions. With the same tokens on both sides the second is `soft_target_loss`; the first is not.

**Universal logit distillation** (ULD; Boizard et al. 2024, arXiv 2402.12030, §3). Position by position the
probabilities of both models, each sorted, the shorter list padded with zeros:

    ULD = Σ_i |p_(i) − q_(i)|

This is the Wasserstein distance between the two distributions where it costs as much to move mass from any
token to any other, and where one may choose which token corresponds to which (least over all ways to pair
them: sorting pairs best). It compares how sure the models are, and not of what.

**Aligned.** Where both models have read the same text (`kdlib.language.distill.alignment`) they are compared
on events that both know: "the text goes on with a piece of class c", and, where a side writes the text up to
the next such place in several tokens, "it goes on with exactly this text":

    P(text) = Π p(token | tokens before it),   P(c) = Σ p(token) over the tokens of class c, less P(text)
                                                                     where the text begins with one of them
    loss = T² · D(P, Q)

all at temperature T. The events exclude each other and add up to 1 on either side. The product is how
likelihoods of pieces are compared by Minixhofer et al. 2025 (ALM, arXiv 2503.20083, §3), against its
complement alone; classes of tokens are a projection of one vocabulary on another, as in X-Token (Sreenivas et
al. 2026, arXiv 2605.21699). TRL 1.16's GOLD multiplies a whole distribution by the probabilities of the other
tokens of a group; of its entries only the one for the text itself is a probability of anything
(https://github.com/huggingface/trl/issues/5152).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.losses import checks
from kdlib.losses.divergences import (
    RULED_OUT,
    Divergence,
    LossSettings,
    Reduction,
    full_precision,
    reduce,
    softened_divergence,
)

_SMALLEST = 1e-7  # how near a probability may come to 1 before log(1 − it) is taken of this instead


class Tokens(NamedTuple):
    """One side of `aligned_loss`: n tokens in groups, and the logits that predict each."""

    logits: Tensor  # (n, V)
    targets: Tensor  # (n) int64, the tokens
    groups: Tensor  # (n) int64, the group of each, from 0 on without a gap, in order; G or more: in none
    firsts: Tensor  # (G) int64, where in the n the first token of each group stands
    classes: Tensor  # (V) int64, the class of each token of the vocabulary


def uld_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """How far the sorted probabilities of both models are apart in all, for vocabularies of any size.

    Without the factor T²: as in the paper. Its weight there is 1.5 beside a cross-entropy of weight 1.

    Args:
        student_logits: (..., V). teacher_logits: (..., W), without gradient. −inf gives probability 0.
        temperature: T > 0 of both.
        mask: (...) bool, True where a position counts; None counts all.
        reduction: "mean" over counted positions, "sum", or "none".

    Returns:
        A scalar between 0 and 2, or (...) for "none". Zero, with zero gradient, if nothing counts.

    Raises:
        ValueError: naming the argument, its value and what was expected.

    Source: Boizard et al. 2024 (arXiv 2402.12030), §3.
    """
    checks.check_settings(LossSettings(temperature, 0.0, "forward", 0.5), reduction)
    checks.check_same_positions(student_logits, teacher_logits)
    checks.check_mask(mask, student_logits)
    width = max(student_logits.shape[-1], teacher_logits.shape[-1])
    sides = []
    for logits in (student_logits, teacher_logits.detach()):
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(-1), 0.0)  # NaN there cannot matter
        probabilities = torch.softmax(full_precision(logits) / temperature, dim=-1)
        ranked = probabilities.sort(dim=-1, descending=True).values
        sides.append(F.pad(ranked, (0, width - ranked.shape[-1])))
    return reduce((sides[0] - sides[1]).abs().sum(dim=-1), mask, reduction)


def aligned_loss(
    student: Tokens, teacher: Tokens, classes: int, *, temperature: float = 1.0,
    divergence: Divergence = "forward", beta: float = 0.5, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """T² · D between what teacher and student expect where a group begins: of the classes and of its text.

    Args:
        student, teacher: the tokens of the same texts, in the same G groups; the teacher gets no gradient.
            Two numbers of tokens, two vocabularies, each with its own classes from 0 to `classes` − 1.
        temperature, divergence, beta: see `soft_target_loss`.
        reduction: "mean" over groups, "sum", or "none".

    Returns:
        A scalar in nats times T², or (G) for "none". With the same tokens, each in a group and a class of its
        own, that of `soft_target_loss`. An event that either side rules out is left out of both, as there.

    Raises:
        ValueError: naming the argument, its value and what was expected.
    """
    checks.check_settings(LossSettings(temperature, 0.0, divergence, beta), reduction)
    checks.check_aligned(student, teacher, classes)
    counts = [torch.bincount(side.groups, minlength=len(side.firsts))[: len(side.firsts)]
              for side in (student, teacher)]  # fmt: skip
    several = (counts[0] + counts[1]) > 2
    log_q = _log_events(student, counts[0], several, classes, temperature)
    with torch.no_grad():
        log_p = _log_events(teacher, counts[1], several, classes, temperature)
    settings = LossSettings(1.0, 0.0, divergence, beta)
    return reduce(temperature**2 * softened_divergence(log_q, log_p, settings, None), None, reduction)


def _log_events(side: Tokens, counts: Tensor, several: Tensor, classes: int, temperature: float) -> Tensor:
    """(G, classes + 1) logarithms of the events' probabilities at T; −1e30 for what cannot happen."""
    logits, size = full_precision(side.logits), len(side.firsts)
    gone = logits <= RULED_OUT
    softened = (logits / temperature).masked_fill(gone, RULED_OUT)
    log_all = torch.log_softmax(softened, dim=-1).masked_fill(gone, RULED_OUT)
    log_own = log_all.gather(-1, side.targets.unsqueeze(-1)).squeeze(-1)
    first = log_own[side.firsts]
    # Of the tokens behind the first, given all before them; those in no group fall into the last bucket.
    sums = log_own.new_zeros(size + 1).index_add(0, side.groups.clamp(max=size), log_own)
    later = torch.where(counts > 1, sums[:size] - first, 0.0)
    text = (first + later).masked_fill(~several, RULED_OUT)
    # The first token, going on otherwise: 1 − Π; without later ones the text is all there is of it.
    otherwise = torch.log(-torch.expm1(later.clamp(max=-_SMALLEST))).masked_fill(counts == 1, RULED_OUT)
    first = torch.where(several, first + otherwise, first)
    begins = log_all[side.firsts].scatter(-1, side.targets[side.firsts].unsqueeze(-1), first.unsqueeze(-1))
    return torch.cat([_merged(begins, side.classes, classes), text.unsqueeze(-1)], dim=-1)


def _merged(logits: Tensor, classes: Tensor, count: int) -> Tensor:
    """(G, V) -> (G, count): the log-sum-exp over the entries of each class, −1e30 where it has none."""
    index = classes.expand_as(logits)
    highest = logits.new_full((len(logits), count), RULED_OUT)
    highest = highest.scatter_reduce(-1, index, logits.detach(), "amax")
    masses = torch.zeros_like(highest).scatter_add(-1, index, (logits - highest.gather(-1, index)).exp())
    return masses.masked_fill(highest <= RULED_OUT, 1.0).log() + highest
