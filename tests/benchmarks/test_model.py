"""The calculated figures: closed forms, limits, and what PyTorch counts."""

import warnings
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import model
from benchmarks.contenders import contenders
from benchmarks.model import GPUS, Step, seconds
from benchmarks.problems import IGNORED, Setting, Sizes, make_problem
from benchmarks.race import Rates
from kdlib.cost import peak_memory
from kdlib.losses.linear import linear_kd_loss

CPU = torch.device("cpu")
ISSUE = Sizes(8192, 151_936, 1536, 3584, torch.bfloat16)
H100, H200 = GPUS
COUNTED = {"special": 4.0, "half_rate": 18.0, "full_rate": 21.0, "memory": 1.0, "other": 7.0}


@pytest.fixture(autouse=True)
def known_counts(monkeypatch):
    """51 instructions a class, whatever is committed."""
    monkeypatch.setattr(model, "counts", lambda setting, shape: COUNTED)


class Traffic(TorchDispatchMode):
    """Bytes that operators read and write, each tensor once; views move nothing, and an expanded tensor is no
    larger than what it was made of."""

    VIEWS = {"t", "detach", "expand", "view", "_unsafe_view", "unsqueeze", "mm"}

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.bytes = classes, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ not in self.VIEWS:
            for tensor in tree_leaves((args, kwargs, result)):
                if isinstance(tensor, torch.Tensor) and tensor.dim() and tensor.shape[-1] == self.classes:
                    own = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
                    self.bytes += torch.Size(own).numel() * tensor.element_size() if len(own) == 2 else 0
        return result


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("kind", ["linear", "logits"])
def test_traffic_of_eager_is_what_pytorch_counts(divergence, kind):
    sizes, setting = Sizes(8, 96, 5, 7, torch.bfloat16), Setting(divergence)
    eager, problem = contenders(kind)[0], make_problem(kind, sizes, CPU)
    with Traffic(96) as counter:
        eager.run(eager.make(setting, CPU), problem)
    assert counter.bytes == model.EAGER_BYTES[divergence] * 8 * 96


def test_memory_of_eager_is_what_the_allocator_counts():
    """32.4 GB at the sizes of the benchmark."""
    eager, sizes = contenders("linear")[0], Sizes(64, 4096, 8, 12, torch.bfloat16)
    loss, problem = eager.make(Setting(), CPU), make_problem("linear", sizes, CPU)
    counted = peak_memory(lambda: eager.run(loss, problem), CPU)
    assert counted == pytest.approx(model.eager_extra_bytes(sizes), rel=1e-3)
    assert model.eager_extra_bytes(ISSUE) == pytest.approx(32.4e9, rel=2e-3)


@pytest.mark.parametrize("tokens", [40, 300, 5 * 128])
def test_memory_of_ours_is_what_is_counted(tokens):
    """The real loss, with what stands for kernels writing over the logits; one chunk, and several."""
    sizes = Sizes(tokens, 2048, 96, 160, torch.float32)
    problem = make_problem("linear", sizes, CPU)

    def written_over(student, teacher, labels, settings, width, *, gradient, gradient_scale):
        return torch.zeros(2, len(student))

    def run():
        loss = linear_kd_loss(*problem.inputs, *problem.teacher, problem.labels, alpha=0.0)
        return torch.autograd.grad(loss, problem.inputs)

    with (
        patch("kdlib.losses.backend.on_kernels", lambda *logits: True),
        patch("kdlib.losses.kernels.kd_terms", written_over),
        patch("kdlib.losses.kernels.scale_rows", lambda gradient, by: None),
        patch("kdlib.losses.linear._KERNEL_CHUNK_BYTES", 128 * 2 * 2048 * 4),  # 128 tokens
    ):
        counted = peak_memory(run, CPU, scratch=False)
        assert len(model._chunks(sizes)) == {40: 1, 300: 3, 640: 5}[tokens]
        assert counted == pytest.approx(model.extra_bytes(sizes), rel=0.01)


def test_memory_of_the_benchmark():
    """A chunk of 1,664 tokens in two logits a class, ∂L/∂W in float32, and little else: below 2.2 GB."""
    assert model._chunks(ISSUE) == [1664] * 4 + [1536]
    logits, weight = 2 * 2 * 1664 * 151_936, 4 * 151_936 * 1536
    assert logits + weight < model.extra_bytes(ISSUE) < logits + weight + 0.15e9 < 2.2e9
    assert model.extra_bytes(ISSUE) < model.eager_extra_bytes(ISSUE) / 14
    # But a peer that sums ∂L/∂W in bfloat16, and makes 64 chunks, holds less.
    assert model.liger_jsd_extra_bytes(ISSUE) < 0.6 * model.extra_bytes(ISSUE)


