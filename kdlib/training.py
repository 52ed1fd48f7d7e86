"""One training loop, for plain and for distilled training."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from kdlib.cache.images import CachedTeacher
from kdlib.checkpoint import History, Run
from kdlib.data import (
    Batch,
    Examples,
    LoaderData,
    TrainingData,
    as_float,
    stratified_folds,
    training_data,
)
from kdlib.losses.checks import check_labels
from kdlib.losses.kd import kd_loss
from kdlib.metrics import Scores, score
from kdlib.runtime import Precision, accelerated, best_device, eval_mode, seeded, substream
from kdlib.storage import fingerprint, identity
from kdlib.training_checks import as_logits, check_arguments, check_model, check_shown, one_number

__all__ = ["History", "LossFunction", "best_device", "evaluate", "fit", "out_of_fold", "predict"]

LossFunction = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""(student logits, teacher logits or None, labels) -> scalar, as `kd_loss`."""


def fit(
    student: nn.Module, data: TrainingData | DataLoader, *,
    teacher: nn.Module | Tensor | CachedTeacher | None = None, loss: LossFunction | None = None,
    epochs: int, lr: float, batch_size: int = 50, weight_decay: float = 1e-4, clip: float | None = None,
    validation: TrainingData | DataLoader | None = None, watch: Mapping[str, LossFunction] | None = None,
    device: torch.device | str | None = None, precision: Precision = "auto",
    checkpoint: str | os.PathLike | None = None, checkpoint_every: int | None = None,
    log: str | os.PathLike | None = None, progress: bool = False, seed: int,
) -> History:  # fmt: skip
    """Train `student` in place: AdamW, one-cycle learning rate, a fresh order of the data each epoch.

    Under `accelerate launch`, or `torchrun` on CPUs, every process takes its share of each batch; the
    gradient is that of the whole batch. But batch normalisation's statistics are each process's own, and so
    is the mean of a loss that leaves out some examples (of label −100, say).

    Args:
        student: (N, …) images -> (N, C) logits; moved to the device. To compile it, call `student.compile()`.
        data: `Examples`; a loader of `kdlib.vision` with augmentation; or a torch `DataLoader` of (images,
            labels), with batches of its own. Its generator, or torch's, is seeded anew for each epoch.
        teacher: a module, run on the same crops in eval mode without gradients; unless the data are a
            `DataLoader`, also its logits (len(data), C), one row for each example, or a `CachedTeacher`.
        loss: see `LossFunction`, a mean over the batch; by default `kd_loss`, cross-entropy without teacher.
        epochs: passes over the data; each step sees batch_size examples, the last of an epoch fewer.
        lr: highest learning rate of the cycle (Smith and Topin 2017, arXiv 1708.07120).
        batch_size: examples in a step, over all processes together; a `DataLoader` has its own.
        clip: largest gradient norm; None leaves gradients alone. The T² of a distillation loss makes
            them large, so that a bound fit for plain training can slow distillation down.
        validation: scored after every epoch; data of any kind.
        watch: further quantities to average over each epoch's batches, by name.
        device: default `best_device()`.
        precision: "bf16", "no", or "auto", which takes bf16 on CUDA devices that compute in it.
        checkpoint: file to save to and, if it is there, to resume from as if the run had not been
            interrupted, on a CPU bit for bit. A file of another run is refused.
        checkpoint_every: steps between two checkpoints; default: an epoch.
        log: JSONL file, one line an epoch: epoch, step, lr, losses, validation, seconds.
        progress: show a progress bar with live figures.
        seed: fixes the order of the data, the same for every student, augmentation and dropout. The
            student's first weights are yours to seed: every arm of a comparison can start from the same.

    Returns:
        `History`. Student and teacher are left in eval mode.

    Raises:
        ValueError: an argument, named with its value and what was expected; a teacher, a checkpoint or a log
            of something else; a `DataLoader` without a length or, with a checkpoint, one whose order cannot
            be seeded.
        FloatingPointError: the loss was not finite.
        TimeoutError: another process is training into the checkpoint or the log.
        OSError: one of the two cannot be written; started again, the run goes on from the last checkpoint.
    """
    data = training_data("data", data)
    validation = None if validation is None else training_data("validation", validation)
    loss = (_cross_entropy if teacher is None else kd_loss) if loss is None else loss
    check_arguments(
        student, data, teacher, loss, watch, checkpoint, epochs=epochs, lr=lr, batch_size=batch_size,
        weight_decay=weight_decay, clip=clip, checkpoint_every=checkpoint_every, seed=seed,
    )
    epochs, batch_size, seed = int(epochs), int(batch_size), int(seed)  # of NumPy, perhaps
    lr, weight_decay = float(lr), float(weight_decay)
    measured = {name: one_number(name, f, data) for name, f in {"loss": loss, **(watch or {})}.items()}
    steps = len(data) if isinstance(data, LoaderData) else math.ceil(len(data) / batch_size)  # in an epoch

    with accelerated(device, precision) as accelerator, seeded(seed, accelerator.device), ExitStack() as end:
        end.callback(student.eval)
        student.train()
        data, validation = data.to(accelerator.device), validation and validation.to(accelerator.device)
        ask_teacher = _asking(teacher, data, accelerator.device, epochs, seed)
        _move(student, accelerator.device)
        model = DistributedDataParallel(student) if accelerator.num_processes > 1 else student
        optimizer = torch.optim.AdamW(student.parameters(), lr, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
        run = end.enter_context(Run(accelerator, student, optimizer, schedule, watched=list(measured)[1:]))
        if checkpoint is not None:
            run.restore(checkpoint, _settings(
                student, data, validation, teacher, loss, watch=list(run.history.watched), epochs=epochs,
                lr=lr, batch_size=batch_size, weight_decay=weight_decay, clip=clip, seed=seed,
                precision=accelerator.mixed_precision,
            ))  # fmt: skip
        if log is not None:
            run.log_to(log)
        history = run.history
        bar = tqdm(desc="steps", total=epochs * steps, initial=history.steps, mininterval=1, leave=False,
                   disable=not (progress and accelerator.is_main_process))  # fmt: skip

        for batch, share in _steps(data, batch_size, epochs, run, seed, accelerator):
            # Seeded anew at each step: a resumed run need not know how many numbers dropout had drawn.
            number = history.steps * accelerator.num_processes + accelerator.process_index
            torch.manual_seed(substream(seed, "step", number))
            with accelerator.autocast():
                teacher_logits = ask_teacher(batch)
                student_logits = as_logits("student", model(batch.images)).float()
            values = {n: f(student_logits, teacher_logits, batch.labels) for n, f in measured.items()}
            optimizer.zero_grad()
            (values["loss"] * share).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(student.parameters(), clip)
            optimizer.step()
            schedule.step()

            run.count(values, len(batch.labels) if share else 0)
            if history.steps % steps == 0:
                run.close_epoch(validation and partial(evaluate, student, validation))
            if bar.update():  # a second has passed
                bar.set_postfix_str(run.figures())
            if history.steps % (checkpoint_every or steps) == 0:
                run.save()
        bar.close()
        run.finish()
    return history


@torch.no_grad()
def predict(model: nn.Module, images: Tensor | DataLoader, batch_size: int = 1024) -> Tensor:
    """Logits (N, C) in eval mode, on the CPU; the model's mode is restored.

    Args:
        images: (N, …) float32 in [0, 1] or uint8, or a `DataLoader` of images or of (images, labels).
        batch_size: images in a pass; a `DataLoader` has its own.

    Raises:
        ValueError: no module, no images, or a module that gives no tensor (N, C).
    """
    check_model("model", model)
    check_shown(images, batch_size)
    device = next((p.device for p in model.parameters()), None)
    parts = images.split(batch_size) if isinstance(images, Tensor) else images
    with eval_mode(model):
        found = (part[0] if isinstance(part, tuple | list) else part for part in parts)
        return torch.cat([as_logits("model", model(as_float(part.to(device)))).cpu() for part in found])


def evaluate(model: nn.Module, data: TrainingData | DataLoader, batch_size: int = 1024) -> Scores:
    """Accuracy, negative log-likelihood and calibration of a model on labelled images, in eval mode.

    Args:
        model: (N, …) images -> (N, C) logits; its mode is restored.
        data: as `fit` takes them; a loader of `kdlib.vision` shows its images without augmentation.
        batch_size: images in a pass; a `DataLoader` has its own.

    Raises:
        ValueError: data of another kind, a label that is no class, or logits that are no numbers, as of NaN
            in a picture.
    """
    data = training_data("data", data)
    parts = data.in_order() if isinstance(data, LoaderData) else [getattr(data, "examples", data)]
    found = [(predict(model, part.images, batch_size), part.labels.cpu()) for part in parts]
    logits, labels = (torch.cat(column) for column in zip(*found, strict=True))
    return score(logits, labels)


def out_of_fold(
    build: Callable[[], nn.Module], data: Examples, *, folds: int = 5, seed: int = 0, **settings
) -> Tensor:
    """Logits (N, C) for each example from a model that never saw it.

    The data are cut into folds, each digit's share kept; each fold is predicted by a model trained on
    the others. Soft labels of training examples are overconfident; these are not.

    Args:
        build: makes an untrained model; called once a fold.
        settings: passed on to `fit`; no files, which folds would share.

    Source: Stone 1974, "Cross-validatory choice and assessment of statistical predictions".
    """
    logits = None
    for kept, held_out in stratified_folds(data.labels, folds, seed):
        with seeded(seed, torch.device("cpu")):
            model = build()
        fit(model, data[kept], seed=seed, **settings)
        predicted = predict(model, data[held_out].images)
        if logits is None:
            logits = predicted.new_empty(len(data), predicted.shape[-1])
        logits[held_out] = predicted
    return logits


def _steps(
    data: TrainingData | LoaderData, batch_size: int, epochs: int, run: Run, seed: int,
    accelerator: Accelerator,
) -> Iterator[tuple[Batch, float]]:  # fmt: skip
    """The batches from where the run stands, of each the rows of this process, and what their mean weighs."""
    # Its own generator: dropout draws from the other one, and must not change the order between arms.
    order = torch.Generator().manual_seed(seed)
    done = run.history.steps
    for epoch in range(epochs):
        if isinstance(data, LoaderData):
            for batch in data.epoch(epoch, seed, skip=done - epoch * len(data)):
                rows, share = _part(torch.arange(len(batch.labels)), accelerator)
                yield Batch(batch.images[rows], batch.labels[rows], None), share
            continue
        chunks = torch.randperm(len(data), generator=order).split(batch_size)
        left = chunks[max(done - epoch * len(chunks), 0) :]
        parts = [_part(chunk, accelerator) for chunk in left]
        batches = data.batches([rows for rows, _ in parts], epoch=epoch, seed=seed)
        yield from zip(batches, [share for _, share in parts], strict=True)


def _part(rows: Tensor, accelerator: Accelerator) -> tuple[Tensor, float]:
    """The rows of a batch that this process computes, and what their mean weighs in that of all processes."""
    part = rows.tensor_split(accelerator.num_processes)[accelerator.process_index]
    # A process without an example still takes part in the step: it computes one that counts nothing.
    return part if len(part) else rows[:1], len(part) * accelerator.num_processes / len(rows)


def _move(model: nn.Module, device: torch.device) -> None:
    model.to(device)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    five = any(weight.dim() == 5 for weight in (*model.parameters(), *model.buffers()))
    if first is not None and first.in_channels > 2 and not five:
        model.to(memory_format=torch.channels_last)


def _asking(teacher, data, device: torch.device, epochs: int, seed: int) -> Callable[[Batch], Tensor | None]:
    """From a batch to the teacher's logits (B, C) for it, whatever the teacher is."""
    if teacher is None:
        return lambda batch: None
    if isinstance(teacher, CachedTeacher):
        return teacher.prepare(data, device, epochs=epochs, seed=seed)
    if isinstance(teacher, Tensor):
        logits = teacher.detach().to(device)
        return lambda batch: logits[batch.rows]
    _move(teacher.eval(), device)
    return torch.no_grad()(lambda batch: as_logits("teacher", teacher(batch.images)).float())


def _cross_entropy(student_logits: Tensor, teacher_logits: None, labels: Tensor) -> Tensor:
    check_labels(labels, student_logits, student_logits.shape[-1], -100)
    return F.cross_entropy(student_logits.float(), labels.long())


_cross_entropy.ignore_index = -100  # the label of examples that it leaves out


def _settings(student, data, validation, teacher, loss, **others: object) -> dict[str, object]:
    """What must be the same when a run is resumed, as JSON values."""
    live = isinstance(teacher, nn.Module | Tensor)
    frozen = [name for name, weight in student.named_parameters() if not weight.requires_grad]
    return {
        **others,
        **({"frozen": frozen} if frozen else {}),
        "data": data.fingerprint(),
        "validation": validation and validation.fingerprint(),
        "teacher": fingerprint(teacher) if live else teacher and teacher.fingerprint,
        "student": fingerprint(str(student)),
        "loss": identity(loss),
    }
