"""What a model costs to run: parameters, arithmetic, time, memory."""

import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from kdlib.runtime import eval_mode

__all__ = ["Cost", "measure_cost"]


@dataclass(frozen=True)
class Cost:
    """One forward pass without gradients.

    Attributes:
        parameters: number of weights.
        flops: floating-point operations of matrix products, convolutions and attention (a multiply and
            an add count two), as torch's FlopCounterMode counts them.
        latency: median seconds.
        latency_low, latency_high: 10th and 90th percentile of the seconds.
        weight_bytes: memory of parameters and buffers.
        working_bytes: highest memory held by tensors made during the pass, outputs included, the model
            and the example not.
        batch: examples in the pass.
        device: where it ran.
        threads: CPU threads PyTorch used.
    """

    parameters: int
    flops: int
    latency: float
    latency_low: float
    latency_high: float
    weight_bytes: int
    working_bytes: int
    batch: int
    device: str
    threads: int

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters, {self.flops / 1e6:.3g} MFLOP, "
            f"{self.latency * 1e3:.3g} ms [{self.latency_low * 1e3:.3g}, {self.latency_high * 1e3:.3g}], "
            f"{self.weight_bytes / 1e6:.3g} MB of weights, {self.working_bytes / 1e6:.3g} MB of work, "
            f"batch {self.batch} on {self.device}"
        )


def measure_cost(model: nn.Module, example: Tensor, *, repeats: int = 50) -> Cost:
    """Measure one forward pass of `model` on `example`, in eval mode and without gradients.

    Args:
        model: any module that takes the example alone; it stays on its device, its mode is restored.
        example: a batch of inputs (N, …) on the model's device. Time and memory hold for this batch.
        repeats: timed passes after five to warm up.

    Raises:
        ValueError: fewer than two repeats, or example and model on different devices.
    """
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2 to show a spread; got {repeats}")
    parameters = list(model.parameters())
    device = parameters[0].device if parameters else example.device
    if example.device != device:
        raise ValueError(f"example is on {example.device} but the model is on {device}")

    with eval_mode(model), torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            model(example)
        seconds = _timed(lambda: model(example), device, repeats)
        working = _peak_extra_bytes(lambda: model(example), device)

    deciles = statistics.quantiles(seconds, n=10, method="inclusive")
    stored = [*parameters, *model.buffers()]
    return Cost(
        parameters=sum(p.numel() for p in parameters),
        flops=counter.get_total_flops(),
        latency=statistics.median(seconds),
        latency_low=deciles[0],
        latency_high=deciles[-1],
        weight_bytes=sum(t.numel() * t.element_size() for t in stored),
        working_bytes=working,
        batch=len(example),
        device=device.type,
        threads=torch.get_num_threads(),
    )


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _timed(run: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    for _ in range(5):
        run()
    seconds = []
    for _ in range(repeats):
        _wait_for(device)
        start = time.perf_counter()
        run()
        _wait_for(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def _peak_extra_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Highest memory allocated during the call, above what was allocated before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveTensors() as live:
        run()
    return live.peak


class _LiveTensors(TorchDispatchMode):
    """Adds up the storages that operators create and that are still alive.

    Other devices keep no peak that can be reset. Scratch memory inside an operator is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._held = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in known:
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        self._held += storage.nbytes()
        self.peak = max(self.peak, self._held)
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self._held -= size
