"""The command line: ``python -m kdlib COMMAND``. A command's module is imported when it is asked for."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

# Command: its module, the extra that it needs, and one line of help.
COMMANDS = {
    "check": ("kdlib.cli.check", "course", "is this machine ready for the course?"),
    "course": ("kdlib.cli.course", "course", "execute every notebook, without a browser"),
    "experiment": ("kdlib.cli.experiment", "course", "cat or dog in full"),
    "reasoning": ("kdlib.cli.reasoning", "course", "reasoning distillation in full, on puzzles"),
    "fetch": ("kdlib.cli.fetch", "vision", "download photographs of cats and dogs"),
    "traces": ("kdlib.cli.traces", "language", "let a teacher answer problems, here or behind an address"),
    "distill": ("kdlib.cli.distill", "language", "distil a language model: write, verify, train, test"),
    "export": ("kdlib.cli.export", "language", "write traces as data for TRL's SFTTrainer"),
    "bench": ("kdlib.cli.bench", "dev", "measure the loss beside its peers: time, memory, errors"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of a command: 1 where it failed, with what to fix on stderr; interrupted, 130."""
    parser = argparse.ArgumentParser(prog="python -m kdlib", description="Knowledge distillation.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (_, _, summary) in COMMANDS.items():
        # The module has its own parser, --help included.
        commands.add_parser(name, help=summary, add_help=False)
    chosen, rest = parser.parse_known_args(argv)
    if chosen.command is None:
        parser.parse_args(argv)  # refuses what is no option
        parser.print_help()
        return 0
    module, extra, _ = COMMANDS[chosen.command]
    try:
        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "kdlib":
            raise
        print(
            f"kdlib {chosen.command} needs the package {error.name}: "
            f'{sys.executable} -m pip install "kdlib[{extra}]" (in a checkout of the course: ".[{extra}]")',
            file=sys.stderr,
        )
        return 1
    try:
        return command.main(rest)
    except KeyboardInterrupt:
        print("Stopped. Start the same command again to go on.", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        if os.environ.get("RANK", "0") == "0":  # of launched processes the first speaks for all
            print(f"kdlib {chosen.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
