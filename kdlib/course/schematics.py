"""Schematics of the course: what flows where. Boxes and arrows in one style, with alt texts of their own.

Blue is the teacher's and vermilion the student's, as in all figures; data are grey, losses green.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path
from torch import Tensor

from kdlib.course.figures import ARMS, COLOURS, canvas, describe
from kdlib.course.words import as_drawn, strong
from kdlib.losses.kd import soften

__all__ = [
    "copies", "failures", "fused_loss", "healing", "loss", "reasoning", "soft_label", "teacher_student",
]

_EDGES = {"teacher": ARMS["teacher"], "student": ARMS["distilled"], "data": "#6E6E6E", "loss": COLOURS[2]}
_SIDES = {"l": (-1, 0), "r": (1, 0), "t": (0, 1), "b": (0, -1)}


class _Box(NamedTuple):
    name: str
    x: float  # of the middle, in inches
    y: float
    half_width: float
    half_height: float

    def side(self, side: str) -> tuple[float, float, int, int]:
        """Where an arrow starts or ends, and the direction away from the box."""
        dx, dy = _SIDES[side]
        return self.x + dx * (self.half_width + 0.02), self.y + dy * (self.half_height + 0.02), dx, dy


class _Drawing:
    """Boxes and arrows on axes of one inch a unit."""

    def __init__(self, axes: Axes) -> None:
        width, height = axes.get_figure().get_size_inches()
        axes.set(xlim=(0, width), ylim=(0, height), position=(0, 0, 1, 1), autoscale_on=False)
        axes.set_axis_off()
        self.axes, self.boxes, self.arrows = axes, [], []

    def box(self, name: str, x: float, y: float, width: float = 1.5, kind: str = "data") -> _Box:
        """Round (x, y), with its name inside; the two models are bold."""
        bold, height = name.startswith(("teacher", "student", "loss")), 0.26 + 0.24 * (name.count("\n") + 1)
        self.axes.add_patch(FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=_tint(kind, 0.14), edgecolor=_EDGES[kind], linewidth=3 if bold else 1.8,
        ))
        self.note(x, y, name, size=13, weight=strong() if bold else "normal")
        self.boxes.append(_Box(as_drawn(name), x, y, width / 2, height / 2))
        return self.boxes[-1]

    def matrix(
        self, name: str, x: float, y: float, width: float, height: float, kind: str, *, rows: int = 1,
        filled: int | None = None, alone: bool = False,
    ) -> _Box:
        """A matrix round (x, y), cut in rows of which one is filled; `alone` if the others do not exist."""
        tall = height / rows
        for row in range(rows):
            there, strength = not alone or row == filled, 0.55 if row == filled else 0.14
            self.axes.add_patch(Rectangle(
                (x - width / 2, y + height / 2 - (row + 1) * tall), width, tall, edgecolor=_EDGES[kind],
                facecolor=_tint(kind, strength) if there else "white", linewidth=1.6 if there else 0.9,
                linestyle="-" if there else (0, (3, 3)), zorder=2 + there,
            ))
        self.boxes.append(_Box(as_drawn(name), x, y, width / 2, height / 2))
        return self.boxes[-1]

    def bars(self, x: float, y: float, values: Sequence[float], kind: str) -> None:
        """Small bars, half an inch for 1, side by side on a line whose middle is (x, y)."""
        places = [x + 0.15 * (k - (len(values) - 1) / 2) for k in range(len(values))]
        self.axes.bar(places, [0.5 * value for value in values], 0.11, y, color=_EDGES[kind])
        reach = 0.075 * len(values) + 0.06
        self.axes.plot([x - reach, x + reach], [y, y], color="#444444", linewidth=1.2)

    def note(self, x: float, y: float, words: str, **look) -> None:
        """Words without a box."""
        look = {"ha": "center", "va": "center", "color": "#1A1A1A", "size": 11.5, "linespacing": 1.15} | look
        self.axes.text(x, y, as_drawn(words), **look)

    def arrow(
        self, start: _Box, end: _Box, words: str = "", *, sides: str = "rl", kind: str = "",
        into: float = 0, at: tuple[float, float] = (0, 0.16), depth: float | None = None,
    ) -> None:
        """From a side of one box to a side of another: left, right, top or bottom.

        It ends `into` inches beside the middle of that side and leaves a box by `depth` inches before it
        turns; its words stand `at` inches from the middle between its ends.
        """
        (x, y, dx, dy), (u, v, du, dv) = start.side(sides[0]), end.side(sides[1])
        u, v = u + into * abs(dv), v + into * abs(du)
        reach = 0.5 * max(abs(u - x), abs(v - y)) if depth is None else depth
        curve = [(x, y), (x + reach * dx, y + reach * dy), (u + reach * du, v + reach * dv), (u, v)]
        self.axes.add_patch(FancyArrowPatch(
            path=Path(curve, [Path.MOVETO, *3 * [Path.CURVE4]]), arrowstyle="-|>", mutation_scale=17,
            linewidth=2.2, color=_EDGES[kind] if kind else "#444444", shrinkA=0, shrinkB=0, zorder=4,
        ))
        if words:
            self.note((x + u) / 2 + at[0], (y + v) / 2 + at[1], words)
        said = as_drawn("{start} to {end}").format(start=start.name, end=end.name)
        said += f" ({as_drawn(words)})" * bool(words)
        self.arrows.append(" ".join(said.split()))


def _tint(kind: str, strength: float) -> list[float]:
    return [1 - strength * (1 - part) for part in to_rgb(_EDGES[kind])]


@contextmanager
def _drawing(width: float, height: float) -> Iterator[_Drawing]:
    with canvas(width, height, layout="none") as (_, axes):
        yield _Drawing(axes)


def _finished(drawing: _Drawing, title: str) -> Figure:
    kind = as_drawn("Schematic of {boxes} boxes and {arrows} arrows")
    kind = kind.format(boxes=len(drawing.boxes), arrows=len(drawing.arrows))
    return describe(drawing.axes.get_figure(), as_drawn(title), kind, drawing.arrows)


def teacher_student() -> Figure:
    """Where a student's two targets come from: soft labels from a teacher, hard ones from people."""
    with _drawing(9.2, 3.4) as d:
        pictures = d.box("pictures", 0.95, 1.7, 1.4)
        teacher = d.box("teacher", 3.2, 2.9, kind="teacher")
        soft = d.box("soft labels", 5.7, 2.9, kind="teacher")
        people, hard = d.box("people", 3.2, 0.5), d.box("hard labels", 5.7, 0.5)
        student = d.box("student", 8.1, 1.7, kind="student")
        d.arrow(pictures, teacher, sides="tl", kind="teacher")
        d.arrow(teacher, soft, kind="teacher")
        d.arrow(soft, student, "weight 1 − α", sides="rt", kind="teacher", at=(0.55, 0.72))
        d.arrow(pictures, student, "the same pictures", at=(-1.35, 0.16))
        d.arrow(pictures, people, sides="bl")
        d.arrow(people, hard)
        d.arrow(hard, student, "weight α", sides="rb", at=(0.55, -0.72))
        d.bars(5.7, 2.06, (0.02, 0.1, 0.03, 0.3, 0.02, 0.05, 0.02, 0.03, 0.9, 0.2), "teacher")
        d.bars(5.7, 0.86, (0, 0, 0, 0, 0, 0, 0, 0, 1, 0), "data")
        d.note(3.2, 2.44, "large, trained before")
        d.note(3.2, 0.96, "name one class")
    return _finished(d, "Teacher and student")


