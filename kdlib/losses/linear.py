"""The distillation loss straight from hidden states, without ever holding all logits.

A language model's last layer turns n hidden states h of width H into n · V logits, z = h·Wᵀ. With a
vocabulary of 151,936 and 8,192 tokens these are 5 GB in float32, and the loss holds a dozen tensors of that
size. But the loss is a sum over tokens, and the logits of a token are wanted once: for its loss and, in the
same breath, for the derivative of that loss with respect to these logits, G. Then

    ∂L/∂h = G·W        (n, H), each token's own
    ∂L/∂W = Gᵀ·h       (V, H), a sum over tokens, kept in float32

so a few tokens at a time are enough: make their logits and their G, add what G says of h and W, forget both.
The backward pass is then one multiplication by a number. What is computed is the same; what is held is one
chunk, and ∂L/∂W. (Liger-Kernel, Hsu et al. 2024, arXiv 2410.10989, has this for the cross-entropy.)

**Size of a chunk.** The products read W once for every chunk, and ∂L/∂W is read and written, so chunks
should be large; what they hold is what is to be saved, so they should be small. PyTorch, by the formulas of
`kdlib.losses.closed_form`, holds up to eight float32 tensors of the size of a chunk's logits, and 256 MB are a
compromise: 55 tokens at 151,936 classes. The kernels write G over the student's logits and hold nothing else
but the teacher's. In bfloat16 a gigabyte is 1,664 tokens then, and 8,192 tokens move the 0.93 GB of ∂L/∂W
(H = 1,536) five times in and out.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.losses import closed_form
from kdlib.losses.kd import Divergence, _check_alpha, _check_options, _on_kernels, _weighted
from kdlib.losses.top_k import TopK, top_k_loss

__all__ = ["LossTerms", "chunk_tokens", "linear_kd_loss", "linear_kd_terms"]

_CHUNK_BYTES = 256 << 20  # that a chunk may hold where PyTorch finds its gradient
_COPIES = 8  # float32 tensors of the size of a chunk's logits that are there at the fullest moment
_KERNEL_CHUNK_BYTES = 1 << 30  # that the logits of a chunk may be where kernels write over them
_LEAST = 16  # tokens of a chunk; below that a product reads the weights for too little
_TILE = 128  # tokens; matrix products on a GPU are made of tiles of so many rows
_ROWS = 16_384  # of ∂L/∂W that are worked on at once where it needs a copy


class LossTerms(NamedTuple):
    """The loss and what it is made of, each reduced in the same way.

    Attributes:
        loss: α · hard + (1 − α) · soft; the gradient is this one's.
        hard: cross-entropy of the student, in nats; 0 where α is 0.
        soft: T² times the divergence; 0 where α is 1.
    """

    loss: Tensor
    hard: Tensor
    soft: Tensor


@torch.compiler.disable
def linear_kd_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | TopK | None,
    teacher_weight: Tensor | None,
    labels: Tensor | None,
    *,
    temperature: float = 4.0,
    alpha: float = 0.5,
    divergence: Divergence = "forward",
    beta: float = 0.5,
    ignore_index: int | None = -100,
    chunk_tokens: int | None = None,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    classes: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """`kd_loss` of the logits `student_hidden @ student_weight.T`, which are made a chunk at a time.

    Loss and gradients are computed together, in the forward pass; the backward pass scales them. Under
    autocast the products are in its dtype, as those of `nn.Linear` are; the loss is in float32 or better, and
    so is the sum over chunks of the weight's gradient. On GPUs where `kdlib.losses.kernels` runs, it computes loss
    and gradient of a chunk's logits (not of a `TopK`). With FSDP2 or DDP call it inside the wrapped module's
    forward, where the weight is whole. The teacher gets no gradient. There is no second derivative.
    `torch.compile` leaves it as it is, and compiles what stands before and after it.

    Args:
        student_hidden: (..., H), what the output layer is given.
        student_weight: (V, H), that layer's weight; student_bias: (V) or None.
        teacher_hidden: (..., H'), of the same positions; teacher_weight: (W, H'); teacher_bias: (W) or None.
            Or, from a cache, a `TopK` of shapes (..., k), (..., k), (...) with teacher_weight None. None,
            both, where alpha is 1.
        labels: (...) integers in [0, V), or ignore_index where a position does not count: its logits are not
            made. None means that alpha is 0 and all positions count.
        temperature, alpha, divergence, beta, ignore_index: as for `kdlib.losses.kd.kd_loss`. Here ignore_index
            may be None: every position counts, and a GPU need not be waited for to know how many do.
        chunk_tokens: positions of a chunk; default as many as keep it within 256 MB, and with the kernels
            within 1 GB.
        classes: how many leading logits the soft term compares, for vocabularies of unequal padding. Default
            the smaller of V and W. The hard term is over all V.
        reduction: "mean" over the positions that count, or "sum".

    Returns:
        A scalar in nats. Zero, with zero gradient, if no position counts.

    Raises:
        ValueError: naming the argument, its value and what was expected.
    """
    return linear_kd_terms(
        student_hidden, student_weight, teacher_hidden, teacher_weight, labels, temperature=temperature,
        alpha=alpha, divergence=divergence, beta=beta, ignore_index=ignore_index, chunk_tokens=chunk_tokens,
        student_bias=student_bias, teacher_bias=teacher_bias, classes=classes, reduction=reduction,
    ).loss  # fmt: skip


@torch.compiler.disable
def linear_kd_terms(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | TopK | None,
    teacher_weight: Tensor | None,
    labels: Tensor | None,
    *,
    temperature: float = 4.0,
    alpha: float = 0.5,
    divergence: Divergence = "forward",
    beta: float = 0.5,
    ignore_index: int | None = -100,
    chunk_tokens: int | None = None,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    classes: int | None = None,
    reduction: str = "mean",
) -> LossTerms:
    """`linear_kd_loss` with its two terms, for a curve of each; arguments and errors as there."""
    _check_options(temperature, divergence, beta, reduction)
    if reduction == "none":
        raise ValueError(
            'reduction must be "mean" or "sum" here: the gradient of each position is not kept'
        )
    if labels is None:
        alpha = 0.0
    classes = _check(
        student_hidden, student_weight, student_bias, teacher_hidden, teacher_weight, teacher_bias, labels,
        alpha, ignore_index, chunk_tokens, classes,
    )  # fmt: skip
    hidden = student_hidden.reshape(-1, student_hidden.shape[-1])
    kind = hidden.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    teacher = None
    if alpha < 1:
        of = _StoredTeacher if isinstance(teacher_hidden, TopK) else _LiveTeacher
        teacher = of(teacher_hidden, teacher_weight, teacher_bias, classes, autocast)
    if labels is not None:
        labels = labels.reshape(-1).long()
    if labels is not None and ignore_index is not None:
        counted = (labels != ignore_index).nonzero().squeeze(1)
        hidden, labels = hidden.index_select(0, counted), labels.index_select(0, counted)
        if teacher is not None:
            teacher.select(counted)
    scale = 1 / max(len(hidden), 1) if reduction == "mean" else 1.0
    chunks = _Chunks(
        labels, teacher, alpha,
        {"temperature": temperature, "divergence": divergence, "beta": beta}, len(hidden), scale,
    )  # fmt: skip
    dtype = autocast or hidden.dtype
    recorded = torch.is_grad_enabled()  # which it never is inside of a function's forward
    return LossTerms(
        *_Linear.apply(hidden, student_weight, student_bias, chunks, chunk_tokens, dtype, recorded)
    )


# --- a chunk ----------------------------------------------------------------------------------------


class _LiveTeacher:
    """Logits that are made now, from what the teacher's output layer is given."""

    def __init__(self, hidden, weight, bias, classes, autocast) -> None:
        # Without autocast in the dtype that the teacher has, whatever the student's.
        self.dtype = autocast or weight.dtype
        self.classes = classes
        self._hidden = hidden.detach().flatten(0, -2)
        self._weight = weight.detach().to(self.dtype)
        self._bias = None if bias is None else bias.detach().to(self.dtype)

    @property
    def width(self) -> int:
        return len(self._weight)

    def select(self, counted: Tensor) -> None:
        self._hidden = self._hidden.index_select(0, counted)

    def logits(self, rows: slice) -> Tensor:
        with torch.no_grad():
            return F.linear(self._hidden[rows].to(self.dtype), self._weight, self._bias)


