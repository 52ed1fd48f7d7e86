"""Each exhibit of the museum of bugs has a source and names tests of this repository that exist."""

import re
from pathlib import Path

import nbformat
import pytest
from named_tests import names_in

ROOT = Path(__file__).resolve().parents[2]
MUSEUM = ROOT / "notebooks" / "10_museum_of_bugs.ipynb"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
SOURCE = re.compile(r"\]\(https://github\.com/[\w.-]+/[\w.-]+/(?:issues|pull|blob|commit)/\w+")
PLATE = re.compile(r"<details><summary>The plate</summary>\n\n(\*\*.+?)\n\n</details>", re.S)


def plates() -> dict[int, str]:
    """Number of an exhibit to what its plate says."""
    found, number = {}, 0
    for cell in nbformat.read(MUSEUM, as_version=4).cells:
        if heading := re.search(r"^### Exhibit (\d+)\. ", cell.source, re.M):
            number = int(heading[1])
        if plate := PLATE.search(cell.source):
            assert number not in found, f"two plates for exhibit {number}"
            found[number] = plate[1]
    return found


EXHIBITS = plates()


def test_exhibits_are_counted_and_have_a_plate_each():
    assert list(EXHIBITS) == list(range(1, len(EXHIBITS) + 1))
    assert len(EXHIBITS) >= 15


@pytest.mark.parametrize("number", EXHIBITS)
def test_an_exhibit_has_a_source_and_the_test_that_would_have_caught_it(number: int):
    assert SOURCE.search(EXHIBITS[number]), "no issue, pull request, commit or file at a commit"
    named = NAMED.findall(EXHIBITS[number])
    assert named, "no test of this repository"
    missing = [f"{path}::{name}" for path, name in named if name not in names_in(path)]
    assert not missing


def test_every_audition_catches_the_exhibit_and_no_other():
    """As stored, and so as compared in each run of the tests."""
    said = [
        output.text.splitlines()
        for cell in nbformat.read(MUSEUM, as_version=4).cells
        if cell.cell_type == "code" and re.search(r"^audition\(", cell.source, re.M)
        for output in cell.outputs
    ]
    assert len(said) == len(EXHIBITS)
    for exhibit, fixed in said:
        assert exhibit.startswith("exhibit caught: ")
        assert re.fullmatch(r"(kdlib|fixed) +passes", fixed)