def soft_label(image: Tensor | None = None, probabilities: Tensor | None = None) -> Figure:
    """From a picture (1, height, width) in [0, 1] to its soft label (C,); without them, an example."""
    if probabilities is None:
        probabilities = soften(torch.tensor([2.0, -1, 0, 3, -3, 1, -2, -1, 9, 4]), 4.0)
    with _drawing(9.6, 2.1) as d:
        if image is None:
            picture = d.box("picture", 0.95, 1, 1.3)
        else:
            picture = d.matrix("picture", 0.95, 1, 1.5, 1.5, "data")
            place = {"extent": (0.2, 1.7, 0.25, 1.75), "aspect": "auto", "zorder": 3}
            d.axes.imshow(image[0].numpy(force=True), cmap="gray_r", vmin=0, vmax=1, **place)
        teacher = d.box("teacher", 2.85, 1, 1.3, "teacher")
        logits = d.box("logits z", 4.6, 1, 1.15, "teacher")
        divided = d.box("z / T", 6.15, 1, 0.95, "teacher")
        label = d.box("soft label p", 8.55, 1, 1.7, "teacher")
        d.arrow(picture, teacher)
        d.arrow(teacher, logits, kind="teacher")
        d.arrow(logits, divided, kind="teacher")
        d.arrow(divided, label, "softmax", kind="teacher")
        d.note(4.6, 0.5, "any numbers")
        d.note(6.15, 0.5, "T > 1 flattens")
        d.note(8.55, 0.5, "positive, with sum 1")
        d.bars(8.55, 1.36, probabilities.tolist(), "teacher")
    return _finished(d, "From a picture to a soft label")


