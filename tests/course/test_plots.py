"""Each figure shows the data it is given, and says so in words."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from kdlib.course import plots
from kdlib.course.figures import ARMS, COLOURS, MARKERS, png
from kdlib.losses.kd import kd_loss, soft_target_loss
from kdlib.metrics import ReliabilityCurve, Scores, bounded_interval, reliability_curve

alt_text = Figure.get_label
DIGITS = [str(k) for k in range(10)]
RANDOM = np.random.default_rng(0)
TEACHER, STUDENT = (torch.tensor(2 * RANDOM.normal(size=10), dtype=torch.float32) for _ in range(2))
PICTURES = torch.tensor(RANDOM.random((4, 1, 8, 8)), dtype=torch.float32)
POINTS = np.linspace(-6, 6, 121)
BELL = scipy.special.softmax(-0.5 * (POINTS - 1) ** 2)
GRID = torch.tensor([[91.0, 93.4, 92.0], [95.6, 94.0, 90.1]])


def heights(axes) -> list[list[float]]:
    return [[bar.get_height() for bar in bars] for bars in axes.containers]


def legend(owner) -> list[str]:
    (shown,) = owner.legends if isinstance(owner, Figure) else [owner.get_legend()]
    return [text.get_text() for text in shown.get_texts()]


def curves(axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_label(): line.get_data() for line in axes.get_lines()}


# --- bars --------------------------------------------------------------------------------------------


def test_label_bars_have_the_given_heights_names_and_legend():
    rows = {"hard": [0.0, 1.0, 0.0], "soft": torch.tensor([0.25, 0.5, 0.25])}
    figure = plots.label_bars(rows, ["cat", "dog", "hare"], title="A dog")
    (axes,) = figure.axes
    assert_allclose(heights(axes), [[0, 1, 0], [0.25, 0.5, 0.25]])
    assert legend(axes) == ["hard", "soft"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "hare"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("class", "probability", "A dog")
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 1
    # Beside one another around the class's tick, without overlap.
    left, right = ([(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars] for bars in axes.containers)
    for k in range(3):
        assert_allclose([left[k][0], left[k][1], right[k][1]], [k - 0.4, k, k + 0.4])
        assert_allclose(left[k][1], right[k][0], atol=1e-9)
    alt = alt_text(figure)
    assert alt.startswith("A dog. Bar chart of probabilities by class. ")
    assert "hard: dog 1.00, cat 0.00, hare 0.00; soft: dog 0.50, cat 0.25, hare 0.25." in alt


def test_one_row_needs_no_legend():
    (axes,) = plots.label_bars({"p": [0.25, 0.75]}, ["cat", "dog"]).axes
    assert axes.get_legend() is None
    assert_allclose(heights(axes), [[0.25, 0.75]])


def test_the_axis_of_short_bars_ends_above_them():
    for longest, end in ((0.2, 0.23), (0.9, 1.08)):
        (axes,) = plots.label_bars({"p": [longest, 0.1]}, ["cat", "dog"]).axes
        assert axes.get_ylim() == pytest.approx((0, end))


def test_one_class_has_one_bar():
    figure = plots.label_bars({"p": [1.0]}, ["cat"])
    assert heights(figure.axes[0]) == [[1.0]]
    assert "p: cat 1.00." in alt_text(figure)
    png(figure)


def test_alt_text_of_bars_follows_the_data():
    texts = {alt_text(plots.label_bars({"p": [q, 1 - q]}, ["cat", "dog"])) for q in (0.1, 0.2, 0.9)}
    assert len(texts) == 3
    assert any("dog 0.90, cat 0.10" in text for text in texts)
    assert any("cat 0.90, dog 0.10" in text for text in texts)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_gallery_shows_each_picture_above_its_bars(count):
    names, shades = ["cat", "dog", "hare"], PICTURES[:count]
    rows = [
        {"T = 1": torch.tensor([0.7, 0.2, 0.1]), "T = 4": torch.tensor([0.4 - k / 10, 0.3 + k / 10, 0.3])}
        for k in range(count)
    ]
    captions = [f"number {k}" for k in range(count)]
    figure = plots.digit_gallery(shades, rows, names, captions)
    top, bottom = figure.axes[:count], figure.axes[count:]
    assert len(bottom) == count
    for k in range(count):
        (image,) = top[k].get_images()
        assert_allclose(image.get_array(), shades[k, 0])
        assert (image.norm.vmin, image.norm.vmax) == (0, 1)
        assert image.cmap(0.0)[:3] == (1, 1, 1), "ink is dark on white paper"
        assert top[k].get_title() == captions[k]
        assert_allclose(heights(bottom[k]), np.stack(list(rows[k].values())), rtol=1e-6)
        assert bottom[k].get_xlabel() == "class"
        said = f"number {k}: T = 1 cat 0.70, dog 0.20, hare 0.10; T = 4 "
        assert said in alt_text(figure)
        largest = rows[k]["T = 4"].max()
        assert f"T = 4 {names[int(rows[k]['T = 4'].argmax())]} {largest:.2f}" in alt_text(figure)
    assert bottom[0].get_ylabel() == "probability"
    assert legend(figure) == ["T = 1", "T = 4"]


def test_legend_of_the_gallery_covers_no_bars():
    full = {"hard": torch.ones(10), "soft": torch.ones(10)}
    figure = plots.digit_gallery(PICTURES[:1], [full], DIGITS, ["all"])
    png(figure)
    assert figure.legends[0].get_window_extent().y1 <= figure.axes[1].get_window_extent().y0


# --- softened and curves over T ----------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.125, 2.0, 4.0, 128.0])
def test_softened_shows_both_distributions_and_the_entropy(temperature):
    logits = torch.tensor([4.0, 2.0, 0.0])
    after = scipy.special.softmax(logits.double().numpy() / temperature)
    before = scipy.special.softmax(logits.double().numpy())
    figure = plots.softened(logits, temperature, ["8", "3", "5"])
    left, right = figure.axes
    assert_allclose(heights(left), [before, after], atol=1e-6)
    assert legend(left) == ["T = 1", f"T = {temperature:.3g}"]
    curve, ceiling, one, now = right.get_lines()
    temperatures, entropies = curve.get_data()
    assert temperatures[0] == 1 / 8 and temperatures[-1] == 128
    path = scipy.special.softmax(logits.double().numpy() / np.array(temperatures)[:, None], axis=1)
    assert_allclose(entropies, scipy.stats.entropy(path, axis=1), atol=1e-5)
    assert_allclose(ceiling.get_ydata(), math.log(3))
    assert_allclose(one.get_xydata(), [[1, scipy.stats.entropy(before)]], atol=1e-5)
    assert_allclose(now.get_xydata(), [[temperature, scipy.stats.entropy(after)]], atol=1e-5)
    assert (right.get_xscale(), right.get_xlabel()) == ("log", "temperature T")
    assert right.get_ylabel() == "entropy (nats)"
    entropy = f"entropy {scipy.stats.entropy(after):.3f} of at most 1.099 nats"
    heading = f"T = {temperature:.3g}: {entropy}; order 8 > 3 > 5"
    assert figure.get_suptitle() == heading
    alt = alt_text(figure)
    assert alt.startswith(heading)
    assert "T = 1: 8 0.87, 3 0.12, 5 0.02" in alt
    assert f"T = {temperature:.3g}: 8 {after[0]:.2f}, 3 {after[1]:.2f}, 5 {after[2]:.2f}." in alt


def test_softened_tells_the_order_from_the_logits():
    """At T = 0.125 all but one probability underflow to 0; the order of the classes is known all the same."""
    logits = torch.tensor([-90.0, 60.0, -30.0, 0.0, -30.0, 1.0])
    title = plots.softened(logits, 0.125, list("abcdef")).get_suptitle()
    assert title.endswith("order b > f > d > c = e …")


@pytest.mark.parametrize("temperature", [0.125, 4.0])
def test_axes_of_softened_stand_still_when_t_moves(temperature):
    places = [
        [axes.get_position().bounds for axes in plots.softened(TEACHER, t, DIGITS).axes]
        for t in (1.0, temperature)
    ]
    assert_allclose(places[0], places[1])


def test_temperature_curves_are_softmax_and_entropy():
    logits, temperatures = torch.tensor([3.0, 1.0, 0.0]), torch.logspace(-1, 2, 31)
    figure = plots.temperature_curves(logits, temperatures, ["cat", "dog", "hare"])
    left, right = figure.axes
    table = scipy.special.softmax(logits.numpy() / temperatures.double().numpy()[:, None], axis=1)
    drawn = curves(left)
    assert list(drawn) == legend(left) == ["cat", "dog", "hare"]
    for k, (x, y) in enumerate(drawn.values()):
        assert_allclose(x, temperatures)
        assert_allclose(y, table[:, k], atol=1e-6)
    assert_allclose(curves(right)["entropy"][1], scipy.stats.entropy(table, axis=1), atol=1e-5)
    assert_allclose(curves(right)["log C"][1], math.log(3))
    assert (left.get_xscale(), right.get_xscale()) == ("log", "log")
    assert (left.get_ylabel(), right.get_ylabel()) == ("probability", "entropy (nats)")
    assert left.get_xlabel() == right.get_xlabel() == "temperature T"
    alt = alt_text(figure)
    assert f"T = 3.16: cat {table[15, 0]:.2f}, dog {table[15, 1]:.2f}, hare {table[15, 2]:.2f}" in alt
    assert f"T = 100: cat {table[30, 0]:.2f}" in alt
    assert f"entropy {scipy.stats.entropy(table[30]):.3f}." in alt


# --- lines, panels, densities ------------------------------------------------------------------------


def test_lines_carry_data_scales_labels_and_intervals():
    x, series = [25, 50, 100], {"alone": [64.0, 80.5, 85.0], "distilled": torch.tensor([77.0, 92.0, 93.0])}
    figure = plots.lines(
        x, series, xlabel="pictures", ylabel="accuracy (%)", title="Few pictures", log_x=True,
        half_widths={"distilled": [3.0, 1.0, 0.5]},
    )
    (axes,) = figure.axes
    drawn = curves(axes)
    for name, values in series.items():
        assert_allclose(drawn[name][0], x)
        assert_allclose(drawn[name][1], values)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("pictures", "accuracy (%)")
    assert axes.get_title() == "Few pictures"
    assert legend(axes) == ["alone", "distilled"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["25", "50", "100"]
    (errors,) = axes.containers
    segments = errors.lines[2][0].get_segments()
    assert_allclose(segments, [[(25, 74), (25, 80)], [(50, 91), (50, 93)], [(100, 92.5), (100, 93.5)]])
    assert_allclose(errors.lines[2][0].get_color()[0][:3], to_rgb(COLOURS[1]))
    assert alt_text(figure) == (
        "Few pictures. Line chart of accuracy (%) against pictures from 25 to 100. "
        "alone: from 64 to 85; distilled: from 77 to 93."
    )


@pytest.mark.parametrize("log_x", [False, True])
@pytest.mark.parametrize("log_y", [False, True])
def test_panels_draw_each_group_under_its_title(log_x, log_y):
    groups = {
        "fresh": {"KL": [1.0, 0.1], "T²·KL": [1.0, 1.5]},
        "trained": {"KL": [0.5, 0.05], "T²·KL": [0.5, 0.9]},
    }
    figure = plots.panels(
        [1, 1000], groups, xlabel="temperature T", ylabel="nats", title="Pull", log_x=log_x, log_y=log_y
    )
    assert figure.get_suptitle() == "Pull"
    for axes, (name, series) in zip(figure.axes, groups.items(), strict=True):
        assert axes.get_title() == name
        assert axes.get_xlabel() == "temperature T"
        assert axes.get_xscale() == ("log" if log_x else "linear")
        assert axes.get_yscale() == ("log" if log_y else "linear")
        for curve, values in series.items():
            assert_allclose(curves(axes)[curve], [[1, 1000], values])
    assert figure.axes[0].get_ylabel() == "nats"
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert legend(figure.axes[1]) == ["KL", "T²·KL"]
    alt = alt_text(figure)
    assert alt.startswith("Pull. Line chart of nats against temperature T from 1 to 1e+03. ")
    assert "fresh, KL: from 1 to 0.1; " in alt and "trained, T²·KL: from 0.5 to 0.9." in alt


def test_alt_text_of_untitled_panels_does_not_borrow_one_groups_title():
    series = {"KL": [1.0, 0.1]}
    one = plots.panels([1, 2], {"fresh": series}, xlabel="T", ylabel="nats")
    two = plots.panels([1, 2], {"fresh": series, "trained": series}, xlabel="T", ylabel="nats")
    assert alt_text(one).startswith("fresh. Line chart of nats")
    assert alt_text(two).startswith("Line chart of nats")


def test_densities_say_where_the_mass_is():
    wide = scipy.special.softmax(-0.5 * ((POINTS + 2) / 1.5) ** 2)
    figure = plots.densities(POINTS, {"one bell": {"p": BELL, "q": torch.tensor(wide)}}, xlabel="metres")
    (axes,) = figure.axes
    assert_allclose(curves(axes)["p"], [POINTS, BELL])
    assert_allclose(curves(axes)["q"], [POINTS, wide])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("metres", "probability")
    alt = alt_text(figure)
    assert alt.startswith("one bell. Curves of probability against metres. ")
    for name, p in (("p", BELL), ("q", wide)):
        mean = np.average(POINTS, weights=p)
        deviation = math.sqrt(np.average((POINTS - mean) ** 2, weights=p))
        assert f"{name}: mean {mean:.1f}, standard deviation {deviation:.1f}" in alt
    assert "mean 1.0" in alt and "standard deviation 1.0" in alt
    groups = {"forward": {"q": BELL}, "reverse": {"q": wide}}
    alt = alt_text(plots.densities(POINTS, groups, title="Two ways"))
    assert alt.startswith("Two ways. Curves of probability against x. forward, q: mean 1.0")
    assert "; reverse, q: mean -" in alt


# --- arms --------------------------------------------------------------------------------------------


def scores(accuracy: float) -> Scores:
    return Scores(accuracy, nll=0.1, ece=0.01, correct=torch.ones(10, dtype=torch.bool))


def test_arms_show_every_seed_and_the_t_interval():
    runs = {"alone": [scores(a) for a in (0.82, 0.845, 0.83)], "distilled": [93.9, 94.6, 93.2, 94.0]}
    figure = plots.arms(runs, title="Seeds", ylabel="validation accuracy (%)")
    (axes,) = figure.axes
    for k, values in enumerate(([82, 84.5, 83], [93.9, 94.6, 93.2, 94.0])):
        dots = [line for line in axes.get_lines() if line.get_marker() == MARKERS[k]]
        assert_allclose(dots[0].get_ydata(), values)
        assert all(abs(x - k) < 0.2 for x in dots[0].get_xdata())
        low, high = scipy.stats.t.interval(
            0.95, len(values) - 1, loc=np.mean(values), scale=scipy.stats.sem(values)
        )
        bar = axes.containers[k]
        assert_allclose(bar.lines[2][0].get_segments()[0][:, 1], [low, high])
        assert float(bar.lines[0].get_ydata()[0]) == pytest.approx(np.mean(values))
        said = f"{list(runs)[k]} {np.mean(values):.1f}, interval {low:.1f} to {high:.1f}"
        assert said in alt_text(figure)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["alone", "distilled"]
    assert axes.get_ylabel() == "validation accuracy (%)"
    assert "mean and 95% interval" in axes.get_xlabel(), "the bars are explained in the figure itself"
    assert alt_text(figure).startswith("Seeds. One dot a seed; black: mean and 95% interval. ")


def test_one_seed_is_a_dot_without_an_interval():
    figure = plots.arms({"alone": [90.04]})
    (axes,) = figure.axes
    assert axes.get_xlabel() == "One dot each: a single run has no interval"
    (dot,) = axes.get_lines()
    assert_allclose(dot.get_xydata(), [[0, 90.04]])
    assert not axes.containers
    assert "alone 90.0." in alt_text(figure)
    assert "interval 9" not in alt_text(figure)
    png(figure)


def bars_of(figure: Figure) -> list[np.ndarray]:
    return [bar.lines[2][0].get_segments()[0][:, 1] for bar in figure.axes[0].containers]


def test_no_interval_of_arms_leaves_the_possible_range():
    """Seeds of two kinds: Student's t would reach from below 0 to above 100 %."""
    two_kinds = {"logits": [2.0, 3.0, 98.0], "answers": [50.0, 51.0, 52.0]}
    figure = plots.arms(two_kinds)
    for (low, high), values in zip(bars_of(figure), two_kinds.values(), strict=True):
        _, *wanted = bounded_interval(values, 0, 100)
        assert_allclose((low, high), wanted)
        assert 0 <= low < high <= 100
    assert "bounded" in figure.axes[0].get_xlabel()


