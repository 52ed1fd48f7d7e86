"""What the figures of `kdlib.course.plots` are made of: one style, common parts, alt texts."""

import base64
import html
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from torch import Tensor

# Okabe and Ito 2008: told apart with every common form of colour blindness. In grey they are not, so
# that series also differ in marker and line, and bars in hatching.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "|||")
STYLE = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 2.2,
    "legend.frameon": False,
    "legend.fontsize": 12,
    "savefig.dpi": 100,
}


# --- showing --------------------------------------------------------------------------------------


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes, in the course's style."""
    with mpl.rc_context(STYLE), io.BytesIO() as buffer:
        figure.savefig(buffer, format="png")
        return buffer.getvalue()


def show(figure: Figure) -> None:
    """Display a figure in a notebook with its alt text, which is also its text for readers without images."""
    from IPython.display import display

    width, height = (int(inches * STYLE["savefig.dpi"]) for inches in figure.get_size_inches())
    picture = {"image/png": base64.b64encode(png(figure)).decode(), "text/plain": alt_text(figure)}
    details = {"image/png": {"alt": alt_text(figure), "width": width, "height": height}}
    display(picture, raw=True, metadata=details)


def image_tag(figure: Figure) -> str:
    """The figure as an HTML image with alt text."""
    source = f"data:image/png;base64,{base64.b64encode(png(figure)).decode()}"
    return f'<img alt="{html.escape(alt_text(figure))}" style="max-width: 100%" src="{source}">'


def alt_text(figure: Figure) -> str:
    """What the figure shows, in words."""
    return figure.get_label()


# --- parts of figures -----------------------------------------------------------------------------


@contextmanager
def canvas(
    width: float, height: float, layout: str = "constrained", **subplots
) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure and its axes; what is drawn inside the block has the course's style."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=layout)
        yield figure, figure.subplots(**subplots)


def draw_bars(axes: Axes, rows: Mapping[str, Sequence[float] | Tensor], classes: Sequence[str]) -> float:
    """Bars beside bars; returns what `name_ticks` returns."""
    width = 0.8 / len(rows)
    for k, (name, values) in enumerate(rows.items()):
        place = np.arange(len(classes)) + (k - (len(rows) - 1) / 2) * width
        axes.bar(
            place, [float(v) for v in values], width, label=name, color=COLOURS[k % 7],
            hatch=HATCHES[k % 7], edgecolor="white", linewidth=0,
        )
    axes.grid(axis="x", visible=False)
    # Before the layout is known; it will hardly be narrower.
    inches = axes.get_position().width * axes.get_figure().get_figwidth()
    return name_ticks(axes, classes, inches / (1.1 * len(classes)))


def name_ticks(axes: Axes, names: Sequence[object], room: float) -> float:
    """Names under the x-axis; upright or slanted where they would run into one another.

    Args:
        room: inches for each name.

    Returns:
        Inches that the names reach further down than one line of text.
    """
    size = mpl.rcParams["font.size"]
    longest = max(TextPath((0, 0), f"{name}", size=size).get_extents().width / 72 for name in names)
    if longest < 0.9 * room:
        axes.set_xticks(range(len(names)), names)
        return 0.0
    line = 1.2 * size / 72
    angle = 35 if room * math.sin(math.radians(35)) > line else 90
    smaller = min(1, room / line)
    axes.set_xticks(
        range(len(names)), names, rotation=angle, size=size * smaller, rotation_mode="anchor",
        ha="right", va="center" if angle == 90 else "top",
    )
    return smaller * longest * math.sin(math.radians(angle))


def ink_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever is easier to read on a colour (R, G, B, …), each in [0, 1]."""
    # Relative luminance and contrast of WCAG 2.2; the two contrasts are equal at 0.179.
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return "black" if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.179 else "white"


def draw_curves(
    axes: Axes, x: Sequence[float] | Tensor, series: Mapping[str, Sequence[float] | Tensor]
) -> None:
    """Curves told apart by colour, line and, where there are few points, marker."""
    for k, (name, values) in enumerate(series.items()):
        axes.plot(
            [float(v) for v in x], [float(v) for v in values], label=name, color=COLOURS[k % 7],
            linestyle=LINES[k % 7], marker=MARKERS[k % 7] if len(x) <= 12 else None,
        )


def entropy_of(probabilities: Tensor) -> float:
    """Entropy of (C,) probabilities in nats."""
    return torch.special.entr(probabilities).sum().item()


def largest_in_words(values: Sequence[float] | Tensor, classes: Sequence[str], count: int = 3) -> str:
    """The largest entries in words."""
    values = torch.as_tensor(values)
    largest = values.argsort(descending=True, stable=True)[:count].tolist()
    return ", ".join(f"{classes[k]} {float(values[k]):.2f}" for k in largest)


def order_in_words(logits: Tensor, classes: Sequence[str], count: int = 5) -> str:
    """The classes from most to least probable. From the logits: probabilities can underflow to a tie."""
    order = logits.argsort(descending=True, stable=True).tolist()
    words = classes[order[0]]
    for before, after in itertools.pairwise(order[:count]):
        words += f" {'=' if logits[before] == logits[after] else '>'} {classes[after]}"
    return words + (" …" if len(order) > count else "")


def describe(figure: Figure, title: str, kind: str, parts: Sequence[str]) -> Figure:
    """The figure, with its alt text: title, kind of figure, then what the data say."""
    opening = f"{title}. {kind}" if title else kind
    figure.set_label(f"{opening}. {'; '.join(parts)}.")
    return figure
