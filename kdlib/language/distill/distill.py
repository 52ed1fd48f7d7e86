"""A language model that learns from another: from its texts, its logits, or its verdict on what it writes."""

import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from kdlib.cache.tokens import CachedTokens
from kdlib.language.distill.across import Across, AcrossTeacher, across_teacher
from kdlib.language.distill.batches import TokenExample, dated, tokenize, tokenize_prompts
from kdlib.language.distill.checks import (
    check_extensions,
    check_length,
    check_lengths,
    check_numbers,
    check_switches,
    check_teacher,
    loss_settings,
)
from kdlib.language.distill.fsdp import shard, sharding
from kdlib.language.distill.hidden import HiddenMatch, matched
from kdlib.language.distill.lora import adapted, lora_config, lora_settings
from kdlib.language.distill.output_layer import FAMILIES, LARGE_VOCABULARY, has_linear_output
from kdlib.language.distill.prompts import TeacherPrompt, teacher_prompts
from kdlib.language.distill.teachers import ready_teacher
from kdlib.language.distill.trainer import DistillationTrainer, LanguageHistory
from kdlib.language.models.small import without_bars
from kdlib.language.models.vocabulary import align_special_tokens, check_same_tokens, logit_width
from kdlib.language.problems import Problem
from kdlib.language.traces.file import Trace
from kdlib.losses.divergences import Divergence
from kdlib.runtime import Precision, accelerated, seeded
from kdlib.storage import describe_changes, fingerprint, write_json, writing

__all__ = ["LanguageHistory", "distill_language_model"]

if TYPE_CHECKING:
    from peft import LoraConfig

_RECORD = "run.json"  # in the folder of a run

# transformers 5.2x renames it; the old name goes with version 6, and warns until then.
CHECKPOINTING = (
    "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing")
    else "gradient_checkpointing"
)  # fmt: skip


