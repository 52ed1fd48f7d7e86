"""How far a training run has come: its figures, and what a checkpoint keeps of them."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from kdlib.checkpoint import Checkpoint, under
from kdlib.metrics import Scores

__all__ = ["History", "Run"]


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
    """How far a run has come: all that a checkpoint keeps beside weights, optimizer and schedule."""

    def __init__(self, place: Accelerator, lr: float, watched: Sequence[str]) -> None:
        self.history = History(watched={name: [] for name in watched})
        self.best_weights: dict[str, Tensor] = {}
        self._place, self._lr = place, lr
        # Sums over the epoch stay on the device: reading them at every step would wait for it.
        # The last one counts examples.
        self._sums = torch.zeros(2 + len(watched), device=place.device)
        self._seen, self._looked, self._figures = False, time.monotonic(), ""

    def count(self, values: Mapping[str, Tensor], examples: int) -> None:
        """One step was taken."""
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

    def validated(self, scores: Scores, student: nn.Module, *, keep_best: bool) -> None:
        """Take down the scores; with `keep_best`, remember the weights of the lowest log-loss."""
        shared = [scores]
        if self._place.num_processes > 1:
            broadcast_object_list(shared)  # every process must come to the same decision
        history = self.history
        history.validation += shared
        if keep_best and (history.best is None or shared[0].nll < history.validation[history.best].nll):
            history.best = len(history.validation) - 1
            self.best_weights = {name: value.clone() for name, value in student.state_dict().items()}

    def out_of_patience(self, patience: int | None) -> bool:
        best = self.history.best
        return best is not None and len(self.history.validation) - 1 - best >= patience

    def figures(self) -> str:
        """For the progress bar; reads the running loss, and so waits for the device, once a second."""
        if self._seen and time.monotonic() - self._looked > 1:
            self._looked = time.monotonic()
            sums = self._finite(self._sums).tolist()
            self._figures = f"loss {sums[0] / max(sums[-1], 1):.3f}"
        elif not self._seen:
            self._figures = f"loss {self.history.loss[-1]:.3f}"
            if self.history.validation:
                self._figures += f", validation {self.history.validation[-1].accuracy:.1%}"
        return self._figures

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the run; every process must call it."""
        total = self._total()
        if self._place.is_main_process:
            history = asdict(self.history)
            right = {f"right/{n}": s.pop("correct") for n, s in enumerate(history["validation"])}
            best = {f"best/{name}": value for name, value in self.best_weights.items()}
            checkpoint.save({"sums": total, **right, **best}, history)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up what was saved, if anything was."""
        found = checkpoint.restore()
        self._place.wait_for_everyone()
        if found is None:
            return
        tensors, history = found
        for number, scores in enumerate(history["validation"]):
            history["validation"][number] = Scores(**scores, correct=tensors[f"right/{number}"])
        self.history = History(**history)
        self.best_weights = under("best/", tensors)
        if self._place.is_main_process:
            self._sums += tensors["sums"].to(self._sums.device)

    def _total(self) -> Tensor:
        return self._finite(self._place.reduce(self._sums, reduction="sum"))

    def _finite(self, sums: Tensor) -> Tensor:
        if not math.isfinite(sums[0]):
            raise FloatingPointError(
                f"the loss of epoch {len(self.history.loss) + 1} is {sums[0].item()} by step "
                f"{self.history.steps}; try a smaller lr (now {self._lr}), clip=1.0, and look for NaN in the "
                f"images and in the teacher's logits"
            )
        return sums
