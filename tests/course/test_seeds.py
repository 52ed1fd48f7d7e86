"""Students trained side by side are the students that `fit` makes one by one."""

from functools import partial

import pytest
import torch

from kdlib import fit, kd_loss
from kdlib.course.seeds import fit_many
from kdlib.data import Examples
from kdlib.training import predict
from kdlib.vision.nets import mlp

SEEDS = (3, 1, 7)
TRAINING = {"epochs": 4, "lr": 0.02, "batch_size": 20, "weight_decay": 0.01}


def case(n=50, seed=0):
    """Examples and a teacher's logits for them; 50 are two batches of 20 and one of 10."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 1, 2, 3, generator=draw)
    labels = torch.randint(4, (n,), generator=draw)
    return Examples(images, labels, torch.arange(n)), torch.randn(n, 4, generator=draw)


def students():
    for seed in SEEDS:
        torch.manual_seed(seed)
        yield mlp([5], inputs=6, classes=4)


@pytest.mark.parametrize("taught", [False, True])
def test_each_student_is_the_one_that_fit_makes(taught):
    parts, logits = zip(*(case(seed=seed) for seed in SEEDS), strict=True)
    loss = partial(kd_loss, temperature=3.0, alpha=0.3) if taught else None
    alone, together = list(students()), list(students())
    for k, seed in enumerate(SEEDS):
        teacher = logits[k] if taught else None
        fit(alone[k], parts[k], teacher=teacher, loss=loss, device="cpu", seed=seed, **TRAINING)
    fit_many(together, parts, teacher=logits if taught else None, loss=loss, seeds=SEEDS, **TRAINING)

    images = case(seed=9)[0].images
    for one, same in zip(alone, together, strict=True):
        torch.testing.assert_close(predict(same, images), predict(one, images), rtol=1e-4, atol=1e-5)
        assert not same.training


def test_what_does_not_belong_together_is_refused():
    few, logits = case()
    more, _ = case(60)
    nets = list(students())
    for bad in (
        {"data": [few] * 2}, {"data": [few, few, more]}, {"seeds": [1]}, {"teacher": [logits] * 4},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected one data set, one seed and one teacher for each"):
            fit_many(nets, **({"data": [few] * 3, "seeds": SEEDS, **TRAINING} | bad))
