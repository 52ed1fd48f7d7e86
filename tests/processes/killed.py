"""Trains once undisturbed, then once more with a SIGKILL at each of several moments, in real processes.

A process tells the parent through a pipe where it is, and is killed a random while after a moment chosen
beforehand. FOLDER/undisturbed and FOLDER/killed then hold `log.jsonl` and `result.safetensors`: weights, and
as metadata the history. FOLDER/kills.json says how each process ended.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from forks import telling, told_to_the_end, told_until

from kdlib import checkpoint, storage
from kdlib.data import Examples
from kdlib.losses.kd import kd_loss
from kdlib.storage import save_tensors
from kdlib.training import fit
from kdlib.vision.loader import Augmentation, Loader
from kdlib.vision.nets import convnet

EXAMPLES, BATCH, EPOCHS, EVERY = 29, 8, 30, 3  # four steps an epoch, the last of five examples

# After how many occurrences of which moment the process is killed, and up to how many seconds later.
# "step": a step computes its loss, and goes on; at the others, which would be too short to hit, the process
# stands still until it is killed. "writing": the bytes of a checkpoint are on the disk, under another name;
# "written": it has its name; "logged": the epoch has its line in the log, and no checkpoint yet.
PLAN = [
    ("step", 1, 0.0), ("writing", 1, 0.0), ("step", 4, 0.02), ("written", 1, 0.0), ("writing", 2, 0.0),
    ("logged", 1, 0.0), ("step", 8, 0.02), ("step", 3, 0.01), ("written", 2, 0.0), ("step", 6, 0.02),
]  # fmt: skip


def pictures(count: int, seed: int, *, noise: float) -> Examples:
    """Two classes that differ in the balance of two colours; `noise` is the share of wrong labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 200, (count, 3, 12, 12), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    images[labels == 1, 0] += 12
    wrong = torch.rand(count, generator=generator) < noise
    return Examples(images, torch.where(wrong, 1 - labels, labels), torch.arange(count))


def train(folder: Path, tell: Callable[[str], None]) -> None:
    """The whole run, from whatever checkpoint the folder holds."""

    def loss(student_logits, teacher_logits, labels):
        tell("step")
        return kd_loss(student_logits, teacher_logits, labels, temperature=2.0)

    torch.manual_seed(0)
    student, teacher = convnet([6, 8], dropout=0.3), convnet([8], dropout=0.5)
    history = fit(
        student,
        Loader(pictures(EXAMPLES, 1, noise=0.2), Augmentation(flip=True, crop=2, cutout=4)),
        teacher=teacher,
        loss=loss,
        epochs=EPOCHS,
        lr=3e-2,
        batch_size=BATCH,
        clip=1.0,
        validation=pictures(40, 2, noise=0.4),
        watch={"agreement": lambda s, t, y: (s.argmax(-1) == t.argmax(-1)).float().mean()},
        device="cpu",
        checkpoint=folder / "run.safetensors",
        checkpoint_every=EVERY,
        log=folder / "log.jsonl",
        seed=3,
    )
    record = asdict(history)
    record["validation"] = [{**s, "correct": s["correct"].tolist()} for s in record["validation"]]
    save_tensors(folder / "result.safetensors", student.state_dict(), {"history": record})


def process(folder: Path, stand_still: tuple[str, int] | None = None) -> tuple[int, int]:
    """A fork that trains, and the end of the pipe that it tells its moments to."""

    def work(tell: Callable[[str], None]) -> None:
        announce(folder, tell)
        train(folder, tell)

    return telling(work, stand_still)


def announce(folder: Path, tell: Callable[[str], None]) -> None:
    """Make this process tell of the moments around its writing."""
    replace, close_epoch = os.replace, checkpoint.Run.close_epoch

    def telling_replace(source, target):
        if Path(target) != folder / "run.safetensors":  # the log, or the result
            return replace(source, target)
        tell("writing")
        replace(source, target)
        tell("written")

    def telling_close(run, validate):
        close_epoch(run, validate)
        tell("logged")

    storage.os.replace = telling_replace
    checkpoint.Run.close_epoch = telling_close


def killed(folder: Path, moment: str, count: int, delay: float) -> dict[str, object]:
    """Train until the moment, wait, kill: what the process had told by then, and how it ended."""
    child, pipe = process(folder, (moment, count) if moment != "step" else None)
    told = told_until(pipe, moment, count)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    told += told_to_the_end(pipe)
    told = told.decode().split()
    return {
        "moment": moment,
        "delay": delay,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "steps": told.count("step"),
        "last": told[-1] if told else None,
        "leftovers": len(list(folder.glob(".*.part"))),
        "done": (folder / "result.safetensors").exists(),
    }


def finished(folder: Path) -> int:
    """Train to the end; the number of steps it took."""
    child, pipe = process(folder)
    told = told_to_the_end(pipe)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("training failed")
    return told.decode().split().count("step")


def main(folder: Path, seed: int) -> None:
    """Ten kills, at moments that follow from the seed and delays that do not quite."""
    chance = random.Random(seed)
    for name in ("undisturbed", "killed"):
        (folder / name).mkdir(parents=True)
    steps = finished(folder / "undisturbed")
    plan = [(m, chance.randint(1, 2 * n - 1), chance.uniform(0, d)) for m, n, d in PLAN]
    chance.shuffle(plan)
    kills = [killed(folder / "killed", *moment) for moment in plan]
    last = finished(folder / "killed")
    (folder / "kills.json").write_text(json.dumps({"steps": steps, "last": last, "kills": kills}))
