"""What a distillation will need, before it begins: whether it fits, how spread, how long, on what grounds.

    print(plan("Qwen-7B", "Qwen-1.5B", "H100-80GB×8", tokens=100e6, method="logits"))

Everything is arithmetic on the shapes of the models: nothing is built and nothing downloaded. Memory is
checked against measured peaks of real runs; times rest on the utilisation that is assumed, and say so.

**Writing text** reads all weights, and the keys and values of every text in the batch, for each token; it
takes whichever is longer, that or the arithmetic (Pope et al. 2022, arXiv 2211.05102, §2.1).

**Communication** of n devices: a reduction sends 2·(n − 1)/n bytes for each byte (DDP, once a step, float32);
gathering and reduce-scattering (n − 1)/n each. FSDP2 gathers the student's weights for the forward and again
for the backward pass of each micro-batch, the teacher's once, and scatters gradients (Zhao et al. 2023, arXiv
2304.11277).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

from transformers import PreTrainedConfig

from kdlib.language.models.r1_distill import R1Checkpoint, find
from kdlib.language.plan.architecture import Architecture, WeightType
from kdlib.language.plan.hardware import Hardware, find_hardware
from kdlib.language.plan.memory import (
    Method,
    Moments,
    Sharding,
    Workload,
    caching_memory,
    loss_copies,
    sampling_memory,
    training_memory,
)
from kdlib.losses.divergences import Divergence
from kdlib.runtime import Precision

__all__ = ["Phase", "Plan", "plan"]

Model = R1Checkpoint | str | PreTrainedConfig


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
class Plan:
    """What `plan` found.

    Attributes:
        fits: whether every phase stays within `limit` on each device.
        sharding: how the student is spread over the devices; what comes nearest if nothing fits.
        limit: bytes of a device that may be filled.
        phases: in the order of the work; training is the last.
        steps: of the optimizer.
        tokens: trained on.
        hardware: on which.
        suggestions: where it does not fit, what would need less memory, one a sentence.
        assumptions: what the figures rest on, one a sentence.
    """

    fits: bool
    sharding: Sharding
    limit: float
    phases: tuple[Phase, ...]
    steps: int
    tokens: float
    hardware: Hardware
    suggestions: tuple[str, ...]
    assumptions: tuple[str, ...]

    @property
    def memory(self) -> Mapping[str, float]:
        """Bytes on each device while training, by component; they add up to the fullest moment."""
        return self.phases[-1].memory

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def flops(self) -> float:
        return sum(phase.flops for phase in self.phases)

    @property
    def tokens_per_second(self) -> float:
        """Of training alone, on all devices."""
        return self.tokens / self.phases[-1].seconds

    def __str__(self) -> str:
        verdict = "fits" if self.fits else "does not fit"
        lines = [
            f"{self.hardware}",
            f"{verdict}: {self.sharding}, at most {self.limit / 1e9:.1f} GB of each device filled",
            "",
        ]
        for phase in self.phases:
            mark = "" if phase.total <= self.limit else "  TOO MUCH"
            lines.append(
                f"{phase.name}: {_duration(phase.seconds)}, {phase.flops:.3g} operations, waits for "
                f"{phase.bound}; {phase.total / 1e9:.2f} GB at the {phase.moment}{mark}"
            )
            lines += [f"    {name:<24}{size / 1e9:>9.2f} GB" for name, size in phase.memory.items()]
        lines += [
            "",
            f"{self.tokens:,.0f} tokens in {self.steps:,} steps, {self.tokens_per_second:,.0f} a second in "
            f"training; altogether {_duration(self.seconds)}",
        ]
        if self.suggestions:
            lines += ["", "Less memory is needed with"] + [f"  - {change}" for change in self.suggestions]
        lines += ["", "Assumed:"] + [f"  - {assumption}" for assumption in self.assumptions]
        return "\n".join(lines)


def plan(
    teacher: Model | None,
    student: Model,
    hardware: Hardware | str,
    tokens: float,
    *,
    method: Method | None = None,
    devices: int | None = None,
    sharding: Sharding | None = None,
    context: int = 4096,
    prompt_tokens: int = 128,
    batch_size: int = 1,
    accumulation: int = 8,
    padding: float = 0.0,
    packing: bool = False,
    precision: Precision = "bf16",
    gradient_checkpointing: bool = True,
    divergence: Divergence = "forward",
    top_k: int | None = None,
    teacher_weights: WeightType = "bfloat16",
    samples: int = 0,
    sampling_batch: int = 32,
    utilisation: float = 0.4,
    bandwidth_share: float = 0.6,
    usable: float = 0.9,
) -> Plan:
    """What a run of `distill_language_model` will need on this hardware.

    Args:
        teacher: a checkpoint, its name (see `kdlib.language.models.r1_distill.find`), a Qwen2 or Llama
            configuration, or None where there are texts already.
        student: the same; trained in float32 weights.
        hardware: a machine, or the name of one as `find_hardware` takes it ("H100-80GB×8").
        tokens: trained on, prompts and completions together, over all epochs.
        method: "texts" (cross-entropy on them), "logits" (the teacher runs at every step) or "cached"
            (the teacher runs once over the texts beforehand, `cache_teacher_tokens`). Default "logits" with a
            teacher, "texts" without.
        devices: in place of those of `hardware`.
        sharding: "one device", "DDP" or "FSDP2"; None takes the first of them that fits.
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
        ValueError: an argument out of its range, or a teacher that the method needs.
    """
    machine = hardware if isinstance(hardware, Hardware) else find_hardware(hardware)
    machine = machine if devices is None else machine.times(devices)
    if method is None:
        method = "texts" if teacher is None else "logits"
    if method == "cached" and top_k is None:
        top_k = 64
    w = Workload(
        None if teacher is None else _architecture(teacher), _architecture(student), machine, tokens, method,
        top_k, divergence, context, prompt_tokens, batch_size, accumulation, padding, packing,
        precision != "no", gradient_checkpointing, teacher_weights, samples, sampling_batch, utilisation,
        bandwidth_share, usable,
    )  # fmt: skip
    _check(w, precision, sharding)
    ways: tuple[Sharding, ...] = ("one device",) if machine.devices == 1 else ("DDP", "FSDP2")
    for way in (sharding,) if sharding else ways:
        phases = tuple(_phases(w, way))
        if fits := all(phase.total <= w.limit for phase in phases):
            break
    return Plan(
        fits, way, w.limit, phases, math.ceil(w.micro_batches / (accumulation * machine.devices)), tokens,
        machine, () if fits else tuple(_suggestions(w)), tuple(_assumptions(w, way)),
    )  # fmt: skip


@lru_cache
def _named(name: str) -> Architecture:
    return Architecture.of(find(name).config())


def _architecture(model: Model) -> Architecture:
    if isinstance(model, PreTrainedConfig):
        return Architecture.of(model)
    return _named(model if isinstance(model, str) else model.name)


def _check(w: Workload, precision: str, sharding: str | None) -> None:
    def expect(name: str, ok: bool, expected: str) -> None:
        if not ok:
            raise ValueError(f"{name} is {values[name]!r}; expected {expected}")

    values = vars(w) | {"precision": precision, "sharding": sharding}
    for name, kind in (
        ("method", Method), ("divergence", Divergence), ("precision", Precision), ("sharding", Sharding),
        ("teacher_weights", WeightType),
    ):  # fmt: skip
        known = get_args(kind) + ((None,) if name == "sharding" else ())
        expect(name, values[name] in known, f"one of {', '.join(map(repr, known))}")
    for name, least in (
        ("context", 2), ("prompt_tokens", 1), ("batch_size", 1), ("accumulation", 1), ("samples", 0),
        ("sampling_batch", 1),
    ):  # fmt: skip
        whole = isinstance(values[name], int) and values[name] >= least
        expect(name, whole, f"a whole number, at least {least}")
    for name in ("utilisation", "bandwidth_share", "usable"):
        expect(name, 0 < values[name] <= 1, "a share, above 0 and at most 1")
    expect("tokens", 0 < w.tokens < math.inf, "a number above 0")
    expect("padding", 0 <= w.padding < 1, "a share, at least 0 and below 1")
    expect("prompt_tokens", w.prompt_tokens < w.context, f"less than the context of {w.context}")
    logits = w.student.vocabulary
    expect("top_k", w.top_k is None or 1 <= w.top_k <= logits, f"1 to the {logits} logits, or None for all")
    needed = "texts" if w.method == "texts" and not w.samples else None
    expect("teacher", w.teacher is not None or needed is not None, "one, for this method or these samples")
    alone = sharding != "one device" or w.hardware.devices == 1
    expect("sharding", alone, f"another for {w.hardware.devices} devices; pass devices=1 as well")


def _suggestions(w: Workload) -> Iterator[str]:
    if not w.gradient_checkpointing:
        yield "gradient_checkpointing=True"
    if w.batch_size > 1:
        yield f"batch_size=1, accumulation={w.batch_size * w.accumulation}"
    if w.samples and w.sampling_batch > 1:
        yield f"a smaller sampling_batch than {w.sampling_batch}"
    if w.method == "logits":
        yield 'method="cached": the teacher runs beforehand, not meanwhile'
    if w.teacher is not None and (w.method != "texts" or w.samples) and w.teacher_weights != "nf4":
        yield 'teacher_weights="nf4"'
    yield f"more devices than {w.hardware.devices}, over which FSDP2 spreads the models"
    yield f"a context shorter than {w.context:,}, or a smaller model"


# --- how long it takes ------------------------------------------------------------------------------------


def _phases(w: Workload, sharding: Sharding) -> Iterator[Phase]:
    """Sampling and caching where there is any, then training."""
    rate = w.hardware.devices * w.hardware.flops * w.utilisation
    bandwidth = w.hardware.bandwidth * w.bandwidth_share
    if w.samples:
        written, moments = w.context - w.prompt_tokens, sampling_memory(w)
        flops = w.samples * (
            w.teacher.forward_flops(w.context, w.context / 2, 0) + 2 * written * w.teacher.head
        )
        # On average half of the completion is there.
        cache = w.sampling_batch * 2 * w.teacher.kv_numbers * (w.prompt_tokens + written / 2)
        read = written * (moments["last token"]["teacher weights"] + cache)
        rounds = w.samples / (w.sampling_batch * w.hardware.devices)
        waits = {"memory bandwidth": rounds * read / bandwidth, "arithmetic": flops / rate}
        yield _phase("sampling", moments, flops, waits)
    if w.method == "cached":
        flops = w.micro_batches * w.teacher.forward_flops(w.positions, w.context, w.kept)
        yield _phase("caching", caching_memory(w), flops, {"arithmetic": flops / rate})
    flops = w.student.training_flops(w.positions, w.context, w.kept, w.gradient_checkpointing)
    if w.live_teacher:
        flops += w.live_teacher.forward_flops(w.positions, w.context, w.kept)
    flops *= w.micro_batches
    passes, devices = w.micro_batches / w.hardware.devices, w.hardware.devices
    if sharding == "FSDP2":
        sent = 3 * w.itemsize * w.student.parameters
        sent += w.live_teacher.weight_bytes(w.teacher_weights) if w.live_teacher else 0
    else:
        sent = 2 * 4 * w.student.parameters / w.accumulation
    sent *= passes * (devices - 1) / devices
    waits = {"arithmetic": flops / rate, "interconnect": sent / w.hardware.interconnect}
    # AdamW reads weight, gradient and two moments, and writes weight and moments, when all else is done.
    updates = passes / w.accumulation * 28 * w.student.parameters / (devices if sharding == "FSDP2" else 1)
    yield _phase("training", training_memory(w, sharding), flops, waits, updates / bandwidth)


def _phase(name: str, moments: Moments, flops: float, waits: Mapping[str, float], more: float = 0) -> Phase:
    """At its fullest moment; as long as the longest of what runs at the same time, and then `more`."""
    moment = max(moments, key=lambda moment: sum(moments[moment].values()))
    memory = {name: size for name, size in moments[moment].items() if size}
    bound = max(waits, key=waits.__getitem__)
    return Phase(name, memory, moment, flops, waits[bound] + more, bound)


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} seconds"


# --- on what grounds --------------------------------------------------------------------------------------


def _assumptions(w: Workload, sharding: Sharding) -> Iterator[str]:
    machine = w.hardware
    yield f"hardware: {machine.source or 'figures given by the caller'}"
    yield (
        f"{w.usable:.0%} of a device's {machine.memory / 1e9:.0f} GB can be filled with tensors; the rest "
        "is for CUDA, communication and gaps (assumption)"
    )
    yield (
        f"training reaches {w.utilisation:.0%} of the peak FLOP/s, counting what checkpointing computes "
        "again (assumption; for comparison, Llama 3 405B reached 38 to 43 % on H100)"
    )
    yield (
        f"every text fills {w.context:,} positions, {w.prompt_tokens:,} of them prompt; {w.padding:.0%} of "
        f"all positions are padding; {w.batch_size} rows in a micro-batch of each device, {w.accumulation} "
        "micro-batches in a step"
    )
    arithmetic = "bfloat16 autocast over float32 weights" if w.bf16 else "float32"
    yield (
        f"the student has {w.student.parameters:,} parameters and is trained in {arithmetic} by fused AdamW: "
        "4 bytes a weight, 4 its gradient, 8 its two moments"
    )
    if w.gradient_checkpointing:
        yield "of each layer only the input is kept, the rest is computed again (gradient checkpointing)"
    else:
        yield "every activation is kept for the backward pass (no gradient checkpointing)"
    if w.masked:
        yield "padding or packing takes a mask of context × context numbers, which each layer keeps"
    yield (
        "attention runs in a fused kernel, and is counted in full: 14 operations for each pair of positions "
        "and each channel; a causal kernel skips about half"
    )
    compared = "all logits" if w.top_k is None else f"the teacher's {w.top_k} largest logits"
    soft = "" if w.method == "texts" else f" and {w.divergence} divergence over {compared}"
    yield f"the loss, cross-entropy{soft}, " + (
        "is computed from hidden states, some tokens at a time, and the output layer's gradient in float32"
        if w.fused else f"holds at its fullest {loss_copies(w.method, w.divergence, w.top_k):g} float32 "
        "tensors of the size of the student's logits"
    )  # fmt: skip
    if w.teacher is not None and (w.method != "texts" or w.samples):
        yield f"the teacher has {w.teacher.parameters:,} parameters in {w.teacher_weights}"
    if sharding == "DDP":
        yield (
            "DDP keeps a second copy of the gradients in its buckets (PyTorch's default, "
            "gradient_as_bucket_view=False), and each device a whole teacher"
        )
    if sharding == "FSDP2":
        yield (
            f"FSDP2 spreads weights, gradients, moments and teacher over {machine.devices} devices, gathers "
            "two layers at a time in the precision of the arithmetic and keeps embeddings gathered; "
            "activations are those of one device"
        )
    if machine.devices > 1:
        yield (
            f"communication at {machine.interconnect / 1e9:.0f} GB/s in each direction runs beside the "
            "arithmetic; what takes longer counts"
        )
    if w.samples:
        yield (
            f"the teacher writes {w.samples:,} texts to the end of the context, {w.sampling_batch} at "
            f"once on each device, with keys and values in bfloat16, at {w.bandwidth_share:.0%} of the "
            "memory's bandwidth (assumption)"
        )
