"""What the losses refuse, in words that name the argument, its value and what was expected."""

import math

import pytest
import torch

from kdlib.losses.divergences import DIVERGENCES, OF_MIXTURE
from kdlib.losses.kd import kd_loss, soft_target_loss, soften


def inputs(*positions, classes=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *positions, classes, generator=random)
    return student, teacher, torch.randint(classes, positions, generator=random)


STUDENT, TEACHER, LABELS = inputs(5)
UNUSABLE_TEMPERATURES = [0, 0.0, -1.0, math.nan, math.inf, "4", None, 1j]


# --- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", UNUSABLE_TEMPERATURES)
def test_an_unusable_temperature_is_refused_by_every_function(temperature):
    for call in (
        lambda: soften(STUDENT, temperature),
        lambda: soft_target_loss(STUDENT, TEACHER, temperature=temperature),
        lambda: kd_loss(STUDENT, TEACHER, LABELS, temperature=temperature),
        lambda: kd_loss(STUDENT, None, LABELS, alpha=1, temperature=temperature),
    ):
        with pytest.raises(ValueError, match="temperature must be a positive finite number") as error:
            call()
        assert str(error.value).endswith(f"got {temperature!r}")


@pytest.mark.parametrize("temperature", [1e30, 1e-30])
def test_a_temperature_whose_square_is_no_float32_is_refused_by_the_losses(temperature):
    for call in (
        lambda: soft_target_loss(STUDENT, TEACHER, temperature=temperature),
        lambda: kd_loss(STUDENT, TEACHER, LABELS, temperature=temperature),
    ):
        with pytest.raises(ValueError, match=r"temperature must lie between 1e-18 and 1e\+18 in a loss"):
            call()
    assert soften(STUDENT, temperature).isfinite().all()
    assert soft_target_loss(STUDENT, TEACHER, temperature=1e18).isfinite()


def test_what_is_no_number_comes_out_as_the_documentation_says():
    one = torch.tensor([[0.0, 1.0, 2.0]])
    for spoilt in (math.nan, math.inf):
        logits = torch.tensor([[spoilt, 0.0, 1.0]])
        assert soften(logits).isnan().all()
        assert kd_loss(logits, one, torch.tensor([2])).isnan() and soft_target_loss(one, logits).isnan()
        both = torch.cat([logits, one])
        assert kd_loss(both, torch.cat([one, one]), torch.tensor([-100, 2])).isfinite()
    nowhere = torch.full((1, 3), -math.inf)
    assert soften(nowhere).isnan().all()
    assert soft_target_loss(one, nowhere) == soft_target_loss(nowhere, one) == 0


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf, "0.5", None])
def test_an_alpha_outside_zero_to_one_is_refused(alpha):
    with pytest.raises(ValueError, match=r"alpha.*must lie in \[0, 1\]") as error:
        kd_loss(STUDENT, TEACHER, LABELS, alpha=alpha)
    assert str(error.value).endswith(f"got {alpha!r}")


@pytest.mark.parametrize("divergence", OF_MIXTURE)
@pytest.mark.parametrize("beta", [0, 1, -0.2, 1.5, math.nan, "0.5", None])
def test_a_beta_at_or_beyond_the_ends_is_refused_and_the_limits_are_named(beta, divergence):
    for call in (
        lambda: soft_target_loss(STUDENT, TEACHER, divergence=divergence, beta=beta),
        lambda: kd_loss(STUDENT, TEACHER, LABELS, divergence=divergence, beta=beta),
    ):
        with pytest.raises(ValueError, match="beta must lie strictly between 0 and 1") as error:
            call()
        assert f"got {beta}" in str(error.value)
        assert '"forward"' in str(error.value) and '"reverse"' in str(error.value)


@pytest.mark.parametrize("divergence", sorted({*DIVERGENCES} - {*OF_MIXTURE}))
def test_beta_is_not_looked_at_without_a_mixture(divergence):
    loss = kd_loss(STUDENT, TEACHER, LABELS, divergence=divergence, beta=0)
    assert torch.equal(loss, kd_loss(STUDENT, TEACHER, LABELS, divergence=divergence))


@pytest.mark.parametrize("divergence", ["kl", "Forward", "", None, 0])
def test_an_unknown_divergence_is_refused_and_the_known_ones_are_listed(divergence):
    for call in (
        lambda: soft_target_loss(STUDENT, TEACHER, divergence=divergence),
        lambda: kd_loss(STUDENT, TEACHER, LABELS, divergence=divergence),
    ):
        with pytest.raises(ValueError, match="divergence must be one of forward, reverse, jsd, skew") as e:
            call()
        assert str(e.value).endswith(f"got {divergence!r}")


