"""A language model's forward pass on a batch of `collate`: where it runs, and the logits that count."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdlib.language.distill.batches import forward_inputs


def predictions(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """(n, V) logits: those that predict each target of a batch of `collate`."""
    # Of a vocabulary of 150,000 the logits take the memory: only columns that predict a target are made.
    return model(**forward_inputs(batch)).logits.flatten(0, 1).index_select(0, batch["places"])


def move(model: PreTrainedModel, device: torch.device | str) -> None:
    """To a device; a model that is spread over devices or quantised stays where it was loaded."""
    if getattr(model, "hf_device_map", None) is None:
        model.to(device)
