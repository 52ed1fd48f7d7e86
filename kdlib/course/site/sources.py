"""What Sphinx is given in place of a source: tables of contents, alt texts, folded solutions."""

import hashlib
import html
import re
from binascii import a2b_base64
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import nbformat
from docutils import nodes
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
COMPARISON
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


_LINK = re.compile(
    r"(?<=\]\()(?P<page>[^()\s#:]*\.(?:ipynb|md)|)#(?P<anchor>[^\s\"()]*(?:\([^()\s]*\)[^\s\"()]*)*)(?=[\s)])"
)
_NAMED = re.compile(r'^<a id="([^"]+)"></a>\s+(?=#+ (.+)$)', re.M)


@cache
def named(page: Path) -> dict[str, str]:
    """The headings that a page gives a name of their own, as Chinese ones do: the name, and the anchor."""
    if not page.is_file():
        return {}
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells)
    return {plain(html.unescape(name)): plain(anchor(heading)) for name, heading in _NAMED.findall(text)}


def resolve(source: str, page: Path) -> str:
    """Markdown whose links lead to anchors as they are made here."""

    def target(found: re.Match) -> str:
        name, there = plain(found["anchor"]), found["page"]
        return f"{there}#{named(page.parent / there if there else page).get(name, name)}"

    return _LINK.sub(target, _NAMED.sub("", source))


def prepare(app: Sphinx, docname: str, source: list[str]) -> None:
    """Change in place the source that Sphinx has read."""
    source[0] += CONTENTS.get(docname, "")
    if app.env.doc2path(docname).suffix == ".ipynb":
        notebook = nbformat.reads(source[0], as_version=4)
        app.env.temp_data["alts"] = alts(notebook)
        page = Path(app.env.doc2path(docname))
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = resolve(cell.source, page)
            if any(tag.startswith("solution-") for tag in cell.metadata.get("tags", [])):
                cell.metadata.tags.append("hide-input")
                cell.metadata.setdefault("mystnb", {})["code_prompt_show"] = SOLUTION[app.config.language]
        source[0] = nbformat.writes(notebook)
    else:
        source[0] = resolve(source[0], Path(app.env.doc2path(docname)))


def alts(notebook: NotebookNode) -> dict[str, str]:
    """The alt text of each stored picture, by the name of the file in which myst-nb puts it."""
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]  # fmt: skip
    return {
        hashlib.sha256(a2b_base64(output.data["image/png"])).hexdigest():
            output.metadata.get("image/png", {}).get("alt", "")
        for output in pictures
    }  # fmt: skip


def describe(app: Sphinx, document: nodes.document) -> None:
    """Give the pictures of a notebook their alt texts, in place.

    Of what a notebook says of a picture myst-nb takes width and height alone, see
    https://github.com/executablebooks/MyST-NB/pull/588
    """
    known = app.env.temp_data.get("alts", {})
    for image in document.findall(nodes.image):
        image["alt"] = known.get(PurePosixPath(image["uri"]).stem) or image.get("alt", "")


def number_captions(app: Sphinx, page: str, template: str, context: dict, document: object) -> None:
    """The captions of the contents are headings, of a level: https://github.com/sphinx-doc/sphinx/issues/14030"""
    if tree := context.get("furo_navigation_tree"):
        context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')


def setup(app: Sphinx) -> dict[str, bool]:
    """Hook into Sphinx."""
    app.connect("source-read", prepare)
    app.connect("doctree-read", describe)
    app.connect("html-page-context", number_captions, priority=900)  # after the theme
    return {"parallel_read_safe": True, "parallel_write_safe": True}
