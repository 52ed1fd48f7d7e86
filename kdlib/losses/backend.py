"""What computes a loss. Nothing else in the package knows of Triton.

    on NVIDIA GPUs from compute capability 8.0             `kdlib.losses.kernels`
    elsewhere, from four million logits on                 `kdlib.losses.closed_form`, some rows at a time
    fewer, compiled, or transformed by torch.func          the formula as `kdlib.losses.kd` has it

KDLIB_KERNELS=0 in the environment keeps all in PyTorch.
"""

import os
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from kdlib.losses import closed_form
from kdlib.losses.divergences import LossSettings

__all__ = ["faster_kd_loss", "kd_terms_and_gradient", "on_kernels"]

_LARGE = 1 << 22  # logits; from here on the temporaries of the formula as written are what takes the time
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def faster_kd_loss(student_logits: Tensor, teacher_logits: Tensor | None) -> Callable[..., Tensor] | None:
    """What computes `kd_loss` of such logits faster than its formula as written, or None if nothing does.

    Args:
        teacher_logits: None where the soft term has no weight.
    """
    kernels = on_kernels(student_logits, teacher_logits)
    if not kernels and (teacher_logits is None or not in_slices(student_logits)):
        return None
    from kdlib.losses.operators import kd_loss_with_gradient

    return partial(kd_loss_with_gradient, kernels=kernels)


def kd_terms_and_gradient(student_logits: Tensor, teacher_logits: Tensor | None, *rest):
    """`kdlib.losses.closed_form.kd_terms_and_gradient`, by kernels where they run. Overwrites the logits."""
    if not on_kernels(student_logits, teacher_logits):
        return closed_form.kd_terms_and_gradient(student_logits, teacher_logits, *rest)
    from kdlib.losses import kernels

    return kernels.kd_terms(student_logits, teacher_logits, *rest, gradient=student_logits), student_logits


def in_slices(logits: Tensor) -> bool:
    """Whether there are so many logits that loss and gradient are better computed some rows at a time.

    Not in code that is compiled, which needs no temporaries, or transformed by torch.func.
    """
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


# Compiled code keeps what was found when it was compiled.
@torch.compiler.assume_constant_result
def _kernels_run_on(device: int) -> bool:
    if os.environ.get("KDLIB_KERNELS") == "0":
        return False
    if device not in _RUN_ON:
        _RUN_ON[device] = _tried_on(torch.device("cuda", device))
    return _RUN_ON[device]


def _tried_on(device: torch.device) -> bool:
    # AMD's GPUs are left to PyTorch: their warps have 64 lanes, and nothing here has run on one.
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return find_spec("triton") is not None and kernels_run(device)


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
            f"Triton does not run here ({type(error).__name__}: {reason}), so the distillation loss is "
            "left to PyTorch: the same result, more slowly and in more memory. Triton needs a C compiler and "
            "Python's headers; KDLIB_KERNELS=0 in the environment says that this is meant",
            RuntimeWarning, stacklevel=2,
        )  # fmt: skip
        return False
    return True
