"""Every figure can be read by everybody: in words, without colour, with long names, as a PNG."""

import base64
import html
import inspect
import io
import itertools
import math
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from kdlib.course import charts, plots, schematics
from kdlib.course.figures import STYLE, image_tag, png
from kdlib.metrics import reliability_curve

alt_text = Figure.get_label
DIGITS = [str(k) for k in range(10)]
LONG = [
    "container ship", "aeroplane", "automobile", "fire truck", "golden retriever", "horse", "sailing boat",
    "locomotive", "bird of prey", "deer",
]
RANDOM = np.random.default_rng(0)
TEACHER, STUDENT = (torch.tensor(2 * RANDOM.normal(size=10), dtype=torch.float32) for _ in range(2))
P = scipy.special.softmax(TEACHER.numpy())
PICTURES = torch.tensor(RANDOM.random((4, 1, 8, 8)), dtype=torch.float32)
MATRIX = torch.tensor(scipy.special.softmax(RANDOM.normal(size=(10, 10)), axis=1))
GRID = torch.tensor([[91.0, 93.4, 92.0], [95.6, 94.0, 90.1]])
RUNS = {"alone": [82.0, 84.5, 83.0], "distilled, T = 4, α = 0.1": [93.9, 94.6, 93.2], "one run": [90.0]}
BETTER = {"difference": 0.1, "low": 0.05, "high": 0.15, "verdict": "better"}
OPEN = {"difference": 0.01, "low": -0.02, "high": 0.04, "verdict": "inconclusive"}
POINTS = np.linspace(-6, 6, 121)
BELL = scipy.special.softmax(-0.5 * (POINTS - 1) ** 2)
CURVE = reliability_curve(torch.tensor(RANDOM.normal(size=(300, 5))), torch.arange(300) % 5)
FACES = torch.tensor(RANDOM.integers(0, 256, size=(7, 3, 16, 16)), dtype=torch.uint8)


def catalogue(classes: list[str]) -> dict[str, Figure]:
    """One figure of every kind."""
    two = {"T = 1": P, "T = 4": scipy.special.softmax(TEACHER.numpy() / 4)}
    tensors = {name: torch.tensor(values) for name, values in two.items()}
    captions = [f"picture {k}" for k in range(4)]
    series = {"alone": [80.0, 85.0, 90.0], "distilled": [90.0, 92.5, 93.0]}
    return {
        "label_bars": plots.label_bars(two, classes, title="Soft labels"),
        "digit_gallery": plots.digit_gallery(PICTURES, [tensors] * 4, classes, captions),
        "neighbours": plots.neighbours(MATRIX, classes, title="Who resembles whom"),
        "softened": plots.softened(TEACHER, 4.0, classes),
        "temperature_curves": plots.temperature_curves(TEACHER, torch.logspace(-1, 2, 31), classes),
        "lines": plots.lines([25, 50, 100], series, xlabel="pictures", ylabel="accuracy (%)", title="Lines"),
        "panels": plots.panels(
            [1, 2, 3], {"left": series, "right": series}, xlabel="epoch", ylabel="nats", title="Panels"
        ),
        "densities": plots.densities(POINTS, {"one bell": {"p": BELL, "q": BELL[::-1].copy()}}),
        "push_picture": plots.push_picture(
            torch.tensor(POINTS), {"teacher p": torch.tensor(BELL), "student q": torch.tensor(BELL).flip(0)},
            torch.tensor(BELL - BELL[::-1]), title="A bell and its reflection",
        ),
        "arms": plots.arms(RUNS, title="Three seeds"),
        "differences": plots.differences(
            {"few": {"distilled (against alone)": BETTER, classes[0]: OPEN}, "all": {"alone": OPEN}},
            xlabel="points", title="Verdicts",
        ),
        "heat_map": plots.heat_map(
            GRID, [0.1, 0.5], classes[:3], xlabel="T", ylabel="α", colour_label="accuracy (%)", title="Grid"
        ),
        "reliability": plots.reliability({"teacher": CURVE}, title="Calibration"),
        "loss_picture": plots.loss_picture(TEACHER, STUDENT, 3, classes, temperature=4.0, alpha=0.3),
        "pictures": plots.pictures(
            FACES, [f"{classes[k]}, truth 0.{k}1\nteacher 0.12" for k in range(7)], columns=4, title="Seven"
        ),
        "named_points": plots.named_points(
            {name: 2.0 * 5**k for k, name in enumerate(classes[:3])},
            {"left": dict(zip(classes[:3], (28.9, 50.0, 72.6), strict=True))},
            groups=dict(zip(classes[:3], ("Qwen", "Llama", "Qwen"), strict=True)),
            xlabel="parameters (billions)", ylabel="pass@1 (%)", log_x=True,
        ),
        "memory_bars": plots.memory_bars(
            {classes[k]: {f"part {j}": 1e9 * (j + k + 1) for j in range(8)} for k in range(2)},
            limit=40e9, title="Where memory goes",
        ),
        "token_grid": plots.token_grid(
            {classes[0]: torch.tensor([[1, 2, 2, 0, 0], [1, 1, 2, 2, 2]]),
             classes[1]: torch.tensor([[1, 2, 1, 2, 2]])}
        ),
        "teacher_student": schematics.teacher_student(),
        "soft_label": schematics.soft_label(PICTURES[0], torch.tensor(P)),
        "loss": schematics.loss(),
        "reasoning": schematics.reasoning(),
        "fused_loss": schematics.fused_loss(),
        "failures": schematics.failures(),
        "copies": schematics.copies(),
        "healing": schematics.healing(),
        "block_bars": plots.block_bars(torch.tensor(P), [0, 1, 4, 9], title="Which blocks stay"),
    }


