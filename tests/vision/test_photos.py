"""Folders of photographs: found, decoded once, cut into parts, and what is wrong with them said."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdlib.storage import load_tensors
from kdlib.vision import photo_cache
from kdlib.vision.photos import load_photos, photo_paths, read_photo

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "photos128"
needs_photographs = pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs ../shared/data/photos128")


def picture(seed: int, shape=(20, 24)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8))


def add(folder: Path, name: str, seed: int) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """20 photographs for each class in train, 5 in test."""
    folder = tmp_path / "animals"
    seed = 0
    for part, count in (("train", 20), ("test", 5)):
        for name in ("dog", "cat"):
            for number in range(count):
                add(folder, f"{part}/{name}/{number:02}.png", seed)
                seed += 1
    return folder


def load(folder, **options):
    return load_photos(folder, **{"cache": None, "size": 8, "progress": False} | options)


def names_of(folder: Path, paths) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def same(first, second) -> bool:
    return first.classes == second.classes and first.skipped == second.skipped and all(
        torch.equal(getattr(getattr(first, part), field), getattr(getattr(second, part), field))
        for part in ("train", "validation", "test")
        for field in ("images", "labels", "index")
    )


# --- finding ---------------------------------------------------------------------------------


def test_parts_classes_and_counts(folder):
    splits = load(folder)
    assert splits.classes == ("cat", "dog")
    assert splits.skipped == ()
    assert str(splits) == "34 training, 6 validation and 10 test images, 2 classes"
    assert splits.train.labels.bincount().tolist() == [17, 17]
    assert splits.validation.labels.bincount().tolist() == [3, 3]
    assert splits.test.labels.bincount().tolist() == [5, 5]
    assert splits.train.images.dtype == torch.uint8
    assert splits.train.images.shape == (34, 3, 8, 8)
    assert splits.train.labels.dtype == torch.int64
    together = torch.cat([part.index for part in (splits.train, splits.validation, splits.test)])
    assert together.sort().values.tolist() == list(range(50))


def test_every_image_is_its_files_with_its_label(folder):
    splits, paths = load(folder, size=11), photo_paths(folder)
    assert paths.classes == splits.classes
    for part in ("train", "validation", "test"):
        examples, files = getattr(splits, part), getattr(paths, part)
        assert len(files) == len(examples)
        assert torch.equal(files.index, examples.index)
        assert torch.equal(files.labels, examples.labels)
        assert files.labels.dtype == torch.int64
        for row, path in enumerate(files.paths):
            assert torch.equal(examples.images[row], read_photo(path, 11))
            assert path.parent.name == splits.classes[examples.labels[row]]
            assert path.parts[-3] == ("test" if part == "test" else "train")


def test_order_is_alphabetical_whatever_the_file_system_says(folder):
    paths = photo_paths(folder)
    every = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    found = {}
    for part in (paths.train, paths.validation, paths.test):
        assert part.index.tolist() == sorted(part.index.tolist())
        found |= dict(zip(part.index.tolist(), names_of(folder, part.paths), strict=True))
    assert [found[row] for row in range(50)] == every


def test_classes_are_alphabetical_whatever_the_file_system_says(tmp_path):
    names = ["newt", "Zebra", "ant", "dog", "bee", "cat", "owl"]
    for seed, name in enumerate(names):
        for number, part in enumerate(("train", "train", "test")):
            add(tmp_path, f"{part}/{name}/{number}.png", 10 * seed + number)
    splits = load(tmp_path)
    assert splits.classes == ("Zebra", "ant", "bee", "cat", "dog", "newt", "owl")
    for row, path in enumerate(photo_paths(tmp_path).test.paths):
        assert splits.classes[splits.test.labels[row]] == path.parent.name


def test_nested_folders_upper_case_and_everything_hidden(folder):
    add(folder, "train/cat/b/c/deep.JPG", 901)
    add(folder, "train/cat/UPPER.JPeG", 902)
    for name in ("train/cat/.hidden.png", "train/.cat2/a.png", "train/cat/.thumbs/a.png", ".train/cat/a.png",
                 "train/loose.png"):  # fmt: skip
        add(folder, name, 903)
    for name in ("train/cat/notes.txt", "train/cat/Thumbs.db", "train/cat/jpg", "train/readme.md"):
        (folder / name).write_text("no photograph")
    (folder / "train" / "empty").mkdir()
    paths = photo_paths(folder)
    names = set(names_of(folder, paths.train.paths + paths.validation.paths))
    assert names >= {"train/cat/b/c/deep.JPG", "train/cat/UPPER.JPeG"}
    assert len(names) == 42
    assert paths.classes == ("cat", "dog")


def test_linked_folders_are_followed_once(folder, tmp_path):
    elsewhere = add(tmp_path, "elsewhere/linked.png", 904).parent
    try:
        (folder / "train" / "cat" / "more").symlink_to(elsewhere)
        (folder / "train" / "cat" / "round").symlink_to(folder / "train" / "cat")
    except OSError:
        pytest.skip("this system makes no links")
    names = names_of(folder, photo_paths(folder).train.paths + photo_paths(folder).validation.paths)
    assert "train/cat/more/linked.png" in names
    assert len(names) == 41


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_a_validation_folder_is_used(folder, name):
    for number, animal in enumerate(("cat", "dog", "dog")):
        add(folder, f"{name}/{animal}/{number}.png", 910 + number)
    splits = load(folder)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [40, 3, 10]
    assert splits.validation.labels.tolist() == [0, 1, 1]
    paths = photo_paths(folder)
    assert all(path.parts[-3] == name for path in paths.validation.paths)


def test_validation_is_stratified_by_the_seed_and_keeps_to_its_files(folder):
    first = names_of(folder, photo_paths(folder, seed=3).validation.paths)
    assert first == names_of(folder, photo_paths(folder, seed=3).validation.paths)
    others = [tuple(names_of(folder, photo_paths(folder, seed=seed).validation.paths)) for seed in range(20)]
    assert len(set(others)) > 15
    drawn = {name for names in others for name in names}
    assert len(drawn) > 30  # 3 of 20 in each of 20 draws: every file has its turn, nearly
    # A file more pushes at most one out of its class; it does not shuffle the rest.
    add(folder, "train/cat/new.png", 920)
    again = names_of(folder, photo_paths(folder, seed=3).validation.paths)
    assert len(set(first) - set(again)) <= 1
    assert [n for n in again if "dog" in n] == [n for n in first if "dog" in n]


@pytest.mark.parametrize(("share", "count"), [(0.5, 10), (0.001, 1), (0.15, 3), (0.94, 19)])
def test_share_of_validation(folder, share, count):
    assert photo_paths(folder, validation=share).validation.labels.bincount().tolist() == [count, count]


def test_layouts_that_are_refused(folder, tmp_path):
    message = r"there is no folder .*nowhere; it should hold train/cat/\*\.jpg"
    for absent in (load, photo_paths):
        with pytest.raises(FileNotFoundError, match=message):
            absent(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match='no folder Pets; .*Or did you mean "pets" or "cifar10"'):
        load("Pets")
    with pytest.raises(ValueError, match=r"holds no folder train; it should hold train/cat/\*\.jpg"):
        load(folder / "train")
    (folder / "test").rename(folder / "tests")
    with pytest.raises(ValueError, match="holds no folder test; move about a fifth of each class"):
        load(folder)
    (folder / "tests").rename(folder / "test")
    (folder / "test" / "dog").rename(folder / "test" / "wolf")
    with pytest.raises(ValueError, match="train has photographs of cat, dog, test of cat, wolf"):
        load(folder)
    shutil.rmtree(folder / "test" / "wolf")
    with pytest.raises(ValueError, match="train has photographs of cat, dog, test of cat$"):
        load(folder)
    shutil.rmtree(folder / "train" / "dog")
    with pytest.raises(ValueError, match="each of two classes or more; found cat"):
        load(folder)
    shutil.rmtree(folder / "train" / "cat")
    with pytest.raises(ValueError, match="each of two classes or more; found none"):
        load(folder)


def test_two_validation_folders_are_refused(folder):
    (folder / "val").mkdir()
    (folder / "validation").mkdir()
    with pytest.raises(ValueError, match="validation and val, which mean the same; keep one"):
        load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0}, "validation is a share .*above 0 and below 1; got 0"),
        ({"validation": 1.0}, "validation is a share .*above 0 and below 1; got 1.0"),
        ({"validation": 0.99}, r"validation=0\.99 would take all 20 .*train/(cat|dog)/\d\d\.png"),
        ({"size": 0}, "size is the side of the square in pixels.*got 0"),
        ({"duplicates": "keep"}, "duplicates is \"refuse\" or \"drop\"; got 'keep'"),
        ({"breeds": True}, 'breeds=True is for "pets"'),
    ],
)
def test_options_that_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        load(folder, **options)


def test_default_size_is_64(folder):
    assert load_photos(folder, cache=None, progress=False).train.images.shape[-2:] == (64, 64)


# --- broken files and duplicates -------------------------------------------------------------


def test_broken_files_are_counted_named_and_left_out(folder):
    whole = load(folder)
    content = (folder / "train/cat/00.png").read_bytes()
    (folder / "train/cat/00.png").write_bytes(content[: len(content) // 2])
    (folder / "test/dog/01.png").write_bytes(b"")
    (folder / "train/dog/99.jpg").write_text("<html>404</html>")
    with pytest.warns(UserWarning) as shown:
        splits = load(folder)
    (message,) = [str(warning.message) for warning in shown]
    assert message.startswith("3 of 51 files cannot be read and are left out: ")
    assert ": test/dog/01.png (the file is empty), " in message
    assert "train/cat/00.png (" in message
    assert shown[0].filename == __file__  # it points at whoever called load_photos
    assert len(splits.skipped) == 3
    assert [entry.partition(": ")[0] for entry in splits.skipped] == [
        "test/dog/01.png", "train/cat/00.png", "train/dog/99.jpg",
    ]  # fmt: skip
    assert splits.skipped[2] == "train/dog/99.jpg: no picture that Pillow can read"
    assert str(folder) not in message + "".join(splits.skipped)
    assert str(splits).endswith("2 classes (3 left out)")
    # All others are where they were.
    rows = [row for row, index in enumerate(whole.test.index) if index != 6]
    assert torch.equal(splits.test.images, whole.test.images[rows])
    assert splits.test.labels.tolist() == whole.test.labels[rows].tolist()
    assert len(splits.train) + len(splits.validation) == 39


def test_a_long_list_is_cut_short_in_the_message_only(folder):
    for number in range(8):
        (folder / f"train/cat/bad{number}.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"8 of 58 files.*bad4\.jpg \(the file is empty\) and 3 more$"):
        splits = load(folder)
    assert len(splits.skipped) == 8


def test_more_than_half_broken_is_refused(folder):
    for number in range(5):
        (folder / f"test/cat/{number:02}.png").write_bytes(b"")
    message = "no photograph of cat is left in test; left out were test/cat/00.png"
    with pytest.raises(ValueError, match=message), pytest.warns(UserWarning, match="5 of 50 files"):
        load(folder)
    (folder / "test/dog/00.png").write_bytes(b"")
    with pytest.raises(ValueError, match="6 of the 10 files in test cannot be read: .*more than half"):
        load(folder)


@pytest.mark.parametrize("ending", ["png", "bmp", "webp"])
def test_the_same_picture_in_two_parts_is_refused(folder, ending):
    """Copied, or saved again in another format without loss."""
    with Image.open(folder / "train/cat/03.png") as original:
        original.save(folder / f"test/cat/again.{ending}", **({"lossless": True} if ending == "webp" else {}))
    with pytest.raises(ValueError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith("the same picture lies in two parts, 1 time,")
    assert f"train/cat/03.png = test/cat/again.{ending}" in message
    assert 'Delete one of each pair, or pass duplicates="drop"' in message
    with pytest.raises(ValueError, match="lies in two parts"):
        load(folder, duplicates="refuse")


def test_drop_keeps_what_is_tested(folder):
    for name in ("validation/cat", "validation/dog"):
        add(folder, f"{name}/own.png", 930 + len(name))
    copy = lambda old, new: shutil.copy(folder / old, folder / new)  # noqa: E731
    copy("train/cat/03.png", "test/cat/x.png")
    copy("train/cat/03.png", "validation/cat/x.png")
    copy("train/dog/04.png", "validation/dog/y.png")
    copy("train/dog/05.png", "train/dog/twice.png")  # within a part it leaks nothing
    copy("train/dog/06.png", "test/cat/other-class.png")
    splits = load(folder, duplicates="drop")
    assert sorted(splits.skipped) == [
        "train/cat/03.png: the same picture as test/cat/x.png",
        "train/dog/04.png: the same picture as validation/dog/y.png",
        "train/dog/06.png: the same picture as test/cat/other-class.png",
        "validation/cat/x.png: the same picture as test/cat/x.png",
    ]
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [38, 3, 12]


def test_copies_within_train_do_not_reach_validation(folder):
    for number in range(20):
        shutil.copy(folder / f"train/cat/{number:02}.png", folder / f"train/cat/copy{number:02}.png")
    splits = load(folder)
    held = {image.numpy().tobytes() for image in splits.validation.images}
    assert not held & {image.numpy().tobytes() for image in splits.train.images}
    assert splits.skipped
    assert all(": the same picture as train/cat/" in entry for entry in splits.skipped)
    assert len(splits.train) + len(splits.validation) + len(splits.skipped) == 60


# --- the cache -------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch) -> list:
    """Every file that is really decoded from now on."""
    files = []
    original = photo_cache.decode

    def decode(path, size):
        files.append(path)
        return original(path, size)

    monkeypatch.setattr(photo_cache, "decode", decode)
    return files


def cache_file(cache: Path) -> Path:
    (file,) = cache.iterdir()
    return file


def test_the_second_call_decodes_nothing_and_gives_the_same(folder, tmp_path, decoded):
    (folder / "train/cat/bad.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 51 files"):
        first = load(folder, cache=tmp_path / "c")
    assert len(decoded) == 51
    with pytest.warns(UserWarning, match=r"1 of 51 files.*bad\.jpg \(the file is empty\)"):
        second = load(folder, cache=tmp_path / "c")
    assert len(decoded) == 51
    assert same(first, second)
    assert cache_file(tmp_path / "c").stat().st_size < 50 * (3 * 8 * 8 + 100) + 5_000


def test_another_seed_share_or_validation_reads_the_same_cache(folder, tmp_path, decoded):
    for options in ({}, {"seed": 1}, {"validation": 0.5}, {"duplicates": "drop"}):
        load(folder, cache=tmp_path / "c", **options)
    assert len(decoded) == 50


def touch(folder):
    path = folder / "train/cat/00.png"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1_000_000))


CHANGES = {
    "a file more": lambda folder: add(folder, "train/cat/new.png", 940),
    "a file fewer": lambda folder: (folder / "train/cat/00.png").unlink(),
    "another name": lambda folder: (folder / "train/cat/00.png").rename(folder / "train/cat/0.png"),
    "another class": lambda folder: (folder / "train/cat/00.png").rename(folder / "train/dog/cat.png"),
    "another time": touch,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_folder_is_decoded_again(folder, tmp_path, decoded, change):
    load(folder, cache=tmp_path / "c")
    change(folder)
    decoded.clear()
    found = load(folder, cache=tmp_path / "c")
    assert len(decoded) == len(list(folder.rglob("*.png")))
    assert same(found, load(folder, cache=None))
    cache_file(tmp_path / "c")  # still one: the old one is replaced


def test_another_size_folder_or_decoder_is_another_cache(folder, tmp_path, decoded, monkeypatch):
    cache = tmp_path / "c"
    load(folder, cache=cache)
    assert load(folder, cache=cache, size=9).train.images.shape[-1] == 9
    assert len(decoded) == 100
    other = shutil.copytree(folder, tmp_path / "other" / folder.name)
    load(other, cache=cache)
    assert len(decoded) == 150
    load(folder, cache=cache)
    load(other, cache=cache)
    assert len(decoded) == 150  # neither has pushed the other out
    assert len(list(cache.iterdir())) == 3
    monkeypatch.setattr(photo_cache, "DECODER", "another version")
    load(folder, cache=cache)
    assert len(decoded) == 200


@pytest.mark.parametrize("spoil", ["cut", "altered", "text"])
def test_a_damaged_cache_is_made_again(folder, tmp_path, decoded, spoil):
    first = load(folder, cache=tmp_path / "c")
    file = cache_file(tmp_path / "c")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes({"cut": content[:-100], "altered": content, "text": b"hello"}[spoil])
    with pytest.warns(UserWarning, match="The photographs are decoded again") as shown:
        second = load(folder, cache=tmp_path / "c")
    assert shown[0].filename == __file__
    assert len(decoded) == 100
    assert same(first, second)
    load(folder, cache=tmp_path / "c")
    assert len(decoded) == 100


def test_an_interrupted_decode_leaves_no_cache(folder, tmp_path, monkeypatch):
    original, seen = photo_cache.decode, []

    def interrupted(path, size):
        seen.append(path)
        if len(seen) > 10:
            raise KeyboardInterrupt
        return original(path, size)

    with monkeypatch.context() as patch:
        patch.setattr(photo_cache, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(folder, cache=tmp_path / "c")
    assert not list(tmp_path.glob("c/*"))
    assert same(load(folder, cache=tmp_path / "c"), load(folder, cache=None))


def test_a_cache_that_cannot_be_written_costs_a_warning(folder, tmp_path):
    (tmp_path / "c").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot be kept in .*will be decoded again next time") as shown:
        splits = load(folder, cache=tmp_path / "c")
    assert shown[0].filename == __file__
    assert same(splits, load(folder, cache=None))


def test_without_a_cache_nothing_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    load(folder, cache=None)
    assert sorted(tmp_path.rglob("*")) == before


def test_one_thread_gives_what_many_give(folder, monkeypatch):
    monkeypatch.setattr(photo_cache, "_cores", lambda: 1)
    one = load(folder)
    monkeypatch.setattr(photo_cache, "_cores", lambda: 8)
    assert same(one, load(folder))


# --- real photographs ------------------------------------------------------------------------


@needs_photographs
def test_photographs_are_complete_and_cached(tmp_path, capsys):
    begin = time.perf_counter()
    first = load_photos(PHOTOS, cache=tmp_path, progress=False)
    middle = time.perf_counter()
    second = load_photos(PHOTOS, cache=tmp_path, progress=False)
    end = time.perf_counter()
    with capsys.disabled():
        print(f"\n3,500 photographs: decoded in {middle - begin:.2f} s, cached in {end - middle:.2f} s")
    assert first.classes == ("cat", "dog")
    rest = first.train.labels.bincount() + first.validation.labels.bincount()
    assert rest.tolist() == [1500, 1500]
    assert first.validation.labels.bincount().tolist() == [225, 225]
    assert first.test.labels.bincount().tolist() == [250, 250]
    assert first.skipped == ()
    assert same(first, second)
    tensors, _ = load_tensors(cache_file(tmp_path))
    assert tensors["images"].shape == (3500, 3, 64, 64)


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
    (cats / "text.jpg").write_text("a cat, in words")
    (cats / "page.jpg").write_text("<!DOCTYPE html><html><title>404</title></html>")
    (cats / "folder.jpg").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 8
    endings = {"CMYK": "jpg", "RGBA": "png", "P": "gif", "L": "JPG", "RGB": "jpeg"}
    odd, others = {}, sorted((PHOTOS / "train/cat").iterdir())[20:25]
    for (mode, ending), path in zip(endings.items(), others, strict=True):
        odd[mode] = cats / f"odd-{mode}.{ending}"
        with Image.open(path) as original:
            original.convert(mode).save(odd[mode], **({"exif": exif} if mode == "RGB" else {}))
    leaking = sorted((folder / "test/dog").iterdir())[2]
    with Image.open(leaking) as original:
        original.save(folder / "train/dog/leak.png")
    message = rf"the same picture .*: train/dog/leak\.png = test/dog/{leaking.name}"
    with pytest.raises(ValueError, match=message), pytest.warns(UserWarning, match="4 of 62 files"):
        load(folder)
    with pytest.warns(UserWarning, match="4 of 62 files cannot be read and are left out"):
        splits = load(folder, duplicates="drop", size=64, cache=tmp_path / "c")
    assert {entry.partition(":")[0] for entry in splits.skipped} == {
        "train/cat/truncated.jpg", "train/cat/empty.jpg", "train/cat/text.jpg", "train/cat/page.jpg",
        "train/dog/leak.png",
    }  # fmt: skip
    assert len(splits.train) + len(splits.validation) == 45
    assert len(splits.test) == 12
    paths, images = photo_paths(folder), {}
    for part in ("train", "validation"):
        files = dict(zip(getattr(paths, part).index.tolist(), getattr(paths, part).paths, strict=True))
        examples = getattr(splits, part)
        images |= {files[index]: examples.images[row] for row, index in enumerate(examples.index.tolist())}
    for path in odd.values():
        assert torch.equal(images[path], read_photo(path, 64))
    # The picture with the sensor on its side: turned back by hand it is the original.
    turned = torch.rot90(read_photo(odd["RGB"], 64), -1, (1, 2)).int()
    assert (turned - read_photo(others[4], 64).int()).abs().float().mean() < 8
