"""The distillation loss on a GPU: loss and gradient of given logits, fused in one Triton kernel.

Written out in PyTorch the loss makes some ten float32 tensors of the size of the logits. None is needed: each
row of the logits is reduced to a handful of numbers, and with those the gradient of every logit follows from
the two logits of its class. One program takes one row, reads it twice (three times for JSD) and writes the
gradient, over the student's logits if asked. Nothing else of that size is ever held.

Notation: s, t logits of student and teacher, V classes, A those classes among the first `width` that neither
rules out (`kdlib.losses.kd.RULED_OUT`). Sums are over A, and those of the hard term over V.

    p = exp(t/T) / Σ exp(t/T),  q = exp(s/T) / Σ exp(s/T),  r = log p − log q = (t − s)/T − δ

**What has to be known of a row before its gradient can be written**, and so the number of passes:

    forward  T·(q − p)                              the two log-sum-exps
    reverse  T·q·(log q − log p − KL)               the same and KL(q‖p); δ cancels, which leaves
             = q·((s − t) − E),  E = Σ q·(s − t)    one mean of raw logits under weights exp(s/T): it can be
                                                    had in the pass that sums the weights
    JSD      T·(1 − β)·q·(H − h),  H = Σ q·h,       h mixes p and q after each is normalised: no running sum
             h = log(m/q) = log(1 − β + β·exp r)    can be rescaled to it. One pass more
    hard     softmax(s) − onehot                    one log-sum-exp, at T = 1 and over V

The loss needs no pass of its own. It could be put together from sums of the first pass, KL(p‖q) =
Σ p·(t − s)/T − δ, but that is a small difference of large numbers. It is summed where the gradient is written
(for JSD in the pass for H), from terms none of which is negative (`kdlib.losses.kd`, "Rounding").

**Terms near r = 0**, where p·r + q − p or log(m/q) would be all rounding, are polynomials of r:

    p·r + q − p = p·f(r),  q − p = p·(f(r) − r),  f(r) = r + exp(−r) − 1 = r²/2 − r³/6 + r⁴/24 − …
    JSD: β·p·log(p/m) + (1 − β)·q·log(q/m) = m·(r·h′(r) − h(r))
         h(r) = Σ κₙ·rⁿ/n!,  r·h′ − h = Σ κₙ·rⁿ·(n − 1)/n!

h is the cumulant generating function of a coin that shows heads with probability β, h′(r) = β·p/m the
probability that a class drawn from m came from the teacher, and κₙ are the coin's cumulants: β, v = β(1 − β),
v(1 − 2β), v(1 − 6v), v(1 − 2β)(1 − 12v). Cut off where the next term is below 1e-4 of the first at |r| = 1/4.

**Costs**, of a class in a row, one column for each pass. Bytes are those of bf16. Operations are counted in
what ptxas makes of the kernel for compute capability 9.0 (Triton 3.9; loops of the SASS divided by the eight
classes of a lane), "exp" among them those of the special function unit, of which a multiprocessor does 16 a
clock, where it issues 128 of all kinds (CUDA C++ Programming Guide, arithmetic instructions).

                           bytes                 operations              exp                    registers
    forward                4,  6                 20, 31                  2.3, 2                 40
    reverse                4,  6                 22, 32                  2.3, 2                 40
    JSD                    4,  4,  6             19, 45, 33              2.3, 4, 3              58
    hard alone             2,  4                 8,  11                  1.1, 1                 32
    hard beside a soft     0,  0,  0             4,  0,  8 or 9          1.1, 0, 1              48, 62

None has been timed on a GPU yet. For scale: 132 multiprocessors at 1.7 GHz issue 29 · 10¹² operations a
second and do 3.6 · 10¹² exp, while 4.3 TB/s move; for forward KL that is 1.8 ps, 1.2 ps and 2.3 ps a class,
for JSD 3.3 ps, 2.6 ps and 3.3 ps: KL should wait for memory, and JSD is about balanced.

This module needs Triton, and is imported only by what then asks `takes`. With TRITON_INTERPRET=1 it runs on
the CPU in Triton's interpreter, which is how its results are tested without a GPU; it is also compiled for
GPUs that are not there, as the interpreter forgives what the compiler does not.
"""

