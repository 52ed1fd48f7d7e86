"""Is this machine ready for the course? `python -m kdlib check` answers in ten lines.

Each check looks at one thing: it returns what it found, or raises. A line that is ok names no folder of the
machine, so a notebook can store it.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

from kdlib import places

GB = 1e9
MEMORY_NEEDED = DISK_NEEDED = 2 * GB
# This interpreter, as the shell wants it written.
PYTHON = f'"{sys.executable}"' if os.name == "nt" else shlex.quote(sys.executable)
# Where downloads and caches go, or would.
DATA = places.DATA if places.DATA.is_dir() else Path()


class NotReady(Exception):
    """What was found is not what the course needs."""


def check_python() -> str:
    """The interpreter is one that the course is tested on."""
    found = ".".join(str(part) for part in sys.version_info[:3])
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        raise NotReady(f"{found}, but the course needs 3.11 to 3.14")
    return found


def check_packages() -> str:
    """Every package that kdlib declares for readers is installed, at least at its lower bound."""
    from packaging.requirements import Requirement

    declared = map(Requirement, requires("kdlib"))
    wanted = [each for each in declared if not each.marker or each.marker.evaluate({"extra": "course"})]
    bounds = {each.name: each.specifier for each in wanted}
    faults = []
    for name, bound in bounds.items():
        try:
            if not bound.contains(version(name), prereleases=True):
                faults.append(f"{name} is {version(name)}, needs {bound}")
        except PackageNotFoundError:
            faults.append(f"{name} is missing")
    if faults:
        raise NotReady("; ".join(faults))
    return f"all {len(bounds)} present, torch {version('torch')}, jupyterlab {version('jupyterlab')}"


def check_torchvision() -> str:
    """Of a torchvision for another torch, only compiled operators such as this one fail."""
    import torch
    import torchvision

    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([0.9]), 0.5)
    return f"{version('torchvision')} works with torch {torch.__version__}"


def check_accelerator() -> str:
    """The best device computes. A machine with a CPU only is fine."""
    import torch

    from kdlib.runtime import best_device

    device = best_device()
    matrix = torch.ones(64, 64, device=device)
    if (matrix @ matrix).sum().item() != 64**3:
        raise NotReady(f"{device.type}: a matrix product is wrong")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return f"CUDA, {properties.name}, {properties.total_memory / GB:.0f} GB"
    return "Apple GPU (MPS)" if device.type == "mps" else f"CPU, threads: {torch.get_num_threads()}"


def check_memory() -> str:
    """Enough memory is free for the largest notebook."""
    import psutil

    return _free(psutil.virtual_memory().available, MEMORY_NEEDED)


def check_disk() -> str:
    """Enough space is free where downloads and caches go."""
    return f"{_free(shutil.disk_usage(DATA).free, DISK_NEEDED)} where data go"


def check_models() -> str:
    """Which real models have been fetched; the course begins without any."""
    files = {"smollm2": "smollm2/model.safetensors", "efficientnet-lite0": "efficientnet-lite0.safetensors"}
    there = {name: (DATA / "downloads" / file).exists() for name, file in files.items()}
    found = [f"{name} is here" for name, here in there.items() if here]
    if missing := ", ".join(name for name, here in there.items() if not here):
        found.append(f"not here yet: {missing} (python -m kdlib fetch NAME)")
    return "; ".join(found)


def check_kernel(kernel_name: str = "python3", seconds: float = 120) -> str:
    """The kernel that JupyterLab would start imports kdlib and runs this Python, not another."""
    from jupyter_client.manager import run_kernel

    # The prefix and not the executable: every virtual environment's python is a link to one file.
    # One text, since IPython breaks a long tuple into lines.
    which = "' '.join([os.path.realpath(sys.prefix), *map(str, sys.version_info[:2])])"
    # Its own log would land between the lines of the report.
    with run_kernel(
        kernel_name=kernel_name, startup_timeout=seconds, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as client:
        answer = client.execute_interactive(
            "import os, sys, kdlib", user_expressions={"which": which}, timeout=seconds, output_hook=len
        )
    reply = answer["content"]
    if reply["status"] != "ok":
        raise NotReady(f"import kdlib fails in it: {reply['ename']}: {reply['evalue']}")
    there = reply["user_expressions"]["which"]["data"]["text/plain"]
    if there != repr(" ".join([os.path.realpath(sys.prefix), *map(str, sys.version_info[:2])])):
        raise NotReady(f"{kernel_name} runs another Python, {there}; this is {sys.executable}")
    return f"{kernel_name} starts, is this Python, and imports kdlib"


def check_writing() -> str:
    """A file can be written where data and temporary files go."""
    for folder in (DATA, tempfile.gettempdir()):
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"kdlib")
    return "files can be written where data and temporary files go"


def check_distillation() -> str:
    """One real distillation, on handwritten digits, halves the student's divergence from its teacher."""
    from torch import nn

    from kdlib import fit, load_digits
    from kdlib.metrics import kl_to_teacher
    from kdlib.runtime import best_device, seeded
    from kdlib.training import predict

    digits = load_digits()
    device = best_device()
    # A notebook that calls this check goes on with the random numbers it would have had.
    with seeded(0, device):
        teacher, student = (
            nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
            for width in (64, 16)
        )
    training = {"epochs": 60, "batch_size": len(digits.train), "lr": 0.02, "device": device, "seed": 0}
    fit(teacher, digits.train, **training)
    expected = predict(teacher, digits.test.images)
    before = kl_to_teacher(predict(student, digits.test.images), expected)
    fit(student, digits.train, teacher=teacher, **training)
    after = kl_to_teacher(predict(student, digits.test.images), expected)
    found = f"KL(teacher || student) {before:.2f} -> {after:.2f} in 60 steps on {device.type}"
    if after >= before / 2:
        raise NotReady(f"the student did not learn: {found}")
    return found


