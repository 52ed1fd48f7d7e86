"""Photographs of cats and dogs, or of whatever a folder holds: found, decoded once, and cut into parts."""

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torchvision.datasets import OxfordIIITPet

from kdlib.data import Examples, Splits
from kdlib.storage import fingerprint
from kdlib.vision.decoding import check_size, digest_of, read_photo, square
from kdlib.vision.downloads import fetch_cifar10, fetch_pets
from kdlib.vision.folders import (
    LabelledPaths,
    PhotoFile,
    PhotoPaths,
    check_share,
    find_photos,
    part_of_each,
    photo_paths,
)
from kdlib.vision.photo_cache import Decoded, decode_files

__all__ = ["LabelledPaths", "PhotoPaths", "load_photos", "photo_paths", "read_photo"]

def load_photos(
    folder_or_name: str | os.PathLike,
    *,
    size: int | None = None,
    root: str | os.PathLike = "data/downloads",
    cache: str | os.PathLike | None = "data/cache",
    validation: float = 0.15,
    breeds: bool = False,
    duplicates: Literal["refuse", "drop"] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Splits:
    """Labelled photographs as squares: a folder of your own, or a set that is downloaded at its first use.

    Each photograph is decoded as `read_photo` does it, once; later calls read one compact file. Files that
    cannot be read are left out with a warning that counts and names them.

    A picture that lies in two parts would let the student train on what it is tested on. Pictures are the
    same when all their pixels are, at full size, whatever the format of the file.

    Args:
        folder_or_name: a folder in the layout of `photo_paths`, or

            - ``"pets"``: Oxford-IIIT Pet (Parkhi et al. 2012, "Cats and dogs", CVPR), 3,680 photographs for
              training and validation and 3,669 for testing, cats and dogs, CC BY-SA 4.0, download 0.8 GB;
            - ``"cifar10"``: cats and dogs of CIFAR-10 (Krizhevsky 2009, "Learning multiple layers of features
              from tiny images"), 10,000 and 2,000 images of 32×32, download 0.17 GB.
        size: side of the square in pixels; 64 by default, and 32 for CIFAR-10.
        root: where downloads land.
        cache: folder for decoded photographs; None to decode every time.
        validation: share of each class to take from train where there is no folder ``validation``.
        breeds: for pets, the 37 breeds instead of cat and dog.
        duplicates: of a picture in two parts: ``"refuse"``, the default for a folder, stops and names them;
            ``"drop"``, the default for downloaded sets, which nobody can mend, keeps the one in test, else
            the one in validation. Where validation is cut from train the latter is always done.
        seed: chooses the validation part.
        progress: show progress on stderr.

    Returns:
        `Splits` with images uint8 (N, 3, size, size). ``index`` counts the files of all parts in the order
        of their names, or as the downloaded set orders them, training before test; ``skipped`` names what
        was left out and why.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is in another layout, more than half of a part cannot be read, or (with
            ``duplicates="refuse"``) pictures lie in two parts; the message says how to mend it.
        kdlib.vision.downloads.DownloadFailed: says what to fetch by hand, and where to put it.
    """
    if duplicates not in ("refuse", "drop", None):
        raise ValueError(f'duplicates is "refuse" or "drop"; got {duplicates!r}')
    check_share(validation)
    if size is not None:
        check_size(size)
    if breeds and folder_or_name != "pets":
        raise ValueError(f'breeds=True is for "pets"; the classes of {folder_or_name} are what they are')
    if folder_or_name == "cifar10":
        files, classes, decoded = _cifar10(root, size or 32, progress)
    else:
        if folder_or_name == "pets":
            folder = fetch_pets(root, progress=progress)
            files, classes = _pets(folder, breeds)
        else:
            folder = Path(folder_or_name)
            try:
                files, classes = find_photos(folder)
            except FileNotFoundError as error:
                raise FileNotFoundError(f'{error}. Or did you mean "pets" or "cifar10"?') from None
        decoded = _decode(files, folder, size or 64, cache, progress)
    if duplicates is None:
        duplicates = "drop" if folder_or_name in ("cifar10", "pets") else "refuse"
    return _splits(files, classes, decoded, validation, duplicates, seed)


def _pets(folder: Path, breeds: bool) -> tuple[list[PhotoFile], tuple[str, ...]]:
    files = []
    for part, split in (("train", "trainval"), ("test", "test")):
        pets = OxfordIIITPet(folder.parent, split=split)
        labels = pets._labels if breeds else pets._bin_labels
        files += [
            PhotoFile(f"{part}/{path.name}", path, part, label)
            for path, label in zip(pets._images, labels, strict=True)
        ]
    return files, tuple(pets.classes) if breeds else ("cat", "dog")


def _cifar10(
    root: str | os.PathLike, size: int, progress: bool
) -> tuple[list[PhotoFile], tuple[str, ...], Decoded]:
    classes, files, pictures = ("cat", "dog"), [], []
    for part, cifar in zip(("train", "test"), fetch_cifar10(root, progress=progress), strict=True):
        label_of = {cifar.class_to_idx[name]: label for label, name in enumerate(classes)}
        for row, (pixels, target) in enumerate(zip(cifar.data, cifar.targets, strict=True)):
            if target in label_of:
                # No file of its own: the name is for messages, and for the cut of the validation part.
                files.append(PhotoFile(f"{part}/{row:05}", Path(), part, label_of[target]))
                pictures.append(Image.fromarray(pixels))
    images = torch.stack([square(picture, size) for picture in pictures])
    digests = torch.tensor([list(digest_of(picture)) for picture in pictures], dtype=torch.uint8)
    return files, classes, Decoded(images, torch.arange(len(files)), digests, {})


def _decode(
    files: Sequence[PhotoFile], folder: Path, size: int, cache: str | os.PathLike | None, progress: bool
) -> Decoded:
    if cache is not None:
        # The folder's own path, so that two folders named photos do not take turns in one cache.
        folder = folder.resolve()
        name = f"photos-{folder.name}-{size}-{fingerprint(str(folder))[:8]}.safetensors"
        cache = Path(cache) / name
    paths, names = [file.path for file in files], [file.name for file in files]
    return decode_files(paths, names, size, cache=cache, progress=progress)


def _splits(
    files: Sequence[PhotoFile],
    classes: tuple[str, ...],
    decoded: Decoded,
    validation: float,
    duplicates: str,
    seed: int,
) -> Splits:
    _report_broken(files, decoded.broken)
    parts = part_of_each(files, validation=validation, seed=seed)
    rows, pictures = decoded.rows.tolist(), [bytes(digest) for digest in decoded.digests.numpy()]
    copies = _copies(rows, pictures, [file.part for file in files])
    if copies and duplicates == "refuse":
        pairs = [f"{files[row].name} = {files[kept].name}" for row, kept in copies.items()]
        raise ValueError(
            f"the same picture lies in two parts, {len(copies)} time{'s' * (len(copies) > 1)}, so that the "
            f"student would train on what it is tested on: {_first(pairs)}. Delete one of each pair, or pass "
            'duplicates="drop", which keeps the one in test, else the one in validation'
        )
    # Once more with the validation part cut from train, where copies lie in one folder.
    copies = _copies(rows, pictures, parts)
    skipped = [f"{files[row].name}: {reason}" for row, reason in decoded.broken.items()]
    skipped += [f"{files[row].name}: the same picture as {files[kept].name}" for row, kept in copies.items()]

    def part(name: str) -> Examples:
        chosen = [at for at, row in enumerate(rows) if parts[row] == name and row not in copies]
        index = decoded.rows[chosen]
        labels = torch.tensor([files[row].label for row in index.tolist()], dtype=torch.int64)
        if missing := set(range(len(classes))) - set(labels.tolist()):
            names = ", ".join(classes[label] for label in sorted(missing))
            raise ValueError(
                f"no photograph of {names} is left in {name}; left out were {_first(skipped)}"
            )
        return Examples(decoded.images[chosen], labels, index)

    return Splits(part("train"), part("validation"), part("test"), classes, tuple(skipped))


def _report_broken(files: Sequence[PhotoFile], broken: dict[int, str]) -> None:
    if not broken:
        return
    named = _first([f"{files[row].name} ({reason})" for row, reason in broken.items()])
    total = Counter(file.part for file in files)
    for part, count in Counter(files[row].part for row in broken).items():
        if 2 * count > total[part]:
            raise ValueError(
                f"{count} of the {total[part]} files in {part} cannot be read: {named}. That is more than "
                "half: is this the folder you mean, and did its copying or unpacking finish?"
            )
    warnings.warn(
        f"{len(broken)} of {len(files)} files cannot be read and are left out: {named}", stacklevel=4
    )


def _copies(rows: Sequence[int], pictures: Sequence[bytes], parts: Sequence[str]) -> dict[int, int]:
    """Rows to leave out because a part that comes first has the picture, each with the row that is kept."""
    order = ("test", "validation", "train")
    of_picture = defaultdict(list)
    for row, picture in zip(rows, pictures, strict=True):
        of_picture[picture].append(row)
    copies = {}
    for same in of_picture.values():
        kept = min(same, key=lambda row: order.index(parts[row]))
        copies |= {row: kept for row in same if parts[row] != parts[kept]}
    return copies


def _first(names: Sequence[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
