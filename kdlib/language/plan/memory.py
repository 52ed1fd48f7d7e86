"""Memory of training a Qwen2 or Llama, counted from its shape.

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
"""

from dataclasses import dataclass
from typing import Literal

from kdlib.language.distill.output_layer import LARGE_VOCABULARY
from kdlib.language.plan.architecture import Architecture, WeightType
from kdlib.language.plan.hardware import Hardware
from kdlib.losses.divergences import Divergence
from kdlib.losses.linear import chunk_tokens

__all__ = [
    "Method", "Moments", "Sharding", "Workload", "caching_memory", "loss_bytes", "loss_copies",
    "sampling_memory", "teacher_working", "training_memory",
]  # fmt: skip

Method = Literal["texts", "logits", "cached"]
Sharding = Literal["one device", "DDP", "FSDP2"]
Moments = dict[str, dict[str, float]]
"""Bytes on one device by component, at each moment that may be the fullest."""

_CACHE_ROWS = 256  # tokens whose logits cache_teacher_tokens looks at together


@dataclass(frozen=True)
class Workload:
    """The arguments of `kdlib.language.plan.plan.plan`, in numbers; see there."""

    teacher: Architecture | None
    student: Architecture
    hardware: Hardware
    tokens: float
    method: Method
    top_k: int | None
    divergence: Divergence
    context: int
    prompt_tokens: int
    batch_size: int
    accumulation: int
    padding: float
    packing: bool
    bf16: bool
    gradient_checkpointing: bool
    teacher_weights: WeightType
    samples: int
    sampling_batch: int
    utilisation: float
    bandwidth_share: float
    usable: float

    @property
    def limit(self) -> float:
        """Bytes of a device that may be filled."""
        return self.usable * self.hardware.memory

    @property
    def positions(self) -> int:
        """Of a micro-batch of one device."""
        return self.batch_size * self.context

    @property
    def kept(self) -> int:
        """Positions of a micro-batch that logits are computed for."""
        return self.batch_size * (self.context - self.prompt_tokens)

    @property
    def counted(self) -> int:
        """Tokens in the loss of a micro-batch."""
        texts = self.positions * (1 - self.padding)
        return max(1, round(texts * (self.context - self.prompt_tokens) / self.context))

    @property
    def micro_batches(self) -> float:
        """On all devices together."""
        return self.tokens / (self.positions * (1 - self.padding))

    @property
    def masked(self) -> bool:
        """Whether attention takes a mask: one that is causal and nothing else needs none."""
        return self.packing or self.padding > 0

    @property
    def fused(self) -> bool:
        """Whether the loss is computed from hidden states, without all logits."""
        return self.student.vocabulary >= LARGE_VOCABULARY

    @property
    def live_teacher(self) -> Architecture | None:
        """One that runs at every step."""
        return self.teacher if self.method == "logits" else None

    @property
    def itemsize(self) -> int:
        """Bytes of a number that a product of the student gives."""
        return 2 if self.bf16 else 4

    @property
    def teacher_itemsize(self) -> int:
        return 4 if self.teacher_weights == "float32" and not self.bf16 else 2


# --- logits -----------------------------------------------------------------------------------------------

# Logit-sized float32 tensors at the fullest moment of a loss, the student's logits among them, the teacher's
# not; counted in kdlib.losses.kd and kdlib.losses.top_k as they are, and counted again in the tests.
_COPIES = {"texts": 3, "forward": 11.5, "reverse": 10.5, "jsd": 18.75, "top-k": 4}
# The same for a chunk of the fused loss, as kdlib.losses.closed_form has them, without the logits themselves.
_IN_A_CHUNK = {"forward": 2.25, "reverse": 2.25, "jsd": 5.25}


def loss_copies(method: Method, divergence: Divergence, top_k: int | None) -> float:
    """Float32 tensors of the size of the student's logits, these included, that a loss holds at most."""
    return _COPIES["texts" if method == "texts" else divergence if top_k is None else "top-k"]


