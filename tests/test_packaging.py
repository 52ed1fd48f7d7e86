"""What is declared in one place and repeated in another agrees, and the package installs as promised."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from jupyter_server.serverapp import DEFAULT_JUPYTER_SERVER_PORT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SUPPORTED = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]


# Extras that `make lab` and `make test` do without, for what they need has to be compiled.
UNLOCKED = {"gym"}


def requirements(environment: dict[str, str] | None = None) -> list[Requirement]:
    """Those of pyproject.toml, all locked extras included: in any environment, or in this one."""
    extras = [needs for extra, needs in PROJECT["optional-dependencies"].items() if extra not in UNLOCKED]
    found = [Requirement(line) for lines in (PROJECT["dependencies"], *extras) for line in lines]
    return [
        r for r in found
        if r.name != PROJECT["name"]
        and (environment is None or r.marker is None or r.marker.evaluate(environment))
    ]  # fmt: skip


def declared(environment: dict[str, str] | None = None) -> dict[str, SpecifierSet]:
    """Name and bound of each."""
    return {canonicalize_name(r.name): r.specifier for r in requirements(environment)}


def pins() -> list[tuple[Requirement, str]]:
    """Every entry of the lock file: the requirement and the lines with its hashes."""
    entries = re.findall(r"^(\S[^\\\n]*?) *(\\\n(?:[ \t].*\n?)*|\n|$)", LOCK, re.MULTILINE)
    return [(Requirement(line), rest) for line, rest in entries if line]


# --- environment.yml -------------------------------------------------------------------------


def conda() -> tuple[list[str], list[str]]:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (pip,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    return [entry for entry in entries if isinstance(entry, str)], pip


def test_conda_users_get_what_pyproject_declares():
    _, pip = conda()
    listed = [Requirement(line) for line in pip if not line.startswith("-e")]
    assert {canonicalize_name(r.name): r.specifier for r in listed} == declared()
    markers = [{r.name: r.marker for r in found if r.marker} for found in (listed, requirements())]
    assert markers[0] == markers[1]
    assert len(listed) == len(declared())  # none twice
    assert [line for line in pip if line.startswith("-")] == ["-e ."]


def test_conda_brings_python_pip_and_make_only():
    packages, _ = conda()
    (python,) = [Requirement(entry) for entry in packages if entry.startswith("python")]
    assert [entry for entry in packages if not entry.startswith("python")] == ["pip", "make"]
    assert python.name == "python"
    assert [f"3.{minor}" for minor in range(5, 20) if f"3.{minor}" in python.specifier] == SUPPORTED
    assert PROJECT["requires-python"] == ">=3.11"


# --- requirements.lock -----------------------------------------------------------------------


def test_lock_satisfies_every_declared_bound():
    versions: dict[str, list[Version]] = {}
    for requirement, _ in pins():
        (specifier,) = requirement.specifier
        versions.setdefault(canonicalize_name(requirement.name), []).append(Version(specifier.version))
    missing = declared().keys() - versions.keys()
    assert not missing
    wrong = {
        name: (str(specifier), [str(version) for version in versions[name]])
        for name, specifier in declared().items()
        if not all(version in specifier for version in versions[name])
    }
    assert not wrong


def test_every_pin_is_exact_and_has_hashes():
    entries = pins()
    assert len(entries) >= len(declared())
    assert len(entries) == len(re.findall(r"^[^\s#]", LOCK, re.MULTILINE))
    for requirement, hashes in entries:
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], requirement
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", hashes), requirement


def test_lock_names_no_place_to_download_from():
    for line in LOCK.splitlines():
        if line.startswith("#"):
            continue
        assert "://" not in line
        assert re.match(r"[A-Za-z0-9]|    --hash=sha256:", line), line


def test_lock_serves_every_supported_python_and_system():
    """For each, exactly one torch and one numpy is left once the markers are evaluated."""
    for minor in (11, 12, 13, 14):
        for system, name in (("linux", "posix"), ("darwin", "posix"), ("win32", "nt")):
            environment = {
                "python_version": f"3.{minor}",
                "python_full_version": f"3.{minor}.9",
                "sys_platform": system,
                "os_name": name,
            }
            chosen = [
                requirement.name
                for requirement, _ in pins()
                if requirement.marker is None or requirement.marker.evaluate(environment)
            ]
            assert len(chosen) == len(set(chosen)), environment
            assert declared(environment).keys() <= {canonicalize_name(name) for name in chosen}, environment


# --- what git tracks -------------------------------------------------------------------------


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True, text=True
    ).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_the_host_of_a_package_registry():
    # Written in pieces: this file is tracked too.
    hosts = [
        "pypi" + ".org",
        "python" + "hosted",
        "anaconda" + ".org",
        "conda" + "-forge",
        "download.py" + "torch.org",
        "npmjs" + ".",
    ]
    paths = tracked()
    assert ROOT / "requirements.lock" in paths
    naming = [
        (path.relative_to(ROOT).as_posix(), host)
        for path in paths
        for host in hosts
        if host.encode() in path.read_bytes().lower()
    ]
    assert not naming


def test_there_is_one_lock_file():
    names = [path.name for path in tracked()]
    assert names.count("requirements.lock") == 1
    assert not {"uv.lock", "poetry.lock", "Pipfile.lock", "pdm.lock"} & set(names)


# --- commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["lab", "test", "course", "zh", "check", "record", "lint"])
def test_make_has_the_promised_target(target):
    assert re.search(rf"^{target}: \$\(READY\)$", MAKEFILE, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1]
    assert target in phony.split()


def test_ci_runs_what_everybody_runs():
    script = ROOT / ".ci" / "run"
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[-1] == "exec make test"
    assert os.access(script, os.X_OK) or os.name == "nt"


needs_make = pytest.mark.skipif(not shutil.which("make") or os.name == "nt", reason="needs make and sh")


def make_with(version: str, folder: Path) -> subprocess.CompletedProcess:
    """`make lab` in a bare copy of the project, with a Python that claims to be this version."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    fake = folder / "fake-python"
    # The guard itself runs in the real interpreter, with another version in sys; what comes after it
    # only leaves a mark.
    fake.write_text(
        f'#!/bin/sh\n[ "$1" = "-c" ] || {{ touch "{folder}/went-on"; exit 7; }}\n'
        f'exec "{sys.executable}" -c "import sys; sys.version_info = {version}; exec(sys.argv[1])" "$2"\n'
    )
    fake.chmod(0o755)
    return subprocess.run(
        ["make", "lab", f"PYTHON={fake}"], cwd=folder, capture_output=True, text=True, timeout=60
    )


