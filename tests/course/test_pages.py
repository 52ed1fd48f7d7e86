"""The HTML pages: whole without a network, with formulas drawn and hints closed."""

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kdlib.course.build import pages

ROOT = Path(__file__).resolve().parents[2]
COURSE = ROOT / "notebooks"
NOTEBOOKS = sorted(path.relative_to(COURSE).as_posix() for path in COURSE.rglob("*.ipynb"))


def rendered(notebook) -> str:
    return pages.render(notebook, "A")


class Tree(HTMLParser):
    """For each text that is not blank, the elements that it stands in; the formulas; what is loaded."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.texts, self.formulas, self.loaded = [], {}, [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "math":
            self.formulas.append(attrs.get("alttext"))
        self.loaded += [value for name, value in attrs.items() if name in ("src", "srcset") or
                        (name == "href" and tag == "link")]  # fmt: skip
        if tag not in ("meta", "link", "img", "br", "hr", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        depth = len(self.open)
        self.handle_starttag(tag, attrs)
        del self.open[depth:]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts[data.strip()] = list(self.open)


def prose(source: str, **more) -> Tree:
    return Tree(rendered(new_notebook(cells=[new_markdown_cell(source)], **more)))


def test_page_loads_nothing_from_the_network():
    cells = [new_markdown_cell("# A\n\n$a$"), new_code_cell("1")]
    page = rendered(new_notebook(cells=cells))
    assert Tree(page).loaded == []
    assert not re.search(r"mathjax|https?://[^\s\"']*\.m?js|@import", page, re.IGNORECASE)


def test_only_a_page_with_sliders_loads_their_scripts():
    state = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2}}
    notebook = new_notebook(cells=[new_markdown_cell("$a$")], metadata={"widgets": state})
    page = rendered(notebook)
    assert [re.search(r"[\w.]+$", address)[0] for address in Tree(page).loaded] == ["require.min.js"]
    assert "html-manager" in page and "mathjax" not in page.lower()


def test_hint_stays_in_its_fold():
    tree = prose("<details><summary>Hint</summary>\n\nUse *it* and $b$.\n\n- one\n\n</details>\n\nafter")
    assert tree.texts["Hint"][-2:] == ["details", "summary"]
    assert all("details" in tree.texts[text] for text in ("it", "b", "one"))
    assert "details" not in tree.texts["after"]
    assert tree.formulas == ["b"]


def test_code_that_jupyter_folds_is_folded_with_its_outputs_in_sight():
    cells = [new_code_cell("assert loss < 1", metadata={"jupyter": {"source_hidden": True}}),
             new_code_cell("print(loss)")]  # fmt: skip
    cells[0].outputs = [new_output("stream", text="as claimed")]
    tree = Tree(rendered(new_notebook(cells=cells)))
    assert "details" in tree.texts["assert"] and "details" not in tree.texts["print"]
    assert "details" not in tree.texts["as claimed"]


def test_formulas_of_markdown_outputs_are_drawn_and_printed_dollars_stay():
    outputs = [
        new_output("display_data", {"text/markdown": "so $c_1$ and *d*"}),
        new_output("stream", name="stdout", text="costs $5 and $6\n"),
    ]
    tree = Tree(rendered(new_notebook(cells=[new_code_cell("x = '$y$'", outputs=outputs)])))
    assert tree.formulas == ["c_1"]
    assert "costs $5 and $6" in tree.texts


def test_cell_of_a_formula_that_cannot_be_drawn_is_named():
    cells = [new_markdown_cell("$a$"), new_code_cell("'$'"), new_markdown_cell(r"so $\foo$", id="here")]
    with pytest.raises(ValueError, match=r"cell 3 \(id here\): the formula \\foo cannot be drawn"):
        pages.check_formulas(new_notebook(cells=cells), "00_a")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_formula_of_the_course_is_drawn(name):
    notebook = nbformat.read(COURSE / name, as_version=4)
    page = pages.render(notebook, name)
    tree = Tree(page)
    prose = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert len(tree.formulas) >= prose.count("$$") // 2
    assert all(tree.formulas)
    left = [text for text, place in tree.texts.items() if "$" in text and not {"pre", "code"} & set(place)]
    assert not left


def test_index_shows_titles_and_minutes():
    text = pages.index_page({"01_a": "Hard & soft"}, {"01_a": 0.4249})
    assert '<a href="01_a.html">Hard &amp; soft</a> (0.42 min)' in text

def test_links_to_documents_beside_the_notebooks_lead_out_of_the_build_folder():
    page = pages.markdown_to_html("[a](teaching.md) [b](02_b.ipynb#x) [c](../data/y.json) [d](https://z/e.md)")
    targets = ["../../notebooks/teaching.md", "02_b.html#x", "../../data/y.json", "https://z/e.md"]
    assert re.findall('href="([^"]*)"', page) == targets
