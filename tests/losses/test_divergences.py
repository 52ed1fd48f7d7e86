"""Skewed KL, total variation and adaptive KL: against sums in plain Python, identities, and others' code."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.losses import (
    adaptive_kl_divergence,
    backend,
    jensen_shannon_divergence,
    kl_divergence,
    skew_kl_divergence,
    soft_target_loss,
    total_variation_distance,
)
from kdlib.losses.divergences import LossSettings, head
from kdlib.losses.linear import linear_kd_loss

OLD = ("forward", "reverse", "jsd")
NEW = ("skew-forward", "skew-reverse", "tvd", "akl")


def logits(*shape, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def probabilities(z, temperature):
    weights = [math.exp(value / temperature) for value in z]
    return [weight / math.fsum(weights) for weight in weights]


def kl(p, q):
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def head_weight(p, q):
    """Of AKL: classes are taken in the order of the teacher's belief until they hold half of it."""
    mass, inside = 0.0, 0.0
    for a, b in sorted(zip(p, q, strict=True), reverse=True):
        if mass >= 0.5:
            break
        mass, inside = mass + a, inside + abs(a - b)
    return inside / math.fsum(abs(a - b) for a, b in zip(p, q, strict=True))


def oracle(student, teacher, temperature, divergence, beta):
    """T² · D of one position, and its derivative by each logit of the student, in plain Python."""
    p, q = probabilities(teacher, temperature), probabilities(student, temperature)
    weight = head_weight(p, q)

    def distance(q):
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        return {
            "skew-forward": lambda: kl(p, m), "skew-reverse": lambda: kl(q, m),
            "tvd": lambda: math.fsum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
            "akl": lambda: weight * kl(p, q) + (1 - weight) * kl(q, p),
        }[divergence]()  # fmt: skip

    def moved(j, by):
        return distance(probabilities([z + by * (i == j) for i, z in enumerate(student)], temperature))

    slopes = [(moved(j, 1e-6) - moved(j, -1e-6)) / 2e-6 for j in range(len(student))]
    return temperature**2 * distance(q), [temperature**2 * slope for slope in slopes]


