"""What the cat-or-dog experiment found: columns of figures, verdicts, and the report as text."""

from collections.abc import Iterable, Mapping, Sequence

from kdlib.course.studies.records import unpack
from kdlib.metrics import Scores, compare, gap_closed, interval

__all__ = ["columns", "report", "scores_of", "verdicts"]

BASELINE = {"all": "alone", "few": "alone", "teachers": "standard"}


def scores_of(column: Mapping[str, Sequence]) -> list[Scores]:
    """One arm of a results file, its entry under "arms", as `Scores` for `compare`."""
    rows = zip(column["accuracy"], column["nll"], column["ece"], column["correct"], strict=True)
    return [Scores(accuracy, nll, ece, unpack(*correct)) for accuracy, nll, ece, correct in rows]


def report(results: Mapping) -> str:
    """The results as text: a table for each situation, and the verdicts."""
    lines = ["data: " + ", ".join(f"{k} {_short(v)}" for k, v in results["data"].items())]
    for name, teacher in results["teachers"].items():
        lines.append(f"teacher, {name}: {100 * teacher['accuracy']:.1f} % after {teacher['epochs']} epochs, "
                     f"ECE {100 * teacher['ece']:.1f} %")
    for situation, by in results["arms"].items():
        chosen = results["chosen"]["few" if situation == "few" else "all"]
        head = f"{'':26}{'accuracy (%)':>16}{'NLL (nats)':>12}{'ECE (%)':>9}{'rescaled':>10}{'agreement':>11}"
        lines += ["", f"{situation}: T = {chosen['temperature']:g}, alpha = {chosen['alpha']:g}", head]
        for arm, column in by.items():
            mean, half = interval(column["accuracy"])
            nll, ece, after, agrees = (sum(column[k]) / len(column[k])
                                       for k in ("nll", "ece", "ece_rescaled", "agreement"))
            lines.append(
                f"{arm:26}{100 * mean:9.2f} ± {100 * half:4.2f}{nll:12.3f}{100 * ece:9.1f}"
                f"{100 * after:10.1f}{100 * agrees:11.1f}"
            )
        for pair, verdict in results["verdicts"][situation].items():
            lines += [f"\n{pair}", verdict["text"]]
    return "\n".join(lines)


def columns(runs: Iterable[Mapping]) -> dict[str, list]:
    """The test figures of one arm, a list of each, in the order of the seeds."""
    tests = [run["test"] for run in runs]
    return {name: [test[name] for test in tests] for name in tests[0]}


def verdicts(found: Mapping[str, Mapping[str, list[dict]]], teacher: float) -> dict[str, dict[str, dict]]:
    """Each arm against its baseline and against the other arms that ask the same question."""
    all_verdicts: dict[str, dict[str, dict]] = {}
    for situation, by in found.items():
        scores = {arm: scores_of(columns(runs)) for arm, runs in by.items()}
        for ours, theirs in _pairs(situation, list(by)):
            verdict = compare(scores[ours], scores[theirs], names=(ours, theirs))
            entry = {"text": str(verdict), "verdict": verdict.verdict, "difference": verdict.difference,
                     "half_width": verdict.half_width, "test_error": verdict.test_error}
            if theirs == "alone":
                entry["gap_closed"] = gap_closed(verdict.student, verdict.baseline, teacher)
            all_verdicts.setdefault(situation, {})[f"{ours} against {theirs}"] = entry
    return all_verdicts


def _pairs(situation: str, names: list[str]) -> list[tuple[str, str]]:
    baseline = BASELINE[situation]
    pairs = [(name, baseline) for name in names if name != baseline]
    if situation != "teachers":
        others = ("smoothed", "pseudo-labels", "distilled, no labels")
        pairs += [("distilled", other) for other in others] + [("distilled, fine-tuned", "distilled")]
    return pairs


def _short(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
