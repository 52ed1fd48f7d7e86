"""What to change about a distillation that does not fit."""

import math
from collections.abc import Iterator
from dataclasses import replace

from kdlib.language.plan.phases import Job, Sharding, all_fit, spread

__all__ = ["remedies"]

_MOST_DEVICES = 64  # that are proposed

Change = tuple[str, dict[str, object]]
"""A sentence, with places for the fields of a Job, and the fields to set."""


def changes_of(job: Job) -> Iterator[list[Change]]:
    """Ways to need less memory, from the one that costs least; of each the steps, the smallest first."""
    if not job.checkpointing:
        yield [("gradient_checkpointing=True", {"checkpointing": True})]
    yield [
        (
            "batch_size={0.batch}, accumulation={0.accumulation}",
            {"batch": size, "accumulation": math.ceil(job.batch * job.accumulation / size)},
        )
        for size in _halves(job.batch)
    ]
    if job.samples:
        yield [
            ("sampling_batch={0.sampling_batch}", {"sampling_batch": texts})
            for texts in _halves(job.sampling_batch)
        ]
    if job.method == "logits":
        if job.top_k is None:
            yield [("top_k={0.top_k} of the teacher's logits", {"top_k": 64})]
        beforehand = {"method": "cached", "top_k": job.top_k or 64}
        yield [('method="cached": the teacher beforehand, not meanwhile', beforehand)]
    if job.teacher is not None and (job.method != "texts" or job.samples):
        smaller = {"float32": ("bfloat16", "int8", "nf4"), "bfloat16": ("int8", "nf4"), "int8": ("nf4",)}
        yield [
            ('teacher_weights="{0.teacher_kind}"', {"teacher_kind": kind})
            for kind in smaller.get(job.teacher_kind, ())
        ]
    yield [
        ("devices={0.hardware.devices}", {"hardware": job.hardware.times(2**power)})
        for power in range(1, _MOST_DEVICES.bit_length())
        if 2**power > job.hardware.devices
    ]
    yield [
        ("context={0.context}: shorter texts only", {"context": length})
        for length in _halves(job.context)
        if length > 2 * job.prompt
    ]


def _halves(number: int) -> list[int]:
    return [number >> power for power in range(1, number.bit_length())]


def remedies(job: Job, sharding: Sharding | None) -> Iterator[str]:
    """Each change that is enough alone; where none is, the cheapest changes together that are."""
    if sharding == "one device":
        sharding = None  # with one device there is no other way, and with more of them this is none

    def enough(changes: list[Change]) -> bool:
        changed = _with(job, changes)
        return all_fit(changed, spread(changed, sharding)[1])

    ways = [steps for steps in changes_of(job) if steps]
    alone = [next((step for step in steps if enough([step])), None) for steps in ways]
    if any(alone):
        for step in filter(None, alone):
            yield step[0].format(_with(job, [step]))
        return
    together: list[Change] = []
    for steps in ways:
        step = next((step for step in steps if enough([*together, step])), None)
        together.append(step or steps[-1])
        if step:
            break
    else:
        yield "nothing of what plan knows, not even all of it together: take other hardware or models"
        return
    # The last may have done so much that of the others less is enough, or nothing.
    for steps, step in zip(ways, list(together), strict=False):
        place = together.index(step)
        before, after = together[:place], together[place + 1 :]
        gentler = ([], *([other] for other in steps))
        together = next(less for some in gentler if enough(less := [*before, *some, *after]))
    yield "; ".join(sentence for sentence, _ in together).format(_with(job, together))


def _with(job: Job, changes: list[Change]) -> Job:
    return replace(job, **{name: value for _, fields in changes for name, value in fields.items()})
