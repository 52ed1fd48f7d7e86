"""Distil a language model, by the recipe of R1-Distill and beyond: ``python -m kdlib distill``."""

import argparse
import importlib.resources
import json
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

from kdlib.cli.arguments import json_object
from kdlib.language.options import PipelineOptions

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
METAVARS = {int: "N", float: "X", str: "TEXT", dict: "JSON"}
# What a plan says where the teacher, which each device holds whole then, is too large.
INSTEAD = {
    "sampling": """\
Each device holds the whole teacher while it writes, and this one is too large. Let a server
write the answers: `python -m kdlib traces --url`, then --traces in place of --problems.""",
    "caching": """\
Each device holds the whole teacher while it fills the cache, and this one is too large. With
--method logits FSDP2 spreads it over several devices.""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline, or print a plan or a configuration."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", metavar="FILE", help="options as YAML: a file, or a name")
    files.add_argument("--print-config", metavar="NAME", help="print a configuration of kdlib's")
    named, rest = files.parse_known_args(argv)
    if named.print_config:
        print(_read(named.print_config), end="")
        return 0
    configured = _arguments(named.config) if named.config else []
    # --max_new_tokens is --max-new-tokens
    given = [re.sub("^--[^=]*", lambda m: m[0].replace("_", "-"), word) for word in [*configured, *rest]]
    chosen = vars(_parser(files).parse_args(given))
    hardware, texts = chosen.pop("plan"), chosen.pop("plan_texts")
    options = PipelineOptions(**{field.name: chosen[field.name] for field in fields(PipelineOptions)})
    if hardware:
        print(_planned(options, hardware, texts))
        return 0
    from kdlib.language.pipeline import run_pipeline

    run_pipeline(options)
    return 0


def _parser(files: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kdlib distill", allow_abbrev=False, parents=[files],
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add, hints = parser.add_argument, get_type_hints(PipelineOptions)
    for field in fields(PipelineOptions):
        name, text, default = "--" + field.name.replace("_", "-"), field.metadata["help"], field.default
        kind = hints[field.name]
        if NoneType in get_args(kind):
            kind = get_args(kind)[0]  # str of str | None
        if default not in (None, MISSING) and kind is not bool and not get_args(kind):
            text += " (%(default)s)"
        told = {"default": default, "help": text}
        if default is MISSING:
            told = {"required": True, "help": text}
        if get_origin(kind) is Literal:
            add(name, choices=get_args(kind), **told)
        elif get_origin(kind) is list:
            add(name, nargs="+", metavar="FILE", **told)
        elif kind is bool:
            told["help"] += f" (yes; no is --no{name[1:]})" if default else " (no)"
            add(name, nargs="?", const=True, type=_yes_or_no, metavar="yes|no", **told)
            add(f"--no{name[1:]}", dest=field.name, action="store_false", help=argparse.SUPPRESS)
        else:
            add(name, type=json_object if kind is dict else kind, metavar=METAVARS[kind], **told)
    add("--plan", metavar="HARDWARE", help="print what the run will need there, such as H100-80GB×8")
    text = "--plan: texts to learn from (%(default)s)"
    add("--plan-texts", type=int, metavar="N", default=10_000, help=text)
    return parser


def _yes_or_no(text: str) -> bool:
    answers = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if text.lower() not in answers:
        raise argparse.ArgumentTypeError(f"expected yes or no, got {text!r}")
    return answers[text.lower()]


def _read(name: str) -> str:
    """A file of options, or one that comes with kdlib."""
    file = next((file for file in (Path(name), CONFIGS / f"{name}.yaml") if file.is_file()), None)
    if file is None:
        known = ", ".join(sorted(file.name.removesuffix(".yaml") for file in CONFIGS.iterdir()))
        raise FileNotFoundError(f"there is no file {name}, and none of that name comes with kdlib: {known}")
    return file.read_text(encoding="utf-8")


def _arguments(config: str) -> list[str]:
    """The options of a file, as the command line would have them."""
    import yaml

    try:
        options = yaml.safe_load(_read(config))
    except yaml.YAMLError as error:
        raise ValueError(f"{config} is no YAML: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{config} holds {options!r}; expected options, one `name: value` a line")
    if "compute_environment" in options:
        raise ValueError(f"{config} holds no options of kdlib: it is for accelerate launch --config_file")
    known = {field.name for field in fields(PipelineOptions)}
    if unknown := [name for name in options if str(name).replace("-", "_") not in known]:
        raise ValueError(f"{config} holds {unknown[0]!r}, which is no option; see kdlib distill --help")
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, list):
            words += [f"--{name}", *map(_word, value)]
        elif value is not None:
            words.append(f"--{name}={_word(value)}")
    return words


def _word(value: object) -> str:
    if isinstance(value, bool):  # so YAML reads yes and no, which may be meant as words: precision: no
        return "yes" if value else "no"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _planned(options: PipelineOptions, hardware: str, texts: int) -> str:
    from kdlib.language.plan.hardware import find_hardware
    from kdlib.language.plan.plan import plan

    if options.steps is not None:
        raise ValueError("--plan takes the length of a run from --plan-texts and --epochs; leave --steps out")
    if options.lora is not None:
        raise ValueError("--plan counts a student of which every weight is trained; leave --lora out")
    machine, on_policy = find_hardware(hardware), options.method == "on-policy"
    read = {"prompt_tokens": options.prompt_tokens} if options.texts else {}
    found = plan(
        None if options.teacher is None else _shape(options.teacher), _shape(options.student), machine,
        options.context * texts * options.epochs,
        context=options.context, batch_size=options.batch_size, accumulation=options.accumulation,
        packing=options.packing, gradient_checkpointing=options.gradient_checkpointing,
        top_k=options.top_k, sampling_batch=options.sampling_batch,
        method="logits" if on_policy else options.method,
        precision="no" if options.precision == "no" else "bf16",
        divergence=options.divergence or ("reverse" if on_policy else "forward"),
        teacher_weights=options.teacher_quantise or "bfloat16",
        samples=texts if options.problems and not on_policy else 0, whole_teacher=True,
        # run_pipeline refuses FSDP2 with packed weights.
        sharding="DDP" if options.teacher_quantise and machine.devices > 1 else None, **read,
    )  # fmt: skip
    note = "\n  - what the student writes at each step is left out" if on_policy else ""
    hints = [
        INSTEAD[phase.name] for phase in found.phases[:-1]  # the last is training
        if phase.total > found.limit and phase.memory["teacher weights"] > found.limit / 2
    ]  # fmt: skip
    return "\n\n".join([f"{found}{note}", *hints])


def _shape(model: str) -> object:
    """A checkpoint, or the configuration that a folder holds; a base is taken to be as its checkpoint."""
    from transformers import AutoConfig

    from kdlib.language.models.r1_distill import R1_DISTILL

    if Path(model).expanduser().is_dir():
        return AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    of_base = {checkpoint.base.lower(): checkpoint for checkpoint in R1_DISTILL.values()}
    return of_base.get(model.lower(), model)
