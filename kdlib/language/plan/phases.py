"""The parts of a distillation, one after the other: writing texts, storing the teacher's outputs, training.

**Writing text** reads all weights, and the keys and values of every text in the batch, for each token; it
takes whichever is longer, that or the arithmetic (Pope et al. 2022, arXiv 2211.05102, §2.1).

**Communication** of n devices: a reduction sends 2·(n − 1)/n bytes for each byte (DDP, once a step, float32);
gathering and reduce-scattering (n − 1)/n each. FSDP2 gathers the student's weights for the forward and again
for the backward pass of each micro-batch, the teacher's once, and scatters gradients (Zhao et al. 2023, arXiv
2304.11277).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from kdlib.language.plan.hardware import Hardware
from kdlib.language.plan.memory import (
    Architecture,
    Method,
    Step,
    WeightType,
    teacher_working,
    training_moments,
)
from kdlib.losses.kd import Divergence

__all__ = ["Job", "Phase", "Sharding", "all_fit", "phases_of", "spread"]

Sharding = Literal["one device", "DDP", "FSDP2"]

_CACHE_ROWS = 256  # tokens whose logits cache_teacher_tokens looks at together


@dataclass(frozen=True)
class Phase:
    """One part of the work.

    Attributes:
        name: "sampling", "caching" or "training".
        memory: bytes on each device by component, at the fullest moment.
        moment: which moment that is.
        flops: of all devices together.
        seconds: how long it takes.
        bound: what it waits for: "arithmetic", "memory bandwidth" or "interconnect".
    """

    name: str
    memory: Mapping[str, float]
    moment: str
    flops: float
    seconds: float
    bound: str

    @property
    def total(self) -> float:
        """Bytes on each device."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Job:
    """The arguments of `plan`, in numbers; see there."""

    teacher: Architecture | None
    student: Architecture
    hardware: Hardware
    tokens: float
    method: Method
    top_k: int | None
    divergence: Divergence
    context: int
    prompt: int
    batch: int
    accumulation: int
    padding: float
    packing: bool
    bf16: bool
    checkpointing: bool
    teacher_kind: WeightType
    samples: int
    sampling_batch: int
    utilisation: float
    bandwidth_share: float
    usable: float

    @property
    def limit(self) -> float:
        return self.usable * self.hardware.memory

    @property
    def passes(self) -> float:
        """Micro-batches, on all devices together."""
        return self.tokens / (self.batch * self.context * (1 - self.padding))

    @property
    def kept(self) -> int:
        return self.context - self.prompt

    @property
    def counted(self) -> int:
        """Tokens in the loss of a micro-batch, at most all that are kept."""
        texts = self.batch * self.context * (1 - self.padding)
        return max(1, round(texts * self.kept / self.context))

    @property
    def masked(self) -> bool:
        """Whether attention takes a mask: one that is causal and nothing else needs none."""
        return self.packing or self.padding > 0

    @property
    def arithmetic(self) -> float:
        """Operations a second of all devices."""
        return self.hardware.devices * self.hardware.flops * self.utilisation


def phases_of(job: Job, sharding: Sharding) -> tuple[Phase, ...]:
    """Sampling and caching where there is any, then training."""
    found = []
    if job.samples:
        found.append(_sampling(job))
    if job.method == "cached":
        found.append(_caching(job))
    return (*found, _training(job, sharding))


def spread(job: Job, sharding: Sharding | None) -> tuple[Sharding, tuple[Phase, ...]]:
    """The given way, or the simplest that fits, or else what needs least of a device; and its phases."""
    ways: tuple[Sharding, ...] = ("one device",) if job.hardware.devices == 1 else ("DDP", "FSDP2")
    for way in (sharding,) if sharding else ways:
        phases = phases_of(job, way)
        if all_fit(job, phases):
            break
    return way, phases


def all_fit(job: Job, phases: tuple[Phase, ...]) -> bool:
    return all(phase.total <= job.limit for phase in phases)


