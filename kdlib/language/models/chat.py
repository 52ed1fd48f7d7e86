"""The prompt that a chat template makes of a statement, and the date that some templates write into it.

Llama 3.2's template and others call `strftime_now`, so that a prompt is another one after midnight. Here a
process asks with one date: that of its first prompt, or of the environment variable KDLIB_DATE. What is bound
to prompts (files of traces, caches, runs) is bound to the date too, so that a run that is resumed on another
day says why it is another, and how it goes on.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache

from transformers import PreTrainedTokenizerBase

__all__ = ["VARIABLE", "apply_template", "date_in_template"]

VARIABLE = "KDLIB_DATE"
_ENTRY = "the date that {} chat template writes (set " + VARIABLE + " to go on with the first)"

Turns = Sequence[Mapping[str, str]]


@cache
def _first_asked() -> date:
    return date.today()


def run_date() -> date:
    """The date of all prompts of this process.

    Raises:
        ValueError: KDLIB_DATE holds no date.
    """
    told = os.environ.get(VARIABLE)
    try:
        return date.fromisoformat(told) if told else _first_asked()
    except ValueError:
        raise ValueError(f"{VARIABLE} is {told!r}; expected a date such as 2026-11-30") from None


def apply_template(
    tokenizer: PreTrainedTokenizerBase, turns: Turns | Sequence[Turns], **options: object
) -> object:
    """`tokenizer.apply_chat_template` with the prompt of generation, and with the date of this process."""
    return _applied(tokenizer, turns, run_date(), **options)


def date_in_template(tokenizer: PreTrainedTokenizerBase, whose: str = "the") -> dict[str, str]:
    """The date as an entry of what a run is bound to, where the chat template writes it; else nothing."""
    turns = [{"role": "user", "content": "a"}]
    days = date(2001, 2, 3), date(2014, 10, 25)
    one, other = (_applied(tokenizer, turns, day, tokenize=False) for day in days)
    return {} if one == other else {_ENTRY.format(whose): run_date().isoformat()}


def _applied(tokenizer: PreTrainedTokenizerBase, turns: object, day: date, **options: object) -> object:
    template = tokenizer.chat_template
    if isinstance(template, str) and "strftime_now" in template:
        options["chat_template"] = f"{_clock(day)}\n{template}"  # the line end after a block is dropped
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, **options)


def _clock(day: date) -> str:
    """A macro in place of transformers' `strftime_now`, which reads the clock; no function can be passed."""
    said = {f"%{letter}": day.strftime(f"%{letter}") for letter in "aAbBdHIjmMpSuUVwWyYGFDcxX"}
    said |= {f"%-{letter}": said[f"%{letter}"].lstrip("0") or "0" for letter in "dHIjmMSUWy"}
    replaced = "".join(f".replace({directive!r}, {text!r})" for directive, text in said.items())
    return "{% macro strftime_now(format) %}{{ format" + replaced + ".replace('%%', '%') }}{% endmacro %}"
