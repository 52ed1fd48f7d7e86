"""Labelled images and their three parts."""

import pytest
import torch

from kdlib.splits import Examples, Splits


@pytest.fixture
def examples():
    return Examples(torch.rand(6, 1, 2, 2), torch.arange(6) % 3, torch.arange(100, 106))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(1, 3), [101, 102]),
        ([5, 0], [105, 100]),
        (torch.tensor([2, 2]), [102, 102]),
        (torch.tensor([True, False, False, True, False, False]), [100, 103]),
    ],
)
def test_rows_are_chosen_together(examples, rows, expected):
    chosen = examples[rows]
    positions = torch.tensor(expected) - 100
    assert len(chosen) == len(expected)
    assert chosen.index.tolist() == expected
    assert torch.equal(chosen.images, examples.images[positions])
    assert torch.equal(chosen.labels, examples.labels[positions])


def test_examples_move_to_a_device_together(examples):
    moved = examples.to("meta")
    assert {moved.images.device.type, moved.labels.device.type, moved.index.device.type} == {"meta"}


@pytest.mark.parametrize(
    ("short", "named"), [("images", "5 images"), ("labels", "5 labels"), ("index", "5 indices")]
)
def test_parts_of_different_length_are_refused(examples, short, named):
    fields = {"images": examples.images, "labels": examples.labels, "index": examples.index}
    fields[short] = fields[short][:5]
    with pytest.raises(ValueError, match=f"one label and one index.*{named}"):
        Examples(**fields)


def test_splits_print_their_sizes(examples):
    splits = Splits(examples, examples[:2], examples[:1], ("a", "b", "c"))
    assert str(splits) == "6 training, 2 validation and 1 test images, 3 classes"
