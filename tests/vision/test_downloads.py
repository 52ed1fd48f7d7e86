"""Downloads against a server on this machine that drops, refuses, lies and resumes, serving tiny archives."""

import hashlib
import io
import os
import pickle
import re
import tarfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, OxfordIIITPet

from kdlib.__main__ import main
from kdlib.cli import fetch
from kdlib.vision import downloads, photos
from kdlib.vision.downloads import Archive, DownloadFailed, download, fetch_cifar10, fetch_pets, unpack
from kdlib.vision.photos import load_photos


@dataclass
class Server:
    """Serves `files`; what it does wrong is set by the test, what it was asked is recorded."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    drop_after: list[int] = field(default_factory=list)  # for each request to come: bytes before it hangs up
    status: int = 0  # answer everything with this
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def server(monkeypatch):
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append((self.path, self.headers.get("Range")))
            content = state.files.get(self.path.lstrip("/"))
            if state.status or content is None:
                self.send_error(state.status or 404)
                return
            start, code = 0, 200
            if state.ranges and (asked := self.headers.get("Range")):
                start, code = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]), 206
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            self.send_response(code)
            self.send_header("Content-Length", str(len(content) - start))
            if code == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            body = content[start:]
            if state.drop_after:
                body = body[: state.drop_after.pop(0)]
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    # Nobody waits between attempts, and no proxy is asked about this machine itself.
    monkeypatch.setattr(downloads, "_PAUSES", (0, 0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


NOISE = np.random.default_rng(0).bytes(200_000)
CONTENT = tar({"things/a.txt": b"alpha", "things/b/c.bin": NOISE})


@pytest.fixture
def archive(server) -> Archive:
    server.files["things.tar.gz"] = CONTENT
    return Archive((f"{server.address}/things.tar.gz",), md5(CONTENT), "things")


def left(folder: Path) -> set[str]:
    """What a failed download leaves, locks aside."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def get(archive: Archive, folder: Path) -> Path:
    return download(archive, folder, progress=False)


# --- one file --------------------------------------------------------------------------------


