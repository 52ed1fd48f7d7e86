"""Steps of training on a GPU, real models or models of their shapes, beside what `plan` says of them."""

import copy
import statistics
import time
from dataclasses import asdict

import torch
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.bench_scale import PROMPT, REAL_TOKENS, machine, random_model, tiny_config
from benchmarks.gpu_parts import Where
from benchmarks.measuring import memory_let_go
from benchmarks.training import random_texts, word_level_tokenizer
from kdlib.cost import peak_memory
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.models.load import load_checkpoint
from kdlib.language.models.r1_distill import R1_DISTILL
from kdlib.language.plan.plan import plan
from kdlib.places import DOWNLOADS


class Marks:
    """The times between forward passes of a model: on CUDA by events in the queue of the device."""

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._marks: list = []
        # Trainer and the fused loss replace the forward of the model and of its output layer, not this one.
        self._handle = model.get_input_embeddings().register_forward_pre_hook(lambda *_: self._mark())

    def _mark(self) -> None:
        if self._on_cuda:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of each step but the last, whose end nothing marks."""
        self._handle.remove()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if not self._on_cuda:
            return [end - begin for begin, end in pairs]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]


def measured_steps(
    where: Where, student: PreTrainedModel, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *,
    weights: str, context: int, batch_size: int,
) -> dict[str, object]:
    """Steps of `distill_language_model` with a teacher that runs at every step, and without one.

    Args:
        student, teacher: language models; the teacher's weights are in the precision of the arithmetic.
        weights: what they are, in words.

    Returns:
        For each arm seconds of a step, the median of those after a warm-up, tokens a second, and the peak of
        memory, each beside what `plan` says; and the texts' shape.
    """
    on_cuda, warm_up, steps = where.device.type == "cuda", 1 if where.small else 4, 4 if where.small else 15
    hardware = machine(where.device)
    texts = random_texts(steps * batch_size, context, len(tokenizer), PROMPT)
    found = {
        "weights": weights, "context": context, "batch_size": batch_size,
        "precision": where.precision, "hardware": asdict(hardware),
        "parameters": {"student": student.num_parameters(), "teacher": teacher.num_parameters()},
        "steps": {}, "left_out": ["no teacher"], "summary": [f"weights: {weights}"],
    }  # fmt: skip
    for name, source in (("logits", teacher), ("texts", None)):
        if found["steps"] and time.monotonic() > where.until:
            continue

        def trained(steps: int, source=source):
            return distill_language_model(
                student, tokenizer, texts, teacher=source, steps=steps, batch_size=batch_size, lr=1e-6,
                device=where.device, precision=where.precision, fused=True, gradient_checkpointing=True,
            )  # fmt: skip

        planned = plan(
            source and source.config, student.config, hardware, steps * batch_size * context, context=context,
            prompt_tokens=PROMPT, batch_size=batch_size, accumulation=1, precision=where.precision,
            method=name, teacher_weights="bfloat16" if on_cuda else "float32",
        )  # fmt: skip
        with memory_let_go(where.device):
            marks = Marks(student, where.device)
            history = trained(steps)  # it sets the peak of memory back before its first step
            taken = marks.seconds()[warm_up:]
        size = {model: sum(p.nbytes for p in model.parameters()) for model in (student, teacher)}
        if on_cuda:  # the teacher is there, too, when it has nothing to do
            peak = history.peak_memory - (0 if source else size[teacher])
        else:  # that of the process says nothing of tensors
            peak = size[student] + (size[teacher] if source else 0)
            peak += peak_memory(lambda: trained(2), where.device)  # noqa: B023
        seconds, expected = statistics.median(taken), planned.seconds / planned.steps
        found["steps"][name] = {
            "seconds": seconds, "fastest": min(taken), "slowest": max(taken), "timed_steps": len(taken),
            "tokens_per_second": batch_size * context / seconds, "peak_bytes": peak,
            "planned_seconds": expected, "planned_bytes": planned.phases[-1].total, "loss": history.loss,
            "planned_memory": dict(planned.memory), "assumptions": planned.assumptions,
        }  # fmt: skip
        found["summary"].append(
            f"{'with a teacher' if source else 'no teacher'}: {1e3 * seconds:.3g} ms a step (plan "
            f"{1e3 * expected:.3g}), {batch_size * context / seconds:,.0f} tokens/s, {peak / 1e9:.3g} GB "
            f"(plan {planned.phases[-1].total / 1e9:.3g})"
        )
        found["left_out"] = [] if source is None else found["left_out"]
        where.keep(found)
    return found


def step_qwen(where: Where) -> dict[str, object]:
    """A student of R1-Distill-Qwen-1.5B's shape and a teacher of Qwen-7B's, weights random: a step costs the
    same whatever they say. Float32 weights and bfloat16 arithmetic in the student, bfloat16 in the teacher.
    """
    dtype = torch.bfloat16 if where.device.type == "cuda" else torch.float32
    if where.small:
        configs, tokens = (tiny_config(512), tiny_config(520)), 500
    else:
        configs, tokens = [R1_DISTILL[name].config() for name in ("Qwen-1.5B", "Qwen-7B")], REAL_TOKENS
    student, teacher = (
        random_model(config, kind, where.device)
        for config, kind in zip(configs, (torch.float32, dtype), strict=True)
    )
    tokenizer = word_level_tokenizer(tokens)
    return measured_steps(
        where, student, teacher, tokenizer, weights="random", context=64 if where.small else 2048,
        batch_size=1,
    )  # fmt: skip


def smollm2_config() -> LlamaConfig:
    """The shape of SmolLM2-135M (Allal et al. 2025, arXiv 2502.02737)."""
    return LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5}, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip


def step_smollm2(where: Where) -> dict[str, object]:
    """SmolLM2-135M that learns from itself, on random words: from data/downloads if it was fetched, else with
    random weights in its shape.
    """
    folder = DOWNLOADS / "smollm2"
    if where.small:
        config = smollm2_config()
        config.update({"num_hidden_layers": 2, "hidden_size": 36, "intermediate_size": 64, "head_dim": 4,
                       "vocab_size": 256})  # fmt: skip
        weights, student = "random, small", random_model(config, torch.float32, where.device)
    elif folder.is_dir():
        from kdlib.language.models.smollm2 import origin  # needs more of transformers than the rest

        weights, student = origin(folder), load_checkpoint(folder, dtype="float32", device=where.device)[0]
    else:
        weights, student = "random", random_model(smollm2_config(), torch.float32, where.device)
    teacher = copy.deepcopy(student).to(torch.bfloat16 if where.device.type == "cuda" else torch.float32)
    return measured_steps(
        where, student, teacher, word_level_tokenizer(student.config.vocab_size), weights=weights,
        context=64 if where.small else 1024, batch_size=2 if where.small else 8,
    )  # fmt: skip


