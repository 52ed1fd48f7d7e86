"""Download photographs before they are needed: ``python -m kdlib fetch pets``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from kdlib.vision.photos import load_photos

DESCRIPTION = """\
Download photographs of cats and dogs, and decode them once, so that load_photos
finds them. What is there already is not fetched again, and an interrupted
download goes on where it stopped.

  pets      Oxford-IIIT Pet: 7,349 photographs, CC BY-SA 4.0; download 0.8 GB,
            1.6 GB on disk. https://www.robots.ox.ac.uk/~vgg/data/pets/
  cifar10   the cats and dogs of CIFAR-10: 12,000 images of 32x32; download
            0.17 GB, 0.4 GB on disk. https://www.cs.toronto.edu/~kriz/cifar.html
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch, decode, and say where it landed."""
    parser = argparse.ArgumentParser(
        prog="python -m kdlib fetch", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("name", choices=("pets", "cifar10"), help="which photographs")
    add("--root", type=Path, default="data/downloads", help="folder for downloads (%(default)s)")
    add("--cache", type=Path, default="data/cache", help="folder for decoded photographs (%(default)s)")
    add("--size", type=int, help="side of the decoded squares in pixels (64; for cifar10 32)")
    chosen = parser.parse_args(argv)
    splits = load_photos(chosen.name, size=chosen.size, root=chosen.root, cache=chosen.cache)
    print(f"{chosen.name}: {splits}\nin {chosen.root.resolve()}")
    return 0
