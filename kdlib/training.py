"""One training loop, for plain and for distilled training."""

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdlib.losses import kd_loss
from kdlib.metrics import Scores, score
from kdlib.runtime import best_device, eval_mode
from kdlib.splits import Examples

__all__ = ["History", "best_device", "evaluate", "fit", "out_of_fold", "predict"]

LossFunction = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""(student logits, teacher logits or None, labels) -> scalar, as `kd_loss`."""


@dataclass
class History:
    """What happened, epoch by epoch.

    Attributes:
        loss: mean training loss of each epoch.
        watched: the same for each quantity under `watch`.
        validation: `Scores` after each epoch, where a validation part was given.
        steps: number of optimizer steps taken.
    """

    loss: list[float] = field(default_factory=list)
    watched: dict[str, list[float]] = field(default_factory=dict)
    validation: list[Scores] = field(default_factory=list)
    steps: int = 0


def fit(
    student: nn.Module,
    data: Examples,
    *,
    teacher: nn.Module | Tensor | None = None,
    loss: LossFunction | None = None,
    epochs: int,
    lr: float,
    batch_size: int = 50,
    weight_decay: float = 1e-4,
    clip: float | None = None,
    validation: Examples | None = None,
    watch: Mapping[str, LossFunction] | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    seed: int,
) -> History:
    """Train `student` in place: AdamW, one-cycle learning rate, a fresh order of the data each epoch.

    Args:
        student: (N, …) images -> (N, C) logits; moved to the device.
        data: the training examples.
        teacher: a module, run on the same batch in eval mode without gradients; or its logits
            (len(data), C), one row for each example of `data`; or None.
        loss: see `LossFunction`. Default: `kd_loss` with a teacher, cross-entropy without.
        epochs: passes over the data; each step sees batch_size examples, the last of an epoch fewer.
        lr: highest learning rate of the cycle (Smith and Topin 2017, arXiv 1708.07120).
        clip: largest gradient norm; None leaves gradients alone. The T² of a distillation loss makes
            them large, so that a bound fit for plain training can slow distillation down.
        validation: scored after every epoch.
        watch: further quantities to average over each epoch's batches, by name.
        device: default `best_device()`.
        progress: show a progress bar.
        seed: fixes the order of the data, the same for every student, and dropout. Initialise the student
            yourself, under `torch.manual_seed`, so that every arm of a comparison can start from the same
            weights.

    Returns:
        `History`. Student and teacher are left in eval mode.

    Raises:
        ValueError: no epochs, no data, teacher logits that do not belong to `data`, or a quantity
            under `watch` that is called "loss".
        FloatingPointError: the loss was not finite in an epoch.
    """
    if epochs < 1 or len(data) == 0 or batch_size < 1:
        raise ValueError(
            f"expected epochs >= 1, batch_size >= 1 and at least one example; got epochs={epochs}, "
            f"batch_size={batch_size}, {len(data)} examples"
        )
    if isinstance(teacher, Tensor) and len(teacher) != len(data):
        raise ValueError(
            f"teacher holds {len(teacher)} rows of logits for {len(data)} examples; expected one each"
        )
    if teacher is student:
        raise ValueError("teacher and student are the same module; expected two")
    if watch and "loss" in watch:
        raise ValueError('watch holds the name "loss", which stands for the training loss; expected others')
    loss = loss or (_cross_entropy if teacher is None else kd_loss)
    measured = {"loss": loss, **(watch or {})}

    device = torch.device(device) if device is not None else best_device()
    student.to(device)
    data = data.to(device)
    if teacher is not None:
        teacher = teacher.to(device)
    steps = epochs * -(-len(data) // batch_size)
    optimizer = torch.optim.AdamW(student.parameters(), lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    history = History(steps=steps, watched={name: [] for name in watch or {}})

    # Its own generator: dropout draws from the other one, and must not change the order between arms.
    order = torch.Generator().manual_seed(seed)
    bar = tqdm(range(epochs), desc="epochs", disable=not progress, leave=False)
    with _seeded(seed, device):
        for _ in bar:
            # Sums stay on the device: reading them at every step would wait for it.
            sums = {name: torch.zeros((), device=device) for name in measured}
            student.train()
            for rows in torch.randperm(len(data), generator=order).to(device).split(batch_size):
                images, labels = data.images[rows], data.labels[rows]
                teacher_logits = _teacher_logits(teacher, images, rows)
                student_logits = student(images)
                values = {n: f(student_logits, teacher_logits, labels) for n, f in measured.items()}
                optimizer.zero_grad()
                values["loss"].backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(student.parameters(), clip)
                optimizer.step()
                schedule.step()
                for name, value in values.items():
                    sums[name] += value.detach() * len(rows)
            means = {name: (total / len(data)).item() for name, total in sums.items()}
            history.loss.append(means.pop("loss"))
            for name, value in means.items():
                history.watched[name].append(value)
            if not torch.isfinite(torch.tensor(history.loss[-1])):
                raise FloatingPointError(
                    f"the loss of epoch {len(history.loss)} is {history.loss[-1]}; try a smaller lr "
                    f"(now {lr}), clip=1.0, and look for NaN in the images and in the teacher's logits"
                )
            if validation is not None:
                history.validation.append(evaluate(student, validation))
            bar.set_postfix(loss=f"{history.loss[-1]:.3f}")
    student.eval()
    return history


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int = 1024) -> Tensor:
    """Logits (N, C) in eval mode, on the CPU; the model's mode is restored."""
    device = next((p.device for p in model.parameters()), images.device)
    with eval_mode(model):
        return torch.cat([model(part.to(device)).cpu() for part in images.split(batch_size)])


def evaluate(model: nn.Module, data: Examples) -> Scores:
    """Accuracy, negative log-likelihood and calibration of a model on labelled images."""
    return score(predict(model, data.images), data.labels.cpu())


def out_of_fold(
    build: Callable[[], nn.Module], data: Examples, *, folds: int = 5, seed: int = 0, **settings
) -> Tensor:
    """Logits (N, C) for each example from a model that never saw it.

    The data are cut into folds, each digit's share kept; each fold is predicted by a model trained on
    the others. Soft labels of training examples are overconfident; these are not.

    Args:
        build: makes an untrained model; called once a fold.
        settings: passed on to `fit`.

    Source: Stone 1974, "Cross-validatory choice and assessment of statistical predictions".
    """
    logits = None
    cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for kept, held_out in cut.split(data.labels, data.labels):
        with _seeded(seed, torch.device("cpu")):
            model = build()
        fit(model, data[kept], seed=seed, **settings)
        predicted = predict(model, data[held_out].images)
        if logits is None:
            logits = predicted.new_empty(len(data), predicted.shape[-1])
        logits[held_out] = predicted
    return logits


def _cross_entropy(student_logits: Tensor, teacher_logits: None, labels: Tensor) -> Tensor:
    return F.cross_entropy(student_logits.float(), labels)


def _teacher_logits(teacher: nn.Module | Tensor | None, images: Tensor, rows: Tensor) -> Tensor | None:
    if teacher is None or isinstance(teacher, Tensor):
        return teacher if teacher is None else teacher[rows]
    teacher.eval()
    with torch.no_grad():
        return teacher(images)


@contextmanager
def _seeded(seed: int, device: torch.device):
    """Random numbers from this seed inside; outside, as if nothing had been drawn."""
    devices = [] if device.type == "cpu" else [device.index or 0]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield
