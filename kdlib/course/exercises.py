"""Self-checks of the course's exercises. They answer; they never raise."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def self_check(exercise: str) -> Iterator[None]:
    """Run asserts on a reader's answer and say how it went.

        with self_check("Exercise 1"):
            assert close(my_answer, 0.5), "at T = 1 nothing should change"

    prints "Exercise 1: correct." or "Exercise 1: not yet. " with the message of the assert or another error.
    """
    try:
        yield
    except AssertionError as failed:
        print(f"{exercise}: not yet. {failed}".rstrip())
    except Exception as error:
        print(f"{exercise}: not yet. Your code stopped with {type(error).__name__}: {error}")
    else:
        print(f"{exercise}: correct.")
