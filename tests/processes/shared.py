"""Trains in one process, and in two that share each batch; each leaves what it saw and came to in files.

The processes have the environment that torchrun sets.
FOLDER/one/0 and FOLDER/two/{0,1} hold one safetensors file for each function of `RUNS`.
"""

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from forks import group
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kdlib.data import Examples
from kdlib.losses.kd import kd_loss
from kdlib.runtime import accelerated, best_device
from kdlib.storage import save_tensors
from kdlib.training import fit
from kdlib.vision.loader import Augmentation, Loader
from kdlib.vision.nets import convnet


def pictures(count: int, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Examples(images, torch.randint(0, 3, (count,), generator=generator), torch.arange(count))


def network(seed: int = 0, width: int = 6) -> nn.Sequential:
    """No batch normalisation, whose statistics are each process's own, and no dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.GroupNorm(2, width), nn.Tanh(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 3),
    )  # fmt: skip


def agreement(student_logits, teacher_logits, labels):
    return (student_logits.softmax(-1) - teacher_logits.softmax(-1)).abs().mean()


def run(name: str, here: Path, student: nn.Module | None = None, **changed) -> None:
    """One call of fit, with the gradient of each step as the optimizer got it; an error takes its place."""
    student, gradients, error = student or network(), [], None

    def note(optimizer, *_):
        gradients.append(torch.cat([p.grad.flatten() for p in optimizer.param_groups[0]["params"]]))

    handle = register_optimizer_step_pre_hook(note)
    settings = {
        "data": Loader(pictures(29), Augmentation(crop=2, cutout=2)),
        "teacher": network(7, 8), "epochs": 3, "lr": 1e-2, "batch_size": 8, "seed": 5, "device": "cpu",
    }  # fmt: skip
    history = None
    try:
        history = fit(student, **{**settings, **changed})
    except (ValueError, FloatingPointError, InterruptedError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    finally:
        handle.remove()
    record = asdict(history) if history else {}
    record["validation"] = [(s["accuracy"], s["nll"], s["ece"]) for s in record.get("validation", [])]
    tensors = {f"gradient/{n:03}": g for n, g in enumerate(gradients)}
    tensors |= {f"weights/{n}": w for n, w in student.state_dict().items()}
    metadata = {"history": record, "error": error, "patched": "forward" in vars(student)}
    save_tensors(here / f"{name}.safetensors", tensors, metadata)


def five_in_the_last_batch(here: Path, folder: Path) -> None:
    run("five", here, clip=0.05, watch={"gap": agreement}, validation=pictures(20, 1))


def one_in_the_last_batch(here: Path, folder: Path) -> None:
    run("single", here, data=pictures(33), watch={"gap": agreement})


def interrupted_and_resumed(here: Path, folder: Path) -> None:
    settings = {"validation": pictures(20, 1), "checkpoint_every": 3, "watch": {"gap": agreement}}
    run("whole", here, **settings, loss=Interrupted(None))
    settings |= {"checkpoint": folder / "run.safetensors", "log": folder / "log.jsonl"}
    run("first", here, **settings, loss=Interrupted(7))
    run("resumed", here, **settings, loss=Interrupted(None))


class Interrupted:
    def __init__(self, after: int | None) -> None:
        self.left = after

    def __call__(self, student_logits, teacher_logits, labels):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise InterruptedError("by the test")
        return kd_loss(student_logits, teacher_logits, labels)


def resumed_from_one_process(here: Path, folder: Path) -> None:
    # The checkpoint that one process left after seven steps, taken up by however many there are now.
    left = folder.parent / "one" / "left.safetensors"
    path = folder / "taken.safetensors"
    if folder.name == "one":
        run("left", here, checkpoint=left, checkpoint_every=3, loss=Interrupted(7))
    if here.name == "0":
        path.write_bytes(left.read_bytes())
    wait(path)
    run("taken", here, checkpoint=path, checkpoint_every=100, loss=Interrupted(None))


def wait(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def batch_normalisation(here: Path, folder: Path) -> None:
    torch.manual_seed(0)
    run("normed", here, convnet([4], classes=3), validation=pictures(20, 1))


def nan_in_one_share(here: Path, folder: Path) -> None:
    images = pictures(16).images.float() / 255
    images[3, 0, 0, 0] = float("nan")
    broken = Examples(images, pictures(16).labels, torch.arange(16))
    run("nan", here, data=broken, epochs=2, checkpoint=folder / "nan.safetensors")


def bf16_and_back(here: Path, folder: Path) -> None:
    dtypes = []

    def loss(student_logits, teacher_logits, labels):
        dtypes.append(student_logits.dtype)
        return kd_loss(student_logits, teacher_logits, labels)

    run("bf16", here, precision="bf16", loss=loss)
    run("after", here)
    run("before", here, precision="no")


def another_device(here: Path, folder: Path) -> None:
    if folder.name == "two":
        run("device", here, device="meta")


def number_of_processes(here: Path, folder: Path) -> None:
    """With no device named: on a machine without an accelerator the processes must still find each other."""
    device = "cpu" if best_device().type != "cpu" else None
    with accelerated(device) as place:
        save_tensors(here / "place.safetensors", {}, {"processes": place.num_processes})


RUNS = [
    number_of_processes, five_in_the_last_batch, one_in_the_last_batch, interrupted_and_resumed,
    resumed_from_one_process, batch_normalisation, nan_in_one_share, bf16_and_back, another_device,
]  # fmt: skip


def member(rank: int, folder: Path) -> None:
    """What each process does: the same script whatever their number."""
    here = folder / str(rank)
    here.mkdir(parents=True)
    for function in RUNS:
        function(here, folder)


def main(folder: Path) -> None:
    """One process, then two."""
    group(1, partial(member, folder=folder / "one"))
    group(2, partial(member, folder=folder / "two"))
