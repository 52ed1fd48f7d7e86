"""What a distillation will need, before it begins: whether it fits, how spread, how long, on what grounds.

    print(plan("Qwen-7B", "Qwen-1.5B", "H100-80GB×8", tokens=100e6, method="logits"))

Everything is arithmetic on the shapes of the models. Memory is checked against measured peaks of real runs;
times rest on the utilisation that is assumed, and say so.

Writing text reads all weights, and the keys and values of every text in the batch, for each token; it takes
whichever is longer, that or the arithmetic (Pope et al. 2022, arXiv 2211.05102, §2.1). Of n devices a
reduction sends 2·(n − 1)/n bytes for each byte (DDP, once a step, float32); gathering and reduce-scattering
(n − 1)/n each: FSDP2 gathers the student's weights for the forward and again for the backward pass of each
micro-batch, the teacher's once, and scatters gradients (Zhao et al. 2023, arXiv 2304.11277).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import get_args

from transformers import PreTrainedConfig

from kdlib.language.models.r1_distill import R1Checkpoint, find
from kdlib.language.plan import memory
from kdlib.language.plan.hardware import Hardware, find_hardware
from kdlib.language.plan.memory import Moments, Sharding
from kdlib.language.plan.workload import Architecture, Workload

Model = R1Checkpoint | str | PreTrainedConfig

_SUGGESTIONS = """\
Less memory is needed with
  - gradient checkpointing, fewer texts at once (and more accumulation), or a shorter context
  - method="cached": the teacher runs beforehand, not meanwhile; or teacher_weights="nf4"
  - more devices, over which FSDP2 spreads the models; or a smaller model
