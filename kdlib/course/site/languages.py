"""Two editions and the slides, built one after the other: a page leads to its twin, and links cross over.

English pages lie at the top of the site, Chinese ones below `zh`, slides below `slides`, all under the names
of their files.
"""

import posixpath
from pathlib import Path, PurePosixPath

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx


def twin(page: str) -> str:
    """The page of the same content in the other language, whether it exists or not."""
    path = PurePosixPath(page)
    if path.parts[0] != "notebooks":
        return {"README": "README.zh", "README.zh": "README"}.get(page, page)
    inside = path.parts[2:] if path.parts[1] == "zh" else ("zh", *path.parts[1:])
    return str(PurePosixPath("notebooks", *inside))


def address(app: Sphinx, start: str, target: str) -> str:
    """From the page `start` of this run of Sphinx to the page `target` of another."""
    here = "slides" if app.builder.name == "revealjs" else "zh" if app.tags.has("zh") else ""
    chinese = target == "README.zh" or target.startswith("notebooks/zh/")
    there = "slides" if target.endswith("/slides") else "zh" if chinese else ""
    return posixpath.relpath(f"/{there}/{target}.html", posixpath.dirname(f"/{here}/{start}"))


def exists(app: Sphinx, page: str) -> bool:
    """Whether there is a source for the page, in either edition."""
    return any(Path(app.srcdir, page + suffix).is_file() for suffix in (".md", ".ipynb"))


def cross_over(app: Sphinx, document: nodes.document) -> None:
    """Make links to pages of the other edition lead there, in place; in this one they are no pages."""
    for link in list(document.findall(addnodes.pending_xref)):
        page = link["reftarget"]
        if link.get("refdomain") == "doc" and page not in app.env.found_docs and exists(app, page):
            target = address(app, app.env.docname, page)
            link.replace_self(nodes.reference("", "", *link.children, internal=True, refuri=target))


def offer(app: Sphinx, page: str, template: str, context: dict, document: object) -> None:
    """Give the template of `page` the address of its twin, if there is a Chinese edition."""
    if exists(app, "README.zh"):
        other = twin(page)
        first = "README" if app.tags.has("zh") else "README.zh"
        there = other if other != page and exists(app, other) else first
        context["other_language"] = address(app, page, there)


def setup(app: Sphinx) -> dict[str, bool]:
    """Hook into Sphinx."""
    app.connect("doctree-read", cross_over)
    app.connect("html-page-context", offer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
