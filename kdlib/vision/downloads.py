"""Archives of known data sets, downloaded and unpacked whole or not at all.

torchvision's own download starts over after each interruption, and takes a half unpacked folder for a whole
one, since it keeps no checksums of single pictures: https://github.com/pytorch/vision/pull/8638.
"""

import os
import shutil
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from torchvision.datasets.utils import check_integrity, extract_archive
from tqdm.auto import tqdm


def fetch(url: str, md5: str, folder: Path, unpacked: str, *, progress: bool = True) -> None:
    """Download an archive into a folder and unpack it there, unless that has been done before.

    An interrupted download is kept as ``NAME.part`` and continued by the next call. An archive that was put
    into the folder by hand is used if its checksum is right. Of several processes, one downloads. `unpacked`
    is the name of the one folder that the archive holds.

    Raises:
        OSError: the address did not give this archive; the message says why, and how to fetch it by hand.
    """
    archive, target, temporary = folder / Path(url).name, folder / unpacked, folder / f".{unpacked}.part"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{archive.name}.lock"):
        if target.is_dir():
            return
        if not check_integrity(archive, md5):
            try:
                _download(url, md5, archive, progress)
            except (OSError, HTTPException) as error:
                if isinstance(error, HTTPError):
                    error.close()  # it holds the connection
                raise OSError(
                    f"{url} could not be downloaded: {error}. Try again: what has arrived is kept. "
                    f"Or fetch it by hand (its MD5 is {md5}), put it at {archive} and try again"
                ) from error
        shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed here
        extract_archive(str(archive), str(temporary))
        os.replace(temporary / unpacked, target)
        temporary.rmdir()


def _download(url: str, md5: str, archive: Path, progress: bool) -> None:
    part = archive.with_name(f"{archive.name}.part")
    # The last byte again: a server refuses to send nothing, and a killed process may have left a whole file.
    had = max(part.stat().st_size - 1, 0) if part.exists() else 0
    request = Request(url, headers={"User-Agent": "kdlib", "Range": f"bytes={had}-"})
    with urlopen(request, timeout=30) as response, open(part, "ab") as file:
        had *= response.status == 206  # otherwise the server sends all of it
        file.truncate(had)
        bar = {"desc": archive.name, "initial": had, "total": had + response.length, "disable": not progress}
        with tqdm.wrapattr(response, "read", **bar) as source:
            shutil.copyfileobj(source, file)
    arrived = part.stat().st_size
    if arrived < bar["total"]:
        raise ConnectionError(f"the connection broke after {arrived:,} of {bar['total']:,} bytes")
    if not check_integrity(part, md5):
        part.unlink()
        raise ConnectionError("the file there has another checksum")
    os.replace(part, archive)
