"""Pictures side by side: what a data set, a teacher or an augmentation looks like."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from kdlib.course.canvas import COLOURS, MARKERS, canvas, describe

__all__ = ["pictures", "truth_scatter"]


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
