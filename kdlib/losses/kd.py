"""The distillation loss.

Notation, the same in every notebook: z logits, T temperature, p the teacher's softened probabilities,
q the student's, α the weight of the hard label.

    p = softmax(z_teacher / T),  q = softmax(z_student / T)
    loss = α · CE(label, softmax(z_student)) + (1 − α) · T² · D(p, q)

**Gradient.** For D = KL(p‖q) = Σ p_i (log p_i − log q_i) only −Σ p_i log q_i depends on the student. With
∂ log q_i / ∂ z_j = (δ_ij − q_j) / T it follows that ∂KL/∂z_j = (q_j − p_j) / T, and for T²·KL

    ∂(T²·KL) / ∂z_j = T · (q_j − p_j)                           Hinton, Vinyals, Dean 2015, eq. 2, times T²

**Why T².** For T large against the logits, exp(z/T) ≈ 1 + z/T, so p_j − q_j ≈ (d_j − mean d) / (C·T) with
d = z_teacher − z_student and C classes. The gradient of KL alone thus shrinks like 1/T²; T² cancels
that, and one α keeps its meaning while T is changed (Hinton et al. 2015, end of §2).

**High-T limit.** By the same expansion T²·KL → Var(d) / 2, the variance taken over the classes with equal
weights, for either direction of KL: the student is asked to match logits up to a constant (Hinton et al.
2015, §2.1, eq. 4, where logits have zero mean).

**Generalised Jensen-Shannon divergence.** With m = β·p + (1 − β)·q,

    JSD_β(p, q) = β · KL(p‖m) + (1 − β) · KL(q‖m)               Agarwal et al. 2024 (GKD), §2

It is bounded by the entropy of (β, 1 − β), at most log 2. JSD_β / β → KL(p‖q) as β → 0 and
JSD_β / (1 − β) → KL(q‖p) as β → 1 (Huszár 2015, arXiv 1511.05101), while JSD itself is 0 at both ends;
β must lie strictly between. Its high-T limit is T²·JSD → β(1 − β) · Var(d) / 2. TRL's
`generalized_jsd_loss` is JSD without the factor T², and stands for the two KL divergences at β = 0 and 1.

**Rounding.** In float32 log p and log q carry an error near 1e-7 each, whatever T is, while KL itself
shrinks like 1/T². The error of the textbook sum, times T², therefore grows like T²: at T = 10,000 it is as
large as the loss, and for a student close to its teacher already at T = 1,000 (measured in notebook 02).
`kl_divergence` adds Σ (q_i − p_i), which is zero, to make each summand a small non-negative number. The
rounding common to a row then enters squared, and the rest grows like T only: with ten classes the largest
relative error at T = 10,000 is below 0.001, where that of the textbook sum is above 1.
"""

import importlib
import math
import os
from collections.abc import Callable
from numbers import Real
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["jensen_shannon_divergence", "kd_loss", "kl_divergence", "soft_target_loss", "soften"]

Divergence = Literal["forward", "reverse", "jsd"]
Reduction = Literal["mean", "sum", "none"]

# Stands for a logit of −inf: softmax still gives exactly 0, but differences stay finite. Masks that use the
# lowest number of float32 or bfloat16 in place of −inf lie below it too.
RULED_OUT = -1e30


