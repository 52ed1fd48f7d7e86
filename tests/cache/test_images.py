"""The teacher cache: what comes back, what it stands for, what it refuses, and who may be killed."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from kdlib.cache import shards
from kdlib.cache.images import CachedTeacher, cache_teacher
from kdlib.data import Examples
from kdlib.storage import DamagedFile, load_tensors
from kdlib.training import fit, predict
from kdlib.vision.loader import Augmentation, Loader
from kdlib.vision.nets import convnet

N, CLASSES = 50, 7
CROPS = Augmentation(crop=1)
SETTINGS = {"batch_size": 8, "device": "cpu"}


class Reader(nn.Module):
    """Images -> logits of any shape, with all that behaves differently in training."""

    def __init__(self, *shape, inputs=48, scale=5.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.shape, self.scale = shape, scale
        self.norm, self.drop = nn.BatchNorm1d(inputs), nn.Dropout(0.5)
        self.linear = nn.Linear(inputs, math.prod(shape))

    def forward(self, images):
        return self.scale * self.linear(self.drop(self.norm(images.flatten(1)))).view(-1, *self.shape)


def picture_set(count=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return Examples(images, torch.arange(count) % CLASSES, torch.arange(count))


@pytest.fixture
def data():
    return picture_set()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Four an epoch, the last of two rows."""
    monkeypatch.setattr(CachedTeacher, "SHARD_ROWS", 16)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def make(folder, data, teacher=None, **changed):
    return cache_teacher(teacher or Reader(CLASSES), data, folder, **{**SETTINGS, **changed})


