"""Traces: what a model writes when it is asked, sampled, verified and kept.

    traces = collect_traces(teacher, tokenizer, problems, "traces.jsonl")
    shortest = filter_traces(traces, shortest=True)      # kdlib.language.traces.select

The sampling step of DeepSeek-R1's distillation (arXiv 2501.12948, section 2.3.3): several samples a problem,
of which those with a right answer are kept.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlib.arguments import check_counts, check_whole, is_number
from kdlib.language.answers.final_answer import has_format, verify_answer
from kdlib.language.models.chat import date_in_template
from kdlib.language.problems import Problem, check_problems
from kdlib.language.traces.file import Asked, Trace, TraceFile, load_traces, open_traces
from kdlib.language.traces.generate import Completion, Writer
from kdlib.runtime import eval_mode, substream
from kdlib.storage import fingerprint, identity

__all__ = ["Trace", "collect_traces", "load_traces"]

Verifier = Callable[[str, str], bool]

# A tokenizer's own signs for blanks, line ends and bytes, as in "6Ġ*Ġ7". Ġ and Ċ are also capital letters, of
# Maltese, where a word begins.
_MARKERS = re.compile(r"(?<=[^\s'’(-])[ĠĊ]|[ĠĊ](?![a-zċġħż])|▁(?=\w)|<0x[0-9A-F]{2}>")


def collect_traces(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem],
    path: str | os.PathLike | None = None, *,
    samples: int = 4, temperature: float = 0.6, top_p: float = 0.95, max_new_tokens: int = 1024,
    batch_size: int = 256, seed: int = 0, verify: Verifier = verify_answer, progress: bool = False,
) -> list[Trace]:  # fmt: skip
    """Let a model answer each problem several times, and verify what it writes.

    The random numbers of a trace follow from seed, problem and sample alone; not from `batch_size`, the other
    problems, or where a run was interrupted. (Logits differ by rounding between batches; now and then, more
    often in bfloat16, that makes another token.)

    With a path the traces go to a file of JSON lines, batch by batch. A run that was killed at any moment
    continues when it is called again, as does one with more problems or more samples: only what is missing is
    sampled. The file is bound to all that shapes a text: the model's weights, which are read for it (a 7B
    model's take tens of seconds), tokenizer, chat template with the date that it may write, the settings, and
    the name of `verify`.

    Args:
        model: any causal language model of transformers; runs in eval mode on its own device. Its own
            generation settings do not count.
        tokenizer: its chat template makes the prompt: one user turn, `add_generation_prompt=True`.
        problems: with different keys.
        path: the file; None keeps the traces in memory only.
        samples: of each problem.
        temperature, top_p: DeepSeek's recommendation for R1 by default. Temperature 0 takes the most probable
            token, and then wants `samples=1`.
        max_new_tokens: where a trace is cut off.
        batch_size: traces written at once, which needs memory; a kill loses the batch in progress. A model of
            0.3M parameters wrote 7,000 tokens a second on a CPU core with 64, 11,000 with 256.
        seed: of the random numbers.
        verify: gets the text and the reference answer of each finished trace. It is known by its name: after
            changing what it does, choose another path.
        progress: show a bar.

    Returns:
        The traces of these problems: all samples of the first, then of the second, and so on.

    Raises:
        ValueError: an argument out of its range; equal keys; a problem that the file holds with another
            statement or answer; a prompt that leaves too few of the model's positions. `ForeignFile` and
            `DamagedFile` are such; see `open_traces`.
        TimeoutError: another process is collecting into the file.
        RuntimeError: `verify` failed; it says on which trace. The traces before it are kept.
        FloatingPointError: the model's logits are not finite.
    """
    wanted = wanted_traces(
        problems, samples, temperature, top_p, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    check_whole("seed", seed)
    check_references(problems, verify)
    writer = Writer(model, tokenizer, temperature, top_p, max_new_tokens)
    prompts = {problem: writer.prompt(problem.statement) for problem in problems}
    settings = {} if path is None else _settings(writer, seed, verify)
    with open_traces(path, settings) as file, eval_mode(model):
        # Like lengths together leave little padding. The longest first: if memory runs out, then at once.
        missing = sorted(missing_traces(wanted, file), key=lambda asked: -len(prompts[asked[0]]))
        done = len(wanted) - len(missing)
        with tqdm(desc="traces", total=len(wanted), initial=done, disable=not progress) as bar:
            for start in range(0, len(missing), batch_size):
                batch = missing[start : start + batch_size]
                seeds = [substream(seed, f"trace {problem.key}", sample) for problem, sample in batch]
                keep(file, batch, writer.write([prompts[problem] for problem, _ in batch], seeds), verify)
                bar.update(len(batch))
        return [file.traces[asked] for asked in wanted]


def keep(
    file: TraceFile, asked: Iterable[Asked], completions: Iterable[Completion], verify: Verifier, *,
    before: str = "", notes: Sequence[dict] = (),
) -> None:  # fmt: skip
    """Verify completions, and put them into the file in one piece with notes; those before one that fails."""
    traces = []
    try:
        for (problem, sample), completion in zip(asked, completions, strict=True):
            traces.append(judged_trace(problem, sample, completion, verify, before=before))
    finally:
        file.append(traces, notes)


def judged_trace(
    problem: Problem, sample: int, completion: Completion, verify: Verifier, *, before: str = ""
) -> Trace:
    """The trace of a completion, verified together with what stood `before` it.

    Not correct is what was cut off, or holds the byte markers of a tokenizer.

    Raises:
        RuntimeError: `verify` failed.
    """
    try:
        # What was cut off is no answer, even if it reads like one: 1 of 12. Nor is what was not decoded: a
        # student would learn the markers.
        whole = completion.finished and not _MARKERS.search(completion.text)
        correct = whole and bool(verify(before + completion.text, problem.answer))
    except Exception as error:
        raise RuntimeError(
            f"verify failed on sample {sample} of problem {problem.key!r}: {type(error).__name__}: {error}; "
            f"the text ends with {completion.text[-80:]!r}"
        ) from error
    return Trace(
        problem.key, problem.statement, problem.answer, sample, completion.text, completion.tokens,
        completion.finished, correct, has_format(completion.text),
    )  # fmt: skip


def _settings(writer: Writer, seed: int, verify: Verifier) -> dict[str, object]:
    tokenizer, greedy = writer.tokenizer, writer.temperature == 0
    return {
        "model": fingerprint(writer.model),
        "tokenizer": fingerprint(tokenizer.get_vocab(), tokenizer.chat_template, tokenizer.eos_token_id),
        "temperature": float(writer.temperature),
        # The most probable token needs neither.
        "top_p": None if greedy else float(writer.top_p),
        "seed": None if greedy else seed,
        "max_new_tokens": writer.max_new_tokens,
        "verify": identity(verify),
        **date_in_template(tokenizer),
    }


def wanted_traces(
    problems: Sequence[Problem], samples: int, temperature: float, top_p: float, **counts: int
) -> list[Asked]:
    """All samples of the first problem, then of the second, and so on.

    Raises:
        ValueError: what are no problems, settings out of their range, counts below 1, or equal keys.
    """
    check_problems(problems)
    check_counts(samples=samples, **counts)
    if not is_number(temperature) or not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 (0: the likeliest token); got {temperature!r}")
    if not is_number(top_p) or not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1 (1: all tokens); got {top_p!r}")
    if temperature == 0 and samples > 1:
        raise ValueError(f"samples is {samples}, but temperature=0 writes the same each time; pass samples=1")
    for key, count in Counter(problem.key for problem in problems).most_common(1):
        if count > 1:
            raise ValueError(f"problems must have different keys; {key!r} occurs {count} times")
    return [(problem, sample) for problem in problems for sample in range(samples)]


def check_references(problems: Sequence[Problem], verify: Verifier) -> None:
    """Refuse answers that `verify_answer` cannot compare with, before a model has written for them."""
    if not callable(verify):
        raise ValueError(f"verify is {verify!r:.60}; expected a function of a text and the reference answer")
    for number, problem in enumerate(problems if verify is verify_answer else ()):
        try:
            verify("", problem.answer)
        except ValueError as error:
            raise ValueError(f"answer of problems[{number}] cannot be compared with: {error}") from None


def missing_traces(wanted: Sequence[Asked], file: TraceFile) -> list[Asked]:
    """Those that the file does not hold yet.

    Raises:
        ValueError: the file holds another problem under the key of one.
    """
    held = {problem.key: problem for problem, _ in file.traces}
    for problem, _ in wanted:
        if (other := held.get(problem.key, problem)) != problem:
            raise ValueError(
                f"problem {problem.key!r} has another statement or answer than in the file: {problem} now, "
                f"{other} there; give it another key, or choose another path"
            )
    return [asked for asked in wanted if asked not in file.traces]
