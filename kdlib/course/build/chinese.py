"""The Chinese edition: `notebooks/zh`, made of the English notebooks and of their translated cells.

`notebooks/zh/text` holds a Markdown file for each notebook, and for the README, the guide for teachers and
its slides. A line above each translated cell names the cell and the English text that it was made from:

    <!-- cell 443f1a63 of 1a2b3c4d5e6f -->

by the first digits of its SHA-256. Whatever is no Markdown cell is that of the English notebook. Link
targets are written as in English, and lead to Chinese files where there are any. JupyterLab finds no heading
by an anchor that is not ASCII: one that is linked keeps that of the English one, as an `<a id>` above it.
"""

import base64
import copy
import hashlib
import html
import os
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import nbformat
from nbformat import NotebookNode

from kdlib.course.build.execute import find_notebooks
from kdlib.course.build.pictures import Pictures
from kdlib.storage import replaced

FOLDER = PurePosixPath("notebooks/zh")
TEXT = FOLDER / "text"
DOCUMENTS = {
    "README": ("README.md", "README.zh.md"),
    "teaching": ("notebooks/teaching.md", f"{FOLDER}/teaching.md"),
    "slides": ("notebooks/slides.md", f"{FOLDER}/slides.md"),
}
WHOLE = "document"  # the name of the only cell of a document
NOW = "<!-- the English text as it is now: -->"

_MARKER = re.compile(r"^<!-- cell (\S+) of ([0-9a-f]{12}) -->[ \t]*\n", re.M)
_FENCE = r"^ {0,3}(?P<fence>`{3,}|~{3,}).*?(?:^ {0,3}(?P=fence)[`~]*[ \t]*$|\Z)"
_CODE = rf"{_FENCE}|(?<!`)(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"
_HEADING = re.compile(rf"(?P<code>{_FENCE})|^(?P<mark>#{{1,6}})[ \t]+(?P<words>.+?)[ \t]*$", re.M | re.S)
_TARGET = re.compile(
    rf"(?P<code>{_CODE})|(?P<before>\]\(\s*|\b(?:href|src)=\")(?P<target>[^()\s\"]*(?:\([^()\s\"]*\)[^()\s\"]*)*)",
    re.M | re.S,
)
_ELSEWHERE = re.compile(r"[a-z][a-z\d+.-]*:|[#/]|$", re.I)
_CHINESE = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True)
class Leaf:
    """A page of the course in both languages: paths below the root, `notebooks/zh/02_temperature.ipynb`."""

    name: str
    english: PurePosixPath
    chinese: PurePosixPath

    @property
    def text(self) -> PurePosixPath:
        """The file of its translated cells."""
        return TEXT / f"{self.name}.md"


def leaves(root: Path) -> list[Leaf]:
    """Every page that the Chinese edition is to have, documents last."""
    found = [Leaf(name, PurePosixPath("notebooks", f"{name}.ipynb"), FOLDER / f"{name}.ipynb")
             for name in find_notebooks(root)]  # fmt: skip
    for name, (english, chinese) in DOCUMENTS.items():
        if (root / english).is_file():
            found.append(Leaf(name, PurePosixPath(english), PurePosixPath(chinese)))
    return found


def fingerprint(source: str) -> str:
    """Of an English cell's text, as markers carry it."""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def english_page(root: Path, leaf: Leaf) -> NotebookNode:
    """The English notebook; a document as a notebook of one cell."""
    path = root / leaf.english
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return nbformat.reads(text, as_version=4)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text.strip("\n"), id=WHOLE)])


def prose(page: NotebookNode) -> dict[str, str]:
    """The id and text of every Markdown cell."""
    return {cell.id: cell.source for cell in page.cells if cell.cell_type == "markdown"}


def translated_cells(root: Path, leaf: Leaf) -> dict[str, tuple[str, str]]:
    """The id of each translated cell, the fingerprint in its marker and its text; empty without a file.

    Raises `ValueError` for a cell that stands there twice, and for text above the first marker.
    """
    path = root / leaf.text
    if not path.is_file():
        return {}
    before, *parts = _MARKER.split(path.read_text(encoding="utf-8"))
    if before.strip():
        raise ValueError(f"{leaf.text}: expected <!-- cell 443f1a63 of 1a2b3c4d5e6f --> or such at the top")
    found: dict[str, tuple[str, str]] = {}
    for name, mark, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if name in found:
            raise ValueError(f"{leaf.text}: expected cell {name} once, found it twice")
        found[name] = mark, text.strip("\n")
    return found


