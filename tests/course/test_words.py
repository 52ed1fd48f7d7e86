"""Which language figures speak, and that they never show a box for a character that no font has."""

import os
import re

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdlib.course import plots, schematics, words
from kdlib.course.figures import STYLE, show

SYMBOLS = {
    "RKD", "KD, DKD", "CE(y, q)", "softmax(z / T)", "softmax(z)", "softmax", "logits z", "z / T", "p", "q",
}  # fmt: skip


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    """No variable of the person who runs the tests; nothing told yet."""
    monkeypatch.delenv("KDLIB_LANGUAGE", raising=False)
    words.tell.cache_clear()
    yield
    words.tell.cache_clear()


@pytest.fixture(params=[None, "DejaVu Sans"])
def font(request, monkeypatch):
    """A machine without a Chinese font, and one whose font is said to have Chinese."""
    monkeypatch.setattr(words, "chinese_font", lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    ("folder", "language"),
    [
        ("notebooks", "en"),
        ("notebooks/zh", "zh"),
        ("notebooks/zh/solutions", "zh"),
        ("zh", "en"),
        ("notebooks/zhou", "en"),
    ],
)
def test_a_notebook_speaks_the_language_of_its_folder(tmp_path, monkeypatch, folder, language):
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    assert words.language() == language
    other = {"en": "zh", "zh": "en"}[language]
    monkeypatch.setenv("KDLIB_LANGUAGE", other)
    assert words.language() == other
    with words.speaking(language):
        assert words.language() == language
    assert words.language() == other


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no folder that is somebody's working directory")
def test_a_folder_that_is_gone_speaks_english(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "zh").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "zh")
    (tmp_path / "notebooks" / "zh").rmdir()
    assert words.language() == "en"


def test_another_language_is_refused(monkeypatch):
    monkeypatch.setenv("KDLIB_LANGUAGE", "fr")
    with pytest.raises(ValueError, match="KDLIB_LANGUAGE is 'fr'; expected 'en' or 'zh'"):
        words.language()


def drawn_words(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.axes[0].texts}


@pytest.mark.parametrize("name", schematics.__all__)
def test_every_word_of_a_schematic_is_chinese_where_there_is_a_font_and_english_where_not(name, font):
    english = getattr(schematics, name)()
    with words.speaking("zh"):
        chinese = getattr(schematics, name)()
    if font is None:
        assert drawn_words(chinese) == drawn_words(english) and chinese.get_label() == english.get_label()
        return
    left = {word for word in drawn_words(chinese) if word.isascii() and re.search("[A-Za-z]", word)}
    assert left <= SYMBOLS, "expected a translation in kdlib.course.words.CHINESE"
    # The alt text names who teaches whom in Chinese, without a word of English but those of formulas.
    said = re.sub("KL|CE|RKD|DKD|KD|logits?|hint|softmax", "", chinese.get_label())
    assert not re.search("[A-Za-z]{3}", said), said


def test_axes_are_named_in_chinese_and_arms_as_the_code_names_them(font):
    with words.speaking("zh"):
        figure = plots.label_bars({"alone": [0.2, 0.8]}, ["3", "8"])
    expected = ("概率", "类别") if font else ("probability", "class")
    assert (figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel()) == expected
    assert "alone" in figure.get_label()


def test_a_reader_without_a_font_is_told_once(font, capsys):
    with words.speaking("zh"):
        for _ in range(2):
            figure = plots.label_bars({"alone": [0.2, 0.8]}, ["A", "B"])
            if font:  # which has no Chinese in truth
                figure.axes[0].set(xlabel="", ylabel="")
            show(figure)
    assert capsys.readouterr().out.count(words.NOTE) == (font is None)


def test_an_english_notebook_is_told_nothing(capsys, monkeypatch):
    monkeypatch.setattr(words, "chinese_font", lambda: None)
    show(plots.label_bars({"alone": [0.2, 0.8]}, ["A", "B"]))
    assert words.NOTE not in capsys.readouterr().out


def test_what_is_drawn_has_a_glyph_for_every_character():
    """matplotlib warns of a box, and warnings are errors here."""
    if words.chinese_font() is None:
        pytest.skip("no Chinese font here")
    figure = Figure(figsize=(20, 20))
    with words.speaking("zh"), mpl.rc_context(STYLE | words.font_style()):
        for k, text in enumerate(words.CHINESE.values()):
            figure.text(0.1, k / len(words.CHINESE), text)
        FigureCanvasAgg(figure).draw()


def test_a_font_installed_after_matplotlib_made_its_list_is_found(monkeypatch):
    manager = words.font_manager
    late = manager.FontEntry(name="WenQuanYi Micro Hei")
    monkeypatch.setattr(manager, "findSystemFonts", lambda: ["/fonts/other.ttf", "/fonts/wqy-microhei.ttc"])
    monkeypatch.setattr(manager.fontManager, "ttflist", [])
    added = []

    def addfont(path):
        added.append(path)
        manager.fontManager.ttflist.append(late)

    monkeypatch.setattr(manager.fontManager, "addfont", addfont)
    assert words.chinese_font.__wrapped__() == "WenQuanYi Micro Hei" and added == ["/fonts/wqy-microhei.ttc"]
