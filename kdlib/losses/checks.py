"""What the losses refuse: each `ValueError` names the argument, its value and what was expected."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from kdlib.losses.divergences import DIVERGENCES, OF_MIXTURE, RULED_OUT, LossSettings

SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE = 1e-18, 1e18


def check_temperature(temperature: float) -> None:
    if not isinstance(temperature, Real) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive finite number; got {temperature!r}")


def check_settings(settings: LossSettings, reduction: str) -> None:
    temperature, alpha, divergence, beta = settings
    check_temperature(temperature)
    if not SMALLEST_TEMPERATURE <= temperature <= LARGEST_TEMPERATURE:
        raise ValueError(
            f"temperature must lie between {SMALLEST_TEMPERATURE:g} and {LARGEST_TEMPERATURE:g} in a loss; "
            f"got {temperature}. Beyond, T² or z / T is no number of float32"
        )
    if not isinstance(alpha, Real) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha, the weight of the hard label, must lie in [0, 1]; got {alpha!r}")
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}; got {divergence!r}")
    if divergence in OF_MIXTURE and not (isinstance(beta, Real) and 0 < beta < 1):
        raise ValueError(
            f"beta must lie strictly between 0 and 1; got {beta}. At the ends it is 0 or KL: for these "
            'limits use divergence="forward" (beta to 0) or "reverse" (beta to 1)'
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none"; got {reduction!r}')


def check_ignored(ignore_index: int) -> None:
    if not isinstance(ignore_index, Integral):
        raise ValueError(f"ignore_index must be a whole number, the label left out; got {ignore_index}")


def check_logits(name: str, logits: Tensor) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = getattr(logits, "dtype", type(logits).__name__)
        raise ValueError(f"{name} must be a floating-point tensor of logits; got {kind}")
    if logits.dim() == 0:
        raise ValueError(f"{name} must have a class axis, shape (..., C); got a scalar")


def check_classes(name: str, logits: Tensor) -> None:
    """Logits of two classes or more, and no probabilities."""
    check_logits(name, logits)
    if logits.shape[-1] < 2:
        raise ValueError(
            f"{name} has a class axis of {logits.shape[-1]}, shape {tuple(logits.shape)}; expected two "
            "classes or more, softmax over one is always 1. A sigmoid classifier with one logit z is "
            "the two-class softmax of [0, z]: pass torch.cat([torch.zeros_like(z), z], dim=-1)"
        )
    if _may_look_at_values(name, logits) and _are_probabilities(logits):
        raise ValueError(
            f"{name} holds probabilities (each row lies in [0, 1] and sums to 1); expected logits. "
            "Pass the model's output before softmax, or the logarithm of the probabilities"
        )


def check_models(student_logits: Tensor, teacher_logits: Tensor | None, *, needed: bool) -> None:
    """Logits of one shape on one device; those of the teacher may be None where they are not needed."""
    if teacher_logits is None and needed:
        raise ValueError("teacher_logits is None: only alpha=1 with labels can do without a teacher")
    check_classes("student_logits", student_logits)
    if teacher_logits is None:
        return
    check_classes("teacher_logits", teacher_logits)
    if (student_logits.shape, student_logits.device) != (teacher_logits.shape, teacher_logits.device):
        raise ValueError(
            f"student_logits has shape {tuple(student_logits.shape)} on {student_logits.device}, but "
            f"teacher_logits has {tuple(teacher_logits.shape)} on {teacher_logits.device}; expected the same"
            ". Where vocabularies differ by padding only, slice both to the common classes"
        )


_looked_at: set[tuple[str, torch.device, int]] = set()


def _may_look_at_values(name: str, tensor: Tensor) -> bool:
    """Whether a check may read values: always on the CPU, once per kind of input elsewhere.

    Not of code that is compiled or of torch.func: a batch of vmap has no one value.
    """
    if torch.compiler.is_compiling() or tensor.device.type == "meta":
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    key = (name, tensor.device, tensor.shape[-1])
    first = key not in _looked_at
    _looked_at.add(key)
    return first or tensor.device.type == "cpu"


def _are_probabilities(logits: Tensor) -> bool:
    """Whether the first rows lie in [0, 1] and sum to 1. Not so if all are one-hot, which can be logits.

    Of very few numbers nothing is said: two logits of one row do so by chance, once in thousands.
    """
    rows = logits.detach().reshape(-1, logits.shape[-1])[:64].float()
    if len(rows) < 4 and rows.numel() < 12:
        return False
    off = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 2e-2
    within = (rows >= 0).all() and (rows <= 1).all() and ((rows.sum(-1) - 1).abs() < off).all()
    return bool(rows.numel() and within and (rows != rows.round()).any())


def _check_positions(name: str, tensor: Tensor, student: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor; got {type(tensor).__name__}")
    if (tensor.shape, tensor.device) != (student.shape[:-1], student.device):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} on {tensor.device}; expected {tuple(student.shape[:-1])}"
            f" on {student.device}, as the student's {tuple(student.shape)} without the last axis"
        )


def check_mask(mask: Tensor | None, student_logits: Tensor) -> None:
    if mask is not None:
        _check_positions("mask", mask, student_logits)
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool, True where a position counts; got {mask.dtype}")


def check_labels(labels: Tensor, student: Tensor, classes: int, ignore_index: int | None) -> None:
    """Labels of positions of the student's logits or hidden states."""
    _check_positions("labels", labels, student)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers (class indices); got {labels.dtype}")
    if _may_look_at_values("labels", student):
        labels = labels.long()  # the number of classes need not be one of eight bits
        outside = (labels < 0) | (labels >= classes)
        outside = outside if ignore_index is None else outside & (labels != ignore_index)
        if outside.any():
            raise ValueError(
                f"labels holds {labels[outside][0].item()}; expected 0 to {classes - 1} for {classes} "
                f"classes, or ignore_index={ignore_index}"
            )


