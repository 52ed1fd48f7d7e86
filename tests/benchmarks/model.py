"""What the loss should take, calculated from products, bytes and instructions. Nothing here was measured.

**A step** is a kernel of the GPU: `operations` of matrix products, `bytes` to and from memory, and `issue`,
the seconds in which its instructions can be issued at best. These go on side by side, so that it takes

    max(operations / matrix rate, bytes / copy rate, issue)

and steps follow on each other. Launches, the ends of kernels and whatever is waited for are left out, so it
is a least time: at few tokens, or with small models, more is to be expected.

**From hidden states**, n tokens, V logits, hidden states H and H' wide, b bytes a number, chunks of c tokens:

    student's logits    2·c·V·H  operations    b·(c·H  + V·H  + c·V) bytes
    teacher's logits    2·c·V·H' operations    b·(c·H' + V·H' + c·V) bytes
    loss and G          b·c·V·(2·passes + 1) bytes, the instructions of c·V classes
    ∂L/∂h = G·W         2·c·V·H  operations    b·(c·V + V·H) + 4·c·H bytes
    ∂L/∂W = Gᵀ·h        2·c·V·H  operations    b·(c·V + c·H) bytes and those of ∂L/∂W, see
                                               `kdlib.losses.linear`, "Traffic of ∂L/∂W"

and before and behind the chunks, the rows that count are gathered and the gradients rounded to b bytes.
**Extra memory** at the fullest moment, in a chunk: rows gathered, ∂L/∂h and ∂L/∂W, two logits a class.

**The peers** are counted likewise from what they do: eager PyTorch from its operators, one by one (a test
lets PyTorch count them), Liger-Kernel 0.8.5 from its source (`fused_linear_kl_div`, `fused_linear_jsd`).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from benchmarks.problems import Setting, Sizes
from benchmarks.race import Rates
from kdlib.language.plan.hardware import HARDWARE, Hardware
from kdlib.losses.linear import chunk_tokens

__all__ = [
    "EAGER_BYTES", "GPUS", "Gpu", "Step", "bounds", "calculated_figures", "counts", "eager_extra_bytes",
    "eager_steps", "extra_bytes", "given_steps", "known_gpu", "liger_jsd_extra_bytes", "liger_kl_steps",
    "linear_steps", "seconds",
]  # fmt: skip

COMMITTED = Path(__file__).resolve().parents[2] / "data" / "results" / "kernels_compiled.json"
# Lanes that a multiprocessor serves in a clock: four schedulers issue an instruction for 32 lanes each, and a
# kind of operation has so many units; see `benchmarks.sass.KINDS` for kinds and source.
ISSUE = 128
UNITS = {"special": 16, "half_rate": 64, "full_rate": 128}
# Of the published rates, what large products and copies may reach: 784 TFLOP/s and 4.3 TB/s of an H200.
REACHED = {"matrix": 0.79, "copy": 0.9}


@dataclass(frozen=True)
class Gpu:
    """One GPU: the figures of `kdlib.language.plan.hardware`, and what its multiprocessors can issue."""

    hardware: Hardware
    multiprocessors: int
    clock: float  # Hz

    @property
    def name(self) -> str:
        return self.hardware.name

    @property
    def rates(self) -> Rates:
        """What it should reach."""
        return Rates(REACHED["matrix"] * self.hardware.flops, REACHED["copy"] * self.hardware.bandwidth)

    def issue(self, instructions: Mapping[str, float]) -> dict[str, float]:
        """The least seconds of the whole GPU for so many instructions of a lane, by what bounds them."""
        rate = self.multiprocessors * self.clock
        return {"issue": sum(instructions.values()) / ISSUE / rate} | {
            kind: instructions.get(kind, 0.0) / units / rate for kind, units in UNITS.items()
        }

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name, "multiprocessors": self.multiprocessors, "clock_hz": self.clock,
            "bandwidth": self.hardware.bandwidth, "issued_lanes_a_clock": ISSUE, "units": UNITS,
        }  # fmt: skip


# NVIDIA H100 Tensor Core GPU Architecture, white paper 1.04, table 3: SXM5 has 132 multiprocessors of 128
# float32 units and four schedulers each, and runs at 1,980 MHz where no matrix unit works. That gives the
# 67 TFLOP/s in float32 of the data sheets of H100 SXM and H200 SXM, which have the same processor.
GPUS = tuple(Gpu(HARDWARE[name], 132, 1.98e9) for name in ("H100-80GB", "H200-141GB"))


def known_gpu(name: str) -> Gpu | None:
    """The one that CUDA calls so, as "NVIDIA H200"; None of others."""
    return next((gpu for gpu in GPUS if gpu.name.partition("-")[0] in name), None)


def bounds(
    gpu: Gpu, classes: int, instructions: Mapping[str, float], traffic: float
) -> dict[str, float]:
    """The least seconds of a kernel over so many classes, by what bounds them; it takes the largest.

    Args:
        instructions: of a class, by kind; traffic: bytes of a class. Memory is at its published rate.
    """
    total = {kind: classes * number for kind, number in instructions.items()}
    return {"memory": classes * traffic / gpu.hardware.bandwidth} | gpu.issue(total)


@cache
def counts(setting: str, shape: str = "151,936") -> Mapping[str, float]:
    """Instructions of a class by kind, on compute capability 9.0, from kernels_compiled.json.

    Raises:
        KeyError: nothing of the kind was counted.
    """
    for row in json.loads(COMMITTED.read_text(encoding="utf-8"))["kernels"]:
        if (row["setting"], row["shape"], row["capability"]) == (setting, shape, 90):
            return row["instructions"]
    raise KeyError(f"{COMMITTED.name} has no {setting!r} of {shape!r} for compute capability 9.0")


# --- steps ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One kernel: operations of matrix products, bytes, and seconds to issue its instructions."""

    name: str
    operations: float = 0.0
    bytes: float = 0.0
    issue: float = 0.0


