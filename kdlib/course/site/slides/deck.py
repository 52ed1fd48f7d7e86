"""What Sphinx has to be told to make slides: outputs that notebooks have stored, and times for the speaker.

A marker on a slide stands for what a cell of a notebook beside it has stored:

    <!--stored:00_start_here/0333b19d-->
"""

import html
import re
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx_revealjs.nodes import revealjs_section

_MARKER = re.compile(r"<!--stored:(\w+)/(\w+)-->")
_MINUTES = re.compile(r"(\d+) (?:min|分钟)")
_LOG = logging.getLogger(__name__)


def stored(notebook: Path, cell: str) -> str:
    """The HTML of what the cell with this id has stored: its picture with its alt text, else what it printed.

    Raises `ValueError` if there is no such notebook or cell, or if it has stored neither.
    """
    if not notebook.is_file():
        raise ValueError(f"there is no notebook {notebook.name}")
    cells = nbformat.read(notebook, as_version=4).cells
    outputs = [output for one in cells if one.id == cell for output in one.get("outputs", [])]
    for output in outputs:
        if "image/png" in output.get("data", {}):
            about = output.metadata["image/png"]
            shape = "tall" if about["height"] > about["width"] else "r-stretch"
            alt, content = html.escape(about["alt"]), output.data["image/png"].replace("\n", "")
            return f'<img class="{shape}" alt="{alt}" src="data:image/png;base64,{content}">'
    if text := "".join(output.get("text", "") for output in outputs).strip():
        return f"<pre>{html.escape(text)}</pre>"
    raise ValueError(f"{notebook.name} has no cell {cell} with a stored picture or text")


def show(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put stored outputs in place of the markers."""
    folder = Path(app.env.doc2path(docname)).parent

    def output(marker: re.Match) -> str:
        try:
            return stored(folder / f"{marker[1]}.ipynb", marker[2])
        except ValueError as error:
            _LOG.warning("%s: %s", marker[0], error, location=docname)
            return ""

    source[0] = _MARKER.sub(output, source[0])


def pace(app: Sphinx, document: nodes.document) -> None:
    """Give the slides of each part equal shares of its minutes, in place: the speaker view has a clock."""
    for part in document.findall(nodes.section):
        line = part.next_node(nodes.paragraph)
        minutes = _MINUTES.match(line.astext()) if line and line.parent is part else None
        if minutes:
            slides = [part, *(one for one in part.children if isinstance(one, nodes.section))]
            for slide in slides:
                slide.append(revealjs_section(**{"data-timing": 60 * int(minutes[1]) // len(slides)}))


def speak(app: Sphinx, page: str, template: str, context: dict, document: object) -> None:
    """Say of Chinese slides that they are Chinese."""
    if page.startswith("notebooks/zh/"):
        context["language"] = "zh-CN"


def setup(app: Sphinx) -> dict[str, bool]:
    """Hook into Sphinx."""
    app.connect("source-read", show)
    app.connect("doctree-read", pace)
    app.connect("html-page-context", speak)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
