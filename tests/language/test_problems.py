"""Problems as a file of JSON lines."""

import json

import pytest

from kdlib.language.problems import Problem, load_problems


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
    ("row", "message"),
    [
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


def test_a_file_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*none.jsonl"):
        load_problems(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="empty.jsonl holds no problem"):
        load_problems(tmp_path / "empty.jsonl")
