"""One photograph from file to tensor, against what Pillow and torchvision make of it by themselves."""

import struct
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as v2

from kdlib.vision.decoding import UnreadablePhoto, decode, read_photo


def scene(width=60, height=40, seed=0) -> Image.Image:
    """A smooth coloured picture without any symmetry."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def expected(picture: Image.Image, size: int) -> torch.Tensor:
    """The centre square of an RGB picture, by Pillow alone."""
    fitted = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def save(picture: Image.Image, path, **options):
    picture.save(path, **options)
    return path


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (41, 41), (16, 16), (60, 41)])
def test_centre_square_is_pillows(tmp_path, width, height):
    picture = scene(width, height)
    found = read_photo(save(picture, tmp_path / "a.png"), 16)
    assert found.dtype == torch.uint8
    assert found.shape == (3, 16, 16)
    assert found.is_contiguous()
    assert torch.equal(found, expected(picture, 16))


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (100, 250)])
def test_resizing_is_torchvisions(tmp_path, width, height):
    """Where its long side and its cut come out even: else it rounds them to whole pixels."""
    picture = scene(width, height)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    theirs = v2.center_crop(v2.resize(pixels, [32], antialias=True), [32, 32])
    found = read_photo(save(picture, tmp_path / "a.png"), 32)
    assert (found.int() - theirs.int()).abs().max() <= 1


def test_shrinking_averages_instead_of_picking_pixels(tmp_path):
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    found = read_photo(save(Image.fromarray(checks), tmp_path / "a.png"), 8)
    assert (found.int() - 127).abs().max() <= 2


def test_jpeg_is_what_pillow_decodes(tmp_path):
    path = save(scene(), tmp_path / "a.jpg", quality=80)
    with Image.open(path) as picture:
        assert torch.equal(read_photo(path, 20), expected(picture.convert("RGB"), 20))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_the_camera_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(scene(), tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(path) as picture:
        assert picture.getexif()[0x0112] == orientation
        assert torch.equal(read_photo(path, 24), expected(ImageOps.exif_transpose(picture), 24))


def test_a_side_sensor_gives_an_upright_picture(tmp_path):
    """Without Pillow's own turning: red on top of the scene, stored by the camera as red on the left."""
    stored = Image.new("RGB", (40, 40), "blue")
    stored.paste("red", (0, 0, 20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # the first column is the top: EXIF 2.32, table 6
    found = read_photo(save(stored, tmp_path / "a.png", exif=exif), 8).int()
    # Turned clockwise by a quarter, what was left is on top.
    assert found[0, :3].min() > 200 > 50 > found[0, 5:].max()
    assert found[2, 5:].min() > 200 > 50 > found[2, :3].max()


def test_damaged_metadata_cost_neither_the_picture_nor_a_warning(tmp_path):
    damaged = save(scene(), tmp_path / "a.jpg", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff garbage")
    whole = save(scene(), tmp_path / "b.jpg")
    with pytest.warns(UserWarning, match="EXIF"), Image.open(damaged) as picture:
        picture.getexif()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(read_photo(damaged, 16), read_photo(whole, 16))
    with pytest.MonkeyPatch.context() as patch:  # Pillow's readers of metadata raise what they like
        patch.setattr(Image.Image, "getexif", lambda picture: struct.unpack("L", b"?"))
        assert torch.equal(read_photo(damaged, 16), read_photo(whole, 16))


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = scene().convert("L")
    found = read_photo(save(grey, tmp_path / "a.jpg"), 16)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    with Image.open(tmp_path / "a.jpg") as picture:
        assert torch.equal(found, expected(picture.convert("RGB"), 16))


def test_black_and_white_bits(tmp_path):
    bits = scene().convert("1")
    found = read_photo(save(bits, tmp_path / "a.png"), 40)
    assert torch.equal(found, expected(bits.convert("RGB"), 40))


def test_palette(tmp_path):
    palette = scene().quantize(17)
    assert palette.mode == "P"
    found = read_photo(save(palette, tmp_path / "a.png"), 16)
    assert torch.equal(found, expected(palette.convert("RGB"), 16))


def test_cmyk_jpeg(tmp_path):
    path = save(scene().convert("CMYK"), tmp_path / "a.jpg", quality=95)
    with Image.open(path) as picture:
        assert picture.mode == "CMYK"
        assert torch.equal(read_photo(path, 16), expected(picture.convert("RGB"), 16))
    # And it is the scene, not its negative.
    difference = read_photo(path, 16).int() - expected(scene(), 16).int()
    assert difference.abs().float().mean() < 6


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pictures_lie_on_white(tmp_path, mode):
    alpha = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8), (32, 32))
    colours = scene(32, 32) if mode == "RGBA" else scene(32, 32).convert("L")
    picture = colours.copy()
    picture.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
    assert picture.mode == mode
    found = read_photo(save(picture, tmp_path / "a.png"), 32).permute(1, 2, 0).numpy()
    wanted = on_white(np.array(colours.convert("RGB")).astype(float), alpha.astype(float))
    assert np.abs(found - wanted).max() <= 1


@pytest.mark.parametrize("transparency", [2, bytes([255, 128, 0, 64])])
def test_transparent_palette_lies_on_white(tmp_path, transparency):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (10, 20, 30)]
    picture = Image.new("P", (4, 4))
    picture.putpalette([value for colour in colours for value in colour])
    picture.putdata(list(range(4)) * 4)
    path = save(picture, tmp_path / "a.png", transparency=transparency)
    alpha = np.full(4, 255) if isinstance(transparency, int) else np.array(list(transparency))
    if isinstance(transparency, int):
        alpha[transparency] = 0
    found = read_photo(path, 4).permute(1, 2, 0).numpy()
    wanted = on_white(np.array(colours, dtype=float)[None], alpha[None].astype(float))
    assert np.abs(found - wanted).max() <= 1


