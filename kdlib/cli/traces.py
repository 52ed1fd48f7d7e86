"""Collect a teacher's answers to problems of a file: ``python -m kdlib traces``.

The teacher is a server with an OpenAI-compatible address, or a model that runs here.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence

from kdlib.cli.arguments import json_object

DESCRIPTION = """\
Let a teacher answer each problem several times, verify what it writes, and keep it in a file of
JSON lines. After an interruption start the same command again: only what is missing is asked for.

  python -m kdlib traces --problems problems.jsonl --out traces.jsonl --teacher Qwen-1.5B
  python -m kdlib traces --problems problems.jsonl --out traces.jsonl \\
      --url http://localhost:8000/v1 --model deepseek-ai/DeepSeek-R1-Distill-Qwen-7B

With --url https://api.deepseek.com also --key-variable DEEPSEEK_API_KEY, --prices and --cost-budget.
Problems have statement (or question), answer and, if there is one, key; GSM8K's files are read as they are.
"""

# Option: what it goes with, how it is read, help. What is not given is left to the functions' defaults.
OPTIONS = {
    "samples": ("", int, "of each problem (4)"),
    "temperature": ("", float, "of sampling (0.6)"),
    "top-p": ("", float, "share of the most probable tokens (0.95)"),
    "max-new-tokens": ("", int, "where a trace is cut off (1024; with --url 32768)"),
    "seed": ("", int, "of the samples (0)"),
    "batch-size": ("teacher", int, "traces written at once (256)"),
    "dtype": ("teacher", str, "of the weights (auto)"),
    "device": ("teacher", str, "where it runs (the accelerator, if there is one)"),
    "quantise": ("teacher", str, "how the weights are packed (not at all)"),
    "concurrency": ("url", int, "requests at once (8)"),
    "key-variable": ("url", str, "name of the environment variable with the key (none)"),
    "token-budget": ("url", int, "output tokens to spend at most"),
    "cost-budget": ("url", float, "dollars to spend at most; needs --prices"),
    "prices": ("url", float, "dollars per million input tokens, and output tokens"),
    "retries": ("url", int, "of a request that failed (8)"),
    "timeout": ("url", float, "seconds without an answer until a request has failed (1800)"),
    "extra-body": ("url", json_object, "more for each request, as JSON"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Collect, and print a report; 1 where traces are missing, with the fix on stderr."""
    parser = _parser()
    options = vars(parser.parse_args(argv))
    named = [options.pop(name, None) for name in ("problems", "out", "url", "model", "teacher")]
    problems, path, url, model, teacher = named
    if (url is None) == (teacher is None) or (model is None) != (url is None):
        parser.error("expected --url with --model, or --teacher")
    for name, (side, *_) in OPTIONS.items():
        if side == ("url" if url is None else "teacher") and name.replace("-", "_") in options:
            parser.error(f"--{name} goes with --{side} only")
    from kdlib.language.models.load import load_checkpoint
    from kdlib.language.problems import load_problems
    from kdlib.language.traces.collect import collect_traces, load_traces
    from kdlib.language.traces.remote import BudgetReached, TracesMissing, collect_remote_traces
    from kdlib.language.traces.select import trace_report

    status = 0
    try:
        problems = load_problems(problems)
        if teacher is None:
            with warnings.catch_warnings():
                warnings.simplefilter("error", BudgetReached)
                traces = collect_remote_traces(url, model, problems, path, progress=True, **options)
        else:
            loading = {name: options.pop(name) for name in ("dtype", "device", "quantise") if name in options}
            loaded = load_checkpoint(teacher, **loading)
            traces = collect_traces(*loaded, problems, path, progress=True, **options)
    except (BudgetReached, TracesMissing) as error:
        print(error, file=sys.stderr)
        traces, status = load_traces(path), 1
    if traces:
        print(trace_report(traces))
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kdlib traces", description=DESCRIPTION, argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--problems", required=True, help="file of problems")
    parser.add_argument("--out", required=True, help="file of traces; continued where it is there")
    parser.add_argument("--url", help="address of a server, up to /v1")
    parser.add_argument("--model", help="name of the model there")
    parser.add_argument("--teacher", help="model that runs here: one of the six, or a folder")
    for name, (side, kind, text) in OPTIONS.items():
        text += f"; with --{side}" if side else ""
        parser.add_argument(f"--{name}", type=kind, nargs=2 if name == "prices" else None, help=text)
    parser.add_argument("--no-seed", dest="seed", action="store_const", const=None, help="send no seed")
    return parser