KINDS = sorted(catalogue(DIGITS))


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return catalogue(DIGITS)


@pytest.fixture(scope="module")
def long_figures() -> dict[str, Figure]:
    return catalogue(LONG)


def numbers(text: str) -> list[float]:
    return [float(word) for word in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]\d+)?", text)]


# --- every figure -----------------------------------------------------------------------------------


def test_the_catalogue_holds_every_figure_of_the_module():
    """A figure added to plots or schematics is added above, and so comes under all tests of this section."""
    functions = inspect.getmembers(plots, inspect.isfunction)
    functions += inspect.getmembers(schematics, inspect.isfunction)
    makers = {
        name
        for name, function in functions
        if function.__module__ in (plots.__name__, charts.__name__, schematics.__name__)
        and not name.startswith("_")
        and inspect.signature(function).return_annotation is Figure
    }
    assert set(KINDS) == makers


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_has_an_alt_text_that_says_something(figures, kind):
    text = alt_text(figures[kind])
    assert len(text) >= 20
    assert numbers(text)
    assert text.endswith(".") and not text.endswith("..")
    assert "nan" not in text and "tensor" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_every_axis_has_a_label(figures, kind):
    for axes in figures[kind].axes:
        if axes.get_images() and not axes.get_xticks().size:
            continue  # a picture
        if not axes.axison:
            continue  # a schematic
        shares_y = axes.get_subplotspec() and not axes.get_subplotspec().is_first_col()
        assert axes.get_xlabel() or axes.get_label() == "<colorbar>"
        assert axes.get_ylabel() or shares_y


def test_making_and_drawing_figures_leaves_no_global_state():
    before = dict(mpl.rcParams)
    for figure in catalogue(DIGITS).values():
        png(figure)
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_figures_look_the_same_whatever_style_the_reader_has_set():
    wanted = png(plots.label_bars({"p": [0.3, 0.7]}, ["cat", "dog"]))
    with mpl.rc_context({"font.size": 5, "axes.grid": False, "savefig.dpi": 50, "lines.linewidth": 9}):
        assert png(plots.label_bars({"p": [0.3, 0.7]}, ["cat", "dog"])) == wanted


