"""All that is to be measured on a GPU, in one run of eight minutes that can be interrupted.

    python tests/benchmarks/gpu.py --out data/results

Nothing is fetched. It needs PyTorch, torchvision, transformers, accelerate and scipy, and pytest for the
tests; kdlib need not be installed. liger-kernel and trl stand in the table of the loss if they are there.

Each part runs in a process of its own, for as long as its share of the time, and leaves a file gpu_PART.json.
A part that fails or takes too long takes no other with it. Started again, the script goes on with the parts
that are missing. Files of another version of the code, of other hardware or packages, are refused.

    python tests/benchmarks/gpu.py --out FOLDER --device cpu --small

runs everything on tiny sizes in a minute or two, to see that it works. Those figures mean nothing.
"""

import argparse
import gc
import importlib
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # the folder of this file, whose modules are those of the package `benchmarks`
PLACES = [str(ROOT), str(ROOT / "tests")]
sys.path[:0] = PLACES

import torch  # noqa: E402

from kdlib.storage import describe_changes, fingerprint, write_json  # noqa: E402

PACKAGES = ("torch", "triton", "transformers", "accelerate", "torchvision", "liger_kernel", "trl")
# kdlib.language and kdlib.vision ask for these at their doors, and nothing that is measured uses them.
UNUSED = ("math_verify", "openai", "sklearn", "yaml")
SHORTEST = 20  # seconds: with less left, no part is begun
GRACE = 10  # seconds that a part may take beyond what it was told, before it is stopped


class Part(NamedTuple):
    """A function of `module`, and the seconds that it may take of a run of eight minutes."""

    seconds: int
    module: str = "benchmarks.gpu_parts"


# The most valuable first. Together they may take longer than eight minutes; most end sooner.
PARTS: Mapping[str, Part] = {
    "tests": Part(110),
    "loss": Part(150),
    "step_qwen": Part(70, "benchmarks.gpu_steps"),
    "logits": Part(80),
    "cat_or_dog": Part(60),
    "widths": Part(60),
    "step_smollm2": Part(50, "benchmarks.gpu_steps"),
    "loss_others": Part(90),
}


def measured_on(device: str, small: bool) -> dict[str, object]:
    """What figures depend on: hardware, versions, sizes, and the code, as one number."""
    found: dict[str, object] = {"device": "CPU", "small": small, "code": code()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name, "memory": properties.total_memory, "driver": driver(),
            "compute_capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda,
        }  # fmt: skip
    found |= {name: version_of(name) for name in PACKAGES} | {"torch": torch.__version__}
    found |= {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    return found | {"kernels": os.environ.get("KDLIB_KERNELS", "1"), "cpu_count": os.cpu_count()}


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def driver() -> str:
    """Of NVIDIA, as nvidia-smi tells it."""
    return output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]


def commit() -> str:
    """What git says of the tree, with -dirty where something in it is not committed."""
    return output_of("git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")


