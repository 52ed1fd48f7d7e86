"""A student of a network's first stages: what it keeps is the network's, and as many stages as fit."""

import pytest
import torch
from torch import nn
from torchvision import models

from kdlib.vision.pretrained import Preprocess, Pretrained
from kdlib.vision.prune import prune_stages


def of_torchvision(name: str) -> Pretrained:
    torch.manual_seed(0)
    model = models.get_model(name, weights=None).eval()
    return Pretrained(model, Preprocess(64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ("class",) * 1000)


def size_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_its_stages_say_what_those_of_the_network_say():
    """ResNet-18 by hand: everything up to the first block of its second stage."""
    pretrained = of_torchvision("resnet18")
    net, images = pretrained.model, torch.rand(2, 3, 90, 70)
    student = prune_stages(pretrained, share=0.06, size=48, classes=3).eval()
    with torch.no_grad():
        found = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(student[0](images))))))
        found = net.layer2(found) if size_of(student) > 400_000 else found
        expected = student[-1](found.mean((2, 3)))
        torch.testing.assert_close(student(images), expected)
    assert expected.shape == (2, 3) and student[0].size == 48


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "squeezenet1_0"])
def test_it_has_as_many_stages_as_fit_into_the_share(name):
    pretrained = of_torchvision(name)
    whole = size_of(pretrained.model)
    sizes = [size_of(prune_stages(pretrained, share=share, size=32, classes=2)) for share in (0.05, 0.1, 0.5)]
    for size, share in zip(sizes, (0.05, 0.1, 0.5), strict=True):
        assert size <= share * whole + 2 * 1280 + 2  # the new layer counts for nothing
    assert sizes[0] < sizes[2]


def test_a_share_of_all_ends_before_the_last_layer():
    pretrained = of_torchvision("resnet18")
    net, images = pretrained.model, torch.rand(2, 3, 64, 64)
    student = prune_stages(pretrained, share=1.0, size=64, classes=1000).eval()
    student[-1].load_state_dict(net.fc.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(student(images), net(student[0](images)))


def test_it_shares_no_weight_with_the_network_which_stays_as_it_is():
    pretrained = of_torchvision("mobilenet_v3_small")
    before = {name: tensor.clone() for name, tensor in pretrained.model.state_dict().items()}
    student = prune_stages(pretrained, share=0.1, size=32, classes=2).train()
    student(torch.rand(4, 3, 32, 32)).sum().backward()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1
    after = pretrained.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not pretrained.model.training


class Crossed(nn.Module):
    """Its second stage does not see what its first one says."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.end = nn.Linear(3, 2000)

    def forward(self, images):
        return self.end((self.one(images) + self.two(images)).mean((2, 3)))


def test_what_cannot_be_cut_is_refused():
    crossed = Pretrained(Crossed().eval(), Preprocess(16, (0.5,) * 3, (0.5,) * 3), ("class",) * 2000)
    with pytest.raises(ValueError, match="stages of Crossed do not follow one another"):
        prune_stages(crossed, share=0.5, size=16, classes=2)
    with pytest.raises(ValueError, match="fewer than the first stage has"):
        prune_stages(of_torchvision("resnet18"), share=1e-5, size=16, classes=2)
