"""Loss and gradient at once, as an operator of PyTorch: `kd_loss` by the closed form or by the kernels.

The forward pass finds the gradient too and keeps it in place of the logits; `backward` multiplies it by what
arrives there. There is no second derivative. `torch.compile` takes it as one operation.
"""

import torch
from torch import Tensor

from kdlib.losses import closed_form
from kdlib.losses.divergences import LossSettings, Reduction, weighted

__all__ = ["kd_loss_with_gradient"]

_SLICE = 1 << 22  # logits that the closed form works on at once: 16 MB in float32


def kd_loss_with_gradient(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    settings: LossSettings,
    ignore_index: int,
    reduction: Reduction,
    *,
    kernels: bool,
) -> Tensor:
    """`kdlib.losses.kd.plain_kd_loss`: arguments, result and gradient are the same.

    Args:
        kernels: whether the kernels compute it. `backward` then scales the gradient in place, and autograd
            refuses a second one through the same loss (retain_graph=True), unless what arrives there is 1.
    """
    places, classes = student_logits.shape[:-1], student_logits.shape[-1]
    student = student_logits.reshape(-1, classes)
    teacher = None if teacher_logits is None else teacher_logits.detach().reshape(-1, classes)
    labels = None if labels is None else labels.flatten().long()
    temperature, alpha, divergence, beta = settings
    loss, _ = _loss_and_gradient(
        student, teacher, labels, float(temperature), float(alpha), divergence, float(beta), ignore_index,
        reduction, torch.is_grad_enabled() and student.requires_grad, kernels,
    )  # fmt: skip
    return loss.view(places) if reduction == "none" else loss


@torch.library.custom_op("kdlib::kd_loss_and_gradient", mutates_args=())
def _loss_and_gradient(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, temperature: float, alpha: float,
    divergence: str, beta: float, ignore_index: int, reduction: str, wanted: bool, kernels: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The loss, (n,) or a scalar, and its gradient (n, V), or (0, V) where it is not wanted.

    The mean's 1 / count is in the gradient already: what arrives in backward is then 1, as a rule, and
    nothing is to be done there.
    """
    compute = _by_kernels if kernels else _in_slices
    settings = LossSettings(temperature, alpha, divergence, beta)
    return compute(student, teacher, labels, settings, ignore_index, reduction, wanted)


def _by_kernels(student, teacher, labels, settings, ignore_index, reduction, wanted):
    from kdlib.losses.kernels import kd_terms

    share = None
    if reduction == "mean":
        # full, not tensor: nothing is copied to the device, so nothing waits.
        counted = torch.full((), len(student), device=student.device)
        if labels is not None:
            counted = (labels != ignore_index).sum()
        share = 1 / counted.clamp(min=1).float()
    gradient = student.new_empty(len(student) if wanted else 0, student.shape[1])
    terms = kd_terms(
        student, teacher, labels, settings, ignore_index=ignore_index,
        gradient=gradient if wanted else None, gradient_scale=share,
    )  # fmt: skip
    loss = weighted(*terms, settings.alpha)
    if reduction != "none":
        loss = loss.sum() if share is None else loss.sum() * share
    return loss, gradient


def _in_slices(student, teacher, labels, settings, ignore_index, reduction, wanted):
    rows, classes = student.shape
    if labels is None:
        counted = torch.arange(rows, device=student.device)
    else:
        counted = (labels != ignore_index).nonzero().squeeze(1)
    share = 1 / max(len(counted), 1) if reduction == "mean" else 1.0
    loss = student.new_zeros(rows, dtype=torch.promote_types(student.dtype, torch.float32))
    gradient = student.new_zeros(rows if wanted else 0, classes)
    for some in counted.split(max(1, _SLICE // classes)):
        some_labels = None if labels is None else labels[some]
        terms, slope = closed_form.kd_terms_and_gradient(student[some], teacher[some], some_labels, settings)
        loss[some] = weighted(*terms, settings.alpha)
        if wanted:
            gradient[some] = slope.mul_(share)
    return loss if reduction == "none" else loss.sum() * share, gradient


@_loss_and_gradient.register_fake
def _(student, teacher, labels, temperature, alpha, divergence, beta, ignore_index, reduction, wanted, *_):
    shape = student.shape[:1] if reduction == "none" else ()
    loss = student.new_empty(shape, dtype=torch.promote_types(student.dtype, torch.float32))
    return loss, student.new_empty(len(student) if wanted else 0, student.shape[1])


@torch.library.custom_op("kdlib::scale_rows_", mutates_args=("gradient",))
def _scale_in_place(gradient: Tensor, factors: Tensor) -> None:
    """Rows of the gradient times factors, (n,) or one for all."""
    from kdlib.losses.kernels import scale_rows

    scale_rows(gradient, factors)


def _remember(ctx, inputs, output) -> None:
    ctx.kernels = inputs[-1]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, by, _):
    (gradient,) = ctx.saved_tensors
    if by is None:
        gradient = None
    elif ctx.kernels:
        _scale_in_place(gradient, by)
    elif by.dim() or by.device.type != "cpu" or by != 1:  # on the CPU a look at the usual 1 is free
        gradient = gradient * (by.unsqueeze(-1) if by.dim() else by).to(gradient.dtype)
    return gradient, *(None,) * 10


_loss_and_gradient.register_autograd(_backward, setup_context=_remember)
