"""Photographs of cats and dogs, or of whatever a folder holds: found, decoded once, and cut into parts."""

import hashlib
import os
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from glob import iglob
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets import CIFAR10, OxfordIIITPet
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import pil_to_tensor
from tqdm.contrib.concurrent import thread_map

from kdlib.arguments import check_number, check_room, check_whole
from kdlib.data import Examples, Splits
from kdlib.places import CACHE, DOWNLOADS
from kdlib.storage import DamagedFile, fingerprint, load_tensors, save_tensors
from kdlib.vision.downloads import fetch

# HEIC too, which Pillow cannot read alone: without pillow-heif it is reported as unreadable, not ignored.
EXTENSIONS = {*IMG_EXTENSIONS, ".avif", ".gif", ".heic", ".heif", ".jfif"}
FOLDERS = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "valid", "val"), "validation")
LAYOUT = "it should hold train/cat/*.jpg, train/dog/*.jpg, test/cat/*.jpg, and so on"
TEST_BY_HAND = "move about a fifth of each class there once, by hand, to test every student on the same ones"


@cache
def decoder() -> str:
    """What reads pictures. Raise the number when the pixels of `read_photo` change: caches are made again."""
    found = f"3, Pillow {Image.__version__}"
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        found += f", pillow-heif {pillow_heif.__version__}"
    return found


class UnreadablePhoto(ValueError):
    """A file that is no picture, or only part of one; `reason` says why, without the file's name."""

    def __init__(self, path: str | os.PathLike, reason: object) -> None:
        super().__init__(f"{path} cannot be read: {reason}")
        self.reason = str(reason)


class Photo(NamedTuple):
    """A labelled photograph; `name` is the same on every system: train/cat/1.jpg."""

    name: str
    path: Path
    part: str
    label: int


def load_photos(
    folder_or_name: str | os.PathLike, *,
    size: int | None = None, root: str | os.PathLike = DOWNLOADS,
    cache: str | os.PathLike | None = CACHE, validation: float = 0.15, seed: int = 0,
    progress: bool = True,
) -> Splits:  # fmt: skip
    """Labelled photographs as squares: a folder of your own, or a set that is downloaded at its first use.

    A folder holds ``train`` and ``test``, and perhaps ``validation`` (or ``valid``, ``val``), and each of
    these a folder for each class; photographs may lie in folders below that. Hidden files are ignored; files
    without the extension of a picture are passed over and counted. A folder without ``test`` is refused: a
    test part cut here would change with the seed, and so end up in training.

    What cannot be read is left out with a warning; HEIC needs pillow-heif. So is a picture that lies in
    another part too: the one in test stays, or else the one in validation. One that lies in two classes of a
    part stays, with a warning. For a set larger than memory, give `fit` a torch ``DataLoader`` of
    torchvision's ``ImageFolder("photos/train", loader=partial(read_photo, size=64))``.

    Args:
        folder_or_name: a folder, or ``"pets"``: Oxford-IIIT Pet (Parkhi et al. 2012, "Cats and dogs", CVPR),
            3,680 photographs to train and validate, 3,669 to test, CC BY-SA 4.0, download 0.8 GB; or
            ``"cifar10"``: cats and dogs of CIFAR-10 (Krizhevsky 2009, "Learning multiple layers of features
            from tiny images"), 10,000 and 2,000 images of 32×32, download 0.17 GB.
        size: side of the square in pixels; 64 by default, and 32 for CIFAR-10.
        root, cache: folders for downloads and for decoded photographs (`kdlib.places`); without a cache all
            are decoded anew.
        validation, seed: the share of each class to take from train where no folder is for validation. Which
            files these are depends on their names and the seed alone: a file added later moves no other.

    Returns:
        `Splits` with images uint8 (N, 3, size, size). ``index`` counts the files of all parts in the order
        of their names, or as the downloaded set orders them; ``skipped`` names what was left out and why.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: an argument or the folder's layout is wrong, or most of a part cannot be used.
        OSError: a download failed; the message says what to fetch by hand, and where to put it.
    """
    check_number("validation", validation)
    if not 0 < validation < 1:
        raise ValueError(f"validation is a share of train, above 0 and below 1; got {validation}")
    if size is not None:
        check_whole("size", size, least=1)
    check_whole("seed", seed)
    classes, broken, others = ("cat", "dog"), {}, 0
    if folder_or_name == "cifar10":
        photos, images = _cifar10(Path(root), size or 32, progress)
    else:
        if folder_or_name == "pets":
            folder = Path(root) / "oxford-iiit-pet"
            photos = _pets(folder, progress)
        else:
            folder = Path(folder_or_name)
            photos, classes, others = _find(folder)
        images, broken = _decoded(photos, folder, size or 64, cache, progress)
    return _splits(_cut_validation(photos, validation, seed), images, broken, classes, others)


