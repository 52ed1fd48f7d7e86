"""`python -m kdlib check`: every line, once ok and once to fix."""

import importlib.metadata
import json
import subprocess
import sys
import venv
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from kdlib import kd_loss
from kdlib.__main__ import main
from kdlib.course import check
from kdlib.course.check import Finding

GB = 1e9
Usage = namedtuple("Usage", "total used free")


def fails(look: Callable[[], str], *, found: str, fix: str) -> None:
    """The check says what is wrong and how to fix it, in one line."""
    (finding,) = check.run_checks({"name": look})
    assert not finding.ok
    assert found in finding.found
    assert fix in finding.fix
    assert str(finding).startswith("FIX") and "\n" not in str(finding)


# --- Python and packages ---------------------------------------------------------------------


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 14, 9)])
def test_python_supported(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    assert check.check_python() == ".".join(map(str, version))


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 15, 0), (2, 7, 18)])
def test_python_unsupported(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    fails(check.check_python, found="needs 3.11 to 3.14", fix="PYTHON=python3.13")


def test_packages_here():
    declared = check.course_requirements()
    names = [requirement.split(">=")[0] for requirement in declared]
    # From the package itself, from the extra, and from the extras that this one names.
    assert {"torch", "jupyterlab", "torchvision", "transformers"} <= set(names)
    assert "pytest" not in names  # that is for developers
    version = importlib.metadata.version("torch")
    assert f"all {len(declared)} present, torch {version}" in check.check_packages()


@pytest.fixture
def packages(monkeypatch):
    """Declare requirements and install versions, by name."""

    def declare(requirements: list[str], **versions: str) -> None:
        real = importlib.metadata.version
        monkeypatch.setattr(check, "course_requirements", lambda: requirements)
        monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or real(name))

    return declare


def test_package_missing(packages):
    packages(["numpy>=1.26", "no-such-package>=1"])
    fails(
        check.check_packages,
        found="no-such-package is missing",
        fix='-m pip install --upgrade "no-such-package>=1"',
    )


def test_package_too_old(packages):
    packages(["torch>=2.11", "numpy>=1.26"], torch="2.10.0+cu128")
    fails(
        check.check_packages,
        found="torch is 2.10.0+cu128, needs >=2.11",
        fix=f'{sys.executable} -m pip install --upgrade "torch>=2.11"',
    )


def test_package_of_a_development_version_counts(packages):
    packages(["torch>=2.11"], torch="2.13.0.dev20260101")
    assert "torch 2.13" in check.check_packages()


def test_kdlib_not_installed(monkeypatch):
    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", nothing)
    fails(check.check_packages, found="not installed", fix='pip install -e ".[course]"')


def test_torchvision_here():
    assert importlib.metadata.version("torchvision") in check.check_torchvision()


def test_torchvision_for_another_torch(monkeypatch):
    def unregistered(*_):
        raise RuntimeError("operator torchvision::nms does not exist\nC++ stack\nmore")

    monkeypatch.setattr("torchvision.ops.nms", unregistered)
    fails(
        check.check_torchvision,
        found="operator torchvision::nms does not exist",
        fix="--force-reinstall torch torchvision",
    )


def test_torchvision_that_does_not_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    fails(check.check_torchvision, found="torchvision", fix="--force-reinstall")


def test_torchvision_that_computes_nonsense(monkeypatch):
    monkeypatch.setattr("torchvision.ops.nms", lambda *_: torch.tensor([0, 1]))
    fails(check.check_torchvision, found="[0, 1]", fix="pip install")


# --- the machine -----------------------------------------------------------------------------


def test_cpu_alone_is_fine(monkeypatch):
    monkeypatch.setattr("kdlib.runtime.best_device", lambda: torch.device("cpu"))
    assert "CPU, threads: " in check.check_accelerator()


def test_device_that_does_not_compute(monkeypatch):
    # Tensors of this device have a shape and no values, so the product cannot come back.
    monkeypatch.setattr("kdlib.runtime.best_device", lambda: torch.device("meta"))
    fails(check.check_accelerator, found="META", fix="pip install")