def test_the_caller_chooses_the_interval_and_the_range():
    runs = {"a": [98.0, 99.0, 99.5]}
    low, high = bars_of(plots.arms(runs, bounded=True))[0]
    assert high <= 100 and low < 60, "three seeds say little of a mean that may lie anywhere"
    free = plots.arms({"a": [0.1, 0.2, 2.0]}, ylabel="nats", limits=None)
    assert bars_of(free)[0][0] < 0 and "bounded" not in free.axes[0].get_xlabel()
    nats = plots.arms({"a": [0.1, 0.2, 2.0]}, ylabel="nats", limits=(0, 5))
    assert "a 0.181, interval " in alt_text(plots.arms({"a": [0.177, 0.185]}, ylabel="nats"))
    assert 0 <= bars_of(nats)[0][0] < bars_of(nats)[0][1] <= 5
    wide = bars_of(plots.arms({"a": [2.0, 98.0]}, bounded=False))[0]
    assert wide[0] < 0 and wide[1] > 100


def test_lines_show_seeds_and_intervals_that_are_not_symmetric():
    figure = plots.lines(
        [1, 2], {"alone": [50.0, 90.0], "x": [1, 2]}, xlabel="x", ylabel="y",
        half_widths={"alone": [[10, 20], [5, 8]]}, seeds={"alone": [[49.0, 51.0], [85.0, 90.0, 95.0]]},
    )  # fmt: skip
    (errors,) = figure.axes[0].containers
    ends = [segment[:, 1].tolist() for segment in errors.lines[2][0].get_segments()]
    assert ends == [[40, 55], [70, 98]]
    dots = [line for line in figure.axes[0].get_lines() if line.get_marker() == "."]
    assert [list(line.get_ydata()) for line in dots] == [[49.0, 51.0], [85.0, 90.0, 95.0]]
    assert {line.get_color() for line in dots} == {ARMS["alone"]}
    assert legend(figure.axes[0]) == ["alone", "x"]