def check_possible(labels: Tensor, student_logits: Tensor, ignore_index: int) -> None:
    """No label at a class that the student rules out: the cross-entropy would be infinite."""
    if _may_look_at_values("possible labels", student_logits):
        counted = labels != ignore_index
        chosen = student_logits.gather(-1, labels.masked_fill(~counted, 0).long().unsqueeze(-1))
        impossible = counted & (chosen.squeeze(-1) <= RULED_OUT)
        if impossible.any():
            raise ValueError(
                f"labels holds {labels[impossible][0].item()} where student_logits rules that class out "
                "with -inf; expected a class with a finite logit, or ignore_index"
            )


def check_top_k(student_logits: Tensor, teacher: tuple[Tensor, Tensor, Tensor]) -> None:
    if not hasattr(teacher, "log_tail"):
        raise ValueError(f"teacher must be a TopK, as top_k_of makes it; got {type(teacher).__name__}")
    values, indices, log_tail = teacher
    *positions, classes = student_logits.shape
    if [*values.shape[:-1]] != positions or indices.shape != values.shape or [*log_tail.shape] != positions:
        raise ValueError(
            f"teacher has values {tuple(values.shape)}, indices {tuple(indices.shape)} and log_tail "
            f"{tuple(log_tail.shape)}; expected (..., k), (..., k) and (...) with the positions of "
            f"student_logits {tuple(student_logits.shape)}"
        )
    if indices.numel() and _may_look_at_values("teacher.indices", student_logits):
        low, high = indices.min().item(), indices.max().item()
        if low < 0 or high >= classes:
            raise ValueError(
                f"teacher.indices holds {low if low < 0 else high}; expected 0 to {classes - 1}, the classes "
                "of student_logits: is the teacher's vocabulary larger? Cut its logits first"
            )
        if (indices.sort(dim=-1).values.diff(dim=-1) == 0).any():
            raise ValueError("teacher.indices names a class twice in one position; expected k different ones")


def check_linear(student_hidden: Tensor, teacher: object, weight: Tensor | None) -> None:
    """The teacher is a tensor of hidden states beside its layer's weight, or a `TopK` beside None."""
    if teacher is None:
        raise ValueError("teacher_hidden is None: only alpha=1 with labels can do without a teacher")
    stored = hasattr(teacher, "log_tail")
    if stored != (weight is None):
        raise ValueError(
            f"teacher_weight is {'given' if stored else None}; expected the weight of the teacher's output "
            "layer beside its hidden states, or None beside a TopK"
        )
    positions = teacher.log_tail if stored else teacher[..., 0]
    _check_positions("teacher_hidden without its last axis", positions, student_hidden)


def check_same_positions(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Logits of the same positions, over vocabularies of any size."""
    check_classes("student_logits", student_logits)
    check_classes("teacher_logits", teacher_logits)
    _check_positions("teacher_logits without its last axis", teacher_logits[..., 0], student_logits)


def check_aligned(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], classes: int) -> None:
    """Two sides of `aligned_loss` with as many groups, and every token in one of the classes."""
    for name, side in {"student": student, "teacher": teacher}.items():
        check_classes(f"{name}.logits", side.logits)
        for part in ("targets", "groups"):
            _check_positions(f"{name}.{part}", getattr(side, part), side.logits)
        if side.classes.shape != side.logits.shape[-1:]:
            raise ValueError(
                f"{name}.classes has shape {tuple(side.classes.shape)}; expected a class for each of the "
                f"{side.logits.shape[-1]} logits"
            )
        if side.firsts.shape != student.firsts.shape:
            raise ValueError(
                f"teacher.firsts has {len(side.firsts)} groups and student.firsts {len(student.firsts)}; "
                "expected the same groups on both sides"
            )
        if _may_look_at_values(f"{name}.classes", side.logits):
            if side.classes.min() < 0 or side.classes.max() >= classes:
                raise ValueError(f"{name}.classes reaches beyond 0 to {classes - 1}, the classes")
            expected = torch.arange(len(side.firsts), device=side.groups.device)
            begins = side.groups.diff(prepend=side.groups.new_full((1,), -1)) != 0
            if not torch.equal(side.groups[side.firsts], expected) or not begins[side.firsts].all():
                raise ValueError(
                    f"{name}.firsts are not where groups begin; expected groups from 0 on, each of "
                    "neighbouring tokens, and the place of the first token of each"
                )
