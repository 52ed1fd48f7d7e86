"""How good is a model, how honest is its confidence, and is one model really better than another?

A comparison is paired: the same seeds, with and without the thing under test, scored on the same test set.
Trained again, or tested on other examples, it would come out otherwise. One interval holds both kinds of
chance, and a verdict needs it to exclude zero.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from kdlib.arguments import check_class_indices, check_number, check_whole, refuse
from kdlib.extras import require
from kdlib.losses.kd import soft_target_loss, soften

Key = TypeVar("Key")
DRAWS = 14  # bounded intervals take 2 to the power of this many random weights


@dataclass(frozen=True)
class Scores:
    """What `evaluate` found on one data set."""

    accuracy: float  # fraction right, 0 to 1
    nll: float  # mean negative log-likelihood of the labels, nats
    ece: float  # expected calibration error, 0 to 1, 15 bins of equal width
    correct: Tensor  # (N,) bool, which examples were right; pairs two models example by example

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.1%}, NLL {self.nll:.3f} nats, ECE {self.ece:.1%}"


@dataclass(frozen=True)
class ReliabilityCurve:
    """Confidence against accuracy in bins of equal width over [0, 1]; means are NaN where a bin is empty."""

    edges: np.ndarray  # (bins + 1,)
    confidence: np.ndarray  # (bins,) means
    accuracy: np.ndarray  # (bins,) means
    count: np.ndarray  # (bins,) examples

    @property
    def mean_gap(self) -> float:
        """Mean |confidence − accuracy| over the bins, weighted by their counts."""
        gaps = np.abs(self.confidence - self.accuracy)
        return float(np.nansum(gaps * self.count) / self.count.sum())


def reliability_curve(logits: Tensor, labels: Tensor, bins: int = 15) -> ReliabilityCurve:
    """Bin examples by confidence (the largest probability); compare confidence with accuracy.

    logits (N, C), labels (N) integers in [0, C). A bin excludes its lower edge.

    Raises:
        ValueError: other shapes or labels; logits of which no probabilities come, as NaN.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), §2.
    """
    _check(logits, labels)
    check_whole("bins", bins, least=1)
    confidence, predicted = soften(logits.detach().cpu().double()).max(-1)
    right = (predicted == labels.cpu().long()).double()
    edges = np.linspace(0, 1, bins + 1)
    number = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, bins - 1)
    count = np.bincount(number, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a bin is empty
        means = [np.bincount(number, values, bins) / count for values in (confidence, right)]
    return ReliabilityCurve(edges, *means, count)


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Fraction of rows on which student and teacher predict the same class, right or wrong.

    Source: "top-1 agreement", Stanton et al. 2021 (arXiv 2106.05945), §3.
    """
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if not isinstance(logits, Tensor) or not logits.dim() or logits.isnan().any():
            refuse(name, logits, "logits (..., C) without NaN")
    if student_logits.shape != teacher_logits.shape or not student_logits.numel():
        shapes = f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        raise ValueError(f"expected logits of one shape, not empty, of student and teacher; got {shapes}")
    return (student_logits.argmax(-1) == teacher_logits.argmax(-1)).double().mean().item()


