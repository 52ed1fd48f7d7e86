"""Traces from a server: what is asked for, what is kept, what it may cost, and who learns the key."""

import asyncio
import json
import logging
import os
import signal
import threading
import time
import traceback
from collections import Counter
from dataclasses import replace

import pytest
from loopback import Response, Server, always, as_json, completion

from kdlib.language.problems import Problem
from kdlib.language.traces.file import load_traces, open_traces
from kdlib.language.traces.remote import BudgetReached, TracesMissing, collect_remote_traces
from kdlib.storage import ForeignFile

KEY = "sk-secret-0123456789"
THOUGHT = "2a + 4b = 28"


def problems(count=3):
    return [Problem(f"k{n}", f"{n} heads", str(n)) for n in range(count)]


def number(request):
    """Of the problem that a request is about."""
    return int(request.statement.split()[0])


async def right(request):
    return as_json(completion(str(number(request)), thought=THOUGHT))


def collect(server, path=None, *, asked=None, model="teacher", **changed):
    settings = {"samples": 2, "max_new_tokens": 10, "concurrency": 2, "timeout": 20, **changed}
    asked = problems() if asked is None else asked
    return collect_remote_traces(getattr(server, "url", server), model, asked, path, **settings)


@pytest.fixture(autouse=True)
def no_keys_and_no_pauses(monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.0)
    monkeypatch.setattr("kdlib.language.server._LONGEST_PAUSE", 0.0)
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "traces.jsonl"


def notes(path):
    settings = json.loads(path.read_bytes().splitlines()[0])["settings"]
    with open_traces(path, settings) as file:
        return file.notes


# --- what is asked for -----------------------------------------------------------------------------


def test_traces_come_in_the_order_of_problems_and_samples_whatever_arrives_first(path):
    async def answer(request):
        await asyncio.sleep(0.02 * (3 - number(request)))
        return await right(request)

    asked = [*problems()[::-1], Problem("wrong", "1 head", "2")]
    with Server(answer) as server:
        traces = collect(server, path, asked=asked, concurrency=8)
    assert [(t.key, t.sample) for t in traces] == [(p.key, s) for p in asked for s in range(2)]
    assert [(t.statement, t.answer) for t in traces[::2]] == [(p.statement, p.answer) for p in asked]
    assert [t.correct for t in traces] == [True] * 6 + [False] * 2
    assert all(t.finished and t.well_formed and t.tokens == 7 for t in traces)
    assert traces[0].text == f"{THOUGHT}\n</think>\n\n2"
    assert Counter(load_traces(path)) == Counter(traces)


def test_a_request_holds_the_statement_and_the_settings_and_nothing_else():
    with Server(right) as server:
        collect(server, temperature=0.7, top_p=0.9, extra_body={"chat_template_kwargs": {"thinking": True}})
    bodies = [request.body for request in server.requests]
    assert {request.path for request in server.requests} == {"/v1/chat/completions"}
    assert len({body.pop("seed") for body in bodies}) == 6
    statements = Counter(body.pop("messages")[0]["content"] for body in bodies)
    assert statements == {f"{n} heads": 2 for n in range(3)}
    assert bodies == [
        {"model": "teacher", "temperature": 0.7, "top_p": 0.9, "max_tokens": 10,
         "chat_template_kwargs": {"thinking": True}}
    ] * 6  # fmt: skip
    assert all(len(request.body["messages"]) == 1 for request in server.requests)


def test_seeds_follow_from_seed_problem_and_sample_and_fit_in_31_bits():
    def seeds(**changed):
        with Server(right) as server:
            collect(server, **changed)
        return {(r.statement, r.body["seed"]) for r in server.requests}

    first = seeds()
    assert seeds(concurrency=1) == first < seeds(samples=3)
    assert not first & seeds(seed=1)
    assert all(0 <= seed < 2**31 for _, seed in first)


def test_no_seed_is_sent_where_none_is_wanted():
    with Server(right) as server:
        collect(server, seed=None)
    assert not any("seed" in request.body for request in server.requests)


def test_as_many_requests_are_in_flight_as_may_be_and_no_more():
    together = threading.Event()

    async def answer(request):
        if server.in_flight == 3:
            together.set()
        for _ in range(500):
            if together.is_set():
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        return await right(request)

    with Server(answer) as server:
        collect(server, concurrency=3, samples=4)
    assert together.is_set() and server.peak == 3