def _phase(
    name: str,
    moments: Mapping[str, Mapping[str, float]],
    flops: float,
    waits: Mapping[str, float],
    more: float = 0,
) -> Phase:
    """At its fullest moment; as long as the longest of what runs at the same time, and then `more`."""
    moment = max(moments, key=lambda moment: sum(moments[moment].values()))
    memory = MappingProxyType({name: size for name, size in moments[moment].items() if size})
    bound = max(waits, key=waits.__getitem__)
    return Phase(name, memory, moment, flops, waits[bound] + more, bound)


def _teacher_on_each(job: Job) -> float:
    """Bytes of the teacher's weights on each device: whole ones if they fill at most half, else spread."""
    whole = job.teacher.weight_bytes(job.teacher_kind)
    return whole if whole <= job.limit / 2 else whole / job.hardware.devices


def _sampling(job: Job) -> Phase:
    teacher, batch, devices = job.teacher, job.sampling_batch, job.hardware.devices
    written = job.context - job.prompt
    cache = 2 * teacher.kv_numbers
    memory = {
        "teacher weights": _teacher_on_each(job),
        # Each layer's keys and values are copied to make room for the next token.
        "KV cache": batch * job.context * cache * (1 + 1 / teacher.layers),
        # The head's bfloat16 logits, in float32, and sorted with their indices for top-p.
        "logits and loss": batch * teacher.vocabulary * (2 + 4 + 12),
    }
    rounds = job.samples / (batch * devices)
    # On average half of the completion is there.
    each = memory["teacher weights"] + batch * cache * (job.prompt + written / 2)
    flops = job.samples * (
        teacher.forward_flops(job.context, job.context / 2, 0) + 2 * written * teacher.head
    )
    waits = {
        "memory bandwidth": rounds * written * each / (job.hardware.bandwidth * job.bandwidth_share),
        "arithmetic": flops / job.arithmetic,
    }
    return _phase("sampling", {"last token": memory}, flops, waits)


def _caching(job: Job) -> Phase:
    teacher, item = job.teacher, 4 if job.teacher_kind == "float32" else 2
    positions, kept = job.batch * job.context, job.batch * job.kept
    logits = item * kept * teacher.vocabulary + 4 * min(_CACHE_ROWS, kept) * teacher.vocabulary
    weights = {"teacher weights": _teacher_on_each(job)}
    moments = {
        "output": weights | {"activations": item * positions * teacher.hidden, "logits and loss": logits},
        "fullest layer": weights | {"activations": teacher_working(teacher, item, positions, 0, 0)},
    }
    flops = job.passes * teacher.forward_flops(positions, job.context, kept)
    return _phase("caching", moments, flops, {"arithmetic": flops / job.arithmetic})


def _training(job: Job, sharding: Sharding) -> Phase:
    student, machine = job.student, job.hardware
    teacher = job.teacher if job.method == "logits" else None
    shards = machine.devices if sharding == "FSDP2" else 1
    step = Step(
        job.batch, job.context, job.kept, job.counted, job.bf16, job.checkpointing, job.accumulation > 1,
        job.masked, job.hardware.kernels, shards, sharding == "DDP",
    )  # fmt: skip
    moments = training_moments(
        student, teacher, step, method=job.method, divergence=job.divergence, teacher_kind=job.teacher_kind,
        top_k=job.top_k,
    )  # fmt: skip
    positions, kept = step.positions, step.batch * step.kept
    flops = student.training_flops(positions, job.context, kept, job.checkpointing)
    if teacher is not None:
        flops += teacher.forward_flops(positions, job.context, kept)
    flops *= job.passes
    passes = job.passes / machine.devices
    share = (machine.devices - 1) / machine.devices
    if sharding == "FSDP2":
        sent = 3 * step.itemsize * student.parameters
        sent += 0 if teacher is None else teacher.weight_bytes(job.teacher_kind)
    else:
        sent = 2 * 4 * student.parameters / job.accumulation
    waits = {
        "arithmetic": flops / job.arithmetic,
        "interconnect": passes * share * sent / machine.interconnect,
    }
    # AdamW reads weight, gradient and two moments, and writes weight and moments, when all else is done.
    updates = passes / job.accumulation * 28 * student.parameters / shards
    return _phase("training", moments, flops, waits, updates / (machine.bandwidth * job.bandwidth_share))
