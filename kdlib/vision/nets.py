"""Networks small enough to train in seconds."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(hidden: Sequence[int], *, inputs: int = 64, classes: int = 10) -> nn.Sequential:
    """Fully connected network with ReLU: (N, …) with `inputs` numbers an example -> logits (N, classes).

    `hidden` holds the width of each hidden layer; empty for logistic regression.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([inputs, *hidden, classes]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def digit_cnn(width: int = 16, *, classes: int = 10, dropout: float = 0.3) -> nn.Sequential:
    """Two convolutions and two linear layers for 8×8 images: (N, 1, 8, 8) -> logits (N, classes)."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 4 * width), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(4 * width, classes),
    )


def convnet(
    widths: Sequence[int], *, depth: int = 1, stride: int = 1, channels: int = 3, classes: int = 2,
    dropout: float = 0.0, pixels: int | None = None,
) -> nn.Sequential:  # fmt: skip
    """Plain convolutional network: (N, channels, H, W) in [0, 1] -> logits (N, classes), any H and W.

    Each stage is `depth` times convolution, batch normalisation and ReLU; height and width are halved
    between stages, and the mean over what is left, after dropout, goes to one linear layer. A normalisation
    without weights comes first, so that the network learns mean and spread of the pixels by itself.

    `widths` are the channels of each stage. A `stride` of 2 in the first convolution makes everything four
    times cheaper, for larger pictures; `pixels` is the side to which pictures are shrunk at first.
    """
    layers: list[nn.Module] = [nn.BatchNorm2d(channels, affine=False)]
    if pixels:
        layers.insert(0, nn.AdaptiveAvgPool2d(pixels))
    before = channels
    for stage, width in enumerate(widths):
        if stage:
            layers.append(nn.MaxPool2d(2))
        for _ in range(depth):
            convolution = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            before, stride = width, 1
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(before, classes)]
    return nn.Sequential(*layers, *head)
