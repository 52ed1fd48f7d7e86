"""The kernels as an operator of PyTorch: `kdlib.losses.kd.kd_loss` with autograd, for eager and compiled code.

Imported where `kdlib.losses.kd` has found that the kernels run, and only there: it needs Triton.
"""

import torch
from torch import Tensor

from kdlib.losses.kd import Divergence, Reduction, _check_options, _weighted
from kdlib.losses.kernels import _checked_width, _launch, scale_rows

__all__ = ["fused_kd_loss"]


def fused_kd_loss(
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
    """`kdlib.losses.kd.kd_loss`, on the kernels: arguments, result and gradient are the same.

    The gradient is computed with the loss and held in the student's dtype in place of the logits. `backward`
    multiplies it by what arrives there, in place, unless that is 1: a second `backward` through the same loss
    (retain_graph=True) is refused by autograd. There is no second derivative. `torch.compile` takes it as one
    operation, without a break of the graph.

    Args:
        student_logits, teacher_logits: (..., V), V ≥ 2, float32, bfloat16 or float16, on a GPU.
        labels: (...) integers; None means that alpha is 0.
        temperature, alpha, divergence, beta, ignore_index, reduction: see `kdlib.losses.kd.kd_loss`.

    Returns:
        A scalar, or (...) for reduction="none", float32. Zero, with zero gradient, if no position counts.

    Raises:
        ValueError: naming the argument, its value and what was expected. Values are not looked at.
    """
    _check_options(temperature, divergence, beta, reduction)
    alpha = alpha if labels is not None else 0.0
    places, classes = student_logits.shape[:-1], student_logits.shape[-1]
    student = student_logits.reshape(-1, classes)
    teacher = None
    if alpha < 1 and teacher_logits is not None:
        if teacher_logits.shape != student_logits.shape:
            raise ValueError(
                f"student_logits has shape {tuple(student_logits.shape)} but teacher_logits has "
                f"{tuple(teacher_logits.shape)}; expected the same"
            )
        teacher = teacher_logits.detach().reshape(-1, classes)
    if labels is not None:
        if labels.shape != places:
            raise ValueError(f"labels has shape {tuple(labels.shape)}; expected {tuple(places)}")
        labels = labels.flatten()
    _checked_width(student, teacher, labels, alpha, None)
    wanted = torch.is_grad_enabled() and student.requires_grad
    loss, _ = _reduced_loss(
        student, teacher, labels, float(temperature), float(alpha), divergence, float(beta), ignore_index,
        reduction, wanted,
    )  # fmt: skip
    return loss.view(places) if reduction == "none" else loss


@torch.library.custom_op("kdlib::reduced_kd_loss", mutates_args=())
def _reduced_loss(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, temperature: float, alpha: float,
    divergence: str, beta: float, ignore_index: int, reduction: str, wanted: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The loss, (n,) or a scalar, and its gradient (n, V), or (0, V) where it is not wanted.

    The mean's 1 / count is in the gradient already: what arrives in backward is then 1, as a rule, and
    nothing is to be done there.
    """
    rows, classes = student.shape
    out = student.new_empty((rows if wanted else 0, classes))
    share = None
    if reduction == "mean":
        # full, not tensor: nothing is copied to the device, so nothing waits.
        counted = torch.full((), rows, device=student.device)
        if labels is not None:
            counted = (labels != ignore_index).sum()
        share = 1 / counted.clamp(min=1).float()
    terms = _launch(
        student, teacher, labels, temperature, alpha, divergence, beta, classes, ignore_index,
        share, out if wanted else None,
    )  # fmt: skip
    loss = _weighted(*terms, alpha)
    if reduction != "none":
        loss = loss.sum() if share is None else loss.sum() * share
    return loss, out


@_reduced_loss.register_fake
def _(student, teacher, labels, temperature, alpha, divergence, beta, ignore_index, reduction, wanted):
    rows, classes = student.shape
    shape = (rows,) if reduction == "none" else ()
    return student.new_empty(shape, dtype=torch.float32), student.new_empty((rows if wanted else 0, classes))


@torch.library.custom_op("kdlib::scale_rows_", mutates_args=("gradient",))
def _scale_in_place(gradient: Tensor, factors: Tensor) -> None:
    """Rows of the gradient times factors, (n,) or one for all."""
    scale_rows(gradient, factors)


def _remember(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, factors, _):
    (gradient,) = ctx.saved_tensors
    if factors is None:
        return (None,) * 10
    _scale_in_place(gradient, factors)
    return gradient, *(None,) * 9


_reduced_loss.register_autograd(_backward, setup_context=_remember)
