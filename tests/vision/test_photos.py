"""Photographs: read as Pillow and torchvision do it, found in folders, cut into parts, kept in a cache."""

import os
import shutil
import struct
import sys
import warnings
import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as v2

from kdlib.vision import photos
from kdlib.vision.photos import UnreadablePhoto, load_photos, read_photo

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "photos128"
needs_photographs = pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs ../shared/data/photos128")


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


# --- one photograph --------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 61), (16, 16)])
def test_the_square_is_a_contiguous_tensor_of_bytes(tmp_path, width, height):
    picture = scene(width, height)
    found = read_photo(save(picture, tmp_path / "a.png"), 16)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert torch.equal(found, expected(picture, 16))


@pytest.mark.parametrize(("width", "height"), [(300, 200), (100, 250)])
def test_resizing_is_torchvisions(tmp_path, width, height):
    """Where its long side and its cut come out even: else it rounds them to whole pixels."""
    picture = scene(width, height)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    theirs = v2.center_crop(v2.resize(pixels, [32], antialias=True), [32, 32])
    found = read_photo(save(picture, tmp_path / "a.png"), 32)
    assert (found.int() - theirs.int()).abs().max() <= 1


def test_a_long_strip_gives_its_middle(tmp_path):
    strip = Image.new("RGB", (20_001, 1), "red")
    strip.paste((0, 255, 0), (9_999, 0, 10_002, 1))
    found = read_photo(save(strip, tmp_path / "a.png"), 64)
    assert found.flatten(1).unique(dim=1).flatten().tolist() == [0, 255, 0]


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_the_orientation_of_the_camera_is_applied(tmp_path, orientation, turns):
    """EXIF 2.32, table 6. Without Pillow's own turning."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = save(scene(40, 40), tmp_path / "a.png")
    turned = save(scene(40, 40), tmp_path / "b.png", exif=exif)
    # torch turns against the clock where rows go downwards.
    assert torch.equal(read_photo(turned, 40), torch.rot90(read_photo(stored, 40), turns, (1, 2)))


def test_damaged_metadata_do_not_cost_the_picture(tmp_path):
    damaged = save(scene(), tmp_path / "a.jpg", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff garbage")
    with pytest.warns(UserWarning, match="EXIF"):
        found = read_photo(damaged, 16)
    assert torch.equal(found, read_photo(save(scene(), tmp_path / "b.jpg"), 16))


@pytest.mark.parametrize(
    ("mode", "ending"), [("RGB", "jpg"), ("L", "jpg"), ("1", "png"), ("P", "gif"), ("CMYK", "jpg")]
)
def test_colours_of_every_kind_become_rgb(tmp_path, mode, ending):
    path = save(scene().convert(mode), tmp_path / f"a.{ending}")
    with Image.open(path) as picture:
        assert picture.mode == mode or ending == "gif"
        assert torch.equal(read_photo(path, 16), expected(picture.convert("RGB"), 16))
    if mode != "1":  # the scene, not its negative
        difference = read_photo(path, 16).int() - expected(scene().convert(mode).convert("RGB"), 16).int()
        assert difference.abs().float().mean() < 8


def on_white(colour, alpha) -> np.ndarray:
    share = np.asarray(alpha, dtype=float)[..., None] / 255
    return np.asarray(colour, dtype=float) * share + 255 * (1 - share)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pictures_lie_on_white(tmp_path, mode):
    alpha = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))
    colours = scene(32, 32).convert("RGB" if mode == "RGBA" else "L")
    picture = colours.copy()
    picture.putalpha(Image.fromarray(alpha))
    found = read_photo(save(picture, tmp_path / "a.png"), 32).permute(1, 2, 0).numpy()
    assert np.abs(found - on_white(colours.convert("RGB"), alpha)).max() <= 1


@pytest.mark.parametrize("alpha", [[255, 255, 0, 255], [255, 128, 0, 64]])
def test_a_transparent_palette_lies_on_white(tmp_path, alpha):
    transparency = alpha.index(0) if alpha.count(255) == 3 else bytes(alpha)
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (10, 20, 30)]
    picture = Image.new("P", (4, 4))
    picture.putpalette([value for colour in colours for value in colour])
    picture.putdata(list(range(4)) * 4)
    path = save(picture, tmp_path / "a.png", transparency=transparency)
    found = read_photo(path, 4).permute(1, 2, 0).numpy()
    assert np.abs(found - on_white([colours], [alpha])).max() <= 1


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_keep_the_upper_byte(tmp_path, ending):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    path = tmp_path / f"a.{ending}"
    if ending == "pgm":  # older versions of Pillow read it but do not write it
        path.write_bytes(b"P5 16 16 65535\n" + values.astype(">u2").tobytes())
    else:
        save(Image.fromarray(values), path)
    upper = torch.from_numpy((values >> 8).astype(np.uint8))
    assert torch.equal(read_photo(path, 16), upper.expand(3, 16, 16))


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_fewer_bits_in_sixteen_are_not_black(tmp_path, ending, bits):
    """As cameras, scanners and microscopes write them: the same picture, whatever the bits it is kept in."""
    values = np.linspace(0, 255, 256).astype(np.uint16).reshape(16, 16)
    path = save(Image.fromarray(values << (bits - 8)), tmp_path / f"a.{ending}")
    assert torch.equal(read_photo(path, 16), torch.from_numpy(values.astype(np.uint8)).expand(3, 16, 16))


def colours_of_sixteen_bits(path, highest):
    """A PNG of RGB in 16 bits, which Pillow does not write: by hand, after the standard (W3C, PNG, §11)."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    values = np.linspace(0, highest, 48).astype(">u2").reshape(4, 12)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def test_colours_of_twelve_bits_in_sixteen_are_named(tmp_path):
    assert read_photo(colours_of_sixteen_bits(tmp_path / "a.png", 65535), 4).max() == 255
    with pytest.raises(UnreadablePhoto, match="colours use 12 of their 16 bits, .*save it with 8"):
        read_photo(colours_of_sixteen_bits(tmp_path / "b.png", 4095), 4)


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_photo(path, 4).float().mean((1, 2)).tolist() == pytest.approx([255, 0, 0], abs=2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"<!DOCTYPE html><html>404</html>", "no picture that Pillow can read")],
)
def test_what_is_no_picture_is_refused(tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadablePhoto, match=rf"a\.jpg cannot be read: {reason}") as caught:
        read_photo(path, 8)
    assert caught.value.reason == reason
    with pytest.raises(FileNotFoundError, match=r"y\.jpg"):
        read_photo(tmp_path / "y.jpg", 8)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def test_heic_names_the_package_that_reads_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    photos.decoder.cache_clear()
    for name in ("a.heic", "b.jpg"):
        (tmp_path / name).write_bytes(HEIC)
        with pytest.raises(UnreadablePhoto, match="HEIC picture, which needs pillow-heif: python -m pip"):
            read_photo(tmp_path / name, 8)
    without = photos.decoder()

    # Installed, it is asked to let Pillow read such files, and what was decoded without it is decoded anew.
    asked = []
    package = SimpleNamespace(__version__="1.0", register_heif_opener=lambda: asked.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    photos.decoder.cache_clear()
    with pytest.raises(UnreadablePhoto):
        read_photo(tmp_path / "a.heic", 8)
    assert asked == [1] and photos.decoder() == f"{without}, pillow-heif 1.0"
    photos.decoder.cache_clear()


def test_what_would_be_read_wrongly_is_refused(tmp_path, monkeypatch):
    path = save(Image.fromarray(np.ones((4, 4), dtype=np.float32)), tmp_path / "a.tif")
    with pytest.raises(UnreadablePhoto, match=r"a\.tif.*floating-point.*save it as 8 or 16 bit"):
        read_photo(path, 4)
    bomb = save(Image.new("L", (101, 100)), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    with pytest.raises(UnreadablePhoto, match=r"bomb\.png.*more than 0 million pixels; .*MAX_IMAGE_PIXELS"):
        read_photo(bomb, 8)


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "bmp", "tif"])
def test_a_truncated_file_is_refused_and_never_half_a_picture(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"a.{ending}")
    content = path.read_bytes()
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.85):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UnreadablePhoto), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_photo(path, 8)