class _StoredTeacher:
    """The largest logits, from a cache."""

    def __init__(self, top: TopK, weight, bias, classes, autocast) -> None:
        values, indices, log_tail = (tensor.detach() for tensor in top)
        self.classes = classes
        self._top = TopK(values.flatten(0, -2), indices.flatten(0, -2), log_tail.flatten())

    def select(self, counted: Tensor) -> None:
        self._top = TopK(*(tensor.index_select(0, counted) for tensor in self._top))

    def compared(self, student: Tensor, rows: slice, **options) -> Tensor:
        top = TopK(*(tensor[rows] for tensor in self._top))
        return top_k_loss(student[:, : self.classes], top, reduction="sum", **options)


def chunk_tokens(count: int, classes: int, *, written_over: int | None = None) -> int:
    """Positions of a chunk, of `count`.

    Args:
        classes: V.
        written_over: bytes of a position's logits, of student and teacher together, where the kernels write
            over them; None where PyTorch works beside them.
    """
    if written_over is None:
        return max(1, min(count, max(_LEAST, _CHUNK_BYTES // (4 * _COPIES * classes))))
    tiles = -(-count // _TILE)
    chunks = -(-tiles // max(1, _KERNEL_CHUNK_BYTES // (_TILE * written_over)))
    return _TILE * -(-tiles // max(1, chunks))  # chunks of equal size


class _Chunks:
    """Says of the student's logits of some positions which sums of terms and which gradient they have.

    Args:
        labels: (n,) of the positions that count, or None.
        teacher: what they are compared with, or None where alpha is 1.
        alpha: weight of the hard term. options: of the soft one.
        count: n. scale: of loss and gradients, in the end.
    """

    def __init__(
        self, labels: Tensor | None, teacher: _LiveTeacher | _StoredTeacher | None, alpha: float,
        options: dict, count: int, scale: float,
    ) -> None:  # fmt: skip
        self.alpha, self.count, self.scale = alpha, count, scale
        self._labels, self._teacher, self._options = labels, teacher, options

    def method(self, logits: Tensor) -> tuple[Callable, int]:
        """How it is done for logits like these (0, V), and how many positions a chunk of it has."""
        teacher = self._teacher
        if isinstance(teacher, _StoredTeacher):
            return self._by_autograd, chunk_tokens(self.count, logits.shape[1])
        other = None if teacher is None else logits.new_empty(0, dtype=teacher.dtype)
        if not _on_kernels(logits, other):
            return self._by_formula, chunk_tokens(self.count, logits.shape[1])
        each = logits.shape[1] * logits.itemsize
        each += 0 if teacher is None else teacher.width * teacher.dtype.itemsize
        return self._by_kernels, chunk_tokens(self.count, logits.shape[1], written_over=each)

    def _by_formula(self, logits: Tensor, rows: slice, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of the hard and of the soft term, and the derivative of the loss that they make.

        The logits are overwritten.
        """
        (hard, soft), slope = closed_form.kd_terms_and_gradient(logits, **self._beside(rows))
        return hard.sum(), soft.sum(), slope

    def _by_kernels(self, logits: Tensor, rows: slice, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The same on a GPU."""
        from kdlib.losses import kernels

        (hard, soft), slope = kernels.kd_terms_and_gradient(logits, **self._beside(rows), out=logits)
        return hard.sum(), soft.sum(), slope

    def _beside(self, rows: slice) -> dict[str, object]:
        beside = {"labels": None if self._labels is None else self._labels[rows], "alpha": self.alpha}
        if self._teacher is None:
            return self._options | beside | {"teacher_logits": None}
        return self._options | beside | {
            "teacher_logits": self._teacher.logits(rows), "width": self._teacher.classes,
        }  # fmt: skip

    def _by_autograd(
        self, logits: Tensor, rows: slice, wanted: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same beside the largest logits of a teacher."""
        hard = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        logits.requires_grad_(wanted)
        with torch.enable_grad():
            if self.alpha > 0:
                hard = F.cross_entropy(logits.to(hard.dtype), self._labels[rows], reduction="sum")
            soft = self._teacher.compared(logits, rows, **self._options)
            loss = self.alpha * hard + (1 - self.alpha) * soft
        slope = torch.autograd.grad(loss, logits)[0] if wanted else None
        return hard.detach(), soft.detach(), slope


# --- all of them ------------------------------------------------------------------------------------


class _Linear(torch.autograd.Function):
    """Loss, its terms and gradients of n hidden states, chunk by chunk."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, chunks, given, dtype, recorded):
        precise = torch.promote_types(dtype, torch.float32)
        wanted = [recorded and needed for needed in ctx.needs_input_grad[:3]]
        hard, soft = hidden.new_zeros(2, dtype=precise)
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(tensor, dtype=precise if number else tensor.dtype) if want else None
            for number, (tensor, want) in enumerate(zip((hidden, weight, bias), wanted, strict=True))
        )
        with torch.autocast(hidden.device.type, enabled=False):
            matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
            method, most = chunks.method(hidden.new_empty(0, len(weight), dtype=dtype))
            tokens = given or most
            for start in range(0, len(hidden), tokens):
                rows = slice(start, start + tokens)
                part = hidden[rows].to(dtype)
                *terms, slope = method(F.linear(part, matrix, offset), rows, any(wanted))
                hard += terms[0]
                soft += terms[1]
                if of_hidden is not None:
                    # Scaled after the product: float16 has no numbers for a share of 1/n.
                    of_hidden[rows] = (slope @ matrix).to(precise) * chunks.scale
                if of_weight is not None:
                    _add_product(of_weight, slope.T, part)
                if of_bias is not None:
                    of_bias += slope.sum(0, dtype=precise)
                del slope
        for gradient in (of_weight, of_bias):
            if gradient is not None:
                gradient *= chunks.scale
        ctx.save_for_backward(*(g for g in (of_hidden, of_weight, of_bias) if g is not None))
        ctx.wanted = wanted
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        # Three tensors, also where one is equal to another: the loss alone has a gradient.
        loss, hard, soft = (x * chunks.scale for x in (_weighted(hard, soft, chunks.alpha), hard, soft))
        ctx.mark_non_differentiable(hard, soft)
        return loss, hard, soft

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope, *_):
        saved = iter(ctx.saved_tensors)
        return (
            *(
                _scaled(next(saved), slope, dtype) if want else None
                for want, dtype in zip(ctx.wanted, ctx.dtypes, strict=True)
            ),
            *(None,) * 4,
        )  # fmt: skip


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, where total may be of higher precision than the factors, which are alike."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda and torch.version.cuda is not None and total.dtype == torch.float32:
        # The product is added before it is rounded. (NVIDIA's library has this, from PyTorch 2.10 on.)
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        for first in range(0, len(total), _ROWS):
            total[first : first + _ROWS] += left[first : first + _ROWS] @ right


def _scaled(gradient: Tensor, by: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient · by, rounded once, and without a copy of all of it in higher precision."""
    if gradient.dtype == dtype:
        return gradient * by
    scaled = torch.empty_like(gradient, dtype=dtype)
    for first in range(0, len(gradient), _ROWS):
        scaled[first : first + _ROWS] = gradient[first : first + _ROWS] * by
    return scaled


# --- what is refused ------------------------------------------------------------------------------


def _check(
    student_hidden, student_weight, student_bias, teacher_hidden, teacher_weight, teacher_bias, labels, alpha,
    ignore_index, chunk_tokens, classes,
) -> int:  # fmt: skip
    """The number of classes to compare."""
    _check_alpha(alpha)
    _check_layer("student", student_hidden, student_weight, student_bias)
    places, width = student_hidden.shape[:-1], len(student_weight)
    if labels is not None:
        if labels.shape != places or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(
                f"labels must be integers of shape {tuple(places)}, as student_hidden has positions; got "
                f"{labels.dtype} of shape {tuple(labels.shape)}"
            )
        if alpha > 0 and not labels.is_cuda:  # there a look would wait for the device
            outside = (labels < 0) | (labels >= width)
            wrong = labels[outside if ignore_index is None else outside & (labels != ignore_index)]
            if len(wrong):
                raise ValueError(
                    f"labels must lie in 0 … {width - 1}, or be ignore_index={ignore_index}; got "
                    f"{wrong[0].item()}"
                )
    most = width
    if alpha < 1:
        if teacher_hidden is None:
            raise ValueError("teacher_hidden is None: only alpha=1 with labels can do without a teacher")
        if isinstance(teacher_hidden, TopK):
            shape = teacher_hidden.log_tail.shape
            if teacher_weight is not None:
                raise ValueError(
                    "teacher_hidden is a TopK, which holds logits already; expected no teacher_weight"
                )
        else:
            if teacher_weight is None:
                raise ValueError("teacher_weight is None; expected the weight of the teacher's output layer")
            _check_layer("teacher", teacher_hidden, teacher_weight, teacher_bias)
            shape, most = teacher_hidden.shape[:-1], min(width, len(teacher_weight))
        if shape != places:
            raise ValueError(
                f"teacher_hidden has positions {tuple(shape)}, student_hidden {tuple(places)}; expected the "
                "same"
            )
    if classes is not None and not 2 <= classes <= most:
        raise ValueError(f"classes must lie in 2 … {most}, the logits that both have; got {classes}")
    if chunk_tokens is not None and (not isinstance(chunk_tokens, int) or chunk_tokens < 1):
        raise ValueError(f"chunk_tokens must be a whole number, at least 1; got {chunk_tokens!r}")
    return most if classes is None else classes


def _check_layer(name: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if not hidden.is_floating_point() or hidden.dim() < 2:
        raise ValueError(
            f"{name}_hidden must be floating, (..., H); got {hidden.dtype} {tuple(hidden.shape)}"
        )
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"{name}_weight must be (V, {hidden.shape[-1]}), as {name}_hidden is {hidden.shape[-1]} wide; "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}_bias must be ({len(weight)},); got {tuple(bias.shape)}")
