"""Whether two formulas in LaTeX mean the same: math-verify, in a process of its own with a time limit.

Why a process: math-verify hands formulas to SymPy, which may compute for hours on a few characters
(9^{9^{9^9}}, a factorial, an integral). Its own limit is a signal, which works in the main thread only and
not on Windows; a process can be killed from anywhere. It starts when first needed and stays for later ones.

Run as a file it is that process: one JSON list [formula, formula] a line in, true or false a line out.
"""

import atexit
import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
import warnings

__all__ = ["same_mathematics"]

_START_SECONDS, _MEMORY, _LONGEST = 120.0, 2 * 2**30, 1_000
_FIRST = ["(x+1)^2", "x^2+2x+1"]  # loads what SymPy loads when it is first needed
_LOCK = threading.Lock()


def same_mathematics(answer: str, expected: str, *, seconds: float = 3.0) -> bool:
    """Whether math-verify finds two formulas equal.

    False, too, for more than 1,000 characters, and where comparing takes more than so many seconds or 2 GiB.

    Both are LaTeX without dollar signs around it. Starting the process, at first and after it was killed,
    takes about two seconds more, on a slow machine longer.
    """
    if max(len(answer), len(expected)) > _LONGEST:
        return False
    with _LOCK:
        if _process(os.getpid()).poll() is not None:
            _process.cache_clear()
        return _exchange(_process(os.getpid()), [answer, expected], seconds) is True


@functools.lru_cache(maxsize=1)
def _process(_asking: int) -> subprocess.Popen:
    """The process that compares; another one after a fork, for the pipes belong to the parent."""
    process = subprocess.Popen(
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    atexit.register(_stop, process)
    if _exchange(process, _FIRST, _START_SECONDS) is not True:
        raise RuntimeError(
            "the process that compares formulas did not start; "
            f"{sys.executable} -c 'import math_verify' shows why"
        )
    return process


def _exchange(process: subprocess.Popen, question: list[str], seconds: float) -> bool | None:
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


def _serve() -> None:
    """Answers questions until the input ends; what else is printed goes nowhere."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows, not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr

    import sympy.physics.units  # noqa: F401  simplify imports it, and it makes names with sympify
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Float, Integer
    from sympy.parsing import sympy_parser

    def number(text: str, *_args, **_kwargs):
        return Integer(text) if text.isdecimal() else Float(text)

    def refused(*_args, **_kwargs):
        raise ValueError("text is not evaluated as code")

    # SymPy's parser and sympify of a string end in eval(). The LaTeX parser, an ANTLR grammar, calls them for
    # one thing, the digits of a number; here they read that and nothing else, without eval().
    sympy_parser.parse_expr, sympy_parser.eval_expr = number, refused

    def parsed(formula: str) -> list:
        formula = rf"\boxed{{{formula}}}"
        return parse(formula, [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    for line in sys.stdin:
        answer, expected = map(parsed, json.loads(line))
        same = bool(answer and expected) and verify(expected, answer, timeout_seconds=None)
        print(json.dumps(bool(same)), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
