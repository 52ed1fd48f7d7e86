"""Collect a teacher's answers to problems of a file: ``python -m kdlib traces``.

The teacher is a server with an OpenAI-compatible address, or a model that runs here.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence

from kdlib.language.models.load import load_checkpoint
from kdlib.language.problems import load_problems
from kdlib.language.traces.collect import collect_traces
from kdlib.language.traces.remote import BudgetReached, TracesMissing, collect_remote_traces
from kdlib.language.traces.select import trace_report

__all__ = ["main"]

DESCRIPTION = """\
Let a teacher answer each problem several times, verify what it writes, and keep
it in a file of JSON lines. After an interruption start the same command again: only
what is missing is asked for.

  python -m kdlib traces --problems problems.jsonl --out traces.jsonl \\
      --url https://api.deepseek.com --model deepseek-reasoner \\
      --key-variable DEEPSEEK_API_KEY --prices 0.55 2.19 --cost-budget 5
  python -m kdlib traces --problems problems.jsonl --out traces.jsonl \\
      --url http://localhost:8000/v1 --model deepseek-ai/DeepSeek-R1-Distill-Qwen-7B
  python -m kdlib traces --problems problems.jsonl --out traces.jsonl --teacher Qwen-1.5B

Problems are JSON lines with statement (or question), answer and, if there is one,
key; GSM8K's files can be read as they are.
"""


# What is not given stays out of the options: the functions have the defaults.
LOCAL = {
    "batch-size": {"type": int, "help": "traces written at once (256)"},
    "dtype": {"help": "of the weights (auto)"},
    "device": {"help": "where it runs (the accelerator, if there is one)"},
    "quantise": {"help": "how the weights are packed (not at all)"},
}
REMOTE = {
    "concurrency": {"type": int, "help": "requests at once (8)"},
    "key-variable": {"metavar": "NAME", "help": "environment variable with the key (none)"},
    "token-budget": {"type": int, "help": "output tokens to spend at most"},
    "cost-budget": {"type": float, "help": "dollars to spend at most; needs --prices"},
    "prices": {
        "type": float, "nargs": 2, "metavar": ("INPUT", "OUTPUT"), "help": "dollars per million tokens",
    },
    "retries": {"type": int, "help": "of a request that failed (8)"},
    "timeout": {"type": float, "help": "seconds without an answer until a request has failed (1800)"},
    "extra-body": {"type": json.loads, "metavar": "JSON", "help": "more for each request"},
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Collect, and print a report; 1 where traces are missing, with the fix on stderr; interrupted, 130."""
    parser = _parser()
    options = vars(parser.parse_args(argv))
    problems, path, url, model, teacher = (
        options.pop(name) for name in ("problems", "out", "url", "model", "teacher")
    )
    if (url is None) == (teacher is None) or (model is None) != (url is None):
        parser.error("expected --url with --model, or --teacher")
    for name in LOCAL if teacher is None else REMOTE:
        if name.replace("-", "_") in options:
            parser.error(f"--{name} goes with {'--teacher' if teacher is None else '--url'} only")
    try:
        problems = load_problems(problems)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", BudgetReached)
            if teacher is None:
                traces = collect_remote_traces(url, model, problems, path, progress=True, **options)
            else:
                names = options.keys() & {"dtype", "device", "quantise"}
                loading = {name: options.pop(name) for name in names}
                loaded = load_checkpoint(teacher, **loading)
                traces = collect_traces(*loaded, problems, path, progress=True, **options)
        messages = [warning.message for warning in warned]
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    except TracesMissing as error:
        traces, messages = error.traces, [error]
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for message in messages:
        print(message, file=sys.stderr)
    if traces:
        print(trace_report(traces))
    return 0 if len(traces) == len(problems) * options["samples"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kdlib traces", description=DESCRIPTION, argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--problems", required=True, help="file of problems")
    add("--out", required=True, help="file of traces; continued where it is there")
    add("--url", default=None, help="address of a server, up to /v1")
    add("--model", default=None, help="name of the model there")
    add("--teacher", default=None, help="model that runs here: one of the six, or a folder")
    add("--samples", type=int, default=4, help="of each problem (%(default)s)")
    add("--temperature", type=float, help="of sampling (0.6)")
    add("--top-p", type=float, help="share of the most probable tokens (0.95)")
    add("--max-new-tokens", type=int, help="where a trace is cut off (1024; with --url 32768)")
    add("--seed", type=int, help="of the samples (0)")
    add("--no-seed", dest="seed", action="store_const", const=None, help="for servers that refuse a seed")
    for title, these in (("with --teacher", LOCAL), ("with --url", REMOTE)):
        group = parser.add_argument_group(title, argument_default=argparse.SUPPRESS)
        for name, settings in these.items():
            group.add_argument(f"--{name}", **settings)
    return parser
