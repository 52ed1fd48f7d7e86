"""The distillation loss straight from hidden states, without ever holding all logits.

A language model's last layer turns n hidden states h of width H into n · V logits, z = h·Wᵀ. With a
vocabulary of 151,936 and 8,192 tokens these are 5 GB in float32, and the loss holds a dozen tensors of that
size. But the loss is a sum over tokens, and with G, the derivative of a token's loss by its logits,

    ∂L/∂h = G·W        (n, H), each token's own
    ∂L/∂W = Gᵀ·h       (V, H), a sum over tokens, kept in float32

so a few tokens at a time are enough: make their logits and G, add to both gradients, forget them. What is
held is one chunk, and ∂L/∂W. (Liger-Kernel, Hsu et al. 2024, arXiv 2410.10989, has this for the
cross-entropy.)

**Size of a chunk.** Every chunk reads W, and every one but the first reads and writes ∂L/∂W, so chunks should
be large; but they are what takes memory. A compromise: 55 tokens at 151,936 classes, and with the kernels,
which write G over the student's logits, 1,664 tokens of bf16.

**Traffic of ∂L/∂W**, bytes an entry, bf16 weights, k chunks: 4 written by the first, 8 by each other, and 6
where backward rounds it; with one chunk 2, for its product is written as it is to be. That is so because G
holds all factors (`scale`, 1/n) before it is rounded. But float16 has no numbers for 1/n: its G is without
them, ∂L/∂W in float32, and backward multiplies.
"""

from numbers import Integral
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.losses import backend, checks
from kdlib.losses.divergences import Divergence, LossSettings, Reduction, full_precision, weighted
from kdlib.losses.top_k import TopK, top_k_loss

_CHUNK_BYTES = 256 << 20  # that a chunk may hold where PyTorch finds its gradient
_COPIES = 8  # float32 tensors of the size of a chunk's logits that are there at the fullest moment
_KERNEL_CHUNK_BYTES = 1 << 30  # that the logits of a chunk may be where kernels write over them
_LEAST = 16  # tokens of a chunk; below that a product reads the weights for too little
_TILE = 128  # tokens; matrix products on a GPU are made of tiles of so many rows
_ROWS = 16_384  # of ∂L/∂W that are worked on at once where it needs a copy


class LossTerms(NamedTuple):
    """The loss and what it is made of, each reduced and scaled alike. Only the loss has a gradient."""

    loss: Tensor  # α · hard + (1 − α) · soft
    hard: Tensor  # cross-entropy of the student, in nats; 0 where α is 0
    soft: Tensor  # T² times the divergence; 0 where α is 1


