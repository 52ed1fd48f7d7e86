"""Tables of the committed results, made of their JSON files when the site is built."""

import json
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def verdicts(found: object, place: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Where each verdict of a file stands, and its text; in the order of the file."""
    if isinstance(found, dict):
        if isinstance(found.get("verdict"), str) and "text" in found:
            yield " / ".join(name for name in place[:-1] if name != "verdicts"), found["text"]
        else:
            for name, value in found.items():
                yield from verdicts(value, (*place, name))


def markdown_table(title: str, head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"### {title}\n\n{body}\n"


class Results(SphinxDirective):
    """`{results}`: for each file of data/results what it was measured on, and its figures."""

    def run(self) -> list[nodes.Node]:
        parts = []
        for path in sorted((Path(self.env.srcdir) / "data" / "results").glob("*.json")):
            self.env.note_dependency(path)
            parts.append(page(path))
        return self.parse_text_to_nodes("\n".join(parts), allow_section_headings=True)


def page(path: Path) -> str:
    """The Markdown of one file of results."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if "environment" not in content:
        return f"## {path.name}\n\n" + compiled(content)
    on = ", ".join(f"{name} {value}" for name, value in content["environment"].items())
    text = [f"## {path.name}\n\nMeasured on: {on}.\n"]
    groups: dict[str, list[list[str]]] = {}
    for place, said in verdicts(content):
        scores, _, rest = said.partition(": difference ")
        difference, interval, verdict = rest.split("\n", 2)
        groups.setdefault(place, []).append(
            [scores, difference, interval.removeprefix("95% interval "), verdict.removeprefix("verdict: ")]
        )
    head = ["Scores", "Difference", "95 % interval", "Verdict"]
    for place, rows in groups.items():
        text.append(markdown_table(place or "verdicts", head, rows))
    return "\n".join(text)


def compiled(content: dict) -> str:
    """Of the kernels of the loss, which were compiled and not run: what was counted of the usual width."""
    first = content["kernels"][0]["shape"]
    rows = [
        [found["setting"], f"{found['per_class']:.1f}", f"{found['traffic']:.0f}", str(found["registers"])]
        for found in content["kernels"] if (found["shape"], found["capability"]) == (first, 90)
    ]  # fmt: skip
    head = ["Setting", "Instructions a class", "Bytes a class", "Registers"]
    said = f"By Triton {content['triton']}: {content['calculated']}.\n\n"
    return said + markdown_table(f"{first} classes, compute capability 9.0", head, rows)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("results", Results)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