# --- folders ---------------------------------------------------------------------------------------


def add(folder: Path, name: str, seed: int) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    return save(Image.fromarray(pixels), path)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "animals"
    seed = 0
    for part, count in (("train", 20), ("test", 5)):
        for name in ("dog", "cat"):
            for number in range(count):
                add(folder, f"{part}/{name}/{number:02}.png", seed)
                seed += 1
    return folder


@pytest.fixture
def folder(original, tmp_path) -> Path:
    """20 photographs for each class in train, 5 in test, to be changed."""
    return Path(shutil.copytree(original, tmp_path / "animals"))


def load(folder, **options):
    return load_photos(folder, **{"cache": None, "size": 8, "progress": False} | options)


def names_of(folder: Path, part) -> list[str]:
    """The files of a part: index counts all photographs in the order of their names."""
    every = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return [every[row] for row in part.index.tolist()]


def parts(splits):
    return splits.train, splits.validation, splits.test


def same(first, second) -> bool:
    return first.classes == second.classes and first.skipped == second.skipped and all(
        torch.equal(getattr(one, field), getattr(other, field))
        for one, other in zip(parts(first), parts(second), strict=True)
        for field in ("images", "labels", "index")
    )


def test_every_image_is_its_file_with_the_label_of_its_folder(original):
    splits = load(original, size=11)
    assert splits.classes == ("cat", "dog")
    assert str(splits) == "34 training, 6 validation and 10 test images, 2 classes"
    assert [part.labels.bincount().tolist() for part in parts(splits)] == [[17, 17], [3, 3], [5, 5]]
    assert splits.train.images.dtype == torch.uint8
    assert splits.train.labels.dtype == torch.int64
    together = torch.cat([part.index for part in parts(splits)])
    assert together.sort().values.tolist() == list(range(50))
    for part, top in zip(parts(splits), ("train", "train", "test"), strict=True):
        for row, name in enumerate(names_of(original, part)):
            assert torch.equal(part.images[row], read_photo(original / name, 11))
            assert name.split("/")[:2] == [top, splits.classes[part.labels[row]]]


