"""`python -m kdlib course`: execute the notebooks, write their Chinese edition, or make a site of them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Execute the notebooks, and write nothing if a cell fails; or do what executes nothing.

    Returns 1 where the Chinese edition is not whole.
    """
    description = "Execute the notebooks; copies land in build/course."
    parser = argparse.ArgumentParser(prog="python -m kdlib course", description=description)
    add = parser.add_argument
    add("names", nargs="*", help="only these, such as 02_temperature")
    add("--record", action="store_true",
        help="for authors: store outputs in notebooks/ and minutes in data/results/course.json")  # fmt: skip
    add("--zh", action="store_true",
        help="execute nothing: write notebooks/zh from notebooks/zh/text, and list what is not translated")
    add("--stubs", action="store_true",
        help="with --zh: first add the English text of what is not translated to notebooks/zh/text")
    add("--site", action="store_true",
        help="execute nothing: make a site of the course with its stored outputs in build/site")
    add("--root", type=Path, help="the course's folder (default: found from here)")
    options = parser.parse_args(argv)
    if options.stubs and not options.zh:
        parser.error("--stubs belongs to --zh")
    if (options.zh or options.site) and (options.names or options.record):
        parser.error("--zh and --site are of the whole course: leave out names and --record")
    from kdlib.course.build.chinese import Edition
    from kdlib.course.build.execute import BUILD, RESULTS, find_root, run_course

    root = options.root or find_root()
    if options.site:
        from kdlib.course.site.build import build_site

        print(f"Open {build_site(root.resolve())}")
        return 0
    if options.zh:
        if options.stubs:
            Edition(root).write_stubs()
        return _chinese(Edition(root).write())
    run_course(root, options.names, record=options.record)
    print(f"Recorded in {RESULTS.as_posix()}." if options.record else f"Copies: {root / BUILD}")
    edition = Edition(root) if options.record else None  # its outputs are those of the English notebooks
    return _chinese(edition.write()) if edition and edition.twins else 0


def _chinese(wrong: list[str]) -> int:
    for complaint in wrong:
        print(complaint, file=sys.stderr)
    print(f"The Chinese edition: {len(wrong)} faults." if wrong else "The Chinese edition is whole.")
    return bool(wrong)