import contextlib
import math
import warnings

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from kdlib.losses.kd import RULED_OUT, Divergence, _check_alpha, _check_options

__all__ = ["kd_terms_and_gradient", "scale_rows", "takes"]

_LOG2_E = tl.constexpr(math.log2(math.e))
_LN_2 = tl.constexpr(math.log(2))
_RULED_OUT = tl.constexpr(RULED_OUT)
_FORWARD, _REVERSE, _JSD = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_DIVERGENCES = {"forward": 0, "reverse": 1, "jsd": 2}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# --- one row ----------------------------------------------------------------------------------------
#
# A block is LANES × EACH classes: each lane holds EACH neighbours, one load of 16 bytes.


@triton.jit
def _pair(student_row, teacher_row, at, classes, width, floor):
    """Logits of a block: the student's as they are, then both with `floor` outside A (p = q = 0, r = −δ)."""
    raw = tl.load(student_row + at, mask=at < classes, other=-float("inf")).to(tl.float32)
    teacher = tl.load(teacher_row + at, mask=at < width, other=-float("inf")).to(tl.float32)
    # Not "both above": a NaN is to be seen in the loss, not to be left out.
    out = (raw <= _RULED_OUT) | (teacher <= _RULED_OUT)
    return raw, tl.where(out, floor, raw), tl.where(out, floor, teacher)


@triton.jit
def _step(offset, total, values, scale):
    """Each lane's sum of exp2(value·scale − offset), with EACH more values; offset is the largest so far.

    No lane waits for another before the end of the row, and the old sum is rescaled once for EACH values. All
    that follows is relative to the offset as it was rounded, so its rounding is in no result.
    """
    new = tl.maximum(offset, tl.max(values, axis=1) * scale)
    keep, weights = tl.exp2(offset - new), tl.exp2(values * scale - new[:, None])
    return new, total * keep + tl.sum(weights, axis=1), keep, weights


@triton.jit
def _join(offset, total):
    """The offsets and sums of all lanes in one, and what each lane's share is to be times."""
    top = tl.max(offset, axis=0)
    share = tl.exp2(offset - top)
    total = tl.sum(total * share, axis=0)
    return top, total, share / total


@triton.jit
def _kl_terms(p, q, r):
    """Terms of KL(p‖q), none negative, and q − p; r = log(p/q)."""
    near = tl.abs(r) < 0.25
    f = r * r * (1 / 2 + r * (-1 / 6 + r * (1 / 24 + r * (-1 / 120 + r * (1 / 720)))))
    difference = tl.where(near, p * (f - r), q - p)
    return tl.where(near, p * f, p * r + difference), difference


@triton.jit
def _log_mixture(r, beta, FAST: tl.constexpr):
    """log(m/q) and log(p/m), from r = log(p/q); neither overflows, and no large numbers are subtracted."""
    small = tl.exp2(-tl.abs(r) * _LOG2_E)
    mixed = tl.where(r > 0, beta, 1 - beta) + tl.where(r > 0, 1 - beta, beta) * small
    # fast_log2f is one operation of the special function unit, tl.log2 some twenty of the others.
    rest = _LN_2 * (libdevice.fast_log2f(mixed) if FAST else tl.log2(mixed))
    v, w = beta * (1 - beta), 1 - 2 * beta
    h = r * (beta + r * (v / 2 + r * (v * w / 6 + r * (v * (1 - 6 * v) / 24))))
    return tl.where(tl.abs(r) < 0.25, h, tl.maximum(r, 0.0) + rest), tl.minimum(r, 0.0) - rest


