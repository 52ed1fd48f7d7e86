"""Whether two formulas in LaTeX mean the same: math-verify, in a process of its own with a time limit.

Why a process: math-verify hands formulas to SymPy, which may compute for hours on a few characters
(9^{9^{9^9}}, a factorial, an integral). Its own limit is a signal, which works in the main thread only and
not on Windows; a process can be killed from anywhere. It starts when first needed and stays for later ones.

Run as a file it is that process: one JSON list [formula, formula] a line in, true or false a line out.
"""

import atexit
import json
import os
import re
import subprocess
import sys
import threading

__all__ = ["same_mathematics"]

_START_SECONDS = 120.0
_MEMORY = 4 * 2**30
_FIRST = ["(x+1)^2", "x^2+2x+1"]  # loads what SymPy loads when it is first needed
_DEEPEST, _LONGEST = 10, 1_000

# What SymPy would write out digit by digit, or never finish: powers of powers of numbers, exponents of five
# digits, factorials and binomials of large numbers; and what is a task, not an answer.
_EXPLOSIVE = re.compile(
    r"[0-9)}]\s?\^[\s{(]{0,4}[0-9.]{1,20}+[\s)}]{0,4}\^|\^[\s{(+-]{0,4}[0-9]{5}"
    r"|(?:[0-9]{5}|\^)[^,;]{0,40}!|![^,;]{0,40}!|\\binom.{0,20}?(?:[0-9]{5}|\^)"
    r"|\\(?:i{0,3}nt|oint|sum|prod|lim)(?![a-z])",
    re.DOTALL,
)


def same_mathematics(answer: str, expected: str, *, seconds: float = 3.0) -> bool:
    """Whether math-verify finds two formulas equal.

    False, without asking, for formulas that are too long or too deeply nested to be answers, or that are
    known to explode; False also where comparing takes more than the given time or 4 GiB of memory.

    Args:
        answer, expected: LaTeX without dollar signs around it.
        seconds: the most that comparing may take. Starting the process for the first time takes about
            two seconds more, on a slow machine longer.
    """
    for formula in (answer, expected):
        if len(formula) > _LONGEST or _depth(formula) > _DEEPEST or _EXPLOSIVE.search(formula):
            return False
    return _PROCESS.ask([answer, expected], seconds) is True


def _depth(formula: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[({\[]|[)}\]]", formula):
        depth += 1 if bracket in "({[" else -1
        deepest = max(deepest, depth)
    return deepest


class _Process:
    """The process that compares; killed and forgotten when it is late, started again when needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen | None = None
        self._owner: int | None = None  # after a fork the pipes belong to the parent

    def ask(self, question: list[str], seconds: float) -> bool | None:
        """The answer; None if there is none in time."""
        with self._lock:
            if self._owner != os.getpid() or self._running.poll() is not None:
                self._start()
            return self._exchange(question, seconds)

    def stop(self) -> None:
        process, self._running = self._running, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()
        self._owner = None

    def _start(self) -> None:
        self.stop()
        self._running = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._owner = os.getpid()
        if self._exchange(_FIRST, _START_SECONDS) is not True:
            self.stop()
            raise RuntimeError(
                "the process that compares formulas did not start; "
                f"{sys.executable} -c 'import math_verify' shows why"
            )

    def _exchange(self, question: list[str], seconds: float) -> bool | None:
        process, answer = self._running, None
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            print(json.dumps(question), file=process.stdin, flush=True)
            answer = json.loads(process.stdout.readline())
        except (OSError, ValueError):
            pass  # it was killed, or ended
        finally:
            timer.cancel()
            if answer is None:
                self.stop()
        return answer


_PROCESS = _Process()
atexit.register(_PROCESS.stop)


def _serve() -> None:
    """Answers questions until the input ends; what anyone else prints goes nowhere."""
    import contextlib
    import warnings

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
        if re.fullmatch(r"[0-9]+", text):
            return Integer(int(text))
        if re.fullmatch(r"[0-9]*\.[0-9]*", text):
            return Float(text)
        raise ValueError(f"expected a number, got {text!r}")

    def refused(*_args, **_kwargs):
        raise ValueError("text is not evaluated as code")

    # SymPy's parser and sympify of a string end in eval(). The LaTeX parser, an ANTLR grammar, calls them for
    # one thing, the digits of a number; here they read that and nothing else, without eval().
    sympy_parser.parse_expr, sympy_parser.eval_expr = number, refused
    config = [LatexExtractionConfig()]

    def parsed(formula: str) -> list:
        return parse(rf"\boxed{{{formula}}}", config, fallback_mode="no_fallback", parsing_timeout=None)

    for line in sys.stdin:
        answer, expected = map(parsed, json.loads(line))
        same = bool(answer and expected) and verify(expected, answer, timeout_seconds=None)
        print(json.dumps(bool(same)), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
