"""The reasoning study in full: ``python -m kdlib reasoning``."""

from collections.abc import Sequence
from dataclasses import replace

from kdlib.cli.study import StudyParser, finish, folder_of

DESCRIPTION = """\
What are a teacher's texts worth, with error bars, on chains of two cages?

  python -m kdlib reasoning --seeds 5 --out data/results/reasoning.json

Processes share the work, one for each core. Every finished piece is on disk: if the
command was interrupted, start it again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the report, write the results."""
    parser = StudyParser("reasoning", DESCRIPTION, seeds=5, work="reasoning")
    add = parser.add_argument
    add("--problems", type=int, default=200, help="that each student learns from (%(default)s)")
    add("--student", choices=("qwen2", "llama"), default="qwen2", help="class of the students (%(default)s)")
    add("--workers", type=int, help="processes (default: one for each core; one on a GPU)")
    given = parser.parse_args(argv)
    from kdlib.course.studies.reasoning import ReasoningStudy, report
    from kdlib.course.studies.reasoning_arms import CHAINS

    recipe = replace(CHAINS, student_family=given.student)
    folder = folder_of(given.work, recipe, given.problems)
    study = ReasoningStudy(folder, recipe, given.problems, progress=given.progress)
    print(study.chains)
    results = study.results(range(given.seeds), workers=given.workers)
    return finish(results, report, given.out)
