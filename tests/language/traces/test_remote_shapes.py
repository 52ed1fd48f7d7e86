"""Servers that reply or refuse otherwise than OpenAI's: what is kept, and what is not paid for twice."""

import asyncio
import json
from collections import Counter

import pytest
from characters_tokenizer import characters_tokenizer
from loopback import Response, Server, always, as_json, completion
from test_remote import collect, no_keys_and_no_pauses, notes, number, problems, right  # noqa: F401

from kdlib.language.problems import Problem
from kdlib.language.traces.file import load_traces
from kdlib.language.traces.remote import BudgetReached, TracesMissing


@pytest.fixture
def path(tmp_path):
    return tmp_path / "traces.jsonl"


def changed(**fields):
    """A right answer with these fields of its body; None leaves one out."""

    async def answer(request):
        body = completion(f"the answer is {number(request)}") | fields
        return as_json({name: value for name, value in body.items() if value is not None})

    return answer


def finishing(reason):
    async def answer(request):
        return as_json(completion(str(number(request)), finish=reason))

    return answer


async def in_parts(request):
    return as_json(completion([{"type": "text", "text": str(number(request))}]))


@pytest.mark.parametrize(
    "answer", [finishing("eos"), finishing("eos_token"), finishing("end"), in_parts, changed(usage=None)],
    ids=["eos", "eos_token", "end", "parts", "no usage"],
)  # fmt: skip
def test_what_can_be_read_is_kept_and_asked_for_once(path, answer):
    with Server(answer) as server:
        traces = collect(server, path, asked=problems(10), samples=4)
    assert len(server.requests) == len(traces) == 40
    assert all(trace.correct and trace.finished for trace in traces)


@pytest.mark.parametrize(
    "answer",
    [
        finishing("friend"),
        changed(choices=[{"message": {"content": 4}, "finish_reason": "stop"}]),
        changed(choices=None, output="the answer is 1"),
    ],
    ids=["reason", "content", "no choices"],
)
def test_a_shape_that_will_not_change_is_paid_for_once_and_shown(path, answer):
    with Server(answer) as server, pytest.raises(TracesMissing) as raised:
        collect(server, path, asked=problems(40), samples=4, concurrency=3)
    assert len(server.requests) <= 3 + 2
    for part in ("stopped early", "The first reply of no use begins: '{", "object"):
        assert part in str(raised.value)


def test_a_stream_that_nobody_asked_for_is_shown_at_once():
    async def answer(request):
        return Response(b'data: {"choices": []}\n\n')

    with Server(answer) as server, pytest.raises(TracesMissing, match="begins: 'data: {"):
        collect(server, asked=problems(40), samples=4, concurrency=1)
    assert len(server.requests) == 1


def test_one_odd_reply_among_good_ones_costs_its_own_trace(path):
    async def answer(request):
        return await (finishing("friend") if number(request) == 5 else right)(request)

    with Server(answer) as server, pytest.raises(TracesMissing, match="1 requests failed") as raised:
        collect(server, path, asked=problems(8), samples=1, concurrency=1)
    assert len(raised.value.traces) == 7 and len(server.requests) == 8


def test_replies_of_no_use_from_the_start_end_the_run_after_ten(path):
    with Server(always(completion(""))) as server, pytest.raises(TracesMissing, match="is empty.*begins: '{"):
        collect(server, path, asked=problems(40), samples=4, concurrency=1)
    assert len(server.requests) == 10


# --- tokens that the server does not count ----------------------------------------------------------


def test_without_usage_the_budget_still_ends_the_run(path):
    with Server(changed(usage=None)) as server:
        # "the answer is 0" of 15 bytes is taken for ten tokens with its end: room for four, and not for five.
        with pytest.warns(BudgetReached, match="4 of 40.*about .* and 40 output tokens"):
            collect(
                server, path, asked=problems(10), samples=4, token_budget=49, max_new_tokens=12, concurrency=1
            )
        with pytest.warns(BudgetReached, match="4 of 40.*about"):
            collect(server, path, asked=problems(10), samples=4, token_budget=49, max_new_tokens=12)
    assert len(server.requests) == 4
    assert [note["counted"] for note in notes(path)] == [True] * 4
    assert {trace.tokens for trace in load_traces(path)} == {10}


def test_a_tokenizer_counts_exactly(path):
    with Server(changed(usage=None)) as server:
        traces = collect(server, path, tokenizer=characters_tokenizer(), max_new_tokens=100)
    assert {trace.tokens for trace in traces} == {len("the answer is 0") + 1}
    assert {note["usage"]["input_tokens"] for note in notes(path)} == {len("0 heads")}


# --- parameters that a server refuses ---------------------------------------------------------------


def refusing(*said):
    """A server that refuses, with these words, requests that hold the first of each pair."""

    async def answer(request):
        for names, message in said:
            if set(names) <= request.body.keys():
                return as_json({"error": {"message": message, "type": "invalid_request_error"}}, 400)
        return await right(request)

    return answer


OLD = ("max_tokens",), (
    "Unsupported parameter: 'max_tokens' is not supported with this model. "
    "Use 'max_completion_tokens' instead."
)
BOTH = ("temperature", "top_p"), (
    "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
)
DEFAULT = ("temperature",), "Unsupported value: 'temperature' does not support 0.6; only the default (1) is."
SEED = ("seed",), "[{'type': 'extra_forbidden', 'loc': ['body', 'seed'], 'msg': 'Extra inputs'}]"


