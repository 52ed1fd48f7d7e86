"""The cat-or-dog study in full: ``python -m kdlib experiment``."""

from collections.abc import Sequence

from kdlib.cli.study import StudyParser, finish

DESCRIPTION = """\
What is a teacher worth, with error bars, on sketches or on photographs?

  python -m kdlib experiment sketches
  python -m kdlib experiment path/to/photographs --labels 100 --seeds 10
  python -m kdlib experiment path/to/photographs --teacher efficientnet-lite0 --labels 300 --seeds 3

Every finished run is on disk: if the command was interrupted, start it again.
"""

SITUATIONS = ("all", "few", "teachers", "sizes")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the report, write the results."""
    parser = StudyParser("experiment", DESCRIPTION, seeds=10, work="experiment")
    add = parser.add_argument
    add("data", help='"sketches", "pets", "cifar10", or a folder with train/CLASS/*.jpg and test/CLASS/*.jpg')
    add("--teacher", metavar="NAME", help="a teacher that knows ImageNet, beside the one trained from "
        'nothing: "efficientnet-lite0", or any name of torchvision')
    add("--size", type=int, help="side of the pictures in pixels (sketches, cifar10: 32; photographs: 64; "
        "with --teacher: 128)")
    add("--labels", type=int, default=100, help="labels of the student in `few` (%(default)s)")
    add("--epochs", type=float, default=1.0, metavar="FACTOR", help="multiplies the recipe's epochs (1)")
    add("--only", choices=SITUATIONS, help="run this situation and stop: to share the work of one "
        "experiment among processes, which the command without --only then puts together")
    add("--choose", choices=SITUATIONS, help="print what each setting in this situation comes to on the "
        "validation part and stop; the test part stays closed")
    add("--leave-out", nargs="*", default=[], choices=SITUATIONS, help="results without these situations")
    given = vars(parser.parse_args(argv))
    from kdlib.course.studies.cat_or_dog import prepare, report
    from kdlib.course.studies.cat_or_dog_pretrained import prepare_pretrained

    only, choose, out, teacher = (given.pop(name) for name in ("only", "choose", "out", "teacher"))
    study = prepare_pretrained(teacher, **given) if teacher else prepare(**given)
    print(study.data)
    if choose:
        for arm, choices in study.choices(choose).items():
            for c in choices:
                print(f"{arm:26}{c['setting']:9g}{100 * c['accuracy']:9.2f} %{c['nll']:9.3f} nats")
        return 0
    if only:
        study.run_situation(only)
        return 0
    return finish(study.results(), report, out)
