"""The guards on the Chinese edition: on a small course with each fault once, then on the course itself."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import nbformat
import pytest
from guards import CHINESE_GUARDS, GUARDS, course, prose, read
from guards.chinese import lost_numbers
from spoiling import COURSE, rewrite

from kdlib.course.build import chinese
from kdlib.course.build.chinese import Edition, Leaf

ROOT = Path(__file__).resolve().parents[2]
PAGE_GUARDS = {name: GUARDS[name] for name in ("links", "measured", "outputs")}


@cache
def real() -> Edition:
    return Edition(ROOT)


def said(edition: Edition, guard: str) -> list[str]:
    return [complaint for leaf in edition.leaves for complaint in CHINESE_GUARDS[guard](edition, leaf)]


# --- a small course ---------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", CHINESE_GUARDS)
def test_the_good_edition_passes(guard: str):
    edition = Edition(COURSE)
    assert len(edition.twins) == len(edition.leaves) == 4 and not edition.stale()
    assert said(edition, guard) == []


@pytest.mark.parametrize("guard", PAGE_GUARDS)
def test_the_good_chinese_notebooks_pass_the_guards_of_their_pages(guard: str):
    paths = sorted((COURSE / "notebooks" / "zh").rglob("*.ipynb"))
    assert len(paths) == 3
    for path in paths:
        assert PAGE_GUARDS[guard](read(path, COURSE)) == []


PAGE, GLOSSARY = "text/00_good.md", "text/glossary.md"
SOLUTION, README = "text/solutions/00_good.md", "text/README.md"
# Guard, file in notebooks/zh, what is replaced by what, the cell, what is said.
FAULTS = [
    ("translated", PAGE, "<!-- cell c11 of", "<!-- cell c99 of", "c11 ('The", "expected its translation"),
    ("translated", PAGE, "cell c11 of ", "cell c11 of 0123456789ab -->\n<!-- ", "c11 (", "that of 0123"),
    ("translated", PAGE, "交互图显示的和上图一样。", "It shows it.", "c11 (", "the English text"),
    ("translated", README, "document of", "c1 of", "document ('# A course", "expected its translation"),
    ("complete", PAGE, "30 分钟", "35 分钟", "c01 ('# A notebook", "the number 30"),
    ("complete", PAGE, "双核 CPU 上 0.5 分钟", "双核 CPU 上半分钟", "c01 (", "the number 0.5"),
    ("complete", PAGE, "$p = T$", "$p=T$", "c02 (", "the formula $p = T$"),
    ("complete", PAGE, "里的 `T`", "里的 T", "c02 (", "the code `T`"),
    ("complete", PAGE, "results/demo.json)", "results/course.json)", "c02 (", "the link ../data"),
    ("complete", PAGE, "[下文](#Take-it-with-you)", "下文", "c02 (", "the link #Take-it-with-you"),
    ("complete", PAGE, "<!--results:demo.json:gap-->", "", "c06 (", "the marker −3.5%<!--"),
    ("complete", PAGE, "0.506**<!--out:demo-->", "0.5060**<!--out:demo-->", "c06 (", "marker 0.506<"),
    ("complete", PAGE, "## 带走", "### 带走", "c13 (", "the heading of level 2"),
    ("complete", PAGE, "| **下载** | 无 |", "", "c01 (", "the table row"),
    ("complete", PAGE, "<summary>提示</summary>", "提示", "c16 (", "the tag <summary>"),
    ("complete", PAGE, "和上图一样。", "和上图一样。见[这里](https://example.org)。", "c11 (", "no link https://example.org"),
    ("complete", README, "1,797<", "1,798<", "document (", "the marker 1,797<"),
    ("complete", README, "#soft-label", "", "document (", "the link notebooks/glossary.ipynb#soft-label"),
    ("complete", SOLUTION, "../00_good.ipynb", "00_good.ipynb", "c26 (", "the link ../00_good.ipynb"),
    ("terms", PAGE, "[标签（label）]", "[记号（label）]", "c01 (", "expected '标签' for 'label'"),
    ("terms", PAGE, "[温度（temperature）]", "[热度（temperature）]", "c02 (", "expected '温度' for"),
    ("entries", GLOSSARY, "### 温度（temperature）", "### 温度", "c37 (", "'### 温度（temperature）'"),
    ("entries", GLOSSARY, "### 温度（temp", "### 标签（temp", "c37 (", "found that of 'label'"),
    ("same_code", "00_good.ipynb", "answer_1 = None", "answer_1 = 1", "17 (", "expected code and outputs"),
    ("same_code", "00_good.ipynb", "entropy: 0.441", "entropy: 0.5", "12 (", "expected code and outputs"),
    ("same_code", "00_good.ipynb", '"result:demo"', '"result:dem"', "5 (", "expected code and outputs"),
    ("same_code", "00_good.ipynb", '"c05"', '"c55"', "", "00_good.ipynb: expected the cells of"),
    ("same_code", "00_good.ipynb", '"python3"', '"python"', "", "expected the metadata"),
    ("written", "00_good.ipynb", "和上图一样。", "和上图不同。", "", "00_good.ipynb: expected what make"),
    ("written", PAGE, "和上图一样。", "和上图相同。", "", "00_good.ipynb: expected what make"),
    ("written", GLOSSARY, "样本所属的类别。", "样本的类别。", "", "expected what make"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault[0]}-{fault[1]}-{fault[2][:20]}")
def test_fault(tree: Path, fault: tuple[str, str, str, str, str, str]):
    guard, file, old, new, cell, says = fault
    rewrite(tree / "notebooks" / "zh" / file, old, new)
    complaints = said(Edition(tree), guard)
    where = f", cell {cell}" if cell else ""
    assert [c for c in complaints if c.startswith("notebooks/zh/") and where in c and says in c], complaints


@pytest.mark.parametrize("file", ["00_good.ipynb", PAGE])
def test_missing_file(tree: Path, file: str):
    (tree / "notebooks" / "zh" / file).unlink()
    edition = Edition(tree)
    complaints = [complaint for guard in CHINESE_GUARDS for complaint in said(edition, guard)]
    assert any(f"notebooks/zh/{file}: expected" in complaint for complaint in complaints)


def test_english_text_that_has_changed_makes_every_guard_on_old_text_complain(tree: Path):
    rewrite(tree / "notebooks" / "00_good.ipynb", "The explorer shows what", "The explorer shows that")
    edition = Edition(tree)
    for guard in ("translated", "written"):
        assert any("cell c11 ('The explorer shows that" in complaint for complaint in said(edition, guard))


@pytest.mark.parametrize(
    ("english", "translation", "lost"),
    [
        ("1.3 million photographs", "130 万张照片", []),
        ("7 billion parameters", "70 亿参数", []),
        ("7 billion parameters", "7B 参数", []),
        ("7 billion parameters", "7 亿参数", ["7"]),
        ("17,000 tokens", "1.7 万个词元", []),
        ("17,000 tokens, 3 times", "17,000 个词元，三次", ["3"]),
        ("three in 5", "5 个里有 3 个", []),
        ("2 and 2", "2", ["2"]),
        ("in [2](x3.md) `4` $5$<!--out:6-->", "无", ["2"]),
    ],
)
def test_numbers_that_are_lost(english: str, translation: str, lost: list[str]):
    assert lost_numbers(english, translation) == lost


def test_the_chinese_edition_is_no_stray_part_of_the_english_course(tree: Path):
    assert course(tree) == []
    shutil.copy(tree / "notebooks/zh/00_good.ipynb", tree / "notebooks/zh/01_more.ipynb")
    assert Edition(tree).stale() == [
        "notebooks/zh/01_more.ipynb: expected an English page of that name; delete the file or rename it"
    ]


# --- the course itself ------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", CHINESE_GUARDS)
@pytest.mark.parametrize("leaf", chinese.leaves(ROOT), ids=lambda leaf: leaf.name)
def test_page(leaf: Leaf, guard: str):
    complaints = CHINESE_GUARDS[guard](real(), leaf)
    assert not complaints, "\n".join(["", *complaints])


@pytest.mark.parametrize("guard", PAGE_GUARDS)
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks/zh").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_chinese_notebook(path: Path, guard: str):
    complaints = PAGE_GUARDS[guard](read(path, ROOT))
    assert not complaints, "\n".join(["", *complaints])


def test_nothing_is_stale_and_every_schematic_is_drawn():
    complaints = real().stale()
    for leaf in chinese.leaves(ROOT):
        for cell in real().english[leaf].cells:
            if "schematics." in cell.source and cell.get("outputs"):
                picture = real().pictures.chinese(cell.source, cell.outputs[0].data["image/png"])
                if picture is None:
                    complaints.append(f"{leaf.english}: expected {cell.source} in Chinese; make zh")
    assert not complaints, "\n".join(["", *complaints])


def test_anchors_are_those_that_the_guards_expect():
    """Written twice, independently: for the edition, and for the guards on links."""
    for leaf, page in real().english.items():
        anchor = prose.github_anchor if leaf.english.suffix == ".md" else prose.jupyter_anchor
        for source in chinese.prose(page).values():
            expected = [anchor(text) for _, text, _ in prose.headings(source)]
            assert [found for found, _ in chinese.anchors(source, leaf.english.suffix)] == expected


def test_nbval_runs_no_chinese_notebook(tmp_path: Path):

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    for folder in ("notebooks", "notebooks/zh"):
        (tmp_path / folder).mkdir()
        nbformat.write(notebook, tmp_path / folder / "00_a.ipynb")
    shutil.copy(ROOT / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "--nbval", "--collect-only", "-q", "notebooks"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "notebooks/00_a.ipynb::Cell 0" in done.stdout, done.stdout + done.stderr
    assert "zh" not in done.stdout
