"""The loss on the teacher's k largest logits, against all its logits, merged distributions, and 50 digits."""

import math
from dataclasses import dataclass

import mpmath
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from kdlib.losses.divergences import DIVERGENCES
from kdlib.losses.kd import soft_target_loss
from kdlib.losses.top_k import TopK, top_k_loss, top_k_of

INF = math.inf


def logits(*shape, seed, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def single(*shape):
    """Student and teacher in float32."""
    return (logits(*shape, seed=seed, dtype=torch.float32) for seed in (1, 2))


@dataclass(frozen=True)
class Case:
    student: torch.Tensor
    teacher: torch.Tensor
    k: int
    temperature: float
    divergence: str
    beta: float

    @property
    def options(self):
        return {"temperature": self.temperature, "divergence": self.divergence, "beta": self.beta}

    def loss(self, student=None, **changed):
        top = top_k_of(self.teacher, self.k, self.temperature)
        student = self.student if student is None else student
        return top_k_loss(student, top, **{**self.options, **changed})


@st.composite
def cases(draw, dtype=torch.float64):
    classes = draw(st.integers(2, 30))
    seed = draw(st.integers(0, 2**30))
    places = draw(st.sampled_from([(4,), (2, 3), ()]))
    scale = draw(st.sampled_from([0.1, 3.0, 30.0]))
    return Case(
        student=logits(*places, classes, seed=seed, scale=scale, dtype=dtype),
        teacher=logits(*places, classes, seed=seed + 1, scale=scale, dtype=dtype),
        k=draw(st.integers(1, classes)),
        temperature=10 ** draw(st.floats(-0.5, 2)),
        divergence=draw(st.sampled_from(DIVERGENCES)),
        beta=draw(st.sampled_from([0.05, 0.5, 0.9])),
    )


def merged(z, kept, temperature):
    """Logits of k + 1 events, from probabilities that are added up: (n, C), (n, k) -> (n, k + 1)."""
    p = (z / temperature).softmax(-1)
    others = torch.ones_like(p, dtype=torch.bool).scatter(-1, kept, False)
    masses = [p.gather(-1, kept), (p * others).sum(-1, keepdim=True)]
    return torch.cat(masses, -1).log()


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kept_logits_and_masses_are_those_of_the_softened_distribution(temperature):
    z = logits(5, 20, seed=0)
    top = top_k_of(z, 6, temperature)
    assert torch.equal(top.indices, z.argsort(-1, descending=True)[:, :6])
    assert top.indices.dtype == torch.int64
    p = (z / temperature).softmax(-1)
    log_p = top.values - top.log_total.unsqueeze(-1)
    torch.testing.assert_close(log_p.exp(), p.gather(-1, top.indices))
    tail = 1 - p.gather(-1, top.indices).sum(-1)
    torch.testing.assert_close((top.log_tail - top.log_total).exp(), tail)
    torch.testing.assert_close(top.log_total, (z / temperature).logsumexp(-1))


def test_half_precision_is_widened_and_gradients_end_here():
    z = logits(3, 9, seed=0, dtype=torch.bfloat16).requires_grad_()
    top = top_k_of(z, 4, 2.0)
    assert top.values.dtype == top.log_tail.dtype == torch.float32
    assert not top.values.requires_grad and not top.log_tail.requires_grad
    assert torch.equal(top.values * 2, z.detach().float().gather(-1, top.indices))
    assert top_k_of(z.double(), 4).log_tail.dtype == torch.float64


def test_all_classes_leave_no_tail():
    top = top_k_of(logits(3, 9, seed=0), 9)
    assert (top.log_tail == -INF).all()


# --- the loss -------------------------------------------------------------------------------------


@given(cases())
def test_it_is_the_divergence_of_the_merged_distributions(case):
    top = top_k_of(case.teacher, case.k, case.temperature)
    # An oracle that adds probabilities up needs them to be large enough for that.
    spread = max((z.amax(-1) - z.amin(-1)).max() for z in (case.teacher, case.student))
    assume(spread / case.temperature < 15 and case.k < case.student.shape[-1])
    assume(case.divergence != "akl")  # which knows the last for the tail
    student = case.student.clone().requires_grad_()
    expected = case.temperature**2 * soft_target_loss(
        merged(student, top.indices, case.temperature), merged(case.teacher, top.indices, case.temperature),
        temperature=1.0, divergence=case.divergence, beta=case.beta,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(expected, student)
    again = case.student.clone().requires_grad_()
    found = case.loss(again)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-9 * case.temperature**2)
    torch.testing.assert_close(
        torch.autograd.grad(found, again)[0], gradient, rtol=1e-5, atol=1e-9 * case.temperature
    )


@given(cases())
def test_all_classes_give_the_loss_of_all_logits_and_fewer_never_more(case):
    full = soft_target_loss(case.student, case.teacher, reduction="none", **case.options)
    slack = 1e-9 * case.temperature**2 + 1e-9 * full
    if case.divergence == "akl":  # whose weights are others between fewer
        slack = math.inf
    whole = Case(**{**vars(case), "k": case.student.shape[-1]}).loss(reduction="none")
    torch.testing.assert_close(whole, full, rtol=1e-9, atol=1e-9 * case.temperature**2)
    assert (case.loss(reduction="none") <= full + slack).all()


@given(cases())
def test_each_class_more_can_only_add_to_it(case):
    """Merging fewer classes is a refinement, to which the data-processing inequality applies again."""
    assume(case.k < case.student.shape[-1] and case.divergence != "akl")
    more = Case(**{**vars(case), "k": case.k + 1}).loss(reduction="none")
    assert (case.loss(reduction="none") <= more * (1 + 1e-9) + 1e-9 * case.temperature**2).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_it_equals_the_loss_of_all_logits_where_the_tails_have_the_same_proportions(divergence):
    teacher = logits(6, 15, seed=0)
    top = top_k_of(teacher, 5, 2.0)
    moved = teacher.scatter_add(-1, top.indices, logits(6, 5, seed=1))
    student = moved + logits(6, 1, seed=2)
    options = {"temperature": 2.0, "divergence": divergence}
    torch.testing.assert_close(
        top_k_loss(student, top, **options), soft_target_loss(student, teacher, **options)
    )


@given(cases(), st.integers(0, 2**30))
def test_shifts_and_the_order_of_classes_and_of_what_is_kept_change_nothing(case, seed):
    generator = torch.Generator().manual_seed(seed)
    expected = case.loss(reduction="none")
    close = {"rtol": 1e-8, "atol": 1e-9 * case.temperature**2}
    shift = 50 * torch.randn(*case.student.shape[:-1], 1, generator=generator, dtype=torch.float64)
    shifted = Case(**{**vars(case), "student": case.student + shift, "teacher": case.teacher - shift})
    torch.testing.assert_close(shifted.loss(reduction="none"), expected, **close)

    order = torch.randperm(case.student.shape[-1], generator=generator)
    both = {"student": case.student[..., order], "teacher": case.teacher[..., order]}
    permuted = Case(**{**vars(case), **both})
    torch.testing.assert_close(permuted.loss(reduction="none"), expected, **close)

    top = top_k_of(case.teacher, case.k, case.temperature)
    order = torch.randperm(case.k, generator=generator)
    kept = TopK(top.values[..., order], top.indices[..., order], top.log_tail)
    torch.testing.assert_close(
        top_k_loss(case.student, kept, reduction="none", **case.options), expected, **close
    )


@given(cases(torch.float32))
def test_it_is_zero_with_zero_gradient_for_a_student_like_its_teacher(case):
    student = case.teacher.clone().requires_grad_()
    loss = case.loss(student, reduction="none")
    scale = case.temperature**2
    assert (loss.abs() < 1e-6 * scale * (1 + case.teacher.abs().max() / case.temperature)).all()
    loss.sum().backward()
    assert (student.grad.abs() < 3e-5 * max(case.temperature, 1)).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("temperature", [0.7, 5.0])
def test_the_gradient_is_the_slope(divergence, k, temperature, weights_stand_still):
    student, teacher = logits(3, 9, seed=1).requires_grad_(), logits(3, 9, seed=2)
    top = top_k_of(teacher, k, temperature)
    options = {"temperature": temperature, "divergence": divergence, "beta": 0.3}
    assert gradcheck(lambda z: top_k_loss(z, top, **options), student)


def test_the_gradient_of_the_forward_divergence_is_the_formula_in_the_docstring():
    temperature, student, teacher = 3.0, logits(4, 12, seed=1).requires_grad_(), logits(4, 12, seed=2)
    top = top_k_of(teacher, 5, temperature)
    top_k_loss(student, top, temperature=temperature, reduction="sum").backward()
    p, q = ((z.detach() / temperature).softmax(-1) for z in (teacher, student))
    kept = torch.zeros_like(p, dtype=torch.bool).scatter(-1, top.indices, True)
    tail_p, tail_q = ((x * ~kept).sum(-1, keepdim=True) for x in (p, q))
    expected = temperature * torch.where(kept, q - p, (tail_q - tail_p) * q / tail_q)
    torch.testing.assert_close(student.grad, expected)


def test_mean_sum_none_and_mask():
    student, top = logits(2, 3, 8, seed=1), top_k_of(logits(2, 3, 8, seed=2), 3)
    each = top_k_loss(student, top, reduction="none")
    assert each.shape == (2, 3)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    torch.testing.assert_close(top_k_loss(student, top), each.mean())
    torch.testing.assert_close(top_k_loss(student, top, mask=mask, reduction="sum"), each[mask].sum())
    torch.testing.assert_close(top_k_loss(student, top, mask=mask), each[mask].mean())
    assert (top_k_loss(student, top, mask=mask, reduction="none")[~mask] == 0).all()


def test_what_stands_where_nothing_counts_cannot_matter():
    student, teacher = logits(2, 8, seed=1), logits(2, 8, seed=2)
    mask = torch.tensor([True, False])
    for value in (math.nan, INF, -INF):
        spoilt, wrong = student.clone(), teacher.clone()
        spoilt[1], wrong[1] = value, value
        spoilt.requires_grad_()
        loss = top_k_loss(spoilt, top_k_of(wrong, 3), mask=mask)
        loss.backward()
        torch.testing.assert_close(loss.detach(), top_k_loss(student[:1], top_k_of(teacher[:1], 3)))
        assert spoilt.grad.isfinite().all() and (spoilt.grad[1] == 0).all()
    nothing = student.clone().requires_grad_()
    loss = top_k_loss(nothing, top_k_of(teacher, 3), mask=torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and (nothing.grad == 0).all()


# --- rounding -------------------------------------------------------------------------------------


def exactly(student, teacher, k, temperature, divergence):
    """One position in 50 digits."""
    with mpmath.workdps(50):

        def masses(row):
            weights = [mpmath.exp(mpmath.mpf(z) / temperature) for z in row]
            return [weight / mpmath.fsum(weights) for weight in weights]

        kept = sorted(range(len(teacher)), key=lambda j: -teacher[j])[:k]
        others = [j for j in range(len(teacher)) if j not in kept]
        p, q = (
            [[mass[j] for j in kept] + [mpmath.fsum(mass[j] for j in others)]
             for mass in map(masses, (teacher, student))]
        )  # fmt: skip

        def kl(a, b):
            return mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(a, b, strict=True))

        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        gaps = [abs(x - y) for x, y in zip(p, q, strict=True)]
        a = gaps[0] if p[0] >= 0.5 else gaps[0] + gaps[1]  # of two classes kept, largest first
        a /= mpmath.fsum(gaps)
        value = {
            "forward": kl(p, q), "reverse": kl(q, p), "jsd": (kl(p, m) + kl(q, m)) / 2,
            "skew-forward": kl(p, m), "skew-reverse": kl(q, m), "tvd": mpmath.fsum(gaps) / 2,
            "akl": a * kl(p, q) + (1 - a) * kl(q, p),
        }[divergence]  # fmt: skip
        return float(temperature**2 * value)


# The teacher leaves its tail far less than float32 can subtract; the student leaves it much, and the reverse.
SURE = [30.0, 28.0, -12.0, -11.0, -13.0, -15.0]
UNSURE = [1.0, 2.0, 1.5, 0.5, 1.0, 2.5]


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("student, teacher", [(UNSURE, SURE), (SURE, UNSURE), (SURE, SURE[::-1])])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_tail_far_below_rounding_counts_in_float32(divergence, student, teacher, temperature):
    expected = exactly(student, teacher, 2, temperature, divergence)
    z = torch.tensor([student], requires_grad=True)
    top = top_k_of(torch.tensor([teacher]), 2, temperature)
    loss = top_k_loss(z, top, temperature=temperature, divergence=divergence)
    loss.backward()
    torch.testing.assert_close(loss.item(), expected, rtol=2e-6, atol=0.0)
    assert z.grad.isfinite().all()
    precise = torch.tensor([student], dtype=torch.float64, requires_grad=True)
    top = top_k_of(torch.tensor([teacher], dtype=torch.float64), 2, temperature)
    top_k_loss(precise, top, temperature=temperature, divergence=divergence).backward()
    torch.testing.assert_close(z.grad.double(), precise.grad, rtol=1e-4, atol=1e-6)


def test_stored_in_float16_it_is_off_by_the_rounding_of_the_values_alone():
    student, teacher = single(200, 50)
    top = top_k_of(teacher, 20)
    values = (top.values - top.log_total.unsqueeze(-1)).half()
    stored = TopK(values, top.indices, top.log_tail - top.log_total)
    expected, found = (top_k_loss(student, kept, reduction="none") for kept in (top, stored))
    # Each log-probability moves by at most 2^-11 of itself, and the loss by their mean under p, once for p's
    # change and once for its weights'.
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)