def drawn_text(figure: Figure) -> tuple[list[Text], list[list[Text]]]:
    """All text that a drawn figure shows: free-standing, and the tick labels by axis."""
    free, ticks = [*figure.texts], []
    for owner in (figure.legends, *([axes.get_legend()] for axes in figure.axes)):
        free += [text for shown in owner if shown for text in shown.get_texts()]
    for axes in figure.axes:
        if not axes.axison:
            free += axes.texts
            continue
        free += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_ticklabels()  # brings the ticks up to date
            low, high = sorted(axis.get_view_interval())
            shown = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            labels = [label for tick in shown for label in (tick.label1, tick.label2)]
            ticks.append([label for label in labels if label.get_visible() and label.get_text()])
    return [text for text in free if text.get_text().strip()], [group for group in ticks if group]


def draw(figure: Figure) -> None:
    with mpl.rc_context(STYLE):
        FigureCanvasAgg(figure).draw()


def touch(one: Text, other: Text) -> bool:
    """Do two pieces of text overlap? Slanted neighbours of one height are compared along the slant."""
    if one.get_rotation() == other.get_rotation() and one.get_rotation() % 90:
        slant = math.radians(one.get_rotation())
        figure = one.get_figure()
        distance = abs(one.get_transform().transform((other.get_position()[0], 0))[0]
                       - one.get_transform().transform((one.get_position()[0], 0))[0])
        return distance * math.sin(slant) < one.get_fontsize() * figure.dpi / 72
    a, b = one.get_window_extent(), other.get_window_extent()
    across = min(a.x1, b.x1) - max(a.x0, b.x0)
    down = min(a.y1, b.y1) - max(a.y0, b.y0)
    return across > 1 and down > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["figures", "long_figures"])
def test_no_text_is_cut_off_or_runs_into_other_text(request, names, kind):
    figure = request.getfixturevalue(names)[kind]
    draw(figure)
    free, ticks = drawn_text(figure)
    assert len(free) + sum(map(len, ticks)) >= 5
    for text in itertools.chain(free, *ticks):
        box = text.get_window_extent()
        assert box.x0 > -1 and box.y0 > -1, text
        assert box.x1 < figure.bbox.x1 + 1 and box.y1 < figure.bbox.y1 + 1, text
    for group in (*ticks, free):
        for one, other in itertools.combinations(group, 2):
            assert not touch(one, other), (one, other)
    upright = [label for group in ticks for label in group if not label.get_rotation() % 90]
    for one, other in itertools.product(free, upright):
        assert not touch(one, other), (one, other)


def test_short_class_names_stand_upright_and_long_ones_are_shown_in_full(figures, long_figures):
    def labels(collection):
        return collection["label_bars"].axes[0].get_xticklabels()

    assert {label.get_rotation() for label in labels(figures)} == {0}
    assert {label.get_rotation() for label in labels(long_figures)} != {0}
    assert [label.get_text() for label in labels(long_figures)] == LONG


# --- showing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_png_is_a_picture_of_a_hundred_pixels_to_the_inch(figures, kind):
    data = png(figures[kind])
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    rows, columns, _ = imread(io.BytesIO(data)).shape
    width, height = figures[kind].get_size_inches()
    assert abs(columns - 100 * width) <= 1
    assert abs(rows - 100 * height) <= 1


def test_alt_text_is_escaped_in_html():
    figure = plots.label_bars({"a": [0.25, 0.75]}, ["<b>", 'say "cheese"'], title="p < q & q > r, 'so'")
    tag = image_tag(figure)
    inside = re.fullmatch(r'<img alt="([^"]*)" style="[^"]*" src="data:image/png;base64,([^"]*)">', tag)
    assert html.unescape(inside[1]) == alt_text(figure)
    assert not set(inside[1]) & set("<>\"'")
    assert re.findall("&(?!amp;|lt;|gt;|quot;|#x27;)", inside[1]) == []
    assert base64.b64decode(inside[2]) == png(figure)


