"""The planned figures against what torch and transformers really hold and compute."""

import contextlib
import dataclasses
import json
import re
from itertools import cycle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    TrainingArguments,
)

from benchmarks import bench_scale
from benchmarks.measuring import this_machine
from benchmarks.training import word_level_tokenizer
from kdlib.cost import peak_memory
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.models.r1_distill import R1_DISTILL
from kdlib.language.plan.hardware import HARDWARE, Hardware, find_hardware
from kdlib.language.plan.memory import _IN_A_CHUNK, loss_bytes, teacher_working
from kdlib.language.plan.plan import plan
from kdlib.language.plan.workload import Architecture
from kdlib.losses import closed_form
from kdlib.losses.divergences import DIVERGENCES, LossSettings
from kdlib.losses.kd import soft_target_loss
from kdlib.losses.top_k import top_k_loss, top_k_of
from kdlib.runtime import seeded

# Newer versions of transformers call it activation_checkpointing; the older name is there too, deprecated.
CHECKPOINTING = next(
    field.name
    for field in dataclasses.fields(TrainingArguments)
    if field.name in ("activation_checkpointing", "gradient_checkpointing")
)
BIG = Hardware("big", 1e15, 1e15, 1e12, 1e11)
HERE = dataclasses.replace(BIG, kernels=False)


def config(kind=Qwen2Config, **changed):
    shape = {
        "vocab_size": 4096, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    return kind(**shape | changed)


def build(config, dtype=torch.float32):
    with seeded(0, torch.device("cpu")):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


CONFIGS = {
    "qwen2": config(),
    "qwen2, tied": config(tie_word_embeddings=True),
    "llama": config(LlamaConfig),
    "llama, biases and other heads": config(
        LlamaConfig, attention_bias=True, mlp_bias=True, head_dim=48, num_key_value_heads=1
    ),
}


# --- parameters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", R1_DISTILL)
def test_parameters_of_the_six_to_the_unit(name):
    assert Architecture(R1_DISTILL[name].config()).parameters == R1_DISTILL[name].parameters


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_of_what_transformers_builds(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
    architecture = Architecture(CONFIGS[name])
    assert architecture.parameters == model.num_parameters()
    linear = sum(m.weight.numel() for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear))
    assert architecture.layers * architecture.layer_linear == linear
    assert architecture.weight_bytes("float32") == 4 * model.num_parameters()
    assert architecture.weight_bytes("int8") == 2 * (model.num_parameters() - linear) + linear


def test_weights_gradients_and_moments_to_the_byte():
    model = build(CONFIGS["qwen2"])
    model(torch.zeros(1, 8, dtype=torch.long)).logits.sum().backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in (state["exp_avg"], state["exp_avg_sq"])]
    # At so small a batch all gradients are there when memory is fullest.
    memory = plan(
        None, CONFIGS["qwen2"], BIG, 1e6, context=2, prompt_tokens=1, accumulation=1, precision="no"
    ).memory
    for tensors, name in (
        (model.parameters(), "student weights"), ((p.grad for p in model.parameters()), "gradients"),
        (moments, "optimizer state"),
    ):  # fmt: skip
        assert memory[name] == sum(t.untyped_storage().nbytes() for t in tensors), name


# --- activations ------------------------------------------------------------------------------------------


def saved_bytes(config, bf16: bool, mask: bool, batch=2, length=32) -> int:
    """Of all tensors that autograd keeps of a forward pass and that are no parameters."""
    model = build(config).train()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other takes its place
        return tensor

    attention_mask = torch.ones(batch, length, dtype=torch.long)
    if mask:
        attention_mask[0, -5:] = 0
    autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        output = model(
            torch.ones(batch, length, dtype=torch.long), attention_mask=attention_mask, use_cache=False
        )
    assert output.logits.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    ("name", "bf16", "mask"), [("qwen2", False, True), ("qwen2", True, False), ("llama", True, True)]
)
def test_what_autograd_keeps_of_a_layer_to_the_byte(name, bf16, mask):
    one, two = (
        saved_bytes(config(type(CONFIGS[name]), num_hidden_layers=layers), bf16, mask) for layers in (1, 2)
    )
    architecture = Architecture(CONFIGS[name])
    casts = 2 * architecture.layer_linear if bf16 else 0
    assert two - one == architecture.saved(bf16, 32, mask) * 2 * 32 + casts


