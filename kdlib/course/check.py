"""Is this machine ready for the course? ``python -m kdlib check`` answers in nine lines.

A line that is ok names no folder of the machine, so that a notebook can store it.

Every line is one function below: it looks at one thing and returns a :class:`Finding`, with the
fact found and, where it does not hold, what mends it. What a function looks at is an argument, so
that a test can hand it a machine that fails. From a notebook::

    from kdlib.course.check import run_checks, report
    report(run_checks())
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 14)
GB = 1e9
MEMORY_NEEDED = 2 * GB
DISK_NEEDED = 2 * GB
KERNEL_SECONDS = 120  # the first start on a slow disk compiles every import


@dataclass(frozen=True)
class Finding:
    """What one check found. ``mend`` is empty where ``ok`` holds."""

    name: str
    ok: bool
    found: str
    mend: str = ""

    def __str__(self) -> str:
        line = f"{'ok' if self.ok else 'MEND':<6}{self.name:<14}{self.found}"
        return line if self.ok else f"{line} -> {self.mend}"


def check_python(version: Sequence[int] = sys.version_info) -> Finding:
    """The interpreter is one that the course is tested on."""
    found = ".".join(str(part) for part in version[:3])
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return Finding("Python", True, found)
    return Finding(
        "Python",
        False,
        f"{found}, but the course needs 3.11 to 3.14",
        "install Python 3.13, then in the course's folder: make clean lab PYTHON=python3.13 "
        "(or: conda env create -f environment.yml)",
    )


def course_requirements() -> list[str]:
    """What the installed kdlib declares for itself and for readers of the notebooks."""
    from packaging.requirements import Requirement

    declared = [Requirement(line) for line in importlib.metadata.requires("kdlib") or []]
    return [
        f"{requirement.name}{requirement.specifier}"
        for requirement in declared
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", "course"))
    ]


def check_packages(
    requirements: Iterable[str] | None = None,
    installed: Callable[[str], str] = importlib.metadata.version,
) -> Finding:
    """Every declared package is installed, at least at its lower bound."""
    from packaging.requirements import Requirement

    if requirements is None:
        try:
            requirements = course_requirements()
        except importlib.metadata.PackageNotFoundError:
            return Finding(
                "packages",
                False,
                "kdlib itself is not installed",
                f'in the course\'s folder: {_python()} -m pip install -e ".[course]"',
            )
    wanted = [Requirement(line) for line in requirements]
    faults, versions = [], {}
    for requirement in wanted:
        try:
            versions[requirement.name] = installed(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            faults.append((requirement, f"{requirement.name} is missing"))
            continue
        if not requirement.specifier.contains(versions[requirement.name], prereleases=True):
            faults.append(
                (
                    requirement,
                    f"{requirement.name} is {versions[requirement.name]}, needs {requirement.specifier}",
                )
            )
    if faults:
        # The quotes keep the shell from reading >= as a redirection.
        names = " ".join(f'"{requirement}"' for requirement, _ in faults)
        return Finding(
            "packages",
            False,
            "; ".join(fault for _, fault in faults),
            f"{_python()} -m pip install --upgrade {names}",
        )
    shown = [f"{name} {versions[name]}" for name in ("torch", "jupyterlab") if name in versions]
    return Finding("packages", True, ", ".join([f"all {len(wanted)} present", *shown]))


def check_torchvision(nms: Callable | None = None) -> Finding:
    """torch and torchvision are built for each other.

    A torchvision wheel for another torch installs cleanly; only its compiled operators fail, and
    non-maximum suppression is the one that every build has. Of two nearly equal boxes it keeps the
    one with the higher score.
    """
    import torch

    mend = f"{_python()} -m pip install --force-reinstall torch torchvision"
    try:
        if nms is None:
            from torchvision.ops import nms
        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
        kept = nms(boxes, torch.tensor([0.1, 0.9]), 0.5).tolist()
    except Exception as error:
        found = f"does not work with torch {torch.__version__}: {_one_line(error)}"
        return Finding("torchvision", False, found, mend)
    if kept != [1]:
        return Finding("torchvision", False, f"nms kept boxes {kept} instead of [1]", mend)
    version = importlib.metadata.version("torchvision")
    return Finding("torchvision", True, f"{version} works with torch {torch.__version__}")


def check_accelerator(device: str | None = None) -> Finding:
    """A small matrix product on the best device is right. A machine with a CPU only is fine."""
    import torch

    from kdlib.runtime import best_device

    device = device or best_device().type
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found = f"CUDA, {properties.name}, {properties.total_memory / GB:.0f} GB"
    elif device == "mps":
        found = "Apple GPU (MPS)"
    else:
        found = f"{device.upper()}, threads: {torch.get_num_threads()}"
    try:
        matrix = torch.arange(64 * 64, dtype=torch.float32).reshape(64, 64) / 64**2
        product = (matrix.to(device) @ matrix.to(device)).cpu()
        right = torch.allclose(product, matrix @ matrix, rtol=1e-2)  # TF32 rounds to 10 bits
        fault = "" if right else "a 64x64 matrix product is wrong"
    except Exception as error:
        fault = _one_line(error)
    if not fault:
        return Finding("accelerator", True, found)
    return Finding(
        "accelerator",
        False,
        f"{found}: {fault}",
        "update the graphics driver, or set the environment variable CUDA_VISIBLE_DEVICES to -1 "
        "to work on the CPU"
        if device == "cuda"
        else f"{_python()} -m pip install --force-reinstall torch torchvision",
    )


def check_memory(available: float | None = None, needed: float = MEMORY_NEEDED) -> Finding:
    """Enough memory is free for the largest notebook."""
    if available is None:
        import psutil

        available = psutil.virtual_memory().available
    if available >= needed:
        return Finding("memory", True, f"{available / GB:.1f} GB free")
    return Finding(
        "memory",
        False,
        f"{available / GB:.1f} GB free of the {needed / GB:.1f} GB needed",
        "close other programs and other notebooks (JupyterLab: Kernel > Shut Down All Kernels)",
    )


def check_disk(
    folder: Path | None = None,
    needed: float = DISK_NEEDED,
    usage: Callable = shutil.disk_usage,
) -> Finding:
    """Enough space is free where downloads and caches go."""
    folder = Path(folder or data_folder())
    free = usage(folder).free
    if free >= needed:
        return Finding("disk", True, f"{free / GB:.1f} GB free where data go")
    return Finding(
        "disk",
        False,
        f"{free / GB:.1f} GB free in {folder} of the {needed / GB:.1f} GB needed",
        f"delete files on that disk; {folder / 'downloads'} and {folder / 'cache'} can always go",
    )


# Runs in the kernel; the answer travels over the kernel's standard output.
_PROBE = """
import json, sys, kdlib
print(json.dumps({"prefix": sys.prefix, "executable": sys.executable,
                  "version": list(sys.version_info[:2]), "kdlib": list(kdlib.__path__)}))