def loss_bytes(
    method: Method, divergence: Divergence, top_k: int | None, counted: int, student: int, teacher: int = 0,
    itemsize: int = 2,
) -> float:  # fmt: skip
    """Bytes of logits and loss at their fullest moment, for losses of kdlib as their formulas are written.

    The student's logits are float32. From four million logits on `kd_loss` works in slices and needs
    less than this; the fused loss never holds all logits at once.

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


def _chunk_bytes(w: Workload) -> float:
    """Bytes of a chunk of logits and their loss at the fullest moment of `linear_kd_loss`."""
    student, rows = w.student.vocabulary, chunk_tokens(w.counted, w.student.vocabulary)
    if w.method != "texts" and w.top_k is not None:
        return rows * w.itemsize * student + loss_bytes(w.method, w.divergence, w.top_k, rows, student)
    teacher = w.live_teacher.vocabulary if w.live_teacher else 0
    logits = student * w.itemsize + teacher * w.teacher_itemsize
    if w.hardware.kernels:  # they write the gradient over the logits
        return logits * min(w.counted, chunk_tokens(w.counted, student, written_over=logits))
    # In float32, which is a copy of bfloat16 logits, and the gradient of the hard term.
    held = logits + student * (8 if w.bf16 else 4)
    if w.method == "texts":
        return rows * (held + (w.itemsize * student if w.bf16 else 0))
    compared = _IN_A_CHUNK[w.divergence] + (1 if w.teacher_itemsize < 4 else 0)
    return rows * (held + 4 * compared * min(student, teacher))


# --- the teacher ------------------------------------------------------------------------------------------


def teacher_working(
    teacher: Architecture, itemsize: int, positions: int, kept: int, counted: int
) -> float:
    """Bytes of a forward pass without gradient: a layer at its fullest, or the logits.

    Args:
        kept: logits that are computed, of `counted` which are chosen.
    """
    layer = 3 * positions * (teacher.hidden + teacher.feed_forward)
    return itemsize * max(layer, (kept + counted) * teacher.vocabulary + positions * teacher.hidden)


def teacher_on_each(w: Workload) -> float:
    """Bytes of the teacher's weights on each device: whole ones if they fill at most half, else spread."""
    whole = w.teacher.weight_bytes(w.teacher_weights)
    return whole if whole <= w.limit / 2 else whole / w.hardware.devices


def sampling_memory(w: Workload) -> Moments:
    """Of the teacher, writing texts to the end of the context."""
    each = w.sampling_batch * w.context * 2 * w.teacher.kv_numbers
    return {"last token": {
        "teacher weights": teacher_on_each(w),
        # Each layer's keys and values are copied to make room for the next token.
        "KV cache": each * (1 + 1 / w.teacher.layers),
        # The head's bfloat16 logits, in float32, and sorted with their indices for top-p.
        "logits and loss": w.sampling_batch * w.teacher.vocabulary * (2 + 4 + 12),
    }}  # fmt: skip


def caching_memory(w: Workload) -> Moments:
    """Of the teacher, reading the texts once to store its largest logits."""
    teacher, item = w.teacher, 4 if w.teacher_weights == "float32" else 2
    weights = {"teacher weights": teacher_on_each(w)}
    logits = item * w.kept * teacher.vocabulary + 4 * min(_CACHE_ROWS, w.kept) * teacher.vocabulary
    return {
        "output": weights | {"activations": item * w.positions * teacher.hidden, "logits and loss": logits},
        "fullest layer": weights | {"activations": teacher_working(teacher, item, w.positions, 0, 0)},
    }


# --- training ---------------------------------------------------------------------------------------------


def training_memory(w: Workload, sharding: Sharding) -> Moments:
    """Of a step of the student with AdamW, which has two float32 moments, in its fused form."""
    shards = w.hardware.devices if sharding == "FSDP2" else 1
    resident = _resident(w, shards, sharding == "DDP")
    components = {
        "gradients": _gradients(w, shards), "activations": _activations(w),
        "bf16 copies of weights": _copies_of_weights(w, shards), "logits and loss": _logits(w),
    }  # fmt: skip
    return {
        moment: resident | {name: sizes.get(moment, 0) for name, sizes in components.items()}
        for moment in components["gradients"]
    }


def _resident(w: Workload, shards: int, replicated: bool) -> dict[str, float]:
    """What is there all the time.

    FSDP2 gathers the weights of a layer when they are needed, and the next one's ahead; those outside of the
    layers stay gathered.
    """

    def gathered(model: Architecture, itemsize: int) -> float:
        return itemsize * (model.root_parameters + 2 * model.layer_parameters) if shards > 1 else 0

    student, teacher = w.student, w.live_teacher
    each = student.parameters / shards
    sizes = {"student weights": 4 * each, "optimizer state": 8 * each}
    if replicated:
        sizes["gradient buckets"] = 4 * student.parameters
    if teacher is not None:
        sizes["teacher weights"] = teacher.weight_bytes(w.teacher_weights) / shards
    sizes["gathered weights"] = gathered(student, w.itemsize) + (
        gathered(teacher, w.teacher_itemsize) if teacher else 0
    )
    return sizes


