"""The shape of a Qwen2 or Llama: its parameters, what autograd keeps of a layer, and its arithmetic.

A product of a weight costs 2 operations a position, its backward pass twice that (Kaplan et
al. 2020, arXiv 2001.08361, §2.1: 6N a token); attention 4·L·A forward and 10·L·A backward, where the kernel
computes the scores anew; in full, although a causal kernel skips half (so does Chowdhery et al. 2022, arXiv
2204.02311, appendix B).
"""

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedConfig

__all__ = ["Architecture", "WeightType"]

WeightType = Literal["float32", "bfloat16", "int8", "nf4"]

# nf4: 4 bits, and a float32 scale for each block of 64 (Dettmers et al. 2023, arXiv 2305.14314).
_LINEAR_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "nf4": 0.5 + 4 / 64}


@dataclass(frozen=True)
class Architecture:
    """The shape of a Qwen2 or Llama language model.

    Attributes:
        hidden, feed_forward, layers, heads, vocabulary: sizes.
        query, key: width of all heads of queries, and of all heads of keys.
        tied: whether input and output embeddings are one matrix.
        layer_biases: numbers in the biases of a layer.
    """

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    query: int
    key: int
    vocabulary: int
    tied: bool
    layer_biases: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Architecture":
        """Raises ValueError for a model type other than qwen2 and llama, whose layers were not counted."""
        if config.model_type not in ("qwen2", "llama"):
            raise ValueError(
                f"a model of type {config.model_type!r} cannot be planned for; expected qwen2 or llama"
            )
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        query, key = heads * head_dim, config.num_key_value_heads * head_dim
        # Qwen2 has biases on queries, keys and values, always; Llama none, unless its configuration says so.
        biases = query + 2 * key
        if config.model_type == "llama":
            biases = (biases + config.hidden_size) * bool(config.attention_bias)
            biases += (2 * config.intermediate_size + config.hidden_size) * bool(config.mlp_bias)
        return cls(
            config.hidden_size, config.intermediate_size, config.num_hidden_layers, heads, query, key,
            config.vocab_size, bool(config.tie_word_embeddings), biases,
        )  # fmt: skip

    @property
    def layer_linear(self) -> int:
        """Weights of products in a layer."""
        return self.hidden * (2 * self.query + 2 * self.key + 3 * self.feed_forward)

    @property
    def layer_parameters(self) -> int:
        return self.layer_linear + self.layer_biases + 2 * self.hidden

    @property
    def head(self) -> int:
        """Weights of the output embedding."""
        return self.vocabulary * self.hidden

    @property
    def root_parameters(self) -> int:
        """Those outside of the layers: embeddings and the last norm."""
        return self.head * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.root_parameters

    @property
    def kv_numbers(self) -> int:
        """Numbers in the cache of keys and values for each token."""
        return 2 * self.layers * self.key

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

    def forward_flops(self, positions: int, context: int, kept: int) -> float:
        """Of texts of `context` positions, with logits for `kept` of all positions."""
        each = 2 * self.layers * self.layer_linear + 4 * context * self.query * self.layers
        return positions * each + 2 * kept * self.head

    def training_flops(self, positions: int, context: int, kept: int, checkpointing: bool) -> float:
        """Forward and backward; with checkpointing the layers' forward twice."""
        each = 6 * self.layers * self.layer_linear + (4 + 10) * context * self.query * self.layers
        flops = positions * each + 6 * kept * self.head
        return flops + (self.forward_flops(positions, context, 0) if checkpointing else 0)
