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
from kdlib.language.distill import served
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
    """In nats, but for the reverse KL of a student of no use, 3 nats off: of that, a thousandth."""
    assert list(results["loss"]) == list(LEFT_OUT) and results["tokens"] > 6000
    for name, by_form in results["loss"].items():
        for one in DIVERGENCES:
            told, live = (by_form[f"{form}, top {K}"][one] for form in ("served", "live"))
            bound = 1e-3 * (live if (name, one) == ("20 of 30 blocks", "reverse") else 1)
            assert abs(told - live) < bound


def test_a_packed_token_takes_at_most_127_bytes(results):
    packed = [size for name, size in results["bytes_a_token"].items() if "compact" in name]
    assert len(packed) == 2 and max(packed) <= 127


def test_the_docstrings_say_what_was_measured(results):
    said = re.sub(r"\s+", " ", compact.__doc__)
    codec = max(off(results, f"live, top {k}, compact", f"live, top {k}") for k in (COMPACT_K, QWEN_K))
    near = results["loss"]["29 of 30 blocks"]
    fewer = [near[f"live, top {k}"]["forward"] for k in (K, COMPACT_K, QWEN_K)]
    assert f"by at most {codec:.4f} nats" in said
    assert "{:.3f} nats with 64, {:.3f} with 50, {:.3f} with 46".format(*fewer) in said
    assert "all tokens {:.3f}".format(near["live, all"]["forward"]) in said
    told = re.sub(r"\s+", " ", served.__doc__)
    forms = (f"served, top {K}", f"live, top {K}")
    forward, reverse = (
        max(abs(by_form[forms[0]][one] - by_form[forms[1]][one]) for by_form in results["loss"].values())
        for one in DIVERGENCES
    )
    assert f"by at most {forward:.5f} nats, the reverse by {reverse:.4f}" in told
