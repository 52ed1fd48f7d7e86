"""What a machine can do, as published, or as measured on this one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from types import MappingProxyType

import psutil
import torch

from kdlib.cost import time_call
from kdlib.losses.backend import on_kernels
from kdlib.runtime import best_device

__all__ = ["HARDWARE", "Hardware", "copy_rate", "find_hardware", "matrix_rate", "this_machine"]


@dataclass(frozen=True)
class Hardware:
    """A number of equal devices in one machine.

    Attributes:
        name: of one device.
        memory: bytes of one device.
        flops: floating-point operations a second of one device, at the peak of its matrix products (a
            multiply and an add are two), dense, in the precision of the training: bfloat16 in `HARDWARE`.
        bandwidth: bytes a second between one device and its own memory.
        interconnect: bytes a second that one device can send to the others while it receives as many.
        devices: how many.
        source: where the figures are from.
        kernels: whether `kdlib.losses.kernels` runs on it, as on NVIDIA's GPUs from the A100 on.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    interconnect: float
    devices: int = 1
    source: str = ""
    kernels: bool = True

    def __post_init__(self) -> None:
        for name in ("memory", "flops", "bandwidth", "interconnect"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of {self.name} must be above 0; got {getattr(self, name)!r}")
        if not isinstance(self.devices, int) or self.devices < 1:
            raise ValueError(f"devices must be a whole number, at least 1; got {self.devices!r}")

    def times(self, devices: int) -> "Hardware":
        """As many of these devices."""
        return replace(self, devices=devices)

    def __str__(self) -> str:
        return (
            f"{self.devices} × {self.name}: {self.memory / 1e9:.0f} GB, {self.flops / 1e12:.3g} TFLOP/s, "
            f"{self.bandwidth / 1e12:.3g} TB/s to memory, {self.interconnect / 1e9:.3g} GB/s to the others"
        )


# Peaks of dense products: data sheets give twice as much, "with sparsity". Links are given there for both
# directions together, and here for one. Memory is the nominal figure in units of 10⁹ bytes; CUDA reports a
# little more (an "RTX 4090, 24 GB" 23.6 GiB, which is 25.4 · 10⁹).
_ALL = (
    Hardware(
        "H100-80GB", 80e9, 989.4e12, 3.35e12, 450e9,
        source="NVIDIA H100 Tensor Core GPU data sheet, SXM5: 989.4 TFLOP/s bf16 dense, 3.35 TB/s, NVLink "
        "900 GB/s in both directions",
    ),
    Hardware(
        "H200-141GB", 141e9, 989.4e12, 4.8e12, 450e9,
        source="NVIDIA H200 Tensor Core GPU data sheet, SXM: the processor of H100 SXM5, 141 GB at 4.8 TB/s, "
        "NVLink 900 GB/s in both directions",
    ),
    Hardware(
        "A100-80GB", 80e9, 312e12, 2.039e12, 300e9,
        source="NVIDIA A100 data sheet (nvidia-1758950), SXM4: 312 TFLOP/s bf16 dense, 2,039 GB/s, NVLink "
        "600 GB/s in both directions",
    ),
    Hardware(
        "RTX-4090", 24e9, 165.2e12, 1.008e12, 32e9,
        source="NVIDIA Ada GPU architecture white paper, GeForce RTX 4090: 165.2 TFLOP/s bf16 dense with "
        "float32 accumulation, 1,008 GB/s, no NVLink; PCIe 4.0 × 16, 32 GB/s in each direction",
    ),
)  # fmt: skip

HARDWARE: Mapping[str, Hardware] = MappingProxyType({hardware.name: hardware for hardware in _ALL})
"""Published peak figures of some GPUs, by name; `HARDWARE["H100-80GB"].times(8)` is a machine with eight."""


def find_hardware(name: str) -> Hardware:
    """By name, as "H100-80GB", "H100-80GB×8" or "H100-80GB x8".

    Raises:
        ValueError: there is none of that name; it says which there are.
    """
    match = re.fullmatch(r"(.+?)(?:\s*[×x*]\s*(\d+))?", name.strip())
    found = {known.lower(): known for known in HARDWARE}.get(match[1].lower()) if match else None
    if found is None:
        raise ValueError(
            f"hardware {name!r} is not known; expected one of {', '.join(HARDWARE)}, with ×8 behind it for "
            "eight of them, or a Hardware with figures of your own"
        )
    return HARDWARE[found].times(int(match[2] or 1))


def this_machine(device: torch.device | str | None = None) -> Hardware:
    """One device of this machine: its memory, and its speed measured in about a second.

    Matrix products are measured in bfloat16 on CUDA devices and in float32 elsewhere, as
    `distill_language_model` trains there. These are rates that were reached, not the maker's peaks: plan with
    a higher utilisation. There is one device, so the interconnect is given as the bandwidth.

    Args:
        device: default `best_device()`.
    """
    device = torch.device(device) if device is not None else best_device()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory, dtype = properties.name, properties.total_memory, torch.bfloat16
    else:
        name = f"{device.type.upper()}, {torch.get_num_threads()} threads"
        memory, dtype = psutil.virtual_memory().total, torch.float32
    bandwidth = copy_rate(device)
    flops = matrix_rate(device, dtype)
    return Hardware(
        name, memory, flops, bandwidth, bandwidth, source="measured by this_machine()",
        kernels=on_kernels(torch.empty(0, 2, dtype=dtype, device=device)),
    )  # fmt: skip


def matrix_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """Operations a second that large square matrix products reach here; a multiply and an add are two."""
    device = torch.device(device)
    width = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    return 2 * width**3 / median(time_call(lambda: torch.mm(a, b, out=product), device, repeats=5))


def copy_rate(device: torch.device | str) -> float:
    """Bytes a second that a copy within this device's memory reads and writes, both counted."""
    device = torch.device(device)
    # Far more than a cache holds: some GPUs have 50 MB and more.
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median(time_call(lambda: target.copy_(source), device, repeats=5))
