"""What is timed: hidden states, weights and logits of a given size, and what the loss of them should be.

What a machine must do at least follows from the sizes (n tokens that count, V logits each,
hidden states H and H' wide):

    from hidden states    the logits of student and teacher, and of the student ∂L/∂h and ∂L/∂W:
                          2·n·V·(3·H + H') operations
    on given logits       both are read in each pass, and the gradient is written in the last: two passes for
                          KL, 5 numbers a class; three for JSD, 7. One number for a token that does not
                          count: its gradient, zero
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdlib.losses.checks import check_settings
from kdlib.losses.divergences import Divergence, LossSettings
from kdlib.losses.kd import plain_kd_loss

__all__ = ["IGNORED", "Errors", "Problem", "Setting", "Sizes", "errors", "make_problem"]

IGNORED = -100
_READS_AND_WRITES = {"forward": 5, "reverse": 5, "jsd": 7}
_CHUNK = 64  # rows of the reference at once


@dataclass(frozen=True)
class Setting:
    """The loss: α·CE + (1 − α)·T²·D, mean over the tokens that count; see `kdlib.losses.kd.kd_loss`."""

    divergence: Divergence = "forward"
    temperature: float = 1.0
    alpha: float = 0.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        check_settings(self.of_loss, "mean")

    @property
    def of_loss(self) -> LossSettings:
        return LossSettings(self.temperature, self.alpha, self.divergence, self.beta)


@dataclass(frozen=True)
class Sizes:
    """Tokens, logits of each, and how wide hidden states are; `counted` is the share of tokens that count."""

    tokens: int
    vocabulary: int
    student_hidden: int
    teacher_hidden: int
    dtype: torch.dtype
    counted: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("vocabulary", 2), ("student_hidden", 1), ("teacher_hidden", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if not 0 < self.counted <= 1:
            raise ValueError(f"counted must be in (0, 1], a share of the tokens; got {self.counted}")

    @property
    def counted_tokens(self) -> int:
        return max(1, round(self.counted * self.tokens))

    def operations(self, setting: Setting) -> int:
        """Of the matrix products that the loss from hidden states needs; a multiply and an add are two."""
        teacher = self.teacher_hidden if setting.alpha < 1 else 0
        return 2 * self.counted_tokens * self.vocabulary * (3 * self.student_hidden + teacher)

    def traffic(self, setting: Setting) -> int:
        """Bytes that the loss on given logits reads and writes at least."""
        numbers = _READS_AND_WRITES[setting.divergence] if setting.alpha < 1 else 3
        counted = self.counted_tokens
        return self.vocabulary * self.dtype.itemsize * (numbers * counted + self.tokens - counted)


@dataclass(frozen=True)
class Problem:
    """Tensors that every contender is given.

    Attributes:
        inputs: what the gradient is wanted of: hidden states (n, H) and weight (V, H), or logits (n, V).
        teacher: hidden states (n, H') and weight (V, H'), or logits (n, V).
        labels: (n) int64; IGNORED where a token does not count.
    """

    sizes: Sizes
    inputs: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]
    labels: Tensor

    @property
    def kind(self) -> str:
        return "linear" if len(self.inputs) == 2 else "logits"

    def counting(self, tokens: int) -> "Problem":
        """The same with only some of the tokens that count, and all shapes as they were."""
        counted = (self.labels != IGNORED).nonzero().squeeze(1)
        labels = torch.full_like(self.labels, IGNORED)
        labels[counted[:tokens]] = self.labels[counted[:tokens]]
        share = min(tokens, len(counted)) / self.sizes.tokens
        return replace(self, labels=labels, sizes=replace(self.sizes, counted=share))


def make_problem(kind: str, sizes: Sizes, device: torch.device | str, seed: int = 0) -> Problem:
    """Normal hidden states, and weights that make logits of standard deviation 2 of them; or such logits.

    Args:
        kind: "linear" from hidden states, or "logits".
    """
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(seed)

    def normal(rows: int, columns: int, scale: float) -> Tensor:
        drawn = torch.empty(rows, columns, dtype=sizes.dtype, device=device)
        return drawn.normal_(0, scale, generator=generator)

    n, classes = sizes.tokens, sizes.vocabulary
    if kind == "linear":
        student, teacher = (
            (normal(n, width, 1), normal(classes, width, 2 / width**0.5))
            for width in (sizes.student_hidden, sizes.teacher_hidden)
        )
    else:
        student, teacher = (normal(n, classes, 2),), (normal(n, classes, 2),)
    labels = torch.randint(0, classes, (n,), generator=generator, device=device)
    # Not the first ones: those that count are spread as in a batch of texts.
    order = torch.randperm(n, generator=generator, device=device)
    labels[order[sizes.counted_tokens :]] = IGNORED
    return Problem(sizes, tuple(t.requires_grad_() for t in student), teacher, labels)


# --- what is right ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Errors:
    """How far a loss and its gradients are from float64.

    Attributes:
        loss: relative.
        gradient: the largest error, over the largest gradient; of several gradients the worst.
        steps: the largest error in units of the gap between neighbouring numbers of the gradient's dtype at
            the largest gradient.
    """

    loss: float
    gradient: float
    steps: float


def errors(problem: Problem, setting: Setting, loss: Tensor, gradients: tuple[Tensor, ...]) -> Errors:
    """Of a contender's loss and gradients, against the same inputs in float64.

    Memory: a few times the inputs, besides 64 rows of logits at a time; let only few tokens count
    (`Problem.counting`) where all would take long.
    """
    right, exact = _reference(problem, setting)
    worst = steps = 0.0
    for given, wanted in zip(gradients, exact, strict=True):
        error, largest = _furthest(given, wanted)
        worst = max(worst, error / largest)
        # frexp: largest = m · 2ᵉ with m from 1/2 to 1.
        gap = math.ldexp(torch.finfo(given.dtype).eps, math.frexp(largest)[1] - 1)
        steps = max(steps, error / gap)
    return Errors(abs(loss.item() - right) / abs(right), worst, steps)


def _furthest(given: Tensor, wanted: Tensor) -> tuple[float, float]:
    """The largest error, and the largest that is wanted; some rows at a time. NaN is infinitely far."""
    error = largest = 0.0
    for some, right in zip(given.split(4096), wanted.split(4096), strict=True):
        error = max(error, (some.double() - right).abs().nan_to_num(torch.inf).max().item())
        largest = max(largest, right.abs().max().item())
    return error, largest


def _reference(problem: Problem, setting: Setting) -> tuple[float, tuple[Tensor, ...]]:
    """Loss and gradients in float64, by autograd, 64 rows at a time."""
    counted = (problem.labels != IGNORED).nonzero().squeeze(1)
    inputs = [tensor.detach() for tensor in problem.inputs]
    gradients = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in inputs]
    linear = problem.kind == "linear"
    weight, teacher_weight = (inputs[1].double(), problem.teacher[1].double()) if linear else (None, None)
    total = 0.0
    for rows in counted.split(_CHUNK):
        hidden, z_teacher = inputs[0][rows].double(), problem.teacher[0][rows].double()
        z = hidden @ weight.T if linear else hidden
        z_teacher = z_teacher @ teacher_weight.T if linear else z_teacher
        z.requires_grad_()
        with torch.enable_grad():
            labels = problem.labels[rows]
            loss = plain_kd_loss(z, z_teacher, labels, setting.of_loss, IGNORED, "sum") / len(counted)
            (slope,) = torch.autograd.grad(loss, z)
        total += loss.item()
        gradients[0][rows] = slope @ weight if linear else slope
        if linear:
            gradients[1].addmm_(slope.T, hidden)
    return total, tuple(gradients)
