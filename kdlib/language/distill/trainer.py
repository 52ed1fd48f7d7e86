"""transformers' Trainer with the distillation loss, a mean over tokens, and completions by the student."""

import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from kdlib.cost import process_peak
from kdlib.language.distill.across import Grouped
from kdlib.language.distill.batches import EpochOrder, Packing, TokenExample, collate
from kdlib.language.distill.forward import predictions
from kdlib.language.distill.hidden import HiddenTerm
from kdlib.language.distill.lora import has_adapter, load_adapter
from kdlib.language.distill.output_layer import at_output_layer
from kdlib.language.distill.teachers import HiddenStates, Teacher
from kdlib.language.distill.writing import write_completions
from kdlib.losses.divergences import LossSettings, full_precision, weighted
from kdlib.losses.kd import soft_target_loss
from kdlib.losses.linear import LossTerms, linear_kd_loss
from kdlib.losses.top_k import TopK, top_k_loss
from kdlib.runtime import substream
from kdlib.storage import saving


def student_writes(step: int, share: float) -> bool:
    """Whether the student writes the texts of a step, counted from 0, if it does so in a share of them.

    Agarwal et al. draw it at random; evenly spread, the share is kept in short runs too.
    """
    return int((step + 1) * share) > int(step * share)


@dataclass
class LanguageHistory:
    """What happened, step by step.

    Attributes:
        loss: mean over the tokens of each step, in nats.
        hard, soft, hidden: the terms of the loss before they are weighted; empty where it has only one.
        layer_map: the layers of the student that `hidden` compared, and those of the teacher.
        tokens: number of tokens that each step's loss is a mean of.
        seconds: spent on training, in all processes that worked on the run one after the other, up to the
            last checkpoint of those that were killed.
        peak_memory: bytes, the most that this process held: on a CUDA device, allocated there since training
            began; elsewhere, resident since the process did.
    """

    loss: list[float]
    tokens: list[int]
    seconds: float
    peak_memory: int
    hard: list[float] = field(default_factory=list)
    soft: list[float] = field(default_factory=list)
    hidden: list[float] = field(default_factory=list)
    layer_map: dict[int, int] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return len(self.loss)

    @property
    def tokens_trained(self) -> int:
        return sum(self.tokens)


