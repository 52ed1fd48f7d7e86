"""Every fault that a guard is there for, as a change to the good notebook; and what is no fault."""

from dataclasses import dataclass

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from spoiling import (
    Change,
    add_output,
    append,
    both,
    clear,
    complaints_of,
    good,
    insert,
    locate,
    no_outputs,
    output,
    place_of,
    remove,
    source,
    swap,
    tag,
)


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


def no_count(node: NotebookNode) -> None:
    node.cells[locate(node, "claim")].execution_count = None


def same_count(node: NotebookNode) -> None:
    node.cells[locate(node, "claim")].execution_count = 1


def unfold(node: NotebookNode) -> None:
    del node.cells[locate(node, "claim")].metadata["jupyter"]


def path_in_metadata(node: NotebookNode) -> None:
    node.cells[locate(node, "claim")].metadata["source"] = "/home/someone/draft.py"


def path_in_notebook_metadata(node: NotebookNode) -> None:
    node.metadata["papermill"] = {"input": "/Users/someone/draft.ipynb"}


def widget_state(node: NotebookNode) -> None:
    node.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}


def other_kernel(node: NotebookNode) -> None:
    node.metadata.kernelspec.name = "my-project"


def attachment(node: NotebookNode) -> None:
    append(PROSE, " ![A plot](attachment:p.png)")(node)
    node.cells[locate(node, PROSE)]["attachments"] = {"p.png": {"image/png": "AAAA"}}


SHOWN = "shown:kdlib.losses.kd.soften"
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
    Fault("pace", "no row", source("card", "**Reading", "**Time"), "card", "no such row"),
    Fault("pace", "in hours", source("card", "30 min |", "half an hour |"), "card", "'30 min'"),
    Fault("pace", "six minutes off", source("card", "30 min |", "36 min |"), "card", "'36 min'"),
    Fault("card", "code first", insert("card", new_code_cell("import sys")), "import sys",
          "a Markdown cell"),
    Fault("card", "two cards", tag(PROSE, add="card"), PROSE, "one card"),
    #
    Fault("functions", "other default", source(SHOWN, "=1.0", "=2.0"), SHOWN, "as it stands"),
    Fault("functions", "unknown module", tag("claim", add="shown:kdlib.loss.soften"), "claim",
          "there is kdlib.losses.kd.soften"),
    Fault("functions", "unknown name", tag("claim", add="shown:kdlib.losses.kd.sof"), "claim",
          "no module defines"),
    Fault("functions", "not in the cell", tag("claim", add=SHOWN), "claim", "to define"),
    Fault("functions", "untagged", append("claim", "\ndef soften(z): return z"), "claim",
          "kdlib.losses.kd.soften"),
    Fault("functions", "private", append("claim", "\ndef _check(value): pass"), "claim",
          "kdlib.losses.kd._check"),
    Fault("functions", "class", append("claim", "\nclass Scores: pass"), "claim",
          "kdlib.losses.kd.Scores"),
    Fault("functions", "in a branch", append("claim", "\nif True:\n    def soften(z): return z"),
          "claim", "kdlib.losses.kd.soften"),
    Fault("functions", "in take-with-you", both(source(TAKE, "flatten", "soften"),
          source(TAKE, "flatten", "soften")), TAKE, "kdlib.losses.kd.soften"),
    #
    Fault("take_with_you", "none", tag(TAKE, drop=TAKE), None, "found 0"),
    Fault("take_with_you", "two", tag(ENTROPY, add=TAKE), TAKE, "found 2"),
    Fault("take_with_you+links", "no heading", source("## Take it", "## Take it", "Take it"), TAKE,
          "a heading"),
    Fault("take_with_you+links", "other heading", source("## Take it", "with you", "along"), TAKE,
          "a heading"),
    Fault("take_with_you", "kdlib", source(TAKE, "import math", "import math, kdlib.losses.kd"), TAKE,
          "found kdlib"),
    Fault("take_with_you", "from kdlib", source(TAKE, "import math", "from kdlib.losses import kd as losses"),
          TAKE, "found kdlib"),
    Fault("take_with_you", "incomplete", source(TAKE, "import math\n", ""), TAKE, "NameError"),
    Fault("take_with_you", "warns", append(TAKE, "\nimport warnings\nwarnings.warn('old')"), TAKE,
          "without a warning"),
    #
    Fault("exercises+pace", "too few", remove(LAST_STUB, "check-3"), "exercise-2", "found 2"),
    Fault("exercises", "gap", both(tag(LAST_STUB, "exercise-4", LAST_STUB),
          tag("check-3", "check-4", "check-3")), LAST_STUB, "expected exercise-3, found 4"),
    Fault("exercises+pace", "no stub", tag("exercise-2", drop="exercise-2"), LAST_STUB,
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
    Fault("claims", "no folding tag", tag("claim", drop="hide-input"), "claim", "to be folded"),
    Fault("claims", "open in Jupyter", unfold, "claim", "to be folded"),
    Fault("claims", "other cell folded", tag(ENTROPY, add="hide-input"), ENTROPY, "only claim cells"),
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
    Fault("style", "too long to take", append("take-with-you", "\n" * 59 + "x = 1"), "take-with-you",
          "under 60"),
    Fault("style", "magic", append(ENTROPY, "\n%matplotlib inline"), ENTROPY, "line 2"),
    Fault("style", "place", append(ENTROPY, '\nopen("../data/x")'), ENTROPY, "in any folder"),
    Fault("style", "chdir", append(ENTROPY, "\nos.chdir(place)"), ENTROPY, "os.chdir"),
    Fault("style", "environment", append(ENTROPY, '\nos.environ["A"] = "1"'), ENTROPY, "os.environ"),
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
    "more lines to take": append("take-with-you", "\n" * 30 + "x = 1"),
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
