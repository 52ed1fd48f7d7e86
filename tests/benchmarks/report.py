"""What was measured, for people and for programs: a table, a CSV file, a figure."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby

from matplotlib.figure import Figure

from benchmarks.race import Row
from kdlib.course.charts import time_and_memory

__all__ = ["as_csv", "figure", "text_table"]

_HEAD = ("", "time", "10 – 90 %", "×", "memory", "×", "rate", "loss", "grad.")
_WIDTHS = (26, 8, 16, 6, 8, 6, 5, 7, 7)
_LEGEND = (
    "×: against the first line. rate: share of the measured matrix rate (linear) or copy rate (logits) that\n"
    "the least work possible would take. loss, grad.: relative errors against float64."
)


def text_table(rows: Sequence[Row]) -> str:
    """The rows as text, at most 100 characters wide, under a heading for each task and case."""
    lines = []
    for (task, case), some in groupby(rows, key=lambda row: (row.task, row.case)):
        lines += ["", f"{task}: {case}", _line(_HEAD)]
        for row in some:
            if row.seconds is None:
                lines.append(f"{row.contender:<{_WIDTHS[0]}} {row.note}"[:100])
                continue
            share = row.copy_share if row.matrix_share is None else row.matrix_share
            cells = (
                row.contender, _time(row.seconds), f"{_time(row.low)} – {_time(row.high)}",
                _number(row.time_ratio, ".2f"), _size(row.peak_bytes), _number(row.memory_ratio, ".2f"),
                _number(share, ".0%"), _number(row.loss_error, ".0e"), _number(row.gradient_error, ".0e"),
            )  # fmt: skip
            lines.append(_line(cells))
            if row.per_second is not None:
                lines[-1] = f"{lines[-1].rstrip()}  {row.per_second:,.0f} a second"
    return "\n".join([*lines, "", _LEGEND])


def as_csv(rows: Sequence[Row]) -> str:
    """All columns of all rows; empty where there is nothing to say."""
    text = io.StringIO()
    writer = csv.DictWriter(text, Row.columns(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def figure(rows: Sequence[Row], title: str) -> Figure | None:
    """Time against memory of every contender, a panel for each task and divergence; None of no such rows."""
    panels: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        if row.seconds is not None and row.peak_bytes:
            where = "hidden states" if row.task == "linear" else "given logits"
            panel = panels.setdefault(f"from {where}, {row.case}", {})
            panel[row.contender] = (row.seconds, row.peak_bytes)
    return time_and_memory(panels, title=title) if panels else None


def _line(cells: Sequence[str]) -> str:
    first, *rest = cells
    return f"{first:<{_WIDTHS[0]}}" + "".join(
        f" {cell:>{width}}" for cell, width in zip(rest, _WIDTHS[1:], strict=True)
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _size(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
