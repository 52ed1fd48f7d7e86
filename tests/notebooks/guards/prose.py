"""Markdown as far as the guards need it. Whatever is masked becomes blanks, so positions stay."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.M | re.S)
CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n[ \t]*\n).)+?)(?<!`)\1(?!`)", re.S)
COMMENT = re.compile(r"<!--.*?-->", re.S)
TAG = re.compile(r"</?[A-Za-z][^<>]*>")
MATH = re.compile(
    # A closing dollar after a blank or before a digit is a price, not a formula.
    r"\$\$.*?\$\$|(?<![\\$])\$(?!\s)(?:[^$\n]|\n(?!\s*\n))+?(?<!\s)\$(?!\d)"
    r"|\\begin\{(\w+\*?)\}.*?\\end\{\1\}",
    re.S,
)
HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$", re.M)
LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]"
    r"\(\s*(?P<target><[^<>\n]*>|[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+[\"'][^\"']*[\"'])?\s*\)"
)
REFERENCE = re.compile(r"^ {0,3}\[(?!\^)[^\]\n]+\]:[ \t]*<?(\S+?)>?(?:[ \t].*)?$", re.M)
ATTRIBUTE = re.compile(r"<(a|img)\b[^<>]*?\s(?:href|src)\s*=\s*[\"']([^\"']*)[\"'][^<>]*>", re.I)
BARE_URL = re.compile(r"\bhttps?://[^\s)>\]]+")


@dataclass(frozen=True)
class Link:
    """A link or image: its target as written, its visible text, and where it stands."""

    target: str
    text: str
    start: int
    end: int
    image: bool = False


def blank(text: str, *patterns: re.Pattern) -> str:
    """``text`` with every match of the patterns, in turn, replaced by blanks of the same length."""
    for pattern in patterns:
        text = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)
    return text


def without_code(text: str) -> str:
    """Fenced blocks and code spans blanked."""
    return blank(text, FENCE, CODE_SPAN)


def links(text: str) -> list[Link]:
    """Every link and image of a Markdown text, HTML attributes and references included."""
    visible = blank(without_code(text), COMMENT)
    found = list(_inline(visible, text, 0))
    for match in ATTRIBUTE.finditer(visible):
        alt = re.search(r"\salt\s*=\s*[\"']([^\"']*)[\"']", match.group(), re.I)
        image = match.group(1).lower() == "img"
        label = alt.group(1) if alt else ("" if image else "link")
        found.append(Link(match.group(2), label, match.start(), match.end(), image))
    for match in REFERENCE.finditer(visible):
        found.append(Link(match.group(1), match.group(), match.start(), match.end()))
    return sorted(found, key=lambda link: link.start)


def _inline(visible: str, original: str, offset: int) -> Iterator[Link]:
    for match in LINK.finditer(visible):
        start, end = match.span("text")
        target = match.group("target").strip("<>")
        image = bool(match.group("image"))
        label = original[start:end]
        yield Link(target, label, offset + match.start(), offset + match.end(), image)
        # An image that is itself a link stands in the text of that link.
        yield from _inline(visible[start:end], label, offset + start)


def headings(text: str) -> list[tuple[int, str, int]]:
    """Level, text as rendered, and position of every heading."""
    visible = blank(text, FENCE)
    return [
        (len(match.group(1)), rendered(match.group(2)), match.start())
        for match in HEADING.finditer(visible)
    ]


def rendered(markup: str) -> str:
    """Inline Markdown as a reader sees it: no emphasis, code marks, link targets or HTML."""
    text = TAG.sub("", COMMENT.sub("", markup))
    text = LINK.sub(lambda match: match.group("text"), text)
    text = re.sub(r"`+|\*+|(?<!\w)_+|_+(?!\w)", "", text)
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text).strip()


def jupyter_anchor(heading: str) -> str:
    """JupyterLab's anchor of a heading: blanks become hyphens, everything else stays."""
    return heading.replace(" ", "-")


def github_anchor(heading: str) -> str:
    """GitHub's anchor of a heading in a Markdown file."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def split_target(target: str) -> tuple[str, str]:
    """Path and fragment of a link target, percent escapes resolved."""
    path, _, fragment = target.partition("#")
    return unquote(path.partition("?")[0]), unquote(fragment)


def line_of(text: str, position: int) -> int:
    """The line, counted from 1, in which a position stands."""
    return text.count("\n", 0, position) + 1


def table_rows(text: str) -> list[list[str]]:
    """The cells of every Markdown table row; the rule under a header is left out."""
    rows = []
    for line in blank(text, FENCE).splitlines():
        line = line.strip()
        rule = "-" in line and re.fullmatch(r"[|\s:-]+", line)
        if rule or not line.startswith("|"):
            continue
        inner = line[1:-1] if line.endswith("|") and not line.endswith("\\|") else line[1:]
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", inner)])
    return rows
