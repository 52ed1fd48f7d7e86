"""How far a student's softened probabilities q are from its teacher's p: what every loss here is made of.

Plain formulas, which autograd differentiates; m = β·p + (1 − β)·q.

    forward   KL(p‖q) = Σ p_i · (log p_i − log q_i)
    reverse   KL(q‖p)
    JSD_β     β · KL(p‖m) + (1 − β) · KL(q‖m)                    Agarwal et al. 2024 (GKD), §2

**JSD** is bounded by the entropy of (β, 1 − β), at most log 2. JSD_β / β → KL(p‖q) as β → 0 and
JSD_β / (1 − β) → KL(q‖p) as β → 1 (Huszár 2015, arXiv 1511.05101), while JSD itself is 0 at both ends.
TRL's `generalized_jsd_loss` is JSD without the factor T², and the two KL divergences at β = 0 and 1.

**Rounding.** In float32 log p and log q carry an error near 1e-7 each, whatever T is, while KL itself
shrinks like 1/T². The error of the textbook sum, times T², therefore grows like T²: at T = 10,000 it is as
large as the loss (notebook 02). `kl_divergence` adds Σ (q_i − p_i), which is zero, to make each summand a
small non-negative number. The rounding common to a row then enters squared, and the rest grows like T only:
with ten classes the largest relative error at T = 10,000 is below 0.001.
"""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Divergence = Literal["forward", "reverse", "jsd"]
Reduction = Literal["mean", "sum", "none"]
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)


class LossSettings(NamedTuple):
    """What `kdlib.losses.kd.kd_loss` is asked for: α · CE + (1 − α) · T² · D."""

    temperature: float
    alpha: float
    divergence: Divergence
    beta: float


# Stands for a logit of −inf: softmax still gives exactly 0, but differences stay finite. The lowest number of
# float32 or bfloat16, which some masks use, lies below it too.
RULED_OUT = -1e30


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) in nats over the last axis, accurate also where p and q nearly agree.

    Args:
        log_p, log_q: (..., C) normalised log-probabilities, finite (−1e30 for an impossible class).

    Returns:
        (...) divergences. Never below zero by more than rounding.
    """
    p, ratio = log_p.exp(), log_p - log_q
    # Σ (q − p) = 0, so adding it changes nothing but the rounding; expm1 keeps it exact for q near p.
    near = p * torch.expm1(-ratio.clamp(-1, 1))
    surplus = torch.where(ratio.abs() < 1, near, log_q.exp() - p)
    return (p * ratio + surplus).sum(dim=-1)


def jensen_shannon_divergence(log_p: Tensor, log_q: Tensor, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence in nats over the last axis; β = 0.5 is the symmetric one.

    Args:
        log_p, log_q: (..., C) normalised log-probabilities, as in `kl_divergence`.
        beta: weight of p in the mixture, strictly between 0 and 1.

    Returns:
        (...) divergences, at most the entropy of (β, 1 − β).

    Source: Agarwal et al. 2024, "On-Policy Distillation of Language Models" (arXiv 2306.13649), §2.
    """
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * kl_divergence(log_p, log_m) + (1 - beta) * kl_divergence(log_q, log_m)


def softened_divergence(
    student_logits: Tensor, teacher_logits: Tensor, settings: LossSettings, mask: Tensor | None
) -> Tensor:
    """(...) divergences at T, without the factor T², of logits (..., C) of which any may be ruled out."""
    temperature, _, divergence, beta = settings
    student, teacher = full_precision(student_logits), full_precision(teacher_logits.detach())
    # Before dividing: −1e30 / T would not count as ruled out any more.
    ruled_out = (student <= RULED_OUT) | (teacher <= RULED_OUT)
    if mask is not None:
        ruled_out = ruled_out | ~mask.unsqueeze(-1)  # what stands at such a position cannot matter
    log_q = torch.log_softmax((student / temperature).masked_fill(ruled_out, RULED_OUT), dim=-1)
    log_p = torch.log_softmax((teacher / temperature).masked_fill(ruled_out, RULED_OUT), dim=-1)
    if divergence == "forward":
        return kl_divergence(log_p, log_q)
    if divergence == "reverse":
        return kl_divergence(log_q, log_p)
    return jensen_shannon_divergence(log_p, log_q, beta)


def full_precision(logits: Tensor) -> Tensor:
    """float32 for half precision; float64 stays float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def weighted(hard: Tensor, soft: Tensor, alpha: float) -> Tensor:
    """α·hard + (1 − α)·soft, where a term without weight stands for nothing: 0 · ∞ would be NaN."""
    return soft if alpha == 0 else hard if alpha == 1 else alpha * hard + (1 - alpha) * soft


def reduce(per_position: Tensor, mask: Tensor | None, reduction: Reduction) -> Tensor:
    """The mean or sum of the positions that count, zero if none does; or all, with 0 where one does not."""
    if mask is None:
        mask = torch.ones_like(per_position, dtype=torch.bool)
    per_position = per_position.masked_fill(~mask, 0.0)
    if reduction == "none":
        return per_position
    total = per_position.sum()
    return total if reduction == "sum" else total / mask.sum().clamp(min=1)
