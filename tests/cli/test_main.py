"""What all commands share: help at once, output to terminals that lack our characters, and Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields

import pytest

from kdlib import __main__
from kdlib.__main__ import COMMANDS, main
from kdlib.cli import experiment, real_reasoning
from kdlib.language.options import PipelineOptions

SLOW = "torch", "transformers", "matplotlib", "nbclient", "openai", "PIL", "sklearn", "scipy", "numpy"


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, timeout=300, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def helped():
    """What each command says to --help, in one process, and what that has imported by then."""
    script = f"""
import contextlib, io, json, sys
from kdlib.__main__ import COMMANDS, main
told = {{}}
for name in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([name, "--help"])
    told[name] = [out.getvalue(), sorted({set(SLOW)!r} & set(sys.modules))]
json.dump(told, sys.stdout)
"""
    done = run("-c", script)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_help_comes_before_anything_slow_is_imported(helped):
    assert helped.keys() == COMMANDS.keys()
    for name, (text, imported) in helped.items():
        assert text.startswith(f"usage: python -m kdlib {name} "), name
        assert not imported, f"{name} --help has imported {imported}"


def test_help_takes_less_than_a_second():
    begin = time.perf_counter()
    assert run("-c", "pass").returncode == 0
    bare = time.perf_counter() - begin
    begin = time.perf_counter()
    assert run("-m", "kdlib", "distill", "--help").returncode == 0
    assert time.perf_counter() - begin < 1 + 2 * bare


def test_a_mistake_in_the_arguments_is_told_as_fast():
    done = run("-X", "importtime", "-m", "kdlib", "traces", "--samples", "many")
    assert done.returncode == 2 and b"invalid int value: 'many'" in done.stderr
    assert not re.search(rb"\| +torch$", done.stderr, re.M)


def test_each_option_is_listed_once_and_no_option_says_what_it_is_not(helped):
    for name, (text, _) in helped.items():
        listed = re.findall(r"^  (--?[a-z].*?)(?:  |$)", text, re.M)
        spelt = [word for line in listed for word in re.findall(r"(?<!\S)--[\w-]+", line)]
        normal = [word.replace("_", "-") for word in spelt]
        assert len(normal) == len(set(normal)), f"{name}: {spelt}"
    lines = re.sub(r"\s+", " ", helped["distill"][0])
    assert "--packing [yes|no] lay short texts end to end (yes; no is --no-packing)" in lines
    assert all(f"--{field.name.replace('_', '-')} " in lines for field in fields(PipelineOptions))


def test_what_help_names_is_what_the_studies_know():
    from kdlib.course.studies.cat_or_dog import SITUATIONS
    from kdlib.course.studies.real_reasoning import SMOLLM2

    assert experiment.SITUATIONS == SITUATIONS
    assert (SMOLLM2.tasks, SMOLLM2.asked) == (real_reasoning.TASKS, real_reasoning.ASKED)


# --- terminals -------------------------------------------------------------------------------------

COMMAND = """
import sys, types
from kdlib.__main__ import main
command = types.ModuleType("kdlib.cli.check")
def told(arguments):
    print("T² · KL → α β 答案 \\udce9")
    print("kept", file=sys.stderr)
    return 0
command.main = told
sys.modules["kdlib.cli.check"] = command
sys.exit(main(["check"]))
"""


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp932", "utf-8"])
def test_no_character_ends_a_command(encoding):
    done = run("-c", COMMAND, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert (done.returncode, done.stderr.strip()) == (0, b"kept")
    assert b"KL" in done.stdout
    if encoding == "utf-8":
        assert done.stdout.decode().startswith("T² · KL → α β 答案 ?")


def test_help_and_plans_are_printed_where_characters_lack():
    done = run("-m", "kdlib", "distill", "--help", PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert done.returncode == 0 and b"eight_80gb" in done.stdout


# --- Ctrl-C ----------------------------------------------------------------------------------------


def command_that(monkeypatch, act):
    module = type(sys)("kdlib.cli.check")
    module.main = act
    monkeypatch.setitem(sys.modules, "kdlib.cli.check", module)


def chained(error, cause):
    def act(arguments):
        try:
            raise cause
        except BaseException:
            raise error  # noqa: B904

    return act


@pytest.mark.parametrize("error", [
    KeyboardInterrupt(), ImportError("numpy: initialisation failed"), RuntimeError("a worker exited"),
    SystemError("returned a result with an exception set"),
])  # fmt: skip
def test_ctrl_c_is_one_line_and_130_whatever_becomes_of_it(monkeypatch, capsys, error):
    command_that(monkeypatch, chained(error, KeyboardInterrupt()))
    assert main(["check"]) == 130
    assert capsys.readouterr().err == "Stopped. Start the same command again to go on.\n"


def test_an_error_that_no_command_expects_keeps_its_trace(monkeypatch):
    command_that(monkeypatch, chained(KeyError("a fault of ours"), ValueError()))
    with pytest.raises(KeyError, match="a fault of ours"):
        main(["check"])


def test_ctrl_c_while_a_command_is_imported_is_one_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__.importlib, "import_module", interrupted)
    assert main(["check"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


SWALLOWS = """
import runpy, sys, time, types
command = types.ModuleType("kdlib.cli.check")
def swallow(arguments):
    print("ready", flush=True)
    try:
        time.sleep(100)
    except BaseException:
        pass
    %s
command.main = swallow
sys.modules["kdlib.cli.check"] = command
sys.argv = ["kdlib", "check"]
runpy.run_module("kdlib", run_name="__main__")
"""


@pytest.mark.skipif(os.name == "nt", reason="a signal as Ctrl-C sends it")
@pytest.mark.parametrize("after", ["time.sleep(100)", "raise ImportError('loaded twice')"])
def test_ctrl_c_that_a_library_swallows_ends_the_command_all_the_same(after):
    with subprocess.Popen(
        [sys.executable, "-c", SWALLOWS % after], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told.decode()) == (130, f"{__main__.STOPPED}\n")


@pytest.mark.skipif(os.name == "nt", reason="a signal as Ctrl-C sends it")
def test_ctrl_c_in_a_process_of_its_own_at_several_moments(tmp_path):
    """From the first import to the drawing of pictures; the interpreter itself has started before."""
    script = (
        "import argparse, runpy, signal, sys, threading, kdlib; print('ready', flush=True); "
        "sys.argv[0] = 'kdlib'; runpy.run_module('kdlib', run_name='__main__')"
    )
    command = [sys.executable, "-c", script, "experiment", "sketches", "--seeds", "2", "--quiet"]
    for wait in (0.5, 2, 5):
        with subprocess.Popen(
            [*command, "--work", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as a shell's jobs lack it
        ) as process:  # fmt: skip
            try:
                assert process.stdout.readline() == b"ready\n"
                time.sleep(wait)
                process.send_signal(signal.SIGINT)
                _, told = process.communicate(timeout=120)
            finally:
                process.kill()
        assert process.returncode == 130, told.decode()
        assert told.decode() == "Stopped. Start the same command again to go on.\n"
        assert not list(tmp_path.rglob(".*.part"))