def shards_of(folder):
    return sorted(folder.glob("*.safetensors"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def one_by_one(teacher, data, *, epoch=0, seed=0):
    """The teacher in eval mode on one picture at a time."""
    teacher.eval()
    with torch.no_grad():
        batches = data.batches(torch.arange(len(data)).split(1), epoch=epoch, seed=seed)
        return torch.cat([teacher(batch.images) for batch in batches])


ALL = torch.arange(N)


# --- what comes back -------------------------------------------------------------------------------


def test_rows_in_any_order_some_of_them_and_repeated(folder, data):
    teacher = Reader(CLASSES)
    expected = predict(teacher, data.images, batch_size=8)
    cached = make(folder, data, teacher)
    for rows in ([0], [49], [3, 3, 40, 3], [17, 2, 49, 16, 15], list(range(49, -1, -1)), []):
        rows = torch.tensor(rows, dtype=torch.int64)
        logits = cached.logits(0, rows)
        assert logits.dtype == torch.float32 and logits.device == rows.device
        torch.testing.assert_close(logits, expected[rows], rtol=1e-5, atol=1e-6)


def test_a_row_does_not_depend_on_its_batch(folder, data):
    teacher = Reader(CLASSES)
    cached = make(folder, data, teacher, batch_size=13)
    torch.testing.assert_close(cached.logits(0, ALL), one_by_one(teacher, data), rtol=1e-5, atol=1e-6)


def test_the_teacher_is_left_in_the_mode_and_with_the_statistics_it_had(folder, data):
    teacher = Reader(CLASSES).train()
    teacher.drop.eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    make(folder, data, teacher)
    assert teacher.training and teacher.norm.training and not teacher.drop.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_each_epoch_holds_the_crops_that_training_will_show(folder, data):
    teacher, loader = Reader(CLASSES), Loader(data, Augmentation(crop=2, cutout=2))
    cached = make(folder, loader, teacher, epochs=3, seed=5)
    assert (len(cached), cached.manifest["epochs"], cached.manifest["seed"]) == (N, 3, 5)
    for epoch in range(3):
        expected = one_by_one(teacher, loader, epoch=epoch, seed=5)
        torch.testing.assert_close(cached.logits(epoch, ALL), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(cached.logits(0, ALL), cached.logits(1, ALL), atol=0.1)
    with pytest.raises(ValueError, match=r"epoch must lie in 0 … 2, .* got 3\. Make a cache with more"):
        cached.logits(3, ALL)


def test_without_augmentation_one_epoch_serves_all(folder, data):
    cached = make(folder, data, seed=5, epochs=3)
    assert (cached.manifest["epochs"], cached.manifest["seed"]) == (1, None)
    assert torch.equal(cached.logits(41, ALL), cached.logits(0, ALL))
    make(folder, data, seed=6)


def test_a_number_of_views_is_looked_at_once_for_every_seed_and_any_number_of_epochs(folder, data):
    teacher, loader = Reader(CLASSES), Loader(data, Augmentation(crop=2, views=3))
    cached = make(folder, loader, teacher, epochs=50, seed=5)
    assert (cached.manifest["epochs"], cached.manifest["seed"]) == (3, None)
    for epoch, seed in ((0, 0), (1, 0), (2, 8), (3, 8), (7, 1)):
        cached.check(loader, seed=seed, epochs=epoch + 1)
        expected = one_by_one(teacher, loader, epoch=epoch, seed=seed)
        torch.testing.assert_close(cached.logits(epoch, ALL), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(cached.logits(0, ALL), cached.logits(1, ALL), atol=0.1)
    for other in (Loader(data, Augmentation(crop=2, views=4)), Loader(data, CROPS), data):
        with pytest.raises(ValueError, match="data was"):
            cached.check(other, seed=0, epochs=1)


@pytest.mark.parametrize("rows", [[-1], [50], [0, 50]])
def test_a_row_outside_the_data_is_refused(folder, data, rows):
    cached = make(folder, Loader(data, CROPS), epochs=2)
    with pytest.raises(IndexError, match=r"rows must lie in 0 … 49"):
        cached.logits(0, torch.tensor(rows))


def test_what_a_gpu_would_hold_is_what_the_files_say(folder, data):
    cached = make(folder, Loader(data, CROPS), epochs=2)
    whole = cached.whole("logits")
    assert whole.shape == (2, N, CLASSES)
    assert all(torch.equal(whole[epoch], cached.logits(epoch, ALL)) for epoch in range(2))


class Masked(Reader):
    def __init__(self, value):
        super().__init__(CLASSES)
        self.value = value

    def forward(self, images):
        logits = super().forward(images)
        logits[:, 2] = self.value
        return logits


@pytest.mark.parametrize("mask", [-math.inf, torch.finfo(torch.float32).min], ids=["-inf", "lowest"])
def test_a_class_that_is_ruled_out_keeps_probability_zero(folder, data, mask):
    p = make(folder, data, Masked(mask)).logits(0, ALL).softmax(-1)
    assert p.isfinite().all() and (p[:, 2] == 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(folder, data, value):
    with pytest.raises(ValueError, match=r"logits in rows 0 to 0 of epoch 0 are not finite; look at"):
        make(folder, data, Masked(value))


@settings(max_examples=20)
@given(st.data())
def test_any_shape_and_size_of_shards(tmp_path_factory, drawn):
    whole = st.integers
    data = picture_set(drawn.draw(whole(1, 12), "examples"))
    shape = (*drawn.draw(st.lists(whole(1, 3), max_size=2), "places"), drawn.draw(whole(2, 6), "classes"))
    loader = Loader(data, Augmentation(crop=1)) if drawn.draw(st.booleans(), "augmented") else data
    epochs = drawn.draw(whole(1, 2), "epochs")
    teacher = Reader(*shape)
    folder = tmp_path_factory.mktemp("any") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedTeacher, "SHARD_ROWS", drawn.draw(whole(1, 15), "rows"))
        batch_size = drawn.draw(whole(1, 15), "batch")
        cached = make(folder, loader, teacher, epochs=epochs, batch_size=batch_size)
    asked = drawn.draw(st.lists(whole(0, len(data) - 1), max_size=20), "asked")
    rows = torch.tensor(asked, dtype=torch.int64)
    for epoch in range(epochs):
        logits = cached.logits(epoch, rows)
        assert logits.shape == (len(rows), *shape)
        exact = one_by_one(teacher, loader, epoch=epoch)[rows]
        torch.testing.assert_close(logits, exact, rtol=1e-5, atol=1e-5)
    held = sum(t.numel() * t.itemsize for path in shards_of(folder) for t in load_tensors(path)[0].values())
    assert held == cached.bytes_per_example * len(data) * cached.manifest["epochs"]


def test_it_says_what_it_costs(folder, data):
    assert str(make(folder, Loader(data, CROPS), Reader(1000), epochs=2)) == (
        "teacher outputs of 50 examples, 2 epochs, 1,000 classes in float32: 4,000 bytes an example and "
        "epoch, 0.4 MB"
    )
    assert "50 examples, 1 epoch, 7 classes" in str(make(folder.with_name("other"), data))


# --- which training it belongs to ------------------------------------------------------------------


def test_fit_trains_from_it_as_from_the_teacher(folder, data):
    """The same crops, so the same student but for the rounding of other batch sizes."""
    teacher, loader = Reader(CLASSES, scale=1.0), Loader(data, Augmentation(crop=1))
    students = []
    for source in (teacher, make(folder, loader, teacher, epochs=2, seed=3)):
        torch.manual_seed(0)
        student = convnet([4], classes=CLASSES)
        fit(student, loader, teacher=source, epochs=2, lr=1e-2, batch_size=8, seed=3, device="cpu")
        students.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    torch.testing.assert_close(*students, rtol=1e-3, atol=1e-4)


def test_fit_asks_it_whether_it_belongs(folder, data):
    loader = Loader(data, CROPS)
    cached = make(folder, loader, epochs=2, seed=3)
    student = convnet([4], classes=CLASSES)
    with pytest.raises(ValueError, match="not belong to this run: seed was 3, is 4. Make them anew with"):
        fit(student, loader, teacher=cached, epochs=2, lr=1e-2, seed=4, device="cpu")


def test_a_cache_of_crops_serves_its_seed_and_at_most_its_epochs(folder, data):
    loader = Loader(data, CROPS)
    cached = make(folder, loader, epochs=2, seed=3)
    cached.check(loader, seed=3, epochs=2)
    cached.check(loader, seed=3, epochs=1)
    with pytest.raises(ValueError, match="epochs was 2, is 3.*without augmentation serve every seed"):
        cached.check(loader, seed=3, epochs=3)
    with pytest.raises(ValueError, match="do not belong to this run: data was"):
        cached.check(Loader(data, Augmentation(crop=3)), seed=3, epochs=2)
    with pytest.raises(ValueError, match="data was"):
        cached.check(data, seed=3, epochs=2)


@pytest.mark.parametrize("plain", [lambda data: data, Loader], ids=["examples", "loader that does nothing"])
def test_clean_outputs_serve_augmented_training_of_the_same_images(folder, data, plain):
    cached = make(folder, plain(data))
    for training in (data, Loader(data), Loader(data, CROPS)):
        cached.check(training, seed=9, epochs=100)
    other = replace(data, images=data.images.flip(0))
    for training in (other, Loader(other, CROPS), data[:-1], data[torch.arange(N).roll(1)]):
        with pytest.raises(ValueError, match="data was .*overwrite=True"):
            cached.check(training, seed=9, epochs=100)


@pytest.mark.parametrize("seen", [lambda d: d, lambda d: Loader(d, CROPS)], ids=["plain", "crops"])
def test_labels_may_differ_for_the_teacher_did_not_see_them(folder, data, seen):
    cached = make(folder, seen(data))
    cached.check(seen(replace(data, labels=torch.full_like(data.labels, -100))), seed=0, epochs=1)


@pytest.mark.parametrize("count", [1, 2, 50])
def test_a_mere_flip_is_noticed_as_augmentation(tmp_path, count):
    loader = Loader(picture_set(count), Augmentation(flip=True, crop=0))
    for seed in range(5):
        assert make(tmp_path / f"{seed}", loader, seed=seed).manifest["seed"] == seed


def test_crops_fixed_once_for_each_seed_are_bound_to_it(folder, data):
    class Fixed(Examples):
        """The same crops in every epoch, other ones for another seed."""

        def batches(self, chunks, *, epoch=0, seed=0):
            for batch in super().batches(chunks):
                yield batch._replace(images=batch.images.roll(seed, -1))

        def inputs_fingerprint(self):
            return "fixed"

    fixed = Fixed(data.images, data.labels, data.index)
    cached = make(folder, fixed, seed=2)
    with pytest.raises(ValueError, match="seed was 2, is 3"):
        cached.check(fixed, seed=3, epochs=1)


# --- refusals --------------------------------------------------------------------------------------


def changed_teacher():
    teacher = Reader(CLASSES)
    with torch.no_grad():
        teacher.linear.bias[3] += 1e-3
    return teacher


OTHER_CALLS = {
    "teacher": (lambda data: {"teacher": changed_teacher()}, "teacher was"),
    "order": (lambda data: {"data": Loader(data[torch.arange(N).roll(1)], CROPS)}, "data was"),
    "pixel": (lambda data: {"data": Loader(data[:-1], CROPS)}, "rows was 50, is 49"),
    "augmentation": (lambda data: {"data": Loader(data, Augmentation(crop=2))}, "data was"),
    "no augmentation": (lambda data: {"data": data}, "seed was 0, is None"),
    "epochs": (lambda data: {"epochs": 3}, "epochs was 1, is 3"),
    "seed": (lambda data: {"seed": 3}, "seed was 0, is 3"),
}


@pytest.mark.parametrize("case", OTHER_CALLS)
def test_another_cache_is_refused_and_left_alone(folder, data, case):
    other, reason = OTHER_CALLS[case]
    arguments = {"data": Loader(data, CROPS), **other(data)}
    make(folder, Loader(data, CROPS))
    before = contents(folder)
    with pytest.raises(ValueError, match=f"holds another cache: .*{reason}.*or pass overwrite=True"):
        make(folder, **arguments)
    assert contents(folder) == before
    new = make(folder, **arguments, overwrite=True)
    fresh = make(folder.with_name("fresh"), **arguments)
    assert new.fingerprint == fresh.fingerprint and contents(folder) == contents(fresh.folder)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def emptied(path):
    path.write_bytes(b"")


def deleted(path):
    path.unlink()


DAMAGE = {
    truncated: (DamagedFile, "is truncated"),
    emptied: (DamagedFile, "is truncated"),
    flipped: (DamagedFile, "has changed since it was written"),
    deleted: (FileNotFoundError, "0001-0000000032"),
}


def opened(folder):
    """The cache as a process finds it that has read nothing yet."""
    return CachedTeacher(folder, json.loads((folder / "manifest.json").read_text()))


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_shard_is_refused_with_its_fix_and_the_fix_works(folder, data, damage):
    kind, reason = DAMAGE[damage]
    loader = Loader(data, CROPS)
    make(folder, loader, epochs=2)
    before = contents(folder)
    damage(shards_of(folder)[6])
    cached = opened(folder)
    cached.logits(1, torch.tensor([0, 49]))
    for use in (lambda: cached.logits(1, ALL), lambda: cached.whole("logits")):
        with pytest.raises(kind, match=f"(?s){reason}.*call cache_teacher with the same arguments"):
            use()
    make(folder, loader, epochs=2)
    assert contents(folder) == before


def test_only_what_is_missing_is_computed_again(folder, data):
    teacher, seen = Reader(CLASSES), []
    make(folder, data, teacher)
    deleted(shards_of(folder)[1])
    truncated(shards_of(folder)[2])
    teacher.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    make(folder, data, teacher)
    assert seen == [1, 8, 8, 2]  # first a look at the shape


def swapped(folder):
    first, second, *_ = shards_of(folder)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def of_another_teacher(folder):
    other = make(folder.with_name("other"), picture_set(), changed_teacher())
    shutil.copy(shards_of(other.folder)[0], shards_of(folder)[0])


def of_another_tool(folder):
    from safetensors.torch import save_file

    save_file({"logits": torch.zeros(16, CLASSES)}, shards_of(folder)[0])


@pytest.mark.parametrize("put", [swapped, of_another_teacher, of_another_tool])
def test_a_sound_file_that_does_not_belong_is_not_read_and_made_again(folder, data, put):
    make(folder, data)
    right = contents(folder)
    put(folder)
    with pytest.raises(ValueError, match="(belongs to another|not written by kdlib).*call cache_teacher"):
        opened(folder).logits(0, ALL)
    make(folder, data)
    assert contents(folder) == right


@pytest.mark.parametrize("text", [b"\xff{", b'{"maker": "cache_tea', b"[]"])
def test_a_damaged_manifest_is_refused_and_left_alone(folder, data, text):
    make(folder, data)
    (folder / "manifest.json").write_bytes(text)
    before = contents(folder)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="was not written by cache_teacher, or has changed"):
            make(folder, data, overwrite=overwrite)
    assert contents(folder) == before


def test_an_edited_manifest_fits_no_call_and_none_of_its_files(folder, data):
    make(folder, Loader(data, CROPS))
    held = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**held, "seed": 9}))
    with pytest.raises(ValueError, match="seed was 9, is 0"):
        make(folder, Loader(data, CROPS))
    with pytest.raises(DamagedFile, match="belongs to another cache"):
        opened(folder).logits(0, ALL)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name, text", [("thesis.tex", "all I have"), ("manifest.json", '{"name": "app"}')])
