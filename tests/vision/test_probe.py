"""A linear probe on a pretrained network: against scikit-learn's own probabilities."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from kdlib.data import Examples
from kdlib.training import predict
from kdlib.vision.pretrained import Preprocess, Pretrained
from kdlib.vision.probe import STRENGTHS, Features, fit_probe

CLASSES = tuple("abcde")


def tiny(end: nn.Module | None = None) -> Pretrained:
    """Pictures enlarged to 8×8 -> 6 features -> 5 classes."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5)]
    model = nn.Sequential(*body, end or nn.Linear(6, len(CLASSES))).eval()
    return Pretrained(model, Preprocess(8, (0.5,) * 3, (0.5,) * 3), CLASSES)


def pictures(count: int, classes: int, seed: int) -> Examples:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = torch.randint(0, 160, (count, 3, 6, 6), generator=random)
    noise[torch.arange(count), labels] += 60
    return Examples(noise.to(torch.uint8), labels, torch.arange(count))


@torch.no_grad()
def features_of(images: torch.Tensor) -> torch.Tensor:
    """Written out: everything before the last layer."""
    whole = tiny()
    return whole.model[:-1](whole.preprocess(images))


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_says_what_the_best_regression_on_validation_says(tmp_path, classes):
    train, validation, test = (pictures(60, classes, seed) for seed in range(3))
    probe, strength = fit_probe(tiny(), train, validation, cache=tmp_path)
    known, held_out = (features_of(part.images).double().numpy() for part in (train, validation))
    best = {}
    for c in STRENGTHS:
        regression = LogisticRegression(C=c, max_iter=2000).fit(known, train.labels)
        said = torch.from_numpy(regression.predict_log_proba(held_out))
        best[-said[torch.arange(60), validation.labels].mean().item()] = c, regression
    expected_strength, regression = best[min(best)]
    assert strength == expected_strength
    expected = torch.from_numpy(regression.predict_proba(features_of(test.images).double().numpy())).float()
    torch.testing.assert_close(predict(probe, test.images).softmax(1), expected, rtol=1e-4, atol=1e-5)


def test_it_holds_every_weight_that_the_network_had_before_its_last_layer_and_its_own(tmp_path):
    before = sum(p.numel() for p in tiny().model[:-1].parameters())
    train = pictures(20, 2, 0)
    probe, _ = fit_probe(tiny(), train, train, cache=tmp_path)
    assert sum(p.numel() for p in probe.parameters()) == before + 2 * 6 + 2
    assert not probe.training


def test_many_pictures_are_taken_a_few_at_a_time():
    features, seen = Features(tiny()).eval(), []
    features.body.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    images = pictures(150, 2, 0).images
    with torch.no_grad():
        torch.testing.assert_close(features(images), features_of(images))
    assert seen == [64, 64, 22]


@pytest.mark.parametrize("end", [nn.Identity(), nn.Linear(6, 4)])
def test_a_network_without_a_linear_layer_of_its_classes_is_refused(end):
    with pytest.raises(ValueError, match="last linear layer has an output for each of its 5 classes"):
        Features(tiny(end))


@pytest.mark.gpu
def test_the_teacher_is_on_one_device_though_its_features_were_taken_on_another(tmp_path):
    pretrained, train = tiny(), pictures(20, 2, 0)
    probe, _ = fit_probe(pretrained, train, train, cache=tmp_path)
    assert {weight.device.type for weight in probe.parameters()} == {"cpu"}
    assert predict(probe, train.images).shape == (20, 2)
