"""Metrics against scikit-learn, torchmetrics, scipy and simulation."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, log_loss
from torchmetrics.classification import MulticlassCalibrationError

from kdlib import metrics
from kdlib.metrics import (
    Scores,
    agreement,
    bounded_interval,
    compare,
    fit_temperature,
    gap_closed,
    holm,
    interval,
    kl_to_teacher,
    reliability_curve,
    score,
)


@pytest.fixture
def predictions():
    """Logits (500, 6) that are right more often than not, and labels."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (500,), generator=random)
    logits = 2 * torch.randn(500, 6, generator=random)
    return logits + 2.5 * F.one_hot(labels, 6), labels


def right(*answers):
    """Scores of a model with these right and wrong answers."""
    correct = torch.tensor(answers, dtype=torch.bool)
    return Scores(accuracy=correct.double().mean().item(), nll=0.0, ece=0.0, correct=correct)


# --- against other libraries -----------------------------------------------------------------------


def test_accuracy_equals_scikit_learn(predictions):
    logits, labels = predictions
    assert score(logits, labels).accuracy == pytest.approx(accuracy_score(labels, logits.argmax(-1)))


def test_negative_log_likelihood_equals_scikit_learn_log_loss(predictions):
    logits, labels = predictions
    expected = log_loss(labels.numpy(), F.softmax(logits.double(), -1).numpy())
    assert score(logits, labels).nll == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_torchmetrics(predictions, bins):
    logits, labels = predictions
    expected = MulticlassCalibrationError(num_classes=6, n_bins=bins, norm="l1")(
        F.softmax(logits, -1), labels
    )
    found = reliability_curve(logits, labels, bins).mean_gap
    assert found == pytest.approx(expected.item(), rel=1e-5)


def test_the_default_is_fifteen_bins(predictions):
    logits, labels = predictions
    assert reliability_curve(logits, labels).mean_gap == reliability_curve(
        logits, labels, 15
    ).mean_gap
    assert len(reliability_curve(logits, labels).count) == 15


def test_kl_to_teacher_equals_torch_kl_div_without_t_squared():
    random = torch.Generator().manual_seed(1)
    student, teacher = 3 * torch.randn(2, 4, 5, 7, generator=random, dtype=torch.float64)
    for temperature in (1.0, 3.0):
        expected = F.kl_div(
            F.log_softmax(student / temperature, -1).flatten(0, 1),
            F.softmax(teacher / temperature, -1).flatten(0, 1),
            reduction="batchmean",
        )
        found = kl_to_teacher(student, teacher, temperature)
        assert found == pytest.approx(expected.item(), rel=1e-10)


def test_kl_to_teacher_stays_finite_at_ruled_out_classes():
    student = torch.tensor([[0.0, -math.inf, 1.0]])
    teacher = torch.tensor([[1.0, -math.inf, 0.0]])
    assert kl_to_teacher(student, teacher) == pytest.approx(kl_to_teacher(
        student[:, [0, 2]], teacher[:, [0, 2]]
    ))  # fmt: skip


def test_interval_equals_the_paired_t_interval_of_scipy():
    random = np.random.default_rng(0)
    ours, theirs = random.normal(1, 2, 6), random.normal(0, 1, 6)
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    middle, half_width = interval(ours - theirs)
    assert middle - half_width == pytest.approx(low)
    assert middle + half_width == pytest.approx(high)


@pytest.mark.parametrize("runs", [2, 5])
def test_interval_covers_the_truth_in_95_of_100_repetitions(runs):
    random = np.random.default_rng(2)
    repetitions = 2000
    covered = 0
    for values in random.normal(0.3, 1.7, (repetitions, runs)):
        middle, half_width = interval(values)
        covered += abs(middle - 0.3) <= half_width
    # Three standard errors of a share of 0.95 over 2,000 repetitions are 0.015.
    assert abs(covered / repetitions - 0.95) < 0.015


# --- by hand ---------------------------------------------------------------------------------------


