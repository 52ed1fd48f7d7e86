"""Tiny models: of the real classes, as large as they say, and loaded as they were saved."""

import pytest
import torch
from small_models import word_tokenizer
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM
from transformers.utils import logging

from kdlib.language.models.small import load_model, tiny_model, without_bars
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer

CLASSES = {"qwen2": Qwen2ForCausalLM, "llama": LlamaForCausalLM}
families = pytest.mark.parametrize("family", CLASSES)


@pytest.fixture(scope="module")
def tokenizer():
    return puzzle_tokenizer()


def parameters(model):
    return {name: tensor.shape for name, tensor in model.named_parameters()}


@families
def test_the_classes_are_those_of_the_real_checkpoints(tokenizer, family):
    model = tiny_model(tokenizer, width=16, layers=1, family=family)
    assert type(model) is CLASSES[family]
    assert type(tiny_model(tokenizer, width=16, layers=1)) is Qwen2ForCausalLM  # by default


@families
@pytest.mark.parametrize(("width", "layers", "heads"), [(16, 1, 4), (24, 3, 2)])
def test_parameters_are_sixteen_squares_of_the_width_a_layer_and_the_embedding_once(
    tokenizer, family, width, layers, heads
):
    model = tiny_model(tokenizer, width=width, layers=layers, heads=heads, family=family)
    # Four square matrices of attention and three of four times the size; two norms a layer, one at the end;
    # Qwen2's queries, keys and values have a bias. No output layer: it is the embedding.
    norms_and_biases = 2 * width + (3 * width if family == "qwen2" else 0)
    expected = len(tokenizer) * width + layers * (16 * width**2 + norms_and_biases) + width
    assert sum(p.numel() for p in model.parameters()) == model.num_parameters() == expected
    assert model.num_parameters(exclude_embeddings=True) == expected - len(tokenizer) * width
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert len(model.model.layers) == layers
    assert model.config.num_attention_heads == model.config.num_key_value_heads == heads
    assert all(p.dtype == torch.float32 for p in model.parameters())


@families
def test_the_seed_makes_the_weights_and_nothing_else_is_drawn(tokenizer, family):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (
        tiny_model(tokenizer, width=16, layers=1, family=family, seed=seed).state_dict() for seed in (3, 3, 4)
    )
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    matrices = [name for name in first if first[name].ndim == 2]
    assert len(matrices) >= 8
    assert not any(torch.equal(first[name], other[name]) for name in matrices)
    # Weights of 0.06: of 0.02 these small models learn hundreds of steps later.
    assert first["model.layers.0.mlp.up_proj.weight"].std().item() == pytest.approx(0.06, rel=0.1)


@families
def test_it_takes_vocabulary_and_special_tokens_from_the_tokenizer(tokenizer, family):
    for read in (tokenizer, word_tokenizer()):
        model = tiny_model(read, width=16, layers=1, family=family, positions=96)
        assert model.config.vocab_size == len(read)
        assert model.config.max_position_embeddings == 96
        for settings in (model.config, model.generation_config):
            assert settings.eos_token_id == read.eos_token_id
            assert settings.pad_token_id == read.pad_token_id
            assert settings.bos_token_id == read.bos_token_id


@families
def test_saved_and_loaded_it_is_the_same_and_generates_without_a_warning(tokenizer, family, tmp_path, caplog):
    model = tiny_model(tokenizer, width=16, layers=2, family=family, seed=1).eval()
    model.save_pretrained(tmp_path)
    prompts = tokenizer.apply_chat_template(
        [[{"role": "user", "content": text}] for text in ("How many?", "A cage holds ants and crabs.")],
        add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    written = model.generate(**prompts, max_new_tokens=8, do_sample=False)
    for loaded in (load_model(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(loaded) is CLASSES[family] and not loaded.training
        assert parameters(loaded) == parameters(model)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
        assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
        assert torch.equal(loaded.generate(**prompts, max_new_tokens=8, do_sample=False), written)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_loading_shows_no_bar_and_leaves_the_bars_of_others_as_they_were(tokenizer, tmp_path, capfd):
    model = tiny_model(tokenizer, width=16, layers=1)
    assert logging.is_progress_bar_enabled()
    with without_bars():
        model.save_pretrained(tmp_path)
    load_model(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        load_model(tmp_path)
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar()


def test_refusals(tokenizer):
    with pytest.raises(ValueError, match="family must be \"qwen2\" or \"llama\"; got 'gpt2'"):
        tiny_model(tokenizer, width=16, layers=1, family="gpt2")
    for width, heads, multiple in ((20, 4, 8), (12, 4, 8), (18, 6, 12)):
        with pytest.raises(ValueError, match=rf"a multiple of 2 · heads = {multiple}; got {width}"):
            tiny_model(tokenizer, width=width, layers=1, heads=heads)
