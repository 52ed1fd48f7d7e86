"""transformers' Trainer with the distillation loss, a mean over tokens, and completions by the student."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from kdlib.cost import process_peak
from kdlib.language.distill.batches import EpochOrder, Packing, TokenExample, collate
from kdlib.language.distill.fsdp import sharding
from kdlib.language.distill.output_layer import at_output_layer
from kdlib.language.distill.teachers import HiddenStates, Teacher, predictions
from kdlib.losses.divergences import Divergence
from kdlib.losses.kd import soft_target_loss
from kdlib.losses.linear import linear_kd_loss
from kdlib.losses.top_k import TopK, top_k_loss
from kdlib.runtime import eval_mode, seeded, substream

__all__ = ["DistillationTrainer", "LanguageHistory", "Objective"]


@dataclass(frozen=True)
class Objective:
    """What is minimised over the tokens of a completion: α·CE(label) + (1 − α)·T²·D(teacher, student)."""

    alpha: float
    temperature: float = 1.0
    divergence: Divergence = "forward"
    beta: float = 0.5

    def from_logits(
        self, student_logits: Tensor, teacher: Tensor | TopK | None, labels: Tensor, width: int
    ) -> dict[str, Tensor]:
        """Sums over n tokens, as of `kd_loss`: "loss" and, where both count, "hard" and "soft" unweighted.

        Args:
            student_logits: (n, V).
            teacher: (n, width) logits, or the largest of them; None where α is 1.
            labels: (n,) token ids.
            width: number of logits that belong to a token.
        """
        if self.alpha == 1:
            return {"loss": _cross_entropy(student_logits, labels)}
        divergence = top_k_loss if isinstance(teacher, TopK) else soft_target_loss
        soft = divergence(
            student_logits[:, :width], teacher, temperature=self.temperature, divergence=self.divergence,
            beta=self.beta, reduction="sum",
        )  # fmt: skip
        if self.alpha == 0:
            return {"loss": soft}
        # Over all of the student's logits: it learns not to choose those that are no token.
        hard = _cross_entropy(student_logits, labels)
        return {"loss": self.alpha * hard + (1 - self.alpha) * soft, "hard": hard, "soft": soft}

    def from_hidden(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, teacher: HiddenStates | TopK | None,
        labels: Tensor, width: int,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The same sums, from the (n, H) hidden states of which the student's output layer makes logits."""
        if not isinstance(teacher, HiddenStates):
            teacher = HiddenStates(teacher, None, None)
        terms = linear_kd_loss(
            hidden, weight, teacher.hidden, teacher.weight, labels, temperature=self.temperature,
            alpha=self.alpha, divergence=self.divergence, beta=self.beta, ignore_index=None,
            student_bias=bias, teacher_bias=teacher.bias, classes=width, reduction="sum",
            return_terms=True,
        )  # fmt: skip
        return {name: getattr(terms, name) for name in self.names}

    @property
    def names(self) -> tuple[str, ...]:
        return ("loss", "hard", "soft") if 0 < self.alpha < 1 else ("loss",)