def untranslated(leaf: Leaf, english: Mapping[str, str], chinese: Mapping[str, tuple[str, str]]) -> list[str]:
    """Which cells are not translated, or from a text that English has no longer: a complaint each."""
    if not chinese:
        return [f"{leaf.text}: expected the translation of {leaf.english}; --stubs begins the file"]
    faults = {name: _fault(source, *chinese.get(name, ("", ""))) for name, source in english.items()}
    foreign = "expected an id of the English page, found one that it does not have"
    faults |= dict.fromkeys(chinese.keys() - english.keys(), foreign)
    return [f"{place(leaf, name, english.get(name) or chinese[name][1])}: {fault}"
            for name, fault in faults.items() if fault]  # fmt: skip


def _fault(source: str, mark: str, text: str) -> str:
    if not mark:
        return "expected its translation; --stubs adds the English text"
    if mark != fingerprint(source):
        return f"expected the translation of the text {fingerprint(source)}, found that of {mark}"
    words = re.search(r"[A-Za-z]{3}", re.sub(rf"{_CODE}|\$.+?\$", "", source, flags=re.M | re.S))
    english = NOW in text or words and not _CHINESE.search(text)
    return "expected Chinese, found the English text" if english else ""


def place(leaf: Leaf, name: str, source: str) -> str:
    """How a complaint about a cell begins: notebooks/zh/text/02_temperature.md, cell 443f1a63 ('# Title')."""
    line = next((line.strip() for line in source.splitlines() if line.strip()), "")
    return f"{leaf.text}, cell {name} ({line if len(line) <= 60 else line[:59] + '…'!r})"


def anchors(source: str, suffix: str) -> list[tuple[str, re.Match]]:
    """The anchor of each heading in a text, by JupyterLab or, in a document, by GitHub; and its place."""
    found = []
    for match in _HEADING.finditer(source):
        if match["code"] is None:
            words = re.sub(r"<!--.*?-->|</?\w[^<>]*>|`|\*\*|(?<!\w)[*_]|[*_](?!\w)", "", match["words"])
            words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", words).strip()
            if suffix == ".md":
                words = re.sub(r"[^\w\- ]", "", words.lower())
            found.append((words.replace(" ", "-"), match))
    return found


def linked_anchors(source: str, leaf: Leaf) -> set[tuple[PurePosixPath, str]]:
    """The anchors, each with its English page, to which links of an English text lead."""
    targets = (match["target"].partition("#") for match in _TARGET.finditer(source) if match["code"] is None)
    found = ((_there(path, leaf) if path else leaf.english, name) for path, _, name in targets)
    return {(page, unquote(name)) for page, name in found if name}


def chinese_markdown(
    text: str, source: str, leaf: Leaf, twins: Mapping[PurePosixPath, PurePosixPath], linked: Set[str]
) -> str:
    """A translated cell as its page holds it: English anchors at its headings, links from where it lies.

    `source` is the English cell, `twins` maps an English page to the Chinese one, `linked` are the anchors of
    this page that links lead to. Raises `ValueError` if the headings do not pair.
    """
    ours, theirs = anchors(text, leaf.english.suffix), anchors(source, leaf.english.suffix)
    if [match["mark"] for _, match in ours] != [match["mark"] for _, match in theirs]:
        raise ValueError(f"expected {len(theirs)} headings, of the levels of English, found {len(ours)}")
    for (own, match), (anchor, _) in reversed(list(zip(ours, theirs, strict=True))):
        if anchor in linked and own != anchor:
            place = f'<a id="{html.escape(anchor)}"></a>\n\n'
            text = text[: match.start()] + place + text[match.start() :]
    return _TARGET.sub(lambda match: _moved(match, leaf, twins), text)


def _moved(match: re.Match, leaf: Leaf, twins: Mapping[PurePosixPath, PurePosixPath]) -> str:
    if match["code"] is not None or _ELSEWHERE.match(match["target"]):
        return match[0]
    path, hash_, fragment = match["target"].partition("#")
    there = _there(path, leaf)
    moved = os.path.relpath(twins.get(there, there), leaf.chinese.parent).replace(os.sep, "/")
    return match["before"] + moved + hash_ + fragment


