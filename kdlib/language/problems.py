"""Problems from a file of JSON lines: the project's own, or GSM8K as it is published."""

import hashlib
import json
import os
from pathlib import Path

from kdlib.language.answers.final_answer import Problem, verify_answer

__all__ = ["load_problems"]

_STATEMENTS, _OTHERS = ("statement", "question"), ("key", "answer")


def load_problems(path: str | os.PathLike) -> list[Problem]:
    """Problems from a file of JSON lines (UTF-8), each an object with a statement and an answer.

        {"key": "p1", "statement": "10 heads and 28 feet: how many rabbits?", "answer": "4"}
        {"question": "Natalia sold 48 clips in April …", "answer": "… #### 72"}

    "question" is another name of "statement", as in GSM8K. Where there is no key, it is made from the
    statement, so that it stays the same when lines are added or moved. Empty lines do not count.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is no such object, with a column that is none of these, an answer that is no
            reference for `verify_answer`, or a key that occurred before; it names the line. Also for a file
            without any problem.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    problems: dict[str, Problem] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            problem = _problem(json.loads(line.decode("utf-8-sig")))
        except ValueError as error:
            raise ValueError(f"line {number} of {path}: {error}") from None
        if problem.key in problems:
            raise ValueError(
                f"line {number} of {path} has the key {problem.key!r}, as line {lines[problem.key]} has; "
                "expected each problem once"
            )
        problems[problem.key], lines[problem.key] = problem, number
    if not problems:
        raise ValueError(f"{path} holds no problem; expected one JSON object a line")
    return list(problems.values())


def _problem(row: object) -> Problem:
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {row!r:.60}")
    if unknown := sorted(row.keys() - {*_STATEMENTS, *_OTHERS}):
        raise ValueError(
            f"unknown columns {', '.join(unknown)}; expected statement (or question), answer and, if there "
            "is one, key: rename or remove the others"
        )
    statements = [name for name in _STATEMENTS if name in row]
    if len(statements) != 1 or "answer" not in row:
        raise ValueError(f"expected statement (or question) and answer; got {', '.join(row) or 'nothing'}")
    statement, answer, key = (_text(row, name) for name in (statements[0], "answer", "key"))
    if not statement.strip():
        raise ValueError(f"{statements[0]} is empty")
    verify_answer("", answer)  # raises for what is no reference, now rather than after the model has written
    return Problem(key or hashlib.sha256(statement.encode()).hexdigest()[:16], statement, answer)


def _text(row: dict[str, object], name: str) -> str:
    value = row.get(name, "")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} is {value!r:.60}; expected a text")
    return str(value)
