import json
import os
import subprocess
import sys
import threading
import time

import pytest

from kdlib.language.answers import mathematics as latex
from kdlib.language.answers.mathematics import same_mathematics


@pytest.fixture(autouse=True, scope="module")
def started():
    """The first question also waits for imports."""
    assert same_mathematics(r"\frac{1}{2}", "0.5")


@pytest.mark.parametrize(
    "formula",
    ["2^{10}", "5!", r"\binom{5}{2}", "e^{x^2}", "x^{12}", r"10^{-3}", r"\frac{1}{1+\frac{1}{2^3}}"],
)
def test_ordinary_formulas_are_equal_to_themselves(formula):
    assert same_mathematics(formula, formula)


@pytest.mark.parametrize("formula", ["9^{9^{9^9}}", "((9!)!)!", r"\sum_{k=1}^{1000000000} \sin k"])
def test_what_takes_too_long_is_killed_and_the_next_question_answered(formula):
    began = time.perf_counter()
    assert not same_mathematics(formula, "7", seconds=0.5)
    assert time.perf_counter() - began < 2
    assert latex._process(os.getpid()).poll() is not None  # killed
    assert same_mathematics("x+1", "1+x")


def test_what_is_longer_than_an_answer_is_not_asked(monkeypatch):
    monkeypatch.setattr(latex, "_exchange", lambda *_: pytest.fail("asked"))
    assert not same_mathematics("+".join("x" * 600), "7") and not same_mathematics("7", "+".join("x" * 600))


def test_an_interrupted_question_leaves_no_answer_to_the_next(monkeypatch):
    def interrupted(_line):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(latex.json, "loads", interrupted)
        same_mathematics("1+1", "2")
    assert not same_mathematics("x", "y")


def test_answers_from_any_thread():
    found = {}

    def ask(number: int) -> None:
        found[number] = same_mathematics(rf"\sqrt{{{number**2}}}", str(number + number % 2))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: number % 2 == 0 for number in range(8)}


# Runs the file as the process does, and notes what is compiled once questions come: SymPy's parser and
# sympify would compile Integer (…), Float (…) or Symbol (…), and the code of a question.
WATCHED = """
import runpy, sys
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
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_no_text_is_evaluated(tmp_path):
    code = ["__import__('os').mkdir('made')", r"\text{exec('import os')}", "[].__class__"]
    formulas = ["1.5", "12", r"\frac{3}{4}x", *code]
    questions = "".join(json.dumps([one, two]) + "\n" for one in formulas for two in formulas)
    done = subprocess.run(
        [sys.executable, "-P", "-c", WATCHED, latex.__file__],
        input=questions, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=True,
    )  # fmt: skip
    lines = done.stdout.split()
    assert len(lines) == len(formulas) ** 2 and lines[0] == "true" and lines[1] == "false"
    assert "compiled" not in done.stderr
    assert list(tmp_path.iterdir()) == []