def test_memory_of_the_leanest_peer_is_what_is_counted():
    """Liger's function as it is, but for its kernel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        liger = pytest.importorskip("liger_kernel.ops.fused_linear_jsd", exc_type=ImportError)
    sizes = Sizes(512, 8192, 64, 96, torch.bfloat16)
    problem = make_problem("linear", sizes, CPU)
    gradients = tuple(x.detach().requires_grad_() for x in problem.inputs)

    @torch.no_grad()  # as within a function's forward
    def run():
        return liger.fused_linear_jsd_forward(
            *gradients, *problem.teacher, problem.labels, 0.0, IGNORED, True, 1.0
        )

    with patch.object(liger, "dispatch", lambda name, logits, *rest, **options: (0 * logits, logits)):
        counted = peak_memory(run, CPU, scratch=False)
    assert counted == pytest.approx(model.liger_jsd_extra_bytes(sizes), rel=0.01)


def test_steps_follow_on_each_other_and_overlap_within():
    rates = Rates(100.0, 10.0)
    steps = [Step("a", 200.0, 1.0, 0.5), Step("b", 1.0, 30.0), Step("c", issue=4.0)]
    assert seconds(steps, rates) == 2 + 3 + 4
    assert seconds([], rates) == 0


def test_issue_slots_by_hand():
    """51 instructions of 1.24 · 10⁹ classes at 132 · 128 · 1.98 · 10⁹ a second: 1.9 ms."""
    classes = 8192 * 151_936
    found = model.bounds(H200, classes, COUNTED, 10)
    assert found["issue"] == pytest.approx(51 * classes / 3.345e13, rel=1e-3)
    assert found["special"] == pytest.approx(4 * classes / (132 * 16 * 1.98e9))
    assert found["half_rate"] == pytest.approx(18 * classes / (132 * 64 * 1.98e9))
    assert found["memory"] == pytest.approx(10 * classes / 4.8e12)
    assert model.bounds(H100, classes, COUNTED, 10)["issue"] == found["issue"]
    # 67 TFLOP/s in float32, as the data sheets have it.
    assert 2 * 132 * 128 * H100.clock == pytest.approx(67e12, rel=2e-3)
    assert H200.rates.matrix == pytest.approx(784e12, rel=0.01)
    assert H200.rates.copy == pytest.approx(4.3e12, rel=0.01)


@pytest.mark.parametrize("counted", [1.0, 0.25])
def test_operations_are_those_that_the_loss_needs(counted):
    sizes, setting = replace(ISSUE, counted=counted), Setting()
    for steps in (model.linear_steps(sizes, setting, H200), model.liger_kl_steps(ISSUE),
                  model.eager_steps(ISSUE, setting, linear=True)):  # fmt: skip
        wanted = ISSUE if steps[0].name != "rows that count, gathered" else sizes
        assert sum(step.operations for step in steps) == wanted.operations(setting)


def test_traffic_of_the_weight_s_gradient():
    """Bytes an entry: 4 of the first chunk, 8 of each other, 6 as it is rounded; 2 if there is one chunk."""
    v, h = ISSUE.vocabulary, ISSUE.student_hidden

    def of_weight(tokens):
        steps = model.linear_steps(replace(ISSUE, tokens=tokens), Setting(), H200)
        products = sum(step.bytes for step in steps if step.name == "∂L/∂W") - 2 * tokens * (v + h)
        return (products + steps[-1].bytes - 6 * tokens * h) / (v * h)

    assert of_weight(256) == 2
    assert of_weight(8192) == 4 + 4 * 8 + 6


def test_the_figures_of_the_benchmark(monkeypatch):
    """On an H100 the best peer leaves 1.37 to a loss that costs nothing, on an H200 a little less."""
    for gpu, best in ((H100, 1.37), (H200, 1.27)):
        figures = model.calculated_figures(ISSUE, gpu)
        assert figures["liger"] * figures["floor"] == pytest.approx(best, rel=0.02)
        assert 1 < figures["floor"] < 1.30
        assert figures["memory"] < 2.2 and figures["memory against eager"] < 1 / 14
        assert figures["forward"] == figures["forward unaligned"] == 1
        assert 0.25 < figures["quarter"] < 0.35 and figures["small"] < 1
    # Where instructions are what takes the time, a figure is above its floor.
    monkeypatch.setattr(model, "counts", lambda setting, shape: {"other": 200.0 if "50" in shape else 10.0})
    figures = model.calculated_figures(ISSUE, H200)
    assert figures["jsd"] == 1 < figures["jsd unaligned"]
    # The rates that were measured take the place of those that should be reached.
    assert model.calculated_figures(ISSUE, H200, Rates(1e15, 1e9))["floor"] > 10


def test_which_gpu_it_is():
    assert model.known_gpu("NVIDIA H200") is H200
    assert model.known_gpu("NVIDIA H100 80GB HBM3") is H100
    assert model.known_gpu("Tesla T4") is None


def test_limits():
    setting = Setting()
    floor = ISSUE.operations(setting) / 1e12
    # Memory without end: the floor of the products alone. Products for nothing: the bytes alone.
    nothing_issued = replace(H200, clock=1e30)
    steps = model.linear_steps(ISSUE, setting, nothing_issued)
    assert seconds(steps, Rates(1e12, 1e30)) == pytest.approx(floor)
    steps = model.given_steps(ISSUE, setting, nothing_issued)
    assert seconds(steps, Rates(1e12, 1e9)) == pytest.approx(ISSUE.traffic(setting) / 1e9)
    # A clock that stands still is what takes the time.
    slow = replace(H200, clock=1e6)
    assert seconds(model.given_steps(ISSUE, setting, slow), H200.rates) == pytest.approx(
        51 * 8192 * 151_936 / (132 * 128 * 1e6)
    )
    # A quarter of the tokens: a quarter of all that does not depend on the weights alone.
    quarter = seconds(model.linear_steps(replace(ISSUE, counted=0.25), setting, H200), H200.rates)
    assert 0.25 < quarter / seconds(model.linear_steps(ISSUE, setting, H200), H200.rates) < 0.3


def test_fewer_tokens_are_never_slower_than_eager():
    tokens = 256
    while tokens <= 8192:
        sizes = replace(ISSUE, tokens=tokens)
        ours = seconds(model.linear_steps(sizes, Setting(), H200), H200.rates)
        eager = seconds(model.eager_steps(sizes, Setting(), linear=True), H200.rates)
        assert ours < eager, tokens
        tokens *= 2
