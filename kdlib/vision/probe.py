"""A teacher for your classes out of a network that knows ImageNet's: one linear layer on its features.

    teacher = fit_probe(load_pretrained("efficientnet-lite0"), photos.train, photos.validation)
    logits = predict(teacher, photos.test.images)
"""

import os
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib.cache.images import cache_teacher
from kdlib.data import Examples
from kdlib.vision.pretrained import Pretrained

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # of which the probe takes the best: 1 / strength of its L2 penalty


class Features(nn.Module):
    """A pretrained network without its last layer: pictures (N, 3, H, W) -> (N, features) float32."""

    def __init__(self, pretrained: Pretrained) -> None:
        super().__init__()
        last = [name for name, module in pretrained.model.named_modules() if isinstance(module, nn.Linear)]
        classifier = pretrained.model.get_submodule(last[-1]) if last else None
        if classifier is None or classifier.out_features != len(pretrained.classes):
            raise ValueError(
                f"expected a network whose last linear layer has an output for each of its "
                f"{len(pretrained.classes)} classes, for the probe takes its place; "
                f"{type(pretrained.model).__name__} has none"
            )
        pretrained.model.set_submodule(last[-1], nn.Identity())
        self.preprocess, self.body = pretrained.preprocess, pretrained.model

    def forward(self, images: Tensor) -> Tensor:
        # A few at a time: enlarged to 224 pixels, a thousand pictures would take gigabytes.
        return torch.cat([self.body(self.preprocess(part)) for part in images.split(64)])


class Probe(nn.Module):
    """A teacher: pictures (N, 3, H, W), floats in [0, 1] -> logits of your classes (N, C)."""

    def __init__(self, features: Features, linear: nn.Linear) -> None:
        super().__init__()
        self.features, self.linear = features, linear

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.features(images))


def fit_probe(
    pretrained: Pretrained, train: Examples, validation: Examples, *,
    cache: str | os.PathLike, progress: bool = False,
) -> tuple[Probe, float]:
    """The network's features under a logistic regression, which is fitted in seconds (scikit-learn's).

    Its penalty is the one of `STRENGTHS` with the lowest log-loss on `validation`. The pretrained network is
    changed: its last layer is taken out.

    Args:
        pretrained: of `load_pretrained`.
        train, validation: labelled pictures uint8 (N, 3, H, W), C classes.
        cache: folder for the features of both, 4 bytes a number; made where it is not.

    Returns:
        The teacher, in eval mode and on the CPU, and the strength that was chosen.

    Raises:
        ValueError: a network without a linear layer at its end, or one class alone.

    Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes",
    arXiv 1610.01644.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    features = Features(pretrained).eval()
    columns = [
        cache_teacher(features, part, os.path.join(cache, name), batch_size=64, progress=progress)
        .whole("logits")[0].double()
        for name, part in (("train", train), ("validation", validation))
    ]  # fmt: skip
    classes = int(train.labels.max()) + 1
    best = None
    for strength in STRENGTHS:
        regression = LogisticRegression(C=strength, max_iter=2000)
        with warnings.catch_warnings():  # near its end is near enough: the best on validation is taken
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.fit(columns[0].numpy(), train.labels.cpu().numpy())
        linear = _linear(torch.from_numpy(regression.coef_), torch.from_numpy(regression.intercept_), classes)
        loss = F.cross_entropy(linear(columns[1].float()), validation.labels.cpu()).item()
        if best is None or loss < best[0]:
            best = loss, strength, linear
    return Probe(features.cpu(), best[2]).eval(), best[1]


@torch.no_grad()
def _linear(weight: Tensor, bias: Tensor, classes: int) -> nn.Linear:
    """Of two classes scikit-learn has one row of weights, for the second: half for it, half against it."""
    if len(weight) == 1:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    if len(weight) != classes:
        raise ValueError(f"expected pictures of each of {classes} classes; found {len(weight)}")
    linear = nn.Linear(weight.shape[1], classes)
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    return linear.requires_grad_(False)
