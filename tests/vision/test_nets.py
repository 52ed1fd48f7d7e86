"""Small networks: shapes, and what train and eval mode change."""

import pytest
import torch
from torch import nn

from kdlib.vision.nets import convnet, digit_cnn, mlp


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


# --- convnet ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 20), (33, 17)])
@pytest.mark.parametrize("settings", [{}, {"depth": 2}, {"stride": 2}, {"channels": 1, "classes": 37}])
def test_a_convnet_turns_images_of_any_size_into_logits(height, width, settings):
    images = torch.rand(3, settings.get("channels", 3), height, width)
    assert convnet([4, 6], **settings)(images).shape == (3, settings.get("classes", 2))


def test_a_convnet_has_the_widths_depth_and_stride_it_was_given():
    layers = [m for m in convnet([4, 6], depth=2, stride=2) if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in layers] == [(3, 4), (4, 4), (4, 6), (6, 6)]
    assert [m.stride for m in layers] == [(2, 2), (1, 1), (1, 1), (1, 1)]
    # Written out: 3·4·9 + 4·4·9 + 4·6·9 + 6·6·9 weights, scale and shift twice for 4 and 6, the last layer.
    assert sum(p.numel() for p in convnet([4, 6], depth=2).parameters()) == 792 + 40 + 14


def test_each_stage_but_the_first_halves_height_and_width():
    model, sizes = convnet([4, 5, 6]), []
    for module in model:
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1:]))
    model(torch.rand(2, 3, 16, 8))
    assert sizes == [(4, 16, 8), (5, 8, 4), (6, 4, 2)]


def test_pixels_is_the_side_that_pictures_are_shrunk_to():
    images = torch.rand(2, 3, 16, 16)
    torch.manual_seed(0)
    small = convnet([4, 6], pixels=8).eval()
    torch.manual_seed(0)
    plain = convnet([4, 6]).eval()
    halves = images.unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean((3, 5))
    torch.testing.assert_close(small(images), plain(halves))


def test_a_convnet_does_not_mind_the_mean_and_spread_of_the_pixels_once_it_has_seen_them():
    torch.manual_seed(0)
    one, images = convnet([4]), torch.rand(16, 3, 8, 8)
    other = convnet([4])
    other.load_state_dict(one.state_dict())
    # As large a variance as that nothing is lost to the constant that keeps the division safe.
    torch.testing.assert_close(one(images), other(images * 3 + 7), rtol=1e-2, atol=1e-3)


def test_a_convnet_scores_each_example_alone_and_drops_features_in_training_only():
    torch.manual_seed(0)
    model, images = convnet([4, 6], dropout=0.5), torch.rand(6, 3, 8, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    logits = model(images)
    torch.testing.assert_close(model(images[2:3]), logits[2:3])
    with torch.no_grad():
        assert (logits - logits.softmax(-1)).abs().max() > 0.1