@pytest.mark.parametrize("divergence", NEW)
@given(
    classes=st.integers(2, 12), seed=st.integers(0, 999), temperature=st.sampled_from([0.7, 1.0, 4.0]),
    beta=st.sampled_from([0.1, 0.5, 0.9]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_loss_and_gradient_are_those_of_plain_python(divergence, classes, seed, temperature, beta):
    student = logits(classes, seed=seed, scale=2.0).requires_grad_()
    teacher = logits(classes, seed=seed + 1000, scale=2.0)
    loss = soft_target_loss(student, teacher, temperature=temperature, divergence=divergence, beta=beta)
    (gradient,) = torch.autograd.grad(loss, student)
    expected, slope = oracle(student.tolist(), teacher.tolist(), temperature, divergence, beta)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-14)
    assert gradient.tolist() == pytest.approx(slope, rel=1e-5, abs=1e-7)


# --- identities --------------------------------------------------------------------------------------


def pairs():
    """log p and log q, (20, 11), ever farther apart."""
    for seed, scale in ((1, 0.01), (3, 1.0), (5, 6.0)):
        yield (logits(20, 11, seed=s, scale=scale).log_softmax(-1) for s in (seed, seed + 1))


@pytest.mark.parametrize("beta", [0.05, 0.5, 0.9])
def test_jsd_is_made_of_the_two_skewed_divergences(beta):
    for log_p, log_q in pairs():
        forward = beta * skew_kl_divergence(log_p, log_q, beta)
        reverse = (1 - beta) * skew_kl_divergence(log_q, log_p, 1 - beta)
        jsd = jensen_shannon_divergence(log_p, log_q, beta)
        torch.testing.assert_close(forward + reverse, jsd, rtol=1e-12, atol=1e-18)


def test_skewed_divergences_tend_to_kl_and_vanish_at_the_other_end():
    for log_p, log_q in (next(found := pairs()), next(found)):  # q not below β by far
        for first, second in ((log_p, log_q), (log_q, log_p)):
            whole = kl_divergence(first, second)
            torch.testing.assert_close(skew_kl_divergence(first, second, 1e-9), whole, rtol=1e-5, atol=0)
            assert (skew_kl_divergence(first, second, 1 - 1e-9) <= 1e-12 + 1e-8 * whole).all()


def test_total_variation_is_symmetric_at_most_one_and_bounded_by_pinsker():
    for log_p, log_q in pairs():
        distance = total_variation_distance(log_p, log_q)
        torch.testing.assert_close(total_variation_distance(log_q, log_p), distance, rtol=1e-12, atol=0)
        chosen = (log_p > log_q).double()  # the set of classes on which they disagree most
        torch.testing.assert_close((chosen * (log_p.exp() - log_q.exp())).sum(-1), distance)
        assert ((distance > 0) & (distance <= 1)).all()
        for one, other in ((log_p, log_q), (log_q, log_p)):
            assert (distance**2 <= kl_divergence(one, other) / 2).all()
    apart = torch.tensor([[0.0, -1e3], [-1e3, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(total_variation_distance(*apart).item(), 1.0)


def test_adaptive_kl_lies_between_the_two_and_its_weight_is_a_constant_to_the_gradient():
    every = []
    for log_p, log_q in pairs():
        log_q.requires_grad_()
        forward, reverse = kl_divergence(log_p, log_q), kl_divergence(log_q, log_p)
        found = adaptive_kl_divergence(log_p, log_q)
        low, high = torch.minimum(forward, reverse), torch.maximum(forward, reverse)
        assert ((low * (1 - 1e-12) <= found) & (found <= high * (1 + 1e-12))).all()
        rows = zip(log_p.exp().tolist(), log_q.exp().tolist(), strict=True)
        weights = torch.tensor([head_weight(p, q) for p, q in rows], dtype=torch.float64)
        every += weights.tolist()
        expected = weights * forward + (1 - weights) * reverse
        torch.testing.assert_close(found, expected)
        slopes = (torch.autograd.grad(loss.sum(), log_q, retain_graph=True)[0] for loss in (found, expected))
        torch.testing.assert_close(*slopes)
    assert min(every) < 0.3 and max(every) > 0.7


def test_the_head_is_the_least_that_holds_half_with_all_that_are_as_probable():
    rows = {
        (0.4, 0.35, 0.25): (1, 1, 0), (0.25, 0.4, 0.35): (0, 1, 1), (0.6, 0.3, 0.1): (1, 0, 0),
        (0.5, 0.3, 0.2): (1, 0, 0), (0.4, 0.3, 0.3): (1, 1, 1), (0.0, 1.0, 0.0): (0, 1, 0),
    }  # fmt: skip
    for p, expected in rows.items():
        assert head(torch.tensor(p, dtype=torch.float64)).tolist() == [bool(found) for found in expected]
    # The last stands for all others: it is never of the head, however probable.
    for p, expected in {(0.3, 0.1, 0.6): (1, 1, 0), (0.5, 0.1, 0.4): (1, 0, 0)}.items():
        assert head(torch.tensor(p), tail=True).tolist() == [bool(found) for found in expected]


# --- T² ----------------------------------------------------------------------------------------------


def test_t_squared_times_total_variation_grows_like_t_and_so_does_its_gradient():
    student, teacher = logits(64, 10, seed=19), logits(64, 10, seed=20)
    gap = teacher - student
    gap = gap - gap.mean(-1, keepdim=True)
    for temperature in (1e3, 1e4):
        z = student.clone().requires_grad_()
        loss = soft_target_loss(z, teacher, temperature=temperature, divergence="tvd", reduction="none")
        torch.testing.assert_close(
            loss.detach(), temperature * gap.abs().mean(-1) / 2, rtol=10 / temperature, atol=0
        )
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        sign = -gap.sign()
        expected = temperature * (sign - sign.mean(-1, keepdim=True)) / 20
        sure = gap.abs().amin(-1) > 0.1  # where p and q nearly agree the next order decides the sign
        torch.testing.assert_close(gradient[sure], expected[sure], rtol=0, atol=10)


# --- others' code ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_distillm_has_the_same_gradient_and_leaves_out_the_teachers_entropy(share):
    """`skewed_forward_kl` and `skewed_reverse_kl` of jongwooko/distillm at 17c0f98, distillm/losses.py."""
    student, teacher = logits(6, 9, seed=1).requires_grad_(), logits(6, 9, seed=2)
    p, q = teacher.softmax(-1), student.softmax(-1)
    theirs = {
        "skew-forward": -(p * (share * p + (1 - share) * q).log()).sum(-1).mean(),
        "skew-reverse": (q * (q.log() - ((1 - share) * p + share * q).log())).sum(-1).mean(),
    }
    entropy = {"skew-forward": -(p * p.log()).sum(-1).mean(), "skew-reverse": 0.0}
    for divergence, beta in (("skew-forward", share), ("skew-reverse", 1 - share)):
        ours = soft_target_loss(student, teacher, temperature=1.0, divergence=divergence, beta=beta)
        torch.testing.assert_close(ours + entropy[divergence], theirs[divergence])
        slopes = (torch.autograd.grad(x, student, retain_graph=True)[0] for x in (ours, theirs[divergence]))
        torch.testing.assert_close(*slopes)


def test_akl_of_the_authors_draws_the_line_of_the_head_one_class_earlier():
    """`AKL` of wutaiqiang/LLM_KD_AKL at 91853fb: equal where the first class alone holds half."""
    teacher, student = logits(400, 9, seed=1, scale=1.5), logits(400, 9, seed=2, scale=1.5)
    p, order = teacher.softmax(-1).sort(-1, descending=True)
    q = student.softmax(-1).gather(-1, order)
    tail = p.cumsum(-1) > 0.5
    tail[:, 0] = False
    gap = (p - q).abs()
    a = (gap * ~tail).sum(-1) / gap.sum(-1)
    theirs = a * F.kl_div(q.log(), p, reduction="none").sum(-1)
    theirs += (1 - a) * F.kl_div(p.log(), q, reduction="none").sum(-1)
    ours = soft_target_loss(student, teacher, temperature=1.0, divergence="akl", reduction="none")
    same = p[:, 0] >= 0.5
    assert 0.1 < same.double().mean() < 0.9
    torch.testing.assert_close(ours[same], theirs[same])
    assert ((ours - theirs)[~same].abs() > 1e-3).double().mean() > 0.9


# --- what computes them ------------------------------------------------------------------------------


def test_kernels_are_for_the_divergences_that_they_have(monkeypatch):
    monkeypatch.setattr(backend, "on_kernels", lambda *logits: True)
    z = torch.zeros(2, 3)
    for divergence, there in {**dict.fromkeys(OLD, True), **dict.fromkeys(NEW, False)}.items():
        assert backend.computed_by_kernels(LossSettings(1.0, 0.5, divergence, 0.5), z, z) is there
        assert backend.computed_by_kernels(LossSettings(1.0, 1.0, divergence, 0.5), z), "the hard term alone"


@pytest.mark.parametrize("divergence", NEW)
def test_where_kernels_run_what_they_lack_is_computed_in_slices(divergence, monkeypatch):
    """On a GPU: large logits in slices, and from hidden states chunks of the size that PyTorch needs."""
    student, teacher = logits(8, 40, seed=1), logits(8, 40, seed=2)
    expected = soft_target_loss(student, teacher, divergence=divergence)
    monkeypatch.setattr(backend, "on_kernels", lambda *logits: True)
    monkeypatch.setattr(backend, "in_slices", lambda logits: True)
    monkeypatch.setattr(backend, "_by_kernels", None)
    torch.testing.assert_close(soft_target_loss(student, teacher, divergence=divergence), expected)

    chunks = []
    linear = "kdlib.losses.linear.chunk_tokens"
    monkeypatch.setattr(linear, lambda count, classes, written_over=None: chunks.append(written_over) or 3)
    one = torch.eye(40, dtype=torch.float64)
    monkeypatch.setattr("kdlib.losses.backend.scaled", lambda gradient, *rest, **options: gradient)
    loss = linear_kd_loss(student, one, teacher, one, None, divergence=divergence)
    torch.testing.assert_close(loss, expected)
    assert chunks == [None]