class DistillationTrainer(Trainer, TrainerCallback):
    """A Trainer for completions, and the callback that records its steps.

    Its loss is a sum over the tokens of a step divided by their number in that step, over all micro-batches
    and processes: accumulation and sharing change nothing but rounding (and what accelerate repeats to fill
    the last step of an epoch for all processes). A mean of the micro-batches' means
    would give tokens of short completions a larger weight.

    `state.log_history`, which is part of a checkpoint, has a record of each step: its loss, terms and number
    of tokens; some have the seconds and the peak memory up to there.

    Args:
        examples: with completions, or prompts alone where `sampling` (max_new_tokens and temperature) says
            how the student completes them.
        share: of the steps in which it does; in the others it reads the completions of the examples.
        teacher: None where alpha is 1 and hidden is None.
        width: number of logits that belong to a token, for teacher and student alike.
        hidden: the term of the hidden states, if there is one.
    """

    def __init__(
        self, student: PreTrainedModel, args: TrainingArguments, examples: list[TokenExample],
        tokenizer: PreTrainedTokenizerBase, settings: LossSettings, *, teacher: Teacher | None, width: int,
        fused: bool, sampling: dict[str, float] | None, share: float, packing: Packing | None,
        group_by_length: bool, progress: bool, hidden: HiddenTerm | None = None,
    ) -> None:  # fmt: skip
        self._settings, self._teacher, self._width, self._fused = settings, teacher, width, fused
        self._sampling, self._share, self._progress, self._hidden = sampling, share, progress, hidden
        there = {"hard": settings.alpha > 0, "soft": settings.alpha < 1, "hidden": hidden is not None}
        terms = [name for name, used in there.items() if used]
        self._names = ("loss", *(terms if len(terms) > 1 else ()))
        self._collate = partial(collate, pad=tokenizer.pad_token_id, packing=packing)
        collator = self._collate if sampling is None else list
        super().__init__(student, args, collator, examples, processing_class=tokenizer)
        self.model_accepts_loss_kwargs = True  # compute_loss divides by all tokens of a step
        self.remove_callback(PrinterCallback)
        self.add_callback(self)
        group = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.order = EpochOrder([*map(len, examples)], args.seed, group if group_by_length else None)
        # Of the steps whose figures are still on the device: the terms so far, and the tokens.
        self._unread: list[list[Tensor | float]] = []

    def create_optimizer(self, *args, **options) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **options)
        if fresh and self._hidden is not None:
            maps = [*self._hidden.projector.parameters()]
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if not any(p is own for own in maps)]
            optimizer.add_param_group({"params": maps, "lr": self._hidden.lr, "weight_decay": 0.0})
        return optimizer

    def _get_train_sampler(self, train_dataset=None) -> EpochOrder:
        return self.order

    def floating_point_ops(self, inputs) -> int:
        return 0  # Trainer's own would count the parameters anew in each micro-batch

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """The micro-batches of a step, and how many tokens count in them, over all processes.

        On-policy the completions are written here, all of a step: a step's tokens must be counted before the
        gradient of its first micro-batch.
        """
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        if self._sampling is not None:
            writes = student_writes(self.state.global_step, self._share)
            batches = [
                self._completed(examples, number) if writes else self._collate(examples)
                for number, examples in enumerate(batches)
            ]
        # full, not tensor: nothing is copied to the device, so nothing waits.
        items = torch.full((), sum(len(batch["targets"]) for batch in batches), device=device)
        if self.args.world_size > 1:
            items = self.accelerator.reduce(items, "sum")
        self._unread.append([0.0, items])
        return batches, items

    def _completed(self, examples: list[TokenExample], number: int) -> dict[str, Tensor]:
        """A batch of prompts with completions that the student writes now.

        The random numbers are of this step, micro-batch and process alone, so that a resumed run writes the
        same. A completion that reaches `max_new_tokens` counts as far as it goes, without an end.
        """
        model = self.accelerator.unwrap_model(self.model)
        ends = model.generation_config.eos_token_id  # the tokenizer's among them, see `align_special_tokens`
        step = self.state.global_step * self.args.world_size + self.args.process_index
        seed = substream(substream(self.args.seed, "completions", step), "micro-batch", number)
        written = write_completions(
            model, examples, **self._sampling, width=self._width, seed=seed,
            ends=ends if isinstance(ends, list) else [ends], pad=self.processing_class.pad_token_id,
        )  # fmt: skip
        return self._collate(written)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's share of the step's mean over tokens."""
        teacher, targets = None, inputs["targets"]
        # Sharing processes take the mean of their gradients, where the sum is meant.
        share = self.args.world_size / num_items_in_batch.clamp(min=1).double()
        with self._hidden.watching(inputs) if self._hidden else nullcontext():
            if self._teacher is not None:
                with self.accelerator.autocast():
                    teacher = self._teacher(inputs)
            if self._fused:
                # What leaves the forward FSDP2 may round to half precision, and the slope that comes back: so
                # the loss leaves as it is to be, with a slope of 1, and its figures are noted inside.
                loss = at_output_layer(
                    model, inputs,
                    lambda *student: self._noted(
                        self._terms_from_hidden(*student, teacher, targets, share), share
                    ),
                )  # fmt: skip
            else:
                terms = self._terms(predictions(model, inputs), teacher, targets)
                loss = self._noted(LossTerms(*(term * share.to(term.dtype) for term in terms)), share)
        return (loss, None) if return_outputs else loss

    def _noted(self, terms: LossTerms, share: Tensor) -> Tensor:
        """The loss, once the figures of a micro-batch are added to those of its step."""
        figures = terms._asdict()
        if self._hidden is not None:
            hidden = self._hidden.taken()
            figures["hidden"] = hidden = hidden * share.to(hidden.dtype)
            figures["loss"] = terms.loss + self._hidden.weight * hidden
        self._unread[-1][0] += torch.stack([figures[name].detach() for name in self._names])
        return figures["loss"]

    def _terms(self, logits: Tensor, teacher: Tensor | TopK | Grouped | None, targets: Tensor) -> LossTerms:
        """Sums over the n targets, from the (n, V) logits that predict them."""
        temperature, alpha, divergence, beta = self._settings
        hard = soft = logits.new_zeros(())
        if isinstance(teacher, Grouped):
            soft = teacher.loss(logits[:, : self._width], targets, self._settings)
        elif alpha < 1:  # first: it needs most memory, and what cross-entropy keeps would come on top
            distance = top_k_loss if isinstance(teacher, TopK) else soft_target_loss
            soft = distance(
                logits[:, : self._width], teacher, temperature=temperature, divergence=divergence, beta=beta,
                reduction="sum",
            )  # fmt: skip
        if alpha > 0:
            # Over all of the student's logits: it learns not to choose those that are no token.
            hard = F.cross_entropy(full_precision(logits), targets, reduction="sum")
        return LossTerms(weighted(hard, soft, alpha), hard, soft)

    def _terms_from_hidden(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, teacher: HiddenStates | TopK | None,
        targets: Tensor, share: Tensor,
    ) -> LossTerms:  # fmt: skip
        """The same times `share`, from the (n, H) hidden states of which the output layer makes logits."""
        if not isinstance(teacher, HiddenStates):
            teacher = HiddenStates(teacher, None, None)
        return linear_kd_loss(
            hidden, weight, teacher.hidden, teacher.weight, targets, **self._settings._asdict(),
            ignore_index=None, student_bias=bias, teacher_bias=teacher.bias, classes=self._width,
            reduction="sum", scale=share, return_terms=True,
        )  # fmt: skip

    def on_train_begin(self, args, state, control, **_) -> None:
        self._start = time.perf_counter()
        if args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(args.device)
        # Of a run that is resumed.
        spent = [record for record in state.log_history if "seconds" in record]
        self._before = spent[-1] if spent else {"seconds": 0.0, "peak_memory": 0}
        self._bar = tqdm(
            desc="steps", total=state.max_steps, initial=state.global_step, leave=False,
            disable=not (self._progress and state.is_world_process_zero),
        )  # fmt: skip
        if self._hidden is not None and not self._bar.disable:
            self._bar.write(str(self._hidden))

    def on_epoch_begin(self, args, state, control, **_) -> None:
        # Accelerate does not reach the order behind the batches of a resumed epoch that processes share.
        self.order.epoch = int(state.epoch)

    def on_step_end(self, args, state, control, **_) -> None:
        # Seldom: reading the figures waits for the device.
        if state.global_step % 50 == 0 or control.should_save or control.should_training_stop:
            self._read()
            self._bar.set_postfix_str(f"loss {state.log_history[-1]['loss']:.3f}", refresh=False)
        self._bar.update()

    def on_train_end(self, args, state, control, **_) -> None:
        self._bar.close()

    def _read(self) -> None:
        """Record the steps whose figures are still on the device; every process must call it.

        Raises:
            FloatingPointError: a loss was not finite.
        """
        means = torch.stack([terms for terms, _ in self._unread]).to(torch.float64)
        items = torch.stack([items for _, items in self._unread])
        if self.args.world_size > 1:
            means = self.accelerator.reduce(means, "mean")
        first = self.state.global_step - len(self._unread) + 1
        self._unread.clear()
        for step, (values, tokens) in enumerate(zip(means.tolist(), items.tolist(), strict=True), first):
            terms = dict(zip(self._names, values, strict=True))
            if not math.isfinite(terms["loss"]):
                raise FloatingPointError(
                    f"the loss of step {step} is {terms['loss']}; try a smaller lr (now "
                    f"{self.args.learning_rate}), max_grad_norm=1.0, and look for NaN in the teacher's logits"
                )
            self.state.log_history.append({"step": step, **terms, "tokens": tokens})
        self.state.log_history[-1] |= {
            "seconds": self._before["seconds"] + time.perf_counter() - self._start,
            "peak_memory": max(self._before["peak_memory"], process_peak(self.args.device)),
        }

    def history(self) -> LanguageHistory:
        """Of all steps, those before a checkpoint included."""
        steps = [record for record in self.state.log_history if "tokens" in record]
        figures = {name: [record[name] for record in steps] for name in (*self._names, "tokens")}
        figures["layer_map"] = self._hidden.layers if self._hidden else {}
        return LanguageHistory(**figures, seconds=steps[-1]["seconds"], peak_memory=steps[-1]["peak_memory"])

    def _save_checkpoint(self, model, trial) -> None:
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise FloatingPointError(
                "the student's weights are not finite, though the loss was; try max_grad_norm=1.0 and a "
                "smaller lr. Checkpoints of earlier steps are unchanged"
            )
        with saving(Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        if has_adapter(self.model) and not self.is_fsdp_enabled:
            load_adapter(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._hidden is not None and not self.is_fsdp_enabled:  # which keeps all modules in one file
            self._hidden.load(resume_from_checkpoint)

    def save_trained(self) -> None:
        """Save the model into the folder of the run, where each file appears whole; all processes call it."""
        if self.is_fsdp_enabled:  # checkpoints may be kept in parts; this is what `from_pretrained` reads
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        folder = Path(self.args.output_dir)
        part = folder / ".model.part"
        first = self.accelerator.is_main_process
        with saving(part):
            if first:
                shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
                part.mkdir()
            self.accelerator.wait_for_everyone()
            self.save_model(os.fspath(part))
            self.accelerator.wait_for_everyone()
            if first:
                for file in part.iterdir():
                    os.replace(file, folder / file.name)
                part.rmdir()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._hidden is not None and self.accelerator.is_main_process and not self.is_fsdp_enabled:
            self._hidden.save(output_dir)
        # Each process writes one; then the first may write the state, with which a checkpoint is whole.
        self.accelerator.wait_for_everyone()