# --- heat maps ---------------------------------------------------------------------------------------


def frame(axes) -> tuple[float, ...]:
    (patch,) = axes.patches
    return (*patch.get_xy(), patch.get_width(), patch.get_height())


@pytest.mark.parametrize("best", [(0, 0), (1, 2), (0, 1)])
def test_heat_map_shows_the_table_and_frames_its_maximum(best):
    table = GRID.clone()
    table[best] = 99.9
    figure = plots.heat_map(
        table, [0.1, 0.5], [1, 4, 8],
        xlabel="temperature T", ylabel="α", colour_label="accuracy (%)", title="G",
    )
    axes, bar = figure.axes
    assert_allclose(axes.get_images()[0].get_array(), table)
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {(j, i): f"{table[i, j]:.1f}" for i in range(2) for j in range(3)}
    assert frame(axes) == (best[1] - 0.5, best[0] - 0.5, 1, 1)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "8"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.1", "0.5"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("temperature T", "α", "G")
    assert bar.get_ylabel() == "accuracy (%)"
    row, column = (0.1, 0.5)[best[0]], (1, 4, 8)[best[1]]
    assert alt_text(figure) == (
        "G. Heat map of accuracy (%) by α and temperature T. "
        f"highest 99.9 at α {row} and temperature T {column}; lowest {table.min():.1f}."
    )


