"""The command from end to end at small sizes, its table and its files."""

import csv
import functools
import json
import sys

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import arguments, measuring, tasks, training
from benchmarks.__main__ import main
from benchmarks.problems import Setting, Sizes
from benchmarks.race import Rates, Row
from benchmarks.report import as_csv, figure, text_table

TINY = ["--tokens", "64", "--vocabulary", "512", "--student-hidden", "16", "--teacher-hidden", "32",
        "--device", "cpu", "--rounds", "1"]  # fmt: skip
ROWS = [
    Row("linear", "forward", "eager PyTorch", 64, 0.0125, 0.0120, 0.0130, 1.0, 4_200_000_000, 1.0, 0.25,
        loss_error=2e-6, gradient_error=3e-4, gradient_steps=0.5),
    Row("linear", "forward", "TRL", 64, note="not installed (trl)"),
    Row("linear", "forward", "kdlib", 64, 0.00625, 0.006, 0.007, 0.5, 42_000_000, 0.01, 0.5,
        loss_error=1e-7, gradient_error=1e-4, gradient_steps=0.25),
    Row("loader", "pictures", "kdlib Loader", seconds=2e-4, low=1e-4, high=3e-4, per_second=12_345.6),
]  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    """No C++ compiler, no search for garbage, and rates that are not measured."""
    whole = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", whole)
    monkeypatch.setattr(measuring.gc, "collect", lambda *generation: 0)
    monkeypatch.setattr(command, "measure_rates", lambda device, dtype: Rates(1e12, 1e10))


