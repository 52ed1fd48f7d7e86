"""The distillation loss on a GPU: loss and gradient of given logits, fused in one Triton kernel.

Written out in PyTorch the loss makes some ten float32 tensors of the size of the logits. Here each row is
reduced to a handful of numbers, from which the gradient of a logit follows with the two logits of its class.
One program reads one row twice (three times for JSD) and writes the gradient, over the logits if asked.

Notation: s, t logits of student and teacher, V classes, A those classes among the first `n_compared` that
neither rules out (`kdlib.losses.divergences.RULED_OUT`). Sums are over A, and those of the hard term over V.

    p = exp(t/T) / Σ exp(t/T),  q = exp(s/T) / Σ exp(s/T),  r = log p − log q = (t − s)/T − δ

**The gradients, and what has to be known of a row before one can be written:**

    forward  T·(q − p)                              the two log-sum-exps
    reverse  T·q·(log q − log p − KL)               the same and KL(q‖p); δ cancels, which leaves one mean
             = q·((s − t) − E),  E = Σ q·(s − t)    of raw logits, had from the pass that sums exp(s/T)
    JSD      T·(1 − β)·q·(H − h),  H = Σ q·h,       h mixes normalised p and q, so no running sum can be
             h = log(m/q) = log(1 − β + β·exp r)    rescaled to it: one pass more
    hard     softmax(s) − onehot                    one log-sum-exp, at T = 1 and over V

The loss is summed where the gradient is written (for JSD in the pass for H), from terms none of which is
negative (`kdlib.losses.divergences`, "Rounding"): put together from sums of the first pass it would be a
small difference of large numbers.

**Terms near r = 0**, where p·r + q − p or log(m/q) would be all rounding, are polynomials of r, cut off where
the next term is below 1e-4 of the first at |r| = 1/4:

    p·r + q − p = p·f(r),  q − p = p·(f(r) − r),  f(r) = r + exp(−r) − 1 = r²/2 − r³/6 + r⁴/24 − …
    JSD: β·p·log(p/m) + (1 − β)·q·log(q/m) = m·(r·h′(r) − h(r))
         h(r) = Σ κₙ·rⁿ/n!,  r·h′ − h = Σ κₙ·rⁿ·(n − 1)/n!

h is the cumulant generating function of a coin that shows heads with probability β, and κₙ are its cumulants:
β, v = β(1 − β), v(1 − 2β), v(1 − 6v), v(1 − 2β)(1 − 12v).

**What it costs**, counted in what Triton makes for compute capability 9.0, and not measured: 50 instructions
a class for the forward KL, 53 for the reverse, 94 for JSD; with the hard term 62, 65 and 106. The bytes of
8,192 rows of 151,936 bfloat16 logits take an H200 2.6 ms (JSD 3.6), the instructions 1.9, 2.0 and 3.5 ms: JSD
waits for the one as much as for the other. `data/results/kernels_compiled.json` has every setting and width.

With TRITON_INTERPRET=1 all this runs in Triton's interpreter, which is how it is tested without a GPU.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from kdlib.losses.divergences import DIVERGENCES, RULED_OUT, LossSettings

_LOG2_E = tl.constexpr(math.log2(math.e))
_LN_2 = tl.constexpr(math.log(2))
_RULED_OUT = tl.constexpr(RULED_OUT)
_FORWARD, _REVERSE, _JSD = (tl.constexpr(number) for number in range(3))  # places in DIVERGENCES
_INTERPRETED = triton.knobs.runtime.interpret
_FAST_LOG = tl.constexpr(not _INTERPRETED)  # the interpreter knows no libdevice


@triton.jit
def _read_part(block, lane, each, left, VECTOR: tl.constexpr):
    """Logits of a block of which the row has only the first `left` classes; −∞ for the others.

    A vector that begins in the row is read to its end: a mask within it would make EACH loads of one. No
    allocation ends inside 16 aligned bytes, and what stands behind the row is not used.
    """
    readable = tl.cdiv(left, VECTOR) * VECTOR
    values = tl.load(block + lane + each, mask=each < readable - lane, other=-float("inf"))
    return tl.where(each < left - lane, values, -float("inf")).to(tl.float32)


@triton.jit
def _pair(student_row, teacher_row, start, lane, each, n_cols, n_compared, floor, VECTOR: tl.constexpr):
    """Logits of a block: the student's as they are, then both with `floor` outside A (p = q = 0, r = −δ)."""
    student, teacher = student_row + start, teacher_row + start
    if n_compared - start >= lane.numel * each.numel:
        raw = tl.load(student + lane + each).to(tl.float32)
        other = tl.load(teacher + lane + each).to(tl.float32)
    else:
        raw = _read_part(student, lane, each, n_cols - start, VECTOR)
        other = _read_part(teacher, lane, each, n_compared - start, VECTOR)
    # Not "both above": a NaN is to be seen in the loss, not to be left out.
    out = (raw <= _RULED_OUT) | (other <= _RULED_OUT)
    return raw, tl.where(out, floor, raw), tl.where(out, floor, other)