@triton.jit
def _jsd_terms(p, q, r, beta, FAST: tl.constexpr):
    """Terms of JSD, none negative, and h = log(m/q)."""
    h, log_p_m = _log_mixture(r, beta, FAST)
    v, w = beta * (1 - beta), 1 - 2 * beta
    g = r * r * (v / 2 + r * (v * w / 3 + r * (v * (1 - 6 * v) / 8 + r * (v * w * (1 - 12 * v) / 30))))
    from_p, from_q = beta * p, (1 - beta) * q
    return tl.where(tl.abs(r) < 0.25, (from_p + from_q) * g, from_p * log_p_m - from_q * h), h


@triton.jit
def _loss_and_gradient(
    student, teacher, labels, terms, gradient, gradient_scale,
    student_stride, teacher_stride, gradient_stride, classes, width, ignore_index,
    temperature, floor, alpha, beta,
    DIVERGENCE: tl.constexpr, SOFT: tl.constexpr, HARD: tl.constexpr, LABELS: tl.constexpr,
    GRADIENT: tl.constexpr, SCALED: tl.constexpr, FAST: tl.constexpr, LANES: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Both terms and the gradient of row program_id(0). Derivation, bytes, operations: top of the module.

    The gradient may be written over the student's logits: a class is written by the program, the block and
    the lane that have read it, in the last pass. Each pass begins where the one before has ended, as what was
    read last is the likeliest to be still in the cache.
    """
    row = tl.program_id(0).to(tl.int64)  # row · stride may be beyond int32
    rows = tl.num_programs(0)
    student_row = student + row * student_stride
    teacher_row = teacher + row * teacher_stride
    gradient_row = gradient + row * gradient_stride
    first = tl.arange(0, LANES)[:, None] * EACH + tl.arange(0, EACH)[None, :]
    blocks = tl.cdiv(classes, LANES * EACH)

    label = -1
    if LABELS:
        label = tl.load(labels + row)
        if label == ignore_index:
            tl.store(terms + row, 0.0)
            tl.store(terms + rows + row, 0.0)
            if GRADIENT:
                for block in range(blocks):
                    at = block * (LANES * EACH) + first
                    nothing = tl.zeros([LANES, EACH], dtype=gradient.dtype.element_ty)
                    tl.store(gradient_row + at, nothing, mask=at < classes)
            return

    # First pass: offsets and sums, and for the reverse divergence Σ exp(s/T)·(s − t).
    inverse = 1 / temperature
    scale = _LOG2_E * inverse
    student_top = tl.zeros([LANES], dtype=tl.float32) + floor * scale
    teacher_top = student_top
    raw_top = tl.full([LANES], _RULED_OUT, dtype=tl.float32)
    student_sum = tl.zeros([LANES], dtype=tl.float32)
    teacher_sum = tl.zeros([LANES], dtype=tl.float32)
    raw_sum = tl.zeros([LANES], dtype=tl.float32)
    lead_sum = tl.zeros([LANES], dtype=tl.float32)
    for block in range(blocks):
        at = block * (LANES * EACH) + first
        if SOFT:
            raw, s, t = _pair(student_row, teacher_row, at, classes, width, floor)
            student_top, student_sum, keep, weights = _step(student_top, student_sum, s, scale)
            teacher_top, teacher_sum, keep_t, weights_t = _step(teacher_top, teacher_sum, t, scale)
            if DIVERGENCE == _REVERSE:
                lead_sum = lead_sum * keep + tl.sum(weights * (s - t), axis=1)
        else:
            raw = tl.load(student_row + at, mask=at < classes, other=-float("inf")).to(tl.float32)
        if HARD:
            raw_top, raw_sum, keep_1, weights_1 = _step(raw_top, raw_sum, raw, _LOG2_E)

    hard_loss, soft_loss = 0.0, 0.0
    hard_slope, soft_slope = alpha, 1 - alpha
    if SCALED:
        by = tl.load(gradient_scale)
        hard_slope, soft_slope = hard_slope * by, soft_slope * by
    if HARD:
        top, total, share = _join(raw_top, raw_sum)
        raw_log = top + tl.log2(total)
        valid = (label >= 0) & (label < classes)  # NaN rather than a read from somewhere else
        chosen = tl.load(student_row + label, mask=valid, other=float("nan")).to(tl.float32)
        hard_loss = _LN_2 * raw_log - chosen
    if SOFT:
        top_s, total_s, share = _join(student_top, student_sum)
        top_t, total_t, share_t = _join(teacher_top, teacher_sum)
        student_log, teacher_log = top_s + tl.log2(total_s), top_t + tl.log2(total_t)
        # δ: of one quotient, not of two logarithms; at a high T it is a small number between large ones.
        shift = _LN_2 * ((top_t - top_s) + tl.log2(total_t / total_s))
        lead = tl.sum(lead_sum * share, axis=0)
        distances = tl.zeros([LANES, EACH], dtype=tl.float32)

        # JSD: a pass for the loss and H.
        mixture = 0.0
        if DIVERGENCE == _JSD:
            weighted = tl.zeros([LANES, EACH], dtype=tl.float32)
            for back in range(blocks):
                at = (blocks - 1 - back) * (LANES * EACH) + first
                raw, s, t = _pair(student_row, teacher_row, at, classes, width, floor)
                p, q = tl.exp2(t * scale - teacher_log), tl.exp2(s * scale - student_log)
                term, h = _jsd_terms(p, q, (t - s) * inverse - shift, beta, FAST)
                distances += term
                weighted += q * h
            mixture = tl.sum(tl.sum(weighted, axis=1), axis=0)

    # Last pass: the loss of the two KL divergences, and the gradient.
    if GRADIENT or (SOFT and DIVERGENCE != _JSD):
        for step in range(blocks):
            block = blocks - 1 - step
            if SOFT and DIVERGENCE == _JSD:
                block = step
            at = block * (LANES * EACH) + first
            slope = tl.zeros([LANES, EACH], dtype=tl.float32)
            if SOFT:
                raw, s, t = _pair(student_row, teacher_row, at, classes, width, floor)
                q = tl.exp2(s * scale - student_log)
                r = (t - s) * inverse - shift
                if DIVERGENCE == _JSD:
                    h, log_p_m = _log_mixture(r, beta, FAST)
                    slope = soft_slope * temperature * (1 - beta) * q * (mixture - h)
                else:
                    p = tl.exp2(t * scale - teacher_log)
                    if DIVERGENCE == _FORWARD:
                        term, change = _kl_terms(p, q, r)
                        slope = soft_slope * temperature * change
                    else:
                        term, change = _kl_terms(q, p, -r)
                        slope = soft_slope * q * ((s - t) - lead)
                    distances += term
            else:
                raw = tl.load(student_row + at, mask=at < classes, other=-float("inf")).to(tl.float32)
            if GRADIENT:
                if HARD:
                    probability = tl.exp2(raw * _LOG2_E - raw_log)
                    slope += hard_slope * (probability - tl.where(at == label.to(tl.int32), 1.0, 0.0))
                tl.store(gradient_row + at, slope.to(gradient.dtype.element_ty), mask=at < classes)

    if SOFT:
        soft_loss = temperature * temperature * tl.sum(tl.sum(distances, axis=1), axis=0)
    tl.store(terms + row, hard_loss)
    tl.store(terms + rows + row, soft_loss)


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


_INTERPRETED = not isinstance(_loss_and_gradient, triton.JITFunction)
_FAST_LOG = not _INTERPRETED  # the interpreter knows no libdevice
# a·b + c in one operation and one rounding. Said here because Triton 3.10 changes what is usual.
_OPTIONS = {} if _INTERPRETED else {"enable_fp_fusion": True}

# --- launching --------------------------------------------------------------------------------------

# (up to this many classes, warps). A warp has 32 lanes, a lane 16 bytes of each row, the widest load there
# is, which makes 256 classes of bf16 a warp. With eight warps and the registers above, four to six programs
# share the 65,536 registers of a multiprocessor, and the joins of one row hide behind the loads of others. To
# be timed on a GPU:
#
#     warps        forward, ms      reverse, ms      JSD, ms       (bf16, 8,192 rows, 151,936 classes)
#     4, 8, 16     not yet          not yet          not yet
#
# LANES is the number of threads, never less: two warps would hold the same class, and one of them could read
# it after the other has written the gradient there.
WARPS = ((256, 1), (512, 2), (1024, 4), (math.inf, 8))


def takes(*logits: Tensor | None) -> bool:
    """Whether the kernels can be used for these logits: float32 or half precision, on GPUs that run them."""
    return all(
        logit.is_cuda and logit.dtype in _DTYPES and _runs_on(logit.device.index)
        for logit in logits if logit is not None
    )  # fmt: skip


_RUNS_ON: dict[int, bool] = {}


# Not asked anew in compiled code, nor by way of a cache that torch.compile would look through.
@torch.compiler.assume_constant_result
def _runs_on(device: int) -> bool:
    """NVIDIA's GPUs from 8.0, where Triton finds a compiler for what it generates: tried once, on two rows.

    AMD's are left to PyTorch: their warps have 64 lanes, and nothing here has run on one.
    """
    if device not in _RUNS_ON:
        suits = torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
        _RUNS_ON[device] = suits and _runs(torch.device("cuda", device))
    return _RUNS_ON[device]


def _runs(device: torch.device) -> bool:
    try:
        logits = torch.zeros(2, 8, device=device)
        terms = _launch(logits, logits, None, 1.0, 0.0, "forward", 0.5, 8, -100, None, None)
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


def kd_terms_and_gradient(
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
    """Both terms of each row, CE(label, student) and T²·D(teacher, student), and the gradient of its loss.

    The loss is α times the first and 1 − α times the second, which is what `kdlib.losses.kd.kd_loss` gives with
    reduction="none"; the gradient is the derivative of each row's loss by that row of the logits. A class
    that either model rules out is left out of the soft term. All arithmetic is in float32, and every gradient
    is rounded once.

    Args:
        student_logits: (n, V) float32, bfloat16 or float16. Rows may be strided.
        teacher_logits: (n, W), likewise; its dtype may be another. Not read where alpha is 1; may be None.
        labels: (n,) integers in [0, V), or ignore_index: loss and gradient of such a row are zero, and its
            logits are not read. May be None where alpha is 0. Others give a loss of NaN (where alpha is above
            0): they are not looked for, as that would wait for the device.
        temperature, alpha, divergence, beta: see `kdlib.losses.kd.kd_loss`.
        width: how many of the first classes the soft term compares, where vocabularies differ by padding.
            None means V, and then W must be V. The hard term is over all V classes.
        gradient_scale: float32 tensor of one element on the same device, which multiplies the gradient and
            not the loss: 1 / tokens for a mean, before the gradient is rounded and without waiting for the
            count.
        out: (n, V) of the student's dtype, to hold the gradient. May be student_logits itself, which is then
            overwritten.

    Returns:
        (2, n) float32: hard terms in nats and soft terms in nats times T², not weighted, 0 where a term has
        no weight; and (n, V) gradients in the student's dtype: `out` if given.

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
            f"out has shape {tuple(out.shape)}, {out.dtype}, strides {out.stride()} on {out.device}; "
            f"expected {tuple(student_logits.shape)}, {student_logits.dtype} on {student_logits.device}, "
            "each row in one piece and none over another"
        )
    terms = _launch(
        student_logits, teacher_logits, labels, temperature, alpha, divergence, beta, width, ignore_index,
        gradient_scale, out,
    )  # fmt: skip
    return terms, out


