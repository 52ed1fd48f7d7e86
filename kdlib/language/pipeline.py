"""Distillation from beginning to end, from problems or plain texts: `python -m kdlib distill` runs it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from inspect import signature
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.cache.tokens import CachedTokens
from kdlib.language.distill.batches import TokenExample
from kdlib.language.distill.checks import check_length, check_numbers, loss_settings
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.fsdp import sharding
from kdlib.language.distill.lora import lora_config
from kdlib.language.distill.scores import score_texts
from kdlib.language.distill.teachers import cache_teacher_tokens
from kdlib.language.distill.thought import with_thought
from kdlib.language.distill.trainer import LanguageHistory
from kdlib.language.documents import Document, encode_documents, hold_out, load_documents, shuffled
from kdlib.language.models.load import load_checkpoint
from kdlib.language.models.vocabulary import check_same_tokens
from kdlib.language.options import PipelineOptions
from kdlib.language.problems import Problem, load_problems
from kdlib.language.traces.collect import Trace, collect_traces, load_traces
from kdlib.language.traces.select import filter_traces, trace_report
from kdlib.metrics import interval
from kdlib.runtime import best_device, describe_environment
from kdlib.storage import write_json

PART = 64  # problems of one file of traces: each is written by one process


def run_pipeline(options: PipelineOptions) -> dict[str, object]:
    """Collect, filter, train, evaluate; each stage goes on where it was interrupted.

    Under `accelerate launch` every process calls it. They share the problems, a part of 64 each in turn, and
    the steps of training; the folder must be one that all of them see. The first process prints what is done.
    Returned is the report, as `report.json` in the folder holds it.
    """
    _check(options)
    # A process may wait for hours while another writes.
    processes = PartialState(cpu=best_device().type == "cpu", timeout=timedelta(days=7))
    out = Path(options.out)
    problems, traces, test = _read(options)  # before anything large is: a mistake in a file is told at once
    documents = load_documents(options.texts) if options.texts else []
    report: dict[str, object] = {"environment": describe_environment(), "processes": processes.num_processes}
    right_before = _evaluate(options, options.student, test, out / "test_before.jsonl")

    teacher, teacher_tokenizer = _teacher(options, processes)
    if _teacher_writes(options):
        traces = _collect(options, problems, teacher, teacher_tokenizer, processes)
    kept = [] if documents or options.method == "on-policy" else _kept(options, traces)

    # In float32: a small step of the learning rate is lost in bfloat16.
    device = "cpu" if sharding() else processes.device
    student, tokenizer = load_checkpoint(options.student, dtype=torch.float32, device=device)
    if options.tokenizer == "teacher":
        check_same_tokens(tokenizer, teacher_tokenizer, but_special=True)
        tokenizer = teacher_tokenizer
    held: list[TokenExample] = []
    if documents:
        examples, held = _pieces(options, documents, student, tokenizer)
        if processes.is_main_process:
            report |= _scored("before", student, tokenizer, held, teacher)
        processes.wait_for_everyone()
    elif options.method == "on-policy":
        examples = problems
    else:
        examples = [with_thought(trace, tokenizer) for trace in kept]
    if options.method == "texts":
        teacher = teacher_tokenizer = None
    elif options.method == "cached":
        with processes.main_process_first():  # it writes the outputs, the others find them
            teacher = cache_teacher_tokens(
                teacher, tokenizer, examples, out / "teacher_outputs", teacher_tokenizer=teacher_tokenizer,
                teacher_prompt=options.teacher_prompt, temperature=options.temperature,
                top_k=64 if options.top_k is None else options.top_k, device=processes.device,
                progress=processes.is_main_process,
                overwrite=not options.resume and processes.is_main_process,
            )  # fmt: skip
        options = replace(options, teacher_prompt=options.teacher_prompt or "student")  # all has been told
    torch.cuda.empty_cache()  # the memory of a teacher that is not needed any more
    if not options.resume and processes.is_main_process:  # what is there is of another student
        for name in ("test_after.jsonl", "report.json"):
            (out / name).unlink(missing_ok=True)
    history = _train(options, student, tokenizer, teacher, teacher_tokenizer, examples)
    report |= {
        "problems": len(problems), "traces": len(traces), "correct": sum(t.correct for t in traces),
        "kept": len(kept), "documents": len(documents), "steps": history.steps,
        "tokens": history.tokens_trained, "seconds": history.seconds,
        "first_loss": history.loss[0], "last_loss": history.loss[-1], "peak_memory": history.peak_memory,
    }  # fmt: skip
    _say(
        f"{history.steps:,} steps, {history.tokens_trained:,} tokens learned at "
        f"{history.tokens_trained / history.seconds:,.0f} a second; loss {history.loss[0]:.3f} at the first "
        f"step, {history.loss[-1]:.3f} at the last; at most {history.peak_memory / 1e9:.2f} GB of memory"
    )
    del student, teacher
    torch.cuda.empty_cache()

    right_after = _evaluate(options, str(out / "student"), test, out / "test_after.jsonl")
    if held and processes.is_main_process:
        student, tokenizer = load_checkpoint(out / "student", device=processes.device)
        report |= _scored("after", student, tokenizer, held, _teacher(options, processes)[0])
    if processes.is_main_process:
        report |= _compared(right_before, right_after)
        write_json(out / "report.json", report)  # before it is told: a terminal can refuse it
        if "difference" in report:
            _say(_gain(report["difference"]))
        _say(f"The trained student is in {out / 'student'}.")
    return report


def _check(options: PipelineOptions) -> None:
    """Refuse at once what could not be trained when the teacher has written for hours."""
    if options.teacher_quantise and sharding():
        raise ValueError("teacher_quantise packs weights, which FSDP2 cannot spread; launch with ddp")
    lora_config(options.lora)  # a rank that is none, or no peft
    on_policy = options.method == "on-policy"
    counts = ("top_k", "save_steps", "batch_size", "accumulation", "max_new_tokens")
    check_length(options.steps, options.epochs, **{name: getattr(options, name) for name in counts})
    check_numbers(options.lr, options.seed, options.beta, options.sampling_temperature, on_policy)
    loss_settings(options.temperature, options.alpha, options.divergence, options.beta, on_policy,
                  teacher=options.method != "texts")  # fmt: skip


def _say(text: str) -> None:
    PartialState().on_main_process(print)(text)


def _read(options: PipelineOptions) -> tuple[list[Problem], list[Trace], list[Problem]]:
    """Problems to learn from, traces that are there already, and problems to test on."""
    test = load_problems(options.test) if options.test else []
    traces = load_traces(options.traces) if options.traces else []
    first = {trace.key: trace for trace in reversed(traces)}
    problems = load_problems(options.problems) if options.problems else [
        Problem(trace.key, trace.statement, trace.answer) for trace in reversed(first.values())
    ]  # fmt: skip
    if seen := {problem.statement for problem in test} & {problem.statement for problem in problems}:
        raise ValueError(
            f"{len(seen)} problems of {options.test} are trained on too, such as {min(seen)[:60]!r}; remove "
            "them from one of the two files"
        )
    return problems, traces, test


def _teacher_writes(options: PipelineOptions) -> bool:
    """Whether it answers the problems; on-policy the student does."""
    return options.problems is not None and options.method != "on-policy"


def _teacher(
    options: PipelineOptions, processes: PartialState
) -> tuple[PreTrainedModel | None, PreTrainedTokenizerBase | None]:
    if options.teacher is None or (
        options.traces and options.method == "texts" and options.tokenizer == "student"
    ):
        return None, None  # its traces are all that is needed
    device = "cpu" if sharding() and not _teacher_writes(options) else processes.device
    return load_checkpoint(options.teacher, device=device, quantise=options.teacher_quantise)


def _collect(
    options: PipelineOptions, problems: list[Problem], teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase, processes: PartialState,
) -> list[Trace]:  # fmt: skip
    """Every process writes its parts, and reads those of all."""
    starts = range(0, len(problems), PART)
    files = [Path(options.out) / "traces" / f"{number:05}.jsonl" for number in range(len(starts))]
    for number in range(processes.process_index, len(files), processes.num_processes):
        collect_traces(
            teacher, tokenizer, problems[starts[number] : starts[number] + PART], files[number],
            samples=options.samples, temperature=options.sampling_temperature, top_p=options.top_p,
            seed=options.seed, max_new_tokens=options.max_new_tokens, batch_size=options.sampling_batch,
            progress=processes.is_main_process,
        )  # fmt: skip
    processes.wait_for_everyone()
    # A problem that has come to stand in another part is in both.
    traces = {trace.asked: trace for file in files for trace in load_traces(file)}
    return [traces[problem, sample] for problem in problems for sample in range(options.samples)]


def _kept(options: PipelineOptions, traces: list[Trace]) -> list[Trace]:
    _say(str(trace_report(traces)))
    kept = filter_traces(traces, correct=not options.unverified, shortest=options.shortest)
    if not kept:
        raise ValueError(
            f"none of the {len(traces):,} traces is right; ask more easily, raise "
            f"max_new_tokens={options.max_new_tokens}, or keep wrong ones with unverified"
        )
    _say(f"{len(kept):,} of {len(traces):,} traces are kept")
    return kept


def _pieces(
    options: PipelineOptions, documents: list[Document], student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[TokenExample], list[TokenExample]]:  # fmt: skip
    """What is learned of the documents, and what is held back."""
    context = min(options.context, student.config.max_position_embeddings)
    encoded = encode_documents(
        tokenizer, shuffled(documents, options.seed), context=context, prompt_tokens=options.prompt_tokens
    )
    learnt, held = hold_out(encoded, options.held_out)
    _say(
        f"{len(documents):,} documents, {sum(map(len, learnt)):,} tokens to learn from in pieces of up to "
        f"{context:,}; {sum(map(len, held)):,} tokens are held back"
    )
    return learnt, held


def _scored(
    when: str, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held: list[TokenExample],
    teacher: PreTrainedModel | None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """What the texts that were held back say of the student; one process is enough."""
    scores = score_texts(student, tokenizer, held, teacher=teacher, progress=True)
    _say(f"{when}: {scores}")
    names = ("nll", "kl", "agreement") if teacher is not None else ("nll",)
    return {f"texts_{when}": {name: scores.mean(name) for name in names}}


def _train(
    options: PipelineOptions, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    teacher: PreTrainedModel | CachedTokens | None, teacher_tokenizer: PreTrainedTokenizerBase | None,
    examples: list[Trace] | list[Problem] | list[TokenExample],
) -> LanguageHistory:  # fmt: skip
    shared = signature(distill_language_model).parameters.keys() & vars(options).keys()
    settings = {name: getattr(options, name) for name in shared} | {
        "student": student, "tokenizer": tokenizer, "examples": examples,
        "output_dir": Path(options.out) / "student", "teacher": teacher,
        "teacher_tokenizer": teacher_tokenizer, "on_policy": options.method == "on-policy", "progress": True,
    }  # fmt: skip
    if not isinstance(teacher, PreTrainedModel):
        settings["top_k"] = None
    if options.gradient_checkpointing:
        settings["gradient_checkpointing"] = True
    more = settings.pop("training_arguments") or {}
    return distill_language_model(**settings | more)


def _evaluate(options: PipelineOptions, model: str, test: Sequence[Problem], path: Path) -> list[bool]:
    """Which problems the most probable answers solve; by the first process, the others wait for it."""
    processes, right = PartialState(), []
    if test and processes.is_main_process:
        loaded, tokenizer = load_checkpoint(model, device=processes.device)
        answers = collect_traces(
            loaded, tokenizer, test, path, samples=1, temperature=0.0, max_new_tokens=options.max_new_tokens,
            batch_size=options.sampling_batch, progress=True,
        )  # fmt: skip
        right = [trace.correct for trace in answers]
        _say(f"{model}: {sum(right)} of {len(right)} test problems, {sum(right) / len(right):.1%}")
        del loaded
        torch.cuda.empty_cache()
    processes.wait_for_everyone()
    return right


def _compared(before: Sequence[bool], after: Sequence[bool]) -> dict[str, object]:
    """Shares of the test problems, and their difference, problem by problem."""
    if not before:
        return {}
    report = {"before": sum(before) / len(before), "after": sum(after) / len(after)}
    if len(before) > 1:
        mean, half = interval([int(now) - int(then) for then, now in zip(before, after, strict=True)])
        report["difference"] = {"mean": mean, "half_width": half, "problems": len(before)}
    return report


def _gain(difference: Mapping[str, float]) -> str:
    mean, half = 100 * difference["mean"], 100 * difference["half_width"]
    return (
        f"after − before: {mean:+.1f} points, 95 % interval [{mean - half:+.1f}, {mean + half:+.1f}] over "
        f"{difference['problems']} problems; one run, so not over seeds"
    )