def test_reliability_curve_of_four_examples_worked_by_hand():
    # Two classes, two bins: confidence 0.6 and 0.8 fall above one half, as any confidence does.
    p = torch.tensor([[0.6, 0.4], [0.8, 0.2], [0.2, 0.8], [0.4, 0.6]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1])
    curve = reliability_curve(p.log(), labels, bins=4)
    np.testing.assert_allclose(curve.edges, [0, 0.25, 0.5, 0.75, 1])
    assert curve.count.tolist() == [0, 0, 2, 2]
    np.testing.assert_allclose(curve.confidence, [math.nan, math.nan, 0.6, 0.8])
    np.testing.assert_allclose(curve.accuracy, [math.nan, math.nan, 1.0, 0.5])
    # Half of the weight times |0.6 − 1| plus half times |0.8 − 0.5|.
    assert reliability_curve(p.log(), labels, bins=4).mean_gap == pytest.approx(0.35)


def test_a_certain_prediction_falls_into_the_last_bin():
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    curve = reliability_curve(logits, torch.tensor([0, 0]))
    assert curve.count.tolist() == [0] * 14 + [2]
    assert reliability_curve(logits, torch.tensor([0, 0])).mean_gap == 0.5


def test_a_confidence_on_an_edge_falls_into_the_bin_below():
    curve = reliability_curve(torch.zeros(3, 2), torch.tensor([0, 0, 1]), bins=2)
    assert curve.count.tolist() == [3, 0]


def test_calibrated_labels_have_a_small_error_and_overconfidence_a_large_one():
    random = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(20_000, 4, generator=random)
    labels = torch.multinomial(F.softmax(logits, -1), 1, generator=random).squeeze(-1)
    assert reliability_curve(logits, labels).mean_gap < 0.02
    assert reliability_curve(4 * logits, labels).mean_gap > 0.1


def test_agreement_counts_equal_predictions_right_or_wrong():
    student = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    teacher = torch.tensor([[9.0, 1.0], [1.0, 0.0], [0.1, 0.0]])
    assert agreement(student, teacher) == pytest.approx(2 / 3)


def test_score_holds_every_metric_and_prints_percentages(predictions):
    logits, labels = predictions
    scores = score(logits, labels)
    assert scores.ece == reliability_curve(logits, labels).mean_gap
    assert torch.equal(scores.correct, logits.argmax(-1) == labels)
    printed = str(Scores(0.9314, 0.21239, 0.0456, scores.correct))
    assert printed == "accuracy 93.1%, NLL 0.212 nats, ECE 4.6%"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_scored_in_double_precision(predictions, dtype):
    logits, labels = predictions
    half, same = score(logits.to(dtype), labels), score(logits.to(dtype).double(), labels)
    assert (half.accuracy, half.nll, half.ece) == (same.accuracy, same.nll, same.ece)


# --- verdicts --------------------------------------------------------------------------------------


def test_a_clear_gain_is_better_and_a_clear_loss_is_worse():
    high, low = [0.90, 0.91, 0.92], [0.80, 0.82, 0.81]
    assert compare(high, low).verdict == "better"
    assert compare(low, high).verdict == "worse"


def test_a_difference_within_the_spread_of_the_seeds_is_inconclusive():
    verdict = compare([0.9, 0.7, 0.8], [0.8, 0.75, 0.77])
    assert verdict.verdict == "inconclusive"
    assert verdict.low < 0 < verdict.difference < verdict.high
    assert verdict.p > 0.05


def test_no_difference_at_all_is_inconclusive():
    for scores in ([0.5, 0.6], [right(1, 0, 1), right(0, 1, 1)]):
        verdict = compare(scores, scores)
        assert (verdict.verdict, verdict.difference, verdict.p) == ("inconclusive", 0, 1)
        assert verdict.low == -verdict.high < -0.5


def test_pairing_finds_a_gain_that_the_spread_over_seeds_would_hide():
    baseline = np.array([0.60, 0.70, 0.80, 0.90])
    student = baseline + [0.020, 0.021, 0.019, 0.020]
    assert compare(student, baseline).verdict == "better"
    assert compare(student[::-1], baseline).verdict == "inconclusive"