def test_temperature_0_is_asked_for_once():
    with Server(right) as server:
        collect(server, temperature=0, samples=1)
    assert {request.body["temperature"] for request in server.requests} == {0}


# --- what is kept ----------------------------------------------------------------------------------


def test_a_second_call_asks_for_what_is_missing_only(path):
    with Server(right) as server:
        first = collect(server, path, asked=problems(2))
        assert collect(server, path, asked=problems(2)) == first
        assert len(server.requests) == 4
        more = collect(server, path, asked=problems(3), samples=3)
        assert len(server.requests) == 9
        assert collect(server, path, asked=problems(1)) == first[:2]
    assert [t for t in more if t.sample < 2 and t.key != "k2"] == first
    assert len(load_traces(path)) == 9


def test_the_server_may_move_but_not_become_another(path):
    with Server(right) as server:
        collect(server, path)
    with Server(right) as server:
        assert len(collect(server, path, samples=3)) == 9
        for changed in (
            {"model": "other"}, {"temperature": 0.5}, {"top_p": 0.9}, {"max_new_tokens": 11}, {"seed": 1},
            {"seed": None}, {"extra_body": {"min_p": 0.1}}, {"verify": lambda text, answer: True},
        ):  # fmt: skip
            with pytest.raises(
                ForeignFile, match="teacher was" if "model" in changed else next(iter(changed))
            ):
                collect(server, path, **changed)
        with pytest.raises(ValueError, match="another statement or answer"):
            collect(server, path, asked=[Problem("k0", "0 heads", "7")])
        assert len(server.requests) == 3


def test_what_each_reply_has_cost_and_who_wrote_it_stands_in_the_file(path):
    with Server(right) as server:
        collect(server, path)
    usage = {"input_tokens": 5, "output_tokens": 7}
    assert notes(path) == [{"usage": usage, "model": "taught-1"}] * 6


def test_replies_are_verified_in_the_thread_that_called():
    seen = []

    def verify(text, answer):
        seen.append((threading.current_thread(), text, answer))
        return answer == "1"

    with Server(right) as server:
        traces = collect(server, verify=verify)
    assert {thread for thread, *_ in seen} == {threading.current_thread()}
    assert sorted(seen[0][1:]) == sorted([f"{THOUGHT}\n</think>\n\n{seen[0][2]}", seen[0][2]])
    assert [t.correct for t in traces] == [False, False, True, True, False, False]


def test_what_was_cut_off_or_has_no_answer_is_not_correct():
    shapes = [
        completion("1", thought="so", finish="length"),
        completion(None, thought="the answer is 1"),  # ended within its thought
        completion("<think>\nthe answer is 1"),
        completion("the answer is 1"),  # by a model that writes no thoughts
    ]

    async def answer(request):
        return as_json(shapes[number(request)])

    with Server(answer) as server:
        traces = collect(server, asked=[Problem(f"k{n}", f"{n} heads", "1") for n in range(4)], samples=1)
    assert [t.correct for t in traces] == [False, False, False, True]
    assert [t.finished for t in traces] == [False, True, True, True]


def test_a_verifier_that_fails_loses_no_other_trace_and_no_cost(path):
    def verify(text, answer):
        if answer == "1":
            raise ZeroDivisionError("oh")
        return True

    with Server(right) as server, pytest.raises(RuntimeError, match="sample 0 of problem 'k1'.*oh"):
        collect(server, path, verify=verify, concurrency=1)
    assert {(t.key, t.sample) for t in load_traces(path)} >= {("k0", 0), ("k0", 1)}
    assert len(notes(path)) > len(load_traces(path))


def test_it_can_be_called_where_an_event_loop_runs():
    async def cell():
        return collect(server)

    with Server(right) as server:
        assert len(asyncio.run(cell())) == 6