# --- the losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("divergence", "dtype"), [*zip(DIVERGENCES, cycle([torch.float32, torch.bfloat16]))]
)
def test_memory_of_comparing_all_logits(divergence, dtype):
    n, student, teacher = 64, 4096, 4100
    hidden, weight = torch.randn(n, 2), torch.randn(student, 2, requires_grad=True)
    teacher_logits = torch.randn(n, teacher).to(dtype)
    labels = torch.zeros(n, dtype=torch.long)

    def run():
        def loss():
            logits = hidden @ weight.T
            soft = soft_target_loss(
                logits, teacher_logits[:, :student], temperature=1.0, divergence=divergence, reduction="sum"
            )
            return F.cross_entropy(logits, labels, reduction="sum") + soft

        loss().backward()

    measured = peak_memory(run) + teacher_logits.untyped_storage().nbytes()
    planned = loss_bytes("logits", divergence, None, n, student, teacher, teacher_logits.element_size())
    assert planned == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_memory_of_a_chunk_of_the_fused_loss(divergence):
    n, classes = 64, 4096
    labels = torch.zeros(n, dtype=torch.long)

    def run():
        logits = torch.randn(2, n, classes)
        closed_form.kd_terms_and_gradient(*logits, labels, LossSettings(2.0, 0.5, divergence, 0.5))

    held = 3 + _IN_A_CHUNK[divergence]  # with both logits, and the gradient of the hard term
    assert peak_memory(run) == pytest.approx(4 * n * classes * held, rel=0.02)


def test_memory_of_cross_entropy_and_of_the_largest_logits():
    n, vocabulary, k = 64, 4096, 32
    hidden, weight = torch.randn(n, 2), torch.randn(vocabulary, 2, requires_grad=True)
    teacher = top_k_of(torch.randn(n, vocabulary), k)
    labels = torch.zeros(n, dtype=torch.long)

    def run(largest: bool):
        def loss():
            logits = hidden @ weight.T
            soft = top_k_loss(logits, teacher, reduction="sum") if largest else 0.0
            return soft + F.cross_entropy(logits, labels, reduction="sum")

        loss().backward()

    assert loss_bytes("texts", "forward", None, n, vocabulary) == pytest.approx(
        peak_memory(lambda: run(False)), rel=0.02
    )
    held = sum(t.untyped_storage().nbytes() for t in teacher)
    assert loss_bytes("cached", "forward", k, n, vocabulary) == pytest.approx(
        peak_memory(lambda: run(True)) + held, rel=0.02
    )


@pytest.mark.parametrize(("dtype", "kept"), [(torch.float32, 1), (torch.bfloat16, 60)])
def test_memory_of_a_forward_pass_without_gradient(dtype, kept):
    model = build(CONFIGS["qwen2"], dtype).eval()
    ids = torch.zeros(2, 64, dtype=torch.long)

    @torch.no_grad()
    def run():
        logits = model(ids, use_cache=False, logits_to_keep=kept).logits
        logits.flatten(0, 1).index_select(0, torch.arange(2 * kept))

    planned = teacher_working(Architecture(CONFIGS["qwen2"]), dtype.itemsize, 128, 2 * kept, 2 * kept)
    assert planned == pytest.approx(peak_memory(run), rel=0.1)


# --- real runs --------------------------------------------------------------------------------------------


def texts(lengths, prompt: int):
    """(statement, completion) of so many tokens, with the closing end-of-text token."""
    return [
        (" ".join(["w2"] * prompt), " ".join(f"w{3 + n % 50}" for n in range(length - prompt - 1)))
        for length in lengths
    ]


