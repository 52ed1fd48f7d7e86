"""One photograph from file to square tensor: the same pixels whether a set is held in memory or streamed."""

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

__all__ = [
    "DECODER", "UnreadablePhoto", "check_size", "decode", "digest_of", "quiet_pillow", "read_photo", "square",
]  # fmt: skip

# Of the pixels below: raise it when they change, so that caches of the old ones are made again.
DECODER = f"1, Pillow {Image.__version__}"

# Named, or Pillow would hand a text file that says it is PostScript to an interpreter. HEIF works where a
# plug-in such as pillow-heif has registered it.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "HEIF")

# What undoes each EXIF orientation. Pillow's exif_transpose also rewrites the metadata, and fails where they
# are odd.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadablePhoto(ValueError):
    """A file that is no picture, or only part of one; the message says which file and why.

    Attributes:
        reason: why, without the file's name.
    """

    def __init__(self, path: str | os.PathLike, reason: object) -> None:
        super().__init__(f"{path} cannot be read: {reason}")
        self.reason = str(reason)


def read_photo(path: str | os.PathLike, size: int) -> Tensor:
    """The centre square of a photograph, uint8 (3, size, size), red, green and blue in 0 … 255.

    The camera's EXIF orientation is applied; whatever is transparent lies on white; grey, palette, CMYK
    and 16-bit pictures become RGB; of an animation the first frame counts. The short side is resized to
    `size` (bilinear with antialiasing, as torchvision's Resize).

    Raises:
        UnreadablePhoto: the file is empty, truncated, no picture, or has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`.
        FileNotFoundError: there is no such file.
    """
    with quiet_pillow():
        return decode(path, size)[0]


def decode(path: str | os.PathLike, size: int) -> tuple[Tensor, bytes]:
    """As `read_photo`, with 16 bytes that stand for all pixels of the picture at its full size.

    They are equal for a JPEG and the PNG saved from it. Several threads may decode at the same time.
    """
    check_size(size)
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {path}")
    try:
        Image.init()
        known = [name for name in _FORMATS if name in Image.OPEN]
        with Image.open(path, formats=known) as picture:
            limit = Image.MAX_IMAGE_PIXELS
            if limit and picture.width * picture.height > limit:
                # Before a pixel is decoded: a few kilobytes can unpack to more than the memory.
                raise ValueError(f"{picture.width}×{picture.height} pixels are more than {limit:,}")
            picture = _as_rgb(picture)
        return square(picture, size), digest_of(picture)
    # Pillow's readers of damaged files raise nearly everything: SyntaxError, struct.error, KeyError, …
    except Exception as error:
        reason = error
        if isinstance(error, UnidentifiedImageError):
            reason = "no picture that Pillow can read"
        if not os.path.isfile(path):
            reason = "not a file"
        elif os.path.getsize(path) == 0:
            reason = "the file is empty"
        raise UnreadablePhoto(path, reason) from error


def square(picture: Image.Image, size: int) -> Tensor:
    """The largest centred square of an RGB picture as uint8 (3, size, size)."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    # Only the square is computed: a strip of 1×10,000 pixels would otherwise first become 64×640,000.
    box = (left, top, left + side, top + side)
    pixels = np.array(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def digest_of(picture: Image.Image) -> bytes:
    """16 bytes that stand for the pixels of an RGB picture and its shape."""
    return hashlib.blake2b(f"{picture.size}".encode() + picture.tobytes(), digest_size=16).digest()


def check_size(size: int) -> None:
    """ValueError unless size is a whole number of pixels."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size is the side of the square in pixels, a whole number from 1; got {size!r}")


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Without Pillow's warnings on odd metadata, and whether or not the caller makes errors of warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _as_rgb(picture: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(picture))
    if picture.mode.startswith("I"):
        picture = _eight_bit(picture)
    elif picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it as 8 or 16 bit")
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert("RGB")
    else:
        picture = picture.convert("RGB")
    return picture.transpose(turn) if turn is not None else picture


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata of a picture that may be whole
        return 1


def _eight_bit(picture: Image.Image) -> Image.Image:
    # Pillow's own conversion clips everything above 255 to white. The upper byte, as for 16-bit colour.
    pixels = np.clip(np.asarray(picture).astype(np.int64), 0, 65535) >> 8
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
