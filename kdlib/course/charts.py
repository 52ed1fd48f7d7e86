"""Figures of models, machines, batches and pictures. Part of `kdlib.course.plots`."""

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from kdlib.course.figures import LINES, bar_style, canvas, colours, describe, log_ticks, point_style

# Of plans: these have the same colour in all figures, and stand in this order.
_COMPONENTS = (
    "student weights", "gradients", "optimizer state", "teacher weights", "activations", "logits and loss",
    "bf16 copies of weights", "gathered weights", "gradient buckets", "KV cache",
)
_BESIDE = {"textcoords": "offset points", "ha": "center", "size": 11}  # words at a point


def named_points(
    x: Mapping[str, float], panels: Mapping[str, Mapping[str, float]], *, groups: Mapping[str, str],
    xlabel: str, ylabel: str, log_x: bool = False,
) -> Figure:
    """Points at (x, y) with their names beside them; for each panel, by its title, the y of each name.

    The names of the second of the `groups` stand below their points, others above.
    """
    parts, kinds = [], list(dict.fromkeys(groups.values()))
    coloured = colours(kinds)
    shape = {"ncols": len(panels), "squeeze": False}
    with canvas(max(6.5, 6 * len(panels)), 4.6, **shape) as (figure, grid):
        for axes, (heading, y) in zip(grid[0], panels.items(), strict=True):
            for k, kind in enumerate(kinds):
                names = [name for name in y if groups[name] == kind]
                places = [x[name] for name in names], [y[name] for name in names]
                axes.plot(*places, linestyle="", markersize=9, label=kind, **point_style(k, coloured[k]))
                place = {"xytext": (0, -9), "va": "top"} if k == 1 else {"xytext": (0, 9), "va": "bottom"}
                for name in names:
                    axes.annotate(name, (x[name], y[name]), **_BESIDE, **place)
            axes.set(xlabel=xlabel, title=heading)
            axes.margins(0.2)
            if log_x:
                low, high = min(x.values()) / 1.5, 1.5 * max(x.values())
                marks = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
                log_ticks(axes, [mark for mark in marks if low < mark < high])
            parts.append(f"{heading}: " + ", ".join(f"{name} {y[name]:.4g} at {x[name]:.3g}" for name in y))
        grid[0][0].set_ylabel(ylabel)
        grid[0][-1].legend(loc="lower right")
    return describe(figure, "", f"Points of {ylabel} against {xlabel}", parts)


def _stack(
    draw: Callable, places: Sequence[float], bars: Sequence[Mapping[str, float]], width: float,
    kinds: Sequence[str],
) -> np.ndarray:
    """Bars with their components end to end; returns where they end."""
    ends = np.zeros(len(bars))
    for k, kind in enumerate(kinds):
        if any(kind in bar for bar in bars):
            sizes = np.array([bar.get(kind, 0.0) for bar in bars])
            draw(places, sizes, width, ends, label=kind, **bar_style(k))
            ends = ends + sizes
    return ends


def memory_bars(rows: Mapping[str, Mapping[str, float]], *, limit: float, title: str = "") -> Figure:
    """Where memory goes: for each case a bar of its bytes by component, such as `Plan.memory`, end to end.

    Components of a `Plan` stand in an order of their own, others behind them. `limit`, in bytes, is a line.
    """
    cases = {name: {kind: size / 1e9 for kind, size in row.items()} for name, row in rows.items()}
    kinds = dict.fromkeys((*_COMPONENTS, *(kind for row in rows.values() for kind in row)))
    limit = limit / 1e9
    with canvas(9.6, 2.6 + 0.6 * len(rows)) as (figure, axes):
        ends = _stack(axes.barh, range(len(cases)), list(cases.values()), 0.6, kinds)
        most = max(*ends, limit)
        for place, end in enumerate(ends):
            axes.text(end + 0.01 * most, place, f"{end:.1f}", va="center", size=11)
        seen = [withStroke(linewidth=5, foreground="white")]  # over dark bars too
        axes.axvline(limit, color="black", linestyle="--", label="may be filled", path_effects=seen)
        axes.set_yticks(range(len(cases)), cases)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="GB on each device", ylabel="case", title=title, xlim=(0, 1.14 * most))
        figure.legend(loc="outside lower center", ncols=3)
    parts = [f"{name}: {end:.1f} ({_sizes(row, '.1f')})"
             for (name, row), end in zip(cases.items(), ends, strict=True)]
    return describe(figure, title, "Bars of memory in GB by component", [*parts, f"line at {limit:.1f}"])


