"""Problems as a file of JSON lines."""

import json
from pathlib import Path

import pytest

from kdlib.language.problems import Problem, check_problems, load_problems


def written(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_problems_are_read_as_they_are_written(tmp_path):
    path = written(
        tmp_path / "problems.jsonl",
        {"key": "p1", "statement": "鸡兔同笼\u2028?", "answer": "6 chickens and 4 rabbits"},
        {"statement": "how many?", "answer": 72, "key": 5},
    )
    assert load_problems(path) == [
        Problem("p1", "鸡兔同笼\u2028?", "6 chickens and 4 rabbits"), Problem("5", "how many?", "72")
    ]  # fmt: skip


def test_gsm8k_is_read_as_it_is_published(tmp_path):
    row = {"question": "Natalia sold clips", "answer": "48/2 = <<48/2=24>>24\n#### 72"}
    (problem,) = load_problems(written(tmp_path / "test.jsonl", row))
    assert (problem.statement, problem.answer) == (row["question"], row["answer"])


def test_a_key_is_made_from_the_statement_wherever_it_stands(tmp_path):
    rows = [{"statement": f"{n} heads", "answer": "1"} for n in range(3)]
    first = load_problems(written(tmp_path / "a.jsonl", *rows))
    assert len({problem.key for problem in first}) == 3
    assert load_problems(written(tmp_path / "b.jsonl", *rows[::-1])) == first[::-1]


def test_empty_lines_a_mark_at_the_beginning_and_other_line_ends_do_not_matter(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"statement": "a", "answer": "1"}\r\n\r\n \n{"statement": "b", "answer": "2"}'
    )
    assert [problem.statement for problem in load_problems(path)] == ["a", "b"]


@pytest.mark.parametrize(
    "number",
    ["0.00001", "1e22", "1E+5", "123456789012345678.0", "1.50", "-0", "12345678901234567890", "9" * 900],
)
def test_a_number_is_what_stands_there(tmp_path, number):
    path = tmp_path / "problems.jsonl"
    path.write_text(f'{{"key": {number}, "statement": "how many?", "answer": {number}}}\n')
    (problem,) = load_problems(path)
    assert (problem.key, problem.answer) == (number, number)
    assert type(problem.key) is type(problem.answer) is str


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"statement": "a", "answer": NaN}', "line 2 of .*: NaN is no number of JSON"),
        ('{"statement": "a", "answer": Infinity}', "line 2 of .*: Infinity is no number"),
        ('{"statement": "a", "answer": -Infinity}', "line 2 of .*: -Infinity is no number"),
        (r'{"statement": "a \ud83d b", "answer": "1"}', r"line 2 of .*: statement holds half .*'.ud83d"),
        (r'{"statement": "a", "answer": "\ude00"}', "line 2 of .*: answer holds half a character"),
        (r'{"key": "\ude00\ud83d", "statement": "a", "answer": "1"}', "line 2 of .*: key holds half"),
        ("{", "line 2 of .*: "),
        ("\xff", "line 2 of .*: "),
        ("[1]", r"line 2 of .*: expected a JSON object, got \[1\]"),
        ('{"problem": "a", "answer": "1", "level": 3}', "expected the columns .* got problem, answer, level"),
        ('{"statement": "a"}', "got statement"),
        ('{"answer": "1"}', "got answer"),
        ('{"statement": "a", "question": "b", "answer": "1"}', "got statement, question, answer"),
        ('{"statement": " ", "answer": "1"}', "statement is empty"),
        ('{"statement": "a", "answer": " "}', "expected an answer of 1 to"),
        ('{"statement": "a", "answer": null}', "answer is None; expected a text"),
        ('{"statement": "a", "answer": true}', "answer is True; expected a text"),
        ('{"statement": ["a"], "answer": "1"}', r"statement is \['a'\]; expected a text"),
        ('{"key": "k", "statement": "b", "answer": "1"}', "line 2 of .*: the key is 'k', as in line 1"),
    ],
)
def test_a_line_that_is_no_problem_is_named(tmp_path, row, message):
    path = tmp_path / "problems.jsonl"
    path.write_bytes(b'{"key": "k", "statement": "a", "answer": "1"}\n' + row.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        load_problems(path)


def test_a_pair_of_surrogates_is_one_character(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(r'{"statement": "\ud83d\ude00", "answer": "1"}')
    assert load_problems(path)[0].statement == "\U0001f600"


@pytest.mark.parametrize("path", [None, 3, ["a.jsonl"], [Problem("k", "a", "1")]])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ValueError, match="path is .*; expected the path of a file"):
        load_problems(path)


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        ("problems.jsonl", "problems is 'problems.jsonl'; expected problems: call load_problems"),
        (Path("problems.jsonl"), "problems is 'problems.jsonl'.*load_problems"),
        (None, "problems is None; expected a list of Problem"),
        (Problem("k", "a", "1"), "problems is Problem.*; expected a list"),
        (["how many?"], r"problems\[0\] is 'how many\?'; expected a Problem\(key, statement, answer\)"),
        ([Problem("k", "a", "1"), {"statement": "a"}], r"problems\[1\] is {'statement'"),
        ([("a", "1")], r"problems\[0\] is \('a', '1'\)"),
        ([Problem("k", " ", "1")], r"statement of problems\[0\] is empty"),
        ([Problem("k", "a", 1)], r"answer of problems\[0\] is 1; expected a text"),
        ([Problem("k", "\ud83d", "1")], r"statement of problems\[0\] holds half a character"),
    ],
)
def test_what_are_no_problems_is_said_with_how_to_make_them(problems, message):
    with pytest.raises(ValueError, match=message):
        check_problems(problems)


def test_a_file_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*none.jsonl"):
        load_problems(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="empty.jsonl holds no problem"):
        load_problems(tmp_path / "empty.jsonl")
