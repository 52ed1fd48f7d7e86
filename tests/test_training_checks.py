"""What fit, predict and evaluate refuse: each mistake with the smallest input, named with its value."""

import copy
import math
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlib.data import Examples, Splits
from kdlib.losses.kd import kd_loss
from kdlib.metrics import score
from kdlib.training import evaluate, fit, out_of_fold, predict
from kdlib.vision.loader import Augmentation, Loader


def pictures(labels=(0, 1, 2, 0, 1, 2)):
    labels = torch.as_tensor(labels)
    return Examples(torch.rand(len(labels), 1, 3, 3), labels, torch.arange(len(labels)))


def network(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, classes))


def train(student=None, data=None, **changed):
    settings = {"epochs": 1, "lr": 0.01, "seed": 0, "batch_size": 4, "device": "cpu", **changed}
    return fit(network() if student is None else student, pictures() if data is None else data, **settings)


@pytest.mark.parametrize(("name", "values", "expected"), [
    ("epochs", [0, -1, 1.5, 2.0, "3", True, None], "a whole number, at least 1"),
    ("batch_size", [0, 2.5, math.inf], "a whole number, at least 1"),
    ("checkpoint_every", [0, 1.5, "1"], "a whole number, at least 1"),
    ("seed", ["a", 1.5, None, math.nan], "a whole number"), ("seed", [2**63], "a whole number of 64 bits"),
    ("lr", [0, -0.1, math.inf, math.nan, "0.1", None], "a finite number above 0"),
    ("weight_decay", [-1e-4, math.nan, math.inf], "a finite number, at least 0"),
    ("clip", [0, -1, math.nan, math.inf], "a finite number above 0"),
])  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(name, values, expected):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} is .*; expected {expected}$"):
            train(**{name: value})


def test_numbers_of_numpy_are_numbers(tmp_path):
    whole = {"epochs": np.int64(1), "seed": np.int64(0), "batch_size": np.int32(4)}
    for _ in range(2):
        train(**whole, lr=np.float32(0.01), checkpoint=tmp_path / "run")


@pytest.mark.parametrize(("changed", "message"), [
    ({"student": "resnet18"}, "student is 'resnet18'; expected a torch.nn.Module"),
    ({"student": nn.Flatten()}, "student has no weight that learns"),
    ({"student": network().requires_grad_(False)}, "student has no weight that learns"),
    ({"teacher": "resnet50"}, r"teacher is 'resnet50'; expected .*load_pretrained\('resnet50'\).model"),
    ({"teacher": [[0.0] * 3] * 6}, "teacher is a list; expected a module, its logits"),
    ({"teacher": torch.zeros(6, 3).long()}, r"teacher is a int64 tensor of shape \(6, 3\); expected logits"),
    ({"teacher": torch.zeros(6)}, r"shape \(6,\); expected logits \(6, C\)"),
    ({"teacher": torch.tensor([[0.0, 0, 0]] * 5 + [[0, math.nan, 0]])}, "teacher holds NaN or inf in row 5"),
    ({"teacher": torch.zeros(6, 4)}, "student_logits has shape .* but teacher_logits has"),
    ({"loss": "kd"}, r"loss is 'kd'; expected a function \(student logits"),
    ({"watch": [kd_loss]}, "watch is a list; expected functions by name"),
    ({"watch": {"more": 3}}, r"watch\['more'\] is 3; expected a function"),
    ({"loss": lambda s, t, y: F.cross_entropy(s, y, reduction="none")}, r"loss returns is .*\(4,\).*mean"),
    ({"loss": lambda s, t, y: 0.5}, "what loss returns is 0.5; expected a scalar tensor"),
    ({"loss": lambda s, t, y: torch.tensor(0.5)}, "what loss returns has no gradient"),
    ({"watch": {"more": lambda s, t, y: s}}, r"what more returns is .*expected a scalar"),
    ({"validation": pictures()[:0]}, "validation holds 0 examples"),
    ({"validation": "test"}, "validation is 'test'; expected"),
    ({"device": "cuda:99"}, "device is 'cuda:99', on which PyTorch cannot compute here .*one of cpu"),
    ({"device": "gpu"}, "device is 'gpu'"),
    ({"device": 1.5}, "device is 1.5"),
    ({"precision": "fp16"}, 'precision must be "auto", "no" or "bf16"'),
])  # fmt: skip
def test_arguments_of_another_kind_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        train(**changed)


