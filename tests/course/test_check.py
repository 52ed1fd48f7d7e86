"""`python -m kdlib check`: every line, once ok and once to fix."""

import importlib.metadata
import json
import platform
import re
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
from kdlib.cli import check as cli
from kdlib.course import check
from kdlib.course.check import Finding

GB = 1e9
Usage = namedtuple("Usage", "total used free")


def fails(look: Callable[[], str], *, found: str) -> None:
    """The check says what is wrong and how to fix it, in one line."""
    (finding,) = check.run_checks({"name": (look, "do this")})
    assert not finding.ok
    assert found in finding.found
    assert finding.fix == "do this"
    assert str(finding).startswith("FIX") and "\n" not in str(finding)


# --- Python and packages ---------------------------------------------------------------------


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 14, 9)])
def test_python_supported(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    assert check.check_python() == ".".join(map(str, version))


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 15, 0), (2, 7, 18)])
def test_python_unsupported(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    fails(check.check_python, found="needs 3.11 to 3.14")


def test_packages_here():
    found = check.check_packages()
    assert re.fullmatch(r"all \d\d present, torch \S+, jupyterlab \S+", found)
    assert f"torch {importlib.metadata.version('torch')}, " in found


@pytest.fixture
def packages(monkeypatch):
    """Declare requirements, and install versions by name; those that are missing have the version None."""

    def declare(*requirements: str, **versions: str | None) -> None:
        def version(name):
            if (found := versions.get(name, "1.0")) is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(check, "requires", lambda name: requirements)
        monkeypatch.setattr(check, "version", version)

    return declare


def test_package_missing(packages):
    declared = ("numpy>=1.0", "scipy>=1; extra == 'course'", "pytest>=1; extra == 'dev'")
    packages(*declared, scipy=None, pytest=None)
    fails(check.check_packages, found="scipy is missing")


def test_package_too_old(packages):
    packages("torch>=2.11", "numpy>=1.0", torch="2.10.0+cu128")
    fails(check.check_packages, found="torch is 2.10.0+cu128, needs >=2.11")


def test_package_of_a_development_version_counts(packages):
    packages("torch>=2.11", torch="2.13.0.dev20260101")
    assert "all 1 present, torch 2.13" in check.check_packages()


def test_kdlib_not_installed(monkeypatch):
    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(check, "requires", nothing)
    fails(check.check_packages, found="PackageNotFoundError: No package metadata was found for kdlib")


def test_torchvision_here():
    assert importlib.metadata.version("torchvision") in check.check_torchvision()


def test_torchvision_for_another_torch(monkeypatch):
    def unregistered(*_):
        raise RuntimeError("operator torchvision::nms does not exist\nC++ stack\nmore")

    monkeypatch.setattr("torchvision.ops.nms", unregistered)
    fails(
        check.check_torchvision,
        found="operator torchvision::nms does not exist",
    )


def test_torchvision_that_does_not_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    fails(check.check_torchvision, found="torchvision")


# --- the machine -----------------------------------------------------------------------------


def test_cpu_alone_is_fine(monkeypatch):
    monkeypatch.setattr("kdlib.runtime.best_device", lambda: torch.device("cpu"))
    assert "CPU, threads: " in check.check_accelerator()


def test_device_that_does_not_compute(monkeypatch):
    # Tensors of this device have a shape and no values, so the product cannot come back.
    monkeypatch.setattr("kdlib.runtime.best_device", lambda: torch.device("meta"))
    fails(check.check_accelerator, found="meta tensors")


def test_matrix_product_that_is_wrong(monkeypatch):
    monkeypatch.setattr("kdlib.runtime.best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda self, other: self)
    fails(check.check_accelerator, found="cpu: a matrix product is wrong")


def test_memory(monkeypatch):
    monkeypatch.setattr(check, "MEMORY_NEEDED", 1)
    assert "GB free" in check.check_memory()  # what is really free here
    monkeypatch.setattr(check, "MEMORY_NEEDED", 1e18)
    fails(check.check_memory, found="GB free of the")


def test_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(check, "DATA", tmp_path)
    monkeypatch.setattr(check.shutil, "disk_usage", lambda folder: Usage(10 * GB, 8 * GB, 2 * GB))
    assert check.check_disk() == "2.0 GB free where data go"
    monkeypatch.setattr(check.shutil, "disk_usage", lambda folder: Usage(10 * GB, 9 * GB, 1 * GB))
    fails(check.check_disk, found="1.0 GB free")


def test_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "DATA", tmp_path)
    assert "can be written" in check.check_writing()
    assert list(tmp_path.iterdir()) == []


def test_writing_where_none_is_possible(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("a folder that is a file cannot be written, by root either")
    for folder in (file, tmp_path / "gone"):
        monkeypatch.setattr(check, "DATA", folder)
        fails(check.check_writing, found=str(folder))
    assert list(tmp_path.iterdir()) == [file]


def test_models_that_are_here_and_how_to_fetch_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "DATA", tmp_path)
    fetch = "(python -m kdlib fetch NAME)"
    assert check.check_models() == f"not here yet: smollm2, efficientnet-lite0 {fetch}"
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "efficientnet-lite0.safetensors").touch()
    assert check.check_models() == f"efficientnet-lite0 is here; not here yet: smollm2 {fetch}"
    (tmp_path / "downloads" / "smollm2").mkdir()
    (tmp_path / "downloads" / "smollm2" / "model.safetensors").touch()
    assert check.check_models() == "smollm2 is here; efficientnet-lite0 is here"


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
        found="No such kernel named no-such-kernel",
    )


