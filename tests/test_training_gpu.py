"""Training on a CUDA device: the CPU's losses, bfloat16 by default, no wait for the device at each step."""

import contextlib

import pytest
import torch
from torch.nn.functional import cross_entropy

from kdlib.training import fit, predict
from kdlib.vision.loader import Augmentation, Loader
from kdlib.vision.nets import convnet
from kdlib.vision.sketches import load_sketches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def data():
    return load_sketches(256, 64, 1, size=32)


def run(data, **changed):
    torch.manual_seed(0)
    model = convnet((8, 16), depth=2)
    settings = {"epochs": 2, "lr": 1e-3, "batch_size": 64, "seed": 0, **changed}
    return model, fit(model, Loader(data.train, Augmentation(cutout=8)), **settings)


@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-3), ("bf16", 3e-2)])
def test_the_losses_are_those_of_the_cpu(data, precision, tolerance):
    _, there = run(data, device="cuda", precision=precision)
    _, here = run(data, device="cpu")
    assert there.loss == pytest.approx(here.loss, rel=tolerance)


def test_crops_on_the_device_are_those_on_the_cpu_to_the_bit(data):
    rows = [torch.arange(100)]
    here = Loader(data.train, Augmentation(cutout=8))
    for first, second in zip(here.batches(rows), here.to("cuda").batches(rows), strict=True):
        assert torch.equal(first.images, second.images.cpu())


def test_bfloat16_is_the_default_and_weights_stay_float32(data):
    model = convnet((8,))
    seen = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    fit(model, data.train, epochs=1, lr=1e-3, batch_size=64, seed=0)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_run_stopped_in_the_middle_ends_where_the_whole_one_does(data, tmp_path):
    whole, _ = run(data, precision="no")
    steps = 0

    def stopping(student_logits, teacher_logits, labels):
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt
        return cross_entropy(student_logits, labels)

    path = tmp_path / "run.safetensors"
    for _ in range(2):  # stopped at step 6, resumed from the checkpoint of step 3, stopped no more
        with contextlib.suppress(KeyboardInterrupt):
            resumed, _ = run(data, precision="no", loss=stopping, checkpoint=path, checkpoint_every=3)
    expected = predict(whole, data.validation.images)
    torch.testing.assert_close(predict(resumed, data.validation.images), expected, rtol=1e-2, atol=1e-2)