@triton.jit
def _write(gradient_row, start, lane, each, values, n_cols, VECTOR: tl.constexpr):
    """The gradient of a block. Behind the row nothing is written, so a vector at its end goes in pieces."""
    block, left = gradient_row + start, n_cols - start
    values = values.to(gradient_row.dtype.element_ty)
    if left >= lane.numel * each.numel:
        tl.store(block + lane + each, values)
    else:
        vectors = left // VECTOR * VECTOR
        tl.store(block + lane + each, values, mask=each < vectors - lane)
        if vectors < left:
            tl.store(block + lane + each, values, mask=(each >= vectors - lane) & (each < left - lane))


@triton.jit
def _step(offset, total, values, scale):
    """Each lane's sum of exp2(value·scale − offset), with EACH more values; offset is the largest so far.

    All that follows is relative to the offset as it was rounded, so its rounding is in no result.
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
def _log_mixture(r, beta):
    """log(m/q) and log(p/m), from r = log(p/q); neither overflows, and no large numbers are subtracted."""
    small = tl.exp2(-tl.abs(r) * _LOG2_E)
    mixed = tl.where(r > 0, beta, 1 - beta) + tl.where(r > 0, 1 - beta, beta) * small
    # fast_log2f is one operation of the special function unit, tl.log2 some twenty of the others.
    rest = _LN_2 * (libdevice.fast_log2f(mixed) if _FAST_LOG else tl.log2(mixed))
    v, w = beta * (1 - beta), 1 - 2 * beta
    h = r * (beta + r * (v / 2 + r * (v * w / 6 + r * (v * (1 - 6 * v) / 24))))
    return tl.where(tl.abs(r) < 0.25, h, tl.maximum(r, 0.0) + rest), tl.minimum(r, 0.0) - rest


@triton.jit
def _jsd_terms(p, q, r, beta):
    """Terms of JSD, none negative, and h = log(m/q)."""
    h, log_p_m = _log_mixture(r, beta)
    v, w = beta * (1 - beta), 1 - 2 * beta
    g = r * r * (v / 2 + r * (v * w / 3 + r * (v * (1 - 6 * v) / 8 + r * (v * w * (1 - 12 * v) / 30))))
    from_p, from_q = beta * p, (1 - beta) * q
    return tl.where(tl.abs(r) < 0.25, (from_p + from_q) * g, from_p * log_p_m - from_q * h), h


# One build for all widths: that rows are aligned is said by VECTOR.
@triton.jit(do_not_specialize=["student_stride", "teacher_stride", "gradient_stride", "n_cols", "n_compared"])
def _loss_and_gradient(
    student_ptr, student_stride,  # logits (rows, n_cols); a stride is the numbers from one row to the next
    teacher_ptr, teacher_stride,  # logits (rows, n_compared or more)
    labels_ptr, ignore_index,  # int64 (rows); terms and gradient of a row of ignore_index are zero
    terms_ptr,  # float32 (2, rows): the hard terms and the soft terms, written
    gradient_ptr, gradient_stride,  # (rows, n_cols), written if GRADIENT; may be student_ptr
    gradient_scale_ptr,  # one float32 that multiplies the gradient
    n_cols, n_compared,  # V, and how many of the first classes the soft term compares
    temperature,
    floor,  # what a class that is ruled out has for a logit: below all others, and above −∞
    alpha, beta,  # weight of the hard term in the gradient, weight of the teacher in the mixture of JSD
    DIVERGENCE: tl.constexpr,  # _FORWARD, _REVERSE or _JSD
    SOFT: tl.constexpr, HARD: tl.constexpr,  # which of the terms there are
    GRADIENT: tl.constexpr,
    LANES: tl.constexpr, EACH: tl.constexpr,  # threads, and classes of each in a block: 16 bytes
    VECTOR: tl.constexpr,  # classes of one load: EACH if all rows begin at multiples of 16 bytes, else 1
):  # fmt: skip
    """Both terms and the gradient of row program_id(0). Derivation: top of the module.

    The gradient may be written over the student's logits: in the last pass, a class by the lane that has read
    it. Each pass begins where the one before has ended: what was read last is likely still in the cache.
    """
    row = tl.program_id(0).to(tl.int64)  # row · stride may be beyond int32
    n_rows = tl.num_programs(0)
    student_row = student_ptr + row * student_stride
    teacher_row = teacher_ptr + row * teacher_stride
    gradient_row = gradient_ptr + row * gradient_stride
    # A lane's first class in a block, and its others from there.
    lane, each = tl.arange(0, LANES)[:, None], tl.arange(0, EACH)[None, :]
    if VECTOR == 1:  # neighbours are read by neighbouring lanes: a warp reads one piece at a time
        each *= LANES
    else:  # neighbours are read by one lane, in one load
        lane *= EACH
        student_row, teacher_row = tl.multiple_of(student_row, 16), tl.multiple_of(teacher_row, 16)
        gradient_row = tl.multiple_of(gradient_row, 16)
    blocks = tl.cdiv(n_cols, LANES * EACH)

    label = tl.load(labels_ptr + row)
    if label == ignore_index:
        tl.store(terms_ptr + row, 0.0)
        tl.store(terms_ptr + n_rows + row, 0.0)
        if GRADIENT:
            for block in range(blocks):
                start = block * (LANES * EACH)
                nothing = tl.zeros([LANES, EACH], dtype=tl.float32)
                _write(gradient_row, start, lane, each, nothing, n_cols, VECTOR)
        return

    by = tl.load(gradient_scale_ptr)
    hard_slope, soft_slope = alpha * by, (1 - alpha) * by
    chosen = 0.0
    if HARD:
        # Before the passes, and the barriers of their joins: the last pass may write over the logits, and a
        # warp is not waited for in it.
        valid = (label >= 0) & (label < n_cols)  # NaN rather than a read from somewhere else
        chosen = tl.load(student_row + label, mask=valid, other=float("nan")).to(tl.float32)

    # First pass: offsets and sums, and for the reverse divergence Σ exp(s/T)·(s − t).
    inverse = 1 / temperature
    scale = _LOG2_E * inverse
    zeros = tl.zeros([LANES], dtype=tl.float32)
    student_top, teacher_top, raw_top = zeros + floor * scale, zeros + floor * scale, zeros + _RULED_OUT
    student_sum, teacher_sum, raw_sum, lead_sum = zeros, zeros, zeros, zeros
    for block in range(blocks):
        start = block * (LANES * EACH)
        raw, s, t = _pair(student_row, teacher_row, start, lane, each, n_cols, n_compared, floor, VECTOR)
        if SOFT:
            student_top, student_sum, keep, weights = _step(student_top, student_sum, s, scale)
            teacher_top, teacher_sum, keep_t, weights_t = _step(teacher_top, teacher_sum, t, scale)
            if DIVERGENCE == _REVERSE:
                lead_sum = lead_sum * keep + tl.sum(weights * (s - t), axis=1)
        if HARD:
            raw_top, raw_sum, keep_1, weights_1 = _step(raw_top, raw_sum, raw, _LOG2_E)

    hard_loss, soft_loss = 0.0, 0.0
    if HARD:
        top, total, share = _join(raw_top, raw_sum)
        raw_log = top + tl.log2(total)
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
                start = (blocks - 1 - back) * (LANES * EACH)
                raw, s, t = _pair(
                    student_row, teacher_row, start, lane, each, n_cols, n_compared, floor, VECTOR
                )
                p, q = tl.exp2(t * scale - teacher_log), tl.exp2(s * scale - student_log)
                term, h = _jsd_terms(p, q, (t - s) * inverse - shift, beta)
                distances += term
                weighted += q * h
            mixture = tl.sum(tl.sum(weighted, axis=1), axis=0)

    # Last pass: the loss of the two KL divergences, and the gradient.
    if GRADIENT or (SOFT and DIVERGENCE != _JSD):
        for step in range(blocks):
            block = step if SOFT and DIVERGENCE == _JSD else blocks - 1 - step
            start = block * (LANES * EACH)
            slope = tl.zeros([LANES, EACH], dtype=tl.float32)
            raw, s, t = _pair(student_row, teacher_row, start, lane, each, n_cols, n_compared, floor, VECTOR)
            if SOFT:
                q = tl.exp2(s * scale - student_log)
                r = (t - s) * inverse - shift
                if DIVERGENCE == _JSD:
                    h, log_p_m = _log_mixture(r, beta)
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
            if GRADIENT:
                if HARD:
                    probability = tl.exp2(raw * _LOG2_E - raw_log)
                    here = label.to(tl.int32) - start - lane
                    slope += hard_slope * (probability - tl.where(each == here, 1.0, 0.0))
                _write(gradient_row, start, lane, each, slope, n_cols, VECTOR)

    if SOFT:
        soft_loss = temperature * temperature * tl.sum(tl.sum(distances, axis=1), axis=0)
    tl.store(terms_ptr + row, hard_loss)
    tl.store(terms_ptr + n_rows + row, soft_loss)


@triton.jit
def _scale_rows(
    gradient_ptr, gradient_stride,  # (rows, n_cols), overwritten
    factors_ptr, factors_stride,  # float32 of each row; the stride is 0 where all rows have the same
    n_cols, BLOCK: tl.constexpr,
):  # fmt: skip
    """gradient row · factor, in place. A factor of 1, the usual one, costs one read of it and no more."""
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(factors_ptr + row * factors_stride)
    if factor != 1.0:
        for block in range(tl.cdiv(n_cols, BLOCK)):
            at = block * BLOCK + tl.arange(0, BLOCK)
            here = gradient_ptr + row * gradient_stride + at
            scaled = tl.load(here, mask=at < n_cols).to(tl.float32) * factor
            tl.store(here, scaled.to(gradient_ptr.dtype.element_ty), mask=at < n_cols)


# a·b + c in one operation and one rounding. Said here because Triton 3.10 changes what is usual.
OPTIONS = {} if _INTERPRETED else {"enable_fp_fusion": True}

# A warp has 32 lanes of 16 bytes: 256 classes of bf16. With eight warps three to six programs share a
# multiprocessor, and the joins of one row hide behind the loads of others.
MOST_WARPS = 8


def kd_terms(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor | None, settings: LossSettings,
    width: int | None = None, *,
    ignore_index: int = -100, gradient: Tensor | None = None, gradient_scale: float | Tensor = 1.0,
) -> Tensor:  # fmt: skip
    """(2, n) float32 hard and soft terms, as of `kdlib.losses.closed_form.kd_terms_and_gradient`.

    Args:
        student_logits, teacher_logits: (n, V) and (n, W), float32, bfloat16 or float16. Rows may be strided.
        labels: (n,) int64; loss and gradient of rows of ignore_index are zero, and their logits are not read.
            Labels out of range give a loss of NaN: to look for them would wait for the device.
        gradient: (n, V) of the student's dtype, each row in one piece, to be written; may be student_logits.
        gradient_scale: a number, or a tensor of one, which multiplies the gradient and not the loss:
            1 / tokens for a mean, before the gradient is rounded and without waiting for the count.
    """
    temperature, alpha, divergence, beta = settings
    rows, classes = student_logits.shape
    terms = torch.empty(2, rows, dtype=torch.float32, device=student_logits.device)
    if rows == 0:
        return terms
    student = student_logits if student_logits.stride(-1) == 1 else student_logits.contiguous()
    teacher = student if alpha == 1 else teacher_logits
    teacher = teacher if teacher.stride(-1) == 1 else teacher.contiguous()
    compared = classes if alpha == 1 else width or classes
    if labels is None:
        labels, ignore_index = torch.zeros(rows, dtype=torch.int64, device=student.device), -100
    out = student if gradient is None else gradient
    # full, not tensor: nothing is copied to the device, so nothing waits.
    scale = gradient_scale
    scale = scale.float() if isinstance(scale, Tensor) else torch.full_like(terms[0, :1], scale)
    warps = _warps(classes)
    each = 16 // max(student.element_size(), teacher.element_size())
    # Rows of 151,936, 151,928 or 1,000 numbers are, rows of 50,257 are not.
    aligned = all((x.data_ptr() | x.stride(0) * x.element_size()) % 16 == 0 for x in (student, teacher, out))
    with torch.cuda.device_of(student):
        _loss_and_gradient[(rows,)](
            student, student.stride(0), teacher, teacher.stride(0), labels, ignore_index, terms, out,
            out.stride(0), scale, classes, compared, float(temperature),
            # Below −1e30, and above it once divided by T. Times anything it is exact, being a power of two.
            -(2.0 ** (100 + min(0, math.floor(math.log2(temperature))))), float(alpha), float(beta),
            DIVERGENCE=DIVERGENCES.index(divergence), SOFT=alpha < 1, HARD=alpha > 0,
            GRADIENT=gradient is not None, LANES=32 * warps, EACH=each, VECTOR=each if aligned else 1,
            num_warps=warps, **OPTIONS,
        )  # fmt: skip
    return terms


@torch.library.custom_op("kdlib::scale_rows_", mutates_args=("gradient",))
def scale_rows(gradient: Tensor, factors: Tensor) -> None:
    """Rows of (n, V), or one row, in place, times factors of the same device: (n,), or one for all."""
    gradient = gradient.view(-1, gradient.shape[-1])
    rows, classes = gradient.shape
    warps = _warps(classes)
    if rows == 0:
        return
    with torch.cuda.device_of(gradient):
        _scale_rows[(rows,)](
            gradient, gradient.stride(0), factors, factors.stride(0) if factors.dim() else 0, classes,
            BLOCK=256 * warps, num_warps=warps, **OPTIONS,
        )  # fmt: skip


def _warps(classes: int) -> int:
    return min(MOST_WARPS, triton.next_power_of_2(triton.cdiv(classes, 256)))
