"""Training on a torch DataLoader: as on Examples, resumed exactly, refused where its order is lost."""

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from kdlib.data import Examples
from kdlib.training import evaluate, fit, predict

SETTINGS = {"epochs": 3, "lr": 1e-2, "device": "cpu", "seed": 0}


def examples(count=22, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 3, 3, generator=generator)
    return Examples(images, torch.randint(0, 3, (count,), generator=generator), torch.arange(count))


def dataset(data=None):
    data = data or examples()
    return TensorDataset(data.images, data.labels)


class Noisy(TensorDataset):
    """Images that look different each time."""

    def __getitem__(self, row):
        image, label = super().__getitem__(row)
        return image + 0.1 * torch.randn_like(image), label


def network(seed=0, dropout=0.3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def trained(data, student=None, **changed):
    student = student or network()
    history = fit(student, data, **{**SETTINGS, **changed})
    return student.state_dict(), history


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


class OrderOfExamples(Sampler):
    """The batches of 5 that `fit` draws from Examples with seed 0, epoch after epoch."""

    def __init__(self):
        self.generator_of_examples = torch.Generator().manual_seed(0)

    def __len__(self):
        return 5

    def __iter__(self):
        rows = torch.randperm(22, generator=self.generator_of_examples)
        return iter([chunk.tolist() for chunk in rows.split(5)])


# --- as on Examples --------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", [None, network(1)], ids=["plain", "distilled"])
def test_in_the_same_order_it_gives_the_same_weights_and_history_bit_for_bit(teacher):
    validation = examples(9, 1)
    settings = {"teacher": teacher, "validation": validation, "watch": {"again": _loss}}
    expected, history = trained(examples(), batch_size=5, **settings)
    loader = DataLoader(dataset(), batch_sampler=OrderOfExamples())
    found, other = trained(loader, **settings)
    assert same(found, expected)
    assert (other.loss, other.watched, other.steps) == (history.loss, history.watched, history.steps)
    assert [s.nll for s in other.validation] == [s.nll for s in history.validation]


def _loss(student_logits, teacher_logits, labels):
    return nn.functional.cross_entropy(student_logits, labels)


def test_bytes_are_images_and_validation_may_be_a_loader():
    data = examples()
    data = Examples((255 * data.images).to(torch.uint8), data.labels, data.index)
    loader = DataLoader(dataset(data), batch_size=22)
    (_, history), (_, other) = (
        trained(data, validation=data, batch_size=22, student=network(dropout=0.0)) for data in (loader, data)
    )
    assert history.loss == pytest.approx(other.loss, rel=1e-5)
    assert history.validation[-1].nll == pytest.approx(other.validation[-1].nll, rel=1e-5)


def test_evaluate_and_predict_take_a_loader():
    model, data = network(), examples()
    loader = DataLoader(dataset(data), batch_size=5)
    scores, expected = evaluate(model, loader), evaluate(model, data)
    assert torch.equal(scores.correct, expected.correct) and scores.nll == pytest.approx(expected.nll)
    torch.testing.assert_close(predict(model, loader), predict(model, data.images))
    torch.testing.assert_close(predict(model, DataLoader(data.images, 5)), predict(model, data.images))


def test_the_progress_bar_counts_the_batches_of_the_loader(capsys):
    trained(DataLoader(dataset(), batch_size=4), progress=True)
    assert "/18" in capsys.readouterr().err


# --- order and resumption --------------------------------------------------------------------------


LOADERS = {
    "in order": lambda: DataLoader(dataset(), batch_size=5),
    "shuffled": lambda: DataLoader(dataset(), batch_size=5, shuffle=True),
    "shuffled by a generator": lambda: DataLoader(
        dataset(), batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(9)
    ),
    "weighted": lambda: DataLoader(
        dataset(), batch_size=5, sampler=WeightedRandomSampler(torch.ones(22), 22)
    ),
    "batches drawn": lambda: DataLoader(
        dataset(), batch_sampler=BatchSampler(RandomSampler(dataset()), 5, drop_last=True)
    ),
    "augmented": lambda: DataLoader(Noisy(*dataset().tensors), batch_size=5, shuffle=True),
    "augmented by workers": lambda: DataLoader(
        Noisy(*dataset().tensors), batch_size=5, shuffle=True, num_workers=1
    ),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_stopped_and_resumed_run_ends_as_an_undisturbed_one(tmp_path, kind):
    steps = 0

    def stopping(student_logits, teacher_logits, labels):
        nonlocal steps
        steps += 1
        if steps == 8:
            raise KeyboardInterrupt
        return _loss(student_logits, teacher_logits, labels)

    settings = {"teacher": network(1), "loss": stopping, "checkpoint_every": 3}
    with pytest.raises(KeyboardInterrupt):
        trained(LOADERS[kind](), checkpoint=tmp_path / "run", **settings)
    torch.rand(5)  # whatever was drawn in between
    found, history = trained(LOADERS[kind](), checkpoint=tmp_path / "run", **settings)
    expected, undisturbed = trained(LOADERS[kind](), teacher=network(1), loss=_loss)
    assert same(found, expected)
    assert history == undisturbed


def test_the_seed_fixes_the_order_and_each_epoch_has_its_own():
    marked = TensorDataset(examples().images, torch.arange(22) % 3, torch.arange(22))
    orders = []

    class Recorded(TensorDataset):
        def __getitem__(self, row):
            orders[-1].append(row)
            return super().__getitem__(row)[:2]

    for seed in (0, 0, 1):
        orders.append([])
        trained(DataLoader(Recorded(*marked.tensors), batch_size=5, shuffle=True), seed=seed)
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][:22] != orders[0][22:44]
    assert sorted(orders[0][:22]) == list(range(22))


# --- refusals --------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return zip(*dataset().tensors, strict=True)


class StreamOf22(Stream):
    def __len__(self):
        return 22


def test_a_loader_without_a_length_is_refused_and_one_with_a_length_trains():
    with pytest.raises(ValueError, match="DataLoader without a length.*expected a dataset with __len__"):
        trained(DataLoader(Stream(), batch_size=5))
    assert trained(DataLoader(StreamOf22(), batch_size=5))[1].steps == 15


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        (lambda: DataLoader(dataset(), batch_sampler=OrderOfExamples()), "OrderOfExamples has no generator"),
        (lambda: DataLoader(StreamOf22(), batch_size=5), "its IterableDataset decides on the order"),
        (
            lambda: DataLoader(dataset(), batch_size=5, num_workers=1, persistent_workers=True),
            "persistent_workers carry their random numbers",
        ),
    ],
)
def test_an_order_that_no_seed_brings_back_is_refused_with_a_checkpoint(tmp_path, loader, reason):
    with pytest.raises(ValueError, match=f"whose order follows from a seed: .*{reason}.*Expected shuffle="):
        trained(loader(), checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "other",
    [
        lambda: DataLoader(dataset(), batch_size=4),
        lambda: DataLoader(dataset(examples(21)), batch_size=5),
        lambda: DataLoader(dataset(examples(seed=1)), batch_size=5),
        lambda: DataLoader(dataset(), batch_size=5, shuffle=True),
    ],
)
def test_a_checkpoint_of_other_data_is_refused(tmp_path, other):
    trained(LOADERS["in order"](), checkpoint=tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match="belongs to another run: data was"):
        trained(other(), checkpoint=tmp_path / "run", epochs=1)


def test_logits_for_each_row_are_refused_since_a_loader_does_not_tell_rows():
    with pytest.raises(ValueError, match="teacher is a float32 tensor.*Give the teacher as a module"):
        trained(LOADERS["in order"](), teacher=torch.zeros(22, 3))


def test_batches_that_are_not_images_and_labels_are_refused():
    three = TensorDataset(*dataset().tensors, torch.arange(22))
    with pytest.raises(ValueError, match=r"expected batches \(images, labels\), two tensors"):
        trained(DataLoader(three, batch_size=5))