@pytest.mark.parametrize("with_file", [True, False])
def test_an_interrupt_drops_what_is_in_flight_and_keeps_what_has_arrived(path, with_file):
    left = []

    async def answer(request):
        if request.number < 3:
            return await right(request)
        if request.number == 4:  # number 3 is in flight too
            os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(60)
        finally:
            left.append(request.number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Server(answer) as server:
            with pytest.raises(KeyboardInterrupt):
                collect(server, path if with_file else None)
            threads = [t.name for t in threading.enumerate() if "portal" in t.name]
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(server.requests) == 5 and not threads
    if with_file:
        assert len(load_traces(path)) == 3
        with Server(right) as server:
            assert len(collect(server, path)) == 6
        assert len(server.requests) == 3


def test_what_arrives_while_it_is_interrupted_is_kept(path):
    """The replies wait for a verifier, which is where the interrupt comes."""

    def verify(text, answer):
        if answer == "1":
            while server.in_flight or len(server.requests) < 6:
                threading.Event().wait(0.01)
            threading.Event().wait(0.2)
            raise KeyboardInterrupt
        return True

    with Server(right) as server, pytest.raises(KeyboardInterrupt):
        collect(server, path, samples=1, asked=problems(6), concurrency=6, verify=verify)
    assert {t.key for t in load_traces(path)} == {"k0", "k2", "k3", "k4", "k5"}
    assert len(notes(path)) == 6


def test_the_bar_shows_tokens_and_cost(capsys):
    with Server(right) as server:
        collect(server, prices=(1.0, 10_000.0), progress=True)
        assert "30 input and 42 output tokens, $0.4200" in capsys.readouterr().err
        collect(server)
    assert capsys.readouterr() == ("", "")


# --- what fails ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 529])
def test_what_may_pass_is_tried_again(status):
    async def answer(request):
        return as_json({"error": {"message": "no"}}, status) if request.number < 3 else await right(request)

    with Server(answer) as server:
        (trace,) = collect(server, asked=problems(1), samples=1)
    assert trace.correct and len(server.requests) == 4
    assert len({request.content for request in server.requests}) == 1  # the same seed


def test_the_server_says_when_to_come_back():
    times = []

    async def answer(request):
        times.append(time.monotonic())
        return as_json({}, 429, Retry_After="0.4") if request.number < 1 else await right(request)

    with Server(answer) as server:
        collect(server, asked=problems(1), samples=1)
    assert times[1] - times[0] >= 0.4


def test_nobody_waits_for_hours():
    asked, too_late = problems(1), always({}, 429, Retry_After="7200")
    with Server(too_late) as server, pytest.raises(TracesMissing, match="Retry-After: 7200"):
        collect(server, asked=asked, samples=1)
    assert len(server.requests) == 1


def test_a_connection_that_breaks_and_a_reply_that_does_not_come_are_tried_again():
    async def answer(request):
        response = await right(request)
        if request.number == 2:
            await asyncio.sleep(2)
        return replace(response, share=request.number / 2) if request.number < 2 else response

    with Server(answer) as server:
        collect(server, asked=problems(1), samples=1, timeout=0.5)
    assert len(server.requests) == 4


def test_a_request_is_given_up_after_its_retries_and_the_reason_told(path):
    async def answer(request):
        return (
            as_json({"error": {"message": "no luck"}}, 500) if number(request) == 1 else await right(request)
        )

    with Server(answer) as server, pytest.raises(TracesMissing) as raised:
        collect(server, path, retries=2, concurrency=3)
    error = raised.value
    assert set(error.reasons) == {("k1", 0), ("k1", 1)}
    assert error.traces == sorted(load_traces(path), key=lambda t: (t.key, t.sample))
    assert [(t.key, t.sample) for t in error.traces] == [("k0", 0), ("k0", 1), ("k2", 0), ("k2", 1)]
    for part in (
        "2 requests failed",
        "500: ", "no luck",
        "'k1'",
        "4 of 6 traces are in",
        "20 input and 28 output",
    ):
        assert part in str(error)
    assert len(server.requests) == 4 + 2 * 3
    with Server(right) as server:
        assert len(collect(server, path)) == 6
    assert len(server.requests) == 2


def test_a_server_that_is_gone_is_not_asked_for_everything():
    with Server(right) as server:
        url = server.url
    with pytest.raises(TracesMissing, match="stopped early: [345] requests failed.*onnect"):
        collect(url, asked=problems(500), concurrency=3, retries=1)


def test_a_failure_now_and_then_does_not_stop_the_others():
    async def answer(request):
        return as_json({}, 500) if number(request) % 2 else await right(request)

    with Server(answer) as server, pytest.raises(TracesMissing) as raised:
        collect(server, asked=problems(20), samples=1, retries=0, concurrency=20)
    assert len(raised.value.traces) == 10 and len(server.requests) == 20


def test_problems_that_cannot_be_asked_stop_nobody_unless_there_is_nothing_else():
    async def answer(request):
        return as_json({}, 400) if number(request) < 9 else await right(request)

    with Server(answer) as server, pytest.raises(TracesMissing) as raised:
        collect(server, asked=problems(12), samples=3, concurrency=1)
    assert len(raised.value.traces) == 9 and len(server.requests) == 36
    with (
        Server(always(completion(None))) as server,
        pytest.raises(TracesMissing, match="stopped early: 5 requests failed.*the reply is empty"),
    ):
        collect(server, asked=problems(50), samples=3, concurrency=1, retries=1)
    assert len(server.requests) == 10


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_is_not_repeated_and_costs_only_its_trace(status):
    async def answer(request):
        if number(request) == 1:
            return as_json({"error": {"message": "context too long"}}, status)
        return await right(request)

    with (
        Server(answer) as server,
        pytest.raises(TracesMissing, match="context too long.*max_new_tokens") as raised,
    ):
        collect(server, concurrency=3, samples=1)
    assert len(raised.value.traces) == 2 and len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "body", "fix"),
    [
        (401, {"error": {"message": "who are you"}}, "401: .*who are you.*key_variable"),
        (403, {"detail": "not for you"}, "403: .*not for you.*key_variable"),
        (402, {"error": {"message": "pay"}}, "402: .*pay.*balance"),
        (429, {"error": {"message": "pay", "code": "insufficient_quota"}}, "429: .*pay.*quota"),
        (404, {"error": "nobody here"}, "404: nobody here.*up to /v1.*'teacher'.*/v1/models"),
        (307, {}, "307.*up to /v1"),
        (405, "what", "405: what.*up to /v1"),
    ],
)
def test_what_every_request_would_meet_ends_the_run_at_once(status, body, fix):
    elsewhere = "http://127.0.0.1:9/v1"
    with Server(always(body, status, Location=elsewhere)) as server, pytest.raises(TracesMissing, match=fix):
        collect(server, asked=problems(50))
    # The client takes a quota that is used up for a limit that passes.
    assert len(server.requests) <= (18 if status == 429 else 2)


