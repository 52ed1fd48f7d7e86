"""The kernels of the loss compiled for GPUs that need not be there, as a user's call launches them.

    PYTHONPATH=tests python -m benchmarks.compiled --out data/results

`kdlib.losses.kernels` is called as it is, with tensors in ordinary memory, while an object stands in for
Triton's driver: what Triton derives from a call (divisible pointers, constants, warps, options) is what it
would derive on a GPU. What it would load there is disassembled and counted; nothing is run. The command
writes kernels_compiled.json: for each setting, shape and target registers, spills, instructions and bytes of
a class, and for H100 and H200 the least time that these imply for 8,192 rows, calculated and not measured.
"""

import argparse
import functools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.model import GPUS, bounds
from benchmarks.sass import Kernel, named
from kdlib.losses.divergences import Divergence, LossSettings
from kdlib.storage import replaced

__all__ = ["CAPABILITIES", "SETTINGS", "SHAPES", "Counted", "Shape", "count", "count_scaling", "stand_in"]

CAPABILITIES = (80, 90, 100)  # A100; H100 and H200; B200
SETTINGS: Mapping[str, tuple[Divergence, float]] = {
    f"{divergence}, α {alpha:g}": (divergence, alpha)
    for alpha in (0.0, 0.5) for divergence in ("forward", "reverse", "jsd")
} | {"hard term alone": ("forward", 1.0)}  # fmt: skip
ROWS = 8192  # for which bounds are given


@dataclass(frozen=True)
class Shape:
    """The tensors of a call.

    Attributes:
        classes: of the student; teacher: of the teacher, by default as many.
        compared: the first classes that the soft term is over, by default all.
        row: numbers from one row of the student to the next, by default its classes: more are a sliced view.
        apart: whether the gradient has a place of its own, as in `kd_loss`, or is written over the logits.
    """

    classes: int
    teacher: int | None = None
    compared: int | None = None
    row: int | None = None
    apart: bool = False
    dtype: torch.dtype = torch.bfloat16
    teacher_dtype: torch.dtype | None = None

    def tensors(self, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
        """Student, teacher and gradient."""
        student = torch.zeros(rows, self.row or self.classes, dtype=self.dtype)[:, : self.classes]
        teacher = torch.zeros(rows, self.teacher or self.row or self.classes, dtype=self.sides[1])
        teacher = teacher if self.teacher else teacher[:, : self.classes]
        return student, teacher, student.new_empty(rows, self.classes) if self.apart else student

    @property
    def sides(self) -> tuple[torch.dtype, torch.dtype]:
        return self.dtype, self.teacher_dtype or self.dtype

    @property
    def aligned(self) -> bool:
        """Whether all rows begin at a multiple of 16 bytes."""
        return not any(tensor.stride(0) * tensor.element_size() % 16 for tensor in self.tensors())


SHAPES: Mapping[str, Shape] = {
    "151,936": Shape(151_936),
    # R1-Distill-Qwen-1.5B and -7B: what belongs to a token, and two paddings.
    "151,665 of 151,936 and 152,064": Shape(151_936, teacher=152_064, compared=151_665),
    "50,257": Shape(50_257),
    "151,928": Shape(151_928),
    "1,000": Shape(1000),
    "logits[:, :151665], gradient apart": Shape(151_665, row=151_936, apart=True),
    "logits[:, :151665]": Shape(151_665, row=151_936),
    "151,936 in float32": Shape(151_936, dtype=torch.float32),
    "151,936 in float16": Shape(151_936, dtype=torch.float16),
    "151,936 in bfloat16, teacher in float32": Shape(151_936, teacher_dtype=torch.float32),
}


@dataclass(frozen=True)
class Counted:
    """What a launch was compiled to.

    Attributes:
        warps: of a program; registers of a thread; local: bytes of local memory of a thread.
        spills: instructions that read or write local memory.
        passes: loops that read the logits.
        exchanges: shuffles between lanes and barriers, within these loops.
        reads, writes: bytes of each global read and write in usual turns, without repetition.
        strays: bytes that a lane reads between the last barrier and the loop that writes a row, beyond blocks
            of its own classes.
        instructions: of a class, by kind (`benchmarks.sass.KINDS`), summed over the passes.
        traffic: bytes that a class reads and writes, summed over the passes.
    """

    warps: int
    registers: int
    local: int
    spills: int
    passes: int
    exchanges: int
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    strays: int
    instructions: dict[str, float]
    traffic: float

    @property
    def per_class(self) -> float:
        return sum(self.instructions.values())


# --- compiling ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """The machine code that a launch would have loaded, and the warps of its programs."""

    binary: bytes
    warps: int


@contextmanager
def stand_in(capability: int, cache: Path) -> Iterator[list[Launch]]:
    """Within, launches are compiled for the capability and listed, and nothing is run.

    Raises:
        RuntimeError: Triton was imported to interpret kernels.
    """
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    if knobs.runtime.interpret:
        raise RuntimeError("Triton interprets here; expected to be started without TRITON_INTERPRET")
    launches: list[Launch] = []

    def launcher(source, metadata):
        # Behind the grid and the stream comes what load_binary gave for the function.
        return lambda *arguments: launches.append(Launch(arguments[4], metadata.num_warps))

    stand = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        # Triton keeps what it has compiled by the number of the device.
        get_current_device=lambda: capability,
        get_current_stream=lambda device: 0,
        launcher_cls=launcher,
        utils=SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 48 << 10},
            load_binary=lambda name, binary, shared, device: (None, binary, 0, 0, 1024),
        ),
    )
    # driver.set_active, but what was active before cannot be asked for where no GPU is.
    with patch.object(driver, "_active", stand), knobs.cache.scope():
        knobs.cache.dir = str(cache)
        yield launches


