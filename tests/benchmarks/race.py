"""Contenders on one problem, in turn: seconds, memory, shares of what the machine can do, errors."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch

from benchmarks.contenders import Contender, NotComparable
from benchmarks.measuring import memory_let_go, ratio, seconds_in_turn
from benchmarks.problems import Errors, Problem, Setting, errors
from kdlib.cost import peak_memory

__all__ = ["Rates", "Row", "arms_in_turn", "race"]


@dataclass(frozen=True)
class Rates:
    """What this machine reaches, measured in this run.

    Attributes:
        matrix: operations a second in large matrix products; copy: bytes a second, read and written.
    """

    matrix: float
    copy: float


@dataclass(frozen=True)
class Row:
    """What one contender took; None where there is nothing to say.

    Attributes:
        task, case, contender: what was done, in which case of it, by whom.
        tokens: of the whole problem, with those that do not count.
        seconds: median of the rounds; low, high: their 10th and 90th percentile.
        time_ratio: against the first contender, the median of the rounds' own ratios.
        peak_bytes: the most memory held beyond the inputs; memory_ratio: against the first contender.
        matrix_share, copy_share: the time that the needed operations, or bytes, take at the measured rate,
            over the time that was taken.
        loss_error, gradient_error, gradient_steps: see `benchmarks.problems.Errors`.
        per_second: examples a second, in tasks that have those.
        note: why there is nothing, or what else is to be known.
    """

    task: str
    case: str
    contender: str
    tokens: int | None = None
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    time_ratio: float | None = None
    peak_bytes: int | None = None
    memory_ratio: float | None = None
    matrix_share: float | None = None
    copy_share: float | None = None
    loss_error: float | None = None
    gradient_error: float | None = None
    gradient_steps: float | None = None
    per_second: float | None = None
    note: str = ""

    @classmethod
    def columns(cls) -> list[str]:
        return [field.name for field in fields(cls)]


def race(
    task: str,
    case: str,
    entrants: Sequence[Contender],
    problem: Problem,
    setting: Setting,
    rates: Rates,
    *,
    rounds: int,
    checked: int,
    on_done: Callable[[], object] = lambda: None,
) -> list[Row]:
    """A row for every contender, in the order given; one that fails is told so in its row.

    Each runs once with few tokens that count, which is compared with float64, once for its peak of memory,
    and then in every round. A contender that fails, or needs more memory than there is, drops out before.

    Args:
        checked: tokens that count where errors are taken.
        on_done: called after each contender's check and peak, and once after the rounds.
    """
    device = problem.labels.device
    ready: dict[str, Callable[[], object]] = {}
    notes: dict[str, str] = {}
    found: dict[str, Errors] = {}
    peaks: dict[str, int] = {}
    for entrant in entrants:
        with memory_let_go(device):
            notes[entrant.name] = _first_runs(entrant, problem, setting, checked, ready, found, peaks)
        on_done()
    with memory_let_go(device):
        seconds = _timed(ready, device, rounds, notes)
    on_done()
    linear = problem.kind == "linear"
    least = problem.sizes.operations(setting) / rates.matrix if linear else None
    moved = None if linear else problem.sizes.traffic(setting) / rates.copy
    base = entrants[0].name
    rows = []
    for entrant in entrants:
        name = entrant.name
        if name not in seconds:
            rows.append(Row(task, case, name, problem.sizes.tokens, note=notes[name]))
            continue
        times, error = seconds[name], found[name]
        rows.append(Row(
            task, case, name, problem.sizes.tokens, **_spread(times),
            time_ratio=ratio(times, seconds[base]) if base in seconds else None,
            peak_bytes=peaks[name], memory_ratio=_over(peaks[name], peaks.get(base)),
            matrix_share=_over(least, statistics.median(times)),
            copy_share=_over(moved, statistics.median(times)),
            loss_error=error.loss, gradient_error=error.gradient, gradient_steps=error.steps,
            note=notes[name],
        ))  # fmt: skip
    return rows


def arms_in_turn(
    task: str,
    case: str,
    arms: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int,
    steps: Mapping[str, int] | int = 1,
    examples: int | None = None,
    warm_up: int = 1,
) -> list[Row]:
    """Rows of arms that are no contenders, as a training step is: time alone, the first arm the base.

    Args:
        steps: of each call; seconds are those of one step.
        examples: of each call, for `per_second`.
    """
    taken = seconds_in_turn(arms, device, rounds=rounds, warm_up=warm_up)
    base = next(iter(taken.values()))
    rows = []
    for name, times in taken.items():
        per_step = [t / (steps if isinstance(steps, int) else steps[name]) for t in times]
        speed = None if examples is None else examples / statistics.median(times)
        rows.append(
            Row(task, case, name, **_spread(per_step), time_ratio=ratio(times, base), per_second=speed)
        )
    return rows


def _first_runs(
    entrant: Contender, problem: Problem, setting: Setting, checked: int,
    ready: dict[str, Callable[[], object]], found: dict[str, Errors], peaks: dict[str, int],
) -> str:  # fmt: skip
    """Check one contender; what is to be noted of it, empty if all is well."""
    device = problem.labels.device
    try:
        loss = entrant.make(setting, device)
        few = problem.counting(checked)
        result = entrant.run(loss, few)
        error = errors(few, setting, *result)
        del result
        peak = peak_memory(lambda: entrant.run(loss, problem), device)
    except Exception as failure:  # whatever a peer raises, the others go on
        return _said(failure)
    found[entrant.name], peaks[entrant.name] = error, peak
    ready[entrant.name] = lambda: entrant.run(loss, problem)
    return ""


def _timed(ready: dict, device: torch.device, rounds: int, notes: dict[str, str]) -> dict[str, list[float]]:
    """Rounds of all that are ready; one that fails in them is taken out, and the rounds begin anew."""
    culprit = None

    def watched(name: str, run: Callable[[], object]) -> Callable[[], object]:
        def call() -> None:
            nonlocal culprit
            culprit = name
            run()

        return call

    while ready:
        try:
            arms = {name: watched(name, run) for name, run in ready.items()}
            # Warmed up once more: what was compiled while the profiler watched is compiled again without it.
            return seconds_in_turn(arms, device, rounds=rounds, warm_up=1)
        except Exception as failure:
            notes[culprit] = _said(failure)
            del ready[culprit]
    return {}


def _said(failure: Exception) -> str:
    """One line for the table."""
    if isinstance(failure, NotComparable):
        return str(failure)
    if isinstance(failure, ModuleNotFoundError):
        return f"not installed ({failure.name})"
    if isinstance(failure, torch.OutOfMemoryError) or "can't allocate memory" in str(failure):
        return "out of memory"
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"failed: {type(failure).__name__}" + (f": {lines[0][:160]}" if lines else "")


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    if len(seconds) == 1:
        return dict.fromkeys(("seconds", "low", "high"), seconds[0])
    deciles = statistics.quantiles(seconds, n=10, method="inclusive")
    return {"seconds": statistics.median(seconds), "low": deciles[0], "high": deciles[-1]}


def _over(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
