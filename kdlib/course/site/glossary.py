"""Links to the glossary show on hover what their term means."""

from docutils import nodes
from sphinx.application import Sphinx


def explain(app: Sphinx, document: nodes.document, docname: str) -> None:
    """Give every link to a term, in place, the first paragraph of its entry as title."""
    glossary = next((name for name in sorted(app.env.found_docs) if name.endswith("/glossary")), None)
    if glossary is None:
        return
    entries = {
        name: " ".join(section.next_node(nodes.paragraph).astext().split())
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
