"""The distillation loss. Read this first.

Notation, the same in every notebook: z logits, T temperature, p the teacher's softened probabilities,
q the student's, α the weight of the hard label.

    p = softmax(z_teacher / T),  q = softmax(z_student / T)
    loss = α · CE(label, softmax(z_student)) + (1 − α) · T² · D(p, q)

D is one of `kdlib.losses.divergences`.

**Gradient.** For D = KL(p‖q) = Σ p_i (log p_i − log q_i) only −Σ p_i log q_i depends on the student. With
∂ log q_i / ∂ z_j = (δ_ij − q_j) / T it follows that ∂KL/∂z_j = (q_j − p_j) / T, and for T²·KL

    ∂(T²·KL) / ∂z_j = T · (q_j − p_j)                           Hinton, Vinyals, Dean 2015, eq. 2, times T²

**Why T².** For T large against the logits, exp(z/T) ≈ 1 + z/T, so p_j − q_j ≈ (d_j − mean d) / (C·T) with
d = z_teacher − z_student and C classes. The gradient of KL alone thus shrinks like 1/T²; T² cancels
that, and one α keeps its meaning while T is changed (Hinton et al. 2015, end of §2).

**High-T limit.** By the same expansion T²·KL → Var(d) / 2, the variance taken over the classes with equal
weights, for either direction of KL and hence for AKL. It is β(1 − β) times that for JSD, (1 − β)² for
skew-forward and β² for skew-reverse. The student is asked to match logits up to a constant (Hinton et al.
2015, §2.1, eq. 4, where logits have zero mean).

Not so by total variation, which is of first order: T²·TV → T · mean|d − mean d| / 2, and its gradient grows
like T as well. The weight of the hard label is then no longer what α says. Take it at T = 1, or divide
(1 − α)/α by T.

`plain_kd_loss` below is the formula above, differentiated by autograd; `backend` has what is faster.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.losses import backend, checks
from kdlib.losses.checks import check_logits, check_temperature
from kdlib.losses.divergences import (
    Divergence,
    LossSettings,
    Reduction,
    full_precision,
    reduce,
    softened_divergence,
    weighted,
)


def soften(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Probabilities at a temperature: softmax(logits / T) over the last axis.

    Args:
        logits: (..., C) in any floating dtype. −inf gives probability 0.
        temperature: T > 0. 1 leaves the softmax as it is, larger is smoother, smaller is sharper.

    Returns:
        (..., C) probabilities, float32 (float64 for float64 logits). A row with NaN or +inf, or with −inf
        alone, has none: it is NaN.

    Raises:
        ValueError: if T is not positive and finite, or logits are not floating point or have no axis.

    Source: Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), eq. 1.
    """
    check_temperature(temperature)
    check_logits("logits", logits)
    return torch.softmax(full_precision(logits) / temperature, dim=-1)


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor | None, *,
    temperature: float = 4.0, alpha: float = 0.5, divergence: Divergence = "forward", beta: float = 0.5,
    ignore_index: int = -100, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """The distillation loss α·CE(label, student) + (1 − α)·T²·D(teacher, student).

    Works on images, logits (N, C) with labels (N), and on tokens, logits (N, L, V) with labels (N, L);
    for next-token prediction shift the labels, `F.pad(labels[:, 1:], (0, 1), value=-100)`, and not the
    logits: `logits[:, :-1]` is copied, 2.5 GB of either model for 8,192 tokens in bfloat16 and a vocabulary
    of 151,936. A class that either model rules out, with −inf or anything down from −1e30, is left out of D:
    its probabilities are those over the classes that both allow.

    What is no number comes out as none: NaN or +inf in the logits of a position that counts makes the loss
    NaN. Nothing looks for them here, for that would wait for the device at each step; `fit` looks at the loss
    of each epoch. Positions that do not count may hold anything. Where no class is left, as of a row of −inf,
    D is 0.

    Large inputs are computed faster and in less memory (`kdlib.losses.backend`), with the same result but for
    rounding, and for one backward pass: what it gives is the stored gradient itself. A second derivative
    (autograd's create_graph=True) is a `RuntimeError` there, and so is another pass through the same loss
    (retain_graph=True) after the gradient was changed in place, by clipping or by adding to it.
    torch.func and forward mode take the formula as written, whatever the size.

    Args:
        student_logits: (..., C), C ≥ 2, any floating dtype; the arithmetic is float32 or better.
        teacher_logits: the same shape. Receives no gradient. May be None where alpha is 1.
        labels: (...) integers in [0, C), or ignore_index where a position does not count.
            None (no labels: a transfer set) means that alpha is 0.
        temperature: T in the soft term, from 1e-18 to 1e18. Where it is very much larger than the logits,
            the softened probabilities agree in all but the last digits of float32: the soft term is within a
            hundredth up to 100,000 times the logits, some per cent off at a million times, and of no use
            from ten million on. The hard term is always taken at T = 1.
        alpha: weight of the HARD label, in [0, 1]. A term of weight 0 is not computed.
        divergence: "forward" KL(teacher‖student), "reverse" KL(student‖teacher), "jsd", "skew-forward" or
            "skew-reverse" (DistiLLM), "tvd" (total variation; at T > 1 see above) or "akl" (adaptive KL);
            formulas and sources in `kdlib.losses.divergences`. Only the first three have kernels.
        beta: weight of the teacher in the mixture of "jsd" and the two "skew-…"; of no effect on others.
            DistiLLM's are 0.1 for "skew-forward" and 0.9 for "skew-reverse".
        ignore_index: label of positions left out of both terms.
        reduction: "mean" over counted positions (never over classes), "sum" (divide by a global count
            yourself, for gradient accumulation), or "none".

    Returns:
        A scalar, or (...) for "none". Zero, with zero gradient, if no position counts.

    Raises:
        ValueError: naming the argument, its value and what was expected. On an accelerator, where a look at
            labels and logits would wait for the device, only the first call takes it.

    Source: Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), §2; α weights the hard label here.
    """
    settings = LossSettings(temperature, alpha, divergence, beta)
    checks.check_settings(settings, reduction)
    checks.check_ignored(ignore_index)
    checks.check_models(student_logits, teacher_logits, needed=alpha < 1 or labels is None)
    if labels is None:
        settings = settings._replace(alpha=0.0)
    else:
        checks.check_labels(labels, student_logits, student_logits.shape[-1], ignore_index)
        labels = labels.long()  # -100 is another number in eight bits
        if alpha > 0:
            checks.check_possible(labels, student_logits, ignore_index)
    teacher_logits = teacher_logits if settings.alpha < 1 else None
    arguments = (student_logits, teacher_logits, labels, settings, ignore_index, reduction)
    kernels = backend.computed_by_kernels(settings, student_logits, teacher_logits)
    once = kernels or (teacher_logits is not None and backend.in_slices(student_logits))
    if once and not backend.is_transformed(student_logits):
        return backend.kd_loss_with_gradient(*arguments, kernels=kernels)
    return plain_kd_loss(*arguments)


