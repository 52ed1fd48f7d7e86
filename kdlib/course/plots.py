"""Every figure of the course: takes data, returns a matplotlib Figure with an alt text.

They are made without pyplot: no global state stays behind, and a widget's callback can draw them. The alt
text is written from the data, so that it cannot disagree with the picture.
"""

import itertools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kdlib.course.charts import (
    block_bars,
    differences,
    mean_and_width,
    memory_bars,
    named_points,
    pictures,
    push_picture,
    token_grid,
)  # fmt: skip
from kdlib.course.figures import (
    ARMS,
    LINES,
    bar_style,
    canvas,
    colours,
    describe,
    log_ticks,
    name_ticks,
    point_style,
    show,
)
from kdlib.losses.kd import kd_loss, soft_target_loss, soften
from kdlib.metrics import ReliabilityCurve, Scores, bounded_interval, interval

__all__ = [
    "arms", "block_bars", "densities", "differences", "digit_gallery", "heat_map", "label_bars", "lines",
    "loss_picture", "memory_bars", "named_points", "neighbours", "panels", "pictures", "push_picture",
    "reliability", "show", "softened", "temperature_curves", "token_grid",
]

Numbers = Sequence[float] | Tensor


def label_bars(
    rows: Mapping[str, Numbers], classes: Sequence[str], *, title: str = "", xlabel: str = "class",
    ylabel: str = "probability",
) -> Figure:
    """Distributions over the same classes, (C,) by name, bar beside bar; xlabel says what classes are.

    Other shares of at most 1 go too, if `ylabel` names them. The axis ends at 1, or earlier where all bars
    are short.
    """
    longest = max(float(value) for values in rows.values() for value in values)
    with canvas(9, 3.8) as (figure, axes):
        figure.set_figheight(3.8 + _bars(axes, rows, classes))
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axes.set_ylim(0, 1.08 if longest > 0.5 else 1.15 * longest)
        if len(rows) > 1:
            axes.legend()
    parts = [f"{name}: {_largest(values, classes)}" for name, values in rows.items()]
    shown = "probabilities" if ylabel == "probability" else ylabel
    return describe(figure, title, f"Bar chart of {shown} by {xlabel}", parts)


