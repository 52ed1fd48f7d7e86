"""Where a figure was measured."""

import os
import platform
from importlib.metadata import version

import torch

__all__ = ["describe_environment"]


def describe_environment() -> dict[str, object]:
    """What measured figures depend on: versions and hardware, no names of machines, no paths."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "cpu_count": usable,
        "kdlib": version("kdlib"),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