def soft_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, *,
    temperature: float = 4.0, divergence: Divergence = "forward", beta: float = 0.5,
    mask: Tensor | None = None, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """T² times the divergence between the softened teacher and student: the soft term of `kd_loss` alone.

    Args:
        student_logits, teacher_logits: (..., C), C ≥ 2, any floating dtype, the same shape.
        mask: (...) bool, True where a position counts; None counts all.
        temperature, divergence, beta, reduction: see `kd_loss`.

    Returns:
        A scalar in nats times T², or (...) for "none". Zero, with zero gradient, if nothing counts.
    """
    checks.check_mask(mask, student_logits)
    return kd_loss(
        student_logits, teacher_logits, None if mask is None else mask.long() - 1,
        temperature=temperature, alpha=0.0, divergence=divergence, beta=beta, ignore_index=-1,
        reduction=reduction,
    )  # fmt: skip


def plain_kd_loss(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor | None,
    settings: LossSettings, ignore_index: int, reduction: Reduction,
) -> Tensor:  # fmt: skip
    """`kd_loss` of checked arguments, as its formula reads. Without labels α is 0 and all positions count."""
    counted = None if labels is None else labels != ignore_index
    student = full_precision(student_logits)  # once, so that a bf16 gradient is rounded once
    hard = soft = 0.0
    if settings.alpha > 0:
        logits = student.masked_fill(~counted.unsqueeze(-1), 0.0).reshape(-1, student.shape[-1])
        targets = labels.flatten().long()
        hard = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")
        hard = hard.view(labels.shape)
    if settings.alpha < 1:
        soft = settings.temperature**2 * softened_divergence(student, teacher_logits, settings, counted)
    return reduce(weighted(hard, soft, settings.alpha), counted, reduction)
