"""What a teacher says of the tokens of a batch, by a forward pass now or from what it said before."""

import inspect

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdlib.top_k import TopK, top_k_of

__all__ = ["LiveTeacher", "StoredTeacher", "can_narrow", "kept_logits", "predictions"]


def predictions(model: PreTrainedModel, batch: dict[str, Tensor], narrowing: bool) -> Tensor:
    """(n, V) logits: what predicts each token that counts; arguments as for `kept_logits`."""
    logits = kept_logits(model, batch, narrowing)
    return logits.flatten(0, 1).index_select(0, batch["places"])


def kept_logits(model: PreTrainedModel, batch: dict[str, Tensor], narrowing: bool) -> Tensor:
    """(R, m, V) logits in the columns `kept` of a batch of `kdlib.reasoning.examples.collate`.

    Args:
        narrowing: whether the model takes `logits_to_keep`, see `can_narrow`.
    """
    # Of a vocabulary of 150,000 the logits take the memory: only those that predict a completion are made.
    kept = batch["kept"]
    # Where each text has a row they are the last columns: a slice, not a copy of hidden states.
    columns = len(kept) if "attention_mask" in batch else kept
    narrowed = {"logits_to_keep": columns} if narrowing else {}
    seen = {name: batch[name] for name in ("attention_mask", "position_ids") if name in batch}
    logits = model(input_ids=batch["input_ids"], use_cache=False, **seen, **narrowed).logits
    return logits if narrowing else logits.index_select(1, kept)


def can_narrow(model: PreTrainedModel) -> bool:
    """Whether it makes logits at chosen positions; asked before anything wraps its forward."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


class LiveTeacher:
    """Runs at each step.

    Args:
        model: in eval mode, on the device of the batches.
        width: number of logits that belong to a token.
        top_k: how many logits of each position the student learns from; None all.
        temperature: of the distributions of which these are the largest.
    """

    def __init__(
        self, model: PreTrainedModel, width: int, top_k: int | None = None, temperature: float = 1.0
    ) -> None:
        self._model, self._width, self._top_k, self._temperature = model, width, top_k, temperature
        self._narrowing = can_narrow(model)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor]) -> Tensor | TopK:
        logits = predictions(self._model, batch, self._narrowing)[:, : self._width]
        return logits if self._top_k is None else top_k_of(logits, self._top_k, self._temperature)


class StoredTeacher:
    """Reads what `kdlib.reasoning.token_cache.cache_teacher_tokens` has written."""

    def __init__(self, stored) -> None:
        self._stored = stored

    def __call__(self, batch: dict[str, Tensor]) -> TopK:
        return self._stored.top_k(batch["stored"])
