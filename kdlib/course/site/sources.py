"""What Sphinx is given in place of a source: tables of contents, alt texts, folded solutions."""

import re
from urllib.parse import unquote

import nbformat
from nbformat import NotebookNode
from sphinx.application import Sphinx

CONTENTS = {
    "README": """
```{toctree}
:hidden:
:caption: The course
:glob:
notebooks/[0-9][0-9]_*
notebooks/glossary
```
```{toctree}
:hidden:
:caption: Reference
kdlib/course/site/api
kdlib/course/site/results
notebooks/teaching
CONTRIBUTING
data/README
data/results/README
```
```{toctree}
:hidden:
:caption: Solutions
:glob:
notebooks/solutions/*
```
""",
    "README.zh": """
```{toctree}
:hidden:
:caption: 课程
:glob:
notebooks/zh/[0-9][0-9]_*
notebooks/zh/glossary
notebooks/zh/*
```
```{toctree}
:hidden:
:caption: 参考答案
:glob:
notebooks/zh/solutions/*
```
""",
}
SOLUTION = {"en": "Show the solution", "zh_CN": "展开参考答案"}


def anchor(heading: str) -> str:
    """The anchor of a heading as JupyterLab makes it, without formulas, which are not given to it here."""
    return heading.strip().replace(" ", "-")


def plain(target: str) -> str:
    """An anchor as `anchor` makes it of the heading: nothing encoded, and no formula."""
    return re.sub(r"\$.*\$", "", unquote(target))


def prepare(app: Sphinx, docname: str, source: list[str]) -> None:
    """Change in place the source that Sphinx has read."""
    source[0] += CONTENTS.get(docname, "")
    if app.env.doc2path(docname).suffix == ".ipynb":
        notebook = nbformat.reads(source[0], as_version=4)
        for cell in notebook.cells:
            describe(cell)
            if any(tag.startswith("solution-") for tag in cell.metadata.get("tags", [])):
                cell.metadata.tags.append("hide-input")
                cell.metadata.setdefault("mystnb", {})["code_prompt_show"] = SOLUTION[app.config.language]
        source[0] = nbformat.writes(notebook)
    source[0] = re.sub(r"(?<=\.ipynb#)[^)\s\"]+", lambda found: plain(found[0]), source[0])


def describe(cell: NotebookNode) -> None:
    """Alt text, which the notebook keeps with each picture and myst-nb looks for beside the cell."""
    for output in cell.get("outputs", []):
        if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
            cell.metadata.setdefault("mystnb", {})["image"] = {"alt": alt}


def setup(app: Sphinx) -> dict[str, bool]:
    """Hook into Sphinx."""
    app.connect("source-read", prepare)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
