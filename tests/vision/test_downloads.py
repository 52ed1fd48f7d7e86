"""Downloads against a server on this machine that drops, refuses, lies and resumes, serving tiny archives."""

import hashlib
import io
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
from kdlib.vision import downloads, photos
from kdlib.vision.downloads import fetch
from kdlib.vision.photos import load_photos


@dataclass
class Server:
    """Serves `files`; what it does wrong is set by the test, what it was asked is recorded."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    drop_after: int | None = None  # bytes before it hangs up
    status: int = 0  # answer everything with this
    asked: list[tuple[str, str]] = field(default_factory=list)
    address: str = ""


@pytest.fixture(scope="module")
def running():
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers["Range"]
            state.asked.append((self.path, asked))
            content = state.files.get(self.path.lstrip("/"))
            if state.status or content is None:
                self.send_error(state.status or 404)
                return
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if state.ranges else 0
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if state.ranges else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:][: state.drop_after])
            self.close_connection = True

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def server(running, monkeypatch):
    vars(running).update(vars(Server(address=running.address)))
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # no proxy is asked about this machine itself
    return running


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
def get(server):
    """Fetch the archive of things into a folder."""
    server.files["things.tar.gz"] = CONTENT

    def get(folder: Path, progress=False) -> None:
        fetch(f"{server.address}/things.tar.gz", md5(CONTENT), folder, "things", progress=progress)
        assert (folder / "things/b/c.bin").read_bytes() == NOISE
        assert (folder / "things.tar.gz").read_bytes() == CONTENT
        assert left(folder) == {"things.tar.gz", "things"}

    return get


def left(folder: Path) -> set[str]:
    """What lies in a folder, locks aside."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


# --- one archive -----------------------------------------------------------------------------------


