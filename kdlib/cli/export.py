"""Traces as data that TRL's SFTTrainer reads: ``python -m kdlib export``."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Write JSON lines, and print how they are read."""
    description = "Write traces as data that TRL's SFTTrainer reads."
    parser = argparse.ArgumentParser(prog="python -m kdlib export", description=description)
    add = parser.add_argument
    add("traces", type=Path, help="a file that collect_traces or `kdlib traces` has written")
    add("--tokenizer", type=Path, required=True, help="the student's folder, or its tokenizer's")
    add("--out", type=Path, required=True, help="where the JSON lines go")
    add("--form", choices=("tokens", "text"), default="tokens",
        help="tokens: input_ids and labels, exact in every case; text: prompt and completion (%(default)s)")
    add("--all", action="store_true", help="export wrong, cut-off and repeated traces too")
    add("--shortest", action="store_true", help="of each problem the shortest trace alone")
    given = parser.parse_args(argv)
    if not (given.tokenizer / "tokenizer.json").is_file():
        raise ValueError(f"--tokenizer {given.tokenizer} is no folder with a tokenizer.json")
    from transformers import PreTrainedTokenizerFast

    from kdlib.language.distill.export import export_for_trl
    from kdlib.language.distill.thought import with_thought
    from kdlib.language.traces.file import load_traces
    from kdlib.language.traces.select import filter_traces

    # AutoTokenizer would take Qwen2's own in a folder with a Qwen2 model, whatever is saved there.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(given.tokenizer, local_files_only=True)
    found = load_traces(given.traces)
    kept = filter_traces(found, correct=not given.all, repeats=given.all, shortest=given.shortest)
    if not kept:
        raise ValueError(f"none of the {len(found):,} traces in {given.traces} is correct; see --all")
    learned = [with_thought(trace, tokenizer) for trace in kept]  # as `kdlib distill` learns from them
    exported = export_for_trl(learned, tokenizer, given.out, form=given.form)
    print(f"{len(kept):,} of {len(found):,} traces\n{exported}")
    return 0
