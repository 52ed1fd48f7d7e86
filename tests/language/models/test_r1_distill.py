"""The six checkpoints: sizes to the unit, configurations as published, scores as reported."""

import copy
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from kdlib.language.models.r1_distill import BENCHMARKS, R1_DISTILL, TRAPS, find

# Reference: gigabytes in bfloat16, bytes of keys and values a token; each worked out by hand.
SIZES = {
    "Qwen-1.5B": (3.554, 28_672),
    "Qwen-7B": (15.231, 57_344),
    "Llama-8B": (16.061, 131_072),
    "Qwen-14B": (29.540, 196_608),
    "Qwen-32B": (65.528, 262_144),
    "Llama-70B": (141.107, 327_680),
}

# The rows of the README of DeepSeek-R1.
REPORTED = """
| DeepSeek-R1-Distill-Qwen-1.5B | 28.9 | 52.7 | 83.9 | 33.8 | 16.9 | 954 |
| DeepSeek-R1-Distill-Qwen-7B | 55.5 | 83.3 | 92.8 | 49.1 | 37.6 | 1189 |
| DeepSeek-R1-Distill-Qwen-14B | 69.7 | 80.0 | 93.9 | 59.1 | 53.1 | 1481 |
| DeepSeek-R1-Distill-Qwen-32B | 72.6 | 83.3 | 94.3 | 62.1 | 57.2 | 1691 |
| DeepSeek-R1-Distill-Llama-8B | 50.4 | 80.0 | 89.1 | 49.0 | 39.6 | 1205 |
| DeepSeek-R1-Distill-Llama-70B | 70.0 | 86.7 | 94.5 | 65.2 | 57.5 | 1633 |
"""

# config.json as it was published, in the words of transformers 4: of R1-Distill-Qwen-7B, and of Llama-3.1-8B.
PUBLISHED = {
    "Qwen-7B": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02,
        "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28,
        "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06, "rope_theta": 10000, "sliding_window": 4096, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": 152064,
    },
    "Llama-8B": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072,
        "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": 128256,
    },
}  # fmt: skip

six = pytest.mark.parametrize("name", SIZES)


def test_there_are_six_smallest_first_and_nobody_can_change_one():
    assert list(R1_DISTILL) == list(SIZES)
    counts = [checkpoint.parameters for checkpoint in R1_DISTILL.values()]
    assert counts == sorted(counts)
    with pytest.raises(AttributeError):
        R1_DISTILL["Qwen-7B"].parameters = 1
    R1_DISTILL["Qwen-7B"].scores.clear()
    R1_DISTILL["Qwen-7B"].sampling.clear()
    assert R1_DISTILL["Qwen-7B"].scores and R1_DISTILL["Qwen-7B"].sampling


@six
def test_parameters_to_the_unit(name):
    checkpoint = R1_DISTILL[name]
    model = checkpoint.on_meta()
    assert type(model) is (Qwen2ForCausalLM if name.startswith("Qwen") else LlamaForCausalLM)
    assert model.num_parameters() == sum(p.numel() for p in model.parameters()) == checkpoint.parameters
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    # Two embeddings; per layer queries and what comes out, keys and values, three matrices of the
    # feed-forward layer, two norms; Qwen2 adds a bias to queries, keys and values.
    c, narrow = checkpoint, checkpoint.kv_heads * checkpoint.head_dim
    layer = 2 * c.hidden**2 + 2 * c.hidden * narrow + 3 * c.hidden * c.feed_forward + 2 * c.hidden
    layer += (c.hidden + 2 * narrow) * (c.family == "qwen2")
    assert checkpoint.parameters == 2 * c.vocabulary * c.hidden + c.layers * layer + c.hidden
    assert c.head_dim == 128


@six
def test_bytes_of_weights_and_of_keys_and_values(name):
    checkpoint = R1_DISTILL[name]
    gigabytes, per_token = SIZES[name]
    assert round(checkpoint.weight_bytes / 1e9, 3) == gigabytes
    assert checkpoint.kv_bytes_per_token == per_token
    model = checkpoint.on_meta()
    assert checkpoint.weight_bytes == sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("name", ["Qwen-1.5B", "Llama-8B"])
