"""Language models on a CUDA device: the CPU's losses, bfloat16 by default, the same greedy answers."""

import pytest
import torch
from small_models import llama, pairs, qwen, word_tokenizer

from kdlib.language.distill.distill import distill_language_model
from kdlib.language.problems import Problem
from kdlib.language.traces.collect import collect_traces

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOKENIZER = word_tokenizer()


def run(device, build=qwen, **changed):
    given = {"steps": 5, "lr": 1e-3, "batch_size": 8, "precision": "no", **changed}
    return distill_language_model(build(), TOKENIZER, pairs(40), device=device, **given)


@pytest.mark.parametrize("build", [qwen, llama])
@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-3), ("bf16", 3e-2)])
def test_the_losses_are_those_of_the_cpu(build, precision, tolerance):
    there, here = run("cuda", build, precision=precision), run("cpu", build)
    assert there.loss == pytest.approx(here.loss, rel=tolerance)


def test_with_a_teacher_too():
    there = run("cuda", teacher=llama(seed=1), temperature=2.0)
    here = run("cpu", teacher=llama(seed=1), temperature=2.0)
    assert there.soft == pytest.approx(here.soft, rel=1e-3)


def test_on_policy_runs_and_counts_its_tokens():
    history = run("cuda", teacher=llama(seed=1), on_policy=True, max_new_tokens=8)
    assert all(8 <= tokens <= 64 for tokens in history.tokens)


def test_greedy_answers_are_those_of_the_cpu():
    problems = [Problem(str(n), text, "w1") for n, (text, _) in enumerate(pairs(20))]
    given = {"samples": 1, "temperature": 0, "max_new_tokens": 8}
    here = collect_traces(qwen().double(), TOKENIZER, problems, **given)
    there = collect_traces(qwen().double().to("cuda"), TOKENIZER, problems, **given)
    assert [trace.text for trace in there] == [trace.text for trace in here]


@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-4), ("bf16", 3e-2)])
def test_the_loss_from_hidden_states_is_that_of_the_logits(precision, tolerance):
    """By kernels, where the GPU runs them."""
    given = {"teacher": llama(seed=1), "alpha": 0.4, "temperature": 2.0, "precision": precision}
    fused, usual = (run("cuda", fused=way, **given) for way in (True, False))
    assert fused.loss == pytest.approx(usual.loss, rel=tolerance)
    assert 0 < fused.peak_memory < torch.cuda.get_device_properties(0).total_memory
