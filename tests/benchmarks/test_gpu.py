"""The script for a GPU, on tiny sizes and without one: its parts, and what becomes of those that fail."""

import contextlib
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import gpu, gpu_parts, gpu_steps, measuring
from benchmarks.race import Row
from kdlib.language.plan.hardware import Hardware

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--device", "cpu", "--small"]


def here(seconds=600.0):
    return gpu_parts.Where(torch.device("cpu"), True, time.monotonic() + seconds)


# --- the run ----------------------------------------------------------------------------------------

# What a part's process does in these tests: it notes that it began, and ends as the file `behave` says.
STAND_IN = """
import json, sys, time
from pathlib import Path
job = json.loads(sys.argv[1])
folder = Path(job["path"]).parent
with open(folder / "begun", "a") as file:
    print(job["part"], file=file)
how = json.loads((folder / "behave").read_text()).get(job["part"], "done")
if how == "slow":
    time.sleep(60)
if how == "failing":
    raise RuntimeError("a kernel went wrong")
left = ["the rest"] if how == "partly" else []
found = {"summary": [job["part"] + " was measured"], "left_out": left, "seconds": 1.0}
Path(job["path"]).write_text(json.dumps({**job["header"], "part": job["part"], **found}))
"""


@pytest.fixture
def started(monkeypatch, tmp_path, capsys):
    """Runs the script with stand-ins for the parts: its exit status, what it said, and which parts began."""
    monkeypatch.setattr(gpu, "command", lambda job: [sys.executable, "-c", STAND_IN, json.dumps(job)])
    monkeypatch.setattr(gpu, "GRACE", 0)
    monkeypatch.setattr(gpu, "SHORTEST", 0)
    monkeypatch.setattr(gpu, "code", lambda: "of today")
    seconds = {"tests": 160, "loss": 160, "logits": 16, "widths": 160}
    monkeypatch.setattr(gpu, "PARTS", {name: gpu.Part(most) for name, most in seconds.items()})

    def start(*more, **behave):
        (tmp_path / "behave").write_text(json.dumps(behave))
        (tmp_path / "begun").write_text("")
        status = gpu.main(["--out", str(tmp_path), *SMALL, *more])
        said = capsys.readouterr()
        return status, said.out + said.err, (tmp_path / "begun").read_text().split()

    return start


def test_a_part_that_fails_or_is_slow_takes_no_other_with_it_and_is_tried_again(started, tmp_path):
    # Half a minute: one part has a second of it, the others ten.
    status, said, begun = started("--minutes", "0.5", loss="failing", logits="slow")
    assert status == 1 and begun == ["tests", "loss", "logits", "widths"]
    assert "FAILED: ended with 1: RuntimeError: a kernel went wrong" in said
    assert "FAILED: stopped after 1 s" in said
    assert "tests was measured" in said and "widths was measured" in said
    failed = json.loads((tmp_path / "gpu_loss.json").read_text())
    assert failed["environment"]["torch"] == torch.__version__
    assert failed["output"][0].startswith("Traceback")

    status, said, begun = started(logits="partly")
    assert begun == ["loss", "logits"] and status == 1
    assert "tests: is there" in said and "FAILED" not in said and "no time was left for the rest" in said
    # What was measured in part is kept where a later try fails.
    status, said, begun = started(logits="failing")
    assert begun == ["logits"] and "logits was measured" in said and "FAILED: ended with 1" in said
    status, said, begun = started()
    assert status == 0 and begun == ["logits"] and "FAILED" not in said
    assert started()[::2] == (0, [])


def test_parts_for_which_no_time_is_left_are_told(started):
    status, said, begun = started("--minutes", "0")
    assert status == 1 and begun == []
    assert "widths: no time was left; start again to go on" in said


def test_results_of_another_run_are_refused(started, monkeypatch, tmp_path):
    assert started("--parts", "loss")[0] == 0
    monkeypatch.setattr(gpu, "code", lambda: "of tomorrow")
    status, said, begun = started("--parts", "loss")
    assert status == 2 and begun == []
    assert "gpu_loss.json does not belong to this run: code was of today, is of tomorrow. Choose an" in said
    assert started("--parts", "tests")[0] == 0, "files of other parts are no matter of this run"
    (tmp_path / "gpu_tests.json").write_text("[]")
    status, said, _ = started("--parts", "tests")
    assert status == 2 and "it was not written by this script" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_it_says_so_at_once(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "new")]) == 1
    said = capsys.readouterr().err
    assert "no CUDA device" in said and "--device cpu --small" in said
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path), "--device", "cpu"])
    assert "--device cpu only with --small" in capsys.readouterr().err


