"""A training run on disk: everything that the next step depends on, in one file."""

import json
import os
import time
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdlib.storage import JsonLines, fingerprint, load_tensors, remove_leftovers, save_tensors

__all__ = ["Checkpoint", "TrainingLog", "describe", "under"]


class Checkpoint:
    """Saves a run and takes it up again.

    One safetensors file, written whole or not at all, holds weights, optimizer state, running sums and, as
    JSON, the step, the schedule and what the caller wants to keep. Order, crops and dropout need no place
    in it: they follow from the seed and the step.

    Args:
        path: the file.
        run: what must be equal for a checkpoint to belong to this run, as JSON values.
        student, optimizer, schedule: saved from and restored into.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        run: Mapping[str, object],
        student: nn.Module,
        optimizer: Optimizer,
        schedule: LRScheduler,
    ) -> None:
        self.path = Path(path)
        self._run = json.loads(json.dumps(run))
        self._student, self._optimizer, self._schedule = student, optimizer, schedule

    def save(self, tensors: Mapping[str, Tensor], kept: Mapping[str, object]) -> None:
        """Write weights, optimizer and schedule, the further tensors, and JSON values.

        Raises:
            FloatingPointError: weights that are not finite, as after a gradient that was not. The file that
                is there stays as it was.
        """
        if bad := [name for name, p in self._student.named_parameters() if not p.isfinite().all()]:
            raise FloatingPointError(
                f"the weights {', '.join(bad[:3])} are not finite, though the loss was; try clip=1.0, a "
                f"smaller lr, and look for a square root or a logarithm of zero in the loss. "
                f"{self.path} is unchanged"
            )
        optimizer = self._optimizer.state_dict()
        moments = {
            f"optimizer/{number}/{name}": value
            for number, state in optimizer["state"].items()
            for name, value in state.items()
        }
        weights = {f"student/{name}": value for name, value in self._student.state_dict().items()}
        extra = {f"kept/{name}": value for name, value in tensors.items()}
        metadata = {
            "run": self._run,
            "groups": optimizer["param_groups"],
            "schedule": self._schedule.state_dict(),
            "kept": kept,
        }
        save_tensors(self.path, {**weights, **moments, **extra}, metadata)

    def restore(self) -> tuple[dict[str, Tensor], dict] | None:
        """Load what `save` wrote; None where there is no file yet.

        Raises:
            ValueError: the file is damaged, or belongs to another run; it says what differs.
        """
        remove_leftovers(self.path)
        if not self.path.exists():
            return None
        tensors, metadata = load_tensors(self.path)
        self._check(metadata)
        self._student.load_state_dict(under("student/", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in under("optimizer/", tensors).items():
            number, name = key.split("/")
            state.setdefault(int(number), {})[name] = value
        self._optimizer.load_state_dict({"state": state, "param_groups": metadata["groups"]})
        self._schedule.load_state_dict(metadata["schedule"])
        return under("kept/", tensors), metadata["kept"]

    def _check(self, metadata: Mapping) -> None:
        saved = metadata.get("run")
        if not isinstance(saved, dict):
            raise ValueError(f"{self.path} is not a checkpoint of fit; choose another name")
        differing = [
            f"{name} was {saved.get(name)}, is {self._run.get(name)}"
            for name in sorted({*saved, *self._run})
            if saved.get(name) != self._run.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self.path} belongs to another run: {'; '.join(differing)}. "
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

    def write(self, record: Mapping[str, object]) -> None:
        """Append a record, and the seconds since this process took up the run."""
        if self._lines is not None:
            self._lines.append({**record, "seconds": round(time.monotonic() - self._start, 3)})


def describe(part: object) -> object:
    """Stands for a loss function: its name, with the arguments of a `functools.partial`.

    Two functions of the same name cannot be told apart, whatever they close over; nor can two lambdas.
    """
    if isinstance(part, partial):
        keywords = {name: _argument(value) for name, value in part.keywords.items()}
        return [describe(part.func), [_argument(value) for value in part.args], keywords]
    return getattr(part, "__qualname__", type(part).__name__)


def _argument(value: object) -> object:
    # A function prints with its address, which is another one in each process; a long tensor, in part.
    if isinstance(value, Tensor):
        return fingerprint(value)
    return describe(value) if callable(value) else str(value)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name begins with the prefix, by the rest of their name."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
