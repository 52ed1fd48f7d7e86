"""The distillation loss on a GPU: loss and gradient of given logits, fused in one Triton kernel.

Written out in PyTorch the loss makes some ten float32 tensors of the size of the logits. None of them is
needed: each row of the logits is reduced to a handful of numbers, and with those the gradient of every logit follows
from the two logits of its class. One program takes one row, reads it twice (three times for JSD) and writes
the gradient, over the student's logits if asked. Nothing else of that size is ever held.

Notation: s, t logits of student and teacher, V classes, c = log2(e)/T, and A the classes that neither rules out
(`kdlib.losses.RULED_OUT`), among the first `width`. All sums are over A, those of the hard term over all V.

    p = exp(t/T) / Σ exp(t/T),  q = exp(s/T) / Σ exp(s/T),  r = log p − log q = (t − s)/T − δ

**What has to be known of a row before its gradient can be written**, and so the number of passes:

    forward  T·(q − p)                              the two log-sum-exps
    reverse  T·q·(log q − log p − KL)               the same and KL(q‖p); δ cancels, which leaves
             = q·((s − t) − E),  E = Σ q·(s − t)    one mean of raw logits under weights exp(s/T): it can be
                                                    had in the pass that sums the weights
    JSD      T·(1 − β)·q·(H − h),  H = Σ q·h,       h mixes p and q after each is normalised: no running sum
             h = log(m/q) = log(1 − β + β·exp r)    can be rescaled to it. One pass more
    hard     softmax(s) − onehot                    one log-sum-exp, at T = 1 and over V

The loss needs no pass of its own. It could be put together from the sums of the first pass, KL(p‖q) = Σ p·(t − s)/T
− δ, but that is a small difference of large numbers. It is summed where the gradient is written, from terms none
of which is negative (`kdlib.losses`, "Rounding").

**Terms near r = 0**, where p·r + q − p or log(m/q) would be all rounding, are polynomials of r:

    p·r + q − p = p·f(r),  q − p = p·(f(r) − r),  f(r) = r + exp(−r) − 1 = r²/2 − r³/6 + r⁴/24 − …
    JSD: β·p·r − m·h = m·(r·h′(r) − h(r)),  h(r) = Σ κₙ·rⁿ/n!,  r·h′ − h = Σ κₙ·rⁿ·(n − 1)/n!

h is the cumulant generating function of a coin that shows heads with probability β, h′(r) = β·p/m the probability
that a class drawn from m came from the teacher, and κₙ are the coin's cumulants.

**Costs**, per class of a row, in bf16 (two bytes) with alpha = 0; "exp" are exp2 and log2 on the special function
unit, of which a multiprocessor does 16 a clock beside 128 other operations (NVIDIA, CUDA Programming Guide,
arithmetic throughput, compute capability 9.0). alpha > 0 adds one exp to the first pass and one to the last.

                 bytes read and written                        exp                other operations, about
    forward      2·4 + 2 = 10                                  2 + 2              20 + 30
    reverse      2·4 + 2 = 10                                  2 + 2              24 + 30
    JSD          3·4 + 2 = 14                                  2 + 4 + 3          20 + 40 + 30
    hard only    2·2 + 2 =  6                                  1 + 1              10 + 8

(Operations are counted in the source, not measured.) A GPU that moves 4.3 TB/s and does 3.7 · 10¹² exp a second
thus waits for memory in all four.

This module needs Triton and is imported only where it is used: `kdlib.losses` and `kdlib.fused` ask `takes`.
On the CPU it runs in Triton's interpreter (TRITON_INTERPRET=1), which is how it is tested without a GPU.
"""

import contextlib
import math
from numbers import Real

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdlib.losses import RULED_OUT, Divergence, Reduction, _check_options

__all__ = ["fused_kd_loss", "kd_loss_and_gradient", "takes"]

_LOG2_E = tl.constexpr(math.log2(math.e))
_LN_2 = tl.constexpr(math.log(2))
_RULED_OUT = tl.constexpr(RULED_OUT)
_FORWARD, _REVERSE, _JSD = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_DIVERGENCES = {"forward": 0, "reverse": 1, "jsd": 2}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# --- one row ----------------------------------------------------------------------------------------