def seconds(steps: Iterable[Step], rates: Rates) -> float:
    """Of steps that follow on each other."""
    return sum(max(s.operations / rates.matrix, s.bytes / rates.copy, s.issue) for s in steps)


def given_steps(sizes: Sizes, setting: Setting, gpu: Gpu, shape: str = "151,936") -> list[Step]:
    """`kd_loss` of given logits: one kernel; backward looks at a factor of 1 and leaves the gradient."""
    return [Step("loss and gradient", 0.0, sizes.traffic(setting), _issue(sizes, setting, gpu, shape))]


def _issue(sizes: Sizes, setting: Setting, gpu: Gpu, shape: str) -> float:
    alpha = 0.5 if setting.alpha else 0.0
    name = "hard term alone" if setting.alpha == 1 else f"{setting.divergence}, α {alpha:g}"
    classes = sizes.counted_tokens * sizes.vocabulary
    return max(gpu.issue({k: classes * v for k, v in counts(name, shape).items()}).values())


def _chunks(sizes: Sizes) -> list[int]:
    """Tokens of each chunk of `linear_kd_loss`, with kernels."""
    n, both = sizes.counted_tokens, 2 * sizes.vocabulary * sizes.dtype.itemsize
    size = chunk_tokens(n, sizes.vocabulary, written_over=both)
    return [min(size, n - start) for start in range(0, n, size)]


