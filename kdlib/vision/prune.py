"""A student made of a network's first stages, as `kdlib.language.models.prune` makes one of its blocks.

    student = prune_stages(load_pretrained("efficientnet-lite0"), share=0.1, size=96, classes=2)

The early stages of a network that knows ImageNet see edges, textures and parts of things, whatever its
classes are (Yosinski et al. 2014, "How transferable are features in deep neural networks?", arXiv 1411.1792).
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kdlib.vision.pretrained import Preprocess, Pretrained


@torch.no_grad()
def prune_stages(pretrained: Pretrained, *, share: float, size: int, classes: int) -> nn.Sequential:
    """A copy of the first stages that have at most a `share` of all parameters, under a new linear layer.

    Pictures (N, 3, H, W), floats in [0, 1] -> logits (N, classes). The linear layer's first weights are drawn
    from torch's random numbers.

    Args:
        pretrained: of `load_pretrained`: a convolutional network whose stages follow one another, as those of
            EfficientNet, MobileNet, ResNet or VGG do. It stays as it is.
        size: side in pixels to which pictures are scaled first; smaller is faster.

    Raises:
        ValueError: not even the first stage is so small; or the stages are not applied one after the other.
    """
    model, preprocess = pretrained.model, pretrained.preprocess
    device = next(model.parameters()).device
    picture = torch.rand(1, 3, preprocess.size, preprocess.size, generator=torch.Generator().manual_seed(0))
    picture = picture.to(device)
    limit, kept, found = share * _parameters(model), [], picture
    for stage in _stages(model):
        if isinstance(stage, nn.Linear | nn.Dropout):  # the stages have come to their end
            break
        if _parameters(*kept, stage) > limit or (after := stage(found)).dim() != 4:
            break
        kept.append(stage)
        found = after
    if not kept:
        raise ValueError(f"share={share} is {limit:,.0f} parameters, fewer than the first stage has")
    if not torch.equal(found, _as_used(model, kept[-1], picture)):
        kind = type(model).__name__
        raise ValueError(f"the stages of {kind} do not follow one another; take a network like EfficientNet")
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(found.shape[1], classes)]
    scale = Preprocess(size, preprocess.mean, preprocess.std)
    return nn.Sequential(scale, *copy.deepcopy(kept), *end).to(device)


def _stages(model: nn.Module) -> Iterator[nn.Module]:
    for part in model.children():
        if isinstance(part, nn.Sequential):
            yield from part
        else:
            yield part


def _parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _as_used(model: nn.Module, stage: nn.Module, picture: Tensor) -> Tensor:
    """What comes out of a stage when the whole network looks at the picture."""
    seen: list[Tensor] = []
    hook = stage.register_forward_hook(lambda *call: seen.append(call[2]))
    try:
        model(picture)
    finally:
        hook.remove()
    return seen[0]