def loss() -> Figure:
    """The distillation loss: two terms, each at a temperature of its own, and their weights."""
    with _drawing(9.6, 3.5) as d:
        z_teacher = d.box("teacher's logits", 1.1, 3.1, 1.8, "teacher")
        z_student = d.box("student's logits", 1.1, 1.75, 1.8, "student")
        y = d.box("label y", 1.1, 0.4, 1.8)
        p = d.box("p at T", 4, 3.1, 1.2, "teacher")
        q = d.box("q at T", 4, 2.3, 1.2, "student")
        q_1 = d.box("q at T = 1", 4, 1.2, 1.35, "student")
        kl, ce = d.box("KL(p ‖ q)", 6.1, 2.7, 1.3, "loss"), d.box("CE(y, q)", 6.1, 0.8, 1.3, "loss")
        total = d.box("loss L", 8.8, 1.75, 1.2, "loss")
        d.arrow(z_teacher, p, "softmax(z / T)", kind="teacher")
        d.arrow(z_student, q, "softmax(z / T)", kind="student", at=(-0.5, 0.3))
        d.arrow(z_student, q_1, "softmax(z)", kind="student", at=(-0.45, -0.3))
        d.arrow(p, kl, kind="teacher", into=0.1)
        d.arrow(q, kl, kind="student", into=-0.1)
        d.arrow(q_1, ce, kind="student", into=0.1)
        d.arrow(y, ce, into=-0.1)
        d.arrow(kl, total, "× (1 − α) · T²", sides="rt", kind="loss", at=(-0.1, 0.63))
        d.arrow(ce, total, "× α", sides="rb", kind="loss", at=(-0.1, -0.63))
    return _finished(d, "The distillation loss")


def reasoning() -> Figure:
    """Three ways to teach a language model: verified traces, logits, and the student's own texts judged."""
    x = 0.95, 2.9, 4.9, 6.95, 8.85
    with _drawing(9.8, 5.6) as d:
        def row(y: float, heading: str, *boxes: tuple[str, str]) -> list[_Box]:
            d.note(0.2, y + 0.62, heading, ha="left", size=13, weight=strong())
            return [d.box(name, place, y, 1.55, kind) for place, (name, kind) in zip(x, boxes, strict=True)]

        problems, teacher, traces, verifier, student = row(
            4.65, "1. Traces: the student imitates the texts that a verifier passes", ("problems", "data"),
            ("teacher", "teacher"), ("traces", "teacher"), ("verifier", "data"), ("student", "student"))
        d.arrow(problems, teacher)
        d.arrow(teacher, traces, kind="teacher")
        d.arrow(traces, verifier, kind="teacher")
        d.arrow(verifier, student, kind="teacher")
        d.note(x[3], 4.14, "wrong answers are dropped")
        texts, teacher, p, kl, student = row(
            2.95, "2. Logits: for each token of a given text, the teacher's probabilities",
            ("texts", "data"), ("teacher", "teacher"), ("p, each token", "teacher"), ("KL(p ‖ q)", "loss"),
            ("student", "student"))
        d.arrow(texts, teacher)
        d.arrow(teacher, p, kind="teacher")
        d.arrow(p, kl, kind="teacher")
        d.arrow(student, kl, "q", sides="lr", kind="student")
        d.arrow(texts, student, "the same texts", sides="bb", depth=0.62, at=(0, -0.28))
        problems, student, texts, teacher, kl = row(
            1.05, "3. On-policy: the student writes, the teacher judges each token of it",
            ("problems", "data"), ("student", "student"), ("own texts", "student"),
            ("teacher", "teacher"), ("KL(q ‖ p)", "loss"))
        d.arrow(problems, student)
        d.arrow(student, texts, kind="student")
        d.arrow(texts, teacher, kind="student")
        d.arrow(teacher, kl, "p", kind="teacher")
        d.arrow(student, kl, "q for the same tokens", sides="bb", kind="student", depth=0.62, at=(0, -0.28))
    return _finished(d, "Reasoning distillation")


def fused_loss() -> Figure:
    """The fused loss: of all the logits, (N, V), only those of one chunk of tokens exist at a time."""
    with _drawing(9.8, 4.6) as d:
        chunk = {"rows": 5, "filled": 2}
        loss = d.box("loss of\nthis chunk", 6.9, 2.3, 1.35, "loss")
        for y, who, into in ((3.4, "teacher", 0.12), (1.2, "student", -0.12)):
            hidden = d.matrix(f"{who}'s hidden states, N × H", 0.75, y, 0.7, 1.4, who, **chunk)
            head = d.matrix(f"{who}'s head, H × V", 2.55, y, 1.75, 0.62, who)
            logits = d.matrix(f"{who}'s logits of one chunk", 4.95, y, 1.75, 1.4, who, alone=True, **chunk)
            d.arrow(hidden, head, "×", kind=who)
            d.arrow(head, logits, "=", kind=who)
            d.arrow(logits, loss, sides="rt" if into > 0 else "rb", kind=who)
            d.note(0.75, y - 0.88, "hidden, N × H")
            d.note(2.55, y, f"{who}'s head\nH × V")
            d.note(4.95, y - 0.88, "N × V: never there at once")
            d.note(4.95, y, "one chunk")
        gradients = d.box("gradients of\nhead, summed,\nand of hidden", 8.85, 2.3, 1.55, "student")
        d.arrow(loss, gradients, kind="student")
        d.note(8.85, 1.55, "then the next chunk")
    return _finished(d, "The fused loss")