def linear_steps(sizes: Sizes, setting: Setting, gpu: Gpu) -> list[Step]:
    """`linear_kd_loss` with kernels, a teacher, and weights of the dtype of the hidden states."""
    v, h, other, b = sizes.vocabulary, sizes.student_hidden, sizes.teacher_hidden, sizes.dtype.itemsize
    n, chunks = sizes.counted_tokens, _chunks(sizes)
    whole = len(chunks) == 1
    steps = [Step("rows that count, gathered", 0.0, 2 * b * n * (h + other))]
    for place, c in enumerate(chunks):
        # Of ∂L/∂W, bytes an entry: the first chunk writes it, the others read and write it.
        of_weight = b if whole else 4 if place == 0 else 8
        part = Sizes(c, v, h, other, sizes.dtype)
        steps += [
            Step("student's logits", 2 * c * v * h, b * (c * h + v * h + c * v)),
            Step("teacher's logits", 2 * c * v * other, b * (c * other + v * other + c * v)),
            *given_steps(part, setting, gpu),
            Step("∂L/∂h", 2 * c * v * h, b * (c * v + v * h) + 4 * c * h),
            Step("∂L/∂W", 2 * c * v * h, b * (c * v + c * h) + of_weight * v * h),
        ]
    rounded = 0 if whole or b == 4 else v * h
    return [*steps, Step("gradients rounded", 0.0, (4 + b) * (rounded + (n * h if b < 4 else 0)))]


def extra_bytes(sizes: Sizes) -> int:
    """Of `linear_kd_loss` with kernels at its fullest moment: in a chunk, or as gradients are rounded."""
    v, h, b, n = sizes.vocabulary, sizes.student_hidden, sizes.dtype.itemsize, sizes.counted_tokens
    chunks = _chunks(sizes)
    gathered = b * n * (h + sizes.teacher_hidden)
    of_weight = v * h * (b if len(chunks) == 1 else 4)
    gradients = 4 * n * h + of_weight
    rounded = 0 if b == 4 else b * n * h + (0 if len(chunks) == 1 else b * v * h)
    return max(gathered + gradients + 2 * b * max(chunks) * v, gradients + rounded)


# --- peers ----------------------------------------------------------------------------------------

# Bytes of a class that the operators of eager PyTorch read and write between logits in half precision and
# their gradient, each tensor once an operator. And those held at the fullest moment, forward divergence:
# both logits (2 + 2), two tensors in float32 of each side, and the terms of the sum with their factors.
EAGER_BYTES = {"forward": 122, "reverse": 146, "jsd": 298}
_EAGER_HELD = 26


def eager_steps(sizes: Sizes, setting: Setting, *, linear: bool) -> list[Step]:
    """Eager PyTorch, all tokens at once: it makes the logits of those too that do not count."""
    v, h, other, b, n = (
        sizes.vocabulary, sizes.student_hidden, sizes.teacher_hidden, sizes.dtype.itemsize, sizes.tokens
    )  # fmt: skip
    loss = [Step("loss and gradient", 0.0, EAGER_BYTES[setting.divergence] * n * v)]
    return loss if not linear else [
        Step("student's logits", 2 * n * v * h, b * (n * h + v * h + n * v)),
        Step("teacher's logits", 2 * n * v * other, b * (n * other + v * other + n * v)),
        *loss,
        *(Step(name, 2 * n * v * h, b * (n * h + v * h + n * v)) for name in ("∂L/∂h", "∂L/∂W")),
    ]  # fmt: skip


def eager_extra_bytes(sizes: Sizes) -> int:
    """Of eager PyTorch at its fullest moment, for half precision and the forward divergence."""
    return _EAGER_HELD * sizes.tokens * sizes.vocabulary


