"""transformers' Trainer with the distillation loss, a mean over tokens, and completions by the student."""

import math
import time
from collections.abc import Callable, Iterator
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

from kdlib.cost import process_peak, reset_process_peak
from kdlib.language.distill.batches import EpochOrder, Packing, TokenExample, collate, collate_prompts
from kdlib.language.distill.fsdp import shard_on_cpus, sharding
from kdlib.language.distill.output_layer import at_output_layer
from kdlib.language.distill.teachers import HiddenTeacher, can_narrow, predictions
from kdlib.losses.divergences import Divergence
from kdlib.losses.kd import soft_target_loss
from kdlib.losses.linear import linear_kd_loss
from kdlib.losses.top_k import TopK, top_k_loss
from kdlib.runtime import eval_mode, seeded, substream

__all__ = ["DistillationTrainer", "Objective", "Sampling"]


@dataclass(frozen=True)
class Objective:
    """What is minimised over the tokens of a completion: α·CE(label) + (1 − α)·T²·D(teacher, student)."""

    alpha: float
    temperature: float = 1.0
    divergence: Divergence = "forward"
    beta: float = 0.5

    def terms(
        self, student: Tensor, teacher: Tensor | TopK | None, labels: Tensor, width: int | None = None
    ) -> dict[str, Tensor]:
        """Sums over n tokens, as of `kd_loss`: "loss" and, where both count, "hard" and "soft" unweighted.

        Args:
            student: (n, V) logits.
            teacher: (n, W) logits, or the largest of them, of the student's first W tokens; None where α is
                1.
            labels: (n,) token ids.
            width: W, by default V.
        """
        if self.alpha == 1:
            return {"loss": _cross_entropy(student, labels)}
        divergence = top_k_loss if isinstance(teacher, TopK) else soft_target_loss
        soft = divergence(
            student[:, :width], teacher, temperature=self.temperature,
            divergence=self.divergence, beta=self.beta, reduction="sum",
        )  # fmt: skip
        if self.alpha == 0:
            return {"loss": soft}
        # Over all of the student's logits: it learns not to choose those that are no token.
        hard = _cross_entropy(student, labels)
        return {"loss": self.alpha * hard + (1 - self.alpha) * soft, "hard": hard, "soft": soft}

    def terms_of_hidden(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, teacher: Tensor | TopK | None,
        teacher_weight: Tensor | None, teacher_bias: Tensor | None, labels: Tensor, width: int,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The same sums, from (n, H) and (n, H') of which output layers would make the logits."""
        terms = linear_kd_loss(
            hidden, weight, teacher, teacher_weight, labels, temperature=self.temperature, alpha=self.alpha,
            divergence=self.divergence, beta=self.beta, ignore_index=None, student_bias=bias,
            teacher_bias=teacher_bias, classes=width, reduction="sum", return_terms=True,
        )  # fmt: skip
        return {name: getattr(terms, name) for name in self.names()}

    def names(self) -> tuple[str, ...]:
        return ("loss", "hard", "soft") if 0 < self.alpha < 1 else ("loss",)


@dataclass(frozen=True)
class Sampling:
    """How the student writes completions while it learns from them."""

    max_new_tokens: int
    temperature: float
    seed: int


@dataclass
class Curve:
    """The figures of each step so far; those of the last steps are still on the device."""

    names: tuple[str, ...]
    records: list[dict] = field(default_factory=list)
    pending: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory: int = 0


class DistillationTrainer(Trainer):
    """A Trainer for completions.

    Its loss is a sum over the counted tokens of a step divided by their number in that step, over all
    micro-batches and processes: accumulation and sharing change nothing but rounding. A mean of the
    micro-batches' means would give tokens of short completions a larger weight.

    Args:
        student: trained in place.
        args: Trainer's.
        examples: with completions, or prompts alone where `sampling` says how the student completes them.
        tokenizer: saved with each checkpoint.
        objective: the loss.
        teacher: gives its opinion on a batch, see `kdlib.language.distill.teachers`; None where the objective needs
            none.
        fused: compute the loss inside the student's forward, which is `kdlib.language.distill.output_layer.opened`.
        width: number of logits that belong to a token, for teacher and student alike.
        packing: see `collate`.
        seed: of the order of the examples.
        group_by_length: see `EpochOrder`.
        progress: show a progress bar.
    """

    loss_is_scaled_for_ga = True  # of newer transformers; for those before it see __init__

    def __init__(
        self,
        student: PreTrainedModel,
        args: TrainingArguments,
        examples: list[TokenExample],
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective,
        *,
        teacher: Callable[[dict[str, Tensor]], Tensor | TopK] | None,
        fused: bool,
        width: int,
        sampling: Sampling | None,
        packing: Packing | None,
        seed: int,
        group_by_length: bool,
        progress: bool,
    ) -> None:
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._packing = packing
        collator = self._collated if sampling is None else lambda batch: collate_prompts(batch, self._pad)
        use_cache = student.config.use_cache
        super().__init__(student, args, collator, examples, processing_class=tokenizer)
        # Trainer turns the cache off in the configuration, and would save it so; the forward passes below say
        # for themselves that they need none.
        student.config.use_cache = use_cache
        self.model_accepts_loss_kwargs = True  # Trainer shall not divide by the number of micro-batches
        self.remove_callback(PrinterCallback)
        self.add_callback(_Steps(self, progress and self.is_world_process_zero()))
        self._objective, self._teacher, self._width, self._sampling = objective, teacher, width, sampling
        self._narrowing, self._fused = can_narrow(student), fused
        group = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._order = EpochOrder([*map(len, examples)], seed, group if group_by_length else None)
        self._parameters = student.num_parameters(exclude_embeddings=True)
        self.curve = Curve(objective.names())
        self._sums: Tensor | None = None
        self._items: Tensor | None = None
        self._start = time.perf_counter()

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        shard_on_cpus(self.accelerator)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    # --- what is trained on ---------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset=None) -> EpochOrder:
        return self._order

    def _collated(self, examples: list[TokenExample]) -> dict[str, Tensor]:
        return collate(examples, self._pad, self._packing)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """The micro-batches of a step, and how many tokens count in them, over all processes.

        On-policy the completions are written here, all of them: a step's tokens must be counted before the
        gradient of its first micro-batch.
        """
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        if self._sampling is not None:
            batches = [self._completed(batch, number) for number, batch in enumerate(batches)]
        items = torch.tensor(sum(len(batch["places"]) for batch in batches), device=device)
        if self.args.world_size > 1:
            items = self.accelerator.reduce(items, "sum")
        self._items = items
        return batches, items

    @torch.no_grad()
    def _completed(self, prompts: dict[str, Tensor], number: int) -> dict[str, Tensor | int]:
        """A batch of prompts with completions that the student writes now.

        The random numbers are of this step, micro-batch and process alone, so that a resumed run writes the
        same. A completion that reaches `max_new_tokens` counts as far as it goes, without an end.
        """
        sampling, model = self._sampling, self.accelerator.unwrap_model(self.model)
        place = self.state.global_step * self.args.world_size + self.args.process_index
        seed = substream(substream(sampling.seed, "completions", place), "micro-batch", number)
        device = self.args.device
        with eval_mode(model), seeded(seed, device):
            written = model.generate(
                **{name: tensor.to(device) for name, tensor in prompts.items()},
                generation_config=self._generation(model),
                synced_gpus=sharding() is not None,  # layers are gathered by all, however long each writes
            )
        length, ends = prompts["input_ids"].shape[1], self._ends(model)
        examples = [
            TokenExample(tuple(row[start:length]), _until_end(row[length:], ends))
            for row, start in zip(
                written.tolist(), (length - prompts["attention_mask"].sum(-1)).tolist(), strict=True
            )
        ]
        return self._collated(examples)

    def _generation(self, model: PreTrainedModel) -> GenerationConfig:
        # All is said here: what is left out is taken from the model's own settings (top-k, penalties).
        beyond = list(range(self._width, model.get_output_embeddings().weight.shape[0]))
        return GenerationConfig(
            max_new_tokens=self._sampling.max_new_tokens, max_length=None, min_length=0, do_sample=True,
            temperature=self._sampling.temperature, top_k=0, top_p=1.0, repetition_penalty=1.0,
            num_beams=1, num_return_sequences=1, use_cache=True, suppress_tokens=beyond or None,
            eos_token_id=sorted(self._ends(model)), pad_token_id=self._pad,
        )  # fmt: skip

    def _ends(self, model: PreTrainedModel) -> set[int]:
        own = model.generation_config.eos_token_id
        own = own if isinstance(own, list) else [own]
        return {self.processing_class.eos_token_id, *(end for end in own if end is not None)}

    # --- the loss -------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's share of the step's mean over tokens."""
        terms = (self._terms_of_hidden if self._fused else self._terms_of_logits)(model, inputs)
        sums = torch.stack([terms[name].detach() for name in self.curve.names])
        self._sums = sums if self._sums is None else self._sums + sums
        # Sharing processes take the mean of their gradients, where the sum is meant.
        loss = terms["loss"] * self.args.world_size / num_items_in_batch.clamp(min=1)
        return (loss, None) if return_outputs else loss

    def _terms_of_logits(self, model, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        student = predictions(model, batch, self._narrowing)
        return self._objective.terms(student, self._opinion(batch), batch["targets"], self._width)

    def _terms_of_hidden(self, model, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        teacher, layer = self._opinion(batch), (None, None)
        if isinstance(self._teacher, HiddenTeacher):
            layer = self._teacher.output_layer()
        return at_output_layer(
            model, batch, lambda *student: self._objective.terms_of_hidden(
                *student, teacher, *layer, batch["targets"], self._width
            ),
        )  # fmt: skip

    def _opinion(self, batch: dict[str, Tensor]) -> Tensor | TopK | None:
        if self._teacher is None:
            return None
        with self.accelerator.autocast():
            return self._teacher(batch)

    def floating_point_ops(self, inputs) -> int:
        # Trainer's would count the parameters anew in each micro-batch.
        return 6 * inputs["input_ids"].numel() * self._parameters

    # --- what is kept of it ---------------------------------------------------------------------------

    def close_step(self) -> None:
        """The optimizer has taken a step."""
        self.curve.pending.append((self._sums, self._items))
        self._sums = None

    def flush(self) -> None:
        """Read the figures of the last steps from the device; every process must call it.

        Raises:
            FloatingPointError: a loss was not finite.
        """
        curve = self.curve
        if not curve.pending:
            return
        # In float64 from here on: float32 does not hold every number of tokens.
        sums = torch.stack([sums for sums, _ in curve.pending]).to(torch.float64)
        items = torch.stack([items for _, items in curve.pending])
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, "sum")
        first = self.state.global_step - len(curve.pending) + 1
        curve.pending.clear()
        for step, (values, tokens) in enumerate(zip(sums.tolist(), items.tolist(), strict=True), first):
            values = [value / max(tokens, 1) for value in values]
            if not math.isfinite(values[0]):
                raise FloatingPointError(
                    f"the loss of step {step} is {values[0]}; try a smaller lr (now "
                    f"{self.args.learning_rate}), max_grad_norm=1.0, and look for NaN in the teacher's logits"
                )
            named = dict(zip(curve.names, values, strict=True))
            curve.records.append({"step": step, **named, "tokens": tokens})

    def _save_checkpoint(self, model, trial) -> None:
        self.flush()
        if bad := [name for name, p in self.model.named_parameters() if not p.isfinite().all()]:
            raise FloatingPointError(
                f"the weights {', '.join(bad[:3])} are not finite, though the loss was; try "
                "max_grad_norm=1.0 and a smaller lr. Checkpoints of earlier steps are unchanged"
            )
        # Trainer writes its history last: a checkpoint that has one is whole.
        spent = {"seconds": self.curve.seconds + self.elapsed(), "peak_memory": self.peak_memory()}
        self.state.log_history = [*self.curve.records, spent]
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Checkpoints may be kept in parts; the trained model is what `from_pretrained` reads.
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is None or _internal_call:
            return super().save_model(output_dir, _internal_call)
        parts = plugin.state_dict_type
        plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            super().save_model(output_dir)
        finally:
            plugin.set_state_dict_type(parts)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # each process writes one; then the first may write the history

    def take_up(self, history: list[dict]) -> None:
        """The figures of the steps that a checkpoint holds."""
        self.curve.records = [record for record in history if "loss" in record and "tokens" in record]
        spent = [record for record in history if "loss" not in record]
        self.curve.seconds = sum(record.get("seconds", 0.0) for record in spent)
        self.curve.peak_memory = max((record.get("peak_memory", 0) for record in spent), default=0)

    def peak_memory(self) -> int:
        return max(self.curve.peak_memory, process_peak(self.args.device))

    def elapsed(self) -> float:
        return time.perf_counter() - self._start


class _Steps(TrainerCallback):
    """Tells the trainer of its steps, and shows them."""

    def __init__(self, trainer: DistillationTrainer, progress: bool) -> None:
        self._trainer, self._progress, self._bar = trainer, progress, None

    def on_train_begin(self, args, state, control, **_) -> None:
        self._trainer._start = time.perf_counter()
        reset_process_peak(args.device)
        if self._progress:
            self._bar = tqdm(desc="steps", total=state.max_steps, initial=state.global_step, leave=False)

    def on_epoch_begin(self, args, state, control, **_) -> None:
        # Accelerate does not reach the order behind the batches of a resumed epoch that processes share.
        self._trainer._order.set_epoch(int(state.epoch))

    def on_step_end(self, args, state, control, **_) -> None:
        self._trainer.close_step()
        # Seldom: reading the figures waits for the device.
        if state.global_step % 50 == 0 or state.global_step >= state.max_steps:
            self._trainer.flush()
        if self._bar is not None:
            if state.global_step % 50 == 0:
                loss = self._trainer.curve.records[-1]["loss"]
                self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            self._bar.update()

    def on_train_end(self, args, state, control, **_) -> None:
        if self._bar is not None:
            self._bar.close()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over tokens, in float32 or better, as `kd_loss` has it; here no position is left out."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, reduction="sum")


def _until_end(tokens: list[int], ends: set[int]) -> tuple[int, ...]:
    """The tokens up to the first end-of-text token, which is kept; all of them where there is none."""
    end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[: end + 1])