def test_files_of_others_are_never_touched(folder, data, name, text, overwrite):
    folder.mkdir()
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}.* choose another"):
        make(folder, data, overwrite=overwrite)
    assert contents(folder) == {name: text.encode()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_place_of_the_folder_is_refused_and_left_alone(folder, data, overwrite):
    folder.write_text("a file")
    with pytest.raises(FileExistsError, match=str(folder)):
        make(folder, data, overwrite=overwrite)
    assert folder.read_text() == "a file"


def test_overwriting_leaves_other_files_beside_a_cache(folder, data):
    make(folder, data)
    (folder / "notes.txt").write_text("mine")
    make(folder, data[:-1], overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine" and len(shards_of(folder)) == 4


@pytest.mark.parametrize("argument, value, expected", [
    ("epochs", 0, "epochs is 0; expected a whole number, at least 1"),
    ("batch_size", 0, "batch_size is 0; expected a whole number, at least 1"),
    ("data", picture_set(0), "data is empty"),
    ("data", DataLoader([1]), "data is a DataLoader; expected Examples"),
    ("teacher", nn.Flatten(0), r"must return logits \(1, …, C\) for 1 images; got \(48,\)"),
    ("teacher", nn.GRU(4, 2), "must return logits .* got tuple. Wrap it"),
])
def test_bad_arguments_are_named_and_leave_no_folder(folder, data, argument, value, expected):
    if isinstance(value, nn.GRU):
        data = replace(data, images=data.images[:, 0])
    with pytest.raises(ValueError, match=expected):
        make(folder, **{"data": data, argument: value})
    assert not folder.exists()


# --- killed, and not alone -------------------------------------------------------------------------


WRITER = """
import os, sys, torch
from kdlib.cache import shards
from kdlib.cache.images import CachedTeacher, cache_teacher
from kdlib.data import Examples

class Rolling(Examples):
    def batches(self, chunks, *, epoch=0, seed=0):
        for batch in super().batches(chunks):
            yield batch._replace(images=batch.images.roll(epoch + seed, -1))

    def inputs_fingerprint(self):
        return "rolling"

CachedTeacher.SHARD_ROWS = 1
torch.set_num_threads(1)
torch.manual_seed(0)
data = Rolling(torch.rand(50, 1, 4, 4), torch.zeros(50).long(), torch.arange(50))
teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 7))
for line in sys.stdin:
    command, argument = line.split()
    if command == "end":
        print(os.waitpid(int(argument), 0)[1], flush=True)
        continue
    child = os.fork()
    if not child:
        cache_teacher(teacher, data, argument, epochs=3, device="cpu")
        os._exit(0)
    print(child, flush=True)
"""


class Writer:
    """Its children write 150 shards, one row each; torch is imported once, not for each of them."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, command, argument):
        self.process.stdin.write(f"{command} {argument}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def begin(self, folder):
        """Number of the process that has begun."""
        return self._ask("begin", folder)

    def end(self, child):
        """0 if it came to an end by itself, else the signal."""
        return self._ask("end", child)

    def write(self, folder):
        assert self.end(self.begin(folder)) == 0


@pytest.fixture(scope="module", autouse=True)  # from the first test on, so that its imports take no time
def writer():
    if not hasattr(os, "fork"):
        yield None
        return
    writer = Writer()
    yield writer
    writer.process.communicate()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork: nothing is killed")


@needs_fork
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(tmp_path, writer):
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    writer.write(undisturbed)
    expected, moments = contents(undisturbed), random.Random(0)
    assert len(expected) == 151

    for kills in range(10):
        target = kills * 13 + moments.randrange(1, 12)
        child = writer.begin(folder)
        deadline = time.monotonic() + 30
        while len(shards_of(folder)) < target:
            assert time.monotonic() < deadline, "the writer makes no progress"
            time.sleep(1e-4)
        time.sleep(moments.random() * 1e-3)
        os.kill(child, signal.SIGKILL)
        assert writer.end(child) == signal.SIGKILL, "killed in the middle"
        there = {name: content for name, content in contents(folder).items() if not name.startswith(".")}
        assert there.items() <= expected.items(), "what has a name is whole"
        assert target < len(there) < len(expected)

    writer.write(folder)
    assert contents(folder) == expected


@needs_fork
def test_two_processes_at_once_write_one_sound_cache(tmp_path, writer):
    children = [writer.begin(tmp_path / "both") for _ in range(2)]
    assert [writer.end(child) for child in children] == [0, 0]
    writer.write(tmp_path / "one")
    assert contents(tmp_path / "both") == contents(tmp_path / "one")


def test_a_folder_that_another_writer_has_just_claimed_is_shared(folder, data, monkeypatch):
    read, manifest = shards.read_manifest, folder / "manifest.json"

    def read_then_be_overtaken(*where):
        held, deadline = read(*where), time.monotonic() + 0.3
        while held is None and not manifest.exists() and time.monotonic() < deadline:
            time.sleep(1e-3)  # the other may write its manifest, where nothing keeps it from that
        return held

    monkeypatch.setattr(shards, "read_manifest", read_then_be_overtaken)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(data.images.shape[1:]), 3))
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda _: make(folder, data, teacher), range(2))
    assert torch.equal(first.whole("logits"), second.whole("logits"))