def test_a_server_that_wants_max_completion_tokens_gets_it_without_a_word(path):
    with Server(refusing(OLD)) as server:
        assert len(collect(server, path, concurrency=1)) == 6
    assert len(server.requests) == 6 + 1
    for request in server.requests[1:]:
        assert "max_tokens" not in request.body and request.body["max_completion_tokens"] == 10
    assert not any("left_out" in note for note in notes(path))


@pytest.mark.parametrize(
    ("said", "left_out"),
    [
        ([BOTH], ["top_p"]),
        ([SEED], ["seed"]),
        ([DEFAULT], ["temperature"]),
        ([OLD, BOTH, SEED], ["top_p", "seed"]),
        ([OLD, BOTH, DEFAULT], ["top_p", "temperature"]),
    ],
)  # fmt: skip
def test_what_a_server_refuses_by_name_is_not_sent_and_told(path, said, left_out):
    with (
        Server(refusing(*said)) as server,
        pytest.warns(UserWarning, match="the server refuses .*".join(["", *left_out[:1]])),
    ):
        traces = collect(server, path, concurrency=1)
    assert len(traces) == 6 and all(trace.correct for trace in traces)
    assert len(server.requests) <= 6 + 3
    last = server.requests[-1].body
    assert not last.keys() & set(left_out) and len(last) == 6 - len(left_out)
    assert notes(path)[-1]["left_out"] == sorted(left_out, key=["top_p", "seed", "temperature"].index)


def test_a_temperature_of_0_is_not_given_up():
    with Server(refusing(DEFAULT)) as server, pytest.raises(TracesMissing, match="only the default"):
        collect(server, temperature=0, samples=1, asked=problems(1))
    assert len(server.requests) == 1


def test_words_of_the_statement_are_no_parameters():
    asked = [Problem("k", "a seed, a temperature and top_p", "1")]

    async def answer(request):
        return as_json({"error": {"message": f"cannot read {request.statement}"}}, 400)

    with Server(answer) as server, pytest.raises(TracesMissing, match="cannot read"):
        collect(server, asked=asked, samples=1)
    assert len(server.requests) == 1


def test_a_change_that_does_not_help_is_taken_back_and_the_first_refusal_told():
    message = "'max_tokens' or 'max_completion_tokens' is too large: the context length is 4096"

    async def answer(request):
        return as_json({"error": {"message": message}}, 400) if number(request) == 0 else await right(request)

    with Server(answer) as server, pytest.raises(TracesMissing, match="context length is 4096") as raised:
        collect(server, samples=1, concurrency=1)
    assert len(raised.value.traces) == 2
    assert ["max_tokens" in request.body for request in server.requests] == [True, False, True, True]


# --- limits -----------------------------------------------------------------------------------------


def test_a_limit_that_names_its_end_is_waited_for(monkeypatch):
    """As OpenAI says it: 6m0s is longer than its client waits, 0.4 s is left to the client."""
    slept, sleep = [], asyncio.sleep

    async def shorter(seconds, *rest):
        slept.append(seconds)
        await sleep(0 if seconds > 100 else seconds, *rest)

    monkeypatch.setattr(asyncio, "sleep", shorter)
    limits = iter(["6m0s", "6m0s", "400ms"])

    async def answer(request):
        limit = next(limits, None)
        if limit:
            return as_json({"error": {"message": "slowly"}}, 429, x_ratelimit_reset_requests=limit)
        return await right(request)

    with Server(answer) as server:
        (trace,) = collect(server, asked=problems(1), samples=1)
    assert trace.correct and len(server.requests) == 4
    assert [seconds for seconds in slept if seconds > 100] == [360, 360]
    assert len({json.dumps(request.body) for request in server.requests}) == 1


def test_a_limit_that_lasts_for_hours_is_not_waited_for():
    with (
        Server(always({}, 429, x_ratelimit_reset_tokens="2h0m0s")) as server,
        pytest.raises(TracesMissing, match="Retry-After: 7200"),
    ):
        collect(server, asked=problems(1), samples=1)
    assert len(server.requests) == 1


# --- what is not kept as correct --------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        "6Ġ*Ġ7Ġ=Ġ42ĊĊTheĠanswerĠisĠ42", "6 *Ġ7 is 42. Answer: 42", "Ġ42", "42Ċ", "▁The▁answer▁is 42",
        "6 * 7<0x0A>Answer: 42", "The answer is 42.Ċ",
    ],
)  # fmt: skip
def test_byte_markers_of_a_tokenizer_are_kept_as_wrong(path, written):
    with Server(always(completion(written))) as server:
        (trace,) = collect(
            server, path, asked=[Problem("k", "6 * 7?", "42")], samples=1, verify=lambda text, answer: True
        )
    assert not trace.correct and trace.finished and trace.text == written


@pytest.mark.parametrize(
    "written", ["Ġorġ għandu 42", "Il-Ġimgħa: 42", "Ċentru 42", "\\alpha_1 = 42", "▁ 42"]
)
def test_letters_of_other_languages_are_no_markers(written):
    with Server(always(completion(written))) as server:
        (trace,) = collect(
            server, asked=[Problem("k", "6 * 7?", "42")], samples=1, verify=lambda text, answer: True
        )
    assert trace.correct


def test_kept_and_asked_agree(path):
    """Of the counters, one for each problem and sample."""
    with Server(finishing("eos")) as server:
        collect(server, path, samples=3)
    assert Counter(request.statement for request in server.requests) == {f"{n} heads": 3 for n in range(3)}
