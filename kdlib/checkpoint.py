"""How far a training run has come, and the file that holds it: everything that the next step depends on."""

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdlib.arguments import refuse
from kdlib.metrics import Scores
from kdlib.storage import JsonLines, describe_changes, load_tensors, remove_leftovers, save_tensors, writing

__all__ = ["History", "Run"]


@dataclass
class History:
    """What happened, epoch by epoch."""

    loss: list[float] = field(default_factory=list)  # mean training loss of each epoch
    watched: dict[str, list[float]] = field(default_factory=dict)  # the same for each quantity under `watch`
    validation: list[Scores] = field(default_factory=list)  # after each epoch, if a part was given
    steps: int = 0  # of the optimizer


_LINE = b'{"epoch": '  # how a line of the log begins


class Run(ExitStack):
    """A training run: what is trained, how far it has come, its checkpoint and its log.

    As long as it is open, no other process trains into its checkpoint or its log.

    Order, crops and dropout are in no checkpoint: they follow from the seed and the step. Where processes
    share the run, each calls every method. `watched` names the quantities beside the loss.
    """

    def __init__(
        self, accelerator: Accelerator, student: nn.Module, optimizer: Optimizer, schedule: LRScheduler,
        watched: Sequence[str],
    ) -> None:  # fmt: skip
        super().__init__()
        self.history = History(watched={name: [] for name in watched})
        self._accelerator, self._student = accelerator, student
        self._optimizer, self._schedule = optimizer, schedule
        # Sums over the epoch stay on the device: reading them at every step would wait for it.
        # The last one counts examples.
        self._sums = torch.zeros(2 + len(watched), device=accelerator.device)
        self._checkpoint, self._settings, self._saved_at = None, {}, 0
        self._log, self._start = None, time.monotonic()

    def count(self, values: Mapping[str, Tensor], examples: int) -> None:
        """Add a step: the loss and what is watched, means over so many examples."""
        self._sums[:-1] += torch.stack([value.detach().float() for value in values.values()]) * examples
        self._sums[-1] += examples
        self.history.steps += 1

    def close_epoch(self, validate: Callable[[], Scores] | None) -> None:
        """Turn the sums into the epoch's means; score the student on validation; write the log."""
        total = self._total()
        loss, *watched = (total[:-1] / total[-1]).tolist()
        self.history.loss.append(loss)
        for values, value in zip(self.history.watched.values(), watched, strict=True):
            values.append(value)
        self._sums.zero_()
        if validate is not None:
            self.history.validation.append(validate())
        if self._log is not None:
            self._log.append(self._record())

    def finish(self) -> None:
        """Save; make all processes' students the same."""
        if self._saved_at != self.history.steps:
            self.save()
        if self._accelerator.num_processes > 1:
            broadcast(list(self._student.buffers()))  # batch normalisation's statistics

    def figures(self) -> str:
        """For the progress bar: mean loss so far and last validation; waits for the device."""
        *sums, examples = self._finite(self._sums).tolist()
        text = f"loss {sums[0] / examples if examples else self.history.loss[-1]:.3f}"
        if self.history.validation:
            text += f", validation {self.history.validation[-1].accuracy:.1%}"
        return text

    def save(self) -> None:
        """Write the checkpoint that `restore` named, if any: not where the loss or a weight is not finite."""
        if self._checkpoint is None:
            return
        sums, self._saved_at = self._total(), self.history.steps
        if not self._accelerator.is_main_process:
            return
        if bad := [name for name, p in self._student.named_parameters() if not p.isfinite().all()]:
            raise FloatingPointError(
                f"the weights {', '.join(bad[:3])} are not finite, though the loss was; try clip=1.0, a "
                f"smaller lr, and look for a square root or a logarithm of zero in the loss. "
                f"{self._checkpoint} is unchanged"
            )
        optimizer, history = self._optimizer.state_dict(), asdict(self.history)
        groups = {
            "student": self._student.state_dict(),
            "sums": {"": sums},
            "correct": {str(n): scores.pop("correct") for n, scores in enumerate(history["validation"])},
            **{f"optimizer {number}": state for number, state in optimizer["state"].items()},
        }
        tensors = {f"{group}/{name}": t for group, named in groups.items() for name, t in named.items()}
        metadata = {
            "run": self._settings,
            "history": history,
            "schedule": self._schedule.state_dict(),
            "parameters": optimizer["param_groups"],
        }
        save_tensors(self._checkpoint, tensors, metadata)

    def restore(self, path: str | os.PathLike, settings: Mapping[str, object]) -> None:
        """Go on from a checkpoint, if there is one of a run with these settings; save to it from now on."""
        path = self._checkpoint = _output_file("checkpoint", path)
        self._settings = json.loads(json.dumps(settings, default=float))  # numbers of NumPy too
        self._hold("checkpoint", path, FileLock(path.with_name(f".{path.name}.lock")))
        if path.exists():
            with open(path, "rb") as file:  # 8 bytes with the length of the header, which is JSON
                begin = file.read(9)
            ours = not begin or (b"\0" in begin[:8] and begin[8:] in (b"", b"{"))
            tensors, metadata = load_tensors(path) if ours else ({}, {})
            if "run" not in metadata:
                raise ValueError(f"{path} is not a checkpoint of fit; choose another name")
            if differing := describe_changes(metadata["run"], self._settings):
                raise ValueError(
                    f"{path} belongs to another run: {differing}. "
                    f"Delete it to start anew, or give checkpoint another name"
                )
            groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
            for key, value in tensors.items():
                group, name = key.split("/", 1)
                groups[group][name] = value
            self._student.load_state_dict(groups["student"])
            moments = {int(g.split()[1]): state for g, state in groups.items() if g.startswith("optimizer ")}
            self._optimizer.load_state_dict({"state": moments, "param_groups": metadata["parameters"]})
            self._schedule.load_state_dict(metadata["schedule"])
            self.history = History(**metadata["history"])
            self._saved_at = self.history.steps
            self.history.validation = [
                Scores(**scores, correct=groups["correct"][str(epoch)])
                for epoch, scores in enumerate(self.history.validation)
            ]
            if self._accelerator.is_main_process:  # the sums are those of all processes
                self._sums += groups["sums"][""].to(self._sums.device)
        self._accelerator.wait_for_everyone()

    def log_to(self, path: str | os.PathLike) -> None:
        """Write a JSON line for each epoch to come; of those in the file the ones of epochs done are kept."""
        path = _output_file("log", path)
        if self._checkpoint is not None and path.resolve() == self._checkpoint.resolve():
            raise ValueError(f"log and checkpoint are both {path}; expected two files")
        begin = path.read_bytes()[: len(_LINE)] if path.exists() else b""
        if not _LINE.startswith(begin):
            raise ValueError(f"{path} is not a log of fit; choose another name")
        log = JsonLines(path)
        self._hold("log", path, log.lock)
        if self._accelerator.is_main_process:
            self._log = log
            self._log.replace(islice(self._log, len(self.history.loss)))

    def _hold(self, name: str, path: Path, lock: FileLock) -> None:
        """Lock a file against other runs until this one is closed, and remove what killed ones left."""
        failed: list[Exception | None] = [None]
        if self._accelerator.is_main_process:
            try:
                with writing(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self.enter_context(lock.acquire(timeout=0))
                    remove_leftovers(path)
            except Timeout:
                failed = [TimeoutError(
                    f"another process is training into {path}; wait for it, or choose another path for {name}"
                )]  # fmt: skip
            except OSError as error:
                failed = [error]
        if self._accelerator.num_processes > 1:
            broadcast_object_list(failed)
        if failed[0] is not None:
            raise failed[0]

    def _record(self) -> dict[str, object]:
        """The last epoch, the learning rate to come, and the seconds in this process."""
        history, lr = self.history, self._schedule.get_last_lr()[0]
        record = {"epoch": len(history.loss), "step": history.steps, "lr": lr, "loss": history.loss[-1]}
        record |= {name: values[-1] for name, values in history.watched.items()}
        if history.validation:
            scores = history.validation[-1]
            record["validation"] = {"accuracy": scores.accuracy, "nll": scores.nll, "ece": scores.ece}
        return {**record, "seconds": round(time.monotonic() - self._start, 3)}

    def _total(self) -> Tensor:
        return self._finite(self._accelerator.reduce(self._sums, reduction="sum"))

    def _finite(self, sums: Tensor) -> Tensor:
        if not math.isfinite(sums[0]):
            raise FloatingPointError(
                f"the loss of epoch {len(self.history.loss) + 1} is {sums[0].item()} by step "
                f"{self.history.steps}; try a smaller lr (now {self._optimizer.defaults['lr']}), clip=1.0, "
                f"and look for NaN in the images and in the teacher's logits, and for a batch without labels"
            )
        return sums


def _output_file(name: str, path: str | os.PathLike) -> Path:
    """The path of a file to write, a ValueError if it can be none."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        refuse(name, path, "the name of a file")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{name} is the folder {path}; expected a file, such as {path / f'run.{name}'}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{name} is {path}, which is no regular file; expected the name of one")
    return path