def distill_language_model(
    student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Trace | tuple[str, str]] | Sequence[Problem | str],
    output_dir: str | os.PathLike | None = None, *,
    teacher: PreTrainedModel | CachedTokens | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None, teacher_prompt: TeacherPrompt | None = None,
    across_tokenizers: Across | None = None,
    alpha: float | None = None, temperature: float = 1.0, divergence: Divergence | None = None,
    beta: float = 0.5, top_k: int | None = None, fused: bool | None = None,
    hidden: HiddenMatch | None = None, lora: "LoraConfig | int | None" = None,
    on_policy: bool | float = False, max_new_tokens: int = 512, sampling_temperature: float = 1.0,
    steps: int | None = None, epochs: float | None = None, lr: float, batch_size: int = 32,
    accumulation: int = 1, group_by_length: bool = False, packing: bool = False, seed: int = 0,
    save_steps: int | None = None, resume: bool = True, device: torch.device | str | None = None,
    precision: Precision = "auto", progress: bool = False, **training_arguments,
) -> LanguageHistory:  # fmt: skip
    """Train `student` in place on completions, in one of three ways.

    - Without a teacher: on texts that a teacher wrote, as DeepSeek made R1-Distill (Guo et al. 2025, arXiv
      2501.12948, §2.4); sequence-level distillation (Kim and Rush 2016, D16-1139).
    - With a teacher: α·CE(next token) + (1 − α)·T²·D(teacher, student) on every token of those texts (Hinton
      et al. 2015, arXiv 1503.02531).
    - With a teacher and `on_policy`: the examples are only prompts; in each step the student completes them,
      and is compared with the teacher on each token. Agarwal et al. 2024 (arXiv 2306.13649v3) with λ = 1,
      without gradient through the sampling; in Qwen3 it followed training on texts (arXiv 2505.09388v1,
      §4.5). A number between 0 and 1 is their λ: the share of steps in which the student writes; in the
      others it is compared with the teacher on the completions that the examples have.

    `transformers.Trainer` trains, with AdamW. Under `accelerate launch` or `torchrun` processes share each
    step, each with the whole student (DDP) or, as accelerate's configuration says, with a part of student and
    teacher (FSDP2). The loss of a step is the mean over the tokens of all its completions, however they are
    spread over rows and processes. Where the last step of an epoch has too few examples to give each of
    several processes as many as the others, it repeats some, as accelerate does.

    Args:
        student: a causal language model, trained in the dtype of its weights: load it in float32. With `lora`
            bfloat16 or packed weights (`load_checkpoint(..., quantise="nf4")`) do too.
        tokenizer: with a chat template. Student and tokenizer are saved with each checkpoint.
        examples: traces (anything with `statement` and `text`) or pairs (statement, completion). A completion
            follows the template's generation prompt, so it lacks the `<think>\\n` that R1's contains; it is
            closed with the end-of-text token, unless its `finished` is False. On-policy, statements.
        output_dir: for checkpoints, to resume from, and the trained model; `from_pretrained` reads them all,
            unless FSDP2 writes checkpoints in parts. None saves nothing. (For a model of type qwen2
            `AutoTokenizer` takes Qwen2's own; load another by `PreTrainedTokenizerFast`.)
        teacher: with the same tokens; runs in eval mode without gradients, in the dtype of its weights.
            Or its stored outputs for these examples, by `cache_teacher_tokens` or `cache_served_tokens`.
        teacher_tokenizer: to be compared with `tokenizer`; None if the teacher's is the same. Logits beyond
            the tokens, which pad vocabularies to different sizes, are cut off.
        teacher_prompt: what a teacher reads whose chat template makes other prompts: "own", these, before the
            same completions; "student", the student's. None takes the student's with a warning, which says
            how many nats a token that changes on 32 examples; on-policy it refuses.
        across_tokenizers: how to compare with a teacher whose tokens differ, where both have read the same:
            "aligned" by what they expect of pieces of text, "uld" by how sure they are; None refuses it. With
            a live teacher, texts as examples, not under FSDP2: see `kdlib.language.distill.across`.
        on_policy: True, or the share λ of the steps, spread evenly, in which the student writes.
        alpha: weight of the hard label; default 0.5 with a teacher, 1 without, 0 (the only one) on-policy.
        temperature: T of the soft term, for teacher and student; R1-scale work takes 1.
        divergence: "forward", "reverse", "jsd", "skew-forward", "skew-reverse", "tvd" or "akl", see
            `kd_loss`; default "forward", on-policy "reverse".
        beta: weight of the teacher in the mixture of "jsd" and the two "skew-…".
        top_k: learn only from the teacher's k largest logits and the mass of all others, see `top_k_loss`;
            None learns from all. A cache has its own k.
        fused: compute the loss from hidden states, so that all logits are never held at once
            (`linear_kd_loss`): the same but for rounding. Default: from 8,192 logits on, where the models are
            of `kdlib.language.distill.output_layer.FAMILIES`.
        hidden: match hidden states of a live teacher too, as TinyBERT does: a
            `kdlib.language.distill.hidden.HiddenMatch`.
        lora: train only small matrices beside the weights (Hu et al. 2021, arXiv 2106.09685): a rank, such as
            16, for every linear layer but the output layer, with alpha twice the rank and no dropout; or a
            `peft.LoraConfig`. Checkpoints hold this adapter alone, as peft reads it. At the end it is merged:
            student and `output_dir` are a model as any other. Beside packed weights it stays, and is all that
            `output_dir` holds.
        max_new_tokens: on-policy, the longest completion; one that is cut off counts without an end.
        sampling_temperature: on-policy, that of the student's sampling (nothing else restricts it).
        steps, epochs: how long, one of the two; a step is batch_size × accumulation × processes examples.
        lr: highest learning rate; 5 % warm-up, then a cosine to 0. About 3e-3 for a tiny model from nothing,
            1e-5 for fine-tuning a large one.
        batch_size: examples in a micro-batch; `accumulation`: micro-batches in a step.
        group_by_length: put completions of similar length into a step, which saves padding.
        packing: lay the examples of a micro-batch end to end in fewer rows, where they do not see each other.
        seed: fixes order, dropout and sampling. Order depends on it and the number of examples alone.
        save_steps: steps between checkpoints; default a tenth of the run. The newest two are kept.
        resume: go on from the newest whole checkpoint in `output_dir`; on a CPU bit for bit as if the run had
            not been interrupted. False starts anew and removes them. Use folders of your own only: Trainer
            unpickles optimizer and random numbers.
        device: default `best_device()`; a process has one.
        precision: "bf16", "no", or "auto", which takes bf16 on CUDA devices that compute in it.
        progress: show a progress bar.
        training_arguments: any other of `transformers.TrainingArguments`, such as `weight_decay=0.1`,
            `lr_scheduler_type="linear"`, `warmup_steps=0.1`, `max_grad_norm`, `gradient_checkpointing=True`.

    Returns:
        `LanguageHistory`. Student and teacher are left in eval mode, on the device; under FSDP2 they stay
        spread over the processes, and the whole student is what `output_dir` holds.

    Raises:
        ValueError: an argument that does not fit, vocabularies that differ, a completion that opens `<think>`
            again, a text longer than a model's positions, or an `output_dir` of another run or with other
            files; it says what differs and how to fix it.
        OSError: a checkpoint cannot be written; nothing half-written stays, and the run can be resumed.
        FloatingPointError: a loss or a weight was not finite.
    """
    check_length(steps, epochs, top_k=top_k, save_steps=save_steps, batch_size=batch_size,
                 accumulation=accumulation, max_new_tokens=max_new_tokens)  # fmt: skip
    check_numbers(lr, seed, beta, sampling_temperature, on_policy)
    check_switches(resume=resume, packing=packing, group_by_length=group_by_length, progress=progress,
                   **{} if fused is None else {"fused": fused})  # fmt: skip
    check_teacher(student, teacher, top_k, on_policy)
    teacher = across_teacher(across_tokenizers, teacher, tokenizer, teacher_tokenizer, examples, fused=fused,
        divergence=divergence, top_k=top_k, on_policy=on_policy, hidden=hidden, teacher_prompt=teacher_prompt,
    )  # fmt: skip
    across = isinstance(teacher, AcrossTeacher)
    check_extensions(student, teacher, hidden, lora=lora is not None)
    adapter = lora_config(lora)
    loss = loss_settings(temperature, alpha, divergence, beta, on_policy, teacher=teacher is not None)
    models = {"student": student} | ({"teacher": teacher} if isinstance(teacher, PreTrainedModel) else {})
    width = check_same_tokens(tokenizer, None if across else teacher_tokenizer, **models)
    encoded = (tokenize_prompts if on_policy == 1 else tokenize)(tokenizer, examples)
    encoded, other = teacher_prompts(teacher_prompt, teacher, teacher_tokenizer, tokenizer, examples, encoded)
    check_lengths(encoded, models, on_policy, max_new_tokens)
    if isinstance(teacher, CachedTokens):
        teacher.check(encoded, temperature, width, **dated(tokenizer, examples))
    fused = not across and _fused(fused, models if loss.alpha < 1 and not top_k else {"student": student})
    sampling = {"max_new_tokens": max_new_tokens, "temperature": sampling_temperature} if on_policy else None
    written = sampling and {"share": float(on_policy), **sampling}
    run = {
        **loss._asdict(), "on_policy": written, "top_k": top_k, "fused": fused, "lr": lr,
        "batch_size": batch_size, "accumulation": accumulation, "packing": packing, "seed": seed,
        "group_by_length": group_by_length, "training_arguments": training_arguments, "sharding": sharding(),
        "lora": lora_settings(adapter),
        "hidden": hidden and {**vars(hidden), "layers": [*hidden.layer_map(student, teacher).items()]},
    }  # fmt: skip
    with _undisturbed(), accelerated(device, precision) as accelerator, seeded(seed, accelerator.device), (
        tempfile.TemporaryDirectory() if output_dir is None else nullcontext(output_dir)
    ) as folder:
        run |= {"precision": accelerator.mixed_precision, "processes": accelerator.num_processes}
        micro_batches = math.ceil(len(encoded) / (batch_size * accelerator.num_processes))
        run["steps"] = steps or math.ceil(epochs * math.ceil(micro_batches / accumulation))
        settings = _trainer_settings(
            accelerator, run, output_dir=os.fspath(folder), use_cache=student.config.use_cache,
            save_strategy="no" if output_dir is None else "steps",
            save_steps=save_steps or math.ceil(run["steps"] / 10),
        )  # fmt: skip
        used = loss.alpha < 1 or hidden is not None
        if other is not None and used:
            other.tell(teacher, accelerator.device, student, max_new_tokens, on_policy=on_policy)
        if output_dir is not None and accelerator.is_main_process:  # which alone need hold all the weights
            _claim(folder, run, resume, examples, encoded, tokenizer, teacher_tokenizer, student, teacher)
        accelerator.wait_for_everyone()
        arguments = _training_arguments(accelerator, settings)
        teacher = ready_teacher(teacher, width, top_k, temperature, fused, arguments.device) if used else None
        align_special_tokens(student, tokenizer)
        # Attention tells packed examples apart: flash attention in a single row only.
        flash = any("flash" in (model.config._attn_implementation or "") for model in models.values())
        with adapted(student, adapter, seed, fused=fused), (
            matched(hidden, student, models.get("teacher"), seed)
        ) as term:  # fmt: skip
            trainer = DistillationTrainer(
                student, arguments, encoded, tokenizer, loss, teacher=teacher, width=width, fused=fused,
                sampling=sampling, share=float(on_policy), group_by_length=group_by_length, hidden=term,
                packing=("one row" if flash else "rows") if packing else None, progress=progress,
            )  # fmt: skip
            _train(trainer, **models)
        if output_dir is not None:
            trainer.save_trained()
    return trainer.history()