def test_default_size_is_64(original):
    assert load_photos(original, cache=None, progress=False).train.images.shape[-2:] == (64, 64)


def test_classes_are_alphabetical(tmp_path):
    names = ["newt", "Zebra", "ant", "dog"]
    for seed, name in enumerate(names):
        for number, part in enumerate(("train", "train", "test")):
            add(tmp_path, f"{part}/{name}/{number}.png", 10 * seed + number)
    splits = load(tmp_path)
    assert splits.classes == ("Zebra", "ant", "dog", "newt")
    assert [name.split("/")[1] for name in names_of(tmp_path, splits.test)] == list(splits.classes)


def test_nested_linked_and_hidden_files(folder, tmp_path):
    add(folder, "train/cat/b/c/deep.JPG", 901)
    for name in ("train/cat/.hidden.png", "train/.cat2/a.png", "train/cat/.thumbs/a.png", "train/loose.png"):
        add(folder, name, 903)
    for name in ("train/cat/notes.txt", "train/cat/Thumbs.db", "train/readme.md"):
        (folder / name).write_text("no photograph")
    (folder / "train" / "empty").mkdir()
    (folder / "train" / "cat" / "folder.jpg").mkdir()
    linked = add(tmp_path, "elsewhere/linked.png", 904).parent
    (folder / "train" / "dog" / "more").symlink_to(linked)
    splits = load(folder)
    assert splits.classes == ("cat", "dog")
    assert len(splits.train) + len(splits.validation) == 42
    assert splits.skipped == ()
    assert splits.passed_over == 4 and str(splits).endswith("2 classes (4 other files passed over)")


def test_files_that_are_no_pictures_by_their_names_are_counted_where_there_are_no_others(tmp_path):
    for name in ("train/cat/a.cr2", "train/dog/b"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"raw")
    with pytest.raises(ValueError, match=r"CLASS \(2 files are none by their names, as train/cat/a.cr2\)"):
        load(tmp_path)