"""


def check_kernel(kernel_name: str = "python3", seconds: float = KERNEL_SECONDS) -> Finding:
    """The kernel that JupyterLab would start runs, imports kdlib, and is this very Python.

    A kernel specification installed by another Python under the same name may win over ours; then
    the notebooks run where none of the course's packages are.
    """
    from jupyter_client.manager import KernelManager

    install = f"{_python()} -m ipykernel install --sys-prefix --name {kernel_name}"
    manager = KernelManager(kernel_name=kernel_name)
    client = None
    with tempfile.TemporaryFile() as errors:
        try:
            # The kernel's own log would land between the lines of the report.
            manager.start_kernel(stdout=errors, stderr=errors)
            client = manager.blocking_client()
            client.start_channels()
            client.wait_for_ready(timeout=seconds)
            printed: list[str] = []
            reply = client.execute_interactive(
                _PROBE, timeout=seconds, output_hook=lambda message: _collect(message, printed)
            )
            if reply["content"]["status"] != "ok":
                fault = f"{reply['content'].get('ename')}: {reply['content'].get('evalue')}"
                mend = f'in the course\'s folder: {_python()} -m pip install -e ".[course]"'
                return Finding("kernel", False, f"import kdlib fails in it: {fault}", mend)
            there = json.loads("".join(printed))
        except Exception as error:
            errors.seek(0)
            log = errors.read().decode(errors="replace").strip().splitlines()
            fault = log[-1].strip() if log else _one_line(error)
            return Finding("kernel", False, f"{kernel_name} does not start: {fault}", install)
        finally:
            if client is not None:
                client.stop_channels()
            if manager.has_kernel:
                manager.shutdown_kernel(now=True)
            manager.cleanup_resources()
    # The prefix and not the executable: every virtual environment's python is a link to one file.
    here = (_path(sys.prefix), list(sys.version_info[:2]))
    if (_path(there["prefix"]), there["version"]) != here:
        return Finding(
            "kernel",
            False,
            f"{kernel_name} runs {there['executable']}, but this is {sys.executable}",
            f"{_python()} -m jupyter kernelspec remove -f {kernel_name} && {install}",
        )
    return Finding("kernel", True, f"{kernel_name} starts, is this Python, and imports kdlib")


def check_writing(folders: Iterable[Path] | None = None) -> Finding:
    """A file can be written, read back and removed where data and temporary files go."""
    folders = [Path(folder) for folder in folders or (data_folder(), Path(tempfile.gettempdir()))]
    for folder in folders:
        probe = folder / f".kdlib-check-{os.getpid()}"
        try:
            with open(probe, "wb") as file:
                file.write(b"kdlib")
                file.flush()
                os.fsync(file.fileno())
            written = probe.read_bytes()
            probe.unlink()
        except OSError as error:
            return Finding(
                "writing",
                False,
                f"no file can be written in {folder}: {error.strerror or error}",
                "move the course to a folder of yours, or set the environment variable "
                "TMPDIR (Windows: TEMP) to one, and start again there",
            )
        if written != b"kdlib":
            mend = "free space on that disk and check it for errors"
            return Finding("writing", False, f"a file in {folder} does not read back", mend)
    return Finding("writing", True, "files can be written where data and temporary files go")


def check_distillation(loss: Callable | None = None, steps: int = 60) -> Finding:
    """One real distillation, on handwritten digits: the student comes closer to its teacher.

    The Kullback-Leibler divergence from teacher to student on images that neither was trained on
    must fall below half of what it was before training.
    """
    import torch
    from sklearn.datasets import load_digits
    from torch import nn
    from torch.nn import functional

    from kdlib.runtime import best_device

    mend = (
        "undo changes in kdlib (git status shows them), then "
        f"{_python()} -m pip install --force-reinstall torch torchvision"
    )
    if loss is None:
        from kdlib.losses.kd import kd_loss as loss

    device = best_device().type
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32, device=device)
    labels = torch.tensor(digits, dtype=torch.int64, device=device)
    train, held_out = slice(0, 1200), slice(1200, None)

    # The weights come from a generator that is put back afterwards: a notebook that calls this
    # check goes on with the random numbers it would have had.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        teacher = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
        student = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).to(device)

    def descend(model: nn.Module, objective: Callable) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(steps):
            optimizer.zero_grad()
            objective(model(images[train])).backward()
            optimizer.step()

    @torch.no_grad()
    def divergence() -> float:
        log_p, log_q = (
            functional.log_softmax(model(images[held_out]), dim=-1) for model in (teacher, student)
        )
        return functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean").item()

    descend(teacher, lambda logits: functional.cross_entropy(logits, labels[train]))
    with torch.no_grad():
        taught = teacher(images[train])
    before = divergence()
    descend(student, lambda logits: loss(logits, taught, labels[train], temperature=4.0, alpha=0.1))
    after = divergence()
    found = f"KL(teacher || student) {before:.2f} -> {after:.2f} in {steps} steps on {device}"
    if after < before / 2:
        return Finding("distillation", True, found)
    return Finding("distillation", False, f"the student did not learn: {found}", mend)


CHECKS: dict[str, Callable[[], Finding]] = {
    "Python": check_python,
    "packages": check_packages,
    "torchvision": check_torchvision,
    "accelerator": check_accelerator,
    "memory": check_memory,
    "disk": check_disk,
    "kernel": check_kernel,
    "writing": check_writing,
    "distillation": check_distillation,
}


def run_checks(checks: dict[str, Callable[[], Finding]] | None = None) -> Iterator[Finding]:
    """Run the checks one after another; a check that crashes is a finding, not a traceback."""
    for name, check in (CHECKS if checks is None else checks).items():
        try:
            yield check()
        except Exception as error:
            mend = f'in the course\'s folder: {_python()} -m pip install -e ".[course]"'
            found = f"the check itself failed: {type(error).__name__}: {_one_line(error)}"
            yield Finding(name, False, found, mend)


def report(findings: Iterable[Finding]) -> bool:
    """Print one line for each finding as it comes, then the verdict; True if all are ok."""
    total = failed = 0
    for finding in findings:
        print(finding, flush=True)
        total += 1
        failed += not finding.ok
    print(f"{failed} of {total} to mend." if failed else "All ok: make lab opens the course.")
    return failed == 0


def data_folder() -> Path:
    """``data/`` of the checkout that kdlib is installed from, else the current folder."""
    root = Path(__file__).resolve().parents[2]
    if (root / "notebooks").is_dir() and (root / "data").is_dir():
        return root / "data"
    return Path.cwd()


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m kdlib check``: exit status 0 only if every line is ok."""
    argparse.ArgumentParser(
        prog="python -m kdlib check",
        description="Is this machine ready for the course? Every line says ok, or MEND and how.",
    ).parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a path may hold what the console cannot print
    return 0 if report(run_checks()) else 1


def _collect(message: dict, printed: list[str]) -> None:
    if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
        printed.append(message["content"]["text"])


def _one_line(error: BaseException) -> str:
    """The first sentence of an error; torch adds pages of stack to some."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return re.sub(r"\s+", " ", text)[:200]


def _path(text: str) -> str:
    return os.path.normcase(os.path.realpath(text))


def _python() -> str:
    """This interpreter, as the shell wants it written."""
    if os.name == "nt":
        return f'"{sys.executable}"' if " " in sys.executable else sys.executable
    return shlex.quote(sys.executable)
