"""What a model is asked: problems, and how a file of them is read (JSON lines, as GSM8K is published)."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from kdlib.language.answers.final_answer import verify_answer

__all__ = ["Problem", "load_problems"]


@dataclass(frozen=True)
class Problem:
    """What a model is asked, and the reference answer.

    That is anything `verify_answer` takes as one: "6 chickens and 4 rabbits", "1,234", "\\frac{1}{2}", or a
    whole GSM8K solution with its "#### 1,234".
    """

    key: str  # identity, so that no problem is both trained on and tested
    statement: str  # the user's turn
    answer: str


def load_problems(path: str | os.PathLike) -> list[Problem]:
    """Problems from a file of JSON lines (UTF-8), each an object with a statement and an answer.

        {"key": "p1", "statement": "10 heads and 28 feet: how many rabbits?", "answer": "4"}
        {"question": "Natalia sold 48 clips in April …", "answer": "… #### 72"}

    "question" is another name of "statement", as in GSM8K. Where there is no key, it is made from the
    statement, so that it stays the same when lines are added or moved. Empty lines do not count.

    Raises:
        ValueError: a line that is no such object, an answer that is no reference for `verify_answer`, or a
            key that occurred before; it names the line. Also for a file without any problem.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    problems: list[Problem] = []
    lines: dict[str, int] = {}  # of each key
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            problem = _problem(json.loads(line.decode("utf-8-sig")))
            if problem.key in lines:
                raise ValueError(f"the key is {problem.key!r}, as in line {lines[problem.key]}")
        except ValueError as error:
            raise ValueError(f"line {number} of {path}: {error}") from None
        problems.append(problem)
        lines[problem.key] = number
    if not problems:
        raise ValueError(f"{path} holds no problem; expected one JSON object a line")
    return problems


def _problem(row: object) -> Problem:
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {row!r:.60}")
    if row.keys() - {"key"} not in ({"statement", "answer"}, {"question", "answer"}):
        columns = ", ".join(row) or "none"
        raise ValueError(f"expected the columns statement (or question), answer, perhaps key; got {columns}")
    for name, value in row.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"{name} is {value!r:.60}; expected a text")
    statement, answer = str(row.get("statement", row.get("question"))), str(row["answer"])
    if not statement.strip():
        raise ValueError("the statement is empty")
    verify_answer("", answer)  # raises for what is no reference, now rather than after the model has written
    key = str(row.get("key", "")) or hashlib.sha256(statement.encode()).hexdigest()[:16]
    return Problem(key, statement, answer)