def read_photo(path: str | os.PathLike, size: int) -> Tensor:
    """The centre square of a photograph, uint8 (3, size, size), red, green and blue in 0 … 255.

    The camera's EXIF orientation is applied; whatever is transparent lies on white; all become 8-bit RGB; of
    an animation the first frame counts. Resized as by torchvision's Resize (bilinear with antialiasing).

    Raises:
        UnreadablePhoto: the file is empty, truncated, no picture, or of more than 179 million pixels, twice
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    decoder()
    try:
        with Image.open(path) as picture:
            deep = any(";16" in str(tile[-1]) for tile in getattr(picture, "tile", ()))
            return _square(_as_rgb(ImageOps.exif_transpose(picture), deep), size)
    except Exception as error:  # Pillow's readers of damaged files raise nearly everything
        reason = _why_unread(path) if isinstance(error, UnidentifiedImageError) else error
        if isinstance(error, Image.DecompressionBombError):
            most = f"{2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
            reason = f"it has more than {most}; make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        if os.path.getsize(path) == 0:  # or FileNotFoundError
            reason = "the file is empty"
        raise UnreadablePhoto(path, reason) from error


def _why_unread(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        begin = file.read(12)
    if begin[4:8] == b"ftyp" and begin[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1"):
        return "a HEIC picture, which needs pillow-heif: python -m pip install pillow-heif"
    return "no picture that Pillow can read"


def _as_rgb(picture: Image.Image, deep: bool) -> Image.Image:
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it as 8 or 16 bit")
    if picture.mode.startswith("I"):
        # The upper 8 of the bits that are used: cameras and scanners put 10, 12 or 14 into 16. Pillow's own
        # conversion turns everything above 255 to white.
        pixels = np.asarray(picture).astype(np.int64).clip(0, 65535)
        unused = max(8, int(pixels.max()).bit_length()) - 8
        picture = Image.fromarray((pixels >> unused).astype(np.uint8))
    elif deep and max(high for _, high in picture.convert("RGB").getextrema()) < 16:
        # Of 16-bit colours Pillow keeps the upper byte.
        raise ValueError("its colours use 12 of their 16 bits, and would be nearly black; save it with 8")
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _square(picture: Image.Image, size: int) -> Tensor:
    return pil_to_tensor(ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)).contiguous()


def _find(folder: Path) -> tuple[list[Photo], tuple[str, ...], int]:
    """The photographs of a folder in the order of their names, the classes, and how many files are none."""
    if not folder.is_dir():
        raise FileNotFoundError(f'there is no folder {folder}; {LAYOUT}. Did you mean "pets" or "cifar10"?')
    found, classes_of, others = [], defaultdict(set), []
    for name, part in FOLDERS.items():
        for file in map(Path, iglob(f"{name}/**/*", root_dir=folder, recursive=True)):
            if not (folder / file).is_file():
                continue
            if file.suffix.lower() not in EXTENSIONS or len(file.parts) < 3:
                others.append(file.as_posix())
                continue
            # Systems write one letter with its accent as one character or as two.
            normal = Path(unicodedata.normalize("NFC", file.as_posix()))
            found.append((normal.as_posix(), folder / file, part, normal.parts[1]))
            classes_of[part].add(normal.parts[1])
    for part, advice in (("train", LAYOUT), ("test", TEST_BY_HAND)):
        if part not in classes_of:
            told = f" ({len(others)} files are none by their names, as {min(others)})" if others else ""
            raise ValueError(f"{folder} holds no photographs in folders {part}/CLASS{told}; {advice}")
    classes = tuple(sorted(classes_of["train"]))
    if len(classes) < 2 or any(shown != set(classes) for shown in classes_of.values()):
        shown = "; ".join(f"{part} of {', '.join(sorted(names))}" for part, names in classes_of.items())
        raise ValueError(f"{folder} should hold the same classes in all parts, two or more; it has {shown}")
    return [Photo(*file, classes.index(shown)) for *file, shown in sorted(found)], classes, len(others)


def _pets(folder: Path, progress: bool) -> list[Photo]:
    for url, md5 in OxfordIIITPet._RESOURCES:
        fetch(url, md5, folder, Path(url).name.removesuffix(".tar.gz"), progress=progress)
    photos = []
    for part, split in (("train", "trainval"), ("test", "test")):
        pets = OxfordIIITPet(folder.parent, split=split)
        labelled = zip(pets._images, pets._bin_labels, strict=True)
        photos += [Photo(f"{part}/{path.name}", path, part, label) for path, label in labelled]
    return photos


def _cifar10(root: Path, size: int, progress: bool) -> tuple[list[Photo], Tensor]:
    fetch(CIFAR10.url, CIFAR10.tgz_md5, root, CIFAR10.base_folder, progress=progress)
    photos, images = [], []
    for part in ("train", "test"):
        # With download=True a file that has been damaged since is unpacked again.
        cifar = CIFAR10(root, train=part == "train", download=True)
        label_of = {cifar.class_to_idx["cat"]: 0, cifar.class_to_idx["dog"]: 1}
        for row, (pixels, target) in enumerate(zip(cifar.data, cifar.targets, strict=True)):
            if target in label_of:
                # Not a file's name, but one for messages and for the cut of the validation part.
                photos.append(Photo(f"{part}/{row:05}", Path(), part, label_of[target]))
                images.append(_square(Image.fromarray(pixels), size))
    return photos, torch.stack(images)


def _decoded(
    photos: Sequence[Photo], folder: Path, size: int, cache: str | os.PathLike | None, progress: bool
) -> tuple[Tensor, dict[int, str]]:
    """Images (N, 3, size, size) and, by row, why some cannot be read; from the cache if it is up to date."""
    files = [(photo.name, (stat := photo.path.stat()).st_size, stat.st_mtime_ns) for photo in photos]
    belongs = fingerprint(decoder(), size, files)
    check_room("size", size, 3 * size**2 * len(photos))
    if cache is not None:
        # By the folder's whole path, so that two folders of one name have a file each.
        folder = folder.resolve()
        cache = Path(cache) / f"photos-{folder.name}-{size}-{fingerprint(str(folder))[:8]}.safetensors"
        with suppress(FileNotFoundError, DamagedFile):
            tensors, metadata = load_tensors(cache)
            if metadata.get("belongs") == belongs:
                return tensors["images"], dict(metadata["broken"])
    images = torch.zeros(len(photos), 3, size, size, dtype=torch.uint8)
    broken = {}

    def decode(row: int) -> None:
        try:
            images[row] = read_photo(photos[row].path, size)
        except UnreadablePhoto as error:
            broken[row] = error.reason

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # on odd metadata
        # Threads, not processes: Pillow lets go of the interpreter's lock while it works.
        thread_map(decode, range(len(photos)), desc="decoding", unit="photo", disable=not progress)
    if cache is not None:
        save_tensors(cache, {"images": images}, {"belongs": belongs, "broken": list(broken.items())})
    return images, broken


def _cut_validation(photos: Sequence[Photo], validation: float, seed: int) -> list[Photo]:
    """Moves a share of each class from train to validation, unless there is a validation part already."""
    if any(photo.part == "validation" for photo in photos):
        return list(photos)

    def draw(photo: Photo) -> bytes:  # in this order, which no library and no other file changes
        return hashlib.sha256(f"{seed}/{photo.name}".encode("utf-8", "surrogateescape")).digest()

    cut = set()
    for label in {photo.label for photo in photos}:
        drawn = sorted((p for p in photos if p.part == "train" and p.label == label), key=draw)
        cut.update(drawn[: min(max(1, round(validation * len(drawn))), len(drawn) - 1)])
    return [photo._replace(part="validation") if photo in cut else photo for photo in photos]


def _splits(
    photos: Sequence[Photo], images: Tensor, broken: dict[int, str], classes: tuple[str, ...], others: int
) -> Splits:
    left_out, first, doubtful = dict(broken), {}, []
    for part in ("test", "validation", "train"):
        for row, photo in enumerate(photos):
            if photo.part == part and row not in broken:
                original = photos[first.setdefault(hashlib.sha256(images[row].numpy()).digest(), row)]
                if original.part != part:
                    left_out[row] = f"the same picture as {original.name}"
                elif original.label != photo.label:
                    doubtful.append(f"{original.name} and {photo.name}")
    skipped = tuple(f"{photos[row].name}: {reason}" for row, reason in sorted(left_out.items()))
    summary = _first_of(skipped)

    def examples(part: str) -> Examples:
        members = [row for row, photo in enumerate(photos) if photo.part == part]
        rows = [row for row in members if row not in left_out]
        labels = [photos[row].label for row in rows]
        missing = [name for label, name in enumerate(classes) if label not in labels]
        if missing or 2 * len(rows) < len(members):
            raise ValueError(
                f"of {len(members)} photographs in {part} only {len(rows)} are left; classes without any: "
                f"{', '.join(missing) or 'none'}; left out: {summary or 'none'}"
            )
        return Examples(images[rows], torch.tensor(labels), torch.tensor(rows))

    parts = (examples(part) for part in ("train", "validation", "test"))
    splits = Splits(*parts, classes, skipped, others)
    if skipped:
        warnings.warn(f"{len(skipped)} of {len(photos)} photographs are left out: {summary}", stacklevel=3)
    if doubtful:
        told = f"{len(doubtful)} pictures lie in two classes of one part: {_first_of(doubtful)}"
        warnings.warn(f"{told}; one of the two must be wrong", stacklevel=3)
    return splits


def _first_of(texts: Sequence[str]) -> str:
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")