def healing() -> Figure:
    """A student cut out of its teacher, and healed: the same text, two distributions of the next token."""
    with _drawing(9.6, 4.2) as d:
        text, rows = d.box("text so far", 0.95, 2.1, 1.4), {}
        for who, y, named in (("teacher", 3.3, "p, next token"), ("student", 0.9, "q, next token")):
            rows[who] = d.box(f"{who}'s blocks", 4, y, 3.3, who), d.box(named, 6.95, y, 1.6, who)
            for k in range(10):
                there = who == "teacher" or k not in (3, 4, 7)
                edge = _EDGES[who if there else "data"]
                d.axes.add_patch(Rectangle(
                    (2.49 + 0.31 * k, y - 0.17 + (0.56 if y > 2 else -0.56)), 0.22, 0.34, edgecolor=edge,
                    facecolor=_tint(who, 0.55) if there else "white", linewidth=1.6 if there else 0.9,
                    linestyle="-" if there else (0, (3, 3)),
                ))
        loss = d.box("KL(p ‖ q)", 8.6, 2.1, 1.3, "loss")
        d.arrow(text, rows["teacher"][0], sides="tl", kind="teacher")
        d.arrow(text, rows["student"][0], sides="bl", kind="student")
        d.arrow(rows["teacher"][0], rows["student"][0], "20 of 30 are copied", sides="bt", at=(1.0, 0))
        for who, side in (("teacher", "rt"), ("student", "rb")):
            d.arrow(*rows[who], kind=who)
            d.arrow(rows[who][1], loss, sides=side, kind=who)
    return _finished(d, "A student of its teacher's blocks, healed")


def failures() -> Figure:
    """Where distillation can fail: pictures, teacher, soft labels, student; and the control."""
    with _drawing(9.6, 2.4) as d:
        x = 1, 3.4, 5.8, 8.4
        pictures = d.box("pictures", x[0], 1.55, 1.4)
        teacher = d.box("teacher", x[1], 1.55, 1.4, "teacher")
        soft, hard = d.box("soft labels", x[2], 1.55, 1.5, "teacher"), d.box("hard labels", x[2], 0.45, 1.5)
        student = d.box("student", x[3], 1.55, 1.4, "student")
        d.arrow(pictures, teacher)
        d.arrow(teacher, soft, kind="teacher")
        d.arrow(soft, student, kind="teacher")
        d.arrow(pictures, hard, "the same pictures", sides="bl", at=(0.3, -0.08))
        d.arrow(hard, student, "the control", sides="rb", at=(-0.35, -0.12))
        doubts = "of the wrong kind?", "wrong?", "too sure?", "goes its own way?"
        for place, words in zip(x, doubts, strict=True):
            d.note(place, 2.12, words, weight=strong(), color=COLOURS[1])
    return _finished(d, "Where distillation can fail")


def copies() -> Figure:
    """What a student can copy: maps of a layer, the vectors of a batch, logits; and the loss of each."""
    with _drawing(9.6, 3.5) as d:
        pictures, rows = d.box("pictures", 0.9, 1.75, 1.3), []
        for y, who, side in ((3.0, "teacher", "t"), (0.5, "student", "b")):
            start, parts = pictures, ("maps", "vectors", "logits")
            places = zip((3.2, 5.8, 8.4), parts, strict=True)
            rows.append([d.box(f"{who}'s {part}", x, y, 2.05, who) for x, part in places])
            for box, sides in zip(rows[-1], (f"{side}l", "rl", "rl"), strict=True):
                d.arrow(start, box, sides=sides, kind=who)
                start = box
        losses = "hint, attention", "RKD", "KD, DKD"
        for above, below, words in zip(*rows, losses, strict=True):
            loss = d.box(words, above.x, 1.75, 1.75, "loss")
            d.arrow(above, loss, sides="bt", kind="teacher")
            d.arrow(below, loss, sides="tb", kind="student")
    return _finished(d, "What a student can copy")
