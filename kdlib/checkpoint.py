"""How far a training run has come, and the file that holds it: everything that the next step depends on."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdlib.metrics import Scores
from kdlib.storage import JsonLines, load_tensors, remove_leftovers, save_tensors

__all__ = ["History", "Run", "TrainingLog"]


@dataclass
class History:
    """What happened, epoch by epoch.

    Attributes:
        loss: mean training loss of each epoch.
        watched: the same for each quantity under `watch`.
        validation: `Scores` after each epoch, where a validation part was given.
        steps: number of optimizer steps taken.
        best: the epoch, from 0, whose weights were kept; None without `patience`.
    """

    loss: list[float] = field(default_factory=list)
    watched: dict[str, list[float]] = field(default_factory=dict)
    validation: list[Scores] = field(default_factory=list)
    steps: int = 0
    best: int | None = None


class Run:
    """A training run: what is trained, how far it has come, and its checkpoint.

    The checkpoint is one safetensors file, written whole or not at all. Order, crops and dropout are not
    in it: they follow from the seed and the step.

    Args:
        accelerator: of the run.
        student, optimizer, schedule: saved from and restored into.
        watched: names of the quantities beside the loss.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        student: nn.Module,
        optimizer: Optimizer,
        schedule: LRScheduler,
        watched: Sequence[str] = (),
    ) -> None:
        self.history = History(watched={name: [] for name in watched})
        self.best_weights: dict[str, Tensor] = {}
        self._accelerator, self._student = accelerator, student
        self._optimizer, self._schedule = optimizer, schedule
        # Sums over the epoch stay on the device: reading them at every step would wait for it.
        # The last one counts examples.
        self._sums = torch.zeros(2 + len(watched), device=accelerator.device)
        self._seen, self._shown_at, self._figures = False, time.monotonic(), ""

    def count(self, values: Mapping[str, Tensor], examples: int) -> None:
        """Add a step: the loss and what is watched, means over so many examples."""
        self._sums[:-1] += torch.stack([value.detach().float() for value in values.values()]) * examples
        self._sums[-1] += examples
        self._seen = True
        self.history.steps += 1

    def close_epoch(self) -> None:
        """Turn the sums into the epoch's means."""
        total = self._total()
        loss, *watched = (total[:-1] / total[-1]).tolist()
        self.history.loss.append(loss)
        for values, value in zip(self.history.watched.values(), watched, strict=True):
            values.append(value)
        self._sums.zero_()
        self._seen = False

    def validated(self, scores: Scores, *, keep_best: bool) -> None:
        """Record the scores; with `keep_best`, remember the weights of the lowest log-loss."""
        shared = [scores]
        if self._accelerator.num_processes > 1:
            broadcast_object_list(shared)  # every process must come to the same decision
        history = self.history
        history.validation += shared
        if keep_best and (history.best is None or shared[0].nll < history.validation[history.best].nll):
            history.best = len(history.validation) - 1
            self.best_weights = {name: value.clone() for name, value in self._student.state_dict().items()}

    def out_of_patience(self, patience: int | None) -> bool:
        best = self.history.best
        return best is not None and len(self.history.validation) - 1 - best >= patience

    def finish(self) -> None:
        """Return to the best weights, where they were kept; make all processes' students the same."""
        if self.history.best is not None:
            self._student.load_state_dict(self.best_weights)
        if self._accelerator.num_processes > 1:
            broadcast(list(self._student.buffers()))  # batch normalisation's statistics

    def figures(self) -> str:
        """For the progress bar; reads the running loss, and so waits for the device, once a second."""
        if self._seen and time.monotonic() - self._shown_at > 1:
            self._shown_at = time.monotonic()
            sums = self._finite(self._sums).tolist()
            self._figures = f"loss {sums[0] / max(sums[-1], 1):.3f}"
        elif not self._seen:
            self._figures = f"loss {self.history.loss[-1]:.3f}"
            if self.history.validation:
                self._figures += f", validation {self.history.validation[-1].accuracy:.1%}"
        return self._figures

    def save(self, path: str | os.PathLike, settings: Mapping[str, object]) -> None:
        """Write the checkpoint; every process must call it.

        Args:
            path: the file.
            settings: what must be equal for a checkpoint to belong to a run, as JSON values.

        Raises:
            FloatingPointError: the loss or a weight is not finite. The file that is there stays as it was.
        """
        sums = self._total()
        if not self._accelerator.is_main_process:
            return
        if bad := [name for name, p in self._student.named_parameters() if not p.isfinite().all()]:
            raise FloatingPointError(
                f"the weights {', '.join(bad[:3])} are not finite, though the loss was; try clip=1.0, a "
                f"smaller lr, and look for a square root or a logarithm of zero in the loss. "
                f"{path} is unchanged"
            )
        optimizer, history = self._optimizer.state_dict(), asdict(self.history)
        correct = {str(epoch): scores.pop("correct") for epoch, scores in enumerate(history["validation"])}
        moments = {
            f"{number}/{name}": value
            for number, state in optimizer["state"].items()
            for name, value in state.items()
        }
        groups = {
            "student": self._student.state_dict(), "best": self.best_weights, "correct": correct,
            "optimizer": moments, "sums": {"": sums},
        }  # fmt: skip
        tensors = {f"{group}/{name}": t for group, named in groups.items() for name, t in named.items()}
        metadata = {
            "run": settings,
            "history": history,
            "groups": optimizer["param_groups"],
            "schedule": self._schedule.state_dict(),
        }
        save_tensors(path, tensors, metadata)

    def restore(self, path: str | os.PathLike, settings: Mapping[str, object]) -> None:
        """Go on from a checkpoint, if there is one; every process must call it.

        Raises:
            ValueError: the file is damaged, or belongs to another run; it says what differs.
        """
        path = Path(path)
        remove_leftovers(path)
        if path.exists():
            tensors, metadata = load_tensors(path)
            _check_settings(path, metadata, settings)
            groups: dict[str, dict[str, Tensor]] = {"best": {}}
            for key, value in tensors.items():
                group, name = key.split("/", 1)
                groups.setdefault(group, {})[name] = value
            self._student.load_state_dict(groups["student"])
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in groups["optimizer"].items():
                number, name = key.split("/")
                state.setdefault(int(number), {})[name] = value
            self._optimizer.load_state_dict({"state": state, "param_groups": metadata["groups"]})
            self._schedule.load_state_dict(metadata["schedule"])
            self.best_weights, self.history = groups["best"], History(**metadata["history"])
            self.history.validation = [
                Scores(**scores, correct=groups["correct"][str(epoch)])
                for epoch, scores in enumerate(self.history.validation)
            ]
            if self._accelerator.is_main_process:
                self._sums += groups["sums"][""].to(self._sums.device)
        self._accelerator.wait_for_everyone()

    def _total(self) -> Tensor:
        return self._finite(self._accelerator.reduce(self._sums, reduction="sum"))

    def _finite(self, sums: Tensor) -> Tensor:
        if not math.isfinite(sums[0]):
            raise FloatingPointError(
                f"the loss of epoch {len(self.history.loss) + 1} is {sums[0].item()} by step "
                f"{self.history.steps}; try a smaller lr (now {self._optimizer.defaults['lr']}), clip=1.0, "
                f"and look for NaN in the images and in the teacher's logits"
            )
        return sums


