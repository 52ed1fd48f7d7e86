"""Links to the glossary show on hover what their term means."""

import re

from docutils import nodes
from sphinx.application import Sphinx


def plain(text: str) -> str:
    r"""A text for a title, which cannot hold a formula: \mathrm{softmax}(z/T) reads softmax(z/T)."""
    return " ".join(re.sub(r"\\(?:mathrm|text|operatorname)\{(\w+)\}", r"\1", text).split())


def explain(app: Sphinx, document: nodes.document, docname: str) -> None:
    """Give every link to a term, in place, the first paragraph of its entry as title."""
    glossary = next((name for name in sorted(app.env.found_docs) if name.endswith("/glossary")), None)
    if glossary is None:
        return
    entries = {
        name: plain(section.next_node(nodes.paragraph).astext())
        for section in app.env.get_doctree(glossary).findall(nodes.section)
        for name in section["ids"]
    }
    for link in document.findall(nodes.reference):
        page, _, name = link.get("refuri", "").partition("#")
        if page.endswith("glossary.html") and name in entries:
            link["reftitle"] = entries[name]


def setup(app: Sphinx) -> dict[str, bool]:
    """Hook into Sphinx."""
    app.connect("doctree-resolved", explain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
