"""Each guard fails on a notebook with the one fault it is there for, and names the right cell.

``fixtures/course`` is a course of one notebook that passes every guard. ``fixtures/bad`` holds that
notebook with one fault for each guard. `TREE_FAULTS` are faults of other files, and test_faults.py
holds every other way to spoil the notebook.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from guards import DOCUMENT_GUARDS, GUARDS, Page, course, documents, notebooks, read
from guards.claims import unfounded
from guards.functions import definitions, same
from guards.measured import rounds_to
from guards.pace import minutes
from guards.take_with_you import run_alone
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from spoiling import COURSE, GOOD, complaints_of, good, locate, place_of, rewrite, source

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
BAD = HERE / "fixtures" / "bad"


# --- the good course, and one bad notebook for each guard ------------------------------------------


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("path", notebooks(COURSE), ids=lambda path: path.parent.name + path.stem)
def test_good_notebooks_pass(path: Path, guard: str):
    assert GUARDS[guard](read(path, COURSE)) == []


@pytest.mark.parametrize("guard", DOCUMENT_GUARDS)
def test_good_documents_pass(guard: str):
    assert documents(COURSE)
    for path in documents(COURSE):
        assert DOCUMENT_GUARDS[guard](read(path, COURSE)) == []


def test_good_course_is_whole():
    assert len(notebooks(COURSE)) == 3
    assert course(COURSE) == []


BAD_CELLS = {
    "card": ("card", "Download"),
    "pace": ("card", "Reading and exercises"),
    "functions": ("shown:kdlib.losses.kd.soften", "kdlib.losses.kd.soften"),
    "take_with_you": ("take-with-you", "ModuleNotFoundError"),
    "exercises": ("check-2", "not yet"),
    "outputs": ("plots.show", "alt text"),
    "claims": ("perf_counter", "claim"),
    "measured": ("The largest falls", "expected 0.507"),
    "links": ("Why soften", "#Take-it-with-you"),
    "glossary": ("Why soften", "[temperatures](glossary.ipynb#temperature)"),
    "style": ("widget", "80"),
}


@pytest.mark.parametrize("guard", BAD_CELLS)
def test_bad_notebook(guard: str):
    page = Page(read(BAD / f"{guard}.ipynb", COURSE).node, GOOD, COURSE)
    where, says = BAD_CELLS[guard]
    said = complaints_of(page)
    assert list(said) == [guard], said
    place = place_of(locate(good().node, where))
    assert all(complaint.startswith(place) for complaint in said[guard]), said
    assert says in said[guard][0]


def test_minutes_of_a_learner_are_those_of_the_rule():
    """200 words or 12 lines a minute, half a minute a figure, eight an exercise; folded claims take none."""
    prose = new_markdown_cell("# Words\n\n" + "[two words](glossary.ipynb#label)<!--out:demo--> " * 150)
    code = new_code_cell("x = 1\n\n" * 24)
    figure = new_code_cell("show()", outputs=[new_output("display_data", data={"image/png": "AAAA"})])
    claim = new_code_cell("assert x\n" * 50, metadata={"tags": ["claim"]})
    stub = new_code_cell("answer_1 = None", metadata={"tags": ["exercise-1"]})
    page = Page(new_notebook(cells=[prose, code, figure, claim, stub]), GOOD, COURSE)
    assert minutes(page) == pytest.approx(301 / 200 + 26 / 12 + 0.5 + 8)


def test_a_notebook_of_more_than_two_hours_is_too_long():
    page = good()
    page.node.cells[1].source += " word" * 200 * 120
    said = GUARDS["pace"](page)
    assert any("at most 120 min" in complaint for complaint in said)


def test_every_guard_has_a_bad_notebook():
    # The fault that `readme` looks for is one of README.md: see TREE_FAULTS.
    assert BAD_CELLS.keys() | {"readme"} == GUARDS.keys()


@pytest.mark.parametrize("path", sorted(BAD.glob("*.ipynb")), ids=lambda path: path.stem)
def test_bad_notebook_differs_in_one_cell(path: Path):
    """Otherwise a guard could complain about something else than the fault."""
    bad, reference = read(path, COURSE).node, good().node
    assert bad.metadata == reference.metadata
    assert sum(a != b for a, b in zip(bad.cells, reference.cells, strict=True)) == 1


# --- faults outside the notebook: README.md, results, glossary, solutions --------------------------


README = "README.md"
COURSE_JSON = "data/results/course.json"
GLOSSARY = "notebooks/glossary.ipynb"
SOLUTION = "notebooks/solutions/00_good.ipynb"

# Guard, file, what is replaced by what, who is complained about, saying what.
TREE_FAULTS = [
    ("readme", README, "| 0.5 |", "| 1.5 |", "README.md, line 5", "about 0.5 min"),
    ("readme", README, "| 0.5 |", "| |", "README.md, line 5", "expected the minutes"),
    ("readme", README, "what a notebook must have", "all in 2 min", "README.md, line 5", "found 2"),
    ("readme", README, "00_good.ipynb", "01_good.ipynb", "README.md, line 1", "links to 00_good"),
    ("links", README, "00_good.ipynb", "01_good.ipynb", "README.md, line 5", "01_good.ipynb to"),
    ("links", README, "#a-course", "#A-course", "README.md, line 8", "#a-course-of-one-notebook"),
    ("links", README, "#soft-label", "#soft-labels", "README.md, line 6", "heading #soft-labels"),
    ("measured", README, "1,797<", "1,796<", "README.md, line 8", "expected 1797"),
    ("measured", README, "results:demo", "out:demo", "README.md, line 8", "the notebook demo.json"),
    ("card", COURSE_JSON, "0.5", "5", "notebooks/00_good.ipynb, cell 1 (", "about 5 min"),
    ("card", COURSE_JSON, "00_good", "00_bad", "notebooks/00_good.ipynb, cell 1 (", "make record"),
    ("functions", "kdlib/losses/kd.py", "z / temp", "z * temp", "notebooks/00_good.ipynb, cell 4 (",
     "as it stands in kdlib.losses.kd.soften"),
    ("glossary", GLOSSARY, "### label", "### weight", GLOSSARY + ", cell 3 (", "'soft label' before"),
    ("glossary", GLOSSARY, "### temp", "### Temp", GLOSSARY + ", cell 4 (", "in lower case"),
    ("glossary", GLOSSARY, "What logits are divided by.", "", GLOSSARY + ", cell 4 (", "a sentence"),
    ("glossary", GLOSSARY, "*Also: soft target,", "*Also: label,", GLOSSARY + ", cell 3 (", "once"),
    ("card", GLOSSARY, "# Glossary", "Glossary", GLOSSARY + ", cell 1 (", "a title"),
    ("exercises", SOLUTION, "Divide by it", "Divide it", SOLUTION + ", cell 4 (", "for letter"),
    ("exercises", SOLUTION, "Exercise 1: correct", "Exercise 1: not yet", SOLUTION + ", cell 4 (",
     "to say 'correct'"),
    ("exercises", SOLUTION, '"solution-2"', '"result:x"', SOLUTION + ": ", "solution-2, found 0"),
    ("exercises", SOLUTION, '"check-3"', '"result:x"', SOLUTION + ": ", "check-3, found 0"),
    ("exercises", SOLUTION, '"solution-3"', '"solution-4"', SOLUTION + ", cell 7 (", "to solve"),
    ("exercises", SOLUTION, "answer_1 = 1", "answer_1 = one", SOLUTION + ", cell 3 (", "knows no one"),
    ("links", SOLUTION, "#Exercises", "#exercises", SOLUTION + ", cell 1 (", "perhaps #Exercises"),
]  # fmt: skip


@pytest.mark.parametrize(
    "fault", TREE_FAULTS, ids=lambda fault: f"{fault[0]}-{Path(fault[1]).stem}-{fault[3]}"
)
def test_fault_elsewhere(tree: Path, fault: tuple[str, str, str, str, str, str]):
    guard, file, old, new, place, says = fault
    rewrite(tree / file, old, new)
    said = [
        complaint
        for path in (*notebooks(tree), *documents(tree))
        for complaint in GUARDS[guard](read(path, tree))
    ]
    assert [c for c in said if c.startswith(place) and says in c], said


@pytest.mark.parametrize(
    ("slide", "says"),
    [
        ("<!--stored:00_good/c07-->\n\n0.506<!--out:00_good.ipynb:demo-->", ""),
        ("<!--stored:00_good/c99-->", "the cell c99 with an output in 00_good.ipynb"),
        ("<!--stored:00_good/c03-->", "the cell c03 with an output in 00_good.ipynb"),
        ("<!--stored:01_good/c07-->", "the cell c07 with an output in 01_good.ipynb"),
        ("0.507<!--out:00_good.ipynb:demo-->", "expected 0.507 in the output of result:demo"),
        ("0.506<!--out:01_good.ipynb:demo-->", "the notebook 01_good.ipynb"),
    ],
)
def test_slides_show_what_the_notebooks_beside_them_have_stored(tree: Path, slide: str, says: str):
    path = tree / "notebooks" / "slides.md"
    path.write_text(f"# Slides\n\n{slide}\n")
    assert path in documents(tree)
    said = DOCUMENT_GUARDS["measured"](read(path, tree))
    assert [says in complaint for complaint in said] == [True] * bool(says), said
    path.rename(path.with_name("teaching.md"))
    if "stored" in slide:
        assert "found 'stored:'" in DOCUMENT_GUARDS["measured"](read(path.with_name("teaching.md"), tree))[0]


@pytest.mark.parametrize(("said", "complains"), [("0.1", False), ("0.15", False), ("0.3", True)])
def test_card_and_readme_forgive_noise_below_a_tenth_of_a_minute(
    tree: Path, said: str, complains: bool
):
    rewrite(tree / COURSE_JSON, "0.5", "0.01")
    rewrite(tree / README, "| 0.5 |", f"| {said} |")
    page = read(tree / "notebooks/00_good.ipynb", tree)
    source("card", "0.5 min", f"{said} min")(page.node)
    assert bool(GUARDS["card"](page)) is complains
    assert bool(GUARDS["readme"](page)) is complains


def test_solution_has_its_check_below(tree: Path):
    page = read(tree / SOLUTION, tree)
    where = page.tagged("solution-2")[0]
    page.cells.insert(where + 1, new_code_cell("x = 1"))
    page.cells.append(new_markdown_cell("The end."))
    nbformat.write(page.node, page.path)
    said = GUARDS["exercises"](read(tree / "notebooks/00_good.ipynb", tree))
    assert len(said) == 1 and f"{SOLUTION}, cell {where + 1} (" in said[0], said


def test_the_longest_term_wins(tree: Path):
    rewrite(tree / GLOSSARY, "What logits", "*Also: label smoothing*\\n\\nWhat logits")
    page = read(tree / "notebooks/00_good.ipynb", tree)
    source("card", "soften a", "label smoothing, soften a")(page.node)
    (said,) = GUARDS["glossary"](page)
    assert "expected the first 'label smoothing' as" in said


@pytest.mark.parametrize(
    ("missing", "guard"),
    [(README, "readme"), (COURSE_JSON, "card"), (GLOSSARY, "glossary"), (SOLUTION, "exercises")],
)
def test_missing_file(tree: Path, missing: str, guard: str):
    (tree / missing).unlink()
    said = GUARDS[guard](read(tree / "notebooks/00_good.ipynb", tree))
    assert any(Path(missing).name in complaint for complaint in said), said


# --- the course as a whole -------------------------------------------------------------------------


def test_a_course_without_notebooks_is_no_course(tmp_path: Path):
    assert len(course(tmp_path)) == 3


@pytest.mark.parametrize("name", [SOLUTION, GLOSSARY, "notebooks/00_good.ipynb"])
def test_a_course_lacks_a_notebook(tree: Path, name: str):
    (tree / name).unlink()
    assert any(Path(name).name in said or "glossary" in said for said in course(tree))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("notebooks/drafts/01_more.ipynb", "notebooks in notebooks/"),
        ("notebooks/extra.ipynb", "01_name.ipynb"),
        ("notebooks/solutions/01_more.ipynb", "of that name"),
    ],
)
def test_a_course_has_a_notebook_too_many(tree: Path, name: str, says: str):
    (tree / name).parent.mkdir(exist_ok=True)
    shutil.copy(GOOD, tree / name)
    assert [said for said in course(tree) if said.startswith(name) and says in said]


# --- parts that decide by themselves ---------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "assert gain > 0",
        "assert (gain > 0) and (seconds < 60), 'slow'",
        "assert soften(z) == soften(z)",
        "with torch.no_grad():\n    assert loss(z) < 1",
        "for gain in gains:\n    assert gain > 0",
    ],
)
def test_founded_claims(text: str):
    assert unfounded(ast.parse(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "print('all good')",
        "assert True",
        "assert 1 + 1 == 2",
        "assert gain == gain",
        "assert (gain > 0, 'none')",
        "assert f'{gain}'",
        "assert gain > 0\nassert 'yes'",
        "def later():\n    assert gain > 0",
        "try:\n    assert gain > 0\nexcept AssertionError:\n    pass",
    ],
)
def test_unfounded_claims(text: str):
    assert unfounded(ast.parse(text))


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ("def f(a: int) -> int:\n    'Doc.'\n    b: int = a\n    return b",
         "def f(a):\n    b = a\n    return b", True),
        ("def f(a):\n    # why\n    return (a)", "def f(a): return a", True),
        ("def f(a):\n    'Doc.'", "def f(a): pass", True),
        ("def f(a, b): return a", "def f(b, a): return a", False),
        ("def f(a, *, b=1): return a", "def f(a, b=1): return a", False),
        ("@torch.no_grad()\ndef f(a): return a", "def f(a): return a", False),
        ("def f(a): return a + 1", "def f(a): return 1 + a", False),
        ("class A:\n    x: int\n    y: int = 0", "class A:\n    x: float\n    y: float = 0", True),
        ("class A:\n    x: int\n    y: int", "class A:\n    x: int", False),
        ("class A:\n    def f(self): return 1", "class A:\n    def f(self): return 2", False),
    ],
)  # fmt: skip
def test_same(one: str, other: str, agree: bool):
    (first,), (second,) = definitions(ast.parse(one)), definitions(ast.parse(other))
    assert same(first, second) is agree


@pytest.mark.parametrize(
    ("value", "number", "agree"),
    [
        (1797, "1,797", True),
        (1796.6, "1,797", True),
        (-3.5149, "−3.51", True),
        (0.012, "0.012", True),
        (0.0125, "0.013", True),
        (0.0125, "0.012", True),
        (1.2e-5, "1.2e-05", True),
        (0.01249, "0.013", False),
        (91.2, "91.20", True),
        (91.26, "91.2", False),
        (3.5, "−3.5", False),
    ],
)
def test_rounds_to(value: float, number: str, agree: bool):
    assert rounds_to(value, number) is agree


def test_running_alone_is_limited_in_time():
    assert "within 0.5 s" in run_alone("import time\ntime.sleep(20)", seconds=0.5)[0]


def test_running_alone_starts_in_an_empty_folder_as_main():
    empty = "import os\nassert os.listdir() == [] and __name__ == '__main__'"
    assert run_alone(empty) == []


# --- nbval -----------------------------------------------------------------------------------------


def run_pytest(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """pytest as this repository configures it."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(REPOSITORY / "pyproject.toml"), "--nbval",
         "-p", "no:cacheprovider", "-q", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


def test_nbval_fails_only_on_the_output_that_differs(tree: Path):
    """In one run, as starting pytest takes longer than the notebooks do."""
    shutil.copy(BAD / "stale_output.ipynb", tree / "notebooks" / "01_stale.ipynb")
    paths = [tree / "notebooks/00_good.ipynb", tree / SOLUTION, tree / "notebooks/01_stale.ipynb"]
    count = sum(len(list(read(path, tree).code())) for path in paths)
    done = run_pytest(
        f"--rootdir={tree}", *map(str, paths), folder=tree, PYTHONPATH=str(tree)
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"\b1 failed, {count - 1} passed in ", done.stdout), done.stdout
    assert re.search(r"FAILED .*01_stale\.ipynb::Cell 7", done.stdout), done.stdout
    assert "entropy: 0.441" in done.stdout and "entropy: 0.5" in done.stdout


def test_fixtures_are_not_collected():
    one_file = "--ignore-glob=*/test_[!g]*.py"
    done = run_pytest("--collect-only", one_file, "tests/notebooks", folder=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_guards.py" in done.stdout
    assert "fixtures/" not in done.stdout