def test_heat_map_leaves_missing_cells_empty():
    table = torch.tensor([[math.nan, 2.0], [1.0, math.nan]])
    figure = plots.heat_map(table, ["a", "b"], ["c", "d"], xlabel="x", ylabel="y", colour_label="points")
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["1.0", "2.0"]
    assert frame(figure.axes[0])[:2] == (0.5, -0.5)
    assert "highest 2.0 at y a and x d; lowest 1.0." in alt_text(figure)
    png(figure)


def test_heat_map_of_one_value_everywhere_can_be_drawn():
    figure = plots.heat_map(torch.ones(2, 2), "ab", "cd", xlabel="x", ylabel="y", colour_label="points")
    assert "highest 1.0 at y a and x c; lowest 1.0." in alt_text(figure)
    png(figure)


def test_neighbours_leave_out_the_diagonal():
    rows = [[0.9, 0.08, 0.02], [0.3, 0.6, 0.1], [0.001, 0.004, 0.995]]
    matrix = torch.tensor(rows, dtype=torch.float64)
    before = matrix.clone()
    figure = plots.neighbours(matrix, ["cat", "dog", "hare"], title="N")
    axes, bar = figure.axes
    values = axes.get_images()[0].get_array()
    off = ~np.eye(3, dtype=bool)
    assert np.array_equal(np.ma.getmaskarray(np.ma.masked_invalid(values)), ~off)
    assert_allclose(np.asarray(values)[off], 100 * matrix.numpy()[off], rtol=1e-6)
    assert torch.equal(matrix, before), "the caller's matrix is left alone"
    # Written in per cent where above a quarter of the largest.
    assert {t.get_position(): t.get_text() for t in axes.texts} == {
        (1, 0): "8.0", (0, 1): "30.0", (2, 1): "10.0",
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("class in the soft label", "true class")
    assert bar.get_ylabel() == "mean probability (%)"
    alt = alt_text(figure)
    assert "cat leans to dog (8.0 %); dog leans to cat (30.0 %); hare leans to dog (0.4 %)." in alt


# --- reliability -------------------------------------------------------------------------------------


def test_reliability_draws_the_bins_that_hold_examples():
    nan = math.nan
    curve = ReliabilityCurve(
        edges=np.linspace(0, 1, 5),
        confidence=np.array([nan, 0.4, 0.7, 0.9]),
        accuracy=np.array([nan, 0.5, 0.4, 0.9]),
        count=np.array([0, 10, 30, 60]),
    )
    figure = plots.reliability({"teacher": curve}, title="R")
    (axes,) = figure.axes
    assert_allclose(curves(axes)["teacher"], [[0.4, 0.7, 0.9], [0.5, 0.4, 0.9]])
    assert_allclose(curves(axes)["perfect"], [[0, 1], [0, 1]])
    assert legend(axes) == ["perfect", "teacher"]
    assert axes.get_xlabel() == "confidence (size: share of the examples)"
    assert (axes.get_ylabel(), axes.get_title()) == ("accuracy", "R")
    (marks,) = axes.collections
    assert_allclose(marks.get_offsets(), [[0.4, 0.5], [0.7, 0.4], [0.9, 0.9]])
    areas = marks.get_sizes()
    assert_allclose(np.diff(areas) / (areas[2] - areas[0]), [0.4, 0.6], err_msg="areas grow with the counts")
    assert axes.get_xlim()[0] == 0
    # 0.1 · 10 % + 0.3 · 30 % + 0
    assert alt_text(figure) == "R. Reliability diagram. teacher: mean gap 0.100."
    png(figure)


def test_reliability_of_two_classes_begins_at_one_half():
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, 0.5]])
    figure = plots.reliability({"m": reliability_curve(logits, torch.tensor([0, 1, 0, 1]))})
    assert figure.axes[0].get_xlim()[0] > 0.4