@needs_make
@pytest.mark.parametrize("version", [(3, 10, 4), (3, 15, 0)])
def test_make_refuses_an_unsupported_python_in_a_sentence(tmp_path, version):
    result = make_with(f"({version[0]}, {version[1]}, {version[2]})", tmp_path)
    assert result.returncode != 0
    sentence = f"kdlib needs Python 3.11 to 3.14, this is {version[0]}.{version[1]}; try: make PYTHON="
    assert sentence in result.stderr
    assert "lab" in result.stderr.split(sentence)[1].splitlines()[0]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "went-on").exists()


@needs_make
@pytest.mark.parametrize("version", [(3, 11, 0), (3, 14, 2)])
def test_make_goes_on_with_a_supported_python(tmp_path, version):
    result = make_with(f"({version[0]}, {version[1]}, {version[2]})", tmp_path)
    assert "kdlib needs Python" not in result.stderr
    assert (tmp_path / "went-on").exists()


# --- containers ------------------------------------------------------------------------------


def test_binder_installs_the_lock_with_its_hashes():
    folder = ROOT / ".binder"
    said = [line for line in (folder / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert said == ["--require-hashes", "-r ../requirements.lock"]
    assert (folder / said[1].removeprefix("-r ")).samefile(ROOT / "requirements.lock")
    assert (folder / "runtime.txt").read_text().strip().removeprefix("python-") in SUPPORTED


@pytest.mark.skipif(not shutil.which("bash") or os.name == "nt", reason="needs bash")
def test_binder_adds_kdlib_and_nothing_that_is_not_locked():
    script = ROOT / ".binder" / "postBuild"
    assert os.access(script, os.X_OK)
    assert not subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr
    commands = [line for line in script.read_text().splitlines() if line and line[0] != "#"]
    assert commands[0] == "set -euo pipefail"
    (install,) = commands[1:]
    assert {"--no-deps", "--no-build-isolation", "--editable"} <= {*install.split()}


def test_the_dev_container_sets_up_with_make_and_shows_jupyterlab():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert re.fullmatch(r"\S+/python:(3\.\d+)", container["image"])[1] in SUPPORTED
    make, target = container["postCreateCommand"].split()
    assert make == "make"
    assert re.search(rf"^{target}: \$\(READY\)$", MAKEFILE, re.MULTILINE)
    assert "--require-hashes requirements.lock" in MAKEFILE
    assert container["forwardPorts"] == [DEFAULT_JUPYTER_SERVER_PORT]


# --- the package -----------------------------------------------------------------------------


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The Python of an empty environment into which the wheel was installed without any extra."""
    folder = tmp_path_factory.mktemp("bare")
    uv = [shutil.which("uv", path=Path(sys.executable).parent) or "uv", "--quiet"]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*uv, "venv", "--python", sys.executable, str(folder / "venv")], check=True)
    install = [
        *uv, "pip", "install", "--python", str(python_of(folder / "venv")), str(wheel),
        "--constraint", str(ROOT / "requirements.lock"),
    ]  # fmt: skip
    # From the packages that setting up the course has left in uv's cache, or from the index.
    done = subprocess.run([*install, "--offline"], capture_output=True, text=True)
    if done.returncode:
        done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the package index cannot be reached: {done.stderr[-300:]}")
    return python_of(folder / "venv")


def run_in(python: Path, script: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), "-c", script]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def test_a_bare_installation_trains_a_student(bare, tmp_path):
    script = """
import sys, torch
from kdlib import evaluate, fit, kd_loss
torch.manual_seed(0)
images = torch.randn(256, 8)
labels = (images[:, 0] > 0).long()
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=32)
teacher, student = torch.nn.Linear(8, 2), torch.nn.Linear(8, 2)
fit(teacher, data, epochs=20, lr=0.1, seed=0)
fit(student, data, teacher=teacher, epochs=20, lr=0.1, seed=0)
loss = kd_loss(student(images), teacher(images), labels)
scores = evaluate(student, data)
print(scores.accuracy > 0.9, loss.item() < 1)
print({"matplotlib", "scipy", "sklearn", "torchvision", "transformers"} & {*sys.modules})
"""
    result = run_in(bare, script, tmp_path)
    assert result.stdout == "True True\nset()\n", result.stderr


def test_a_bare_installation_brings_little(bare, tmp_path):
    script = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    names = {canonicalize_name(name) for name in run_in(bare, script, tmp_path).stdout.split()}
    assert names >= {"kdlib", "torch", "safetensors", "accelerate"}
    absent = {"matplotlib", "jupyterlab", "openai", "pillow", "scikit-learn", "torchvision", "transformers"}
    assert not names & absent


@pytest.mark.parametrize(
    ("statement", "extra"),
    [
        ("from kdlib import load_digits", "vision"),
        ("import kdlib.vision.nets", "vision"),
        ("import kdlib; kdlib.distill_language_model", "language"),
        ("from kdlib.language.traces.collect import collect_traces", "language"),
        ("import sys; from kdlib.__main__ import main; sys.exit(main(['course']))", "course"),
        ("import sys; from kdlib.__main__ import main; sys.exit(main(['fetch', 'pets']))", "vision"),
    ],
)
def test_a_missing_extra_is_asked_for_by_name(bare, tmp_path, statement, extra):
    result = run_in(bare, statement, tmp_path)
    assert result.returncode == 1
    assert f'pip install "kdlib[{extra}]"' in result.stderr.splitlines()[-1]


def test_importing_the_public_names_costs_little(tmp_path):
    """A ratio against torch itself: kdlib's own imports are lazy, and its losses import nothing but torch."""
    script = """
import time
begin = time.perf_counter(); import torch; torch_seconds = time.perf_counter() - begin
begin = time.perf_counter(); import kdlib; face = time.perf_counter() - begin
import sys; print(face / torch_seconds)
from kdlib import kd_loss, linear_kd_loss
print({"accelerate", "scipy", "transformers"} & {*sys.modules} - before)
""".replace("import sys; print", "import sys; before = {*sys.modules}; print")
    result = run_in(Path(sys.executable), script, tmp_path)
    (first, second) = result.stdout.splitlines()
    assert float(first) < 0.05, result.stderr
    assert second == "set()"


def test_package_imports_without_jupyter():
    script = """
import sys
blocked = ["IPython", "ipykernel", "ipywidgets", "jupyter_client", "nbclient", "nbconvert", "nbformat"]
for name in blocked:
    sys.modules[name] = None
import kdlib
assert kdlib.__all__
for name in kdlib.__all__:
    getattr(kdlib, name)
print("imported", kdlib.__name__)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "imported kdlib\n", result.stderr
