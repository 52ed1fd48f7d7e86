"""The command line: ``python -m kdlib COMMAND``. A command's module is imported when it is asked for."""

import argparse
import atexit
import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence

# Command: the extra that it needs, and one line of help. Its module is that of its name in kdlib/cli, with _.
COMMANDS = {
    "check": ("course", "is this machine ready for the course?"),
    "course": ("course", "execute every notebook, without a browser; or make a site of them"),
    "experiment": ("course", "cat or dog in full"),
    "reasoning": ("course", "reasoning distillation in full, on puzzles"),
    "healing": ("course", "a real language model without half of its layers, healed"),
    "real-reasoning": ("course", "a real language model before and after it has read verified traces"),
    "other-tokenizer": ("course", "a real language model teaches one whose tokens are others"),
    "fetch": ("vision", "download photographs, or a real model"),
    "traces": ("language", "let a teacher answer problems, here or behind an address"),
    "distill": ("language", "distil a language model: write, verify, train, test"),
    "export": ("language", "write traces as data for TRL's SFTTrainer"),
    "bench": ("dev", "measure the loss beside its peers: time, memory, errors"),
}

STOPPED = "Stopped. Start the same command again to go on."
PATIENCE = 5  # seconds that a command has for its end after Ctrl-C
_ASKED_TO_STOP = threading.Event()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of a command: 1 where it failed, with what to fix on stderr; interrupted, 130."""
    for stream in (sys.stdout, sys.stderr):  # redirected on Windows, or with a path of odd bytes: ? for what
        if hasattr(stream, "reconfigure"):  # the encoding lacks, rather than an end without a report
            stream.reconfigure(errors="replace")
    parser = argparse.ArgumentParser(prog="python -m kdlib", description="Knowledge distillation.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (_, summary) in COMMANDS.items():
        # The module has its own parser, --help included.
        commands.add_parser(name, help=summary, add_help=False)
    chosen, rest = parser.parse_known_args(argv)
    if chosen.command is None:
        parser.parse_args(argv)  # refuses what is no option
        parser.print_help()
        return 0
    try:
        # A command reads its arguments before it imports what is slow.
        command = importlib.import_module(f"kdlib.cli.{chosen.command.replace('-', '_')}")
        return command.main(rest)
    except (Exception, KeyboardInterrupt) as error:
        if _interrupted(error) or _ASKED_TO_STOP.is_set():
            print(STOPPED, file=sys.stderr)
            return 130
        return _told(chosen.command, error)


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: libraries that it meets as they are imported make other errors of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _told(command: str, error: Exception) -> int:
    """An error in a line on stderr; one that no command expects is raised again."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package == "kdlib":
        raise error
    text = f"kdlib {command}: {error}"
    if type(error) is ModuleNotFoundError and "pip install" not in str(error):
        extra, _ = COMMANDS[command]
        text = (
            f"kdlib {command} needs the package {error.name}: "
            f'{sys.executable} -m pip install "kdlib[{extra}]" (in a checkout of the course: ".[{extra}]")'
        )
    elif not isinstance(error, ValueError | OSError | FloatingPointError | ImportError):
        raise error
    if os.environ.get("RANK", "0") == "0":  # of launched processes the first speaks for all
        print(text, file=sys.stderr)
    return 1


def _insist(number: int, frame: object) -> None:
    """Ctrl-C: some libraries swallow it as they are imported. Then the process ends all the same.

    Nothing is lost that a kill would not lose: files are whole or not there.
    """

    def leave() -> None:
        print(STOPPED, file=sys.stderr, flush=True)
        os._exit(130)

    _ASKED_TO_STOP.set()
    timer = threading.Timer(PATIENCE, leave)
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _insist)
    status = main()
    if status == 130:
        # Where Ctrl-C met an exec, as many imports have, Python would end by the signal and not with this
        # status, though the interrupt was handled: https://bugs.python.org/issue1054041
        atexit._run_exitfuncs()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(status)
    sys.exit(status)
