"""The site of a tiny course: what Sphinx makes of a notebook, in two languages, and what it refuses."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kdlib.__main__ import main
from kdlib.course.build.execute import METADATA
from kdlib.course.figures import png
from kdlib.course.plots import label_bars

pytest.importorskip("furo", reason="the package furo is not installed")

from kdlib.course.site.build import build_site  # noqa: E402
from kdlib.course.site.chinese import SearchPairs  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TEXT = "a 2.00, b 1.00: difference +1.00 points\n95% interval [+0.50, +1.50] over 3 seeds\nverdict: better"
VERDICT = {"few": {"a against b": {"verdict": "better", "text": TEXT}}}


def picture(height: float, alt: str):
    data = base64.b64encode(png(label_bars({"p": [height, 1 - height]}, ["cat", "dog"]))).decode()
    about = {"alt": alt, "width": 400, "height": 300}
    return new_output("display_data", {"image/png": data}, metadata={"image/png": about})


def page(*cells) -> str:
    return nbformat.writes(new_notebook(cells=list(cells), metadata=METADATA))


def make_course(root: Path, **more: str) -> Path:
    """Every kind of page once, in both languages; `more` replaces files by name."""
    shutil.copytree(ROOT / "kdlib/course/site", root / "kdlib/course/site")
    labels = [
        new_markdown_cell(
            "# Labels\n\nA [soft label](glossary.ipynb#soft-label) $p_i$, 91<!--out:x--> %, \\$5, `$a$`;"
            " [here](#Why-two-words?), [there](02_t.ipynb#Why-%24T%5E2%24%3F), [file](../data/x.csv)."
        ),
        new_markdown_cell("## Why two words?\n\n$$\nq = a\n$$"),
        new_code_cell("show()", id="shown", outputs=[picture(0.2, "first \"one\""), picture(0.4, "second")]),
        new_code_cell("assert x  # folded", metadata={"tags": ["claim", "hide-input"]}),
        new_code_cell("print()", id="said", outputs=[new_output("stream", text="a < b\n\nc\n")]),
        new_markdown_cell("<details><summary>Hint</summary>\n\nUse *it*, $b$.\n\n</details>\n\nafter"),
    ]
    glossary = "# Glossary\n\n### soft label\n\nProbabilities\nfrom $\\mathrm{softmax}(z)$.\n\nMore."
    solution = new_code_cell("x = 1", metadata={"tags": ["solution-1"]})
    files = {
        "README.md": "# Course\n\n[In Chinese](README.zh.md)",
        "README.zh.md": "# 课程\n\n[贡献](CONTRIBUTING.md)",
        "COMPARISON.md": "# Others", "CONTRIBUTING.md": "# How",
        "data/README.md": "# Data", "data/results/README.md": "# Results",
        "data/x.csv": "1", "data/results/x.json": json.dumps({"environment": {}, "verdicts": VERDICT}),
        "kdlib/course/site/api.md": "# Names",
        "notebooks/teaching.md": "# Teaching", "notebooks/01_labels.ipynb": page(*labels),
        "notebooks/02_t.ipynb": page(new_markdown_cell("# T\n\n## Why $T^2$?\n\ntext")),
        "notebooks/glossary.ipynb": page(new_markdown_cell(glossary)),
        "notebooks/solutions/01_labels.ipynb": page(new_markdown_cell("# Solutions"), solution),
        "notebooks/zh/01_labels.ipynb": page(
            new_markdown_cell("# 标签\n\n[软标签](glossary.ipynb#软标签) 和 [英文](../01_labels.ipynb)")
        ),
        "notebooks/zh/glossary.ipynb": page(new_markdown_cell("# 术语表\n\n### 软标签\n\n概率。")),
        "notebooks/zh/solutions/01_labels.ipynb": page(new_markdown_cell("# 参考答案"), solution),
    } | more  # fmt: skip
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


SLIDES = """# Slides

## Labels

