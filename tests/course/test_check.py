"""`python -m kdlib check`: every line, once ok and once to mend."""

import importlib.metadata
import json
import subprocess
import sys
import venv
from collections import namedtuple
from pathlib import Path

import pytest

from kdlib.__main__ import main
from kdlib.course import check
from kdlib.course.check import Finding
from kdlib.losses.kd import kd_loss

GB = 1e9
Usage = namedtuple("Usage", "total used free")


def fails(finding: Finding, *, found: str, mend: str) -> None:
    """The finding says what is wrong and how to mend it, in one line."""
    assert not finding.ok
    assert found in finding.found
    assert mend in finding.mend
    assert str(finding).startswith("MEND") and "\n" not in str(finding)


def holds(finding: Finding, *, found: str) -> None:
    assert finding.ok, finding
    assert found in finding.found
    assert finding.mend == ""
    assert str(finding).startswith("ok") and "\n" not in str(finding)


# --- Python and packages ---------------------------------------------------------------------


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 14, 9)])
def test_python_supported(version):
    holds(check.check_python(version), found=".".join(map(str, version)))


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 15, 0), (2, 7, 18)])
def test_python_unsupported(version):
    fails(check.check_python(version), found="needs 3.11 to 3.14", mend="PYTHON=python3.13")


def test_packages_here():
    declared = check.course_requirements()
    names = [requirement.split(">=")[0] for requirement in declared]
    assert {"torch", "transformers", "jupyterlab", "psutil"} <= set(names)
    assert "pytest" not in names  # that is for developers
    holds(
        check.check_packages(),
        found=f"all {len(declared)} present, torch {importlib.metadata.version('torch')}",
    )


def test_package_missing():
    finding = check.check_packages(["numpy>=1.26", "no-such-package>=1"])
    fails(
        finding,
        found="no-such-package is missing",
        mend='-m pip install --upgrade "no-such-package>=1"',
    )
    assert "numpy" not in finding.mend


def test_package_too_old():
    versions = {"torch": "2.10.0+cu128", "numpy": "2.3.0"}
    finding = check.check_packages(["torch>=2.11", "numpy>=1.26"], versions.__getitem__)
    fails(finding, found="torch is 2.10.0+cu128, needs >=2.11", mend='"torch>=2.11"')
    assert sys.executable in finding.mend


def test_package_of_a_development_version_counts():
    holds(check.check_packages(["torch>=2.11"], lambda name: "2.13.0.dev20260101"), found="torch 2.13")


def test_kdlib_not_installed(monkeypatch):
    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", nothing)
    fails(check.check_packages(), found="not installed", mend='pip install -e ".[course]"')


def test_torchvision_here():
    holds(check.check_torchvision(), found=importlib.metadata.version("torchvision"))


def test_torchvision_for_another_torch():
    def unregistered(*_):
        raise RuntimeError("operator torchvision::nms does not exist\nC++ stack\nmore")

    fails(
        check.check_torchvision(unregistered),
        found="operator torchvision::nms does not exist",
        mend="--force-reinstall torch torchvision",
    )


def test_torchvision_that_does_not_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    fails(check.check_torchvision(), found="torchvision.ops", mend="--force-reinstall")


def test_torchvision_that_computes_nonsense():
    import torch

    fails(check.check_torchvision(lambda *_: torch.tensor([0, 1])), found="[0, 1]", mend="pip install")


# --- the machine -----------------------------------------------------------------------------


def test_accelerator_here():
    holds(check.check_accelerator(), found="")


def test_cpu_alone_is_fine():
    holds(check.check_accelerator("cpu"), found="CPU, threads: ")


def test_device_that_does_not_compute():
    # Tensors of this device have a shape and no values, so the product cannot come back.
    fails(check.check_accelerator("meta"), found="META", mend="pip install")


def test_matrix_product_that_is_wrong(monkeypatch):
    import torch

    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: self + 1)
    fails(check.check_accelerator("cpu"), found="matrix product is wrong", mend="pip install")


def test_memory():
    holds(check.check_memory(needed=1), found="GB free")  # what is really free here
    holds(check.check_memory(2.0 * GB), found="2.0 GB free")
    fails(check.check_memory(1.9 * GB), found="1.9 GB free of the 2.0 GB", mend="close other")


