"""The Chinese edition: nothing of the English cell is missing in the Chinese one, and one term has one name.

What is not translated, or of an older text, `kdlib.course.build.chinese` finds, and these guards pass on.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal

import nbformat

from kdlib.course.build.chinese import Edition, Leaf, place, prose, untranslated

from . import prose as markdown
from .glossary import uses
from .page import first_line, read

CJK = re.compile(r"[\u3400-\u9fff]")
ALSO = re.compile(r"^[*_](?:也写作|Also)[:：]\s*(.+?)[*_]\s*$", re.M)
# Plain words of English too: only where an English cell links them are they meant as terms.
EVERYDAY = {"agreement", "class", "seed", "student"}
NUMBER = re.compile(r"(\d+(?:[.,]\d+)*)(?:\s*(million|billion|万|亿))?")
SCALES = {"million": 10**6, "billion": 10**9, "万": 10**4, "亿": 10**8}
MATH = re.compile(r"(?<!\\)\$\$?.+?(?<!\\)\$\$?", re.S)

Guard = Callable[[Edition, Leaf], list[str]]


def translated(edition: Edition, leaf: Leaf) -> list[str]:
    """Every cell is translated, from the English text as it is."""
    return untranslated(leaf, prose(edition.english[leaf]), edition.chinese[leaf])


def complete(edition: Edition, leaf: Leaf) -> list[str]:
    """Numbers, formulas, links, markers, code, headings, rows and tags of a cell are those of English."""
    complaints = []
    for where, english, chinese in _cells(edition, leaf):
        ours, theirs = parts(chinese), parts(english)
        for kind in theirs:
            lost, more = theirs[kind] - ours[kind], ours[kind] - theirs[kind]
            complaints += [f"{where}: expected the {kind} {part}, as in English" for part in lost]
            complaints += [f"{where}: expected no {kind} {part}, as in English" for part in more]
        lost = lost_numbers(english, chinese)
        complaints += [f"{where}: expected the number {number}, as in English" for number in lost]
    return complaints


def lost_numbers(english: str, chinese: str) -> list[str]:
    """The numbers that a translation lacks. It may have more, and write 1.3 million as 130 万 or as 1.3M."""
    there = Counter(_value(digits, scale) for digits, scale in _numbers(chinese))
    lost = []
    for digits, scale in _numbers(english):
        forms = [form for form in (_value(digits, scale), _value(digits, "")) if there[form]]
        there.subtract(forms[:1])
        lost += [] if forms else [digits]
    return lost


def parts(text: str) -> dict[str, Counter]:
    """What a translation must keep, by kind; each with the number of times that it stands there."""
    visible = markdown.COMMENT.sub("", text)
    rows = [line.count("|") for line in visible.splitlines() if line.startswith("|")]
    found = {
        "formula": MATH.findall(visible),
        "link": [link.target for link in markdown.links(text)],
        "marker": [marked_number(text, match) for match in markdown.COMMENT.finditer(text)],
        "code": re.findall(r"`+[^`]+`+", visible),
        "heading of level": [level for level, _, _ in markdown.headings(text)],
        "table row with so many bars:": rows,
        "tag": re.findall(r"</?\w+>", markdown.without_code(visible)),
    }
    return {kind: Counter(members) for kind, members in found.items()}


def marked_number(text: str, marker: re.Match) -> str:
    """A marker and what stands right before it in its line, a number and perhaps a sign of per cent."""
    before = re.search(r"[\d.,−-]*[*_]*[^\S\n]*\\?%?[*_]*[^\S\n]*$", text[: marker.start()])[0]
    return re.sub(r"[\s*_\\]", "", before) + marker.group()


def terms(edition: Edition, leaf: Leaf) -> list[str]:
    """A term that an English cell links, or uses if it is no everyday word, has its Chinese name."""
    names = chinese_names(edition)
    if not names or leaf.name == "glossary":
        return []
    glossary = read(edition.root / "notebooks" / "glossary.ipynb", edition.root)
    complaints = []
    for where, english, chinese in _cells(edition, leaf):
        visible = _squeezed(markdown.rendered(chinese))
        targets = [link.target for link in markdown.links(english) if "glossary.ipynb#" in link.target]
        linked = {markdown.split_target(target)[1] for target in targets}
        used = {term for term in uses(english, glossary) if term not in EVERYDAY}
        meant = [term for term in names if term in used or markdown.jupyter_anchor(term) in linked]
        for term in meant:
            if not any(_squeezed(name) in visible for name in names[term]):
                complaints.append(f"{where}: expected '{names[term][0]}' for '{term}', by the glossary")
    return complaints


def entries(edition: Edition, leaf: Leaf) -> list[str]:
    """The Chinese glossary names the English term of each entry, and no name stands for two terms."""
    if leaf.name != "glossary":
        return []
    complaints, taken = [], {}
    for where, term, name, heading, _ in _entries(edition, leaf):
        expected = f"{name}（{term}）"
        if heading not in (expected, term):
            complaints.append(f"{where}: expected '### {expected}', found '### {heading}'")
        if taken.setdefault(name, term) != term:
            complaints.append(f"{where}: expected another name for '{term}', found that of '{taken[name]}'")
    return complaints


def chinese_names(edition: Edition) -> dict[str, list[str]]:
    """English term to what it may be called in Chinese, its name first."""
    leaf = next((leaf for leaf in edition.leaves if leaf.name == "glossary"), None)
    if leaf is None or not edition.chinese[leaf]:
        return {}
    found = {}
    for _, term, name, _, also in _entries(edition, leaf):
        # An abbreviation such as KL is the same in both languages.
        found[term] = [name, *(other for other in also if CJK.search(other) or other != other.lower())]
    return found


def same_code(edition: Edition, leaf: Leaf) -> list[str]:
    """The notebook has the cells of English, and code, metadata and outputs but for words of kdlib."""
    path = edition.root / leaf.chinese
    if path.suffix != ".ipynb" or not edition.chinese[leaf]:
        return []
    if not path.is_file():
        return [f"{leaf.chinese}: expected the notebook; make zh writes it"]
    english, chinese = edition.english[leaf], nbformat.read(path, as_version=4)
    if [cell.id for cell in english.cells] != [cell.id for cell in chinese.cells]:
        return [f"{leaf.chinese}: expected the cells of {leaf.english}; make zh writes them"]
    complaints = []
    if english.metadata != chinese.metadata:
        complaints.append(f"{leaf.chinese}: expected the metadata of {leaf.english}; make zh puts them there")
    for index, (ours, theirs) in enumerate(zip(chinese.cells, english.cells, strict=True)):
        if theirs.cell_type == "code" and _code(ours) != _code(theirs):
            expected = f"expected code and outputs of {leaf.english}; make zh puts them there"
            complaints.append(f"{leaf.chinese}, cell {index + 1} ({first_line(theirs)!r}): {expected}")
    return complaints


def written(edition: Edition, leaf: Leaf) -> list[str]:
    """The page is what `make zh` would write."""
    try:
        content = edition.content(leaf)
    except ValueError as error:
        return str(error).splitlines()
    path = edition.root / leaf.chinese
    as_it_is = path.is_file() and path.read_text(encoding="utf-8") == content
    return [] if as_it_is else [f"{leaf.chinese}: expected what make zh writes; run it"]


CHINESE_GUARDS: dict[str, Guard] = {
    guard.__name__: guard for guard in (translated, complete, terms, entries, same_code, written)
}


def _numbers(text: str) -> list[tuple[str, str]]:
    """The digits of each number in the prose, without commas, and the word behind it that makes it large."""
    plain = re.sub(rf"\]\([^)]*\)|`[^`]*`|{MATH.pattern}", " ", markdown.COMMENT.sub("", text), flags=re.S)
    return [(digits.replace(",", ""), scale) for digits, scale in NUMBER.findall(plain)]


def _value(digits: str, scale: str) -> str:
    """What a number is worth, or how it is written where that matters: 0.50 is not 0.5."""
    return f"{Decimal(digits) * SCALES[scale]:f}".removesuffix(".0") if scale else digits


def _cells(edition: Edition, leaf: Leaf) -> Iterator[tuple[str, str, str]]:
    """Of each translated cell how a complaint begins, the English text and the Chinese one."""
    for name, english in prose(edition.english[leaf]).items():
        if name in edition.chinese[leaf]:
            yield place(leaf, name, english), english, edition.chinese[leaf][name][1]


def _entries(edition: Edition, leaf: Leaf) -> Iterator[tuple[str, str, str, str, list[str]]]:
    """Of each entry its place, its term, its Chinese name, its heading, and other spellings."""
    for where, english, chinese in _cells(edition, leaf):
        theirs = [text for level, text, _ in markdown.headings(english) if level == 3]
        ours = [(text, start) for level, text, start in markdown.headings(chinese) if level == 3]
        ends = [*(start for _, start in ours[1:]), len(chinese)]
        for term, (heading, start), end in zip(theirs, ours, ends, strict=False):
            also = ALSO.search(chinese[start:end])
            others = [part.strip() for part in re.split("[,，、]", also[1])] if also else []
            yield where, term, heading.partition("（")[0].strip(), heading, others


def _squeezed(text: str) -> str:
    return re.sub(r"\s", "", text).casefold()


def _code(cell: nbformat.NotebookNode) -> tuple:
    """What must be the same: all but schematics and their alt texts."""
    schematic = re.search(r"\bschematics\.\w+\(", cell.source)
    outputs = []
    for output in cell.outputs:
        data = dict(output.get("data", {}))
        if schematic and "image/png" in data:
            outputs.append((output.output_type, sorted(data)))
        else:
            outputs.append(output)
    return cell.source, cell.metadata, cell.execution_count, outputs
