"""Which traces to keep, and what a set of traces says about the model that wrote them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from kdlib.arguments import check_counts
from kdlib.language.answers.final_answer import final_answer
from kdlib.language.traces.file import Trace, check_traces

__all__ = ["TraceReport", "filter_traces", "majority_vote", "pass_at_k", "trace_report"]


def filter_traces(
    traces: Iterable[Trace], *, correct: bool = True, shortest: bool = False,
    style: Callable[[str], bool] | None = None, repeats: bool = False,
) -> list[Trace]:  # fmt: skip
    """The traces that pass, in their order.

    Args:
        traces: of any number of problems.
        correct: keep only correct ones; False keeps wrong and cut-off ones as well.
        shortest: of what passes otherwise, keep the one with the fewest tokens for each problem.
        style: gets the text of a trace; True keeps it.
        repeats: keep a text that occurs again for the same problem.

    Raises:
        ValueError: something else than traces, such as their path.
    """
    traces = check_traces(traces)
    kept = [t for t in traces if (t.correct or not correct) and (style is None or style(t.text))]
    if not repeats:
        first: dict[tuple[str, str], Trace] = {}
        for trace in kept:
            first.setdefault((trace.key, trace.text), trace)
        kept = list(first.values())
    if shortest:
        best: dict[str, Trace] = {}
        for trace in kept:
            best[trace.key] = min(best.get(trace.key, trace), trace, key=lambda t: t.tokens)
        kept = [t for t in kept if t is best[t.key]]
    return kept


@dataclass(frozen=True)
class TraceReport:
    """What a set of traces says; prints as a small table."""

    traces: int
    problems: int
    correct: int
    solved: int  # problems with a correct trace
    malformed: int  # no thought closed once with an answer after it (`has_format`), as mostly where cut off
    truncated: int  # cut off by `max_new_tokens`
    repeats: int  # the text occurred before, for the same problem
    mean_tokens: float
    percentiles: dict[int, int]  # tokens that 10, 50, 90 and 100 percent of the traces do not exceed

    @property
    def pass_rate(self) -> float:
        """Share of the traces that are correct: pass@1, where all problems have equally many samples."""
        return self.correct / self.traces

    def __str__(self) -> str:
        def row(name: str, count: int, total: int) -> str:
            return f"{name:<16}{count:>8,} {100 * count / total:>6.1f} %"

        low, middle, high, longest = self.percentiles.values()
        return "\n".join([
            f"{self.traces:,} traces of {self.problems:,} problems",
            row("correct", self.correct, self.traces),
            row("format failures", self.malformed, self.traces),
            row("truncated", self.truncated, self.traces),
            row("repeats", self.repeats, self.traces),
            row("problems solved", self.solved, self.problems),
            f"{'tokens':<16}{self.mean_tokens:>8,.1f} on average",
            f"{'':<16}{middle:>8,} median, 80 % from {low:,} to {high:,}, at most {longest:,}",
        ])  # fmt: skip


def trace_report(traces: Iterable[Trace]) -> TraceReport:
    """Pass rate, failures and lengths of traces, of which there must be one (a ValueError otherwise)."""
    traces = check_traces(traces)
    if not traces:
        raise ValueError("traces must hold at least one trace; got none")
    tokens = [trace.tokens for trace in traces]
    return TraceReport(
        traces=len(traces),
        problems=len({trace.key for trace in traces}),
        correct=sum(trace.correct for trace in traces),
        solved=len({trace.key for trace in traces if trace.correct}),
        malformed=sum(not trace.well_formed for trace in traces),
        truncated=sum(not trace.finished for trace in traces),
        repeats=len(traces) - len({(trace.key, trace.text) for trace in traces}),
        mean_tokens=sum(tokens) / len(tokens),
        # Of the lengths that occur, not between them.
        percentiles={q: int(np.percentile(tokens, q, method="inverted_cdf")) for q in (10, 50, 90, 100)},
    )


def pass_at_k(traces: Iterable[Trace], k: int) -> float:
    """Share of the problems that k samples solve: at least one of them is correct.

    The unbiased estimate from n ≥ k samples a problem, of which c are correct: the mean over the problems of
    1 − C(n−c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, eq. 1), in exact integers.

    Raises:
        ValueError: a problem with fewer than k traces.
    """
    shares = [
        1 - comb(sum(not trace.correct for trace in group), k) / comb(len(group), k)
        for group in _by_problem(traces, k)
    ]
    return sum(shares) / len(shares)


def majority_vote(traces: Iterable[Trace], k: int) -> float:
    """Share of the problems whose most frequent final answer among k samples is right (self-consistency).

    Wang et al. 2023, arXiv 2203.11171; DeepSeek's cons@64 is k = 64. Each finished trace with a final answer
    has one vote; wrong answers are the same if they are written alike, apart from case and blanks. Of answers
    that are equally frequent, the one written first counts. From n ≥ k samples a problem this is the exact
    mean over all subsets of k of them in any order.

    Raises:
        ValueError: a problem with fewer than k traces.
    """
    shares = [_expected_vote(group, k) for group in _by_problem(traces, k)]
    return sum(shares) / len(shares)


def _by_problem(traces: Iterable[Trace], k: int) -> list[list[Trace]]:
    check_counts(k=k)
    groups: dict[str, list[Trace]] = defaultdict(list)
    for trace in check_traces(traces):
        groups[trace.key].append(trace)
    if not groups:
        raise ValueError("traces must hold at least one trace; got none")
    for key, group in groups.items():
        if len(group) < k:
            raise ValueError(f"k is {k}, but problem {key!r} has {len(group)} traces; expected at least k")
    return list(groups.values())


def _expected_vote(group: Sequence[Trace], k: int) -> float:
    """Chance that the right answer wins among k of a problem's samples, drawn in random order.

    Counted by the number j of right answers drawn. ways[t, r] is in how many ways r samples can be drawn from
    the others so that no wrong answer comes more than j times and t of them exactly so; each of those t + 1
    answers is equally likely to have been written first.
    """
    answers = Counter(_vote(trace) for trace in group)
    right, silent = answers.pop(True, 0), answers.pop(None, 0)
    chance = 0.0
    for j in range(1, min(right, k) + 1):
        others, rows = k - j, k // j
        ways = np.zeros((rows, others + 1))
        ways[0] = [comb(silent, r) for r in range(others + 1)]
        for count in answers.values():
            before, ways = ways, np.zeros_like(ways)
            for drawn in range(min(count, j, others) + 1):
                tie = int(drawn == j)
                ways[tie:, drawn:] += float(comb(count, drawn)) * before[: rows - tie, : others + 1 - drawn]
        chance += comb(right, j) * float(ways[:, -1] @ (1 / np.arange(1, rows + 1)))
    return chance / comb(len(group), k)


def _vote(trace: Trace) -> str | bool | None:
    """True for the right answer, a wrong one as it is written, None for no answer."""
    if trace.correct:
        return True
    answer = final_answer(trace.text) if trace.finished else None
    return None if answer is None else "".join(answer.casefold().split())
