"""Distil a language model, by the recipe of R1-Distill and beyond: ``python -m kdlib distill``."""

import argparse
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from transformers import AutoConfig, HfArgumentParser
from transformers.hf_argparser import string_to_bool

from kdlib.language.models.r1_distill import R1_DISTILL
from kdlib.language.pipeline import PipelineOptions, run_pipeline
from kdlib.language.plan.plan import plan

DESCRIPTION = """\
A teacher answers problems, its right answers are kept, a student learns from
them, and both are tested. Or the student learns from plain texts, and from what
the teacher says of them. Each stage goes on where it was interrupted.

  python -m kdlib distill --teacher Qwen-7B --student Qwen-1.5B \\
      --problems problems.jsonl --test test.jsonl --out run
  python -m kdlib distill --student Qwen-1.5B --traces traces.jsonl --out run
  python -m kdlib distill --teacher big --student small --texts book.txt \\
      --method logits --out run
  accelerate launch --config_file fsdp2.yaml -m kdlib distill --config eight_80gb …

--config takes a YAML file of options, or one that comes with kdlib: one_80gb or
eight_80gb. What the command line says goes first. --plan H100-80GB×8 prints what
the run will need, and does nothing. --print-config NAME prints such a file, as
accelerate's fsdp2 and ddp, to be saved and changed.

Answers by a model too large for one device, or many of them, are better written
by a server such as vLLM: `python -m kdlib traces --url`, then --traces. Training
at the scale of hundreds of GPUs is TRL's and accelerate's: `python -m kdlib
export` writes the traces for them.
"""

CONFIGS = importlib.resources.files("kdlib.cli") / "configs"
METAVARS = {int: "N", float: "X", str: "TEXT", json.loads: "JSON", string_to_bool: "yes|no"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline, or print a plan or a configuration."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", metavar="FILE", help="options as YAML: a file, or a name")
    files.add_argument("--print-config", metavar="NAME", help="print a configuration of kdlib's")
    named, rest = files.parse_known_args(argv)
    if named.print_config:
        print(_read(named.print_config), end="")
        return 0
    options, given = _parser(files).parse_args_into_dataclasses(
        [*(_arguments(named.config) if named.config else ()), *rest], look_for_args_file=False
    )
    if given.plan:
        print(_planned(options, given.plan, given.plan_texts))
    else:
        run_pipeline(options)
    return 0


def _parser(files: argparse.ArgumentParser) -> HfArgumentParser:
    parser = HfArgumentParser(
        PipelineOptions, prog="python -m kdlib distill", allow_abbrev=False, parents=[files],
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for action in parser._actions:  # shown as the options of other commands are; --max_new_tokens works too
        action.option_strings.sort(key=lambda name: "_" in name)
        if action.type is dict:
            action.type = json.loads
        action.metavar = METAVARS.get(action.type, action.metavar)
        if action.type and action.default is not None:
            action.help += " (%(default)s)"
    add = parser.add_argument
    add("--plan", metavar="HARDWARE", help="print what the run will need there, such as H100-80GB×8")
    add("--plan-texts", type=int, default=10_000, help="--plan: texts to learn from (%(default)s)")
    return parser


def _read(name: str) -> str:
    """A file of options, or one that comes with kdlib."""
    file = next((file for file in (Path(name), CONFIGS / f"{name}.yaml") if file.is_file()), None)
    if file is None:
        known = ", ".join(sorted(file.name.removesuffix(".yaml") for file in CONFIGS.iterdir()))
        raise FileNotFoundError(f"there is no file {name}, and none of that name comes with kdlib: {known}")
    return file.read_text(encoding="utf-8")


def _arguments(config: str) -> list[str]:
    """The options of a file, as the command line would have them."""
    try:
        options = yaml.safe_load(_read(config))
    except yaml.YAMLError as error:
        raise ValueError(f"{config} is no YAML: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{config} holds {options!r}; expected options, one `name: value` a line")
    if "compute_environment" in options:
        raise ValueError(f"{config} holds no options of kdlib: it is for accelerate launch --config_file")
    return [
        f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"
        for name, value in options.items() if value is not None
    ]  # fmt: skip


def _planned(options: PipelineOptions, hardware: str, texts: int) -> str:
    if options.steps is not None:
        raise ValueError("--plan takes the length of a run from --plan-texts and --epochs; leave --steps out")
    found = plan(
        None if options.teacher is None else _shape(options.teacher), _shape(options.student), hardware,
        options.context * texts * options.epochs,
        context=options.context, batch_size=options.batch_size, accumulation=options.accumulation,
        packing=options.packing, gradient_checkpointing=options.gradient_checkpointing,
        top_k=options.top_k, sampling_batch=options.sampling_batch,
        method="logits" if options.method == "on-policy" else options.method,
        precision="no" if options.precision == "no" else "bf16", divergence=options.divergence or "forward",
        teacher_weights=options.teacher_quantise or "bfloat16", samples=texts if options.problems else 0,
    )  # fmt: skip
    note = "\n  - what the student writes at each step is left out" if options.method == "on-policy" else ""
    return f"{found}{note}"


def _shape(model: str) -> object:
    """A checkpoint, or the configuration that a folder holds; a base is taken to be as its checkpoint."""
    if Path(model).expanduser().is_dir():
        return AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    of_base = {checkpoint.base.lower(): checkpoint for checkpoint in R1_DISTILL.values()}
    return of_base.get(model.lower(), model)