def liger_kl_steps(sizes: Sizes) -> list[Step]:
    """Liger's fused linear KL: the teacher's probabilities, then chunks; ∂L/∂W in half precision.

    A chunk is such that its logits are at most 16 times the hidden states, rounded up to a power of two. The
    kernel reads the student's logits in three passes and the teacher's probabilities in two.
    """
    v, h, other, b, n = (
        sizes.vocabulary, sizes.student_hidden, sizes.teacher_hidden, sizes.dtype.itemsize, sizes.tokens
    )  # fmt: skip
    size = min(n, _power_of_two(-(-n // -(-v // (16 * h)))))
    steps = [
        Step("teacher's logits", 2 * n * v * other, b * (n * other + v * other + n * v)),
        Step("over T", 0.0, 2 * b * n * v),
        # A row of 300 KB is more than shared memory holds: largest, sum and result read it.
        Step("softmax", 0.0, 4 * b * n * v),
        Step("∂L/∂W = 0", 0.0, b * v * h),
    ]
    for start in range(0, n, size):
        c = min(size, n - start)
        steps += [
            Step("student's logits", 2 * c * v * h, b * (c * h + v * h + c * v)),
            Step("loss and G", 0.0, 6 * b * c * v),
            Step("∂L/∂h", 2 * c * v * h, b * (c * v + v * h) + 3 * b * c * h),
            Step("∂L/∂W", 2 * c * v * h, b * (c * v + c * h) + 2 * b * v * h),
        ]
    return steps


def liger_jsd_extra_bytes(sizes: Sizes) -> int:
    """Liger's fused linear JSD, on compute capability 9.0, at its fullest moment: the leanest of the peers.

    Both gradients in half precision, and of a chunk, whose logits are about as many as the hidden states
    (rounded up to a power of two), nine float32 tensors: logits and log-probabilities of both, the student's
    probabilities, the loss of each class, and three on the way to the gradient by the logits.
    """
    v, h, b, n = sizes.vocabulary, sizes.student_hidden, sizes.dtype.itemsize, sizes.tokens
    size = min(n, _power_of_two(-(-n // -(-v // h))))
    return b * (v * h + n * h) + 9 * 4 * size * v


# --- the figures ----------------------------------------------------------------------------------

# Shapes of kernels_compiled.json with odd rows, or a view of wider ones; and their classes.
UNALIGNED = {"50,257": 50_257, "logits[:, :151665], gradient apart": 151_665}
SMALLEST = 256  # tokens


def calculated_figures(sizes: Sizes, gpu: Gpu, rates: Rates | None = None) -> dict[str, float]:
    """What `benchmarks.targets` judges, calculated, under the keys that it has for it; no errors among them.

    Args:
        rates: what products and copies reach, measured; else what they should (`Gpu.rates`).
    """
    rates = rates or gpu.rates

    def ours(sizes: Sizes, divergence: str = "forward") -> float:
        return seconds(linear_steps(sizes, Setting(divergence), gpu), rates)

    def given(sizes: Sizes, divergence: str, shape: str = "151,936") -> float:
        return seconds(given_steps(sizes, Setting(divergence), gpu, shape), rates)

    def eager(sizes: Sizes, divergence: str, *, linear: bool) -> float:
        return seconds(eager_steps(sizes, Setting(divergence), linear=linear), rates)

    extra = extra_bytes(sizes)
    figures = {
        "floor": ours(sizes) / (sizes.operations(Setting()) / rates.matrix),
        "liger": seconds(liger_kl_steps(sizes), rates) / ours(sizes),
        "memory": extra / 1e9,
        "memory against eager": extra / eager_extra_bytes(sizes),
        "memory against the leanest": extra / liger_jsd_extra_bytes(sizes),
        "quarter": ours(replace(sizes, counted=0.25)) / ours(sizes),
    }
    for divergence in ("forward", "reverse", "jsd"):
        figures[divergence] = given(sizes, divergence) / (sizes.traffic(Setting(divergence)) / rates.copy)
        others = {shape: replace(sizes, vocabulary=classes) for shape, classes in UNALIGNED.items()}
        figures[f"{divergence} unaligned"] = max(
            given(odd, divergence, shape) / (odd.traffic(Setting(divergence)) / rates.copy)
            for shape, odd in others.items()
        )
        figures[f"{divergence} eager"] = eager(sizes, divergence, linear=False) / given(sizes, divergence)
    few = [SMALLEST << k for k in range((sizes.tokens // SMALLEST).bit_length())]
    figures["small"] = max(
        ratio for tokens in few for part in [replace(sizes, tokens=tokens)] for ratio in (
            ours(part) / eager(part, "forward", linear=True),
            given(part, "forward") / eager(part, "forward", linear=False),
        )
    )  # fmt: skip
    return figures


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
