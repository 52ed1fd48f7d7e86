"""Guards on the course: each takes a page and returns what is wrong with it, cell by cell.

CONTRIBUTING.md is the contract for authors; these functions enforce it.
"""

import re
from collections.abc import Callable
from pathlib import Path

from .card import card, readme
from .chinese import CHINESE_GUARDS
from .claims import claims
from .exercises import exercises
from .functions import functions
from .glossary import glossary
from .links import documents, links
from .measured import measured
from .outputs import outputs
from .pace import pace
from .page import Page, read
from .style import style
from .take_with_you import take_with_you

Guard = Callable[[Page], list[str]]

GUARDS: dict[str, Guard] = {
    guard.__name__: guard
    for guard in (
        card,
        readme,
        pace,
        functions,
        take_with_you,
        exercises,
        outputs,
        claims,
        measured,
        links,
        glossary,
        style,
    )
}
DOCUMENT_GUARDS: dict[str, Guard] = {"links": links, "measured": measured}

__all__ = [
    "CHINESE_GUARDS",
    "DOCUMENT_GUARDS",
    "GUARDS",
    "Guard",
    "Page",
    "course",
    "documents",
    "notebooks",
    "read",
]


def notebooks(root: Path) -> list[Path]:
    """Every notebook of the course, solutions last."""
    folder = root / "notebooks"
    return sorted(folder.glob("*.ipynb")) + sorted((folder / "solutions").glob("*.ipynb"))


def course(root: Path) -> list[str]:
    """The course as a whole: there are notebooks, a glossary, and one solution for each."""
    found = notebooks(root)
    names = {kind: set() for kind in ("main", "glossary", "solution")}
    for path in found:
        names[read(path, root).kind].add(path.name)
    complaints = [
        f"notebooks/: expected a notebook, found none of kind '{kind}'"
        for kind, members in names.items()
        if not members
    ]
    complaints += [
        f"notebooks/{name}: expected its solutions in notebooks/solutions/{name}"
        for name in sorted(names["main"] - names["solution"])
    ]
    complaints += [
        f"notebooks/solutions/{name}: expected a notebook of that name in notebooks/"
        for name in sorted(names["solution"] - names["main"])
    ]
    complaints += [
        f"notebooks/{name}: expected a name like 01_name.ipynb; the course skips any other"
        for name in sorted(names["main"])
        if not re.fullmatch(r"\d\d_\w+\.ipynb", name)
    ]
    # pytest would look past a notebook in any other folder, and so would these guards.
    chinese = set((root / "notebooks" / "zh").rglob("*"))  # has guards of its own
    stray = set((root / "notebooks").rglob("*.ipynb")) - set(found) - chinese
    complaints += [
        f"{path.relative_to(root).as_posix()}: expected notebooks in notebooks/ or solutions/"
        for path in sorted(stray)
        if ".ipynb_checkpoints" not in path.parts
    ]
    return complaints
