"""The loss and its gradient by formula, against autograd through the plain loss in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

from kdlib.cost import peak_memory
from kdlib.losses import backend, closed_form
from kdlib.losses.divergences import DIVERGENCES, LossSettings
from kdlib.losses.kd import kd_loss, soft_target_loss


def draw(rows=5, classes=17, seed=0, dtype=torch.float64, apart=None, spread=3.0):
    random = torch.Generator().manual_seed(seed)
    student, teacher = spread * torch.randn(2, rows, classes, generator=random, dtype=torch.float64)
    if apart is not None:
        teacher = student + apart * teacher
    return student.to(dtype), teacher.to(dtype), torch.randint(classes, (rows,), generator=random)


def by_autograd(student, teacher, labels, *, alpha, width=None, dtype=torch.float64, **options):
    z = student.to(dtype).requires_grad_()
    terms = torch.zeros(2, len(z), dtype=dtype)
    loss = 0
    if alpha > 0:
        hard = kd_loss(z, None, labels, alpha=1.0, reduction="none")
        terms[0], loss = hard.detach(), alpha * hard
    if alpha < 1:
        soft = soft_target_loss(z[:, :width], teacher.to(dtype)[:, :width], reduction="none", **options)
        terms[1], loss = soft.detach(), loss + (1 - alpha) * soft
    return terms, torch.autograd.grad(loss.sum(), z)[0]


def kd_terms_and_gradient(student, teacher, labels, *, width=None, beta=0.5, **options):
    settings = LossSettings(beta=beta, **options)
    return closed_form.kd_terms_and_gradient(student, teacher, labels, settings, width)


def compare(student, teacher, labels, rtol=1e-10, atol=1e-12, **options):
    expected, gradient = by_autograd(student, teacher, labels, **options)
    terms, found = kd_terms_and_gradient(student.clone(), teacher.clone(), labels, **options)
    assert found.dtype == student.dtype
    torch.testing.assert_close(terms.double(), expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(found.double(), gradient, rtol=rtol, atol=atol)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1, 4.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_both_terms_and_the_gradient(divergence, temperature, alpha):
    compare(*draw(), temperature=temperature, alpha=alpha, divergence=divergence, beta=0.3)


@given(
    rows=st.integers(0, 4), classes=st.integers(2, 40), seed=st.integers(0, 999), alpha=st.floats(0, 1),
    temperature=st.floats(0.1, 100), divergence=st.sampled_from(DIVERGENCES), beta=st.floats(0.01, 0.99),
    spread=st.floats(0, 30),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_shape_and_setting(rows, classes, seed, spread, **options):
    compare(*draw(rows, classes, seed, spread=spread), rtol=1e-6, atol=1e-7, **options)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("ruled_out", [-math.inf, -1e30, torch.finfo(torch.float32).min])
def test_classes_that_either_rules_out(ruled_out, divergence):
    student, teacher, _ = draw(classes=23)
    random = torch.Generator().manual_seed(1)
    for logits in (student, teacher):
        logits.masked_fill_(torch.rand(logits.shape, generator=random) < 0.3, ruled_out)
    student[0, ::2] = teacher[0, 1::2] = ruled_out  # nothing is left
    options = {"temperature": 2.0, "alpha": 0.0, "divergence": divergence, "beta": 0.4}
    compare(student, teacher, None, **options)
    terms, gradient = kd_terms_and_gradient(student, teacher, None, **options)
    assert terms[1, 0] == 0 and gradient[0].eq(0).all() and gradient.isfinite().all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_vocabularies_of_unequal_padding(divergence):
    student, _, labels = draw(classes=21)
    _, teacher, _ = draw(classes=25, seed=1)
    labels[0] = 20  # beyond what is compared
    for alpha in (0.0, 0.4):
        compare(
            student, teacher, labels, width=19, temperature=2.0, alpha=alpha, divergence=divergence, beta=0.3
        )


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("apart", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_accurate_in_float32_where_the_models_nearly_agree(temperature, apart, divergence):
    student, teacher, _ = draw(64, 500, dtype=torch.float32, apart=apart)
    options = {"temperature": temperature, "alpha": 0.0, "divergence": divergence, "beta": 0.3}
    expected, gradient = by_autograd(student, teacher, None, **options)
    terms, found = kd_terms_and_gradient(student.clone(), teacher.clone(), None, **options)
    if temperature == 1:  # the rounding of log-probabilities enters squared; not so in total variation
        atol = 3e-7 if divergence == "tvd" else 0
        torch.testing.assert_close(terms[1].double(), expected[1], rtol=2e-4, atol=atol)
    # At a high T, log q − log p carries the rounding of two large numbers. What of it a row has in common is
    # in the gradient here; autograd's leaves it out again as it goes through the softmax.
    usual = by_autograd(student, teacher, None, dtype=torch.float32, **options)
    for ours, theirs, exact, times in ((terms, usual[0], expected, 2), (found, usual[1], gradient, 8)):
        error, as_usual = ((each.double() - exact).abs().max() for each in (ours, theirs))
        assert error <= times * as_usual + 1e-7 * exact.abs().max()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype, divergence):
    student, teacher, labels = draw(8, 300, dtype=dtype)
    options = {"temperature": 2.0, "alpha": 0.5, "divergence": divergence, "beta": 0.3}
    expected, gradient = by_autograd(student, teacher, labels, **options)
    kept = student.clone()
    terms, found = kd_terms_and_gradient(student, teacher, labels, **options)
    assert torch.equal(student, kept)
    assert terms.dtype == torch.float32
    torch.testing.assert_close(terms.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        found.double(), gradient, rtol=torch.finfo(dtype).eps, atol=1e-6 if dtype == torch.bfloat16 else 1e-7
    )


def test_far_apart_models_stay_finite():
    student = torch.tensor([[0.0, 500.0, -500.0], [1e4, -1e4, 0.0]])
    teacher = torch.tensor([[500.0, -500.0, 0.0], [-1e4, 1e4, 0.0]])
    for divergence in DIVERGENCES:
        options = {"temperature": 1.0, "alpha": 0.0, "divergence": divergence, "beta": 0.3}
        compare(student, teacher, None, rtol=1e-5, atol=1e-6, **options)


def test_nan_is_seen():
    student, teacher, labels = draw()
    student[2, 3] = math.nan
    for alpha in (0.0, 1.0):
        terms, gradient = kd_terms_and_gradient(
            student.clone(), teacher.clone(), labels, temperature=2.0, alpha=alpha, divergence="forward"
        )
        assert terms.isnan().any(0).tolist() == [False, False, True, False, False]
        assert gradient[2].isnan().all()


# --- some rows at a time ----------------------------------------------------------------------------


@pytest.fixture
def small_slices(monkeypatch):
    """kd_loss and soft_target_loss take three rows at a time."""
    taken = []

    def large(logits):
        taken.append(logits.shape)
        return True

    monkeypatch.setattr(backend, "_SLICE", 3 * 17 + 5)
    monkeypatch.setattr(backend, "in_slices", large)
    return taken


def plain_of(*args, **options):
    """What kd_loss is where it is not taken in slices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "in_slices", lambda logits: False)
        return kd_loss(*args, **options)


