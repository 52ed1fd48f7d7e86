"""What the reasoning experiment found: columns of figures, verdicts, and the report as text."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kdlib.course.studies.records import unpack
from kdlib.metrics import Scores, compare, interval

__all__ = ["columns", "load", "report", "scores_of", "verdicts"]

KEPT = (
    "accuracy", "correct", "beyond", "answer_tokens", "malformed", "truncated", "suppose", "equations",
    "steps", "tokens", "written",
)  # fmt: skip

# What asks one question each: the student that tells the answer, and what it is measured against.
PAIRS = {
    "compute": (
        ("verified", "answers"), ("verified", "unverified"), ("shortest", "verified"),
        ("suppose", "equations"), ("logits", "verified"), ("on-policy", "verified"),
    ),
    "steps": (("verified", "answers"), ("shortest", "verified")),
    "weak": (("verified", "unverified"),),
    "easy": (("suppose", "answers"),),
}  # fmt: skip


def load(path: str | os.PathLike | None = None) -> dict:
    """A results file; by default the committed one, `data/results/reasoning.json`.

    Raises:
        FileNotFoundError: there is none; it says how to make it.
    """
    path = Path(path or Path(__file__).parents[3] / "data" / "results" / "reasoning.json")
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}: clone the course's repository, or run python -m kdlib reasoning"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def columns(runs: Iterable[Mapping]) -> dict[str, list]:
    """The figures of one arm, a list of each, in the order of the seeds."""
    runs = list(runs)
    return {name: [run[name] for run in runs] for name in KEPT if name in runs[0]}


def scores_of(column: Mapping[str, Sequence] | Sequence[Mapping]) -> list[Scores]:
    """One arm, as runs or as a results file has it, as `Scores` for `compare`.

    Language models are asked for answers here, not for probabilities: log-likelihood and calibration are NaN.
    """
    column = column if isinstance(column, Mapping) else columns(column)
    return [
        Scores(accuracy, math.nan, math.nan, unpack(*correct))
        for accuracy, correct in zip(column["accuracy"], column["correct"], strict=True)
    ]


def verdicts(arms: Mapping[str, Mapping[str, Sequence]], pairs: Iterable[tuple[str, str]]) -> dict[str, dict]:
    """Each pair of arms compared, by "a against b"."""
    found = {}
    for ours, theirs in pairs:
        if ours in arms and theirs in arms:
            verdict = compare(scores_of(arms[ours]), scores_of(arms[theirs]), names=(ours, theirs))
            found[f"{ours} against {theirs}"] = {
                "text": str(verdict), "verdict": verdict.verdict, "difference": verdict.difference,
                "half_width": verdict.half_width, "test_error": verdict.test_error,
            }  # fmt: skip
    return found


def report(results: Mapping) -> str:
    """The results as text: tables and verdicts."""
    teacher, weak = results["teacher"], results["weak"]
    lines = [
        f"teacher: {teacher['parameters']:,} parameters, {100 * teacher['accuracy']:.1f} % on test, "
        f"{100 * teacher['beyond']:.1f} % beyond its range",
        f"student: {results['student']['parameters']:,} parameters, {results['problems']} problems, "
        f"{results['seeds']} seeds",
    ]
    for budget, arms in results["arms"].items():
        lines += ["", f"equal {budget}", *_table(arms)]
        lines += _verdicts(results, budget)
    lines += ["", "accuracy (%) against number of problems"]
    for count, arms in results["counts"].items():
        lines.append(f"{count:>6} " + ", ".join(f"{arm} {_mean(arms[arm])}" for arm in arms))
    lines += ["", f"a worse teacher, {100 * weak['teacher']['accuracy']:.1f} %; "
              f"{100 * weak['pass_rate']:.1f} % of its traces are right", *_table(weak["arms"])]
    lines += _verdicts(results, "weak")
    lines += ["", "the easy puzzle, students from nothing", *_table(results["easy"])]
    lines += _verdicts(results, "easy")
    votes = results["votes"]
    lines += ["", "samples of the student that learnt answers only: k, pass@k, majority (%)"]
    for place, k in enumerate(votes["k"]):
        either = (interval([seed[place] for seed in votes[name]]) for name in ("pass", "majority"))
        lines.append(f"{k:>6} " + "  ".join(f"{100 * mean:5.1f} ± {100 * half:.1f}" for mean, half in either))
    return "\n".join(lines)


def _table(arms: Mapping[str, Mapping[str, Sequence]]) -> list[str]:
    lines = [f"{'':12}{'accuracy (%)':>15}{'beyond (%)':>12}{'tokens':>9}{'suppose (%)':>13}{'steps':>7}"]
    for arm, column in arms.items():
        beyond, tokens, suppose = (
            f"{scale * sum(column[name]) / len(column[name]):.1f}" if name in column else ""
            for name, scale in (("beyond", 100), ("answer_tokens", 1), ("suppose", 100))
        )
        lines.append(f"{arm:12}{_mean(column):>15}{beyond:>12}{tokens:>9}{suppose:>13}{column['steps'][0]:>7}")
    return lines


def _mean(column: Mapping[str, Sequence]) -> str:
    mean, half = interval(column["accuracy"])
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def _verdicts(results: Mapping, situation: str) -> list[str]:
    return [line for pair, verdict in results["verdicts"].get(situation, {}).items()
            for line in (f"\n{pair}", verdict["text"])]  # fmt: skip
