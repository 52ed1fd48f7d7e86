"""The figures that the loss is to reach, and whether rows of a benchmark reach them.

    PYTHONPATH=tests python -m benchmarks.targets

prints them beside what `benchmarks.model` calculates for an H100 and an H200, without measuring anything.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from benchmarks.race import Row, _over

__all__ = ["Target", "judged_targets", "targets_table"]

OURS, EAGER = "kdlib", "eager PyTorch"
# The loss with the logits of a chunk in float32, where a benchmark has it.
PRECISE = "kdlib, float32 logits"


@dataclass(frozen=True)
class Target:
    """One figure to reach.

    Attributes:
        name: what is measured.
        limit: the figure to reach; at_least: whether it is one to exceed rather than to stay below.
        value: what was measured; None if it was not, or could not be.
        calculated: what products, bytes and instructions let expect (`benchmarks.model`); None of errors.
    """

    name: str
    limit: float
    value: float | None
    at_least: bool = False
    calculated: float | None = None

    @property
    def reached(self) -> Literal["yes", "no", "not measured"]:
        if self.value is None:
            return "not measured"
        # NaN is neither: it is not reached.
        return "yes" if (self.value >= self.limit if self.at_least else self.value <= self.limit) else "no"

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        calculated, value = ("" if x is None else f"{x:.3g}" for x in (self.calculated, self.value))
        return f"{self.name:<66} {sign} {self.limit:<8.3g} {calculated:>10} {value:>9}  {self.reached}"

    def as_json(self) -> dict[str, object]:
        """With "calculated" where there is such a figure."""
        found = {
            "figure": self.name, "limit": self.limit, "at_least": self.at_least, "value": self.value,
            "reached": self.reached,
        }  # fmt: skip
        return found if self.calculated is None else found | {"calculated": self.calculated}


def judged_targets(
    rows: Sequence[Row], device: str, calculated: Mapping[str, float] | None = None
) -> list[Target]:
    """The targets of a device, "cpu" or any other, with what the rows say of them.

    Args:
        calculated: `benchmarks.model.calculated_figures` of the GPU, if it knows of it.
    """
    return _on_cpu(rows) if device == "cpu" else _on_gpu(rows, calculated or {})


def targets_table(targets: Iterable[Target]) -> str:
    """A line each."""
    head = f"{'figure to reach':<66}   {'limit':<8} {'calculated':>10} {'measured':>9}  reached"
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


def _on_gpu(rows: Sequence[Row], calculated: Mapping[str, float]) -> list[Target]:
    ours, eager = (_find(rows, "linear", "forward", name) for name in (OURS, EAGER))
    peers = [
        row for row in rows
        if (row.task, row.case) == ("linear", "forward") and row.seconds is not None
        and not row.contender.startswith(OURS)
    ]  # fmt: skip
    best = min((row.seconds for row in peers if row.contender.startswith("Liger")), default=None)
    leanest = min((row.peak_bytes for row in peers if row.peak_bytes), default=None)
    found = [
        Target("linear, forward: time against the matrix rate's floor", 1.30, _inverse(ours, "matrix_share"),
               calculated=calculated.get("floor")),
        Target("linear, forward: time of the best Liger path against it", 1.15,
               _over(best, ours and ours.seconds), at_least=True, calculated=calculated.get("liger")),
        Target("linear, forward: extra memory, GB", 2.2, _over(ours and ours.peak_bytes, 1e9),
               calculated=calculated.get("memory")),
        Target("linear, forward: extra memory against eager", 1 / 14,
               _over(ours and ours.peak_bytes, eager and eager.peak_bytes),
               calculated=calculated.get("memory against eager")),
        Target("linear, forward: extra memory against the leanest peer", 1,
               _over(ours and ours.peak_bytes, leanest),
               calculated=calculated.get("memory against the leanest")),
    ]
    for case in ("forward", "reverse", "jsd"):
        given = _find(rows, "logits", case, OURS)
        floor = f"the {'three' if case == 'jsd' else 'two'}-pass memory floor"
        odd = [
            _inverse(row, "copy_share") for row in rows
            if row.task == "shapes" and row.case.startswith(f"{case}, ")
        ]  # fmt: skip
        found += [
            Target(f"given logits, {case}: time against {floor}", 1.4, _inverse(given, "copy_share"),
                   calculated=calculated.get(case)),
            Target(f"given logits, {case}, unaligned rows: the same", 1.4, _largest(odd),
                   calculated=calculated.get(f"{case} unaligned")),
        ]  # fmt: skip
        if case != "jsd":
            ratio = _over(1, given and given.time_ratio)
            found.append(Target(f"given logits, {case}: eager's time against it", 5, ratio, at_least=True,
                                calculated=calculated.get(f"{case} eager")))  # fmt: skip
    small = [row.time_ratio for row in rows if row.task == "sizes" and row.contender == OURS]
    quarter = [
        row.time_ratio for row in rows
        if (row.task, row.case) == ("masked", "forward") and "all" not in row.contender
    ]  # fmt: skip
    checked = [
        row for row in rows
        if row.task in ("linear", "logits", "shapes") and row.contender == OURS and row.loss_error is not None
    ]  # fmt: skip
    fused = [row for row in checked if row.task == "linear"]
    against = [
        _over(row.gradient_steps, (other := _find(rows, "linear", row.case, EAGER)) and other.gradient_steps)
        for row in fused
    ]
    precise = _find(rows, "linear", "forward", PRECISE)
    found += [
        Target("from 256 tokens up: largest time against eager", 1, _largest(small),
               calculated=calculated.get("small")),
        Target("with 25 % of the tokens counting: share of the full time", 0.35, _largest(quarter),
               calculated=calculated.get("quarter")),
        Target("largest relative error of a loss", 1e-4, _largest([row.loss_error for row in checked])),
        Target("given logits: largest error of a gradient, steps", 1,
               _largest([row.gradient_steps for row in checked if row.task != "linear"])),
        Target("linear: largest error of a gradient against eager's", 1, _largest(against)),
        Target("linear, float32 logits in a chunk: error of a gradient, steps", 2,
               precise and precise.gradient_steps),
    ]
    return found


def _find(rows: Sequence[Row], task: str, case: str, contender: str) -> Row | None:
    """The row, if it holds a time."""
    wanted = (task, case, contender)
    found = (row for row in rows if (row.task, row.case, row.contender) == wanted)
    return next((row for row in found if row.seconds is not None), None)


def _inverse(row: Row | None, share: str) -> float | None:
    return _over(1, row and getattr(row, share))


def _largest(values: Sequence[float | None]) -> float | None:
    """None of none, and where one is missing: what was not measured is not reached."""
    return None if not values or None in values else max(values)


def main() -> int:
    from benchmarks.__main__ import default_sizes
    from benchmarks.model import GPUS, calculated_figures

    for gpu in GPUS:
        print(
            f"{gpu.name}: calculated, at {gpu.rates.matrix / 1e12:.3g} TFLOP/s in products and "
            f"{gpu.rates.copy / 1e12:.3g} TB/s in copies, not measured"
        )
        figures = calculated_figures(default_sizes(torch.device("cuda")), gpu)
        print(targets_table(judged_targets([], "cuda", figures)), "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
