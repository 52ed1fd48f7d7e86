"""What must hold for the distillation loss whatever the logits, shapes, precision and temperature."""

import math
from dataclasses import dataclass, replace
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from kdlib.losses.divergences import DIVERGENCES, OF_MIXTURE
from kdlib.losses.kd import kd_loss, soft_target_loss

IGNORED = -100


@dataclass(frozen=True)
class Case:
    student: torch.Tensor
    teacher: torch.Tensor
    labels: torch.Tensor
    temperature: float
    alpha: float
    divergence: str
    beta: float

    @property
    def soft(self) -> dict:
        """Arguments of soft_target_loss."""
        return {"temperature": self.temperature, "divergence": self.divergence, "beta": self.beta}

    @property
    def options(self) -> dict:
        """Arguments of kd_loss."""
        return {**self.soft, "alpha": self.alpha}

    @property
    def counted(self) -> torch.Tensor:
        return self.labels != IGNORED

    def loss_and_gradient(self, **changed):
        student = self.student.clone().requires_grad_()
        loss = kd_loss(student, self.teacher, self.labels, **{**self.options, **changed})
        loss.sum().backward()
        return loss.detach(), student.grad


@st.composite
def cases(draw, dtypes=(torch.float64,), positions=None):
    """Images (N, C) and tokens (N, L, C); some positions do not count."""
    if positions is None:
        positions = draw(
            st.one_of(
                st.tuples(st.integers(1, 9)), st.tuples(st.integers(1, 4), st.integers(1, 5))
            )
        )
    classes = draw(st.integers(2, 50))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.01, 1.0, 5.0, 100.0]))
    dtype = draw(st.sampled_from(dtypes))

    def logits():
        z = torch.randn(*positions, classes, generator=random, dtype=torch.float64)
        return (scale * z).to(dtype)

    labels = torch.randint(classes, positions, generator=random)
    ignored = torch.rand(positions, generator=random) < draw(st.sampled_from([0.0, 0.4]))
    return Case(
        student=logits(),
        teacher=logits(),
        labels=labels.masked_fill(ignored, IGNORED),
        temperature=10 ** draw(st.floats(-1, 4)),
        alpha=draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        divergence=draw(st.sampled_from(DIVERGENCES)),
        beta=draw(st.sampled_from([0.05, 0.5, 0.9])),
    )


SINGLE = (torch.float32,)
HALF = (torch.float16, torch.bfloat16)
ALL = (*HALF, torch.float32, torch.float64)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


# --- what the loss must not depend on ---------------------------------------------------------------


@given(cases(), st.floats(-50, 50))
def test_adding_a_constant_to_all_logits_of_a_position_changes_nothing(case, constant):
    shift = constant * torch.arange(1, case.labels.numel() + 1).view(*case.labels.shape, 1)
    shifted = replace(case, student=case.student + shift, teacher=case.teacher - 2 * shift)
    for found, expected in zip(
        shifted.loss_and_gradient(), case.loss_and_gradient(), strict=True
    ):
        close(found, expected)


@given(cases(), st.randoms(use_true_random=False))
def test_renaming_the_classes_changes_nothing(case, random):
    order = list(range(case.student.shape[-1]))
    random.shuffle(order)
    new_name = torch.tensor(order).argsort()
    renamed = replace(
        case,
        student=case.student[..., order],
        teacher=case.teacher[..., order],
        labels=torch.where(case.counted, new_name[case.labels.clamp(min=0)], IGNORED),
    )
    loss, gradient = case.loss_and_gradient()
    renamed_loss, renamed_gradient = renamed.loss_and_gradient()
    close(renamed_loss, loss)
    close(renamed_gradient, gradient[..., order])


