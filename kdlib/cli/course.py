"""`python -m kdlib course`: execute the notebooks without a browser, or make a site of them."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Execute the notebooks, and write nothing if a cell fails; or build the site from what they hold."""
    description = "Execute the notebooks; copies land in build/course."
    parser = argparse.ArgumentParser(prog="python -m kdlib course", description=description)
    add = parser.add_argument
    add("names", nargs="*", help="only these, such as 02_temperature")
    add("--record", action="store_true",
        help="for authors: store outputs in notebooks/ and minutes in data/results/course.json")  # fmt: skip
    add("--site", action="store_true",
        help="execute nothing; make a site of the course with its stored outputs in build/site")  # fmt: skip
    add("--root", type=Path, help="the course's folder (default: found from here)")
    options = parser.parse_args(argv)
    if options.site and (options.names or options.record):
        parser.error("--site is of the whole course and records nothing: leave out names and --record")
    from kdlib.course.build.execute import BUILD, RESULTS, find_root, run_course

    root = options.root or find_root()
    if options.site:
        from kdlib.course.site.build import build_site

        print(f"Open {build_site(root.resolve())}")
        return 0
    run_course(root, options.names, record=options.record)
    print(f"Recorded in {RESULTS.as_posix()}." if options.record else f"Copies: {root / BUILD}")
    return 0