def test_a_reply_without_a_text_is_drawn_anew_and_paid_for(path):
    async def answer(request):
        return as_json(completion("")) if request.number < 2 else await right(request)

    with Server(answer) as server:
        (trace,) = collect(server, path, asked=problems(1), samples=1)
    assert trace.correct and len({request.body["seed"] for request in server.requests}) == 3
    assert [note["usage"]["output_tokens"] for note in notes(path)] == [7, 7, 7]
    assert [note.get("model") for note in notes(path)] == [None, None, "taught-1"]


@pytest.mark.parametrize(
    "content", [b"", b"<html>busy</html>", b"\xff\xfe", b'{"choices": [', b"[" * 100_000]
)
def test_garbage_is_tried_again_and_then_reported(content):
    async def answer(request):
        return Response(content)

    with Server(answer) as server, pytest.raises(TracesMissing, match="not JSON"):
        collect(server, asked=problems(1), samples=1, retries=2)
    assert len(server.requests) == 3


# --- what it may cost ------------------------------------------------------------------------------


def test_a_token_budget_is_never_exceeded_and_a_larger_one_goes_on(path):
    with Server(right) as server:
        # After 14 of 30 tokens there is room for 10 more, after 21 there is none.
        with pytest.warns(BudgetReached, match="token_budget=30 has no room.*3 of 6.*15 input and 21 output"):
            traces = collect(server, path, token_budget=30, concurrency=1)
        assert [(t.key, t.sample) for t in traces] == [("k0", 0), ("k0", 1), ("k1", 0)]
        with pytest.warns(BudgetReached):
            assert collect(server, path, token_budget=30) == traces
        assert len(server.requests) == 3
        assert len(collect(server, path, token_budget=45, concurrency=8)) == 6
    assert len(server.requests) == 6


def test_requests_in_flight_are_taken_to_need_all_they_may():
    async def answer(request):
        await asyncio.sleep(0.05)
        return await right(request)

    with Server(answer) as server, pytest.warns(BudgetReached):
        # Room for two at once; what is left of them makes room for the fourth.
        assert len(collect(server, token_budget=31, concurrency=6)) == 4
    assert server.peak == 3 and len(server.requests) == 4


