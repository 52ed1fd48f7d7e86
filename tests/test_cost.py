"""Costs against closed forms and against a count by hand."""

import sys
import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import flop_registry

from kdlib.cost import Cost, measure_cost, peak_memory, process_peak, time_call
from kdlib.vision.nets import digit_cnn, mlp

FLOAT = 4  # bytes


def cost_of(model, batch=8, repeats=2, shape=(1, 8, 8)):
    return measure_cost(model, torch.zeros(batch, *shape), repeats=repeats)


@pytest.mark.parametrize("hidden", [[], [32], [128, 16]])
@pytest.mark.parametrize("batch", [1, 8])
def test_parameters_flops_and_bytes_of_an_mlp_have_closed_forms(hidden, batch):
    widths = [64, *hidden, 10]
    pairs = list(zip(widths, widths[1:], strict=False))
    cost = cost_of(mlp(hidden), batch)
    assert cost.parameters == sum(n * m + m for n, m in pairs)
    assert cost.flops == 2 * batch * sum(n * m for n, m in pairs)
    assert cost.weight_bytes == FLOAT * cost.parameters
    assert cost.batch == batch


@pytest.mark.parametrize("width", [4, 16])
def test_parameters_and_flops_of_the_digit_cnn_have_closed_forms(width):
    cost = cost_of(digit_cnn(width, classes=7), batch=3)
    convolutions = (9 * width + width) + (9 * width * 2 * width + 2 * width)
    linear = (8 * width * 4 * width + 4 * width) + (4 * width * 7 + 7)
    assert cost.parameters == convolutions + linear
    # 3×3 kernels at 64 places, then at 16; a multiply and an add count two.
    products = 64 * 9 * width + 16 * 9 * width * 2 * width + 8 * width * 4 * width + 4 * width * 7
    assert cost.flops == 2 * 3 * products


# What runs on the CPU; torch 2.11 counts attention on accelerators only.
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@pytest.mark.skipif(CPU_ATTENTION not in flop_registry, reason="not counted on the CPU by this torch")
def test_flops_of_attention_count_both_matrix_products():
    class Attention(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    cost = measure_cost(Attention(), torch.zeros(2, 3, 16, 8), repeats=2)
    assert cost.flops == 2 * (2 * 3 * 16 * 16 * 8) * 2


@pytest.mark.parametrize("enabled", [True, False])
def test_flops_of_a_transformer_block_are_those_of_its_products(enabled):
    width, inner, length, batch = 64, 128, 16, 2
    block = nn.TransformerEncoderLayer(width, 4, inner, batch_first=True)
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        flops = measure_cost(block, torch.rand(batch, length, width), repeats=2).flops
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    tokens = batch * length
    weights = 4 * width * width + 2 * width * inner  # of q, k, v, the output; of the two layers
    assert flops == 2 * tokens * weights + 2 * 2 * batch * length * length * width


def test_weight_bytes_count_buffers_shared_weights_once_and_half_precision_as_half():
    normalised = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))
    # weight, bias, mean, variance; and the int64 count of batches.
    assert cost_of(normalised).weight_bytes == FLOAT * 4 * 64 + 8
    assert cost_of(normalised).parameters == 2 * 64
    layer = nn.Linear(64, 64)
    twice = cost_of(nn.Sequential(nn.Flatten(), layer, layer))
    assert twice.parameters == 64 * 64 + 64
    assert twice.weight_bytes == FLOAT * twice.parameters
    half = measure_cost(mlp([16]).bfloat16(), torch.zeros(8, 64, dtype=torch.bfloat16), repeats=2)
    assert half.weight_bytes == 2 * half.parameters


@pytest.mark.parametrize(
    ("hidden", "alive"),
    [
        ([], 10),  # the output alone; the flattened image is a view of the example
        ([32], 2 * 32),  # a layer's output and its ReLU
        ([128, 16], 2 * 128),
        ([16, 128], 2 * 128),
        ([8, 200, 100], 2 * 200),
    ],
)
def test_working_bytes_of_an_mlp_are_the_two_tensors_alive_at_its_widest_place(hidden, alive):
    for batch in (1, 8):
        assert cost_of(mlp(hidden), batch).working_bytes == FLOAT * batch * alive


def test_working_bytes_count_what_is_kept_and_forget_what_is_freed():
    class Chain(nn.Module):
        def __init__(self, keep):
            super().__init__()
            self.keep = keep

        def forward(self, x):
            kept = []
            for _ in range(5):
                x = x + 1
                if self.keep:
                    kept.append(x)
            return [x, *kept]

    one = FLOAT * 1000
    example = torch.zeros(1000)
    assert measure_cost(Chain(False), example, repeats=2).working_bytes == 2 * one
    assert measure_cost(Chain(True), example, repeats=2).working_bytes == 5 * one


