"""The digits: the same images in the same three parts for every reader."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn import datasets

from kdlib.vision.digits import load_digits

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def original():
    return datasets.load_digits(return_X_y=True)


@pytest.mark.parametrize(("part", "size"), [("train", 800), ("validation", 497), ("test", 500)])
def test_each_part_has_its_size_shape_and_types(digits, part, size):
    examples = getattr(digits, part)
    assert len(examples) == size
    assert examples.images.shape == (size, 1, 8, 8)
    assert examples.labels.shape == examples.index.shape == (size,)
    assert examples.images.dtype == torch.float32
    assert examples.labels.dtype == examples.index.dtype == torch.int64


def test_the_parts_are_disjoint_and_together_hold_all_1797_images(digits):
    index = torch.cat([getattr(digits, part).index for part in PARTS])
    assert index.sort().values.tolist() == list(range(1797))


@pytest.mark.parametrize(
    ("part", "checksum"),
    [
        ("train", "b7312e93ab3d8fbf8b310f92ea662a96489200dedd6fe3c4bf3505044960c526"),
        ("validation", "9f2e6f8bef4cbe65e27276332f0ab59237af8ab9bdc8cc4083a59cf1ba560bd9"),
        ("test", "ff82afdf099458e570bac887f0ee5014f1d7608c2fc89ab773607dbd6a8824f7"),
    ],
)
def test_the_split_is_the_one_that_the_results_in_the_course_were_measured_on(
    digits, part, checksum
):
    index = getattr(digits, part).index.numpy().astype("<i8")
    assert hashlib.sha256(index.tobytes()).hexdigest() == checksum


def test_the_split_does_not_depend_on_random_state(digits):
    np.random.seed(7)
    torch.manual_seed(7)
    again = load_digits()
    for part in PARTS:
        assert torch.equal(getattr(again, part).index, getattr(digits, part).index)


@pytest.mark.parametrize("part", PARTS)
def test_images_and_labels_are_those_of_scikit_learn_at_their_index(digits, original, part):
    pixels, labels = original
    examples = getattr(digits, part)
    index = examples.index.numpy()
    np.testing.assert_array_equal(examples.labels.numpy(), labels[index])
    np.testing.assert_array_equal(examples.images.view(-1, 64).numpy() * 16, pixels[index])


@pytest.mark.parametrize("part", PARTS)
def test_every_part_fills_the_range_and_keeps_the_share_of_every_digit(digits, original, part):
    examples = getattr(digits, part)
    assert (examples.images.min().item(), examples.images.max().item()) == (0, 1)
    counts = examples.labels.bincount(minlength=10).numpy()
    expected = np.bincount(original[1]) * counts.sum() / 1797
    assert np.abs(counts - expected).max() < 1.5


def test_there_are_ten_classes_called_by_their_digits(digits):
    assert digits.classes == tuple("0123456789")
    assert str(digits) == "800 training, 497 validation and 500 test images, 10 classes"
