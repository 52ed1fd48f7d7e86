"""Many photographs decoded once, and kept in one compact file that notices when they changed."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from kdlib.storage import DamagedFile, fingerprint, load_tensors, save_tensors
from kdlib.vision.decoding import DECODER, UnreadablePhoto, decode, quiet_pillow

__all__ = ["Decoded", "decode_files"]


@dataclass(frozen=True)
class Decoded:
    """Of N files, the M that are pictures.

    Attributes:
        images: (M, 3, size, size) uint8.
        rows: (M) int64, each one's position among the N files.
        digests: (M, 16) uint8, equal for equal pictures; see `decode`.
        broken: position of each other file, with why it cannot be read.
    """

    images: Tensor
    rows: Tensor
    digests: Tensor
    broken: dict[int, str]


def decode_files(
    paths: Sequence[Path], names: Sequence[str], size: int, *, cache: Path | None, progress: bool
) -> Decoded:
    """The photographs from the cache where it belongs to them, else decoded and written there.

    The cache belongs to the files' names, sizes and times of change, to size, and to the version of the
    decoder; damaged, it is made again with a warning. A cache that cannot be written costs a warning and no
    more. Whoever is interrupted leaves no new cache.

    Args:
        paths: N files.
        names: N names that tell them apart, whatever folder they lie in.
        size: side of the squares.
        cache: the file; None for no cache.
        progress: show a bar on stderr.
    """
    # Looked at before decoding: what is changed meanwhile is noticed the next time.
    stamps = [[name, *_stamp(path)] for name, path in zip(names, paths, strict=True)]
    belongs = fingerprint(DECODER, size, stamps)
    if cache is not None and (decoded := _from_cache(cache, belongs)) is not None:
        return decoded
    decoded = _decode_all(paths, size, progress)
    if cache is not None:
        tensors = {"images": decoded.images, "rows": decoded.rows, "digests": decoded.digests}
        try:
            save_tensors(cache, tensors, {"belongs": belongs, "broken": list(decoded.broken.items())})
        except OSError as error:
            warnings.warn(
                f"the decoded photographs cannot be kept in {cache} ({error}); they will be decoded again "
                "next time. cache= names another folder, and None says not to keep them",
                stacklevel=4,
            )
    return decoded


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # gone, or a link to nowhere: counted as broken when it is decoded
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _from_cache(cache: Path, belongs: str) -> Decoded | None:
    try:
        tensors, metadata = load_tensors(cache)
    except FileNotFoundError:
        return None
    except (DamagedFile, OSError) as error:
        warnings.warn(f"{error}. The photographs are decoded again", stacklevel=5)
        return None
    if metadata.get("belongs") != belongs:
        return None
    return Decoded(tensors["images"], tensors["rows"], tensors["digests"], dict(metadata["broken"]))


def _decode_all(paths: Sequence[Path], size: int, progress: bool) -> Decoded:
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    digests = torch.empty(len(paths), 16, dtype=torch.uint8)
    broken = {}

    def one(row: int) -> str | None:
        try:
            images[row], digest = decode(paths[row], size)
        except UnreadablePhoto as error:
            return error.reason
        except FileNotFoundError:
            return "there is no such file"
        digests[row] = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        return None

    # Threads, not processes: Pillow and hashlib let go of the interpreter's lock while they work.
    with quiet_pillow(), ThreadPoolExecutor(_cores()) as pool:
        try:
            done = pool.map(one, range(len(paths)))
            for row, reason in enumerate(
                tqdm(done, "decoding", len(paths), unit="photo", disable=not progress)
            ):
                if reason is not None:
                    broken[row] = reason
        except BaseException:  # Ctrl-C: without this the pool would first finish everything
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    rows = torch.tensor([row for row in range(len(paths)) if row not in broken], dtype=torch.int64)
    if broken:
        images, digests = images[rows], digests[rows]
    return Decoded(images, rows, digests, broken)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # the cores this process may use, not those the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