SMALL = {"vocab_size": 256}
LARGE = {"vocab_size": 10_240}
WIDE = {"hidden_size": 192, "intermediate_size": 640}
# name: student, teacher, and how they are run; `shorter` is by how much every second text is.
RUNS = {
    "texts": ({}, None, {}),
    "texts, accumulated, checkpointing": (
        SMALL, None, {"context": 192, "accumulation": 2, "batch_size": 1, "gradient_checkpointing": True}
    ),
    "texts, long, padded": (SMALL, None, {"context": 384, "shorter": 48}),
    "texts, llama, bf16": ({"kind": LlamaConfig} | SMALL, None, {"context": 256, "precision": "bf16"}),
    "texts, bf16, checkpointing": (
        SMALL, None, {"context": 384, "precision": "bf16", "gradient_checkpointing": True}
    ),
    "logits": ({}, WIDE, {}),
    "logits, wider than long": (SMALL, SMALL | WIDE, {"context": 384}),
    "large, texts, bf16": (LARGE, None, {"precision": "bf16", "context": 160}),
    "large, texts, tied, short": (
        LARGE | {"tie_word_embeddings": True}, None, {"context": 16, "batch_size": 1}
    ),
    "large, texts, tied, accumulated, short": (
        LARGE | {"tie_word_embeddings": True}, None, {"context": 16, "batch_size": 1, "accumulation": 2}
    ),
    "large, jsd, checkpointing": (
        LARGE, LARGE | WIDE, {"divergence": "jsd", "gradient_checkpointing": True, "context": 160}
    ),
    "large, reverse, bf16": (
        LARGE, LARGE | WIDE | {"dtype": torch.bfloat16}, {"precision": "bf16", "divergence": "reverse"}
    ),
    "large, the 40 largest logits": (LARGE, LARGE | WIDE, {"top_k": 40}),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_planned_peak_is_within_3_per_cent_of_the_measured_one(name):
    shape, other, run = RUNS[name]
    run = {"context": 96, "batch_size": 2, "accumulation": 1, "precision": "no",
           "gradient_checkpointing": False} | run  # fmt: skip
    shorter = run.pop("shorter", 0)
    dtype = (other or {}).get("dtype", torch.float32)
    student_config = config(**shape)
    teacher_config = None if other is None else config(**{k: v for k, v in other.items() if k != "dtype"})
    planned = plan(
        teacher_config, student_config, HERE, 1e6, prompt_tokens=8, padding=shorter / 2 / run["context"],
        teacher_weights=str(dtype).removeprefix("torch."), **run,
    )  # fmt: skip

    student = build(student_config)
    teacher = None if other is None else build(teacher_config, dtype)
    context, rows = run.pop("context"), run["batch_size"] * run["accumulation"]
    if run.pop("gradient_checkpointing"):
        run[CHECKPOINTING] = True
    lengths = [context - shorter * (number % 2) for number in range(rows)]
    both = [model for model in (student, teacher) if model is not None]
    held = sum(p.numel() * p.element_size() for model in both for p in model.parameters())
    tokenizer = word_level_tokenizer(student_config.vocab_size)
    measured = held + peak_memory(
        lambda: distill_language_model(
            student, tokenizer, texts(lengths, 8), teacher=teacher, steps=2, lr=1e-4, device="cpu",
            fused=True, **run,
        )
    )
    assert sum(planned.memory.values()) == pytest.approx(measured, rel=0.03)
    assert min(planned.memory.values()) > 0


# --- arithmetic -------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry,
    reason="this torch does not count attention on the CPU",
)
@pytest.mark.parametrize(
    ("name", "checkpointing"), [("qwen2", True), ("llama, biases and other heads", False)]
)
def test_operations_as_torch_counts_them(name, checkpointing):
    model, architecture = build(CONFIGS[name]).train(), Architecture(CONFIGS[name])
    if checkpointing:
        for layer in model.model.layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = lambda run, *given: torch.utils.checkpoint.checkpoint(
                run, *given, use_reentrant=False
            )
    with FlopCounterMode(display=False) as forward:
        output = model(torch.zeros(2, 48, dtype=torch.long), use_cache=False, logits_to_keep=16)
    with FlopCounterMode(display=False) as backward:
        output.logits.sum().backward()
    assert forward.get_total_flops() == architecture.forward_flops(96, 48, 32)
    counted = forward.get_total_flops() + backward.get_total_flops()
    planned = architecture.training_flops(96, 48, 32, checkpointing)
    # Checkpointing stops once all is there that the backward pass needs: before the last product of a layer.
    spared = 2 * 96 * architecture.layers * architecture.hidden * architecture.feed_forward
    assert counted == planned - checkpointing * spared


