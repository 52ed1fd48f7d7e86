"""What a student writes while it is trained."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel

from kdlib.language.distill.batches import TokenExample
from kdlib.language.distill.fsdp import sharding
from kdlib.runtime import eval_mode, seeded


@torch.no_grad()
def write_completions(
    model: PreTrainedModel, examples: Sequence[TokenExample], *, max_new_tokens: int, temperature: float,
    width: int, ends: Sequence[int], pad: int, seed: int,
) -> list[TokenExample]:  # fmt: skip
    """The examples with completions that the model samples, in eval mode, on its device, in one batch.

    Args:
        max_new_tokens: of a completion; one that reaches it counts as far as it goes, without an end.
        width: tokens from this one on are never chosen.
        ends: the tokens that end a completion, and belong to it.
    """
    no_tokens = list(range(width, model.get_output_embeddings().weight.shape[0]))
    # All is said here: what is left out is taken from the model's own settings (top-k, penalties).
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, temperature=temperature, max_length=None, min_length=0, do_sample=True,
        top_k=0, top_p=1.0, repetition_penalty=1.0, num_beams=1, num_return_sequences=1, use_cache=True,
        suppress_tokens=no_tokens or None, eos_token_id=list(ends), pad_token_id=pad,
    )  # fmt: skip
    prompts = [torch.tensor(example.prompt) for example in examples]
    ids, attends = (
        pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left").to(model.device)
        for rows, value in ((prompts, pad), ([torch.ones_like(prompt) for prompt in prompts], 0))
    )
    with eval_mode(model), seeded(seed, model.device):
        written = model.generate(
            input_ids=ids, attention_mask=attends, generation_config=settings,
            synced_gpus=sharding() is not None,  # layers are gathered by all, however long each writes
        )  # fmt: skip
    completed = []
    for example, row in zip(examples, written[:, ids.shape[1] :].tolist(), strict=True):
        end = next((place for place, token in enumerate(row, 1) if token in ends), len(row))
        completed.append(replace(example, completion=tuple(row[:end])))
    return completed
