"""Memory and arithmetic of training a Qwen2 or Llama, counted from its shape.

**What autograd keeps of a layer**, for each position, in numbers of H (hidden), F (feed-forward), A (all
heads of queries), K (all heads of keys), h (number of heads), as found by hooking every tensor that autograd
saves in transformers' Qwen2 and Llama with torch's scaled-dot-product attention:

    each of two norms    its input H, its normalised input H, 1/norm, and the output H (as input of products)
    attention            q A, k K, v K, log-sum-exp h, output A
    feed-forward         gate F, silu(gate) F, up F, their product F

That is 6H + 2A + 2K + 4F + h + 2 numbers, all float32 without autocast. Under bfloat16 autocast with float32
weights the stream of hidden states stays float32 and the rest is bfloat16, but the output of a norm is cast
anew for each of the five products it enters (autocast caches casts of weights only):

    4·(4H + 2 + h) + 2·(5H + 2A + 2K + 4F) bytes, and 2 bytes for each weight of a product, its cached cast.

With a mask for padding (transformers leaves it out where no text is padded) each layer also keeps it as L
numbers a position, and keys and values of grouped heads repeated to A. Gradient checkpointing (Chen et al.
2016, arXiv 1604.06174) keeps the layer's input, H, and computes the rest anew, one layer at a time.

**Arithmetic.** A product of a weight costs 2 operations a position, its backward pass twice that (Kaplan et
al. 2020, arXiv 2001.08361, §2.1: 6N a token); attention 4·L·A forward and 10·L·A backward, where the kernel
computes the scores anew; in full, although a causal kernel skips half (so does Chowdhery et al. 2022, arXiv
2204.02311, appendix B).
"""

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedConfig

from kdlib.language.distill.output_layer import LARGE_VOCABULARY
from kdlib.losses.kd import Divergence
from kdlib.losses.linear import chunk_tokens

__all__ = [
    "Architecture", "Method", "Step", "WeightType", "chunk_bytes", "gathered_bytes", "loss_bytes",
    "loss_copies", "teacher_working", "training_moments",
]  # fmt: skip

Method = Literal["texts", "logits", "cached"]
WeightType = Literal["float32", "bfloat16", "int8", "nf4"]

# nf4 of bitsandbytes: 4 bits, and a float32 scale for each block of 64 (Dettmers et al. 2023, arXiv
# 2305.14314).
_LINEAR_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "nf4": 0.5 + 4 / 64}


@dataclass(frozen=True)
class Architecture:
    """The shape of a Qwen2 or Llama language model.

    Attributes:
        hidden, feed_forward, layers, heads, kv_heads, head_dim, vocabulary: sizes.
        tied: whether input and output embeddings are one matrix.
        layer_biases: numbers in the biases of a layer.
    """

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    layer_biases: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Architecture":
        """Raises ValueError for a model type other than qwen2 and llama, whose layers were not counted."""
        if getattr(config, "model_type", None) not in ("qwen2", "llama"):
            kind = getattr(config, "model_type", type(config).__name__)
            raise ValueError(
                f"a model of type {kind!r} cannot be planned for; expected qwen2 or llama, whose layers were "
                "counted"
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
            config.hidden_size, config.intermediate_size, config.num_hidden_layers, heads,
            config.num_key_value_heads, head_dim, config.vocab_size, bool(config.tie_word_embeddings), biases,
        )  # fmt: skip

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        return self.kv_heads * self.head_dim

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
        rest = 4 if kind == "float32" else 2
        return self._linear * _LINEAR_BYTES[kind] + (self.parameters - self._linear) * rest

    @property
    def _linear(self) -> int:
        return self.layers * self.layer_linear

    def saved(self, bf16: bool, context: int, mask: bool) -> int:
        """Bytes that autograd keeps of a layer for each position, see the top of the module."""
        key = self.query if mask else self.key
        narrow = 2 * self.query + 2 * key + 4 * self.feed_forward + (context if mask else 0)
        if not bf16:
            return 4 * (6 * self.hidden + 2 + self.heads + narrow)
        return 4 * (4 * self.hidden + 2 + self.heads) + 2 * (5 * self.hidden + narrow)

    def forward_flops(self, positions: int, context: int, kept: int) -> float:
        """Of texts of `context` positions, with logits for `kept` of all positions."""
        attention = 4 * context * self.query * self.layers
        return positions * (2 * self._linear + attention) + 2 * kept * self.head

    def training_flops(self, positions: int, context: int, kept: int, checkpointing: bool) -> float:
        """Forward and backward; with checkpointing the layers' forward twice."""
        attention = (4 + 10) * context * self.query * self.layers
        flops = positions * (6 * self._linear + attention) + 6 * kept * self.head
        return flops + (self.forward_flops(positions, context, 0) if checkpointing else 0)