def _fused(wanted: bool | None, models: Mapping[str, PreTrainedModel]) -> bool:
    """Whether the loss is computed from hidden states; models: those whose logits are all needed."""
    other = [name for name, model in models.items() if not has_linear_output(model)]
    if wanted and other:
        raise ValueError(
            f"fused=True with a {other[0]} of type {models[other[0]].config.model_type}; expected one of "
            f"{', '.join(sorted(FAMILIES))}, with a plain output layer, on one device: leave fused out"
        )
    return not other and logit_width(models["student"]) >= LARGE_VOCABULARY if wanted is None else wanted


def _trainer_settings(
    accelerator: Accelerator, run: Mapping[str, object], **more: object
) -> dict[str, object]:
    """What `TrainingArguments` are made of."""
    given = {"lr_scheduler_type": "cosine", "warmup_steps": 0.05, "save_total_limit": 2,
             "ddp_find_unused_parameters": False, **run["training_arguments"]}  # fmt: skip
    if "gradient_checkpointing" in given:
        given[CHECKPOINTING] = given.pop("gradient_checkpointing")
    ours = more | {
        "max_steps": run["steps"], "learning_rate": run["lr"], "seed": run["seed"],
        "per_device_train_batch_size": run["batch_size"], "gradient_accumulation_steps": run["accumulation"],
        "bf16": accelerator.mixed_precision == "bf16", "use_cpu": accelerator.device.type == "cpu",
        # Quiet, and nothing read from the device for figures that nobody sees.
        "report_to": "none", "logging_strategy": "no", "logging_nan_inf_filter": False, "disable_tqdm": True,
        "log_level": "error", "log_level_replica": "error",
        # The columns of a batch are not the arguments of the model.
        "remove_unused_columns": False, "dataloader_pin_memory": accelerator.device.type == "cuda",
    }  # fmt: skip
    known = signature(TrainingArguments).parameters.keys() - ours.keys()
    if wrong := [name for name in given if name not in known]:
        raise ValueError(
            f"training_arguments holds {', '.join(wrong)}; expected arguments of "
            "transformers.TrainingArguments that distill_language_model does not set itself"
        )
    return ours | given


