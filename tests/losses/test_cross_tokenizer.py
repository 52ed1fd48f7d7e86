"""The losses between different tokens, against loops over events and against optimal transport."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog
from torch.autograd import gradcheck

from kdlib.losses import divergences
from kdlib.losses.cross_tokenizer import Tokens, aligned_loss, uld_loss
from kdlib.losses.kd import soft_target_loss

DIVERGENCES = ("forward", "reverse", "jsd")
INF = math.inf


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- ULD ----------------------------------------------------------------------------------------------------


def naive_uld(student, teacher, temperature):
    """Of one position, without a tensor operation."""
    sides = []
    for z in (student.tolist(), teacher.tolist()):
        masses = [math.exp(x / temperature) for x in z]
        sides.append(sorted((mass / sum(masses) for mass in masses), reverse=True))
    return sum(abs(q - p) for q, p in itertools.zip_longest(*sides, fillvalue=0.0))


@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(2, 9), st.sampled_from([0.5, 1.0, 3.0]))
def test_uld_is_the_sum_over_sorted_probabilities(seed, student, teacher, temperature):
    z, other = logits(3, student, seed=seed), logits(3, teacher, seed=seed + 1)
    expected = [naive_uld(a, b, temperature) for a, b in zip(z, other, strict=True)]
    found = uld_loss(z, other, temperature=temperature, reduction="none")
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert found.min() >= 0 and found.max() <= 2


def test_uld_is_the_cheapest_way_to_pair_the_tokens_of_both():
    """The Wasserstein distance of the paper: by an assignment solver, and over all 120 ways."""
    for width, other in ((40, 40), (5, 5), (7, 12)):
        q, p = (logits(size, seed=size + s).softmax(-1) for s, size in enumerate((width, other)))
        size = max(width, other)
        q, p = (torch.nn.functional.pad(side, (0, size - len(side))) for side in (q, p))
        cost = (q[:, None] - p[None]).abs()
        rows, columns = linear_sum_assignment(cost.numpy())
        cheapest = cost[rows, columns].sum()
        torch.testing.assert_close(uld_loss(q.log(), p.log()), cheapest)
        if size == 5:
            ways = [(q - p[list(order)]).abs().sum() for order in itertools.permutations(range(5))]
            torch.testing.assert_close(min(ways), cheapest)


def test_uld_is_twice_the_mass_that_must_move_between_any_two_tokens():
    """Optimal transport with the cost 1 for every move, solved as a linear programme over sorted lists."""
    q, p = (logits(6, seed=seed).softmax(-1).sort(descending=True).values for seed in (3, 4))
    cost = (1 - torch.eye(6)).flatten().numpy()
    sums = [torch.kron(torch.eye(6), torch.ones(6)), torch.kron(torch.ones(6), torch.eye(6))]
    sums, masses = torch.cat([s.reshape(6, 36) for s in sums]).numpy(), torch.cat([q, p]).numpy()
    plan = linprog(cost, A_eq=sums, b_eq=masses)
    assert uld_loss(q.log(), p.log()).item() == pytest.approx(2 * plan.fun, abs=1e-9)


def test_uld_knows_no_names_and_its_gradient_is_that_of_the_formula():
    z, other = logits(4, 6, seed=1), logits(4, 9, seed=2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(uld_loss(z, other[:, order]), uld_loss(z, other))
    assert gradcheck(lambda x: uld_loss(x, other, temperature=1.5), z.requires_grad_())
    # dL/dz_j = q_j (s_j − Σ s q) / T, where s_j is the sign of the difference at the rank of j.
    q, p = z.softmax(-1), other.softmax(-1).sort(descending=True).values
    ranks = q.argsort(descending=True).argsort()
    signs = (torch.nn.functional.pad(q.sort(descending=True).values, (0, 3)) - p).sign().gather(-1, ranks)
    expected = q * (signs - (signs * q).sum(-1, keepdim=True))
    (gradient,) = torch.autograd.grad(uld_loss(z, other, reduction="sum"), z)
    torch.testing.assert_close(gradient, expected.detach())


def test_uld_counts_what_the_mask_names_and_bears_what_stands_elsewhere():
    z, other = logits(3, 4, seed=1), logits(3, 5, seed=2)
    z[1], other[1] = math.nan, INF
    z[0, 2] = -INF
    z.requires_grad_()
    mask = torch.tensor([True, False, True])
    loss = uld_loss(z, other, mask=mask)
    rows = [uld_loss(z[row], other[row]) for row in (0, 2)]
    torch.testing.assert_close(loss, sum(rows) / 2)
    loss.backward()
    assert z.grad.isfinite().all() and not z.grad[1].any() and z.grad[0].any()


# --- aligned ------------------------------------------------------------------------------------------------


def tokens(z, targets, groups, classes):
    targets, groups = torch.tensor(targets), torch.tensor(groups)
    firsts = [(groups == group).nonzero()[0].item() for group in range(groups.max() + 1)]
    return Tokens(z, targets, groups, torch.tensor(firsts), torch.tensor(classes))


# "thousand rabbits" of two vocabularies: a class for each piece that both have, the last for what has none.
#   student: th ou sand _rab bits x      teacher: thousand _rab bits th y
CLASSES = {"student": [0, 1, 2, 3, 4, 5], "teacher": [0, 3, 4, 0, 5], "count": 6}


def example(seed=0):
    """Groups of 3 : 1 tokens, 1 : 1, 1 : 2; behind them on either side a token that is in none."""
    student = tokens(logits(6, 6, seed=seed), [0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3], CLASSES["student"])
    teacher = tokens(logits(5, 5, seed=seed + 1), [0, 1, 2, 3, 4], [0, 1, 2, 2, 3], CLASSES["teacher"])
    return student._replace(firsts=student.firsts[:3]), teacher._replace(firsts=teacher.firsts[:3])


def events(side, group, several, temperature):
    """What one side says of a group: a probability for each class, and for the group's text."""
    rows = [row for row, number in enumerate(side.groups.tolist()) if number == group]
    said = [(side.logits[row] / temperature).softmax(-1).tolist() for row in rows]
    first, *later = (p[side.targets[row]] for row, p in zip(rows, said, strict=True))
    found = dict.fromkeys([*range(CLASSES["count"]), "text"], 0.0)
    for token, mass in enumerate(said[0]):
        if several and token == side.targets[rows[0]]:
            found["text"] = first * math.prod(later)
            mass = first * (1 - math.prod(later)) if later else 0.0
        found[int(side.classes[token])] += mass
    return found


