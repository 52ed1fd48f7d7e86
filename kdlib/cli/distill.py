"""Distil a language model, by the recipe of R1-Distill and beyond: ``python -m kdlib distill``."""

import argparse
import importlib.resources
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import yaml
from transformers import AutoConfig, HfArgumentParser

from kdlib.language.models.r1_distill import R1_DISTILL, find
from kdlib.language.pipeline import PipelineOptions, run_pipeline
from kdlib.language.plan.plan import plan

__all__ = ["main"]

DESCRIPTION = """\
A teacher answers problems, its right answers are kept, a student learns from
them, and both are tested. Each stage goes on where it was interrupted.

  python -m kdlib distill --teacher Qwen-7B --student Qwen-1.5B \\
      --problems problems.jsonl --test test.jsonl --out run
  python -m kdlib distill --student Qwen-1.5B --traces traces.jsonl --out run
  accelerate launch --config_file fsdp2.yaml -m kdlib distill --config eight_80gb …

--config takes a YAML file of options, or one that comes with kdlib: {configs}.
What the command line says goes first. --plan H100-80GB×8 prints what the run
will need, and does nothing. --print-config NAME prints such a file, as
accelerate's fsdp2 and ddp, to be saved and changed.

Answers by a model too large for one device, or many of them, are better written
by a server such as vLLM: `python -m kdlib traces --url`, then --traces. Training
at the scale of hundreds of GPUs is TRL's and accelerate's: `python -m kdlib
export` writes the traces for them.
"""

_LAUNCH = ("ddp", "fsdp2")  # for accelerate launch


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline; 1 where that failed, with what to fix on stderr; interrupted, 130."""
    parser = _parser()
    names = [known.name for known in fields(PipelineOptions)]
    try:
        given = parser.parse_args(argv)
        if given.print_config:
            print(_read(given.print_config)[1], end="")
            return 0
        if given.config:
            parser.set_defaults(**_options(given.config, names))
            given = parser.parse_args(argv)
        options = PipelineOptions(**{name: getattr(given, name) for name in names})
        if given.plan:
            print(_planned(options, given.plan, given.context, given.texts))
            return 0
        run_pipeline(options)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"kdlib distill: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = HfArgumentParser(
        PipelineOptions, prog="python -m kdlib distill", allow_abbrev=False,
        description=DESCRIPTION.format(configs=", ".join(sorted(set(_supplied()) - set(_LAUNCH)))),
        formatter_class=_Help,
    )  # fmt: skip
    for action in parser._actions:  # shown as the options of other commands are; --max_new_tokens works too
        action.option_strings.sort(key=lambda name: "_" in name)
        if action.type in (int, float, str):
            action.metavar = {int: "N", float: "X", str: "TEXT"}[action.type]
        elif action.type is dict:
            action.type, action.metavar = json.loads, "JSON"
        elif action.nargs == "?":
            action.metavar = "yes|no"
    add = parser.add_argument
    add("--config", metavar="FILE", help="options as YAML: a file, or a name")
    add("--print-config", metavar="NAME", help="print a configuration that comes with kdlib")
    add("--plan", metavar="HARDWARE", help="print what the run will need there, such as H100-80GB×8")
    add("--context", type=int, default=4096, help="--plan: tokens of a text (%(default)s)")
    add("--texts", type=int, default=10_000, help="--plan: texts to learn from (%(default)s)")
    return parser


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written; defaults behind the help of those options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default in (None, "", argparse.SUPPRESS) or "%(default)" in (action.help or ""):
            return action.help or ""
        return super()._get_help_string(action)


# --- configurations ---------------------------------------------------------------------------------------


def _supplied() -> dict[str, Path]:
    folder = importlib.resources.files("kdlib.cli") / "configs"
    return {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}


def _read(name: str) -> tuple[object, str]:
    """Where it is, and what it says."""
    path = Path(name)
    if not path.is_file():
        path = _supplied().get(name)
    if path is None:
        known = ", ".join(sorted(_supplied()))
        raise FileNotFoundError(f"there is no file {name}, and none of that name comes with kdlib: {known}")
    return path, path.read_text(encoding="utf-8")


def _options(name: str, known: Sequence[str]) -> dict[str, object]:
    path, text = _read(name)
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(options, Mapping):
        raise ValueError(f"{path} holds {type(options).__name__}; expected options, one `name: value` a line")
    options = {str(option).replace("-", "_"): value for option, value in options.items()}
    if unknown := sorted(options.keys() - set(known)):
        hint = "; it is for accelerate launch --config_file" if name in _LAUNCH else ""
        raise ValueError(f"{path} holds {', '.join(unknown)}, which are no options of this command{hint}")
    # As on the command line: YAML takes 1e-5 for a text.
    return {
        option: value if value is None or isinstance(value, bool | dict) else str(value)
        for option, value in options.items()
    }


# --- what it will need ------------------------------------------------------------------------------------


def _planned(options: PipelineOptions, hardware: str, context: int, texts: int) -> str:
    if options.steps is not None:
        raise ValueError("--plan takes the length of a run from --texts and --epochs; leave --steps out")
    found = plan(
        None if options.teacher is None else _shape(options.teacher), _shape(options.student), hardware,
        context * texts * options.epochs,
        method="logits" if options.method == "on-policy" else options.method,
        context=context, batch_size=options.batch_size, accumulation=options.accumulation,
        packing=options.packing, precision="no" if options.precision == "no" else "bf16",
        gradient_checkpointing=options.gradient_checkpointing,
        divergence=options.divergence or "forward", top_k=options.top_k,
        teacher_weights=options.teacher_quantise or "bfloat16",
        samples=texts if options.problems else 0, sampling_batch=options.sampling_batch,
    )  # fmt: skip
    note = "\n  - what the student writes at each step is left out" if options.method == "on-policy" else ""
    return f"{found}{note}"


def _shape(model: str) -> object:
    """A checkpoint, or the configuration that a folder holds; a base is taken to be as its checkpoint."""
    if Path(model).expanduser().is_dir():
        return AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    of_base = {checkpoint.base.lower(): checkpoint for checkpoint in R1_DISTILL.values()}
    return of_base.get(model.lower()) or find(model)
