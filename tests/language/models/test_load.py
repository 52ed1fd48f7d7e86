"""Loading: what is read is what was saved; whatever is missing or damaged is told before it is used."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from hub import COMMIT, hub
from huggingface_hub import HfApi, constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM
from transformers.utils import logging

from kdlib.language.models import load as loading
from kdlib.language.models.load import load_checkpoint
from kdlib.language.models.r1_distill import R1_DISTILL
from kdlib.language.models.small import tiny_model
from kdlib.language.models.tiny import stand_in
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer
from kdlib.storage import DamagedFile

QUESTION = "A cage holds chickens and rabbits: 10 heads and 28 feet. How many of each?"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """In four files and an index, of a Qwen2 of two layers."""
    return stand_in("Qwen-7B", tmp_path_factory.mktemp("saved") / "small")


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty Hugging Face cache, and no Hub that could be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def put_into_cache(cache: Path, repo: str, folder: Path) -> Path:
    place = cache / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(folder, place / "snapshots" / COMMIT))


def same_weights(model, other) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- a folder -----------------------------------------------------------------------------------------------


def test_what_is_loaded_is_what_was_saved(saved, caplog, capfd):
    verbosity, default = logging.get_verbosity(), torch.get_default_dtype()
    torch.manual_seed(3)
    model, tokenizer = load_checkpoint(str(saved))
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(3))
    assert type(model) is Qwen2ForCausalLM and not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in model.parameters()} == {loading.best_device().type}
    model.to("cpu")
    with_bars = logging.is_progress_bar_enabled()
    assert same_weights(model, AutoModelForCausalLM.from_pretrained(saved))
    assert capfd.readouterr().out == "" and with_bars
    assert (verbosity, default) == (logging.get_verbosity(), torch.get_default_dtype())
    assert not caplog.records


def test_the_tokenizer_is_what_the_file_says_and_pads_on_the_left(saved):
    _, tokenizer = load_checkpoint(saved, device="cpu")
    ids = tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    assert ids == puzzle_tokenizer()(QUESTION)["input_ids"] and tokenizer.decode(ids) == QUESTION
    batch = tokenizer(["A", QUESTION], padding=True)
    assert batch["attention_mask"][0][0] == 0 and batch["attention_mask"][0][-1] == 1


def test_special_tokens_of_the_model_are_those_of_the_tokenizer(saved):
    model, tokenizer = load_checkpoint(saved, device="cpu")
    wrong = json.loads((saved / "config.json").read_bytes())["bos_token_id"]
    assert wrong == tokenizer.eos_token_id  # a trap of the originals
    for named in (model.config, model.generation_config):
        assert named.bos_token_id == tokenizer.bos_token_id != tokenizer.eos_token_id
        assert named.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert (model.generation_config.temperature, model.generation_config.top_p) == (0.6, 0.95)


def test_the_embedding_of_the_end_is_trained_though_it_pads(copy):
    """As in what a training run leaves: config.json names the end as padding."""
    change(copy / "config.json", pad_token_id=puzzle_tokenizer().eos_token_id)
    model, tokenizer = load_checkpoint(copy, dtype="float32", device="cpu")
    end = tokenizer.eos_token_id
    ids = torch.tensor([[9, end, 10, 11]])
    model(ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad[end].abs().sum() > 0


@pytest.mark.parametrize("dtype", ["float32", torch.float32, "float16"])
def test_dtype(saved, dtype):
    model, _ = load_checkpoint(saved, dtype=dtype, device="cpu")
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {p.dtype for p in model.parameters()} == {expected} and model.config.dtype == expected
    # Widening loses nothing.
    exact = AutoModelForCausalLM.from_pretrained(saved)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, exact.state_dict()[name].to(expected)), name


def test_auto_is_the_dtype_of_the_checkpoint(tmp_path):
    tokenizer = puzzle_tokenizer()
    tiny_model(tokenizer, width=16, layers=1, family="llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, read = load_checkpoint(tmp_path, device="cpu")
    assert model.dtype == torch.float32 and model.config.model_type == "llama"
    assert model.lm_head.weight is model.get_input_embeddings().weight  # stored once
    assert read.pad_token == tokenizer.pad_token != read.eos_token


def test_spread_over_devices(saved):
    for device in ("auto", {"": "cpu"}, torch.device("cpu")):
        model, _ = load_checkpoint(saved, device=device)
        assert same_weights(model.to("cpu"), AutoModelForCausalLM.from_pretrained(saved))


def test_only_long_work_has_a_bar(saved, capfd, monkeypatch):
    load_checkpoint(saved, device="cpu")
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(loading, "_LARGE", 1e3)
    load_checkpoint(saved, device="cpu")
    assert "100%" in capfd.readouterr().err
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize("dtype", ["int32", "bf16", torch.int8, None])
def test_other_dtypes_are_refused(saved, dtype):
    with pytest.raises(ValueError, match="dtype is .*; expected one of auto, bfloat16"):
        load_checkpoint(saved, dtype=dtype)


# --- a folder with something wrong --------------------------------------------------------------------------


def shards(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors"))
    assert len(found) > 1
    return found


def change(path: Path, **settings) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | settings))


def without_tensor(folder: Path) -> None:
    path = shards(folder)[-1]
    tensors = load_file(path)
    del tensors[min(tensors)]
    save_file(tensors, path, {"format": "pt"})


def only(folder: Path, name: str) -> None:
    """This file in place of the weights."""
    for path in folder.glob("*safetensors*"):
        path.unlink()
    (folder / name).write_bytes(b"never read")


FAULTS = {
    "no config": (lambda f: (f / "config.json").unlink(), FileNotFoundError, "lacks config.json$"),
    "config that is no JSON": (
        lambda f: (f / "config.json").write_text("{"), OSError, "not a valid JSON file"),
    "unknown architecture": (
        lambda f: change(f / "config.json", model_type="unheard_of"), ValueError,
        "model type `unheard_of`"),
    "encoder": (
        lambda f: change(f / "config.json", model_type="clip_vision_model"), ValueError,
        "AutoModelForCausalLM"),
    "code of its own": (
        lambda f: change(f / "config.json", model_type="own", auto_map={"AutoModelForCausalLM": "own.Own"}),
        ValueError, "model type `own`"),
    "another width": (
        lambda f: change(f / "config.json", intermediate_size=96), ValueError,
        "lacks 6 of the weights .* another shape; the first is .*down_proj"),
    "another depth": (
        lambda f: change(f / "config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3),
        ValueError, r"lacks 12 of the weights .* the first is model\.layers\.2\."),
    "no weights": (lambda f: [p.unlink() for p in f.glob("*safetensors*")], FileNotFoundError,
                   "lacks model.safetensors$"),
    "pickled weights": (lambda f: only(f, "pytorch_model.bin"), FileNotFoundError,
                        "lacks model.safetensors$"),
    "a missing shard": (
        lambda f: shards(f)[1].unlink(), FileNotFoundError,
        r"lacks model-00002-of-00004\.safetensors$"),
    "an empty shard": (
        lambda f: shards(f)[2].write_bytes(b""), DamagedFile,
        "a file in .* is cut off or damaged"),
    "a shard without a tensor": (without_tensor, ValueError, "lacks 1 of the weights"),
    "index that is no JSON": (
        lambda f: (f / "model.safetensors.index.json").write_text("?"), DamagedFile,
        "a file in .* is cut off or damaged"),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(), FileNotFoundError,
        "lacks tokenizer.json$"),
    "tokenizer that is none": (
        lambda f: (f / "tokenizer.json").write_text("{}"), DamagedFile, "tokenizer in .* cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told(copy, fault):
    spoil, kind, message = FAULTS[fault]
    spoil(copy)
    with pytest.raises(kind, match=message) as refused:
        load_checkpoint(copy, device="cpu")
    if fault not in ("unknown architecture", "encoder", "code of its own"):  # transformers' own words
        assert str(copy) in str(refused.value)


def test_a_native_architecture_is_loaded_without_the_code_beside_it(copy):
    (copy / "own.py").write_text("raise SystemExit('code of the repository was run')")
    change(copy / "config.json", auto_map={"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.OwnConfig"})
    change(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    model, tokenizer = load_checkpoint(copy, device="cpu")
    assert type(model) is Qwen2ForCausalLM and tokenizer.decode(tokenizer(" 28")["input_ids"][1:]) == " 28"


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_cut_off_anywhere_is_told(saved, tmp_path, data):
    folder = tmp_path / "cut"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    path = data.draw(st.sampled_from(shards(folder)))
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(DamagedFile, match="is cut off or damaged"):
        load_checkpoint(folder, device="cpu")


@pytest.mark.parametrize("name", ["Qwen-3B", "no/such/folder", "./Qwen-7B", "a//b"])
def test_what_is_neither_folder_nor_repository(name, cache):
    with pytest.raises(FileNotFoundError, match="there is no folder; expected one, a repository"):
        load_checkpoint(name)


# --- the cache and the Hub ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Qwen-1.5B", "Llama-70B"])
def test_without_a_network_it_says_what_to_download(name, cache):
    began = time.monotonic()
    with pytest.raises(FileNotFoundError) as refused:
        load_checkpoint(name)
    assert time.monotonic() - began < 5
    repo, message = R1_DISTILL[name].repo, str(refused.value)
    short = f"DeepSeek-R1-Distill-{name}"
    assert f"`hf download {repo} --local-dir {short}`" in message
    assert f"({R1_DISTILL[name].weight_bytes / 1e9:.1f} GB)" in message
    assert f"load_checkpoint('path/to/{short}')" in message
    assert "HF_HUB_OFFLINE is set" in message and str(cache) in message


def test_a_cached_repository_needs_no_network(cache, saved, monkeypatch):
    put_into_cache(cache, "course/small", saved)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: pytest.fail("the Hub was asked"))
    model, tokenizer = load_checkpoint("course/small", device="cpu")
    assert same_weights(model, AutoModelForCausalLM.from_pretrained(saved))
    assert tokenizer.decode(tokenizer(QUESTION)["input_ids"], skip_special_tokens=True) == QUESTION


@pytest.mark.parametrize("missing", ["model-00002-of-00004.safetensors", "tokenizer.json", "config.json"])
def test_half_a_download_in_the_cache_does_not_count(cache, saved, missing):
    (put_into_cache(cache, "course/small", saved) / missing).unlink()
    with pytest.raises(FileNotFoundError, match="small is not, or not whole, in the Hugging Face cache"):
        load_checkpoint("course/small")


def test_a_folder_goes_before_a_name(saved, tmp_path, monkeypatch, cache):
    shutil.copytree(saved, tmp_path / "Qwen-1.5B")
    monkeypatch.chdir(tmp_path)
    model, _ = load_checkpoint("Qwen-1.5B", device="cpu")
    assert model.config.stand_in_for == R1_DISTILL["Qwen-7B"].repo


@pytest.fixture
def online(cache, monkeypatch):
    def reach(server) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            server.url + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
        monkeypatch.setattr(loading, "_PATIENCE", 0.3)

    return reach


def test_what_is_missing_is_downloaded_without_pickles_and_once(copy, online, capfd):
    (copy / "pytorch_model.bin").write_bytes(b"never wanted")
    (copy / "README.md").write_text("nor this")
    with hub("course/small", copy) as server:
        online(server)
        model, _ = load_checkpoint("course/small", device="cpu")
        fetched = {path.rpartition("/")[2] for command, path in server.asked if "/resolve/" in path}
        assert fetched == {p.name for p in copy.iterdir()} - {"pytorch_model.bin", "README.md"}
        asked = len(server.asked)
        again, _ = load_checkpoint("course/small", device="cpu")
        assert len(server.asked) == asked
    assert same_weights(model, AutoModelForCausalLM.from_pretrained(copy)) and same_weights(model, again)
    capfd.readouterr()  # the bars of the download


def test_an_interrupted_download_goes_on(cache, saved, online, capfd):
    kept = put_into_cache(cache, "course/small", saved)
    (kept / "model-00004-of-00004.safetensors").unlink()
    with hub("course/small", saved) as server:
        online(server)
        model, _ = load_checkpoint("course/small", device="cpu")
        fetched = {path.rpartition("/")[2] for command, path in server.asked if "/resolve/" in path}
    assert fetched == {"model-00004-of-00004.safetensors"}
    assert same_weights(model, AutoModelForCausalLM.from_pretrained(saved))
    capfd.readouterr()


@pytest.mark.parametrize(("failure", "reason"), [
    ("silent", "Timeout"),
    ("garbage", "Error"),
    ((404, "RepoNotFound"), "Repository Not Found"),
    ((403, "GatedRepo"), "gated repo"),
    ((500, None), "500"),
])  # fmt: skip
def test_a_hub_that_fails_is_told_at_once(online, failure, reason):
    with hub(failure=failure) as server:
        online(server)
        began = time.monotonic()
        with pytest.raises(FileNotFoundError, match=f"(?s){reason}.*hf download course/small") as refused:
            load_checkpoint("course/small")
        assert time.monotonic() - began < 5
        assert refused.value.__cause__ is not None


def test_no_server_at_all(online):
    with hub() as server:
        pass
    online(server)
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match="Connect.*hf download course/small"):
        load_checkpoint("course/small")
    assert time.monotonic() - began < 5


def packed(folder: Path, *names: str, **claimed: object) -> None:
    """One layer's weights as packed files have them: under these names, in another shape."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    layer = "model.layers.0.mlp.down_proj."
    weight = tensors.pop(f"{layer}weight")
    tensors |= {f"{layer}{name}": torch.zeros(2, 3, dtype=torch.int32) for name in names}
    if "weight" in names:  # fp8 keeps the shape, and without its scale another weight would be read
        tensors[f"{layer}weight"] = weight.clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if claimed:
        change(folder / "config.json", quantization_config=claimed)