def soften(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Probabilities at a temperature: softmax(logits / T) over the last axis.

    Args:
        logits: (..., C) in any floating dtype. −inf gives probability 0.
        temperature: T > 0. 1 leaves the softmax as it is, larger is smoother, smaller is sharper.

    Returns:
        (..., C) probabilities, float32 (float64 for float64 logits).

    Raises:
        ValueError: if T is not positive and finite, or logits are not floating point or have no axis.

    Source: Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), eq. 1.
    """
    _check_temperature(temperature)
    _check_logits("logits", logits)
    return torch.softmax(_full_precision(logits) / temperature, dim=-1)


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
    """Generalised Jensen-Shannon divergence in nats over the last axis.

    β·KL(p‖m) + (1 − β)·KL(q‖m) with m = β·p + (1 − β)·q; β = 0.5 is the symmetric JSD.

    Args:
        log_p, log_q: (..., C) normalised log-probabilities, as in `kl_divergence`.
        beta: weight of p in the mixture, strictly between 0 and 1.

    Returns:
        (...) divergences, at most the entropy of (β, 1 − β).

    Source: Agarwal et al. 2024, "On-Policy Distillation of Language Models" (arXiv 2306.13649), §2.
    """
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * kl_divergence(log_p, log_m) + (1 - beta) * kl_divergence(log_q, log_m)


def soft_target_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 4.0,
    divergence: Divergence = "forward",
    beta: float = 0.5,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """T² times the divergence between the softened teacher and student.

    A class that either model rules out, with −inf or anything down from −1e30, is left out of both: the
    probabilities are those over the classes that both allow. A position without such a class adds 0. The
    teacher receives no gradient.

    Args:
        student_logits, teacher_logits: (..., C), C ≥ 2, any floating dtype, the same shape.
        temperature: T > 0, for teacher and student alike.
        divergence: "forward" KL(teacher‖student), "reverse" KL(student‖teacher), or "jsd".
        beta: weight of the teacher in the mixture of "jsd".
        mask: (...) bool, True where a position counts; None counts all.
        reduction: "mean" over the counted positions (never over classes), "sum", or "none".

    Returns:
        A scalar in nats times T², or (...) for "none". Zero, with zero gradient, if nothing counts.

    Raises:
        ValueError: naming the argument, its value and what was expected.
    """
    _check_options(temperature, divergence, beta, reduction)
    _check_pair(student_logits, teacher_logits)
    _check_mask(mask, student_logits)
    if (faster := _faster(student_logits, teacher_logits)) is not None:
        counted = None if mask is None else mask.long() - 1  # −1 where a position does not count
        return faster(
            student_logits, teacher_logits, counted, temperature=temperature, alpha=0.0,
            divergence=divergence, beta=beta, ignore_index=-1, reduction=reduction,
        )  # fmt: skip
    distance = _softened_divergence(student_logits, teacher_logits, temperature, divergence, beta, mask)
    return _reduce(temperature**2 * distance, mask, reduction)


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    *,
    temperature: float = 4.0,
    alpha: float = 0.5,
    divergence: Divergence = "forward",
    beta: float = 0.5,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """The distillation loss α·CE(label, student) + (1 − α)·T²·D(teacher, student).

    Works on images, logits (N, C) with labels (N), and on tokens, logits (N, L, V) with labels (N, L);
    for next-token prediction shift logits and labels first.

    On NVIDIA GPUs that run `kdlib.losses.kernels` these compute it (KDLIB_KERNELS=0 in the environment keeps it in
    PyTorch), and elsewhere from four million logits on `kdlib.losses.closed_form`: faster, in less memory, with the
    same result but for rounding. Both find the gradient along with the loss, and have no second derivative.

    Args:
        student_logits: (..., C), C ≥ 2, any floating dtype; the arithmetic is float32 or better.
        teacher_logits: the same shape. May be None where alpha is 1.
        labels: (...) integers in [0, C), or ignore_index where a position does not count.
            None (no labels: a transfer set) means that alpha is 0.
        temperature: T > 0 in the soft term. The hard term is always taken at T = 1.
        alpha: weight of the HARD label, in [0, 1]. A term of weight 0 is not computed.
        divergence, beta: see `soft_target_loss`.
        ignore_index: label of positions left out of both terms.
        reduction: "mean" over counted positions, "sum" (divide by a global count yourself, for
            gradient accumulation), or "none".

    Returns:
        A scalar, or (...) for "none". Zero, with zero gradient, if no position counts.

    Raises:
        ValueError: naming the argument, its value and what was expected. Labels out of range and
            probabilities in place of logits are looked for on every call on the CPU, and on the first
            call on an accelerator, where each look would wait for the device.

    Source: Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), §2; α weights the hard label here.
    """
    _check_options(temperature, divergence, beta, reduction)
    _check_alpha(alpha)
    if teacher_logits is None and (alpha < 1 or labels is None):
        raise ValueError("teacher_logits is None: only alpha=1 with labels can do without a teacher")
    if teacher_logits is not None:
        _check_pair(student_logits, teacher_logits)
    else:
        _check_classes("student_logits", student_logits)
        _check_not_probabilities("student_logits", student_logits)
    if labels is None:
        return soft_target_loss(
            student_logits, teacher_logits, temperature=temperature, divergence=divergence,
            beta=beta, reduction=reduction,
        )
    _check_labels(student_logits, labels, ignore_index, used=alpha > 0)
    if (faster := _faster(student_logits, teacher_logits if alpha < 1 else None)) is not None:
        return faster(
            student_logits, teacher_logits, labels, temperature=temperature, alpha=alpha,
            divergence=divergence, beta=beta, ignore_index=ignore_index, reduction=reduction,
        )  # fmt: skip
    counted = labels != ignore_index
    student = _full_precision(student_logits)  # once, so that a bf16 gradient is rounded once

    hard = soft = 0.0
    if alpha > 0:
        logits = student.masked_fill(~counted.unsqueeze(-1), 0.0).reshape(-1, student.shape[-1])
        hard = F.cross_entropy(
            logits, labels.flatten().long(), ignore_index=ignore_index, reduction="none"
        ).view(labels.shape)
    if alpha < 1:
        soft = soft_target_loss(
            student, teacher_logits, temperature=temperature, divergence=divergence,
            beta=beta, mask=counted, reduction="none",
        )
    return _reduce(alpha * hard + (1 - alpha) * soft, counted, reduction)


def _softened_divergence(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, divergence: Divergence, beta: float,
    mask: Tensor | None,
) -> Tensor:  # fmt: skip
    """(...) divergences at T, of logits (..., C) of which any may be ruled out; without the factor T²."""
    student, teacher = _full_precision(student_logits), _full_precision(teacher_logits.detach())
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


# --- where PyTorch has something faster -----------------------------------------------------------


def _faster(student_logits: Tensor, teacher_logits: Tensor | None) -> Callable[..., Tensor] | None:
    """What computes `kd_loss` of such logits; None for the formulas as they are written here.

    Args:
        teacher_logits: None where the soft term has no weight.
    """
    if _on_kernels(student_logits, teacher_logits):
        from kdlib.losses.operators import fused_kd_loss

        return fused_kd_loss
    if teacher_logits is not None and _in_slices(student_logits):
        from kdlib.losses.closed_form import sliced_kd_loss

        return sliced_kd_loss
    return None


def _on_kernels(*logits: Tensor | None) -> bool:
    """Whether `kdlib.losses.kernels` is to compute the loss of these logits: on GPUs that it runs on."""
    given = [logit for logit in logits if logit is not None]
    if not given[0].is_cuda or not _kernels_wanted():
        return False
    from kdlib.losses.kernels import takes

    return takes(*given)


# Compiled code keeps what was found when it was compiled.
@torch.compiler.assume_constant_result
def _kernels_wanted() -> bool:
    """Unless KDLIB_KERNELS=0 is in the environment, or Triton is not installed."""
    if os.environ.get("KDLIB_KERNELS") == "0":
        return False
    try:
        importlib.import_module("kdlib.losses.kernels")
    except ImportError:
        return False
    return True


_LARGE = 1 << 22  # logits; from here on the temporaries of the formulas as written are what takes the time


def _in_slices(logits: Tensor) -> bool:
    """Whether there are so many logits that loss and gradient are better computed some rows at a time.

    Not in code that is compiled, which needs no temporaries, or transformed by torch.func.
    """
    return (
        logits.numel() >= _LARGE
        and logits.device.type != "meta"
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _weighted(hard: Tensor, soft: Tensor, alpha: float) -> Tensor:
    """α·hard + (1 − α)·soft, where a term without weight stands for nothing: 0 · ∞ would be NaN."""
    return soft if alpha == 0 else hard if alpha == 1 else alpha * hard + (1 - alpha) * soft


def _full_precision(logits: Tensor) -> Tensor:
    """float32 for half precision; float64 stays float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _reduce(per_position: Tensor, mask: Tensor | None, reduction: Reduction) -> Tensor:
    if mask is None:
        mask = torch.ones_like(per_position, dtype=torch.bool)
    per_position = per_position.masked_fill(~mask, 0.0)
    if reduction == "none":
        return per_position
    total = per_position.sum()
    return total if reduction == "sum" else total / mask.sum().clamp(min=1)


