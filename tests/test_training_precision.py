"""bf16, memory order and compilation: what they change, and that they do not change what is learned."""

import pytest
import torch
from torch import nn

from kdlib.data import Examples
from kdlib.losses.kd import kd_loss
from kdlib.training import fit
from kdlib.vision.nets import convnet, digit_cnn

SETTINGS = {"epochs": 3, "lr": 5e-3, "batch_size": 8, "device": "cpu", "seed": 0}


def pictures(count=29, channels=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, 8, 8), generator=generator, dtype=torch.uint8)
    return Examples(images, torch.arange(count) % 2, torch.arange(count))


def network(seed=0):
    torch.manual_seed(seed)
    return convnet([6, 8])


def trained(student=None, data=None, **changed):
    student = student or network()
    history = fit(student, data or pictures(), **{**SETTINGS, **changed})
    return torch.cat([p.detach().flatten() for p in student.parameters()]), history


# --- bf16 ------------------------------------------------------------------------------------------


def test_bf16_computes_convolutions_in_bfloat16_and_losses_and_weights_in_float32():
    student, teacher, seen = network(), network(1), []
    for model in (student, teacher):
        model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))

    def loss(student_logits, teacher_logits, labels):
        assert student_logits.dtype == teacher_logits.dtype == torch.float32
        value = kd_loss(student_logits, teacher_logits, labels)
        assert value.dtype == torch.float32
        return value

    trained(student, teacher=teacher, loss=loss, precision="bf16")
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in student.parameters()} == {torch.float32}


def test_bf16_learns_what_float32_learns_up_to_rounding():
    (full, history), (half, other) = (trained(precision=p) for p in ("no", "bf16"))
    start = torch.cat([p.detach().flatten() for p in network().parameters()])
    assert not torch.equal(full, half)
    assert (half - full).norm() < 0.2 * (full - start).norm()
    assert other.loss == pytest.approx(history.loss, rel=0.03)


def test_bf16_repeats_bit_for_bit():
    assert torch.equal(trained(precision="bf16")[0], trained(precision="bf16")[0])


# --- memory order ----------------------------------------------------------------------------------


def orders(model):
    return {
        m.weight.is_contiguous(memory_format=torch.channels_last) and not m.weight.is_contiguous()
        for m in model.modules()
        if isinstance(m, nn.Conv2d) and m.in_channels > 1
    }


@pytest.mark.parametrize(
    ("build", "channels", "found"),
    [
        (lambda: convnet([6, 8]), 3, True),
        (lambda: convnet([6, 8], channels=1), 1, False),
        (lambda: digit_cnn(4, classes=2), 1, False),
    ],
)
def test_channels_last_is_for_convolutions_of_three_channels(build, channels, found):
    student, teacher = build(), build()
    trained(student, pictures(channels=channels), teacher=teacher, epochs=1)
    assert orders(student) == orders(teacher) == {found}


# --- compilation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_compiled_student_learns_what_an_eager_one_learns(precision):
    student = network()
    student.compile(backend="aot_eager")  # not turned into C++, which takes half a minute
    eager, history = trained(precision=precision)
    found, other = trained(student, precision=precision)
    torch.testing.assert_close(found, eager, rtol=1e-3, atol=1e-4 if precision == "no" else 1e-2)
    assert other.loss == pytest.approx(history.loss, rel=1e-4 if precision == "no" else 1e-2)
    assert "forward" not in vars(student)
