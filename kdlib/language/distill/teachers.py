"""What a student is compared with: a teacher's outputs for the targets of a batch, live or from a cache."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.arguments import check_counts
from kdlib.cache.tokens import CachedTokens
from kdlib.language.distill.batches import TokenExample, collate, dated, forward_inputs, tokenize
from kdlib.language.distill.forward import move, predictions
from kdlib.language.distill.fsdp import gather_output_layer, sharding
from kdlib.language.distill.output_layer import at_output_layer, has_linear_output
from kdlib.language.distill.prompts import TeacherPrompt, as_read, teacher_prompts
from kdlib.language.models.positions import check_positions
from kdlib.language.models.vocabulary import check_same_tokens
from kdlib.language.traces.file import Trace
from kdlib.losses.checks import check_temperature
from kdlib.losses.top_k import TopK, top_k_of
from kdlib.runtime import eval_mode, usable_device
from kdlib.storage import fingerprint

_ROWS = 256  # whose logits are looked at together: with 151,665 tokens 155 MB in float32


class HiddenStates(NamedTuple):
    """(n, H) hidden states, and the weight (V, H) and bias (V) or None that make logits of them."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


Teacher = Callable[[dict[str, Tensor]], Tensor | TopK | HiddenStates]
"""For a batch of `collate` what the loss compares with, for each of its n targets: logits (n, V), the largest
of them, or hidden states. A `ModelTeacher` or a `CachedTokens`."""


@dataclass
class ModelTeacher:
    """A model in eval mode that runs at each step, without gradients."""

    model: PreTrainedModel
    width: int  # number of logits that belong to a token
    top_k: int | None  # how many of each position the student learns from; None all
    temperature: float  # of the distributions of which these are the largest
    fused: bool  # stop before the output layer, for a loss that makes the logits a few at a time

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor]) -> Tensor | TopK | HiddenStates:
        batch = batch.get("teacher", batch)
        if self.fused:
            hidden = at_output_layer(self.model, batch, lambda hidden, weight, bias: hidden)
            layer = gather_output_layer(self.model)
            return HiddenStates(hidden, layer.weight, layer.bias)
        logits = predictions(self.model, batch)[:, : self.width]
        return logits if self.top_k is None else top_k_of(logits, self.top_k, self.temperature)


def ready_teacher(
    teacher: PreTrainedModel | CachedTokens | None, width: int, top_k: int | None, temperature: float,
    fused: bool, device: torch.device,
) -> Teacher | None:  # fmt: skip
    """A model in eval mode, where it is to run, as a `ModelTeacher`; any other as it is."""
    if not isinstance(teacher, PreTrainedModel):
        return teacher
    move(teacher, "cpu" if sharding() else device)  # one to shard is moved then
    reads_hidden = fused and top_k is None and has_linear_output(teacher)
    return ModelTeacher(teacher.eval(), width, top_k, temperature, reads_hidden)


def cache_teacher_tokens(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Trace | tuple[str, str]], folder: str | os.PathLike, *,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None, teacher_prompt: TeacherPrompt | None = None,
    top_k: int = 64, temperature: float = 1.0, compact: bool = False, batch_tokens: int = 16_384,
    device: torch.device | str | None = None, overwrite: bool = False, progress: bool = False,
) -> CachedTokens:  # fmt: skip
    """Run the teacher over texts, in eval mode without gradients, and store its outputs for each token.

    Called again with the same arguments, it verifies what is there and makes only what is missing or damaged.

    Args:
        teacher, tokenizer, examples, teacher_tokenizer: as for `distill_language_model`.
        teacher_prompt: as there, too; a cache behind the teacher's own prompts says so, and needs no choice
            when it is trained with.
        folder: a folder of its own; made if need be.
        top_k: how many logits to keep for each token.
        temperature: T of the loss that the student will be trained with.
        compact: store a third of the bytes, a little less exactly; see `kdlib.cache.compact`.
        batch_tokens: tokens of one forward pass, padding included; a longer text goes alone. Its logits take
            batch_tokens × vocabulary × bytes of the teacher's dtype: 5 GB for 16,384 tokens and Qwen's
            vocabulary in bfloat16. Results agree up to rounding.
        device: where the teacher runs, unless a device map has spread it; default `best_device()`.
        overwrite: replace whatever cache of tokens the folder holds.
        progress: show a progress bar.

    Raises:
        ValueError: bad arguments; vocabularies that differ; a text longer than the teacher's positions; a
            folder with another cache or other files; logits that are not finite.
    """
    check_counts(batch_tokens=batch_tokens)
    width = check_same_tokens(tokenizer, teacher_tokenizer, teacher=teacher)
    check_temperature(temperature)
    encoded = tokenize(tokenizer, examples)
    asked, other = teacher_prompts(teacher_prompt, teacher, teacher_tokenizer, tokenizer, examples, encoded)
    read, bound = as_read(teacher_prompt, asked, teacher_tokenizer, examples)
    check_positions("examples", [*map(len, read)], {"teacher": teacher})
    cached = CachedTokens.of(
        folder, encoded, fingerprint(teacher), width, top_k, temperature, compact,
        **dated(tokenizer, examples), **bound,
    )  # fmt: skip
    move(teacher, usable_device(device))
    if other is not None:
        other.tell(teacher, teacher.device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    @torch.no_grad()
    def outputs(epoch: int, rows: range) -> dict[str, Tensor]:
        found: dict[int, dict[str, Tensor]] = {}
        # Like lengths together leave little padding. The longest first: if memory runs out, then at once.
        left = sorted(cached.texts(rows), key=lambda text: -len(read[text]))
        while left:
            count = max(1, batch_tokens // len(read[left[0]]))  # all are padded to the first
            found |= _outputs_of_texts(teacher, read, left[:count], pad, cached)
            left = left[count:]
        return cached.joined(rows, found)

    with eval_mode(teacher):
        cached.fill(outputs, overwrite=overwrite, progress=progress)
    return cached


def _outputs_of_texts(
    teacher: PreTrainedModel, examples: Sequence[TokenExample], numbers: Sequence[int], pad: int,
    cached: CachedTokens,
) -> dict[int, dict[str, Tensor]]:  # fmt: skip
    """For each text its rows, as they go to disk."""
    batch = collate([examples[number] for number in numbers], pad)
    first = int(batch["kept"][0])
    inputs = {name: tensor.to(teacher.device) for name, tensor in batch.items()}
    logits = teacher(**forward_inputs(inputs)).logits[..., : cached.manifest["width"]]
    found = {}
    for number, row in zip(numbers, logits, strict=True):
        # Sliced, not picked: a copy of the predicting columns would take gigabytes.
        end = len(examples[number]) - 1 - first
        parts = []
        for part in row[end - len(examples[number].completion) : end].split(_ROWS):
            top = top_k_of(part, cached.manifest["top_k"], cached.manifest["temperature"])
            # The largest tells all: NaN and +inf come through, and −inf means that no token is left.
            if not top.values[:, 0].isfinite().all():
                raise ValueError(
                    f"the teacher's logits for examples[{number}] are not finite; look at its weights"
                )
            total = top.log_total
            logs = TopK(top.values - total.unsqueeze(-1), top.indices, top.log_tail - total)
            parts.append(cached.packed(logs))
        found[number] = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    return found
