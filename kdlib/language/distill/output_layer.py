"""The output layer of a language model, where a loss can be computed without the logits of all tokens.

`linear_kd_loss` takes hidden states, and the weights that would make logits of them. Where processes share a
model (DDP, FSDP2) these weights are whole, and their gradient is reduced, only inside the model's forward. So
the output layer computes the loss there, in place of the logits.
"""

from collections.abc import Callable

from torch import Tensor, nn
from transformers import PreTrainedModel

from kdlib.language.distill.batches import forward_inputs

# Types of models whose logits are the output layer's product, and nothing more, as transformers has them.
FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
LARGE_VOCABULARY = 8_192  # entries from which the logits are worth avoiding


def has_linear_output(model: PreTrainedModel) -> bool:
    """Whether its logits are hidden states times the weights of a linear layer, which is here in full."""
    if not isinstance(model, PreTrainedModel) or model.config.model_type not in FAMILIES:
        return False
    layer = model.get_output_embeddings()
    # A forward on the instance is a hook of accelerate's, which moves the layer's weights.
    plain = type(layer) is nn.Linear and layer.weight.is_floating_point() and "forward" not in vars(layer)
    return plain and len(set((getattr(model, "hf_device_map", None) or {}).values())) < 2


def at_output_layer(
    model: nn.Module, batch: dict[str, Tensor], function: Callable[[Tensor, Tensor, Tensor | None], object]
) -> object:
    """Call a function in place of the output layer, inside the forward of a model that has a linear one.

    Args:
        function: of hidden states (n, H) from which each target of `collate` is predicted, the output layer's
            weight (V, H), and its bias (V) or None.
    """
    layer = getattr(model, "module", model).get_output_embeddings()

    def forward(hidden: Tensor) -> object:
        hidden = hidden.flatten(0, 1).index_select(0, batch["places"])
        return function(hidden, layer.weight, layer.bias)

    layer.forward = forward
    try:
        return model(**forward_inputs(batch)).logits
    finally:
        del layer.forward