@given(
    cases(dtypes=ALL, positions=(3, 4)),
    st.sampled_from([6e4, -6e4, math.inf, -math.inf, math.nan]),
    st.sampled_from([6e4, -6e4, math.inf, -math.inf, math.nan]),
    st.sampled_from(["mean", "sum", "none"]),
)
def test_ignored_positions_may_hold_anything(case, in_student, in_teacher, reduction):
    case = replace(case, labels=case.labels.index_fill(1, torch.tensor([1, 3]), IGNORED))
    ignored = ~case.counted.unsqueeze(-1)
    filled = replace(
        case,
        student=case.student.masked_fill(ignored, in_student),
        teacher=case.teacher.masked_fill(ignored, in_teacher),
    )
    loss, gradient = case.loss_and_gradient(reduction=reduction)
    filled_loss, filled_gradient = filled.loss_and_gradient(reduction=reduction)
    assert torch.equal(filled_loss, loss)
    assert torch.equal(filled_gradient, gradient)
    assert filled_gradient[~case.counted].eq(0).all()


@given(cases())
def test_ignored_positions_count_as_if_they_had_been_cut_out(case):
    kept = replace(
        case,
        student=case.student[case.counted],
        teacher=case.teacher[case.counted],
        labels=case.labels[case.counted],
    )
    loss, gradient = case.loss_and_gradient()
    kept_loss, kept_gradient = kept.loss_and_gradient()
    close(loss, kept_loss)
    close(gradient[case.counted], kept_gradient)


@given(cases(dtypes=ALL), st.sampled_from([torch.int32, torch.int16, torch.int8]))
def test_any_integer_type_of_labels_gives_the_same_loss(case, dtype):
    loss, gradient = case.loss_and_gradient()
    again, gradient_again = replace(case, labels=case.labels.to(dtype)).loss_and_gradient()
    assert torch.equal(again, loss)
    assert torch.equal(gradient_again, gradient)


@given(cases(dtypes=ALL, positions=(3, 4)))
def test_the_layout_in_memory_changes_nothing(case):
    strided = replace(
        case,
        student=torch.stack([case.student, case.student], -1)[..., 1],
        teacher=case.teacher.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        labels=case.labels.t().contiguous().t(),
    )
    assert not strided.student.is_contiguous()
    assert not strided.teacher.is_contiguous()
    assert not strided.labels.is_contiguous()
    for found, expected in zip(
        strided.loss_and_gradient(), case.loss_and_gradient(), strict=True
    ):
        tolerance = 1e-3 if expected.dtype in HALF else 1e-5
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@given(cases(dtypes=SINGLE))
def test_inputs_are_left_as_they_were(case):
    before = [t.clone() for t in (case.student, case.teacher, case.labels)]
    case.loss_and_gradient()
    after = (case.student, case.teacher, case.labels)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


# --- sums, means and parts -------------------------------------------------------------------------


@given(cases())
def test_the_three_reductions_agree(case):
    each, _ = case.loss_and_gradient(reduction="none")
    assert each.shape == case.labels.shape
    assert each[~case.counted].eq(0).all()
    total, _ = case.loss_and_gradient(reduction="sum")
    mean, _ = case.loss_and_gradient(reduction="mean")
    close(each.sum(), total)
    close(total / max(case.counted.sum().item(), 1), mean)


@given(cases(positions=(6, 3)), st.integers(1, 5))
def test_parts_of_a_batch_weighted_by_their_counts_give_the_whole(case, cut):
    parts = [
        replace(case, student=case.student[rows], teacher=case.teacher[rows], labels=case.labels[rows])
        for rows in (slice(None, cut), slice(cut, None))
    ]
    count = case.counted.sum().clamp(min=1)
    loss, gradient = case.loss_and_gradient()
    weighted = sum(part.loss_and_gradient()[0] * part.counted.sum() for part in parts)
    close(weighted / count, loss)
    # Gradient accumulation: sums over chunks, divided by the global count.
    sums = [part.loss_and_gradient(reduction="sum") for part in parts]
    close(sum(part_loss for part_loss, _ in sums) / count, loss)
    close(torch.cat([part_gradient for _, part_gradient in sums]) / count, gradient)


@given(cases())
def test_the_loss_is_linear_in_alpha(case):
    hard, hard_gradient = case.loss_and_gradient(alpha=1.0)
    soft, soft_gradient = case.loss_and_gradient(alpha=0.0)
    loss, gradient = case.loss_and_gradient(alpha=0.3)
    close(loss, 0.3 * hard + 0.7 * soft)
    close(gradient, 0.3 * hard_gradient + 0.7 * soft_gradient)