@pytest.mark.parametrize(
    ("names", "claimed", "called"),
    [
        (("qweight", "qzeros", "scales", "g_idx"), {"quant_method": "gptq", "bits": 4}, "GPTQ"),
        (("qweight", "qzeros", "scales"), {"quant_method": "awq", "bits": 4}, "AWQ"),
        (("qweight", "qzeros", "scales"), {}, "GPTQ or AWQ"),  # named in quantize_config.json only
        (("weight", "weight.absmax", "weight.quant_map"), {"quant_method": "bitsandbytes"}, "bitsandbytes"),
        (("weight", "SCB"), {}, "bitsandbytes"),
        (("weight", "weight_scale_inv"), {"quant_method": "fp8"}, "fp8"),
        (("weight_packed", "weight_scale"), {"quant_method": "compressed-tensors"}, "compressed-tensors"),
        (("weight", "weight_scale"), {}, "with weight_scale"),
    ],
)
def test_packed_weights_are_called_that(copy, capfd, names, claimed, called):
    packed(copy, *names, **claimed)
    with pytest.raises(ValueError, match=rf"holds packed weights \({called}\).*Take the original: quantise"):
        load_checkpoint(copy, device="cpu")
    assert capfd.readouterr() == ("", "")  # transformers would list every weight


def test_whole_weights_are_read_though_their_configuration_says_packed(copy):
    change(copy / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    load_checkpoint(copy, device="cpu")


# --- fewer bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int4", True, 8, ""])
def test_other_quantisations_are_refused(saved, kind):
    with pytest.raises(ValueError, match='quantise is .*; expected "int8", "nf4" or None'):
        load_checkpoint(saved, quantise=kind)


@pytest.mark.parametrize(("kind", "bits", "close"), [("int8", 8, 0.999), ("nf4", 4, 0.9)])
def test_a_quantised_teacher(tmp_path, kind, bits, close):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    tiny_model(puzzle_tokenizer(), width=64, layers=1).save_pretrained(tmp_path)  # nf4 wants multiples of 64
    puzzle_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load_checkpoint(tmp_path, quantise=kind, device="cpu")
    exact, _ = load_checkpoint(tmp_path, device="cpu")
    layer = model.model.layers[0].mlp.up_proj.weight
    held, numbers = layer.numel() * layer.element_size(), exact.model.layers[0].mlp.up_proj.weight.numel()
    assert held * 8 == bits * numbers
    assert model.get_input_embeddings().weight.element_size() >= 2
    assert not any(parameter.requires_grad for parameter in model.parameters())
    ids = tokenizer(QUESTION, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours, theirs = model(ids).logits.float().flatten(), exact(ids).logits.float().flatten()
    assert torch.cosine_similarity(ours, theirs, dim=0) > close and not torch.equal(ours, theirs)