def kl_to_teacher(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> float:
    """Mean KL(teacher‖student) in nats at a temperature, without the factor T²; (..., C) each."""
    student, teacher = student_logits.detach().double(), teacher_logits.detach().double()
    return soft_target_loss(student, teacher, temperature=temperature).item() / temperature**2


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T at which logits / T have the lowest negative log-likelihood; from 0.01 to 100.

    Fit it on validation and divide the test logits by it: accuracy stays, confidence becomes honest. logits
    (N, C), labels (N), none at a logit of −inf. The log-likelihood is concave in 1/T: there is one minimum.

    Source: "temperature scaling", Guo et al. 2017 (arXiv 1706.04599), §4.2.
    """
    _check(logits, labels)
    if not math.isfinite(_nll(logits, labels)):
        refuse("labels", labels, "none at a class with the logit −inf, which is wrong at every T")
    require("course", "scipy")
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: _nll(logits.double() / math.exp(log_t), labels),
        bounds=(math.log(0.01), math.log(100)), method="bounded", options={"xatol": 1e-6},
    )  # fmt: skip
    return math.exp(found.x)


def gap_closed(student: float, baseline: float, teacher: float) -> float:
    """Share of the way from the baseline to the teacher that the student has come.

    1 is as good as the teacher, 0 as the baseline; NaN where the teacher is no better than the baseline.
    """
    for name, value in (("student", student), ("baseline", baseline), ("teacher", teacher)):
        check_number(name, value)
    return (student - baseline) / (teacher - baseline) if teacher > baseline else math.nan


def score(logits: Tensor, labels: Tensor) -> Scores:
    """All of `Scores` from logits (N, C) and labels (N), in double precision.

    The calibration error is that of Naeini et al. 2015 and Guo et al. 2017 (arXiv 1706.04599), eq. 3; it is
    biased upward on few examples. Infinite NLL: a label at a class with the logit −inf.

    Raises:
        ValueError: as `reliability_curve`.
    """
    ece = reliability_curve(logits, labels).mean_gap
    correct = logits.argmax(-1) == labels.long()
    return Scores(correct.double().mean().item(), _nll(logits, labels), ece, correct.cpu())


def _check(logits: Tensor, labels: Tensor) -> None:
    """Logits (N, C) that have probabilities, and labels (N) of theirs."""
    for name, value in (("logits", logits), ("labels", labels)):
        if not isinstance(value, Tensor):
            refuse(name, value, f"a tensor: torch.as_tensor({name})")
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or not len(labels):
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        hint = "; one-hot labels become indices by labels.argmax(-1)" if labels.shape == logits.shape else ""
        raise ValueError(f"expected logits (N, C) and labels (N), N > 0; got {shapes}{hint}")
    check_class_indices("labels", labels)
    outside = (labels.long() < 0) | (labels.long() >= logits.shape[-1])
    if outside.any():
        row = outside.nonzero()[0].item()
        raise ValueError(
            f"labels holds {labels[row].item()} in row {row}; expected 0 to {logits.shape[-1] - 1} for "
            f"{logits.shape[-1]} classes. Only labelled examples are scored: data[data.labels >= 0]"
        )
    nowhere = torch.logsumexp(logits.detach().double(), -1).isfinite().logical_not()
    if nowhere.any():
        row = nowhere.nonzero()[0].item()
        raise ValueError(
            f"logits holds {_worst(logits[row])} in row {row}; expected finite numbers, or −inf for some "
            f"classes. Look for NaN in that example and in the model's weights"
        )


def _worst(row: Tensor) -> str:
    return "NaN" if row.isnan().any() else "inf" if row.isposinf().any() else "−inf for every class"


def _nll(logits: Tensor, labels: Tensor) -> float:
    log_p = torch.log_softmax(logits.detach().cpu().double(), dim=-1)
    return -log_p.gather(-1, labels.cpu().long().unsqueeze(-1)).mean().item()


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of at least two finite values and the half-width of its 95% Student-t interval."""
    values = _finite(values)
    require("course", "scipy")
    from scipy.special import stdtrit

    spread = values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(stdtrit(len(values) - 1, 0.975) * spread)


@dataclass(frozen=True)
class Verdict:
    """The outcome of `compare`; print it."""

    verdict: Literal["better", "worse", "inconclusive"]
    difference: float  # mean over seeds of score minus baseline, in the unit of the scores
    low: float  # ends of the 95% interval of the difference, over seeds and test examples together
    high: float
    p: float  # two-sided; below 0.05 where the interval excludes zero, unless `holm` has corrected it
    seeds: int  # number of pairs
    examples: int | None  # in the test set; None for scores without examples
    student: float  # mean
    baseline: float  # mean
    names: tuple[str, str]
    unit: str
    bounded: bool = False  # the interval assumes nothing about how seeds spread
    alike: bool = False  # every seed and example gave the same difference: nothing was learnt of chance
    family: int = 1  # verdicts that p and the verdict are corrected for

    def __str__(self) -> str:
        scale, unit = (100, " points") if self.unit == "accuracy" else (1, f" {self.unit}")
        tested = "" if self.examples is None else f" and {self.examples} test examples together"
        tested += "; seeds may spread in any way" if self.bounded else ""
        p = f"p = {self.p:.3f}" if self.p >= 0.001 else "p < 0.001"
        corrected = f", corrected for {self.family} verdicts by Holm; the interval is not"
        return (
            f"{self.names[0]} {scale * self.student:.2f}, {self.names[1]} {scale * self.baseline:.2f}: "
            f"difference {scale * self.difference:+.2f}{unit}\n"
            f"95% interval [{scale * self.low:+.2f}, {scale * self.high:+.2f}] "
            f"over {self.seeds} paired seeds{tested}\n"
            f"verdict: {self.verdict} ({p}{corrected if self.family > 1 else ''})"
            + self.alike * "; nothing was learnt of chance: all seeds and examples give this very difference"
        )


def compare(
    student_scores: Sequence[Scores | float], baseline_scores: Sequence[Scores | float], *,
    names: tuple[str, str] = ("student", "baseline"), unit: str = "accuracy", bounded: bool = False,
) -> Verdict:  # fmt: skip
    """Is the student better than the baseline? "better" or "worse" where the 95% interval excludes zero.

    Another run has other seeds and could have had other test examples; one interval holds both. The
    differences d[s, i] of seed s on example i are 1, 0 or -1, a table of two crossed random effects, whose
    mean has the variance (MS_seeds + MS_examples - MS_rest) / (S N); a component estimated below zero
    counts as zero. Student's t has Satterthwaite's degrees of freedom. Plain numbers, without examples, get
    the paired t interval over seeds. What no seed drew anew, such as the training pictures, is in neither.

    A t interval trusts the spread that it sees. Where seeds come in two kinds, say a knack learnt or not,
    three of them are all of one kind one time in four, and it covers 77% instead of 95%. For those take
    `bounded=True`: `bounded_interval` on differences in [-1, 1], with the test set's error added. It assumes
    nothing about the seeds, is therefore wide (± 0.52 for five equal seeds), and calls for ten or more.
    Where there is no spread at all, as between two models that learnt nothing, the usual interval would have
    no width: accuracies then get the bounded one, and what has no bounds an interval without ends.

    Args:
        student_scores, baseline_scores: one for each seed, in the same order: `Scores` (their accuracy is
            compared, on the same examples) or plain numbers, the higher the better; accuracies from 0 to 1.
        names: of the two, when the verdict is printed.
        unit: "accuracy" is printed in percentage points; anything else as it stands.
        bounded: no trust in the spread of the seeds; for differences in [-1, 1].

    Raises:
        ValueError: lengths that differ, fewer than two seeds, test sets that differ or have one example,
            accuracies in percent, differences outside [-1, 1] with `bounded`.

    Source: crossed random effects as in Owen 2007, "The pigeonhole bootstrap" (Annals of Applied
    Statistics 1(2)); degrees of freedom by Satterthwaite 1946 (Biometrics Bulletin 2). Why both kinds of
    chance: Bouthillier et al. 2021 (arXiv 2103.03098v1); why paired: Miller 2024 (arXiv 2411.00640v1).
    """
    columns = {"student_scores": student_scores, "baseline_scores": baseline_scores}
    ours, theirs = (_numbers(name, scores, unit) for name, scores in columns.items())
    if len(ours) != len(theirs):
        raise ValueError(f"expected one score of each for every seed; got {len(ours)} and {len(theirs)}")
    pairs = list(zip(student_scores, baseline_scores, strict=True))
    gaps = _finite(ours - theirs)
    by_example = _differences(pairs)
    alike = bool(np.ptp(gaps if by_example is None else by_example) == 0)
    if alike and unit != "accuracy" and not bounded:
        low, high, p = -math.inf, math.inf, 1.0
    elif bounded := bounded or alike:
        low, high, p = _bounded(gaps, -1, 1, by_example)
    else:
        low, high, p = _student_t(gaps, by_example)
    difference, examples = float(gaps.mean()), None if by_example is None else by_example.shape[1]
    verdict = "better" if low > 0 else "worse" if high < 0 else "inconclusive"
    means = float(ours.mean()), float(theirs.mean())
    chance = (low, high, p, len(pairs), examples)
    return Verdict(verdict, difference, *chance, *means, names, unit, bounded, alike)


def holm(verdicts: Mapping[Key, Verdict]) -> dict[Key, Verdict]:
    """Verdicts of one table with p corrected for their number: the risk of any false one stays at 5%.

    The smallest of m values of p is multiplied by m, the next by m - 1, and so on, none below the one
    before. The interval stays that of the single comparison: it can exclude zero beside "inconclusive".

    Raises:
        ValueError: a verdict that is corrected already.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal of
    Statistics 6).
    """
    found, p, left = {}, 0.0, len(verdicts)
    for key in sorted(verdicts, key=lambda key: verdicts[key].p):
        single = verdicts[key]
        if single.family > 1:
            raise ValueError(f"the verdict {key!r} is corrected for {single.family} already")
        p = max(p, min(1.0, left * single.p))
        verdict = single.verdict if p < 0.05 else "inconclusive"
        found[key] = replace(single, verdict=verdict, p=p, family=len(verdicts))
        left -= 1
    return {key: found[key] for key in verdicts}


def bounded_interval(
    values: Sequence[float], low: float = 0.0, high: float = 1.0
) -> tuple[float, float, float]:
    """Mean and ends of a 95% interval for the mean of a variable in [low, high], whatever its distribution.

    For a handful of seeds that may come in two kinds. It never leaves the range, and for values 0 and 1 it is
    that of Clopper and Pearson. The upper end is the 97.5% quantile of the mean of the values and `high`
    under random weights, uniform on the simplex; the lower end mirrors it. 16,384 points of a
    scrambled Sobol sequence with a fixed seed give the ends to 0.003 of the range.

    Raises:
        ValueError: no values, or one that is outside of the range or not a number.

    Source: Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a
    nonnegative variable" (Mathematical Methods of Statistics 14, 451–467); Learned-Miller and Thomas 2019
    (arXiv 1905.06208), who conjecture that it covers for every distribution.
    """
    values = _finite(values, least=1)
    return float(values.mean()), *_bounded(values, low, high)[:2]


def _numbers(name: str, scores: Sequence[Scores | float], unit: str) -> np.ndarray:
    if isinstance(scores, Scores | str) or not hasattr(scores, "__iter__"):
        refuse(name, scores, "one score for each seed, in a list")
    numbers = [x.accuracy if isinstance(x, Scores) else getattr(x, "item", lambda x=x: x)() for x in scores]
    for given, number in zip(scores, numbers, strict=True):
        check_number(f"a value of {name}", number)
        if unit == "accuracy" and not isinstance(given, Scores) and not 0 <= number <= 1:
            expected = 'an accuracy from 0 to 1, as 0.95 for 95 %, or a unit such as "%"'
            refuse(f"a value of {name}", number, expected)
    return np.array(numbers, dtype=float)


def _finite(values: Sequence[float], least: int = 2) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if len(values) < least or not np.isfinite(values).all():
        count = {1: "one finite value", 2: "two finite values"}[least]
        raise ValueError(f"an interval needs at least {count}; got {values.tolist()}")
    return values


def _differences(pairs: list[tuple[Scores | float, Scores | float]]) -> np.ndarray | None:
    """Student right minus baseline right, (S, N); None where a score has no examples."""
    if not all(isinstance(x, Scores) for pair in pairs for x in pair):
        return None
    sizes = {len(x.correct) for pair in pairs for x in pair}
    if len(sizes) > 1 or min(sizes) < 2:
        raise ValueError(f"expected one test set of at least two examples; got sizes {sorted(sizes)}")
    return np.stack([s.correct.numpy().astype(float) - b.correct.numpy() for s, b in pairs])


def _student_t(gaps: np.ndarray, by_example: np.ndarray | None) -> tuple[float, float, float]:
    """Ends of the interval around the mean of gaps (S,), and p; by_example (S, N) has them in detail."""
    require("course", "scipy")
    from scipy.special import stdtr, stdtrit

    seeds, variance, free = len(gaps), gaps.var(ddof=1) / len(gaps), len(gaps) - 1
    if by_example is not None:
        examples = by_example.shape[1]
        of_seed, of_example = by_example.mean(1), by_example.mean(0)
        rest = by_example - of_seed[:, None] - of_example + by_example.mean()
        squares = np.array([examples * of_seed.var(ddof=1), seeds * of_example.var(ddof=1), 0])
        squares[2] = (rest**2).sum() / ((seeds - 1) * (examples - 1))
        total = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
        variance = total / (seeds * examples)
        if total > 0:
            free = total**2 / (squares**2 / [seeds - 1, examples - 1, (seeds - 1) * (examples - 1)]).sum()
    mean, error = float(gaps.mean()), math.sqrt(variance)
    half = stdtrit(free, 0.975) * error
    p = 2 * stdtr(free, -abs(mean) / error) if error else float(mean == 0)
    limit = math.inf if by_example is None else 1.0  # what a difference of accuracies can be
    return max(float(mean - half), -limit), min(float(mean + half), limit), float(p)


def _bounded(
    values: np.ndarray, low: float, high: float, by_example: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Ends of Gaffke's interval for the mean of values (S,), and p of a mean of zero.

    by_example (S, N) adds to each draw the test set's error, normal with the covariance between the seeds.
    """
    if not ((low <= values) & (values <= high)).all():
        raise ValueError(f"expected values in [{low:g}, {high:g}]; got {values.tolist()}")
    require("course", "scipy")
    from scipy.special import ndtri
    from scipy.stats import qmc

    ends, shares, count, root = [], [], len(values), np.zeros((0, len(values)))
    for sign, bottom, top in ((1, low, high), (-1, -high, -low)):
        order = np.argsort(sign * values)
        if by_example is not None:
            error = sign * (by_example - by_example.mean(1, keepdims=True))[order] / by_example.shape[1]
            root = np.linalg.qr(error.T, mode="r")
        points = qmc.Sobol(count + len(root), seed=0).random_base2(DRAWS)
        normal = ndtri(0.5 + (1 - 1e-9) * (points[:, count:] - 0.5))  # never infinite
        seen = np.clip(sign * values[order] + normal @ root, bottom, top)
        weights = np.diff(np.sort(points[:, :count]), prepend=0, append=1)
        means = np.sort(np.minimum((weights[:, :-1] * seen).sum(1) + weights[:, -1] * top, top))
        ends.append(sign * float(means[math.ceil(0.975 * (len(means) - 1))]))
        shares.append((1 + (means >= 0).sum()) / (1 + len(means)))  # of a mean at or beyond zero
    return ends[1], ends[0], float(min(1.0, 2 * min(shares)))
