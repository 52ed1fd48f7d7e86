"""`python -m kdlib check`: is this machine ready for the course?"""

import argparse
from collections.abc import Sequence

from kdlib.course.check import report, run_checks


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; the exit status is 0 only if every line is ok."""
    description = "Is this machine ready for the course? Every line says ok, or FIX and how."
    argparse.ArgumentParser(prog="python -m kdlib check", description=description).parse_args(argv)
    return 0 if report(run_checks()) else 1
