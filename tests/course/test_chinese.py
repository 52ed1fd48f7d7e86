"""The Chinese edition of a tiny course: what is written, what is refused, where links lead.

That nothing of the real course is lost in translation is what tests/notebooks guards.
"""

import base64
import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kdlib.__main__ import main
from kdlib.course import schematics, words
from kdlib.course.build import chinese
from kdlib.course.build.chinese import Edition, fingerprint
from kdlib.course.figures import png

LINKS = (
    "See [soft label](glossary.ipynb#soft-label), [below](#Part-two), [the other](01_b.ipynb#Two-words), "
    "[data](../data/x.json), [solution](solutions/00_a.ipynb), [guide](teaching.md#a-part), "
    '[up](../README.md), <img alt="x" src="../data/x.png">, [far](https://example.org/a.ipynb) '
    "and `[code](01_b.ipynb)`."
)
ENGLISH = {
    "00_a": [
        new_markdown_cell(f"# A\n\n{LINKS}", id="a1"),
        new_code_cell("print(1)", id="a2", execution_count=1, outputs=[new_output("stream", text="1\n")]),
        new_markdown_cell("## Part two\n\nText.", id="a3"),
    ],
    "01_b": [new_markdown_cell("# B\n\n## Two words\n\nText.\n\n## Not linked", id="b1")],
    "glossary": [new_markdown_cell("# Glossary\n\n### soft label\n\nText.\n\n### softmax\n\nText.", id="g1")],
    "solutions/00_a": [new_markdown_cell("# Solution\n\n[up](../00_a.ipynb#Part-two)", id="s1")],
}  # fmt: skip
CHINESE = {
    "00_a": {"a1": f"# 甲\n\n见{LINKS}", "a3": "## 第二部分\n\n文字。"},
    "01_b": {"b1": "# 乙\n\n## 两个词\n\n文字。\n\n## 没有链接"},
    "glossary": {"g1": "# 术语表\n\n### 软标签（soft label）\n\n文字。\n\n### softmax\n\n文字。"},
    "solutions/00_a": {"s1": "# 参考答案\n\n[上](../00_a.ipynb#Part-two)"},
    "README": {"document": "# 课程\n\n[甲](notebooks/00_a.ipynb#Part-two)"},
    "teaching": {"document": "# 上课\n\n## 一部分\n\n[甲](00_a.ipynb)"},
}


def write_text(root: Path, name: str, cells: dict[str, str]) -> None:
    """The file of translated cells, each marked as made from the English text as it is."""
    edition = Edition(root)
    (leaf,) = (leaf for leaf in edition.leaves if leaf.name == name)
    english = chinese.prose(edition.english[leaf])
    path = root / leaf.text
    path.parent.mkdir(parents=True, exist_ok=True)
    marks = {cell: f"<!-- cell {cell} of {fingerprint(english[cell])} -->" for cell in cells}
    path.write_text("\n".join(f"{marks[cell]}\n{cells[cell]}\n" for cell in cells), encoding="utf-8")


@pytest.fixture
def course(tmp_path):
    (tmp_path / "notebooks" / "solutions").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("")
    for name, cells in ENGLISH.items():
        notebook = new_notebook(cells=json.loads(json.dumps(cells)), metadata={"kdlib": {"download": "x"}})
        nbformat.write(nbformat.from_dict(notebook), tmp_path / "notebooks" / f"{name}.ipynb")
    (tmp_path / "README.md").write_text("# Course\n\n[A](notebooks/00_a.ipynb#Part-two)\n")
    (tmp_path / "notebooks" / "teaching.md").write_text("# Teaching\n\n## A part\n\n[A](00_a.ipynb)\n")
    return tmp_path


@pytest.fixture
def edition(course):
    for name, cells in CHINESE.items():
        write_text(course, name, cells)
    return course