def test_the_verdict_holds_the_paired_interval_of_scipy():
    random = np.random.default_rng(4)
    student, baseline = random.normal(0.9, 0.02, 5), random.normal(0.88, 0.02, 5)
    verdict = compare(student.tolist(), baseline.tolist())
    low, high = stats.ttest_rel(student, baseline).confidence_interval(0.95)
    assert (verdict.low, verdict.high) == pytest.approx((low, high))
    assert verdict.p == pytest.approx(stats.ttest_rel(student, baseline).pvalue)
    assert verdict.student == pytest.approx(student.mean())
    assert verdict.baseline == pytest.approx(baseline.mean())
    assert verdict.seeds == 5
    assert verdict.examples is None


def test_the_verdict_agrees_with_the_p_value_of_the_paired_t_test():
    random = np.random.default_rng(5)
    seen = set()
    for gain in np.linspace(-0.05, 0.05, 41):
        baseline = random.normal(0.8, 0.02, 5)
        student = baseline + random.normal(gain, 0.02, 5)
        test = stats.ttest_rel(student, baseline)
        expected = "inconclusive"
        if test.pvalue < 0.05:
            expected = "better" if test.statistic > 0 else "worse"
        assert compare(student, baseline).verdict == expected
        seen.add(expected)
    assert seen == {"better", "worse", "inconclusive"}


def test_seeds_without_spread_leave_the_t_interval_over_examples():
    random = np.random.default_rng(6)
    ease = random.normal(1, 1.5, 400)  # some examples are hard for every model
    student, baseline = (right(*(random.normal(ease + skill) > 0)) for skill in (0.2, 0.0))
    verdict = compare([student] * 3, [baseline] * 3)
    gaps = student.correct.numpy().astype(float) - baseline.correct.numpy()
    low, high = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert (verdict.low, verdict.high) == pytest.approx((low, high))
    bootstrap = gaps[random.integers(0, 400, (8000, 400))].mean(1).std()
    # A standard deviation from 8,000 draws is known to about 0.8%.
    assert (verdict.high - verdict.low) / 2 == pytest.approx(1.966 * bootstrap, rel=0.03)


def test_seeds_without_spread_leave_the_error_of_mcnemar():
    both, only_student, only_baseline, neither = 60, 12, 5, 23
    student = right(*[1] * both, *[1] * only_student, *[0] * only_baseline, *[0] * neither)
    baseline = right(*[1] * both, *[0] * only_student, *[1] * only_baseline, *[0] * neither)
    n = 100
    difference = (only_student - only_baseline) / n
    variance = ((only_student + only_baseline) / n - difference**2) / (n - 1)
    verdict = compare([student, student], [baseline, baseline])
    assert verdict.difference == pytest.approx(difference)
    half = stats.t.ppf(0.975, n - 1) * math.sqrt(variance)
    assert (verdict.low, verdict.high) == pytest.approx((difference - half, difference + half))
    assert verdict.examples == n


def test_a_table_of_two_seeds_and_three_examples_worked_by_hand():
    verdict = compare([right(1, 1, 0), right(1, 1, 1)], [right(0, 1, 1), right(0, 0, 0)])
    # Differences 1 0 -1 and 1 1 1: mean 1/2, of seeds 0 and 1, of examples 1, 1/2 and 0. Sums of squares
    # 1.5 for seeds, 1 for examples, 1 for the rest; mean squares 3/2, 1/2, 1/2. Their combination 3/2.
    assert verdict.difference == pytest.approx(0.5)
    freedom = 1.5**2 / (1.5**2 / 1 + 0.5**2 / 2 + 0.5**2 / 2)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(1.5 / 6)
    assert half > 1.5, "so that the interval is cut to what a difference of accuracies can be"
    assert (verdict.low, verdict.high) == (-1, 1)
    assert verdict.p == pytest.approx(2 * stats.t.sf(0.5 / math.sqrt(1.5 / 6), freedom))