def test_kernel_that_dies_at_once(kernel):
    name = kernel(sys.executable, "-c", "raise SystemExit('no module named ipykernel_launcher')")
    fails(
        partial(check.check_kernel, name),
        found="Kernel died",
    )


def test_kernel_that_does_not_answer_in_time(kernel):
    name = kernel(sys.executable, "-c", "import time; time.sleep(60)")
    fails(partial(check.check_kernel, name, seconds=1), found="1 seconds")


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
    fails(partial(check.check_kernel, name), found=f"runs another Python, '{tmp_path / 'other'} ")


def test_kernel_without_kdlib(kernel, tmp_path):
    (tmp_path / "kdlib.py").write_text("raise ImportError('no such package here')")
    name = kernel(sys.executable, "-m", "ipykernel_launcher", PYTHONPATH=str(tmp_path))
    fails(partial(check.check_kernel, name), found="ImportError: no such package here")


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
    monkeypatch.setattr("kdlib.training.kd_loss", loss)
    fails(check.check_distillation, found="did not learn")


# --- all together ----------------------------------------------------------------------------


def crash() -> str:
    raise OSError("libcudart.so.13: cannot open shared object file\nmore")


def test_crash_within_a_check_is_a_line(capsys):
    checks = {"Python": (check.check_python, ""), "crashing": (crash, "")}
    findings = list(check.run_checks(checks))
    assert [finding.ok for finding in findings] == [True, False]
    fails(crash, found="OSError: libcudart.so.13: cannot open")
    assert check.report(findings) == findings
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 2 to fix."


def test_report_of_a_ready_machine(capsys):
    ready = Finding("memory", True, "8.0 GB free")
    assert check.report(iter([ready])) == [ready]
    assert capsys.readouterr().out.splitlines() == [
        "ok    memory        8.0 GB free",
        "All ok: make lab opens the course.",
    ]


def test_a_finding_is_printed_before_the_next_check_runs(capsys):
    def looks_back() -> str:
        return capsys.readouterr().out

    first, second = check.report(check.run_checks({"one": (lambda: "1", ""), "two": (looks_back, "")}))
    assert second.found == f"{first}\n"


def test_what_is_sent_has_versions_and_machine_and_no_folder(monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.13.1")
    monkeypatch.setattr(platform, "system", lambda: "Plan9")
    monkeypatch.setattr(platform, "machine", lambda: "mips")
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    monkeypatch.setattr("psutil.virtual_memory", lambda: Usage(16.2 * GB, 0, 0))
    monkeypatch.setattr(cli, "version", lambda name: f"{len(name)}.0")
    findings = [Finding("disk", True, "3.0 GB free"), Finding("writing", False, "/home/me/x", "do this")]
    assert cli.to_send(findings).splitlines() == [
        "Python 3.13.1, kdlib 5.0, torch 5.0, jupyterlab 10.0",
        "Plan9, mips, 7 cores, 16 GB",
        "FIX: writing; ok: disk",
    ]


def test_what_is_sent_where_packages_are_missing(packages, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    packages(torch=None)
    monkeypatch.setattr(cli, "version", check.version)
    assert "torch missing, jupyterlab 1.0" in cli.to_send([])
    assert "memory unknown" in cli.to_send([])


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess:
    """`python -m kdlib` in a process of its own, after the statements `before`."""
    script = (
        f"import sys, runpy\n{before}\nsys.argv[0] = 'kdlib'\nrunpy.run_module('kdlib', run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)


def test_whole_command_says_ok_for_all():
    result = subprocess.run([sys.executable, "-m", "kdlib", "check"], capture_output=True, text=True)
    lines = result.stdout.partition("\n\n")[0].splitlines()
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
        "from pathlib import Path\n"
        "for name in [*check.CHECKS][1:-2] + ['distillation']:\n    del check.CHECKS[name]\n"
        "check.DATA = Path('/no/where')"
    )
    result = run("check", before=few)
    assert result.returncode == 1, result.stderr
    lines, sent = result.stdout.split("\n\n")
    assert [line.split()[0] for line in lines.splitlines()] == ["ok", "FIX", "1"]
    assert sent.splitlines()[-1] == "FIX: writing; ok: Python"
    assert "-> move the course to a folder of yours" in result.stdout
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
