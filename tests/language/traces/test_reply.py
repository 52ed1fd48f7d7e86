"""What servers reply, read into the text that the model has written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import completion

from kdlib.language.answers.final_answer import has_format
from kdlib.language.server import Failure
from kdlib.language.traces.reply import read_reply, tokens_by_bytes

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


def choice(**changed):
    """A reply whose first choice is this."""
    return completion("4") | {"choices": [changed]}


# --- other servers' shapes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "finished"),
    [
        ("stop", True), ("STOP", True), ("eos", True), ("EOS", True), ("eos_token", True), ("end", True),
        ("end_turn", True), ("endTurn", True), ("stop_sequence", True), ("stopped_eos", True),
        ("complete", True), ("COMPLETED", True), ("done", True), ("FINISH_REASON_STOP", True),
        ("length", False), ("LENGTH", False), ("max_tokens", False), ("MAX_TOKENS", False),
        ("maxTokens", False), ("model_length", False), ("stopped_limit", False), ("max_length", False),
        ("truncated", False),
    ],
)  # fmt: skip
def test_what_ended_a_text_has_many_names(reason, finished):
    assert read("4", finish=reason).completion.finished is finished


@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        ("content_filter", "reply"), ("SAFETY", "reply"), ("tool_calls", "reply"), ("error", "reply"),
        ("abort", "reply"), ("insufficient_system_resource", "reply"),
        (None, "shape"), ("", "shape"), (1, "shape"), ("incomplete", "shape"), ("friend", "shape"),
        (["stop"], "shape"),
    ],
)  # fmt: skip
def test_what_may_have_been_cut_off_is_not_kept(reason, fault):
    with pytest.raises(Failure, match="finish_reason") as raised:
        read("4", finish=reason)
    assert raised.value.fault == fault and raised.value.usage == USAGE


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": WHOLE}],
        [{"type": "text", "text": WHOLE[:9]}, {"type": "output_text", "text": WHOLE[9:]}],
        [WHOLE[:9], WHOLE[9:]],
        {"type": "text", "text": WHOLE},
        [{"type": "text", "text": {"value": WHOLE, "annotations": []}}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}, {"text": ANSWER}],
        [{"type": "thinking", "thinking": THOUGHT, "signature": "x"}, {"type": "text", "text": ANSWER}],
        [{"type": "reasoning", "text": THOUGHT}, {"text": ""}, {"type": "text", "text": ANSWER}],
        [{"text": THOUGHT, "thought": True}, {"text": ANSWER}],
    ],
)
def test_a_text_in_parts_is_one_text(content):
    assert read(content).completion.text == WHOLE


@pytest.mark.parametrize(
    "changed",
    [
        {"message": {"content": WHOLE}},
        {"message": WHOLE},
        {"message": None, "text": WHOLE},
        {"text": WHOLE},
        {"delta": {"content": WHOLE}},
        {"message": {"content": ANSWER, "reasoning": [{"type": "text", "text": THOUGHT}]}},
        {"message": {"content": ANSWER, "thinking": THOUGHT}},
    ],
)
def test_a_message_in_other_places_is_found(changed):
    assert read_reply(choice(**changed, finish_reason="stop"), STATEMENT).completion.text == WHOLE


@pytest.mark.parametrize(
    "body",
    [
        choice(message={"content": [{"type": "image_url", "image_url": "x"}]}, finish_reason="stop"),
        choice(message={"content": [{"type": "text"}]}, finish_reason="stop"),
        choice(message={"content": [{"text": "4"}, {"type": "tool_use"}]}, finish_reason="stop"),
        choice(message={"content": 4}, finish_reason="stop"),
        choice(finish_reason="stop"),
        choice(message=None, finish_reason="stop"),
        without("choices"),
        {"message": {"content": "4"}, "done": True},
        {"detail": "no such model"},
    ],
)
def test_a_shape_that_cannot_be_read_will_not_change(body):
    with pytest.raises(Failure) as raised:
        read_reply(body, STATEMENT)
    assert raised.value.fault == "shape"


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 9}, (3, 9)),
        ({"input_tokens": 3, "output_tokens": 9}, (3, 9)),
        ({"prompt_tokens": 3.0, "completion_tokens": 9.0, "total_tokens": "12"}, (3, 9)),
        ({"prompt_tokens": 3, "total_tokens": 12}, (3, 9)),
    ],
)
def test_what_a_server_says_of_tokens_is_believed(usage, expected):
    reply = read_reply(completion("4") | {"usage": usage}, STATEMENT, 100)
    assert (reply.usage["input_tokens"], reply.usage["output_tokens"]) == expected
    assert reply.completion.tokens == 9 and not reply.counted


@pytest.mark.parametrize(
    "usage",
    [
        None, {}, [], "12", {"total_tokens": 12}, {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": 5, "completion_tokens": 0}, {"prompt_tokens": 5, "completion_tokens": -1},
        {"completion_tokens": float("nan")}, {"completion_tokens": float("inf")}, {"completion_tokens": True},
        {"completion_tokens": "9"}, {"completion_tokens": 2.5},
    ],
)  # fmt: skip
def test_where_a_server_does_not_say_tokens_are_counted(usage):
    body = completion("four", thought="so") | {"usage": usage}
    reply = read_reply(body, STATEMENT, 100, len)
    text = "so\n</think>\n\nfour"
    assert reply.completion.tokens == reply.usage["output_tokens"] == len(text) + 1 and reply.counted
    assert reply.usage["input_tokens"] in (len(STATEMENT), 5)
    assert read_reply(body, STATEMENT, 4, len).usage["output_tokens"] == 4  # it cannot be more
    body = completion("four", finish="length") | {"usage": usage}
    assert read_reply(body, STATEMENT, 100, len).completion.tokens == 100
    del body["usage"]
    assert read_reply(body, STATEMENT).counted


def test_tokens_are_rather_too_many():
    """Of GPT-4o's and DeepSeek's tokenizers English has four characters a token, Chinese under two."""
    assert tokens_by_bytes("") == 0 and tokens_by_bytes("1") == 1
    assert tokens_by_bytes("There are four rabbits.") >= 6 and tokens_by_bytes("有四只兔子") >= 4
    assert tokens_by_bytes("1234567890" * 9) >= 50


@pytest.mark.parametrize(
    ("body", "reason", "usage"),
    [
        ([], "no choices", {}),
        ("busy", "no choices", {}),
        (None, "no choices", {}),
        ({"error": {"message": "overloaded"}}, "overloaded", {}),
        (completion("4") | {"choices": []}, "no choices", USAGE),
        (completion("4") | {"choices": None}, "no choices", USAGE),
        (completion("4", finish="content_filter"), "content_filter", USAGE),
        (completion(None), "empty", USAGE),
        (completion(" \n"), "empty", USAGE),
        (completion(f"{PROMPT}{EOS}"), "empty", USAGE),
        (completion([]), "empty", USAGE),
        (completion([{"type": "text", "text": ""}]), "empty", USAGE),
    ],
)  # fmt: skip
def test_what_is_no_reply_is_told_with_what_it_cost(body, reason, usage):
    with pytest.raises(Failure, match=reason) as raised:
        read_reply(body, STATEMENT)
    assert raised.value.usage == usage and raised.value.fault == "reply"