def test_six_operations_a_parameter_and_token():
    big = R1_DISTILL["Llama-70B"]
    planned = plan(None, big, BIG, 1e9, context=64, prompt_tokens=1, gradient_checkpointing=False)
    assert planned.flops == pytest.approx(6e9 * big.parameters, rel=0.03)
    assert plan(None, big, BIG, 1e9, context=64, prompt_tokens=1).flops == pytest.approx(
        8e9 * big.parameters, rel=0.04
    )


def test_time_is_operations_by_rate_or_what_takes_longer():
    fast = Hardware("fast", 1e15, 1e12, 1e30, 1e30)
    planned = plan(None, "Qwen-1.5B", fast, 1e6, utilisation=0.5)
    assert planned.seconds == pytest.approx(planned.flops / 0.5e12)
    assert plan(None, "Qwen-1.5B", fast, 1e6, devices=4).seconds == pytest.approx(
        plan(None, "Qwen-1.5B", fast, 1e6).seconds / 4
    )
    # With a slow link: each of 2 devices sends half the float32 gradients twice over at each of its steps.
    slow = Hardware("slow", 1e15, 1e18, 1e30, 1e6)
    planned = plan(None, "Qwen-1.5B", slow, 1024 * 100, devices=2, context=1024, accumulation=5, batch_size=2)
    assert planned.sharding == "DDP" and planned.phases[-1].bound == "interconnect" and planned.steps == 5
    assert planned.seconds == pytest.approx(
        5 * 2 * 0.5 * 4 * R1_DISTILL["Qwen-1.5B"].parameters / 1e6, rel=1e-6
    )
    # Padding is computed, and not trained on.
    assert plan(None, "Qwen-1.5B", fast, 1e6, padding=0.5).phases[-1].flops == pytest.approx(
        2 * plan(None, "Qwen-1.5B", fast, 1e6).phases[-1].flops
    )


def test_a_live_teacher_costs_its_forward_pass():
    settings = {"context": 512, "gradient_checkpointing": False}
    without = plan(None, "Qwen-1.5B", BIG, 512, **settings).flops
    live = plan("Qwen-7B", "Qwen-1.5B", BIG, 512, **settings)
    stored = plan("Qwen-7B", "Qwen-1.5B", BIG, 512, method="cached", **settings)
    teacher = Architecture(R1_DISTILL["Qwen-7B"].config()).forward_flops(512, 512, 512 - 128)
    assert live.flops == pytest.approx(without + teacher, rel=1e-12)
    assert [phase.name for phase in stored.phases] == ["caching", "training"]
    assert stored.flops == pytest.approx(live.flops, rel=1e-12)
    assert "teacher weights" in live.memory and "teacher weights" not in stored.memory


# --- writing text -----------------------------------------------------------------------------------------


def test_keys_and_values_to_the_byte():
    model = build(CONFIGS["qwen2"], torch.bfloat16).eval()
    out = model.generate(
        torch.full((3, 4), 5), attention_mask=torch.ones(3, 4, dtype=torch.long),
        generation_config=GenerationConfig(
            max_new_tokens=9, min_new_tokens=9, do_sample=False, return_dict_in_generate=True,
            eos_token_id=1, pad_token_id=0,
        ),
    )  # fmt: skip
    # The last token's keys and values are never needed.
    real = sum(t.nbytes for layer in out.past_key_values.layers for t in (layer.keys, layer.values)) / 12 * 13
    planned = plan(
        CONFIGS["qwen2"], CONFIGS["qwen2"], BIG, 1e6, method="texts", context=13, prompt_tokens=4, samples=6,
        sampling_batch=3,
    )  # fmt: skip
    writing = planned.phases[0]
    assert writing.name == "sampling"
    layers = CONFIGS["qwen2"].num_hidden_layers
    assert writing.memory["KV cache"] == pytest.approx(real * (1 + 1 / layers))
    assert "KV cache" not in planned.memory