def _sizes(row: Mapping[str, float], digits: str) -> str:
    return ", ".join(f"{kind} {size:{digits}}" for kind, size in row.items())


def push_picture(x: Tensor, curves: Mapping[str, Tensor], push: Tensor, *, title: str = "") -> Figure:
    """Distributions, (K,) by name, over points x (K,), and beside them the push (K,) on each logit."""
    coloured = colours(curves)
    with canvas(11, 4.2, heading=title, ncols=2) as (figure, (left, right)):
        for k, (name, values) in enumerate(curves.items()):
            left.plot(x, values, label=name, linestyle=LINES[k % 7], color=coloured[k])
        left.set(xlabel="x", ylabel="probability")
        left.legend()
        right.axhline(0, color="black", linewidth=1)
        right.fill_between(x, push, color="0.8")
        right.plot(x, push, color="black")
        right.set(xlabel="x", ylabel="push on the student's logit")
    parts = [f"{name}: {mean_and_width(x, values)}" for name, values in curves.items()]
    for way, most in (("up", push.argmax()), ("down", push.argmin())):
        parts.append(f"strongest push {way}: {push[most]:.2g} at {x[most]:.1f}")
    return describe(figure, title, "Curves of probability, and the push on each logit, against x", parts)


def mean_and_width(x: Tensor, probabilities: Tensor) -> str:
    """Mean and standard deviation over points x (K,), in words."""
    mean = (probabilities * x).sum()
    deviation = (probabilities * (x - mean) ** 2).sum().sqrt()
    return f"mean {mean:.1f}, standard deviation {deviation:.1f}"


def token_grid(batches: Mapping[str, Tensor]) -> Figure:
    """Batches (rows, length) of tokens as rows of coloured cells: 0 for padding, 1 prompt, 2 completion."""
    kinds = {"padding": "white", "prompt": "#9ecae1", "completion": "#08519c"}
    heights, longest = [len(b) for b in batches.values()], max(b.shape[1] for b in batches.values())
    parts = []
    shape = {"nrows": len(batches), "squeeze": False, "height_ratios": heights, "sharex": True}
    with canvas(9.6, 1.2 + 0.9 * len(batches) + 0.26 * sum(heights), **shape) as (figure, grid):
        for axes, (name, batch) in zip(grid[:, 0], batches.items(), strict=True):
            shares = {kind: 100 * (batch == k).double().mean() for k, kind in enumerate(kinds)}
            said = ", ".join(f"{share:.0f} % {kind}" for kind, share in shares.items())
            rows, length = batch.shape
            axes.grid(False)
            axes.imshow(batch.numpy(), cmap=mpl.colors.ListedColormap(list(kinds.values())), vmin=-0.5,
                        vmax=2.5, aspect="auto", interpolation="nearest")
            for edge in range(1, rows):
                axes.axhline(edge - 0.5, color="black", linewidth=1)
            axes.add_patch(mpl.patches.Rectangle((-0.5, -0.5), length, rows, fill=False, linewidth=1))
            axes.set(xlabel=" ", ylabel="row", title=f"{name}: {said}", yticks=[], xlim=(-0.5, longest - 0.5))
            parts.append(f"{name}: {rows} rows of {length} tokens, {said}")
        axes.set_xlabel("token")
        patches = [mpl.patches.Patch(facecolor=kinds[k], edgecolor="black", label=k) for k in kinds]
        figure.legend(handles=patches, loc="outside lower center", ncols=3)
    return describe(figure, "", "Rows of tokens by kind", parts)


