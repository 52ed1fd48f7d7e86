"""The R1 recipe on a real model in full: ``python -m kdlib real-reasoning``."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from kdlib.course.studies.real_reasoning import SMOLLM2, RealReasoningStudy, report
from kdlib.language.models.smollm2 import fetch_smollm2, origin
from kdlib.storage import fingerprint, write_json

DESCRIPTION = """\
SmolLM2-135M-Instruct answers problems; learns from verified traces, or from the
answers alone, at equal compute; and answers again. What has it forgotten?

  python -m kdlib real-reasoning --out data/results/real_reasoning.json

Takes about two hours on two CPU cores. Every finished student is on disk: if the
command was interrupted, start it again. The tasks of reasoning-gym need the extra
"gym"; without it: --tasks cages --asked
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the report, write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m kdlib real-reasoning", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="paired runs of each arm (%(default)s)")
    add("--tasks", nargs="+", default=SMOLLM2.tasks, help=f"to learn ({' '.join(SMOLLM2.tasks)})")
    add("--asked", nargs="*", default=SMOLLM2.asked, help=f"only asked ({' '.join(SMOLLM2.asked)})")
    add("--model", help="one of your own, as a folder or a repository (default: SmolLM2)")
    add("--work", type=Path, default=Path("data/cache/real_reasoning"),
        help="where finished runs are kept (%(default)s)")
    add("--out", type=Path, help="write the results as JSON here")
    add("--quiet", action="store_true", help="no progress bars")
    given = parser.parse_args(argv)
    if given.seeds < 2:
        parser.error(f"--seeds {given.seeds}: an interval needs at least 2")
    model = given.model or str(fetch_smollm2(progress=not given.quiet))
    recipe = replace(SMOLLM2, tasks=tuple(given.tasks), asked=tuple(given.asked))
    folder = given.work / fingerprint(json.dumps(asdict(recipe)), model)[:12]
    results = RealReasoningStudy(folder, model, recipe, progress=not given.quiet).results(range(given.seeds))
    if not given.model:
        results["model"]["origin"] = origin(model)
    if given.out:
        write_json(given.out, results)
    print(report(results))
    return 0
