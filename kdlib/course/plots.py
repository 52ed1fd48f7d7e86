"""Every figure of the course: takes data, returns a matplotlib Figure with an alt text.

Figures are made without pyplot, so they leave no global state behind and can be drawn from a widget's
callback. The alt text is written from the data, so that it cannot disagree with the picture.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from kdlib.course.charts import memory_bars, named_points, pictures, stacked_groups, token_grid, truth_scatter
from kdlib.course.figures import (
    COLOURS,
    LINES,
    MARKERS,
    STYLE,
    alt_text,
    canvas,
    describe,
    draw_bars,
    draw_curves,
    entropy_of,
    image_tag,
    ink_on,
    largest_in_words,
    name_ticks,
    order_in_words,
    png,
    show,
)
from kdlib.losses.kd import kd_loss, soft_target_loss, soften
from kdlib.metrics import ReliabilityCurve, Scores, interval

__all__ = [
    "COLOURS", "LINES", "MARKERS", "STYLE", "alt_text", "arms", "densities", "digit_gallery", "heat_map",
    "image_tag", "label_bars", "lines", "loss_picture", "memory_bars", "named_points", "neighbours", "panels",
    "pictures", "png", "reliability", "show", "softened", "stacked_groups", "temperature_curves",
    "token_grid", "truth_scatter",
]


def label_bars(
    rows: Mapping[str, Sequence[float] | Tensor], classes: Sequence[str], *, title: str = "",
    xlabel: str = "class",
) -> Figure:
    """Several distributions over the same classes, bar beside bar.

    Args:
        rows: (C,) probabilities under the name that the legend shows.
        classes: C names.
        xlabel: what the classes are.
    """
    with canvas(9, 3.8) as (figure, axes):
        figure.set_figheight(3.8 + draw_bars(axes, rows, classes))
        axes.set(xlabel=xlabel, ylabel="probability", ylim=(0, 1.08), title=title)
        if len(rows) > 1:
            axes.legend()
    parts = [f"{name}: {largest_in_words(values, classes)}" for name, values in rows.items()]
    return describe(figure, title, f"Bar chart of probabilities by {xlabel}", parts)


def digit_gallery(
    images: Tensor,
    rows: Sequence[Mapping[str, Tensor]],
    classes: Sequence[str],
    captions: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """Pictures, each above the bars of its soft labels.

    Args:
        images: (N, 1, height, width) in [0, 1].
        rows: for each picture, (C,) probabilities by name; the same names for all.
    """
    count = len(images)
    shape = {"nrows": 2, "ncols": count, "squeeze": False, "sharey": "row"}
    with canvas(max(4.5, 2.6 * count), 5.6, **shape) as (figure, grid):
        for k in range(count):
            picture, bars = grid[0][k], grid[1][k]
            picture.imshow(images[k, 0].numpy(force=True), cmap="gray_r", vmin=0, vmax=1)
            picture.set(title=captions[k], xticks=[], yticks=[])
            figure.set_figheight(5.6 + draw_bars(bars, rows[k], classes))
            bars.set(xlabel="class", ylim=(0, 1.02), yticks=(0, 0.5, 1))
        grid[1][0].set_ylabel("probability")
        # Below everything: beside narrow bars there is no room.
        figure.legend(*grid[1][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        if title:
            figure.suptitle(title)
    parts = [
        f"{captions[k]}: " + "; ".join(f"{n} {largest_in_words(v, classes)}" for n, v in rows[k].items())
        for k in range(count)
    ]
    return describe(figure, title, "Pictures with bars of their soft labels", parts)


def neighbours(matrix: Tensor, classes: Sequence[str], *, title: str = "") -> Figure:
    """Which other classes each class's soft labels lean to.

    Args:
        matrix: (C, C); row i is the mean soft label of class i. The diagonal is not shown.
    """
    off = torch.as_tensor(matrix).double().clone().fill_diagonal_(math.nan).numpy()
    with canvas(7.2, 6) as (figure, axes):
        axes.grid(False)
        shown = axes.imshow(off, cmap="Blues", vmin=0)
        figure.colorbar(shown, label="mean probability", shrink=0.8)
        axes.set(xlabel="class in the soft label", ylabel="true class", title=title)
        figure.set_figheight(6 + name_ticks(axes, classes, 4 / len(classes)))
        axes.set_yticks(range(len(classes)), classes)
        high = np.nanmax(off)
        for (i, j), value in np.ndenumerate(off):
            if value > 0.25 * high:
                colour = ink_on(shown.to_rgba(value))
                axes.text(j, i, f"{100 * value:.1f}", ha="center", va="center", color=colour, size=11)
    best = np.nan_to_num(off, nan=-1).argmax(1)
    parts = [
        f"{name} leans to {classes[j]} ({off[i, j]:.3f})"
        for i, (name, j) in enumerate(zip(classes, best, strict=True))
    ]
    return describe(figure, title, "Heat map of mean soft labels; in per cent where large", parts)


def softened(logits: Tensor, temperature: float, classes: Sequence[str]) -> Figure:
    """One distribution at T = 1 and at a chosen T (left), and its entropy on the way (right). logits (C,)."""
    before, after = soften(logits), soften(logits, temperature)
    path = torch.logspace(-3, 7, 81, base=2)
    highest, now = math.log(len(classes)), entropy_of(after)
    with canvas(9.2, 3.8, layout="none", ncols=2, width_ratios=(3, 2)) as (figure, (left, right)):
        drop = draw_bars(left, {"T = 1": before, f"T = {temperature:.3g}": after}, classes)
        left.set(xlabel="class", ylabel="probability", ylim=(0, 1.08))
        left.legend()
        right.plot(path, [entropy_of(soften(logits, float(t))) for t in path], color="0.6")
        right.axhline(highest, color="black", linestyle=":", linewidth=1.5)
        right.plot([1], [entropy_of(before)], MARKERS[0], color=COLOURS[0], markersize=10)
        right.plot([temperature], [now], MARKERS[1], color=COLOURS[1], markersize=10)
        right.set(xscale="log", xlabel="temperature T", ylabel="entropy (nats)")
        right.set(ylim=(-0.04 * highest, 1.1 * highest))
        marks = (0.125, 1, 8, 64)
        right.set_xticks(marks, [f"{mark:g}" for mark in marks])
        right.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        title = f"T = {temperature:.3g}: entropy {now:.3f} of at most {highest:.3f} nats"
        title += f"; order {order_in_words(logits, classes)}"
        above = textwrap.wrap(title, 78)
        # A fixed layout: twice as fast under a slider, and the axes stand still.
        height = 3.8 + drop + 0.26 * (len(above) - 1)
        figure.set_figheight(height)
        bottom, top = (0.65 + drop) / height, (3.3 + drop) / height
        figure.subplots_adjust(left=0.09, right=0.98, bottom=bottom, top=top, wspace=0.28)
        figure.suptitle("\n".join(above), y=1 - 0.08 / height)
    parts = [
        f"T = {t:.3g}: {largest_in_words(values, classes)}"
        for t, values in ((1, before), (temperature, after))
    ]
    return describe(figure, title, "Bars of the probabilities, and the curve of entropy against T", parts)


def temperature_curves(logits: Tensor, temperatures: Tensor, classes: Sequence[str]) -> Figure:
    """Probabilities (left) and entropy (right) against T.

    Args:
        logits: (C,). temperatures: (K,) increasing, all positive.
    """
    table = torch.stack([soften(logits, float(t)) for t in temperatures])
    with canvas(11, 4.2, ncols=2) as (figure, (left, right)):
        draw_curves(left, temperatures, {name: table[:, k] for k, name in enumerate(classes)})
        left.set(xscale="log", xlabel="temperature T", ylabel="probability", title="Probabilities")
        left.legend()
        entropies = torch.tensor([entropy_of(row) for row in table])
        draw_curves(right, temperatures, {"entropy": entropies})
        right.axhline(math.log(len(classes)), color="black", linestyle=":", label="log C")
        right.set(xscale="log", xlabel="temperature T", ylabel="entropy (nats)", title="Entropy")
        right.legend()
    parts = [
        f"T = {float(temperatures[k]):.3g}: {largest_in_words(table[k], classes)}, entropy {entropies[k]:.3f}"
        for k in (0, len(temperatures) // 2, -1)
    ]
    return describe(figure, "Probabilities and entropy against temperature", "Two line charts", parts)


def lines(
    x: Sequence[float] | Tensor,
    series: Mapping[str, Sequence[float] | Tensor],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    half_widths: Mapping[str, Sequence[float]] | None = None,
) -> Figure:
    """Curves over one axis. x (K,), each series (K,).

    Args:
        half_widths: (K,) half of an interval around each point, for the series it names.
    """
    figure = panels(x, {title: series}, xlabel=xlabel, ylabel=ylabel, log_x=log_x, log_y=log_y)
    figure.set_size_inches(8, 4.4)
    for k, name in enumerate(series):
        if name in (half_widths or {}):
            figure.axes[0].errorbar(
                x, series[name], half_widths[name], fmt="none", color=COLOURS[k % 7], capsize=5
            )
    return figure


def panels(
    x: Sequence[float] | Tensor,
    groups: Mapping[str, Mapping[str, Sequence[float] | Tensor]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
) -> Figure:
    """Groups of curves side by side on common axes, under the title of each group."""
    width = max(8, 4 * len(groups))
    with canvas(width, 4.2, ncols=len(groups), squeeze=False, sharey=True) as (figure, grid):
        for axes, (name, series) in zip(grid[0], groups.items(), strict=True):
            draw_curves(axes, x, series)
            axes.set(xlabel=xlabel, title=name)
            axes.set_xscale("log" if log_x else "linear")
            axes.set_yscale("log" if log_y else "linear")
            if log_x and len(x) <= 8:  # 2, 4, 8 where they lie, rather than 2 × 10⁰
                axes.set_xticks([float(v) for v in x], [f"{float(v):g}" for v in x])
                axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        grid[0][0].set_ylabel(ylabel)
        grid[0][-1].legend()
        if title:
            figure.suptitle(title)
    parts = [
        f"{name + ', ' if name and len(groups) > 1 else ''}{curve}: from {float(values[0]):.3g} "
        f"to {float(values[-1]):.3g}"
        for name, series in groups.items()
        for curve, values in series.items()
    ]
    start, end = float(x[0]), float(x[-1])
    kind = f"Line chart of {ylabel} against {xlabel} from {start:.3g} to {end:.3g}"
    return describe(figure, title or (next(iter(groups)) if len(groups) == 1 else ""), kind, parts)


def densities(
    x: Sequence[float] | Tensor,
    groups: Mapping[str, Mapping[str, Sequence[float] | Tensor]],
    *,
    xlabel: str = "x",
    title: str = "",
) -> Figure:
    """Distributions over one axis, group beside group. Like `panels`, but the alt text gives mean and width.

    Args:
        x: (K,) points. groups: under each group's title, (K,) probabilities of the points by name, sum 1.
    """
    figure = panels(x, groups, xlabel=xlabel, ylabel="probability", title=title)
    x = torch.as_tensor(x).double()
    parts = []
    for group, curves in groups.items():
        for name, values in curves.items():
            values = torch.as_tensor(values).double()
            mean = (values * x).sum()
            deviation = (values * (x - mean) ** 2).sum().sqrt()
            place = f"{group}, {name}" if len(groups) > 1 else name
            parts.append(f"{place}: mean {mean:.1f}, standard deviation {deviation:.1f}")
    title = title or (next(iter(groups)) if len(groups) == 1 else "")
    return describe(figure, title, f"Curves of probability against {xlabel}", parts)


def arms(
    scores: Mapping[str, Sequence[Scores | float]], *, title: str = "", ylabel: str = "test accuracy (%)"
) -> Figure:
    """Every seed of every arm as a dot, with the arm's mean and 95% interval.

    Args:
        scores: for each arm one entry a seed: `Scores` (accuracy in per cent is drawn) or numbers.
    """
    parts = []
    with canvas(max(6.5, 1.7 * len(scores)), 4.4) as (figure, axes):
        for k, (name, entries) in enumerate(scores.items()):
            values = [100 * e.accuracy if isinstance(e, Scores) else float(e) for e in entries]
            places = np.linspace(k - 0.12, k + 0.12, len(values)) if len(values) > 1 else [k]
            axes.plot(places, values, MARKERS[k % 7], color=COLOURS[k % 7], alpha=0.6)
            if len(values) == 1:
                parts.append(f"{name} {values[0]:.1f}")
                continue
            mean, half = interval(values)
            axes.errorbar(k + 0.28, mean, half, fmt="_", color="black", capsize=6, markersize=14)
            parts.append(f"{name} {mean:.1f} ± {half:.1f}")
        room = 0.8 * figure.get_figwidth() / (len(scores) + 0.2)
        figure.set_figheight(4.4 + name_ticks(axes, list(scores), room))
        meaning = "One dot a seed; black: mean and 95% interval"
        axes.set(xlabel=meaning, ylabel=ylabel, title=title, xlim=(-0.5, len(scores) - 0.3))
    return describe(figure, title, meaning, parts)


def heat_map(
    values: Tensor, rows: Sequence[object], columns: Sequence[object], *, xlabel: str, ylabel: str,
    colour_label: str, title: str = "",
) -> Figure:
    """A table of numbers as colours, the largest framed. values (R, K), NaN where there is none."""
    table = torch.as_tensor(values).double().numpy()
    best = np.unravel_index(np.nanargmax(table), table.shape)
    with canvas(1.2 * len(columns) + 3, 0.7 * len(rows) + 2) as (figure, axes):
        axes.grid(False)
        shown = axes.imshow(table, cmap="cividis", aspect="auto")
        figure.colorbar(shown, label=colour_label)
        name_ticks(axes, columns, 1)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        for (i, j), value in np.ndenumerate(table):
            if not math.isnan(value):
                colour = ink_on(shown.to_rgba(value))
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=colour)
        axes.add_patch(
            mpl.patches.Rectangle((best[1] - 0.5, best[0] - 0.5), 1, 1, fill=False, color="red", linewidth=3)
        )
    parts = [
        f"highest {table[best]:.1f} at {ylabel} {rows[best[0]]} and {xlabel} {columns[best[1]]}",
        f"lowest {np.nanmin(table):.1f}",
    ]
    return describe(figure, title, f"Heat map of {colour_label} by {ylabel} and {xlabel}", parts)


def reliability(curves: Mapping[str, ReliabilityCurve], *, title: str = "") -> Figure:
    """Accuracy against confidence; on the diagonal a model is as often right as it says."""
    parts = []
    with canvas(6, 5) as (figure, axes):
        axes.plot([0, 1], [0, 1], color="black", linestyle=":", label="perfect")
        for k, (name, curve) in enumerate(curves.items()):
            full = curve.count > 0
            axes.plot(
                curve.confidence[full], curve.accuracy[full], marker=MARKERS[k % 7], color=COLOURS[k % 7],
                linestyle=LINES[k % 7], label=name,
            )
            parts.append(f"{name}: mean gap {curve.mean_gap:.3f}")
        axes.set(xlabel="confidence", ylabel="accuracy", title=title, xlim=(0, 1), ylim=(0, 1.02))
        axes.legend()
    return describe(figure, title, "Reliability diagram", parts)


def loss_picture(
    teacher_logits: Tensor, student_logits: Tensor, label: int, classes: Sequence[str], *,
    temperature: float, alpha: float,
) -> Figure:
    """Teacher and student at T (left), and the pull of both loss terms on each logit (right). Logits (C,)."""
    p, q = soften(teacher_logits, temperature), soften(student_logits, temperature)
    hard_gradient = soften(student_logits) - torch.eye(len(classes))[label]
    pulls = {
        "hard: −α (q₁ − y)": -alpha * hard_gradient,
        "soft: −(1−α) T (q − p)": -(1 - alpha) * temperature * (q - p),
    }
    pair = student_logits, teacher_logits
    ce = kd_loss(*pair, torch.tensor(label), temperature=temperature, alpha=1).item()
    kl = soft_target_loss(*pair, temperature=temperature).item()
    with canvas(11, 4.2, ncols=2) as (figure, (left, right)):
        figure.set_figheight(4.2 + draw_bars(left, {"teacher p": p, "student q": q}, classes))
        left.set(xlabel="class", ylabel=f"probability at T = {temperature:.3g}", ylim=(0, 1.08))
        left.legend()
        draw_bars(right, pulls, classes)
        right.axhline(0, color="black", linewidth=1)
        right.set(xlabel="class", ylabel="push on the student's logit")
        right.legend()
        title = (
            f"CE {ce:.3f}   T²·KL {kl:.3f}   loss = {alpha:.2f}·CE + {1 - alpha:.2f}·T²·KL "
            f"= {alpha * ce + (1 - alpha) * kl:.3f}"
        )
        figure.suptitle(title)
    parts = [f"teacher {largest_in_words(p, classes)}", f"student {largest_in_words(q, classes)}"]
    return describe(figure, title, "Two bar charts: probabilities, and the push on each logit", parts)
