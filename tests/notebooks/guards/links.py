"""Links lead somewhere: to a file of this repository, to a heading that exists."""

import html
import re
from pathlib import Path

from . import prose
from .page import Page, read

EXTERNAL = re.compile(r"(?:https?|mailto|data):", re.I)
LOCAL = re.compile(r"(?:file:|~|/|\\|[A-Za-z]:[\\/])", re.I)


def links(page: Page) -> list[str]:
    """Relative links and images exist, fragments name a heading, images are described."""
    complaints = []
    for index, cell in page.markdown():
        for link in prose.links(cell.source):
            line = prose.line_of(cell.source, link.start)
            for expected in _link(page, cell.get("attachments", {}), link):
                complaints.append(page.complain(index, expected, line=line))
    return complaints


def _link(page: Page, attachments: dict, link: prose.Link) -> list[str]:
    complaints = []
    if link.image and not link.text.strip():
        complaints.append(f"expected alt text for the image {link.target}")
    if EXTERNAL.match(link.target):
        return complaints
    if link.target.startswith("attachment:"):
        if link.target.removeprefix("attachment:") not in attachments:
            complaints.append(f"expected the attachment {link.target}")
        return complaints
    if LOCAL.match(link.target):
        return [*complaints, f"expected a relative link, found {link.target}"]
    target, fragment = prose.split_target(link.target)
    path = (page.path.parent / target).resolve() if target else page.path.resolve()
    if not target and not fragment:
        complaints.append("expected a link with a target")
    elif not path.is_relative_to(page.root.resolve()):
        complaints.append(f"expected a file of this repository, found {link.target}")
    elif not path.exists():
        complaints.append(f"expected the file {target} to exist")
    elif fragment and path.suffix in (".ipynb", ".md"):
        found = anchors(page) if path == page.path.resolve() else anchors(read(path, page.root))
        if fragment not in found:
            complaints.append(f"expected a heading #{fragment} in {path.name}{_near(found, fragment)}")
    return complaints


def anchors(page: Page) -> set[str]:
    """The fragments that lead into a notebook (JupyterLab's) or a Markdown file (GitHub's)."""
    anchor = prose.github_anchor if page.kind == "document" else prose.jupyter_anchor
    sources = [cell.source for _, cell in page.markdown()]
    named = {html.unescape(name) for source in sources for name in re.findall(r'<a id="(.+?)"></a>', source)}
    return named | {anchor(text) for source in sources for _, text, _ in prose.headings(source)}


def documents(root: Path) -> list[Path]:
    """The Markdown files that are read together with the notebooks."""
    names = (
        "README.md", "COMPARISON.md", "CONTRIBUTING.md", "data/README.md", "notebooks/teaching.md",
        "notebooks/slides.md", "README.zh.md", "notebooks/zh/teaching.md", "notebooks/zh/slides.md",
    )  # fmt: skip
    return [root / name for name in names if (root / name).is_file()]


def _near(found: set[str], fragment: str) -> str:
    def simple(text: str) -> str:
        return re.sub(r"\W", "", text.lower())

    near = [anchor for anchor in found if simple(anchor) == simple(fragment)]
    return f", perhaps #{near[0]}" if near else ""
