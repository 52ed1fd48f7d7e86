"""Two processes that share a student, with DDP: the gradients that each of them holds after one step.

A museum piece stands here, since processes that are started anew can import a function from a module and not
from a notebook: a loss that asks the student behind the wrapper's back.
"""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from kdlib.losses.kd import kd_loss
from kdlib.storage import load_tensors, save_tensors

Step = Callable[[nn.Module, nn.Module, Tensor], None]


def step_inside(shared: nn.Module, teacher: nn.Module, inputs: Tensor) -> None:
    """A step through the wrapper, whose forward prepares the exchange of gradients."""
    with torch.no_grad():
        teacher_logits = teacher(inputs)
    kd_loss(shared(inputs), teacher_logits, None).backward()


def step_outside(shared: nn.Module, teacher: nn.Module, inputs: Tensor) -> None:
    """A step past the wrapper, straight to the network in it."""
    with torch.no_grad():
        teacher_logits = teacher(inputs)
    student = shared.module
    kd_loss(student(inputs), teacher_logits, None).backward()


def two_ranks(*steps: Step) -> list[Tensor]:
    """For each step the gradients (2, P) of a student's P parameters, a row for each of two processes.

    Every step begins with the same student and teacher; the processes have different inputs. `steps` are
    functions of importable modules.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (folder, steps), nprocs=2)
        held = [load_tensors(_file(folder, rank))[0] for rank in range(2)]
    return [torch.stack([of_rank[str(k)] for of_rank in held]) for k in range(len(steps))]


def _rank(rank: int, folder: str, steps: tuple[Step, ...]) -> None:
    torch.set_num_threads(1)
    meeting = (Path(folder) / "meeting").as_uri()  # a file, which needs no port
    distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=90)
    )
    held = {}
    for k, step in enumerate(steps):
        torch.manual_seed(0)
        student, teacher = nn.Linear(6, 4), nn.Linear(6, 4)
        shared = DistributedDataParallel(student)
        step(shared, teacher, torch.randn(8, 6, generator=torch.Generator().manual_seed(rank)))
        held[str(k)] = torch.cat([p.grad.flatten() for p in student.parameters()])
    save_tensors(_file(folder, rank), held)
    distributed.barrier()  # whoever goes first would take the meeting file with it
    distributed.destroy_process_group()


def _file(folder: str, rank: int) -> Path:
    return Path(folder) / f"{rank}.safetensors"
