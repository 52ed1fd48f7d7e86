"""Is this machine ready for the course? `python -m kdlib check` answers in nine lines.

Each check looks at one thing. It returns the fact that it found, or raises `NotReady` with the fact and how
to fix it. A line that is ok names no folder of the machine, so a notebook can store it. In a notebook::

    from kdlib.course.check import run_checks, report
    report(run_checks())
"""

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 14)
GB = 1e9
MEMORY_NEEDED = 2 * GB
DISK_NEEDED = 2 * GB
KERNEL_SECONDS = 120  # the first start on a slow disk compiles every import
# This interpreter, as the shell wants it written.
PYTHON = f'"{sys.executable}"' if os.name == "nt" else shlex.quote(sys.executable)
REINSTALL = f'in the course\'s folder: {PYTHON} -m pip install -e ".[course]"'
REINSTALL_TORCH = f"{PYTHON} -m pip install --force-reinstall torch torchvision"


class NotReady(Exception):
    """What was found is not what the course needs. Arguments: what was found, and how to fix it."""


@dataclass(frozen=True)
class Finding:
    """What one check found. `fix` is empty where `ok` holds."""

    name: str
    ok: bool
    found: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{'ok' if self.ok else 'FIX':<6}{self.name:<14}{self.found}"
        return line if self.ok else f"{line} -> {self.fix}"


def check_python() -> str:
    """The interpreter is one that the course is tested on."""
    found = ".".join(str(part) for part in sys.version_info[:3])
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise NotReady(
            f"{found}, but the course needs 3.11 to 3.14",
            "install Python 3.13, then in the course's folder: make clean lab PYTHON=python3.13 "
            "(or: conda env create -f environment.yml)",
        )
    return found


def course_requirements() -> list[str]:
    """What the installed kdlib declares for readers: itself, the extra course, and the extras of that."""
    from packaging.requirements import Requirement

    declared = [Requirement(line) for line in importlib.metadata.requires("kdlib") or []]
    extras, found = ["", "course"], {}
    for extra in extras:  # grows while it is read
        for requirement in declared:
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                if requirement.name == "kdlib":
                    extras.extend(requirement.extras - {*extras})
                else:
                    found[f"{requirement.name}{requirement.specifier}"] = None
    return list(found)


