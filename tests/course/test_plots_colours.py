"""One colour for one arm, told apart by everybody; series that differ without colour too."""

import itertools

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from kdlib.course import plots
from kdlib.course.figures import ARMS, COLOURS, arm
from kdlib.metrics import reliability_curve

RANDOM = np.random.default_rng(0)
PICTURES = torch.tensor(RANDOM.random((4, 1, 8, 8)), dtype=torch.float32)
CURVE = reliability_curve(torch.tensor(RANDOM.normal(size=(300, 5))), torch.arange(300) % 5)

# Machado, Oliveira and Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency", severity 1.0, on linear RGB.
SIGHT = {
    "full colour vision": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900],
    ],
}


def linear_rgb(colour) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB, D65, from linear sRGB (IEC 61966-2-1)."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
              [0.0193339, 0.1191920, 0.9503041]]
    xyz = to_xyz @ np.clip(linear, 0, 1) / (0.95047, 1, 1.08883)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_are_told_apart_with_colour_blindness(sight):
    """Two colours that lie 2.3 apart in Lab can just be told apart (Mahy et al. 1994); here 15 at least."""
    seen = [lab(np.array(SIGHT[sight]) @ linear_rgb(colour)) for colour in COLOURS]
    distances = {
        (a, b): np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(range(len(seen)), 2)
    }
    assert min(distances.values()) > 15, min(distances, key=distances.get)
    # The first two, which most figures get by with, are far apart.
    assert distances[0, 1] > 60


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("family", [
    ("teacher", "alone", "distilled", "smoothed", "pseudo-labels", "truth"),
    ("teacher", "answers", "verified", "unverified", "shortest", "logits", "on-policy"),
])
def test_arms_that_meet_in_a_figure_are_told_apart(sight, family):
    seen = [lab(np.array(SIGHT[sight]) @ linear_rgb(ARMS[name])) for name in family]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


def test_no_two_arms_share_a_colour():
    assert len({to_hex(colour) for colour in ARMS.values()}) == len(ARMS) == 13
    assert len(ARMS) == len({arm(name) for name in ARMS})


@pytest.mark.parametrize(("name", "wanted"), [
    ("distilled", "distilled"), ("distilled, 300", "distilled"), ("verified, live", "verified"),
    ("alone,\n300 labels", "alone"), ("unverified", "unverified"), ("on-policy (GKD)", "on-policy"),
    ("teacher p", "teacher"), ("student from −1", "distilled"), ("student", "distilled"),
    ("all logits", None), ("logits of all tokens", None), ("truthful", None), ("T = 4", None),
    ("alone in the world", None), ("not distilled", None), ("teacher's labels", None), ("students", None),
])
def test_variants_belong_to_their_arm(name, wanted):
    assert arm(name) == wanted


def colours_by_name(figure: Figure) -> dict[str, set[str]]:
    """What a legend, a tick or the title of its axes names, and in which colours it is drawn."""
    found: dict[str, set[str]] = {}
    for axes in figure.axes:
        ticks = [label.get_text() for label in axes.get_xticklabels()]
        for line in axes.get_lines():
            name, colour = line.get_label(), to_hex(line.get_color())
            if name.startswith("_") and line.get_alpha() == 0.6:  # the seeds of an arm
                name = ticks[round(float(np.mean(line.get_xdata())))]
            elif name.startswith("_") and line.get_alpha() == 0.25:  # the dots of a model
                name = axes.get_title()
            found.setdefault(name, set()).add(colour)
        for bars in axes.containers:
            if isinstance(bars, mpl.container.BarContainer):
                found.setdefault(bars.get_label(), set()).add(to_hex(bars[0].get_facecolor()))
            elif isinstance(bars, mpl.container.ErrorbarContainer):
                colour = bars.lines[2][0].get_color()[0]
                drawn = [line for line in axes.get_lines() if to_hex(line.get_color()) == to_hex(colour)]
                assert drawn or to_hex(colour) == "#000000"
    return found