def _training_arguments(accelerator: Accelerator, settings: dict[str, object]) -> TrainingArguments:
    # Trainer makes an accelerator of its own from them, and this one is then none any more.
    device, single = accelerator.device, accelerator.num_processes == 1
    arguments = TrainingArguments(**settings)
    # One process, one device: else Trainer wraps the model in nn.DataParallel. It sets this itself for models
    # that are spread over devices, https://github.com/huggingface/transformers/pull/9578
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if single and (device.index or 0) != (arguments.device.index or 0):
        raise ValueError(
            f"device is {device}, but Trainer takes the first; set CUDA_VISIBLE_DEVICES before Python starts"
        )
    return arguments


def _claim(
    folder: str | os.PathLike, run: Mapping[str, object], resume: bool, examples: Sequence[object],
    encoded: Sequence[TokenExample], tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None, student: PreTrainedModel,
    teacher: PreTrainedModel | CachedTokens | AcrossTeacher | None,
) -> None:  # fmt: skip
    """Record in `run.json` what the run is, unless it is another; remove what it cannot go on from."""
    across = {"across_tokenizers": teacher.across} if isinstance(teacher, AcrossTeacher) else {}
    dates = dated(tokenizer, examples)
    if across or encoded[0].teacher_prompt is not None:  # the teacher reads prompts of its own
        dates |= dated(teacher_tokenizer, examples, "teacher_tokenizer's")
    run = json.loads(json.dumps(run, default=str)) | across | dates | {
        "examples": fingerprint([
            [part for part in (e.prompt, e.completion, e.teacher_prompt) if part is not None] for e in encoded
        ]),
        "tokens": fingerprint(tokenizer.get_vocab()), "student": fingerprint(student),
        "teacher": teacher.fingerprint if isinstance(teacher, CachedTokens | AcrossTeacher)
        else teacher and fingerprint(teacher),
    }  # fmt: skip
    folder = Path(folder)
    record = folder / _RECORD
    saved = _saved_run(folder)
    if resume and saved and (changed := describe_changes(saved, run)):
        raise ValueError(
            f"output_dir {folder} belongs to another run: {changed}. Choose another folder, or start anew "
            "with resume=False, which removes its checkpoints"
        )
    with writing(folder):
        while (newest := get_last_checkpoint(folder)) and not (resume and _state(newest)):
            shutil.rmtree(newest)
        write_json(record, run)


