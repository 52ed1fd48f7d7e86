"""A thought that the chat template does not open."""

from dataclasses import replace

import pytest

from kdlib.language.answers.final_answer import final_answer, has_format
from kdlib.language.distill.thought import with_thought
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer
from kdlib.language.traces.file import Trace

THOUGHT = Trace("a", "A cage", "4", 0, " Suppose\n</think>\n\n4", 6, True, True, True)


@pytest.fixture
def plain():
    """A tokenizer whose template opens no thought, as those of base models."""
    tokenizer = puzzle_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<think>\\n", "")
    return tokenizer


def test_a_template_that_opens_no_thought_gets_one_in_the_completion(plain):
    assert with_thought(THOUGHT, puzzle_tokenizer()) is THOUGHT
    opened = with_thought(replace(THOUGHT, finished=False), plain)
    assert opened.text == f"<think>\n{THOUGHT.text}"
    assert not opened.finished  # what was cut off gets no end
    assert with_thought(opened, plain) is opened


@pytest.mark.parametrize(
    "text", ["The answer is 4.", " Suppose all are", "<think>\n Suppose", "So: <think> a </think> 4"]
)
def test_a_text_without_a_thought_or_with_its_own_stays_as_it_is(plain, text):
    trace = replace(THOUGHT, text=text)
    assert with_thought(trace, plain) is trace


def test_an_answer_stays_an_answer(plain):
    trace = replace(THOUGHT, text="The answer is 4.")
    assert final_answer(with_thought(trace, plain).text) == final_answer(trace.text) is not None
    assert has_format(with_thought(THOUGHT, plain).text)


def test_a_tokenizer_without_a_template_is_left_to_those_that_refuse_it():
    tokenizer = puzzle_tokenizer()
    tokenizer.chat_template = None
    assert with_thought(THOUGHT, tokenizer) is THOUGHT