def doing(pid, part):
    """The process of a part, if the script has begun it."""
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):  # it has ended
            if f'"part": "{part}"' in " ".join(child.cmdline()):
                return child
    return None


def test_the_script_itself_killed_and_started_again(started, monkeypatch, tmp_path):
    """Its own processes, from a folder of somebody who has not installed kdlib."""
    monkeypatch.undo()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = [sys.executable, str(ROOT / "tests/benchmarks/gpu.py"), "--out", "there", *SMALL]
    parts = ["--parts", "widths", "loss_others"]
    process = subprocess.Popen([*script, *parts], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    written = tmp_path / "there" / "gpu_widths.json"
    try:
        while (child := doing(process.pid, "loss_others")) is None:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs([child], timeout=30)
    assert not alive, "a part's process goes on without the script"
    assert [path.name for path in written.parent.iterdir()] == ["gpu_widths.json"]
    found, first = json.loads(written.read_text()), written.stat()
    assert found["environment"]["code"] == gpu.code() and found["commit"] and found["date"] > "2020"
    assert len(found["rows"]) == 12 and not found["left_out"]

    monkeypatch.setattr(gpu, "command", lambda job: [sys.executable, "-c", STAND_IN, json.dumps(job)])
    (written.parent / "behave").write_text("{}")
    assert gpu.main(["--out", str(written.parent), *SMALL, *parts]) == 0
    assert (written.parent / "begun").read_text().split() == ["loss_others"]
    assert written.stat() == first


def test_missing_modules_that_nothing_uses_can_be_found_but_not_imported(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "UNUSED", ("torch", "no_such_module"))
    assert gpu.stand_ins(tmp_path) == ["no_such_module"]
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module is not installed"):
        import no_such_module  # noqa: F401


# --- the parts --------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """No search for garbage, and rates of the machine that are not measured."""
    monkeypatch.setattr(measuring.gc, "collect", lambda *generation: 0)
    monkeypatch.setattr(gpu_parts, "matrix_rate", lambda device, dtype: 1e12)
    monkeypatch.setattr(gpu_parts, "copy_rate", lambda device: 1e10)
    hardware = Hardware("CPU", 1e12, 1e12, 1e10, 1e10, kernels=False)
    monkeypatch.setattr(gpu_steps, "machine", lambda device: hardware)


def test_every_part_is_there_and_has_a_share_of_the_time():
    modules = {"benchmarks.gpu_parts": gpu_parts, "benchmarks.gpu_steps": gpu_steps}
    for name, part in gpu.PARTS.items():
        assert callable(getattr(modules[part.module], name)) and part.seconds >= 30
    # What most runs take, as figures are first of all those at the top.
    assert sum(part.seconds for part in list(gpu.PARTS.values())[:5]) <= 480


def test_outcomes_of_tests_are_counted(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(textwrap.dedent("""
        import pytest
        def test_right(): pass
        def test_wrong(): assert 1 == 2
        @pytest.mark.skip
        def test_not_here(): pass
        def test_broken(nothing): pass
    """))
    kept = []
    on_time, late = (
        gpu_parts.Outcomes(replace(here(seconds), keep=kept.append)) for seconds in (60, -1)
    )
    for outcomes in (on_time, late):
        pytest.main(["-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(file)], plugins=[outcomes])
    found, rest = on_time.result(), late.result()
    assert {name: found[name] for name in ("passed", "failed", "broken", "skipped", "left_out")} == {
        "passed": 1, "failed": 1, "broken": 1, "skipped": 1, "left_out": []
    }  # fmt: skip
    assert {name.partition("::")[2] for name in found["failures"]} == {"test_wrong", "test_broken"}
    assert "assert 1 == 2" in found["summary"][1]
    assert rest["passed"] == 1 and rest["left_out"] == ["3 tests, at test_some.py::test_right"]
    # If the second had never ended:
    assert kept[1]["passed"] == 1 and kept[1]["left_out"] == ["3 tests, at test_some.py::test_wrong"]


def test_files_with_gpu_tests_are_found():
    found = [path.name for path in gpu_parts.files_of_gpu_tests()]
    assert found[-1] == "test_kernels.py" and {"test_training_gpu.py", "test_language_gpu.py"} < {*found}
    assert "test_gpu.py" not in found


def test_the_loss_is_right_at_every_width_and_from_few_tokens(quick):
    kept = []
    where = replace(here(), keep=kept.append)
    tables = [part(where) for part in (gpu_parts.widths, gpu_parts.loss)]
    rows = [Row(**row) for table in tables for row in table["rows"]]
    assert {row.contender for row in rows} == {"eager PyTorch", "kdlib"}
    assert all(row.loss_error < 1e-5 and row.gradient_error < 1e-5 and row.seconds > 0 for row in rows)
    assert {(row.task, row.case) for row in rows} == {
        *(("logits", f"{name}, {width}") for name in ("forward", "jsd")
          for width in ("301 logits", "301 logits of 304", "101 logits")),
        ("linear", "forward"),
        *(("sizes", f"{kind}, forward, 32 tokens") for kind in ("linear", "logits")),
    }  # fmt: skip
    assert len(tables[0]["summary"]) == 12 and not tables[0]["left_out"]
    assert [len(found["rows"]) for found in kept] == [2, 4, 6, 8, 10, 12, 2, 4, 6]
    assert [len(found["left_out"]) for found in kept] == [5, 4, 3, 2, 1, 0, 2, 1, 0]
    json.dumps(tables)


def test_sliced_logits_lie_as_far_apart_as_the_whole_ones():
    whole, some = here().sizes, replace(here().sizes, vocabulary=300)
    problem = gpu_parts.sliced(some, 304, torch.device("cpu"))
    assert problem.inputs[0].shape == (32, 300) and problem.inputs[0].stride() == (304, 1)
    expected = gpu_parts.make_problem("logits", whole, "cpu")
    assert torch.equal(problem.inputs[0], expected.inputs[0][:, :300]) and problem.labels.max() < 300


def test_races_for_which_no_time_is_left_are_told(quick):
    found = gpu_parts.logits(here(-1))
    assert found["rows"] == [] and found["left_out"] == ["logits: forward", "logits: jsd", "logits: reverse"]


def test_cat_or_dog_runs_small(quick):
    found = gpu_parts.cat_or_dog(here())
    assert {name: len(arm["accuracy"]) for name, arm in found["arms"].items()} == {
        "alone": 2, "pseudo-labels": 2, "distilled": 2
    }  # fmt: skip
    assert all(rate > 0 for rate in found["images_per_second"].values()) and len(found["verdicts"]) == 2
    assert found["accuracy_on_a_cpu"]["alone"] == [0.6495, 0.6535]
    json.dumps(found)


@pytest.mark.parametrize("name", ["step_qwen", "step_smollm2"])
def test_steps_run_small_and_hold_what_was_planned(name, quick):
    found = getattr(gpu_steps, name)(here())
    assert list(found["steps"]) == ["logits", "texts"] and not found["left_out"]
    for arm in found["steps"].values():
        assert arm["peak_bytes"] == pytest.approx(arm["planned_bytes"], rel=0.1)
        assert arm["timed_steps"] == 2 and arm["fastest"] <= arm["seconds"] <= arm["slowest"]
        tokens = found["context"] * found["batch_size"]
        assert arm["tokens_per_second"] == pytest.approx(tokens / arm["seconds"])
        assert arm["planned_seconds"] > 0
    json.dumps(found)


def test_time_between_forwards():
    model = AutoModelForCausalLM.from_config(gpu_steps.tiny_config(16))
    marks = gpu_steps.Marks(model, torch.device("cpu"))
    for _ in range(3):
        model(torch.zeros(1, 2, dtype=torch.long))
        time.sleep(0.05)
    taken = marks.seconds()
    assert len(taken) == 2 and min(taken) > 0.05
    model(torch.zeros(1, 2, dtype=torch.long))
    assert len(marks.seconds()) == 2, "it goes on after it was read"


def test_random_weights_have_the_shape_of_smollm2():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(gpu_steps.smollm2_config())
    assert model.num_parameters() == 134_515_008


# --- what the project says --------------------------------------------------------------------------


def test_the_readme_says_whether_anything_was_measured_on_a_gpu():
    measured = [
        path for path in sorted((ROOT / "data/results").glob("gpu_*.json"))
        if not json.loads(path.read_text(encoding="utf-8"))["environment"].get("small")
    ]  # fmt: skip
    pages = [" ".join((ROOT / name).read_text(encoding="utf-8").split())
             for name in ("README.md", "data/results/README.md")]  # fmt: skip
    for page in pages:
        denied = re.search(r"nothing (?:here )?(?:has been|was) (?:measured|timed|run) on a GPU", page, re.I)
        assert bool(denied) != bool(measured), "the pages and data/results/gpu_*.json do not agree"