def test_writing_waits_for_the_memory_and_then_for_the_arithmetic():
    teacher = R1_DISTILL["Qwen-7B"]
    machine = Hardware("machine", 1e15, 1e15, 1e12, 1e12)
    settings = {"method": "texts", "context": 1100, "prompt_tokens": 100, "bandwidth_share": 1.0}
    few = plan(teacher, "Qwen-1.5B", machine, 1, samples=20, sampling_batch=10, **settings).phases[0]
    read = teacher.weight_bytes + 10 * 600 * teacher.kv_bytes_per_token
    assert few.bound == "memory bandwidth"
    assert few.seconds == pytest.approx(2 * 1000 * read / 1e12)
    many = plan(teacher, "Qwen-1.5B", machine, 1, samples=4000, sampling_batch=4000, **settings).phases[0]
    assert many.bound == "arithmetic"
    # The weights are read for each token, however few texts are written, and each text's cache for it alone.
    one, all_at_once = (
        plan(teacher, "Qwen-1.5B", machine, 1, samples=samples, sampling_batch=10, devices=2, **settings)
        for samples in (1, 20)
    )
    cache = 600 * teacher.kv_bytes_per_token
    assert one.phases[0].seconds == pytest.approx(1000 * (teacher.weight_bytes + cache) / 1e12)
    assert all_at_once.phases[0].seconds == pytest.approx(
        1000 * (teacher.weight_bytes + 10 * cache) / 1e12
    )


def test_a_teacher_that_writes_or_fills_a_cache_may_have_to_be_whole():
    big = R1_DISTILL["Llama-70B"]
    ways = {"sampling": {"method": "texts", "samples": 8}, "caching": {"method": "cached"}}
    for name, settings in ways.items():
        found = {
            whole: plan(big, "Llama-8B", "H100-80GB×8", 1e6, whole_teacher=whole, **settings)
            for whole in (False, True)
        }
        assert [phase.name for phase in found[True].phases] == [name, "training"]
        held = {whole: planned.phases[0].memory["teacher weights"] for whole, planned in found.items()}
        assert held == {False: big.weight_bytes / 8, True: big.weight_bytes}
        assert found[False].fits and not found[True].fits
        told = "each device holds the whole teacher"
        assert told in str(found[True]) and told not in str(found[False])
    live = plan(big, "Llama-8B", "H100-80GB×8", 1e6, whole_teacher=True)
    assert live == plan(big, "Llama-8B", "H100-80GB×8", 1e6)  # FSDP2 spreads one that runs at each step


# --- sharding and properties ------------------------------------------------------------------------------


def memory(devices=1, **changed):
    # Roomy: what is not fitting is asked for elsewhere.
    settings = {"context": 160, "batch_size": 2, "sharding": "FSDP2" if devices > 1 else None} | changed
    return plan("Qwen-7B", "Qwen-1.5B", BIG, 1e6, devices=devices, **settings).memory


@pytest.mark.parametrize("devices", [2, 8])
def test_fsdp_divides_what_it_spreads(devices):
    one, many = memory(), memory(devices)
    for name in ("student weights", "optimizer state", "teacher weights"):
        assert many[name] * devices == pytest.approx(one[name]), name
    assert many["gathered weights"] == memory(2 * devices)["gathered weights"]
    # In this setting all earlier gradients are there at the fullest moment, spread; beside them the output
    # layer's of this micro-batch, which the loss adds up in float32, and which is whole.
    long = {"context": 2048, "batch_size": 2}
    whole = 4 * Architecture(R1_DISTILL["Qwen-1.5B"].config()).head
    spread, alone = (memory(n, **long)["gradients"] - whole for n in (devices, 1))
    assert spread * devices == pytest.approx(alone)
    assert memory(devices, **long)["logits and loss"] == memory(**long)["logits and loss"]


