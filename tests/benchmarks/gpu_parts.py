"""What `tests/benchmarks/gpu.py` measures: each part a function of where to a result of JSON values.

A result has `summary`, lines for people; `left_out`, what there was no time for; and the figures.
"""

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from benchmarks.contenders import contenders
from benchmarks.measuring import copy_rate, matrix_rate, memory_let_go
from benchmarks.problems import Problem, Setting, Sizes, make_problem
from benchmarks.race import Rates, Row, race

if TYPE_CHECKING:  # the figures can be had without it
    import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 151_665  # of the Qwen vocabularies of R1-Distill; their other logits belong to none


@dataclass(frozen=True)
class Where:
    """The device; whether at sizes that take seconds on a CPU; when to have ended (time.monotonic()); and
    what keeps a result that is not all, for the case that the rest never ends.
    """

    device: torch.device
    small: bool
    until: float
    keep: Callable[[dict[str, object]], None] = lambda found: None

    @property
    def precision(self) -> str:
        return "bf16" if self.device.type == "cuda" else "no"

    @property
    def sizes(self) -> Sizes:
        """Of R1-Distill-Qwen-1.5B and 7B, in the precision in which models of that size are trained."""
        if self.small:
            return Sizes(32, 304, 16, 32, torch.float32)
        return Sizes(8192, 151_936, 1536, 3584, torch.bfloat16)


# --- tests ------------------------------------------------------------------------------------------


class Outcomes:
    """A plugin of pytest: how each test ended. It stops when the time is over."""

    def __init__(self, where: Where) -> None:
        self._where = where
        self._collected, self._last, self._found, self._said = 0, "", {}, {}

    def pytest_collection_finish(self, session: "pytest.Session") -> None:
        self._collected = len(session.items)

    def pytest_collectreport(self, report: "pytest.CollectReport") -> None:
        if report.failed:
            self._note(report, "broken")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._last = nodeid
        self._where.keep(self.result())

    def pytest_runtest_logreport(self, report: "pytest.TestReport") -> None:
        if report.when == "call" or not report.passed:
            self._note(report, "broken" if report.failed and report.when != "call" else report.outcome)

    def pytest_runtest_teardown(self, item: "pytest.Item") -> None:
        if time.monotonic() > self._where.until:
            item.session.shouldstop = "the time is over"

    def result(self) -> dict[str, object]:
        """So far."""
        ended = [*self._found.values()]
        counts = {name: ended.count(name) for name in ("passed", "failed", "broken", "skipped")}
        missing = self._collected - sum("::" in node for node in self._found)  # else it is of a file
        shown = ", ".join(f"{count} {name}" for name, count in counts.items())
        return {
            **counts, "failures": dict(self._said),
            "left_out": [f"{missing} tests, at {self._last}"] if missing else [],
            "summary": [shown, *(f"{name}: {said}" for name, said in self._said.items())],
        }  # fmt: skip

    def _note(self, report: "pytest.CollectReport | pytest.TestReport", outcome: str) -> None:
        self._found[report.nodeid] = outcome
        if report.failed:
            last = [line for line in report.longreprtext.splitlines() if line.startswith("E ")] or [""]
            self._said[report.nodeid] = last[0].removeprefix("E").strip()[:300]