def test_reliability_follows_the_model():
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, 0.5]])
    gaps = {
        alt_text(plots.reliability({"m": reliability_curve(logits, labels)}))
        for labels in (torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0, 1, 0]))
    }
    assert len(gaps) == 2


# --- the loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature, alpha", [(1.0, 0.0), (4.0, 0.3), (10.0, 1.0)])
def test_loss_picture_shows_both_terms_and_their_gradients(temperature, alpha):
    teacher, student, label = torch.tensor([3.0, 1.0, -1.0]), torch.tensor([0.5, 1.5, 0.0]), 0
    figure = plots.loss_picture(
        teacher, student, label, ["cat", "dog", "hare"], temperature=temperature, alpha=alpha
    )
    left, right = figure.axes
    p, q = (scipy.special.softmax(z.double().numpy() / temperature) for z in (teacher, student))
    assert_allclose(heights(left), [p, q], atol=1e-6)
    assert legend(left) == ["teacher p", "student q"]
    assert left.get_ylabel() == f"probability at T = {temperature:.3g}"

    # The pushes are minus the gradient of each term, here by automatic differentiation.
    def push(loss) -> np.ndarray:
        z = student.clone().requires_grad_()
        return -torch.autograd.grad(loss(z), z)[0].numpy()

    hard = push(lambda z: -alpha * z.log_softmax(-1)[label])
    soft = push(lambda z: (1 - alpha) * soft_target_loss(z, teacher, temperature=temperature))
    assert_allclose(heights(right), [hard, soft], atol=1e-6)
    assert len(legend(right)) == 2 and "hard" in legend(right)[0] and "soft" in legend(right)[1]
    assert right.get_ylabel() == "push on the student's logit"

    ce = scipy.special.logsumexp(student.double()) - student.double()[label].item()
    kl = temperature**2 * scipy.stats.entropy(p, q)
    total = kd_loss(student, teacher, torch.tensor(label), temperature=temperature, alpha=alpha).item()
    title = figure.get_suptitle()
    assert title == (
        f"CE {ce:.3f}   T²·KL {kl:.3f}   loss = {alpha:.2f}·CE + {1 - alpha:.2f}·T²·KL = {total:.3f}"
    )
    alt = alt_text(figure)
    assert alt.startswith(title)
    assert f"teacher cat {p[0]:.2f}, dog {p[1]:.2f}, hare {p[2]:.2f}; student dog {q[1]:.2f}" in alt


