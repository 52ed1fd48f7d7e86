"""Seeds that do not meet; accelerate, the environment and the student as they were after training."""

import copy
import os

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from kdlib.data import Examples
from kdlib.runtime import accelerated, eval_mode, seeded, substream
from kdlib.training import fit

CPU = torch.device("cpu")
STATES = (AcceleratorState, GradientState, PartialState)


def pictures():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(12, 1, 3, 3, generator=generator)
    return Examples(images, torch.arange(12) % 3, torch.arange(12))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))


SETTINGS = {"epochs": 2, "lr": 1e-2, "batch_size": 5, "device": "cpu", "seed": 0}


def shared():
    return [dict(state._shared_state) for state in STATES]


@pytest.fixture
def clean_accelerate():
    """Nothing of accelerate before the test, and nothing of the test's afterwards."""
    before = shared()
    for state in STATES:
        state._shared_state.clear()
    yield
    for state, values in zip(STATES, before, strict=True):
        state._shared_state.clear()
        state._shared_state.update(values)


# --- seeds -----------------------------------------------------------------------------------------


def test_generators_seeded_for_another_seed_purpose_or_number_draw_other_numbers():
    # The generator's own numbers, not the seeds': on the CPU it takes the lowest 32 bits of a seed only.
    positions = [(s, p, n) for s in (0, 1, -1, 2**31, 2**40) for p in ("crop", "step") for n in range(20)]
    drawn = {
        tuple(torch.rand(4, generator=torch.Generator().manual_seed(substream(*position))).tolist())
        for position in positions
    }
    assert len(drawn) == len(positions)
    assert len({substream(s, "step", n) % 2**32 for s in range(50) for n in range(200)}) > 9990


def test_a_substream_is_the_same_on_every_machine():
    assert substream(0, "crop", 1) == substream(0, "crop", 1) == 1158087337798855261
    assert all(0 <= substream(s, "step", n) < 2**63 for s in (-1, 0, 9) for n in range(20))


def test_another_seed_of_fit_gives_other_dropout_in_the_same_order_of_data():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.masks = nn.Linear(9, 3), []

        def forward(self, images):
            mask = nn.functional.dropout(torch.ones(50))
            self.masks.append(tuple(mask.tolist()))
            return self.body(images.flatten(1))

    masks = []
    for seed in (0, 1, 0):
        torch.manual_seed(0)
        student = Dropping()
        fit(student, pictures(), **{**SETTINGS, "seed": seed})
        masks.append(student.masks)
    assert masks[0] == masks[2]
    assert len({*masks[0], *masks[1]}) == 12  # six steps each, all of them different


def test_random_numbers_are_put_back_even_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="in between"), seeded(3, CPU):
        first = torch.rand(3)
        raise RuntimeError("in between")
    assert torch.equal(torch.get_rng_state(), state)
    with seeded(3, CPU):
        assert torch.equal(torch.rand(3), first)
    with seeded(4, CPU):
        assert not torch.equal(torch.rand(3), first)


def test_eval_mode_restores_each_module_even_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2))).train()
    model[1].eval()
    model[1][1].train()
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="inside"), eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("inside")
    assert [module.training for module in model.modules()] == before == [True, True, False, False, True]


# --- accelerate ------------------------------------------------------------------------------------


def broken_loss(student_logits, teacher_logits, labels):
    raise InterruptedError("by the test")


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("loss", [None, broken_loss], ids=["finished", "interrupted"])
def test_an_accelerator_made_before_is_as_it_was(clean_accelerate, precision, loss):
    outer = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=4)
    before, environment = shared(), dict(os.environ)
    try:
        fit(network(), pictures(), precision=precision, loss=loss, **SETTINGS)
    except InterruptedError:
        assert loss is broken_loss
    assert shared() == before
    assert (outer.mixed_precision, outer.gradient_accumulation_steps) == ("bf16", 4)
    assert GradientState().num_steps == 4
    assert dict(os.environ) == environment


def test_accumulation_of_gradients_outside_does_not_reach_a_run(clean_accelerate):
    def trained():
        student = network()
        fit(student, pictures(), clip=0.05, **SETTINGS)
        return student.state_dict()

    expected = trained()
    Accelerator(cpu=True, gradient_accumulation_steps=4)
    assert all(torch.equal(value, expected[name]) for name, value in trained().items())


def test_without_an_accelerator_before_there_is_none_afterwards(clean_accelerate):
    with accelerated("cpu", "bf16") as place:
        assert (place.device, place.mixed_precision, place.num_processes) == (CPU, "bf16", 1)
    assert shared() == [{}, {}, {}]
    with pytest.raises(RuntimeError, match="inside"), accelerated("cpu"):
        raise RuntimeError("inside")
    assert shared() == [{}, {}, {}]
    assert Accelerator(cpu=True, mixed_precision="no").mixed_precision == "no"


def test_runs_of_different_precision_can_follow_each_other():
    results = []
    for precision in ("no", "bf16", "no", "bf16"):
        student = network()
        fit(student, pictures(), precision=precision, **SETTINGS)
        results.append(student[1].weight.detach())
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])
    assert not torch.equal(results[0], results[1])


def test_a_run_within_a_run_leaves_the_outer_one_alone():
    with accelerated("cpu", "bf16") as place:
        fit(network(), pictures(), precision="no", **SETTINGS)
        assert place.mixed_precision == AcceleratorState().mixed_precision == "bf16"


@pytest.mark.parametrize("precision", ["fp16", "fp8", None, "BF16"])
def test_an_unknown_precision_is_refused(precision):
    with pytest.raises(ValueError, match='precision must be "auto", "no" or "bf16"; got'):
        fit(network(), pictures(), precision=precision, **SETTINGS)


def test_auto_is_float32_on_the_cpu():
    with accelerated("cpu", "auto") as place:
        assert place.mixed_precision == "no"


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("loss", [None, broken_loss], ids=["finished", "interrupted"])
def test_the_forward_of_a_trained_student_is_its_own(precision, loss):
    student = network()
    before = set(vars(student))
    try:
        fit(student, pictures(), precision=precision, loss=loss, **SETTINGS)
    except InterruptedError:
        assert loss is broken_loss
    assert set(vars(student)) == before
    assert not student.training


def test_a_copy_of_a_student_trained_in_bf16_computes_with_its_own_weights():
    student, images = network(), pictures().images
    fit(student, pictures(), precision="bf16", **SETTINGS)
    twin = copy.deepcopy(student)
    with torch.no_grad():
        expected = student(images)
        twin[3].bias += 1
        torch.testing.assert_close(twin(images), expected + 1)
        assert torch.equal(student(images), expected)
    assert twin(images).dtype == torch.float32