def _there(path: str, leaf: Leaf) -> PurePosixPath:
    return PurePosixPath(os.path.normpath(leaf.english.parent / unquote(path)).replace(os.sep, "/"))


class Edition:
    """The Chinese edition of the course below `root`: what is wrong with it, and what its files hold."""

    def __init__(self, root: Path) -> None:
        self.root, self.leaves = root, leaves(root)
        self.english = {leaf: english_page(root, leaf) for leaf in self.leaves}
        self.chinese = {leaf: translated_cells(root, leaf) for leaf in self.leaves}
        self.twins = {leaf.english: leaf.chinese for leaf in self.leaves if self.chinese[leaf]}
        self.linked = {pair for leaf, page in self.english.items() for source in prose(page).values()
                       for pair in linked_anchors(source, leaf)}  # fmt: skip
        self.pictures = Pictures(root / TEXT / "figures")

    def content(self, leaf: Leaf) -> str:
        """What the page's file holds; `ValueError`, naming the cells, where it cannot be made."""
        page, cells = copy.deepcopy(self.english[leaf]), self.chinese[leaf]
        if wrong := untranslated(leaf, prose(page), cells):
            raise ValueError("\n".join(wrong))
        linked = {anchor for there, anchor in self.linked if there == leaf.english}
        for cell in page.cells:
            if cell.cell_type == "markdown":
                try:
                    cell.source = chinese_markdown(cells[cell.id][1], cell.source, leaf, self.twins, linked)
                except ValueError as error:
                    raise ValueError(f"{place(leaf, cell.id, cell.source)}: {error}") from error
            else:
                self._speak(cell)
        if leaf.chinese.suffix == ".ipynb":
            return nbformat.writes(page) + "\n"
        about = f"Made by make zh from {leaf.text}, of {leaf.english} as of {cells[WHOLE][0]}"
        return f"<!-- {about} -->\n{page.cells[0].source}\n"

    def _speak(self, cell: NotebookNode) -> None:
        """Put Chinese in place of what kdlib says in a cell's outputs: schematics."""
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if picture := self.pictures.chinese(cell.source, data.get("image/png", "")):
                data["image/png"] = base64.b64encode(picture.png).decode()
                data["text/plain"] = picture.alt
                about = {"alt": picture.alt, "width": picture.width, "height": picture.height}
                output.metadata["image/png"].update(about)

    def draw(self) -> list[str]:
        """Draw the Chinese schematics that are missing; return those that cannot be drawn without a font."""
        cells = (cell for page in self.english.values() for cell in page.cells)
        return self.pictures.draw((cell.source, output.get("data", {}).get("image/png", ""))
                                  for cell in cells for output in cell.get("outputs", []))  # fmt: skip

    def stale(self) -> list[str]:
        """Files of the edition that come from no English page."""
        made = {name for leaf in self.leaves for name in (leaf.chinese, leaf.text)}
        found = [PurePosixPath(path.relative_to(self.root).as_posix())
                 for kind in ("*.md", "*.ipynb") for path in sorted((self.root / FOLDER).rglob(kind))]
        return [f"{name}: expected an English page of that name; delete the file or rename it"
                for name in found if name not in made and ".ipynb_checkpoints" not in name.parts]  # fmt: skip

    def write(self) -> list[str]:
        """Write every page that can be made and is not there as it is to be; return what is wrong."""
        wrong = self.stale() + self.draw()
        for leaf in self.leaves:
            try:
                _written(self.root / leaf.chinese, self.content(leaf))
            except ValueError as error:
                wrong += str(error).splitlines()
        return wrong

    def write_stubs(self) -> None:
        """Put English text where its translator needs it: cells not translated, or whose text has changed.

        Files get the order of English. A cell of an older text keeps its marker, and so counts as such.
        """
        for leaf in self.leaves:
            english = prose(self.english[leaf])
            parts = {name: (fingerprint(source), source) for name, source in english.items()}
            for name, (mark, text) in self.chinese[leaf].items():
                older = name in english and mark != fingerprint(english[name]) and NOW not in text
                parts[name] = mark, f"{text}\n\n{NOW}\n\n{english[name]}" if older else text
            cells = (f"<!-- cell {name} of {mark} -->\n{text}\n" for name, (mark, text) in parts.items())
            _written(self.root / leaf.text, "\n".join(cells))


def _written(path: Path, content: str) -> None:
    if not path.is_file() or path.read_bytes() != content.encode():
        with replaced(path) as file:
            file.write(content.encode())
