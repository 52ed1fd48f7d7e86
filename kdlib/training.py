"""One training loop, for plain and for distilled training."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdlib.checkpoint import Checkpoint, TrainingLog, describe
from kdlib.data import Batch, Examples, TrainingData, as_float
from kdlib.history import History, Run
from kdlib.losses.kd import kd_loss
from kdlib.metrics import Scores, score
from kdlib.runtime import Precision, accelerated, best_device, eval_mode, seeded, substream
from kdlib.storage import fingerprint

if TYPE_CHECKING:
    from kdlib.cache.images import CachedTeacher

__all__ = ["History", "best_device", "evaluate", "fit", "out_of_fold", "predict"]

LossFunction = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""(student logits, teacher logits or None, labels) -> scalar, as `kd_loss`."""


def fit(
    student: nn.Module,
    data: TrainingData,
    *,
    teacher: "nn.Module | Tensor | CachedTeacher | None" = None,
    loss: LossFunction | None = None,
    epochs: int,
    lr: float,
    batch_size: int = 50,
    weight_decay: float = 1e-4,
    clip: float | None = None,
    validation: TrainingData | None = None,
    patience: int | None = None,
    watch: Mapping[str, LossFunction] | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    channels_last: bool | None = None,
    compile: bool = False,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int | None = None,
    log: str | os.PathLike | None = None,
    progress: bool = False,
    seed: int,
) -> History:
    """Train `student` in place: AdamW, one-cycle learning rate, a fresh order of the data each epoch.

    Under `accelerate launch`, or `torchrun` on CPUs, every process takes its share of each batch; the
    gradient is that of the whole batch. Two things can tell the difference: batch normalisation, whose
    statistics are each process's own, and a loss that leaves out some examples (of label −100, say), whose
    mean is over the rest of each process's.

    Args:
        student: (N, …) images -> (N, C) logits; moved to the device.
        data: `Examples`, or a loader of `kdlib.vision.loader` with augmentation.
        teacher: a module, run on the same crops in eval mode without gradients; its logits
            (len(data), C), one row for each example of `data`; a `CachedTeacher`; or None.
        loss: see `LossFunction`, a mean over the batch. Default: `kd_loss` with a teacher, else
            cross-entropy.
        epochs: passes over the data; each step sees batch_size examples, the last of an epoch fewer.
        lr: highest learning rate of the cycle (Smith and Topin 2017, arXiv 1708.07120).
        batch_size: examples in a step, over all processes together.
        clip: largest gradient norm; None leaves gradients alone. The T² of a distillation loss makes
            them large, so that a bound fit for plain training can slow distillation down.
        validation: scored after every epoch.
        patience: stop after so many epochs without a lower negative log-likelihood on `validation`,
            and return to the weights of the best epoch.
        watch: further quantities to average over each epoch's batches, by name.
        device: default `best_device()`.
        precision: "bf16", "no", or "auto", which takes bf16 on CUDA devices that compute in it.
        channels_last: memory order of images; default: where a convolution takes three channels or
            more. It makes convolutions faster on CPUs and GPUs.
        compile: run the student through `torch.compile`; worth its minute of waiting in long runs only.
        checkpoint: file to resume from, if there, and to save to: the run then goes on as if it had not
            been interrupted, on a CPU bit for bit. A file of another run is refused.
        checkpoint_every: steps between two checkpoints; default: an epoch.
        log: JSONL file, one line an epoch: epoch, step, lr, losses, validation, seconds.
        progress: show a progress bar with live figures.
        seed: fixes the order of the data, the same for every student, augmentation and dropout.
            Initialise the student yourself, under `torch.manual_seed`, so that every arm of a comparison
            can start from the same weights.

    Returns:
        `History`. Student and teacher are left in eval mode.

    Raises:
        ValueError: no epochs, no data, a teacher or a checkpoint that does not belong to this run,
            patience without validation, or a quantity under `watch` that is called "loss".
        FloatingPointError: the loss was not finite.
    """
    _check(student, data, teacher, epochs, batch_size, validation, patience, watch, checkpoint_every)
    loss = loss or (_cross_entropy if teacher is None else kd_loss)
    measured = {"loss": loss, **(watch or {})}
    steps = math.ceil(len(data) / batch_size)  # in an epoch
    with accelerated(device, precision) as place, seeded(seed, place.device), (
        _prepared(student, place, channels_last)
    ) as model:
        data, validation = data.to(place.device), validation and validation.to(place.device)
        opinion = _opinion(teacher, data, place.device, channels_last, epochs=epochs, seed=seed)
        forward = torch.compile(model) if compile else model
        optimizer = torch.optim.AdamW(student.parameters(), lr, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
        run = Run(place, lr, watched=list(watch or {}))
        if checkpoint is not None:
            settings = {
                "epochs": epochs, "lr": lr, "batch_size": batch_size, "weight_decay": weight_decay,
                "clip": clip, "patience": patience, "seed": seed, "precision": place.mixed_precision,
                "data": data.fingerprint(), "validation": validation and validation.fingerprint(),
                "teacher": _identity(teacher), "student": fingerprint(str(student)), "loss": describe(loss),
                "watch": list(watch or {}),
            }
            saved = Checkpoint(checkpoint, settings, student, optimizer, schedule)
            run.restore(saved)
        history = run.history
        records = TrainingLog(log if place.is_main_process else None, epochs_done=len(history.loss))
        bar = tqdm(desc="steps", total=epochs * steps, initial=history.steps, leave=False,
                   disable=not (progress and place.is_main_process))

        student.train()
        for epoch, batch, share in _steps(data, batch_size, epochs, run, patience, seed, place):
            # Seeded anew at each step: a resumed run need not know how many numbers dropout had drawn.
            number = history.steps * place.num_processes + place.process_index
            torch.manual_seed(substream(seed, "step", number))
            with place.autocast():
                teacher_logits = opinion(epoch, batch)
                student_logits = forward(batch.images).float()
            values = {n: f(student_logits, teacher_logits, batch.labels) for n, f in measured.items()}
            optimizer.zero_grad()
            place.backward(values["loss"] * share)
            if clip is not None:
                place.clip_grad_norm_(student.parameters(), clip)
            optimizer.step()
            schedule.step()
            run.count(values, len(batch.rows) if share else 0)
            bar.update()

            if history.steps % steps == 0:
                run.close_epoch()
                if validation is not None:
                    run.validated(evaluate(student, validation), student, keep_best=patience is not None)
                records.write(_record(history, schedule.get_last_lr()[0]))
            bar.set_postfix_str(run.figures(), refresh=False)
            if checkpoint is not None and history.steps % (checkpoint_every or steps) == 0:
                run.save(saved)
        bar.close()
        if checkpoint is not None and history.steps % (checkpoint_every or steps):
            run.save(saved)
        if history.best is not None:
            student.load_state_dict(run.best_weights)
        if place.num_processes > 1:
            broadcast(list(student.buffers()))  # batch normalisation's statistics, each process's own
    return history


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int = 1024) -> Tensor:
    """Logits (N, C) in eval mode, on the CPU, for images float32 in [0, 1] or uint8; the mode is restored."""
    device = next((p.device for p in model.parameters()), images.device)
    with eval_mode(model):
        return torch.cat([model(as_float(part.to(device))).cpu() for part in images.split(batch_size)])


