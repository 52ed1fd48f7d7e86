"""Tiny language models from nothing, of the classes that the real checkpoints have."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from kdlib.arguments import check_counts, check_whole
from kdlib.runtime import seeded

Family = Literal["qwen2", "llama"]  # the bases of the six R1-Distill checkpoints


def tiny_model(
    tokenizer: PreTrainedTokenizerBase, *, width: int, layers: int, heads: int = 4, family: Family = "qwen2",
    positions: int = 512, seed: int = 0,
) -> PreTrainedModel:  # fmt: skip
    """An untrained `Qwen2ForCausalLM` or `LlamaForCausalLM` with the tokenizer's vocabulary.

    Input and output embeddings are shared, which the small Qwen2 models do too. About 16 · layers · width²
    parameters, and the embedding.

    Args:
        width: size of the hidden states, a multiple of 2 · heads; the feed-forward layer is four times wider.
        positions: longest text, in tokens.

    Raises:
        ValueError: an argument that does not fit.
    """
    check_counts(width=width, layers=layers, heads=heads, positions=positions)
    check_whole("seed", seed)
    if family not in get_args(Family):
        raise ValueError(f'family must be "qwen2" or "llama"; got {family!r}')
    if width % (2 * heads):
        raise ValueError(f"width must be a multiple of 2 · heads = {2 * heads}; got {width}")
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=positions, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        # 0.02, the default, is for widths of thousands; from here the loss of tiny models falls faster.
        initializer_range=0.06,
    )  # fmt: skip
    with seeded(seed, torch.device("cpu")):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def load_model(folder: str | os.PathLike) -> PreTrainedModel:
    """The causal language model that was saved in a folder, on the CPU, in eval mode."""
    with without_bars():
        return AutoModelForCausalLM.from_pretrained(folder)


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bar of transformers for reading or writing weights, which takes milliseconds here."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