def test_a_student_in_bfloat16_gets_its_gradient_rounded_once():
    teacher, exact = logits(5, 40, seed=1), logits(5, 40, seed=2).bfloat16().double()
    top = top_k_of(teacher, 7)
    student, precise = exact.bfloat16().requires_grad_(), exact.requires_grad_()
    single = TopK(top.values.float(), top.indices, top.log_tail.float())
    top_k_loss(student, single).backward()
    top_k_loss(precise, top).backward()
    assert student.grad.dtype == torch.bfloat16
    torch.testing.assert_close(student.grad.double(), precise.grad, rtol=2**-8, atol=1e-7)


# --- classes that are ruled out -------------------------------------------------------------------

LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("impossible", [-INF, -1e30, LOWEST])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_classes_ruled_out_by_both_are_as_if_they_were_not_there(divergence, impossible, temperature):
    student, teacher = single(3, 8)
    options = {"temperature": temperature, "divergence": divergence}
    wide = [torch.cat([z, torch.full((3, 4), impossible)], -1) for z in (student, teacher)]
    for k in (3, 8):
        expected = top_k_loss(student, top_k_of(teacher, k, temperature), **options)
        z = wide[0].clone().requires_grad_()
        loss = top_k_loss(z, top_k_of(wide[1], k, temperature), **options)
        loss.backward()
        torch.testing.assert_close(loss.detach(), expected)
        assert z.grad.isfinite().all() and (z.grad[:, 8:] == 0).all()
    # More are to be kept than there are: those beyond are ruled out too.
    top = top_k_of(wide[1], 10, temperature)
    assert (top.values[:, 8:] == -INF).all() and (top.log_tail == -INF).all()
    torch.testing.assert_close(
        top_k_loss(wide[0], top, **options),
        soft_target_loss(student, teacher, **options),
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("impossible", [-INF, -1e30, LOWEST])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_class_that_one_rules_out_is_left_out_as_with_all_logits(divergence, impossible, temperature):
    student, teacher = single(3, 8)
    student[0, teacher[0].argmax()] = impossible  # kept
    student[1, teacher[1].argmin()] = impossible  # in the tail for k < 8
    teacher[2, 5] = impossible
    options = {"temperature": temperature, "divergence": divergence, "reduction": "none"}
    full = soft_target_loss(student, teacher, **options)
    z = student.clone().requires_grad_()
    found = top_k_loss(z, top_k_of(teacher, 8, temperature), **options)
    torch.testing.assert_close(found.detach(), full)
    some = top_k_loss(z, top_k_of(teacher, 3, temperature), **options)
    assert some.isfinite().all() and (some[0] <= full[0] * 1.00001).all()
    (found.sum() + some.sum()).backward()
    assert z.grad.isfinite().all() and (z.grad[0, teacher[0].argmax()] == 0)


def test_a_position_without_any_class_adds_nothing():
    student = torch.full((1, 4), -INF, requires_grad=True)
    loss = top_k_loss(student, top_k_of(torch.zeros(1, 4), 2))
    loss.backward()
    assert loss == 0 and (student.grad == 0).all()


def test_logits_of_minus_1e30_are_ruled_out_at_every_temperature():
    """In soft_target_loss too: −1e30 / T, compared with −1e30, once passed for a logit."""
    student, teacher = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0, 0.0, -1e30]])
    for divergence in DIVERGENCES:
        found = soft_target_loss(student, teacher, temperature=4.0, divergence=divergence)
        two = soft_target_loss(student[:, :2], teacher[:, :2], temperature=4.0, divergence=divergence)
        torch.testing.assert_close(found, two)


