"""How far a student's softened probabilities q are from its teacher's p: what every loss here is made of.

Plain formulas, which autograd differentiates; m = β·p + (1 − β)·q.

    "forward"       KL(p‖q) = Σ p_i · (log p_i − log q_i)
    "reverse"       KL(q‖p)
    "jsd"           JSD_β = β · KL(p‖m) + (1 − β) · KL(q‖m)    Agarwal et al. 2024 (GKD), §2
    "skew-forward"  KL(p‖m)                                    Ko et al. 2024 (DistiLLM), §3.1
    "skew-reverse"  KL(q‖m)                                    the same
    "tvd"           TV = ½ Σ |p_i − q_i|                       Wen et al. 2023 (f-distill), §2.2
    "akl"           a · KL(p‖q) + (1 − a) · KL(q‖p)            Wu et al. 2024 (AKL), with a share a

**JSD** is bounded by the entropy of (β, 1 − β), at most log 2. JSD_β / β → KL(p‖q) as β → 0 and
JSD_β / (1 − β) → KL(q‖p) as β → 1 (Huszár 2015, arXiv 1511.05101), while JSD itself is 0 at both ends.
TRL's `generalized_jsd_loss` is JSD without the factor T², and the two KL divergences at β = 0 and 1.

**Skew.** The two of DistiLLM are what JSD_β is made of. Its α is the weight in m of what stands first: β is α
for the forward one and 1 − α for the reverse one, and the paper's α = 0.1 is β = 0.1 and β = 0.9. Forward is
at most log 1/β and tends to KL(p‖q) as β → 0; reverse is at most log 1/(1 − β) and tends to KL(q‖p) as β → 1.

**Total variation** is symmetric, in [0, 1], and TV² ≤ KL/2 (Pinsker). It is of first order: its gradient does
not fade as q nears p. T² is then one factor of T too many: see `kdlib.losses.kd`, "High-T limit".

**Rounding.** In float32 log p and log q carry an error near 1e-7 each, whatever T is, while KL itself
shrinks like 1/T². The error of the textbook sum, times T², therefore grows like T²: at T = 10,000 it is as
large as the loss (notebook 02). `kl_divergence` adds Σ (q_i − p_i), which is zero, to make each summand a
small non-negative number. The rounding common to a row then enters squared, and the rest grows like T only:
with ten classes the largest relative error at T = 10,000 is below 0.001.
"""

import math
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Divergence = Literal["forward", "reverse", "jsd", "skew-forward", "skew-reverse", "tvd", "akl"]
Reduction = Literal["mean", "sum", "none"]
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)
OF_MIXTURE = ("jsd", "skew-forward", "skew-reverse")  # which β means something to


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


def skew_kl_divergence(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """KL(p‖m) in nats over the last axis, m = β·p + (1 − β)·q; skew-reverse is that of (q, p, 1 − β).

    Args:
        log_p, log_q: (..., C) normalised log-probabilities, as in `kl_divergence`.
        beta: weight of p in the mixture, strictly between 0 and 1.

    Returns:
        (...) divergences, at most log 1/β.

    Source: Ko et al. 2024, "DistiLLM: Towards Streamlined Distillation for Large Language Models"
        (arXiv 2402.03898), §3.1, after Lee 1999, "Measures of Distributional Similarity" (P99-1004).
    """
    return kl_divergence(log_p, torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta)))


def total_variation_distance(log_p: Tensor, log_q: Tensor) -> Tensor:
    """½ Σ |p − q| over the last axis: the most by which the two can disagree on any set of classes.

    Args:
        log_p, log_q: (..., C) normalised log-probabilities, as in `kl_divergence`.

    Returns:
        (...) distances in [0, 1]. No gradient where p_i = q_i.

    Source: Wen et al. 2023, "f-Divergence Minimization for Sequence-Level Knowledge Distillation"
        (arXiv 2307.15190), §2.2.
    """
    return 0.5 * _gap(log_p, log_q).sum(dim=-1)