def test_one_class_is_one_however_a_system_writes_its_accents(tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    folders = (f"train/{composed}", f"train/{apart}", f"test/{apart}", "train/tea", "test/tea")
    for seed, name in enumerate(folders):
        for number in range(2):
            add(tmp_path, f"{name}/{seed}{number}.png", 10 * seed + number)
    splits = load(tmp_path)
    assert splits.classes == (composed, "tea")
    assert splits.test.labels.tolist() == [0, 0, 1, 1]
    assert (splits.train.labels == 0).sum() + (splits.validation.labels == 0).sum() == 4


def test_one_picture_in_two_classes_of_a_part_is_told(folder):
    shutil.copy(folder / "test/cat/03.png", folder / "test/dog/again.png")
    told = "1 pictures lie in two classes of one part: test/cat/03.png and test/dog/again.png; one of"
    with pytest.warns(UserWarning, match=told):
        splits = load(folder)
    assert splits.skipped == () and len(splits.test) == 11


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_a_validation_folder_is_used(folder, name):
    for number, animal in enumerate(("cat", "dog", "dog")):
        add(folder, f"{name}/{animal}/{number}.png", 910 + number)
    splits = load(folder)
    assert [len(part) for part in parts(splits)] == [40, 3, 10]
    assert splits.validation.labels.tolist() == [0, 1, 1]


def test_validation_is_drawn_from_each_class_by_the_seed_and_keeps_to_its_files(folder):
    def drawn(seed):
        return names_of(folder, load(folder, seed=seed).validation)

    others = [drawn(seed) for seed in range(12)]
    assert len(set(map(tuple, others))) == 12
    assert len({name for names in others for name in names}) > 24  # every file has its turn
    # Those of the committed results: they may not change.
    names = ("cat/03", "cat/15", "cat/16", "dog/11", "dog/14", "dog/16")
    assert others[0] == [f"train/{name}.png" for name in names]
    # A file more pushes at most one out of its class; it does not shuffle the rest.
    add(folder, "train/cat/new.png", 920)
    again = drawn(3)
    assert len(set(others[3]) - set(again)) <= 1
    assert [n for n in again if "dog" in n] == [n for n in others[3] if "dog" in n]


@pytest.mark.parametrize(("share", "count"), [(0.5, 10), (0.001, 1), (0.99, 19)])
def test_share_of_validation(original, share, count):
    assert load(original, validation=share).validation.labels.bincount().tolist() == [count, count]


def test_layouts_that_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; it should hold train/cat/\*\.jpg"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match='no folder Pets; .*Did you mean "pets" or "cifar10"'):
        load("Pets")
    with pytest.raises(ValueError, match=r"no photographs in folders train/CLASS; it should hold train/cat"):
        load(folder / "train")
    (folder / "test").rename(folder / "tests")
    with pytest.raises(ValueError, match="no photographs in folders test/CLASS; move about a fifth"):
        load(folder)
    (folder / "tests").rename(folder / "test")
    (folder / "test" / "dog").rename(folder / "test" / "wolf")
    with pytest.raises(ValueError, match="two or more; it has train of cat, dog; test of cat, wolf"):
        load(folder)
    shutil.rmtree(folder / "test" / "wolf")
    shutil.rmtree(folder / "train" / "dog")
    with pytest.raises(ValueError, match="two or more; it has train of cat; test of cat"):
        load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0}, "validation is a share of train, above 0 and below 1; got 0"),
        ({"validation": 1.0}, "validation is a share of train, above 0 and below 1; got 1.0"),
        ({"validation": "0.1"}, "validation is '0.1'; expected a finite number"),
        ({"size": 0}, "size is 0; expected a whole number, at least 1"),
        ({"size": 8.5}, "size is 8.5; expected a whole number"),
        ({"size": 10**7}, "size is 10000000; expected less: that takes 15,000,000 GB of memory"),
        ({"seed": 0.5}, "seed is 0.5; expected a whole number"),
    ],
)
def test_options_that_are_refused(original, options, message):
    with pytest.raises(ValueError, match=message):
        load(original, **options)


def test_larger_sets_are_read_by_torchs_own_loader(original):
    data = ImageFolder(original / "test", loader=partial(read_photo, size=8))
    images, labels = next(iter(DataLoader(data, batch_size=10)))
    test = load(original).test
    assert torch.equal(images, test.images)
    assert torch.equal(labels, test.labels)


# --- broken files and duplicates -------------------------------------------------------------------


