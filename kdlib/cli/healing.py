"""The healing study in full: ``python -m kdlib healing``."""

from collections.abc import Sequence

from kdlib.cli.study import StudyParser, finish, folder_of

DESCRIPTION = """\
A third or half of the layers of SmolLM2-135M-Instruct are taken out. What heals
the rest: the text, or what the teacher says of it?

  python -m kdlib healing --out data/results/healing.json

Takes hours on a CPU. Every finished piece is on disk: if the command was
interrupted, start it again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the report, write the results."""
    parser = StudyParser("healing", DESCRIPTION, seeds=3, work="healing")
    own = "a Llama or Qwen of your own, as a folder or a repository (default: SmolLM2)"
    parser.add_argument("--model", help=own)
    given = parser.parse_args(argv)
    from kdlib.course.studies.healing import SMOLLM2, HealingStudy, report
    from kdlib.language.models.smollm2 import fetch_smollm2, origin

    model = given.model or str(fetch_smollm2(progress=given.progress))
    folder = folder_of(given.work, SMOLLM2, model)
    study = HealingStudy(folder, model, SMOLLM2, progress=given.progress)
    results = study.results(range(given.seeds))
    if not given.model:
        results["model"]["origin"] = origin(model)
    return finish(results, report, given.out)
