"""A cache of what a server says: the live teacher's numbers, faults, budgets, what it is bound to."""

import asyncio
import math
import re

import pytest
import torch
from loopback import FAULTS, Response, Server, always, as_json, completion, fault
from scoring import changed, completion_of, scored, scoring
from small_models import pairs, qwen, word_tokenizer

from kdlib.cache.tokens import CachedTokens, ServedTokens, open_token_cache
from kdlib.language.distill.batches import TokenExample, tokenize
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.prompt_logprobs import read_prompt_logprobs
from kdlib.language.distill.served import TokensMissing, cache_served_tokens
from kdlib.language.distill.teachers import cache_teacher_tokens
from kdlib.language.server import Failure
from kdlib.losses.top_k import top_k_loss, top_k_of
from kdlib.storage import DamagedFile

TEXTS = pairs(14, seed=3)
TOKENIZER = word_tokenizer()


@pytest.fixture(scope="module")
def teacher():
    model = qwen(seed=1)
    with torch.no_grad():
        model.lm_head.weight *= 20
    return model


@pytest.fixture(autouse=True)
def small_files_and_no_pauses(monkeypatch):
    monkeypatch.setattr(CachedTokens, "SHARD_ROWS", 40)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.0)
    monkeypatch.setattr("kdlib.language.server._LONGEST_PAUSE", 0.0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def serve(folder, server, texts=TEXTS, **changed):
    settings = {"top_k": 5, "concurrency": 3, "timeout": 20, "retries": 2, **changed}
    model = settings.pop("model", "teacher")
    return cache_served_tokens(server.url, model, TOKENIZER, texts, folder, **settings)


def live(folder, teacher, texts=TEXTS, **changed):
    return cache_teacher_tokens(
        teacher, TOKENIZER, texts, folder, **{"top_k": 5, "device": "cpu", "batch_tokens": 200, **changed}
    )


def every_row(cached):
    return cached.top_k(torch.arange(len(cached)))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def asked(server):
    """The texts of the requests, in their order."""
    return [tuple(request.body["prompt"]) for request in server.requests]


# --- what is asked for and what comes back ---------------------------------------------------------


@pytest.mark.parametrize("compact", [False, True])
def test_a_served_cache_holds_what_the_live_teacher_s_does(tmp_path, teacher, compact):
    with Server(scoring(teacher)) as server:
        served = serve(tmp_path / "served", server, compact=compact)
    expected = live(tmp_path / "live", teacher, compact=compact)
    found, wanted = every_row(served), every_row(expected)
    assert torch.equal(found.indices, wanted.indices)
    bounds = {"rtol": 0.0, "atol": 0.04} if compact else {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(found.values, wanted.values, **bounds)
    torch.testing.assert_close(found.log_tail, wanted.log_tail, rtol=1e-3, atol=2e-3)
    opened = open_token_cache(served.folder)
    assert isinstance(opened, ServedTokens) and opened.fingerprint == served.fingerprint
    assert opened.manifest["temperature"] == 1.0 and opened.manifest["teacher"] == "teacher"


def test_a_request_holds_the_tokens_of_a_text_and_each_is_asked_about_once(folder, teacher):
    with Server(scoring(teacher)) as server:
        serve(folder, server)
        again = serve(folder, server)
    encoded = tokenize(TOKENIZER, TEXTS)
    assert sorted(asked(server)) == sorted((*example.prompt, *example.completion) for example in encoded)
    assert {request.path for request in server.requests} == {"/v1/completions"}
    rest = [{n: v for n, v in request.body.items() if n != "prompt"} for request in server.requests]
    assert all(
        one == {"model": "teacher", "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 5} for one in rest
    )
    assert server.peak <= 3 and len(again) == sum(len(example.completion) for example in encoded)
    assert (folder / "arrived.jsonl").stat().st_size < 300, "what is in the cache is not kept twice"


def test_sglang_is_asked_in_its_own_way_and_says_the_same(tmp_path, teacher):
    with Server(scoring(teacher)) as server:
        expected = serve(tmp_path / "vllm", server)
        before = len(server.requests)
        found = serve(tmp_path / "sglang", server, api="sglang")
    assert files(found.folder) == files(expected.folder)
    request = server.requests[-1]
    assert {one.path for one in server.requests[before:]} == {"/generate"}
    assert request.body.pop("input_ids") and "authorization" not in request.headers
    with pytest.raises(Failure, match="meta_info cannot be read"):
        read_prompt_logprobs({"meta_info": {"prompt_tokens": 3}}, [3, 4, 5], 1, 5, 60)


def test_it_is_asked_behind_its_own_prompts_or_the_student_is_warned(tmp_path, teacher):
    theirs = word_tokenizer()
    theirs.chat_template = "<eos> {% for message in messages %}{{ message.content }} <user> {% endfor %}"
    own = {"teacher_tokenizer": theirs, "teacher_prompt": "own"}
    with Server(scoring(teacher)) as server:
        served = serve(tmp_path / "served", server, **own)
        said = asked(server)
        with pytest.warns(UserWarning, match="another prompt of 14 of 14 examples") as told:
            serve(tmp_path / "student", server, teacher_tokenizer=theirs)
    assert "nats" not in str(told[0].message)
    assert sorted(said) == sorted((*e.prompt, *e.completion) for e in tokenize(theirs, TEXTS))
    assert torch.equal(every_row(served).indices, every_row(live(tmp_path / "live", teacher, **own)).indices)


def test_a_student_learns_from_it(folder, teacher):
    with Server(scoring(teacher)) as server:
        cached = serve(folder, server)
    student = qwen(seed=4)
    distill_language_model(
        student, TOKENIZER, TEXTS, teacher=cached, steps=2, batch_size=2, lr=1e-3, device="cpu", seed=0
    )
    with pytest.raises(ValueError, match="temperature was 1.0, is 2.0.*cache_served_tokens"):
        cached.check(tokenize(TOKENIZER, TEXTS), 2.0, 60)


def test_whole_texts_without_a_completion_and_texts_over_the_border_of_files(folder, teacher, monkeypatch):
    monkeypatch.setattr(CachedTokens, "SHARD_ROWS", 5)
    texts = [TokenExample((3, 8), ()), TokenExample((3,), tuple(range(7, 20))), TokenExample((3, 9, 9), (4,))]
    with Server(scoring(teacher)) as server:
        cached = serve(folder, server, texts)
    assert len(asked(server)) == 2 and len(files(folder)) == 3
    expected = top_k_of(teacher(input_ids=torch.tensor([[3, *range(7, 20)]])).logits[0, :-1], 5)
    assert torch.equal(cached.top_k(torch.arange(13)).indices, expected.indices)


# --- how a reply is read ---------------------------------------------------------------------------


def told(logs, ids, k):
    """A reply with these log-probabilities (n, V) of all tokens but the first."""
    entries = [None]
    for row, token in zip(logs.tolist(), ids[1:], strict=True):
        order = sorted(range(len(row)), key=lambda one: -row[one])[:k]
        entries.append({str(one): {"logprob": row[one]} for one in dict.fromkeys([token, *order])})
    return completion_of(entries)


def test_the_entry_of_a_token_is_about_that_token_given_those_before_it(teacher):
    ids = [3, 20, 4, 5, 30, 31, 32, 1]
    top, usage = read_prompt_logprobs(completion_of(scored(teacher, ids, 5)), ids, 4, 5, 60)
    logits = teacher(input_ids=torch.tensor([ids])).logits[0].detach()
    expected = top_k_of(logits[3:-1], 5)
    assert torch.equal(top.indices, expected.indices) and top.values.shape == (4, 5)
    logs = expected.values - expected.log_total.unsqueeze(-1)
    torch.testing.assert_close(top.values, logs, rtol=1e-5, atol=1e-5)
    assert usage == {"input_tokens": 8, "output_tokens": 1}


def test_the_tail_is_what_is_left_of_1_as_long_as_that_is_no_rounding():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 300, generator=generator, dtype=torch.float64) * 3
    ids = torch.randint(0, 300, (41,), generator=generator).tolist()
    logs = logits.log_softmax(-1)
    for k in (1, 20, 300):
        top, _ = read_prompt_logprobs(told(logs, ids, k), ids, 1, k, 300)
        expected = top_k_of(logs, k)
        assert top.values.dtype == top.log_tail.dtype == torch.float32
        torch.testing.assert_close(top.log_tail.double(), expected.log_tail, rtol=1e-5, atol=1e-5)
    # A tail of 1e-10, and a largest logit of some 20 that float32 has rounded by up to 2e-6.
    sharp = -2 * torch.arange(1, 3001, dtype=torch.float64).log() - 18
    sharp[0] = 0.0
    exact, rounded = top_k_of(sharp, 64), sharp.log_softmax(-1).repeat(30, 1)
    rounded[:, 0] += torch.linspace(-2e-6, 2e-6, 30)
    top, _ = read_prompt_logprobs(told(rounded, [0] * 31, 64), [0] * 31, 1, 64, 3000)
    off = top.log_tail - (exact.log_tail - exact.log_total)
    assert off.abs().max() < math.log(8) + 0.2 and off.min() < 0 < off.max()
    sure = torch.full((1, 60), -9999.0)  # vLLM's −inf
    sure[0, 7] = 0.0
    top, _ = read_prompt_logprobs(told(sure, [0, 7], 5), [0, 7], 1, 5, 60)
    assert top.indices[0, 0] == 7 and top.values[0, 0] == 0 and top.log_tail.item() < -9000


@pytest.mark.parametrize("k", [5, 20])
def test_logits_that_belong_to_no_token_are_taken_out(k):
    """Of 64 the last four are none; one of them is often among the likeliest."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(30, 64, generator=generator, dtype=torch.float64)
    logits[:, 60:] += torch.tensor([-40.0, -40.0, 1.0, -40.0])
    logits[:, 5] += 9.0
    student = torch.randn(30, 60, generator=generator, dtype=torch.float64)
    ids = [5] * 31
    top, _ = read_prompt_logprobs(told(logits.log_softmax(-1), ids, k), ids, 1, k, 60)
    expected = top_k_of(logits[:, :60], k)
    assert top.indices.max() < 60 and all(len(set(row)) == k for row in top.indices.tolist())
    assert (top.values.diff(dim=-1) <= 0).all()
    torch.testing.assert_close(top.log_total, torch.zeros(30), rtol=0.0, atol=1e-5)
    found, wanted = (top_k_loss(student, one, reduction="none") for one in (top, expected))
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)
    named = (logits.topk(k).indices == 62).any(-1)
    assert named.sum() > 5
    p = logits[:, :60].softmax(-1).amax(-1)[named]
    torch.testing.assert_close(top.values[named, 0].exp().double(), p, rtol=1e-6, atol=1e-6)
    with pytest.raises(Failure, match="to tokens from 5 on, which the tokenizer does not have"):
        read_prompt_logprobs(told(logits.log_softmax(-1), [4] * 31, k), [4] * 31, 1, k, 5)


def spoilt(change):
    """A reader's complaint about a good reply that was changed: its message and fault."""
    ids = [3, 20, 4, 30]
    logs = torch.randn(3, 60, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    body = told(logs, ids, 5)
    read_prompt_logprobs(body, ids, 1, 5, 60)
    body = change(body, body["choices"][0].get("prompt_logprobs")) or body
    with pytest.raises(Failure) as raised:
        read_prompt_logprobs(body, ids, 1, 5, 60)
    return f"{raised.value.fault}: {raised.value}"


def shifted(body, entries):
    """A server whose entry i is about token i + 1."""
    entries[:] = [*entries[1:], entries[-1]]


@pytest.mark.parametrize(("change", "message"), [
    (lambda body, entries: body["choices"].clear(), "reply: the reply has no choices"),
    (lambda body, entries: [1], "reply: the reply has no choices"),
    (lambda body, entries: body["choices"][0].pop("prompt_logprobs") and None, "shape: .*no prompt_logprobs"),
    (lambda body, entries: entries.pop() and None, "shape: the reply is about 3 tokens; expected the 4"),
    (shifted, "shape: prompt_logprobs.1. does not hold token 20"),
    (lambda body, entries: entries[2].pop("4") and None, "shape: prompt_logprobs.2. does not hold token 4"),
    (lambda body, entries: entries.__setitem__(2, None), "shape: prompt_logprobs.2. is None"),
    (lambda body, entries: [entries[1].pop(t) for t in list(entries[1])[1:3]] and None,
     "shape: prompt_logprobs.1. holds . tokens; expected top_k=5"),
    (lambda body, entries: entries[3]["30"].update(logprob=0.5), "shape: .*holds no log-probabilities"),
    (lambda body, entries: entries[3]["30"].update(logprob=math.nan), "shape: .*holds no log-probabilities"),
    (lambda body, entries: entries[3]["30"].update(logprob="high"), "shape: prompt_logprobs.3. is "),
    (lambda body, entries: [one.update(logprob=-0.1) for one in entries[2].values()] and None,
     "shape: probabilities add up to [45].*; expected at most 1"),
    (lambda body, entries: entries[1].update({"-1": {"logprob": -2.0}}), "shape: .*no log-probabilities"),
], ids=range(13))  # fmt: skip
def test_a_reply_about_something_else_is_none(change, message):
    assert re.match(message, spoilt(change))


# --- faults on the way -----------------------------------------------------------------------------


def test_whatever_happens_on_the_way_nothing_is_lost_and_nothing_twice(folder, teacher):
    """Every other reply is spoilt, each time in another way."""
    right, passing = scoring(teacher), [kind for kind in FAULTS if kind != "null"]

    async def answer(request):
        response = await right(request)
        number = request.number
        return fault(passing[number // 2 % len(passing)], response) if number % 2 else response

    with Server(answer) as server:
        served = serve(folder, server, retries=4)
        assert torch.equal(every_row(served).indices, every_row(live(folder.with_name("l"), teacher)).indices)
    assert len(server.requests) > 14 + len(passing)


@pytest.mark.parametrize(("answer", "message", "requests"), [
    (always({"error": {"message": "no such model"}}, 404), "stopped early.*what .*/models lists", 3),
    (always({"error": {"message": "who are you"}}, 401), "stopped early.*key_variable must name", 3),
    (always(completion("as chat")), "stopped early.*has no prompt_logprobs; expected a server.*vLLM", 3),
    (always({"error": {"message": "busy"}}, 503, Retry_After="0"), "stopped early.*the server fails", 15),
], ids=range(4))  # fmt: skip
def test_a_server_that_cannot_answer_is_asked_few_times(folder, answer, message, requests):
    with Server(answer) as server, pytest.raises(TokensMissing, match=message):
        serve(folder, server)
    assert len(server.requests) <= requests


def test_a_k_that_the_server_does_not_give_is_said_with_the_option_that_helps(folder, teacher):
    message = "max allowed: 4.*vLLM needs --max-logprobs of top_k"
    with Server(scoring(teacher, most=4)) as server, pytest.raises(TokensMissing, match=message) as raised:
        serve(folder, server)
    assert raised.value.reasons and len(server.requests) <= 10 + 3
    assert not files(folder)


def test_one_text_that_is_refused_costs_only_itself(folder, teacher):
    right = scoring(teacher)
    encoded = tokenize(TOKENIZER, TEXTS)
    long = (*encoded[3].prompt, *encoded[3].completion)
    refuse = True

    async def answer(request):
        if refuse and tuple(request.body["prompt"]) == long:
            return as_json({"error": {"message": "longer than the maximum model length"}}, 400)
        return await right(request)

    with Server(answer) as server:
        with pytest.raises(TokensMissing, match=r"1 requests failed, first for examples\[3\].*maximum model"):
            serve(folder, server)
        refuse = False
        served = serve(folder, server)
    assert sorted(asked(server)).count(long) == 2
    assert all(count == 1 for count in map(asked(server).count, set(asked(server)) - {long}))
    assert torch.equal(every_row(served).indices, every_row(live(folder.with_name("l"), teacher)).indices)


# --- budgets, and what it belongs to ---------------------------------------------------------------


def test_a_budget_holds_for_all_runs_together(folder, teacher):
    lengths = [len(example) for example in tokenize(TOKENIZER, TEXTS)]
    half = sum(lengths) // 2
    with Server(scoring(teacher)) as server:
        for _ in range(2):
            with pytest.raises(TokensMissing, match=f"token_budget={half} has no room .*spent") as raised:
                serve(folder, server, token_budget=half)
            assert raised.value.reasons == {}
        assert half - max(lengths) <= sum(map(len, asked(server))) <= half
        with pytest.raises(TokensMissing, match="With a larger one the same call continues"):
            serve(folder, server, token_budget=sum(lengths) - 1)
        serve(folder, server, token_budget=sum(lengths))
    assert sum(map(len, asked(server))) == sum(lengths)


def test_replies_of_no_use_count_too(folder, teacher):
    right = scoring(teacher)

    async def answer(request):
        response = await right(request)
        if request.number == 2:
            return changed(response, lambda body: {**body, "choices": []})
        return response

    with Server(answer) as server:
        lengths = [len(example) for example in tokenize(TOKENIZER, TEXTS)]
        with pytest.raises(TokensMissing, match="token_budget"):
            serve(folder, server, token_budget=sum(lengths))
        serve(folder, server, token_budget=2 * sum(lengths))
    assert len(server.requests) == 15


def test_a_reply_that_has_changed_on_the_disk_is_not_believed(folder, teacher):
    half = sum(map(len, tokenize(TOKENIZER, TEXTS))) // 2
    with Server(scoring(teacher)) as server:
        with pytest.raises(TokensMissing):
            serve(folder, server, token_budget=half)
        journal = folder / "arrived.jsonl"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines).replace(b'"text": ', b'"text": 1', 1))
        with pytest.raises(DamagedFile, match=r"line \d+ of .*arrived.jsonl has changed.*delete that line"):
            serve(folder, server)
        journal.write_bytes(b"".join([*lines[:1], *lines[2:]]))
        found = serve(folder, server)
    assert torch.equal(every_row(found).indices, every_row(live(folder.with_name("l"), teacher)).indices)
    assert len(server.requests) == 14 + 1


OTHERS = {
    "model": ({"model": "other"}, "teacher was"),
    "texts": ({"texts": TEXTS[::-1]}, "texts was"),
    "k": ({"top_k": 6}, "top_k was 5, is 6"),
    "compact": ({"compact": True}, "compact was None, is True"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_cache_in_the_folder_is_refused_and_nothing_is_asked(folder, teacher, name):
    changed, message = OTHERS[name]
    with Server(scoring(teacher)) as server:
        serve(folder, server)
        before, requests = files(folder), len(server.requests)
        with pytest.raises(ValueError, match=f"{message}.*overwrite=True to cache_served_tokens"):
            serve(folder, server, **changed)
        assert files(folder) == before and len(server.requests) == requests
        replaced = serve(folder, server, **changed, overwrite=True)
        assert files(folder) != before and len(replaced) > 0 and len(server.requests) == 2 * requests
    with pytest.raises(ValueError, match="was not written by cache_teacher_tokens"):
        live(folder, teacher)


def test_a_file_that_has_changed_is_asked_for_again_and_nothing_else(folder, teacher):
    with Server(scoring(teacher)) as server:
        cached = serve(folder, server)
        before = files(folder)
        second = sorted(folder.glob("*.safetensors"))[1]
        second.write_bytes(second.read_bytes()[:-1])
        with pytest.raises(DamagedFile, match="call cache_served_tokens with the same arguments"):
            open_token_cache(folder).whole("log_tail")
        whole = len(server.requests)
        serve(folder, server)
        assert files(folder) == before
        assert len(server.requests) - whole == len(cached.texts(range(40, 80)))


@pytest.mark.parametrize(("changed", "message"), [
    ({"top_k": 0}, "top_k must be a whole number from 1 to the 60 tokens; got 0"),
    ({"top_k": True}, "top_k must be a whole number from 1 to the 60 tokens; got True"),
    ({"top_k": 61}, "top_k must be a whole number from 1 to the 60 tokens; got 61"),
    ({"concurrency": 0}, "concurrency is 0; expected a whole number, at least 1"),
    ({"token_budget": 0}, "token_budget is 0; expected"),
    ({"retries": -1}, "retries is -1; expected"),
    ({"api": "tgi"}, "api is 'tgi'; expected vllm or sglang"),
    ({"texts": [TokenExample((), (3, 4))]}, r"examples\[0\] has no prompt"),
    ({"teacher_tokenizer": word_tokenizer([*TOKENIZER.convert_ids_to_tokens(range(59)), "other"])},
     "teacher_tokenizer has token 59 'other'"),
    ({"key_variable": "NO_SUCH_KEY"}, "that environment variable holds no key"),
], ids=range(10))  # fmt: skip
def test_bad_arguments_are_refused_before_anything_is_made(folder, changed, message):
    async def answer(request):
        await asyncio.sleep(0)
        return Response(b"", 500)

    with Server(answer) as server, pytest.raises(ValueError, match=message):
        serve(folder, server, **changed)
    assert not folder.exists() and not server.requests