def scale_rows(gradient: Tensor, factors: Tensor) -> None:
    """Rows of (n, V), in place, times factors of the same device: (n,), or one for all."""
    rows, classes = gradient.shape
    if rows == 0:
        return
    warps = _warps(classes)
    with torch.cuda.device(gradient.device) if gradient.is_cuda else contextlib.nullcontext():
        _scale_rows[(rows,)](
            gradient, factors, gradient.stride(0), factors.stride(0) if factors.dim() else 0, classes,
            BLOCK=256 * warps, num_warps=warps,
        )  # fmt: skip


def _launch(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, temperature: float, alpha: float,
    divergence: str, beta: float, width: int, ignore_index: int, gradient_scale: Tensor | None,
    out: Tensor | None,
) -> Tensor:  # fmt: skip
    """(2, n) terms; the gradient goes to `out`, or is left out with its pass where the terms need none."""
    rows, classes = student.shape
    terms = torch.empty(2, rows, dtype=torch.float32, device=student.device)
    if rows == 0:
        return terms
    soft, hard = alpha < 1, alpha > 0
    student = student if student.stride(-1) == 1 else student.contiguous()
    teacher = student if not soft else teacher if teacher.stride(-1) == 1 else teacher.contiguous()
    labels = None if labels is None else labels.long().contiguous()
    warps = _warps(classes)
    with torch.cuda.device(student.device) if student.is_cuda else contextlib.nullcontext():
        _loss_and_gradient[(rows,)](
            student, teacher, terms if labels is None else labels, terms,
            student if out is None else out, terms if gradient_scale is None else gradient_scale,
            student.stride(0), teacher.stride(0), 0 if out is None else out.stride(0),
            classes, width, ignore_index, float(temperature),
            # Below −1e30, and above it once divided by T. Times anything it is exact, being a power of two.
            -(2.0 ** (100 + min(0, math.floor(math.log2(temperature))))), float(alpha), float(beta),
            DIVERGENCE=_DIVERGENCES[divergence], SOFT=soft, HARD=hard, LABELS=labels is not None,
            GRADIENT=out is not None, SCALED=gradient_scale is not None, FAST=_FAST_LOG,
            LANES=32 * warps, EACH=16 // max(student.element_size(), teacher.element_size()),
            num_warps=warps, **_OPTIONS,
        )  # fmt: skip
    return terms