def test_loss_picture_is_finite_where_a_probability_underflows():
    """p = 0 in float32 for the teacher's last class, q = 0 for the student's first: 0 · log 0 is 0."""
    teacher, student = torch.tensor([200.0, 0.0, -200.0]), torch.tensor([-200.0, 0.0, 200.0])
    assert torch.softmax(teacher, -1)[2] == 0 and torch.softmax(student, -1)[0] == 0
    figure = plots.loss_picture(teacher, student, 0, list("abc"), temperature=1.0, alpha=0.5)
    title = figure.get_suptitle()
    assert title == "CE 400.000   T²·KL 400.000   loss = 0.50·CE + 0.50·T²·KL = 400.000"
    assert np.isfinite(heights(figure.axes[1])).all()
    png(figure)


def test_loss_picture_of_equal_models_has_no_soft_term():
    figure = plots.loss_picture(STUDENT, STUDENT, 0, DIGITS, temperature=2.0, alpha=0.5)
    assert "T²·KL 0.000" in figure.get_suptitle()
    assert_allclose(heights(figure.axes[1])[1], 0, atol=1e-7)


@pytest.mark.parametrize("p", [[0.0, 1.0], [1.0, 0.0]])
def test_certainty_is_drawn_as_it_is(p):
    figure = plots.label_bars({"p": p}, ["cat", "dog"])
    assert heights(figure.axes[0]) == [p]
    png(figure)
    logits = torch.tensor(p).log()  # −inf for the impossible class
    figure = plots.softened(logits, 4.0, ["cat", "dog"])
    assert_allclose(heights(figure.axes[0]), [p, p])
    assert "entropy 0.000" in alt_text(figure)
    png(figure)