@functools.cache
def disassembled(binary: bytes, block: int) -> tuple[Kernel, dict[str, int]]:
    """The code, in which a block is so many bytes of a lane, and {"REG": 40, "LOCAL": 0, …} of a thread."""
    from triton import knobs

    with TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(binary)
        # Without its analysis of data flow it takes half the time, and the labels are there all the same.
        code = _said_by(knobs.nvidia.nvdisasm.path, "-ndf", "-c", path)
        usage = _said_by(knobs.nvidia.cuobjdump.path, "-res-usage", path)
    return Kernel(code, block), {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", usage)}


def _said_by(*command: str | Path) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


# --- counting -------------------------------------------------------------------------------------


def count(setting: str, shape: Shape, capability: int, cache: Path) -> Counted:
    """Of `kd_terms` with a gradient, launched for a setting and a shape."""
    from kdlib.losses.kernels import kd_terms

    divergence, alpha = SETTINGS[setting]
    student, teacher, gradient = shape.tensors()
    labels = torch.zeros(len(student), dtype=torch.int64)
    with stand_in(capability, cache) as launches:
        kd_terms(
            student, teacher, labels, LossSettings(2.0, alpha, divergence, 0.5), shape.compared,
            gradient=gradient, gradient_scale=torch.ones(()),
        )  # fmt: skip
    (launch,) = launches
    sizes = [tensor.element_size() for tensor in ((student, teacher) if alpha < 1 else (student,))]
    return counted(launch, sum(sizes), 16 // max(sizes))


def count_scaling(classes: int, dtype: torch.dtype, capability: int, cache: Path) -> Counted:
    """Of `scale_rows`."""
    from kdlib.losses.kernels import scale_rows

    with stand_in(capability, cache) as launches:
        scale_rows(torch.zeros(2, classes, dtype=dtype), torch.ones(()))
    (launch,) = launches
    return counted(launch, dtype.itemsize, 8)


def counted(launch: Launch, size: int, each: int) -> Counted:
    """A launch, in whose loops a lane reads a class in `size` bytes, and `each` classes in a block."""
    block = each * size
    kernel, usage = disassembled(launch.binary, block)
    instructions: Counter[str] = Counter()
    for loop in kernel.passes:
        instructions.update(loop.per_class(size))
    turns = [(loop, loop.classes(size)) for loop in kernel.passes]

    def widths(operation: str) -> tuple[int, ...]:
        return tuple(sorted({each.bytes for loop, _ in turns for each in named(loop.turn, operation)}))

    return Counted(
        launch.warps, usage["REG"], usage["LOCAL"] + usage["STACK"],
        spills=len(named(kernel.instructions, "LDL", "STL")),
        passes=len(turns),
        exchanges=sum(len(named(loop.body, "SHFL", "BAR")) for loop in kernel.loops),
        reads=widths("LDG"), writes=widths("STG"),
        strays=sum(each.bytes for each in kernel.reads_before_stores()) % block,
        instructions=dict(instructions),
        traffic=sum(each.bytes / n for loop, n in turns for each in named(loop.turn, "LDG", "STG")),
    )  # fmt: skip


# --- the file -------------------------------------------------------------------------------------


def as_json(found: Counted, setting: str, shape: str, capability: int) -> dict[str, object]:
    """A row of kernels_compiled.json; `bounds` where the target is that of H100 and H200."""
    row = {"setting": setting, "shape": shape, "capability": capability} | asdict(found)
    row |= {
        "per_class": round(found.per_class, 3), "traffic": round(found.traffic, 3),
        "instructions": {kind: round(number, 3) for kind, number in sorted(found.instructions.items())},
    }  # fmt: skip
    if capability == 90:
        classes = ROWS * SHAPES[shape].classes
        row["bounds_ms"] = {
            gpu.name: {
                what: float(f"{1e3 * seconds:.3g}")
                for what, seconds in bounds(gpu, classes, found.instructions, found.traffic).items()
            }
            for gpu in GPUS
        }
    return row


def main(arguments: list[str] | None = None) -> int:
    import triton

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the folder for kernels_compiled.json")
    given = parser.parse_args(arguments)
    rows = []
    with TemporaryDirectory() as cache:
        for shape in SHAPES:
            for setting in SETTINGS:
                for capability in CAPABILITIES:
                    found = count(setting, SHAPES[shape], capability, Path(cache))
                    rows.append(as_json(found, setting, shape, capability))
                    print(
                        f"{shape:<40} {setting:<16} sm_{capability:<4} {found.registers:>3} registers "
                        f"{found.per_class:>6.1f} instructions {found.traffic:>5.1f} bytes a class"
                    )
    if given.out is not None:
        head = {
            "calculated": "compiled and counted, not run: no time in this file was measured",
            "triton": triton.__version__, "torch": torch.__version__, "rows_of_bounds": ROWS,
            "gpus": [gpu.as_json() for gpu in GPUS],
        }  # fmt: skip
        # A line for each kernel, so that what has changed is seen.
        lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
        with replaced(given.out / "kernels_compiled.json") as file:
            file.write(f"{json.dumps(head, indent=1)[:-2]},\n \"kernels\": [\n  {lines}\n ]\n}}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
