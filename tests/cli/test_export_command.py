"""python -m kdlib export: which traces it takes, and what it says."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from kdlib.__main__ import main
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer
from kdlib.language.traces.file import Trace, open_traces


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path):
    """Four traces of two problems, one wrong and one repeated, and a tokenizer in a Qwen2 model's folder."""
    tokenizer = puzzle_tokenizer()
    tokenizer.save_pretrained(tmp_path / "student")
    (tmp_path / "student" / "config.json").write_text('{"model_type": "qwen2"}')
    right = Trace("a", "A cage", "4", 0, " Suppose\n</think>\n\n4", 6, True, True, True)
    traces = [
        right, replace(right, sample=1), replace(right, sample=2, text=" 5", correct=False),
        replace(right, key="b", statement="Suppose cage", text=" Suppose all\n</think>\n\n4", tokens=7),
    ]  # fmt: skip
    with open_traces(tmp_path / "traces.jsonl", {}) as file:
        file.append(traces)
    return tmp_path


def command(folder, *more, traces="traces.jsonl", tokenizer="student"):
    paths = [str(folder / name) for name in (traces, tokenizer, "out")]
    return main(["export", paths[0], "--tokenizer", paths[1], "--out", paths[2], *more])


def test_the_command_exports_correct_traces_and_says_how_to_read_them(folder, capsys):
    assert command(folder) == 0
    rows = lines(folder / "out")
    tokenizer = puzzle_tokenizer()
    said = [tokenizer.decode(row["input_ids"]).split("<｜Assistant｜>")[0] for row in rows]
    assert [text.split("<｜User｜>")[1] for text in said] == ["A cage", "Suppose cage"]
    said = capsys.readouterr().out
    assert said.startswith("2 of 4 traces\n2 texts of ")
    (reading,) = re.findall(r'data_files="(.*?)"', said)
    assert Path(reading) == folder / "out"
    assert command(folder, "--all", "--form", "text") == 0
    completions = [row["completion"] for row in lines(folder / "out")]
    assert len(completions) == 4 and completions[2] == " 5" + tokenizer.eos_token


def test_the_command_exports_what_distill_trains_on_where_the_template_opens_no_thought(folder):
    tokenizer = puzzle_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<think>\\n", "")
    tokenizer.save_pretrained(folder / "student")
    assert command(folder, "--all", "--form", "text") == 0
    thought = "<think>\n Suppose\n</think>\n\n4" + tokenizer.eos_token
    completions = [row["completion"] for row in lines(folder / "out")]
    assert completions[:3] == [thought, thought, " 5" + tokenizer.eos_token]


def test_the_command_says_so_if_the_tokenizer_has_no_template(folder, capsys):
    tokenizer = puzzle_tokenizer()
    tokenizer.chat_template = None
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (folder / "student" / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder / "student")
    assert command(folder) == 1
    assert "tokenizer has no chat_template" in capsys.readouterr().err


@pytest.mark.parametrize("change, message", [
    ({"traces": "none.jsonl"}, "there is no file"),
    ({"traces": "student/config.json"}, "kdlib export: "),
    ({"tokenizer": "none"}, "is no folder with a tokenizer.json"),
])  # fmt: skip
def test_the_command_says_what_is_missing(folder, capsys, change, message):
    assert command(folder, **change) == 1
    assert message in capsys.readouterr().err and not (folder / "out").exists()


def test_the_command_says_so_if_nothing_is_correct(folder, capsys):
    wrong = Trace("a", "A cage", "4", 0, " 5\n</think>\n\n5", 6, True, False, True)
    with open_traces(folder / "wrong.jsonl", {}) as file:
        file.append([wrong])
    assert command(folder, traces="wrong.jsonl") == 1
    assert "none of the 1 traces in" in capsys.readouterr().err