@dataclass(frozen=True)
class Step:
    """How one device passes a micro-batch.

    Attributes:
        batch: texts. context: positions of each, padding included.
        kept: columns of logits that are computed. counted: positions in the loss, of the whole micro-batch.
        bf16: whether it is bfloat16 autocast over float32 weights, or float32 alone.
        checkpointing: of gradients. accumulates: whether gradients of earlier micro-batches are there.
        mask: whether any text is padded.
        kernels: whether the device runs `kdlib.losses.kernels`.
        shards: devices that weights, gradients and optimizer state are spread over (FSDP2); 1 for none.
        replicated: whether whole replicas exchange gradients (DDP).
    """

    batch: int
    context: int
    kept: int
    counted: int
    bf16: bool
    checkpointing: bool
    accumulates: bool
    mask: bool
    kernels: bool
    shards: int = 1
    replicated: bool = False

    @property
    def positions(self) -> int:
        return self.batch * self.context

    @property
    def itemsize(self) -> int:
        """Bytes of a number that a product gives."""
        return 2 if self.bf16 else 4


# Logit-sized float32 tensors at the fullest moment of a loss, the student's logits among them, the teacher's
# not; counted in kdlib.losses.kd and kdlib.losses.top_k as they are, and counted again in the tests.
_COPIES = {"texts": 3, "forward": 11.5, "reverse": 10.5, "jsd": 18.75, "top-k": 4}


def loss_bytes(
    method: Method,
    divergence: Divergence,
    top_k: int | None,
    counted: int,
    student: int,
    teacher: int = 0,
    itemsize: int = 2,
) -> float:
    """Bytes of logits and loss at their fullest moment, for losses of kdlib as their formulas are written.

    The student's logits are float32, and of every copy of them there is one for each entry of the vocabulary
    and each token. From four million logits on `kdlib.losses.kd` works in slices and needs less than this; the
    fused loss, which never holds all logits at once, needs `chunk_bytes`.

    Args:
        counted: tokens in the loss. student, teacher: sizes of the vocabularies.
        itemsize: bytes of one of the teacher's logits.
    """
    copies = loss_copies(method, divergence, top_k)
    if method == "texts":
        return counted * 4 * copies * student
    if top_k is not None:  # values float32, indices int64, and what is computed of them: 12 and 22 bytes
        return counted * (4 * copies * student + 34 * top_k)
    width = min(student, teacher)
    cast = 4 * width if itemsize < 4 else 0  # of the teacher's logits to float32
    return counted * (4 * student + 4 * (copies - 1) * width + cast + itemsize * teacher)


def loss_copies(method: Method, divergence: Divergence, top_k: int | None) -> float:
    """Float32 tensors of the size of the student's logits, these included, that a loss holds at most."""
    return _COPIES["texts" if method == "texts" else divergence if top_k is None else "top-k"]


# The same for a chunk of the fused loss, as kdlib.losses.closed_form has them: of the student's logits, and of those
# that are compared. The teacher's as it makes them are not among them.
_IN_A_CHUNK = {"forward": 2.25, "reverse": 2.25, "jsd": 5.25}


