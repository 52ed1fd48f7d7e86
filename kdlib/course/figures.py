"""What the figures of `kdlib.course.plots` are made of: one style, common parts, alt texts."""

import base64
import html
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from kdlib.course.words import as_drawn, font_style, tell

# Okabe and Ito 2008: told apart with every common form of colour blindness. In grey they are not, so
# that series also differ in marker and line, and bars in hatching.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "|||")
# One colour for one arm in the whole course. Arms of one family stand in one figure: these too are told
# apart with colour blindness, mostly by Okabe and Ito and by Tol's palettes.
ARMS = {
    "teacher": "#0072B2", "alone": "#6E6E6E", "distilled": "#D55E00", "smoothed": "#CC79A7",
    "pseudo-labels": "#56B4E9", "truth": "#000000",
    "answers": "#999933", "verified": "#332288", "unverified": "#EE6677", "shortest": "#33BBEE",
    "logits": "#882255", "on-policy": "#543005", "mixture": "#DDAA33",
}
_ARM = re.compile(rf"({'|'.join(ARMS)})(?=$|,| \()|(teacher|student)(?=$|[, ])")
STYLE = {
    "font.size": 13, "axes.titlesize": 14, "legend.fontsize": 12, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.alpha": 0.3, "lines.linewidth": 2.2, "savefig.dpi": 100,
}


def png(figure: Figure, **metadata: str) -> bytes:
    """The figure as PNG bytes, in the course's style; metadata is what the file is to say of itself."""
    with mpl.rc_context(STYLE | font_style()), io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", metadata=metadata)
        return buffer.getvalue()


def show(figure: Figure) -> None:
    """Display a figure in a notebook with its alt text, which is also its text for readers without images."""
    from IPython.display import display

    width, height = (int(inches * STYLE["savefig.dpi"]) for inches in figure.get_size_inches())
    alt = figure.get_label()
    picture = {"image/png": base64.b64encode(png(figure)).decode(), "text/plain": alt}
    details = {"image/png": {"alt": alt, "width": width, "height": height}}
    display(picture, raw=True, metadata=details)
    tell()


def image_tag(figure: Figure) -> str:
    """The figure as an HTML image with alt text."""
    source = f"data:image/png;base64,{base64.b64encode(png(figure)).decode()}"
    return f'<img alt="{html.escape(figure.get_label())}" style="max-width: 100%" src="{source}">'


def describe(figure: Figure, title: str, kind: str, parts: Sequence[str]) -> Figure:
    """The figure, its alt text as its label: title, kind of figure, then what the data say.

    Titles and the names of axes that kdlib knows in Chinese become so where figures are to speak it.
    """
    for axes in figure.axes:
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_text(as_drawn(text.get_text()))
    opening = f"{title}. {kind}" if title else kind
    figure.set_label(f"{opening}. {'; '.join(parts)}.")
    return figure


@contextmanager
def canvas(
    width: float, height: float, *, heading: str = "", layout: str = "constrained", **subplots
) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure under a heading, and its axes; what is drawn in the block has the course's style."""
    with mpl.rc_context(STYLE | font_style()):
        figure = Figure(figsize=(width, height), layout=layout)
        if heading:
            figure.suptitle(heading)
        yield figure, figure.subplots(**subplots)


def arm(name: str) -> str | None:
    """The arm that a series belongs to: "distilled" for "distilled, 300 labels", None for "T = 4".

    A "student" has the colour of "distilled".
    """
    found = _ARM.match(name)
    return found and (found[0] if found[0] in ARMS else "distilled")


def colours(names: Iterable[str]) -> list[str]:
    """One for each series of a figure: arms have their own, others take in turn what these leave."""
    known = [arm(name) for name in names]
    # Beside arms, colours of no arm come first.
    rest = sorted(COLOURS, key=lambda colour: colour in ARMS.values()) if any(known) else COLOURS
    taken = {ARMS[found] for found in known if found}
    rest = itertools.cycle([colour for colour in rest if colour not in taken])
    return [ARMS[found] if found else next(rest) for found in known]


def bar_style(k: int, colour: str = "") -> dict[str, object]:
    """Of the bars of series k."""
    hatch = HATCHES[k % 7] + ("oo" if k > 6 else "")
    return {"color": colour or COLOURS[k % 7], "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def point_style(k: int, colour: str = "") -> dict[str, object]:
    """Of the points of series k."""
    return {"color": colour or COLOURS[k % 7], "marker": MARKERS[k % 7]}


def name_ticks(axes: Axes, names: Sequence[object], room: float) -> float:
    """Names under the x-axis, cut behind commas or slanted where `room` inches for each do not suffice.

    Returns the inches that they reach further down than one line of text.
    """
    size = mpl.rcParams["font.size"]
    line = 1.2 * size / 72
    whole = [f"{name}" for name in names]
    for words in (whole, [name.replace(", ", ",\n") for name in whole]):
        longest = max(_inches(part, size) for name in words for part in name.split("\n"))
        if longest < 0.9 * room:
            axes.set_xticks(range(len(names)), words)
            return line * max(name.count("\n") for name in words)
    longest = max(_inches(name, size) for name in whole)
    angle = 35 if room * math.sin(math.radians(35)) > line else 90
    smaller = min(1, room / line)
    axes.set_xticks(
        range(len(names)), names, rotation=angle, size=size * smaller, rotation_mode="anchor",
        ha="right", va="center" if angle == 90 else "top",
    )
    return smaller * longest * math.sin(math.radians(angle))


def _inches(words: str, size: float) -> float:
    return TextPath((0, 0), words, size=size).get_extents().width / 72


def log_ticks(axes: Axes, marks: Sequence[float]) -> None:
    """Marks on a logarithmic x-axis as plain numbers: 2, 4, 8 where they lie, rather than 2 × 10⁰."""
    axes.set_xscale("log")
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