def test_a_cost_budget_counts_prompts_too(path):
    # At 1 $ and 10 $ a token, what a request may cost is 71 $ for its prompt of 7 bytes in a template, and
    # 100 $ for 10 tokens; what it does cost is 5 $ and 70 $.
    prices = (1e6, 10e6)
    with Server(right) as server:
        with pytest.warns(BudgetReached, match=r"cost_budget=245.9 has.* \$75.0000 spent"):
            assert len(collect(server, path, cost_budget=245.9, prices=prices, concurrency=1)) == 1
        with pytest.warns(BudgetReached):
            assert len(collect(server, path, cost_budget=321, prices=prices, concurrency=1)) == 3
    assert len(server.requests) == 3


def test_replies_that_were_no_good_count_too(path):
    async def answer(request):
        return as_json(completion(None)) if request.number < 2 else await right(request)

    with Server(answer) as server:
        with pytest.warns(BudgetReached, match="1 of 6"):
            collect(server, path, token_budget=30, concurrency=1)
        assert len(server.requests) == 3
        with pytest.warns(BudgetReached, match="1 of 6"):
            collect(server, path, token_budget=30)
    assert len(server.requests) == 3


# --- who learns the key ----------------------------------------------------------------------------


def test_a_key_is_sent_to_whom_it_is_for_and_not_to_others(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("OPENAI_ORG_ID", "org")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project")
    monkeypatch.setenv("TEACHER_KEY", f" {KEY}\n")
    with Server(right) as server:
        collect(server, asked=problems(1), samples=1)
        collect(server, asked=problems(1), samples=1, key_variable="TEACHER_KEY")
    without, with_key = (request.headers for request in server.requests)
    assert "authorization" not in without
    assert with_key["authorization"] == f"Bearer {KEY}"
    assert not {"openai-organization", "openai-project"} & (without.keys() | with_key.keys())


def test_no_proxy_stands_between_a_machine_and_itself(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server(right) as server:
        assert len(collect(server, retries=0)) == 6


async def telling(request):
    """Servers that send the key back in whatever they say."""
    key = request.headers["authorization"].removeprefix("Bearer ")
    message = {"error": {"message": f"{'x' * 370} your key {key} is odd", "key": key}}
    match number(request):
        case 0:
            return as_json(message, 400)
        case 1:
            return as_json(message, 500)
        case 2:
            return as_json(completion(f"I know {key}", thought=key))
        case 3:
            return Response(f"no JSON, but {key}".encode())
        case 4:
            return as_json(completion(None) | {"choices": [{"finish_reason": key, "message": {}}]})
        case 5:
            return as_json(message)
    return as_json(message, number(request))


@pytest.mark.parametrize("numbers", [range(6), [401], [403], [404], [418], [307]])
def test_the_key_is_nowhere_to_be_found_even_if_the_server_sends_it_back(
    monkeypatch, path, capfd, caplog, numbers
):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    asked = [Problem(f"k{n}", f"{n} heads", "1") for n in numbers]
    with Server(telling) as server, caplog.at_level(logging.DEBUG), pytest.raises(TracesMissing) as raised:
        collect(
            server, path, asked=asked, samples=1, retries=1, concurrency=6, key_variable="TEACHER_KEY",
            progress=True,
        )  # fmt: skip
    assert any(KEY in request.headers["authorization"] for request in server.requests)
    error = raised.value
    assert len(error.reasons) == (5 if len(asked) == 6 else 1)
    shown = [
        str(error),
        repr(error),
        repr(error.reasons),
        repr(error.traces),
        caplog.text,
        *capfd.readouterr(),
    ]
    shown += traceback.TracebackException.from_exception(error, capture_locals=True).format()
    shown += [repr(vars(record)) for record in caplog.records]
    shown += [file.read_text() for file in path.parent.rglob("*") if file.is_file()]
    assert len(shown) > 10
    for text in shown:
        assert KEY not in text and "secret-01234" not in text
    chain = [error.__cause__, error.__context__]
    assert chain == [None, None]  # those of the client hold the request, and with it the key


def test_a_word_that_is_no_secret_is_left_in_the_texts(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "EMPTY")
    with Server(always(completion("the cage is EMPTY"))) as server:
        (trace,) = collect(server, asked=problems(1), samples=1, key_variable="TEACHER_KEY")
    assert trace.text == "the cage is EMPTY"


@pytest.mark.parametrize(
    "url", ["http://example.org/v1", "http://localhost.example.org/v1", "http://10.0.0.7:8000/v1"]
)
def test_no_key_goes_through_a_network_unencrypted(monkeypatch, url):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with pytest.raises(ValueError, match="unencrypted") as raised:
        collect(url, key_variable="TEACHER_KEY")
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("held", "why"), [(None, "no key"), (" ", "no key"), ("sk-ä", "of ASCII"), ("a b", "without blanks")]
)
def test_a_variable_that_holds_no_key_is_named(monkeypatch, held, why):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    if held is not None:
        monkeypatch.setenv("TEACHER_KEY", held)
    with Server(right) as server, pytest.raises(ValueError, match=f"'TEACHER_KEY'.*{why}.*127.0.0.1"):
        collect(server, key_variable="TEACHER_KEY")
    assert not server.requests


@pytest.mark.parametrize(
    "url",
    [
        f"https://me:{KEY}@example.org/v1",
        f"https://example.org/v1?key={KEY}",
        f"https://example.org/v1#{KEY}",
    ],
)
def test_a_key_in_the_address_is_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="no key belongs") as raised:
        collect(url)
    assert KEY not in str(raised.value)