def test_a_component_estimated_below_zero_counts_as_zero():
    # Differences 1 1 0 -1 and 1 0 0 0: both seeds have the mean 1/4, so that only examples count.
    verdict = compare([right(1, 1, 0, 0), right(1, 0, 1, 1)], [right(0, 0, 0, 1), right(0, 0, 1, 1)])
    assert verdict.difference == pytest.approx(0.25)
    # Means of the examples 1, 1/2, 0, -1/2: mean square 5/6. The rest are ± 1/2 twice, and zero: 1/3.
    freedom = (5 / 6) ** 2 / ((5 / 6) ** 2 / 3 + (1 / 3) ** 2 / 3)
    assert verdict.p == pytest.approx(2 * stats.t.sf(0.25 / math.sqrt(5 / 6 / 8), freedom))


def test_a_gain_on_too_few_examples_is_inconclusive_though_every_seed_shows_it():
    student, baseline = right(1, 1, 1, 1, 1, 1, 1, 0), right(1, 1, 1, 1, 1, 1, 0, 0)
    by_examples = compare([student] * 4, [baseline] * 4)
    assert by_examples.low < 0 < by_examples.difference
    assert by_examples.verdict == "inconclusive"
    numbers_only = compare([0.85, 0.86, 0.87, 0.86], [baseline.accuracy] * 4)
    assert numbers_only.verdict == "better"


def test_the_same_gain_on_many_examples_is_better():
    answers, fewer = [1] * 7 + [0], [1] * 6 + [0] * 2
    verdict = compare([right(*answers * 50)] * 4, [right(*fewer * 50)] * 4)
    assert verdict.low > 0 and verdict.p < 0.001
    assert verdict.verdict == "better"


@st.composite
def paired(draw):
    """Right and wrong answers of student and baseline, two arrays (S, N) of 0 and 1."""
    shape = draw(st.integers(2, 5)), draw(st.integers(2, 12))
    cells = st.lists(st.integers(0, 1), min_size=math.prod(shape), max_size=math.prod(shape))
    return np.array(draw(cells)).reshape(shape), np.array(draw(cells)).reshape(shape)


def compared(student, baseline, **options):
    return compare([right(*row) for row in student], [right(*row) for row in baseline], **options)