def test_an_archive_arrives_whole_and_is_not_fetched_twice(server, get, tmp_path, capfd):
    get(tmp_path / "new" / "folder")
    get(tmp_path / "new" / "folder")
    assert server.asked == [("/things.tar.gz", "bytes=0-")]
    assert capfd.readouterr() == ("", "")
    get(tmp_path / "loud", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "things.tar.gz" in err
    assert "100%" in err


def test_a_dropped_connection_keeps_what_came_and_the_next_call_goes_on(server, get, tmp_path):
    server.drop_after = 70_000
    with pytest.raises(OSError, match="broke after 70,000 of 200,[0-9]+ bytes.*what has arrived is kept"):
        get(tmp_path)
    assert (tmp_path / "things.tar.gz.part").read_bytes() == CONTENT[:70_000]
    assert left(tmp_path) == {"things.tar.gz.part"}
    server.drop_after = None
    get(tmp_path)
    assert [asked for _, asked in server.asked] == ["bytes=0-", "bytes=69999-"]


def test_a_server_that_cannot_resume_sends_all_of_it(server, get, tmp_path):
    server.ranges = False
    (tmp_path / "things.tar.gz.part").write_bytes(b"x" * 50_000)
    get(tmp_path)


def test_killed_between_the_last_byte_and_the_new_name(server, get, tmp_path):
    (tmp_path / "things.tar.gz.part").write_bytes(CONTENT)
    get(tmp_path)


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusal_says_what_to_fetch_by_hand_and_where_to_put_it(server, get, tmp_path, status):
    server.status = status
    with pytest.raises(OSError) as caught:
        get(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{server.address}/things.tar.gz could not be downloaded: HTTP Error {status}")
    assert f"fetch it by hand (its MD5 is {md5(CONTENT)}), put it at {tmp_path / 'things.tar.gz'}" in message
    assert left(tmp_path) == set()
    (tmp_path / "things.tar.gz").write_bytes(CONTENT)  # as it says
    get(tmp_path)


def test_nobody_listening(tmp_path):
    with pytest.raises(OSError, match=r"http://127.0.0.1:9/a\.tgz could not be downloaded: .*refused"):
        fetch("http://127.0.0.1:9/a.tgz", "0", tmp_path, "a")


def test_another_file_under_the_address_is_not_kept(server, get, tmp_path):
    server.files["things.tar.gz"] = b"<html>We have moved</html>"
    with pytest.raises(OSError, match="the file there has another checksum"):
        get(tmp_path)
    assert left(tmp_path) == set()


def test_two_at_once_fetch_one(server, get, tmp_path):
    threads = [threading.Thread(target=get, args=(tmp_path,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    get(tmp_path)
    assert len(server.asked) == 1


def test_stopped_while_unpacking_it_is_not_taken_for_whole(get, tmp_path, monkeypatch):
    def killed(source, target):
        Path(target, "things").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "extract_archive", killed)
        with pytest.raises(KeyboardInterrupt):
            get(tmp_path)
    assert not (tmp_path / "things").exists()
    get(tmp_path)


# --- the two sets ----------------------------------------------------------------------------------

BREEDS = {"Abyssinian": "cat", "american_bulldog": "dog", "Bengal": "cat", "pug": "dog"}


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def pets(server, monkeypatch) -> None:
    """Four breeds of ten and four photographs in the layout of Oxford-IIIT Pet."""
    images, lists, seed = {}, {"trainval": [], "test": []}, 0
    for breed_id, (breed, species) in enumerate(BREEDS.items(), 1):
        for number in range(1, 15):
            split = "trainval" if number <= 10 else "test"
            images[f"images/{breed}_{number}.jpg"] = jpeg(seed)
            lists[split].append(f"{breed}_{number} {breed_id} {1 if species == 'cat' else 2} 1")
            seed += 1
    texts = {f"annotations/{split}.txt": "\n".join(lines).encode() for split, lines in lists.items()}
    for folder, files in (("images", images), ("annotations", texts)):
        server.files[f"{folder}.tar.gz"] = tar(files)
    resources = [(f"{server.address}/{name}", md5(content)) for name, content in server.files.items()]
    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", resources)


def load(name: str, root: Path, **options):
    return load_photos(name, root=root, **{"cache": None, "progress": False} | options)


def test_pets_are_cats_and_dogs(server, pets, tmp_path):
    splits = load("pets", tmp_path)
    assert splits.classes == ("cat", "dog")
    assert splits.train.images.shape == (34, 3, 64, 64)
    assert splits.validation.labels.bincount().tolist() == [3, 3]
    assert splits.test.labels.bincount().tolist() == [8, 8]
    # Labels by the names of the files, without torchvision.
    names = [f"{breed}_{n}" for ns in (range(1, 11), range(11, 15)) for breed in BREEDS for n in ns]
    for part in (splits.train, splits.validation, splits.test):
        for index, label in zip(part.index.tolist(), part.labels.tolist(), strict=True):
            assert BREEDS[names[index].rpartition("_")[0]] == splits.classes[label]


@pytest.fixture
def cifar(server, monkeypatch) -> None:
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
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in list(files)[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    content = tar({f"{CIFAR10.base_folder}/{name}": data for name, data in files.items()})
    server.files[CIFAR10.filename] = content
    monkeypatch.setattr(CIFAR10, "url", f"{server.address}/{CIFAR10.filename}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(content))


def test_cifar10_gives_its_cats_and_dogs(server, cifar, tmp_path):
    splits = load("cifar10", tmp_path, validation=0.2)
    assert splits.classes == ("cat", "dog")
    assert splits.train.images.shape == (80, 3, 32, 32)
    parts = splits.train, splits.validation, splits.test
    assert [part.labels.bincount().tolist() for part in parts] == [[40, 40], [10, 10], [10, 10]]
    for part in parts:
        # Class 3 is cat and 5 is dog in the files; pixels come as they are there.
        assert torch.equal(part.images[:, 0, 0, 0], 3 + 2 * part.labels.to(torch.uint8))
    assert torch.cat([part.index for part in parts]).sort().values.tolist() == list(range(120))
    test = CIFAR10(tmp_path, train=False)
    cats_and_dogs = [row for row, target in enumerate(test.targets) if target in (3, 5)]
    assert np.array_equal(splits.test.images.permute(0, 2, 3, 1).numpy(), test.data[cats_and_dogs])
    # Damaged, it is made whole from the archive, which is still there.
    batch = tmp_path / CIFAR10.base_folder / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1])
    assert load("cifar10", tmp_path, size=16).test.images.shape == (20, 3, 16, 16)
    assert len(server.asked) == 1


def test_a_folder_named_like_a_set_is_told_by_its_type(server, pets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder pets"):
        load(Path("pets"), tmp_path)
    assert server.asked == []


# --- the command -----------------------------------------------------------------------------------


def test_fetch_says_where_it_landed(pets, tmp_path, capsys):
    options = ["--root", str(tmp_path / "d"), "--cache", str(tmp_path / "c"), "--size", "16"]
    assert main(["fetch", "pets", *options]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "pets: 34 training, 6 validation and 16 test images, 2 classes",
        f"in {(tmp_path / 'd').resolve()}",
    ]
    assert "images.tar.gz" in err  # progress
    assert "decoding" in err
    (cache,) = (tmp_path / "c").iterdir()
    assert "-16-" in cache.name


def test_fetch_that_fails_says_what_to_do_and_no_trace(server, pets, tmp_path, capsys):
    server.status = 503
    assert main(["fetch", "pets", "--root", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"kdlib fetch: {server.address}/images.tar.gz could not be downloaded")
    assert "Traceback" not in err


def test_fetch_stopped_by_the_reader(tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(photos, "load_photos", stopped)
    assert main(["fetch", "pets", "--root", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "Stopped. Start the same command again to go on.\n"


def test_help_of_fetch_names_sets_sizes_and_licence(capsys):
    with pytest.raises(SystemExit):
        main(["fetch", "--help"])
    text = capsys.readouterr().out
    for part in ("python -m kdlib fetch", "pets", "cifar10", "CC BY-SA 4.0", "0.8 GB", "--root"):
        assert part in text
    assert all(len(line) <= 80 for line in text.splitlines())
