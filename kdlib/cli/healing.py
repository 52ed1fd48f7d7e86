"""The healing study in full: ``python -m kdlib healing``."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kdlib.course.studies.healing import SMOLLM2, HealingStudy, report
from kdlib.language.models.smollm2 import fetch_smollm2, origin
from kdlib.storage import fingerprint, write_json

DESCRIPTION = """\
A third or half of the layers of SmolLM2-135M-Instruct are taken out. What heals
the rest: the text, or what the teacher says of it?

  python -m kdlib healing --out data/results/healing.json

Takes hours on a CPU. Every finished piece is on disk: if the command was
interrupted, start it again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the report, write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m kdlib healing", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="paired runs of each arm (%(default)s)")
    add("--model", help="a Llama or Qwen of your own, as a folder or a repository (default: SmolLM2)")
    add("--work", type=Path, default=Path("data/cache/healing"), help="where runs are kept (%(default)s)")
    add("--out", type=Path, help="write the results as JSON here")
    add("--quiet", action="store_true", help="no progress bars")
    given = parser.parse_args(argv)
    if given.seeds < 2:
        parser.error(f"--seeds {given.seeds}: an interval needs at least 2")
    model = given.model or str(fetch_smollm2(progress=not given.quiet))
    folder = given.work / fingerprint(json.dumps(asdict(SMOLLM2)), model)[:12]
    study = HealingStudy(folder, model, SMOLLM2, progress=not given.quiet)
    results = study.results(range(given.seeds))
    if not given.model:
        results["model"]["origin"] = origin(model)
    if given.out:
        write_json(given.out, results)
    print(report(results))
    return 0
