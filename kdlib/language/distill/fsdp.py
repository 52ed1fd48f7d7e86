"""Models that no device holds alone: spread over processes by FSDP2, as `accelerate launch` asks for.

Accelerate and Trainer shard the student. What they leave to do is the teacher, and processes on CPUs.
"""

import os
from copy import copy

from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

__all__ = ["gather_output_layer", "is_sharded", "shard", "shard_on_cpus", "sharding"]


def sharding() -> str | None:
    """"fsdp2" where this process was launched to shard its models with others, else None.

    Raises:
        ValueError: launched for FSDP 1, whose sharded models take no part in these losses.
    """
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if not wanted or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(
            f"FSDP_VERSION is {version}; expected 2: fsdp_version: 2 in accelerate's configuration"
        )
    return "fsdp2"


def shard_on_cpus(accelerator: Accelerator) -> None:
    """Let an accelerator of CPU processes shard, as it would on GPUs; others stay as they are.

    Accelerate shards over accelerators only. On CPUs, with gloo, the same code runs: for tests, and for
    clusters without GPUs.
    """
    if accelerator.device.type == "cpu" and sharding():
        plugin = FullyShardedDataParallelPlugin()
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        AcceleratorState._shared_state |= {
            "fsdp_plugin": plugin, "distributed_type": DistributedType.FSDP,
        }  # fmt: skip
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def shard(accelerator: Accelerator, teacher: PreTrainedModel) -> None:
    """Spread a teacher over the processes, in place: it is frozen, and each process keeps its part.

    Every layer's weights are gathered when they are needed, and dropped again.
    """
    if is_sharded(teacher):
        return
    teacher.requires_grad_(False)  # else accelerate would make its weights float32
    state, plugin = accelerator.state, accelerator.state.fsdp_plugin
    # It remembers the names of the first model's layers, and the student may be of another family.
    state.fsdp_plugin = copy(plugin)
    try:
        fsdp2_prepare_model(accelerator, teacher)
    finally:
        state.fsdp_plugin = plugin


def gather_output_layer(model: PreTrainedModel) -> None:
    """See that the output layer's weights are whole, whichever way the model is spread.

    They stay so: the next forward pass would gather them again.
    """
    for owner in (model, model.get_output_embeddings()):
        if is_sharded(owner):
            owner.unshard()


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)
