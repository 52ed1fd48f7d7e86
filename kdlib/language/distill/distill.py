"""A language model that learns from another: from its texts, its logits, or its opinion of what it writes."""

import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState, TrainingArguments
from transformers.utils import logging

from kdlib.cache.tokens import CachedTokens
from kdlib.language.distill.batches import HasStatement, HasText, Packing, tokenize, tokenize_prompts
from kdlib.language.distill.fsdp import is_sharded, shard, sharding
from kdlib.language.distill.output_layer import FAMILIES, LARGE_VOCABULARY, can_open, opened
from kdlib.language.distill.run_folder import claim, newest_checkpoint
from kdlib.language.distill.teachers import HiddenTeacher, LiveTeacher, StoredTeacher
from kdlib.language.distill.trainer import DistillationTrainer, Objective, Sampling
from kdlib.language.models.vocabulary import align_special_tokens, check_same_tokens, logit_width
from kdlib.losses.checks import check_alpha
from kdlib.losses.divergences import Divergence
from kdlib.runtime import Precision, accelerated, seeded
from kdlib.storage import fingerprint

__all__ = ["LanguageHistory", "distill_language_model"]

# What transformers 5.2x calls gradient checkpointing; the name of the field is to go there with version 6.
_CHECKPOINTING = (
    "activation_checkpointing"
    if any(known.name == "activation_checkpointing" for known in fields(TrainingArguments))
    else "gradient_checkpointing"
)


@dataclass
class LanguageHistory:
    """What happened, step by step.

    Attributes:
        loss: mean over the tokens of each step, in nats.
        hard, soft: the two terms of the loss before they are weighted; empty where it has only one.
        tokens: number of tokens that each step's loss is a mean of.
        seconds: spent on training, in all processes that took up the run one after the other; what a killed
            process did after its last checkpoint is not in it.
        peak_memory: bytes, the most that this process held: on a CUDA device, allocated there since training
            began; elsewhere, resident since the process did.
    """

    loss: list[float] = field(default_factory=list)
    hard: list[float] = field(default_factory=list)
    soft: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory: int = 0

    @property
    def steps(self) -> int:
        return len(self.loss)

    @property
    def tokens_trained(self) -> int:
        return sum(self.tokens)


