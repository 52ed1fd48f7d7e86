"""`python -m kdlib course`: execute the notebooks without a browser."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Execute the notebooks; nothing is written if a cell fails."""
    description = "Execute the notebooks; copies and HTML pages land in build/course."
    parser = argparse.ArgumentParser(prog="python -m kdlib course", description=description)
    add = parser.add_argument
    add("names", nargs="*", help="only these, such as 02_temperature")
    add("--record", action="store_true",
        help="for authors: store outputs in notebooks/ and minutes in data/results/course.json")  # fmt: skip
    add("--root", type=Path, help="the course's folder (default: found from here)")
    options = parser.parse_args(argv)
    from kdlib.course.build.execute import BUILD, RESULTS, find_root, run_course

    root = options.root or find_root()
    run_course(root, options.names, record=options.record)
    print(f"Recorded in {RESULTS.as_posix()}." if options.record else f"Pages: {root / BUILD}")
    return 0
