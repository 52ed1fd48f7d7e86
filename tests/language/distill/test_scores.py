"""Scores of texts against the same figures worked out text by text, in double precision."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_models import llama, pairs, qwen, word_tokenizer

from kdlib.language.distill.batches import tokenize
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.scores import score_texts
from kdlib.language.documents import encode_documents

TEXTS = pairs(9, seed=3)


@torch.no_grad()
def one_by_one(student, teacher, examples):
    for e in examples:
        ids, start = torch.tensor([e.prompt + e.completion]), len(e.prompt) - 1
        q, p = (m.eval()(ids).logits[0, start:-1].double().log_softmax(-1) for m in (student, teacher))
        nll = F.nll_loss(q, torch.tensor(e.completion))
        kl = F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
        yield nll.item(), kl.item(), (q.argmax(-1) == p.argmax(-1)).double().mean().item()


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_scores_are_those_of_each_text_alone(batch_tokens):
    student, teacher, tokenizer = qwen(), llama(1), word_tokenizer()
    scores = score_texts(student, tokenizer, TEXTS, teacher=teacher, batch_tokens=batch_tokens)
    examples = tokenize(tokenizer, TEXTS)
    assert scores.tokens.tolist() == [len(e.completion) for e in examples]
    wanted = torch.tensor(list(one_by_one(student, teacher, examples))).double().T
    for name, values in zip(("nll", "kl", "agreement"), wanted, strict=True):
        torch.testing.assert_close(getattr(scores, name), values, rtol=1e-4, atol=1e-5)
        weighted = (values * scores.tokens).sum() / scores.tokens.sum()
        assert scores.mean(name) == pytest.approx(weighted.item(), rel=1e-4)
    assert f"NLL {scores.mean('nll'):.3f} nats" in str(scores) and "of 9 texts held back" in str(scores)


def test_without_a_teacher_there_is_the_likelihood_alone_and_the_mode_stays():
    student = qwen().train()
    scores = score_texts(student, word_tokenizer(), TEXTS)
    assert scores.kl is None and scores.agreement is None and "teacher" not in str(scores)
    assert student.training


def test_a_text_without_a_completion_counts_for_nothing():
    empty = replace(tokenize(word_tokenizer(), TEXTS)[0], completion=())
    scores = score_texts(qwen(), word_tokenizer(), [empty, *tokenize(word_tokenizer(), TEXTS)])
    assert scores.mean("nll") == pytest.approx(score_texts(qwen(), word_tokenizer(), TEXTS).mean("nll"))
    assert scores.by_text("nll")[0] == 0


def test_a_model_is_no_distance_from_itself_and_padded_logits_do_not_count():
    student, wide = qwen(), qwen(vocabulary=64)
    scores = score_texts(student, word_tokenizer(), TEXTS, teacher=student)
    assert scores.mean("kl") == pytest.approx(0, abs=1e-6) and scores.mean("agreement") == 1
    with torch.no_grad():
        wide.get_output_embeddings().weight[60:] = 50.0  # no token's
    assert score_texts(wide, word_tokenizer(), TEXTS, teacher=student).mean("agreement") < 1


def test_training_on_plain_texts_brings_the_student_nearer_to_its_teacher(tmp_path):
    teacher, student, tokenizer = qwen(5, initializer_range=0.3), qwen(6), word_tokenizer()
    examples = encode_documents(tokenizer, [text for pair in pairs(40, seed=1) for text in pair], context=8)
    before = score_texts(student, tokenizer, examples, teacher=teacher)
    distill_language_model(
        student, tokenizer, examples, teacher=teacher, alpha=0.0, steps=60, lr=1e-2, batch_size=16,
        packing=True,
    )
    after = score_texts(student, tokenizer, examples, teacher=teacher)
    assert after.mean("kl") < 0.7 * before.mean("kl")