class Pair(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.weight, self.output = nn.Parameter(torch.zeros(3)), output

    def forward(self, images):
        return self.output(self.weight.expand(len(images), 3))


@pytest.mark.parametrize(("output", "message"), [
    (lambda z: (z, z), r"student gives for a batch of images is a tuple; expected logits \(N, C\), a tensor"),
    (lambda z: type("Out", (OrderedDict,), {"logits": z})(), "of a model of transformers take .logits"),
    (lambda z: z[:, 0], r"float32 tensor of shape \(4,\); expected logits"),
])  # fmt: skip
def test_a_model_that_gives_no_logits_is_refused(output, message):
    with pytest.raises(ValueError, match=message):
        train(Pair(output))
    with pytest.raises(ValueError, match=message.replace("student", "model").replace("4", "6")):
        evaluate(Pair(output), pictures())


X, Y = torch.rand(6, 1, 3, 3), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(("data", "message"), [
    ((X, Y), r"data is a tuple; expected images and labels as Examples\(images, labels, torch.arange"),
    (X, "data is a float32 tensor .*expected a torch DataLoader"),
    (None, "data is None; expected a torch DataLoader"),
    ("digits", "data is 'digits'"),
    (TensorDataset(X, Y), r"data is a TensorDataset; expected torch.*DataLoader\(data, batch_size=50"),
    (Splits(pictures(), pictures(), pictures(), ("a", "b")), "data is a Splits; expected .*data.train"),
    (pictures()[:0], "data holds 0 examples; expected at least one"),
    (DataLoader(TensorDataset(X, Y[:, None])), "one class index for each image; one-hot"),
    (DataLoader(TensorDataset(X, Y.float())), r"batches is .*float32.*labels.long\(\)"),
])  # fmt: skip
def test_what_near_data_is_refused_with_what_to_write(data, message):
    for use in (lambda: fit(network(), data, epochs=1, lr=0.1, seed=0, device="cpu"),
                lambda: evaluate(network(), data)):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize(("columns", "message"), [
    ((X, Y.float(), Y), r"labels is a float32 tensor of shape \(6,\); expected class indices.*labels.long"),
    ((X, Y > 0, Y), "labels is a bool tensor"),
    ((X, F.one_hot(Y), Y), r"labels.argmax\(-1\)"),
    ((X.numpy(), Y, Y), "images is a ndarray; expected a tensor, as torch.as_tensor"),
    ((X, Y.tolist(), Y), "labels is a list"),
    ((X.long(), Y, Y), "images is a int64 tensor .*expected float32"),
])  # fmt: skip
def test_examples_of_another_kind_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        Examples(*columns)


@pytest.mark.parametrize("kind", ["examples", "loader", "torch"])
@pytest.mark.parametrize("teacher", [None, network(3)], ids=["alone", "taught"])
@pytest.mark.parametrize(("labels", "message"), [
    ([0, 1, 2, 0, 1, 7], "labels holds 7; expected 0 to 2"), ([0, 1, 2, 0, 1, -1], "labels holds -1"),
])  # fmt: skip
def test_labels_that_are_no_class_are_refused(kind, teacher, labels, message):
    data = pictures(labels)
    if kind == "loader":
        data = Loader(data, Augmentation(crop=1))
    if kind == "torch":
        data = DataLoader(TensorDataset(data.images, data.labels), batch_size=4)
    with pytest.raises(ValueError, match=message):
        train(data=data, teacher=teacher)
    with pytest.raises(ValueError, match=message.split(";")[0]):
        evaluate(network(), pictures(labels))


@pytest.mark.parametrize("teacher", [None, network(3)], ids=["alone", "taught"])
def test_labels_that_are_all_left_out_teach_nothing(teacher):
    with pytest.raises(ValueError, match="labels are all -100, which the loss leaves out; .*alpha=0"):
        train(data=pictures([-100] * 6), teacher=teacher)
    with pytest.raises(ValueError, match="Only labelled examples are scored"):
        evaluate(network(), pictures([0, 1, 2, 0, 1, -100]))


def test_a_loss_of_ones_own_may_read_labels_as_it_likes():
    far = pictures([70, 80, 90, 70, 80, 90])
    train(data=far, loss=lambda s, t, y: (s.mean(1) - y).square().mean())
    train(data=pictures([-1, 0, 1, 2, 0, 1]), loss=partial(kd_loss, ignore_index=-1), teacher=network())
    train(data=pictures([-100, 0, 1, 2, 0, 1]))
    with pytest.raises(FloatingPointError, match="a batch without labels"):
        train(data=pictures([-100, 0, -100, -100, -100, -100]), batch_size=1)


def test_integer_labels_of_any_width_are_trained_on():
    for dtype in (torch.int32, torch.uint8):
        data = Examples(X, Y.to(dtype), Y)
        assert train(data=data).loss == train(data=Examples(X, Y, Y)).loss


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16], ids=str)
def test_labels_of_few_bits_are_not_taken_for_those_left_out(dtype):
    labels = torch.full((12,), 156)  # -100 in eight bits
    images, few = torch.randn(12, 4), labels.to(dtype)
    model = nn.Linear(4, 256)
    z = model(images)
    assert kd_loss(z, z.flip(0), few) == kd_loss(z, z.flip(0), labels) > 0
    assert score(z, few).nll == score(z, labels).nll
    runs = [
        fit(copy.deepcopy(model), Examples(images, y, labels), teacher=z, loss=kd_loss, epochs=2, lr=0.1,
            batch_size=6, seed=0, device="cpu") for y in (labels, few)
    ]  # fmt: skip
    assert runs[0].loss == runs[1].loss


@pytest.mark.parametrize(("images", "message"), [
    (pictures(), "images is an Examples; expected images.images"),
    (X.numpy(), "images is a ndarray; expected a tensor"),
    (X[:0], "images is empty"),
])  # fmt: skip
def test_predict_says_what_it_shows(images, message):
    with pytest.raises(ValueError, match=message):
        predict(network(), images)
    with pytest.raises(ValueError, match="batch_size is 0; expected a whole number"):
        predict(network(), X, 0)
    with pytest.raises(ValueError, match="model is a function"):
        predict(lambda x: x, X)


def test_a_picture_of_nan_is_not_scored():
    spoilt = pictures()
    spoilt.images[4] = math.nan
    with pytest.raises(ValueError, match="logits holds NaN in row 4; .*Look for NaN in that example"):
        evaluate(network(), spoilt)


def test_a_class_of_one_example_has_no_soft_label_out_of_fold():
    settings = {"epochs": 1, "lr": 0.1, "device": "cpu"}
    with pytest.raises(ValueError, match="class 2 has 1 of the 5 examples; expected two or more"):
        out_of_fold(network, pictures([0, 0, 1, 1, 2]), folds=2, **settings)
    with pytest.raises(ValueError, match="folds is 2.5; expected a whole number, at least 2"):
        out_of_fold(network, pictures(), folds=2.5, **settings)
