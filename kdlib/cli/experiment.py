"""The cat-or-dog study in full: ``python -m kdlib experiment``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from kdlib.course.studies.cat_or_dog import SITUATIONS, prepare, report
from kdlib.course.studies.cat_or_dog_pretrained import prepare_pretrained
from kdlib.storage import write_json

DESCRIPTION = """\
What is a teacher worth, with error bars, on sketches or on photographs?

  python -m kdlib experiment sketches
  python -m kdlib experiment path/to/photographs --labels 100 --seeds 10
  python -m kdlib experiment path/to/photographs --teacher efficientnet-lite0 --labels 300 --seeds 3

Every finished run is on disk: if the command was interrupted, start it again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the report, write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m kdlib experiment", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("data", help='"sketches", "pets", "cifar10", or a folder with train/CLASS/*.jpg and test/CLASS/*.jpg')
    add("--teacher", metavar="NAME", help="a teacher that knows ImageNet, beside the one trained from "
        'nothing: "efficientnet-lite0", or any name of torchvision')
    add("--size", type=int, help="side of the pictures in pixels (sketches, cifar10: 32; photographs: 64; "
        "with --teacher: 128)")
    add("--seeds", type=int, default=10, help="paired runs of each arm (%(default)s)")
    add("--labels", type=int, default=100, help="labels of the student in `few` (%(default)s)")
    add("--epochs", type=float, default=1.0, metavar="FACTOR", help="multiplies the recipe's epochs (1)")
    add("--work", type=Path, default=Path("data/cache/experiment"),
        help="where teachers and finished runs are kept (%(default)s)")
    add("--only", choices=SITUATIONS, help="run this situation and stop: to share the work of one "
        "experiment among processes, which the command without --only then puts together")
    add("--choose", choices=SITUATIONS, help="print what each setting in this situation comes to on the "
        "validation part and stop; the test part stays closed")
    add("--leave-out", nargs="*", default=[], choices=SITUATIONS, help="results without these situations")
    add("--out", type=Path, help="write the results as JSON here")
    add("--quiet", dest="progress", action="store_false", help="no progress bars")
    given = vars(parser.parse_args(argv))
    only, choose, out, teacher = (given.pop(name) for name in ("only", "choose", "out", "teacher"))
    if given["seeds"] < 2:
        parser.error(f"--seeds {given['seeds']}: an interval needs at least 2")
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
    results = study.results()
    if out:
        write_json(out, results)
    print(report(results))
    return 0
