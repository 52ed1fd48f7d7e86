"""Many small students trained side by side, so that ten seeds cost little more than one."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from kdlib.data import Examples
from kdlib.training import LossFunction


def fit_many(
    students: Sequence[nn.Module], data: Sequence[Examples], *,
    teacher: Sequence[Tensor] | None = None, loss: LossFunction | None = None,
    epochs: int, lr: float, batch_size: int = 50, weight_decay: float = 1e-4, seeds: Sequence[int],
) -> None:  # fmt: skip
    """Train each student in place as `fit` trains it alone on a CPU, up to rounding.

    A step of a small network is mostly overhead; here all students share it.

    Args:
        students: S networks of one shape, without dropout or batch statistics; left in eval mode.
        data: S sets of n examples, one for each student.
        teacher: S tensors of logits (n, C), one row for each example; default: no teacher.
        loss: see `LossFunction`, a mean over the batch; by default cross-entropy with the labels.
        epochs, lr, batch_size, weight_decay: as for `fit`.
        seeds: S numbers; each fixes the order in which its student sees its examples.

    Raises:
        ValueError: not one data set, seed and teacher for each student, or sets of different sizes.

    Source: PyTorch's tutorial "Model ensembling", on `torch.func.stack_module_state` and `vmap`.
    """
    sizes = [len(part) for part in data]
    counts = [len(x) for x in (students, data, seeds, seeds if teacher is None else teacher)]
    if len(set(counts)) != 1 or len(set(sizes)) != 1:
        raise ValueError(
            f"expected one data set, one seed and one teacher for each student, and sets of one size; got "
            f"{counts[0]} students, {counts[1]} sets of {sizes}, {counts[2]} seeds, {counts[3]} teachers"
        )
    many, n = counts[0], sizes[0]
    loss = loss or (lambda z, _, y: F.cross_entropy(z, y))
    images = torch.stack([part.images for part in data])
    labels = torch.stack([part.labels for part in data])
    logits = None if teacher is None else torch.stack(list(teacher))
    weights, _ = stack_module_state([student.train() for student in students])
    answer = vmap(lambda w, x: functional_call(students[0], w, (x,)))
    optimizer = torch.optim.AdamW(weights.values(), lr, weight_decay=weight_decay, fused=True)
    steps = epochs * -(-n // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]  # as in `fit`
    own = torch.arange(many)[:, None]
    for _ in range(epochs):
        order = torch.stack([torch.randperm(n, generator=generator) for generator in orders])
        for rows in order.split(batch_size, dim=1):
            z = answer(weights, images[own, rows]).flatten(0, 1)
            z_teacher = None if logits is None else logits[own, rows].flatten(0, 1)
            # Everyone's mean times their number: each student has the gradient that it has alone.
            value = many * loss(z, z_teacher, labels[own, rows].flatten())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    for k, student in enumerate(students):
        student.load_state_dict({name: weight[k].detach() for name, weight in weights.items()})
        student.eval()