# --- models, machines and batches --------------------------------------------------------------------


def test_named_points_stand_where_they_belong_with_their_names():
    x = {"Qwen-1.5B": 1.78, "Llama-8B": 8.03, "Qwen-7B": 7.62}
    scores = {"AIME": dict(zip(x, (28.9, 50.4, 55.5), strict=True)), "MATH": dict.fromkeys(x, 90.0)}
    groups = {name: name[:5] for name in x}
    figure = plots.named_points(x, scores, groups=groups, xlabel="size", ylabel="score", log_x=True)
    assert [axes.get_title() for axes in figure.axes] == ["AIME", "MATH"]
    for axes, (_, y) in zip(figure.axes, scores.items(), strict=True):
        points = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
        assert points == {
            "Qwen-": [[1.78, y["Qwen-1.5B"]], [7.62, y["Qwen-7B"]]], "Llama": [[8.03, y["Llama-8B"]]],
        }
        places = {text.get_text(): text.xy for text in axes.texts}
        assert places == {name: (x[name], y[name]) for name in x}
        above = {text.get_text(): text.get_position()[1] > 0 for text in axes.texts}
        assert above == {"Qwen-1.5B": True, "Qwen-7B": True, "Llama-8B": False}
        assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "size")
        assert {text.get_text() for text in axes.get_xticklabels()} == {"2", "5", "10"}
    assert len({line.get_marker() for line in figure.axes[0].get_lines()}) == 2
    assert "AIME: Qwen-1.5B 28.9 at 1.78, Llama-8B 50.4 at 8.03, Qwen-7B 55.5 at 7.62;" in (
        alt_text(figure)
    )


