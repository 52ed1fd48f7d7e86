"""Blocks left out: the same as blocks that do nothing; saved, loaded and trained like any other model."""

from contextlib import contextmanager

import pytest
import torch
from small_models import llama, qwen, word_tokenizer

from kdlib.language.models.load import load_checkpoint
from kdlib.language.models.prune import block_importance, prune_layers
from kdlib.language.models.small import without_bars

IDS = torch.randint(7, 60, (2, 20), generator=torch.Generator().manual_seed(0))
# Two blocks that see all, two that see eight tokens back.
SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
MODELS = {
    "llama": lambda: llama(num_hidden_layers=4, initializer_range=0.3),
    "qwen": lambda: qwen(num_hidden_layers=4, initializer_range=0.3, tie_word_embeddings=True),
    "sliding": lambda: qwen(num_hidden_layers=4, initializer_range=0.3, **SLIDING),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]().eval()


@contextmanager
def idle(model, blocks):
    """These blocks hand on what they are given."""
    layers = [model.model.layers[number] for number in blocks]
    hooks = [layer.register_forward_hook(lambda _, given, after: given[0]) for layer in layers]
    yield
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def test_without_some_blocks_is_as_if_they_did_nothing(model):
    before, names = logits(model), list(model.state_dict())
    with idle(model, (1, 2)):
        expected = logits(model)
    pruned = prune_layers(model, keep=[3, 0])
    assert torch.equal(logits(pruned), expected)
    assert not torch.allclose(expected, before, atol=0.1)
    assert pruned.config.num_hidden_layers == 2 and type(pruned) is type(model)
    # The model is as it was, and shares nothing with its student.
    assert model.config.num_hidden_layers == 4 and list(model.state_dict()) == names
    with torch.no_grad():
        for weight in pruned.parameters():
            weight.zero_()
    assert torch.equal(logits(model), before)


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    pruned = prune_layers(model, keep=(0, 3))
    with without_bars():
        pruned.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    again, _ = load_checkpoint(tmp_path, device="cpu")
    assert torch.equal(logits(again), logits(pruned))
    assert getattr(again.config, "layer_types", None) == getattr(pruned.config, "layer_types", None)


def test_each_block_keeps_its_kind_of_attention():
    pruned = prune_layers(MODELS["sliding"](), keep=(0, 3))
    assert pruned.config.layer_types == ["full_attention", "sliding_attention"]
    assert [layer.self_attn.sliding_window for layer in pruned.model.layers] == [None, 8]


def test_generation_with_a_cache_writes_what_it_writes_without(model):
    pruned = prune_layers(model, keep=(1, 3))
    asked = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    with_cache, without = (
        pruned.generate(IDS[:1], attention_mask=torch.ones_like(IDS[:1]), use_cache=use, **asked)
        for use in (True, False)
    )
    assert torch.equal(with_cache, without)
    assert pruned(input_ids=IDS, use_cache=True).past_key_values.get_seq_length() == 20


def test_a_pruned_model_of_a_pruned_model_trains():
    model = prune_layers(prune_layers(MODELS["llama"](), keep=(0, 1, 3)), keep=(0, 2)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        losses.append(model(input_ids=IDS, labels=IDS).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_gradients_do_not_come_along():
    model = MODELS["llama"]()
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(weight.grad is None for weight in prune_layers(model, keep=[0]).parameters())


@pytest.mark.parametrize("keep", [(), (0, 0), (4,), (-1,)])
def test_what_cannot_be_kept(keep):
    with pytest.raises(ValueError, match=r"keep is \[.*\]; expected different numbers of blocks, 0 to 3"):
        prune_layers(MODELS["llama"](), keep=keep)


TEXTS = ["w1 w2 w3 w4 w5 w6", "w7", "", "w8 w9 w10 w11"]


def test_importance_is_one_less_the_cosine_over_all_tokens(model):
    tokenizer, changes, tokens = word_tokenizer(), 0, 0
    for text in filter(None, TEXTS):
        with torch.no_grad():
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            states = model(ids, output_hidden_states=True).hidden_states
        cosines = [torch.cosine_similarity(a, b, dim=-1) for a, b in zip(states, states[1:], strict=False)]
        changes, tokens = changes + torch.stack([(1 - c).sum() for c in cosines]), tokens + ids.numel()
    model.train()
    hooks = len(model.model.layers[0]._forward_hooks)  # transformers has some of its own
    found = block_importance(model, tokenizer, TEXTS)
    assert model.training and len(model.model.layers[0]._forward_hooks) == hooks
    assert len(prune_layers(model, keep=(0, 2))(IDS, output_hidden_states=True).hidden_states) == 3
    assert found.shape == (4,) and found.dtype == torch.float64
    # transformers normalises the last state, and so its change is another one.
    assert torch.allclose(found[:-1], (changes / tokens)[:-1].double(), atol=1e-5)


def test_a_block_that_does_nothing_has_no_importance(model):
    with torch.no_grad():
        for part in (model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
            part.weight.zero_()
    found = block_importance(model, word_tokenizer(), TEXTS, max_tokens=4)
    assert found.argmin() == 2 and found[2].abs() < 1e-6
    keep = found.topk(3).indices.tolist()
    assert torch.allclose(logits(prune_layers(model, keep=keep)), logits(model), atol=1e-5)


def test_importance_on_no_text():
    with pytest.raises(ValueError, match="texts holds no token"):
        block_importance(MODELS["llama"](), word_tokenizer(), ["", ""])