def test_a_cache_holds_so_many_bytes_a_token(name):
    checkpoint = R1_DISTILL[name]
    model = checkpoint.on_meta()
    cache = model(torch.zeros(1, 7, dtype=torch.long, device="meta"), use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert checkpoint.kv_bytes_per_token == held / 7


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_configuration_is_the_published_one(name):
    kind = Qwen2Config if name.startswith("Qwen") else LlamaConfig
    ours, published = R1_DISTILL[name].config(), kind.from_dict(copy.deepcopy(PUBLISHED[name]))
    assert type(ours) is kind
    assert ours.to_dict() == published.to_dict()


@six
def test_all_have_long_positions_two_embeddings_and_bfloat16(name):
    config = R1_DISTILL[name].config()
    assert config.max_position_embeddings == 131072 and not config.tie_word_embeddings
    assert config.dtype == torch.bfloat16
    theta = {"Qwen-1.5B": 1e4, "Qwen-7B": 1e4, "Qwen-14B": 1e6, "Qwen-32B": 1e6}.get(name, 5e5)
    assert config.rope_parameters["rope_theta"] == theta
    assert config.rms_norm_eps == (1e-6 if name in ("Qwen-1.5B", "Qwen-7B") else 1e-5)
    logits = {"Qwen-1.5B": 151936, "Llama-8B": 128256, "Llama-70B": 128256}.get(name, 152064)
    assert config.vocab_size == R1_DISTILL[name].vocabulary == logits
    assert R1_DISTILL[name].tokens == (151665 if name.startswith("Qwen") else 128256)


@pytest.mark.parametrize("name", ["Llama-8B", "Llama-70B"])
def test_low_frequencies_of_llama_are_slowed_eightfold(name):
    """Llama 3.1's rule by wavelength: up to 2,048 positions unchanged, from 8,192 divided by 8."""
    rope = LlamaRotaryEmbedding(R1_DISTILL[name].config())
    expected = []
    for pair in range(64):
        frequency = 500_000.0 ** (-2 * pair / 128)
        wavelength = 2 * math.pi / frequency
        kept = min(1.0, max(0.0, (8192 / wavelength - 1) / (4 - 1)))
        expected.append(kept * frequency + (1 - kept) * frequency / 8)
    torch.testing.assert_close(rope.inv_freq, torch.tensor(expected), rtol=1e-5, atol=0)
    assert expected[0] == 1 and expected[-1] == 500_000.0 ** (-126 / 128) / 8


@pytest.mark.parametrize("row", REPORTED.strip().splitlines(), ids=lambda row: row.split()[1])
def test_scores_are_those_reported(row):
    repo, *values = row.strip("| ").split(" | ")
    scores = find(repo).scores
    assert list(scores) == list(BENCHMARKS)
    assert list(scores.values()) == [float(value) for value in values]
    assert scores["AIME 2024 cons@64"] > scores["AIME 2024 pass@1"]
    assert all(0 < scores[name] < 100 for name in BENCHMARKS[:-1])


@six
def test_what_binds_and_what_is_recommended(name):
    checkpoint = R1_DISTILL[name]
    assert checkpoint.licence == "MIT"
    expected = {
        "Llama-8B": ("meta-llama/Llama-3.1-8B", "Llama 3.1 Community License"),
        "Llama-70B": ("meta-llama/Llama-3.3-70B-Instruct", "Llama 3.3 Community License"),
        "Qwen-1.5B": ("Qwen/Qwen2.5-Math-1.5B", "Apache-2.0"),
        "Qwen-7B": ("Qwen/Qwen2.5-Math-7B", "Apache-2.0"),
    }.get(name, (f"Qwen/Qwen2.5-{name.removeprefix('Qwen-')}", "Apache-2.0"))
    assert (checkpoint.base, checkpoint.base_licence) == expected
    assert checkpoint.sampling == {"temperature": 0.6, "top_p": 0.95}
    bos, eos = (151646, 151643) if name.startswith("Qwen") else (128000, 128001)
    assert (checkpoint.bos, checkpoint.eos) == (bos, eos)


def test_traps_are_told_to_those_who_have_them():
    qwen, llama = R1_DISTILL["Qwen-7B"].traps, R1_DISTILL["Llama-8B"].traps
    assert qwen == TRAPS
    only_qwen = [trap for trap in TRAPS if trap not in llama]
    assert ["151643" in trap.what and "151646" in trap.what for trap in only_qwen] == [True]
    assert len({trap.name for trap in TRAPS}) == len(TRAPS) >= 6


@six
def test_printed_in_one_line(name):
    checkpoint = R1_DISTILL[name]
    text = str(checkpoint)
    assert "\n" not in text and text.startswith(f"DeepSeek-R1-Distill-{name}: ")
    for part in (f"{SIZES[name][0]:.2f} GB", f"{SIZES[name][1] // 1024} KiB", "MIT", checkpoint.base,
                 checkpoint.base_licence, f"{checkpoint.vocabulary:,} logits"):  # fmt: skip
        assert part in text


@six
def test_found_by_name_and_by_repository(name):
    checkpoint = R1_DISTILL[name]
    assert checkpoint.name == name and checkpoint.repo == f"deepseek-ai/DeepSeek-R1-Distill-{name}"
    for known in (name, checkpoint.repo, f"DeepSeek-R1-Distill-{name}"):
        assert find(known) is find(known.lower()) is find(known.upper()) is checkpoint


@pytest.mark.parametrize("name", ["", "Qwen-70B", "deepseek-ai/"])
def test_others_are_not_found(name):
    with pytest.raises(ValueError, match=r"expected one of Qwen-1\.5B, Qwen-7B, .*Llama-70B"):
        find(name)
