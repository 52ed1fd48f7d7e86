"""Full-size distillation steps on a GPU: tokens a second, peak memory, share of the peak, against `plan`.

    PYTHONPATH=tests python -m benchmarks.bench_scale --out data/results/gpu_scale.json

Student and teacher have the shape of R1-Distill-Qwen-1.5B and -7B and random weights, made on the device:
what a step costs does not depend on what the weights say. Texts are random words that fill the context, which
is the longest power of two that `plan` says will fit. Each setting is run twice, the second time counts.

    PYTHONPATH=tests python -m benchmarks.bench_scale --tiny

runs the same with models of a few thousand parameters, wherever it is; on a CPU the peak is the allocator's.
"""

import argparse
import dataclasses
import gc
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    TrainingArguments,
)

from benchmarks.measuring import this_machine
from benchmarks.training import random_texts, word_level_tokenizer
from kdlib.cost import peak_memory
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.models.r1_distill import R1_DISTILL
from kdlib.language.plan.hardware import HARDWARE, Hardware
from kdlib.language.plan.plan import Plan, plan
from kdlib.runtime import best_device, describe_environment, seeded
from kdlib.storage import write_json

PROMPT = 16
REAL_TOKENS = 151_665  # of the tokenizer of the Qwen checkpoints; the rest of the vocabularies is padding

# What `plan` and `distill_language_model` both take.
SETTINGS: dict[str, dict] = {
    "texts": {},
    "texts, every activation kept": {"gradient_checkpointing": False},
    "logits of the live teacher": {"method": "logits"},
    "64 largest logits of the live teacher": {"method": "logits", "top_k": 64},
}


def tiny_config(vocabulary: int) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, pad_token_id=0,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip


def random_model(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    with seeded(0, device), torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def machine(device: torch.device) -> Hardware:
    """Memory as it is; the peaks that are published, where it is one of those, else what is measured."""
    here = this_machine(device)
    for published in HARDWARE.values():
        if published.name.partition("-80GB")[0].partition("-141GB")[0].replace("-", " ") in here.name:
            return dataclasses.replace(published, name=here.name, memory=here.memory)
    return here


def longest(make_plan: Callable[[int], Plan], most: int) -> int | None:
    """The longest context, a power of two, that fits."""
    lengths = [2**power for power in range(int(math.log2(most)), 5, -1)]
    return next((length for length in lengths if make_plan(length).fits), None)


def measure(
    name: str, tokenizer, student: PreTrainedModel, teacher: PreTrainedModel | None, device: torch.device,
    hardware: Hardware, given: argparse.Namespace,
) -> dict:  # fmt: skip
    run = {"method": "texts", "gradient_checkpointing": True} | SETTINGS[name]
    precision = "bf16" if device.type == "cuda" else "no"

    def planned_at(context: int) -> Plan:
        return plan(
            None if teacher is None else teacher.config, student.config, hardware,
            given.steps * given.batch_size * given.accumulation * context, context=context,
            prompt_tokens=PROMPT, batch_size=given.batch_size, accumulation=given.accumulation,
            precision=precision, teacher_weights="float32" if device.type == "cpu" else "bfloat16", **run,
        )  # fmt: skip

    context = longest(planned_at, given.context)
    if context is None:
        return {"fits": False}
    planned = planned_at(context)
    data = random_texts(given.batch_size * given.accumulation * given.steps, context, len(tokenizer), PROMPT)
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    checkpointing = "activation_checkpointing"  # as newer versions of transformers call it
    if checkpointing not in names:
        checkpointing = "gradient_checkpointing"

    def trained(steps: int):
        return distill_language_model(
            student, tokenizer, data, teacher=teacher, top_k=run.get("top_k"), steps=steps, lr=1e-6,
            batch_size=given.batch_size, accumulation=given.accumulation, device=device, precision=precision,
            fused=True,  # as by default at full size
            **({checkpointing: True} if run["gradient_checkpointing"] else {}),
        )  # fmt: skip

    # Trainer switches it on and leaves it so; the older name of this is deprecated where there is a newer.
    getattr(student, "activation_checkpointing_disable", student.gradient_checkpointing_disable)()
    weights = sum(p.nbytes for model in (student, teacher) if model is not None for p in model.parameters())
    trained(2)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    history = trained(given.steps)
    peak = (
        torch.cuda.max_memory_allocated(device) if device.type == "cuda"
        else weights + peak_memory(lambda: trained(2))
    )  # fmt: skip
    return {
        "fits": True, "context": context, "steps": history.steps, "batch_size": given.batch_size,
        "accumulation": given.accumulation, "precision": precision, **run,
        "loss": history.loss,
        "tokens": planned.tokens,
        "seconds": history.seconds,
        "tokens_per_second": planned.tokens / history.seconds,
        "planned_tokens_per_second": planned.tokens_per_second,
        "share_of_peak": planned.flops / history.seconds / hardware.flops,
        "peak_bytes": peak,
        "planned_bytes": planned.phases[-1].total,
        "planned_over_measured": planned.phases[-1].total / peak,
        "planned_moment": planned.phases[-1].moment,
        "planned_memory": dict(planned.memory),
        "assumptions": planned.assumptions,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true", help="small models: to see that everything runs")
    parser.add_argument("--student", default="Qwen-1.5B", choices=R1_DISTILL)
    parser.add_argument("--teacher", default="Qwen-7B", choices=R1_DISTILL)
    parser.add_argument("--context", type=int, help="the longest to try (default 8192; 64 with --tiny)")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    given = parser.parse_args(arguments)
    given.context = given.context or (64 if given.tiny else 8192)
    device = best_device()
    if device.type != "cuda" and not given.tiny:
        print("no CUDA device: nothing to measure at full size; --tiny shows that it runs", file=sys.stderr)
        return 1
    hardware = machine(device)
    print(hardware)
    if given.tiny:
        tokenizer = word_level_tokenizer(500)
        student_config, teacher_config = tiny_config(512), tiny_config(520)
    else:
        tokenizer = word_level_tokenizer(REAL_TOKENS)
        student_config, teacher_config = (R1_DISTILL[n].config() for n in (given.student, given.teacher))
    student = random_model(student_config, torch.float32, device)
    teacher, settings = None, {}
    results = {
        "environment": describe_environment(), "device": device.type, "tiny": given.tiny,
        "hardware": dataclasses.asdict(hardware), "student": student.num_parameters(), "settings": settings,
    }  # fmt: skip
    # Those without a teacher first: it is made only when it is needed.
    for name in sorted(given.settings, key=lambda name: "method" in SETTINGS[name]):
        if "method" in SETTINGS[name] and teacher is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            teacher = random_model(teacher_config, dtype, device)
            results["teacher"] = teacher.num_parameters()
        try:
            settings[name] = found = measure(name, tokenizer, student, teacher, device, hardware, given)
        except torch.OutOfMemoryError as error:
            settings[name] = {"fits": True, "out_of_memory": str(error)}
            print(f"{name}: out of memory, although it was planned to fit", file=sys.stderr)
            student.zero_grad()
            gc.collect()
        else:
            print(
                f"{name}: context {found['context']:,}, {found['tokens_per_second']:,.0f} tokens a second, "
                f"{found['share_of_peak']:.1%} of the peak; {found['peak_bytes'] / 1e9:.3f} GB, planned "
                f"{found['planned_bytes'] / 1e9:.3f} ({found['planned_over_measured']:.3f} of it)"
                if found["fits"] else f"{name}: does not fit"
            )  # fmt: skip
        if given.out:
            write_json(given.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