def chunk_bytes(
    method: Method,
    divergence: Divergence,
    top_k: int | None,
    counted: int,
    student: int,
    teacher: int,
    itemsize: int,
    teacher_itemsize: int,
    kernels: bool,
) -> float:
    """Bytes of a chunk of logits and their loss at the fullest moment of `kdlib.losses.linear.linear_kd_loss`.

    Args:
        counted: tokens in the loss. student, teacher: sizes of the vocabularies.
        itemsize, teacher_itemsize: bytes of a logit as products give it.
        kernels: whether the device runs `kdlib.losses.kernels`, which write the gradient over the logits.
    """
    of_teacher = teacher * teacher_itemsize if method == "logits" and top_k is None else 0
    cast = 4 if itemsize < 4 else 0
    if method != "texts" and top_k is not None:
        rows = min(counted, chunk_tokens(counted, student))
        return rows * itemsize * student + loss_bytes(method, divergence, top_k, rows, student)
    if kernels:
        rows = min(counted, chunk_tokens(counted, student, written_over=student * itemsize + of_teacher))
        return rows * (student * itemsize + of_teacher)
    rows = min(counted, chunk_tokens(counted, student))
    of_student = student * (itemsize + cast + 4)  # and the gradient of the hard term
    if method == "texts":
        return rows * (of_student + (itemsize if cast else 0) * student)
    width = min(student, teacher)
    cast = 4 * width if teacher_itemsize < 4 else 0
    return rows * (of_student + of_teacher + cast + 4 * _IN_A_CHUNK[divergence] * width)


def gathered_bytes(model: Architecture, itemsize: int) -> float:
    """FSDP2 gathers a layer's weights when they are needed, and the next one's ahead; the root's stay."""
    return itemsize * (model.root_parameters + 2 * model.layer_parameters)


def teacher_working(
    teacher: Architecture, itemsize: int, positions: int, kept: int, counted: int
) -> float:
    """Bytes of a forward pass without gradient: a layer at its fullest, or the logits.

    Args:
        kept: logits that are computed, of `counted` which are chosen.
    """
    layer = 3 * positions * (teacher.hidden + teacher.feed_forward)
    return itemsize * max(layer, (kept + counted) * teacher.vocabulary + positions * teacher.hidden)