# --- what is refused ------------------------------------------------------------------------------

STUDENT, TOP = logits(2, 6, seed=1), top_k_of(logits(2, 6, seed=2), 3)


@pytest.mark.parametrize("changed, message", [
    ({"teacher": logits(2, 6, seed=2)}, "teacher must be a TopK, as top_k_of makes it; got Tensor"),
    ({"student_logits": logits(3, 6, seed=1)}, r"values \(2, 3\), indices \(2, 3\) and log_tail \(2,\);"),
    ({"teacher": TOP._replace(log_tail=torch.zeros(2, 1))}, r"log_tail \(2, 1\); expected"),
    ({"teacher": TOP._replace(indices=TOP.indices[:, :2])}, r"indices \(2, 2\)"),
    ({"teacher": TOP._replace(indices=TOP.indices + 4)}, r"teacher.indices holds \d+; expected 0 to 5"),
    ({"teacher": TOP._replace(indices=TOP.indices - 6)}, r"teacher.indices holds -\d; expected 0 to 5"),
    ({"teacher": TOP._replace(indices=torch.zeros(2, 3).long())}, "names a class twice"),
    ({"teacher": TopK(torch.zeros(2, 7), torch.arange(7).repeat(2, 1), torch.zeros(2))}, "indices holds 6"),
    ({"student_logits": STUDENT.softmax(-1)}, "student_logits holds probabilities"),
    ({"student_logits": STUDENT[:, :1]}, "student_logits has a class axis of 1"),
    ({"temperature": 0.0}, "temperature must be a positive finite number; got 0.0"),
    ({"divergence": "kl"}, "divergence must be"),
    ({"divergence": "jsd", "beta": 1.0}, "beta must lie strictly between 0 and 1; got 1.0"),
    ({"reduction": "batchmean"}, "reduction must be"),
    ({"mask": torch.ones(2)}, "mask must be bool"),
    ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask has shape \(3,\) on cpu; expected \(2,\)"),
], ids=range(16))  # fmt: skip
def test_refused_with_the_argument_its_value_and_what_was_expected(changed, message):
    given = {"student_logits": STUDENT, "teacher": TOP, **changed}
    with pytest.raises(ValueError, match=message):
        top_k_loss(given.pop("student_logits"), given.pop("teacher"), **given)


@pytest.mark.parametrize("k, temperature, message", [
    (0, 1.0, "k must be a whole number from 1 to the 6 classes; got 0"),
    (7, 1.0, "from 1 to the 6 classes; got 7"), (2.0, 1.0, "got 2.0"), (2, -1.0, "temperature must be"),
])  # fmt: skip
def test_keeping_more_or_fewer_classes_than_there_are_is_refused(k, temperature, message):
    with pytest.raises(ValueError, match=message):
        top_k_of(STUDENT, k, temperature)
