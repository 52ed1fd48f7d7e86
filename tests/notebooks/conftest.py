"""The fixtures are notebooks with faults: only the tests of the guards open them."""

import shutil
from pathlib import Path

import pytest
from spoiling import COURSE

collect_ignore_glob = ["fixtures/*"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the good course that a test may spoil."""
    return Path(shutil.copytree(COURSE, tmp_path / "course"))
