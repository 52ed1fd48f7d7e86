"""Known sets of photographs, fetched whole or not at all: Oxford-IIIT Pet and CIFAR-10.

torchvision knows where they lie and how to read them, and its addresses are used here. Its own download
begins again after each interruption, and takes a folder that is half unpacked for a whole one; see the
issues on the server that moved or failed: pytorch/vision 5925, keras-team/keras-io 1200.
"""

import os
import shutil
import time
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from torchvision.datasets import CIFAR10, OxfordIIITPet
from torchvision.datasets.utils import calculate_md5, extract_archive
from tqdm.auto import tqdm

__all__ = ["Archive", "DownloadFailed", "download", "fetch_cifar10", "fetch_pets", "unpack"]

_PAUSES = (1, 4)  # seconds, before trying again where nothing came
_PAST_THE_END = "HTTP status 416"  # range not satisfiable: part is longer than the file


class DownloadFailed(OSError):
    """What could not be fetched from where, and how to do it by hand."""


@dataclass(frozen=True)
class Archive:
    """A file to fetch and unpack.

    Attributes:
        addresses: where it lies, to be tried in this order.
        md5: its checksum, 32 hexadecimal digits.
        folder: the one folder it unpacks to.
    """

    addresses: tuple[str, ...]
    md5: str
    folder: str

    @property
    def name(self) -> str:
        """Its file name."""
        return self.addresses[0].rpartition("/")[2]


def pets_archives() -> tuple[Archive, ...]:
    """Photographs and labels of Oxford-IIIT Pet, at torchvision's addresses, then at the older server."""
    return tuple(
        Archive((address, f"https://thor.robots.ox.ac.uk/~vgg/data/pets/{name}.tar.gz"), md5, name)
        for address, md5 in OxfordIIITPet._RESOURCES
        for name in [address.rpartition("/")[2].removesuffix(".tar.gz")]
    )


def fetch_pets(
    root: str | os.PathLike, *, archives: tuple[Archive, ...] | None = None, progress: bool = True
) -> Path:
    """The folder ``oxford-iiit-pet`` below root, downloaded unless it is there; 0.8 GB, 1.6 GB unpacked.

    Raises:
        DownloadFailed: see `download`.
    """
    folder = Path(root) / "oxford-iiit-pet"
    for archive in pets_archives() if archives is None else archives:
        # Whole where it is there: unpack gives it this name at the end.
        if not (folder / archive.folder).is_dir():
            unpack(download(archive, folder, progress=progress), archive.folder)
    return folder


def fetch_cifar10(
    root: str | os.PathLike, *, archive: Archive | None = None, progress: bool = True
) -> tuple[CIFAR10, CIFAR10]:
    """Training and test part of CIFAR-10, downloaded below root unless there and undamaged; 0.17 GB.

    Raises:
        DownloadFailed: see `download`.
    """
    archive = archive or Archive((CIFAR10.url,), CIFAR10.tgz_md5, CIFAR10.base_folder)
    try:
        return CIFAR10(root, train=True), CIFAR10(root, train=False)
    except RuntimeError:  # absent, or a file has another checksum
        unpack(download(archive, Path(root), progress=progress), archive.folder)
    return CIFAR10(root, train=True), CIFAR10(root, train=False)


def download(archive: Archive, folder: Path, *, progress: bool = True) -> Path:
    """The archive's file in folder, with the right checksum.

    A file already there is used if its checksum is right, so one can put it there by hand. What has
    arrived of an interrupted download is kept as ``NAME.part`` and taken up again, by another address if
    need be. Two processes do not disturb each other: the second waits, and finds the file.

    Raises:
        DownloadFailed: no address gave the file. The message says why, what to fetch by hand, and where to
            put it.
    """
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{archive.name}.lock"):
            if path.is_file():
                if calculate_md5(path) == archive.md5:
                    return path
                # The beginning, perhaps, of what was fetched by hand or by torchvision.
                os.replace(path, part)
            failures = []
            for address in archive.addresses:
                failure = _fetch(address, part, archive.md5, progress)
                if failure is None:
                    os.replace(part, path)
                    return path
                failures.append(f"{address}: {failure}")
    except OSError as error:
        raise DownloadFailed(f"{folder} cannot be written ({error}); name another folder as root") from error
    listed = "\n  ".join(failures)
    raise DownloadFailed(
        f"{archive.name} could not be downloaded:\n  {listed}\n"
        f"Try again later: what has arrived is kept. Or fetch {archive.addresses[0]} by hand (its MD5 is "
        f"{archive.md5}), put it at {path} and try again."
    )


def unpack(path: Path, folder: str) -> Path:
    """The folder that an archive holds, beside the archive; it appears whole or not at all.

    A folder of that name is replaced.

    Raises:
        DownloadFailed: the archive cannot be unpacked, or holds no such folder.
    """
    target, temporary = path.parent / folder, path.parent / f".{folder}.part"
    with FileLock(path.parent / f".{path.name}.lock"):
        shutil.rmtree(temporary, ignore_errors=True)  # of somebody killed
        try:
            extract_archive(str(path), str(temporary))
            if not (temporary / folder).is_dir():
                raise ValueError(f"it holds no folder {folder}")
            if target.exists():
                shutil.rmtree(target)
            os.replace(temporary / folder, target)
        except Exception as error:  # a full disk, or what tarfile and zlib raise for damaged archives
            raise DownloadFailed(f"{path} cannot be unpacked ({error}); make room, or delete it") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _fetch(address: str, part: Path, md5: str, progress: bool) -> str | None:
    """Complete part from this address; why not, or None."""
    pauses = list(_PAUSES)
    while True:
        had = _size(part)
        if had and calculate_md5(part) == md5:  # killed between the last byte and the new name
            return None
        failure = _append(address, part, had, progress)
        if failure is None and calculate_md5(part) == md5:
            return None
        if failure in (None, _PAST_THE_END):
            part.unlink(missing_ok=True)
            if not had:
                return "the file there has another checksum"
            continue  # part was the beginning of another file: once more from the first byte
        if _size(part) > had:
            pauses = list(_PAUSES)  # something came: go on from there
        elif not pauses or failure.startswith("HTTP status 4"):
            if not _size(part):
                part.unlink(missing_ok=True)
            return failure
        else:
            time.sleep(pauses.pop(0))


def _append(address: str, part: Path, had: int, progress: bool) -> str | None:
    """Add what is missing to the first `had` bytes; why that failed, or None."""
    # As it lies there: not compressed once more on the way.
    headers = {"User-Agent": "kdlib", "Accept-Encoding": "identity"}
    if had:
        headers["Range"] = f"bytes={had}-"
    try:
        with urlopen(Request(address, headers=headers), timeout=30) as response, open(part, "ab") as file:
            if had and response.status != 206:  # the server sends all of it whatever was asked
                file.truncate(0)
                had = 0
            total = None if response.length is None else had + response.length
            with tqdm(
                desc=part.stem, initial=had, total=total, unit="B", unit_scale=True, disable=not progress
            ) as bar:
                # read1 hands over what there is, so that nothing is lost when the connection breaks.
                while chunk := response.read1(1 << 16):
                    file.write(chunk)
                    bar.update(len(chunk))
                    had += len(chunk)
    except HTTPError as error:
        error.close()
        return f"HTTP status {error.code}"
    except (OSError, HTTPException) as error:
        return str(getattr(error, "reason", None) or error or type(error).__name__)
    if total is not None and had < total:
        return f"the connection broke after {had:,} of {total:,} bytes"
    return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
