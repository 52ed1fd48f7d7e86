"""What is killed at any moment, collectors and a cache: nothing is lost, and nothing is there twice."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import FAULTS, Server, as_json, completion, fault
from scoring import scoring
from small_models import pairs, qwen, word_tokenizer

from kdlib.cache.tokens import CachedTokens
from kdlib.language.distill.batches import tokenize
from kdlib.language.distill.served import cache_served_tokens
from kdlib.language.traces.file import load_traces

PROCESSES = Path(__file__).parents[2] / "processes"
PLACES = {(f"k{n}", sample) for n in range(12) for sample in range(3)}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks, which Windows lacks")


SCORING, SCORED = scoring(qwen(seed=1)), "/v1/completions"


async def answer(request):
    """What a teacher writes is its seed; every fourth reply is spoilt on the way."""
    if request.path == SCORED:
        return await SCORING(request)
    response = as_json(completion(str(request.body["seed"]), thought="so many"))
    return fault(FAULTS[request.number // 4 % len(FAULTS)], response) if request.number % 4 == 3 else response


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """tests/processes/traces.py, run once: its folder, what its processes told, all requests."""
    folder, seed = tmp_path_factory.mktemp("kills"), secrets.randbelow(2**31)
    paths = os.pathsep.join(map(str, [PROCESSES.parents[1], PROCESSES.parent / "language"]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    with Server(answer) as server:
        done = subprocess.run(
            [sys.executable, PROCESSES / "traces.py", folder, server.url, str(seed)],
            env=environment, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-4000:]}"
    print(f"seed {seed}")  # shown if a test fails
    runs = json.loads((folder / "kills.json").read_text())
    return folder, {name: [run for run in runs if run["file"] == f"{name}.jsonl"] for name in
                    ("undisturbed", "local", "remote")}, server.requests  # fmt: skip


@pytest.mark.parametrize("name", ["local", "remote"])
def test_kills_lose_nothing_and_double_nothing(outcome, name):
    folder, runs, _ = outcome
    *killed, last = runs[name]
    assert [run["status"] for run in killed] == [9] * len(killed) and last["status"] == 0
    assert any(run["left"] and not run["left"].endswith("\n") for run in killed), "one was torn"
    final = (folder / f"{name}.jsonl").read_text()
    kept = 0
    for run in runs[name]:
        whole = run["left"][: run["left"].rfind("\n") + 1]
        assert final.startswith(whole)
        kept += run["told"].count("kept")
        assert whole.count('"sample": ') >= kept  # what a process said to be on the disk is there
    traces = load_traces(folder / f"{name}.jsonl")
    assert len(traces) == len(PLACES) and {(t.key, t.sample) for t in traces} == PLACES
    assert len({t.text for t in traces}) > 20 and {t.correct for t in traces} == {True, False}
    refused = [run["refused"] for run in killed if run["moment"] == "kept"]
    assert len(refused) == 1 and refused[0].startswith("another process is collecting")


def test_a_file_that_has_no_header_yet_is_begun_again(outcome):
    first, *others = outcome[1]["local"]
    assert first["leftovers"] == 1 and first["left"] == ""
    assert not any(run["leftovers"] for run in others)


def test_kills_change_no_text_and_cost_the_batch_in_the_works(outcome):
    folder, runs, _ = outcome
    undisturbed, killed = ((folder / f"{name}.jsonl").read_text().splitlines() for name in
                           ("undisturbed", "local"))  # fmt: skip
    assert sorted(killed) == sorted(undisturbed)
    batches = sum(run["told"].count("batch") for run in runs["local"])
    # One that was torn is filled up by another.
    assert batches <= runs["undisturbed"][0]["told"].count("batch") + len(runs["local"]) + 2


def test_what_killed_runs_have_spent_is_in_the_file_and_nothing_is_asked_for_again(outcome):
    folder, runs, requests = outcome
    lines = [json.loads(line) for line in (folder / "remote.jsonl").read_text().splitlines()]
    spent = [line["note"]["usage"]["output_tokens"] for line in lines if "note" in line]
    assert sum(spent) >= 7 * len(PLACES)
    # Each kill costs the requests in flight at most, each fault one.
    requests = [request for request in requests if request.path != SCORED]
    assert len(requests) <= (len(PLACES) + 4 * len(runs["remote"])) * 4 / 3 + 4


def test_ten_kills_leave_the_cache_of_a_server_as_if_there_were_none(outcome, tmp_path, monkeypatch):
    folder, _, requests = outcome
    *killed, last = json.loads((folder / "served.json").read_text())
    assert [run["status"] for run in killed] == [9] * 10 and last["status"] == 0
    monkeypatch.setattr(CachedTokens, "SHARD_ROWS", 40)
    texts, tokenizer = pairs(60, seed=8), word_tokenizer()
    with Server(SCORING) as server:
        cached = cache_served_tokens(server.url, "teacher", tokenizer, texts, tmp_path / "whole", top_k=5)
    files = [{path.name: path.read_bytes() for path in where.glob("[!.]*")}
             for where in (folder / "served", cached.folder)]  # fmt: skip
    assert files[0] == files[1] and len(files[0]) > 8
    # What all runs have spent, as the journal has it, is each text once.
    header = json.loads(files[0]["arrived.jsonl"])
    assert header["spent"] == sum(map(len, tokenize(tokenizer, texts)))
    assert not list((folder / "served").glob(".*.part"))
    # Each kill costs the requests in flight.
    asked = sum(request.path == SCORED for request in requests)
    assert len(texts) <= asked <= len(texts) + 2 * len(killed)
    assert sum(run["told"].count("kept") for run in [*killed, last]) <= len(texts)
