"""What the reasoning study found, as text."""

from collections.abc import Mapping, Sequence

from kdlib.metrics import interval

__all__ = ["report"]


def report(results: Mapping) -> str:
    """Tables and verdicts."""
    teacher, weak, votes = results["teacher"], results["weak"], results["votes"]
    lines = [
        f"teacher: {teacher['parameters']:,} parameters, {100 * teacher['accuracy']:.1f} % on test, "
        f"{100 * teacher['beyond']:.1f} % beyond its range",
        f"student: {results['student']['parameters']:,} parameters, {results['problems']} problems, "
        f"{results['seeds']} seeds",
        "", "on validation, each setting and seed",
        *(f"{run['key'][0]:36}{100 * run['validation']:6.1f} %" for run in results["choices"]),
    ]  # fmt: skip
    for budget, arms in results["arms"].items():
        lines += ["", f"equal {budget}", *_table(arms), *_verdicts(results, budget)]
    lines += ["", "accuracy (%) against number of problems"]
    for count, arms in results["counts"].items():
        lines.append(f"{count:>6} " + ", ".join(f"{arm} {_mean(arms[arm]['accuracy'])}" for arm in arms))
    lines += ["", f"a worse teacher, {100 * weak['teacher']['accuracy']:.1f} %; "
              f"{100 * weak['pass_rate']:.1f} % of its traces are right",
              *_table(weak["arms"]), *_verdicts(results, "weak"),
              "", "the easy puzzle, students from nothing", *_table(results["easy"]),
              *_verdicts(results, "easy"),
              "", "samples of the student that learnt answers only: k, pass@k, majority (%)"]  # fmt: skip
    for number, k in enumerate(votes["k"]):
        figures = (_mean([seed[number] for seed in votes[name]]) for name in ("pass", "majority"))
        lines.append(f"{k:>6} " + "  ".join(figures))
    return "\n".join(lines)


def _table(arms: Mapping[str, Mapping[str, Sequence]]) -> list[str]:
    lines = [f"{'':12}{'accuracy (%)':>15}{'beyond (%)':>12}{'tokens':>9}{'suppose (%)':>13}{'steps':>7}"]
    for arm, column in arms.items():
        beyond, tokens, suppose = (
            f"{scale * sum(column[name]) / len(column[name]):.1f}" if name in column else ""
            for name, scale in (("beyond", 100), ("answer_tokens", 1), ("suppose", 100))
        )
        accuracy, steps = _mean(column["accuracy"]), column["steps"][0]
        lines.append(f"{arm:12}{accuracy:>15}{beyond:>12}{tokens:>9}{suppose:>13}{steps:>7}")
    return lines


def _mean(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def _verdicts(results: Mapping, part: str) -> list[str]:
    return [f"\n{pair}\n{verdict['text']}" for pair, verdict in results["verdicts"][part].items()]
