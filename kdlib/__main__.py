"""The command line: ``python -m kdlib COMMAND``. A command's module is imported when asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "check": ("kdlib.course.check", "is this machine ready for the course?"),
    "course": ("kdlib.course.build.execute", "execute every notebook, without a browser"),
    "experiment": ("kdlib.course.studies.cat_or_dog", "cat or dog in full, on sketches or photographs"),
    "traces": ("kdlib.cli.traces", "let a teacher answer problems, here or behind an address"),
    "distill": ("kdlib.cli.distill", "distil a language model: write, verify, train, test"),
    "export": ("kdlib.cli.export", "write traces as data for TRL's SFTTrainer"),
    "bench": ("kdlib.cli.bench", "measure the loss beside its peers: time, memory, errors"),
    "reasoning": ("kdlib.course.studies.reasoning", "reasoning distillation in full, on puzzles"),
    "fetch": ("kdlib.cli.fetch", "download photographs of cats and dogs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the arguments to the command's module and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m kdlib", description="Knowledge distillation.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (_, summary) in COMMANDS.items():
        # The module has its own parser, --help included.
        commands.add_parser(name, help=summary, add_help=False)
    chosen, rest = parser.parse_known_args(argv)
    if chosen.command is None:
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        parser.print_help()
        return 0
    try:
        module = importlib.import_module(COMMANDS[chosen.command][0])
    except ModuleNotFoundError as error:
        print(
            f"kdlib {chosen.command} needs the package {error.name}. In the course's folder: "
            f'{sys.executable} -m pip install -e ".[course]"',
            file=sys.stderr,
        )
        return 1
    return module.main(rest)


if __name__ == "__main__":
    sys.exit(main())