def test_working_bytes_leave_out_views_and_work_in_place():
    class InPlace(nn.Module):
        def forward(self, x):
            return (x + 1).relu_().view(10, 100).transpose(0, 1)

    assert measure_cost(InPlace(), torch.zeros(1000), repeats=2).working_bytes == FLOAT * 1000


def test_the_three_latencies_are_ordered_and_positive():
    cost = cost_of(mlp([32]), repeats=20)
    assert 0 < cost.latency_low <= cost.latency <= cost.latency_high


def test_latency_is_the_median_between_the_outer_tenths(monkeypatch):
    # Of eleven passes, as few as tell a median from a mean, a middle of the range and a neighbour.
    seconds = [1.0, 9.0, 2.0, 8.0, 4.0, 3.0, 30.0, 5.0, 7.0, 6.0, 90.0]
    monkeypatch.setattr("kdlib.cost.time_call", lambda *args, **options: seconds)
    cost = cost_of(mlp([]), repeats=11)
    assert (cost.latency_low, cost.latency, cost.latency_high) == (2.0, 6.0, 30.0)


def test_latency_is_in_seconds_for_one_pass():
    class Sleep(nn.Module):
        def forward(self, x):
            time.sleep(0.02)
            return x

    cost = measure_cost(Sleep(), torch.zeros(1), repeats=15)
    assert cost.latency_low >= 0.02
    assert cost.latency < 0.2  # the sum over the passes, or milliseconds, would be larger


def test_the_pass_is_in_eval_mode_and_without_gradients():
    seen = set()

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            seen.add((self.training, torch.is_grad_enabled()))
            return self.layer(x)

    measure_cost(Spy().train(), torch.zeros(2, 4), repeats=2)
    assert seen == {(False, False)}


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_every_module_and_the_weights_are_restored(training):
    model = digit_cnn(4).train(training)
    model[0].train(not training)
    modes = [module.training for module in model.modules()]
    values = [p.clone() for p in model.parameters()]
    cost_of(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(p, v) for p, v in zip(model.parameters(), values, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_a_model_can_still_be_trained_after_its_cost_was_measured():
    model = mlp([8])
    cost_of(model)
    model(torch.ones(2, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_cost_is_printed_with_units():
    cost = Cost(12_778, 807_000, 0.0015, 0.001, 0.002, 51_112, 32_768, 32, "cpu")
    assert str(cost) == (
        "12,778 parameters, 0.807 MFLOP, 1.5 ms [1, 2], 0.0511 MB of weights, "
        "0.0328 MB of work, batch 32 on cpu"
    )


# --- calls -----------------------------------------------------------------------------------------


def test_peaks_count_what_is_held_at_once_and_not_what_was_there(capfd):
    held = torch.ones(1000)

    def run():
        first = torch.ones(50_000)
        del first
        return torch.ones(20_000) + held.sum()

    assert peak_memory(run) == pytest.approx(4 * 50_000, rel=0.02)
    assert peak_memory(lambda: torch.ones(30_000)) == pytest.approx(120_000, rel=0.02)
    # The profiler's library stays silent; what the call itself says is heard.
    peak_memory(lambda: sys.stderr.write("heard\n"))
    assert capfd.readouterr().err == "heard\n"


def test_the_peak_of_a_process_is_its_fullest_moment():
    before = process_peak(torch.device("cpu"))
    assert 50e6 < before < 64e9  # an interpreter with PyTorch, in bytes
    held, full = [], before
    while full < before + 150e6:  # what was freed since the fullest moment is filled first
        held.append(torch.ones(50_000_000))  # written to, so resident
        full = process_peak(torch.device("cpu"))
        assert len(held) < 40
    del held
    assert process_peak(torch.device("cpu")) >= full


def test_calls_are_timed_one_by_one_after_those_that_warm_up():
    seconds = iter([0.0, 0.0, 0.02, 0.04])
    taken = time_call(lambda: time.sleep(next(seconds)), repeats=2, warm_up=2)
    assert 0.02 <= taken[0] < 0.04 <= taken[1]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"repeats": 1}, "repeats is 1; expected a whole number, at least 2"),
    ({"repeats": 2.5}, "repeats is 2.5; expected a whole number"),
    ({"model": "resnet18"}, "model is 'resnet18'; expected a torch.nn.Module"),
    ({"example": [1.0]}, r"example is a list; expected a tensor \(N, …\)"),
    ({"example": torch.zeros(0, 3)}, "example is a float32 tensor .*expected a tensor"),
    ({"example": torch.zeros(2, 3, device="meta")}, "example is on meta, the model on cpu; expected one"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused(arguments, message):
    given = {"model": nn.Linear(3, 2), "example": torch.zeros(2, 3), "repeats": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        measure_cost(**given)