def test_broken_files_are_counted_named_and_left_out(folder):
    whole = load(folder)
    content = (folder / "train/cat/00.png").read_bytes()
    (folder / "train/cat/00.png").write_bytes(content[: len(content) // 2])
    (folder / "test/dog/01.png").write_bytes(b"")
    (folder / "train/dog/99.jpg").write_text("<html>404</html>")
    with pytest.warns(UserWarning) as shown:
        splits = load(folder)
    (message,) = [str(warning.message) for warning in shown]
    first, second = "test/dog/01.png: the file is empty", "train/cat/00.png: "
    assert message.startswith(f"3 of 51 photographs are left out: {first}, {second}")
    assert message.endswith("train/dog/99.jpg: no picture that Pillow can read")
    assert shown[0].filename == __file__  # it points at the caller of load_photos
    assert str(folder) not in message
    assert len(splits.skipped) == 3
    assert str(splits).endswith("2 classes (3 left out)")
    # All others are where they were.
    rows = [row for row, index in enumerate(whole.test.index) if index != 6]
    assert torch.equal(splits.test.images, whole.test.images[rows])
    assert len(splits.train) + len(splits.validation) == 39


def test_a_part_that_lost_a_class_or_most_of_its_files_is_refused(folder):
    for number in range(5):
        (folder / f"test/cat/{number:02}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="of 10 .* in test only 5 are left; classes without any: cat; left"):
        load(folder)
    for name in ("cat/04", "dog/04", "dog/03"):
        shutil.copy(folder / "train/cat/00.png", folder / f"test/{name}.png")
    for number in range(3):
        (folder / f"test/dog/{number:02}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"of 10 .* in test only 3 .*: the file is empty.* and 3 more$"):
        load(folder)


def test_of_a_picture_in_two_parts_the_one_for_testing_stays(folder):
    for name in ("cat", "dog"):
        add(folder, f"validation/{name}/own.png", 930 + ord(name[0]))
    copies = {
        "train/cat/03": "test/cat/x", "train/cat/04": "validation/cat/y", "train/dog/05": "train/dog/twice",
        "train/dog/06": "test/cat/other-class",
    }  # fmt: skip
    shutil.copy(folder / "train/cat/03.png", folder / "validation/cat/x.png")
    for old, new in copies.items():
        shutil.copy(folder / f"{old}.png", folder / f"{new}.png")
    with Image.open(folder / "train/dog/07.png") as picture:  # saved again in another format, without loss
        picture.save(folder / "test/dog/again.webp", lossless=True)
    with pytest.warns(UserWarning, match="5 of 58 .* left out: .*: the same picture as test/cat/x.png"):
        splits = load(folder)
    assert splits.skipped == (
        "train/cat/03.png: the same picture as test/cat/x.png",
        "train/cat/04.png: the same picture as validation/cat/y.png",
        "train/dog/06.png: the same picture as test/cat/other-class.png",
        "train/dog/07.png: the same picture as test/dog/again.webp",
        "validation/cat/x.png: the same picture as test/cat/x.png",
    )
    assert [len(part) for part in parts(splits)] == [37, 3, 13]


def test_copies_within_train_do_not_reach_validation(folder):
    for number in range(20):
        shutil.copy(folder / f"train/cat/{number:02}.png", folder / f"train/cat/copy{number:02}.png")
    with pytest.warns(UserWarning, match="left out"):
        splits = load(folder)
    held = {image.numpy().tobytes() for image in splits.validation.images}
    assert not held & {image.numpy().tobytes() for image in splits.train.images}
    assert len(splits.train) + len(splits.validation) + len(splits.skipped) == 60


# --- the cache -------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch) -> list:
    """Every file that is really decoded from now on."""
    files = []

    def read(path, size):
        files.append(path)
        return read_photo(path, size)

    monkeypatch.setattr(photos, "read_photo", read)
    return files


def test_the_second_call_decodes_nothing_and_gives_the_same(folder, tmp_path, decoded):
    (folder / "train/cat/bad.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 51"):
        first = load(folder, cache=tmp_path / "c")
    assert len(decoded) == 51
    with pytest.warns(UserWarning, match=r"1 of 51 .* left out: train/cat/bad\.jpg: the file is empty"):
        second = load(folder, cache=tmp_path / "c")
    with pytest.warns(UserWarning, match="1 of 51"):
        load(folder, cache=tmp_path / "c", seed=1, validation=0.5)
    assert len(decoded) == 51
    assert same(first, second)


def touch(folder):
    path = folder / "train/cat/00.png"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1_000_000))


CHANGES = {
    "a file more": lambda folder: add(folder, "train/cat/new.png", 940),
    "a file fewer": lambda folder: (folder / "train/cat/00.png").unlink(),
    "another class": lambda folder: (folder / "train/cat/00.png").rename(folder / "train/dog/cat.png"),
    "another time": touch,
    "another decoder": lambda folder: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_decoded_again(folder, tmp_path, decoded, change, monkeypatch):
    load(folder, cache=tmp_path / "c")
    CHANGES[change](folder)
    if change == "another decoder":
        monkeypatch.setattr(photos, "decoder", lambda: "another version")
    decoded.clear()
    found = load(folder, cache=tmp_path / "c")
    assert len(decoded) == len(list(folder.rglob("*.png")))
    assert same(found, load(folder))
    assert len(list((tmp_path / "c").iterdir())) == 1  # the old one is replaced


def test_another_size_or_folder_is_another_cache(folder, tmp_path, decoded):
    cache = tmp_path / "c"
    other = shutil.copytree(folder, tmp_path / "other" / folder.name)
    for _ in range(2):
        load(folder, cache=cache)
        assert load(folder, cache=cache, size=9).train.images.shape[-1] == 9
        load(other, cache=cache)
    assert len(decoded) == 150  # none has pushed another out
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("spoil", [lambda c: c[:-100], lambda c: b"hello"], ids=["cut", "text"])
def test_a_damaged_cache_is_made_again(folder, tmp_path, decoded, spoil):
    first = load(folder, cache=tmp_path / "c")
    (file,) = (tmp_path / "c").iterdir()
    file.write_bytes(spoil(file.read_bytes()))
    assert same(first, load(folder, cache=tmp_path / "c"))
    load(folder, cache=tmp_path / "c")
    assert len(decoded) == 100


def test_an_interrupted_decode_stops_at_once_and_leaves_no_cache(folder, tmp_path, monkeypatch):
    seen = []

    def interrupted(path, size):
        seen.append(path)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return read_photo(path, size)

    with monkeypatch.context() as patch:
        patch.setattr(photos, "read_photo", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(folder, cache=tmp_path / "c")
    assert not list(tmp_path.glob("c/*"))


def test_without_a_cache_nothing_is_written(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load(original)
    assert list(tmp_path.iterdir()) == []


# --- real photographs ------------------------------------------------------------------------------


@needs_photographs
def test_a_confusion_of_broken_files_among_photographs(tmp_path):
    folder = tmp_path / "animals"
    for part, count in (("train", 20), ("test", 6)):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for path in sorted((PHOTOS / part / name).iterdir())[:count]:
                shutil.copy(path, folder / part / name)
    cats = folder / "train" / "cat"
    content = next(cats.iterdir()).read_bytes()
    (cats / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (cats / "empty.jpg").write_bytes(b"")
    (cats / "page.jpg").write_text("<!DOCTYPE html><html><title>404</title></html>")
    exif = Image.Exif()
    exif[0x0112] = 8
    endings = {"CMYK": "jpg", "RGBA": "png", "P": "gif", "L": "JPG", "RGB": "jpeg"}
    odd, others = {}, sorted((PHOTOS / "train/cat").iterdir())[20:25]
    for (mode, ending), path in zip(endings.items(), others, strict=True):
        odd[mode] = cats / f"odd-{mode}.{ending}"
        with Image.open(path) as picture:
            picture.convert(mode).save(odd[mode], **({"exif": exif} if mode == "RGB" else {}))
    with Image.open(sorted((folder / "test/dog").iterdir())[2]) as picture:
        picture.save(folder / "train/dog/leak.png")
    with pytest.warns(UserWarning, match="4 of 61 photographs are left out"):
        splits = load(folder, size=64, cache=tmp_path / "c")
    assert {entry.partition(":")[0] for entry in splits.skipped} == {
        "train/cat/truncated.jpg", "train/cat/empty.jpg", "train/cat/page.jpg", "train/dog/leak.png",
    }  # fmt: skip
    assert len(splits.train) + len(splits.validation) == 45
    images = {
        name: image
        for part in parts(splits)
        for name, image in zip(names_of(folder, part), part.images, strict=True)
    }
    for path in odd.values():
        assert torch.equal(images[path.relative_to(folder).as_posix()], read_photo(path, 64))
    # The picture with the sensor on its side: turned back by hand it is the original.
    turned = torch.rot90(read_photo(odd["RGB"], 64), -1, (1, 2)).int()
    assert (turned - read_photo(others[4], 64).int()).abs().float().mean() < 8