def pictures(
    images: Tensor, captions: Sequence[str], *, columns: int, title: str = "", inches: float = 1.8
) -> Figure:
    """Pictures in rows, (N, 3, height, width) uint8 or float in [0, 1], each `inches` wide above a caption.

    In a caption "\\n" begins a new line; long lines are wrapped.
    """
    columns = min(columns, len(captions))
    rows = -(-len(captions) // columns)
    width = max(6, int(inches * 8.5))  # characters of 11 points in the width of a picture
    wrapped = [
        "\n".join(part for line in text.split("\n") for part in (textwrap.wrap(line, width) or [""]))
        for text in captions
    ]
    deepest = max(text.count("\n") + 1 for text in wrapped)
    size = max(5, inches * columns), rows * (inches + 0.08 + 0.2 * deepest) + 0.45 * bool(title)
    with canvas(*size, heading=title, nrows=rows, ncols=columns, squeeze=False) as (figure, grid):
        for axes in grid.flat[len(wrapped):]:
            axes.remove()
        for axes, image, text in zip(grid.flat[: len(images)], images.cpu(), wrapped, strict=True):
            # Nearest: a small picture is shown as the pixels that the network gets.
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_axis_off()
            axes.set(xticks=[], yticks=[])
            under = {"transform": axes.transAxes, "ha": "center", "va": "top"}
            axes.text(0.5, -0.03, text, size=11, linespacing=1.1, **under)
    parts = [" ".join(text.split()) for text in captions]
    return describe(figure, title, f"{len(parts)} pictures", parts)


def differences(
    tables: Mapping[str, Mapping[str, Mapping[str, float | str]]], *, xlabel: str, title: str = "",
    scale: float = 100.0,
) -> Figure:
    """Verdicts as points with their 95% intervals, a panel for each table; filled where they are conclusive.

    Each verdict has `difference`, `low`, `high`, multiplied by `scale`, and `verdict`; zero is a line. A long
    name is cut before what stands in brackets.
    """
    parts, most = [], max(len(table) for table in tables.values())
    digits = 1 if scale > 1 else 3
    size = {"ncols": len(tables), "squeeze": False, "sharex": True}
    wide = (6.2 if len(tables) < 3 else 4.6) * len(tables)
    with canvas(wide, 1.5 + 0.5 * most, heading=title, **size) as (figure, grid):
        for axes, (heading, table) in zip(grid[0], tables.items(), strict=True):
            coloured, words = colours(table), []
            for k, (name, found) in enumerate(table.items()):
                middle, low, high = (scale * found[end] for end in ("difference", "low", "high"))
                clear = found["verdict"] != "inconclusive"
                axes.plot([low, high], [k, k], color=coloured[k], marker="|", markersize=10)
                face = coloured[k] if clear else "white"
                axes.plot(middle, k, marker="o", markersize=10, color=coloured[k], markerfacecolor=face)
                ends = f"{middle:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
                words.append(f"{name} {ends}, {found['verdict']}")
            names = [
                "\n".join(line for part in (re.split(r" (?=\()", name) if len(name) > 24 else [name])
                          for line in textwrap.wrap(part, 24)) for name in table
            ]  # fmt: skip
            axes.axvline(0, color="black", linewidth=1.2)
            axes.set(xlabel=textwrap.fill(xlabel, 44), title=heading, ylim=(most - 0.4, -0.6))
            axes.set_yticks(range(len(table)))
            axes.set_yticklabels(names)
            axes.set_ylabel("comparison" if axes is grid[0][0] else "")
            parts.append(f"{heading}: " + ", ".join(words))
    return describe(figure, title, "Differences with 95% intervals; filled: conclusive", parts)


def block_bars(importance: Tensor, kept: Sequence[int], *, title: str = "") -> Figure:
    """How much each block of a model changes what goes through it, (layers,), and which of them are kept.

    The axis is logarithmic: the first and the last block change far more than the others.
    """
    values, chosen = importance.tolist(), set(kept)
    groups = {"kept": sorted(chosen), "dropped": [k for k in range(len(values)) if k not in chosen]}
    with canvas(9, 3.8) as (figure, axes):
        for k, (name, blocks) in enumerate(groups.items()):
            heights = [values[block] for block in blocks]
            axes.bar(blocks, heights, 0.8, label=name, **bar_style(k, ("", "#BBBBBB")[k]))
        axes.set(xlabel="block, from the input on", ylabel="change (1 − cosine)", yscale="log", title=title)
        axes.set_xticks(range(0, len(values), 5 if len(values) > 12 else 1))
        axes.legend(loc="upper center")
    parts = [
        f"{name}: " + (", ".join(f"{block} ({values[block]:.3f})" for block in blocks) or "none")
        for name, blocks in groups.items()
    ]
    return describe(figure, title, "Bars of how much each block changes its input", parts)
