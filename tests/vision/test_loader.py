"""The loader: crops against torchvision one image at a time, and what depends on what."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as v2

from kdlib.data import Examples
from kdlib.vision.loader import Augmentation, Loader

STRONG = Augmentation(flip=True, crop=4, cutout=5)
SIZE = 12


def pictures(count=9, height=SIZE, width=SIZE, channels=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)
    return Examples(images, torch.arange(count) % 2, torch.arange(100, 100 + count))


def one_batch(loader, rows=None, **settings):
    rows = torch.arange(len(loader)) if rows is None else torch.as_tensor(rows)
    (batch,) = loader.batches([rows], **settings)
    return batch


def by_torchvision(image, drawn, augmentation):
    """What a row of draws does to one image, step by step."""
    height, width = image.shape[-2:]
    down, right, mirrored, cut_y, cut_x, _ = drawn.tolist()
    reach = augmentation.crop
    padded = v2.pad(image, [reach], padding_mode="reflect") if reach else image
    crop = v2.crop(padded, reach + down, reach + right, height, width)
    crop = v2.horizontal_flip(crop) if mirrored else crop
    if side := augmentation.cutout:
        top, left = cut_y - side // 2, cut_x - side // 2
        bottom, last = min(top + side, height), min(left + side, width)
        top, left = max(top, 0), max(left, 0)
        crop = v2.erase(crop, top, left, bottom - top, last - left, torch.tensor(128, dtype=torch.uint8))
    return crop.float() / 255


# --- the pixels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "augmentation",
    [
        STRONG,
        Augmentation(),
        Augmentation(flip=False, crop=0, cutout=1),
        Augmentation(flip=False, crop=7, cutout=4),
        Augmentation(flip=True, crop=0, cutout=20),  # larger than the picture
    ],
)
@pytest.mark.parametrize(("height", "width", "channels"), [(12, 12, 3), (8, 11, 1)])
def test_crops_are_those_of_torchvision(augmentation, height, width, channels):
    examples = pictures(40, height, width, channels)
    drawn = augmentation.draw(40, height, width, epoch=3, seed=5)
    batch = one_batch(Loader(examples, augmentation), epoch=3, seed=5)
    for image, row, found in zip(examples.images, drawn, batch.images, strict=True):
        assert torch.equal(found, by_torchvision(image, row, augmentation))


@pytest.mark.parametrize("mirrored", [0, 1])
def test_a_zoomed_crop_is_the_middle_enlarged_as_torchvision_does(monkeypatch, mirrored):
    """Half of each side, shifted by 1 down and 2 to the left."""
    row = torch.tensor([1, -2, mirrored, 0, 0, 500])
    monkeypatch.setattr(Augmentation, "draw", lambda self, count, *size, **how: row.expand(count, 6))
    examples = pictures(5, 12, 16)
    batch = one_batch(Loader(examples, Augmentation(crop=2, zoom=0.5)))
    for image, found in zip(examples.images, batch.images, strict=True):
        middle = v2.crop(image, 3 + 1, 4 - 2, 6, 8)
        expected = v2.resize(middle, [12, 16], v2.InterpolationMode.NEAREST_EXACT)
        expected = v2.horizontal_flip(expected) if mirrored else expected
        assert torch.equal(found, expected.float() / 255)


def test_the_largest_shift_reflects_the_whole_picture():
    examples = pictures(60, 5, 5)
    augmentation = Augmentation(flip=False, crop=4)
    drawn = augmentation.draw(60, 5, 5, epoch=0, seed=0)
    assert drawn[:, :2].abs().max() == 4
    batch = one_batch(Loader(examples, augmentation))
    for image, row, found in zip(examples.images, drawn, batch.images, strict=True):
        assert torch.equal(found, by_torchvision(image, row, augmentation))


def test_without_augmentation_the_images_come_as_they_are():
    examples = pictures()
    batch = one_batch(Loader(examples), epoch=4, seed=1)
    assert torch.equal(batch.images, examples.images.float() / 255)
    assert torch.equal(batch.labels, examples.labels)
    assert torch.equal(batch.rows, torch.arange(9))


def test_bytes_and_floats_give_the_same_crops():
    examples = pictures()
    floats = Examples(examples.images.float() / 255, examples.labels, examples.index)
    found, expected = (one_batch(Loader(e, STRONG), epoch=1) for e in (floats, examples))
    assert found.images.dtype == expected.images.dtype == torch.float32
    assert torch.equal(found.images, expected.images)


def test_batches_are_channels_last():
    images = one_batch(Loader(pictures(), STRONG)).images
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not images.is_contiguous()


def test_the_data_are_not_changed_by_what_is_drawn_over_them():
    examples = pictures()
    before, loader = examples.images.clone(), Loader(examples, STRONG)
    list(loader.batches(torch.arange(9).split(4)))
    assert torch.equal(examples.images, before)
    assert torch.equal(loader.examples.images, before)


# --- what a crop depends on ------------------------------------------------------------------------


def test_a_crop_is_the_same_whatever_batch_it_is_in():
    loader = Loader(pictures(), STRONG)
    whole = one_batch(loader, epoch=2, seed=7).images
    order = torch.tensor([5, 0, 8, 3, 1, 7, 2, 6, 4])
    for size in (1, 2, 9):
        for batch in loader.batches(order.split(size), epoch=2, seed=7):
            assert torch.equal(batch.images, whole[batch.rows])
            assert torch.equal(batch.labels, loader.examples.labels[batch.rows])
    assert torch.equal(one_batch(loader, [3, 3], epoch=2, seed=7).images, whole[[3, 3]])


def test_a_crop_changes_with_epoch_seed_and_row():
    same = Examples(pictures(1).images.expand(9, -1, -1, -1), torch.zeros(9).long(), torch.arange(9))
    loader = Loader(same, STRONG)
    first = one_batch(loader, epoch=0, seed=0).images
    assert len(first.unique(dim=0)) > 6
    for settings in ({"epoch": 1, "seed": 0}, {"epoch": 0, "seed": 1}):
        assert not torch.equal(one_batch(loader, **settings).images, first)
    assert torch.equal(one_batch(loader, epoch=0, seed=0).images, first)


def test_epoch_1_of_seed_0_is_not_epoch_0_of_seed_1():
    first, second = (STRONG.draw(50, 9, 9, epoch=e, seed=s) for e, s in ((1, 0), (0, 1)))
    assert not torch.equal(first, second)


def test_drawing_leaves_the_random_numbers_outside_alone():
    state = torch.get_rng_state()
    one_batch(Loader(pictures(), STRONG))
    assert torch.equal(torch.get_rng_state(), state)


# --- the draws -------------------------------------------------------------------------------------


def within(count, total, share, deviations=5):
    """Whether a count can come from a binomial distribution."""
    return abs(count - total * share) <= deviations * math.sqrt(total * share * (1 - share))


def test_half_are_mirrored_and_every_shift_and_place_is_as_frequent_as_the_others():
    count = 20_000
    drawn = Augmentation(crop=3, cutout=2).draw(count, 8, 11, epoch=0, seed=0)
    assert within(drawn[:, 2].sum().item(), count, 0.5)
    assert drawn[:, 2].unique().tolist() == [0, 1]
    for column, low, high in ((0, -3, 3), (1, -3, 3), (3, 0, 7), (4, 0, 10)):
        values, counts = drawn[:, column].unique(return_counts=True)
        assert values.tolist() == list(range(low, high + 1))
        assert all(within(n, count, 1 / len(values)) for n in counts.tolist())


def test_draws_are_independent_across_columns_rows_epochs_and_seeds():
    count = 20_000
    first, later, other = (
        Augmentation(crop=3, cutout=2, zoom=0.5).draw(count, 8, 8, epoch=e, seed=s).double()
        for e, s in ((0, 0), (1, 0), (0, 1))
    )
    everything = torch.cat([first, first.roll(1, dims=0), later, other], dim=1)
    correlation = torch.corrcoef(everything.T).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(count)


def test_every_zoom_is_as_frequent_as_the_others():
    side = Augmentation(zoom=0.996).draw(20_000, 8, 8, epoch=0, seed=0)[:, 5]
    values, counts = side.unique(return_counts=True)
    assert values.tolist() == [996, 997, 998, 999, 1000]
    assert all(within(n, 20_000, 1 / 5) for n in counts.tolist())


def test_a_number_of_views_comes_again_for_every_seed():
    views = Augmentation(crop=2, cutout=3, zoom=0.5, views=3)
    drawn = [views.draw(30, 8, 8, epoch=epoch, seed=seed) for epoch, seed in
             ((0, 0), (1, 0), (2, 0), (3, 0), (7, 5), (2, 9))]  # fmt: skip
    assert torch.equal(drawn[0], drawn[3]) and torch.equal(drawn[1], drawn[4])
    assert torch.equal(drawn[2], drawn[5])
    assert not any(torch.equal(a, b) for a, b in ((drawn[0], drawn[1]), (drawn[1], drawn[2])))
    assert [Loader(pictures(), a).views for a in (None, STRONG, views)] == [1, 0, 3]


def test_without_flip_nothing_is_mirrored_and_without_crop_nothing_moves():
    drawn = Augmentation(flip=False, crop=0).draw(500, 8, 8, epoch=0, seed=0)
    assert not drawn[:, :3].any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"crop": -1}, "got -1 and 0"), ({"crop": 8}, "0 … 7, below the images' 8×9 pixels.*got 8 and 0"),
     ({"cutout": -2}, "cutout be 0 or more; got 4 and -2"), ({"zoom": 0}, "zoom is a share.* got 0 and 0"),
     ({"zoom": 1.1}, "got 1.1 and 0"), ({"views": -1}, "got 1.0 and -1")],
)  # fmt: skip
def test_negative_pixels_and_crops_that_could_not_be_reflected_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        Loader(pictures(2, 8, 9), Augmentation(**changed))


# --- devices and fingerprints ----------------------------------------------------------------------


def test_moving_a_loader_moves_what_it_gives():
    loader = Loader(pictures(), STRONG).to("meta")
    assert loader.augmentation == STRONG
    assert {loader.examples.labels.device.type, loader.examples.images.device.type} == {"meta"}


def changed_examples(examples):
    """The same set with one thing changed: what, and whether the images or their order changed with it."""
    images, labels, index = examples.images, examples.labels, examples.index
    pixel = images.clone()
    pixel[4, 1, 2, 3] ^= 1
    label = labels.clone()
    label[4] = 1 - label[4]
    order = torch.tensor([1, 0, *range(2, len(labels))])
    return [
        ("pixel", Examples(pixel, labels, index), True),
        ("label", Examples(images, label, index), False),
        ("order", Examples(images[order], labels[order], index), True),
        ("fewer", examples[:-1], True),
    ]


@pytest.mark.parametrize("make", [lambda e: e, lambda e: Loader(e, STRONG)], ids=["examples", "loader"])
def test_a_fingerprint_changes_with_images_labels_and_order(make):
    original = make(pictures())
    for what, changed, inputs_too in changed_examples(pictures()):
        assert make(changed).fingerprint() != original.fingerprint(), what
        differs = make(changed).inputs_fingerprint() != original.inputs_fingerprint()
        assert differs == inputs_too, what


def test_a_fingerprint_does_not_change_with_memory_order_or_a_move():
    examples = pictures()
    images = examples.images.contiguous(memory_format=torch.channels_last)
    same = [Examples(images, examples.labels, examples.index), examples.to("cpu"), Loader(examples).examples]
    for other in same:
        assert other.fingerprint() == examples.fingerprint()
        assert Loader(other, STRONG).fingerprint() == Loader(examples, STRONG).fingerprint()
        assert Loader(other).inputs_fingerprint() == Loader(examples).inputs_fingerprint()
    assert Loader(examples, STRONG).to("cpu").fingerprint() == Loader(examples, STRONG).fingerprint()


@pytest.mark.parametrize("which", ["fingerprint", "inputs_fingerprint"])
def test_a_fingerprint_changes_with_every_part_of_the_augmentation(which):
    examples = pictures()
    kinds = [None, STRONG, Augmentation(False, 4, 5), Augmentation(True, 3, 5), Augmentation(True, 4, 4)]
    held = {getattr(Loader(examples, kind), which)() for kind in kinds}
    assert len(held) == len(kinds)


@pytest.mark.parametrize(("changed", "message"), [
    ({"crop": 1.5}, "crop is 1.5; expected a whole"), ({"views": True}, "views is True; expected a whole"),
    ({"cutout": "4"}, "cutout is '4'; expected a whole"), ({"zoom": None}, "zoom is None; expected a finite"),
])  # fmt: skip
def test_fractions_of_pixels_are_refused(changed, message):
    pixels = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=message):
        Loader(Examples(pixels, torch.zeros(2).long(), torch.arange(2)), Augmentation(**changed))