@triton.jit
def _pair(student_row, teacher_row, at, classes, width, floor):
    """Logits of a block: the student's as they are, then both with `floor` outside A (p = q = 0, r = −δ)."""
    raw = tl.load(student_row + at, mask=at < classes, other=-float("inf")).to(tl.float32)
    teacher = tl.load(teacher_row + at, mask=at < width, other=-float("inf")).to(tl.float32)
    # Not "both above": a NaN is to be seen in the loss, not to be left out.
    out = (raw <= _RULED_OUT) | (teacher <= _RULED_OUT)
    return raw, tl.where(out, floor, raw), tl.where(out, floor, teacher)


@triton.jit
def _step(highest, total, value, scale):
    """One more value in each lane's running maximum and sum of exp2((value − maximum)·scale).

    Whichever of the two is behind, one exp2 serves: it shrinks the old sum, or it is the new term. Lanes are
    joined once, at the end of the row: no lane waits for another, and no maximum is exchanged at each block.
    """
    ahead = value > highest
    behind = tl.exp2(-tl.abs(value - highest) * scale)
    keep, add = tl.where(ahead, behind, 1.0), tl.where(ahead, 1.0, behind)
    return tl.maximum(highest, value), total * keep + add, keep, add


@triton.jit
def _join(highest, total, scale):
    """The lanes' maxima and sums in one: maximum, log2 of the sum, and what each lane's sum is to be times."""
    top = tl.max(highest, axis=0)
    share = tl.exp2((highest - top) * scale)
    total = tl.sum(total * share, axis=0)
    return top, tl.log2(total), share / total


@triton.jit
def _kl_terms(p, q, r):
    """Terms of KL(p‖q), none negative, and q − p; r = log(p/q)."""
    near = tl.abs(r) < 0.25
    f = r * r * (1 / 2 + r * (-1 / 6 + r * (1 / 24 + r * (-1 / 120 + r * (1 / 720)))))
    difference = tl.where(near, p * (f - r), q - p)
    return tl.where(near, p * f, p * r + difference), difference


@triton.jit
def _log_mixture(r, beta):
    """log(m/q) and log(p/m), from r = log(p/q); neither overflows, and no large numbers are subtracted."""
    small = tl.exp2(-tl.abs(r) * _LOG2_E)
    rest = _LN_2 * tl.log2(tl.where(r > 0, beta + (1 - beta) * small, (1 - beta) + beta * small))
    v, w = beta * (1 - beta), 1 - 2 * beta
    k5 = v * w * (1 - 12 * v)
    k6 = v * (1 - 30 * v + 120 * v * v)
    h = r * (v / 2 + r * (v * w / 6 + r * (v * (1 - 6 * v) / 24 + r * (k5 / 120 + r * (k6 / 720)))))
    h = tl.where(tl.abs(r) < 0.5, r * (beta + h), tl.maximum(r, 0.0) + rest)
    return h, tl.minimum(r, 0.0) - rest


@triton.jit
def _jsd_terms(p, q, r, beta):
    """Terms of JSD, none negative, and h = log(m/q)."""
    h, log_p_m = _log_mixture(r, beta)
    v, w = beta * (1 - beta), 1 - 2 * beta
    k5 = v * w * (1 - 12 * v)
    k6 = v * (1 - 30 * v + 120 * v * v)
    k7 = v * w * (1 - 60 * v + 360 * v * v)
    g = r * (v * w / 3 + r * (v * (1 - 6 * v) / 8 + r * (k5 / 30 + r * (k6 / 144 + r * (k7 / 840)))))
    g = r * r * (v / 2 + g)
    mixed = beta * p + (1 - beta) * q
    return tl.where(tl.abs(r) < 0.5, mixed * g, beta * p * log_p_m - (1 - beta) * q * h), h


