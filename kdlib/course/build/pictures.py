"""Schematics in Chinese for the stored outputs of the Chinese notebooks.

They are drawn on a machine with a Chinese font and committed, so that a machine without one writes the same
notebooks. Each is a PNG that says, in its metadata, its alt text and which English picture it stands for.
"""

import base64
import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from kdlib.course import schematics, words
from kdlib.course.figures import png
from kdlib.storage import replaced

_SHOWN = re.compile(r"plots\.show\(schematics\.(\w+)\(\)\)\s*\Z")


class Picture(NamedTuple):
    """A PNG, its alt text, and its size in pixels."""

    png: bytes
    alt: str
    width: int
    height: int


class Pictures:
    """The Chinese schematics in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def chinese(self, source: str, english: str) -> Picture | None:
        """Of the schematic that a cell with this source and this PNG, in base64, shows.

        None for any other cell, and where the one in the folder stands for another English picture.
        """
        shown = _SHOWN.search(source)
        path = self.folder / f"{shown[1]}.png" if shown and english else None
        if path is None or not path.is_file():
            return None
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            said, (width, height) = image.text, image.size
        current = said["Source"] == _name(english)
        return Picture(content, said["Description"], width, height) if current else None

    def draw(self, cells: Iterable[tuple[str, str]]) -> list[str]:
        """Draw what is missing for cells of such (source, PNG); return what lacks a font to be drawn."""
        wrong = []
        for source, english in cells:
            shown = _SHOWN.search(source)
            if not shown or not english or self.chinese(source, english):
                continue
            if words.chinese_font() is None:
                fix = "make zh draws it where there is a Chinese font, such as Noto Sans CJK"
                wrong.append(f"figures/{shown[1]}.png: expected that of the English one; {fix}")
                continue
            with words.speaking("zh"):
                figure = getattr(schematics, shown[1])()
                content = png(figure, Description=figure.get_label(), Source=_name(english))
            with replaced(self.folder / f"{shown[1]}.png") as file:
                file.write(content)
        return wrong


def _name(english: str) -> str:
    return hashlib.sha256(base64.b64decode(english)).hexdigest()[:12]
