"""What training writes, when it refuses to go on, and how seldom it waits for the device."""

import json
import math
import traceback

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdlib.data import Examples
from kdlib.storage import load_tensors
from kdlib.training import fit

SETTINGS = {"batch_size": 4, "device": "cpu", "seed": 0}


def pictures(count=18, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 3, 3, generator=generator)
    return Examples(images, torch.randint(0, 3, (count,), generator=generator), torch.arange(count))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3))


def one_cycle(step, total, highest):
    """The learning rate after so many steps, as PyTorch documents its default cycle."""

    def cosine(start, end, share):
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    top = 0.3 * total - 1
    if step <= top:
        return cosine(highest / 25, highest, step / top)
    return cosine(highest, highest / 25e4, (step - top) / (total - 1 - top))


# --- the log ---------------------------------------------------------------------------------------


def test_the_log_holds_what_the_history_holds_and_the_learning_rate_of_the_cycle(tmp_path):
    found = fit(
        network(), pictures(), epochs=6, lr=0.02, validation=pictures(9, 1), log=tmp_path / "log.jsonl",
        watch={"size": lambda s, t, y: s.square().mean()}, **SETTINGS,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30]
    assert [line["loss"] for line in lines] == found.loss
    assert [line["size"] for line in lines] == found.watched["size"]
    assert [line["validation"]["nll"] for line in lines] == [s.nll for s in found.validation]
    assert [line["validation"]["accuracy"] for line in lines] == [s.accuracy for s in found.validation]
    # At the end of an epoch stands the rate of the step to come; after the last there is none.
    expected = [one_cycle(step, 30, 0.02) for step in (5, 10, 15, 20, 25)]
    assert [line["lr"] for line in lines[:-1]] == pytest.approx(expected, rel=1e-9)


# --- losses and weights that are not finite --------------------------------------------------------


class Spoilt:
    """A loss that from a step on is not finite, or has a gradient that is not."""

    def __init__(self, at, *, gradient=False):
        self.left, self.gradient = at, gradient

    def __call__(self, student_logits, teacher_logits, labels):
        self.left -= 1
        loss = nn.functional.cross_entropy(student_logits, labels)
        if self.left > 0:
            return loss
        # The square root of zero is zero, and its slope infinite.
        return loss + (student_logits * 0).sum().sqrt() if self.gradient else loss * float("inf")


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_loss_or_gradient_that_is_not_finite_never_reaches_the_checkpoint(tmp_path, gradient, every):
    path = tmp_path / "run.safetensors"
    loss = Spoilt(7, gradient=gradient)
    with pytest.raises(FloatingPointError, match=r"finite|is (inf|nan)"):
        fit(
            network(), pictures(), epochs=3, lr=0.01, loss=loss, checkpoint=path, checkpoint_every=every,
            **SETTINGS,
        )  # fmt: skip
    tensors, metadata = load_tensors(path)
    assert metadata["history"]["steps"] == 6
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


# --- waiting for the device ------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts how often a value was read from a tensor, but for the optimizer's own counts of steps."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        reads = function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        if reads and not any("optim" in frame.filename for frame in traceback.extract_stack(limit=12)):
            self.count += 1
        return function(*arguments, **(named or {}))


def waits(count):
    def loss(student_logits, teacher_logits, labels):  # kd_loss looks at its input on a CPU, at each call
        return nn.functional.cross_entropy(student_logits, labels)

    with Waits() as mode:
        fit(
            network(), pictures(count), epochs=2, lr=0.01, loss=loss, clip=1.0, teacher=network(),
            watch={"again": loss}, validation=pictures(9, 1), **SETTINGS,
        )  # fmt: skip
    return mode.count


def test_values_are_read_once_an_epoch_not_at_each_step():
    few, many = waits(16), waits(160)  # 4 and 40 steps an epoch
    assert few == many > 0


class Bar:
    """A progress bar on which a second passes every other step."""

    shown, steps = [], 0

    def __init__(self, **settings):
        assert settings["mininterval"] == 1

    def update(self):
        self.steps += 1
        return self.steps % 2 == 0

    def set_postfix_str(self, text):
        self.shown.append(text)

    def close(self):
        pass


def test_the_progress_bar_shows_the_mean_loss_so_far_also_after_a_resumption(tmp_path, monkeypatch):
    monkeypatch.setattr("kdlib.training.tqdm", Bar)
    for stop in (3, None):
        steps, stops = 0, [stop]

        def loss(student_logits, teacher_logits, labels, stops=stops):
            nonlocal steps
            steps += 1
            if steps == stops[0]:
                raise InterruptedError
            return student_logits.mean() * 0 + 2.0

        try:
            fit(network(), pictures(), epochs=2, lr=0.01, loss=loss, checkpoint=tmp_path / "run",
                checkpoint_every=2, progress=True, validation=pictures(9, 1), **SETTINGS)  # fmt: skip
        except InterruptedError:
            assert stop == 3
    assert Bar.shown[:2] == ["loss 2.000"] * 2  # after the steps 2 and 4 of 5
    assert all(text.startswith("loss 2.000, validation ") for text in Bar.shown[2:])
    assert len(Bar.shown) == 5