def both_ways(monkeypatch, loss, student, *rest, **options):
    """Loss and gradient in slices, and as written."""
    found = []
    for sliced in (True, False):
        if not sliced:
            monkeypatch.setattr(backend, "in_slices", lambda logits: False)
        z = student.clone().requires_grad_()
        value = loss(z, *rest, **options)
        weights = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).view(value.shape)
        found.append((value.detach(), torch.autograd.grad((weights * value).sum(), z)[0]))
    return found


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_in_slices_kd_loss_is_the_same(divergence, alpha, reduction, small_slices, monkeypatch):
    student, teacher, labels = (x.unflatten(0, (4, 2)) for x in draw(8))
    labels[0, 1] = labels[2, 0] = -100
    student[0, 1], teacher[2, 0] = math.nan, math.inf  # there anything may stand
    options = {"alpha": alpha, "divergence": divergence, "beta": 0.3, "reduction": reduction}
    sliced, usual = both_ways(monkeypatch, kd_loss, student, teacher, labels, **options)
    assert small_slices == [(4, 2, 17)]
    for ours, theirs in zip(sliced, usual, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("masked", [None, "some", "all"])
def test_in_slices_soft_target_loss_is_the_same(masked, small_slices, monkeypatch):
    student, teacher, _ = draw(7)
    student[1, 2] = -math.inf
    mask = None if masked is None else torch.arange(7) % 3 > (1 if masked == "some" else 5)
    sliced, usual = both_ways(monkeypatch, soft_target_loss, student, teacher, mask=mask)
    assert len(small_slices) == 1
    for ours, theirs in zip(sliced, usual, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_backward_twice_and_no_second_derivative(small_slices):
    student, teacher, labels = draw()
    student.requires_grad_()
    loss = kd_loss(student, teacher, labels)
    loss.backward(retain_graph=True)
    first = student.grad.clone()
    loss.backward()
    torch.testing.assert_close(student.grad, 2 * first)
    # Where another term has one, what is missing would not be missed.
    loss = kd_loss(student, teacher, labels) ** 2 + student.square().sum()
    with pytest.raises(RuntimeError, match="no second derivative: .* create_graph"):
        torch.autograd.grad(loss, student, create_graph=True)


# PyTorch's forward mode compiles some of its formulas with what it calls deprecated itself.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_torch_func_and_forward_mode_take_the_formula(small_slices, monkeypatch):
    student, teacher, labels = draw()
    direction = draw(seed=1)[0]

    def loss(z):
        return kd_loss(z, teacher, labels, alpha=0.3)

    def forward_mode():
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(loss(forward_ad.make_dual(student, direction))).tangent

    found = []
    for _ in range(2):
        slope = torch.func.grad(loss)(student)
        second = torch.func.jvp(torch.func.grad(loss), (student,), (direction,))[1]
        found.append((slope, second, forward_mode(), (slope * direction).sum()))
        monkeypatch.setattr(backend, "in_slices", lambda logits: False)
    assert small_slices
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found[0][2], found[0][3])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_scaler_of_float16_loses_nothing(reduction, small_slices):
    """65,536 is no number of float16, and neither is what 1/n leaves of most gradients before it is there."""
    student, teacher, labels = draw(32, dtype=torch.float16)
    exact = student.double().requires_grad_()
    options = {"temperature": 1.0, "reduction": reduction}
    scaler = 65_536 / (1 if reduction == "mean" else 32)
    (plain_of(exact, teacher.double(), labels, **options) * scaler).backward()
    z = student.clone().requires_grad_()
    (kd_loss(z, teacher, labels, **options) * scaler).backward()
    assert len(small_slices) == 1
    allowed = 2**-9 * exact.grad.abs() + 2**-24 * 65_536 / 32
    assert ((z.grad.double() - exact.grad).abs() <= allowed).all()


def test_on_an_accelerator_nothing_waits_for_values():
    """A tensor without values has none to wait for."""
    student, teacher, labels = (x.to("meta") for x in draw())
    for divergence in DIVERGENCES:
        terms, gradient = kd_terms_and_gradient(
            student, teacher, labels, temperature=2.0, alpha=0.5, divergence=divergence
        )
        assert terms.shape == (2, 5) and gradient.shape == student.shape


def test_which_logits_are_taken_in_slices():
    large = torch.empty(64, 65_536)
    assert backend.in_slices(large) and backend.in_slices(large.view(4, 16, -1))
    assert not backend.in_slices(large[:63])
    assert not backend.in_slices(torch.empty(64, 65_536, device="meta"))


def test_in_slices_less_memory_is_held():
    student, teacher, _ = draw(256, 16_384, dtype=torch.float32)
    student.requires_grad_()
    size = student.numel() * 4

    def run(sliced):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend, "in_slices", lambda logits: sliced)
            patch.setattr(backend, "_SLICE", 16_384 * 16)
            student.grad = None
            return peak_memory(lambda: kd_loss(student, teacher, None).backward())

    assert run(True) < 2.6 * size < run(False) / 3