def _warps(classes: int) -> int:
    return next(warps for most, warps in WARPS if classes <= most)


def _rows_apart(tensor: Tensor) -> bool:
    return tensor.stride(-1) == 1 and (tensor.shape[0] < 2 or tensor.stride(0) >= tensor.shape[1])


# --- what is refused --------------------------------------------------------------------------------


def _checked_width(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, alpha: float, width: int | None
) -> int:
    _check_alpha(alpha)
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
            f"teacher_logits has {teacher.shape[1]} classes but student_logits has {classes}; where "
            "vocabularies differ by padding only, say with width how many classes both have"
        )
    width = classes if width is None else width
    if not 1 <= width <= min(classes, teacher.shape[1]):
        raise ValueError(
            f"width is {width}; expected 1 to {min(classes, teacher.shape[1])}, the classes that both have"
        )
    return width


def _check_rows(name: str, logits: Tensor, student: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[0] != student.shape[0] or logits.shape[1] < 2:
        raise ValueError(
            f"{name} has shape {tuple(logits.shape)}; expected (rows, classes), two classes or more and as "
            f"many rows as student_logits, {tuple(student.shape)}"
        )
    if logits.dtype not in _DTYPES:
        raise ValueError(f"{name} is {logits.dtype}; expected float32, bfloat16 or float16")
    if logits.device != student.device:
        raise ValueError(f"{name} is on {logits.device}; expected {student.device}, as student_logits")
    if logits.device.type == "cpu" and not _INTERPRETED:
        raise ValueError(
            f"{name} is on the CPU; expected a GPU, or Triton's interpreter (TRITON_INTERPRET=1)"
        )
