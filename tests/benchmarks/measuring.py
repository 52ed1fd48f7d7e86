"""Seconds of contenders in turn and the rates of a machine, taken the same way for everybody."""

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil
import torch

from kdlib.cost import time_call
from kdlib.language.plan.hardware import Hardware
from kdlib.losses.backend import on_kernels
from kdlib.runtime import best_device

__all__ = [
    "copy_rate", "matrix_rate", "memory_let_go", "ratio", "seconds_in_turn", "seconds_of",
    "this_machine",
]  # fmt: skip

_FLUSH = 256 << 20  # bytes: five times the L2 cache of an H200

Run = Callable[[], object]


def seconds_of(run: Run, device: torch.device | str, *, rounds: int, warm_up: int = 2) -> list[float]:
    """Seconds of each of some calls, see `seconds_in_turn`."""
    return seconds_in_turn({"": run}, device, rounds=rounds, warm_up=warm_up)[""]


def seconds_in_turn(
    arms: Mapping[str, Run], device: torch.device | str, *, rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of several calls, each called once in every round, so that what else the machine does falls on
    all of them. Compare them round by round, with `ratio`.

    On CUDA the device's own clock is read, by events in its queue, as the processor is ahead of it in real
    training too; a call that waits for the device has that wait in its time. Before each call the L2 cache is
    overwritten: a training step leaves there nothing of what a loss is given.

    Args:
        arms: what to call, by name. What a call returns is let go of before the next.
        rounds: timed calls of each, at least 1; warm_up: calls of each before those, not timed.

    Returns:
        Under each name `rounds` seconds, in the order of the rounds.

    Raises:
        ValueError: fewer than one round. What a call raises is not caught.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1; got {rounds}")
    device = torch.device(device)
    for run in arms.values():
        for _ in range(warm_up):
            run()
    clock = (
        _by_events(device) if device.type == "cuda"
        else lambda run: time_call(run, device, repeats=1, warm_up=0)[0]
    )  # fmt: skip
    return _transposed(arms, [[clock(run) for run in arms.values()] for _ in range(rounds)])


def _transposed(names: Mapping[str, Run], rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _by_events(device: torch.device) -> Callable[[Run], float]:
    flush = torch.empty(_FLUSH, dtype=torch.uint8, device=device)

    def clock(run: Run) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(device):
            flush.zero_()
            begin.record()
            run()
            end.record()
            end.synchronize()
        return begin.elapsed_time(end) / 1e3

    return clock


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    """The median of the rounds' own ratios: a round in which the machine was slow was slow for both."""
    return statistics.median(a / b for a, b in zip(seconds, base, strict=True))


@contextmanager
def memory_let_go(device: torch.device | str) -> Iterator[None]:
    """Afterwards nothing unreachable is held, and CUDA's cache is empty."""
    try:
        yield
    finally:
        gc.collect()
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()


def this_machine(device: torch.device | str | None = None) -> Hardware:
    """One device of this machine (default `best_device()`): its memory, and its speed measured in a second.

    Matrix products are measured in bfloat16 on CUDA devices and in float32 elsewhere, as
    `distill_language_model` trains there. These are rates that were reached, not the maker's peaks: plan with
    a higher utilisation. There is one device, so the interconnect is given as the bandwidth.
    """
    device = torch.device(device) if device is not None else best_device()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory, dtype = properties.name, properties.total_memory, torch.bfloat16
    else:
        name = f"{device.type.upper()}, {torch.get_num_threads()} threads"
        memory, dtype = psutil.virtual_memory().total, torch.float32
    bandwidth = copy_rate(device)
    return Hardware(
        name, memory, matrix_rate(device, dtype), bandwidth, bandwidth, source="measured by this_machine()",
        kernels=on_kernels(torch.empty(0, 2, dtype=dtype, device=device)),
    )  # fmt: skip


def matrix_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """Operations a second that large square matrix products reach here; a multiply and an add are two."""
    device = torch.device(device)
    width = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    return 2 * width**3 / statistics.median(time_call(lambda: torch.mm(a, b, out=product), device, repeats=5))


def copy_rate(device: torch.device | str) -> float:
    """Bytes a second that a copy within this device's memory reads and writes, both counted."""
    device = torch.device(device)
    # Far more than a cache holds: some GPUs have 50 MB and more.
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / statistics.median(time_call(lambda: target.copy_(source), device, repeats=5))
