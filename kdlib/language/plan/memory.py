"""Memory of training a Qwen2 or Llama, counted from its shape.

What autograd keeps of a layer for each position, in H (hidden), F (feed-forward), A and K (all heads of
queries, of keys), h (number of heads), found by hooking every tensor that it saves in transformers' Qwen2 and
Llama with torch's scaled-dot-product attention:

    each of two norms    its input H, its normalised input H, 1/norm, and the output H (as input of products)
    attention            q A, k K, v K, log-sum-exp h, output A
    feed-forward         gate F, silu(gate) F, up F, their product F

That is 6H + 2A + 2K + 4F + h + 2 numbers, float32 without autocast. Under bfloat16 autocast with float32
weights it is 4·(4H + 2 + h) + 2·(5H + 2A + 2K + 4F) bytes, and 2 for each weight of a product, its cached
cast: hidden states stay float32, and a norm's output is cast anew for each of the five products it enters.

With a mask for padding (transformers leaves it out where no text is padded) each layer also keeps it as L
numbers a position, and keys and values of grouped heads repeated to A. Gradient checkpointing (Chen et al.
2016, arXiv 1604.06174) keeps the layer's input, H, and computes the rest anew, one layer at a time.
"""

from typing import Literal

from kdlib.language.plan.workload import Architecture, Method, Workload
from kdlib.losses.backend import has_kernel
from kdlib.losses.divergences import Divergence
from kdlib.losses.linear import chunk_tokens

Sharding = Literal["one device", "DDP", "FSDP2"]
Moments = dict[str, dict[str, float]]  # bytes on one device by component, when it may be at its fullest

# Logit-sized float32 tensors at the fullest moment of a loss, the student's logits among them, the teacher's
# not; counted in kdlib.losses.kd and kdlib.losses.top_k as they are, and counted again in the tests.
_COPIES = {
    "texts": 3, "forward": 11.5, "reverse": 10.5, "jsd": 18.75, "skew-forward": 14.5, "skew-reverse": 14.5,
    "tvd": 9.5, "akl": 14.75, "top-k": 4,
}  # fmt: skip
# The same for a chunk of the fused loss, as kdlib.losses.closed_form has them, without the logits themselves.
_IN_A_CHUNK = {
    "forward": 2.25, "reverse": 2.25, "jsd": 5.25, "skew-forward": 5.25, "skew-reverse": 5.25, "tvd": 2.25,
    "akl": 5.25,
}  # fmt: skip


def loss_bytes(
    method: Method, divergence: Divergence, top_k: int | None, counted: int, student: int, teacher: int = 0,
    itemsize: int = 2,
) -> float:  # fmt: skip
    """Bytes of logits and loss at their fullest moment, for losses of kdlib as their formulas are written.

    Of `counted` tokens and vocabularies of the sizes `student` and `teacher`, whose logits take `itemsize`
    bytes each; the student's are float32. From four million logits on `kd_loss` works in slices and needs
    less; `linear_kd_loss`, which `plan` counts with, never holds all.
    """
    copies = _COPIES["texts" if method == "texts" else divergence if top_k is None else "top-k"]
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
    if w.hardware.kernels and (w.method == "texts" or has_kernel(w.divergence)):  # written over the logits
        return logits * min(w.counted, chunk_tokens(w.counted, student, written_over=logits))
    # In float32, which is a copy of bfloat16 logits, and the gradient of the hard term.
    held = logits + student * (8 if w.bf16 else 4)
    if w.method == "texts":
        return rows * (held + (w.itemsize * student if w.bf16 else 0))
    compared = _IN_A_CHUNK[w.divergence] + (1 if w.teacher_itemsize < 4 else 0)
    return rows * (held + 4 * compared * min(student, teacher))


def teacher_working(teacher: Architecture, itemsize: int, positions: int, kept: int, counted: int) -> float:
    """Bytes of a forward pass without gradient: a layer at its fullest, or `kept` logits and those chosen."""
    layer = 3 * positions * (teacher.hidden + teacher.feed_forward)
    return itemsize * max(layer, (kept + counted) * teacher.vocabulary + positions * teacher.hidden)


def _teacher_on_each(w: Workload) -> float:
    """Bytes of the teacher's weights on each device: spread if whole ones may be and fill more than half."""
    whole = w.teacher.weight_bytes(w.teacher_weights)
    return whole if w.whole_teacher or whole <= w.limit / 2 else whole / w.hardware.devices


def sampling_memory(w: Workload) -> Moments:
    """Of the teacher, writing texts to the end of the context."""
    each = w.sampling_batch * w.context * 2 * w.teacher.kv_numbers
    return {"last token": {
        "teacher weights": _teacher_on_each(w),
        # Each layer's keys and values are copied to make room for the next token.
        "KV cache": each * (1 + 1 / w.teacher.layers),
        # The head's bfloat16 logits, in float32, and sorted with their indices for top-p.
        "logits and loss": w.sampling_batch * w.teacher.vocabulary * (2 + 4 + 12),
    }}  # fmt: skip


