"""The figures that the loss is to reach, and whether rows of a benchmark reach them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.race import Row, _over

__all__ = ["Target", "judged_targets", "targets_table"]

OURS, EAGER, LIGER_CHUNKED = "kdlib", "eager PyTorch", "Liger chunked JSD"


@dataclass(frozen=True)
class Target:
    """One figure to reach.

    Attributes:
        name: what is measured.
        limit: the figure to reach; at_least: whether it is one to exceed rather than to stay below.
        value: what was measured; None if it was not, or could not be.
    """

    name: str
    limit: float
    value: float | None
    at_least: bool = False

    @property
    def reached(self) -> Literal["yes", "no", "not measured"]:
        if self.value is None:
            return "not measured"
        # NaN is neither: it is not reached.
        return "yes" if (self.value >= self.limit if self.at_least else self.value <= self.limit) else "no"

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        value = "" if self.value is None else f"{self.value:.3g}"
        return f"{self.name:<66} {sign} {self.limit:<8.3g} {value:>9}  {self.reached}"

    def as_json(self) -> dict[str, object]:
        return {
            "figure": self.name, "limit": self.limit, "at_least": self.at_least, "value": self.value,
            "reached": self.reached,
        }  # fmt: skip


def judged_targets(rows: Sequence[Row], device: str) -> list[Target]:
    """The targets of a device, "cpu" or any other, with what the rows say of them."""
    return _on_cpu(rows) if device == "cpu" else _on_gpu(rows)


def targets_table(targets: Iterable[Target]) -> str:
    """A line each."""
    head = f"{'figure to reach':<66}   {'limit':<8} {'measured':>9}  reached"
    return "\n".join([head, *map(str, targets)])


def _on_cpu(rows: Sequence[Row]) -> list[Target]:
    ours = _find(rows, "linear", "forward", OURS)
    found = [
        Target("linear, forward: time against eager", 1.15, ours and ours.time_ratio),
        Target("linear, forward: extra memory against eager", 1 / 5, ours and ours.memory_ratio),
    ]
    for case in ("pictures", "texts"):
        step = _find(rows, "training", case, "cached teacher")
        found.append(Target(
            f"step of a student on {case}, cached teacher: time against none", 1.25, step and step.time_ratio
        ))  # fmt: skip
    return found


def _on_gpu(rows: Sequence[Row]) -> list[Target]:
    ours, eager, chunked = (
        _find(rows, "linear", "forward", name) for name in (OURS, EAGER, LIGER_CHUNKED)
    )
    liger = [
        row.seconds for row in rows
        if (row.task, row.case) == ("linear", "forward") and row.contender.startswith("Liger")
        and row.seconds is not None
    ]  # fmt: skip
    best = min(liger, default=None)
    found = [
        Target("linear, forward: time against the matrix rate's floor", 1.35, _inverse(ours, "matrix_share")),
        Target("linear, forward: time of the best Liger path against it", 1.5,
               _over(best, ours and ours.seconds), at_least=True),
        Target("linear, forward: extra memory, GB", 2.3, _over(ours and ours.peak_bytes, 1e9)),
        Target("linear, forward: extra memory against Liger's chunked path", 1 / 4, _peaks(ours, chunked)),
        Target("linear, forward: extra memory against eager", 1 / 30, _peaks(ours, eager)),
    ]
    for case in ("forward", "reverse", "jsd"):
        given = _find(rows, "logits", case, OURS)
        passes = "three-pass" if case == "jsd" else "two-pass"
        found.append(Target(
            f"given logits, {case}: time against the {passes} memory floor", 1.4,
            _inverse(given, "copy_share"),
        ))  # fmt: skip
        if case != "jsd":
            ratio = _over(1, given and given.time_ratio)
            found.append(Target(f"given logits, {case}: eager's time against it", 5, ratio, at_least=True))
    small = [row.time_ratio for row in rows if row.task == "sizes" and row.contender == OURS]
    quarter = [
        row.time_ratio for row in rows
        if (row.task, row.case) == ("masked", "forward") and "all" not in row.contender
    ]  # fmt: skip
    checked = [
        row for row in rows
        if row.task in ("linear", "logits") and row.contender == OURS and row.loss_error is not None
    ]  # fmt: skip
    found += [
        Target("from 256 tokens up: largest time against eager", 1, _largest(small)),
        Target("with 25 % of the tokens counting: share of the full time", 0.35, _largest(quarter)),
        Target("largest relative error of a loss", 1e-4, _largest([row.loss_error for row in checked])),
        Target("largest error of a gradient, steps", 1, _largest([row.gradient_steps for row in checked])),
    ]
    return found


def _find(rows: Sequence[Row], task: str, case: str, contender: str) -> Row | None:
    """The row, if it holds a time."""
    wanted = (task, case, contender)
    found = (row for row in rows if (row.task, row.case, row.contender) == wanted)
    return next((row for row in found if row.seconds is not None), None)


def _inverse(row: Row | None, share: str) -> float | None:
    return _over(1, row and getattr(row, share))


def _peaks(row: Row | None, other: Row | None) -> float | None:
    return _over(row and row.peak_bytes, other and other.peak_bytes)


def _largest(values: Sequence[float | None]) -> float | None:
    """None of none, and where one is missing: what was not measured is not reached."""
    return None if not values or None in values else max(values)
