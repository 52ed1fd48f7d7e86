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
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.losses import Divergence, _check_alpha, _check_options, soft_target_loss
from kdlib.top_k import TopK, top_k_loss

__all__ = ["linear_kd_loss"]

_CHUNK_BYTES = 256 << 20  # that a chunk may hold
_COPIES = 12  # float32 tensors of the size of a chunk's logits that the losses hold at their fullest
_LEAST = 16  # tokens of a chunk; below that a product reads the weights for too little
_ROWS = 16_384  # of ∂L/∂W that are added at once, where the product is rounded before it is added


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
    ignore_index: int = -100,
    chunk_tokens: int | None = None,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    classes: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """`kd_loss` of the logits `student_hidden @ student_weight.T`, which are made a chunk at a time.

    Loss and gradients are computed together, in the forward pass; the backward pass scales them. Under
    autocast the products are in its dtype, as those of `nn.Linear` are; the loss is in float32 or better, and
    so is the sum over chunks of the weight's gradient. With FSDP2 or DDP call it inside the wrapped module's
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
        temperature, alpha, divergence, beta, ignore_index: as for `kdlib.losses.kd_loss`.
        chunk_tokens: positions of a chunk; default as many as keep it within 256 MB.
        classes: how many leading logits the soft term compares, for vocabularies of unequal padding. Default
            the smaller of V and W. The hard term is over all V.
        reduction: "mean" over the positions that count, or "sum".

    Returns:
        A scalar in nats. Zero, with zero gradient, if no position counts.

    Raises:
        ValueError: naming the argument, its value and what was expected.
    """
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
    teacher = None if alpha == 1 else _Teacher(teacher_hidden, teacher_weight, teacher_bias)
    if labels is not None:
        labels = labels.reshape(-1)
        counted = (labels != ignore_index).nonzero().squeeze(1)
        hidden, labels = hidden.index_select(0, counted), labels.index_select(0, counted).long()
        teacher = teacher and teacher.select(counted)
    if chunk_tokens is None:
        chunk_tokens = max(_LEAST, _CHUNK_BYTES // (4 * _COPIES * len(student_weight)))
    scale = 1 / max(len(hidden), 1) if reduction == "mean" else 1.0

    def loss_of(logits: Tensor, rows: slice) -> Tensor:
        """The sum over a chunk."""
        total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        if alpha > 0:
            total = total + alpha * F.cross_entropy(
                logits.to(total.dtype), labels[rows], reduction="sum"
            )
        if alpha < 1:
            total = total + (1 - alpha) * teacher.compared(
                logits[:, :classes], rows, temperature=temperature, divergence=divergence, beta=beta,
                reduction="sum",
            )  # fmt: skip
        return total

    return _Linear.apply(hidden, student_weight, student_bias, loss_of, chunk_tokens, scale)


class _Linear(torch.autograd.Function):
    """Loss and gradients of n hidden states, chunk by chunk."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, loss_of, chunk_tokens, scale):
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        precise = torch.promote_types(dtype, torch.float32)
        wanted = ctx.needs_input_grad[:3]
        total = hidden.new_zeros((), dtype=precise)
        gradients = [
            torch.zeros_like(tensor, dtype=precise if number else tensor.dtype) if want else None
            for number, (tensor, want) in enumerate(zip((hidden, weight, bias), wanted, strict=True))
        ]
        with torch.autocast(kind, enabled=False):
            matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
            for start in range(0, len(hidden), chunk_tokens):
                rows = slice(start, start + chunk_tokens)
                part = hidden[rows].to(dtype)
                logits = F.linear(part, matrix, offset).requires_grad_(any(wanted))
                with torch.enable_grad():
                    loss = loss_of(logits, rows)
                total += loss.detach()
                if any(wanted):
                    (slope,) = torch.autograd.grad(loss, logits)
                    del loss, logits
                    _collect(gradients, rows, slope, part, matrix, scale)
        for gradient in gradients[1:]:
            if gradient is not None:
                gradient *= scale
        ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
        ctx.wanted, ctx.dtypes = wanted, [None if t is None else t.dtype for t in (hidden, weight, bias)]
        return total * scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        saved = iter(ctx.saved_tensors)
        return (
            *(
                (next(saved) * slope).to(dtype) if want else None
                for want, dtype in zip(ctx.wanted, ctx.dtypes, strict=True)
            ),
            None, None, None,
        )  # fmt: skip


def _collect(
    gradients: Sequence[Tensor | None], rows: slice, slope: Tensor, part: Tensor, matrix: Tensor, scale: float
) -> None:
    """What (c, V) derivatives of a chunk's loss say of hidden states, weight and bias."""
    of_hidden, of_weight, of_bias = gradients
    if of_hidden is not None:
        # Scaled after the product: float16 has no numbers for a share of 1/n.
        of_hidden[rows] = (slope @ matrix).to(torch.promote_types(slope.dtype, torch.float32)) * scale
    if of_weight is not None:
        if of_weight.dtype == slope.dtype:
            of_weight.addmm_(slope.T, part)
        else:
            for first in range(0, len(of_weight), _ROWS):
                some = slice(first, first + _ROWS)
                of_weight[some] += slope[:, some].T @ part
    if of_bias is not None:
        of_bias += slope.sum(0, dtype=of_bias.dtype)


class _Teacher:
    """What the student is compared with, a chunk at a time: logits that are made now, or the largest ones."""

    def __init__(self, hidden: Tensor | TopK, weight: Tensor | None, bias: Tensor | None) -> None:
        tensors = hidden if isinstance(hidden, TopK) else (hidden,)
        flat = [
            t.detach().flatten() if isinstance(hidden, TopK) and number == 2 else t.detach().flatten(0, -2)
            for number, t in enumerate(tensors)
        ]
        self._stored, self._weight, self._bias = flat, weight, bias

    def select(self, counted: Tensor) -> "_Teacher":
        self._stored = [tensor.index_select(0, counted) for tensor in self._stored]
        return self

    def compared(self, student: Tensor, rows: slice, **options) -> Tensor:
        stored = [tensor[rows] for tensor in self._stored]
        if len(stored) == 3:
            return top_k_loss(student, TopK(*stored), **options)
        with torch.no_grad():
            # In the dtype that the teacher has, whatever the student's: it stands beside it as it is.
            bias = None if self._bias is None else self._bias.to(self._weight.dtype)
            logits = F.linear(stored[0].to(self._weight.dtype), self._weight, bias)
        return soft_target_loss(student, logits[:, : student.shape[1]], **options)


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
            wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= width))]
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