def _gradients(w: Workload, shards: int) -> dict[str, float]:
    """With those of earlier micro-batches.

    A gradient is added to these at once and takes no room of its own, but for a shared embedding's, which
    waits for its other half. FSDP2 holds those of a layer, and of the embeddings until the end, whole and in
    the precision of the arithmetic.
    """
    student, spread, accumulates = w.student, shards > 1, w.accumulation > 1
    whole = 4 * student.parameters / shards
    earlier = whole if accumulates else 0.0
    item = w.itemsize if spread else 4
    if w.fused:
        at_loss, at_output = 4 * student.head, (4 + item) * student.head
    else:  # a bfloat16 gradient is cast to float32
        at_loss, at_output = 0, (6 if w.bf16 else 4) * student.head
    waiting = item * student.head if spread or student.tied or not accumulates else 0
    if spread:
        of_layer = item * student.layer_parameters
        at_end = whole + item * student.head * (3 if student.tied else 2)
    else:  # a layer is at its fullest when only the gradient of its last product is there
        of_layer = 0 if accumulates else 4 * student.hidden * student.feed_forward
        # Both halves of a shared embedding's, and their sum, which takes the place of the fused loss' half.
        halves = (1 if w.fused else 2) if student.tied else 0
        at_end = whole + 4 * student.head * (halves + accumulates)
    to_come = student.layer_parameters + student.root_parameters - (0 if spread else student.head)
    at_first = max(earlier, whole - 4 * to_come / shards) + (waiting if spread or accumulates else 0)
    sizes = {
        "loss": earlier + at_loss,
        "backward of the output embedding": earlier + at_output,
        "backward of the last layer": earlier + waiting + of_layer,
        "backward of the first layer": at_first + of_layer,
        "backward of the input embedding": at_end,
    }
    return sizes | ({"forward of the teacher": earlier} if w.live_teacher else {})


def _activations(w: Workload) -> dict[str, float]:
    student, positions = w.student, w.positions
    full = student.saved(w.bf16, w.context, w.masked) * positions
    layer = 4 * student.hidden * positions if w.gradient_checkpointing else full
    layers = student.layers * layer
    # Around the layers: the last norm, the head's input, cosines and sines, a mask, token ids and the like.
    head_dim = student.query // student.heads
    around = positions * (8 * student.hidden + 4) + w.kept * student.hidden * w.itemsize
    around += 8 * w.context * head_dim + 24 * positions + (positions * w.context if w.masked else 0)
    # The backward pass of a layer: what is computed again, and gradients of two feed-forward tensors and of
    # the hidden states.
    backward = full - layer + positions * (2 * student.feed_forward * w.itemsize + 4 * student.hidden)
    # For the fused loss, hidden states of the tokens that count, and their gradient.
    held = layers + around + (2 * 4 * w.counted * student.hidden if w.fused else 0)
    all_compared = w.fused and w.live_teacher is not None and w.top_k is None
    of_teacher = w.teacher_itemsize * w.counted * w.teacher.hidden if all_compared else 0
    sizes = {
        "loss": held + of_teacher,
        "backward of the output embedding": held,
        "backward of the last layer": layers + backward,
        "backward of the first layer": layer + backward,
        "backward of the input embedding": 4 * positions * student.hidden,
    }
    if (teacher := w.live_teacher) is not None:
        kept, counted = (0, 0) if all_compared else (w.kept, w.counted)
        working = teacher_working(teacher, w.teacher_itemsize, positions, kept, counted) + of_teacher
        working += 4 * w.counted * teacher.vocabulary if w.top_k is not None else 0  # what top_k_of needs
        # The fused loss has the teacher's forward before the student's.
        sizes["forward of the teacher"] = working + (0 if w.fused else layers + around)
    return sizes


def _copies_of_weights(w: Workload, shards: int) -> dict[str, float]:
    """Autocast keeps them until the backward pass has used them; with checkpointing, those of one layer."""
    student = w.student
    if not w.bf16 or shards > 1:
        return {}
    layer, head = 2 * student.layer_linear, 2 * student.head
    layers = 0 if w.gradient_checkpointing else student.layers * layer
    # The fused loss is done with the head's as soon as it is computed.
    sizes = {
        "loss": layers + head,
        "backward of the output embedding": layers + (0 if w.fused else head),
        "backward of the last layer": layers + (layer if w.gradient_checkpointing else 0),
        "backward of the first layer": layer,
    }
    return sizes if w.fused else sizes | {"forward of the teacher": layers + head}


def _logits(w: Workload) -> dict[str, float]:
    if w.fused:
        return {"loss": _chunk_bytes(w)}
    vocabulary, teacher = w.student.vocabulary, w.live_teacher
    counted, kept = 4 * w.counted * vocabulary, 4 * w.kept * vocabulary
    loss = loss_bytes(
        w.method, w.divergence, w.top_k, w.counted, vocabulary, teacher.vocabulary if teacher else 0,
        w.teacher_itemsize,
    )  # fmt: skip
    return {
        "loss": max(loss, counted + kept),  # or choosing the counted positions, and its backward pass
        "backward of the output embedding": kept * (0.5 if w.bf16 else 1),
        "forward of the teacher": counted,
    }