def test_from_end_to_end(quick, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "trl", None)
    chosen = [*TINY, "--divergences", "jsd", "forward", "--temperature", "2"]
    assert main(["linear", "logits", "masked", "sizes", *chosen, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["rows"]
    with open(tmp_path / "results.csv", newline="") as file:
        stored = list(csv.DictReader(file))
    assert [row["contender"] for row in stored] == [row["contender"] for row in rows]
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    cases = list(dict.fromkeys((row["task"], row["case"]) for row in rows))
    assert cases == [
        ("linear", "jsd"), ("linear", "forward"), ("logits", "jsd"), ("logits", "forward"), ("masked", "jsd"),
        ("masked", "forward"), ("sizes", "linear, jsd, 64 tokens"), ("sizes", "linear, forward, 64 tokens"),
        ("sizes", "logits, jsd, 64 tokens"), ("sizes", "logits, forward, 64 tokens"),
    ]  # fmt: skip
    for row in rows:
        if row["contender"] == "TRL":
            assert row["note"] == "not installed (trl)" and row["seconds"] is None
        if row["contender"] in ("eager PyTorch", "torch.compile", "kdlib"):
            assert row["note"] == "", row
            assert row["seconds"] > 0 and row["peak_bytes"] > 0 and row["loss_error"] < 1e-6, row
            assert row["gradient_error"] < 1e-5
        if row["task"] == "linear" and row["seconds"]:
            least = 2 * 64 * 512 * (3 * 16 + 32) / 1e12
            assert row["matrix_share"] == pytest.approx(least / row["seconds"])
    assert results["device"] == "cpu" and results["rates"] == {"matrix": 1e12, "copy": 1e10}
    assert results["sizes"]["vocabulary"] == 512 and results["sizes"]["dtype"] == "float32"
    assert (results["temperature"], results["alpha"], results["rounds"]) == (2, 0, 1)
    assert {"torch", "trl", "triton", "liger_kernel", "accelerator"} <= results["environment"].keys()
    assert "linear: jsd" in shown and "T = 2, α = 0, 1 round\n" in shown
    assert "These sizes are small, which favours eager PyTorch" in shown
    assert "ms – " not in shown and "µs – " not in shown, "one round has no range"
    assert str(tmp_path / "results.csv") in shown
    assert max(map(len, shown.split("linear: jsd")[1].splitlines()[:9])) <= 100


def test_shapes_are_odd_and_cut_out_of_wider_rows(quick, monkeypatch):
    seen = []

    def race(task, case, entrants, problem, *rest, **options):
        seen.append((problem.inputs[0].stride(), problem.teacher[0].shape, problem.labels.max().item()))
        return whole(task, case, entrants, problem, *rest, **options)

    whole = tasks.race
    monkeypatch.setattr(tasks, "race", race)
    asked = tasks.Request(
        torch.device("cpu"), Sizes(64, 512, 16, 32, torch.float32), Rates(1e12, 1e10), rounds=1, checked=8
    )
    rows = tasks.shapes(asked)
    assert [row.case for row in rows] == ["forward, 169 classes", "forward, logits[:, :511]"]
    assert [row.contender for row in rows] == ["kdlib", "kdlib"]
    assert [(stride, tuple(shape)) for stride, shape, _ in seen] == [
        ((169, 1), (64, 169)), ((512, 1), (64, 511))
    ]  # fmt: skip
    assert seen[0][2] < 169 and seen[1][2] < 511
    for row, classes in zip(rows, (169, 511), strict=True):
        assert row.note == "" and row.loss_error < 1e-6 and row.gradient_error < 1e-5
        assert row.copy_share == pytest.approx(5 * 64 * classes * 4 / 1e10 / row.seconds)


def test_what_help_says_is_what_the_tasks_do():
    """The parser is read before the tasks are imported."""
    done = {name: " ".join(task.__doc__.split()) for name, task in tasks.TASKS.items()}
    assert done == arguments.SUMMARIES
    assert set(arguments.DEFAULT_TASKS) <= done.keys() and command.favours_eager


def test_without_a_choice_the_losses_are_compared(quick, monkeypatch, capsys):
    done = []

    def noted(name):
        def task(asked):
            """Noted."""
            done.append((name, asked))
            return []

        return task

    monkeypatch.setattr(command, "TASKS", {name: noted(name) for name in tasks.TASKS})
    assert main(["--device", "cpu"]) == 0
    assert [name for name, _ in done] == ["linear", "logits"]
    asked = done[0][1]
    assert (asked.sizes.tokens, asked.sizes.vocabulary, asked.divergences) == (2048, 32_768, ("forward",))
    assert (asked.temperature, asked.alpha, asked.rounds) == (1.0, 0.0, 3)

    chosen = ["--alpha", "0.25", "--temperature", "2", "--dtype", "bfloat16", "--divergences", "jsd", "jsd"]
    assert main(["loader", "loader", *TINY, *chosen]) == 0
    ((name, asked),) = done[2:]
    assert name == "loader" and asked.sizes == Sizes(64, 512, 16, 32, torch.bfloat16)
    assert asked.settings() == [Setting("jsd", 2.0, 0.25)] and asked.rounds == 1


def test_sizes_of_a_gpu_are_those_of_the_figures_to_reach():
    sizes = command.default_sizes(torch.device("cuda"))
    assert (sizes.tokens, sizes.vocabulary, sizes.student_hidden, sizes.teacher_hidden, sizes.dtype) == (
        8192, 151_936, 1536, 3584, torch.bfloat16
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [(["nothing"], "no task nothing; expected some of linear"), (["--rounds", "0"], "--rounds 0"),
     (["--tokens", "0"], "tokens must be at least 1; got 0"), (["--temperature", "-1"], "temperature must"),
     (["--alpha", "2"], "alpha, the weight of the hard"), (["--device", "nowhere"], "--device nowhere")],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_runs(given, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(given if "--device" in given else [*given, "--device", "cpu"])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


# --- table, CSV, figure -----------------------------------------------------------------------------


def test_the_table_shows_times_ratios_shares_and_errors():
    lines = text_table(ROWS).splitlines()
    assert all(len(line) <= 110 for line in lines)
    eager, missing, ours, loaded = (
        next(line for line in lines if line.startswith(row.contender)) for row in ROWS
    )
    assert eager.split() == [
        "eager", "PyTorch", "12.5", "ms", "12", "ms", "–", "13", "ms", "1.00", "4.2", "GB", "1.00", "25%",
        "2e-06", "3e-04",
    ]  # fmt: skip
    assert missing.split(maxsplit=1) == ["TRL", "not installed (trl)"]
    assert ours.split()[-6:] == ["42", "MB", "0.01", "50%", "1e-07", "1e-04"]
    assert loaded.endswith("12,346 a second") and "200 µs" in loaded


def test_csv_holds_every_column_of_every_row():
    back = list(csv.DictReader(as_csv(ROWS).splitlines()))
    assert list(back[0]) == Row.columns()
    assert back[1]["note"] == "not installed (trl)" and back[1]["seconds"] == ""
    assert float(back[2]["seconds"]) == 0.00625 and int(back[2]["peak_bytes"]) == 42_000_000


def test_the_figure_holds_those_with_time_and_memory():
    text = figure(ROWS, "Title").get_label()
    assert "from hidden states, forward: eager PyTorch 12.5 ms, 4.2e+03 MB, kdlib 6.25 ms, 42 MB" in text
    assert "TRL" not in text and "Loader" not in text
    assert figure(ROWS[-1:], "Title") is None


# --- training, loaders, notebooks -------------------------------------------------------------------


def test_steps_of_training_and_loaders_run():
    device = torch.device("cpu")
    pictures = training.vision_steps(device, rounds=1, examples=32, batch_size=16, epochs=1)
    texts = training.language_steps(
        device, rounds=1, steps=1, batch_size=2, context=32, vocabulary=128, width=32, layers=1, top_k=8
    )
    for rows, case in ((pictures, "pictures"), (texts, "texts")):
        assert [row.contender for row in rows] == ["no teacher", "cached teacher", "teacher at every step"]
        assert {(row.task, row.case) for row in rows} == {("training", case)}
        assert all(row.seconds > 0 and row.per_second > 0 for row in rows) and rows[0].time_ratio == 1
    theirs, ours = training.loading(device, rounds=1, examples=64, batch_size=32, workers=0)
    assert theirs.contender == "DataLoader, 0 workers" and ours.contender == "kdlib Loader"
    assert ours.per_second == pytest.approx(64 / ours.seconds)


def test_whole_notebooks_are_timed_in_reading_order(monkeypatch):
    from kdlib.course.build import execute as course

    ran = []

    def execute(notebook, folder, name):
        ran.append((name, folder.name))
        return 0.5

    monkeypatch.setattr(course, "execute", execute)
    monkeypatch.setattr(course, "find_notebooks", lambda root: ["00_start_here", "solutions/02_temperature"])
    rows = training.whole_notebooks()
    assert ran == [("00_start_here", "notebooks"), ("solutions/02_temperature", "solutions")]
    assert [(row.case, row.seconds) for row in rows] == [(name, 30) for name, _ in ran]