def caching_memory(w: Workload) -> Moments:
    """Of the teacher, reading the texts once to store its largest logits."""
    teacher, item = w.teacher, 4 if w.teacher_weights == "float32" else 2
    weights = {"teacher weights": _teacher_on_each(w)}
    # cache_teacher_tokens looks for the largest logits of 256 tokens together.
    logits = item * w.kept * teacher.vocabulary + 4 * min(256, w.kept) * teacher.vocabulary
    return {
        "output": weights | {"activations": item * w.positions * teacher.hidden, "logits and loss": logits},
        "fullest layer": weights | {"activations": teacher_working(teacher, item, w.positions, 0, 0)},
    }


_MOMENTS = (
    "loss", "backward of the output embedding", "backward of the last layer", "backward of the first layer",
    "backward of the input embedding", "forward of the teacher",
)  # fmt: skip
_ByMoment = tuple[float, float, float, float, float, float]  # bytes, in this order


def training_memory(w: Workload, sharding: Sharding) -> Moments:
    """Of a step of the student with AdamW, which has two float32 moments, in its fused form."""
    student, teacher = w.student, w.live_teacher
    shards = w.hardware.devices if sharding == "FSDP2" else 1
    each = student.parameters / shards
    always = {"student weights": 4 * each, "optimizer state": 8 * each}
    if sharding == "DDP":
        always["gradient buckets"] = 4 * student.parameters
    if teacher:
        always["teacher weights"] = teacher.weight_bytes(w.teacher_weights) / shards
    if shards > 1:
        # Those of a layer and of the next one, ahead; those outside of the layers all the time.
        always["gathered weights"] = sum(
            itemsize * (model.root_parameters + 2 * model.layer_parameters)
            for model, itemsize in ((student, w.itemsize), (teacher, w.teacher_itemsize)) if model
        )  # fmt: skip
    components = {
        "gradients": _gradients(w, shards), "activations": _activations(w),
        "bf16 copies of weights": _copies_of_weights(w, shards),
        "logits and loss": (_chunk_bytes(w), 0, 0, 0, 0, 0),
    }  # fmt: skip
    return {
        moment: always | {name: sizes[number] for name, sizes in components.items()}
        for number, moment in enumerate(_MOMENTS if teacher else _MOMENTS[:-1])
    }


def _gradients(w: Workload, shards: int) -> _ByMoment:
    """A gradient is added to those of earlier micro-batches at once and takes no room of its own, but for a
    shared embedding's, which waits for its other half. FSDP2 holds those of a layer, and of the embeddings
    until the end, whole and in the precision of the arithmetic.
    """
    student, spread, accumulates = w.student, shards > 1, w.accumulation > 1
    whole = 4 * student.parameters / shards
    earlier = whole if accumulates else 0.0
    item = w.itemsize if spread else 4
    waiting = item * student.head if spread or student.tied or not accumulates else 0
    if spread:
        of_layer = item * student.layer_parameters
        at_end = whole + item * student.head * (3 if student.tied else 2)
    else:  # a layer is at its fullest when only the gradient of its last product is there
        of_layer = 0 if accumulates else 4 * student.hidden * student.feed_forward
        # Of a shared embedding's two halves the sum takes the place of one.
        at_end = whole + 4 * student.head * (student.tied + accumulates)
    to_come = student.layer_parameters + student.root_parameters - (0 if spread else student.head)
    at_first = max(earlier, whole - 4 * to_come / shards) + (waiting if spread or accumulates else 0)
    # That of the output layer is summed in float32, and copied where it is to be of another precision.
    at_loss, at_output = earlier + 4 * student.head, earlier + (4 + item * spread) * student.head
    return at_loss, at_output, earlier + waiting + of_layer, at_first + of_layer, at_end, earlier


def _activations(w: Workload) -> _ByMoment:
    student, teacher, positions = w.student, w.live_teacher, w.positions
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
    # With hidden states of the tokens that count, and their gradient.
    held = layers + around + 2 * 4 * w.counted * student.hidden
    of_teacher = forward = 0
    if teacher and w.top_k is None:
        of_teacher = w.teacher_itemsize * w.counted * teacher.hidden
        forward = teacher_working(teacher, w.teacher_itemsize, positions, 0, 0) + of_teacher
    elif teacher:  # its logits, and what top_k_of needs
        forward = teacher_working(teacher, w.teacher_itemsize, positions, w.kept, w.counted)
        forward += 4 * w.counted * teacher.vocabulary
    at_end = 4 * positions * student.hidden
    return held + of_teacher, held, layers + backward, layer + backward, at_end, forward


def _copies_of_weights(w: Workload, shards: int) -> _ByMoment:
    """Autocast keeps them until the backward pass has used them; with checkpointing, those of one layer."""
    if not w.bf16 or shards > 1:
        return (0,) * 6
    layer, head = 2 * w.student.layer_linear, 2 * w.student.head
    layers = 0 if w.gradient_checkpointing else w.student.layers * layer
    last = layer if w.gradient_checkpointing else layers
    # The loss is done with the head's as soon as it is computed.
    return layers + head, layers, last, layer, 0, 0