@given(paired(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_p_is_below_5_percent_exactly_where_zero_is_outside_of_the_interval(answers, bounded):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "DRAWS", 9)
        verdict = compared(*answers, bounded=bounded)
    assert (verdict.p < 0.05) == (verdict.low > 0 or verdict.high < 0) == (verdict.verdict != "inconclusive")
    assert -1 <= verdict.low <= verdict.difference <= verdict.high <= 1
    assert 0 <= verdict.p <= 1


@given(paired(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_the_order_of_seeds_and_of_examples_does_not_matter_and_swapping_turns_the_sign(answers, random):
    student, baseline = answers
    verdict = compared(student, baseline)
    rows, columns = (random.sample(range(n), n) for n in student.shape)
    shuffled = compared(student[rows][:, columns], baseline[rows][:, columns])
    swapped = compared(baseline, student)
    for other in (shuffled, swapped):
        assert other.p == pytest.approx(verdict.p)
    assert (shuffled.low, shuffled.high) == pytest.approx((verdict.low, verdict.high))
    assert (swapped.low, swapped.high) == pytest.approx((-verdict.high, -verdict.low))


def test_the_verdict_prints_points_names_interval_seeds_examples_and_p():
    verdict = compare(
        [right(1, 1, 1, 0), right(1, 1, 1, 1)],
        [right(1, 1, 0, 0), right(1, 1, 1, 0)],
        names=("distilled", "plain"),
    )
    assert str(verdict) == (
        "distilled 87.50, plain 62.50: difference +25.00 points\n"
        "95% interval [-100.00, +100.00] over 2 paired seeds and 4 test examples together\n"
        "verdict: inconclusive (p = 0.436)"
    )


def test_another_unit_is_printed_as_it_stands_and_without_test_examples():
    verdict = compare([1.0, 1.5, 1.3], [2.0, 2.502, 2.301], unit="nats")
    assert str(verdict) == (
        "student 1.27, baseline 2.27: difference -1.00 nats\n"
        "95% interval [-1.00, -1.00] over 3 paired seeds\n"
        "verdict: worse (p < 0.001)"
    )


# --- does 95% mean 95%? -----------------------------------------------------------------------------


def simulate(seeds, *, gain=0.2, kinds=0.0, spread=0.2, asked=0.4, repetitions=1500, examples=400):
    """Right and wrong answers of student and baseline, (R, S, N) each, and the true difference.

    An answer is right where ease + skill + noise > 0. Examples differ in ease and, by `asked`, in what
    suits either model; skill differs from seed to seed with a standard deviation `spread`, and between two
    kinds of student seeds, equally likely, by `kinds`; noise is partly common to the pair.
    """
    random = np.random.default_rng(0)
    ease = 1.5 + random.normal(0, 1.5, (repetitions, 1, examples))
    common = random.normal(0, math.sqrt(0.7), (repetitions, seeds, examples))
    right, truth = [], []
    for shift, apart in ((gain, kinds), (0.0, 0.0)):
        suits = random.normal(0, asked, (repetitions, 1, examples))
        skill = shift + random.normal(0, spread, (repetitions, seeds, 1))
        skill = skill + apart * (random.integers(0, 2, (repetitions, seeds, 1)) - 0.5)
        own = random.normal(0, math.sqrt(0.3), (repetitions, seeds, examples))
        right.append(torch.from_numpy(ease + suits + skill + common + own > 0))
        deviation = math.sqrt(1 + 1.5**2 + asked**2 + spread**2)
        truth.append(stats.norm.cdf([(1.5 + shift + apart * x) / deviation for x in (-0.5, 0.5)]).mean())
    return *right, truth[0] - truth[1]


def coverage(seeds, bounded=False, **scenario):
    """Share of repetitions whose interval holds the true difference, and mean width."""
    *answers, truth = simulate(seeds, **scenario)
    scored = ([[Scores(row.double().mean().item(), 0, 0, row) for row in run] for run in a] for a in answers)
    found = [compare(*pair, bounded=bounded) for pair in zip(*scored, strict=True)]
    widths = [verdict.high - verdict.low for verdict in found]
    return np.mean([verdict.low <= truth <= verdict.high for verdict in found]), np.mean(widths)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    "scenario",
    [{}, {"gain": 0.0, "spread": 0.1, "asked": 1.0}, {"kinds": 1.0, "spread": 0.4}],
    ids=["seeds and examples", "no gain, mostly examples", "two humps of seeds"],
)
def test_the_interval_over_seeds_and_examples_covers_95_percent(seeds, scenario):
    # Three standard errors of a share of 0.95 over 1,500 repetitions are 0.017. Without a gain, what is not
    # covered is the error of the first kind.
    covered, _ = coverage(seeds, **scenario)
    assert abs(covered - 0.95) < 0.02


APART = {"kinds": 3.0, "spread": 0.1, "repetitions": 600}  # students at 54 or at 97%, nothing between


def test_three_seeds_of_two_kinds_far_apart_are_too_few_for_a_t_interval():
    covered, _ = coverage(3, **APART)
    assert 0.72 < covered < 0.8, "a quarter of all threesomes are of one kind, and cannot know of the other"


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_bounded_interval_covers_whatever_the_seeds_do(seeds, monkeypatch):
    monkeypatch.setattr(metrics, "DRAWS", 10)
    covered, _ = coverage(seeds, bounded=True, **APART)
    assert covered > 0.95


# --- seeds in a range ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 5, 10, 20])
def test_of_zeros_and_ones_the_bounded_interval_is_that_of_clopper_and_pearson(count):
    for ones in range(count + 1):
        mean, low, high = bounded_interval([1] * ones + [0] * (count - ones))
        exact = stats.binomtest(ones, count).proportion_ci(0.95, "exact")
        assert mean == ones / count
        assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.003)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(-5, 5), st.floats(0.1, 9))