"""


@dataclass(frozen=True)
class Phase:
    """One part of the work."""

    name: str  # "sampling", "caching" or "training"
    memory: Mapping[str, float]  # bytes on each device by component, at the fullest moment
    total: float  # of these
    moment: str  # which moment that is
    flops: float  # of all devices together
    seconds: float
    bound: str  # what it waits for: "arithmetic", "memory bandwidth" or "interconnect"


@dataclass(frozen=True)
class Plan:
    """What `plan` found."""

    fits: bool  # whether every phase stays within `limit`
    sharding: Sharding  # how the student is spread over the devices; the last that was tried if nothing fits
    limit: float  # bytes of a device that may be filled
    phases: tuple[Phase, ...]  # in the order of the work; training is the last
    memory: Mapping[str, float]  # bytes on each device while training, by component
    seconds: float  # of all phases
    flops: float  # of all phases
    tokens_per_second: float  # of training alone, on all devices
    steps: int  # of the optimizer
    tokens: float
    hardware: Hardware
    assumptions: tuple[str, ...]  # what the figures rest on, one a sentence

    def __str__(self) -> str:
        verdict, gb = "fits" if self.fits else "does not fit", self.limit / 1e9
        lines = [f"{self.hardware}\n{verdict}: {self.sharding}, at most {gb:.1f} GB of each device filled\n"]
        for phase in self.phases:
            mark = "" if phase.total <= self.limit else "  TOO MUCH"
            lines.append(
                f"{phase.name}: {_duration(phase.seconds)}, {phase.flops:.3g} operations, waits for "
                f"{phase.bound}; {phase.total / 1e9:.2f} GB at the {phase.moment}{mark}"
            )
            lines += [f"    {name:<24}{size / 1e9:>9.2f} GB" for name, size in phase.memory.items()]
        lines.append(
            f"\n{self.tokens:,.0f} tokens in {self.steps:,} steps, {self.tokens_per_second:,.0f} a second in "
            f"training; altogether {_duration(self.seconds)}\n"
        )
        if not self.fits:
            lines.append(_SUGGESTIONS)
        return "\n".join([*lines, "Assumed:", *(f"  - {each}" for each in self.assumptions)])


def plan(
    teacher: Model | None, student: Model, hardware: Hardware | str, tokens: float, *,
    devices: int | None = None, sharding: Sharding | None = None, **settings: object,
) -> Plan:  # fmt: skip
    """What a run of `distill_language_model` will need on this hardware.

    Args:
        teacher, student: a checkpoint of R1-Distill, its name, or a Qwen2 or Llama configuration; no teacher
            (None) where there are texts already.
        hardware: a machine, or the name of one as `find_hardware` takes it ("H100-80GB×8").
        tokens: trained on, prompts and completions together, over all epochs.
        devices: in place of those of `hardware`.
        sharding: "one device", "DDP" or "FSDP2"; None takes the first of them that fits.
        **settings: method, context, batch_size, … : see `Workload`, which has their defaults and ranges.
    """
    machine = hardware if isinstance(hardware, Hardware) else find_hardware(hardware)
    machine = machine if devices is None else replace(machine, devices=devices)
    ways: tuple[Sharding, ...] = ("one device",) if machine.devices == 1 else ("DDP", "FSDP2")
    if sharding is not None:
        if sharding not in get_args(Sharding) or (sharding == "one device" and machine.devices > 1):
            raise ValueError(f"sharding is {sharding!r} on {machine.devices} devices; expected one of {ways}")
        ways = (sharding,)
    w = Workload(
        None if teacher is None else _architecture(teacher), _architecture(student), machine, tokens,
        **settings,
    )  # fmt: skip
    for way in ways:
        phases = tuple(_phases(w, way))
        if fits := all(phase.total <= w.limit for phase in phases):
            break
    training = phases[-1]
    return Plan(
        fits, way, w.limit, phases, training.memory, seconds=sum(phase.seconds for phase in phases),
        flops=sum(phase.flops for phase in phases), tokens_per_second=tokens / training.seconds,
        steps=math.ceil(w.micro_batches / (w.accumulation * machine.devices)), tokens=tokens,
        hardware=machine, assumptions=_assumptions(w, way),
    )  # fmt: skip


def _architecture(model: Model) -> Architecture:
    checkpoint = find(model) if isinstance(model, str) else model
    return Architecture(checkpoint.config() if isinstance(checkpoint, R1Checkpoint) else checkpoint)


def _phases(w: Workload, sharding: Sharding) -> Iterator[Phase]:
    """Sampling and caching where there is any, then training."""
    devices, student, live = w.hardware.devices, w.student, w.live_teacher
    rate = devices * w.hardware.flops * w.utilisation
    bandwidth = w.hardware.bandwidth * w.bandwidth_share
    if w.samples:
        written, moments = w.context - w.prompt_tokens, memory.sampling_memory(w)
        each = w.teacher.forward_flops(w.context, w.context / 2, 0) + 2 * written * w.teacher.head
        flops = w.samples * each
        texts = math.ceil(w.samples / devices)  # of the device with the most
        rounds = math.ceil(texts / w.sampling_batch)  # each reads all weights, however few its texts are
        # On average half of the completion is there.
        cache = texts * 2 * w.teacher.kv_numbers * (w.prompt_tokens + written / 2)
        read = written * (rounds * moments["last token"]["teacher weights"] + cache)
        waits = {"memory bandwidth": read / bandwidth, "arithmetic": flops / rate}
        yield _phase("sampling", moments, flops, waits)
    if w.method == "cached":
        flops = w.micro_batches * w.teacher.forward_flops(w.positions, w.context, w.kept)
        yield _phase("caching", memory.caching_memory(w), flops, {"arithmetic": flops / rate})
    flops = student.training_flops(w.positions, w.context, w.kept, w.gradient_checkpointing)
    flops += live.forward_flops(w.positions, w.context, w.kept) if live else 0
    flops *= w.micro_batches
    passes = w.micro_batches / devices
    if sharding == "FSDP2":
        sent = 3 * w.itemsize * student.parameters + (live.weight_bytes(w.teacher_weights) if live else 0)
    else:
        sent = 2 * 4 * student.parameters / w.accumulation
    sent *= passes * (devices - 1) / devices
    waits = {"arithmetic": flops / rate, "interconnect": sent / w.hardware.interconnect}
    # AdamW reads weight, gradient and two moments, and writes weight and moments, when all else is done.
    updates = passes / w.accumulation * 28 * student.parameters / (devices if sharding == "FSDP2" else 1)
    yield _phase("training", memory.training_memory(w, sharding), flops, waits, updates / bandwidth)


def _phase(name: str, moments: Moments, flops: float, waits: Mapping[str, float], more: float = 0) -> Phase:
    """At its fullest moment; as long as the longest of what runs at the same time, and then `more`."""
    moment = max(moments, key=lambda moment: sum(moments[moment].values()))
    fullest = {name: size for name, size in moments[moment].items() if size}
    bound = max(waits, key=waits.__getitem__)
    return Phase(name, fullest, sum(fullest.values()), moment, flops, waits[bound] + more, bound)


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} seconds"


_ALWAYS = """\
hardware: {w.hardware.source}
{w.usable:.0%} of a device's {gigabytes:.0f} GB can be filled with tensors; the rest is for CUDA, \
communication and gaps (assumption)
training reaches {w.utilisation:.0%} of the peak FLOP/s, counting what checkpointing computes again \
(assumption; for comparison, Llama 3 405B reached 38 to 43 % on H100)
every text fills {w.context:,} positions, {w.prompt_tokens:,} of them prompt; {w.padding:.0%} of all \
positions are padding; {w.batch_size} rows in a micro-batch of each device, {w.accumulation} micro-batches \
in a step
the student has {w.student.parameters:,} parameters and is trained in {arithmetic} by fused AdamW: 4 bytes a \
weight, 4 its gradient, 8 its two moments
{activations}
attention runs in a fused kernel, and is counted in full: 14 operations for each pair of positions and each \
channel; a causal kernel skips about half
the loss, cross-entropy{soft}, is computed from hidden states, some tokens at \
a time, and the output layer's gradient in float32"""
_KEPT = "every activation is kept for the backward pass (no gradient checkpointing)"
_CHECKPOINTED = "of each layer only the input is kept, the rest is computed again (gradient checkpointing)"
_MASK = "padding or packing takes a mask of context × context numbers, which each layer keeps"
_TEACHER = "the teacher has {w.teacher.parameters:,} parameters in {w.teacher_weights}"
_DDP = """DDP keeps a second copy of the gradients in its buckets (PyTorch's default, \
gradient_as_bucket_view=False), and each device a whole teacher"""
_FSDP2 = """FSDP2 spreads weights, gradients, moments and teacher over all devices, gathers two layers at a \
time in the precision of the arithmetic and keeps embeddings gathered"""
_WHOLE = "each device holds the whole teacher while it writes or fills the cache"
_SENT = """communication at {interconnect:.0f} GB/s in each direction runs beside the arithmetic; what \
takes longer counts"""
_SAMPLES = """the teacher writes {w.samples:,} texts to the end of the context, {w.sampling_batch} at once \
on each device, at {w.bandwidth_share:.0%} of the memory's bandwidth (assumption)"""


def _assumptions(w: Workload, sharding: Sharding) -> tuple[str, ...]:
    compared = "all logits" if w.top_k is None else f"the teacher's {w.top_k} largest logits"
    sentences = {
        _ALWAYS: True, _MASK: w.masked, _TEACHER: w.teacher_needed, _DDP: sharding == "DDP",
        _FSDP2: sharding == "FSDP2", _SENT: w.hardware.devices > 1, _SAMPLES: w.samples,
        _WHOLE: w.whole_teacher and w.hardware.devices > 1 and (w.samples or w.method == "cached"),
    }  # fmt: skip
    text = "\n".join(sentence for sentence, said in sentences.items() if said).format(
        w=w, gigabytes=w.hardware.memory / 1e9, interconnect=w.hardware.interconnect / 1e9,
        arithmetic="bfloat16 autocast over float32 weights" if w.bf16 else "float32",
        activations=_CHECKPOINTED if w.gradient_checkpointing else _KEPT,
        soft="" if w.method == "texts" else f" and {w.divergence} divergence over {compared}",
    )  # fmt: skip
    return tuple(text.splitlines())
