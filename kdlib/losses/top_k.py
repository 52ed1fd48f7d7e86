"""The distillation loss where only the teacher's k largest logits are known.

Of the 151,665 tokens of a vocabulary a teacher gives nearly all of its probability to a few. So caches and
servers keep k logits of each position, and the mass of all other classes, the tail. Here the divergence is
over k + 1 events: the k classes, and "any other" (TRL 1.16 has this as `loss_add_tail`). The teacher's
probability of each is exact, so nothing is biased; how the student spreads its tail is not judged.

To leave the tail out and let the k probabilities sum to 1 would make the student surer than its teacher
(Anshumann et al. 2025, "Sparse Logit Sampling", 2503.16870).

**What it measures.** By the data-processing inequality the divergence between the merged distributions is at
most the one between all classes, and equal to it where both spread their tails in the same proportions, and
if k = C. The gradient of T² · KL(p‖q) by a kept logit is T · (q_j − p_j), as for all classes; by one of the
tail it is T · (Q − P) · q_j / Q, P and Q being the tail's mass for teacher and student. AKL alone may also be
more than between all classes. Its head is sought among the k, and of the tail only |P − Q| counts in its a.

**Rounding.** The tail's mass as 1 − Σ (kept mass) is nothing but rounding below 1e-7 in float32, and a
reverse KL then far off: for the 10 % that a student puts on the tail it is to pay 0.1 · log(0.1 / P), and P
may be 1e-12. So the teacher's tail is kept as a logarithm, and the student's is the log-sum-exp over the
classes that are not kept.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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


class TopK(NamedTuple):
    """The k largest logits of each position, and the mass of all other classes."""

    values: Tensor  # (..., k) float32 logits, largest first
    indices: Tensor  # (..., k) int64 classes
    log_tail: Tensor  # (...) float32 log-sum-exp over the classes not kept; −inf where there are none

    @property
    def log_total(self) -> Tensor:
        """(...) log-sum-exp over all classes: `values − log_total` are log-probabilities."""
        return torch.logaddexp(self.values.logsumexp(-1), self.log_tail)


def top_k_of(logits: Tensor, k: int, temperature: float = 1.0) -> TopK:
    """The k largest of logits / T, and the mass of the others at T, in float32 or better; without gradient.

    Args:
        logits: (..., C) in any floating dtype. Anything down from −1e30 rules a class out.
        k: how many to keep, 1 to C. Among equal logits any may be kept.
        temperature: T > 0, the one that the student will be compared at.
    """
    checks.check_temperature(temperature)
    checks.check_logits("logits", logits)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k must be a whole number from 1 to the {logits.shape[-1]} classes; got {k}")
    logits = logits.detach()
    values, indices = logits.topk(k, dim=-1)
    log_tail = _log_tail(logits, indices, temperature)
    values = full_precision(values)
    values = (values / temperature).masked_fill(values <= RULED_OUT, -torch.inf)
    return TopK(values, indices, log_tail.masked_fill(log_tail <= RULED_OUT, -torch.inf))


def top_k_loss(
    student_logits: Tensor, teacher: TopK, *,
    temperature: float = 1.0, divergence: Divergence = "forward", beta: float = 0.5,
    mask: Tensor | None = None, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """T² times the divergence between teacher and student over k + 1 events: the k classes, and any other.

    A kept class that either rules out, with −inf or anything down from −1e30, is left out of both, as in
    `soft_target_loss`; so is the tail where one of them has none.

    Args:
        student_logits: (..., C), C ≥ 2, any floating dtype.
        teacher: of the same positions, softened at the same temperature: `top_k_of(logits, k, temperature)`.
        temperature: T > 0. The student is softened here; the teacher is taken as it is.
        divergence, beta, mask, reduction: see `soft_target_loss`.

    Returns:
        A scalar in nats times T², or (...) for "none". Zero, with zero gradient, if nothing counts. Except
        for "akl" at most `soft_target_loss` against all of the teacher's logits (where neither rules out a
        class of the tail), and equal to it for k = C.
    """
    settings = LossSettings(temperature, 0.0, divergence, beta)
    checks.check_settings(settings, reduction)
    checks.check_classes("student_logits", student_logits)
    checks.check_top_k(student_logits, teacher)
    checks.check_mask(mask, student_logits)
    values, indices, log_tail = teacher
    # Log-masses of k + 1 events at T: their softmax is the distribution.
    merged = _Merged.apply(student_logits, indices, temperature, mask)
    target = torch.cat([values, log_tail.unsqueeze(-1).to(values.dtype)], dim=-1)
    distance = softened_divergence(merged, target, settings._replace(temperature=1.0), mask, tail=True)
    return reduce(temperature**2 * distance, mask, reduction)


class _Merged(torch.autograd.Function):
    """(..., C) logits -> (..., k + 1): z / T of the kept classes, and the log-sum-exp of all others.

    By hand: autograd would hold four float32 tensors of the size of the logits, this holds its result alone.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, indices: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
        kept = full_precision(logits.gather(-1, indices))
        # Before dividing: −1e30 / T would not count as ruled out any more.
        kept = (kept / temperature).masked_fill(kept <= RULED_OUT, RULED_OUT)
        tail = _log_tail(logits, indices, temperature)
        if mask is not None:
            tail = tail.masked_fill(~mask, RULED_OUT)
        ctx.save_for_backward(logits, indices, tail, mask)
        ctx.temperature = temperature
        return torch.cat([kept, tail.unsqueeze(-1)], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        logits, indices, tail, mask = ctx.saved_tensors
        gradient = gradient / ctx.temperature
        shares = _widened(logits)
        if mask is not None:
            shares.masked_fill_(~mask.unsqueeze(-1), RULED_OUT)  # NaN times 0 is NaN
        # Where nothing is left of the tail, everything is to be divided by infinity.
        tail = tail.masked_fill(tail <= RULED_OUT, torch.inf)
        shares.div_(ctx.temperature).sub_(tail.unsqueeze(-1)).exp_().mul_(gradient[..., -1:])
        shares.scatter_(-1, indices, gradient[..., :-1])  # 0 where a class is ruled out
        return shares.to(logits.dtype), None, None, None


def _log_tail(logits: Tensor, indices: Tensor, temperature: float) -> Tensor:
    """(...) log-sum-exp of logits / T over the classes that `indices` leaves out; −1e30 if none is left."""
    others = _widened(logits).scatter_(-1, indices, -torch.inf)
    largest = others.amax(dim=-1)
    gone = largest <= RULED_OUT
    highest = largest.masked_fill(gone, 0.0)
    masses = others.sub_(highest.unsqueeze(-1)).div_(temperature).exp_()
    return (masses.sum(dim=-1).log() + highest / temperature).masked_fill(gone, RULED_OUT)


def _widened(logits: Tensor) -> Tensor:
    """A copy in float32 or better, to be worked on in place."""
    return logits.detach().to(torch.promote_types(logits.dtype, torch.float32), copy=True)