def _free(found: float, needed: float) -> str:
    if found < needed:
        raise NotReady(f"{found / GB:.1f} GB free of the {needed / GB:.1f} GB needed")
    return f"{found / GB:.1f} GB free"


_REINSTALL = f'in the course\'s folder: {PYTHON} -m pip install -e ".[course]"'
_REINSTALL_TORCH = f"{PYTHON} -m pip install --force-reinstall torch torchvision"
_KERNEL = f"{PYTHON} -m ipykernel install --sys-prefix"
# Name of each check: what to look at, and how to fix it.
CHECKS: dict[str, tuple[Callable[[], str], str]] = {
    "Python": (check_python, "with Python 3.13, in the course's folder: make clean lab PYTHON=python3.13"),
    "packages": (check_packages, _REINSTALL),
    "torchvision": (check_torchvision, _REINSTALL_TORCH),
    "accelerator": (check_accelerator, "update its driver, or set CUDA_VISIBLE_DEVICES to -1 to use the CPU"),
    "memory": (check_memory, "close other programs and notebooks (Kernel > Shut Down All Kernels)"),
    "disk": (check_disk, f"delete files on that disk; downloads and cache in {DATA} can always go"),
    "models": (check_models, f"look at what is in {DATA / 'downloads'}"),
    "kernel": (check_kernel, f"{PYTHON} -m jupyter kernelspec remove -f python3, then {_KERNEL}"),
    "writing": (check_writing, "move the course to a folder of yours, or set TMPDIR (Windows: TEMP) to one"),
    "distillation": (check_distillation, f"undo changes in kdlib (see git status), then {_REINSTALL_TORCH}"),
}


class Finding(NamedTuple):
    """What one check found. `fix` is empty where `ok` holds."""

    name: str
    ok: bool
    found: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{'ok' if self.ok else 'FIX':<6}{self.name:<14}{self.found}"
        return line if self.ok else f"{line} -> {self.fix}"


def run_checks(checks: Mapping[str, tuple[Callable[[], str], str]] = CHECKS) -> Iterator[Finding]:
    """Run the checks one after another; whatever a check raises is a finding, not a traceback."""
    for name, (check, fix) in checks.items():
        try:
            yield Finding(name, True, check())
        except Exception as error:
            found = str(error) if isinstance(error, NotReady) else f"{type(error).__name__}: {error}"
            yield Finding(name, False, found.splitlines()[0], fix)  # torch adds pages of stack to some


def report(findings: Iterable[Finding]) -> list[Finding]:
    """Print a line for each finding as it comes, since some take seconds, then the verdict; return them."""
    seen = []
    for finding in findings:
        print(finding, flush=True)
        seen.append(finding)
    failed = sum(not finding.ok for finding in seen)
    print(f"{failed} of {len(seen)} to fix." if failed else "All ok: make lab opens the course.")
    return seen