def test_a_file_arrives_whole_and_is_not_fetched_twice(server, archive, tmp_path):
    path = get(archive, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "things.tar.gz"
    assert path.read_bytes() == CONTENT
    assert left(path.parent) == {"things.tar.gz"}
    assert get(archive, path.parent) == path
    assert server.asked == [("/things.tar.gz", None)]


def test_a_dropped_connection_goes_on_where_it_was(server, archive, tmp_path):
    server.drop_after = [70_000, 50_000]
    assert get(archive, tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=70000-", "bytes=120000-"]


def test_a_later_run_goes_on_where_an_earlier_one_stopped(server, archive, tmp_path):
    (tmp_path / "things.tar.gz.part").write_bytes(CONTENT[:123_456])
    assert get(archive, tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/things.tar.gz", "bytes=123456-")]
    assert left(tmp_path) == {"things.tar.gz"}


def test_a_server_that_cannot_resume_sends_all_of_it(server, archive, tmp_path):
    server.ranges = False
    server.drop_after = [70_000]
    (tmp_path / "things.tar.gz.part").write_bytes(CONTENT[:50_000])
    assert get(archive, tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == ["bytes=50000-", "bytes=70000-"]


def test_a_server_that_cannot_resume_and_always_drops_is_given_up(server, archive, tmp_path):
    server.ranges = False
    server.drop_after = [70_000] * 1000
    with pytest.raises(DownloadFailed, match="the connection broke after 70,000 of 200,[0-9]+ bytes"):
        get(archive, tmp_path)
    assert len(server.asked) < 6


def test_a_connection_that_is_always_dropped_keeps_what_came(server, archive, tmp_path):
    server.drop_after = [70_000] + [0] * 1000
    with pytest.raises(DownloadFailed) as caught:
        get(archive, tmp_path)
    message = str(caught.value)
    assert f"{archive.addresses[0]}: the connection broke after 70,000 of 200," in message
    assert "what has arrived is kept" in message
    assert left(tmp_path) == {"things.tar.gz.part"}
    assert (tmp_path / "things.tar.gz.part").read_bytes() == CONTENT[:70_000]
    server.drop_after.clear()
    assert get(archive, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == ("/things.tar.gz", "bytes=70000-")


@pytest.mark.parametrize(("status", "times"), [(403, 1), (404, 1), (500, 3), (503, 3)])
def test_a_refusal_says_what_to_fetch_by_hand_and_where_to_put_it(server, archive, tmp_path, status, times):
    server.status = status
    with pytest.raises(DownloadFailed) as caught:
        get(archive, tmp_path)
    message = str(caught.value)
    assert message.startswith("things.tar.gz could not be downloaded:\n")
    assert f"{archive.addresses[0]}: HTTP status {status}" in message
    assert f"fetch {archive.addresses[0]} by hand (its MD5 is {archive.md5})" in message
    assert f"put it at {tmp_path / 'things.tar.gz'} and try again" in message
    assert left(tmp_path) == set()
    assert len(server.asked) == times  # what may pass is tried again, what will not is not
    (tmp_path / "things.tar.gz").write_bytes(CONTENT)  # as it says
    assert get(archive, tmp_path).read_bytes() == CONTENT


def test_nobody_listening(server, archive, tmp_path):
    nobody = Archive(("http://127.0.0.1:9/things.tar.gz",), archive.md5, "things")
    with pytest.raises(DownloadFailed, match="http://127.0.0.1:9/things.tar.gz: .*refused"):
        get(nobody, tmp_path)
    assert left(tmp_path) == set()


def test_another_file_under_the_address_is_not_kept(server, archive, tmp_path):
    server.files["things.tar.gz"] = b"<html>We have moved</html>"
    with pytest.raises(DownloadFailed, match=r"things\.tar\.gz: the file there has another checksum"):
        get(archive, tmp_path)
    assert left(tmp_path) == set()
    assert len(server.asked) == 1


@pytest.mark.parametrize("size", [100_000, 300_000])
def test_the_beginning_of_another_file_is_thrown_away(server, archive, tmp_path, size):
    """Shorter or longer than the right file."""
    (tmp_path / "things.tar.gz.part").write_bytes(b"x" * size)
    assert get(archive, tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [f"bytes={size}-", None]


def test_killed_between_the_last_byte_and_the_new_name(server, archive, tmp_path):
    (tmp_path / "things.tar.gz.part").write_bytes(CONTENT)
    assert get(archive, tmp_path).read_bytes() == CONTENT
    assert server.asked == []


def test_half_a_file_under_the_final_name_is_taken_up_too(server, archive, tmp_path):
    """torchvision and browsers write there while they download."""
    (tmp_path / "things.tar.gz").write_bytes(CONTENT[:1000])
    assert get(archive, tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/things.tar.gz", "bytes=1000-")]


def test_the_second_address_goes_on_with_what_the_first_gave(server, archive, tmp_path):
    server.files["elsewhere/other-name.tgz"] = CONTENT
    server.drop_after = [50_000]
    del server.files["things.tar.gz"]
    two = Archive((archive.addresses[0], f"{server.address}/elsewhere/other-name.tgz"), archive.md5, "things")
    (tmp_path / "things.tar.gz.part").write_bytes(CONTENT[:1000])
    assert get(two, tmp_path) == tmp_path / "things.tar.gz"
    assert (tmp_path / "things.tar.gz").read_bytes() == CONTENT
    assert server.asked == [
        ("/things.tar.gz", "bytes=1000-"),
        ("/elsewhere/other-name.tgz", "bytes=1000-"),
        ("/elsewhere/other-name.tgz", "bytes=51000-"),
    ]


def test_every_address_that_failed_is_named(server, archive, tmp_path):
    two = Archive((f"{server.address}/no/things.tar.gz", f"{server.address}/nor"), archive.md5, "things")
    with pytest.raises(DownloadFailed, match=r"no/things\.tar\.gz: HTTP status 404\n.*/nor: HTTP status 404"):
        get(two, tmp_path)


def test_two_at_once_fetch_one(server, archive, tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(get(archive, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "things.tar.gz"] * 4
    assert found[0].read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_folder_that_cannot_be_written(server, archive, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadFailed, match=r"file.* cannot be written .*name another folder as root"):
        get(archive, tmp_path / "file")


def test_progress_shows_on_stderr_or_not(server, archive, tmp_path, capfd):
    get(archive, tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    download(archive, tmp_path / "loud")
    out, err = capfd.readouterr()
    assert out == ""
    assert "things.tar.gz" in err
    assert "100%" in err


# --- unpacking -------------------------------------------------------------------------------


def test_a_folder_is_unpacked_beside_the_archive(tmp_path):
    path = tmp_path / "things.tar.gz"
    path.write_bytes(CONTENT)
    (tmp_path / ".things.part" / "things").mkdir(parents=True)  # of somebody killed
    (tmp_path / ".things.part" / "things" / "stale.txt").write_text("")
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "old").write_text("")
    assert unpack(path, "things") == tmp_path / "things"
    assert {p.relative_to(tmp_path).as_posix() for p in (tmp_path / "things").rglob("*.*")} == {
        "things/a.txt", "things/b/c.bin",
    }  # fmt: skip
    assert not (tmp_path / "things" / "old").exists()
    assert left(tmp_path) == {"things.tar.gz", "things"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (CONTENT[:150_000], "end"),
        (b"hello", "not a gzip file"),
        (tar({"other/a": b""}), "it holds no folder things"),
        (tar({"things/a": b"", "../outside": b""}), "outside"),
    ],
    ids=["cut short", "no archive", "another folder", "a way out"],
)
def test_what_cannot_be_unpacked_leaves_nothing(tmp_path, content, reason):
    path = tmp_path / "here" / "things.tar.gz"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DownloadFailed, match=rf"things\.tar\.gz cannot be unpacked \(.*{reason}"):
        unpack(path, "things")
    assert left(path.parent) == {"things.tar.gz"}
    assert left(tmp_path) == {"here"}


# --- the two sets ----------------------------------------------------------------------------

BREEDS = {"Abyssinian": "cat", "american_bulldog": "dog", "Bengal": "cat", "pug": "dog"}


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def pets(server) -> tuple[Archive, Archive]:
    """Four breeds of ten and four photographs in the layout of Oxford-IIIT Pet."""
    images, lists, seed = {}, {"trainval": [], "test": []}, 0
    for breed_id, (breed, species) in enumerate(BREEDS.items(), 1):
        for number in range(1, 15):
            split = "trainval" if number <= 10 else "test"
            # One photograph lies in both parts, as nobody can mend in a downloaded set.
            images[f"images/{breed}_{number}.jpg"] = jpeg(1 if (breed, number) == ("pug", 14) else seed)
            lists[split].append(f"{breed}_{number} {breed_id} {1 if species == 'cat' else 2} 1")
            seed += 1
    texts = {f"annotations/{split}.txt": "\n".join(lines).encode() for split, lines in lists.items()}
    archives = []
    for folder, files in (("images", images), ("annotations", texts)):
        content = tar(files)
        server.files[f"{folder}.tar.gz"] = content
        archives.append(Archive((f"{server.address}/{folder}.tar.gz",), md5(content), folder))
    return tuple(archives)


@pytest.fixture
def tiny_pets(pets, monkeypatch):
    monkeypatch.setattr(downloads, "pets_archives", lambda: pets)


def load(name: str, root: Path, **options):
    return load_photos(name, root=root, cache=None, progress=False, **options)


def test_pets_are_cats_and_dogs(server, tiny_pets, tmp_path):
    splits = load("pets", tmp_path)
    assert splits.classes == ("cat", "dog")
    assert splits.train.images.shape[1:] == (3, 64, 64)
    assert splits.test.labels.bincount().tolist() == [8, 8]
    assert splits.train.labels.bincount().tolist() == [16, 17]
    assert splits.validation.labels.bincount().tolist() == [3, 3]
    assert splits.skipped == ("train/Abyssinian_2.jpg: the same picture as test/pug_14.jpg",)
    # Labels by the names of the files, without torchvision.
    names = [f"{breed}_{n}" for ns in (range(1, 11), range(11, 15)) for breed in BREEDS for n in ns]
    for part in (splits.train, splits.validation, splits.test):
        for index, label in zip(part.index.tolist(), part.labels.tolist(), strict=True):
            assert BREEDS[names[index].rpartition("_")[0]] == splits.classes[label]
    with pytest.raises(ValueError, match="the same picture lies in two parts"):
        load("pets", tmp_path, duplicates="refuse")
    assert len(server.asked) == 2


def test_pets_by_breed(tiny_pets, tmp_path):
    splits = load("pets", tmp_path, breeds=True, size=16)
    assert splits.classes == ("Abyssinian", "American Bulldog", "Bengal", "Pug")
    assert splits.test.labels.bincount().tolist() == [4, 4, 4, 4]
    assert splits.train.labels.bincount().tolist() == [7, 8, 8, 8]
    assert splits.validation.labels.bincount().tolist() == [2, 2, 2, 2]


def test_pets_with_breeds_and_without_read_one_cache(tiny_pets, tmp_path):
    for breeds in (True, False):
        load_photos("pets", root=tmp_path, cache=tmp_path / "c", breeds=breeds, progress=False)
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_pets_interrupted_while_unpacking_are_not_taken_for_whole(pets, tmp_path, monkeypatch):
    def killed(source, target):
        (Path(target) / "images").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "extract_archive", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch_pets(tmp_path, archives=pets, progress=False)
    assert left(tmp_path / "oxford-iiit-pet") == {"images.tar.gz"}
    folder = fetch_pets(tmp_path, archives=pets, progress=False)
    assert left(folder) == {"images.tar.gz", "images", "annotations.tar.gz", "annotations"}
    assert len(OxfordIIITPet(tmp_path, split="trainval")) == 40


def test_pets_come_from_where_torchvision_says_then_from_the_older_server():
    images, annotations = downloads.pets_archives()
    for archive, folder, (address, checksum) in zip(
        (images, annotations), ("images", "annotations"), OxfordIIITPet._RESOURCES, strict=True
    ):
        assert archive.addresses[0] == address
        assert archive.addresses[1] == f"https://thor.robots.ox.ac.uk/~vgg/data/pets/{folder}.tar.gz"
        assert archive.md5 == checksum
        assert archive.folder == folder
        assert archive.name == f"{folder}.tar.gz"


@pytest.fixture
def cifar(server, monkeypatch) -> Archive:
    """Ten images of each class in each of the five batches and in the test batch."""
    random = np.random.default_rng(0)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    files = {}
    for batch in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        labels = random.permutation(np.repeat(np.arange(10), 10)).tolist()
        pixels = random.integers(0, 256, (100, 3072), dtype=np.uint8)
        pixels[:, 0] = labels  # the first red pixel says what it is
        files[batch] = pickle.dumps({"data": pixels, "labels": labels})
    files["batches.meta"] = pickle.dumps({"label_names": names})
    sums = {name: md5(content) for name, content in files.items()}
    batches = [[name, sums[name]] for name in sorted(files) if "batch_" in name]
    monkeypatch.setattr(CIFAR10, "train_list", batches[:5])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    content = tar({f"{CIFAR10.base_folder}/{name}": data for name, data in files.items()})
    server.files[CIFAR10.filename] = content
    monkeypatch.setattr(CIFAR10, "url", f"{server.address}/{CIFAR10.filename}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(content))
    return Archive((CIFAR10.url,), CIFAR10.tgz_md5, CIFAR10.base_folder)


def test_cifar10_gives_its_cats_and_dogs(server, cifar, tmp_path):
    splits = load("cifar10", tmp_path, validation=0.2)
    assert splits.classes == ("cat", "dog")
    assert splits.train.images.shape == (80, 3, 32, 32)
    assert [part.labels.bincount().tolist() for part in (splits.train, splits.validation, splits.test)] == [
        [40, 40], [10, 10], [10, 10],
    ]  # fmt: skip
    for part in (splits.train, splits.validation, splits.test):
        # Class 3 is cat and 5 is dog in the files; pixels come as they are there.
        assert torch.equal(part.images[:, 0, 0, 0], 3 + 2 * part.labels.to(torch.uint8))
    together = torch.cat([part.index for part in (splits.train, splits.validation, splits.test)])
    assert together.sort().values.tolist() == list(range(120))
    test = CIFAR10(tmp_path, train=False)
    cats_and_dogs = [row for row, target in enumerate(test.targets) if target in (3, 5)]
    assert np.array_equal(splits.test.images.permute(0, 2, 3, 1).numpy(), test.data[cats_and_dogs])
    assert load("cifar10", tmp_path, size=16).test.images.shape == (20, 3, 16, 16)
    assert len(server.asked) == 1


def test_cifar10_that_is_damaged_is_made_whole(server, cifar, tmp_path):
    fetch_cifar10(tmp_path, archive=cifar, progress=False)
    batch = tmp_path / CIFAR10.base_folder / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1])
    train, test = fetch_cifar10(tmp_path, archive=cifar, progress=False)
    assert (len(train), len(test)) == (500, 100)
    assert len(server.asked) == 1  # from the archive, which is still there


def test_a_folder_named_like_a_set_is_told_by_its_type(tmp_path, monkeypatch, tiny_pets, server):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder pets"):
        load(Path("pets"), tmp_path)
    assert server.asked == []


# --- the command -----------------------------------------------------------------------------


def test_fetch_says_where_it_landed(tiny_pets, tmp_path, capsys):
    options = ["--root", str(tmp_path / "d"), "--cache", str(tmp_path / "c"), "--size", "16"]
    assert main(["fetch", "pets", *options]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "pets: 33 training, 6 validation and 16 test images, 2 classes (1 left out)",
        f"in {(tmp_path / 'd' / 'oxford-iiit-pet').resolve()}",
    ]
    assert "images.tar.gz" in err  # progress
    assert "decoding" in err
    (cache,) = (tmp_path / "c").iterdir()
    assert "-16-" in cache.name


def test_fetch_cifar10(cifar, tmp_path, capsys):
    assert main(["fetch", "cifar10", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"in {(tmp_path / 'cifar-10-batches-py').resolve()}"
    assert (tmp_path / "cifar-10-batches-py" / "test_batch").is_file()


def test_fetch_that_fails_says_the_mend_and_no_trace(server, tiny_pets, tmp_path, capsys):
    server.status = 503
    assert main(["fetch", "pets", "--root", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("images.tar.gz could not be downloaded")
    assert "by hand" in err
    assert "Traceback" not in err


def test_fetch_stopped_by_the_reader(tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "load_photos", stopped)
    assert main(["fetch", "pets", "--root", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "Stopped. The same command goes on from here.\n"


def test_help_of_fetch_names_sets_sizes_and_licence(capsys):
    with pytest.raises(SystemExit) as done:
        main(["fetch", "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert "python -m kdlib fetch" in text
    for part in ("pets", "cifar10", "CC BY-SA 4.0", "0.8 GB", "--root", "data/downloads"):
        assert part in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_folders_of_the_command_are_torchvisions(pets, cifar, tmp_path):
    assert fetch_pets(tmp_path, archives=pets, progress=False).name == fetch.FOLDERS["pets"]
    assert CIFAR10.base_folder == fetch.FOLDERS["cifar10"]
    assert photos.fetch_pets is fetch_pets
    assert os.listdir(tmp_path) == [fetch.FOLDERS["pets"]]