def files_of_gpu_tests(root: Path = ROOT / "tests") -> list[Path]:
    """Files with tests that are marked gpu, those of the kernels last: a fault there ends all after it."""
    marked = [
        path for path in sorted(root.rglob("test_*.py"))
        if re.search(r"^(?:@|    )pytest\.mark\.gpu\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]  # fmt: skip
    return sorted(marked, key=lambda path: ("losses" in path.parts, len(path.parts)))


def tests(where: Where) -> dict[str, object]:
    """The tests that need a GPU, in this process. Warnings do not fail them: versions are not the pinned."""
    import pytest

    outcomes = Outcomes(where)
    files = files_of_gpu_tests()
    pytest.main(
        ["-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider", "--noconftest", "--rootdir", str(ROOT),
         "--continue-on-collection-errors", *map(str, files[:1] if where.small else files)],
        plugins=[outcomes],
    )  # fmt: skip
    return outcomes.result()


# --- the loss beside its peers ----------------------------------------------------------------------


class Race(NamedTuple):
    """One case of the table.

    `peers`: all contenders, or eager PyTorch and kdlib alone. `held`: logits are the first columns of tensors
    that are so wide, as those of a vocabulary without its padding.
    """

    task: str
    case: str
    kind: str
    sizes: Sizes
    divergence: str = "forward"
    peers: bool = False
    held: int | None = None


def sliced(sizes: Sizes, held: int, device: torch.device) -> Problem:
    """On given logits that are views of wider tensors, so that rows lie `held` apart."""
    whole = make_problem("logits", replace(sizes, vocabulary=held), device)
    student, teacher = (each[0].detach()[:, : sizes.vocabulary] for each in (whole.inputs, whole.teacher))
    labels = whole.labels.clamp(max=sizes.vocabulary - 1)
    return replace(whole, sizes=sizes, inputs=(student.requires_grad_(),), teacher=(teacher,), labels=labels)


def raced(where: Where, races: Sequence[Race]) -> dict[str, object]:
    """Their rows, as long as there is time: each may take as long as the longest so far."""
    device = where.device
    with memory_let_go(device):
        rates = Rates(matrix_rate(device, where.sizes.dtype), copy_rate(device))
    rows: list[Row] = []
    left_out, longest = [f"{one.task}: {one.case}" for one in races], 0.0

    def found() -> dict[str, object]:
        sizes = asdict(where.sizes) | {"dtype": str(where.sizes.dtype).removeprefix("torch.")}
        return {
            "sizes": sizes, "rates": asdict(rates), "rows": [asdict(row) for row in rows],
            "left_out": list(left_out), "summary": [_line(row) for row in rows],
        }  # fmt: skip

    for one in races:
        start = time.monotonic()
        if start + longest > where.until:
            continue
        entrants = contenders(one.kind)
        if where.small or not one.peers:
            entrants = [entrants[0], entrants[-1]]
        with memory_let_go(device):
            problem = (
                sliced(one.sizes, one.held, device) if one.held
                else make_problem(one.kind, one.sizes, device)
            )  # fmt: skip
            rows += race(
                one.task, one.case, entrants, problem, Setting(one.divergence), rates,
                rounds=2 if where.small else 10, checked=16 if where.small else 256,
            )  # fmt: skip
            del problem
        left_out.remove(f"{one.task}: {one.case}")
        longest = max(longest, time.monotonic() - start)
        where.keep(found())
    return found()


def _line(row: Row) -> str:
    head = f"{row.task}, {row.case}: {row.contender}"
    if row.seconds is None:
        return f"{head}: {row.note}"
    told = [f"{1e3 * row.seconds:.3g} ms", f"{row.peak_bytes / 1e9:.3g} GB"]
    for share, of in ((row.matrix_share, "matrix"), (row.copy_share, "copy")):
        told += [f"{share:.0%} of the {of} rate"] if share is not None else []
    told += [f"{row.time_ratio:.2f} × eager"] if row.time_ratio is not None else []
    return f"{head} {', '.join(told)}, gradient within {row.gradient_steps:.2g} steps"


def loss(where: Where) -> dict[str, object]:
    """From hidden states, forward KL, beside all peers; and before, as it is quick, from 256 tokens."""
    few = replace(where.sizes, tokens=min(256, where.sizes.tokens))
    return raced(where, [
        Race("sizes", f"linear, forward, {few.tokens} tokens", "linear", few),
        Race("sizes", f"logits, forward, {few.tokens} tokens", "logits", few),
        Race("linear", "forward", "linear", where.sizes, peers=True),
    ])  # fmt: skip


def loss_others(where: Where) -> dict[str, object]:
    """From hidden states, the other divergences, beside all peers."""
    return raced(where, [
        Race("linear", name, "linear", where.sizes, name, peers=True) for name in ("jsd", "reverse")
    ])  # fmt: skip


def logits(where: Where) -> dict[str, object]:
    """On given logits beside all peers."""
    return raced(where, [
        Race("logits", name, "logits", where.sizes, name, peers=name != "reverse")
        for name in ("forward", "jsd", "reverse")
    ])  # fmt: skip


def widths(where: Where) -> dict[str, object]:
    """On given logits of widths that are no multiple of 8: of rows end to end, and of rows with a rest."""
    most = where.sizes.vocabulary
    tokens, gpt2 = (most - 3, 101) if where.small else (TOKENS, 50_257)
    return raced(where, [
        Race("logits", f"{name}, {width:,} logits{f' of {held:,}' if held else ''}", "logits",
             replace(where.sizes, vocabulary=width), name, held=held)
        for width, held in ((tokens, None), (tokens, most), (gpt2, None)) for name in ("forward", "jsd")
    ])  # fmt: skip


# --- cat or dog -------------------------------------------------------------------------------------


def cat_or_dog(where: Where) -> dict[str, object]:
    """Drawn animals, a few labels: the arms of the committed study with the settings that it chose, and some
    of its seeds; beside its accuracies, which are a CPU's. And pictures a second in training.
    """
    from benchmarks.bench_training import seconds_of_an_epoch
    from kdlib.course.studies import cat_or_dog_arms as ways
    from kdlib.course.studies.cat_or_dog import CatOrDogStudy, prepare
    from kdlib.course.studies.records import columns, load_results, verdicts
    from kdlib.vision.sketches import load_sketches

    committed = load_results("cat_or_dog_sketches.json")
    names, seeds = ("alone", "pseudo-labels", "distilled"), 2 if where.small else 3
    runs: dict[str, list[dict]] = {name: [] for name in names}
    left_out = []
    with tempfile.TemporaryDirectory() as folder:
        if where.small:
            recipe = ways.PictureRecipe(ways.SKETCHES.teacher.scaled(0.1), ways.SKETCHES.student.scaled(0.1))
            study = CatOrDogStudy(load_sketches(64, 16, 32, size=16), recipe, Path(folder), seeds, 8, False)
        else:
            study = prepare("sketches", seeds=seeds, labels=committed["data"]["labels_few"], work=folder,
                            progress=False)  # fmt: skip
        for seed in range(seeds):
            if time.monotonic() > where.until:
                left_out.append(f"seed {seed}")
                continue
            for name in names:
                setting = committed["chosen"]["few"][name]
                runs[name].append(study.run("few", name, seed, setting)["test"])
        speed = {}
        for network, training in (("teacher", study.recipe.teacher), ("student", study.recipe.student)):
            for size in (training.batch_size, 16 * training.batch_size):
                taken = seconds_of_an_epoch(
                    training, study.data.train, where.device.type, where.precision,
                    1 if where.small else 5, size,
                )  # fmt: skip
                median = statistics.median(taken)
                speed[f"{network}, batches of {size}"] = len(study.data.train) / median
    arms = {name: columns(found) for name, found in runs.items() if found}
    on_cpu = {name: committed["arms"]["few"][name]["accuracy"][:seeds] for name in names}
    compared = verdicts(arms, [("distilled", "alone"), ("distilled", "pseudo-labels")])
    summary = [
        f"{name}: {statistics.mean(arm['accuracy']):.1%} right, {len(arm['accuracy'])} seeds"
        + ("" if where.small else f"; on a CPU {statistics.mean(on_cpu[name]):.1%}")
        for name, arm in arms.items()
    ]
    return {
        "arms": arms, "accuracy_on_a_cpu": on_cpu, "verdicts": compared, "images_per_second": speed,
        "precision": where.precision, "left_out": left_out,
        "summary": [*summary, *(f"{name}: {rate:,.0f} pictures/s" for name, rate in speed.items())],
    }  # fmt: skip
