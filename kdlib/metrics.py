"""How good is a model, how honest is its confidence, and is one model really better than another?

A comparison is paired: the same seeds, with and without the thing under test, scored on the same test set.
The spread over seeds says how the training would come out again; the standard error of the test set, how the
result would change with other examples. A verdict needs both to be small against the difference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kdlib.extras import require
from kdlib.losses.kd import soft_target_loss, soften


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

    logits (N, C), labels (N). A bin excludes its lower edge.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), §2.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or not len(labels):
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"expected logits (N, C) and labels (N), N > 0; got {shapes}")
    confidence, predicted = soften(logits.detach().cpu().double()).max(-1)
    right = (predicted == labels.cpu()).double()
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
    same = student_logits.argmax(-1) == teacher_logits.argmax(-1)
    return same.double().mean().item()


def kl_to_teacher(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> float:
    """Mean KL(teacher‖student) in nats at a temperature, without the factor T²; (..., C) each."""
    student, teacher = student_logits.detach().double(), teacher_logits.detach().double()
    return soft_target_loss(student, teacher, temperature=temperature).item() / temperature**2


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T at which logits / T have the lowest negative log-likelihood; from 0.01 to 100.

    Fit it on validation and divide the test logits by it: accuracy stays, confidence becomes honest. logits
    (N, C), labels (N). The log-likelihood is concave in 1/T, so that the minimum found is the only one.

    Source: "temperature scaling", Guo et al. 2017 (arXiv 1706.04599), §4.2.
    """
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
    return (student - baseline) / (teacher - baseline) if teacher > baseline else math.nan


def score(logits: Tensor, labels: Tensor) -> Scores:
    """All of `Scores` from logits (N, C) and labels (N), in double precision.

    The calibration error is that of Naeini et al. 2015 and Guo et al. 2017 (arXiv 1706.04599), eq. 3; it is
    biased upward on few examples.
    """
    ece = reliability_curve(logits, labels).mean_gap
    correct = logits.argmax(-1) == labels
    return Scores(correct.double().mean().item(), _nll(logits, labels), ece, correct.cpu())


def _nll(logits: Tensor, labels: Tensor) -> float:
    log_p = torch.log_softmax(logits.detach().cpu().double(), dim=-1)
    return -log_p.gather(-1, labels.cpu().long().unsqueeze(-1)).mean().item()


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of at least two finite values and the half-width of its 95% Student-t interval."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs at least two finite values; got {values.tolist()}")
    require("course", "scipy")
    from scipy.stats import t

    spread = values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(t.ppf(0.975, len(values) - 1) * spread)


@dataclass(frozen=True)
class Verdict:
    """The outcome of `compare`; print it."""

    verdict: Literal["better", "worse", "inconclusive"]
    difference: float  # mean over seeds of score minus baseline, in the unit of the scores
    half_width: float  # half of the 95% interval over seeds, on this test set
    test_error: float  # standard error from the choice of test examples; NaN for scores without examples
    seeds: int  # number of pairs
    student: float  # mean
    baseline: float  # mean
    names: tuple[str, str]
    unit: str

    def __str__(self) -> str:
        scale, unit = (100, " points") if self.unit == "accuracy" else (1, f" {self.unit}")
        low, high = self.difference - self.half_width, self.difference + self.half_width
        error = scale * self.test_error
        tested = "" if math.isnan(error) else f"; test-set standard error {error:.2f}"
        return (
            f"{self.names[0]} {scale * self.student:.2f}, {self.names[1]} {scale * self.baseline:.2f}: "
            f"difference {scale * self.difference:+.2f}{unit}\n"
            f"95% interval [{scale * low:+.2f}, {scale * high:+.2f}] over {self.seeds} paired seeds{tested}\n"
            f"verdict: {self.verdict}"
        )


def compare(
    student_scores: Sequence[Scores | float], baseline_scores: Sequence[Scores | float], *,
    names: tuple[str, str] = ("student", "baseline"), unit: str = "accuracy",
) -> Verdict:  # fmt: skip
    """Is the student better than the baseline? Paired over seeds, with a 95% interval.

    The verdict is "better" or "worse" only if the Student-t interval over the seeds' paired differences
    excludes zero and, for `Scores`, the difference is also larger than 1.96 standard errors of the test set.
    Else it is "inconclusive".

    Args:
        student_scores, baseline_scores: one for each seed, in the same order: `Scores` (their accuracy is
            compared) or plain numbers, the higher the better.
        names: of the two, when the verdict is printed.
        unit: "accuracy" is printed in percentage points; anything else as it stands.

    Raises:
        ValueError: lengths that differ, fewer than two seeds, or test sets that differ.

    Source: paired t interval; the test-set error is that of the paired difference, as in McNemar's
    test (Dietterich 1998, "Approximate Statistical Tests…", §3), averaged over seeds.
    """
    pairs = list(zip(student_scores, baseline_scores, strict=True))
    values = [[x.accuracy if isinstance(x, Scores) else float(x) for x in pair] for pair in pairs]
    ours, theirs = np.array(values).reshape(-1, 2).T
    difference, half_width = interval(ours - theirs)
    test_error = _test_error(pairs)
    clear = abs(difference) > half_width and not abs(difference) <= 1.96 * test_error
    verdict = "inconclusive" if not clear else "better" if difference > 0 else "worse"
    means = float(ours.mean()), float(theirs.mean())
    return Verdict(verdict, difference, half_width, test_error, len(pairs), *means, names, unit)


def _test_error(pairs: list[tuple[Scores | float, Scores | float]]) -> float:
    """Standard error over test examples of the seed-averaged paired difference."""
    if not all(isinstance(s, Scores) and isinstance(b, Scores) for s, b in pairs):
        return math.nan
    gaps = torch.stack([s.correct.double() - b.correct.double() for s, b in pairs]).mean(0)
    return (gaps.std() / math.sqrt(len(gaps))).item()
