"""What a distillation will need, before it begins: whether it fits, how spread, how long, on what grounds.

    print(plan("Qwen-7B", "Qwen-1.5B", "H100-80GB×8", tokens=100e6, method="logits"))

Everything is arithmetic on the shapes of the models, see `kdlib.language.plan.memory`: nothing is built and
nothing downloaded. Memory is checked against measured peaks of real runs; times rest on the utilisation that
is assumed, and say so.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

from transformers import PreTrainedConfig

from kdlib.language.distill.output_layer import LARGE_VOCABULARY
from kdlib.language.models.r1_distill import R1Checkpoint, find
from kdlib.language.plan.hardware import Hardware, find_hardware
from kdlib.language.plan.memory import Architecture, Method, WeightType, loss_copies
from kdlib.language.plan.phases import Job, Phase, Sharding, all_fit, spread
from kdlib.language.plan.remedies import remedies
from kdlib.losses.kd import Divergence
from kdlib.runtime import Precision

__all__ = ["Phase", "Plan", "Sharding", "plan"]

Model = R1Checkpoint | str | PreTrainedConfig


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
        remedies: where it does not fit, the smallest changes that would make it fit, one a sentence.
        assumptions: what the figures rest on, one a sentence.
    """

    fits: bool
    sharding: Sharding
    limit: float
    phases: tuple[Phase, ...]
    steps: int
    tokens: float
    hardware: Hardware
    remedies: tuple[str, ...]
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
        if self.remedies:
            lines += ["", "It would fit with one of"] + [f"  - {remedy}" for remedy in self.remedies]
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
    job = Job(
        None if teacher is None else _architecture(teacher), _architecture(student), machine, tokens, method,
        top_k, divergence, context, prompt_tokens, batch_size, accumulation, padding, packing,
        precision != "no", gradient_checkpointing, teacher_weights, samples, sampling_batch, utilisation,
        bandwidth_share, usable,
    )  # fmt: skip
    _check(job, precision, sharding)
    chosen, phases = spread(job, sharding)
    fits = all_fit(job, phases)
    return Plan(
        fits, chosen, job.limit, phases, math.ceil(job.passes / (accumulation * machine.devices)), tokens,
        machine, () if fits else tuple(remedies(job, sharding)), tuple(_assumptions(job, chosen)),
    )  # fmt: skip


@lru_cache
def _named(name: str) -> Architecture:
    return Architecture.of(find(name).config())


def _architecture(model: Model) -> Architecture:
    if isinstance(model, PreTrainedConfig):
        return Architecture.of(model)
    return _named(model if isinstance(model, str) else model.name)


def _check(job: Job, precision: str, sharding: str | None) -> None:
    for name, value, known in (
        ("method", job.method, get_args(Method)), ("divergence", job.divergence, get_args(Divergence)),
        ("precision", precision, get_args(Precision)), ("sharding", sharding, (None, *get_args(Sharding))),
        ("teacher_weights", job.teacher_kind, get_args(WeightType)),
    ):  # fmt: skip
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}")
    for name, value, least in (
        ("context", job.context, 2), ("prompt_tokens", job.prompt, 1), ("batch_size", job.batch, 1),
        ("accumulation", job.accumulation, 1), ("samples", job.samples, 0),
        ("sampling_batch", job.sampling_batch, 1),
    ):  # fmt: skip
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number, at least {least}; got {value!r}")
    for name, value in (
        ("utilisation", job.utilisation), ("bandwidth_share", job.bandwidth_share), ("usable", job.usable)
    ):
        if not 0 < value <= 1:
            raise ValueError(f"{name} is a share, above 0 and at most 1; got {value!r}")
    if not 0 < job.tokens < math.inf:
        raise ValueError(f"tokens, all that is trained on, must be above 0; got {job.tokens!r}")
    if not 0 <= job.padding < 1:
        raise ValueError(f"padding is a share of the positions, at least 0 and below 1; got {job.padding!r}")
    if job.prompt >= job.context:
        raise ValueError(
            f"prompt_tokens is {job.prompt}, but a text has {job.context} positions (context): nothing would "
            "be left to learn"
        )
    if job.top_k is not None and not 1 <= job.top_k <= job.student.vocabulary:
        raise ValueError(
            f"top_k must be from 1 to the {job.student.vocabulary} logits, or None for all; got {job.top_k!r}"
        )
    if job.teacher is None and (job.method != "texts" or job.samples):
        asks = f'method="{job.method}"' if job.method != "texts" else f"samples={job.samples}"
        raise ValueError(f"teacher is None, but {asks} needs one; name it, or plan for texts that are there")
    if sharding == "one device" and job.hardware.devices > 1:
        raise ValueError(
            f'sharding is "one device", but there are {job.hardware.devices}; pass devices=1 as well'
        )


def _assumptions(job: Job, sharding: Sharding) -> Iterator[str]:
    machine, student, teacher = job.hardware, job.student, job.teacher
    yield f"hardware: {machine.source or 'figures given by the caller'}"
    yield (
        f"{job.usable:.0%} of a device's {machine.memory / 1e9:.0f} GB can be filled with tensors; the rest "
        "is for CUDA, communication and gaps (assumption)"
    )
    yield (
        f"training reaches {job.utilisation:.0%} of the peak FLOP/s, counting what checkpointing computes "
        "again (assumption; for comparison, Llama 3 405B reached 38 to 43 % on H100)"
    )
    yield (
        f"every text fills {job.context:,} positions, {job.prompt:,} of them prompt; {job.padding:.0%} of "
        f"all positions are padding; {job.batch} rows in a micro-batch of each device, {job.accumulation} "
        "micro-batches in a step"
    )
    arithmetic = "bfloat16 autocast over float32 weights" if job.bf16 else "float32"
    yield (
        f"the student has {student.parameters:,} parameters and is trained in {arithmetic} by fused AdamW: "
        "4 bytes a weight, 4 its gradient, 8 its two moments"
    )
    if job.checkpointing:
        yield "of each layer only the input is kept, the rest is computed again (gradient checkpointing)"
    else:
        yield "every activation is kept for the backward pass (no gradient checkpointing)"
    if job.masked:
        yield "padding or packing takes a mask of context × context numbers, which each layer keeps"
    yield (
        "attention runs in a fused kernel, and is counted in full: 14 operations for each pair of positions "
        "and each channel; a causal kernel skips about half"
    )
    loss = "cross-entropy"
    if job.method != "texts":
        compared = "all logits" if job.top_k is None else f"the teacher's {job.top_k} largest logits"
        loss += f" and {job.divergence} divergence over {compared}"
    if student.vocabulary < LARGE_VOCABULARY:
        copies = loss_copies(job.method, job.divergence, job.top_k)
        yield (
            f"the loss, {loss}, holds at its fullest {copies:g} float32 tensors of the size of the student's "
            "logits, as the eager functions of kdlib do"
        )
    else:
        here = "1 GB by kernels" if machine.kernels else "256 MB in PyTorch"
        yield (
            f"the loss, {loss}, is computed from hidden states, some tokens at a time (kdlib.losses.linear): about "
            f"{here} at most, and the output layer's gradient in float32"
        )
    if teacher is not None and (job.method != "texts" or job.samples):
        yield f"the teacher has {teacher.parameters:,} parameters in {job.teacher_kind}"
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
    if job.samples:
        yield (
            f"the teacher writes {job.samples:,} texts to the end of the context, {job.sampling_batch} at "
            f"once on each device, with keys and values in bfloat16, at {job.bandwidth_share:.0%} of the "
            "memory's bandwidth (assumption)"
        )


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} seconds"