def check_packages() -> str:
    """Every declared package is installed, at least at its lower bound."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in course_requirements()]
    except importlib.metadata.PackageNotFoundError:
        raise NotReady("kdlib itself is not installed", REINSTALL) from None
    faults, versions = {}, {}
    for requirement in wanted:
        name = requirement.name
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            faults[str(requirement)] = f"{name} is missing"
            continue
        if not requirement.specifier.contains(versions[name], prereleases=True):
            faults[str(requirement)] = f"{name} is {versions[name]}, needs {requirement.specifier}"
    if faults:
        # The quotes keep the shell from reading >= as a redirection.
        names = " ".join(f'"{requirement}"' for requirement in faults)
        raise NotReady("; ".join(faults.values()), f"{PYTHON} -m pip install --upgrade {names}")
    shown = [f"{name} {versions[name]}" for name in ("torch", "jupyterlab") if name in versions]
    return ", ".join([f"all {len(wanted)} present", *shown])


def check_torchvision() -> str:
    """torch and torchvision are built for each other.

    A torchvision wheel for another torch installs cleanly; only its compiled operators fail, and non-maximum
    suppression is the one that every build has. Of two nearly equal boxes it keeps the one with the higher
    score.
    """
    import torch

    try:
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.1, 0.9]), 0.5).tolist()
    except Exception as error:
        raise NotReady(
            f"does not work with torch {torch.__version__}: {_one_line(error)}", REINSTALL_TORCH
        ) from error
    if kept != [1]:
        raise NotReady(f"nms kept boxes {kept} instead of [1]", REINSTALL_TORCH)
    return f"{importlib.metadata.version('torchvision')} works with torch {torch.__version__}"


def check_accelerator() -> str:
    """A small matrix product on the best device is right. A machine with a CPU only is fine."""
    import torch

    from kdlib.runtime import best_device

    device = best_device().type
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found = f"CUDA, {properties.name}, {properties.total_memory / GB:.0f} GB"
        fix = "update the graphics driver, or set CUDA_VISIBLE_DEVICES to -1 to work on the CPU"
    else:
        cpu = f"{device.upper()}, threads: {torch.get_num_threads()}"
        found = "Apple GPU (MPS)" if device == "mps" else cpu
        fix = REINSTALL_TORCH
    try:
        matrix = torch.arange(64 * 64, dtype=torch.float32).reshape(64, 64) / 64**2
        product = (matrix.to(device) @ matrix.to(device)).cpu()
    except Exception as error:
        raise NotReady(f"{found}: {_one_line(error)}", fix) from error
    if not torch.allclose(product, matrix @ matrix, rtol=1e-2):  # TF32 rounds to 10 bits
        raise NotReady(f"{found}: a 64x64 matrix product is wrong", fix)
    return found


def check_memory() -> str:
    """Enough memory is free for the largest notebook."""
    import psutil

    free = psutil.virtual_memory().available
    if free < MEMORY_NEEDED:
        raise NotReady(
            f"{free / GB:.1f} GB free of the {MEMORY_NEEDED / GB:.1f} GB needed",
            "close other programs and other notebooks (JupyterLab: Kernel > Shut Down All Kernels)",
        )
    return f"{free / GB:.1f} GB free"


def check_disk() -> str:
    """Enough space is free where downloads and caches go."""
    folder = data_folder()
    free = shutil.disk_usage(folder).free
    if free < DISK_NEEDED:
        raise NotReady(
            f"{free / GB:.1f} GB free in {folder} of the {DISK_NEEDED / GB:.1f} GB needed",
            f"delete files on that disk; {folder / 'downloads'} and {folder / 'cache'} can always go",
        )
    return f"{free / GB:.1f} GB free where data go"


# Runs in the kernel; the answer travels over the kernel's standard output.
_PROBE = """
import json, sys, kdlib
print(json.dumps({"prefix": sys.prefix, "executable": sys.executable, "version": list(sys.version_info[:2])}))
"""


def check_kernel(kernel_name: str = "python3", seconds: float = KERNEL_SECONDS) -> str:
    """The kernel that JupyterLab would start runs, imports kdlib, and is this very Python.

    A kernel specification installed by another Python under the same name may win over ours; then the
    notebooks run where none of the course's packages are.
    """
    from jupyter_client.manager import start_new_kernel

    install = f"{PYTHON} -m ipykernel install --sys-prefix --name {kernel_name}"
    with tempfile.TemporaryFile() as log:
        try:
            # The kernel's own log would land between the lines of the report.
            manager, client = start_new_kernel(seconds, kernel_name, stdout=log, stderr=log)
        except Exception as error:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            died = lines and "respond" not in str(error)  # a slow kernel's log ends with our interrupt
            fault = lines[-1].strip() if died else _one_line(error)
            raise NotReady(f"{kernel_name} does not start: {fault}", install) from error
        printed: list[dict] = []
        try:
            reply = client.execute_interactive(_PROBE, timeout=seconds, output_hook=printed.append)["content"]
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            manager.cleanup_resources()
    if reply["status"] != "ok":
        raise NotReady(f"import kdlib fails in it: {reply.get('ename')}: {reply.get('evalue')}", REINSTALL)
    there = json.loads("".join(m["content"]["text"] for m in printed if m["msg_type"] == "stream"))
    # The prefix and not the executable: every virtual environment's python is a link to one file.
    same = os.path.realpath(there["prefix"]) == os.path.realpath(sys.prefix)
    if not same or there["version"] != list(sys.version_info[:2]):
        raise NotReady(
            f"{kernel_name} runs {there['executable']}, but this is {sys.executable}",
            f"{PYTHON} -m jupyter kernelspec remove -f {kernel_name} && {install}",
        )
    return f"{kernel_name} starts, is this Python, and imports kdlib"


def check_writing() -> str:
    """A file can be written, read back and removed where data and temporary files go."""
    for folder in (data_folder(), Path(tempfile.gettempdir())):
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"kdlib")
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                written = file.read()
        except OSError as error:
            raise NotReady(
                f"no file can be written in {folder}: {error.strerror or error}",
                "move the course to a folder of yours, or set the environment variable "
                "TMPDIR (Windows: TEMP) to one, and start again there",
            ) from error
        if written != b"kdlib":
            raise NotReady(
                f"a file in {folder} does not read back", "free space on that disk and check it for errors"
            )
    return "files can be written where data and temporary files go"


def check_distillation(steps: int = 60) -> str:
    """One real distillation, on handwritten digits: the student comes closer to its teacher.

    The Kullback-Leibler divergence from teacher to student on images that neither was trained on must fall
    below half of what it was before training.
    """
    import torch
    from sklearn.datasets import load_digits
    from torch import nn
    from torch.nn import functional

    from kdlib import kd_loss
    from kdlib.runtime import best_device

    device = best_device().type
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32, device=device)
    labels = torch.tensor(digits, dtype=torch.int64, device=device)
    train, held_out = slice(0, 1200), slice(1200, None)
    # A notebook that calls this check goes on with the random numbers it would have had.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        teacher = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
        student = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).to(device)

    def train_model(model: nn.Module, loss: Callable) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(images[train])).backward()
            optimizer.step()

    @torch.no_grad()
    def divergence() -> float:
        log_p, log_q = (model(images[held_out]).log_softmax(-1) for model in (teacher, student))
        return functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean").item()

    train_model(teacher, lambda logits: functional.cross_entropy(logits, labels[train]))
    with torch.no_grad():
        teacher_logits = teacher(images[train])
    before = divergence()
    train_model(
        student, lambda logits: kd_loss(logits, teacher_logits, labels[train], temperature=4.0, alpha=0.1)
    )
    after = divergence()
    found = f"KL(teacher || student) {before:.2f} -> {after:.2f} in {steps} steps on {device}"
    if after >= before / 2:
        raise NotReady(
            f"the student did not learn: {found}",
            f"undo changes in kdlib (git status shows them), then {REINSTALL_TORCH}",
        )
    return found


CHECKS: dict[str, Callable[[], str]] = {
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


def run_checks(checks: dict[str, Callable[[], str]] | None = None) -> Iterator[Finding]:
    """Run the checks one after another; a check that crashes is a finding, not a traceback."""
    for name, check in (CHECKS if checks is None else checks).items():
        try:
            yield Finding(name, True, check())
        except NotReady as fault:
            yield Finding(name, False, *fault.args)
        except Exception as error:
            found = f"the check itself failed: {type(error).__name__}: {_one_line(error)}"
            yield Finding(name, False, found, REINSTALL)


def report(findings: Iterable[Finding]) -> bool:
    """Print one line for each finding as it comes, then the verdict; True if all are ok."""
    total = failed = 0
    for finding in findings:
        print(finding, flush=True)
        total += 1
        failed += not finding.ok
    print(f"{failed} of {total} to fix." if failed else "All ok: make lab opens the course.")
    return failed == 0


def data_folder() -> Path:
    """`data/` of the checkout that kdlib is installed from, else the current folder."""
    root = Path(__file__).resolve().parents[2]
    return root / "data" if (root / "notebooks").is_dir() and (root / "data").is_dir() else Path.cwd()


def _one_line(error: BaseException) -> str:
    """The first line of an error; torch adds pages of stack to some."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"\s+", " ", lines[0] if lines else type(error).__name__)[:200]
