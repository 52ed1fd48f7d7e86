"""Each guard fails on a notebook with the one fault it is there for, and names the right cell.

``fixtures/course`` is a course of one notebook that passes every guard. ``fixtures/bad`` holds that
notebook with one fault for each guard; `FAULTS` and `TREE_FAULTS` add the other ways to go wrong.
"""

import ast
import copy
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from guards import DOCUMENT_GUARDS, GUARDS, Page, course, documents, notebooks, read
from guards.claims import unfounded
from guards.functions import definitions, same
from guards.measured import rounds_to
from guards.take_with_you import run_alone
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
COURSE = HERE / "fixtures" / "course"
BAD = HERE / "fixtures" / "bad"
GOOD = COURSE / "notebooks" / "00_good.ipynb"
Change = Callable[[NotebookNode], None]


def good() -> Page:
    return read(GOOD, COURSE)


def locate(node: NotebookNode, where: str) -> int:
    """The one cell with this tag, or else the first with this text."""
    for index, cell in enumerate(node.cells):
        if where in cell.metadata.get("tags", []):
            return index
    return next(index for index, cell in enumerate(node.cells) if where in cell.source)


def complaints_of(page: Page) -> dict[str, list[str]]:
    """The guards that complain, and what they say."""
    said = {name: guard(page) for name, guard in GUARDS.items()}
    return {name: complaints for name, complaints in said.items() if complaints}


def place_of(cell: int | None) -> str:
    return f"notebooks/00_good.ipynb{': ' if cell is None else f', cell {cell + 1} ('}"


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
    "functions": ("shown:kdlib.losses.soften", "kdlib.losses.soften"),
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


def test_every_guard_has_a_bad_notebook():
    # The fault that `readme` looks for is one of README.md: see TREE_FAULTS.
    assert BAD_CELLS.keys() | {"readme"} == GUARDS.keys()


@pytest.mark.parametrize("path", sorted(BAD.glob("*.ipynb")), ids=lambda path: path.stem)
def test_bad_notebook_differs_in_one_cell(path: Path):
    """Otherwise a guard could complain about something else than the fault."""
    bad, reference = read(path, COURSE).node, good().node
    assert bad.metadata == reference.metadata
    assert sum(a != b for a, b in zip(bad.cells, reference.cells, strict=True)) == 1