def _gap(log_p: Tensor, log_q: Tensor) -> Tensor:
    """|p − q|, exact also where they nearly agree."""
    q, ratio = log_q.exp(), log_p - log_q
    return torch.where(ratio.abs() < 1, q * torch.expm1(ratio.clamp(-1, 1)), log_p.exp() - q).abs()


def adaptive_kl_divergence(log_p: Tensor, log_q: Tensor, *, tail: bool = False) -> Tensor:
    """a·KL(p‖q) + (1 − a)·KL(q‖p) in nats over the last axis, with a weight a of each position's own.

    a is the share of Σ |p − q| that lies in the `head`, a constant to the gradient: where it is
    the head that is wrong, more of the forward KL, which fits the head first.

    Args:
        log_p, log_q: (..., C) normalised log-probabilities, as in `kl_divergence`.
        tail: whether the last class stands for all that are not named, and so is not of the head.

    Returns:
        (...) divergences, between KL(p‖q) and KL(q‖p).

    Source: Wu et al. 2024, "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large
        Language Models" (arXiv 2404.02657), section on AKL, with its μ = 0.5.
    """
    share = share_in(head(log_p.detach().exp(), tail=tail), _gap(log_p.detach(), log_q.detach()))
    return torch.lerp(kl_divergence(log_q, log_p), kl_divergence(log_p, log_q), share)


def head(p: Tensor, *, tail: bool = False) -> Tensor:
    """(..., C) bool: the most probable classes of p (..., C), as many as it takes for half of the mass.

    Equal ones come together, so that the order of classes does not matter. (DSKD and KDFlow draw the line
    there. The authors' AKL.py leaves out the class that crosses the half unless it is the first: of 0.4,
    0.35, 0.25 one, not two.)
    """
    named = p[..., :-1] if tail else p
    ordered = named.sort(dim=-1, descending=True).values
    before = (ordered.cumsum(dim=-1) < 0.5).sum(dim=-1, keepdim=True).clamp(max=named.shape[-1] - 1)
    found = named >= ordered.gather(-1, before)
    return F.pad(found, (0, 1)) if tail else found


def share_in(chosen: Tensor, gap: Tensor) -> Tensor:
    """(...) share of a gap (..., C) that lies in the classes chosen; ½ where there is no gap."""
    total = gap.sum(dim=-1)
    return torch.where(total > 0, (gap * chosen).sum(dim=-1) / total, 0.5)


def softened_divergence(
    student_logits: Tensor, teacher_logits: Tensor, settings: LossSettings, mask: Tensor | None, *,
    tail: bool = False,
) -> Tensor:  # fmt: skip
    """(...) divergences at T, without the factor T², of logits (..., C) of which any may be ruled out.

    `tail`: the last stands for all classes that are not named.
    """
    temperature, _, divergence, beta = settings
    student, teacher = full_precision(student_logits), full_precision(teacher_logits.detach())
    # Before dividing: −1e30 / T would not count as ruled out any more.
    ruled_out = (student <= RULED_OUT) | (teacher <= RULED_OUT)
    if mask is not None:
        ruled_out = ruled_out | ~mask.unsqueeze(-1)  # what stands at such a position cannot matter
    log_q = torch.log_softmax((student / temperature).masked_fill(ruled_out, RULED_OUT), dim=-1)
    log_p = torch.log_softmax((teacher / temperature).masked_fill(ruled_out, RULED_OUT), dim=-1)
    match divergence:
        case "forward":
            return kl_divergence(log_p, log_q)
        case "reverse":
            return kl_divergence(log_q, log_p)
        case "skew-forward":
            return skew_kl_divergence(log_p, log_q, beta)
        case "skew-reverse":
            return skew_kl_divergence(log_q, log_p, 1 - beta)
        case "tvd":
            return total_variation_distance(log_p, log_q)
        case "akl":
            return adaptive_kl_divergence(log_p, log_q, tail=tail)
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
