"""Are the figures that the loss is to reach reached on this machine?

    PYTHONPATH=tests python -m benchmarks.bench_loss --out data/results

One run takes all of them: on a GPU in under eight minutes (bfloat16, 8,192 tokens, 151,936 logits), on a
CPU at a small size. It prints what `python -m kdlib bench` prints, then "figure to reach / calculated /
measured / reached", and stores both as loss_cuda.json (.csv, .png) or loss_cpu.json. Calculated are those
of an H100 and an H200, by `benchmarks.model` from the rates that were measured in this run. Parts for which
the time does not suffice are left out, the most important come first; their figures are "not measured".
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.__main__ import default_sizes, describe_run, title_of, write_all
from benchmarks.contenders import contenders
from benchmarks.measuring import memory_let_go
from benchmarks.model import calculated_figures, known_gpu
from benchmarks.problems import make_problem
from benchmarks.race import Row, arms_in_turn
from benchmarks.report import text_table
from benchmarks.targets import judged_targets, targets_table
from benchmarks.tasks import TASKS, Request, measure_rates
from kdlib.runtime import best_device

# In the order of their importance; "warps" has no figure to reach and says which setting is best.
PARTS = {
    "cpu": ("linear forward", "training", "logits forward"),
    "cuda": (
        "linear forward", "logits forward", "logits jsd", "logits reverse", "shapes", "masked forward",
        "sizes forward", "warps", "linear jsd", "linear reverse", "training",
    ),
}  # fmt: skip


@contextmanager
def large_rows_on(warps: int) -> Iterator[None]:
    """The kernels with another number of warps for rows of more than 1,024 classes."""
    from kdlib.losses import kernels

    before = kernels.MOST_WARPS
    kernels.MOST_WARPS = warps
    try:
        yield
    finally:
        kernels.MOST_WARPS = before


def warps(asked: Request) -> list[Row]:
    """Given logits: the loss with 4, 8 and 16 warps a row, for each divergence."""
    ours = contenders("logits")[-1]
    rows = []
    for setting in asked.settings():
        with memory_let_go(asked.device):
            problem = make_problem("logits", asked.sizes, asked.device)
            loss = ours.make(setting, asked.device)

            def on(count: int, loss=loss, problem=problem) -> Callable[[], None]:
                def run() -> None:
                    with large_rows_on(count):
                        ours.run(loss, problem)

                return run

            arms = {f"{count} warps": on(count) for count in (4, 8, 16)}
            rows += arms_in_turn("warps", setting.divergence, arms, asked.device, rounds=asked.rounds)
            del arms, loss, problem
    return rows


def main(arguments: list[str] | None = None) -> int:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the folder for the results")
    parser.add_argument("--device", help="default: the best there is")
    parser.add_argument("--rounds", type=int, help="GPU: 10, CPU: 5")
    parser.add_argument("--minutes", type=float, default=8.0, help="to end in (%(default)s)")
    parser.add_argument("--parts", nargs="+", metavar="PART", help='such as "linear forward"; default: all')
    parser.add_argument("--tokens", type=int, help="fewer, to see that it runs: then nothing is judged")
    parser.add_argument("--vocabulary", type=int, help="smaller, likewise")
    given = parser.parse_args(arguments)
    device = torch.device(given.device) if given.device else best_device()
    kind = "cpu" if device.type == "cpu" else "cuda"
    usual = default_sizes(device)
    smaller = {name: v for name in ("tokens", "vocabulary") if (v := getattr(given, name)) is not None}
    sizes = replace(usual, **smaller)
    rounds = given.rounds or (5 if kind == "cpu" else 10)
    every = ("forward", "reverse", "jsd")
    asked = Request(device, sizes, measure_rates(device, sizes.dtype), every, rounds=rounds,
                    checked=64 if kind == "cpu" else 512)  # fmt: skip
    gpu = known_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    calculated = None if gpu is None else calculated_figures(sizes, gpu, asked.rates)
    rows: list[Row] = []
    left_out: list[str] = []
    written: list[Path] = []
    longest = 0.0
    for part in given.parts or PARTS[kind]:
        start = time.monotonic()
        # A part may take as long as the longest so far.
        if start - begun + longest > 60 * given.minutes:
            left_out.append(part)
            continue
        name, _, divergence = part.partition(" ")
        task = warps if name == "warps" else TASKS[name]
        rows += task(replace(asked, divergences=(divergence,) if divergence else every))
        longest = max(longest, time.monotonic() - start)
        print(f"{part}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        results = describe_run(asked) | {"left_out": left_out, "seconds": time.monotonic() - begun}
        targets = [] if smaller else judged_targets(rows, device.type, calculated)
        results["figures_to_reach"] = [target.as_json() for target in targets]
        if given.out:  # after each part: what was measured is not lost with the next
            written = write_all(given.out / f"loss_{device.type}", results, rows, title_of(asked))
    print(f"{title_of(asked)}, {rounds} rounds, {torch.get_num_threads()} threads")
    print(f"measured: {asked.rates.matrix / 1e12:.3g} TFLOP/s in products, {asked.rates.copy / 1e9:.3g} GB/s")
    print(text_table(rows), "\n")
    if smaller:
        print(f"not judged: {' and '.join(smaller)} not as the figures have it")
    else:
        print(targets_table(targets))
    if left_out:
        print(f"left out, for time: {', '.join(left_out)}")
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