def naive_aligned(student, teacher, *, temperature, divergence, beta):
    losses = []
    for group in range(len(student.firsts)):
        several = sum((side.groups == group).sum().item() for side in (student, teacher)) > 2
        q, p = (events(side, group, several, temperature) for side in (student, teacher))
        both = [event for event in q if q[event] > 0 and p[event] > 0]
        q, p = ([side[event] / sum(side[e] for e in both) for event in both] for side in (q, p))

        def kl(a, b):
            return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

        m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        distance = {"forward": kl(p, q), "reverse": kl(q, p), "jsd": beta * kl(p, m) + (1 - beta) * kl(q, m)}
        losses.append(temperature**2 * distance[divergence])
    return losses


@given(st.integers(0, 10**6), st.sampled_from(DIVERGENCES), st.sampled_from([0.7, 1.0, 4.0]))
def test_aligned_is_the_divergence_between_events_counted_one_by_one(seed, divergence, temperature):
    student, teacher = example(seed)
    options = {"temperature": temperature, "divergence": divergence, "beta": 0.3}
    found = aligned_loss(student, teacher, CLASSES["count"], **options, reduction="none")
    expected = torch.tensor(naive_aligned(student, teacher, **options), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    total = aligned_loss(student, teacher, CLASSES["count"], **options, reduction="sum")
    torch.testing.assert_close(total, expected.sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("divergence", divergences.DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_the_same_tokens_it_is_the_soft_target_loss(divergence, dtype):
    z, other = (logits(7, 11, seed=seed).to(dtype) for seed in (1, 2))
    z[0, 3], other[1, 4] = -INF, -1e38
    z[2], other[2] = -INF, -INF
    own = [z.clone().requires_grad_() for _ in range(2)]
    options = {"temperature": 2.5, "divergence": divergence, "beta": 0.2, "reduction": "none"}
    sides = [tokens(x, [5] * 7, [*range(7)], [*range(11)]) for x in (own[0], other)]
    found, expected = aligned_loss(*sides, 11, **options), soft_target_loss(own[1], other, **options)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(found, expected, **close)
    losses = zip((found, expected), own, strict=True)
    gradients = [torch.autograd.grad(loss.sum(), x)[0] for loss, x in losses]
    torch.testing.assert_close(*gradients, **close)
    assert gradients[0].isfinite().all()


def test_a_student_of_single_letters_that_says_what_its_teacher_says_loses_nothing():
    """The teacher writes ab, ac, b; the student a, b, c. Both mean: ab in .5, ac in .2, b in .3 of texts."""
    teacher = tokens(torch.tensor([[0.5, 0.2, 0.3]]).double().log(), [0], [0], [0, 0, 1])
    letters = torch.tensor([[0.7, 0.3, 1e-30], [1e-30, 5 / 7, 2 / 7]], dtype=torch.float64).log()
    student = tokens(letters, [0, 1], [0, 0], [0, 1, 2])
    assert aligned_loss(student, teacher, 3).item() == pytest.approx(0, abs=1e-12)
    surer = torch.tensor([[0.7, 0.3, 1e-30], [1e-30, 6 / 7, 1 / 7]], dtype=torch.float64).log()
    # Now P = (.5 ab, .2 otherwise a, .3 b) against Q = (.6, .1, .3).
    expected = 0.5 * math.log(5 / 6) + 0.2 * math.log(2)
    assert aligned_loss(student._replace(logits=surer), teacher, 3).item() == pytest.approx(expected)


def test_its_gradient_reaches_every_piece_and_is_right():
    student, teacher = example(3)
    z = student.logits.clone().requires_grad_()
    for divergence in DIVERGENCES:
        assert gradcheck(
            lambda x, kind=divergence: aligned_loss(
                student._replace(logits=x), teacher, CLASSES["count"], temperature=1.7, divergence=kind
            ), z,
        )  # fmt: skip
    (gradient,) = torch.autograd.grad(aligned_loss(student._replace(logits=z), teacher, CLASSES["count"]), z)
    assert [bool(row.any()) for row in gradient] == [True] * 5 + [False]  # the last is in no group


def test_what_is_certain_or_impossible_leaves_loss_and_gradient_finite():
    student, teacher = example(5)
    z = student.logits.float().clone()
    z[1], z[2] = -INF, -1e4
    z[1, 1] = z[2, 2] = 0.0  # the later pieces are certain
    z[0, 4] = -INF
    for extreme in (z, z.clone().index_fill(0, torch.tensor([0]), -INF), z.masked_fill(z == z[3, 3], -INF)):
        extreme = extreme.requires_grad_() if extreme.is_leaf else extreme.detach().requires_grad_()
        for divergence in DIVERGENCES:
            loss = aligned_loss(
                student._replace(logits=extreme), teacher, CLASSES["count"], divergence=divergence
            )
            (gradient,) = torch.autograd.grad(loss, extreme)
            assert loss.isfinite() and gradient.isfinite().all()


def test_half_precision_is_computed_in_single():
    student, teacher = example(7)
    halves = [side._replace(logits=side.logits.bfloat16()) for side in (student, teacher)]
    singles = [side._replace(logits=side.logits.float()) for side in halves]
    assert torch.equal(aligned_loss(*halves, 6), aligned_loss(*singles, 6))
    assert torch.equal(uld_loss(halves[0].logits[:5], halves[1].logits),
                       uld_loss(singles[0].logits[:5], singles[1].logits))  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t: (s, t._replace(firsts=t.firsts[:2])), "teacher.firsts has 2 groups and student.* 3"),
        (lambda s, t: (s._replace(classes=s.classes[:-1]), t), "student.classes has shape .5,.; expected a"),
        (lambda s, t: (s._replace(classes=s.classes + 1), t), "student.classes reaches beyond 0 to 5"),
        (lambda s, t: (s._replace(groups=s.groups[:-1]), t), "student.groups has shape .5,. .*expected .6,"),
        (lambda s, t: (s._replace(firsts=s.firsts + 1), t), "student.firsts are not where groups begin"),
        (lambda s, t: (s, t._replace(logits=t.logits.softmax(-1))), "teacher.logits holds probabilities"),
    ],
)
def test_sides_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        aligned_loss(*change(*example()), CLASSES["count"])


def test_other_arguments_that_do_not_fit_are_refused():
    student, teacher = example()
    with pytest.raises(ValueError, match="temperature must"):
        aligned_loss(student, teacher, 6, temperature=0)
    with pytest.raises(ValueError, match="divergence must"):
        aligned_loss(student, teacher, 6, divergence="sideways")
    with pytest.raises(ValueError, match="teacher_logits without its last axis has shape .5,."):
        uld_loss(student.logits, teacher.logits)
    with pytest.raises(ValueError, match="reduction must"):
        uld_loss(student.logits, student.logits, reduction="all")
