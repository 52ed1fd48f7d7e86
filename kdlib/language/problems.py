"""What a model is asked: problems, and how a file of them is read (JSON lines, as GSM8K is published)."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdlib.language.answers.final_answer import verify_answer

__all__ = ["Problem", "check_path", "check_problems", "check_text", "load_problems"]


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
    statement, so that it stays the same when lines are added or moved. Empty lines do not count. A number
    is the text that stands there: 0.00001 does not become 1e-05.

    Raises:
        ValueError: a line that is no such object, an answer that is no reference for `verify_answer`, half a
            character (a lone surrogate), or a key that occurred before; it names the line. Also for a file
            without any problem, and for what is no path.
    """
    check_path(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    problems: list[Problem] = []
    lines: dict[str, int] = {}  # of each key
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            problem = _problem(_parsed(line))
            if problem.key in lines:
                raise ValueError(f"the key is {problem.key!r}, as in line {lines[problem.key]}")
        except ValueError as error:
            raise ValueError(f"line {number} of {path}: {error}") from None
        problems.append(problem)
        lines[problem.key] = number
    if not problems:
        raise ValueError(f"{path} holds no problem; expected one JSON object a line")
    return problems


def check_path(path: object) -> None:
    """Refuse what is no path: problems themselves, several paths, None."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path is {path!r:.60}; expected the path of a file")


def check_problems(problems: object) -> None:
    """Refuse anything but problems that can be asked, and say what was given instead.

    Raises:
        ValueError: names the argument, what it holds, and how to make problems.
    """
    if isinstance(problems, str | os.PathLike):
        raise ValueError(f"problems is {str(problems)!r:.80}; expected problems: call load_problems with it")
    if not isinstance(problems, Sequence):  # read twice, which a generator is not
        raise ValueError(f"problems is {problems!r:.60}; expected a list of Problem")
    for number, problem in enumerate(problems):
        if not isinstance(problem, Problem):
            raise ValueError(
                f"problems[{number}] is {problem!r:.60}; expected a Problem(key, statement, answer), as "
                "load_problems reads them from a file"
            )
        for name in ("key", "statement", "answer"):
            check_text(f"{name} of problems[{number}]", getattr(problem, name))
        if not problem.statement.strip():
            raise ValueError(f"statement of problems[{number}] is empty; expected what a model is asked")


def check_text(name: str, text: object) -> None:
    """Refuse what is no text, or cannot be written as UTF-8: a lone surrogate is half of a character."""
    if not isinstance(text, str):
        raise ValueError(f"{name} is {text!r:.60}; expected a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds half a character at place {error.start} ({text[error.start]!r}, a lone surrogate)"
            "; write the whole character there, or remove it"
        ) from None


class _Number(str):
    """A number as it is written."""

    __repr__ = str.__str__


def _parsed(line: bytes) -> object:
    def refused(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON; expected a number or a text")

    text = line.decode("utf-8-sig")
    return json.loads(text, parse_int=_Number, parse_float=_Number, parse_constant=refused)


def _problem(row: object) -> Problem:
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {row!r:.60}")
    if row.keys() - {"key"} not in ({"statement", "answer"}, {"question", "answer"}):
        columns = ", ".join(row) or "none"
        raise ValueError(f"expected the columns statement (or question), answer, perhaps key; got {columns}")
    for name, value in row.items():
        check_text(name, value)
    statement, answer = str(row.get("statement", row.get("question"))), str(row["answer"])
    if not statement.strip():
        raise ValueError("the statement is empty")
    verify_answer("", answer)  # raises for what is no reference, now rather than after the model has written
    key = str(row.get("key", "")) or hashlib.sha256(statement.encode()).hexdigest()[:16]
    return Problem(key, statement, answer)