def test_kernels_are_counted_with_where_they_have_the_divergence():
    def of_loss(divergence, machine=BIG, method="logits"):
        settings = {"context": 2048, "divergence": divergence, "method": method}
        return plan("Qwen-7B", "Qwen-1.5B", machine, 1e6, **settings).memory["logits and loss"]

    assert of_loss("jsd") == of_loss("reverse") == of_loss("forward") != of_loss("forward", HERE)
    assert of_loss("skew-forward") == of_loss("skew-forward", HERE) == of_loss("jsd", HERE)
    assert of_loss("tvd", method="texts") == of_loss("forward", method="texts")


def test_ddp_holds_gradients_twice():
    one, many = memory(), memory(2, sharding="DDP")
    assert many["gradient buckets"] == 4 * R1_DISTILL["Qwen-1.5B"].parameters
    assert {k: v for k, v in many.items() if k != "gradient buckets"} == one


@given(
    st.integers(1, 16), st.integers(64, 4096), st.booleans(), st.sampled_from(["no", "bf16"]),
    st.sampled_from(["texts", "logits", "cached"]), st.integers(1, 8), st.floats(0, 0.9),
)  # fmt: skip
def test_memory_grows_with_batch_context_and_vocabulary(
    batch, context, checkpointing, precision, method, devices, padding
):
    def bytes_of(batch=batch, context=context, vocabulary=4096):
        planned = plan(
            config(LlamaConfig, vocab_size=vocabulary), config(vocab_size=vocabulary), BIG, 1e6,
            method=method,
            devices=devices, context=context, prompt_tokens=8, batch_size=batch, precision=precision,
            gradient_checkpointing=checkpointing, padding=padding,
        )  # fmt: skip
        assert planned.memory and min(planned.memory.values()) > 0
        return planned.phases[-1].total

    least = bytes_of()
    assert bytes_of(batch=batch + 1) > least
    assert bytes_of(context=context + 64) > least
    assert bytes_of(vocabulary=4224) > least


def test_all_logits_of_a_teacher_fit_on_one_gpu():
    planned = plan("Qwen-7B", "Qwen-1.5B", "H100-80GB", 1e8, context=4096)
    assert planned.fits and planned.memory["logits and loss"] <= 1.1e9
    # What the eager loss would hold: 11.5 float32 tensors and the teacher's logits.
    assert loss_bytes("logits", "forward", None, 4096 - 128, 151_936, 152_064) > 27e9


def test_the_simplest_way_that_fits_is_taken():
    needs = plan(None, "Qwen-1.5B", "H200-141GB", 1e6).phases[-1].total

    def taken(memory, devices):
        machine = Hardware("x", memory, 1e15, 1e12, 1e11, devices)
        return plan(None, "Qwen-1.5B", machine, 1e6, usable=1)

    assert taken(needs, 1).fits and taken(needs, 1).sharding == "one device"
    assert not taken(needs - 1, 1).fits
    with_buckets = needs + 4 * R1_DISTILL["Qwen-1.5B"].parameters
    assert taken(with_buckets, 2).sharding == "DDP"
    assert taken(with_buckets - 1, 2).sharding == "FSDP2" and taken(with_buckets - 1, 2).fits
    assert taken(1e9, 2).sharding == "FSDP2" and not taken(1e9, 2).fits
    assert plan(None, "Qwen-1.5B", BIG, 1e6, devices=8, sharding="FSDP2").sharding == "FSDP2"


def test_what_would_need_less_memory_is_suggested_where_it_does_not_fit():
    planned = plan("Qwen-7B", "Qwen-1.5B", "H100-80GB", 1e8, context=32_768, gradient_checkpointing=False)
    assert not planned.fits
    for change in ("gradient checkpointing", 'method="cached"', 'teacher_weights="nf4"', "more devices"):
        assert change in str(planned)
    fitting = plan("Qwen-7B", "Qwen-1.5B", "H100-80GB", 1e8)
    assert fitting.fits and "Less memory" not in str(fitting)


