"""A real `transformers serve` on this machine as the teacher, and what lies between spoiling its replies."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from characters_tokenizer import characters_tokenizer
from loopback import FAULTS, Server, between
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from kdlib.language.models.small import without_bars
from kdlib.language.problems import Problem
from kdlib.language.traces.file import load_traces
from kdlib.language.traces.remote import collect_remote_traces

PROCESSES = Path(__file__).parents[2] / "processes"
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(PROCESSES.parents[1]),
}  # fmt: skip
TOKENIZER = characters_tokenizer()
WRITTEN = "2+1=</think>3"  # no character twice


def save(folder, model_class, config_class, chain):
    """A model of random weights; with `chain`, one that writes WRITTEN, whatever it is asked."""
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(TOKENIZER), hidden_size=128, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
        eos_token_id=TOKENIZER.eos_token_id, bos_token_id=TOKENIZER.bos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )  # fmt: skip
    model = model_class(config)
    model.generation_config.do_sample = True
    with torch.no_grad():
        if chain:
            layer = model.model.layers[0]
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
            embedding = model.get_input_embeddings().weight
            torch.nn.init.orthogonal_(embedding)
            written = [*TOKENIZER(WRITTEN, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
            model.lm_head.weight.zero_()
            for last in TOKENIZER.convert_tokens_to_ids(["<think>", "\n"]):  # of the prompt
                model.lm_head.weight[written[0]] += 10 * embedding[last]
            for one, next_one in zip(written, written[1:], strict=False):
                model.lm_head.weight[next_one] = 10 * embedding[one]
        else:
            model.lm_head.weight[TOKENIZER.eos_token_id] *= 2  # so that some traces end
    with without_bars():
        model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {
        "llama": save(folder / "llama", LlamaForCausalLM, LlamaConfig, chain=False),
        "llama that knows": save(folder / "llama-knows", LlamaForCausalLM, LlamaConfig, chain=True),
        "qwen that knows": save(folder / "qwen-knows", Qwen2ForCausalLM, Qwen2Config, chain=True),
    }


@pytest.fixture(scope="module")
def port(tmp_path_factory, folders):
    """Where `transformers serve` listens."""
    log = tmp_path_factory.mktemp("server") / "log"
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [sys.executable, PROCESSES / "serve.py"],
            stdin=subprocess.PIPE, stdout=output, stderr=output, env=ENVIRONMENT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (said := re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield int(said[1])
    finally:
        server.kill()
        server.wait()
        server.stdin.close()


def is_json(reply):
    try:
        return bool(json.loads(reply.content))
    except ValueError:
        return False


@pytest.mark.parametrize("teacher", ["llama that knows", "qwen that knows"])
def test_a_thought_and_an_answer_arrive_whole_and_are_verified(port, folders, teacher, tmp_path):
    problems = [Problem("easy", "how many rabbits are 2 and 1", "3"), Problem("wrong", "and 3 and 1", "4")]
    url, path = f"http://127.0.0.1:{port}/v1", tmp_path / "traces.jsonl"
    traces = collect_remote_traces(url, folders[teacher], problems, path, samples=2, max_new_tokens=30)
    assert [(t.key, t.sample, t.correct) for t in traces] == [
        ("easy", 0, True), ("easy", 1, True), ("wrong", 0, False), ("wrong", 1, False)
    ]  # fmt: skip
    assert {t.text.replace("\n", "") for t in traces} == {WRITTEN}
    assert {(t.finished, t.well_formed) for t in traces} == {(True, True)}
    assert {t.tokens for t in traces} == {len(TOKENIZER(WRITTEN, add_special_tokens=False)["input_ids"]) + 1}
    assert sorted(load_traces(path), key=lambda t: (t.key, t.sample)) == traces
    # What is cut off in its thought is no answer.
    problems = [Problem("easy", "how many", "2")]
    (trace,) = collect_remote_traces(url, folders[teacher], problems, samples=1, max_new_tokens=1)
    assert (trace.text, trace.tokens, trace.finished, trace.correct) == ("2", 1, False, False)


def test_whatever_happens_on_the_way_nothing_is_lost_and_nothing_twice(port, folders, monkeypatch, tmp_path):
    """The first requests and their successors meet one fault each."""
    monkeypatch.setattr("kdlib.language.server._LONGEST_PAUSE", 0.0)
    kinds, replies = iter(FAULTS), []
    spoilt = between(port, lambda request: next(kinds, None))

    async def answer(request):
        replies.append(await spoilt(request))
        return replies[-1]

    problems = [Problem(f"k{n}", f"{n} heads", "3") for n in range(5)]
    path = tmp_path / "traces.jsonl"
    with Server(answer) as proxy:
        traces = collect_remote_traces(
            proxy.url, folders["llama"], problems, path, samples=3, max_new_tokens=8, temperature=1.0,
            concurrency=2,
        )  # fmt: skip
    assert [(t.key, t.sample) for t in traces] == [(f"k{n}", s) for n in range(5) for s in range(3)]
    assert Counter(load_traces(path)) == Counter(traces)
    # The cost of each trace, and of replies that said what they cost and held none: two, and those of a model
    # that ended at once.
    paid = [reply for reply in replies if reply.share == 1 and b'"usage"' in reply.content and is_json(reply)]
    assert len(path.read_bytes().splitlines()) == 1 + 15 + len(paid) and len(paid) >= 15 + 2
    assert len(proxy.requests) >= 15 + len(FAULTS)
