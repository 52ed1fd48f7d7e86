"""What the commands of the studies share: the options that all have, and how they end."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from kdlib.places import CACHE


class StudyParser(argparse.ArgumentParser):
    """Options of a study, of which --seeds, --work, --out and --quiet (as `progress`) are there already."""

    def __init__(self, command: str, description: str, *, seeds: int, work: str) -> None:
        super().__init__(
            prog=f"python -m kdlib {command}", description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        add = self.add_argument
        add("--seeds", type=int, default=seeds, help="paired runs of each arm (%(default)s)")
        add("--work", type=Path, default=CACHE / work,
            help="where finished pieces are kept (%(default)s)")
        add("--out", type=Path, help="write the results as JSON here")
        add("--quiet", dest="progress", action="store_false", help="no progress bars")

    def parse_args(self, *arguments, **named) -> argparse.Namespace:
        given = super().parse_args(*arguments, **named)
        if given.seeds < 2:
            self.error(f"--seeds {given.seeds}: an interval needs at least 2")
        return given


def folder_of(work: Path, recipe: object, *more: object) -> Path:
    """Where the finished pieces of a study lie: by its recipe, a dataclass, and what else it depends on."""
    from kdlib.storage import fingerprint

    return work / fingerprint(json.dumps(asdict(recipe)), *more)[:12]


def finish(results: Mapping, report: Callable[[Mapping], str], out: Path | None) -> int:
    """Write the results, where wanted, and print the report."""
    from kdlib.storage import write_json

    if out:
        write_json(out, results)
    print(report(results))
    return 0