@pytest.mark.parametrize("reduction", ["batchmean", "Mean", None])
def test_an_unknown_reduction_is_refused_and_the_known_ones_are_listed(reduction):
    for call in (
        lambda: soft_target_loss(STUDENT, TEACHER, reduction=reduction),
        lambda: kd_loss(STUDENT, TEACHER, LABELS, reduction=reduction),
    ):
        with pytest.raises(ValueError, match='reduction must be "mean", "sum" or "none"') as error:
            call()
        assert str(error.value).endswith(f"got {reduction!r}")


# --- logits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (torch.ones(5, 4, dtype=torch.long), "torch.int64"),
        (torch.ones(5, 4, dtype=torch.bool), "torch.bool"),
        (torch.ones(5, 4, dtype=torch.complex64), "torch.complex64"),
        ([[0.1, 0.2]], "list"),
    ],
)
def test_logits_that_are_not_a_floating_point_tensor_are_refused(wrong, named):
    for argument, call in (
        ("logits", lambda: soften(wrong)),
        ("student_logits", lambda: kd_loss(wrong, TEACHER, LABELS)),
        ("teacher_logits", lambda: kd_loss(STUDENT, wrong, LABELS)),
        ("student_logits", lambda: kd_loss(wrong, None, LABELS, alpha=1)),
        ("student_logits", lambda: soft_target_loss(wrong, TEACHER)),
        ("teacher_logits", lambda: soft_target_loss(STUDENT, wrong)),
    ):
        with pytest.raises(ValueError, match=f"^{argument} must be a floating-point tensor") as error:
            call()
        assert str(error.value).endswith(f"got {named}")


def test_a_scalar_is_refused_as_logits():
    scalar = torch.tensor(1.0)
    for call in (lambda: soften(scalar), lambda: soft_target_loss(scalar, scalar)):
        with pytest.raises(ValueError, match="logits must have a class axis"):
            call()


@pytest.mark.parametrize("classes", [0, 1])
def test_a_class_axis_below_two_is_refused_and_a_sigmoid_is_explained(classes):
    narrow, labels = torch.randn(5, classes), torch.zeros(5, dtype=torch.long)
    for argument, call in (
        ("student_logits", lambda: soft_target_loss(narrow, narrow)),
        ("student_logits", lambda: kd_loss(narrow, narrow, labels)),
        ("student_logits", lambda: kd_loss(narrow, None, labels, alpha=1)),
        ("teacher_logits", lambda: soft_target_loss(STUDENT, narrow)),
    ):
        with pytest.raises(ValueError, match=f"^{argument} has a class axis of {classes}.*sigmoid"):
            call()


def test_the_way_out_offered_for_a_sigmoid_gives_binary_cross_entropy():
    z = torch.randn(7, 1, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(7) % 2
    two_classes = torch.cat([torch.zeros_like(z), z], dim=-1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(z.squeeze(-1), labels.float())
    torch.testing.assert_close(kd_loss(two_classes, None, labels, alpha=1), expected)


def test_logits_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"student_logits has shape \(5, 4\).*\(6, 4\)"):
        soft_target_loss(STUDENT, torch.randn(6, 4))
    with pytest.raises(ValueError, match=r"\(5, 4\) on cpu, but teacher_logits has \(5, 9\) on cpu"):
        kd_loss(STUDENT, torch.randn(5, 9), LABELS)


def test_vocabularies_of_different_size_are_told_how_to_meet():
    with pytest.raises(ValueError, match="slice both to the common classes"):
        soft_target_loss(STUDENT, torch.randn(5, 9))


def test_another_device_is_refused():
    with pytest.raises(ValueError, match=r"teacher_logits has \(5, 4\) on meta; expected the same"):
        soft_target_loss(STUDENT, TEACHER.to("meta"))
    with pytest.raises(ValueError, match=r"labels has shape \(5,\) on meta; expected \(5,\) on cpu"):
        kd_loss(STUDENT, TEACHER, LABELS.to("meta"))


def test_logits_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="expected the same"):
        soft_target_loss(STUDENT, TEACHER[:1])


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_probabilities_in_place_of_logits_are_refused(dtype):
    student, teacher, labels = inputs(3, 20, classes=50)
    student, teacher = student.to(dtype), teacher.to(dtype)
    p, q = soften(teacher).to(dtype), soften(student).to(dtype)
    for argument, call in (
        ("student_logits", lambda: soft_target_loss(q, teacher)),
        ("teacher_logits", lambda: soft_target_loss(student, p)),
        ("student_logits", lambda: kd_loss(q, teacher, labels)),
        ("teacher_logits", lambda: kd_loss(student, p, labels)),
        ("teacher_logits", lambda: kd_loss(student, p, None)),
        ("student_logits", lambda: kd_loss(q, None, labels, alpha=1)),
    ):
        with pytest.raises(ValueError, match=f"^{argument} holds probabilities.*before softmax"):
            call()