def page(root: Path, name: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(root / "notebooks" / "zh" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook


def targets(source: str) -> list[str]:
    found = re.findall(r'\]\((.+?)\)|src="(.+?)"', re.sub("`.+?`", "", source))
    return [link or image for link, image in found]


def zh(root: Path, *more: str) -> int:
    return main(["course", "--zh", "--root", str(root), *more])


def text_file(root: Path, name: str = "00_a") -> Path:
    return root / "notebooks" / "zh" / "text" / f"{name}.md"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_everything_but_the_prose_is_that_of_the_english_notebook(edition):
    assert zh(edition) == 0
    for name, cells in ENGLISH.items():
        notebook = page(edition, name)
        assert notebook.metadata == {"kdlib": {"download": "x"}}
        assert [cell.id for cell in notebook.cells] == [cell.id for cell in cells]
    assert page(edition, "00_a").cells[1] == ENGLISH["00_a"][1]
    assert page(edition, "00_a").cells[2].source == '<a id="Part-two"></a>\n\n## 第二部分\n\n文字。'


def test_links_lead_to_chinese_pages_and_out_of_the_deeper_folder(edition):
    assert zh(edition) == 0
    assert targets(page(edition, "00_a").cells[0].source) == [
        "glossary.ipynb#soft-label", "#Part-two", "01_b.ipynb#Two-words", "../../data/x.json",
        "solutions/00_a.ipynb", "teaching.md#a-part", "../../README.zh.md", "../../data/x.png", "https://example.org/a.ipynb",
    ]  # fmt: skip
    assert "`[code](01_b.ipynb)`" in page(edition, "00_a").cells[0].source
    assert targets(page(edition, "solutions/00_a").cells[0].source) == ["../00_a.ipynb#Part-two"]
    first, *rest = (edition / "README.zh.md").read_text(encoding="utf-8").splitlines()
    assert fingerprint("# Course\n\n[A](notebooks/00_a.ipynb#Part-two)") in first
    assert rest[-1] == "[甲](notebooks/zh/00_a.ipynb#Part-two)"
    guide = (edition / "notebooks" / "zh" / "teaching.md").read_text(encoding="utf-8")
    assert '<a id="a-part"></a>\n\n## 一部分\n\n[甲](00_a.ipynb)' in guide


def test_only_headings_that_are_linked_and_called_otherwise_keep_an_english_anchor(edition):
    assert zh(edition) == 0
    assert page(edition, "glossary").cells[0].source.count("<a id") == 1  # softmax is called softmax
    assert "## 没有链接" in page(edition, "01_b").cells[0].source
    assert page(edition, "01_b").cells[0].source.count("<a id") == 1


def test_what_is_not_translated_yet_is_linked_in_english(edition):
    text_file(edition, "01_b").unlink()
    text_file(edition, "README").unlink()
    assert zh(edition) == 1
    found = targets(page(edition, "00_a").cells[0].source)
    assert "../01_b.ipynb#Two-words" in found and "../../README.md" in found
    assert not (edition / "README.zh.md").exists()


def test_a_second_time_nothing_is_written(edition):
    assert zh(edition) == 0
    before = {path: os.stat(path).st_mtime_ns for path in edition.rglob("*") if path.is_file()}
    assert zh(edition) == 0
    assert {path: os.stat(path).st_mtime_ns for path in edition.rglob("*") if path.is_file()} == before


FAULTS = [
    ("00_a", "a3 of", "a9 of", "cell a3 ('## Part two'): expected its translation"),
    ("00_a", "a3 of", "a9 of", "cell a9 ('## 第二部分'): expected an id of the English page"),
    ("00_a", "## 第二部分", "第二部分", "cell a3 ('## Part two'): expected 1 headings"),
    ("00_a", "## 第二部分\n\n文字。", "## Part two\n\nText.", "cell a3 ('## Part two'): expected Chinese"),
    ("00_a", "<!-- cell a1 of", "<!-- cell a1 of 012345678901 -->\n甲\n\n<!-- cell a1 of", "cell a1 once"),
    ("00_a", "<!-- cell a1 of", "前言\n<!-- cell a1 of", "or such at the top"),
    ("teaching", "## 一部分\n", "", "cell document ('# Teaching'): expected 2 headings"),
]


@pytest.mark.parametrize(("name", "old", "new", "says"), FAULTS)
def test_a_page_that_is_not_whole_is_named_and_not_written(edition, capsys, name, old, new, says):
    edit(text_file(edition, name), old, new)
    assert zh(edition) == 1
    error = capsys.readouterr().err
    assert f"notebooks/zh/text/{name}.md" in error and says in error
    path = "teaching.md" if name == "teaching" else f"{name}.ipynb"
    assert not (edition / "notebooks" / "zh" / path).exists()


def test_an_english_text_that_has_changed_makes_its_translation_old(edition, capsys):
    assert zh(edition) == 0
    path = edition / "notebooks" / "00_a.ipynb"
    before = (edition / "notebooks/zh/00_a.ipynb").read_bytes()
    edit(path, "Text.", "Another text.")
    assert zh(edition) == 1
    mark = fingerprint("## Part two\n\nAnother text.")
    expected = f"cell a3 ('## Part two'): expected the translation of the text {mark}"
    assert expected in capsys.readouterr().err
    assert (edition / "notebooks/zh/00_a.ipynb").read_bytes() == before


def test_a_page_without_an_english_one_is_named(edition, capsys):
    text_file(edition, "02_gone").write_text("")
    assert zh(edition) == 1
    assert "notebooks/zh/text/02_gone.md: expected an English page of that name" in capsys.readouterr().err


def test_stubs_hold_the_english_text_and_still_count_as_not_translated(course, capsys):
    assert zh(course, "--stubs") == 1
    source = ENGLISH["solutions/00_a"][0].source
    stub = f"<!-- cell s1 of {fingerprint(source)} -->\n{source}\n"
    assert text_file(course, "solutions/00_a").read_text() == stub
    error = capsys.readouterr().err
    assert error.count("expected Chinese, found the English text") == 7
    assert not list((course / "notebooks" / "zh").glob("*.ipynb"))


def test_stubs_keep_what_is_translated_and_put_the_new_text_below_an_old_translation(edition):
    edit(text_file(edition), "<!-- cell a3", "<!-- cell a0")
    edit(edition / "notebooks" / "01_b.ipynb", "Text.", "Another text.")
    mark = text_file(edition, "01_b").read_text(encoding="utf-8").splitlines()[0]
    for _ in range(2):  # the second time changes nothing
        assert zh(edition, "--stubs") == 1
        found = text_file(edition).read_text(encoding="utf-8")
        assert found.index("cell a1") < found.index("cell a3") < found.index("cell a0")
        assert "见See" in found and "## Part two" in found and "## 第二部分" in found
        old = text_file(edition, "01_b").read_text(encoding="utf-8")
        assert old.startswith(mark) and "## 两个词" in old and old.count("Another text.") == 1
    # A new marker alone does not make it a translation.
    source = nbformat.read(edition / "notebooks" / "01_b.ipynb", as_version=4).cells[0].source
    edit(text_file(edition, "01_b"), mark, f"<!-- cell b1 of {fingerprint(source)} -->")
    (wrong,) = (wrong for wrong in Edition(edition).write() if "01_b.md, cell b1" in wrong)
    assert "found the English text" in wrong


def test_stubs_are_of_the_chinese_edition(edition, capsys):
    with pytest.raises(SystemExit):
        main(["course", "--stubs", "--root", str(edition)])
    assert "--stubs belongs to --zh" in capsys.readouterr().err


def with_schematic(root: Path) -> str:
    """Put a schematic into 00_a; return the schematic's PNG in base64."""
    path = root / "notebooks" / "00_a.ipynb"
    notebook = nbformat.read(path, as_version=4)
    english = base64.b64encode(png(schematics.failures())).decode()
    about = {"image/png": {"alt": "A schematic.", "width": 1, "height": 2}}
    data = {"image/png": english, "text/plain": "A schematic."}
    shown = new_output("display_data", data, metadata=about)
    notebook.cells += [new_code_cell("plots.show(schematics.failures())", outputs=[shown])]
    nbformat.write(notebook, path)
    return english


@pytest.fixture
def font(monkeypatch):
    """A font that is said to have Chinese, as CI may have none."""
    monkeypatch.setattr(words, "chinese_font", lambda: "DejaVu Sans")


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_schematic_is_drawn_once_and_kept_for_machines_without_a_font(edition, monkeypatch, font):
    english = with_schematic(edition)
    assert zh(edition) == 0
    (output,) = page(edition, "00_a").cells[3].outputs
    assert output.data["image/png"] != english and output.data["text/plain"].startswith("蒸馏可能在哪里失败")
    about = output.metadata["image/png"]
    assert about["alt"] == output.data["text/plain"] and about["width"] == 960

    before = (edition / "notebooks/zh/00_a.ipynb").read_bytes()
    monkeypatch.setattr(words, "chinese_font", lambda: None)
    (edition / "notebooks/zh/00_a.ipynb").unlink()
    assert zh(edition) == 0 and (edition / "notebooks/zh/00_a.ipynb").read_bytes() == before


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_schematic_of_an_older_english_one_stays_english(edition, monkeypatch, font, capsys):
    with_schematic(edition)
    assert zh(edition) == 0
    monkeypatch.setattr(words, "chinese_font", lambda: None)
    path = edition / "notebooks" / "00_a.ipynb"
    notebook = nbformat.read(path, as_version=4)
    other = base64.b64encode(png(schematics.healing())).decode()
    notebook.cells[3].outputs[0].data["image/png"] = other
    nbformat.write(notebook, path)
    assert zh(edition) == 1
    assert "figures/failures.png: expected that of the English one" in capsys.readouterr().err
    assert page(edition, "00_a").cells[3].outputs[0].data["image/png"] == other


def test_to_record_writes_the_chinese_notebook_too(edition, capsys):
    edit(edition / "notebooks" / "00_a.ipynb", "print(1)", "print(6 * 7)")
    assert main(["course", "--record", "00_a", "--root", str(edition)]) == 0
    cell = page(edition, "00_a").cells[1]
    assert cell.source == "print(6 * 7)" and cell.outputs[0].text == "42\n"
    assert "The Chinese edition is whole." in capsys.readouterr().out


def test_a_course_in_english_alone_is_recorded_as_before(course, capsys):
    assert main(["course", "--record", "glossary", "--root", str(course)]) == 0
    assert "Chinese" not in capsys.readouterr().out and not (course / "notebooks" / "zh").exists()