@pytest.fixture
def ipython():
    """`display` prints instead of displaying unless there is a shell."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    assert not InteractiveShell.initialized()
    InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    yield
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("kind", ["label_bars", "digit_gallery", "heat_map"])
def test_show_displays_the_picture_and_its_alt_text(ipython, figures, kind):
    from IPython.utils.capture import capture_output

    figure = figures[kind]
    with capture_output() as captured:
        assert plots.show(figure) is None
    (output,) = captured.outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert output.data["text/plain"] == alt_text(figure)
    picture = base64.b64decode(output.data["image/png"])
    assert picture == png(figure)
    rows, columns, _ = imread(io.BytesIO(picture)).shape
    details = output.metadata["image/png"]
    assert details == {"alt": alt_text(figure), "width": columns, "height": rows}
    assert captured.stdout == captured.stderr == ""


# --- numbers and pictures ------------------------------------------------------------------------------


def luminance(colour) -> float:
    """Relative luminance of WCAG 2.2."""
    rgb = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("kind", ["neighbours", "heat_map"])
def test_numbers_in_coloured_cells_can_be_read(figures, kind):
    """Contrast of at least 4.5 to 1, as WCAG 2.2 asks of text."""
    axes = figures[kind].axes[0]
    (shown,) = axes.get_images()
    assert axes.texts
    for text in axes.texts:
        column, row = text.get_position()
        cell = shown.to_rgba(shown.get_array()[row, column])
        bright = sorted(luminance(colour) for colour in (cell, text.get_color()))
        assert (bright[1] + 0.05) / (bright[0] + 0.05) >= 4.5, text


def test_pictures_are_shown_as_they_are():
    figure = plots.pictures(FACES, ["a"] * 7, columns=4)
    shown = [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()]
    assert len(shown) == len(figure.axes) == 7
    for pixels, face in zip(shown, FACES, strict=True):
        assert np.array_equal(pixels, face.numpy().transpose(1, 2, 0))
    assert all(axes.get_images()[0].get_interpolation() == "nearest" for axes in figure.axes[:7])
    with pytest.raises(ValueError, match="zip"):
        plots.pictures(FACES, ["a", "b"], columns=6)


def test_verdicts_show_their_interval_and_are_filled_where_conclusive():
    figure = plots.differences({"few": {"distilled": BETTER, "alone": OPEN}}, xlabel="points")
    first, point, second, hollow, zero = figure.axes[0].get_lines()
    assert np.allclose(first.get_xdata(), [5, 15]) and np.allclose(second.get_xdata(), [-2, 4])
    assert np.allclose([*point.get_xdata(), *hollow.get_xdata()], [10, 1])
    assert hollow.get_markerfacecolor() == "white" != point.get_markerfacecolor()
    assert np.array_equal(zero.get_xdata(), [0, 0])
    assert "distilled +10.0 [+5.0, +15.0], better" in alt_text(figure)
    assert "alone +1.0 [-2.0, +4.0], inconclusive" in alt_text(figure)


def test_verdicts_in_nats_have_the_digits_they_need_and_long_names_break_before_their_brackets():
    name = "pseudo-labels (against alone)"
    figure = plots.differences({"few": {name: BETTER, "alone (against x)": OPEN}}, xlabel="nats", scale=1)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["pseudo-labels\n(against alone)", "alone (against x)"]
    assert "alone (against x) +0.010 [-0.020, +0.040], inconclusive" in alt_text(figure)


def test_names_of_arms_are_cut_behind_commas_before_they_are_slanted():
    names = "alone, 300 labels", "pseudo-labels, 300 labels", "distilled, all", "distilled, fine-tuned"
    rows = {name: [80.0] for name in names}
    labels = plots.arms(rows).axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == [name.replace(", ", ",\n") for name in rows]
    assert {label.get_rotation() for label in labels} == {0}