@triton.jit
def _loss_and_gradient(
    student, teacher, labels, loss, gradient, gradient_scale,
    student_stride, teacher_stride, gradient_stride, classes, width, ignore_index,
    temperature, floor, alpha, beta,
    DIVERGENCE: tl.constexpr, SOFT: tl.constexpr, HARD: tl.constexpr, LABELS: tl.constexpr,
    GRADIENT: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss and gradient of row program_id(0). Derivation, bytes and operations: at the top of this module.

    The gradient may be written over the student's logits: a class is written by the program, the block and
    the lane that have read it, in the last pass. That pass goes from the end of the row to its beginning, as
    what the pass before has read last is the likeliest to be still in the cache.
    """
    row = tl.program_id(0).to(tl.int64)  # row · stride may be beyond int32
    student_row = student + row * student_stride
    teacher_row = teacher + row * teacher_stride
    gradient_row = gradient + row * gradient_stride
    lane = tl.arange(0, BLOCK)
    blocks = tl.cdiv(classes, BLOCK)

    label = -1
    if LABELS:
        label = tl.load(labels + row)
        if label == ignore_index:
            tl.store(loss + row, 0.0)
            if GRADIENT:
                for block in range(blocks):
                    at = block * BLOCK + lane
                    nothing = tl.zeros([BLOCK], dtype=gradient.dtype.element_ty)
                    tl.store(gradient_row + at, nothing, mask=at < classes)
            return

    # First pass: maxima and sums, and for the reverse divergence Σ exp(s/T)·(s − t).
    inverse = 1 / temperature
    scale = _LOG2_E * inverse
    student_high = tl.zeros([BLOCK], dtype=tl.float32) + floor
    teacher_high = student_high
    raw_high = tl.full([BLOCK], _RULED_OUT, dtype=tl.float32)
    student_sum = tl.zeros([BLOCK], dtype=tl.float32)
    teacher_sum = tl.zeros([BLOCK], dtype=tl.float32)
    raw_sum = tl.zeros([BLOCK], dtype=tl.float32)
    lead_sum = tl.zeros([BLOCK], dtype=tl.float32)
    for block in range(blocks):
        at = block * BLOCK + lane
        if SOFT:
            raw, s, t = _pair(student_row, teacher_row, at, classes, width, floor)
            student_high, student_sum, keep, add = _step(student_high, student_sum, s, scale)
            teacher_high, teacher_sum, _, _ = _step(teacher_high, teacher_sum, t, scale)
            if DIVERGENCE == _REVERSE:
                lead_sum = lead_sum * keep + add * (s - t)
        else:
            raw = tl.load(student_row + at, mask=at < classes, other=-float("inf")).to(tl.float32)
        if HARD:
            raw_high, raw_sum, _, _ = _step(raw_high, raw_sum, raw, _LOG2_E)

    row_loss = 0.0
    hard_slope, soft_slope = alpha, 1 - alpha  # of the loss, by softmax(s) − onehot and by what stands at the top
    if SCALED:
        by = tl.load(gradient_scale)
        hard_slope, soft_slope = hard_slope * by, soft_slope * by
    if HARD:
        raw_top, raw_log, _ = _join(raw_high, raw_sum, _LOG2_E)
        valid = (label >= 0) & (label < classes)  # NaN rather than a read from somewhere else
        chosen = tl.load(student_row + label, mask=valid, other=float("nan")).to(tl.float32)
        row_loss = alpha * ((raw_top - chosen) + _LN_2 * raw_log)
    if SOFT:
        student_top, student_log, student_share = _join(student_high, student_sum, scale)
        teacher_top, teacher_log, _ = _join(teacher_high, teacher_sum, scale)
        # What is left of δ once the maxima are taken off the logits.
        shift = _LN_2 * (teacher_log - student_log)
        lead = tl.sum(lead_sum * student_share, axis=0)
        terms = tl.zeros([BLOCK], dtype=tl.float32)

        # JSD: a pass for the loss and H.
        mixture = 0.0
        if DIVERGENCE == _JSD:
            weighted = tl.zeros([BLOCK], dtype=tl.float32)
            for back in range(blocks):
                at = (blocks - 1 - back) * BLOCK + lane
                _, s, t = _pair(student_row, teacher_row, at, classes, width, floor)
                s, t = s - student_top, t - teacher_top
                p, q = tl.exp2(t * scale - teacher_log), tl.exp2(s * scale - student_log)
                term, h = _jsd_terms(p, q, (t - s) * inverse - shift, beta)
                terms += term
                weighted += q * h
            mixture = tl.sum(weighted, axis=0)

    # Last pass: the loss of the two KL divergences, and the gradient.
    if GRADIENT or (SOFT and DIVERGENCE != _JSD):
        for step in range(blocks):
            # Away from where the pass before has ended: JSD's own went backwards.
            at = (step if SOFT and DIVERGENCE == _JSD else blocks - 1 - step) * BLOCK + lane
            slope = tl.zeros([BLOCK], dtype=tl.float32)
            if SOFT:
                raw, s, t = _pair(student_row, teacher_row, at, classes, width, floor)
                difference = s - t
                s, t = s - student_top, t - teacher_top
                q = tl.exp2(s * scale - student_log)
                r = (t - s) * inverse - shift
                if DIVERGENCE == _JSD:
                    h, _ = _log_mixture(r, beta)
                    slope = soft_slope * temperature * (1 - beta) * q * (mixture - h)
                else:
                    p = tl.exp2(t * scale - teacher_log)
                    if DIVERGENCE == _FORWARD:
                        term, change = _kl_terms(p, q, r)
                        slope = soft_slope * temperature * change
                    else:
                        term, _ = _kl_terms(q, p, -r)
                        slope = soft_slope * q * (difference - lead)
                    terms += term
            else:
                raw = tl.load(student_row + at, mask=at < classes, other=-float("inf")).to(tl.float32)
            if GRADIENT:
                if HARD:
                    q = tl.exp2((raw - raw_top) * _LOG2_E - raw_log)
                    slope += hard_slope * (q - tl.where(at == label.to(tl.int32), 1.0, 0.0))
                tl.store(gradient_row + at, slope.to(gradient.dtype.element_ty), mask=at < classes)

    if SOFT:
        row_loss += (1 - alpha) * temperature * temperature * tl.sum(terms, axis=0)
    tl.store(loss + row, row_loss)


@triton.jit
def _scale_rows(gradient, factors, stride, factor_stride, classes, BLOCK: tl.constexpr):
    """gradient row · factor, in place. A factor of 1, the usual one, costs one read of it and no more."""
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(factors + row * factor_stride)
    if factor != 1.0:
        for block in range(tl.cdiv(classes, BLOCK)):
            at = block * BLOCK + tl.arange(0, BLOCK)
            values = tl.load(gradient + row * stride + at, mask=at < classes).to(tl.float32)
            scaled = (values * factor).to(gradient.dtype.element_ty)
            tl.store(gradient + row * stride + at, scaled, mask=at < classes)


# --- launching --------------------------------------------------------------------------------------

# (up to this many classes, BLOCK, warps). Eight classes a lane: 16 bytes of bf16, the widest load there is, and at
# most six running vectors of eight registers, which leaves room for three or four programs on a multiprocessor,
# so that one row's joins are hidden behind another's loads. BLOCK is never below 8 · 32 · warps: were it smaller,
# two warps would hold the same class, and one could read it after the other has written the gradient there.
# Candidates for the last line, still to be timed on a GPU: (2048, 8), (4096, 8), (4096, 16), (8192, 32).
LAUNCHES = ((256, 256, 1), (512, 512, 2), (1024, 1024, 4), (math.inf, 2048, 8))


def takes(*logits: Tensor | None) -> bool:
    """Whether the kernels can be used for these logits: float32 or half precision, on a GPU of 2020 or later."""
    present = [tensor for tensor in logits if tensor is not None]
    return all(tensor.dtype in _DTYPES and tensor.is_cuda for tensor in present) and all(
        torch.version.hip or torch.cuda.get_device_capability(tensor.device) >= (8, 0) for tensor in present
    )


def kd_loss_and_gradient(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    *,
    temperature: float,
    alpha: float,
    divergence: Divergence,
    beta: float = 0.5,
    width: int | None = None,
    ignore_index: int = -100,
    gradient_scale: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """α·CE(label, student) + (1 − α)·T²·D(teacher, student) of each row, and its gradient.

    What `kdlib.losses.kd_loss` gives with reduction="none", and the derivative of each row's loss with respect to
    that row of the logits. A class that either model rules out is left out of the soft term. All arithmetic is
    float32, and every gradient is rounded once.

    Args:
        student_logits: (n, V) float32, bfloat16 or float16. Rows may be strided.
        teacher_logits: (n, W), likewise; its dtype may be another. Not read, and may be None, where alpha is 1.
        labels: (n,) integers in [0, V), or ignore_index: loss and gradient of such a row are zero, and its
            logits are not read. None where alpha is 0. Other labels give a loss of NaN; as nothing is waited
            for, they are not looked for.
        temperature, alpha, divergence, beta: see `kdlib.losses.kd_loss`.
        width: how many of the first classes the soft term compares, where vocabularies differ by padding. None
            means V, and then W must be V. The hard term is over all V classes.
        gradient_scale: float32 tensor of one element on the same device, which multiplies the gradient and not
            the loss: 1 / tokens for a mean, before the gradient is rounded and without waiting for the count.
        out: (n, V) of the student's dtype, to hold the gradient. May be student_logits itself, which is then
            overwritten.

    Returns:
        (n,) float32 losses in nats times T², and (n, V) gradients in the student's dtype: `out` if given.

    Raises:
        ValueError: naming the argument, its value and what was expected.
    """
    width = _checked_width(student_logits, teacher_logits, labels, alpha, width)
    _check_options(temperature, divergence, beta, "none")
    if out is None:
        out = torch.empty(student_logits.shape, dtype=student_logits.dtype, device=student_logits.device)
    elif (
        out.shape != student_logits.shape or out.dtype != student_logits.dtype
        or out.device != student_logits.device or not _rows_apart(out)
    ):  # fmt: skip
        raise ValueError(
            f"out has shape {tuple(out.shape)}, {out.dtype}, strides {out.stride()} on {out.device}; expected "
            f"{tuple(student_logits.shape)}, {student_logits.dtype} on {student_logits.device}, each row in one "
            "piece and none over another"
        )
    loss = _launch(
        student_logits, teacher_logits, labels, temperature, alpha, divergence, beta, width, ignore_index,
        gradient_scale, out,
    )  # fmt: skip
    return loss, out


def _launch(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, temperature: float, alpha: float,
    divergence: str, beta: float, width: int, ignore_index: int, gradient_scale: Tensor | None, out: Tensor | None,
) -> Tensor:  # fmt: skip
    """(n,) losses; the gradient goes to `out`, or is left out with its pass where the loss needs none."""
    rows, classes = student.shape
    loss = torch.empty(rows, dtype=torch.float32, device=student.device)
    if rows == 0:
        return loss
    soft, hard = alpha < 1, alpha > 0
    student = student if student.stride(-1) == 1 else student.contiguous()
    teacher = student if not soft else teacher if teacher.stride(-1) == 1 else teacher.contiguous()
    labels = None if labels is None else labels.long().contiguous()
    block, warps = _launch_size(classes)
    with torch.cuda.device(student.device) if student.is_cuda else contextlib.nullcontext():
        _loss_and_gradient[(rows,)](
            student, teacher, loss if labels is None else labels, loss,
            student if out is None else out, loss if gradient_scale is None else gradient_scale,
            student.stride(0), teacher.stride(0), 0 if out is None else out.stride(0),
            classes, width, ignore_index, float(temperature),
            # For T < 1, so that nothing overflows when it is divided by T.
            RULED_OUT * min(1.0, temperature), float(alpha), float(beta),
            DIVERGENCE=_DIVERGENCES[divergence], SOFT=soft, HARD=hard, LABELS=labels is not None,
            GRADIENT=out is not None, SCALED=gradient_scale is not None, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return loss


def _launch_size(classes: int) -> tuple[int, int]:
    return next((block, warps) for most, block, warps in LAUNCHES if classes <= most)


def _rows_apart(tensor: Tensor) -> bool:
    return tensor.stride(-1) == 1 and (tensor.shape[0] < 2 or tensor.stride(0) >= tensor.shape[1])


# --- what is refused --------------------------------------------------------------------------------


def _checked_width(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, alpha: float, width: int | None
) -> int:
    if not isinstance(alpha, Real) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha, the weight of the hard label, must lie in [0, 1]; got {alpha}")
    _check_rows("student_logits", student, student)
    rows, classes = student.shape
    if labels is None:
        if alpha > 0:
            raise ValueError(f"labels is None; expected labels, as alpha is {alpha}, or alpha=0")
    elif labels.shape != (rows,) or labels.device != student.device or labels.is_floating_point():
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}, {labels.dtype} on {labels.device}; expected integers "
            f"({rows},) on {student.device}"
        )
    if alpha == 1:
        return classes
    if teacher is None:
        raise ValueError(f"teacher_logits is None; expected logits, as alpha is {alpha}, or alpha=1")
    _check_rows("teacher_logits", teacher, student)
    if width is None and teacher.shape[1] != classes:
        raise ValueError(
            f"teacher_logits has {teacher.shape[1]} classes but student_logits has {classes}; where vocabularies "
            "differ by padding only, say with width how many classes both have"
        )
    width = classes if width is None else width
    if not 1 <= width <= min(classes, teacher.shape[1]):
        raise ValueError(
            f"width is {width}; expected 1 to {min(classes, teacher.shape[1])}, the classes that both logits have"
        )
    return width


def _check_rows(name: str, logits: Tensor, student: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[0] != student.shape[0] or logits.shape[1] < 2:
        raise ValueError(f"{name} has shape {tuple(logits.shape)}; expected ({student.shape[0]}, two or more)")
    if logits.dtype not in _DTYPES:
        raise ValueError(f"{name} is {logits.dtype}; expected float32, bfloat16 or float16")
    if logits.device != student.device:
        raise ValueError(f"{name} is on {logits.device}; expected {student.device}, as student_logits")
    if logits.device.type == "cpu" and isinstance(_loss_and_gradient, triton.JITFunction):
        raise ValueError(f"{name} is on the CPU; expected a GPU, or Triton's interpreter (TRITON_INTERPRET=1)")


# --- for autograd and torch.compile -----------------------------------------------------------------


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
    """`kdlib.losses.kd_loss`, on the kernels: arguments, result and gradient are the same.

    The gradient is computed with the loss, held in the student's dtype in place of the logits, and multiplied in
    `backward` by what arrives there, unless that is 1. It is multiplied in place: a second `backward` through the
    same loss (retain_graph=True) is refused by autograd. There is no second derivative. `torch.compile` takes it
    as one operation, without a break of the graph.

    Args:
        student_logits, teacher_logits: (..., V), V ≥ 2, float32, bfloat16 or float16, on a GPU.
        labels: (...) integers; None means that alpha is 0.
        temperature, alpha, divergence, beta, ignore_index, reduction: see `kdlib.losses.kd_loss`.

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

    The mean's 1 / count is in the gradient already: its usual factor in backward is then 1, and nothing is to do.
    """
    rows, classes = student.shape
    out = student.new_empty((rows if wanted else 0, classes))
    share = None
    if reduction == "mean":
        counted = student.new_full((), rows) if labels is None else (labels != ignore_index).sum()
        share = 1 / counted.clamp(min=1).float()
    loss = _launch(
        student, teacher, labels, temperature, alpha, divergence, beta, classes, ignore_index,
        share, out if wanted else None,
    )  # fmt: skip
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
    rows, classes = gradient.shape
    if rows == 0:
        return
    block, warps = _launch_size(classes)
    with torch.cuda.device(gradient.device) if gradient.is_cuda else contextlib.nullcontext():
        _scale_rows[(rows,)](
            gradient, factors, gradient.stride(0), factors.stride(0) if factors.dim() else 0, classes,
            BLOCK=block, num_warps=warps,
        )  # fmt: skip


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