@dataclass
class LanguageHistory:
    """What happened, step by step.

    Attributes:
        loss: mean over the tokens of each step, in nats.
        hard, soft: the two terms of the loss before they are weighted; empty where it has only one.
        tokens: number of tokens that each step's loss is a mean of.
        seconds: spent on training, up to the last step and in all processes that took up the run one after
            the other; what a killed process did after its last checkpoint is not in it.
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


class DistillationTrainer(Trainer):
    """A Trainer for completions.

    Its loss is a sum over the counted tokens of a step divided by their number in that step, over all
    micro-batches and processes: accumulation and sharing change nothing but rounding. A mean of the
    micro-batches' means would give tokens of short completions a larger weight.

    What each step came to is a record in `state.log_history`: its loss, terms and number of tokens; some have
    the seconds and the peak memory up to there. Trainer keeps them in checkpoints.

    Args:
        student: trained in place.
        args: Trainer's; its seed is that of order and sampling too.
        examples: with completions, or prompts alone where `sampling` says how the student completes them.
        tokenizer: saved with each checkpoint.
        objective: the loss.
        teacher: see `Teacher`; None where the objective needs none.
        width: number of logits that belong to a token, for teacher and student alike.
        fused: compute the loss inside the student's forward, from hidden states.
        sampling: max_new_tokens and temperature of what the student writes.
        packing, group_by_length: see `collate` and `EpochOrder`.
        progress: show a progress bar.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by all tokens of a step

    def __init__(
        self, student: PreTrainedModel, args: TrainingArguments, examples: list[TokenExample],
        tokenizer: PreTrainedTokenizerBase, objective: Objective, *, teacher: Teacher | None, width: int,
        fused: bool, sampling: dict[str, float] | None, packing: Packing | None, group_by_length: bool,
        progress: bool,
    ) -> None:  # fmt: skip
        self._pad = tokenizer.pad_token_id
        self._objective, self._teacher, self._width, self._fused = objective, teacher, width, fused
        self._sampling, self._packing = sampling, packing
        super().__init__(student, args, self._collate, examples, processing_class=tokenizer)
        self.model_accepts_loss_kwargs = True  # as loss_is_scaled_for_ga, for transformers that know no such
        self.remove_callback(PrinterCallback)
        self.add_callback(_Steps(self, progress and self.is_world_process_zero()))
        group = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.order = EpochOrder([*map(len, examples)], args.seed, group if group_by_length else None)
        self._sums: Tensor | None = None  # of the terms of this step so far
        self._items: Tensor | None = None
        self._pending: list[tuple[Tensor, Tensor]] = []  # of steps whose figures are still on the device

    def _get_train_sampler(self, train_dataset=None) -> EpochOrder:
        return self.order

    def _collate(self, examples: list[TokenExample]) -> dict[str, Tensor]:
        if self._sampling is not None:
            prompts = [{"input_ids": list(example.prompt)} for example in examples]
            return dict(self.processing_class.pad(prompts, padding_side="left", return_tensors="pt"))
        return collate(examples, self._pad, self._packing)

    def floating_point_ops(self, inputs) -> int:
        return 0  # Trainer's own would count the parameters anew in each micro-batch

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """The micro-batches of a step, and how many tokens count in them, over all processes.

        On-policy the completions are written here, all of them: a step's tokens must be counted before the
        gradient of its first micro-batch.
        """
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        if self._sampling is not None:
            batches = [self._completed(batch, number) for number, batch in enumerate(batches)]
        items = torch.tensor(sum(len(batch["targets"]) for batch in batches), device=device)
        self._items = self.accelerator.reduce(items, "sum") if self.args.world_size > 1 else items
        return batches, self._items

    @torch.no_grad()
    def _completed(self, prompts: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """A batch of prompts with completions that the student writes now.

        The random numbers are of this step, micro-batch and process alone, so that a resumed run writes the
        same. A completion that reaches `max_new_tokens` counts as far as it goes, without an end.
        """
        model, device = self.accelerator.unwrap_model(self.model), self.args.device
        own = model.generation_config.eos_token_id
        ends = {self.processing_class.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        no_tokens = list(range(self._width, model.get_output_embeddings().weight.shape[0]))
        # All is said here: what is left out is taken from the model's own settings (top-k, penalties).
        settings = GenerationConfig(
            **self._sampling, max_length=None, min_length=0, do_sample=True, top_k=0, top_p=1.0,
            repetition_penalty=1.0, num_beams=1, num_return_sequences=1, use_cache=True,
            suppress_tokens=no_tokens or None, eos_token_id=sorted(ends), pad_token_id=self._pad,
        )  # fmt: skip
        step = self.state.global_step * self.args.world_size + self.args.process_index
        seed = substream(substream(self.args.seed, "completions", step), "micro-batch", number)
        with eval_mode(model), seeded(seed, device):
            written = model.generate(
                **{name: tensor.to(device) for name, tensor in prompts.items()}, generation_config=settings,
                synced_gpus=sharding() is not None,  # layers are gathered by all, however long each writes
            )  # fmt: skip
        examples, length = [], prompts["input_ids"].shape[1]
        for row, mask in zip(written.tolist(), prompts["attention_mask"], strict=True):
            completion = row[length:]
            end = next((n for n, token in enumerate(completion, 1) if token in ends), len(completion))
            prompt = row[length - int(mask.sum()) : length]
            examples.append(TokenExample(tuple(prompt), tuple(completion[:end])))
        return collate(examples, self._pad, self._packing)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's share of the step's mean over tokens."""
        teacher, targets = None, inputs["targets"]
        if self._teacher is not None:
            with self.accelerator.autocast():
                teacher = self._teacher(inputs)
        if self._fused:
            terms = at_output_layer(
                model, inputs,
                lambda *student: self._objective.from_hidden(*student, teacher, targets, self._width),
            )  # fmt: skip
        else:
            terms = self._objective.from_logits(predictions(model, inputs), teacher, targets, self._width)
        sums = torch.stack([terms[name].detach() for name in self._objective.names])
        self._sums = sums if self._sums is None else self._sums + sums
        # Sharing processes take the mean of their gradients, where the sum is meant.
        loss = terms["loss"] * self.args.world_size / num_items_in_batch.clamp(min=1)
        return (loss, None) if return_outputs else loss

    def begin(self) -> None:
        """Training begins, perhaps from a checkpoint."""
        self._start = time.perf_counter()
        if self.args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.args.device)
        spent = [record for record in self.state.log_history if "seconds" in record]
        self._before = spent[-1] if spent else {"seconds": 0.0, "peak_memory": 0}

    def close_step(self) -> None:
        """The optimizer has taken a step."""
        self._pending.append((self._sums, self._items))
        self._sums = None

    def flush(self) -> None:
        """Read the figures of the last steps from the device; every process must call it.

        Raises:
            FloatingPointError: a loss was not finite.
        """
        # In float64 from here on: float32 does not hold every number of tokens.
        sums = torch.stack([sums for sums, _ in self._pending]).to(torch.float64)
        items = torch.stack([items for _, items in self._pending])
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, "sum")
        first = self.state.global_step - len(self._pending) + 1
        self._pending.clear()
        for step, (values, tokens) in enumerate(zip(sums.tolist(), items.tolist(), strict=True), first):
            values = [value / max(tokens, 1) for value in values]
            if not math.isfinite(values[0]):
                raise FloatingPointError(
                    f"the loss of step {step} is {values[0]}; try a smaller lr (now "
                    f"{self.args.learning_rate}), max_grad_norm=1.0, and look for NaN in the teacher's logits"
                )
            terms = dict(zip(self._objective.names, values, strict=True))
            self.state.log_history.append({"step": step, **terms, "tokens": tokens})
        self.state.log_history[-1] |= {
            "seconds": self._before["seconds"] + time.perf_counter() - self._start,
            "peak_memory": max(self._before["peak_memory"], process_peak(self.args.device)),
        }

    def history(self) -> LanguageHistory:
        """Of all steps, those before a checkpoint included."""
        steps = [record for record in self.state.log_history if "tokens" in record]
        figures = {name: [record[name] for record in steps] for name in (*self._objective.names, "tokens")}
        return LanguageHistory(**figures, seconds=steps[-1]["seconds"], peak_memory=steps[-1]["peak_memory"])

    def _save_checkpoint(self, model, trial) -> None:
        if bad := [name for name, p in self.model.named_parameters() if not p.isfinite().all()]:
            raise FloatingPointError(
                f"the weights {', '.join(bad[:3])} are not finite, though the loss was; try "
                "max_grad_norm=1.0 and a smaller lr. Checkpoints of earlier steps are unchanged"
            )
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Each process writes one; then the first may write the state, with which a checkpoint is whole.
        self.accelerator.wait_for_everyone()


class _Steps(TrainerCallback):
    """Tells the trainer of its steps, and shows them."""

    def __init__(self, trainer: DistillationTrainer, progress: bool) -> None:
        self._trainer, self._progress = trainer, progress

    def on_train_begin(self, args, state, control, **_) -> None:
        self._trainer.begin()
        self._bar = tqdm(
            desc="steps", total=state.max_steps, initial=state.global_step, leave=False,
            disable=not self._progress,
        )  # fmt: skip

    def on_epoch_begin(self, args, state, control, **_) -> None:
        # Accelerate does not reach the order behind the batches of a resumed epoch that processes share.
        self._trainer.order.set_epoch(int(state.epoch))

    def on_step_end(self, args, state, control, **_) -> None:
        self._trainer.close_step()
        # Seldom: reading the figures waits for the device.
        if state.global_step % 50 == 0 or control.should_save or control.should_training_stop:
            self._trainer.flush()
            self._bar.set_postfix_str(f"loss {state.log_history[-1]['loss']:.3f}", refresh=False)
        self._bar.update()

    def on_train_end(self, args, state, control, **_) -> None:
        self._bar.close()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over tokens, in float32 or better, as `kd_loss` has it; here no position is left out."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, reduction="sum")