@given(cases())
def test_the_mask_of_the_soft_loss_and_the_ignored_labels_mean_the_same(case):
    masked = soft_target_loss(case.student, case.teacher, mask=case.counted, **case.soft)
    assert torch.equal(case.loss_and_gradient(alpha=0)[0], masked)


@given(cases())
def test_at_alpha_zero_labels_do_nothing_but_mask(case):
    other = torch.where(case.counted, (case.labels + 1) % case.student.shape[-1], IGNORED)
    loss, gradient = case.loss_and_gradient(alpha=0)
    again, gradient_again = replace(case, labels=other).loss_and_gradient(alpha=0)
    assert torch.equal(again, loss)
    assert torch.equal(gradient_again, gradient)


@given(cases(dtypes=ALL))
def test_without_labels_only_the_teacher_is_followed(case):
    loss, gradient = replace(case, labels=None).loss_and_gradient()
    student = case.student.clone().requires_grad_()
    expected = soft_target_loss(student, case.teacher, **case.soft)
    expected.backward()
    assert torch.equal(loss, expected.detach())
    assert torch.equal(gradient, student.grad)


@given(cases(dtypes=ALL))
def test_alpha_one_is_cross_entropy_and_never_looks_at_the_teacher(case):
    case = replace(case, labels=case.labels.clamp(min=0))
    student = case.student.clone().requires_grad_()
    full = student.to(torch.promote_types(student.dtype, torch.float32))
    expected = F.cross_entropy(full.flatten(0, -2), case.labels.flatten())
    expected.backward()
    for teacher in (None, torch.full_like(case.teacher, math.nan), case.teacher):
        loss, gradient = replace(case, teacher=teacher).loss_and_gradient(alpha=1)
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(gradient, student.grad)


@given(cases(dtypes=ALL), st.sampled_from(["mean", "sum", "none"]))
def test_where_nothing_counts_loss_and_gradient_are_exactly_zero(case, reduction):
    nothing = replace(case, labels=torch.full_like(case.labels, IGNORED))
    loss, gradient = nothing.loss_and_gradient(reduction=reduction)
    assert loss.eq(0).all()
    assert gradient.eq(0).all()


def test_an_empty_batch_gives_zero():
    student = torch.zeros(0, 4, requires_grad=True)
    loss = kd_loss(student, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad.shape == (0, 4)


def test_one_position_without_a_batch_axis_is_a_batch_of_one():
    student, teacher = torch.tensor([0.5, -2.0, 1.0]), torch.tensor([1.0, 0.0, -1.0])
    label = torch.tensor(2)
    one = kd_loss(student, teacher, label)
    torch.testing.assert_close(one, kd_loss(student[None], teacher[None], label[None]))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ignored", [0, -1, 255])
def test_any_label_can_be_the_one_that_is_ignored(ignored, alpha):
    random = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 4, generator=random)
    labels = torch.tensor([0, 1, 2, 3, 1, 0])
    marked = labels.masked_fill(labels == 0, ignored)
    found = kd_loss(student, teacher, marked, alpha=alpha, ignore_index=ignored)
    usual = kd_loss(student, teacher, labels.masked_fill(labels == 0, -100), alpha=alpha)
    assert torch.equal(found, usual)
    assert not torch.equal(usual, kd_loss(student, teacher, labels, alpha=alpha))


def test_at_alpha_zero_the_hard_term_is_not_computed():
    # Its value would be infinite in float32, and zero times infinity is not a number.
    logits = torch.tensor([[3e38, -3e38]])
    assert F.cross_entropy(logits, torch.tensor([1])).isinf()
    assert kd_loss(logits, logits, torch.tensor([1]), alpha=0).item() == 0


# --- zero, sign and symmetry -----------------------------------------------------------------------


