"""Training on a GPU against training on the CPU: images a second, seconds an epoch, agreement of the loss.

    PYTHONPATH=tests python -m benchmarks.bench_training --out data/results/gpu_training.json

One run on a machine with an accelerator gives everything; without one it says so and stops. Times are of
`fit` itself, its crops, optimizer and bookkeeping included. The loss of the first steps is compared between
devices from the same weights, order and crops, in float32 and in bfloat16: later they part, as two runs that
differ by rounding do.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch

from kdlib.cost import time_call
from kdlib.course.studies.cat_or_dog_arms import Training, photo_recipe
from kdlib.data import Examples
from kdlib.runtime import best_device, describe_environment
from kdlib.storage import write_json
from kdlib.training import fit
from kdlib.vision.loader import Loader
from kdlib.vision.sketches import load_sketches

STEPS_COMPARED = 10


def seconds_of_an_epoch(
    training: Training, data: Examples, device: str, precision: str, rounds: int, batch_size: int
) -> list[float]:
    """Of `rounds` runs of one epoch, after one to warm up."""

    def epoch() -> None:
        torch.manual_seed(0)
        fit(
            training.build(), Loader(data, training.augmentation), epochs=1, lr=training.lr,
            batch_size=batch_size, device=device, precision=precision, seed=0,
        )  # fmt: skip

    return time_call(epoch, device, repeats=rounds, warm_up=1)


def first_losses(training: Training, data: Examples, device: str, precision: str) -> list[float]:
    """Mean loss of each of the first steps: one epoch each of a run whose epochs are one batch."""
    torch.manual_seed(0)
    model = training.build()
    batch = data[:64]
    history = fit(
        model, Loader(batch, training.augmentation), epochs=STEPS_COMPARED, lr=1e-4, batch_size=64,
        device=device, precision=precision, seed=0,
    )  # fmt: skip
    return history.loss


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", help="default: the best there is")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    device = given.device or best_device().type
    data = load_sketches(given.examples, 1, 1, size=64).train
    recipe = photo_recipe(64)
    throughput: dict[str, dict] = {}
    results: dict[str, object] = {
        "environment": describe_environment(), "device": device, "throughput": throughput,
    }  # fmt: skip
    for name, training in (("teacher", recipe.teacher), ("student", recipe.student)):
        for precision in ("no",) if device == "cpu" else ("no", "bf16"):
            seconds = seconds_of_an_epoch(training, data, device, precision, given.rounds, given.batch_size)
            median = statistics.median(seconds)
            throughput[f"{name}, {precision}"] = {
                "images_per_second": len(data) / median,
                "seconds_per_epoch": median,
                "fastest": min(seconds),
                "slowest": max(seconds),
            }
            print(f"{name}, {precision}: {len(data) / median:,.0f} images/s, {median:.2f} s an epoch")
    if device == "cpu":
        print("no accelerator: nothing to compare the CPU with", file=sys.stderr)
    else:
        student = recipe.student
        cpu = first_losses(student, data, "cpu", "no")
        for precision in ("no", "bf16"):
            other = first_losses(student, data, device, precision)
            gap = max(abs(a - b) / abs(a) for a, b in zip(cpu, other, strict=True))
            results[f"largest_relative_gap_of_loss_{precision}"] = gap
            print(f"loss of {STEPS_COMPARED} steps on {device}, {precision}, against CPU: within {gap:.2e}")
    if given.out:
        write_json(given.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