def test_an_arm_has_its_colour_in_every_figure_whatever_its_place():
    names = [*ARMS, "verified, live", "T = 4", "student"]
    orders = names, names[::-1], names[5:] + names[:5]
    for order in orders:
        values = {name: [0.2, 0.8] for name in order}
        rows = {name: torch.tensor(row) for name, row in values.items()}
        curves = {"x": [1, 2], "xlabel": "x", "ylabel": "y"}
        figures = [
            plots.lines(series=values, half_widths={order[1]: [0.1, 0.1]}, **curves),
            plots.panels(groups={"one": {order[0]: [1, 2]}, "other": values}, **curves),
            plots.densities([1, 2], {"one": values}),
            plots.label_bars(values, ["cat", "dog"]),
            plots.digit_gallery(PICTURES[:1], [rows], ["a", "b"], ["x"]),
            plots.arms(values),
            plots.reliability(dict.fromkeys(order, CURVE)),
        ]
        for figure in figures:
            drawn = colours_by_name(figure)
            for name in order:
                if arm(name):
                    assert drawn[name] == {ARMS[arm(name)].lower()}, (name, drawn)


def test_other_names_take_colours_that_no_arm_of_the_figure_has():
    series = {"T = 1": [1, 2], "teacher": [1, 3], "T = 4": [2, 2]}
    figure = plots.lines([1, 2], series, xlabel="x", ylabel="y")
    first, teacher, second = (to_hex(line.get_color()) for line in figure.axes[0].get_lines())
    assert len({first, teacher, second}) == 3
    assert teacher == ARMS["teacher"].lower()
    shared = plots.panels(
        [1, 2], {"a": {"T = 1": [1, 2], "T = 4": [1, 2]}, "b": {"T = 4": [1, 2]}}, xlabel="x", ylabel="y"
    )
    assert colours_by_name(shared)["T = 4"] == {COLOURS[1].lower()}


def test_black_is_one_of_the_colours():
    assert to_hex("black") in [to_hex(colour) for colour in COLOURS]


def test_series_differ_without_colour():
    seven = [[1.0, 2.0 + k] for k in range(7)]
    figure = plots.lines([1, 2], {f"s{k}": v for k, v in enumerate(seven)}, xlabel="x", ylabel="y")
    drawn = figure.axes[0].get_lines()
    assert len({line.get_marker() for line in drawn}) == 7
    assert len({str(line._unscaled_dash_pattern) for line in drawn}) == 7
    assert len({line.get_color() for line in drawn}) == 7

    many = np.linspace(0, 1, 50)  # too many points for markers: the lines alone must do
    figure = plots.lines(many, {f"s{k}": many + k for k in range(7)}, xlabel="x", ylabel="y")
    assert len({str(line._unscaled_dash_pattern) for line in figure.axes[0].get_lines()}) == 7

    figure = plots.label_bars({f"s{k}": [0.4, 0.6] for k in range(7)}, ["cat", "dog"])
    assert len({bars[0].get_hatch() for bars in figure.axes[0].containers}) == 7

    figure = plots.arms({f"s{k}": [90.0 + k] for k in range(7)})
    assert len({line.get_marker() for line in figure.axes[0].get_lines()}) == 7

    figure = plots.reliability({f"s{k}": CURVE for k in range(7)})
    shown = [line for line in figure.axes[0].get_lines() if line.get_label() != "perfect"]
    assert len({line.get_marker() for line in shown}) == 7


def test_more_series_than_colours_are_no_error():
    eight = {f"s{k}": [0.4, 0.6] for k in range(8)}
    assert len(plots.label_bars(eight, ["cat", "dog"]).axes[0].containers) == 8
    assert len(plots.lines([1, 2], eight, xlabel="x", ylabel="y").axes[0].get_lines()) == 8
    assert len(plots.arms(eight).axes[0].containers) == 8
    assert len(plots.reliability({f"s{k}": CURVE for k in range(8)}).axes[0].get_lines()) == 9
