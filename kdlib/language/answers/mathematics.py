"""Whether two answers that were taken apart are equal: SymPy decides, in a process of its own with a limit.

Why a process: SymPy may compute for hours on a few characters (9^{9^{9^9}}, a factorial, an integral). A
limit by a signal works in the main thread only, not on Windows, and not inside one long multiplication; a
process can be killed from anywhere. It starts when first needed and stays for later ones.
"""

import atexit
import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from kdlib.language.answers.equality import Algebra, NeedsAlgebra, same

__all__ = ["same_mathematics"]

_START_SECONDS, _PATIENCE, _LONGEST = 120.0, 4, 20_000
_FIRST = [
    ["leaf", formula, "", [], []] for formula in (r"\frac{2x_{1}^2}{\sqrt{4}}+\sin(\pi)", "x_{1}^{2}")
]  # loads what SymPy loads at first
_SERVE = "import sys; sys.path.append(sys.argv[1]); from kdlib.language.answers.algebra import serve; serve()"
_LOCK = threading.Lock()


def same_mathematics(answer: list, expected: list, *, seconds: float = 3.0) -> bool:
    """Whether two nodes of `kdlib.language.answers.reading` are equal.

    Numbers are compared at once. For formulas the process is asked: False, too, where comparing takes more
    than so many seconds of its work, or 2 GiB. Where it does not end by itself, it is killed after four times
    as long by the clock. Starting it, at first and then, takes about two seconds, on a slow machine longer.
    """
    with contextlib.suppress(NeedsAlgebra):
        return same(answer, expected, Algebra())
    question = [answer, expected, seconds]
    if len(json.dumps(question)) > _LONGEST:
        return False
    with _LOCK:
        if _process(os.getpid()).poll() is not None:
            _process.cache_clear()
        return _exchange(_process(os.getpid()), question, _PATIENCE * seconds) is True


@functools.lru_cache(maxsize=1)
def _process(_asking: int) -> subprocess.Popen:
    """The process that compares; another one after a fork, for the pipes belong to the parent."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _SERVE, str(Path(__file__).parents[3])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    atexit.register(_stop, process)
    if _exchange(process, [*_FIRST, _START_SECONDS], _START_SECONDS) is not True:
        raise RuntimeError(
            "the process that compares formulas did not start; "
            f"{sys.executable} -c 'import math_verify' shows why"
        )
    return process


def _exchange(process: subprocess.Popen, question: list, seconds: float) -> bool | None:
    """The answer; None if there is none in time, and then the process has ended."""
    answer = None
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        print(json.dumps(question), file=process.stdin, flush=True)
        answer = json.loads(process.stdout.readline())
    except (OSError, ValueError):
        pass  # it was killed, or ended
    finally:
        timer.cancel()
        if answer is None:  # interrupted, too: the next question must not read this one's answer
            _stop(process)
    return answer


def _stop(process: subprocess.Popen) -> None:
    with contextlib.suppress(OSError), process:  # a pipe may be broken
        process.kill()
