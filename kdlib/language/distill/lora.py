"""LoRA: a student of which only small matrices beside its weights are trained.

Hu et al. 2021 (arXiv 2106.09685v2, §4.1): a product W x becomes W x + (alpha / r) B A x, where A has r rows,
and B, which begins at 0, r columns. `peft` has the layers; this module says when they come and go.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING

from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME

from kdlib.arguments import check_counts, refuse
from kdlib.extras import require
from kdlib.runtime import seeded, substream

if TYPE_CHECKING:
    from peft import LoraConfig  # imported where it is used: a run without adapters does without

_NAME = "default"  # what peft and transformers call an adapter that was given no name


def lora_config(lora: "LoraConfig | int | None") -> "LoraConfig | None":
    """That of a rank: every linear layer but the output layer, alpha twice the rank, no dropout."""
    if lora is None:
        return None
    require("lora", "peft")
    from peft import LoraConfig

    if isinstance(lora, LoraConfig):
        return deepcopy(lora)  # peft writes into it
    if not isinstance(lora, int):
        refuse("lora", lora, "a rank, such as 16, or a peft.LoraConfig")
    check_counts(lora=lora)
    return LoraConfig(
        r=lora, lora_alpha=2 * lora, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def settings_of(config: "LoraConfig | None") -> dict[str, object] | None:
    """What makes a run with these adapters another run, as JSON writes it."""
    if config is None:
        return None
    settings = config.to_dict().items()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in settings
            if name != "peft_version"}  # fmt: skip


def has_adapter(model: nn.Module) -> bool:
    return getattr(model, "_hf_peft_config_loaded", False)


def is_packed(model: PreTrainedModel) -> bool:
    return getattr(model, "hf_quantizer", None) is not None


@contextmanager
def adapted(
    student: PreTrainedModel, config: "LoraConfig | None", seed: int, *, fused: bool
) -> Iterator[None]:
    """Inside, adapters are all of the student that is trained; afterwards they are part of its weights.

    Packed weights could take them up only rounded: beside those they stay.

    Args:
        config: None leaves the student as it is.
        fused: whether the loss is computed from the weights of the output layer.
    """
    if config is None:
        yield
        return
    from peft import LoraModel
    from peft.functional import cast_adapter_dtype

    if not is_packed(student):
        # peft imports bitsandbytes even so, which may warn that products of packed weights are slow:
        # https://github.com/bitsandbytes-foundation/bitsandbytes/issues/2064
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    config.base_model_name_or_path = student.name_or_path or None
    with seeded(substream(seed, "lora", 0), student.device):
        tuner = LoraModel(student, config, _NAME)
    cast_adapter_dtype(student, _NAME)  # of bfloat16 weights too: small updates would be lost
    student._hf_peft_config_loaded = True  # as `PeftAdapterMixin.add_adapter`: the adapter alone is saved
    try:
        if fused and type(student.get_output_embeddings()) is not nn.Linear:
            raise ValueError("lora adapts the output layer, which the fused loss reads; pass fused=False")
        yield
    finally:
        if not is_packed(student):
            tuner.merge_and_unload()
            student._hf_peft_config_loaded = False
            for name, parameter in student.named_parameters():
                parameter.requires_grad_(name in trained)


def load_adapter(student: PreTrainedModel, checkpoint: str | os.PathLike) -> None:
    """Its weights from a checkpoint. Trainer does so for a `PeftModel` alone, which wraps the student."""
    from peft.functional import set_peft_model_state_dict

    saved = load_file(os.path.join(checkpoint, ADAPTER_SAFE_WEIGHTS_NAME))
    weights = {name.removeprefix("base_model.model."): tensor for name, tensor in saved.items()}
    set_peft_model_state_dict(student, weights, _NAME)
