"""Hidden states of a teacher for a student to match, beside its logits.

TinyBERT (Jiao et al. 2020, arXiv 1909.10351v5, §3.1, eq. 8) adds to the loss the mean squared error between
the teacher's hidden states and a learned linear map of the student's, for each pair of layers. Here the error
is divided by the mean square of the teacher's hidden state at that token, so that the term is 1 where the map
gives 0, whatever the layer. (Sun et al. 2019, arXiv 1908.09355, §3.2, divide each state by its length.)

The map is part of the student while it trains, so that optimizer, processes and resumed runs know it; the
model that is saved is without.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdlib.arguments import check_number, check_whole, refuse
from kdlib.language.models.prune import decoder_layers
from kdlib.runtime import seeded, substream
from kdlib.storage import load_tensors, save_tensors

_FILE = "hidden_projector.safetensors"  # in a checkpoint
_NAME = "hidden_projector"  # of the map as a module of the student


@dataclass(frozen=True)
class HiddenMatch:
    """Which hidden states of a student are to be a linear map away from which of its teacher's.

    For a student's h and a teacher's t at a token that counts, ‖W h − t‖² / ‖t‖², the mean over tokens and
    pairs of layers; each pair has a map W of its own, learned with the student and left out of what is saved.

    Args:
        layers: "uniform", TinyBERT's: the student's layer m of M learns from the teacher's m·N/M of N,
            rounded up; "last", the layer that MiniLM (Wang et al. 2020, arXiv 2002.10957, §3.1) takes; or the
            pairs {student's: teacher's}, counted from 1, where 0 stands for the embeddings.
        weight: of the term in the loss.
        lr: highest learning rate of the maps. They begin as the identity, or between different widths as an
            orthogonal matrix, and have to follow faster than a large student's 1e-5.
    """

    layers: Literal["uniform", "last"] | Mapping[int, int] = "uniform"
    weight: float = 1.0
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Mapping) and self.layers not in ("uniform", "last"):
            refuse("layers", self.layers, '"uniform", "last" or a dictionary {student\'s layer: teacher\'s}')
        check_number("weight", self.weight, above=0)
        check_number("lr", self.lr, above=0)

    def layer_map(self, student: PreTrainedModel, teacher: PreTrainedModel) -> dict[int, int]:
        """The pairs for these two models, in the order of the student's layers.

        Raises:
            ValueError: a layer that a model does not have; a model without blocks in `model.model.layers`.
        """
        ours, theirs = len(decoder_layers(student)), len(decoder_layers(teacher))
        if self.layers == "last":
            return {ours: theirs}
        if self.layers == "uniform":
            return {number: -(-number * theirs // ours) for number in range(1, ours + 1)}
        if not self.layers:
            raise ValueError("layers is empty; expected a pair {student's layer: teacher's} at least")
        for pair in self.layers.items():
            for who, number, count in zip(("student", "teacher"), pair, (ours, theirs), strict=True):
                check_whole(f"a {who}'s layer in layers", number, least=0)
                if number > count:
                    raise ValueError(f"layers names the {who}'s layer {number}; expected 0 to {count}")
        return dict(sorted(self.layers.items()))


class HiddenTerm:
    """The term of a `HiddenMatch` in the loss of each micro-batch.

    Args:
        student, teacher: the models that `matched` was called with.
    """

    def __init__(self, match: HiddenMatch, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        self.layers, self.weight, self.lr = match.layer_map(student, teacher), match.weight, match.lr
        self._student, self._teacher = student, teacher
        self._sum: Tensor | None = None

    def __str__(self) -> str:
        pairs = ", ".join(f"{ours} from {theirs}" for ours, theirs in self.layers.items())
        return f"layers of the student that learn from the teacher's: {pairs}"

    @property
    def projector(self) -> nn.ModuleDict:
        return getattr(self._student, _NAME)

    @contextmanager
    def watching(self, batch: dict[str, Tensor]) -> Iterator[None]:
        """Inside, the teacher and then the student read a batch of `collate`; `taken` gives the term.

        It is computed as the student's output layer begins: in the forward, where FSDP2 has the map whole.
        """
        seen: dict[tuple[PreTrainedModel, int], Tensor] = {}
        hooks = []
        for model, numbers in ((self._student, self.layers), (self._teacher, self.layers.values())):
            for number in set(numbers):
                # No arithmetic in a hook: with gradient checkpointing the layer runs again, and without it.
                def keep(_module, _inputs, output, key=(model, number)):
                    seen[key] = output[0] if isinstance(output, tuple) else output

                hooks.append(_source(model, number).register_forward_hook(keep))

        def compute(*_) -> None:
            self._sum = self._error(seen, batch)

        hooks.append(self._student.get_output_embeddings().register_forward_pre_hook(compute))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def taken(self) -> Tensor:
        """The sum over the tokens that count in the batch, the mean over pairs; once."""
        found, self._sum = self._sum, None
        return found

    def _error(self, seen: dict[tuple[PreTrainedModel, int], Tensor], batch: dict[str, Tensor]) -> Tensor:
        errors = []
        with torch.autocast(batch["places"].device.type, enabled=False):
            for ours, theirs in self.layers.items():
                student = at_targets(seen[self._student, ours], batch)
                teacher = at_targets(seen[self._teacher, theirs], batch.get("teacher", batch))
                dtype = torch.promote_types(student.dtype, torch.float32)
                weight = self.projector[str(ours)].weight
                teacher = teacher.to(dtype)
                difference = F.linear(student.to(dtype), weight.to(dtype)) - teacher
                length = teacher.square().sum(-1).clamp(min=torch.finfo(dtype).tiny)
                errors.append((difference.square().sum(-1) / length).sum())
        return torch.stack(errors).mean()

    def save(self, checkpoint: str | os.PathLike) -> None:
        save_tensors(os.path.join(checkpoint, _FILE), self.projector.state_dict())

    def load(self, checkpoint: str | os.PathLike) -> None:
        self.projector.load_state_dict(load_tensors(os.path.join(checkpoint, _FILE))[0])


def at_targets(hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """(n, H) of hidden states (R, L, H): those from which each target of `collate` is predicted."""
    kept, places = batch["kept"], batch["places"]
    row, column = places // len(kept), kept[places % len(kept)]
    return hidden.flatten(0, 1).index_select(0, row * hidden.shape[1] + column)


@contextmanager
def matched(
    match: HiddenMatch | None, student: PreTrainedModel, teacher: PreTrainedModel | None, seed: int
) -> Iterator[HiddenTerm | None]:
    """The term, and its maps as a module of the student inside; None gives none."""
    if match is None:
        yield None
        return
    term = HiddenTerm(match, student, teacher)
    widths = [model.config.get_text_config().hidden_size for model in (teacher, student)]
    embedded = student.get_input_embeddings().weight
    dtype = torch.promote_types(embedded.dtype, torch.float32)
    projector = nn.ModuleDict()
    with seeded(substream(seed, _NAME, 0), torch.device("cpu")):
        for number in term.layers:
            projector[str(number)] = nn.Linear(widths[1], widths[0], bias=False, dtype=dtype)
            start = nn.init.eye_ if widths[0] == widths[1] else nn.init.orthogonal_
            start(projector[str(number)].weight)
    before = student._keys_to_ignore_on_save
    student.add_module(_NAME, projector.to(embedded.device))
    student._keys_to_ignore_on_save = {*(before or ()), *(f"{_NAME}.{key}" for key in projector.state_dict())}
    try:
        yield term
    finally:
        delattr(student, _NAME)
        student._keys_to_ignore_on_save = before


def _source(model: PreTrainedModel, number: int) -> nn.Module:
    """What gives the hidden states of a layer, counted from 1; 0 stands for the embeddings."""
    return decoder_layers(model)[number - 1] if number else model.get_input_embeddings()
