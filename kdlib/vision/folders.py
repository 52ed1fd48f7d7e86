"""Photographs in folders: which files there are, what they show, and which part each is in."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = [
    "LabelledPaths", "PhotoFile", "PhotoPaths", "check_share", "find_photos", "part_of_each", "photo_paths",
]  # fmt: skip

# What counts as a photograph in a folder. HEIC is listed although plain Pillow cannot read it: better
# counted and named as unreadable than passed over in silence.
EXTENSIONS = frozenset({
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif",
    ".tiff", ".webp",
})  # fmt: skip
_PART_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}


@dataclass(frozen=True)
class LabelledPaths:
    """Files of one part.

    Attributes:
        paths: N files.
        labels: (N) int64, the position of the file's class in `PhotoPaths.classes`.
        index: (N) int64, the file's position among all files, the same as in `Splits` from `load_photos`.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class PhotoPaths:
    """The files of a folder of photographs, not yet opened.

    Attributes:
        train, validation, test: the parts.
        classes: names of the class folders, by label.
    """

    train: LabelledPaths
    validation: LabelledPaths
    test: LabelledPaths
    classes: tuple[str, ...]


@dataclass(frozen=True)
class PhotoFile:
    """A photograph by its name below the folder, which is the same on every system: train/cat/1.jpg."""

    name: str
    path: Path
    part: str
    label: int


def photo_paths(folder: str | os.PathLike, *, validation: float = 0.15, seed: int = 0) -> PhotoPaths:
    """The files of a folder in the layout ``train/cat/*.jpg``, with their labels.

    Below the folder lie ``train`` and ``test``, and perhaps ``validation`` (or ``valid``, ``val``); in each
    of them one folder for each class, whose name is the class's name. Photographs may lie in folders below
    that. Hidden files and folders, and files without the extension of a picture, are passed over. Classes
    and files are in alphabetical order.

    Without a folder ``validation`` this share of each class is taken from train. Which files these are
    depends on their names and the seed alone: a file added later moves no other.

    A folder without ``test`` is refused: a test part cut here would change with the seed, and so end up
    in somebody's training.

    Args:
        folder: what holds train and test.
        validation: share of train to hold out, above 0 and below 1; at least one file of each class.
        seed: chooses which.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it is not in this layout; the message says what is missing.
    """
    check_share(validation)
    files, classes = find_photos(Path(folder))
    return _divide(files, classes, validation=validation, seed=seed)


def find_photos(folder: Path) -> tuple[list[PhotoFile], tuple[str, ...]]:
    """All photographs of a folder in the order of their names, and the classes."""
    layout = "it should hold train/cat/*.jpg, train/dog/*.jpg, test/cat/*.jpg, and so on"
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; {layout}")
    found: dict[str, dict[str, list[Path]]] = {}
    for part, names in _PART_NAMES.items():
        present = [name for name in names if (folder / name).is_dir()]
        if len(present) > 1:
            raise ValueError(f"{folder} holds {' and '.join(present)}, which mean the same; keep one")
        if not present:
            if part == "train":
                raise ValueError(f"{folder} holds no folder train; {layout}")
            if part == "test":
                raise ValueError(
                    f"{folder} holds no folder test; move about a fifth of each class there once, by hand, "
                    "so that the test photographs stay the same whatever is tried"
                )
            continue
        found[part] = _class_files(folder / present[0])
    classes = tuple(sorted(found["train"]))
    if len(classes) < 2:
        raise ValueError(
            f"{folder / 'train'} should hold a folder of photographs for each of two classes or more; "
            f"found {', '.join(classes) or 'none'}"
        )
    for part, of_class in found.items():
        if set(of_class) != set(classes):
            raise ValueError(
                f"train and {part} should hold the same classes; train has photographs of "
                f"{', '.join(classes)}, {part} of {', '.join(sorted(of_class)) or 'none'}"
            )
    files = [
        PhotoFile(path.relative_to(folder).as_posix(), path, part, classes.index(name))
        for part, of_class in found.items()
        for name, paths in of_class.items()
        for path in paths
    ]
    return sorted(files, key=lambda file: file.name), classes


def _divide(
    files: Sequence[PhotoFile], classes: tuple[str, ...], *, validation: float, seed: int
) -> PhotoPaths:
    """The files in their three parts."""
    parts = part_of_each(files, validation=validation, seed=seed)

    def part(name: str) -> LabelledPaths:
        rows = [row for row, its_part in enumerate(parts) if its_part == name]
        labels = torch.tensor([files[row].label for row in rows])
        return LabelledPaths(tuple(files[row].path for row in rows), labels, torch.tensor(rows))

    return PhotoPaths(part("train"), part("validation"), part("test"), classes)


def part_of_each(files: Sequence[PhotoFile], *, validation: float, seed: int) -> list[str]:
    """train, validation or test for each file; where there is no validation it is cut from train.

    Each class gives this share of its files, the first in the order of a hash of seed and name: no version
    of any library changes that, and no other file does.
    """
    parts = [file.part for file in files]
    if "validation" in parts:
        return parts
    of_class = defaultdict(list)
    for row, file in enumerate(files):
        if file.part == "train":
            draw = hashlib.sha256(f"{seed}/{file.name}".encode("utf-8", "surrogateescape")).digest()
            of_class[file.label].append((draw, row))
    for members in of_class.values():
        count = max(1, round(validation * len(members)))
        if count == len(members):
            raise ValueError(
                f"validation={validation} would take all {count} training photographs of a class, such as "
                f"{files[members[0][1]].name}; add photographs, or make it smaller"
            )
        for _, row in sorted(members)[:count]:
            parts[row] = "validation"
    return parts


def check_share(validation: float) -> None:
    """ValueError unless validation is a share that leaves something on both sides."""
    if not 0 < validation < 1:
        raise ValueError(
            f"validation is a share of the training photographs, above 0 and below 1; got {validation}"
        )


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """Photographs below each class folder that holds any."""
    classes = {}
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.name.startswith("."):
            paths = list(_photographs(entry))
            if paths:
                classes[entry.name] = paths
    return classes


def _photographs(folder: Path) -> Iterator[Path]:
    seen = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        # A link to a folder above would be followed for ever.
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real in seen:
            continue
        seen.add(real)
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield Path(where, name)