# --- hardware, printing, refusals -------------------------------------------------------------------------


def test_hardware_by_name():
    assert find_hardware("H100-80GB") == HARDWARE["H100-80GB"]
    eight = dataclasses.replace(HARDWARE["H200-141GB"], devices=8)
    assert find_hardware("h200-141gb x8") == find_hardware("H200-141GB×8") == eight
    assert all(hardware.source for hardware in HARDWARE.values())
    with pytest.raises(ValueError, match="RTX-4090"):
        find_hardware("TPU")
    with pytest.raises(ValueError, match="devices"):
        find_hardware("H100-80GB×0")


def test_this_machine_is_measured():
    machine = this_machine("cpu")
    assert machine.memory > 1e8 and 1e8 < machine.flops < 1e15 and 1e8 < machine.bandwidth < 1e14
    assert plan(None, CONFIGS["qwen2"], machine, 1e5, precision="no", context=64, prompt_tokens=8).fits


def test_all_is_printed():
    planned = plan("Qwen-32B", "Qwen-1.5B", "H100-80GB×8", 1e9, samples=1000)
    text = str(planned)
    for phase in planned.phases:
        assert phase.name in text and f"{phase.total / 1e9:.2f} GB" in text
        for component, size in phase.memory.items():
            assert re.search(rf"{component} +{size / 1e9:.2f} GB", text)
    assert all(assumption in text for assumption in planned.assumptions)
    for figure in ("90%", "40%", "60%", "4,096", "1,777,088,000", "32,763,876,352", "450 GB/s"):
        assert any(figure in assumption for assumption in planned.assumptions), figure


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"context": 0}, "context"), ({"batch_size": 0}, "batch_size"), ({"usable": 1.1}, "usable"),
        ({"accumulation": 1.5}, "accumulation"), ({"prompt_tokens": 4096}, "prompt_tokens"),
        ({"padding": 1.0}, "padding"),
        ({"utilisation": 0}, "utilisation"), ({"tokens": 0}, "tokens"), ({"method": "magic"}, "method"),
        ({"precision": "fp8"}, "precision"), ({"teacher_weights": "int3"}, "teacher_weights"),
        ({"divergence": "kl"}, "divergence"), ({"sharding": "TP"}, "sharding"), ({"top_k": 0}, "top_k"),
        ({"teacher": None, "method": "logits"}, "teacher"), ({"teacher": None, "samples": 3}, "teacher"),
        ({"devices": 2, "sharding": "one device"}, "one device"), ({"student": "Qwen-3B"}, "Qwen-3B"),
        ({"student": config(MistralConfig)}, "mistral"), ({"hardware": "abacus"}, "abacus"),
        ({"devices": 0}, "devices"),
    ],
)  # fmt: skip
def test_refusals_name_the_argument(changed, named):
    given = {"teacher": "Qwen-7B", "student": "Qwen-1.5B", "hardware": "H100-80GB", "tokens": 1e6} | changed
    with pytest.raises(ValueError, match=named):
        plan(**given)


# --- the benchmark ----------------------------------------------------------------------------------------


def test_the_benchmark_of_full_size_runs_small_where_it_is(tmp_path):
    arms = ["texts", "64 largest logits of the live teacher"]
    arguments = ["--tiny", "--steps", "2", "--settings", *arms, "--out", str(tmp_path / "scale.json")]
    assert bench_scale.main(arguments) == 0
    written = json.loads((tmp_path / "scale.json").read_text())
    assert written["tiny"] and list(written["settings"]) == arms
    for name, found in written["settings"].items():
        assert found["fits"] and found["tokens"] == 2 * 4 * 64, name
        # What models of a few thousand parameters hold beside tensors counts for more.
        assert found["planned_over_measured"] == pytest.approx(1, abs=0.1), name
        assert 0 < found["share_of_peak"] < 1.5 and found["tokens_per_second"] > 0, name
        # Random weights know nothing: log 512 in cross-entropy, half of it and half of a divergence near 0.
        assert found["loss"][0] == pytest.approx(6.24 if found["method"] == "texts" else 3.12, abs=0.1), name