@settings(deadline=None, max_examples=40)
def test_a_bounded_interval_stays_in_the_range_and_moves_with_it(values, shift, scale):
    mean, low, high = bounded_interval(values)
    assert 0 <= low <= mean <= high <= 1
    moved = bounded_interval([min(shift + scale * x, shift + scale) for x in values], shift, shift + scale)
    assert moved == pytest.approx([shift + scale * x for x in (mean, low, high)], abs=1e-9)
    assert bounded_interval(values[::-1])[1:] == pytest.approx((low, high))
    turned = bounded_interval([1 - x for x in values])
    assert turned == pytest.approx((1 - mean, 1 - high, 1 - low), abs=1e-9)


def test_bounded_verdicts_are_intervals_of_the_differences_and_say_so():
    student, baseline = [0.9, 0.2, 0.95, 0.9, 0.85, 0.9], [0.1, 0.2, 0.1, 0.1, 0.15, 0.2]
    verdict = compare(student, baseline, bounded=True)
    expected = bounded_interval(np.subtract(student, baseline), -1, 1)
    assert (verdict.difference, verdict.low, verdict.high) == pytest.approx(expected)
    assert "over 6 paired seeds; seeds may spread in any way\n" in str(verdict)
    # With two examples in the test set one knows less than with infinitely many.
    few = compared([[1, 0], [1, 1]] * 6, [[0, 0], [0, 0]] * 6, bounded=True)
    many = compare([0.5, 1.0] * 6, [0.0] * 12, bounded=True)
    assert few.difference == many.difference and few.low < many.low - 0.05


# --- many verdicts ------------------------------------------------------------------------------------


def test_holm_by_hand():
    single = compare([0.9, 0.8], [0.5, 0.6])
    table = {
        name: replace(single, p=p, verdict="better" if p < 0.05 else "inconclusive")
        for name, p in {"a": 0.04, "b": 0.01, "c": 0.9, "d": 0.015}.items()
    }
    found = holm(table)
    assert list(found) == list(table)
    expected = {"a": 0.08, "b": 0.04, "c": 0.9, "d": 0.045}
    assert {name: verdict.p for name, verdict in found.items()} == pytest.approx(expected)
    verdicts = {name: verdict.verdict for name, verdict in found.items()}
    assert verdicts == {"a": "inconclusive", "b": "better", "c": "inconclusive", "d": "better"}
    assert (found["a"].low, found["a"].high) == (single.low, single.high)
    assert str(found["a"]).endswith(
        "verdict: inconclusive (p = 0.080, corrected for 4 verdicts by Holm; the interval is not)"
    )
    assert holm({}) == {} and holm({0: single})[0] == single


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_equals_the_closed_test_of_bonferroni(values):
    single = compare([0.9, 0.8], [0.5, 0.6])
    found = holm({k: replace(single, p=p) for k, p in enumerate(values)})
    # A hypothesis falls only if Bonferroni rejects every set of hypotheses that it belongs to.
    for k in found:
        sets = (s for n in range(1, len(values) + 1) for s in combinations(range(len(values)), n) if k in s)
        closed = max(min(1, len(s) * min(values[i] for i in s)) for s in sets)
        assert found[k].p == pytest.approx(closed)


# --- refusals --------------------------------------------------------------------------------------


def test_unpaired_scores_are_refused():
    with pytest.raises(ValueError, match="got 3 and 2"):
        compare([0.1, 0.2, 0.3], [0.1, 0.2])


@pytest.mark.parametrize("scores", [[], [0.5]])
def test_fewer_than_two_seeds_are_refused(scores):
    with pytest.raises(ValueError, match="at least two finite values"):
        compare(scores, scores)
    with pytest.raises(ValueError, match="at least two finite values"):
        interval(scores)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="two finite values; got"):
        interval([0.5, value])
    with pytest.raises(ValueError, match="expected a finite number"):
        compare([0.5, value], [0.5, 0.5])
    with pytest.raises(ValueError, match="one finite value; got"):
        bounded_interval([value])


