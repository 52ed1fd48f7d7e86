"""What `python -m kdlib bench` is told, read before anything slow is imported."""

import argparse
from pathlib import Path

DESCRIPTION = """\
Measure the loss beside its peers: time, memory, shares of what this machine can do, errors.

    python -m kdlib bench
    python -m kdlib bench linear masked --divergences forward jsd --out results
    python -m kdlib bench training loader

All contenders of a task run in turn in the same rounds. Peers that are not installed are told so in their
row; the extra "bench" brings them: `pip install -e ".[bench]"` in the course's folder.
"""

# The tasks, as the functions of `benchmarks.tasks` say.
SUMMARIES = {
    "linear": "From hidden states to loss and gradients.",
    "logits": "From given logits to loss and gradient.",
    "shapes": "Ours on given logits with an odd number of classes, and on a view of wider ones.",
    "masked": "Ours with a quarter of the tokens counting, against all of them.",
    "sizes": "Ours and eager PyTorch from 256 tokens up to what is asked, doubling.",
    "training": "A step of training with a cached and with a live teacher, against one without; pictures "
    "and texts.",
    "loader": "Batches of pictures from memory on the device, against torch's DataLoader with worker "
    "processes.",
    "notebooks": "Whole notebooks, each in a fresh kernel: minutes each.",
}
DEFAULT_TASKS = ("linear", "logits")
DTYPES = ("float32", "bfloat16", "float16")


def parser() -> argparse.ArgumentParser:
    """Its options; what depends on the device is left to be asked for there."""
    parser = argparse.ArgumentParser(
        prog="python -m kdlib bench", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("tasks", nargs="*", metavar="TASK", default=list(DEFAULT_TASKS),
        help="; ".join(f"{name}: {text}" for name, text in SUMMARIES.items())
        + f" (default: {' '.join(DEFAULT_TASKS)})")
    add("--tokens", type=int, help="tokens of the batch (GPU: 8192; CPU: 2048)")
    add("--vocabulary", type=int, help="logits of a token (GPU: 151936; CPU: 32768)")
    add("--student-hidden", type=int, help="width of the student's hidden states (GPU: 1536; CPU: 256)")
    add("--teacher-hidden", type=int, help="width of the teacher's (GPU: 3584; CPU: 512)")
    add("--dtype", choices=DTYPES, help="of all that is given (GPU: bfloat16; CPU: float32)")
    add("--device", help="default: the best there is")
    add("--divergences", nargs="+", choices=("forward", "reverse", "jsd"),
        help="(GPU: all three; CPU: forward)")
    add("--temperature", type=float, default=1.0,
        help="T (%(default)s, at which peers whose loss lacks T² need no factor)")
    add("--alpha", type=float, default=0.0,
        help="weight of the hard label (%(default)s: some peers have no hard term)")
    add("--rounds", type=int, help="timed runs of each contender (GPU: 10; CPU: 3)")
    add("--out", type=Path, metavar="FOLDER", help="write results.json, results.csv and results.png there")
    return parser
