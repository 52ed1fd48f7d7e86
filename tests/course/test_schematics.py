"""Schematics: words in their boxes, arrows off the words, colours of teacher and student, alt texts.

They come under the tests of every figure in `test_plots_readable.py` too.
"""

import re

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from kdlib.course import schematics, words
from kdlib.course.figures import ARMS, STYLE

alt_text = Figure.get_label
SCHEMATICS = [
    "copies", "failures", "fused_loss", "healing", "loss", "reasoning", "soft_label", "teacher_student",
]


TO = {"en": " to ", "zh": " → "}


@pytest.fixture(scope="module", params=TO)
def figures(request) -> dict[str, Figure]:
    if request.param == "zh" and words.chinese_font() is None:
        pytest.skip("no Chinese font here; the words are tested without one in test_words.py")
    with words.speaking(request.param):
        return {name: getattr(schematics, name)() for name in SCHEMATICS} | {"to": TO[request.param]}


def draw(figure: Figure) -> None:
    with mpl.rc_context(STYLE):
        FigureCanvasAgg(figure).draw()


@pytest.mark.parametrize("kind", SCHEMATICS)
def test_words_of_a_schematic_stay_in_their_boxes_and_off_other_boxes(figures, kind):
    figure = figures[kind]
    draw(figure)
    axes = figure.axes[0]
    boxes = [patch.get_window_extent() for patch in axes.patches
             if isinstance(patch, mpl.patches.FancyBboxPatch)]
    assert boxes
    for text in axes.texts:
        words = text.get_window_extent()
        for box in boxes:
            apart = words.x1 < box.x0 or words.x0 > box.x1 or words.y1 < box.y0 or words.y0 > box.y1
            inside = words.x0 > box.x0 and words.x1 < box.x1 and words.y0 > box.y0 and words.y1 < box.y1
            assert apart or inside, text


@pytest.mark.parametrize("kind", SCHEMATICS)
def test_teacher_and_student_have_their_colours_and_every_arrow_is_in_the_alt_text(figures, kind):
    axes, said = figures[kind].axes[0], alt_text(figures[kind])
    edges = {to_hex(patch.get_edgecolor()) for patch in axes.patches}
    assert ARMS["teacher"].lower() in edges
    assert (ARMS["distilled"].lower() in edges) == (kind != "soft_label")
    arrows = [patch for patch in axes.patches if isinstance(patch, mpl.patches.FancyArrowPatch)]
    assert said.count(figures["to"]) >= len(arrows) == int(re.findall(r"\d+", said)[1]) > 3


@pytest.mark.parametrize("kind", SCHEMATICS)
def test_arrows_of_a_schematic_do_not_run_through_words(figures, kind):
    figure = figures[kind]
    draw(figure)
    axes = figure.axes[0]
    for arrow in axes.patches:
        if isinstance(arrow, mpl.patches.FancyArrowPatch):
            # The path of a FancyArrowPatch is in pixels of the screen already.
            curve = arrow.get_transform().transform_path(arrow.get_path())
            points = np.concatenate(curve.to_polygons(closed_only=False))
            for text in axes.texts:
                box = text.get_window_extent()
                assert not any(box.contains(x, y) for x, y in points), text


def test_the_soft_label_shows_the_picture_and_the_probabilities_that_it_was_given():
    picture, p = torch.arange(64.0).reshape(1, 8, 8) / 63, torch.tensor([0.1, 0.7, 0.2])
    axes = schematics.soft_label(picture, p).axes[0]
    np.testing.assert_allclose(axes.get_images()[0].get_array(), picture[0])
    np.testing.assert_allclose([bar.get_height() for bar in axes.containers[0]], p / 2)
    assert schematics.soft_label().axes[0].get_images() == []
