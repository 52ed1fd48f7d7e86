"""What was measured, for people and for programs: a table, a CSV file, a figure."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.race import Row
from kdlib.course.figures import COLOURS, MARKERS, canvas, describe

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
                row.contender, _time(row.seconds), _range(row.low, row.high),
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


def _range(low: float | None, high: float | None) -> str:
    """Nothing of a single round, which has no spread."""
    return "" if low is None or low == high else f"{_time(low)} – {_time(high)}"


def _size(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def time_and_memory(
    panels: Mapping[str, Mapping[str, tuple[float, float]]], *, title: str = ""
) -> Figure:
    """Ways to do the same: memory across, time up, both logarithmic, so that the best stands lower left.

    Args:
        panels: under each panel's title, (seconds, bytes) by name; a name looks the same in all panels.
    """
    names = list(dict.fromkeys(name for points in panels.values() for name in points))
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    parts = []
    shape = {"nrows": rows, "ncols": columns, "squeeze": False}
    height = 1.2 + 3.8 * rows + 0.35 * -(-len(names) // 3)
    with canvas(max(8.0, 4.6 * columns), height, **shape) as (figure, grid):
        for axes, (heading, points) in zip(grid.flat, panels.items(), strict=False):
            for k, name in enumerate(names):
                if name in points:
                    seconds, size = points[name]
                    axes.plot(
                        size / 1e6, seconds * 1e3, MARKERS[k % 7], color=COLOURS[k % 7], markersize=11,
                        fillstyle="full" if k < 7 else "none", markeredgewidth=2, label=name,
                    )  # fmt: skip
            across = _marks([size / 1e6 for _, size in points.values()])
            up = _marks([seconds * 1e3 for seconds, _ in points.values()])
            axes.set(
                xscale="log", yscale="log", xlim=(across[0], across[-1]), ylim=(up[0], up[-1]),
                xlabel="extra memory (MB)", ylabel="time (ms)", title=heading,
            )  # fmt: skip
            for axis, marks in ((axes.xaxis, across), (axes.yaxis, up)):
                axis.set_ticks(marks, [f"{mark:,g}" if mark < 1e6 else f"{mark:.0e}" for mark in marks])
                axis.set_minor_locator(mpl.ticker.NullLocator())
            said = (f"{name} {s * 1e3:.3g} ms, {m / 1e6:.3g} MB" for name, (s, m) in points.items())
            parts.append(f"{heading}: {', '.join(said)}")
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        shown = {}
        for axes in figure.axes:
            handles, labels = axes.get_legend_handles_labels()
            shown |= dict(zip(labels, handles, strict=True))
        figure.legend(
            [shown[name] for name in names], names, loc="outside lower center", ncols=min(3, len(names))
        )
        if title:
            figure.suptitle(title)
    return describe(figure, title, "Points of time against memory, both axes logarithmic", parts)


def _marks(values: Sequence[float]) -> list[float]:
    """Round numbers from below the least to above the largest: 1, 2, 5, 10, or tens of a wider range."""
    low, high = 0.85 * min(values), 1.18 * max(values)
    steps = (1, 2, 5) if high / low < 60 else (1,)
    first = math.floor(math.log10(low))
    all_of_them = [step * 10.0**power for power in range(first, first + 16) for step in steps]
    start = max(k for k, mark in enumerate(all_of_them) if mark <= low)
    end = next(k for k, mark in enumerate(all_of_them) if mark >= high)
    return all_of_them[start : end + 1]