def _saved_run(folder: Path) -> dict:
    """What `run.json` in a folder says, which is made if need be; {} for an empty one.

    Raises:
        ValueError: the folder holds files of something else.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if (record := folder / _RECORD).exists():
        try:
            saved = json.loads(record.read_bytes())
        except ValueError:
            saved = None
        if isinstance(saved, dict) and "examples" in saved:
            return saved
        others = [record]
    else:  # checkpoints among them: of somebody else's run, which resume=False would remove
        others = sorted(folder.glob("[!.]*"))
    if others:
        raise ValueError(
            f"output_dir {str(folder)!r} holds files that are not distill_language_model's, such as "
            f"{others[0].name}; choose an empty folder, or one that does not exist yet"
        )
    return {}


def _state(checkpoint: str) -> TrainerState | None:
    """That of a checkpoint; None if a killed process left it unfinished, as Trainer writes the state last."""
    # Trainer itself would fail: https://github.com/huggingface/transformers/issues/35525
    try:
        return TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
    except (OSError, ValueError):
        return None


def _train(
    trainer: DistillationTrainer, student: PreTrainedModel, teacher: PreTrainedModel | None = None
) -> None:
    """From the newest checkpoint on."""
    if sharding() and teacher is not None:
        shard(trainer.accelerator, teacher)
    checkpointing = getattr(student, f"is_{CHECKPOINTING}")
    newest = get_last_checkpoint(trainer.args.output_dir)
    try:
        if newest and (state := _state(newest)).global_step >= trainer.args.max_steps:
            # Nothing is left to do; Trainer would take another step.
            trainer.state = state
            trainer._load_from_checkpoint(newest)
        else:
            trainer.train(resume_from_checkpoint=newest)
    finally:
        # Accelerate leaves a forward of its own on the instance, which a copy of it would call with these
        # weights: https://github.com/huggingface/accelerate/issues/858
        vars(student).pop("forward", None)
        vars(student).pop("_original_forward", None)
        student.eval()
        if getattr(student, f"is_{CHECKPOINTING}") and not checkpointing:
            getattr(student, f"{CHECKPOINTING}_disable")()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What Trainer changes in the process, as it was: random numbers, how much transformers prints."""
    python, numpy, verbosity = random.getstate(), np.random.get_state(), logging.get_verbosity()
    try:
        with without_bars():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        logging.set_verbosity(verbosity)
