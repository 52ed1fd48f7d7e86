"""What a teacher says of the tokens of a batch, by a forward pass now or from what it said before."""

import inspect

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdlib.language.distill.batches import kept_columns, model_inputs
from kdlib.language.distill.fsdp import gather_output_layer
from kdlib.language.distill.output_layer import at_output_layer
from kdlib.losses.top_k import TopK, top_k_of

__all__ = ["HiddenTeacher", "LiveTeacher", "StoredTeacher", "can_narrow", "kept_logits", "predictions"]


def predictions(model: PreTrainedModel, batch: dict[str, Tensor], narrowing: bool) -> Tensor:
    """(n, V) logits: what predicts each token that counts; arguments as for `kept_logits`."""
    logits = kept_logits(model, batch, narrowing)
    return logits.flatten(0, 1).index_select(0, batch["places"])


def kept_logits(model: PreTrainedModel, batch: dict[str, Tensor], narrowing: bool) -> Tensor:
    """(R, m, V) logits in the columns `kept` of a batch of `kdlib.language.distill.batches.collate`.

    Args:
        narrowing: whether the model takes `logits_to_keep`, see `can_narrow`.
    """
    # Of a vocabulary of 150,000 the logits take the memory: only those that predict a completion are made.
    narrowed = {"logits_to_keep": kept_columns(batch)} if narrowing else {}
    logits = model(**model_inputs(batch), **narrowed).logits
    return logits if narrowing else logits.index_select(1, batch["kept"])


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


class HiddenTeacher:
    """Runs at each step up to its output layer, for a loss that makes its logits a few at a time.

    Args:
        model: `kdlib.language.distill.output_layer.opened`, in eval mode, on the device of the batches.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """(n, H'): what the output layer would be given for each token that counts."""
        return at_output_layer(self._model, batch, lambda hidden, weight, bias: hidden)

    def output_layer(self) -> tuple[Tensor, Tensor | None]:
        """Its weight (W, H') and bias, whole, also where processes share the model."""
        gather_output_layer(self._model)
        layer = self._model.get_output_embeddings()
        return layer.weight, layer.bias


class StoredTeacher:
    """Reads what `kdlib.cache.tokens.cache_teacher_tokens` has written."""

    def __init__(self, stored) -> None:
        self._stored = stored

    def __call__(self, batch: dict[str, Tensor]) -> TopK:
        return self._stored.top_k(batch["stored"])
