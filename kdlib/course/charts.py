"""Figures of models, machines, batches and pictures. Part of `kdlib.course.plots`."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from kdlib.course.figures import COLOURS, HATCHES, MARKERS, canvas, describe, ink_on, name_ticks

__all__ = ["memory_bars", "named_points", "pictures", "stacked_groups", "token_grid", "truth_scatter"]

# Of plans: these have the same colour in all figures, and stand in this order.
_COMPONENTS = (
    "student weights", "gradients", "optimizer state", "teacher weights", "activations", "logits and loss",
    "bf16 copies of weights", "gathered weights", "gradient buckets", "KV cache",
)  # fmt: skip


def named_points(
    x: Mapping[str, float],
    panels: Mapping[str, Mapping[str, float]],
    *,
    groups: Mapping[str, str],
    xlabel: str,
    ylabel: str,
    title: str = "",
    log_x: bool = False,
) -> Figure:
    """Points with their names beside them, panel beside panel over one kind of x.

    Args:
        x: of each point, by name.
        panels: under each panel's title, y by name.
        groups: of each point, by name; names of the second group stand below their points, others above.
    """
    kinds = list(dict.fromkeys(groups.values()))
    parts = []
    shape = {"ncols": len(panels), "squeeze": False}
    with canvas(max(6.5, 6 * len(panels)), 4.6, **shape) as (figure, grid):
        for axes, (heading, y) in zip(grid[0], panels.items(), strict=True):
            for k, kind in enumerate(kinds):
                names = [name for name in y if groups[name] == kind]
                axes.plot(
                    [x[name] for name in names], [y[name] for name in names], MARKERS[k % 7],
                    color=COLOURS[k % 7], markersize=9, label=kind,
                )  # fmt: skip
                below = k == 1
                for name in names:
                    axes.annotate(
                        name, (x[name], y[name]), (0, -9 if below else 9), textcoords="offset points",
                        ha="center", va="top" if below else "bottom", size=11,
                    )  # fmt: skip
            axes.set(xlabel=xlabel, title=heading, xscale="log" if log_x else "linear")
            axes.margins(0.2)
            parts.append(f"{heading}: " + ", ".join(f"{name} {y[name]:.4g} at {x[name]:.3g}" for name in y))
        if log_x:
            low, high = min(x.values()), max(x.values())
            marks = [m for m in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if low / 1.5 < m < 1.5 * high]
            for axes in grid[0]:
                axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
                axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        grid[0][0].set_ylabel(ylabel)
        grid[0][-1].legend(loc="lower right")
        if title:
            figure.suptitle(title)
    return describe(figure, title, f"Points of {ylabel} against {xlabel}", parts)


def memory_bars(
    rows: Mapping[str, Mapping[str, float]], *, limit: float | None = None, title: str = ""
) -> Figure:
    """Where memory goes: for each case one bar, its components end to end.

    Components of a `Plan` stand in an order of their own, others after them as they are given.

    Args:
        rows: bytes by component, under the name of each case; `Plan.memory` is such a mapping.
        limit: bytes that there are, drawn as a line.
    """
    given = dict.fromkeys(kind for row in rows.values() for kind in row)
    others = [kind for kind in given if kind not in _COMPONENTS]
    names, parts = list(rows), []
    with canvas(9.6, 2.6 + 0.6 * len(rows)) as (figure, axes):
        ends = [0.0] * len(names)
        for k, kind in enumerate((*_COMPONENTS, *others)):
            if kind not in given:
                continue
            sizes = [rows[name].get(kind, 0) / 1e9 for name in names]
            axes.barh(
                range(len(names)), sizes, 0.6, ends, label=kind, color=COLOURS[k % 7],
                hatch=HATCHES[k % 7] + ("oo" if k > 6 else ""), edgecolor="white", linewidth=0,
            )  # fmt: skip
            ends = [end + size for end, size in zip(ends, sizes, strict=True)]
        most = max(*ends, (limit or 0) / 1e9)
        for place, end in enumerate(ends):
            axes.text(end + 0.01 * most, place, f"{end:.1f}", va="center", size=11)
        if limit is not None:
            seen = [withStroke(linewidth=5, foreground="white")]  # over dark bars too
            axes.axvline(limit / 1e9, color="black", linestyle="--", label="may be filled", path_effects=seen)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="GB on each device", ylabel="case", title=title, xlim=(0, 1.14 * most))
        figure.legend(loc="outside lower center", ncols=3)
    for name, end in zip(names, ends, strict=True):
        shown = ", ".join(f"{kind} {size / 1e9:.1f}" for kind, size in rows[name].items())
        parts.append(f"{name}: {end:.1f} ({shown})")
    if limit is not None:
        parts.append(f"line at {limit / 1e9:.1f}")
    return describe(figure, title, "Bars of memory in GB by component", parts)


def stacked_groups(
    groups: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
) -> Figure:
    """Bars side by side for each group, what each is made of one above the other.

    A component has one colour in all bars, so that what two bars share can be seen. In every group the bars
    stand in the order in which they are given; their sums stand above them.

    Args:
        groups: for each group, for each of its bars, the size of each component, by name.

    Raises:
        ValueError: if a group has no bars, or not as many as another.
    """
    counts = {name: len(bars) for name, bars in groups.items()}
    if not counts or min(counts.values()) < 1 or len(set(counts.values())) > 1:
        raise ValueError(f"groups must each have the same number of bars, at least one; got {counts}")
    count = min(counts.values())
    bars = [bar for group in groups.values() for bar in group.values()]
    places = np.array([
        group + (k - (count - 1) / 2) * 0.84 / count for group in range(len(groups)) for k in range(count)
    ])  # fmt: skip
    kinds = dict.fromkeys(kind for bar in bars for kind in bar)
    with canvas(9.6, 4.6) as (figure, axes):
        ends = np.zeros(len(bars))
        for k, kind in enumerate(kinds):
            sizes = np.array([bar.get(kind, 0.0) for bar in bars], dtype=float)
            axes.bar(
                places, sizes, 0.76 / count, ends, label=kind, color=COLOURS[k % 7], hatch=HATCHES[k % 7],
                edgecolor="white", linewidth=0,
            )  # fmt: skip
            ends += sizes
        for place, end in zip(places, ends, strict=True):
            axes.annotate(
                f"{end:.3g}", (place, end), (0, 3), textcoords="offset points", ha="center", va="bottom",
                size=11,
            )  # fmt: skip
        name_ticks(axes, list(groups), 9.6 / (1.2 * len(groups)))
        axes.grid(axis="x", visible=False)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title, ylim=(0, 1.12 * max(ends)))
        figure.legend(loc="outside lower center", ncols=3)
    parts = [
        f"{name}: " + ", ".join(
            f"{bar} {sum(sizes.values()):.3g}"
            + (f" ({', '.join(f'{kind} {size:.3g}' for kind, size in sizes.items())})" if sizes else "")
            for bar, sizes in group.items()
        )
        for name, group in groups.items()
    ]  # fmt: skip
    return describe(figure, title, f"Stacked bars of {ylabel} by {xlabel}", parts)


def token_grid(
    batches: Mapping[str, Tensor], *, kinds: Sequence[str] = ("padding", "prompt", "completion"),
    title: str = "",
) -> Figure:
    """Batches of tokens as rows of coloured cells, one below the other.

    Args:
        batches: (rows, length) whole numbers under the name of each batch; 0, 1, … are the kinds.
        kinds: their names, at most three.
    """
    shades = ("white", "#9ecae1", "#08519c")[: len(kinds)]
    heights = [len(batch) for batch in batches.values()]
    longest = max(batch.shape[1] for batch in batches.values())
    parts = []
    shape = {"nrows": len(batches), "squeeze": False, "height_ratios": heights, "sharex": True}
    with canvas(9.6, 1.2 + 0.9 * len(batches) + 0.26 * sum(heights), **shape) as (figure, grid):
        for axes, (name, batch) in zip(grid[:, 0], batches.items(), strict=True):
            batch = torch.as_tensor(batch)
            shares = [(batch == k).double().mean().item() for k in range(len(kinds))]
            said = ", ".join(f"{100 * share:.0f} % {kind}" for share, kind in zip(shares, kinds, strict=True))
            rows, length = batch.shape
            axes.grid(False)
            axes.imshow(
                batch.numpy(), cmap=mpl.colors.ListedColormap(shades), vmin=-0.5, vmax=len(kinds) - 0.5,
                aspect="auto", interpolation="nearest",
            )  # fmt: skip
            for edge in range(1, rows):
                axes.axhline(edge - 0.5, color=ink_on((1, 1, 1)), linewidth=1)
            axes.add_patch(mpl.patches.Rectangle((-0.5, -0.5), length, rows, fill=False, linewidth=1))
            axes.set(ylabel="row", title=f"{name}: {said}", yticks=[], xlim=(-0.5, longest - 0.5))
            parts.append(f"{name}: {rows} rows of {length} tokens, {said}")
        grid[-1, 0].set_xlabel("token")
        for axes in grid[:-1, 0]:
            axes.set_xlabel(" ")
        patches = [
            mpl.patches.Patch(facecolor=shade, edgecolor="black", label=kind)
            for shade, kind in zip(shades, kinds, strict=True)
        ]
        figure.legend(handles=patches, loc="outside lower center", ncols=len(kinds))
        if title:
            figure.suptitle(title)
    return describe(figure, title, "Rows of tokens by kind", parts)


def pictures(
    images: Tensor, captions: Sequence[str], *, columns: int = 6, title: str = "", inches: float = 1.8
) -> Figure:
    """Pictures in rows, each with a caption below.

    Args:
        images: (N, 3, height, width) uint8, or float in [0, 1].
        captions: N texts; "\\n" begins a new line, and long lines are wrapped.
        columns: pictures in a row.
        inches: width of one picture.

    Raises:
        ValueError: no picture, or another number of captions.
    """
    if len(images) != len(captions) or not len(captions):
        raise ValueError(f"expected one caption for each picture; got {len(captions)} for {len(images)}")
    columns = min(columns, len(captions))
    rows = -(-len(captions) // columns)
    width = max(6, int(inches * 8.5))  # characters of 11 points in the width of a picture
    wrapped = [
        "\n".join(part for line in text.split("\n") for part in (textwrap.wrap(line, width) or [""]))
        for text in captions
    ]
    deepest = max(text.count("\n") + 1 for text in wrapped)
    height = rows * (inches + 0.08 + 0.2 * deepest) + 0.45 * bool(title)
    with canvas(max(5, inches * columns), height, nrows=rows, ncols=columns, squeeze=False) as (figure, grid):
        for axes in grid.flat[len(wrapped):]:
            axes.remove()
        for axes, image, text in zip(grid.flat, images.cpu(), wrapped, strict=False):
            # Nearest: a small picture is shown as the pixels that the network gets.
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_axis_off()
            axes.set(xticks=[], yticks=[])
            axes.text(
                0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top", size=11, linespacing=1.1
            )
        if title:
            figure.suptitle(title)
    parts = [" ".join(text.split()) for text in captions]
    return describe(figure, title, f"{len(parts)} pictures", parts)


def truth_scatter(truth: Tensor, models: Mapping[str, Tensor], *, event: str, title: str = "") -> Figure:
    """What models say against the true probability, one panel a model; the line is perfect agreement.

    Args:
        truth: (N) true probabilities of the event.
        models: (N) probabilities of each model under its name.
        event: what the probabilities are of, for example "dog".
    """
    exact = torch.as_tensor(truth).double().cpu()
    parts = []
    size = {"ncols": len(models), "squeeze": False, "sharey": True}
    with canvas(max(5.5, 4.2 * len(models)), 4.6, **size) as (figure, grid):
        for k, (axes, (name, values)) in enumerate(zip(grid[0], models.items(), strict=True)):
            said = torch.as_tensor(values).double().cpu()
            axes.plot(exact, said, MARKERS[k % 7], color=COLOURS[k % 7], alpha=0.25, markersize=3.5)
            axes.plot([0, 1], [0, 1], color="black", linestyle=":")
            ticks = np.linspace(0, 1, 6)
            axes.set(xlabel=f"true P({event})", title=name, xticks=ticks, yticks=ticks)
            axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
            parts.append(f"{name}: mean distance {(said - exact).abs().mean():.2f}")
        grid[0][0].set_ylabel(f"model's P({event})")
        if title:
            figure.suptitle(title)
    kind = f"{len(exact)} dots a panel, the model's P({event}) against the true one"
    return describe(figure, title, kind, parts)