# --- every other fault a guard is there for --------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What is changed in the good notebook, who complains, about which cell, saying what.

    Two guards, "a+b", where the fault breaks two rules; ``cell`` None is the notebook as a whole.
    """

    guard: str
    name: str
    change: Change
    cell: str | None
    says: str


def source(where: str, old: str, new: str) -> Change:
    def change(node: NotebookNode) -> None:
        cell = node.cells[locate(node, where)]
        assert old in cell.source
        cell.source = cell.source.replace(old, new, 1)

    return change


def append(where: str, text: str) -> Change:
    def change(node: NotebookNode) -> None:
        node.cells[locate(node, where)].source += text

    return change


def tag(where: str, add: str = "", drop: str = "") -> Change:
    def change(node: NotebookNode) -> None:
        metadata = node.cells[locate(node, where)].metadata
        kept = [name for name in metadata.get("tags", []) if name != drop]
        metadata["tags"] = kept + ([add] if add else [])

    return change


def output(where: str, text: str) -> Change:
    def change(node: NotebookNode) -> None:
        node.cells[locate(node, where)].outputs[0].text = text

    return change


def add_output(where: str, kind: str, **fields: object) -> Change:
    def change(node: NotebookNode) -> None:
        node.cells[locate(node, where)].outputs.append(new_output(kind, **fields))

    return change


def insert(before: str, cell: NotebookNode) -> Change:
    def change(node: NotebookNode) -> None:
        node.cells.insert(locate(node, before), copy.deepcopy(cell))
        recount(node)

    return change


def remove(*where: str) -> Change:
    def change(node: NotebookNode) -> None:
        for name in where:
            del node.cells[locate(node, name)]
        recount(node)

    return change


def swap(one: str, other: str) -> Change:
    def change(node: NotebookNode) -> None:
        i, j = locate(node, one), locate(node, other)
        node.cells[i], node.cells[j] = node.cells[j], node.cells[i]
        recount(node)

    return change


def recount(node: NotebookNode) -> None:
    code = [cell for cell in node.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count


def clear(where: str) -> Change:
    def change(node: NotebookNode) -> None:
        node.cells[locate(node, where)].source = ""

    return change


def both(*changes: Change) -> Change:
    def change(node: NotebookNode) -> None:
        for one in changes:
            one(node)

    return change


def no_count(node: NotebookNode) -> None:
    node.cells[locate(node, "claim")].execution_count = None


def same_count(node: NotebookNode) -> None:
    node.cells[locate(node, "claim")].execution_count = 1


def no_outputs(where: str) -> Change:
    def change(node: NotebookNode) -> None:
        node.cells[locate(node, where)].outputs = []

    return change


def path_in_metadata(node: NotebookNode) -> None:
    node.cells[locate(node, "claim")].metadata["source"] = "/home/someone/draft.py"


def path_in_notebook_metadata(node: NotebookNode) -> None:
    node.metadata["papermill"] = {"input": "/Users/someone/draft.ipynb"}


def widget_state(node: NotebookNode) -> None:
    node.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}


def other_kernel(node: NotebookNode) -> None:
    node.metadata.kernelspec.name = "my-project"


SHOWN = "shown:kdlib.losses.soften"
TAKE = "take-with-you"
PROSE = "Why soften"
NUMBERS = "The largest falls"
HINT_2 = "### Exercise 2"
ENTROPY = '"entropy:"'
WIDGET_VIEW = {"application/vnd.jupyter.widget-view+json": {"model_id": "0"}, "text/plain": "x"}
LAST_STUB = "exercise-3"

FAULTS = [
    Fault("card", "no tag", tag("card", drop="card"), "# A notebook", "tag 'card'"),
    Fault("card", "no title", source("card", "# A notebook", "A notebook"), "card", "a title"),
    Fault("card", "no field", source("card", "**You need", "**Needs"), "card", "You need first"),
    Fault("card", "slower", source("card", "0.5 min", "0.2 min"), "card", "about 0.5 min"),
    Fault("card", "faster", source("card", "0.5 min", "1.1 min"), "card", "about 0.5 min"),
    Fault("card", "no minutes", source("card", "0.5 min", "quick"), "card", "'0.7 min on"),
    Fault("card", "no GPU", source("card", "; GPU: not measured", ""), "card", "'0.7 min on"),
    Fault("card", "GPU unproven", source("card", "not measured", "0.1 min"), "card", "GPU time"),
    Fault("card", "code first", insert("card", new_code_cell("import sys")), "import sys",
          "a Markdown cell"),
    Fault("card", "two cards", tag(PROSE, add="card"), PROSE, "one card"),
    #
    Fault("functions", "other default", source(SHOWN, "=1.0", "=2.0"), SHOWN, "as it stands"),
    Fault("functions", "unknown module", tag("claim", add="shown:kdlib.loss.soften"), "claim",
          "there is kdlib.losses.soften"),
    Fault("functions", "unknown name", tag("claim", add="shown:kdlib.losses.sof"), "claim",
          "no module defines"),
    Fault("functions", "not in the cell", tag("claim", add=SHOWN), "claim", "to define"),
    Fault("functions", "untagged", append("claim", "\ndef soften(z): return z"), "claim",
          "kdlib.losses.soften"),
    Fault("functions", "private", append("claim", "\ndef _check(value): pass"), "claim",
          "kdlib.losses._check"),
    Fault("functions", "class", append("claim", "\nclass Scores: pass"), "claim",
          "kdlib.losses.Scores"),
    Fault("functions", "in a branch", append("claim", "\nif True:\n    def soften(z): return z"),
          "claim", "kdlib.losses.soften"),
    Fault("functions", "in take-with-you", both(source(TAKE, "flatten", "soften"),
          source(TAKE, "flatten", "soften")), TAKE, "kdlib.losses.soften"),
    #
    Fault("take_with_you", "none", tag(TAKE, drop=TAKE), None, "found 0"),
    Fault("take_with_you", "two", tag(ENTROPY, add=TAKE), TAKE, "found 2"),
    Fault("take_with_you+links", "no heading", source("## Take it", "## Take it", "Take it"), TAKE,
          "a heading"),
    Fault("take_with_you+links", "other heading", source("## Take it", "with you", "along"), TAKE,
          "a heading"),
    Fault("take_with_you", "kdlib", source(TAKE, "import math", "import math, kdlib.losses"), TAKE,
          "found kdlib"),
    Fault("take_with_you", "from kdlib", source(TAKE, "import math", "from kdlib import losses"),
          TAKE, "found kdlib"),
    Fault("take_with_you", "incomplete", source(TAKE, "import math\n", ""), TAKE, "NameError"),
    Fault("take_with_you", "warns", append(TAKE, "\nimport warnings\nwarnings.warn('old')"), TAKE,
          "without a warning"),
    #
    Fault("exercises", "too few", remove(LAST_STUB, "check-3"), "exercise-2", "found 2"),
    Fault("exercises", "gap", both(tag(LAST_STUB, "exercise-4", LAST_STUB),
          tag("check-3", "check-4", "check-3")), LAST_STUB, "expected exercise-3, found 4"),
    Fault("exercises", "no stub", tag("exercise-2", drop="exercise-2"), LAST_STUB,
          "expected exercise-2, found 3"),
    Fault("exercises", "no check", tag("check-3", drop="check-3"), None, "found 0"),
    Fault("exercises", "check first", swap("exercise-2", "check-2"), "check-2", "below"),
    Fault("exercises", "no hint", source(HINT_2, "<details>", "<p>"), "exercise-2", "a hint"),
    Fault("exercises", "empty hint", source(HINT_2, "It is short (2).", ""), "exercise-2", "a hint"),
    Fault("exercises", "open hint", source(HINT_2, "<details>", "<details open>"), "exercise-2",
          "a hint"),
    Fault("exercises+claims", "ignored check", tag("check-2", add="nbval-ignore-output"),
          "check-2", "nbval compares"),
    Fault("exercises", "other title", source("check-1", "Exercise 1", "Exercise 2"), "check-1",
          'self_check("Exercise 1")'),
    Fault("exercises", "no assert", source("check-1", "assert ", ""), "check-1", "an assert"),
    Fault("exercises", "silent", output("check-1", "done\n"), "check-1", "'not yet'"),
    Fault("exercises", "both", output("check-1", "not yet correct\n"), "check-1", "no 'correct'"),
    Fault("exercises", "solution here", tag(ENTROPY, add="solution-1"), ENTROPY, "solutions/ only"),
    #
    Fault("outputs", "error", add_output("claim", "error", ename="ValueError", evalue="",
          traceback=[]), "claim", "found ValueError"),
    Fault("outputs", "stderr", add_output("claim", "stream", name="stderr", text="hm"), "claim",
          "stderr"),
    Fault("outputs", "warning", add_output("claim", "stream", text="UserWarning: old"), "claim",
          "no warning"),
    Fault("outputs", "trace", add_output("claim", "stream",
          text="Traceback (most recent call last)"), "claim", "stack trace"),
    Fault("outputs", "path", add_output("claim", "stream", text="in '/home/me/x.py'"), "claim",
          "'/home/'"),
    Fault("outputs", "path in HTML", add_output("claim", "display_data",
          data={"text/html": "<b>/tmp/x</b>"}), "claim", "'/tmp/'"),
    Fault("outputs", "path on Windows", add_output("claim", "display_data",
          data={"text/plain": "C:\\Users\\me"}), "claim", "Users"),
    Fault("outputs", "path in source", append("claim", "\npath = '/root/data'"), "claim", "/root/"),
    Fault("outputs", "path in prose", append(PROSE, " See .venv/lib."), PROSE, ".venv"),
    Fault("outputs", "path in metadata", path_in_metadata, "claim", "/home/"),
    Fault("outputs", "path in notebook", path_in_notebook_metadata, None, "/Users/"),
    Fault("outputs", "address", add_output("claim", "execute_result",
          data={"text/plain": "<Thing at 0x7f0a>"}), "claim", "memory address"),
    Fault("outputs", "not executed", no_count, "claim", "found None"),
    Fault("outputs", "out of order", same_count, "claim", "found 1"),
    Fault("outputs", "not stored", no_outputs(ENTROPY), ENTROPY, "to be stored"),
    Fault("outputs", "no figure", no_outputs("plots.show"), "plots.show", "to be stored"),
    Fault("outputs", "no value", append("claim", "\nseconds < 60"), "claim", "to be stored"),
    Fault("outputs", "no alt", add_output("claim", "display_data", data={"image/svg+xml": "<svg/>"}),
          "claim", "alt text"),
    Fault("outputs", "widget view", add_output("claim", "display_data", data=WIDGET_VIEW), "claim",
          "widget view"),
    Fault("outputs", "widget state", widget_state, None, "widget state"),
    Fault("outputs", "kernel", other_kernel, None, "'my-project'"),
    Fault("outputs", "size", add_output("claim", "stream", text="." * 3_100_000), None, "3 MB"),
    #
    Fault("claims", "no claim below", remove("claim"), "perf_counter", "carry 'claim'"),
    Fault("claims", "code between", insert("claim", new_code_cell("x = 1")), "perf_counter",
          "carry 'claim'"),
    Fault("claims", "no assert", source("claim", "assert", "print() or"), "claim", "an assert"),
    Fault("claims", "constant", source("claim", "0 < seconds < 60", "True"), "claim", "can fail"),
    Fault("claims", "tuple", source("claim", "0 < seconds < 60", "(seconds < 60, 'slow')"), "claim",
          "can fail"),
    Fault("claims", "or true", append("claim", " or True"), "claim", "can fail"),
    Fault("claims", "ignored claim", tag("claim", add="nbval-ignore-output"), "claim",
          "without the tag"),
    Fault("claims", "widget compared", tag("widget", drop="nbval-ignore-output"), "widget",
          "beside 'widget'"),
    Fault("claims", "skip", tag(ENTROPY, add="nbval-skip"), ENTROPY, "'nbval-skip'"),
    Fault("claims", "raises", tag(ENTROPY, add="raises-exception"), ENTROPY, "'raises-exception'"),
    Fault("claims", "misspelt", tag(ENTROPY, add="claims"), ENTROPY, "'claims'"),
    Fault("claims", "on Markdown", tag(PROSE, add="claim"), PROSE, "'claim'"),
    Fault("claims", "comment", append(ENTROPY, "\n# NBVAL_IGNORE_OUTPUT"), ENTROPY, "a tag, not"),
    #
    Fault("measured", "no such tag", source(NUMBERS, "out:demo", "out:nothing"), NUMBERS,
          "result:nothing, found 0"),
    Fault("measured", "two cells", tag(ENTROPY, add="result:demo"), NUMBERS, "found 2"),
    Fault("measured", "sign", source(NUMBERS, "−3.5<", "3.5<"), NUMBERS, "expected 3.5"),
    Fault("measured", "digits", source(NUMBERS, "0.506", "0.5"), NUMBERS, "expected 0.5 in"),
    Fault("measured", "no number", source(NUMBERS, "**0.506**", "half"), NUMBERS, "a number right"),
    Fault("measured", "kind", source(NUMBERS, "out:demo", "output:demo"), NUMBERS, "'output:'"),
    Fault("measured", "no file", source(NUMBERS, "demo.json:gap", "no.json:gap"), NUMBERS,
          "data/results/no.json"),
    Fault("measured", "no path", source(NUMBERS, "seeds/0", "seeds/7"), NUMBERS, "no '7'"),
    Fault("measured", "no key", source(NUMBERS, ":gap", ":gaps"), NUMBERS, "no 'gaps'"),
    Fault("measured", "text", source(NUMBERS, ":gap", ":name"), NUMBERS, "a number at name"),
    Fault("measured", "thousands", source(NUMBERS, "1,797", "1,798"), NUMBERS, "found 1,798"),
    Fault("measured", "per cent", source(NUMBERS, "91.2 %", "0.91 %"), NUMBERS, "found 0.91"),
    Fault("measured", "rounding", source(NUMBERS, "91.2 %", "91.3 %"), NUMBERS, "91.234"),
    Fault("measured", "headline", source("card", "<!--out:demo-->", ""), "card", "Headline"),
    #
    Fault("links", "no file", source(PROSE, "demo.json", "none.json"), PROSE, "none.json to exist"),
    Fault("links", "absolute", source(PROSE, "../data/", "/data/"), PROSE, "a relative link"),
    Fault("links", "outside", source(PROSE, "../data/results/demo.json", "../../"), PROSE,
          "of this repository"),
    Fault("links", "no term", append(PROSE, " [x](glossary.ipynb#logit)"), PROSE, "#logit"),
    Fault("links", "image", append(PROSE, " ![A plot](plot.png)"), PROSE, "plot.png"),
    Fault("links", "HTML image", append(PROSE, ' <img alt="A plot" src="plot.png">'), PROSE,
          "plot.png"),
    Fault("links", "no alt", append(PROSE, " ![](00_good.ipynb)"), PROSE, "alt text"),
    Fault("links", "linked image", append(PROSE, " [![A plot](p.png)](00_good.ipynb)"), PROSE,
          "p.png"),
    Fault("links", "reference", append(PROSE, "\n\n[ref]: missing.md"), PROSE, "missing.md"),
    Fault("links", "attachment", append(PROSE, " ![A plot](attachment:p.png)"), PROSE,
          "the attachment"),
    #
    Fault("glossary", "other spelling", source("card", "a [label](glossary.ipynb#label)",
          "soft targets, a [label](glossary.ipynb#label)"), "card", "'soft targets'"),
    Fault("glossary", "plural, bold", source(PROSE, "A [soft label](", "**Soft  labels**, [soft label]("),
          PROSE, "[Soft labels](glossary.ipynb#soft-label)"),
    Fault("glossary", "other link", source("card", "(glossary.ipynb#label)", "(00_good.ipynb)"),
          PROSE, "'label'"),
    Fault("glossary", "in a hint", both(
          source(PROSE, "With [temperatures](glossary.ipynb#temperature)", "With values"),
          source(HINT_2, "It is short", "Temperature")), HINT_2, "'Temperature'"),
    #
    Fault("style", "long cell", append("claim", "\n" * 24 + "x = 1"), "claim", "found 25"),
    Fault("style", "magic", append(ENTROPY, "\n%matplotlib inline"), ENTROPY, "line 2"),
    Fault("style", "empty", clear(ENTROPY), ENTROPY, "an empty cell"),
    Fault("style", "no show", source("plots.show", "plots.show(figure)", "figure = None"),
          "plots.bars", "plots.show"),
    Fault("style", "show first", append("plots.show(", "\nfigure = None"), "plots.show", "plots.show"),
    Fault("style", "unfinished", append(PROSE, "\n\nTODO: say why"), PROSE, "TODO"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.guard}-{fault.name}")
def test_fault(fault: Fault):
    page = good()
    ids = [cell.id for cell in page.cells]
    where = None
    if fault.cell is not None:
        try:
            known = ids[locate(page.node, fault.cell)]
        except StopIteration:  # a cell that the fault inserts
            known = None
    fault.change(page.node)
    if fault.cell is not None:
        where = (
            locate(page.node, fault.cell)
            if known is None
            else [cell.id for cell in page.cells].index(known)
        )
    said = complaints_of(page)
    guards = fault.guard.split("+")
    assert sorted(said) == sorted(guards), said
    matching = [
        complaint
        for complaint in said[guards[0]]
        if complaint.startswith(place_of(where)) and fault.says in complaint
    ]
    assert matching, said[guards[0]]


# --- what looks like a fault and is none -----------------------------------------------------------


def attachment(node: NotebookNode) -> None:
    append(PROSE, " ![A plot](attachment:p.png)")(node)
    node.cells[locate(node, PROSE)]["attachments"] = {"p.png": {"image/png": "AAAA"}}


FIRST_TERM = "soften a [label](glossary.ipynb#label)"
HARMLESS = {
    "within twice the minutes": source("card", "0.5 min", "0.3 min"),
    "proven GPU minutes": source(
        "card", "not measured", "0.5<!--results:course.json:minutes/00_good--> min"
    ),
    "term in code": source("card", FIRST_TERM, "`temperature` " + FIRST_TERM),
    "term in a formula": source("card", FIRST_TERM, r"$\text{soft label}$ " + FIRST_TERM),
    "term in a longer word": source("card", FIRST_TERM, "label-smoothing, " + FIRST_TERM),
    "term in a heading": source("card", "# A notebook", "# Temperature: a notebook"),
    "term in a link": source("card", FIRST_TERM, "[temperature](00_good.ipynb) " + FIRST_TERM),
    "term in an address": source("card", FIRST_TERM, "https://example.org/label " + FIRST_TERM),
    "term under other words": source(
        "card", FIRST_TERM, "[heat](glossary.ipynb#temperature), temperature, " + FIRST_TERM
    ),
    "marker in code": append(PROSE, "\n\n```\n1<!--out:nowhere-->\n```"),
    "link in code": append(PROSE, " `[x](nowhere.md)`"),
    "other comment": append(PROSE, " <!-- why not? -->"),
    "prices": append(PROSE, " From $5 to $6."),
    "a name with a digit": source(
        "card", "falls to 0.506<!--out:demo-->", "of ResNet-18 falls at T4"
    ),
    "two ignored cells": insert(
        "claim", new_code_cell("print(seconds)", metadata={"tags": ["nbval-ignore-output"]},
                               outputs=[new_output("stream", text="0.1\n")])
    ),
    "Markdown before the claim": insert("claim", new_markdown_cell("Fast enough.")),
    "annotated": source(SHOWN, "(logits, temperature=1.0)", "(logits: list, temperature: float = 1.0)"),
    "another method": append("claim", "\nclass Other:\n    def soften(self): pass"),
    "words, not a figure": append("claim", "\nwords = plots.describe([0.5])"),
    "a figure in a callback": append("claim", "\ndraw = lambda T: plots.bars([T])"),
    "hint below its check": both(
        source(HINT_2, "<details>", "<p>"),
        insert(
            "### Exercise 3",
            new_markdown_cell("<details><summary>Hint</summary>\n\nShort.\n</details>"),
        ),
    ),
    "24 lines": append("claim", "\n" * 22 + "x = 1"),
    "79 characters": append("claim", "\nx = " + "1" * 75),
    "an attachment": attachment,
    "a path on the web": append(PROSE, " <https://example.org/home/x>"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless(name: str):
    page = good()
    HARMLESS[name](page.node)
    assert page.node != good().node
    assert complaints_of(page) == {}


# --- faults outside the notebook: README.md, results, glossary, solutions --------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the good course that a test may spoil."""
    return Path(shutil.copytree(COURSE, tmp_path / "course"))


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


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
    ("measured", README, "results:demo", "out:demo", "README.md, line 8", "result:demo"),
    ("card", COURSE_JSON, "0.5", "5", "notebooks/00_good.ipynb, cell 1 (", "about 5 min"),
    ("card", COURSE_JSON, "00_good", "00_bad", "notebooks/00_good.ipynb, cell 1 (", "make record"),
    ("functions", "kdlib/losses.py", "z / temp", "z * temp", "notebooks/00_good.ipynb, cell 4 (",
     "as it stands in kdlib.losses.soften"),
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
    done = run_pytest("--collect-only", "tests/notebooks", folder=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_guards.py" in done.stdout
    assert "fixtures/" not in done.stdout
