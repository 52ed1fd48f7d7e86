"""The R1 recipe on a real model in full: ``python -m kdlib real-reasoning``."""

from collections.abc import Sequence
from dataclasses import replace

from kdlib.cli.study import StudyParser, finish, folder_of

DESCRIPTION = """\
SmolLM2-135M-Instruct answers problems; learns from verified traces, or from the
answers alone, at equal compute; and answers again. What has it forgotten?

  python -m kdlib real-reasoning --out data/results/real_reasoning.json

Takes about two hours on two CPU cores. Every finished student is on disk: if the
command was interrupted, start it again. The tasks of reasoning-gym need the extra
"gym"; without it: --tasks cages --asked
"""

TASKS, ASKED = ("cages", "leg_counting"), ("chain_sum", "simple_equations")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the report, write the results."""
    parser = StudyParser("real-reasoning", DESCRIPTION, seeds=3, work="real_reasoning")
    add = parser.add_argument
    add("--tasks", nargs="+", help=f"to learn ({' '.join(TASKS)})")
    add("--asked", nargs="*", help=f"only asked ({' '.join(ASKED)})")
    add("--model", help="one of your own, as a folder or a repository (default: SmolLM2)")
    given = parser.parse_args(argv)
    from kdlib.course.studies.real_reasoning import SMOLLM2, RealReasoningStudy, report
    from kdlib.language.models.smollm2 import fetch_smollm2, origin

    model = given.model or str(fetch_smollm2(progress=given.progress))
    chosen = {name: getattr(given, name) for name in ("tasks", "asked")}
    recipe = replace(SMOLLM2, **{name: tuple(tasks) for name, tasks in chosen.items() if tasks is not None})
    folder = folder_of(given.work, recipe, model)
    results = RealReasoningStudy(folder, model, recipe, progress=given.progress).results(range(given.seeds))
    if not given.model:
        results["model"]["origin"] = origin(model)
    return finish(results, report, given.out)