@torch.no_grad()
def evaluate(model: nn.Module, data: TrainingData, batch_size: int = 1024) -> Scores:
    """Accuracy, negative log-likelihood and calibration of a model on labelled images.

    A loader with augmentation shows its crops of epoch 0, seed 0; evaluate on the images as they are.
    """
    device = next((p.device for p in model.parameters()), None)
    logits, labels = [], []
    with eval_mode(model):
        for batch in data.batches(torch.arange(len(data)).split(batch_size)):
            images = batch.images if device is None else batch.images.to(device)
            logits.append(model(images).cpu())
            labels.append(batch.labels.cpu())
    return score(torch.cat(logits), torch.cat(labels))


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
        with seeded(seed, torch.device("cpu")):
            model = build()
        fit(model, data[kept], seed=seed, **settings)
        predicted = predict(model, data[held_out].images)
        if logits is None:
            logits = predicted.new_empty(len(data), predicted.shape[-1])
        logits[held_out] = predicted
    return logits


def _steps(
    data: TrainingData,
    batch_size: int,
    epochs: int,
    run: Run,
    patience: int | None,
    seed: int,
    place: Accelerator,
) -> Iterator[tuple[int, Batch, float]]:
    """(epoch, batch, share) from where the run stands. Shares weight the means of processes; they add up."""
    # Its own generator: dropout draws from the other one, and must not change the order between arms.
    order = torch.Generator().manual_seed(seed)
    done, processes = run.history.steps, place.num_processes
    for epoch in range(epochs):
        if run.out_of_patience(patience):
            return
        chunks = torch.randperm(len(data), generator=order).split(batch_size)
        left = chunks[max(done - epoch * len(chunks), 0):]
        if not left:
            continue
        parts = [chunk.tensor_split(processes)[place.process_index] for chunk in left]
        shares = [len(part) * processes / len(chunk) for part, chunk in zip(parts, left, strict=True)]
        # A process without an example still takes part in the step: it computes one that counts nothing.
        parts = [part if len(part) else chunk[:1] for part, chunk in zip(parts, left, strict=True)]
        for share, batch in zip(shares, data.batches(parts, epoch=epoch, seed=seed), strict=True):
            yield epoch, batch, share