@torch.compiler.disable
def linear_kd_loss(
    student_hidden: Tensor, student_weight: Tensor,
    teacher_hidden: Tensor | TopK | None, teacher_weight: Tensor | None, labels: Tensor | None, *,
    temperature: float = 4.0, alpha: float = 0.5, divergence: Divergence = "forward", beta: float = 0.5,
    ignore_index: int | None = -100, chunk_tokens: int | None = None,
    student_bias: Tensor | None = None, teacher_bias: Tensor | None = None, classes: int | None = None,
    reduction: Reduction = "mean", scale: float | Tensor = 1.0, return_terms: bool = False,
) -> Tensor | LossTerms:  # fmt: skip
    """`kd_loss` of the logits `student_hidden @ student_weight.T`, which are made a chunk at a time.

    Loss and gradients are computed together, in the forward pass; there is no second derivative, and
    create_graph=True is a `RuntimeError`; so is a second backward through the same loss (retain_graph=True)
    if the first scaled in place, as with kernels, and elsewhere unless what arrives is 1. Under autocast the
    products are in its dtype; the loss is in float32 or better, as is the sum of the weight's gradient over
    chunks. With FSDP2 or DDP call it inside the wrapped module's forward, where the weight is whole.
    `torch.compile` leaves it as it is.

    Args:
        student_hidden: (..., H), what the output layer is given.
        student_weight: (V, H), that layer's weight; student_bias: (V) or None.
        teacher_hidden: (..., H'), of the same positions; teacher_weight: (W, H'); teacher_bias: (W) or None.
            They get no gradient. Or, from a cache, a `TopK` and None. Both None where alpha is 1.
        labels: (...) integers in [0, V), or ignore_index where a position does not count: its logits are not
            made. None means that alpha is 0 and all positions count.
        temperature, alpha, divergence, beta, ignore_index: as for `kd_loss`. Here ignore_index may be None:
            every position counts, and a GPU need not be waited for to know how many do. A label that is none
            of the V classes is a `ValueError` or, where only a wait for an accelerator would tell, a loss of
            NaN; −100 too.
        chunk_tokens: positions of a chunk; see the function of this name for the default.
        classes: how many leading logits the soft term compares, for vocabularies of unequal padding. Default
            the smaller of V and W. The hard term is over all V.
        reduction: "mean" over the positions that count, or "sum".
        scale: multiplies loss and terms; a number, or a tensor of one, which gets no gradient. A factor on
            the loss does the same, but may round gradients in half precision once more.
        return_terms: give the loss with its two terms, for a curve of each.

    Returns:
        A scalar in nats. Zero, with zero gradient, if no position counts.
    """
    settings = LossSettings(temperature, 0.0 if labels is None else alpha, divergence, beta)
    checks.check_settings(settings, reduction)
    if reduction == "none":
        raise ValueError('reduction must be "mean" or "sum" here: the gradient of each position is not kept')
    if labels is not None:
        checks.check_labels(labels, student_hidden, len(student_weight), ignore_index)
    if settings.alpha == 1:
        teacher_hidden = teacher_weight = None
    else:
        checks.check_linear(student_hidden, teacher_hidden, teacher_weight)
    biases = {"student_bias": (student_weight, student_bias), "teacher_bias": (teacher_weight, teacher_bias)}
    for name, (weight, bias) in biases.items():
        if weight is not None and bias is not None and bias.shape != (len(weight),):
            raise ValueError(f"{name} has shape {tuple(bias.shape)}; expected ({len(weight)},)")
    common = min(len(weight) for weight, _ in biases.values() if weight is not None)
    classes = common if classes is None else classes
    if not 2 <= classes <= common:
        raise ValueError(f"classes must lie in 2 … {common}, the logits that both have; got {classes}")
    if chunk_tokens is not None and (not isinstance(chunk_tokens, Integral) or chunk_tokens < 1):
        raise ValueError(f"chunk_tokens must be a whole number, at least 1; got {chunk_tokens!r}")

    hidden = student_hidden.flatten(0, -2)
    stored = isinstance(teacher_hidden, TopK)
    teacher = teacher_hidden if stored else () if teacher_hidden is None else (teacher_hidden,)
    teacher = [x.detach().flatten(0, student_hidden.dim() - 2) for x in teacher]
    if labels is not None:
        labels = labels.flatten().long()
        if ignore_index is not None:
            counted = (labels != ignore_index).nonzero().squeeze(1)
            hidden, labels, *teacher = (x.index_select(0, counted) for x in (hidden, labels, *teacher))
        wrong = (labels < 0) | (labels >= len(student_weight))  # none, where `check_labels` has looked
        labels = labels.masked_fill(wrong, 0)
    kind = hidden.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    dtype, over = autocast or hidden.dtype, None
    weight = bias = None
    if teacher_weight is not None:  # without autocast in its own dtype, whatever the student's
        weight = teacher_weight.detach().to(autocast or teacher_weight.dtype)
        bias = None if teacher_bias is None else teacher_bias.detach().to(weight.dtype)
    if not stored and backend.computed_by_kernels(settings, hidden.new_empty(0, dtype=dtype), weight):
        over = len(student_weight) * dtype.itemsize + (0 if weight is None else len(weight) * weight.itemsize)

    def terms_of(logits: Tensor, rows: slice, scale: float | Tensor, wanted: bool):
        """Sums of the hard and the soft term, and scale · derivative of the loss. Overwrites the logits."""
        part, some = [x[rows] for x in teacher], None if labels is None else labels[rows]
        if not stored:
            other = F.linear(part[0].to(weight.dtype), weight, bias) if part else None
            (hard, soft), slope = backend.kd_terms_and_gradient(
                logits, other, some, settings, classes, scale=scale
            )
            return hard.sum(), soft.sum(), slope
        logits.requires_grad_(wanted)
        with torch.enable_grad():
            hard = F.cross_entropy(full_precision(logits), some, reduction="sum") if settings.alpha else 0.0
            soft = top_k_loss(
                logits[:, :classes], TopK(*part), temperature=temperature, divergence=divergence, beta=beta,
                reduction="sum",
            )  # fmt: skip
            loss = weighted(hard, soft, settings.alpha) * scale
        return hard, soft, torch.autograd.grad(loss, logits)[0] if wanted else None

    if reduction == "mean":
        scale = scale / max(len(hidden), 1)
    # Whether gradients are recorded is not to be seen inside of a function's forward.
    terms = _Linear.apply(
        hidden, student_weight, student_bias, terms_of, settings.alpha, (chunk_tokens, over), scale, dtype,
        torch.is_grad_enabled(),
    )  # fmt: skip
    if labels is not None:
        terms = [term.masked_fill(wrong.any(), torch.nan) for term in terms]
    return LossTerms(*terms) if return_terms else terms[0]