def distill_language_model(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: "Sequence[HasText | tuple[str, str]] | Sequence[HasStatement | str]",
    output_dir: str | os.PathLike | None = None,
    *,
    teacher: PreTrainedModel | CachedTokens | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    alpha: float | None = None,
    temperature: float = 1.0,
    divergence: Divergence | None = None,
    beta: float = 0.5,
    top_k: int | None = None,
    fused: bool | None = None,
    on_policy: bool = False,
    max_new_tokens: int = 512,
    sampling_temperature: float = 1.0,
    steps: int | None = None,
    epochs: float | None = None,
    lr: float,
    batch_size: int = 32,
    accumulation: int = 1,
    group_by_length: bool = False,
    packing: bool = False,
    seed: int = 0,
    save_steps: int | None = None,
    resume: bool = True,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    progress: bool = False,
    **training_arguments,
) -> LanguageHistory:
    """Train `student` in place on completions, in one of three ways.

    - Without a teacher: supervised fine-tuning on texts that a teacher wrote, as DeepSeek made R1-Distill
      (Guo et al. 2025, arXiv 2501.12948, §2.4); sequence-level distillation (Kim and Rush 2016, D16-1139).
    - With a teacher: α·CE(next token) + (1 − α)·T²·D(teacher, student) on every token of those texts (Hinton
      et al. 2015, arXiv 1503.02531).
    - With a teacher and `on_policy`: the examples are only prompts; in each step the student completes them,
      and the teacher judges each token. Agarwal et al. 2024 (arXiv 2306.13649) with λ = 1, that is without
      gradient through the sampling; in Qwen3 it followed training on texts (arXiv 2505.09388, §4.5).

    Everything is `transformers.Trainer`: AdamW, mixed precision, accumulation. Under `accelerate launch` or
    `torchrun` several processes share each step, each with the whole student (DDP) or, as accelerate's
    configuration says, with a part of student and teacher (FSDP2). Only completions are learnt from; the loss
    of a step is the mean over all its tokens, however they are spread over rows, micro-batches and processes.

    Args:
        student: a causal language model, trained in the dtype that its weights have: load it in float32.
        tokenizer: with a chat template. Student and tokenizer are saved with each checkpoint.
        examples: traces (anything with `statement` and `text`) or pairs (statement, completion). A completion
            is what follows the template's generation prompt, so without the `<think>\\n` that R1's contains;
            it is closed with the end-of-text token, unless its `finished` is False. On-policy statements do.
        output_dir: where checkpoints go, to resume from, and the trained model in the end: it and each
            `checkpoint-STEP` in it can be given to `from_pretrained` (a checkpoint not if accelerate's
            configuration has FSDP2 write it in parts, SHARDED_STATE_DICT). None saves nothing. (With a model
            of type qwen2 `AutoTokenizer` takes Qwen2's tokenizer whatever the folder holds; one of your own
            is loaded by `PreTrainedTokenizerFast`.)
        teacher: with the same tokens; run in eval mode without gradients, in the dtype that its weights have.
            Or what it said of these examples, by `kdlib.cache.tokens.cache_teacher_tokens`.
        teacher_tokenizer: to be compared with `tokenizer`; None if the teacher's is the same. Logits
            beyond the tokens, which pad vocabularies to different sizes, are cut off from both before they
            are compared.
        alpha: weight of the hard label; default 0.5 with a teacher, 1 without, 0 on-policy, where there is
            none.
        temperature: T of the soft term, for teacher and student; R1-scale work takes 1.
        divergence: "forward", "reverse" or "jsd", see `kdlib.losses.kd.kd_loss`; default "forward", on-policy
            "reverse".
        beta: weight of the teacher in the mixture of "jsd".
        top_k: learn only from the teacher's k largest logits and the mass of all others, see
            `kdlib.losses.top_k.top_k_loss`; None learns from all. What was stored has its own k.
        fused: whether the loss is computed from hidden states, some tokens at a time, so that the logits of
            all tokens are never held (`kdlib.losses.linear.linear_kd_loss`): the same but for rounding. Default: from
            8,192 logits on, where the models are of `kdlib.language.distill.output_layer.FAMILIES`.
        max_new_tokens: on-policy, the longest completion; one that is cut off counts without an end.
        sampling_temperature: on-policy, that of the student's sampling (nothing else restricts it).
        steps, epochs: how long, one of the two; a step is batch_size × accumulation × processes examples.
        lr: highest learning rate; 5 % warm-up, then a cosine to 0. About 3e-3 for a tiny model from nothing,
            1e-5 for fine-tuning a large one.
        batch_size: examples in a micro-batch; `accumulation`: micro-batches in a step.
        group_by_length: put completions of similar length into a step, which saves padding.
        packing: lay the examples of a micro-batch end to end in fewer rows, which saves padding too and, but
            for rounding, changes nothing else: they do not see each other.
        seed: fixes order, dropout and sampling. Order depends on it and the number of examples alone.
        save_steps: steps between checkpoints; default a tenth of the run. The newest two are kept.
        resume: take up the newest whole checkpoint in `output_dir`; on a CPU the run then goes on bit for bit
            as if it had not been interrupted. False starts anew and removes them.
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
            again, or an `output_dir` of another run; it says what differs and how to mend it.
        FloatingPointError: a loss or a weight was not finite.

    Trainer reads optimizer, schedule and random numbers with `torch.load(weights_only=True)`, and leaves
    `training_args.bin`, a pickle that nothing here reads: resume from folders of your own only.
    """
    _check_arguments(student, teacher, top_k, on_policy, alpha, steps, epochs, save_steps, batch_size,
                     accumulation, max_new_tokens, sampling_temperature)  # fmt: skip
    if alpha is None:
        alpha = 1.0 if teacher is None else 0.0 if on_policy else 0.5
    objective = Objective(alpha, temperature, divergence or ("reverse" if on_policy else "forward"), beta)
    objective.terms(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))  # looks at them
    stored = isinstance(teacher, CachedTokens)
    models = {"student": student} | ({"teacher": teacher} if teacher is not None and not stored else {})
    width = check_same_tokens(tokenizer, teacher_tokenizer, **models)
    encoded = (tokenize_prompts if on_policy else tokenize)(tokenizer, examples)
    if stored:
        teacher.check(encoded, temperature, width=width)
    fused = _fused(fused, student, teacher if alpha < 1 and top_k is None and not stored else None)
    sampling = Sampling(max_new_tokens, sampling_temperature, seed) if on_policy else None
    given = {"lr_scheduler_type": "cosine", "warmup_steps": 0.05, "save_total_limit": 2,
             "ddp_find_unused_parameters": False, **training_arguments}  # fmt: skip

    with _undisturbed(), accelerated(device, precision) as place, seeded(seed, place.device), (
        _folder(output_dir)
    ) as folder, opened(*(models.values() if fused else ())):
        in_step = batch_size * place.num_processes
        total = steps or math.ceil(epochs * math.ceil(math.ceil(len(encoded) / in_step) / accumulation))

        def run() -> dict[str, object]:
            own = {
                "examples": fingerprint([[e.prompt, e.completion] for e in encoded]),
                "tokens": fingerprint(tokenizer.get_vocab()), "student": fingerprint(student),
                "teacher": teacher and (teacher.fingerprint if stored else fingerprint(teacher)),
                "alpha": alpha, "temperature": temperature, "divergence": objective.divergence, "beta": beta,
                "top_k": top_k, "fused": fused, "on_policy": on_policy, "steps": total, "lr": lr,
                "batch_size": batch_size, "accumulation": accumulation, "group_by_length": group_by_length,
                "packing": packing, "seed": seed, "precision": place.mixed_precision,
                "processes": place.num_processes, "sharding": sharding(),
                "training_arguments": json.loads(json.dumps(given, default=str)),
            }  # fmt: skip
            if on_policy:
                own |= {"max_new_tokens": max_new_tokens, "sampling_temperature": sampling_temperature}
            return own

        if output_dir is not None:
            _claim(folder, run, resume, place)
        arguments = _training_arguments(
            given, place, output_dir=folder, max_steps=total, learning_rate=lr, seed=seed,
            per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
            save_strategy="no" if output_dir is None else "steps",
            save_steps=save_steps or math.ceil(total / 10),
        )  # fmt: skip
        align_special_tokens(student, tokenizer)
        checkpointing = getattr(student, f"is_{_CHECKPOINTING}")
        if teacher is not None and not stored:
            _place(teacher, arguments.device)
        hidden = fused and top_k is None
        opinion = (
            None if alpha == 1 else StoredTeacher(teacher) if stored else HiddenTeacher(teacher) if hidden
            else LiveTeacher(teacher, width, top_k, temperature)
        )  # fmt: skip
        trainer = DistillationTrainer(
            student, arguments, encoded, tokenizer, objective, teacher=opinion, fused=fused, width=width,
            sampling=sampling, packing=_packing(student, teacher) if packing else None, seed=seed,
            group_by_length=group_by_length, progress=progress,
        )  # fmt: skip
        if sharding() and isinstance(opinion, LiveTeacher | HiddenTeacher):
            shard(trainer.accelerator, teacher)
        try:
            _train(trainer, newest_checkpoint(folder), total)
        finally:
            # Accelerate puts a forward of its own on the instance, which would outlive the run.
            vars(student).pop("forward", None)
            vars(student).pop("_original_forward", None)
            student.eval()
            if getattr(student, f"is_{_CHECKPOINTING}") and not checkpointing:
                getattr(student, f"{_CHECKPOINTING}_disable")()
        if output_dir is not None:
            trainer.save_model(folder)
    figures = {name: [record[name] for record in trainer.curve.records] for name in trainer.curve.names}
    tokens = [record["tokens"] for record in trainer.curve.records]
    return LanguageHistory(
        **figures, tokens=tokens, seconds=trainer.curve.seconds, peak_memory=trainer.curve.peak_memory
    )


