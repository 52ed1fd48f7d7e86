"""The output layer of a language model, opened for a loss that is computed there.

`kdlib.losses.linear.linear_kd_loss` makes no logits of all tokens: it wants hidden states, and the weights that would
make logits of them. Where processes share a model (DDP, FSDP2) these weights are whole, and their gradient is
reduced, only if they are used inside the model's forward. So its forward is given one more argument, a
function of what the output layer has and is given.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from kdlib.language.distill.batches import kept_columns, model_inputs

__all__ = ["FAMILIES", "LARGE_VOCABULARY", "at_output_layer", "can_open", "opened"]

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Types of models whose logits are the output layer's product, and nothing more, as transformers has them."""

LARGE_VOCABULARY = 8_192
"""Entries from which the logits are worth avoiding."""

AtOutputLayer = Callable[[Tensor, Tensor, Tensor | None], object]


def can_open(model: PreTrainedModel) -> bool:
    """Whether its logits are hidden states times the weights of a linear layer, which is here in full."""
    if not isinstance(model, PreTrainedModel) or model.config.model_type not in FAMILIES:
        return False
    placed = getattr(model, "hf_device_map", None) or {}
    layer = model.get_output_embeddings()
    return type(layer) is nn.Linear and layer.weight.is_floating_point() and len(set(placed.values())) < 2


@contextmanager
def opened(*models: PreTrainedModel) -> Iterator[None]:
    """Their forwards take `at_output_layer`, see there; afterwards they are as they were."""
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(_opened(model))
        yield


@contextmanager
def _opened(model: PreTrainedModel) -> Iterator[None]:
    usual = model.forward

    @functools.wraps(usual)
    def forward(*args, at_output_layer: AtOutputLayer | None = None, **kwargs):
        if at_output_layer is None:
            return usual(*args, **kwargs)
        layer = model.get_output_embeddings()
        hidden = model.base_model(*args, **kwargs).last_hidden_state
        # By a call of the layer, whose hooks gather its weights where processes share it.
        with _instead(layer, lambda hidden: at_output_layer(hidden, layer.weight, layer.bias)):
            return layer(hidden)

    with _instead(model, forward):
        yield


@contextmanager
def _instead(module: nn.Module, forward: Callable) -> Iterator[None]:
    """The module's forward meanwhile; an instance may have had one of its own."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        vars(module).pop("forward", None)
        if own is not None:
            module.forward = own


def at_output_layer(model: nn.Module, batch: dict[str, Tensor], then: AtOutputLayer) -> object:
    """What `then` says of a batch of `kdlib.language.distill.batches.collate`, inside of the model's forward.

    Args:
        model: `opened`, or what wraps one.
        then: of hidden states (n, H) from which each token that counts is predicted, the output layer's
            weight (V, H), and its bias (V) or None.
    """

    def at_places(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> object:
        columns = kept_columns(batch)
        kept = hidden.index_select(1, columns) if isinstance(columns, Tensor) else hidden[:, -columns:]
        return then(kept.flatten(0, 1).index_select(0, batch["places"]), weight, bias)

    # A function is left alone where tensors would be moved or cast on their way in.
    return model(**model_inputs(batch), at_output_layer=at_places)
