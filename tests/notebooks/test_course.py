"""Every guard on every notebook of the course."""

from pathlib import Path

import pytest
from guards import DOCUMENT_GUARDS, GUARDS, course, documents, notebooks, read

ROOT = Path(__file__).resolve().parents[2]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix().removeprefix("notebooks/")


def report(complaints: list[str]) -> str:
    return "\n".join(["", *complaints])


def test_course_is_whole():
    """Fails where there is nothing to guard, which the tests below would pass over."""
    complaints = course(ROOT)
    assert not complaints, report(complaints)


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("path", notebooks(ROOT), ids=relative)
def test_notebook(path: Path, guard: str):
    complaints = GUARDS[guard](read(path, ROOT))
    assert not complaints, report(complaints)


@pytest.mark.parametrize("guard", DOCUMENT_GUARDS)
@pytest.mark.parametrize("path", documents(ROOT), ids=relative)
def test_document(path: Path, guard: str):
    complaints = DOCUMENT_GUARDS[guard](read(path, ROOT))
    assert not complaints, report(complaints)