def _train(trainer: DistillationTrainer, checkpoint: tuple | None, total: int) -> None:
    if checkpoint is None:
        trainer.train()
    else:
        path, step = checkpoint
        trainer.take_up(TrainerState.load_from_json(path / "trainer_state.json").log_history)
        if step >= total:  # nothing is left to do; Trainer would complain of an epoch without examples
            trainer._load_from_checkpoint(str(path))
            return
        trainer.train(resume_from_checkpoint=str(path))
    trainer.curve.seconds += trainer.elapsed()
    trainer.curve.peak_memory = trainer.peak_memory()


def _training_arguments(given: Mapping[str, object], place: Accelerator, **ours) -> TrainingArguments:
    # Trainer makes an accelerator of its own from them, and this one is then none any more.
    device, single = place.device, place.num_processes == 1
    ours |= {
        "bf16": place.mixed_precision == "bf16", "use_cpu": device.type == "cpu",
        # Quiet, and nothing read from the device for figures that nobody sees.
        "report_to": "none", "logging_strategy": "no", "logging_nan_inf_filter": False, "disable_tqdm": True,
        "log_level": "error", "log_level_replica": "error", "skip_memory_metrics": True,
        # The columns of a batch are not the arguments of the model.
        "remove_unused_columns": False, "dataloader_pin_memory": device.type == "cuda",
    }  # fmt: skip
    if clash := sorted(ours.keys() & given.keys()):
        raise ValueError(
            f"training_arguments holds {', '.join(clash)}, which distill_language_model sets itself; use its "
            "own (lr, steps, epochs, batch_size, accumulation, save_steps, precision, device, progress)"
        )
    given = {_CHECKPOINTING if name == "gradient_checkpointing" else name: v for name, v in given.items()}
    arguments = TrainingArguments(**ours, **given)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one device: nn.DataParallel is not for this
    if single and (device.index or 0) != (arguments.device.index or 0):
        raise ValueError(
            f"device is {device}, but Trainer takes the first of its kind; name it with "
            "CUDA_VISIBLE_DEVICES before Python starts"
        )
    return arguments