@contextmanager
def _prepared(student: nn.Module, place: Accelerator, channels_last: bool | None) -> Iterator[nn.Module]:
    """The student on its device, wrapped where several processes share it; in eval mode afterwards."""
    _place(student, place.device, channels_last)
    try:
        yield place.prepare(student) if place.num_processes > 1 else student
    finally:
        # Accelerate puts a forward of its own on the instance, which would outlive the run.
        vars(student).pop("forward", None)
        vars(student).pop("_original_forward", None)
        student.eval()


def _place(model: nn.Module, device: torch.device, channels_last: bool | None) -> None:
    model.to(device)
    if channels_last is None:
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        channels_last = first is not None and first.in_channels > 2
    if channels_last:
        model.to(memory_format=torch.channels_last)


def _opinion(
    teacher: "nn.Module | Tensor | CachedTeacher | None",
    data: TrainingData,
    device: torch.device,
    channels_last: bool | None,
    *,
    epochs: int,
    seed: int,
) -> Callable[[int, Batch], Tensor | None]:
    """(epoch, batch) -> the teacher's logits, whatever the teacher is."""
    if teacher is None:
        return lambda epoch, batch: None
    if isinstance(teacher, nn.Module):
        _place(teacher, device, channels_last)
        teacher.eval()
        return lambda epoch, batch: _without_gradients(teacher, batch.images)
    if isinstance(teacher, Tensor):
        table = teacher.to(device)
        return lambda epoch, batch: table[batch.rows]
    teacher.check(data, seed=seed, epochs=epochs)
    cached = teacher.to(device)
    return lambda epoch, batch: cached.logits(epoch, batch.rows)


@torch.no_grad()
def _without_gradients(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).float()


def _identity(teacher: "nn.Module | Tensor | CachedTeacher | None") -> str | None:
    if teacher is None:
        return None
    return fingerprint(teacher) if isinstance(teacher, nn.Module | Tensor) else teacher.fingerprint


def _record(history: History, lr: float) -> dict[str, object]:
    record = {"epoch": len(history.loss), "step": history.steps, "lr": lr, "loss": history.loss[-1]}
    record |= {name: values[-1] for name, values in history.watched.items()}
    if history.validation:
        scores = history.validation[-1]
        record["validation"] = {"accuracy": scores.accuracy, "nll": scores.nll, "ece": scores.ece}
    return record


def _cross_entropy(student_logits: Tensor, teacher_logits: None, labels: Tensor) -> Tensor:
    return F.cross_entropy(student_logits.float(), labels)


def _check(student, data, teacher, epochs, batch_size, validation, patience, watch, checkpoint_every) -> None:
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
    if patience is not None and (patience < 1 or validation is None):
        raise ValueError(
            f"patience={patience} counts epochs without progress on validation; expected at least 1 and a "
            f"validation part"
        )
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every={checkpoint_every} counts steps; expected at least 1")