def test_memory_bars_put_components_end_to_end():
    live, stored = {"weights": 7e9, "teacher": 15e9, "logits": 3e9}, {"weights": 7e9, "logits": 4e9}
    rows = {"live": live, "stored": stored}
    figure = plots.memory_bars(rows, limit=20e9, title="Memory")
    (axes,) = figure.axes
    spans = {
        bars.get_label(): [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars]
        for bars in axes.containers
    }
    assert spans == {
        "weights": [(0, 7), (0, 7)], "teacher": [(7, 22), (7, 7)], "logits": [(22, 25), (7, 11)],
    }
    assert [text.get_text() for text in axes.texts] == ["25.0", "11.0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["live", "stored"]
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [20, 20]
    assert legend(figure) == ["may be filled", "weights", "teacher", "logits"]
    low, high = axes.get_ylim()
    assert low > high, "the first case is on top"
    assert alt_text(figure).startswith("Memory. Bars of memory in GB by component. ")
    assert "live: 25.0 (weights 7.0, teacher 15.0, logits 3.0); stored: 11.0 (weights 7.0, logits 4.0)" in (
        alt_text(figure)
    )
    assert alt_text(figure).endswith("line at 20.0.")


def test_token_grid_shows_each_token_and_the_shares():
    first, second = torch.tensor([[1, 2, 2, 0], [1, 1, 2, 2]]), torch.tensor([[1, 2, 1]])
    figure = plots.token_grid({"padded": first, "packed": second})
    for axes, batch in zip(figure.axes, (first, second), strict=True):
        (image,) = axes.get_images()
        assert_allclose(image.get_array(), batch)
        colours = [image.to_rgba(k)[:3] for k in range(3)]
        assert colours[0] == (1, 1, 1), "padding is white"
        assert sum(colours[1]) > sum(colours[2]), "what is learnt is darkest"
        assert axes.get_xlim() == (-0.5, 3.5), "one scale for both"
    assert figure.axes[0].get_title() == "padded: 12 % padding, 38 % prompt, 50 % completion"
    alt = alt_text(figure)
    assert "padded: 2 rows of 4 tokens, 12 % padding, 38 % prompt, 50 % completion; " in alt
    assert alt.endswith("packed: 1 rows of 3 tokens, 0 % padding, 67 % prompt, 33 % completion.")
    assert legend(figure) == ["padding", "prompt", "completion"]


def test_memory_bars_give_components_of_plans_the_same_place_and_colour_everywhere():
    whole = {"activations": 1e9, "teacher weights": 2e9, "cake": 3e9, "student weights": 4e9, "KV cache": 5e9}
    some = {"KV cache": 1e9, "teacher weights": 3e9}
    drawn = []
    for row in (whole, some):
        axes = plots.memory_bars({"case": row}, limit=1e9).axes[0]
        drawn.append({bars.get_label(): (bars[0].get_facecolor(), bars[0].get_hatch())
                      for bars in axes.containers})
    assert list(drawn[0]) == ["student weights", "teacher weights", "activations", "KV cache", "cake"]
    assert list(drawn[1]) == ["teacher weights", "KV cache"]
    assert drawn[1].items() <= drawn[0].items()
    assert len(set(drawn[0].values())) == 5, "told apart"
