"""Models that no device holds alone: spread over processes by FSDP2, as `accelerate launch` asks for.

Accelerate and Trainer shard the student; what is left to do is the teacher.
"""

import os
from copy import copy

from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel


def sharding() -> str | None:
    """"fsdp2" where this process was launched to shard its models with others, else None.

    Raises:
        ValueError: launched for FSDP 1, whose sharded models take no part in these losses.
    """
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if not wanted or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise ValueError(
            f"FSDP_VERSION is {version}; expected 2: fsdp_version: 2 in accelerate's configuration"
        )
    return "fsdp2"


def shard(accelerator: Accelerator, teacher: PreTrainedModel) -> None:
    """Spread a frozen teacher over the processes, in place; each layer is gathered while it computes."""
    teacher.requires_grad_(False)  # else accelerate would make its weights float32
    state, plugin = accelerator.state, accelerator.state.fsdp_plugin
    # It remembers the names of the first model's layers, and the student may be of another family.
    state.fsdp_plugin = copy(plugin)
    try:
        fsdp2_prepare_model(accelerator, teacher)
    finally:
        state.fsdp_plugin = plugin


def gather_output_layer(model: PreTrainedModel) -> nn.Linear:
    """The output layer, whose weights stay whole: the next forward pass would gather them again."""
    layer = model.get_output_embeddings()
    for owner in (model, layer):
        if is_sharded(owner):
            owner.unshard()
    return layer


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)
