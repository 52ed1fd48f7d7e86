"""What computes a loss. Nothing else in the package knows of Triton.

    on NVIDIA GPUs from compute capability 8.0             `kdlib.losses.kernels`
    elsewhere, from four million logits on                 `kdlib.losses.closed_form`, some rows at a time
    fewer, compiled, or transformed by torch.func          the formula as `kdlib.losses.kd` has it

The first two are one operator of PyTorch, which `torch.compile` takes as it is. Its forward pass finds the
gradient too and keeps it in place of the logits; `backward` multiplies it by what arrives there. There is no
second derivative. KDLIB_KERNELS=0 in the environment keeps all in PyTorch.
"""

import os
import warnings
from importlib.util import find_spec

import torch
from torch import Tensor

from kdlib.losses import closed_form
from kdlib.losses.divergences import LossSettings, Reduction, weighted

_LARGE = 1 << 22  # logits; from here on the temporaries of the formula as written are what takes the time
_SLICE = 1 << 22  # logits that the closed form works on at once: 16 MB in float32
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def kd_terms_and_gradient(student_logits: Tensor, teacher_logits: Tensor | None, *rest):
    """`kdlib.losses.closed_form.kd_terms_and_gradient`, by kernels where they run. Overwrites the logits."""
    if not on_kernels(student_logits, teacher_logits):
        return closed_form.kd_terms_and_gradient(student_logits, teacher_logits, *rest)
    from kdlib.losses import kernels

    return kernels.kd_terms(student_logits, teacher_logits, *rest, gradient=student_logits), student_logits


def in_slices(logits: Tensor) -> bool:
    """Whether the closed form is faster: many logits, and code that is not compiled or of torch.func."""
    return (
        logits.numel() >= _LARGE
        and logits.device.type != "meta"
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def on_kernels(*logits: Tensor | None) -> bool:
    """Whether the kernels are to compute the loss of these logits."""
    return all(
        logit.is_cuda and logit.dtype in _KERNEL_DTYPES and _kernels_run_on(logit.device.index)
        for logit in logits if logit is not None
    )  # fmt: skip


_RUN_ON: dict[int, bool] = {}


def _kernels_run_on(device: int) -> bool:
    if os.environ.get("KDLIB_KERNELS") == "0":
        return False
    if device not in _RUN_ON:
        _RUN_ON[device] = (
            # AMD's GPUs are left to PyTorch: their warps have 64 lanes, and nothing here has run on one.
            torch.version.cuda is not None
            and torch.cuda.get_device_capability(device) >= (8, 0)
            and find_spec("triton") is not None
            and kernels_run(torch.device("cuda", device))
        )
    return _RUN_ON[device]


# Compiled code keeps what was found when it was compiled. This is all that
# torch.compiler.assume_constant_result does, but that imports torch._dynamo, which takes over a second.
_kernels_run_on._dynamo_marked_constant = True


def kernels_run(device: torch.device) -> bool:
    """Tries the kernels on two rows, and warns if Triton does not run."""
    from kdlib.losses import kernels

    zeros = torch.zeros(2, 8, device=device)
    try:
        terms = kernels.kd_terms(zeros, zeros, None, LossSettings(1.0, 0.0, "forward", 0.5))
        if terms.any():  # waits for the device, this once
            raise ArithmeticError(f"the divergence of a model from itself came out as {terms[1].tolist()}")
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"Triton does not run here ({type(error).__name__}: {reason}), so the distillation loss is left "
            "to PyTorch, slower and in more memory. Triton needs a C compiler and Python's headers; "
            "KDLIB_KERNELS=0 in the environment turns this message off",
            RuntimeWarning, stacklevel=2,
        )  # fmt: skip
        return False
    return True


def kd_loss_with_gradient(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor | None,
    settings: LossSettings, ignore_index: int, reduction: Reduction, *, kernels: bool,
) -> Tensor:  # fmt: skip
    """`kdlib.losses.kd.plain_kd_loss`: arguments, result and gradient are the same.

    With kernels `backward` scales the gradient in place, and autograd refuses a second one through the same
    loss (retain_graph=True), unless what arrives there is 1.
    """
    classes = student_logits.shape[-1]
    student = student_logits.reshape(-1, classes)
    teacher = None if teacher_logits is None else teacher_logits.detach().reshape(-1, classes)
    labels = None if labels is None else labels.flatten().long()
    temperature, alpha, divergence, beta = settings
    loss, _ = _loss_and_gradient(
        student, teacher, labels, float(temperature), float(alpha), divergence, float(beta), ignore_index,
        reduction, torch.is_grad_enabled() and student.requires_grad, kernels,
    )  # fmt: skip
    return loss.view(student_logits.shape[:-1]) if reduction == "none" else loss


@torch.library.custom_op("kdlib::kd_loss_and_gradient", mutates_args=())
def _loss_and_gradient(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, temperature: float, alpha: float,
    divergence: str, beta: float, ignore_index: int, reduction: str, wanted: bool, kernels: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The loss, (n,) or a scalar, and its gradient, a mean's 1 / count included; (0, V) if unwanted."""
    compute = _by_kernels if kernels else _in_slices
    settings = LossSettings(temperature, alpha, divergence, beta)
    return compute(student, teacher, labels, settings, ignore_index, reduction, wanted)


def _by_kernels(student, teacher, labels, settings, ignore_index, reduction, wanted):
    from kdlib.losses.kernels import kd_terms

    share = None
    if reduction == "mean":
        # full, not tensor: nothing is copied to the device, so nothing waits.
        every = torch.full((), len(student), device=student.device)
        counted = every if labels is None else (labels != ignore_index).sum()
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
    every = torch.arange(rows, device=student.device)
    counted = every if labels is None else every[labels != ignore_index]
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
        from kdlib.losses.kernels import scale_rows

        scale_rows(gradient, by)
    elif by.dim() or by.device.type != "cpu" or by != 1:  # on the CPU a look at the usual 1 is free
        gradient = gradient * (by.unsqueeze(-1) if by.dim() else by).to(gradient.dtype)
    return gradient, *(None,) * 10


_loss_and_gradient.register_autograd(_backward, setup_context=_remember)
