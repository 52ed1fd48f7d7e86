"""A student made of its teacher's layers: which blocks change least, and the model without them.

    importance = block_importance(teacher, tokenizer, texts)
    keep = importance.topk(20).indices.tolist()
    student = prune_layers(teacher, keep=keep)          # to be healed by distillation

Men et al. 2024, "ShortGPT", arXiv 2403.03853, measure how much a block changes what goes through it, and drop
the blocks that change least. A student of the teacher's layers is older: DistilBERT (Sanh et al. 2019, arXiv
1910.01108); healed by distillation: Minitron (Muralidharan et al. 2024, arXiv 2407.14679).
"""

import copy
import os
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.arguments import check_counts
from kdlib.language.models.positions import check_positions
from kdlib.language.models.vocabulary import check_model


@torch.no_grad()
def block_importance(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, max_tokens: int = 512
) -> Tensor:
    """How much each block changes its input, on some texts: ShortGPT's block influence.

    For block i, 1 - cos(what goes in, what comes out), the mean over all tokens of the texts: 0 for a block
    that changes nothing, at most 2. A few thousand tokens of the kind the student is for are enough.

    Args:
        texts: each goes through the model alone, its first `max_tokens` tokens.

    Returns:
        float64 (layers,), on the CPU.
    """
    check_counts(max_tokens=max_tokens)
    if isinstance(texts, str | os.PathLike):
        raise ValueError(f"texts is {str(texts)!r:.60}; expected several texts: pass [text]")
    layers = decoder_layers(model)
    sums, tokens = torch.zeros(len(layers), dtype=torch.float64), 0

    def measure(place: int, before: Tensor, after: Tensor | tuple) -> None:
        after = after[0] if isinstance(after, tuple) else after
        sums[place] += (1 - cosine_similarity(before.float(), after.float(), dim=-1)).sum().item()

    hooks = [
        layer.register_forward_hook(
            lambda _, given, named, after, place=place: measure(
                place, given[0] if given else named["hidden_states"], after
            ),
            with_kwargs=True,
        )
        for place, layer in enumerate(layers)
    ]
    training = model.training
    try:
        model.eval()
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_tokens)["input_ids"]
            check_positions("texts", [ids.numel()], {"model": model})
            if ids.numel():
                model(input_ids=ids.to(model.device), use_cache=False, logits_to_keep=1)
                tokens += ids.numel()
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if not tokens:
        raise ValueError("texts holds no token; expected some text to measure on")
    return sums / tokens


def prune_layers(model: PreTrainedModel, *, keep: Iterable[int]) -> PreTrainedModel:
    """A copy of a model with some of its blocks, in their order; embeddings and the rest are as they were.

    It shares no weights with the model, is trained, saved and loaded like any other, and writes nonsense
    until it is healed.

    Args:
        model: of Llama's or Qwen's kind: blocks in `model.model.layers`, all of one shape.
        keep: which blocks, counted from 0, in any order.

    Raises:
        ValueError: `keep` is empty, or names a block twice or one that is not there; another kind of model.
    """
    layers, chosen = decoder_layers(model), sorted(keep)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(len(layers))):
        raise ValueError(f"keep is {chosen}; expected different numbers of blocks, 0 to {len(layers) - 1}")
    decoder = model.get_decoder()
    try:
        decoder.layers = nn.ModuleList(layers[number] for number in chosen)
        pruned = copy.deepcopy(model)  # after the cut: what is dropped is not copied
    finally:
        decoder.layers = layers
    for number, layer in enumerate(pruned.get_decoder().layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # its place in the cache of keys and values
                module.layer_idx = number
    pruned.zero_grad()
    pruned.name_or_path = ""  # it is not what lies there: an adapter would name that as its base
    config = pruned.config.get_text_config()
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[number] for number in chosen]
    return pruned


def decoder_layers(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The blocks of a model; one that is not of Llama's or Qwen's kind is a ValueError."""
    check_model("model", model)
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        kind = type(model).__name__
        raise ValueError(f"model is a {kind}; expected Llama's kind, with blocks in model.model.layers")
    return layers
