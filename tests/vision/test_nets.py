"""Small networks: shapes, and what train and eval mode change."""

import pytest
import torch
from torch import nn

from kdlib.vision.nets import digit_cnn, mlp


@pytest.mark.parametrize("hidden", [[], [8], (32, 16)])
def test_an_mlp_turns_images_into_logits(hidden):
    assert mlp(hidden)(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    assert mlp(hidden, inputs=12, classes=3)(torch.zeros(5, 3, 2, 2)).shape == (5, 3)


def test_an_mlp_has_the_widths_it_was_given_and_a_relu_between_them():
    kinds = [type(layer) for layer in mlp([32, 16])]
    assert kinds == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [layer.out_features for layer in mlp([32, 16]) if isinstance(layer, nn.Linear)] == [
        32, 16, 10,
    ]  # fmt: skip


def test_an_mlp_without_hidden_layers_is_linear_in_the_pixels():
    model, (a, b) = mlp([]), torch.rand(2, 1, 64)
    bias = model(torch.zeros(1, 64))
    torch.testing.assert_close(model(a + b) - bias, (model(a) - bias) + (model(b) - bias))


@pytest.mark.parametrize("width", [4, 16])
def test_the_digit_cnn_turns_images_into_logits(width):
    assert digit_cnn(width)(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    assert digit_cnn(width, classes=3)(torch.zeros(5, 1, 8, 8)).shape == (5, 3)


def test_dropout_makes_training_random_and_eval_repeatable():
    torch.manual_seed(0)
    model, images = digit_cnn(8, dropout=0.5), torch.rand(4, 1, 8, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_without_dropout_both_modes_give_the_same_logits():
    model, images = digit_cnn(8, dropout=0.0), torch.rand(4, 1, 8, 8)
    assert torch.equal(model(images), model.eval()(images))


@pytest.mark.parametrize("build", [lambda: mlp([8]), lambda: digit_cnn(4)], ids=["mlp", "cnn"])
def test_the_output_is_logits_and_each_example_is_scored_alone(build):
    torch.manual_seed(0)
    model, images = build().eval(), torch.rand(6, 1, 8, 8)
    logits = model(images)
    assert (logits < 0).any()
    assert not torch.allclose(logits.sum(-1), torch.ones(6))
    torch.testing.assert_close(model(images[2:3]), logits[2:3])