def test_scores_on_different_test_sets_are_refused():
    with pytest.raises(ValueError, match=r"one test set of at least two examples; got sizes \[2, 3\]"):
        compare([right(1, 1)] * 2, [right(1, 1, 0)] * 2)
    with pytest.raises(ValueError, match=r"got sizes \[1\]"):
        compare([right(1)] * 2, [right(0)] * 2)


def test_values_outside_of_the_range_are_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\]; got \[1.5\]"):
        bounded_interval([1.5])
    with pytest.raises(ValueError, match=r"in \[-1, 1\]; got \[50.0, 40.0\]"):
        compare([90, 80], [40, 40], unit="%", bounded=True)
    with pytest.raises(ValueError, match="one finite value"):
        bounded_interval([])


def test_a_corrected_verdict_is_not_corrected_again():
    table = holm({"a": compare([0.9, 0.8], [0.5, 0.6]), "b": compare([0.9, 0.8], [0.5, 0.6])})
    with pytest.raises(ValueError, match="'a' is corrected for 2 already"):
        holm(table)


@pytest.mark.parametrize("metric", [reliability_curve, score])
def test_logits_and_labels_that_do_not_belong_together_are_refused(metric):
    with pytest.raises(ValueError, match=r"expected logits \(N, C\).*\(5, 3\) and \(4,\)"):
        metric(torch.zeros(5, 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(2, 5, 3\)"):
        metric(torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="N > 0"):
        metric(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


# --- temperature scaling and the gap ----------------------------------------------------------------


def test_the_fitted_temperature_is_where_a_fine_grid_finds_the_lowest_log_loss(predictions):
    logits, labels = predictions
    grid = np.exp(np.linspace(np.log(0.2), np.log(5), 601))
    losses = [log_loss(labels, F.softmax(logits.double() / t, -1), labels=range(6)) for t in grid]
    assert fit_temperature(logits, labels) == pytest.approx(grid[int(np.argmin(losses))], rel=5e-3)


def test_no_temperature_fits_a_label_that_is_ruled_out():
    logits, labels = torch.randn(40, 3), torch.arange(40) % 3
    logits[0, labels[0]] = -torch.inf
    with pytest.raises(ValueError, match="labels is .*; expected none at a class with the logit −inf"):
        fit_temperature(logits, labels)


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
def test_the_fitted_temperature_undoes_a_scaling_of_calibrated_logits(factor):
    random = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(20_000, 4, generator=random)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=random).squeeze(1)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.03)


def test_the_fitted_temperature_stays_in_bounds_where_no_finite_one_is_best():
    logits, labels = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
    # Where the log-loss is 0 to the last digit, one T is as good as another.
    assert 0.01 <= fit_temperature(logits, labels) < 0.1
    assert fit_temperature(logits, 1 - labels) == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize(
    ("student", "baseline", "teacher", "share"),
    [(0.85, 0.8, 0.9, 0.5), (0.9, 0.8, 0.9, 1.0), (0.8, 0.8, 0.9, 0.0), (0.75, 0.8, 0.9, -0.5)],
)
def test_the_share_of_the_gap(student, baseline, teacher, share):
    assert gap_closed(student, baseline, teacher) == pytest.approx(share)


def test_there_is_no_gap_to_close_to_a_teacher_that_is_no_better():
    assert math.isnan(gap_closed(0.85, 0.8, 0.8))


# --- what is refused, and what is learnt of no spread ----------------------------------------------


@pytest.mark.parametrize(("logits", "labels", "message"), [
    ([[0.0, math.nan], [0, 1]], [0, 1], "logits holds NaN in row 0"),
    ([[0.0, 1], [math.inf, 1]], [0, 1], "logits holds inf in row 1"),
    ([[0.0, 1], [-math.inf, -math.inf]], [0, 1], "logits holds −inf for every class in row 1"),
    ([[0.0, 1], [0, 1]], [0, -100], "labels holds -100 in row 1; .*Only labelled"),
    ([[0.0, 1], [0, 1]], [2, 0], "labels holds 2 in row 0; expected 0 to 1"),
    ([[0.0, 1], [0, 1]], [0.5, 0.5], "labels is a float32 tensor.*labels.long()"),
    ([[0.0, 1], [0, 1]], [True, False], "labels is a bool tensor"),
    ([[0.0, 1], [0, 1]], [[1, 0], [0, 1]], "one-hot labels become indices"),
])  # fmt: skip
@pytest.mark.parametrize("metric", [reliability_curve, score, fit_temperature])
def test_nothing_is_scored_that_has_no_score(metric, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        metric(torch.tensor(logits), torch.tensor(labels))
    with pytest.raises(ValueError, match="logits is a list; expected a tensor"):
        metric(logits, torch.tensor(labels))


def test_minus_infinity_rules_a_class_out_and_is_scored():
    found = score(torch.tensor([[0.0, -math.inf], [1.0, 1.0]]), torch.tensor([0, 1]))
    assert found.nll == pytest.approx(math.log(2) / 2)
    assert score(torch.tensor([[0.0, -math.inf]]), torch.tensor([1])).nll == math.inf


def test_agreement_of_what_has_no_classes_is_refused():
    with pytest.raises(ValueError, match="teacher_logits is .*expected logits .* without NaN"):
        agreement(torch.zeros(2, 3), torch.full((2, 3), math.nan))
    with pytest.raises(ValueError, match=r"one shape.*\(2, 3\) and \(1, 3\)"):
        agreement(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="baseline is nan"):
        gap_closed(0.5, math.nan, 0.9)


@pytest.mark.parametrize(("pair", "message"), [
    (([95.0, 96.0], [93.0, 92.0]), "a value of student_scores is 95.0; .*0.95 for 95 %"),
    (([0.9, 0.8], [-0.5, 0.3]), "a value of baseline_scores is -0.5; expected an accuracy"),
    (([0.9, "good"], [0.5, 0.3]), "a value of student_scores is 'good'; expected a finite number"),
    (([0.9, math.nan], [0.5, 0.3]), "a value of student_scores is nan"),
    ((0.9, [0.5]), "student_scores is 0.9; expected one score for each seed"),
    ((right(1, 0), right(1, 1)), "student_scores is a Scores; expected one score for each seed"),
])  # fmt: skip
def test_scores_that_are_none_are_not_compared(pair, message):
    with pytest.raises(ValueError, match=message):
        compare(*pair)


def test_numbers_with_a_unit_of_their_own_may_be_any():
    assert compare([95.0, 96.0], [93.0, 92.0], unit="%").difference == 3
    assert compare(np.array([0.9, 0.8]), torch.tensor([0.5, 0.3])).seeds == 2


@pytest.mark.parametrize("pair", [
    ([right(1, 0, 1)] * 2, [right(1, 0, 1)] * 2),  # two that always say the same
    ([right(1, 1, 1)] * 2, [right(0, 0, 0)] * 2),
    ([0.5, 0.5], [0.1, 0.1]),
])  # fmt: skip
def test_where_nothing_differs_nothing_was_learnt_and_no_interval_has_width_zero(pair):
    verdict = compare(*pair)
    assert verdict.verdict == "inconclusive" and verdict.high - verdict.low > 0.5 and verdict.p > 0.05
    assert "nothing was learnt" in str(verdict)
    assert verdict == replace(compare(*pair, bounded=True), alike=True)
    assert "nothing was learnt" not in str(compare([0.5, 0.6], [0.1, 0.1]))


def test_ten_seeds_that_all_show_the_same_gain_are_enough():
    assert compare([right(1, 1, 1)] * 10, [right(0, 0, 0)] * 10).verdict == "better"
    verdict = compare([4.0, 3.0], [2.0, 1.0], unit="nats")
    assert (verdict.verdict, verdict.low, verdict.high, verdict.p) == ("inconclusive", -math.inf, math.inf, 1)
