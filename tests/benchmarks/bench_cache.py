"""What a step of distillation costs: from a cache, and with the teacher run at every step.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_cache.py

Times whole runs of `fit` on random pictures, the arms in turn, so that whatever else the machine does falls
on all of them. Each ratio is the median of the rounds' own ratios. Writing the cache is timed once, beside.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from kdlib.cache import cache_teacher
from kdlib.runtime import best_device
from kdlib.splits import Examples
from kdlib.training import fit
from kdlib.vision.loader import Augmentation, Loader
from kdlib.vision.nets import convnet


def pictures(count: int, size: int) -> Examples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return Examples(images, torch.arange(count) % 2, torch.arange(count))


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def synchronised_time(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def processor() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default=None, help="default: the best there is")
    chosen = parser.parse_args(arguments)

    device = torch.device(chosen.device) if chosen.device else best_device()
    torch.manual_seed(0)
    teacher = convnet([32, 64, 128], depth=2)
    data = Loader(pictures(chosen.examples, 32), Augmentation())
    settings = {"epochs": chosen.epochs, "batch_size": chosen.batch_size, "lr": 1e-3, "seed": 0}

    with tempfile.TemporaryDirectory() as folder:
        begun = synchronised_time(device)
        cached = cache_teacher(teacher, data, folder, epochs=chosen.epochs, seed=0, device=device)
        writing = synchronised_time(device) - begun
        arms = {"plain": None, "cached teacher": cached, "teacher at every step": teacher}
        seconds = {name: [] for name in arms}
        for number in range(chosen.rounds + 1):
            for name, source in arms.items():
                torch.manual_seed(1)
                student = convnet([12, 24, 48])
                begun = synchronised_time(device)
                history = fit(student, data, teacher=source, device=device, **settings)
                if number:  # the first round warms up
                    seconds[name].append((synchronised_time(device) - begun) / history.steps)

    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"{hardware}; {device.type}, {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {platform.system()}")
    print(f"student {parameters(student):,} parameters, teacher {parameters(teacher):,} "
          f"({parameters(teacher) / parameters(student):.1f} times)")
    print(f"{chosen.examples} pictures of 32×32, batches of {chosen.batch_size}, {chosen.epochs} epochs, "
          f"{chosen.rounds} rounds")
    print(f"{cached}; written in {writing:.2f} s\n")
    print("| arm | ms a step, median | against plain, median | least | most |\n|---|---|---|---|---|")
    for name, times in seconds.items():
        ratios = [t / plain for t, plain in zip(times, seconds["plain"], strict=True)]
        print(f"| {name} | {statistics.median(times) * 1e3:.2f} | {statistics.median(ratios):.2f} "
              f"| {min(ratios):.2f} | {max(ratios):.2f} |")


if __name__ == "__main__":
    main()