# --- what is refused ------------------------------------------------------------------------------


def _check_temperature(temperature: float) -> None:
    if not isinstance(temperature, Real) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive finite number; got {temperature}")


def _check_alpha(alpha: float) -> None:
    if not isinstance(alpha, Real) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha, the weight of the hard label, must lie in [0, 1]; got {alpha}")


def _check_options(temperature: float, divergence: str, beta: float, reduction: str) -> None:
    _check_temperature(temperature)
    if divergence not in ("forward", "reverse", "jsd"):
        raise ValueError(f'divergence must be "forward", "reverse" or "jsd"; got {divergence!r}')
    if divergence == "jsd" and not (isinstance(beta, Real) and 0 < beta < 1):
        raise ValueError(
            f"beta must lie strictly between 0 and 1; got {beta}. The divergence is 0 at both ends; "
            'for the limits use divergence="forward" (beta to 0) or "reverse" (beta to 1)'
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none"; got {reduction!r}')


def _check_logits(name: str, logits: Tensor) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{name} must be a floating-point tensor of logits; got {kind}")
    if logits.dim() == 0:
        raise ValueError(f"{name} must have a class axis, shape (..., C); got a scalar")


def _check_classes(name: str, logits: Tensor) -> None:
    _check_logits(name, logits)
    if logits.shape[-1] < 2:
        raise ValueError(
            f"{name} has a class axis of {logits.shape[-1]}, shape {tuple(logits.shape)}; expected two "
            "classes or more, softmax over one is always 1. A sigmoid classifier with one logit z is "
            "the two-class softmax of [0, z]: pass torch.cat([torch.zeros_like(z), z], dim=-1)"
        )


def _check_not_probabilities(name: str, logits: Tensor) -> None:
    if _may_look_at_values(name, logits) and _are_probabilities(logits):
        raise ValueError(
            f"{name} holds probabilities (each row lies in [0, 1] and sums to 1); expected "
            "logits. Pass the model's output before softmax, or the logarithm of the probabilities"
        )


def _check_pair(student_logits: Tensor, teacher_logits: Tensor) -> None:
    _check_classes("student_logits", student_logits)
    _check_classes("teacher_logits", teacher_logits)
    if student_logits.shape != teacher_logits.shape:
        hint = ""
        if student_logits.shape[:-1] == teacher_logits.shape[:-1]:
            hint = "; where vocabularies differ by padding only, slice both to the common classes"
        raise ValueError(
            f"student_logits has shape {tuple(student_logits.shape)} but teacher_logits has "
            f"{tuple(teacher_logits.shape)}; expected the same{hint}"
        )
    _check_not_probabilities("student_logits", student_logits)
    _check_not_probabilities("teacher_logits", teacher_logits)


def _check_positions(name: str, tensor: Tensor, logits: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.shape != logits.shape[:-1]:
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(
            f"{name} has shape {shape}; expected {tuple(logits.shape[:-1])}, "
            f"that of the logits {tuple(logits.shape)} without the class axis"
        )


def _check_mask(mask: Tensor | None, logits: Tensor) -> None:
    if mask is not None:
        _check_positions("mask", mask, logits)
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool, True where a position counts; got {mask.dtype}")


def _check_labels(student_logits: Tensor, labels: Tensor, ignore_index: int, *, used: bool) -> None:
    _check_logits("student_logits", student_logits)
    _check_positions("labels", labels, student_logits)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers (class indices); got {labels.dtype}")
    if not _may_look_at_values("labels", student_logits):
        return
    classes = student_logits.shape[-1]
    counted = labels != ignore_index
    outside = counted & ((labels < 0) | (labels >= classes))
    if outside.any():
        raise ValueError(
            f"labels holds {labels[outside][0].item()}; expected 0 to {classes - 1} for {classes} "
            f"classes, or ignore_index={ignore_index}"
        )
    if not used:
        return
    chosen = student_logits.gather(-1, labels.masked_fill(~counted, 0).long().unsqueeze(-1))
    impossible = counted & (chosen.squeeze(-1) <= RULED_OUT)
    if impossible.any():
        raise ValueError(
            f"labels holds {labels[impossible][0].item()} where student_logits rules that class out "
            "with -inf; expected a class with a finite logit, or ignore_index"
        )


_looked_at: set[tuple[str, torch.device, int]] = set()


def _may_look_at_values(name: str, logits: Tensor) -> bool:
    """Whether a check may read values: always on the CPU, once per kind of input elsewhere."""
    if torch.compiler.is_compiling() or logits.device.type == "meta":
        return False
    key = (name, logits.device, logits.shape[-1])
    if logits.device.type != "cpu" and key in _looked_at:
        return False
    _looked_at.add(key)
    return True


def _are_probabilities(logits: Tensor) -> bool:
    """True if the first rows all lie in [0, 1] and sum to 1.

    Whole numbers are let pass: one-hot rows can be logits.
    """
    rows = logits.detach().reshape(-1, logits.shape[-1])[:64].float()
    tolerance = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 2e-2
    return bool(
        rows.numel()
        and (rows >= 0).all()
        and (rows <= 1).all()
        and ((rows.sum(-1) - 1).abs() < tolerance).all()
        and (rows != rows.round()).any()
    )
