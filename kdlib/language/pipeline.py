"""The R1 recipe from beginning to end: a teacher writes, a program verifies, a student learns and is tested.

`python -m kdlib distill` is the command line of `run_pipeline`.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.cache.tokens import CachedTokens, cache_teacher_tokens
from kdlib.course.studies.records import write_results
from kdlib.language.distill.distill import LanguageHistory, distill_language_model
from kdlib.language.distill.fsdp import sharding
from kdlib.language.models.load import load_checkpoint
from kdlib.language.models.vocabulary import check_same_ordinary_tokens
from kdlib.language.problems import Problem, load_problems
from kdlib.language.traces.collect import Trace, collect_traces, load_traces
from kdlib.language.traces.select import filter_traces, trace_report
from kdlib.metrics import interval
from kdlib.runtime import Precision, best_device, describe_environment

__all__ = ["Method", "PipelineOptions", "run_pipeline"]

Method = Literal["texts", "logits", "cached", "on-policy"]

_PART = 64  # problems of one file of traces: each is written by one process


def option(default: object, text: str) -> object:
    return field(default=default, metadata={"help": text})


@dataclass
class PipelineOptions:
    """What `run_pipeline` does; each field is an option of the command, and its help says what it means."""

    student: str = option("", "model to train: one of the six, a repository, or a folder")
    out: str = option("", "folder for traces, teacher outputs, checkpoints and the trained student")
    teacher: str | None = option(None, "model to learn from; not needed where --traces are all there is")
    problems: str | None = option(None, "file of problems that the teacher is to answer")
    traces: str | None = option(None, "file or folder of traces instead, as `kdlib traces` writes them")
    test: str | None = option(None, "file of problems that the student answers before and after")
    tokenizer: str = option("student", "whose tokenizer and chat template: student or teacher")
    teacher_quantise: str | None = option(None, "keep the teacher's weights as int8 or nf4")
    # What the teacher writes.
    samples: int = option(4, "answers to each problem")
    sampling_temperature: float = option(0.6, "of what teacher and, on-policy, student write")
    top_p: float = option(0.95, "share of the most probable tokens that the teacher draws from")
    max_new_tokens: int = option(4096, "where an answer is cut off")
    sampling_batch: int = option(32, "answers written at once by one device")
    shortest: bool = option(False, "of each problem's right answers keep the shortest")
    unverified: bool = option(False, "keep wrong answers too")
    # How the student learns.
    method: str = option("texts", "texts (as R1-Distill), logits, cached (the largest logits), on-policy")
    alpha: float | None = option(
        None, "weight of the hard label (texts 1, logits and cached 0.5, on-policy 0)"
    )
    temperature: float = option(1.0, "T of the soft term")
    divergence: str | None = option(None, "forward, reverse or jsd")
    top_k: int | None = option(None, "learn from the teacher's k largest logits only (cached: 64)")
    epochs: float | None = option(None, "passes over the texts (2, as R1-Distill's 2 to 3)")
    steps: int | None = option(None, "optimizer steps, instead of epochs")
    lr: float = option(1e-5, "highest learning rate")
    batch_size: int = option(1, "texts in a micro-batch of one device")
    accumulation: int = option(8, "micro-batches in a step")
    packing: bool = option(True, "lay short texts end to end")
    group_by_length: bool = option(False, "put texts of similar length into a step")
    gradient_checkpointing: bool = option(False, "compute activations again rather than keep them")
    precision: str = option("auto", "auto, bf16 or no")
    seed: int = option(0, "of order and sampling")
    save_steps: int | None = option(None, "steps between checkpoints (a tenth of the run)")
    resume: bool = option(True, "go on from the newest checkpoint in the folder")
    training_arguments: dict | None = option(
        None, "more of transformers' TrainingArguments, as JSON; a mapping in a configuration"
    )

    def __post_init__(self) -> None:
        for name, known in (
            ("method", ("texts", "logits", "cached", "on-policy")), ("tokenizer", ("student", "teacher")),
            ("precision", ("auto", "bf16", "no")), ("divergence", (None, "forward", "reverse", "jsd")),
            ("teacher_quantise", (None, "int8", "nf4")),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                expected = ", ".join(value for value in known if value)
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {expected}")
        for name in ("student", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing; expected {_MEANING[name]}")
        sources = [name for name in ("problems", "traces") if getattr(self, name)]
        if len(sources) != 1:
            raise ValueError(
                f"{' and '.join(sources) or 'neither problems nor traces'} given; expected one of the two: "
                "problems that the teacher is to answer, or traces that are there already"
            )
        if self.teacher is None and (self.traces is None or self.method != "texts"):
            needed = "problems need" if self.traces is None else f"method {self.method!r} needs"
            raise ValueError(f"{needed} a teacher; give teacher, or learn from traces by method texts")
        if self.tokenizer == "teacher" and self.teacher is None:
            raise ValueError("tokenizer is 'teacher', and there is no teacher; give one")
        if self.epochs is None and self.steps is None:
            self.epochs = 2.0


_MEANING = {"student": "the model to train", "out": "a folder to work in"}


def run_pipeline(options: PipelineOptions, say: Callable[[str], None] = print) -> dict[str, object]:
    """Collect, verify, train, test; each stage goes on where it was interrupted.

    Under `accelerate launch` every process calls it. They share the problems, a part of 64 each in turn, and
    the steps of training; the folder must be one that all of them see.

    Args:
        options: what to do.
        say: gets what is to be told, on the first process alone.

    Returns:
        The report, as `report.json` in the folder holds it.

    Raises:
        ValueError, OSError: of the stages; see `load_checkpoint`, `collect_traces`, `distill_language_model`.
    """
    if options.teacher_quantise and sharding():
        raise ValueError(
            f"teacher_quantise is {options.teacher_quantise!r}, but FSDP2 cannot spread packed weights; "
            "leave it out, or launch with ddp"
        )
    # A process may wait for hours while another writes.
    place = PartialState(cpu=best_device().type == "cpu", timeout=timedelta(days=7))
    tell = say if place.is_main_process else (lambda text: None)
    out = Path(options.out)
    report: dict[str, object] = {"environment": describe_environment(), "processes": place.num_processes}
    # Read before anything large is: a mistake in a file is told at once.
    test = load_problems(options.test) if options.test else []
    if options.problems:
        problems = load_problems(options.problems)
    else:
        traces = load_traces(options.traces)
        problems = [Problem(trace.key, trace.statement, trace.answer) for trace in _first_of_each(traces)]
    if seen := {problem.statement for problem in test} & {problem.statement for problem in problems}:
        raise ValueError(
            f"{len(seen)} problems of {options.test} are trained on too, such as {min(seen)[:60]!r}; remove "
            "them from one of the two files, or the test would show what was learnt by heart"
        )
    if test:
        report["before"] = _tested(options, options.student, test, out / "test_before.jsonl", place, tell)

    teacher, teacher_tokenizer = _teacher(options, place, writes=options.problems is not None)
    if options.problems:
        traces = _collected(options, problems, teacher, teacher_tokenizer, out / "traces", place)
    tell(str(trace_report(traces)))
    kept = filter_traces(traces, correct=not options.unverified, shortest=options.shortest)
    if not kept:
        raise ValueError(
            f"none of the {len(traces):,} traces is right; ask more easily, let the teacher write beyond "
            f"max_new_tokens={options.max_new_tokens}, or keep wrong ones with unverified"
        )
    tell(f"{len(kept):,} of {len(traces):,} traces are kept")

    student, tokenizer = _student(options, place)
    if options.tokenizer == "teacher":
        check_same_ordinary_tokens(tokenizer, teacher_tokenizer)
        tokenizer = teacher_tokenizer
    if options.method == "texts":
        teacher = None  # its memory is wanted
        _free()
    elif teacher is not None and sharding():
        teacher.to("cpu")  # from where each process takes its part
    if options.method == "on-policy":
        examples = problems
    else:
        examples = [_as_example(trace, tokenizer) for trace in kept]
    if options.method == "cached":
        folder = out / "teacher_outputs"
        teacher = _stored(options, teacher, tokenizer, teacher_tokenizer, examples, folder, place)
    history = _trained(options, student, tokenizer, teacher, teacher_tokenizer, examples, out / "student")
    report |= {
        "problems": len(problems), "traces": len(traces), "correct": sum(t.correct for t in traces),
        "kept": len(kept), "steps": history.steps, "tokens": history.tokens_trained,
        "seconds": history.seconds, "first_loss": history.loss[0], "last_loss": history.loss[-1],
        "peak_memory": history.peak_memory,
    }  # fmt: skip
    tell(_told(history))
    del student, teacher
    _free()

    if test:
        trained = str(out / "student")
        report["after"] = _tested(options, trained, test, out / "test_after.jsonl", place, tell)
        if place.is_main_process and len(test) > 1:
            files = out / "test_before.jsonl", out / "test_after.jsonl"
            report["difference"] = _difference(*files, test, tell)
    if place.is_main_process:
        write_results(out / "report.json", report)
        tell(f"The trained student is in {out / 'student'}.")
    return report


# --- the stages -------------------------------------------------------------------------------------------


def _teacher(
    options: PipelineOptions, place: PartialState, *, writes: bool
) -> tuple[PreTrainedModel | None, PreTrainedTokenizerBase | None]:
    if options.teacher is None:
        return None, None
    if options.method == "texts" and not writes and options.tokenizer == "student":
        return None, None  # its traces are all that is needed
    device = "cpu" if sharding() and not writes else place.device
    return load_checkpoint(options.teacher, device=device, quantise=options.teacher_quantise)


def _student(
    options: PipelineOptions, place: PartialState
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    # In float32: a small step of the learning rate is lost in bfloat16.
    device = "cpu" if sharding() else place.device
    return load_checkpoint(options.student, dtype=torch.float32, device=device)


def _collected(
    options: PipelineOptions, problems: list[Problem], teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase, folder: Path, place: PartialState,
) -> list[Trace]:  # fmt: skip
    """Every process writes its parts, and reads those of all."""
    parts = [problems[start : start + _PART] for start in range(0, len(problems), _PART)]

    def write(number: int, progress: bool) -> list[Trace]:
        return collect_traces(
            teacher, tokenizer, parts[number], folder / f"{number:05}.jsonl", samples=options.samples,
            temperature=options.sampling_temperature, top_p=options.top_p, seed=options.seed,
            max_new_tokens=options.max_new_tokens, batch_size=options.sampling_batch, progress=progress,
        )  # fmt: skip

    for number in range(place.process_index, len(parts), place.num_processes):
        write(number, place.is_main_process)
    place.wait_for_everyone()
    asked = {problem.key for problem in problems}
    written = [trace for number in range(len(parts)) for trace in load_traces(folder / f"{number:05}.jsonl")]
    traces = [trace for trace in written if trace.key in asked and trace.sample < options.samples]
    order = {problem.key: number for number, problem in enumerate(problems)}
    return sorted(traces, key=lambda trace: (order[trace.key], trace.sample))


def _as_example(trace: Trace, tokenizer: PreTrainedTokenizerBase) -> Trace:
    """A trace for a template that opens no thought, as those of base models: there it opens its own."""
    turn = [{"role": "user", "content": trace.statement}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    if prompt.rstrip().endswith("<think>") or trace.text.lstrip().startswith("<think>"):
        return trace
    return replace(trace, text=f"<think>\n{trace.text}")


def _stored(
    options, teacher, tokenizer, teacher_tokenizer, examples, folder: Path, place: PartialState
) -> CachedTokens:
    """The first process writes them; the others find them."""
    settings = {"temperature": options.temperature, "device": place.device}
    if options.tokenizer == "student":
        settings["teacher_tokenizer"] = teacher_tokenizer  # to be compared
    if options.top_k is not None:
        settings["top_k"] = options.top_k
    with _first_process_first(place):
        return cache_teacher_tokens(
            teacher, tokenizer, examples, folder, progress=place.is_main_process,
            overwrite=not options.resume, **settings,
        )  # fmt: skip


def _trained(
    options, student, tokenizer, teacher, teacher_tokenizer, examples, folder: Path
) -> LanguageHistory:
    live = isinstance(teacher, PreTrainedModel)
    own = teacher_tokenizer if live and options.tokenizer == "student" else None
    precision: Precision = options.precision
    writing = {} if options.method != "on-policy" else {
        "on_policy": True, "max_new_tokens": options.max_new_tokens,
        "sampling_temperature": options.sampling_temperature,
    }  # fmt: skip
    settings = dict(options.training_arguments or {})
    if options.gradient_checkpointing:
        settings["gradient_checkpointing"] = True
    return distill_language_model(
        student, tokenizer, examples, folder, teacher=teacher, teacher_tokenizer=own, alpha=options.alpha,
        temperature=options.temperature, divergence=options.divergence,
        top_k=options.top_k if live else None, **writing,
        steps=options.steps, epochs=options.epochs if options.steps is None else None, lr=options.lr,
        batch_size=options.batch_size, accumulation=options.accumulation, packing=options.packing,
        group_by_length=options.group_by_length, seed=options.seed, save_steps=options.save_steps,
        resume=options.resume, precision=precision, progress=True, **settings,
    )  # fmt: skip


def _tested(options, model: str, test: list[Problem], path: Path, place: PartialState, tell) -> float | None:
    """Share of the problems that the most probable answers solve; by the first process, others wait."""
    accuracy = None
    if place.is_main_process:
        loaded, tokenizer = load_checkpoint(model, device=place.device)
        answers = collect_traces(
            loaded, tokenizer, test, path, samples=1, temperature=0.0, max_new_tokens=options.max_new_tokens,
            batch_size=options.sampling_batch, progress=True,
        )  # fmt: skip
        accuracy = sum(trace.correct for trace in answers) / len(answers)
        tell(f"{model}: {sum(t.correct for t in answers)} of {len(answers)} test problems, {accuracy:.1%}")
        del loaded
        _free()
    place.wait_for_everyone()
    return accuracy


def _difference(before: Path, after: Path, test: Sequence[Problem], tell) -> dict[str, float]:
    right = [{trace.key: trace.correct for trace in load_traces(path)} for path in (before, after)]
    gains = [float(right[1][problem.key]) - float(right[0][problem.key]) for problem in test]
    mean, half = interval(gains)
    tell(
        f"after − before: {100 * mean:+.1f} points, 95 % interval [{100 * (mean - half):+.1f}, "
        f"{100 * (mean + half):+.1f}] over {len(test)} problems; one run, so not over seeds"
    )
    return {"mean": mean, "half_width": half, "problems": len(test)}


# --- around them ------------------------------------------------------------------------------------------


def _first_of_each(traces: Sequence[Trace]) -> list[Trace]:
    return list({trace.key: trace for trace in reversed(traces)}.values())[::-1]


@contextmanager
def _first_process_first(place: PartialState):
    if not place.is_main_process:
        place.wait_for_everyone()
    yield
    if place.is_main_process:
        place.wait_for_everyone()


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _told(history: LanguageHistory) -> str:
    rate = history.tokens_trained / max(history.seconds, 1e-9)
    return (
        f"{history.steps:,} steps, {history.tokens_trained:,} tokens learnt at {rate:,.0f} a second; loss "
        f"{history.loss[0]:.3f} at the first step, {history.loss[-1]:.3f} at the last; "
        f"at most {history.peak_memory / 1e9:.2f} GB of memory"
    )
