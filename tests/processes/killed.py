"""Trains once undisturbed, and once for each of several moments at which the process is killed, and resumed.

A process tells the parent through a pipe where it is, and stands still at its moment: there it is killed.
Each has a folder of its own, FOLDER/undisturbed and FOLDER/MOMENT, which then holds `log.jsonl` and
`result.safetensors`: weights, and as metadata the history. FOLDER/kills.json says what was found.
"""

import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from forks import InTwoParts, telling, told_to_the_end, told_until

from kdlib import checkpoint, storage
from kdlib.data import Examples
from kdlib.losses.kd import kd_loss
from kdlib.storage import save_tensors
from kdlib.training import fit
from kdlib.vision.loader import Augmentation, Loader
from kdlib.vision.nets import convnet

EXAMPLES, BATCH, EPOCHS, EVERY = 29, 8, 6, 3  # four steps an epoch, the last of five examples

# The moments, and the last occurrence of each at which it may happen. "step": inside a step, the loss is
# computed; "backward": its gradients are; "checkpoint torn": half of the bytes are on the disk, under
# another name; "checkpoint unnamed": all of them are; "checkpoint": it has its name; "log torn": half of a
# line is in the log; "log": all of it is; "epoch": the epoch is closed, and not yet in a checkpoint.
MOMENTS = {
    "step": 23, "backward": 23, "checkpoint torn": 8, "checkpoint unnamed": 8, "checkpoint": 7,
    "log torn": 6, "log": 6, "epoch": 5,
}  # fmt: skip


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
        student_logits.register_hook(lambda gradient: tell("backward"))
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
        announce(tell)
        train(folder, tell)

    return telling(work, stand_still)


def announce(tell: Callable[[str], None]) -> None:
    """Make this process tell of the moments around its writing."""
    replace, close_epoch = os.replace, checkpoint.Run.close_epoch

    def telling_replace(source, target):
        if Path(target).name != "run.safetensors":  # the log, or the result
            return replace(source, target)
        tell("checkpoint unnamed")
        replace(source, target)
        tell("checkpoint")

    def telling_close(run, validate):
        close_epoch(run, validate)
        tell("epoch")

    storage.os.replace = telling_replace
    storage.open = lambda path, mode, buffering=0: opened(path, mode, tell)
    checkpoint.Run.close_epoch = telling_close


def opened(path: Path, mode: str, tell: Callable[[str], None]):
    """A file; a checkpoint or a line of the log goes into it in two parts."""
    file = open(path, mode, buffering=0)  # noqa: SIM115
    kind = "log" if mode == "a+b" else "checkpoint" if "run.safetensors" in Path(path).name else None
    if kind is None:
        return file

    def half(length: int) -> int:
        return length // 2

    def whole() -> None:
        if kind == "log":
            tell("log")

    return InTwoParts(file, half, lambda: tell(f"{kind} torn"), whole)


def killed(folder: Path, moment: str, count: int) -> dict[str, object]:
    """Train until the moment and kill: what had been told by then, and what was there."""
    child, pipe = process(folder, (moment, count))
    told = told_until(pipe, moment, count).decode().split("\n")[:-1]
    other, pipe_of_other = process(folder)  # while the first stands still, and holds its files
    told_to_the_end(pipe_of_other)
    _, refused = os.waitpid(other, 0)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    told += told_to_the_end(pipe).decode().split("\n")[:-1]
    log = folder / "log.jsonl"
    return {
        "moment": moment,
        "refused": os.waitstatus_to_exitcode(refused) == 1,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "steps": told.count("step"),
        "last": told[-1] if told else None,
        "leftovers": [path.stat().st_size for path in folder.glob(".*.part")],
        "torn log": log.exists() and not log.read_bytes().endswith(b"\n") and log.stat().st_size > 0,
        "done": (folder / "result.safetensors").exists(),
    }


def finished(folder: Path) -> int:
    """Train to the end; the number of steps it took."""
    child, pipe = process(folder)
    told = told_to_the_end(pipe)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("training failed")
    return told.decode().split("\n").count("step")


def main(folder: Path, seed: int) -> None:
    """A kill and a resumption for each moment, whose occurrence follows from the seed."""
    chance = random.Random(seed)
    for name in ("undisturbed", *MOMENTS):
        (folder / name).mkdir(parents=True)
    steps, kills = finished(folder / "undisturbed"), []
    for moment, last in MOMENTS.items():
        kills.append(killed(folder / moment, moment, chance.randint(1, last)))
        kills[-1]["resumed"] = finished(folder / moment)
    size = (folder / "undisturbed" / "run.safetensors").stat().st_size
    (folder / "kills.json").write_text(json.dumps({"steps": steps, "size": size, "kills": kills}))
