import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdlib.language.answers import mathematics as latex
from kdlib.language.answers.mathematics import same_mathematics
from kdlib.language.answers.reading import read


def same(answer: str, expected: str, **limit) -> bool:
    return same_mathematics(read(answer), read(expected), **limit)


@pytest.fixture(autouse=True, scope="module")
def started():
    """The first question also waits for imports."""
    assert same(r"\sqrt{4}", "2")


@pytest.mark.parametrize(
    "formula",
    ["2^{10}", "5!", r"\binom{5}{2}", "e^{x^2}", "x^{12}", r"10^{-3}", r"\frac{1}{1+\frac{1}{2^3}}"],
)
def test_ordinary_formulas_are_equal_to_themselves(formula):
    assert same(formula, formula) and same(f"{formula}+0", formula) and not same(f"{formula}+1", formula)


@pytest.mark.parametrize(
    "formula", ["9^{9^{9^9}}", "((9!)!)!", "10^{999999999}", r"\sum_{k=1}^{1000000000} \sin k"]
)
def test_what_takes_too_long_is_not_equal_and_the_next_question_answered(formula):
    process = latex._process(os.getpid())
    assert not same(formula, "7", seconds=1.5)
    assert latex._process(os.getpid()) is process and process.poll() is None  # it stopped by itself
    assert same("x+1", "1+x")


def test_a_process_that_does_not_end_is_killed(monkeypatch):
    """One long multiplication hears no signal; here the process sleeps after it has started."""
    sleeping = "print('true', flush=True); import time; time.sleep(60)"
    with monkeypatch.context() as patched:
        patched.setattr(latex, "_SERVE", sleeping)
        latex._process.cache_clear()
        process = latex._process(os.getpid())
        began = time.perf_counter()
        assert not same("x+1", "1+x", seconds=0.2)
        assert process.poll() is not None and time.perf_counter() - began < 10
    assert same("x+1", "1+x")


def test_a_long_question_is_not_asked(monkeypatch):
    monkeypatch.setattr(latex, "_exchange", lambda *_: pytest.fail("asked"))
    long = ["leaf", "+".join("x" * 20_000), "", [], []]
    assert not same_mathematics(long, read("7")) and not same_mathematics(read("7"), long)


def test_an_interrupted_question_leaves_no_answer_to_the_next(monkeypatch):
    def interrupted(_line):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(latex.json, "loads", interrupted)
        same("1+1", "2")
    assert not same("x", "y")


def test_answers_from_any_thread():
    found = {}

    def ask(number: int) -> None:
        found[number] = same(rf"\sqrt{{{number**2}}}", str(number + number % 2))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: number % 2 == 0 for number in range(8)}


# Runs as the process does, and notes what is compiled once questions come: SymPy's parser and sympify would
# compile Integer (…), Float (…) or Symbol (…), and the code of a question.
WATCHED = """
import sys
asked = False
def watch(event, arguments):
    if asked and event == "compile" and isinstance(arguments[0], (str, bytes)):
        source = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode("utf-8", "replace")
        if len(source) < 500 and any(name in source for name in ("Integer", "Float", "Symbol", "import os")):
            print("compiled", source, file=sys.stderr)
def questions(lines):
    global asked
    for line in lines:
        asked = True
        yield line
sys.addaudithook(watch)
sys.stdin = questions(sys.stdin)
"""


def test_no_text_is_evaluated(tmp_path):
    code = ["__import__('os').mkdir('made')", r"\text{exec('import os')}", "[].__class__"]
    formulas = [r"\sqrt{2}", "1.5x", r"\frac{3}{4}x", *code]
    nodes = [["leaf", formula, "", [], []] for formula in formulas]
    questions = "".join(json.dumps([one, two, 3]) + "\n" for one in nodes for two in nodes)
    done = subprocess.run(
        [sys.executable, "-P", "-c", WATCHED + latex._SERVE, str(Path(latex.__file__).parents[3])],
        input=questions, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=True,
    )  # fmt: skip
    lines = done.stdout.split()
    assert len(lines) == len(formulas) ** 2 and lines[0] == "true" and lines[1] == "false"
    assert "compiled" not in done.stderr
    assert list(tmp_path.iterdir()) == []