def _check_settings(path: Path, metadata: Mapping, settings: Mapping[str, object]) -> None:
    saved, now = metadata.get("run"), json.loads(json.dumps(settings))
    if not isinstance(saved, dict):
        raise ValueError(f"{path} is not a checkpoint of fit; choose another name")
    differing = [
        f"{name} was {saved.get(name)}, is {now.get(name)}"
        for name in sorted({*saved, *now})
        if saved.get(name) != now.get(name)
    ]
    if differing:
        raise ValueError(
            f"{path} belongs to another run: {'; '.join(differing)}. "
            f"Delete it to start anew, or give checkpoint another name"
        )


class TrainingLog:
    """One JSON line an epoch, in the file from the moment the epoch ends.

    A resumed run keeps the lines of the epochs that its checkpoint holds and writes the others again.

    Args:
        path: the file; None writes nothing.
        epochs_done: number of lines to keep.
    """

    def __init__(self, path: str | os.PathLike | None, epochs_done: int = 0) -> None:
        self._lines = None if path is None else JsonLines(path)
        self._start = time.monotonic()
        if self._lines is not None:
            self._lines.replace(islice(self._lines, epochs_done))

    def write(self, history: History, lr: float) -> None:
        """Append the last epoch, the learning rate to come, and the seconds in this process."""
        if self._lines is None:
            return
        record = {"epoch": len(history.loss), "step": history.steps, "lr": lr, "loss": history.loss[-1]}
        record |= {name: values[-1] for name, values in history.watched.items()}
        if history.validation:
            scores = history.validation[-1]
            record["validation"] = {"accuracy": scores.accuracy, "nll": scores.nll, "ece": scores.ece}
        self._lines.append({**record, "seconds": round(time.monotonic() - self._start, 3)})
