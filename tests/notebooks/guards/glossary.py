"""The glossary is in order, and the first use of each of its terms leads to it."""

import re

from . import prose
from .page import Page, read

ALSO = re.compile(r"^[*_]Also:\s*(.+?)[*_]\s*$", re.M)


def glossary(page: Page) -> list[str]:
    """Main notebooks link the first use of a term; the glossary itself is sorted and explained."""
    if page.kind == "glossary":
        return _order(page)
    if page.kind != "main":
        return []
    path = page.path.parent / "glossary.ipynb"
    if not path.is_file():
        return [page.complain(None, "expected notebooks/glossary.ipynb")]
    return _first_uses(page, terms(read(path, page.root)))


def terms(page: Page) -> dict[str, str]:
    """Every spelling of the glossary to the heading it belongs to."""
    found = {}
    for _, heading, body in _entries(page):
        found[heading] = heading
        for match in ALSO.finditer(body):
            spellings = (prose.rendered(part) for part in match.group(1).split(","))
            found |= {spelling: heading for spelling in spellings if spelling}
    return found


def _entries(page: Page) -> list[tuple[int, str, str]]:
    """Cell, heading and text of each term."""
    entries = []
    for index, cell in page.markdown():
        marks = prose.headings(cell.source)
        ends = [*(position for _, _, position in marks[1:]), len(cell.source)]
        for (level, text, position), end in zip(marks, ends, strict=True):
            if level == 3:
                body = cell.source[position:end].partition("\n")[2]
                entries.append((index, text, body))
    return entries


def _order(page: Page) -> list[str]:
    complaints = []
    entries = _entries(page)
    if not entries:
        return [page.complain(None, "expected terms as '### term'")]
    seen: set[str] = set()
    previous = ""
    for index, heading, body in entries:
        if heading != heading.lower():
            complaints.append(page.complain(index, f"expected '{heading}' in lower case"))
        if heading.lower() < previous:
            complaints.append(page.complain(index, f"expected '{heading}' before '{previous}'"))
        previous = heading.lower()
        if not re.search(r"\w.*[.!?]", ALSO.sub("", body), re.S):
            complaints.append(page.complain(index, f"expected a sentence about '{heading}'"))
        also = ALSO.search(body)
        spellings = [part.strip() for part in also.group(1).split(",")] if also else []
        for spelling in (heading, *spellings):
            if spelling.lower() in seen:
                complaints.append(page.complain(index, f"expected '{spelling}' only once"))
            seen.add(spelling.lower())
    return complaints


def _first_uses(page: Page, spellings: dict[str, str]) -> list[str]:
    if not spellings:
        return []
    lookup, use = _pattern(spellings)
    introduced: set[str] = set()
    complaints = []
    for index, cell in page.markdown():
        text, entries = _prose(cell.source)
        # A link introduces its own term, whatever words it is made of; it starts before them.
        events = [(start, "", anchor) for start, anchor in entries]
        for match in use.finditer(text):
            words = " ".join(match.group().split())
            term = lookup[" ".join(match.group(1).lower().split())]
            events.append((match.start(), words, prose.jupyter_anchor(term)))
        for _, words, anchor in sorted(events):
            if words and anchor not in introduced:
                link = f"[{words}](glossary.ipynb#{anchor})"
                complaints.append(page.complain(index, f"expected the first '{words}' as {link}"))
            introduced.add(anchor)
    return complaints


def uses(source: str, page: Page) -> set[str]:
    """The terms of a glossary that stand in the prose of a Markdown text, in any spelling."""
    lookup, use = _pattern(terms(page))
    return {lookup[" ".join(match.group(1).lower().split())] for match in use.finditer(_prose(source)[0])}


def _pattern(spellings: dict[str, str]) -> tuple[dict[str, str], re.Pattern]:
    """Spelling, in lower case, to its term; and what finds one in a text as its first group."""
    lookup = {" ".join(spelling.lower().split()): term for spelling, term in spellings.items()}
    # Longest first: in "soft label" the term is not "label".
    longest_first = sorted(lookup, key=len, reverse=True)
    pattern = "|".join(re.escape(spelling).replace(r"\ ", r"\s+") for spelling in longest_first)
    return lookup, re.compile(rf"(?<![\w-])({pattern})(?:s|es)?(?![\w-])", re.I)


def _prose(source: str) -> tuple[str, list[tuple[int, str]]]:
    """Prose with everything else blanked, and where it links to which anchor of the glossary."""
    text = prose.blank(
        prose.without_code(source), prose.COMMENT, prose.MATH, prose.HEADING, prose.TAG
    )
    entries = []
    for link in prose.links(source):
        path, fragment = prose.split_target(link.target)
        if path.rpartition("/")[2] == "glossary.ipynb" and fragment:
            entries.append((link.start, fragment))
            # Only the words are prose: the target repeats the term.
            label = text[link.start : link.end].partition("](")[0]
            text = text[: link.start] + label.ljust(link.end - link.start) + text[link.end :]
        else:
            blanks = re.sub(r"[^\n]", " ", text[link.start : link.end])
            text = text[: link.start] + blanks + text[link.end :]
    return prose.blank(text, prose.BARE_URL), entries
