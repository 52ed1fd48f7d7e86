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
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdlib.cache.images import cache_teacher, open_cache
from kdlib.data import Examples
from kdlib.losses.kd import soft_target_loss
from kdlib.storage import DamagedFile, load_tensors, save_tensors
from kdlib.training import fit, predict
from kdlib.vision.loader import Augmentation, Loader
from kdlib.vision.nets import convnet

N, CLASSES = 50, 7
CROPS = Augmentation(crop=1)
SETTINGS = {"shard_rows": 16, "batch_size": 8, "device": "cpu"}  # four shards an epoch, the last of two rows


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


@pytest.mark.parametrize("held", [False, True], ids=["from files", "held"])
def test_rows_in_any_order_some_of_them_and_repeated(folder, data, held):
    teacher = Reader(CLASSES)
    expected = predict(teacher, data.images, batch_size=8)
    cached = make(folder, data, teacher)
    if held:
        cached.to("cpu")
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
    assert (len(cached), cached.epochs, cached.seed, cached.classes) == (N, 3, 5, CLASSES)
    for epoch in range(3):
        expected = one_by_one(teacher, loader, epoch=epoch, seed=5)
        torch.testing.assert_close(cached.logits(epoch, ALL), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(cached.logits(0, ALL), cached.logits(1, ALL), atol=0.1)
    with pytest.raises(ValueError, match=r"epoch must lie in 0 … 2, .* got 3\. Make a cache with more"):
        cached.logits(3, ALL)


def test_without_augmentation_one_epoch_serves_all(folder, data):
    cached = make(folder, data, seed=5)
    assert (cached.epochs, cached.seed) == (1, None)
    assert torch.equal(cached.logits(41, ALL), cached.logits(0, ALL))
    make(folder, data, seed=6)


@pytest.mark.parametrize("rows", [[-1], [50], [0, 50]])
@pytest.mark.parametrize("held", [False, True], ids=["from files", "held"])
def test_a_row_outside_the_data_is_refused(folder, data, rows, held):
    loader = Loader(data, CROPS)
    cached = make(folder, loader, epochs=2)
    cached = cached.to("cpu") if held else cached
    with pytest.raises(IndexError, match=r"rows must lie in 0 … 49"):
        cached.logits(0, torch.tensor(rows))


def test_what_is_held_is_what_the_files_say_and_needs_no_files(folder, data):
    cached = make(folder, Loader(data, Augmentation(crop=1)), epochs=2, top_k=3)
    before = cached.logits(1, ALL)
    assert cached.to("cpu") is cached
    shutil.rmtree(folder)
    assert torch.equal(cached.to("cpu").logits(1, ALL), before)


def test_too_large_for_memory_is_read_from_the_files(folder, data, monkeypatch):
    cached = make(folder, data)
    bytes_free = SimpleNamespace(available=2 * N * CLASSES * 4 - 1)
    monkeypatch.setattr("kdlib.cache.images.psutil.virtual_memory", lambda: bytes_free)
    expected = cached.to("cpu").logits(0, ALL)
    bytes_free.available += 1
    cached.to("cpu")
    shutil.rmtree(folder)
    assert torch.equal(cached.logits(0, ALL), expected)


@pytest.mark.parametrize("dtype, unit, smallest", [
    (torch.float16, 2**-11, 2**-25), (torch.bfloat16, 2**-8, 0.0), (torch.float32, 0.0, 0.0),
])
def test_rounding_stays_within_the_bound_of_the_dtype(folder, data, dtype, unit, smallest):
    teacher = Reader(40, 101)
    exact = predict(teacher, data.images, batch_size=8)
    cached = make(folder, data, teacher, dtype=dtype)
    error = (cached.logits(0, ALL) - exact).abs()
    assert cached.logits(0, ALL).dtype == torch.float32
    assert (error <= exact.abs() * unit + smallest + 1e-6).all()
    if unit:
        assert (error > exact.abs() * unit / 8).any(), "the bound says something about this dtype"
    assert cached.bytes_per_example == 40 * 101 * dtype.itemsize


def test_a_logit_beyond_float16_is_refused_not_stored_as_infinity(folder, data):
    with pytest.raises(ValueError, match=r"a logit of .* does not fit torch.float16; use dtype="):
        make(folder, data, Reader(CLASSES, scale=1e6), dtype=torch.float16)
    make(folder, data, Reader(CLASSES, scale=1e6), dtype=torch.bfloat16, overwrite=True)


class Masked(Reader):
    def __init__(self, value):
        super().__init__(CLASSES)
        self.value = value

    def forward(self, images):
        logits = super().forward(images)
        logits[:, 2] = self.value
        return logits


@pytest.mark.parametrize("mask", [-math.inf, torch.finfo(torch.float32).min], ids=["-inf", "lowest"])
@pytest.mark.parametrize("top_k", [None, 3, 6, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_class_that_is_ruled_out_keeps_probability_zero(folder, data, mask, top_k, dtype):
    cached = make(folder, data, Masked(mask), top_k=top_k, dtype=dtype)
    p = cached.logits(0, ALL).softmax(-1)
    assert p.isfinite().all()
    if top_k is None or top_k >= 6:
        assert (p[:, 2] == 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(folder, data, value):
    with pytest.raises(ValueError, match=r"logits in rows 0 to 7 of epoch 0 are not finite; look at"):
        make(folder, data, Masked(value))


# --- top-k -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes, bytes_of_index", [(256, 1), (257, 2), (65_536, 2), (65_537, 4)])
def test_top_k_against_a_sum_in_double_precision(folder, classes, bytes_of_index):
    data, k = picture_set(6), 5
    teacher = Reader(classes, scale=8.0)
    exact = predict(teacher, data.images).double()
    cached = make(folder, data, teacher, top_k=k)
    rows = torch.tensor([5, 0, 0, 3])
    indices = exact[rows].topk(k, -1).indices
    assert indices.max() >= classes // 2
    torch.testing.assert_close(
        cached.logits(0, rows).gather(-1, indices), exact[rows].gather(-1, indices).float(), rtol=1e-6,
        atol=1e-6,
    )
    assert cached.bytes_per_example == k * (4 + bytes_of_index) + 4
    for held in (cached, cached.to("cpu")):
        p, dense = exact[rows].softmax(-1), held.logits(0, rows).double().softmax(-1)
        torch.testing.assert_close(dense.gather(-1, indices), p.gather(-1, indices), rtol=1e-5, atol=1e-9)
        tail = dense.scatter(-1, indices, 0)
        torch.testing.assert_close(tail.sum(-1), 1 - p.gather(-1, indices).sum(-1), rtol=1e-5, atol=1e-7)
        even = tail.sum(-1, keepdim=True) / (classes - k)
        torch.testing.assert_close(tail, even.expand_as(tail).scatter(-1, indices, 0), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 0.2)])
def test_a_tail_far_below_rounding_keeps_its_mass(folder, dtype, bound):
    """1 − (kept mass) would be 0 in float32, or negative with rounded logits."""
    data, teacher = picture_set(8), Reader(20, scale=80.0)
    exact = predict(teacher, data.images).double()
    cached = make(folder, data, teacher, top_k=10, dtype=dtype)
    dense = cached.logits(0, torch.arange(8)).double().log_softmax(-1)
    indices = exact.topk(10, -1).indices
    both = (exact.log_softmax(-1), dense)
    tails = [log_p.scatter(-1, indices, -math.inf).logsumexp(-1) for log_p in both]
    assert (tails[0] < math.log(1e-8)).any(), "the case is the one described"
    torch.testing.assert_close(tails[1], tails[0], rtol=bound, atol=bound)


def test_the_divergence_from_all_classes_goes_to_zero(folder, data):
    teacher = Reader(9)
    exact = predict(teacher, data.images)
    apart = []
    for k in range(1, 10):
        cached = make(folder.with_name(f"{k}"), data, teacher, top_k=k)
        apart.append(soft_target_loss(cached.logits(0, ALL), exact, temperature=1.0).item())
    assert all(more < less for less, more in zip(apart[:-2], apart[1:-1], strict=True)), apart
    assert apart[0] > 0.1 and apart[-2] < 1e-9 and apart[-1] < 1e-9, apart


def test_k_is_at_most_all(folder, data):
    with pytest.raises(ValueError, match="top_k must be at most the 7 classes; got 8"):
        make(folder, data, top_k=8)


@settings(max_examples=20)
@given(st.data())
def test_any_shape_and_size_of_shards(tmp_path_factory, drawn):
    whole = st.integers
    data = picture_set(drawn.draw(whole(1, 12), "examples"))
    shape = (*drawn.draw(st.lists(whole(1, 3), max_size=2), "places"), drawn.draw(whole(2, 6), "classes"))
    top_k = drawn.draw(st.none() | whole(1, shape[-1]), "top_k")
    loader = Loader(data, Augmentation(crop=1)) if drawn.draw(st.booleans(), "augmented") else data
    epochs = drawn.draw(whole(1, 2), "epochs")
    teacher = Reader(*shape)
    folder = tmp_path_factory.mktemp("any") / "cache"
    cached = make(
        folder, loader, teacher, epochs=epochs, top_k=top_k,
        shard_rows=drawn.draw(whole(1, 15), "rows"), batch_size=drawn.draw(whole(1, 15), "batch"),
    )
    asked = drawn.draw(st.lists(whole(0, len(data) - 1), max_size=20), "asked")
    rows = torch.tensor(asked, dtype=torch.int64)
    for epoch in range(epochs):
        exact = one_by_one(teacher, loader, epoch=epoch)[rows]
        for source in (cached, open_cache(folder).to("cpu")):
            logits = source.logits(epoch, rows)
            assert logits.shape == (len(rows), *shape)
            if top_k is None:
                torch.testing.assert_close(logits, exact, rtol=1e-5, atol=1e-5)
            else:
                torch.testing.assert_close(logits.logsumexp(-1), exact.logsumexp(-1), rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(logits.amax(-1), exact.amax(-1), rtol=1e-5, atol=1e-5)
    held = sum(t.numel() * t.itemsize for path in shards_of(folder) for t in load_tensors(path)[0].values())
    assert held == cached.bytes_per_example * len(data) * epochs


def test_it_says_what_it_costs(folder, data):
    cached = make(folder, data, Reader(100, 300), top_k=4, dtype=torch.float16)
    assert str(cached) == (
        "teacher outputs of 50 examples, 1 epoch, 100 positions, top 4 of 300 classes in float16: "
        "2,000 bytes an example and epoch, 0.1 MB"
    )
    assert "50 examples, 2 epochs, 7 classes in float32: 28 bytes" in str(
        make(folder.with_name("other"), Loader(data, CROPS), epochs=2)
    )


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
    with pytest.raises(ValueError, match=r"crops of seed=3; got seed=4, .*make a cache with seed=4"):
        fit(student, loader, teacher=cached, epochs=2, lr=1e-2, seed=4, device="cpu")


def test_a_cache_of_crops_serves_its_seed_and_at_most_its_epochs(folder, data):
    loader = Loader(data, CROPS)
    cached = make(folder, loader, epochs=2, seed=3)
    cached.check(loader, seed=3, epochs=2)
    cached.check(loader, seed=3, epochs=1)
    with pytest.raises(ValueError, match=r"crops of 2 epochs; training takes 3\. Make a cache with epochs=3"):
        cached.check(loader, seed=3, epochs=3)
    with pytest.raises(ValueError, match="made from other data: .*augmentation have changed"):
        cached.check(Loader(data, Augmentation(crop=3)), seed=3, epochs=2)
    with pytest.raises(ValueError, match="made from other data"):
        cached.check(data, seed=3, epochs=2)


@pytest.mark.parametrize("plain", [lambda data: data, Loader], ids=["examples", "loader that does nothing"])
def test_clean_outputs_serve_augmented_training_of_the_same_images(folder, data, plain):
    cached = make(folder, plain(data))
    for training in (data, Loader(data), Loader(data, CROPS)):
        cached.check(training, seed=9, epochs=100)
    other = replace(data, images=data.images.flip(0))
    for training in (other, Loader(other, CROPS), data[:-1], data[torch.arange(N).roll(1)]):
        with pytest.raises(ValueError, match=r"made from other data: the images, .*overwrite=True"):
            cached.check(training, seed=9, epochs=100)


@pytest.mark.parametrize("seen", [lambda d: d, lambda d: Loader(d, CROPS)], ids=["plain", "crops"])
def test_labels_may_differ_for_the_teacher_did_not_see_them(folder, data, seen):
    cached = make(folder, seen(data))
    cached.check(seen(replace(data, labels=torch.full_like(data.labels, -100))), seed=0, epochs=1)


@pytest.mark.parametrize("count", [1, 2, 50])
def test_a_mere_flip_is_noticed_as_augmentation(tmp_path, count):
    loader = Loader(picture_set(count), Augmentation(flip=True, crop=0))
    for seed in range(5):
        assert make(tmp_path / f"{seed}", loader, seed=seed).seed == seed


def test_crops_fixed_once_for_each_seed_are_bound_to_it(folder, data):
    class Fixed(Examples):
        """The same crops in every epoch, other ones for another seed."""

        def batches(self, chunks, *, epoch=0, seed=0):
            for batch in super().batches(chunks):
                yield batch._replace(images=batch.images.roll(seed, -1))

    fixed = Fixed(data.images, data.labels, data.index)
    cached = make(folder, fixed, seed=2)
    with pytest.raises(ValueError, match="crops of seed=2; got seed=3"):
        cached.check(fixed, seed=3, epochs=1)


# --- refusals --------------------------------------------------------------------------------------


def changed_teacher():
    teacher = Reader(CLASSES)
    with torch.no_grad():
        teacher.linear.bias[3] += 1e-3
    return teacher


OTHER_CALLS = {
    "teacher": (lambda data: {"teacher": changed_teacher()}, "the teacher has changed since it was written"),
    "order": (lambda data: {"data": Loader(data[torch.arange(N).roll(1)], CROPS)}, "images, their order or"),
    "pixel": (lambda data: {"data": Loader(data[:-1], CROPS)}, "images, their order or"),
    "augmentation": (lambda data: {"data": Loader(data, Augmentation(crop=2))}, "augmentation have changed"),
    "no augmentation": (lambda data: {"data": data}, "augmentation have changed since"),
    "dtype": (lambda data: {"dtype": torch.bfloat16}, "dtype was float32, is bfloat16"),
    "top_k": (lambda data: {"top_k": 3}, "top_k was None, is 3"),
    "epochs": (lambda data: {"epochs": 3}, "epochs was 1, is 3"),
    "seed": (lambda data: {"seed": 3}, "seed was 0, is 3"),
    "shard_rows": (lambda data: {"shard_rows": 8}, "shard_rows was 16, is 8"),
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


def test_opening_compares_teacher_and_data(folder, data):
    make(folder, data)
    teacher = Reader(CLASSES)
    cached = open_cache(folder, teacher=teacher, data=Loader(data, CROPS))
    torch.testing.assert_close(cached.logits(0, ALL), predict(teacher, data.images))
    with pytest.raises(ValueError, match="the teacher has changed since the cache in .* was written; delete"):
        open_cache(folder, teacher=changed_teacher())
    with pytest.raises(ValueError, match="the images, their order .* changed since the cache in"):
        open_cache(folder, data=data[:-1])


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
    truncated: (DamagedFile, r"shard 3 \(rows 48 to 49 of epoch 0\): .* is truncated"),
    emptied: (DamagedFile, "shard 3 .* is truncated"),
    flipped: (DamagedFile, "shard 3 .* has changed since it was written"),
    deleted: (FileNotFoundError, "shard 3 .*there is no file"),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_shard_is_refused_with_its_fix_and_the_fix_works(folder, data, damage):
    kind, reason = DAMAGE[damage]
    loader = Loader(data, CROPS)
    make(folder, loader, epochs=2)
    before = contents(folder)
    damage(shards_of(folder)[3])
    with pytest.raises(kind, match=f"(?s){reason}.*call cache_teacher with the same arguments"):
        open_cache(folder).to("cpu")
    make(folder, loader, epochs=2)
    assert contents(folder) == before


@pytest.mark.parametrize("use", [lambda c: c.logits(0, ALL), lambda c: c.to("cpu")], ids=["logits", "to"])
def test_shards_are_verified_at_first_use(folder, data, use):
    make(folder, data)
    flipped(shards_of(folder)[3])
    cached = open_cache(folder)
    cached.logits(0, torch.tensor([0, 47]))
    with pytest.raises(DamagedFile, match="shard 3"):
        use(cached)


def test_only_what_is_missing_is_computed_again(folder, data):
    teacher, seen = Reader(CLASSES), []
    make(folder, data, teacher)
    deleted(shards_of(folder)[1])
    truncated(shards_of(folder)[2])
    teacher.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    make(folder, data, teacher)
    assert seen == [16, 8, 8, 2]  # first a look at the shape


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


def of_another_layout(folder):
    path = shards_of(folder)[0]
    tensors, label = load_tensors(path)
    save_tensors(path, {"logits": tensors["logits"].half()}, label)


@pytest.mark.parametrize("put", [swapped, of_another_teacher, of_another_tool, of_another_layout])
def test_a_sound_file_that_does_not_belong_is_refused_and_not_replaced(folder, data, put):
    make(folder, data)
    right = contents(folder)
    put(folder)
    before = contents(folder)
    reason = "shard 0 .*(belongs to another|not written by kdlib).*overwrite=True"
    for attempt in (lambda: open_cache(folder).to("cpu"), lambda: make(folder, data)):
        with pytest.raises(ValueError, match=reason):
            attempt()
    assert contents(folder) == before
    make(folder, data, overwrite=True)
    assert contents(folder) == right


def edited(**fields):
    def edit(path):
        held = json.loads(path.read_text())
        path.write_text(json.dumps({**held, **fields}))
    return edit


MANIFESTS = {
    "garbage": (lambda path: path.write_bytes(b"\xff{"), "manifest.json has changed since"),
    "half": (lambda path: path.write_text(path.read_text()[:100]), "manifest.json has changed since"),
    "newer": (edited(version=2), r"of version 2, this kdlib reads version 1: use the kdlib that wrote it"),
    "edited": (edited(epochs=1), "manifest.json has changed since it was written"),
    "another type": (edited(shape=3), "manifest.json has changed since it was written"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_cannot_be_trusted_is_refused(folder, data, case):
    change, reason = MANIFESTS[case]
    loader = Loader(data, CROPS)
    make(folder, loader, epochs=2)
    right = contents(folder)
    change(folder / "manifest.json")
    for attempt in (lambda: open_cache(folder), lambda: make(folder, loader, epochs=2)):
        with pytest.raises(ValueError, match=f"{reason}.*overwrite=True"):
            attempt()
    make(folder, loader, epochs=2, overwrite=True)
    assert contents(folder) == right


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name, text", [("thesis.tex", "all I have"), ("manifest.json", '{"name": "app"}')])
def test_files_of_others_are_never_touched(folder, data, name, text, overwrite):
    folder.mkdir()
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}.* choose another"):
        make(folder, data, overwrite=overwrite)
    assert contents(folder) == {name: text.encode()}


def test_overwriting_leaves_other_files_beside_a_cache(folder, data):
    make(folder, data)
    (folder / "notes.txt").write_text("mine")
    make(folder, data, top_k=2, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine" and len(shards_of(folder)) == 4


def test_no_cache_and_a_file_in_its_place(folder, data):
    with pytest.raises(FileNotFoundError, match="there is no cache in .*; make one with cache_teacher"):
        open_cache(folder)
    folder.write_text("a file")
    with pytest.raises(ValueError, match="folder must be a folder; .* is a file"):
        make(folder, data)


@pytest.mark.parametrize("argument, value, expected", [
    ("epochs", 0, "epochs must be 1 or more; got 0"),
    ("top_k", 0, "top_k must be 1 or more; got 0"),
    ("shard_rows", -1, "shard_rows must be 1 or more; got -1"),
    ("batch_size", 0, "batch_size must be 1 or more; got 0"),
    ("dtype", torch.int8, "dtype must be float32, float16 or bfloat16; got torch.int8"),
    ("dtype", torch.float64, "dtype must be float32, float16 or bfloat16; got torch.float64"),
    ("data", picture_set(0), "data holds no examples"),
    ("teacher", nn.Flatten(0), r"must return floating logits \(16, …, C\) for 16 images; got torch.float32"),
    ("teacher", nn.Unflatten(0, (2, 8)), r"got torch.float32 of shape \(2, 8, 3, 4, 4\)"),
    ("teacher", nn.GRU(4, 2), "must return floating logits .* got tuple. Wrap it"),
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
from kdlib.cache.images import cache_teacher
from kdlib.data import Examples

class Rolling(Examples):
    def batches(self, chunks, *, epoch=0, seed=0):
        for batch in super().batches(chunks):
            yield batch._replace(images=batch.images.roll(epoch + seed, -1))

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
        cache_teacher(teacher, data, argument, epochs=3, shard_rows=1, device="cpu")
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
        with pytest.raises(FileNotFoundError, match="there is no file"):
            open_cache(folder)

    writer.write(folder)
    assert contents(folder) == expected


@needs_fork
def test_two_processes_at_once_write_one_sound_cache(tmp_path, writer):
    children = [writer.begin(tmp_path / "both") for _ in range(2)]
    assert [writer.end(child) for child in children] == [0, 0]
    writer.write(tmp_path / "one")
    assert contents(tmp_path / "both") == contents(tmp_path / "one")