def test_log_probabilities_and_one_hot_rows_pass_as_logits():
    log_p, log_q = soften(TEACHER).log(), soften(STUDENT).log()
    torch.testing.assert_close(
        kd_loss(log_q, log_p, LABELS, temperature=1.0),
        kd_loss(STUDENT, TEACHER, LABELS, temperature=1.0),
    )
    one_hot = torch.eye(4)[LABELS]
    assert kd_loss(one_hot, one_hot, LABELS, alpha=0).item() == 0
    assert kd_loss(STUDENT, one_hot, LABELS).isfinite()


def test_ordinary_logits_between_zero_and_one_pass():
    assert kd_loss(STUDENT.sigmoid(), TEACHER.sigmoid(), LABELS).isfinite()


# --- labels and masks ------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("label", [4, 99, -1, -101])
def test_a_label_out_of_range_is_named(label, alpha):
    labels = LABELS.clone()
    labels[3] = label
    with pytest.raises(ValueError, match=f"labels holds {label}; expected 0 to 3 for 4 classes"):
        kd_loss(STUDENT, TEACHER, labels, alpha=alpha)


def test_the_ignored_label_is_named_beside_the_range():
    labels = LABELS.clone()
    labels[0] = -100
    with pytest.raises(ValueError, match="labels holds -100.*or ignore_index=-1$"):
        kd_loss(STUDENT, TEACHER, labels, ignore_index=-1)
    assert kd_loss(STUDENT, TEACHER, labels, ignore_index=-100).isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64], ids=str)
def test_labels_that_are_not_integers_are_refused(dtype):
    with pytest.raises(ValueError, match=f"labels must be integers.*got {dtype}"):
        kd_loss(STUDENT, TEACHER, LABELS.to(dtype))


@pytest.mark.parametrize("shape", [(4,), (5, 1), (5, 4), ()])
def test_labels_of_the_wrong_shape_are_refused(shape):
    labels = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(ValueError, match=r"labels has shape .*; expected \(5,\)") as error:
        kd_loss(STUDENT, TEACHER, labels)
    assert str(shape) in str(error.value)


def test_labels_that_are_not_a_tensor_are_refused():
    with pytest.raises(ValueError, match="labels must be a tensor; got list"):
        kd_loss(STUDENT, TEACHER, [0, 1, 2, 3, 0])


def test_a_label_at_a_class_that_the_student_rules_out_is_refused():
    student, labels = STUDENT.clone(), torch.tensor([0, 1, 2, 3, 0])
    student[2, 2] = -math.inf
    with pytest.raises(ValueError, match="labels holds 2 where student_logits rules that class out"):
        kd_loss(student, TEACHER, labels)
    labels[2] = -100
    assert kd_loss(student, TEACHER, labels).isfinite()


@pytest.mark.parametrize("shape", [(4,), (5, 4)])
def test_a_mask_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"mask has shape .*; expected \(5,\)"):
        soft_target_loss(STUDENT, TEACHER, mask=torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_a_mask_that_is_not_bool_is_refused(dtype):
    with pytest.raises(ValueError, match=f"mask must be bool.*got {dtype}"):
        soft_target_loss(STUDENT, TEACHER, mask=torch.ones(5, dtype=dtype))


# --- the teacher -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.999])
def test_a_missing_teacher_is_refused_below_alpha_one(alpha):
    with pytest.raises(ValueError, match="teacher_logits is None: only alpha=1 with labels"):
        kd_loss(STUDENT, None, LABELS, alpha=alpha)


def test_neither_teacher_nor_labels_is_refused():
    with pytest.raises(ValueError, match="teacher_logits is None"):
        kd_loss(STUDENT, None, None, alpha=1)