def test_one_transparent_colour_of_rgb_lies_on_white(tmp_path):
    picture = Image.new("RGB", (4, 4), (1, 2, 3))
    picture.putpixel((0, 0), (200, 100, 50))
    found = read_photo(save(picture, tmp_path / "a.png", transparency=(1, 2, 3)), 4)
    assert found[:, 0, 0].tolist() == [200, 100, 50]
    assert found[:, 1:].eq(255).all()


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_keep_the_upper_byte(tmp_path, ending):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    path = tmp_path / f"a.{ending}"
    if ending == "pgm":  # older versions of Pillow read it but do not write it
        path.write_bytes(b"P5 16 16 65535\n" + values.astype(">u2").tobytes())
    else:
        save(Image.fromarray(values), path)
    found = read_photo(path, 16)
    assert found.float().std() > 50  # clipped at 255 nearly everything would be white
    assert torch.equal(found, torch.from_numpy((values >> 8).astype(np.uint8)).expand(3, 16, 16))


def test_floating_point_pixels_are_refused(tmp_path):
    path = save(Image.fromarray(np.ones((4, 4), dtype=np.float32)), tmp_path / "a.tif")
    with pytest.raises(UnreadablePhoto, match=r"a\.tif.*floating-point.*save it as 8 or 16 bit"):
        read_photo(path, 4)


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_counts(tmp_path, ending):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if ending == "webp" else {}
    path = save(frames[0], tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as picture:
        assert picture.n_frames == 3
    assert read_photo(path, 4).float().mean((1, 2)).tolist() == pytest.approx([255, 0, 0], abs=2)


def test_one_pixel_fills_the_square(tmp_path):
    path = save(Image.new("RGB", (1, 1), (12, 34, 56)), tmp_path / "a.png")
    assert read_photo(path, 32).flatten(1).unique(dim=1).flatten().tolist() == [12, 34, 56]


@pytest.mark.parametrize("shape", [(1, 20_001), (20_001, 1)])
def test_a_strip_gives_its_middle(tmp_path, shape):
    strip = Image.new("RGB", shape, "red")
    strip.paste((0, 255, 0), tuple(side // 2 - side % 20_000 * (side > 1) for side in shape)
                + tuple(side // 2 + 1 + (side > 1) for side in shape))  # fmt: skip
    found = read_photo(save(strip, tmp_path / "a.png"), 64)
    assert found.flatten(1).unique(dim=1).flatten().tolist() == [0, 255, 0]


def test_what_unpacks_to_too_many_pixels_is_refused(tmp_path, monkeypatch):
    path = save(Image.new("L", (101, 100)), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(UnreadablePhoto, match=r"bomb\.png.*101×100 pixels are more than 10,000"):
        read_photo(path, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)  # here Pillow itself refuses
    with pytest.raises(UnreadablePhoto, match=r"bomb\.png"):
        read_photo(path, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_photo(path, 8).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"not a picture", "no picture that Pillow can read"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "no picture that Pillow can read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no picture that Pillow"),
        (b"\xff\xd8\xff\xe0", "no picture"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadablePhoto, match=rf"a\.jpg cannot be read: .*{reason}") as caught:
        read_photo(path, 8)
    assert reason in caught.value.reason
    assert "a.jpg" not in caught.value.reason


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "bmp", "tif"])
@given(share=st.floats(0.02, 0.85))
def test_a_truncated_file_is_refused_and_never_half_a_picture(tmp_path_factory, ending, share):
    path = tmp_path_factory.mktemp("cut") / f"a.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = save(Image.fromarray(noise), path).read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnreadablePhoto):
        read_photo(path, 8)


def test_a_folder_and_a_missing_file(tmp_path):
    (tmp_path / "x.jpg").mkdir()
    with pytest.raises(UnreadablePhoto, match=r"x\.jpg cannot be read: not a file"):
        read_photo(tmp_path / "x.jpg", 8)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*y\.jpg"):
        read_photo(tmp_path / "y.jpg", 8)


@pytest.mark.parametrize("size", [0, -1, 6.0, "64", True])
def test_size_is_a_number_of_pixels(tmp_path, size):
    with pytest.raises(ValueError, match="size is the side of the square in pixels"):
        read_photo(save(scene(), tmp_path / "a.png"), size)


def test_same_pixels_in_another_file_have_the_same_digest(tmp_path):
    jpeg = save(scene(), tmp_path / "a.jpg", quality=70)
    with Image.open(jpeg) as picture:
        png = save(picture, tmp_path / "b.png")
    other = scene()
    other.putpixel((0, 0), (9, 9, 9))  # outside the square: the whole picture counts
    assert decode(jpeg, 16)[1] == decode(png, 16)[1]
    assert decode(jpeg, 16)[1] == decode(jpeg, 20)[1]
    first, second = save(scene(), tmp_path / "c.png"), save(other, tmp_path / "d.png")
    assert torch.equal(decode(first, 8)[0], decode(second, 8)[0])
    assert decode(first, 8)[1] != decode(second, 8)[1]
    almost = scene()
    almost.putpixel((30, 20), tuple(value ^ 1 for value in almost.getpixel((30, 20))))
    assert decode(first, 8)[1] != decode(save(almost, tmp_path / "g.png"), 8)[1]
    # As many pixels of one colour in another shape are another picture.
    tall = save(Image.new("RGB", (2, 8)), tmp_path / "e.png")
    wide = save(Image.new("RGB", (8, 2)), tmp_path / "f.png")
    assert decode(tall, 2)[1] != decode(wide, 2)[1]