# --- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": 0}, "samples is 0; expected a whole number, at least 1"),
        ({"concurrency": 0}, "concurrency is 0; expected a whole number, at least 1"),
        ({"temperature": 0}, "samples is 2, but temperature=0"),
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is .*; expected a whole number, at least 1"),
        ({"asked": [Problem("k", "a", "")]}, r"answer of problems\[0\] cannot be compared with: "),
        ({"retries": -1}, "retries is -1; expected a whole number, at least 0"),
        ({"retries": 1.5}, "retries is 1.5; expected a whole number, at least 0"),
        ({"samples": 1.5}, "samples is 1.5; expected a whole number, at least 1"),
        ({"samples": "4"}, "samples is '4'; expected a whole number, at least 1"),
        ({"samples": True}, "samples is .*; expected a whole number"),
        ({"concurrency": 2.0}, "concurrency is .*; expected a whole number"),
        ({"max_new_tokens": 9.5}, "max_new_tokens is .*; expected a whole number"),
        ({"temperature": "warm"}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_p": float("nan")}, "top_p must be above 0"),
        ({"top_p": None}, "top_p must be above 0"),
        ({"timeout": float("nan")}, "timeout must be above 0; got nan"),
        ({"timeout": "long"}, "timeout must be above 0; got 'long'"),
        ({"token_budget": "9"}, "token_budget must be above 0; got '9'"),
        ({"seed": "a"}, "seed is 'a'; expected a whole number"),
        ({"seed": 0.5}, "seed is 0.5; expected a whole number"),
        ({"prices": 1.0}, r"prices must be \(input, output\).*got 1.0"),
        ({"prices": (1, float("nan"))}, "prices must be"),
        ({"prices": ("1", "2")}, "prices must be"),
        ({"extra_body": "min_p"}, "extra_body is 'min_p'; expected names and values"),
        ({"extra_body": {"max_completion_tokens": 5}}, "extra_body holds max_completion_tokens"),
        ({"asked": "problems.jsonl"}, "problems is 'problems.jsonl'; expected problems: call load_problems"),
        ({"asked": ["how many?"]}, r"problems\[0\] is 'how many\?'; expected a Problem"),
        ({"timeout": 0}, "timeout must be above 0; got 0"),
        ({"token_budget": 0}, "token_budget must be above 0; got 0"),
        ({"cost_budget": 1.0}, r"prices must be \(input, output\).*got None with cost_budget=1.0"),
        ({"cost_budget": -1.0, "prices": (1, 1)}, "cost_budget must be above 0"),
        ({"prices": (1,)}, r"prices must be \(input, output\).*got \(1,\)"),
        ({"prices": (-1, 1)}, "prices must be"),
        ({"extra_body": {"max_tokens": 5}}, "extra_body holds max_tokens"),
        ({"asked": [*problems(), *problems()]}, "'k0'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anyone_is_asked(path, changed, message):
    with Server(right) as server, pytest.raises(ValueError, match=message):
        collect(server, path, **changed)
    assert not server.requests and not path.exists()


@pytest.mark.parametrize(
    "url", [None, 8000, "localhost:8000/v1", "ftp://localhost/v1", "http:///v1", "http://localhost/v1/chat/completions"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="url must be an http or https address up to /v1"):
        collect(url)


def test_without_problems_nobody_is_asked(path):
    with Server(right) as server:
        assert collect(server, path, asked=[]) == []
    assert not server.requests
