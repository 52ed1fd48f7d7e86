"""COMPARISON.md: what is said of others has a link, what is said of us a test that exists."""

import re
from pathlib import Path

import pytest
from named_tests import names_in

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "COMPARISON.md").read_text(encoding="utf-8")


def rows(part: str) -> list[list[str]]:
    """The cells of a table, without the names of its columns and the line below them."""
    lines = re.findall(r"^\|(.*)\|$", part, re.M)[2:]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


CHOICE, ROWS, TESTS = map(rows, re.split(r"^## .*$", TEXT, flags=re.M))
REPOSITORIES = {
    "TRL": "huggingface/trl", "Liger-Kernel": "linkedin/Liger-Kernel", "DistillKit": "arcee-ai/DistillKit",
    "KDFlow": "songmzhang/KDFlow", "ModelOpt": "NVIDIA/Model-Optimizer", "verl": "verl-project/verl",
}  # fmt: skip
PEERS = list(REPOSITORIES)
LINKS = dict(re.findall(r"^\[(\S+)\]: (\S+)$", TEXT, re.M))
LABEL = re.compile(r"\[[^\[\]]+\]\[(\S+?)\]")


def proofs() -> dict[str, list[str]]:
    """The tests of each row; a line without a name goes on with the row above."""
    found: dict[str, list[str]] = {}
    row = ""
    for name, test in TESTS:
        row = name or row
        found.setdefault(row, []).append(test.strip("`"))
    return found


def test_the_table_has_a_column_for_each():
    assert f"| | `kdlib` | {' | '.join(PEERS)} |" in TEXT
    assert [tool for _, tool in CHOICE] == [*PEERS, "`kdlib`"]
    assert ROWS and all(len(row) == 2 + len(PEERS) for row in ROWS)


def test_each_of_our_cells_that_is_no_no_has_a_test():
    claimed = [name for name, cell, *_ in ROWS if not re.match(r"no\b", cell)]
    assert list(proofs()) == claimed


@pytest.mark.parametrize("name", [test for tests in proofs().values() for test in tests])
def test_it_exists(name):
    path, _, function = name.partition("::")
    assert function in names_in(path)


@pytest.mark.parametrize("peer", PEERS)
def test_what_is_said_of_a_peer_has_a_link_to_its_own_file_at_a_version(peer):
    expected = rf"https://github\.com/{REPOSITORIES[peer]}/blob/(v?\d+\.\d+\.\d+|[0-9a-f]{{40}})/\S+"
    for row in ROWS:
        cell = row[2 + PEERS.index(peer)]
        labels = LABEL.findall(cell)
        assert labels or cell in ("not found", "–"), row
        for label in labels:
            assert re.fullmatch(expected, LINKS[label]), label


def test_every_link_is_used():
    assert {label for row in ROWS for cell in row for label in LABEL.findall(cell)} == set(LINKS)