def test_matrix_product_that_is_wrong(monkeypatch):
    monkeypatch.setattr("kdlib.runtime.best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: self + 1)
    fails(check.check_accelerator, found="matrix product is wrong", fix="pip install")


def test_memory(monkeypatch):
    monkeypatch.setattr(check, "MEMORY_NEEDED", 1)
    assert "GB free" in check.check_memory()  # what is really free here
    monkeypatch.setattr(check, "MEMORY_NEEDED", 1e18)
    fails(check.check_memory, found="GB free of the", fix="close other")


def test_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(check, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(check.shutil, "disk_usage", lambda folder: Usage(10 * GB, 8 * GB, 2 * GB))
    assert check.check_disk() == "2.0 GB free where data go"
    monkeypatch.setattr(check.shutil, "disk_usage", lambda folder: Usage(10 * GB, 9 * GB, 1 * GB))
    fails(check.check_disk, found="1.0 GB free", fix=str(tmp_path / "downloads"))


def test_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "data_folder", lambda: tmp_path)
    assert "can be written" in check.check_writing()
    assert list(tmp_path.iterdir()) == []


def test_writing_where_none_is_possible(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("a folder that is a file cannot be written, by root either")
    for folder in (file, tmp_path / "gone"):
        monkeypatch.setattr(check, "data_folder", lambda: folder)  # noqa: B023
        fails(check.check_writing, found=str(folder), fix="TMPDIR")
    assert list(tmp_path.iterdir()) == [file]


# --- kernel ----------------------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Install a kernel specification with this command under the name ``trial``."""

    def install(*command: str, **environment: str) -> str:
        folder = tmp_path / "jupyter" / "kernels" / "trial"
        folder.mkdir(parents=True)
        content = {
            "argv": [*command, "-f", "{connection_file}"],
            "display_name": "trial",
            "language": "python",
            "env": environment,
        }
        (folder / "kernel.json").write_text(json.dumps(content))
        return "trial"

    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    return install


def test_kernel_here():
    assert "imports kdlib" in check.check_kernel()


def test_kernel_that_nobody_installed():
    fails(
        partial(check.check_kernel, "no-such-kernel"),
        found="no-such-kernel does not start",
        fix="-m ipykernel install --sys-prefix --name no-such-kernel",
    )


def test_kernel_that_dies_at_once_says_why(kernel):
    name = kernel(sys.executable, "-c", "raise SystemExit('no module named ipykernel_launcher')")
    fails(
        partial(check.check_kernel, name),
        found="trial does not start: no module named ipykernel_launcher",
        fix="ipykernel install",
    )


def test_kernel_that_does_not_answer_in_time(kernel):
    name = kernel(sys.executable, "-c", "import time; time.sleep(60)")
    fails(partial(check.check_kernel, name, seconds=1), found="1 seconds", fix="ipykernel install")


def test_kernel_of_another_interpreter(kernel, tmp_path):
    # It has all our packages, so it starts and imports kdlib; only it is not this Python.
    venv.create(tmp_path / "other", symlinks=sys.platform != "win32")
    other = tmp_path / "other" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    packages = Path(importlib.metadata.distribution("ipykernel").locate_file(""))
    places = [str(packages), str(Path(check.__file__).parents[2])]
    name = kernel(
        str(other),
        "-m",
        "ipykernel_launcher",
        PYTHONPATH=(";" if sys.platform == "win32" else ":").join(places),
    )
    fails(partial(check.check_kernel, name), found=f"runs {other}", fix="kernelspec remove -f trial")


def test_kernel_without_kdlib(kernel, tmp_path):
    (tmp_path / "kdlib.py").write_text("raise ImportError('no such package here')")
    name = kernel(sys.executable, "-m", "ipykernel_launcher", PYTHONPATH=str(tmp_path))
    fails(partial(check.check_kernel, name), found="ImportError: no such package here", fix="pip install -e")


# --- distillation ----------------------------------------------------------------------------


def test_distillation_here():
    state = torch.get_rng_state()
    assert "KL(teacher || student)" in check.check_distillation()
    assert torch.equal(torch.get_rng_state(), state)  # a notebook's random numbers go on


@pytest.mark.parametrize(
    "loss",
    [
        lambda student, teacher, labels, **options: -kd_loss(student, teacher, labels, **options),
        lambda student, teacher, labels, **options: 0 * kd_loss(student, teacher, labels, **options),
        # A teacher whose classes are shuffled teaches something else.
        lambda student, teacher, labels, **options: kd_loss(
            student, teacher.roll(1, dims=-1), labels, **options
        ),
    ],
)
def test_distillation_that_does_not_learn(monkeypatch, loss):
    monkeypatch.setattr("kdlib.kd_loss", loss, raising=False)
    fails(check.check_distillation, found="did not learn", fix="git status")


def test_distillation_without_steps():
    fails(partial(check.check_distillation, steps=0), found="did not learn", fix="git status")


# --- all together ----------------------------------------------------------------------------


def crash() -> str:
    raise OSError("libcudart.so.13: cannot open shared object file\nmore")


def test_crash_within_a_check_is_a_line(capsys):
    checks = {"Python": check.check_python, "crashing": crash}
    findings = list(check.run_checks(checks))
    assert [finding.ok for finding in findings] == [True, False]
    fails(crash, found="OSError: libcudart.so.13: cannot open", fix="pip install")
    assert check.report(findings) is False
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 2 to fix."


def test_report_of_a_ready_machine(capsys):
    assert check.report([Finding("memory", True, "8.0 GB free")]) is True
    assert capsys.readouterr().out.splitlines() == [
        "ok    memory        8.0 GB free",
        "All ok: make lab opens the course.",
    ]


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess:
    """`python -m kdlib` in a process of its own, after the statements `before`."""
    script = (
        f"import sys, runpy\n{before}\nsys.argv[0] = 'kdlib'\nrunpy.run_module('kdlib', run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)


def test_whole_command_says_ok_for_all():
    result = subprocess.run([sys.executable, "-m", "kdlib", "check"], capture_output=True, text=True)
    lines = result.stdout.splitlines()
    if any(line.startswith("FIX") for line in lines):  # a machine may really be short of memory
        assert {line.split()[1] for line in lines if line.startswith("FIX")} <= {"memory", "disk"}
        assert result.returncode == 1
    else:
        assert [line.split()[:2] for line in lines[:-1]] == [["ok", name] for name in check.CHECKS]
        assert lines[-1].startswith("All ok")
        assert result.returncode == 0
    assert result.stderr == ""


def test_whole_command_fails_for_one():
    few = (
        "from kdlib.course import check\n"
        "check.CHECKS = {'Python': check.check_python, 'writing': check.check_writing}\n"
        "check.data_folder = lambda: '/no/where'"
    )
    result = run("check", before=few)
    assert result.returncode == 1, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok", "FIX", "1"]
    assert result.stderr == ""


def test_whole_command_without_torch_is_a_line_to_fix():
    result = run("check", before="sys.modules['torch'] = None")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "FIX   torchvision" in result.stdout


def test_kdlib_alone_prints_help(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert "check" in text and "course" in text


def test_unknown_command_and_option(capsys):
    for arguments in (["nonsense"], ["--nonsense"], ["check", "--nonsense"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert "nonsense" in capsys.readouterr().err


def test_help_of_a_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["check", "--help"])
    assert stop.value.code == 0
    assert "Is this machine ready" in capsys.readouterr().out