@given(cases(dtypes=ALL), st.sampled_from(["forward", "reverse", "tvd", "akl"]))
def test_a_student_equal_to_its_teacher_has_exactly_zero_loss_and_gradient(case, divergence):
    case = replace(case, teacher=case.student.clone(), divergence=divergence)
    loss, gradient = case.loss_and_gradient(alpha=0)
    assert loss.item() == 0
    assert gradient.eq(0).all()


@given(cases(dtypes=ALL), st.sampled_from(OF_MIXTURE))
def test_where_both_are_equal_what_has_a_mixture_is_zero_up_to_rounding(case, divergence):
    case = replace(case, teacher=case.student.clone(), divergence=divergence)
    loss, gradient = case.loss_and_gradient(alpha=0)
    # log m carries the rounding of one addition, which enters the loss squared.
    rounding = case.temperature * 1e-6
    assert abs(loss.item()) <= rounding**2
    assert gradient.abs().max().item() <= rounding


@given(cases(dtypes=SINGLE))
def test_the_loss_is_never_negative_beyond_rounding(case):
    each, _ = case.loss_and_gradient(alpha=0, reduction="none")
    difference = case.teacher - case.student
    size = (difference.amax(-1) - difference.amin(-1)).clamp(max=case.temperature)
    assert (each >= -2e-6 * case.temperature * size).all()


@given(cases())
def test_exchanging_the_models_turns_forward_into_reverse_and_beta_into_its_complement(case):
    forward = soft_target_loss(case.student, case.teacher, temperature=case.temperature)
    swapped = soft_target_loss(
        case.teacher, case.student, temperature=case.temperature, divergence="reverse"
    )
    assert torch.equal(forward, swapped)
    settings = {"temperature": case.temperature, "divergence": "jsd"}
    jsd = soft_target_loss(case.student, case.teacher, beta=case.beta, **settings)
    exchanged = soft_target_loss(case.teacher, case.student, beta=1 - case.beta, **settings)
    close(jsd, exchanged)
    settings["divergence"] = "skew-forward"
    skew = soft_target_loss(case.student, case.teacher, beta=case.beta, **settings)
    settings["divergence"] = "skew-reverse"
    close(skew, soft_target_loss(case.teacher, case.student, beta=1 - case.beta, **settings))
    settings["divergence"] = "tvd"
    close(*(soft_target_loss(*z, **settings) for z in permutations((case.student, case.teacher))))


@given(cases(dtypes=SINGLE))
def test_what_has_a_mixture_and_total_variation_never_exceed_their_bounds(case):
    beta = case.beta
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    bounds = {
        "jsd": entropy, "skew-forward": -math.log(beta), "skew-reverse": -math.log(1 - beta), "tvd": 1.0
    }  # fmt: skip
    for divergence, bound in bounds.items():
        each, _ = replace(case, divergence=divergence).loss_and_gradient(alpha=0, reduction="none")
        assert (each <= case.temperature**2 * bound * (1 + 1e-5)).all()


@given(cases(), st.floats(0.1, 100))
def test_scaling_logits_and_temperature_together_scales_the_soft_loss_by_the_square(case, factor):
    loss = soft_target_loss(case.student, case.teacher, **case.soft)
    scaled = soft_target_loss(
        factor * case.student,
        factor * case.teacher,
        **{**case.soft, "temperature": factor * case.temperature},
    )
    torch.testing.assert_close(scaled, factor**2 * loss, rtol=1e-6, atol=1e-6)


# --- numbers that other losses stumble over --------------------------------------------------------


@given(cases(dtypes=ALL))
def test_loss_and_gradient_are_finite(case):
    loss, gradient = case.loss_and_gradient(reduction="sum")
    assert loss.isfinite()
    assert gradient.isfinite().all()


@st.composite
def cases_with_ruled_out_classes(draw, dtypes):
    """The label's class stays possible in both models; others may be -inf in one or both."""
    case = draw(cases(dtypes=dtypes))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    labels = case.labels.clamp(min=0).unsqueeze(-1)

    def ruled_out(share):
        chosen = torch.rand(case.student.shape, generator=random) < share
        return chosen.scatter(-1, labels, False)

    return replace(
        case,
        student=case.student.masked_fill(ruled_out(draw(st.sampled_from([0, 0.3]))), -math.inf),
        teacher=case.teacher.masked_fill(ruled_out(draw(st.sampled_from([0, 0.3]))), -math.inf),
    )