def chunk_tokens(count: int, classes: int, *, written_over: int | None = None) -> int:
    """Positions of a chunk, of `count`: as many as keep it within 256 MB, or with the kernels within 1 GB.

    These write over the logits: `written_over` is the bytes of a position's, of student and teacher together.
    """
    if written_over is None:
        return max(1, min(count, max(_LEAST, _CHUNK_BYTES // (4 * _COPIES * classes))))
    tiles = max(1, -(-count // _TILE))
    chunks = -(-tiles // max(1, _KERNEL_CHUNK_BYTES // (_TILE * written_over)))
    return _TILE * -(-tiles // max(1, chunks))  # chunks of equal size


class _Linear(torch.autograd.Function):
    """Loss, its terms and gradients of n hidden states, chunk by chunk."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, terms_of, alpha, chunk, scale, dtype, recorded):
        precise = torch.promote_types(dtype, torch.float32)
        scale = scale.to(precise) if isinstance(scale, Tensor) else scale
        tokens = chunk[0] or chunk_tokens(len(hidden), len(weight), written_over=chunk[1])
        # float16 has no numbers for a share of 1/n: there backward multiplies by it.
        ctx.late, early = (scale, 1.0) if dtype == torch.float16 else (1.0, scale)
        whole = tokens >= len(hidden) and weight.dtype == dtype != torch.float16
        kinds = (precise, dtype if whole else precise, precise)
        hard, soft = hidden.new_zeros(2, dtype=precise)
        of_hidden, of_weight, of_bias = (
            torch.empty_like(tensor, dtype=kind) if recorded and needed else None
            for tensor, kind, needed in zip((hidden, weight, bias), kinds, ctx.needs_input_grad, strict=False)
        )
        wanted = recorded and any(ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
            for start in range(0, max(len(hidden), 1), tokens):  # one of no token, if there is none
                rows, first = slice(start, start + tokens), start == 0
                part = hidden[rows].to(dtype)
                *terms, slope = terms_of(F.linear(part, matrix, offset), rows, early, wanted)
                hard += terms[0]
                soft += terms[1]
                if of_hidden is not None:
                    _product(of_hidden[rows], slope, matrix, first=True)
                if of_weight is not None:
                    _product(of_weight, slope.T, part, first=first)
                if of_bias is not None:
                    total = slope.sum(0, dtype=precise)
                    of_bias.copy_(total) if first else of_bias.add_(total)
                del slope
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.fresh = True
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        # Three tensors, also where one is equal to another: the loss alone has a gradient.
        loss, hard, soft = (x * scale for x in (weighted(hard, soft, alpha), hard, soft))
        ctx.mark_non_differentiable(hard, soft)
        return loss, hard, soft

    @staticmethod
    def backward(ctx, slope, *_):
        backend.refuse_second_derivative()
        by = slope * ctx.late
        in_place, ctx.fresh = ctx.fresh, False  # what has been handed out once is not written again
        gradients = [
            None if found is None
            else backend.scaled(found, by, dtype, kernels=backend.on_kernels(found), in_place=in_place)
            for found, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]  # fmt: skip
        return *gradients, *[None] * 6


def _product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """total = left @ right, or += if not `first`; total may be of higher precision than the factors."""
    beta = 0 if first else 1  # with 0 what stands there is not read
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=beta)
    elif total.is_cuda and torch.version.cuda is not None and total.dtype == torch.float32:
        # The product is added before it is rounded. (NVIDIA's library has this.)
        torch.addmm(total, left, right, out_dtype=total.dtype, beta=beta, out=total)
    else:
        for some, factor in zip(total.split(_ROWS), left.split(_ROWS), strict=True):
            product = factor @ right
            some.copy_(product) if first else some.add_(product)
