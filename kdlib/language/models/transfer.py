"""Another vocabulary for a model: its layers stay, and its embeddings are made of the old ones.

    student = transfer_vocabulary(model, tokenizer, new_tokenizer)      # to be healed by distillation

A new token begins as the mean of the old tokens that its text is written in: Gee et al. 2022, "Fast
Vocabulary Transfer for Language Model Compression" (arXiv 2402.09977), §3.
"""

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.language.models.token_bytes import TokenBytes
from kdlib.language.models.vocabulary import align_special_tokens, check_same_tokens

__all__ = ["transfer_vocabulary"]


@torch.no_grad()
def transfer_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """A copy of a model that reads and writes the tokens of another tokenizer; the model stays as it is.

    Args:
        model: a causal language model whose output layer has no bias.
        tokenizer: the model's.
        new_tokenizer: that of the copy; both fast ones.

    Returns:
        The copy. The end-of-text token keeps its embedding. A token that is part of a character begins as the
        mean of the old tokens of its single bytes; one for which there are none, as the mean of all tokens.

    Raises:
        ValueError: a tokenizer that is none of the `tokenizers` library, or has more tokens than the model.
    """
    old, new = TokenBytes(tokenizer), TokenBytes(new_tokenizer)
    width, size = check_same_tokens(tokenizer, None, model=model), max(new.of) + 1
    pieces = _written_in(old, new, size)
    copied = copy.deepcopy(model)
    copied.resize_token_embeddings(size, mean_resizing=False)
    for layer in ("get_input_embeddings", "get_output_embeddings"):  # where they are tied, the same twice
        getattr(copied, layer)().weight.copy_(_means(getattr(model, layer)().weight[:width], pieces))
    align_special_tokens(copied, new_tokenizer)
    return copied


def _written_in(old: TokenBytes, new: TokenBytes, size: int) -> list[list[int]]:
    """For each new token the old ones that its text is written in; [] where there are none."""
    of_bytes = {piece: token for token, piece in old.of.items()}
    pieces: list[list[int]] = [[] for _ in range(size)]
    for token, piece in new.of.items():
        if token == new.tokenizer.eos_token_id and old.tokenizer.eos_token_id is not None:
            pieces[token] = [old.tokenizer.eos_token_id]
        elif piece in of_bytes:
            pieces[token] = [of_bytes[piece]]
        else:
            try:
                pieces[token] = old.encode(piece.decode())
            except UnicodeDecodeError:
                pieces[token] = [of_bytes[bytes([byte])] for byte in piece if bytes([byte]) in of_bytes]
    return pieces


def _means(weight: Tensor, pieces: list[list[int]]) -> Tensor:
    """(size, H): of the rows of each new token; of all, where it has none."""
    overall = weight.mean(0)
    return torch.stack([weight[rows].mean(0) if rows else overall for rows in pieces])