def training_moments(
    student: Architecture,
    teacher: Architecture | None,
    step: Step,
    *,
    method: Method,
    divergence: Divergence,
    teacher_kind: WeightType,
    top_k: int | None,
) -> dict[str, dict[str, float]]:
    """Bytes on one device by component, at each moment that may be the fullest of a step.

    Of optimizers this is AdamW with two float32 moments, in its fused form, which needs no room of its own.

    Args:
        teacher: one that runs at every step, or None.
    """
    parameters, shards, positions = student.parameters, step.shards, step.positions
    one_gradient = (2 if step.bf16 else 0) + 4  # a bfloat16 gradient is cast to float32
    resident = {"student weights": 4 * parameters / shards, "optimizer state": 8 * parameters / shards}
    gathered = gathered_bytes(student, step.itemsize) if shards > 1 else 0
    if step.replicated:
        resident["gradient buckets"] = 4 * parameters
    item = 4 if teacher_kind == "float32" and not step.bf16 else 2
    if teacher is not None:
        resident["teacher weights"] = teacher.weight_bytes(teacher_kind) / shards
        gathered += gathered_bytes(teacher, item) if shards > 1 else 0
    if gathered:
        resident["gathered weights"] = gathered
    whole = 4 * parameters / shards
    earlier = whole if step.accumulates else 0.0

    # Autocast keeps its copies of weights until the backward pass has used them. With checkpointing only that
    # of the output embedding lives so long, and those of one layer at a time.
    fused = student.vocabulary >= LARGE_VOCABULARY
    layer_copy = 2 * student.layer_linear if step.bf16 and shards == 1 else 0
    head_copy = 2 * student.head if step.bf16 and shards == 1 else 0
    cached_head = 0 if fused else head_copy  # the fused loss is done with it as soon as it is computed
    per_layer = student.saved(step.bf16, step.context, step.mask) * positions
    kept_layer = 4 * student.hidden * positions if step.checkpointing else per_layer
    # Around the layers: the last norm, the head's input, cosines and sines, a mask, token ids and the like.
    around = positions * (8 * student.hidden + 4) + step.batch * step.kept * student.hidden * step.itemsize
    around += 8 * step.context * student.head_dim + 24 * positions
    around += positions * step.context if step.mask else 0
    layers = student.layers * kept_layer
    copies = cached_head + (0 if step.checkpointing else student.layers * layer_copy)
    # The backward pass of a layer: gradients of two feed-forward tensors and of the hidden states.
    working = positions * (2 * student.feed_forward * step.itemsize + 4 * student.hidden)
    again = per_layer - kept_layer if step.checkpointing else 0
    again_copy = layer_copy if step.checkpointing else 0
    # A gradient is added at once to what earlier micro-batches left, and takes no room of its own, but for a
    # shared embedding's, which waits for its other half. FSDP2 holds those of a layer, and of the root until
    # the end, whole and in the precision of the arithmetic.
    gradient = step.itemsize if shards > 1 else 4
    waiting = gradient * student.head if shards > 1 or student.tied or not step.accumulates else 0
    if shards > 1:
        of_layer = gradient * student.layer_parameters
    else:  # a layer is at its fullest when only the gradient of its last product is there
        of_layer = 0 if step.accumulates else 4 * student.hidden * student.feed_forward
    to_come = student.layer_parameters + student.root_parameters - (student.head if shards == 1 else 0)
    at_first = max(earlier, whole - 4 * to_come / shards)
    at_first += waiting if shards > 1 or step.accumulates else 0
    if shards > 1:
        at_end = whole + gradient * student.head * (3 if student.tied else 2)
    else:  # both halves of a shared embedding's, and their sum, which takes the place of the fused loss' half
        halves = (1 if fused else 2) if student.tied else 0
        at_end = whole + 4 * student.head * (halves + step.accumulates)

    if fused:
        # Hidden states of the tokens that count, and their gradient.
        held = layers + around + 2 * 4 * step.counted * student.hidden
        all_compared = method == "logits" and top_k is None
        of_teacher = item * step.counted * teacher.hidden if all_compared else 0
        chunk = chunk_bytes(
            method, divergence, top_k, step.counted, student.vocabulary, teacher.vocabulary if teacher else 0,
            step.itemsize, item, step.kernels,
        )  # fmt: skip
        moments = {
            "loss": resident | {
                "gradients": earlier + 4 * student.head, "activations": held + of_teacher,
                "bf16 copies of weights": copies + head_copy, "logits and loss": chunk,
            },
            "backward of the output embedding": resident | {
                "gradients": earlier + (4 + (step.itemsize if shards > 1 else 4)) * student.head,
                "activations": held, "bf16 copies of weights": copies,
            },
        }  # fmt: skip
    else:
        logits, kept = (4 * tokens * student.vocabulary for tokens in (step.counted, step.batch * step.kept))
        moments = {
            "loss": resident | {
                "gradients": earlier, "activations": layers + around, "bf16 copies of weights": copies,
                "logits and loss": max(
                    loss_bytes(method, divergence, top_k, step.counted, student.vocabulary,
                               teacher.vocabulary if teacher else 0, item),
                    # Choosing the counted positions, and its backward pass.
                    logits + kept,
                ),
            },
            "backward of the output embedding": resident | {
                "gradients": earlier + one_gradient * student.head, "activations": layers + around,
                "bf16 copies of weights": copies, "logits and loss": kept * (0.5 if step.bf16 else 1),
            },
        }  # fmt: skip
    moments |= {
        "backward of the last layer": resident | {
            "gradients": earlier + waiting + of_layer,
            "activations": layers + again + working,
            "bf16 copies of weights": copies - cached_head + again_copy,
        },
        "backward of the first layer": resident | {
            "gradients": at_first + of_layer,
            "activations": kept_layer + again + working, "bf16 copies of weights": layer_copy,
        },
        "backward of the input embedding": resident | {
            "gradients": at_end, "activations": 4 * positions * student.hidden,
        },
    }  # fmt: skip
    if teacher is None:
        return moments
    if fused and top_k is None:
        working = teacher_working(teacher, item, positions, 0, 0)
        working += item * step.counted * teacher.hidden
    else:
        working = teacher_working(teacher, item, positions, step.batch * step.kept, step.counted)
    if top_k is not None:  # what top_k_of needs
        working += 4 * step.counted * teacher.vocabulary
    moments["forward of the teacher"] = resident | {
        "gradients": earlier, "activations": working,
    } if fused else resident | {  # which comes before the student's there, and after it here
        "gradients": earlier, "activations": layers + around + working, "bf16 copies of weights": copies,
        "logits and loss": logits,
    }  # fmt: skip
    return moments
