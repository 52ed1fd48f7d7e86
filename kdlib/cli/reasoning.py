"""The reasoning study in full: ``python -m kdlib reasoning``."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from kdlib.course.studies.reasoning import ReasoningStudy, report
from kdlib.course.studies.reasoning_arms import CHAINS
from kdlib.storage import fingerprint, write_json

DESCRIPTION = """\
What are a teacher's texts worth, with error bars, on chains of two cages?

  python -m kdlib reasoning --seeds 5 --out data/results/reasoning.json

Processes share the work, one for each core. Every finished piece is on disk: if the
command was interrupted, start it again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the report, write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m kdlib reasoning", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seeds", type=int, default=5, help="paired runs of each arm (%(default)s)")
    add("--problems", type=int, default=200, help="that each student learns from (%(default)s)")
    add("--student", choices=("qwen2", "llama"), default="qwen2", help="class of the students (%(default)s)")
    add("--workers", type=int, help="processes (default: one for each core; one on a GPU)")
    add("--work", type=Path, default=Path("data/cache/reasoning"),
        help="where models, traces and finished runs are kept (%(default)s)")
    add("--out", type=Path, help="write the results as JSON here")
    add("--quiet", action="store_true", help="no progress bars")
    given = parser.parse_args(argv)
    if given.seeds < 2:
        parser.error(f"--seeds {given.seeds}: an interval needs at least 2")
    recipe = replace(CHAINS, student_family=given.student)
    folder = given.work / fingerprint(json.dumps(asdict(recipe)), given.problems)[:12]
    study = ReasoningStudy(folder, recipe, given.problems, progress=not given.quiet)
    print(study.chains)
    results = study.results(range(given.seeds), workers=given.workers)
    if given.out:
        write_json(given.out, results)
    print(report(results))
    return 0
