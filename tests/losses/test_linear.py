"""linear_kd_loss against kd_loss on all logits: loss, gradients, and how much memory each takes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.cost import peak_memory
from kdlib.losses import backend
from kdlib.losses.divergences import DIVERGENCES
from kdlib.losses.kd import kd_loss, soft_target_loss
from kdlib.losses.linear import linear_kd_loss
from kdlib.losses.top_k import top_k_loss, top_k_of

OPTIONS = [
    {}, {"divergence": "reverse", "alpha": 0.0}, {"divergence": "jsd", "beta": 0.2, "temperature": 1.5},
    {"alpha": 1.0}, {"alpha": 0.3, "temperature": 1.0, "reduction": "sum"},
]  # fmt: skip


def example(places=(3, 7), classes=23, width=6, seed=0, dtype=torch.float64, bias=False, ignored=0.3):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    student = [random(*places, width), random(classes, width), random(classes) if bias else None]
    teacher = [random(*places, width + 2), random(classes, width + 2), random(classes) if bias else None]
    labels = torch.randint(classes, places, generator=generator)
    labels[torch.rand(places, generator=generator) < ignored] = -100
    for tensor in student:
        if tensor is not None:
            tensor.requires_grad_()
    return student, teacher, labels


def fused(student, teacher, labels, **options):
    return linear_kd_loss(
        student[0], student[1], teacher[0], teacher[1], labels, student_bias=student[2],
        teacher_bias=teacher[2], **options,
    )  # fmt: skip


def plain(student, teacher, labels, **options):
    return kd_loss(F.linear(*student), F.linear(*teacher), labels, **options)


def gradients(loss, student):
    return torch.autograd.grad(loss, [tensor for tensor in student if tensor is not None])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 100, None])
def test_loss_and_gradients_are_those_of_all_logits(options, bias, chunk_tokens):
    student, teacher, labels = example(bias=bias)
    loss = fused(student, teacher, labels, chunk_tokens=chunk_tokens, **options)
    expected = plain(student, teacher, labels, **options)
    torch.testing.assert_close(loss, expected)
    scaled = gradients(loss * -1.7, student)  # as gradient accumulation or a scaler does
    for one, other in zip(scaled, gradients(expected * -1.7, student), strict=True):
        torch.testing.assert_close(one, other)


@given(
    places=st.sampled_from([(1,), (5,), (2, 3), (2, 1, 4)]), classes=st.integers(2, 40),
    chunk_tokens=st.integers(1, 9), seed=st.integers(0, 999), ignored=st.sampled_from([0.0, 0.5, 1.0]),
    alpha=st.sampled_from([0.0, 0.4, 1.0]), divergence=st.sampled_from(DIVERGENCES),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_shape(places, classes, chunk_tokens, seed, ignored, alpha, divergence):
    student, teacher, labels = example(places, classes, seed=seed, ignored=ignored)
    options = {"alpha": alpha, "divergence": divergence}
    loss = fused(student, teacher, labels, chunk_tokens=chunk_tokens, **options)
    expected = plain(student, teacher, labels, **options)
    torch.testing.assert_close(loss, expected)
    for one, other in zip(gradients(loss, student), gradients(expected, student), strict=True):
        torch.testing.assert_close(one, other)


def test_gradcheck():
    student, teacher, labels = example(places=(3,), classes=4, width=2, bias=True)
    assert torch.autograd.gradcheck(
        lambda *tensors: fused(tensors, teacher, labels, chunk_tokens=2, divergence="jsd"), student
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk_tokens", [4, None])
def test_half_precision_heeds_what_arrives_and_the_scale(dtype, chunk_tokens):
    found = {}
    for scale, factor in ((1.0, 1.0), (1.0, 0.25), (0.25, 1.0), (torch.tensor(0.25), 1.0)):
        student, teacher, labels = example(dtype=dtype, bias=True)
        loss = fused(student, teacher, labels, chunk_tokens=chunk_tokens, scale=scale) * factor
        found[scale, factor] = [loss.detach(), *gradients(loss, student)]
    whole, *quarters = found.values()
    for quarter in quarters:
        for one, other in zip(quarter, whole, strict=True):
            torch.testing.assert_close(one, 0.25 * other, rtol=1e-6, atol=1e-6)


def test_terms_are_scaled_too():
    student, teacher, labels = example()
    whole = fused(student, teacher, labels, return_terms=True)
    thrice = fused(student, teacher, labels, return_terms=True, scale=3)
    for one, other in zip(thrice, whole, strict=True):
        torch.testing.assert_close(one, 3 * other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_chunk_writes_the_gradient_of_the_weight_as_it_is_to_be(dtype):
    """Nothing of its size is made in backward, where what arrives is 1."""
    student, teacher, labels = example((16,), 16_384, 32, dtype=dtype)
    loss = fused(student, teacher, labels, chunk_tokens=16)
    assert peak_memory(loss.backward) < 0.1 * student[1].nbytes
    assert student[1].grad.dtype == dtype


def test_a_second_backward_is_the_same_or_refused():
    student, teacher, labels = example()
    loss = fused(student, teacher, labels)
    first, again = (torch.autograd.grad(loss * by, student[0], retain_graph=True)[0] for by in (1, 0.5))
    torch.testing.assert_close(again, 0.5 * first)  # and what was handed out is not written any more
    loss = fused(student, teacher, labels)
    (loss * 0.5).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_second_derivative():
    student, teacher, labels = example()
    loss = fused(student, teacher, labels) + student[0].square().sum()
    with pytest.raises(RuntimeError, match="no second derivative: .* create_graph"):
        torch.autograd.grad(loss, student[0], create_graph=True)


@pytest.mark.parametrize("wrong", [-100, 23])
def test_every_label_counts_and_one_is_none_of_the_classes(wrong, monkeypatch):
    student, teacher, labels = example(ignored=0.0)
    labels[1, 2] = wrong
    with pytest.raises(ValueError, match=f"labels holds {wrong}; expected 0 to 22"):
        fused(student, teacher, labels, ignore_index=None)
    # As on an accelerator, where only the first call looks.
    monkeypatch.setattr("kdlib.losses.checks._may_look_at_values", lambda *_: False)
    top = top_k_of(F.linear(*teacher), 5, 4.0)
    for known in (teacher[:2], (top, None)):
        terms = linear_kd_loss(*student[:2], *known, labels, ignore_index=None, return_terms=True)
        assert all(term.isnan() for term in terms)


def test_only_the_gradients_that_are_wanted():
    student, teacher, labels = example()
    student[1].requires_grad_(False)
    loss = fused(student, teacher, labels)
    loss.backward()
    assert student[0].grad is not None and student[1].grad is None
    with torch.no_grad():
        assert not fused(student, teacher, labels).requires_grad


def test_without_gradients_none_is_computed():
    student, teacher, labels = example((64,), 2048, 8, dtype=torch.float32)

    def run(recorded):
        with torch.set_grad_enabled(recorded):
            return fused(student, teacher, labels, chunk_tokens=8)

    expected = run(True)
    assert not run(False).requires_grad and torch.equal(run(False), expected.detach())
    weight = student[1].numel() * 4
    assert peak_memory(lambda: run(False)) < peak_memory(lambda: run(True)) - 0.9 * weight


def test_the_teacher_gets_no_gradient():
    student, teacher, labels = example()
    teacher[1].requires_grad_()
    teacher[0].requires_grad_()
    fused(student, teacher, labels).backward()
    assert teacher[0].grad is None and teacher[1].grad is None


def test_nothing_counts():
    student, teacher, labels = example(ignored=1.1)
    loss = fused(student, teacher, labels)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients(loss, student))


def test_positions_that_do_not_count_may_hold_anything():
    student, teacher, labels = example()
    expected = fused(student, teacher, labels)
    with torch.no_grad():
        student[0][labels == -100] = torch.nan
        teacher[0][labels == -100] = torch.inf
    loss = fused(student, teacher, labels)
    torch.testing.assert_close(loss, expected)
    found = gradients(loss, student)
    assert (found[0][labels == -100] == 0).all() and found[1].isfinite().all()


def test_unequal_padding_compares_the_common_classes():
    student, teacher, labels = example(classes=20)
    wide = torch.randn(29, 8, dtype=torch.float64)
    for classes in (None, 12):
        labels = labels.clamp(max=11)
        loss = linear_kd_loss(
            student[0], student[1], teacher[0], wide, labels, classes=classes, alpha=0.3, chunk_tokens=4
        )
        z, t = F.linear(*student[:2]), F.linear(teacher[0], wide)
        n, counted = classes or 20, labels != -100
        soft = soft_target_loss(z[..., :n], t[..., :n], mask=counted)
        hard = F.cross_entropy(z[counted], labels[counted])
        torch.testing.assert_close(loss, 0.3 * hard + 0.7 * soft)


def test_largest_logits_from_a_cache():
    student, teacher, labels = example()
    top = top_k_of(F.linear(*teacher), 5, 2.0)
    options = {"temperature": 2.0, "divergence": "reverse"}
    loss = linear_kd_loss(*student[:2], top, None, labels, alpha=0.0, chunk_tokens=4, **options)
    expected = top_k_loss(F.linear(*student), top, mask=labels != -100, **options)
    torch.testing.assert_close(loss, expected)
    for one, other in zip(gradients(loss, student), gradients(expected, student), strict=True):
        torch.testing.assert_close(one, other)


def test_a_transfer_set_without_labels():
    student, teacher, _ = example()
    loss = fused(student, teacher, None)
    torch.testing.assert_close(loss, plain(student, teacher, None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_is_summed_in_float32(dtype, monkeypatch):
    monkeypatch.setattr("kdlib.losses.linear._ROWS", 2)
    # In bfloat16 a sum of equal terms would stand still at 256 of them.
    student, teacher, labels = example(places=(1024,), classes=5, dtype=dtype, ignored=0.0)
    exact = [t if t is None else t.detach().double().requires_grad_() for t in student]
    loss = fused(student, teacher, labels, chunk_tokens=16, alpha=0.5)
    expected = plain(exact, [t if t is None else t.double() for t in teacher], labels, alpha=0.5)
    assert loss.dtype == torch.float32
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=0)
    for one, other in zip(gradients(loss, student), gradients(expected, exact), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=2e-2 * other.abs().max().item())


def test_under_autocast_the_products_are_half_and_the_gradients_are_not():
    student, teacher, labels = example(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused(student, teacher, labels, chunk_tokens=4)
    half = [t if t is None else t.detach().bfloat16().requires_grad_() for t in student]
    expected = kd_loss(F.linear(*half).float(), F.linear(*teacher), labels)
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0)
    found = gradients(loss, student)
    assert [gradient.dtype for gradient in found] == [torch.float32] * 2
    assert not torch.equal(loss, fused(student, teacher, labels))


def test_compiled_around():
    student, teacher, labels = example()

    def step(hidden):
        return linear_kd_loss(hidden * 2, student[1], teacher[0], teacher[1], labels, chunk_tokens=4)

    compiled = torch.compile(step, backend="aot_eager")
    torch.testing.assert_close(compiled(student[0]), step(student[0]))
    for one, other in zip(
        gradients(compiled(student[0]), student), gradients(step(student[0]), student), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_in_a_checkpointed_module():
    student, teacher, labels = example()
    loss = torch.utils.checkpoint.checkpoint(
        lambda hidden: fused([hidden, *student[1:]], teacher, labels), student[0], use_reentrant=False
    )
    expected = plain(student, teacher, labels)
    for one, other in zip(gradients(loss, student), gradients(expected, student), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("alpha", [0.5, 0.0])
def test_memory_is_a_fifth_of_that_of_all_logits(alpha, monkeypatch):
    # A sixteenth of the size for which the figure was set: 256 tokens, vocabulary 16,384.
    student, teacher, labels = example((256,), 16_384, 16, dtype=torch.float32, ignored=0.0)
    weight = student[1].numel() * 4

    def run(loss, **options):
        return peak_memory(lambda: loss(student, teacher, labels, alpha=alpha, **options).backward())

    run(fused, chunk_tokens=32)  # what is allocated once
    for tensor in student[:2]:
        tensor.grad = None
    ours = run(fused, chunk_tokens=32)
    for tensor in student[:2]:
        tensor.grad = None
    monkeypatch.setattr(backend, "in_slices", lambda logits: False)
    theirs = run(plain)
    assert ours - 2 * weight < (theirs - weight) / 5


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"alpha": 1.5}, "alpha, the weight of the hard label, must lie in"),
        ({"temperature": 0.0}, "temperature"),
        ({"reduction": "none"}, 'reduction must be "mean" or "sum" here'),
        ({"chunk_tokens": 0}, "chunk_tokens must be a whole number, at least 1; got 0"),
        ({"classes": 24}, "classes must lie in 2 … 23"),
        ({"divergence": "KL"}, "divergence"),
    ],
)
def test_options_out_of_range(changed, message):
    with pytest.raises(ValueError, match=message):
        fused(*example(), **changed)


def test_tensors_that_do_not_fit():
    student, teacher, labels = example()
    with pytest.raises(ValueError, match=r"teacher_hidden .* has shape \(2, 7\) on cpu; expected \(3, 7\)"):
        linear_kd_loss(*student[:2], teacher[0][:2], teacher[1], labels)
    with pytest.raises(ValueError, match=r"labels has shape \(21,\) on cpu; expected \(3, 7\)"):
        linear_kd_loss(*student[:2], *teacher[:2], labels.flatten())
    with pytest.raises(ValueError, match="labels holds 23; expected 0 to 22"):
        linear_kd_loss(*student[:2], *teacher[:2], labels.clamp(min=23))
    with pytest.raises(ValueError, match="only alpha=1 with labels"):
        linear_kd_loss(*student[:2], None, None, labels)
    with pytest.raises(ValueError, match=r"student_bias has shape \(1,\); expected \(23,\)"):
        fused([*student[:2], torch.ones(1)], teacher, labels)
    with pytest.raises(ValueError, match=r"teacher_bias has shape \(1,\); expected \(23,\)"):
        fused(student, [*teacher[:2], torch.ones(1)], labels)
    with pytest.raises(ValueError, match="teacher_weight is None"):
        linear_kd_loss(*student[:2], teacher[0], None, labels)