def _claim(folder: str, run: Callable[[], dict], resume: bool, place: Accelerator) -> None:
    """`claim` by one process, which alone need hold all the weights; every process learns what is wrong."""
    error: list[str | None] = [None]
    if place.is_main_process:
        try:
            claim(folder, run(), resume=resume)
        except ValueError as raised:
            error = [str(raised)]
    if place.num_processes > 1:
        broadcast_object_list(error)
    if error[0] is not None:
        raise ValueError(error[0])


def _place(teacher: PreTrainedModel, device: torch.device) -> None:
    # One that is spread over devices or quantised stays where it was loaded; one to be sharded is moved then.
    if getattr(teacher, "hf_device_map", None) is None and not sharding():
        teacher.to(device)
    teacher.eval()


def _fused(wanted: bool | None, student: PreTrainedModel, teacher: PreTrainedModel | None) -> bool:
    """Whether the loss is computed from hidden states; teacher: one whose logits are all compared."""
    models = {"student": student, "teacher": teacher}
    closed = [name for name, model in models.items() if model is not None and not can_open(model)]
    if wanted and closed:
        raise ValueError(
            f"fused=True with a {closed[0]} of type {models[closed[0]].config.model_type}; expected one of "
            f"{', '.join(sorted(FAMILIES))}, with a plain output layer, on one device: leave fused out"
        )
    return not closed and logit_width(student) >= LARGE_VOCABULARY if wanted is None else wanted


def _packing(student: PreTrainedModel, teacher: PreTrainedModel | CachedTokens | None) -> Packing:
    """As their attention can tell packed examples apart."""
    models = [model for model in (student, teacher) if isinstance(model, PreTrainedModel)]
    flash = any("flash" in (model.config._attn_implementation or "") for model in models)
    return "one row" if flash else "rows"


@contextmanager
def _folder(output_dir: str | os.PathLike | None) -> Iterator[str]:
    with nullcontext(output_dir) if output_dir is not None else tempfile.TemporaryDirectory() as folder:
        yield os.fspath(folder)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What Trainer changes in the process, as it was: random numbers, how much transformers prints."""
    python, numpy = random.getstate(), np.random.get_state()
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _check_arguments(
    student, teacher, top_k, on_policy, alpha, steps, epochs, save_steps, batch_size, accumulation,
    max_new_tokens, sampling_temperature,
) -> None:  # fmt: skip
    if (steps is None) == (epochs is None):
        raise ValueError(f"steps is {steps} and epochs is {epochs}; expected one of the two")
    counts = {"steps": steps, "epochs": epochs, "top_k": top_k, "save_steps": save_steps,
              "batch_size": batch_size, "accumulation": accumulation,
              "max_new_tokens": max_new_tokens}  # fmt: skip
    for name, value in counts.items():
        if value is not None and not (value > 0 and (name == "epochs" or isinstance(value, int))):
            kind = "number" if name == "epochs" else "whole number"
            raise ValueError(f"{name}={value}; expected a positive {kind}")
    if not 0 < sampling_temperature < math.inf:
        raise ValueError(f"sampling_temperature={sampling_temperature}; expected a positive finite number")
    if teacher is student:
        raise ValueError("teacher and student are the same module; expected two")
    if alpha is not None:
        check_alpha(alpha)
    if teacher is None and on_policy:
        raise ValueError("on_policy=True needs a teacher, which judges what the student writes; got None")
    if teacher is None and alpha not in (None, 1):
        raise ValueError(f"alpha={alpha} without a teacher; expected None or 1: there are only hard labels")
    if top_k is not None and not isinstance(teacher, PreTrainedModel):
        kept = "None" if teacher is None else f"what was stored, its {teacher.k} largest logits"
        raise ValueError(
            f"top_k={top_k} chooses among the logits of a model; teacher is {kept}: leave it out"
        )
    if on_policy and isinstance(teacher, CachedTokens):
        raise ValueError(
            "on_policy=True needs a model as teacher: nothing is stored of what the student will write"
        )
    for name, model in (("student", student), ("teacher", teacher)):
        if isinstance(model, PreTrainedModel) and is_sharded(model):
            raise ValueError(
                f"{name} is spread over processes already, by an earlier run; load it anew, a student from "
                "the output_dir of that run"
            )
    if on_policy and alpha not in (None, 0):
        raise ValueError(
            f"alpha={alpha} with on_policy=True; expected None or 0: what the student writes is no label"
        )
