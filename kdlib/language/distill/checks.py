"""What `distill_language_model` refuses before it begins, of options that it would leave unused too."""

from collections.abc import Mapping, Sequence
from numbers import Real

from transformers import PreTrainedModel

from kdlib.arguments import check_counts, check_number, check_whole, is_number, refuse
from kdlib.cache.tokens import CachedTokens
from kdlib.language.distill.batches import TokenExample
from kdlib.language.distill.fsdp import is_sharded, sharding
from kdlib.language.distill.hidden import HiddenMatch
from kdlib.language.distill.lora import has_adapter, is_packed
from kdlib.language.models.positions import check_positions
from kdlib.language.models.vocabulary import check_model
from kdlib.losses.checks import check_settings
from kdlib.losses.divergences import Divergence, LossSettings


def check_length(steps: int | None, epochs: float | None, **counts: int | None) -> None:
    if (steps is None) == (epochs is None):
        raise ValueError(f"steps is {steps} and epochs is {epochs}; expected one of the two")
    check_counts(steps=steps, **counts)
    if epochs is not None:
        check_number("epochs", epochs, above=0)


def check_numbers(
    lr: object, seed: object, beta: object, sampling_temperature: object, on_policy: object
) -> None:
    """Whatever the way of training: what one does not use, another run with the same settings may.

    A temperature of 0, a teacher's likeliest texts, may stay where the student writes nothing.
    """
    check_whole("seed", seed)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}; expected 0 to 2**32 - 1, which numpy's generator takes")
    for name, value in {"lr": lr, "sampling_temperature": sampling_temperature}.items():
        unused = name == "sampling_temperature" and value == 0 and not on_policy
        if not unused:
            check_number(name, value, above=0)
    if not is_number(beta) or not 0 < beta < 1:
        refuse("beta", beta, "a number strictly between 0 and 1")


def check_switches(**switches: object) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}; expected True or False")


def check_teacher(
    student: PreTrainedModel, teacher: PreTrainedModel | CachedTokens | None, top_k: int | None,
    on_policy: bool | float,
) -> None:  # fmt: skip
    live = isinstance(teacher, PreTrainedModel)
    check_model("student", student)
    if not live and not isinstance(teacher, CachedTokens | None):
        raise ValueError(
            f"teacher is {teacher!r:.60}; expected a model, such as load_checkpoint gives, outputs stored by "
            "cache_teacher_tokens or cache_served_tokens, or None to learn from texts alone"
        )
    if teacher is student:
        raise ValueError("teacher and student are the same module; expected two")
    if is_sharded(student) or live and is_sharded(teacher):
        raise ValueError("student or teacher is spread over processes by an earlier run; load it anew")
    if not isinstance(on_policy, Real) or not 0 <= on_policy <= 1:
        raise ValueError(f"on_policy={on_policy}; expected False, True or a share of the steps, 0 to 1")
    if on_policy and not live:
        raise ValueError(f"on_policy={on_policy} needs a model as teacher, to judge what the student writes")
    if top_k is not None and not live:
        raise ValueError(f"top_k={top_k} needs a model as teacher, to choose among its logits; leave it out")


def loss_settings(
    temperature: float, alpha: float | None, divergence: Divergence | None, beta: float,
    on_policy: bool | float, *, teacher: bool,
) -> LossSettings:  # fmt: skip
    """What was said of the loss, and what it is where nothing was."""
    if on_policy and alpha not in (None, 0):
        raise ValueError(f"alpha={alpha}; expected 0 on-policy: what the student writes is no label")
    if not teacher and alpha not in (None, 1):
        raise ValueError(f"alpha={alpha}; expected 1 without a teacher: there are only hard labels")
    if alpha is None:
        alpha = 1.0 if not teacher else 0.0 if on_policy else 0.5
    loss = LossSettings(temperature, alpha, divergence or ("reverse" if on_policy else "forward"), beta)
    check_settings(loss, "sum")
    return loss


def check_lengths(
    encoded: Sequence[TokenExample], models: Mapping[str, PreTrainedModel], on_policy: bool | float,
    max_new_tokens: int,
) -> None:  # fmt: skip
    """Refuse examples that a model has too few positions for; so far, or with what the student writes."""
    for who, model in models.items():
        prompts = [e.teacher_prompt if who == "teacher" and e.teacher_prompt else e.prompt for e in encoded]
        lengths = [len(prompt) + len(e.completion) for prompt, e in zip(prompts, encoded, strict=True)]
        check_positions("examples", lengths, {who: model})
        if on_policy:
            added = {"max_new_tokens": max_new_tokens}
            check_positions("examples", [*map(len, prompts)], {who: model}, **added)


def check_extensions(
    student: PreTrainedModel, teacher: object, hidden: HiddenMatch | None, *, lora: bool
) -> None:
    """What LoRA and the matching of hidden states need of student and teacher."""
    if has_adapter(student):
        raise ValueError("student has adapters already; expected none: load it anew, or merge them")
    if is_packed(student):
        if not lora:
            raise ValueError(
                "student has packed weights, which cannot be trained; load it without quantise, or train "
                "matrices beside them with lora=16"
            )
        if sharding():
            raise ValueError("student has packed weights, which FSDP2 cannot spread; launch with ddp")
    if hidden is None:
        return
    if not isinstance(hidden, HiddenMatch):
        refuse("hidden", hidden, 'a HiddenMatch, such as HiddenMatch(layers="last")')
    if not isinstance(teacher, PreTrainedModel):
        raise ValueError("hidden needs a model as teacher, which computes hidden states; leave it out")
