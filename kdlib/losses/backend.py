"""What computes a loss. Nothing else in the package knows of Triton.

    KL and JSD on NVIDIA GPUs from compute capability 8.0   `kdlib.losses.kernels`
    else, from four million logits on                       `kdlib.losses.closed_form`, some rows at a time
    fewer, compiled, of torch.func or forward mode          the formula as `kdlib.losses.kd` has it

The first two are one operator of PyTorch, which `torch.compile` takes as it is. Its forward pass finds the
gradient too and keeps it in place of the logits; `backward` multiplies it by what arrives there. There is no
second derivative: create_graph=True is refused, as what autograd would then find is not one. KDLIB_KERNELS=0
in the environment keeps all in PyTorch.
"""

import os
import warnings
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from kdlib.losses import closed_form
from kdlib.losses.divergences import Divergence, LossSettings, Reduction, weighted

_LARGE = 1 << 22  # logits; from here on the temporaries of the formula as written are what takes the time
_SLICE = 1 << 22  # logits that the closed form works on at once: 16 MB in float32
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def kd_terms_and_gradient(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, settings: LossSettings, width: int | None,
    *, scale: float | Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`kdlib.losses.closed_form.kd_terms_and_gradient`, by kernels where they run. Overwrites the logits."""
    given = (student, teacher, labels, settings, width)
    if not computed_by_kernels(settings, student, teacher):
        return closed_form.kd_terms_and_gradient(*given, scale=scale)
    from kdlib.losses import kernels

    return kernels.kd_terms(*given, gradient=student, gradient_scale=scale), student


def in_slices(logits: Tensor) -> bool:
    """Whether the closed form is faster: many logits, and code that is not compiled."""
    return (
        logits.numel() >= _LARGE
        and logits.device.type != "meta"
        and not torch.compiler.is_compiling()
    )  # fmt: skip


def is_transformed(logits: Tensor) -> bool:
    """Whether torch.func or forward-mode differentiation looks on, for which there is only the formula."""
    return not torch.compiler.is_compiling() and (
        torch._C._functorch.peek_interpreter_stack() is not None or unpack_dual(logits).tangent is not None
    )


def has_kernel(divergence: Divergence) -> bool:
    return divergence in ("forward", "reverse", "jsd")


def computed_by_kernels(settings: LossSettings, *logits: Tensor | None) -> bool:
    """Whether the kernels are to compute the loss of these logits."""
    return (settings.alpha == 1 or has_kernel(settings.divergence)) and on_kernels(*logits)


def on_kernels(*logits: Tensor | None) -> bool:
    """Whether the kernels run where these logits are, and on their dtypes."""
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
    loss (retain_graph=True).
    """
    classes = student_logits.shape[-1]
    student = student_logits.reshape(-1, classes)
    teacher = None if teacher_logits is None else teacher_logits.detach().reshape(-1, classes)
    labels = None if labels is None else labels.flatten().long()
    temperature, alpha, divergence, beta = settings
    # float16 has no numbers for a gradient's share of a mean: there backward multiplies by it, in float32.
    late = reduction == "mean" and student.dtype == torch.float16
    loss, _ = _loss_and_gradient(
        student, teacher, labels, float(temperature), float(alpha), divergence, float(beta), ignore_index,
        "sum" if late else reduction, torch.is_grad_enabled() and student.requires_grad, kernels,
    )  # fmt: skip
    if late:
        loss = loss / _counted(student, labels, ignore_index)
    return loss.view(student_logits.shape[:-1]) if reduction == "none" else loss


def _counted(logits: Tensor, labels: Tensor | None, ignore_index: int) -> Tensor:
    """How many rows count, at least 1, in float32 where the logits are: nothing waits for it."""
    # full, not tensor: nothing is copied to the device.
    every = torch.full((), len(logits), device=logits.device)
    return (every if labels is None else (labels != ignore_index).sum()).clamp(min=1).float()


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

    share = 1 / _counted(student, labels, ignore_index) if reduction == "mean" else 1.0
    gradient = student.new_empty(len(student) if wanted else 0, student.shape[1])
    terms = kd_terms(
        student, teacher, labels, settings, ignore_index=ignore_index,
        gradient=gradient if wanted else None, gradient_scale=share,
    )  # fmt: skip
    loss = weighted(*terms, settings.alpha)
    return loss if reduction == "none" else loss.sum() * share, gradient


def _in_slices(student, teacher, labels, settings, ignore_index, reduction, wanted):
    rows, classes = student.shape
    every = torch.arange(rows, device=student.device)
    counted = every if labels is None else every[labels != ignore_index]
    share = 1 / max(len(counted), 1) if reduction == "mean" else 1.0
    loss = student.new_zeros(rows, dtype=torch.promote_types(student.dtype, torch.float32))
    gradient = student.new_zeros(rows if wanted else 0, classes)
    for some in counted.split(max(1, _SLICE // classes)):
        some_labels = None if labels is None else labels[some]
        terms, slope = closed_form.kd_terms_and_gradient(
            student[some], teacher[some], some_labels, settings, scale=share
        )
        loss[some] = weighted(*terms, settings.alpha)
        if wanted:
            gradient[some] = slope
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
    refuse_second_derivative()
    (gradient,) = ctx.saved_tensors
    if by is not None:
        gradient = scaled(gradient, by, gradient.dtype, kernels=ctx.kernels, in_place=ctx.kernels)
    return None if by is None else gradient, *(None,) * 10


_loss_and_gradient.register_autograd(_backward, setup_context=_remember)


def refuse_second_derivative() -> None:
    """To be called in the backward of a gradient that forward has found, which is a constant to autograd."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "this loss has no second derivative: its gradient was found together with its value. Leave out "
            "create_graph=True; torch.func.grad and torch.func.hessian of kd_loss and soft_target_loss "
            "differentiate the formula instead"
        )


def scaled(gradient: Tensor, by: Tensor, dtype: torch.dtype, *, kernels: bool, in_place: bool) -> Tensor:
    """gradient · by, multiplied in the better of their dtypes; `in_place` if it is of `dtype` already.

    Then a factor of 1, the usual one, costs nothing with kernels and on a CPU, where a look at it is free.
    """
    same = gradient.dtype == dtype
    if same and in_place and kernels:
        from kdlib.losses.kernels import scale_rows

        scale_rows(gradient, by)
        return gradient
    if same and by.device.type == "cpu" and by.dim() == 0 and by == 1:
        return gradient
    # Of as many axes: a number would be rounded to half precision before it multiplies.
    by = by.reshape(by.shape + (1,) * (gradient.dim() - by.dim()))
    out = gradient if same and in_place else torch.empty_like(gradient, dtype=dtype)
    return torch.mul(gradient, by, out=out)
