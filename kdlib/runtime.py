"""What running a model needs: a device, seeds, eval mode for a while, an accelerator; and where it ran."""

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import patch_environment
from torch import nn

from kdlib.arguments import shortened

Precision = Literal["auto", "no", "bf16"]


def best_device() -> torch.device:
    """The accelerator if there is one (CUDA, MPS, …), else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def usable_device(device: torch.device | str | None) -> torch.device:
    """The device, or the best one, on which a tensor has been made; a `ValueError` names those here."""
    if device is None:
        return best_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:  # by kind and build
        wanted = repr(str(device)) if isinstance(device, str | torch.device) else shortened(device)
        known = ["cpu", *(f"{best_device().type}:{n}" for n in range(torch.accelerator.device_count()))]
        raise ValueError(
            f"device is {wanted}, on which PyTorch cannot compute here ({str(error).splitlines()[0]}); "
            f"expected one of {', '.join(known)}, or None for the best"
        ) from error
    return torch.device(device)


def substream(seed: int, purpose: str, number: int) -> int:
    """A seed of its own for each (seed, purpose, number): step 1 of seed 0 is not step 0 of seed 1.

    Mixed into all bits: of what it is given, torch's generator on the CPU takes the lowest 32.
    """
    digest = hashlib.blake2b(f"{seed} {purpose} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode inside; afterwards each of its modules in the mode it had before."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers from this seed inside; outside, as if nothing had been drawn."""
    devices = [] if device.type == "cpu" else [device.index or 0]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield


def describe_environment() -> dict[str, object]:
    """What measured figures depend on: versions and hardware, no names of machines, no paths."""
    return {
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "kdlib": version("kdlib"),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


@contextmanager
def accelerated(
    device: torch.device | str | None = None, precision: Precision = "auto"
) -> Iterator[Accelerator]:
    """An `accelerate.Accelerator` for one run: what accelerate keeps for the whole process is put back.

    Args:
        device: where to train; None takes the best there is. Of launched processes each has its own.
        precision: "bf16" for bfloat16 autocast, "no" for float32, "auto" for bf16 on CUDA devices that
            compute in it.
    """
    if precision not in ("auto", "no", "bf16"):
        raise ValueError(f'precision must be "auto", "no" or "bf16"; got {precision!r}')
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    shared = [AcceleratorState._shared_state, GradientState._shared_state]
    shared += [] if launched else [PartialState._shared_state]
    aside = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    wanted = usable_device(device) if device is not None else None
    # Accelerate reads the device of a single process from the environment.
    named = {"accelerate_torch_device": str(wanted)} if wanted and not launched else {}
    # Without being told so, accelerate takes processes launched on a machine of CPUs for strangers.
    on_cpu = wanted.type == "cpu" if wanted else launched and best_device().type == "cpu"
    try:
        with patch_environment(**named):
            found = Accelerator(cpu=on_cpu, mixed_precision="no").device
            if launched and wanted and wanted.type != found.type:
                raise ValueError(f"device is {wanted}, but this process was launched on {found}")
            if precision == "auto":
                native = found.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
                precision = "bf16" if native else "no"
            AcceleratorState._shared_state.clear()
            accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision)
        yield accelerator
    finally:
        for state, before in zip(shared, aside, strict=True):
            state.clear()
            state.update(before)
