"""The shape of a Qwen2 or Llama: its parameters, what autograd keeps of a layer, and its arithmetic.

A product of a weight costs 2 operations a position, its backward pass twice that (Kaplan et
al. 2020, arXiv 2001.08361, §2.1: 6N a token); attention 4·L·A forward and 10·L·A backward, where the kernel
computes the scores anew; in full, although a causal kernel skips half (so does Chowdhery et al. 2022, arXiv
2204.02311, appendix B).
"""

from typing import Literal

from transformers import PreTrainedConfig

__all__ = ["Architecture", "WeightType"]

WeightType = Literal["float32", "bfloat16", "int8", "nf4"]

# nf4: 4 bits, and a float32 scale for each block of 64 (Dettmers et al. 2023, arXiv 2305.14314).
_LINEAR_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "nf4": 0.5 + 4 / 64}


class Architecture:
    """The shape of a Qwen2 or Llama language model, from its configuration.

    Attributes:
        hidden, feed_forward, layers, heads, vocabulary: sizes.
        query, key: width of all heads of queries, and of all heads of keys.
        tied: whether input and output embeddings are one matrix.
        layer_linear, layer_parameters: weights of the products in a layer; all parameters of a layer.
        head: weights of the output embedding.
        root_parameters: those outside of the layers, embeddings and the last norm.
        parameters: of the whole model.
        kv_numbers: numbers in the cache of keys and values for each token.

    Raises:
        ValueError: a model type other than qwen2 and llama, whose layers were not counted.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        if config.model_type not in ("qwen2", "llama"):
            raise ValueError(
                f"a model of type {config.model_type!r} cannot be planned for; expected qwen2 or llama"
            )
        self.hidden, self.feed_forward = config.hidden_size, config.intermediate_size
        self.layers, self.heads = config.num_hidden_layers, config.num_attention_heads
        self.vocabulary, self.tied = config.vocab_size, bool(config.tie_word_embeddings)
        head_dim = getattr(config, "head_dim", None) or self.hidden // self.heads
        self.query, self.key = self.heads * head_dim, config.num_key_value_heads * head_dim
        # Qwen2 has biases on queries, keys and values, always; Llama none, unless its configuration says so.
        biases = self.query + 2 * self.key
        if config.model_type == "llama":
            biases = (biases + self.hidden) * bool(config.attention_bias)
            biases += (2 * self.feed_forward + self.hidden) * bool(config.mlp_bias)
        self.layer_linear = self.hidden * (2 * self.query + 2 * self.key + 3 * self.feed_forward)
        self.layer_parameters = self.layer_linear + biases + 2 * self.hidden
        self.head = self.vocabulary * self.hidden
        self.root_parameters = self.head * (1 if self.tied else 2) + self.hidden
        self.parameters = self.layers * self.layer_parameters + self.root_parameters
        self.kv_numbers = 2 * self.layers * self.key

    def weight_bytes(self, kind: WeightType) -> float:
        """Quantisation is of the products in the layers; embeddings, norms and biases are bfloat16 then."""
        linear, rest = self.layers * self.layer_linear, 4 if kind == "float32" else 2
        return linear * _LINEAR_BYTES[kind] + (self.parameters - linear) * rest

    def saved(self, bf16: bool, context: int, mask: bool) -> int:
        """Bytes that autograd keeps of a layer for each position, see `kdlib.language.plan.memory`."""
        key = self.query if mask else self.key
        narrow = 2 * self.query + 2 * key + 4 * self.feed_forward + (context if mask else 0)
        if not bf16:
            return 4 * (6 * self.hidden + 2 + self.heads + narrow)
        return 4 * (4 * self.hidden + 2 + self.heads) + 2 * (5 * self.hidden + narrow)

    def forward_flops(self, positions: int, context: float, kept: int) -> float:
        """Of texts of `context` positions, with logits for `kept` of all positions."""
        each = 2 * self.layers * self.layer_linear + 4 * context * self.query * self.layers
        return positions * each + 2 * kept * self.head

    def training_flops(self, positions: int, context: int, kept: int, checkpointing: bool) -> float:
        """Forward and backward; with checkpointing the layers' forward twice."""
        each = 6 * self.layers * self.layer_linear + (4 + 10) * context * self.query * self.layers
        flops = positions * each + 6 * kept * self.head
        return flops + (self.forward_flops(positions, context, 0) if checkpointing else 0)
