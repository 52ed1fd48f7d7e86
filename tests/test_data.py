"""Labelled images and their three parts."""

import pytest
import torch

from kdlib.data import Batch, Examples, Splits, as_float


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


# --- as training data ------------------------------------------------------------------------------


def test_bytes_become_floats_between_0_and_1_and_floats_stay_the_very_same():
    values = as_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx([0.0, 0.2, 1.0])
    floats = torch.rand(3)
    assert as_float(floats) is floats


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_each_chunk_of_rows_gives_its_batch_whatever_the_epoch(dtype):
    images = torch.randint(0, 2, (6, 1, 2, 2)).to(dtype)
    examples = Examples(images, torch.tensor([0, 1, -100, 2, 1, 0]), torch.arange(6))
    chunks = [torch.tensor([4, 0]), torch.tensor([2, 2, 5])]
    for settings in ({}, {"epoch": 3, "seed": 8}):
        batches = list(examples.batches(chunks, **settings))
        assert [type(batch) for batch in batches] == [Batch, Batch]
        for rows, batch in zip(chunks, batches, strict=True):
            assert torch.equal(batch.rows, rows)
            assert torch.equal(batch.images, as_float(images)[rows])
            assert batch.images.dtype == torch.float32
            assert torch.equal(batch.labels, examples.labels[rows])


def test_batches_are_made_one_at_a_time(examples):
    def chunks():
        yield torch.tensor([1])
        raise AssertionError("nobody has asked for a second batch")

    assert next(examples.batches(chunks())).rows.tolist() == [1]


def test_a_fingerprint_does_not_change_with_what_does_not_reach_the_model(examples):
    other = Examples(examples.images.clone(), examples.labels.clone(), examples.index + 1)
    assert other.fingerprint() == examples.fingerprint()
    assert other.inputs_fingerprint() == examples.inputs_fingerprint() != examples.fingerprint()


def test_a_fingerprint_tells_bytes_from_floats_and_one_shape_from_another():
    labels, index = torch.zeros(2, dtype=torch.int64), torch.arange(2)
    kinds = [torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 3, 2), torch.zeros(2, 1, 2, 3, dtype=torch.uint8)]
    assert len({Examples(images, labels, index).fingerprint() for images in kinds}) == 3
