"""Networks small enough to train in seconds."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(hidden: Sequence[int], *, inputs: int = 64, classes: int = 10) -> nn.Sequential:
    """Fully connected network with ReLU: (N, …) with `inputs` numbers an example -> logits (N, classes).

    Args:
        hidden: width of each hidden layer; empty for logistic regression.
    """
    widths = [inputs, *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def digit_cnn(width: int = 16, *, classes: int = 10, dropout: float = 0.3) -> nn.Sequential:
    """Two convolutions and two linear layers for 8×8 images: (N, 1, 8, 8) -> logits (N, classes).

    Dropout makes it behave differently in train and eval mode, as larger teachers do.
    """
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 4 * width), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(4 * width, classes),
    )