2 min, [here](01_labels.ipynb#Why-two-words?)

<!--stored:01_labels/shown-->

<aside class="notes">

Say $p$.

</aside>

### More

<!--stored:01_labels/said-->
"""


class Page(HTMLParser):
    """For each text, the elements that it stands in; links with their titles; pictures; formulas."""

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.texts, self.links, self.alts, self.formulas = [], {}, {}, [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "a":
            self.links[attrs.get("href")] = attrs.get("title")
        if tag == "img":
            self.alts.append(attrs.get("alt"))
        if tag == "math":
            self.formulas.append(attrs.get("alttext"))
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


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    chinese = "# 幻灯片\n\n## 标签\n\n### 软标签\n\n[标签](01_labels.ipynb)"
    more = {"notebooks/slides.md": SLIDES, "notebooks/zh/slides.md": chinese}
    root = make_course(
        tmp_path_factory.mktemp("course"), **more, **{"notebooks/teaching.md": "# Teaching\n\n[S](slides.md)"}
    )
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    first = build_site(root)
    assert first == root / "build/site/index.html"
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert {path for path in after if path not in before} == {
        path for path in (root / "build/site").rglob("*") if path.is_file()
    }
    assert {path: after[path] for path in before} == before
    return first.parent


@pytest.fixture(scope="module")
def labels(site) -> Page:
    return Page(site / "notebooks/01_labels.html")


def test_formulas_are_drawn_and_dollars_of_code_and_prose_stay(labels):
    assert labels.formulas == ["p_i", "q = a", "b"]
    assert "code" in labels.texts["$a$"]
    assert not [text for text in labels.texts if "out:" in text]
    assert any("$5" in text for text in labels.texts)


def test_each_picture_has_its_alt_text_though_two_share_a_cell(labels):
    assert labels.alts == ['first "one"', "second"]


def test_links_lead_to_headings_as_jupyterlab_names_them(labels):
    assert "#why-two-words" in labels.links
    assert "02_t.html#why-t-2" in labels.links
    assert any(link.endswith("/x.csv") for link in labels.links)


def test_a_term_says_what_it_means(labels):
    assert labels.links["glossary.html#soft-label"] == "Probabilities from softmax(z)."


def test_claims_hints_and_solutions_are_folded_and_outputs_in_sight(site, labels):
    assert "details" in labels.texts["# folded"]
    assert "details" in labels.texts["it"] and "details" not in labels.texts["after"]
    assert "details" not in labels.texts["show"]
    solutions = Page(site / "notebooks/solutions/01_labels.html")
    assert "details" in solutions.texts["Show the solution"]


def test_slides_show_what_is_stored_and_know_their_time(site):
    path = site / "slides/notebooks/slides.html"
    slides, text = Page(path), path.read_text(encoding="utf-8")
    assert slides.alts == ['first "one"'] and slides.formulas == ["p"]
    assert "aside" in slides.texts["Say"] and "pre" in slides.texts["a < b\n\nc"]
    assert re.findall(r'data-timing="(\d+)"', text) == ["60", "60"]
    assert "../../notebooks/01_labels.html" in slides.links and '<html  lang="en"' in text
    chinese = site / "slides/notebooks/zh/slides.html"
    assert "../../../zh/notebooks/zh/01_labels.html" in Page(chinese).links
    assert 'lang="zh-CN"' in chinese.read_text(encoding="utf-8")
    assert "../slides/notebooks/slides.html" in Page(site / "notebooks/teaching.html").links


@pytest.mark.parametrize(
    ("marker", "says"), [("02_labels/shown", "no notebook 02"), ("01_labels/gone", "no cell gone")]
)
def test_a_slide_that_shows_nothing_ends_the_build(tmp_path, marker, says):
    root = make_course(tmp_path, **{"notebooks/slides.md": SLIDES.replace("01_labels/shown", marker)})
    with pytest.raises(ValueError, match=f"slides.md: WARNING: <!--stored:{marker}-->: .*{says}"):
        build_site(root)


def test_results_are_tables(site):
    texts = Page(site / "kdlib/course/site/results.html").texts
    assert "td" in texts["a 2.00, b 1.00"] and "td" in texts["[+0.50, +1.50] over 3 seeds"]
    assert "few" in texts


def test_each_page_leads_to_its_twin_and_links_cross_over(site):
    def links(name: str) -> set[str]:
        """The targets of a page, below the site; every one of them exists."""
        targets = {link.partition("#")[0] for link in Page(site / name).links if link}
        found = {(site / name).parent / target for target in targets if target and "://" not in target}
        assert all(path.is_file() for path in found)
        return {path.resolve().relative_to(site.resolve()).as_posix() for path in found}

    assert {"zh/README.zh.html", "notebooks/01_labels.html"} <= links("index.html")
    assert "zh/notebooks/zh/01_labels.html" in links("notebooks/01_labels.html")
    assert "zh/README.zh.html" in links("notebooks/02_t.html")  # it has no twin
    assert {"notebooks/01_labels.html", "zh/notebooks/zh/glossary.html"} <= links(
        "zh/notebooks/zh/01_labels.html"
    )
    assert {"README.html", "CONTRIBUTING.html"} <= links("zh/index.html")
    chinese = Page(site / "zh/notebooks/zh/01_labels.html")
    assert "概率。" in chinese.links.values()
    assert "展开参考答案" in Page(site / "zh/notebooks/zh/solutions/01_labels.html").texts


def test_chinese_is_found_by_pairs_of_characters(site):
    index = (site / "zh/searchindex.js").read_text(encoding="utf-8")
    terms = [json.dumps(term) + ":" for term in ("软标", "标签", "标签和")]
    assert [term in index for term in terms] == [True, True, False]
    assert "ChineseStemmer" not in (site / "zh/_static/language_data.js").read_text(encoding="utf-8")
    assert SearchPairs({}).split("用 KL 散度蒸馏，T=4") == ["用", "KL", "散度", "度蒸", "蒸馏", "T", "4"]


def test_what_is_wrong_is_named_and_the_site_of_before_stays(tmp_path, capsys):
    wrong = "# A\n\nso $\\foo_1$\n\n[a](03_gone.ipynb)\n\n[b](glossary.ipynb#hard-label)\n\n![](gone.png)"
    root = make_course(tmp_path, **{"notebooks/01_labels.ipynb": page(new_markdown_cell(wrong))})
    (root / "pyproject.toml").write_text("")
    old = root / "build/site/old.html"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    assert main(["course", "--site", "--root", str(root)]) == 1
    said = capsys.readouterr().err
    for what in (r"\\foo_1 cannot be drawn", r"03_gone\.ipynb", "hard-label", r"gone\.png"):
        assert re.search(f"01_labels.ipynb:.*{what}", said), what
    assert old.read_text() == "old"


def test_a_site_is_of_the_whole_course(capsys):
    with pytest.raises(SystemExit):
        main(["course", "--site", "02_temperature"])
    assert "leave out names" in capsys.readouterr().err
