"""python tests/processes FOLDER SEED: everything in this folder from one process that has imported torch.

The training processes are forks of this one, which itself computes nothing: importing takes seconds, and
there are more than a dozen of them.
"""

import sys
from pathlib import Path

import killed
import shared
import torch
import torch._dynamo  # the optimizer imports it at its first step: once, not in each fork  # noqa: F401

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    killed.main(folder / "kills", seed)
    shared.main(folder / "shares")
