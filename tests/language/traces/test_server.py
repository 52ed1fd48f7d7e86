"""What servers reply, read into the text that the model has written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import completion

from kdlib.language.answers.final_answer import has_format
from kdlib.language.traces.server import Failure, read_reply

USAGE = {"input_tokens": 5, "output_tokens": 7}
STATEMENT = "10 heads and\n28 feet?"
WHOLE = "2a + 4b = 28\n</think>\n\n4 rabbits"
BOS, EOS, USER, ASSISTANT = (
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
)  # fmt: skip
PROMPT = f"{BOS}{USER}{STATEMENT}{ASSISTANT}"
THOUGHT, ANSWER = "2a + 4b = 28", "4 rabbits"


def read(content, **rest):
    return read_reply(completion(content, **rest), STATEMENT)


@pytest.mark.parametrize(
    "reply",
    [
        read(ANSWER, thought=THOUGHT),
        read(ANSWER, thought=THOUGHT, field="reasoning"),
        read(f"\n\n{ANSWER}", thought=f"\n{THOUGHT}\n", field="reasoning"),
        read(WHOLE),
        read(f"<think>\n{WHOLE}"),
        read(f"\n<think>\n{WHOLE}"),
        read(f"<think>\n{WHOLE}", thought=""),
        # Both apart and in the text, as some gateways send it.
        read(f"<think>\n{WHOLE}", thought=THOUGHT),
        read(WHOLE, thought=f"{THOUGHT}\n", field="reasoning"),
        # `transformers serve` with a Qwen2 model and R1's template.
        read(f"{ANSWER}{EOS}", thought=THOUGHT),
        read(f"{WHOLE}{EOS}"),
        read(f"{PROMPT}{WHOLE}{EOS}"),
        read(f"{PROMPT.replace(chr(10), '')}{WHOLE}{EOS}"),
        read(f"{ANSWER}{EOS}", thought=f"<think>\n{THOUGHT}"),
    ],
)
def test_one_text_in_many_shapes_is_one_text(reply):
    assert reply.completion.text == WHOLE
    assert has_format(reply.completion.text)
    assert not reply.unclosed


@pytest.mark.parametrize(
    "reply",
    [
        read(None, thought=THOUGHT),
        read("", thought=THOUGHT, field="reasoning"),
        read("\n", thought=f"\n{THOUGHT}"),
        read(f"<think>\n{THOUGHT}"),
        read(PROMPT, thought=THOUGHT),
        read(PROMPT, thought=f"{THOUGHT}{EOS}"),
        read(f"{PROMPT}<think>\n{THOUGHT}"),
    ],
)
def test_a_thought_that_was_not_closed_is_known_to_be_open(reply):
    assert (reply.completion.text, reply.unclosed) == (THOUGHT, True)


@pytest.mark.parametrize(
    "text", [ANSWER, "<b>bold</b> and <eos> in the midst", f"{STATEMENT} it says", "a <think> b"]
)
def test_a_text_without_a_thought_stays_as_it_is(text):
    reply = read(text)
    assert (reply.completion.text, reply.unclosed) == (text, False)


def test_what_stands_after_a_second_end_of_thought_is_kept():
    """So that it can be seen to be malformed: `transformers serve` splits at the first."""
    reply = read("b</think>c", thought="a")
    assert reply.completion.text == "a\n</think>\n\nb</think>c" and not has_format(reply.completion.text)


def test_a_thought_without_a_word_is_a_thought():
    assert read("4", thought="\n\n").completion.text == "\n</think>\n\n4"


@given(
    st.text().filter(lambda t: t.strip() and "think>" not in t and "<" not in t),
    st.text().filter(lambda t: t.strip() and "think>" not in t and "<" not in t),
)
def test_thoughts_sent_apart_and_in_the_text_are_the_same(thought, answer):
    thought, answer = thought.strip("\n"), answer.lstrip("\n")
    whole = f"{thought}\n</think>\n\n{answer}"
    shapes = [read(whole), read(f"<think>\n{whole}"), read(answer, thought=thought)]
    assert {reply.completion.text for reply in shapes} == {whole}


def test_what_ended_it_how_long_it_is_and_who_wrote_it():
    reply = read("4", tokens=9, prompt=3)
    assert (reply.completion.finished, reply.completion.tokens) == (True, 9)
    assert reply.usage == {"input_tokens": 3, "output_tokens": 9}
    assert reply.model == "taught-1"
    assert not read("4", finish="length").completion.finished


def test_half_a_surrogate_pair_can_be_written_to_a_file():
    assert read("4 \ud83d rabbits").completion.text.encode()


def without(name):
    return {key: value for key, value in completion("4").items() if key != name}


@pytest.mark.parametrize(
    ("body", "reason", "usage"),
    [
        ([], "no choices", {}),
        ("busy", "no choices", {}),
        (None, "no choices", {}),
        ({"error": {"message": "overloaded"}}, "overloaded", {}),
        (without("choices"), "no choices", USAGE),
        (completion("4") | {"choices": []}, "no choices", USAGE),
        (completion("4") | {"choices": [{"finish_reason": "stop"}]}, "no choices", USAGE),
        (completion("4") | {"choices": [{"message": None}]}, "no choices", USAGE),
        (completion("4", finish="content_filter"), "content_filter", USAGE),
        (completion("4", finish="insufficient_system_resource"), "insufficient_system", USAGE),
        (completion("4", finish=None), "finish_reason None", USAGE),
        (completion(None), "empty", USAGE),
        (completion(" \n"), "empty", USAGE),
        (completion(f"{PROMPT}{EOS}"), "empty", USAGE),
        (completion([{"type": "text"}]), "empty", USAGE),
        (without("usage"), "no usage", {}),
        (completion("4", tokens=None), "no usage", {}),
    ],
)  # fmt: skip
def test_what_is_no_reply_is_told_with_what_it_cost(body, reason, usage):
    with pytest.raises(Failure, match=reason) as raised:
        read_reply(body, STATEMENT)
    assert raised.value.usage == usage
