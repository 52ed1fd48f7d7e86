"""What a model costs to run: parameters, arithmetic, time, memory."""

import gc
import os
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import psutil  # accelerate brings it
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from kdlib.arguments import check_whole, refuse
from kdlib.runtime import eval_mode


@dataclass(frozen=True)
class Cost:
    """One forward pass without gradients.

    Operations are those of matrix products, convolutions and attention, as torch's FlopCounterMode counts
    them: a multiply and an add are two.
    """

    parameters: int
    flops: int
    latency: float  # median of the seconds
    latency_low: float  # 10th percentile
    latency_high: float  # 90th percentile
    weight_bytes: int  # of parameters and buffers
    working_bytes: int  # the most held by tensors made during the pass, outputs included
    batch: int  # examples in the pass
    device: str

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters, {self.flops / 1e6:.3g} MFLOP, "
            f"{self.latency * 1e3:.3g} ms [{self.latency_low * 1e3:.3g}, {self.latency_high * 1e3:.3g}], "
            f"{self.weight_bytes / 1e6:.3g} MB of weights, {self.working_bytes / 1e6:.3g} MB of work, "
            f"batch {self.batch} on {self.device}"
        )


def measure_cost(model: nn.Module, example: Tensor, *, repeats: int = 50) -> Cost:
    """Measure one forward pass of `model`, in eval mode and without gradients.

    Args:
        model: any module that takes the example alone; its mode is restored.
        example: a batch of inputs (N, …) on the model's device, for which time and memory hold.
        repeats: timed passes, at least two, after five to warm up.

    Raises:
        ValueError: an argument of another kind, or an example that is not where the model is.
    """
    check_whole("repeats", repeats, least=2)
    if not isinstance(model, nn.Module):
        refuse("model", model, "a torch.nn.Module")
    if not isinstance(example, Tensor) or not example.dim() or not len(example):
        refuse("example", example, "a tensor (N, …), a batch of inputs")
    device = example.device
    if elsewhere := {str(weight.device) for weight in model.parameters()} - {str(device)}:
        raise ValueError(f"example is on {device}, the model on {', '.join(elsewhere)}; expected one device")
    with eval_mode(model), torch.inference_mode():
        with _attention_as_written(), FlopCounterMode(display=False) as counter:
            model(example)
        seconds = time_call(lambda: model(example), device, repeats=repeats, warm_up=5)
        # Scratch memory differs from one machine to another; this figure is the same on all of them.
        working = peak_memory(lambda: model(example), device, scratch=False)
    low, *_, high = statistics.quantiles(seconds, n=10, method="inclusive")
    parameters = list(model.parameters())
    return Cost(
        parameters=sum(p.numel() for p in parameters), flops=counter.get_total_flops(),
        latency=statistics.median(seconds), latency_low=low, latency_high=high,
        weight_bytes=sum(t.nbytes for t in (*parameters, *model.buffers())), working_bytes=working,
        batch=len(example), device=device.type,
    )  # fmt: skip


@contextmanager
def _attention_as_written() -> Iterator[None]:
    """Without the single operator that eval mode makes of attention, inside which nothing is counted."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def time_call(
    call: Callable[[], object], device: torch.device | str = "cpu", *, repeats: int, warm_up: int = 2
) -> list[float]:
    """Seconds of each of `repeats` calls after the warm-up, until the device has finished the work."""
    device = torch.device(device)
    seconds = []
    for _ in range(warm_up + repeats):
        _synchronize(device)
        start = time.perf_counter()
        call()
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds[warm_up:]


def peak_memory(
    call: Callable[[], object], device: torch.device | str = "cpu", *, scratch: bool = True
) -> int:
    """The most bytes allocated at one moment of a call, its result included, above those held before it.

    By the allocators of CUDA and the CPU. On other devices, and with scratch=False on the CPU, the tensors
    that operators return are added up, without the memory that operators use inside.
    """
    device = torch.device(device)
    gc.collect()  # what is freed in the call must have been allocated in it
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type == "cpu" and scratch:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it reports its start and end on stderr
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
            call()
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        return max(accumulate(sizes, initial=0))
    with _LiveTensors() as live:
        call()
    return live.peak


def process_peak(device: torch.device) -> int:
    """Bytes at the fullest moment of this process: of tensors on a CUDA device, else of resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    # In kilobytes on Linux, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class _LiveTensors(TorchDispatchMode):
    """Adds up the storages that operators create and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._held = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in known:
                self._add(tensor.untyped_storage().nbytes())
                weakref.finalize(tensor.untyped_storage(), self._add, -tensor.untyped_storage().nbytes())
        return result

    def _add(self, size: int) -> None:
        self._held += size
        self.peak = max(self.peak, self._held)
