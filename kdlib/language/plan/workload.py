"""What is to be trained, in numbers: the shape of a Qwen2 or Llama, and a run of `distill_language_model`."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from transformers import PreTrainedConfig

from kdlib.language.plan.hardware import Hardware
from kdlib.losses.divergences import Divergence
from kdlib.runtime import Precision

Method = Literal["texts", "logits", "cached"]
WeightType = Literal["float32", "bfloat16", "int8", "nf4"]

# nf4: 4 bits, and a float32 scale for each block of 64 (Dettmers et al. 2023, arXiv 2305.14314).
_LINEAR_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "nf4": 0.5 + 4 / 64}


class Architecture:
    """The shape of a Qwen2 or Llama language model, from its configuration, and the arithmetic it costs.

    A product of a weight costs 2 operations a position, its backward pass twice that (Kaplan et al. 2020,
    arXiv 2001.08361, §2.1); attention 4·L·A forward and 10·L·A backward, where the kernel computes the scores
    anew; in full, although a causal kernel skips half (so Chowdhery et al. 2022, arXiv 2204.02311, app. B).
    The layers of other models were not counted: those are a ValueError.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        if config.model_type not in ("qwen2", "llama"):
            raise ValueError(f"a model has model_type {config.model_type!r}; expected qwen2 or llama")
        self.hidden, self.feed_forward = config.hidden_size, config.intermediate_size
        self.layers, self.heads = config.num_hidden_layers, config.num_attention_heads
        self.vocabulary, self.tied = config.vocab_size, bool(config.tie_word_embeddings)
        # Width of all heads of queries, and of all heads of keys.
        head_dim = getattr(config, "head_dim", None) or self.hidden // self.heads
        self.query, self.key = self.heads * head_dim, config.num_key_value_heads * head_dim
        # Qwen2 has biases on queries, keys and values, always; Llama none, unless its configuration says so.
        biases = self.query + 2 * self.key
        if config.model_type == "llama":
            biases = (biases + self.hidden) * bool(config.attention_bias)
            biases += (2 * self.feed_forward + self.hidden) * bool(config.mlp_bias)
        # Numbers: of a layer in products, of a whole layer, of the output embedding, outside of the layers.
        self.layer_linear = self.hidden * (2 * self.query + 2 * self.key + 3 * self.feed_forward)
        self.layer_parameters = self.layer_linear + biases + 2 * self.hidden
        self.head = self.vocabulary * self.hidden
        self.root_parameters = self.head * (1 if self.tied else 2) + self.hidden
        self.parameters = self.layers * self.layer_parameters + self.root_parameters
        self.kv_numbers = 2 * self.layers * self.key  # in the cache of keys and values, for each token

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


@dataclass
class Workload:
    """What is trained on what, and how. A value out of its range is a ValueError."""

    teacher: Architecture | None
    student: Architecture  # trained in float32 weights
    hardware: Hardware
    tokens: float  # trained on, prompts and completions together, over all epochs
    # "texts" (cross-entropy on them), "logits" (the teacher runs at every step) or "cached" (it runs once
    # beforehand, `cache_teacher_tokens`). None is "logits" with a teacher, "texts" without.
    method: Method | None = None
    context: int = 4096  # positions of a text, padding included; every text is taken to be as long
    prompt_tokens: int = 128  # of each text, which are read but not learnt
    batch_size: int = 1  # texts in a micro-batch of one device
    accumulation: int = 8  # micro-batches in a step
    padding: float = 0.0  # share of the positions that hold no token
    packing: bool = False  # whether short texts share a row; like padding it takes a mask
    precision: Precision = "bf16"  # autocast over float32 weights, as is "auto"; "no" is float32
    gradient_checkpointing: bool = True  # whether each layer is computed again in the backward pass
    divergence: Divergence = "forward"  # of the soft term, where all logits are compared
    top_k: int | None = None  # of the teacher's logits for each token; None is all, and 64 for the cache
    teacher_weights: WeightType = "bfloat16"
    samples: int = 0  # texts that the teacher writes first, up to the end of the context
    sampling_batch: int = 32  # texts that one device writes at once
    # Whether each device holds the whole teacher while it writes or fills the cache, as in `run_pipeline`;
    # else one of more than half a device is spread, as a server can.
    whole_teacher: bool = False
    # Assumptions: the share of the peak FLOP/s that training reaches (Llama 3 405B reached 0.38 to 0.43 on
    # H100: Grattafiori et al. 2024, arXiv 2407.21783, table 4), of the memory's bandwidth that writing text
    # reaches, and of a device's memory that tensors may fill, beside CUDA, communication and gaps.
    utilisation: float = 0.4
    bandwidth_share: float = 0.6
    usable: float = 0.9

    def __post_init__(self) -> None:
        if self.method is None:
            self.method = "logits" if self.teacher else "texts"
        if self.method == "cached" and self.top_k is None:
            self.top_k = 64
        self.teacher_needed = self.method != "texts" or self.samples > 0
        self._check()
        self.live_teacher = self.teacher if self.method == "logits" else None  # one that runs at every step
        self.limit = self.usable * self.hardware.memory  # bytes of a device that may be filled
        # In a micro-batch of one device: positions, those that logits are computed for, tokens in the loss.
        learnt = self.context - self.prompt_tokens
        self.positions, self.kept = self.batch_size * self.context, self.batch_size * learnt
        texts = self.positions * (1 - self.padding)
        self.counted = max(1, round(texts * learnt / self.context))
        self.micro_batches = self.tokens / texts  # on all devices together
        self.masked = self.packing or self.padding > 0  # attention that is causal and nothing else needs none
        # Bytes of a number that a product of the student and of the teacher gives.
        self.bf16 = self.precision != "no"
        self.itemsize = 2 if self.bf16 else 4
        self.teacher_itemsize = 4 if self.teacher_weights == "float32" and not self.bf16 else 2

    def _check(self) -> None:
        for name, kind in {
            "method": Method, "divergence": Divergence, "precision": Precision, "teacher_weights": WeightType
        }.items():  # fmt: skip
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {get_args(kind)}")
        for name, least, most in (
            ("tokens", 1.0, math.inf), ("context", 2, math.inf), ("prompt_tokens", 1, self.context - 1),
            ("batch_size", 1, math.inf), ("accumulation", 1, math.inf), ("padding", 0.0, 0.99),
            ("top_k", 1, self.student.vocabulary), ("samples", 0, math.inf), ("sampling_batch", 1, math.inf),
            ("utilisation", 0.01, 1), ("bandwidth_share", 0.01, 1), ("usable", 0.01, 1),
        ):  # fmt: skip
            value, kind = getattr(self, name), type(least)
            if value is not None and not (isinstance(value, int | kind) and least <= value <= most):
                raise ValueError(f"{name} is {value!r}; expected {kind.__name__} from {least} to {most}")
        if self.teacher_needed and self.teacher is None:
            raise ValueError("teacher is None; expected one, for this method or these samples")
