"""Seconds of contenders in turn and the rates of a machine, taken the same way for everybody."""

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from kdlib.cost import time_call
from kdlib.language.plan.hardware import copy_rate, matrix_rate

__all__ = [
    "copy_rate", "matrix_rate", "memory_let_go", "ratio", "seconds_in_turn", "seconds_of",
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
