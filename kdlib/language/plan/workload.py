"""A run of `distill_language_model` in numbers, for `kdlib.language.plan.plan`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kdlib.language.distill.output_layer import LARGE_VOCABULARY
from kdlib.language.plan.architecture import Architecture, WeightType
from kdlib.language.plan.hardware import Hardware
from kdlib.losses.divergences import Divergence
from kdlib.runtime import Precision

__all__ = ["Method", "Workload"]

Method = Literal["texts", "logits", "cached"]


@dataclass
class Workload:
    """What is trained on what, and how.

    Attributes:
        teacher, student: their shapes; the student is trained in float32 weights.
        hardware: all devices that take part.
        tokens: trained on, prompts and completions together, over all epochs.
        method: "texts" (cross-entropy on them), "logits" (the teacher runs at every step) or "cached"
            (the teacher runs once over the texts beforehand, `cache_teacher_tokens`). Default "logits" with a
            teacher, "texts" without.
        context: positions of a text, padding included; every text is taken to be as long.
        prompt_tokens: of each text, which are read but not learnt.
        batch_size, accumulation: texts in a micro-batch of one device, and micro-batches in a step.
        padding: share of the positions that hold no token, below 1.
        packing: whether short texts share a row; like padding it takes a mask.
        precision: "bf16" (autocast over float32 weights) or "no" (float32); "auto" is "bf16".
        gradient_checkpointing: whether each layer is computed again in the backward pass.
        divergence: of the soft term, where all logits are compared.
        top_k: of the teacher's logits for each token; None is all of them, and 64 for the cache.
        teacher_weights: type of the teacher's weights.
        samples: texts that the teacher writes first, up to the end of the context.
        sampling_batch: texts that one device writes at once.
        utilisation: share of the peak FLOP/s that training reaches. An assumption; for comparison, Llama 3
            405B reached 0.38 to 0.43 on H100 (Grattafiori et al. 2024, arXiv 2407.21783, table 4).
        bandwidth_share: share of the memory's bandwidth that writing text reaches. An assumption too.
        usable: share of a device's memory that tensors may fill; the rest is for CUDA, communication and gaps
            between them. An assumption.

    Raises:
        ValueError: a value out of its range, or no teacher although the method needs one.
    """

    teacher: Architecture | None
    student: Architecture
    hardware: Hardware
    tokens: float
    method: Method | None = None
    context: int = 4096
    prompt_tokens: int = 128
    batch_size: int = 1
    accumulation: int = 8
    padding: float = 0.0
    packing: bool = False
    precision: Precision = "bf16"
    gradient_checkpointing: bool = True
    divergence: Divergence = "forward"
    top_k: int | None = None
    teacher_weights: WeightType = "bfloat16"
    samples: int = 0
    sampling_batch: int = 32
    utilisation: float = 0.4
    bandwidth_share: float = 0.6
    usable: float = 0.9

    def __post_init__(self) -> None:
        if self.method is None:
            self.method = "logits" if self.teacher else "texts"
        if self.method == "cached" and self.top_k is None:
            self.top_k = 64
        self.teacher_needed = self.method != "texts" or self.samples > 0
        self._check()
        self.live_teacher = self.teacher if self.method == "logits" else None  # one that runs at every step
        self.limit = self.usable * self.hardware.memory  # bytes of a device that may be filled
        # In a micro-batch of one device: positions, those that logits are computed for, tokens in the loss.
        learnt = self.context - self.prompt_tokens
        self.positions, self.kept = self.batch_size * self.context, self.batch_size * learnt
        texts = self.positions * (1 - self.padding)
        self.counted = max(1, round(texts * learnt / self.context))
        self.micro_batches = self.tokens / texts  # on all devices together
        self.masked = self.packing or self.padding > 0  # attention that is causal and nothing else needs none
        self.fused = self.student.vocabulary >= LARGE_VOCABULARY  # a loss from hidden states
        # Bytes of a number that a product of the student and of the teacher gives.
        self.bf16 = self.precision != "no"
        self.itemsize = 2 if self.bf16 else 4
        self.teacher_itemsize = 4 if self.teacher_weights == "float32" and not self.bf16 else 2

    def _check(self) -> None:
        def expect(expected: str, good: Callable[[Any], bool], *names: str) -> None:
            for name in names:
                if not good(getattr(self, name)):
                    raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}")

        for name, kind in {
            "method": Method, "divergence": Divergence, "precision": Precision, "teacher_weights": WeightType
        }.items():  # fmt: skip
            expect(f"one of {', '.join(get_args(kind))}", get_args(kind).__contains__, name)
        counts = ("context", "prompt_tokens", "batch_size", "accumulation", "sampling_batch")
        expect("a whole number, at least 1", lambda count: isinstance(count, int) and count >= 1, *counts)
        expect("a whole number, at least 0", lambda count: isinstance(count, int) and count >= 0, "samples")
        shares = ("utilisation", "bandwidth_share", "usable")
        expect("a share, above 0 and at most 1", lambda share: 0 < share <= 1, *shares)
        expect("a share, at least 0 and below 1", lambda share: 0 <= share < 1, "padding")
        expect("a number above 0", lambda number: 0 < number < math.inf, "tokens")
        context, logits = self.context, self.student.vocabulary
        expect(f"less than the context of {context}", lambda tokens: tokens < context, "prompt_tokens")
        expect(f"1 to the {logits} logits, or None", lambda k: k is None or 1 <= k <= logits, "top_k")
        expect("one, for this method or these samples", lambda one: one or not self.teacher_needed, "teacher")