def digit_gallery(
    images: Tensor, rows: Sequence[Mapping[str, Tensor]], classes: Sequence[str], captions: Sequence[str]
) -> Figure:
    """Pictures (N, 1, height, width) in [0, 1], each above its probabilities, (C,) by name, as bars."""
    count, parts = len(images), []
    shape = {"nrows": 2, "ncols": count, "squeeze": False, "sharey": "row"}
    with canvas(max(4.5, 2.6 * count), 5.6, **shape) as (figure, grid):
        for picture, bars, image, row, caption in zip(*grid, images, rows, captions, strict=True):
            picture.imshow(image[0].numpy(force=True), cmap="gray_r", vmin=0, vmax=1)
            picture.set(title=caption, xticks=[], yticks=[])
            picture.spines[:].set(visible=True, color="0.6")
            figure.set_figheight(5.6 + _bars(bars, row, classes))
            bars.set(xlabel="class", ylim=(0, 1.02), yticks=(0, 0.5, 1))
            said = (f"{name} {_largest(values, classes)}" for name, values in row.items())
            parts.append(f"{caption}: {'; '.join(said)}")
        grid[1][0].set_ylabel("probability")
        # Below everything: beside narrow bars there is no room.
        figure.legend(*grid[1][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return describe(figure, "", "Pictures with bars of their soft labels", parts)


def neighbours(matrix: Tensor, classes: Sequence[str], *, title: str = "") -> Figure:
    """Which other classes the mean soft label of each class, a row of (C, C), leans to."""
    off = 100 * torch.as_tensor(matrix).double().clone().fill_diagonal_(math.nan).numpy()
    with canvas(7.2, 6) as (figure, axes):
        shown = axes.imshow(off, cmap="Blues", vmin=0)
        figure.colorbar(shown, label="mean probability (%)", shrink=0.8)
        axes.set(xlabel="class in the soft label", ylabel="true class", title=title)
        words = np.where(off > 0.25 * np.nanmax(off), np.char.mod("%.1f", off), "")
        figure.set_figheight(6 + _label_cells(shown, words, classes, classes, 4 / len(classes), size=11))
    best = np.nan_to_num(off, nan=-1).argmax(1)
    parts = [f"{classes[i]} leans to {classes[j]} ({off[i, j]:.1f} %)" for i, j in enumerate(best)]
    return describe(figure, title, "Heat map of mean soft labels, in per cent", parts)


def heat_map(
    values: Tensor, rows: Sequence[object], columns: Sequence[object], *, xlabel: str, ylabel: str,
    colour_label: str, title: str = "",
) -> Figure:
    """A table of numbers as colours, the largest framed. values (R, K), NaN where there is none."""
    table = torch.as_tensor(values).double().numpy()
    i, j = np.unravel_index(np.nanargmax(table), table.shape)
    with canvas(1.2 * len(columns) + 3, 0.7 * len(rows) + 2) as (figure, axes):
        shown = axes.imshow(table, cmap="cividis", aspect="auto")
        figure.colorbar(shown, label=colour_label)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        _label_cells(shown, np.where(np.isnan(table), "", np.char.mod("%.1f", table)), rows, columns, room=1)
        axes.add_patch(mpl.patches.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, color="red", linewidth=3))
    highest = f"highest {table[i, j]:.1f} at {ylabel} {rows[i]} and {xlabel} {columns[j]}"
    parts = [highest, f"lowest {np.nanmin(table):.1f}"]
    return describe(figure, title, f"Heat map of {colour_label} by {ylabel} and {xlabel}", parts)


def softened(logits: Tensor, temperature: float, classes: Sequence[str]) -> Figure:
    """One distribution at T = 1 and at a chosen T (left), and its entropy on the way (right). logits (C,)."""
    before, after = soften(logits), soften(logits, temperature)
    path, highest = torch.logspace(-3, 7, 81, base=2), math.log(len(classes))
    with canvas(9.2, 3.8, layout="none", ncols=2, width_ratios=(3, 2)) as (figure, (left, right)):
        drop = _bars(left, {"T = 1": before, f"T = {temperature:.3g}": after}, classes)
        left.set(xlabel="class", ylabel="probability", ylim=(0, 1.08))
        left.legend()
        right.plot(path, [_entropy(soften(logits, float(t))) for t in path], color="0.6")
        right.axhline(highest, color="black", linestyle=":", linewidth=1.5)
        right.plot([1], [_entropy(before)], markersize=10, **point_style(0))
        right.plot([temperature], [_entropy(after)], markersize=10, **point_style(1))
        right.set(xlabel="temperature T", ylabel="entropy (nats)", ylim=(-0.04 * highest, 1.1 * highest))
        log_ticks(right, (0.125, 1, 8, 64))
        title = f"T = {temperature:.3g}: entropy {_entropy(after):.3f} of at most {highest:.3f} nats"
        title += f"; order {_order(logits, classes)}"
        above = textwrap.wrap(title, 78)
        # A fixed layout: twice as fast under a slider, and the axes stand still.
        height = 3.8 + drop + 0.26 * (len(above) - 1)
        figure.set_figheight(height)
        bottom, top = (0.65 + drop) / height, (3.3 + drop) / height
        figure.subplots_adjust(left=0.09, right=0.98, bottom=bottom, top=top, wspace=0.28)
        figure.suptitle("\n".join(above), y=1 - 0.08 / height)
    parts = [f"T = 1: {_largest(before, classes)}", f"T = {temperature:.3g}: {_largest(after, classes)}"]
    return describe(figure, title, "Bars of the probabilities, and the curve of entropy against T", parts)


def temperature_curves(logits: Tensor, temperatures: Tensor, classes: Sequence[str]) -> Figure:
    """Probabilities (left) and entropy (right) against T. logits (C,), temperatures (K,) increasing."""
    table = torch.stack([soften(logits, float(t)) for t in temperatures])
    entropies = [_entropy(row) for row in table]
    with canvas(11, 4.2, ncols=2) as (figure, (left, right)):
        _curves(left, temperatures, {name: table[:, k] for k, name in enumerate(classes)}, classes)
        left.set(ylabel="probability", title="Probabilities")
        _curves(right, temperatures, {"entropy": entropies}, ["entropy"])
        right.axhline(math.log(len(classes)), color="black", linestyle=":", label="log C")
        right.set(ylabel="entropy (nats)", title="Entropy")
        for axes in (left, right):
            axes.set(xscale="log", xlabel="temperature T")
            axes.legend()
    parts = [
        f"T = {float(temperatures[k]):.3g}: {_largest(table[k], classes)}, entropy {entropies[k]:.3f}"
        for k in (0, len(temperatures) // 2, -1)
    ]
    return describe(figure, "Probabilities and entropy against temperature", "Two line charts", parts)


def lines(
    x: Numbers, series: Mapping[str, Numbers], *, xlabel: str, ylabel: str, title: str = "",
    log_x: bool = False, log_y: bool = False, half_widths: Mapping[str, Sequence] | None = None,
    seeds: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> Figure:
    """Curves, (K,) by name, over x (K,), with intervals and seeds for the series that these name.

    half_widths (K,) of intervals, or (2, K), below and above; seeds are (K, S), dots round the curve.
    """
    figure = panels(x, {title: series}, xlabel=xlabel, ylabel=ylabel, log_x=log_x, log_y=log_y)
    figure.set_size_inches(8, 4.4)
    for name, colour in zip(series, colours(series), strict=True):
        for at, values in zip(x, (seeds or {}).get(name, ()), strict=False):
            dots = {"linestyle": "", "marker": ".", "alpha": 0.5, "color": colour}
            figure.axes[0].plot([float(at)] * len(values), values, **dots)
        if name in (half_widths or {}):
            figure.axes[0].errorbar(x, series[name], half_widths[name], fmt="none", color=colour, capsize=5)
    return figure


def panels(
    x: Numbers, groups: Mapping[str, Mapping[str, Numbers]], *, xlabel: str, ylabel: str, title: str = "",
    log_x: bool = False, log_y: bool = False,
) -> Figure:
    """Groups of curves side by side on common axes, under the title of each group."""
    shape = {"ncols": len(groups), "squeeze": False, "sharey": True}
    names = list(dict.fromkeys(name for series in groups.values() for name in series))
    with canvas(max(8, 4 * len(groups)), 4.2, heading=title, **shape) as (figure, grid):
        for axes, (name, series) in zip(grid[0], groups.items(), strict=True):
            _curves(axes, x, series, names)
            axes.set(xlabel=xlabel, title=name, yscale="log" if log_y else "linear")
            if log_x and len(x) <= 8:
                log_ticks(axes, [float(v) for v in x])
            elif log_x:
                axes.set_xscale("log")
        grid[0][0].set_ylabel(ylabel)
        grid[0][-1].legend()
    start, end = float(x[0]), float(x[-1])
    kind = f"Line chart of {ylabel} against {xlabel} from {start:.3g} to {end:.3g}"
    return _describe_groups(
        figure, title, kind, groups, lambda v: f"from {float(v[0]):.3g} to {float(v[-1]):.3g}"
    )


def densities(
    x: Numbers, groups: Mapping[str, Mapping[str, Numbers]], *, xlabel: str = "x", title: str = ""
) -> Figure:
    """Distributions, (K,) by name, over points x (K,): `panels` whose alt text gives mean and width."""
    points = torch.as_tensor(x).double()

    def say(values: Numbers) -> str:
        return mean_and_width(points, torch.as_tensor(values).double())

    figure = panels(x, groups, xlabel=xlabel, ylabel="probability", title=title)
    return _describe_groups(figure, title, f"Curves of probability against {xlabel}", groups, say)


def _describe_groups(
    figure: Figure, title: str, kind: str, groups: Mapping[str, Mapping[str, Numbers]],
    say: Callable[[Numbers], str],
) -> Figure:
    alone = len(groups) == 1
    parts = [
        f"{curve if alone else f'{group}, {curve}'}: {say(values)}"
        for group, curves in groups.items()
        for curve, values in curves.items()
    ]
    return describe(figure, title or ("".join(groups) if alone else ""), kind, parts)


def arms(
    scores: Mapping[str, Sequence[Scores | float]], *, title: str = "", ylabel: str = "test accuracy (%)",
    limits: tuple[float, float] | None = (0, 100), bounded: bool | None = None,
) -> Figure:
    """Every seed of every arm as a dot, a number or the accuracy of `Scores`, with mean and 95% interval.

    No interval leaves `limits`, the possible range; None if there is none. They are Student's t or, if
    `bounded`, those of `bounded_interval`, as a handful of seeds of two kinds needs; None chooses t for all
    arms unless one of them would leave the limits.
    """
    rows = {name: [100 * e.accuracy if isinstance(e, Scores) else float(e) for e in entries]
            for name, entries in scores.items()}  # fmt: skip
    parts, coloured = [], colours(rows)
    digits = 1 if max(abs(value) for values in rows.values() for value in values) > 2 else 3
    ends = {name: _t_ends(values) for name, values in rows.items() if len(values) > 1}
    low, high = limits or (-math.inf, math.inf)
    if bounded or (bounded is None and any(a < low or b > high for _, a, b in ends.values())):
        bounded = True
        ends = {name: bounded_interval(rows[name], low, high) for name in ends}
    with canvas(max(6.5, 1.8 * len(rows)), 4.4) as (figure, axes):
        for k, (name, values) in enumerate(rows.items()):
            places = np.linspace(k - 0.12, k + 0.12, len(values)) if len(values) > 1 else [k]
            axes.plot(places, values, linestyle="", alpha=0.6, **point_style(k, coloured[k]))
            if name not in ends:
                parts.append(f"{name} {values[0]:.{digits}f}")
                continue
            mean, a, b = ends[name]
            reach = [[mean - a], [b - mean]]
            axes.errorbar(k + 0.28, mean, reach, fmt="_", color="black", capsize=6, markersize=14)
            parts.append(f"{name} {mean:.{digits}f}, interval {a:.{digits}f} to {b:.{digits}f}")
        room = 0.87 * figure.get_figwidth() / (len(rows) + 0.2)
        figure.set_figheight(4.4 + name_ticks(axes, list(rows), room))
        meaning = "One dot a seed; black: mean and 95% interval" + ", bounded" * bool(bounded)
        meaning = meaning if ends else "One dot each: a single run has no interval"
        axes.set(xlabel=meaning, ylabel=ylabel, title=title, xlim=(-0.5, len(rows) - 0.3))
    return describe(figure, title, meaning, parts)


def _t_ends(values: Sequence[float]) -> tuple[float, float, float]:
    mean, half = interval(values)
    return mean, mean - half, mean + half


def reliability(curves: Mapping[str, ReliabilityCurve], *, title: str = "") -> Figure:
    """Accuracy against confidence; on the diagonal a model is as often right as it says.

    The size of a mark says how many of the examples its bin holds.
    """
    parts, coloured = [], colours(curves)
    with canvas(6, 5) as (figure, axes):
        axes.plot([0, 1], [0, 1], color="black", linestyle=":", label="perfect")
        for k, (name, curve) in enumerate(curves.items()):
            full = curve.count > 0
            shares = curve.count[full] / curve.count.sum()
            style, places = point_style(k, coloured[k]), (curve.confidence[full], curve.accuracy[full])
            axes.plot(*places, linestyle=LINES[k % 7], label=name, **style | {"markersize": 5})
            axes.scatter(*places, s=20 + 300 * shares, **style)
            parts.append(f"{name}: mean gap {curve.mean_gap:.3f}")
        lowest = min(curve.confidence[curve.count > 0].min() for curve in curves.values())
        axes.set(xlabel="confidence (size: share of the examples)", ylabel="accuracy", title=title)
        axes.set(xlim=(0.48 if lowest >= 0.5 else 0, 1.02), ylim=(0, 1.04))
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
    title = (f"CE {ce:.3f}   T²·KL {kl:.3f}   loss = {alpha:.2f}·CE + {1 - alpha:.2f}·T²·KL "
             f"= {alpha * ce + (1 - alpha) * kl:.3f}")
    with canvas(11, 4.2, heading=title, ncols=2) as (figure, (left, right)):
        figure.set_figheight(4.2 + _bars(left, {"teacher p": p, "student q": q}, classes))
        left.set(xlabel="class", ylabel=f"probability at T = {temperature:.3g}", ylim=(0, 1.08))
        left.legend()
        _bars(right, pulls, classes, [ARMS["alone"], ARMS["teacher"]])
        right.axhline(0, color="black", linewidth=1)
        right.set(xlabel="class", ylabel="push on the student's logit")
        right.legend()
    parts = [f"teacher {_largest(p, classes)}", f"student {_largest(q, classes)}"]
    return describe(figure, title, "Two bar charts: probabilities, and the push on each logit", parts)


def _bars(
    axes: Axes, rows: Mapping[str, Numbers], classes: Sequence[str], coloured: Sequence[str] = ()
) -> float:
    """Bars beside bars; returns what `name_ticks` returns."""
    width, coloured = 0.8 / len(rows), coloured or colours(rows)
    for k, (name, values) in enumerate(rows.items()):
        places = np.arange(len(classes)) + (k - (len(rows) - 1) / 2) * width
        axes.bar(places, [float(v) for v in values], width, label=name, **bar_style(k, coloured[k]))
    axes.grid(axis="x", visible=False)
    # Before the layout is known; it will hardly be narrower.
    inches = axes.get_position().width * axes.get_figure().get_figwidth()
    return name_ticks(axes, classes, inches / (1.1 * len(classes)))


def _curves(axes: Axes, x: Numbers, series: Mapping[str, Numbers], names: Sequence[str]) -> None:
    """Curves told apart by colour, line and, where few points, marker, by their place in `names`."""
    coloured = colours(names)
    for name, values in series.items():
        k = list(names).index(name)
        style = point_style(k, coloured[k]) | ({} if len(x) <= 12 else {"marker": None})
        places = [float(v) for v in x], [float(v) for v in values]
        axes.plot(*places, label=name, linestyle=LINES[k % 7], **style)


def _label_cells(
    shown: mpl.image.AxesImage, words: np.ndarray, rows: Sequence[object], columns: Sequence[object],
    room: float, size: float | None = None,
) -> float:
    """Words in the cells of a table, names beside and below it; returns what `name_ticks` returns."""
    axes, colours = shown.axes, shown.to_rgba(shown.get_array())[..., :3]
    axes.grid(False)
    axes.set_yticks(range(len(rows)), rows)
    # Relative luminance of WCAG 2.2: from 0.179 on, black contrasts more than white.
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    ink = np.where(linear @ (0.2126, 0.7152, 0.0722) > 0.179, "black", "white")
    for (i, j), text in np.ndenumerate(words):
        if text:
            axes.text(j, i, text, ha="center", va="center", color=ink[i, j], size=size)
    return name_ticks(axes, columns, room)


def _entropy(probabilities: Tensor) -> float:
    return torch.special.entr(probabilities).sum().item()


def _largest(values: Numbers, classes: Sequence[str]) -> str:
    values = torch.as_tensor(values)
    largest = values.argsort(descending=True, stable=True)[:3].tolist()
    return ", ".join(f"{classes[k]} {float(values[k]):.2f}" for k in largest)


def _order(logits: Tensor, classes: Sequence[str]) -> str:
    """The classes from most to least probable. From the logits: probabilities can underflow to a tie."""
    order = logits.argsort(descending=True, stable=True).tolist()
    words = classes[order[0]]
    for before, after in itertools.pairwise(order[:5]):
        words += f" {'=' if logits[before] == logits[after] else '>'} {classes[after]}"
    return words + (" …" if len(order) > 5 else "")
