"""Measure the loss beside its peers: time, memory, shares of what this machine can do, errors.

    python -m kdlib bench
    python -m kdlib bench linear masked --divergences forward jsd --out results
    python -m kdlib bench training loader

All contenders of a task run in turn in the same rounds. Peers that are not installed are told so in their
row; the extra "bench" brings them: `pip install -e ".[bench]"` in the course's folder.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import arguments
from benchmarks.contenders import versions_of_peers
from benchmarks.problems import Setting, Sizes
from benchmarks.report import as_csv, figure, text_table
from benchmarks.tasks import TASKS, Request, measure_rates
from kdlib.course.figures import png
from kdlib.runtime import best_device, describe_environment
from kdlib.storage import replaced, write_json

__all__ = ["default_sizes", "describe_run", "main", "title_of", "write_all"]

_DTYPES = {name: getattr(torch, name) for name in arguments.DTYPES}


def default_sizes(device: torch.device) -> Sizes:
    """R1-Distill-Qwen-1.5B as student and 7B as teacher on an accelerator; a 75th of that on a CPU."""
    if device.type == "cpu":
        return Sizes(2048, 32_768, 256, 512, torch.float32)
    return Sizes(8192, 151_936, 1536, 3584, torch.bfloat16)


def describe_run(asked: Request) -> dict[str, object]:
    """Where and what was measured, as JSON."""
    return {
        "environment": describe_environment() | versions_of_peers(),
        "device": asked.device.type,
        "sizes": asdict(asked.sizes) | {"dtype": str(asked.sizes.dtype).removeprefix("torch.")},
        "temperature": asked.temperature,
        "alpha": asked.alpha,
        "rounds": asked.rounds,
        "checked_tokens": asked.checked,
        "rates": asdict(asked.rates),
    }


def write_all(stem: Path, results: dict, rows: Sequence, title: str) -> list[Path]:
    """STEM.json, STEM.csv and, if there is something to draw, STEM.png."""
    paths = [stem.with_suffix(".json"), stem.with_suffix(".csv")]
    write_json(paths[0], results | {"rows": [asdict(row) for row in rows]})
    with replaced(paths[1]) as file:
        file.write(as_csv(rows).encode())
    drawn = figure([row for row in rows if row.task in ("linear", "logits")], title)
    if drawn is not None:
        paths.append(stem.with_suffix(".png"))
        with replaced(paths[2]) as file:
            file.write(png(drawn))
    return paths


def title_of(asked: Request) -> str:
    sizes = asked.sizes
    dtype = str(sizes.dtype).removeprefix("torch.")
    return f"{sizes.tokens:,} tokens, {sizes.vocabulary:,} logits, {dtype}, {asked.device.type.upper()}"


def favours_eager(asked: Request) -> bool:
    """Whether the logits are fewer than in the problem that is usual on the device."""
    usual = default_sizes(asked.device)
    return asked.sizes.tokens * asked.sizes.vocabulary < usual.tokens * usual.vocabulary


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m kdlib bench`: run, print the table, write the results."""
    # It warns of a CUDA_HOME on a machine whose GPU is not used; a peer asks it as it is imported.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    given, asked = _asked(argv)
    rows, written = [], []
    with tqdm(unit="step", disable=None) as bar:
        for name in dict.fromkeys(given.tasks):
            bar.set_description(name)
            rows += TASKS[name](Request(**vars(asked) | {"on_done": bar.update}))
            if given.out is not None:  # after each task: what was measured is not lost with the next
                written = write_all(given.out / "results", describe_run(asked), rows, title_of(asked))
    rounds = f"{asked.rounds} round{'s' * (asked.rounds > 1)}"
    print(f"{title_of(asked)}, T = {asked.temperature:g}, α = {asked.alpha:g}, {rounds}")
    if favours_eager(asked):
        print(
            "These sizes are small, which favours eager PyTorch: what the losses of kdlib save grows with "
            "the tokens and the vocabulary. The task sizes shows from where on."
        )
    print(
        f"measured: {asked.rates.matrix / 1e12:.3g} TFLOP/s in matrix products, "
        f"{asked.rates.copy / 1e9:.3g} GB/s in copies"
    )
    print(text_table(rows))
    for path in written:
        print(path)
    return 0


def _asked(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Request]:
    parser = arguments.parser()
    given = parser.parse_args(argv)
    unknown = [name for name in given.tasks if name not in TASKS]
    if unknown:
        parser.error(f"no task {', '.join(unknown)}; expected some of {', '.join(TASKS)}")
    try:
        device = torch.device(given.device) if given.device else best_device()
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an AssertionError where PyTorch is built without it
        parser.error(f"--device {given.device}: {str(error).splitlines()[0]}")
    on_cpu = device.type == "cpu"
    usual = default_sizes(device)
    names = ("tokens", "vocabulary", "student_hidden", "teacher_hidden")
    chosen = {name: getattr(usual, name) if (v := getattr(given, name)) is None else v for name in names}
    rounds = given.rounds if given.rounds is not None else (3 if on_cpu else 10)
    if rounds < 1:
        parser.error(f"--rounds {rounds}: expected at least 1")
    divergences = given.divergences or (("forward",) if on_cpu else ("forward", "reverse", "jsd"))
    try:
        sizes = Sizes(**chosen, dtype=_DTYPES[given.dtype] if given.dtype else usual.dtype)
        for name in divergences:
            Setting(name, given.temperature, given.alpha)
    except ValueError as error:
        parser.error(str(error))
    return given, Request(
        device, sizes, measure_rates(device, sizes.dtype), tuple(dict.fromkeys(divergences)),
        given.temperature, given.alpha, rounds, checked=64 if on_cpu else 512,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