def output_of(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def code() -> str:
    """One number for kdlib and its tests, and so for everything that is run here."""
    paths = sorted([*(ROOT / "kdlib").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])
    return fingerprint(*(part for path in paths for part in (path.name, path.read_bytes())))


def stored(path: Path, environment: Mapping[str, object]) -> dict | None:
    """A part's file, if there is one; a `ValueError` if it is of another run."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
        changed = describe_changes(found["environment"], environment)
    except (ValueError, TypeError, KeyError):
        changed = "it was not written by this script"
    if changed:
        raise ValueError(
            f"{path} does not belong to this run: {changed}. Choose another folder with --out, or delete "
            "the files gpu_*.json in this one to measure everything anew"
        )
    return found


def stand_ins(folder: Path) -> list[str]:
    """Modules in the place of those that are missing, and that nothing here uses; they cannot be imported."""
    missing = [name for name in UNUSED if importlib.util.find_spec(name) is None]
    for name in missing:
        said = f"{name} is not installed, and was not expected to be used by what is measured"
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError({said!r}, name={name!r})\n")
    return missing


def run(job: Mapping, places: Sequence[str]) -> str:
    """One part in a process of its own, which writes its file; or what went wrong, which is written too."""
    seconds, device, path = job["seconds"], job["device"], Path(job["path"])
    begun, error = time.monotonic(), ""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command(job), cwd=ROOT, env=environment_of(device, places), stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            if code := process.wait(seconds + GRACE):
                error = f"ended with {code}"
        except subprocess.TimeoutExpired:
            error = f"stopped after {seconds + GRACE:.0f} s"
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        last = log.read().decode(errors="replace").splitlines()[-80:]
    if not error:
        return ""
    raised = [line for line in last if re.match(r"[\w.]+(?:Error|Exception|Interrupt)\b", line)]
    error = ": ".join([error, *(raised or [line for line in last if line.strip()])[-1:]])
    # Beside what was measured before it went wrong, or in an earlier run.
    before = stored(path, job["header"]["environment"]) or {
        **job["header"], "part": job["part"], "seconds": time.monotonic() - begun
    }  # fmt: skip
    write_json(path, before | {"error": error, "output": last})
    return error


def command(job: Mapping) -> list[str]:
    return [sys.executable, "-P", str(Path(__file__).resolve()), "--job", json.dumps(job)]


def environment_of(device: str, places: Sequence[str]) -> dict[str, str]:
    """Of a part's process: where to import from, no network, and no GPU where none is asked for."""
    places = [*places, *filter(None, [os.environ.get("PYTHONPATH")])]
    hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", **hidden}  # fmt: skip


def work(job: Mapping) -> None:
    """What a part's process does. It ends with the process that started it."""
    begun = time.monotonic()

    def watch() -> None:
        while os.getppid() == job["parent"]:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    from benchmarks.gpu_parts import Where

    part, header = job["part"], job["header"]

    def keep(found: Mapping[str, object]) -> None:
        write_json(job["path"], {**header, "part": part, "seconds": time.monotonic() - begun, **found})

    small, until = header["environment"]["small"], begun + job["seconds"]
    measure = getattr(importlib.import_module(PARTS[part].module), part)
    gc.freeze()  # what was imported is no garbage: a search of all of it would take a third of a second
    keep(measure(Where(torch.device(job["device"]), small, until, keep)))


def complete(found: Mapping | None) -> bool:
    return found is not None and "error" not in found and not found["left_out"]


def report(results: Mapping[str, Mapping | None], environment: Mapping[str, object]) -> str:
    """Everything that was found, part by part, and which figures of the loss are reached."""
    lines = [f"\n{environment['device']}, torch {environment['torch']}, triton {environment['triton']}"]
    for name, found in results.items():
        if found is None:
            lines.append(f"\n{name}: no time was left; start again to go on")
            continue
        lines.append(f"\n{name}: {found['seconds']:.0f} s, {found['date']}")
        lines += found.get("summary", [])
        lines += [f"    FAILED: {found['error']}"] if "error" in found else []
        lines += [f"    no time was left for {', '.join(found['left_out'])}"] if found.get("left_out") else []
    rows = [row for found in results.values() if found for row in found.get("rows", ())]
    if rows and not environment["small"]:
        from benchmarks.race import Row
        from benchmarks.targets import judged_targets, targets_table

        lines += ["", targets_table(judged_targets([Row(**row) for row in rows], "cuda"))]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where gpu_PART.json are written")
    parser.add_argument("--minutes", type=float, default=8.0, help="to end in (%(default)g)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"some of {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes: to see that it runs")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.job:
        work(json.loads(given.job))
        return 0
    if given.out is None:
        parser.error("--out FOLDER is needed: the results are written there")
    if given.device == "cuda" and not torch.cuda.is_available():
        print(f"no CUDA device (PyTorch {torch.__version__} sees none): there is nothing to measure. With "
              "--device cpu --small everything runs on tiny sizes, to see that it works", file=sys.stderr)
        return 1
    if given.device == "cpu" and not given.small:
        parser.error("--device cpu only with --small: the sizes are a GPU's")
    environment = measured_on(given.device, given.small)
    paths = {name: given.out / f"gpu_{name}.json" for name in given.parts}
    try:
        results = {name: stored(path, environment) for name, path in paths.items()}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if missing := [name for name in ("liger_kernel", "trl") if environment[name] == "not installed"]:
        print(f"not installed: {', '.join(missing)}; the table of the loss says so in their rows")
    with tempfile.TemporaryDirectory() as folder:
        sys.path.append(folder)
        if missing := stand_ins(Path(folder)):
            print(f"not installed, and not needed here: {', '.join(missing)}")
        for name in given.parts:
            if complete(results[name]):
                print(f"{name}: is there", flush=True)
                continue
            left = begun + 60 * given.minutes - time.monotonic() - GRACE
            if left < min(SHORTEST, PARTS[name].seconds * given.minutes / 8):
                continue
            header = {"environment": environment, "commit": commit(),
                      "date": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip
            seconds = min(PARTS[name].seconds * given.minutes / 8, left)
            job = {"part": name, "seconds": seconds, "path": str(paths[name].resolve()), "header": header,
                   "device": given.device, "parent": os.getpid()}  # fmt: skip
            error = run(job, [*PLACES, folder])
            results[name] = stored(paths[name], environment)
            print(f"{name}: {error or 'done'}, {time.monotonic() - begun:.0f} s since the start", flush=True)
        print(report(results, environment))
        sys.path.remove(folder)
    if given.device == "cuda" and not given.small:
        print("\nREADME.md and data/results/README.md say that nothing was measured on a GPU. If these files "
              "are to be committed, say there what was, and on which GPU.")  # fmt: skip
    failures = any(found.get("failures") for found in results.values() if found)
    return 0 if all(map(complete, results.values())) and not failures else 1


if __name__ == "__main__":
    sys.exit(main())