@given(cases_with_ruled_out_classes(dtypes=ALL))
def test_loss_and_gradient_stay_finite_where_either_model_rules_classes_out(case):
    loss, gradient = case.loss_and_gradient(reduction="sum")
    assert loss.isfinite()
    assert gradient.isfinite().all()
    impossible = case.student.isneginf()
    assert gradient[impossible].eq(0).all()


@given(cases_with_ruled_out_classes(dtypes=(torch.float64,)))
def test_the_soft_loss_is_that_over_the_classes_that_both_models_allow(case):
    each = soft_target_loss(case.student, case.teacher, reduction="none", **case.soft).flatten()
    allowed = (case.student.isfinite() & case.teacher.isfinite()).flatten(0, -2)
    student, teacher = case.student.flatten(0, -2), case.teacher.flatten(0, -2)
    for found, z_student, z_teacher, both in zip(each, student, teacher, allowed, strict=True):
        if both.sum() < 2:
            expected = torch.zeros_like(found)
        else:
            expected = soft_target_loss(z_student[both], z_teacher[both], **case.soft)
        close(found, expected)


@given(cases_with_ruled_out_classes(dtypes=HALF))
def test_half_precision_gives_the_float32_loss_of_the_same_values(case):
    loss, gradient = case.loss_and_gradient()
    single = replace(case, student=case.student.float(), teacher=case.teacher.float())
    single_loss, single_gradient = single.loss_and_gradient()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, single_loss)
    assert gradient.dtype == case.student.dtype
    assert torch.equal(gradient, single_gradient.to(gradient.dtype))


@given(cases(dtypes=SINGLE))
def test_float32_agrees_with_float64_at_every_temperature(case):
    if case.divergence == "tvd":  # whose gradient jumps where p = q, and rounding decides which side it is on
        p, q = ((z.double() / case.temperature).log_softmax(-1) for z in (case.teacher, case.student))
        assume(((p - q).abs() > 1e-6 * (1 + p.abs())).all())
    double = replace(case, student=case.student.double(), teacher=case.teacher.double())
    loss, gradient = case.loss_and_gradient()
    exact_loss, exact_gradient = double.loss_and_gradient()
    # A rounding of log p and log q is as large as one of the logits by a factor of T.
    largest = max(case.student.abs().max().item(), case.teacher.abs().max().item())
    rounding = 2e-6 * max(1, largest, case.temperature)
    difference = (double.teacher - double.student).abs().max().item()
    assert abs(loss.item() - exact_loss.item()) <= rounding * (1 + difference)
    assert (gradient.double() - exact_gradient).abs().max().item() <= rounding


@given(cases(dtypes=ALL))
def test_the_teacher_receives_no_gradient(case):
    student = case.student.clone().requires_grad_()
    teacher = case.teacher.clone().requires_grad_()
    (kd_loss(student, teacher, case.labels, **case.options) + 0 * teacher.sum()).backward()
    assert teacher.grad.eq(0).all()


@given(cases(dtypes=SINGLE), st.sampled_from(HALF))
def test_student_and_teacher_may_differ_in_precision(case, half):
    mixed = replace(case, teacher=case.teacher.to(half))
    same = replace(case, teacher=case.teacher.to(half).float())
    assert torch.equal(mixed.loss_and_gradient()[0], same.loss_and_gradient()[0])


def test_a_step_against_the_gradient_brings_the_student_closer_for_every_divergence():
    random = torch.Generator().manual_seed(0)
    start, teacher = torch.randn(2, 8, 5, generator=random)
    for divergence in DIVERGENCES:
        student = start.clone().requires_grad_()
        before = soft_target_loss(student, teacher, divergence=divergence)
        before.backward()
        after = soft_target_loss(student - student.grad, teacher, divergence=divergence)
        assert after.item() < before.item()
