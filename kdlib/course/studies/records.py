"""What the studies leave behind: finished runs, columns of figures from seed to seed, verdicts on them."""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from kdlib.metrics import Scores, compare, gap_closed, holm
from kdlib.places import DATA
from kdlib.storage import JsonLines


def once(path: str | os.PathLike, key: list, run: Callable[[], Mapping]) -> dict:
    """What `run` returns, with its key of JSON values; from a file, which processes can share, if there."""
    finished = JsonLines(path)
    for done in finished:
        if done["key"] == key:
            return done
    done = {"key": key, **run()}
    finished.append(done)
    return done


def columns(runs: Iterable[Mapping], leave_out: Sequence[str] = ()) -> dict[str, list]:
    """The figures of one arm, a list of each, in the order of the runs."""
    runs = list(runs)
    return {name: [run[name] for run in runs] for name in runs[0] if name not in leave_out}


def by_arm(runs: Iterable[Mapping], leave_out: Sequence[str] = ()) -> dict[str, dict[str, list]]:
    """The `columns` of each arm, by the name that its runs have."""
    runs = list(runs)
    arms = dict.fromkeys(run["arm"] for run in runs)
    return {arm: columns([run for run in runs if run["arm"] == arm], leave_out) for arm in arms}


def scores_of(arm: Mapping[str, Sequence] | Sequence[Mapping]) -> list[Scores]:
    """One arm, as columns or as a list of runs, as `Scores` for `compare`.

    Where models gave answers and no probabilities, log-likelihood and calibration are NaN.
    """
    arm = arm if isinstance(arm, Mapping) else columns(arm)
    unknown = [math.nan] * len(arm["accuracy"])
    rows = zip(arm["accuracy"], arm.get("nll", unknown), arm.get("ece", unknown), arm["correct"], strict=True)
    return [Scores(accuracy, nll, ece, unpack_bits(*correct)) for accuracy, nll, ece, correct in rows]


def verdicts(
    arms: Mapping[str, Mapping[str, Sequence]], pairs: Iterable[tuple[str, str]], *,
    teacher_accuracy: float | None = None, bounded: bool = False, loss: str | None = None,
) -> dict[str, dict]:
    """Each pair (arm, what it is measured against) of arms that are there compared, by "a against b".

    The table is one family, corrected by `holm`; `bounded` is that of `compare`. With the teacher's accuracy,
    verdicts against "alone" also say how much of the gap was closed. By default accuracies are compared; or a
    `loss` by the name of its column, in nats, of which less is better: differences are of its negative. A
    column of tensors, with the loss of each test example, gives an interval that holds these too.
    """

    def scores(arm: str) -> list[Scores] | list[float]:
        if not loss:
            return scores_of(arms[arm])
        nats = arms[arm][loss]
        if isinstance(nats[0], Tensor):
            return [Scores(-x.mean().item(), math.nan, math.nan, -x) for x in nats]
        return [-x for x in nats]

    table = {
        (ours, theirs): compare(
            scores(ours), scores(theirs), names=(ours, theirs), bounded=bounded,
            unit="nats less" if loss else "accuracy",
        )
        for ours, theirs in pairs if arms.keys() >= {ours, theirs}
    }  # fmt: skip
    found = {}
    for (ours, theirs), verdict in holm(table).items():
        figures = ("verdict", "difference", "low", "high", "p")
        entry = {"text": str(verdict), **{figure: getattr(verdict, figure) for figure in figures}}
        if theirs == "alone" and teacher_accuracy is not None:
            entry["gap_closed"] = gap_closed(verdict.student, verdict.baseline, teacher_accuracy)
        found[f"{ours} against {theirs}"] = entry
    return found


def pack_bits(correct: Iterable[bool] | Tensor) -> list:
    """N answers as hexadecimal digits, and N: small, and yet pairs two models example by example."""
    bits = "".join("1" if right else "0" for right in correct)
    return [f"{int(bits, 2):x}", len(bits)]


def unpack_bits(digits: str, count: int) -> Tensor:
    """What `pack_bits` was given."""
    return torch.tensor([bit == "1" for bit in f"{int(digits, 16):0{count}b}"])


def load_results(name: str) -> dict:
    """A committed results file, such as "reasoning.json", from `data/results`."""
    path = DATA / "results" / name
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: clone the course's repository, which holds it")
    return json.loads(path.read_text(encoding="utf-8"))
