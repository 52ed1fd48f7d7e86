"""The study of a teacher with other tokens: ``python -m kdlib other-tokenizer``."""

from collections.abc import Sequence

from kdlib.cli.study import StudyParser, finish, folder_of

DESCRIPTION = """\
SmolLM2 teaches a student whose tokens are others. Which loss helps: that of
the text alone, ULD, or the aligned one?

  python -m kdlib other-tokenizer --out data/results/other_tokenizer.json

Takes a quarter of an hour on a CPU. Every finished piece is on disk: if the
command was interrupted, start it again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the report, write the results."""
    parser = StudyParser("other-tokenizer", DESCRIPTION, seeds=5, work="other_tokenizer")
    given = parser.parse_args(argv)
    from kdlib.course.studies.other_tokenizer import SMALL, OtherTokenizerStudy, report
    from kdlib.language.models.smollm2 import fetch_smollm2, origin

    model = str(fetch_smollm2(progress=given.progress))
    study = OtherTokenizerStudy(folder_of(given.work, SMALL, model), model, SMALL, progress=given.progress)
    results = study.results(range(given.seeds))
    results["model"]["origin"] = origin(model)
    return finish(results, report, given.out)
