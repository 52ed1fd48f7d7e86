"""What machines can do, as published."""

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Hardware:
    """A number of equal devices in one machine; all figures are of one device."""

    name: str
    memory: float  # bytes
    flops: float  # operations a second, at the peak of dense matrix products (a multiply and an add are two)
    bandwidth: float  # bytes a second between the device and its own memory
    interconnect: float  # bytes a second that it can send to the others while it receives as many
    devices: int = 1
    source: str = "figures given by the caller"
    kernels: bool = True  # whether `kdlib.losses.kernels` runs on it, as on NVIDIA's GPUs from the A100 on

    def __post_init__(self) -> None:
        if not isinstance(self.devices, int) or self.devices < 1:
            raise ValueError(f"devices must be a whole number, at least 1; got {self.devices!r}")

    def __str__(self) -> str:
        return (
            f"{self.devices} × {self.name}: {self.memory / 1e9:.0f} GB, {self.flops / 1e12:.3g} TFLOP/s, "
            f"{self.bandwidth / 1e12:.3g} TB/s to memory, {self.interconnect / 1e9:.3g} GB/s to the others"
        )


# Peaks in bfloat16: data sheets give twice as much, "with sparsity". Links are given there for both
# directions together, and here for one. Memory is the nominal figure in units of 10⁹ bytes; CUDA reports a
# little more (an "RTX 4090, 24 GB" 23.6 GiB, which is 25.4 · 10⁹).
HARDWARE = {hardware.name: hardware for hardware in (
    Hardware("H100-80GB", 80e9, 989.4e12, 3.35e12, 450e9, source="NVIDIA H100 Tensor Core GPU data sheet, "
             "SXM5: 989.4 TFLOP/s bf16 dense, 3.35 TB/s, NVLink 900 GB/s in both directions"),
    Hardware("H200-141GB", 141e9, 989.4e12, 4.8e12, 450e9, source="NVIDIA H200 Tensor Core GPU data sheet, "
             "SXM: the processor of H100 SXM5, 141 GB at 4.8 TB/s, NVLink 900 GB/s in both directions"),
    Hardware("A100-80GB", 80e9, 312e12, 2.039e12, 300e9, source="NVIDIA A100 data sheet (nvidia-1758950), "
             "SXM4: 312 TFLOP/s bf16 dense, 2,039 GB/s, NVLink 600 GB/s in both directions"),
    Hardware("RTX-4090", 24e9, 165.2e12, 1.008e12, 32e9, source="NVIDIA Ada GPU architecture white paper, "
             "GeForce RTX 4090: 165.2 TFLOP/s bf16 dense with float32 accumulation, 1,008 GB/s, no NVLink; "
             "PCIe 4.0 × 16, 32 GB/s in each direction"),
)}  # fmt: skip
"""Published peak figures of some GPUs, by name."""


def find_hardware(name: str) -> Hardware:
    """By name, as "H100-80GB", "H100-80GB×8" or "H100-80GB x8"; one that is not known is a ValueError."""
    match = re.fullmatch(r"(.+?)(?:\s*[×x*]\s*(\d+))?", name.strip())
    found = {known.lower(): HARDWARE[known] for known in HARDWARE}.get(match[1].lower()) if match else None
    if found is None:
        raise ValueError(
            f"hardware {name!r} is not known; expected one of {', '.join(HARDWARE)}, with ×8 behind it for "
            "eight of them, or a Hardware with figures of your own"
        )
    return replace(found, devices=int(match[2] or 1))