def test_disk(tmp_path):
    holds(check.check_disk(tmp_path, needed=1), found="GB free where data go")
    fails(
        check.check_disk(tmp_path, usage=lambda folder: Usage(10 * GB, 9 * GB, 1 * GB)),
        found="1.0 GB free",
        mend=str(tmp_path / "downloads"),
    )


def test_writing(tmp_path):
    holds(check.check_writing([tmp_path]), found="can be written")
    assert list(tmp_path.iterdir()) == []
    holds(check.check_writing(), found="can be written")


def test_writing_where_none_is_possible(tmp_path):
    file = tmp_path / "file"
    file.write_text("a folder that is a file cannot be written, by root either")
    fails(check.check_writing([tmp_path, file]), found=str(file), mend="TMPDIR")
    fails(check.check_writing([tmp_path / "gone"]), found="gone", mend="TMPDIR")
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
    holds(check.check_kernel(), found="imports kdlib")


def test_kernel_that_nobody_installed():
    fails(
        check.check_kernel("no-such-kernel"),
        found="no-such-kernel does not start",
        mend="-m ipykernel install --sys-prefix --name no-such-kernel",
    )


def test_kernel_that_dies_at_once_says_why(kernel):
    name = kernel(sys.executable, "-c", "raise SystemExit('no module named ipykernel_launcher')")
    fails(
        check.check_kernel(name),
        found="trial does not start: no module named ipykernel_launcher",
        mend="ipykernel install",
    )


def test_kernel_that_does_not_answer_in_time(kernel):
    name = kernel(sys.executable, "-c", "import time; time.sleep(60)")
    fails(check.check_kernel(name, seconds=1), found="1 seconds", mend="ipykernel install")


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
    fails(check.check_kernel(name), found=f"runs {other}", mend="kernelspec remove -f trial")


def test_kernel_without_kdlib(kernel, tmp_path):
    (tmp_path / "kdlib.py").write_text("raise ImportError('no such package here')")
    name = kernel(sys.executable, "-m", "ipykernel_launcher", PYTHONPATH=str(tmp_path))
    fails(check.check_kernel(name), found="ImportError: no such package here", mend="pip install -e")


# --- distillation ----------------------------------------------------------------------------


def test_distillation_here():
    import torch

    state = torch.get_rng_state()
    holds(check.check_distillation(), found="KL(teacher || student)")
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
def test_distillation_that_does_not_learn(loss):
    fails(check.check_distillation(loss), found="did not learn", mend="git status")


def test_distillation_without_steps():
    fails(check.check_distillation(steps=0), found="did not learn", mend="git status")


# --- all together ----------------------------------------------------------------------------


def crash() -> Finding:
    raise OSError("libcudart.so.13: cannot open shared object file\nmore")


def test_crash_within_a_check_is_a_line(capsys):
    checks = {"Python": check.check_python, "crashing": crash}
    findings = list(check.run_checks(checks))
    assert [finding.ok for finding in findings] == [True, False]
    fails(findings[1], found="OSError: libcudart.so.13: cannot open", mend="pip install")
    assert check.report(findings) is False
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 2 to mend."


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
    if any(line.startswith("MEND") for line in lines):  # a machine may really be short of memory
        assert {line.split()[1] for line in lines if line.startswith("MEND")} <= {"memory", "disk"}
        assert result.returncode == 1
    else:
        assert [line.split()[:2] for line in lines[:-1]] == [["ok", name] for name in check.CHECKS]
        assert lines[-1].startswith("All ok")
        assert result.returncode == 0
    assert result.stderr == ""


def test_whole_command_fails_for_one():
    few = (
        "from kdlib.course import check\n"
        "check.CHECKS = {'Python': check.check_python, 'writing': lambda: check.check_writing(['/no/where'])}"
    )
    result = run("check", before=few)
    assert result.returncode == 1, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok", "MEND", "1"]
    assert result.stderr == ""


def test_whole_command_without_torch_is_a_line_to_mend():
    result = run("check", before="sys.modules['torch'] = None")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "MEND  torchvision" in result.stdout


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
