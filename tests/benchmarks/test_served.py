"""What a served teacher costs: a tiny run, and what the committed figures promise and the docstrings say."""

import json
import re
from pathlib import Path

import pytest
from loopback import Server
from scoring import scoring
from small_models import qwen, word_tokenizer

from benchmarks.served import COMPACT_K, DIVERGENCES, LEFT_OUT, QWEN_K, K, measure
from kdlib.cache import compact
from kdlib.language.distill import prompt_logprobs
from kdlib.language.distill.batches import TokenExample

ROOT = Path(__file__).resolve().parents[2]


def test_a_tiny_run_finds_the_served_teacher_to_be_the_live_one(tmp_path):
    teacher, student = qwen(seed=1), qwen(seed=2)
    examples = [TokenExample((3,), (7, 8, 9, 4)), TokenExample((5, 6), (11, 12, 1))]
    with Server(scoring(teacher)) as server:
        found = measure(
            server.url, "teacher", teacher, word_tokenizer(), examples, {"other": student}, tmp_path,
            ks=(60, 5, 4),
        )  # fmt: skip
    loss = found["loss"]["other"]
    assert (found["tokens"], found["texts"], found["same_tokens_kept"]) == (7, 2, 1.0)
    for divergence in DIVERGENCES:
        whole, told = (loss[form][divergence] for form in ("live, all", "served, top 60"))
        assert told == pytest.approx(whole, abs=1e-3) and whole > 0
        assert loss["live, top 4"][divergence] <= loss["live, top 5"][divergence] <= whole


@pytest.fixture(scope="module")
def results():
    return json.loads((ROOT / "data" / "results" / "served_teacher.json").read_text(encoding="utf-8"))


def off(results, form, reference):
    """The largest difference of two forms' losses, over students and divergences."""
    return max(
        abs(by_form[form][one] - by_form[reference][one])
        for by_form in results["loss"].values() for one in DIVERGENCES
    )  # fmt: skip


def test_the_served_loss_is_within_a_thousandth_of_the_live_teacher_s(results):
    assert list(results["loss"]) == list(LEFT_OUT) and results["tokens"] > 6000
    assert off(results, f"served, top {K}", f"live, top {K}") < 1e-3


def test_a_packed_token_takes_at_most_127_bytes(results):
    packed = [size for name, size in results["bytes_a_token"].items() if "compact" in name]
    assert len(packed) == 2 and max(packed) <= 127


def test_the_docstrings_say_what_was_measured(results):
    said = re.sub(r"\s+", " ", compact.__doc__)
    for form, reference in (
        (f"served, top {COMPACT_K}, compact", f"live, top {COMPACT_K}"),
        (f"live, top {QWEN_K}, compact", f"live, top {QWEN_K}"),
    ):
        assert f"{off(results, form, reference):.4f}" in said
    told = re.sub(r"\s+", " ", prompt_logprobs.__doc__)
    assert f"{off(results, f'served, top {K}', f'live, top {K}'):.5f}" in told
