"""What `fit`, `predict` and `evaluate` refuse: before the first step, and at a loss that is none."""

import os
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdlib.arguments import check_number, check_whole, refuse, shortened
from kdlib.cache.images import CachedTeacher
from kdlib.data import Examples, LoaderData, TrainingData
from kdlib.losses.kd import kd_loss

__all__ = ["as_logits", "check_arguments", "check_model", "check_shown", "one_number"]


def check_arguments(
    student, data: TrainingData | LoaderData, teacher, loss: Callable, watch, checkpoint, *,
    epochs, lr, batch_size, weight_decay, clip, checkpoint_every, seed,
) -> None:  # fmt: skip
    """Those of `fit`; the device, the precision and the files are looked at where they are opened."""
    check_whole("epochs", epochs, least=1)
    check_whole("batch_size", batch_size, least=1)
    check_whole("seed", seed)
    if not -(2**63) <= seed < 2**63:
        refuse("seed", seed, "a whole number of 64 bits")
    check_number("lr", lr, above=0)
    check_number("weight_decay", weight_decay, least=0)
    if clip is not None:
        check_number("clip", clip, above=0)
    if checkpoint_every is not None:
        check_whole("checkpoint_every", checkpoint_every, least=1)
    check_model("student", student)
    if not any(weight.requires_grad for weight in student.parameters()):
        raise ValueError("student has no weight that learns; expected requires_grad=True for some of them")
    for name, function in {"loss": loss, **_named(watch)}.items():
        if not callable(function):
            refuse(name, function, "a function (student logits, teacher logits, labels) -> a mean over them")
    _check_teacher(teacher, student, data)
    _check_labelled(data, loss)
    shared = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if isinstance(data, LoaderData) and (shared or checkpoint is not None):
        data.check_order()


def check_model(name: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        refuse(name, model, "a torch.nn.Module: images -> logits (N, C)")


def check_shown(images: object, batch_size: int) -> None:
    """What `predict` is to show a model."""
    check_whole("batch_size", batch_size, least=1)
    if not isinstance(images, Tensor | DataLoader):
        hint = "images.images" if isinstance(images, Examples) else "a tensor (N, …), or a torch DataLoader"
        refuse("images", images, hint)
    if not len(images):
        raise ValueError("images is empty; expected at least one")


def as_logits(name: str, output: object) -> Tensor:
    """What a model gave; refused where it is no tensor (…, C)."""
    if not isinstance(output, Tensor) or output.dim() < 2:
        hint = "; of a model of transformers take .logits" if hasattr(output, "logits") else ""
        refuse(f"what the {name} gives for a batch of images", output, f"logits (N, C), a tensor{hint}")
    return output


def one_number(name: str, function: Callable, data: TrainingData | LoaderData) -> Callable:
    """The loss, or something to watch: each time it has to be one number, and the loss to have a gradient.

    At the first batch all labels of the data are held against the number of classes: on a GPU an index out
    of range would end the process later.
    """
    labels_of_all = _labels(data) if _left_out(function) is not None else None

    def checked(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        nonlocal labels_of_all
        if labels_of_all is not None:
            classes, highest, labels_of_all = student_logits.shape[-1], labels_of_all.max().item(), None
            if highest >= classes:
                raise ValueError(
                    f"labels holds {highest}; expected 0 to {classes - 1}: student gives {classes} logits"
                )
        value = function(student_logits, teacher_logits, labels)
        if not isinstance(value, Tensor) or value.dim():
            refuse(f"what {name} returns", value, "a scalar tensor, the mean over the batch: .mean()")
        if name == "loss" and not value.requires_grad:
            raise ValueError("what loss returns has no gradient; expected a function of the student's logits")
        return value

    return checked


def _named(watch: Mapping[str, Callable] | None) -> dict[str, Callable]:
    if not isinstance(watch, Mapping | None):
        refuse("watch", watch, "functions by name, as {'agreement': …}")
    if watch and "loss" in watch:
        raise ValueError('watch holds the name "loss", which stands for the training loss; expected others')
    return {f"watch[{name!r}]": function for name, function in (watch or {}).items()}


def _check_teacher(teacher: object, student: nn.Module, data: TrainingData | LoaderData) -> None:
    if not isinstance(teacher, nn.Module | Tensor | CachedTeacher | None):
        named = f", as load_pretrained({teacher!r}).model" if isinstance(teacher, str) else ""
        refuse("teacher", teacher, f"a module{named}, its logits (N, C), a CachedTeacher, or None")
    if isinstance(data, LoaderData) and not isinstance(teacher, nn.Module | None):
        raise ValueError(
            f"teacher is {shortened(teacher)}, which has logits for each row of the data; a DataLoader "
            f"does not say which rows are in a batch. Give the teacher as a module, or the data as Examples"
        )
    if isinstance(teacher, Tensor):
        if len(teacher) != len(data):
            raise ValueError(
                f"teacher holds {len(teacher)} rows of logits for {len(data)} examples; expected one each"
            )
        if not teacher.is_floating_point() or teacher.dim() < 2:
            refuse("teacher", teacher, f"logits ({len(data)}, C) of floating point")
        if (spoilt := (teacher.isnan() | teacher.isposinf()).flatten(1).any(1)).any():
            row = spoilt.nonzero()[0].item()
            raise ValueError(f"teacher holds NaN or inf in row {row}; expected finite numbers, or −inf")
    if teacher is student:
        raise ValueError("teacher and student are the same module; expected two")


def _labels(data: TrainingData | LoaderData) -> Tensor | None:
    labels = getattr(getattr(data, "examples", data), "labels", None)
    return None if labels is None else labels.long()  # -100 is another number in eight bits


def _left_out(loss: Callable) -> int | None:
    """The label of examples that a loss leaves out, where that is known."""
    if isinstance(loss, partial):
        return loss.keywords.get("ignore_index", _left_out(loss.func))
    return -100 if loss is kd_loss else getattr(loss, "ignore_index", None)


def _check_labelled(data: TrainingData | LoaderData, loss: Callable) -> None:
    """A loss learns nothing where it leaves out all labels."""
    labels, left_out = _labels(data), _left_out(loss)
    if labels is None or left_out is None:
        return
    if not (labels != left_out).any():
        raise ValueError(
            f"labels are all {left_out}, which the loss leaves out; expected some from 0 on. To learn from a "
            f"teacher alone, label them 0 and give loss=partial(kd_loss, alpha=0)"
        )
    if (outside := (labels < 0) & (labels != left_out)).any():
        row = outside.nonzero()[0].item()
        raise ValueError(
            f"labels holds {labels[row].item()} in row {row}; expected classes from 0 on, or {left_out} for "
            f"an example without a label"
        )
