import json

import pytest
import torch
import torch.nn.functional as F
from small_models import llama, pairs, qwen, word_tokenizer
from transformers import get_cosine_schedule_with_warmup

from kdlib.language.distill import distill, teachers, trainer
from kdlib.language.distill.batches import EpochOrder, tokenize
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.teachers import cache_teacher_tokens
from kdlib.losses.divergences import DIVERGENCES
from kdlib.losses.kd import kd_loss


def plain_loop(student, examples, steps, lr, batch_size, teacher=None, **options):
    """The same training written out: one example at a time, no padding, no Trainer."""
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, -(-steps // 20), steps)
    order, losses, epoch = EpochOrder([1] * len(examples), seed=0), [], 0
    while len(losses) < steps:
        order.epoch = epoch
        rows = list(order)
        for start in range(0, len(rows), batch_size):
            total, count = 0.0, 0
            for row in rows[start:start + batch_size]:
                ids = torch.tensor([examples[row].prompt + examples[row].completion])
                labels = torch.tensor(examples[row].completion)
                predicting = slice(len(examples[row].prompt) - 1, -1)
                logits = student(ids).logits[0, predicting]
                if teacher is None:
                    loss = F.cross_entropy(logits, labels, reduction="sum")
                else:
                    with torch.no_grad():
                        teacher_logits = teacher(ids).logits[0, predicting]
                    loss = kd_loss(logits, teacher_logits, labels, reduction="sum", **options)
                total, count = total + loss, count + len(labels)
            optimizer.zero_grad()
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(total.item() / count)
            if len(losses) == steps:
                break
        epoch += 1
    return losses


def assert_same_weights(one, two, atol):
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_fine_tuning_is_that_of_a_loop_without_padding_and_trainer():
    tokenizer, data = word_tokenizer(), pairs(13)
    student, other = qwen().double(), qwen().double()
    history = distill_language_model(student, tokenizer, data, steps=9, lr=3e-3, batch_size=4, device="cpu")
    expected = plain_loop(other, tokenize(tokenizer, data), 9, 3e-3, 4)
    torch.testing.assert_close(torch.tensor(history.loss), torch.tensor(expected), atol=1e-6, rtol=0)
    assert_same_weights(student, other, 1e-7)
    assert not student.training


def test_logit_distillation_is_that_of_a_loop_with_kd_loss():
    tokenizer, data = word_tokenizer(), pairs(9)
    for options in (
        {"alpha": 0.3, "temperature": 2.0},
        {"alpha": 0.0, "divergence": "reverse"},
        {"alpha": 0.5, "temperature": 1.5, "divergence": "jsd", "beta": 0.2},
        {"alpha": 0.2, "divergence": "skew-forward", "beta": 0.1},
        {"alpha": 0.2, "divergence": "skew-reverse", "beta": 0.9},
        {"alpha": 0.4, "divergence": "tvd"},
        {"alpha": 0.0, "temperature": 1.5, "divergence": "akl"},
    ):
        student, other, teacher = llama().double(), llama().double(), llama(1).double()
        history = distill_language_model(
            student, tokenizer, data, teacher=teacher, steps=3, lr=3e-3, batch_size=4, device="cpu", **options
        )
        expected = plain_loop(
            other, tokenize(tokenizer, data), 3, 3e-3, 4, teacher, **{"temperature": 1.0, **options}
        )
        torch.testing.assert_close(torch.tensor(history.loss), torch.tensor(expected), atol=1e-6, rtol=0)
        assert_same_weights(student, other, 1e-7)
        assert_same_weights(teacher, llama(1).double(), 0)


@pytest.mark.parametrize(
    "attention, options",
    # In float64 transformers' eager attention makes NaN of the padding that prompts have on the left.
    [("sdpa", {}), ("eager", {}), ("sdpa", {"on_policy": True, "max_new_tokens": 6})],
    ids=["texts", "texts-eager", "on_policy"],
)
def test_packing_changes_nothing_but_rows(attention, options, monkeypatch):
    tokenizer, data, shapes = word_tokenizer(), pairs(21), []
    monkeypatch.setattr(trainer, "predictions", lambda model, batch: shapes.append(
        tuple(batch["input_ids"].shape)) or teachers.predictions(model, batch))  # fmt: skip
    runs = []
    for packing in (False, True):
        student, teacher = qwen().double(), llama(1).double()
        for model in (student, teacher):
            model.set_attn_implementation(attention)
        history = distill_language_model(
            student, tokenizer, data, teacher=teacher, steps=7, lr=3e-3, batch_size=8, accumulation=2,
            packing=packing, device="cpu", **options,
        )  # fmt: skip
        runs.append((student, history))
    (student, history), (other, packed) = runs
    assert packed.tokens == history.tokens
    torch.testing.assert_close(torch.tensor(packed.loss), torch.tensor(history.loss), atol=1e-6, rtol=0)
    assert_same_weights(other, student, 1e-8)
    half = len(shapes) // 2
    read = [sum(rows * length for rows, length in part) for part in (shapes[:half], shapes[half:])]
    # What an untrained student writes is nearly always cut off: all as long as the longest.
    assert read[1] <= read[0] if options else read[1] < 0.8 * read[0]


def test_flash_attention_is_given_one_row(monkeypatch):
    """It knows packed texts apart in a single row only; it needs a GPU, so here it is only named."""
    flash, seen = qwen(), []
    flash.config._attn_implementation = "flash_attention_2"

    def stop(*args, packing, **more):
        seen.append(packing)
        raise InterruptedError

    monkeypatch.setattr(distill, "DistillationTrainer", stop)
    for student, teacher in ((flash, None), (llama(), flash), (llama(), qwen())):
        with pytest.raises(InterruptedError):
            distill_language_model(
                student, word_tokenizer(), pairs(4), teacher=teacher, packing=True, steps=1, lr=1e-3,
                device="cpu",
            )  # fmt: skip
    assert seen == ["one row", "one row", "rows"]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_all_of_the_largest_logits_are_all_logits_and_fewer_say_less(divergence):
    tokenizer, data, losses = word_tokenizer(), pairs(12), {}
    for k in (None, 60, 4):
        student, teacher = qwen().double(), llama(1).double()
        history = distill_language_model(
            student, tokenizer, data, teacher=teacher, top_k=k, alpha=0.3, temperature=1.5, steps=3, lr=3e-3,
            divergence=divergence, batch_size=6, device="cpu",
        )  # fmt: skip
        losses[k] = history
    assert losses[60].loss == pytest.approx(losses[None].loss, rel=1e-9)
    if divergence != "akl":  # whose weights are others between fewer classes
        assert losses[4].soft[0] < losses[None].soft[0]
    assert losses[4].hard[0] == pytest.approx(losses[None].hard[0])


def test_a_teacher_that_was_stored_teaches_as_if_it_were_there(tmp_path):
    tokenizer, data = word_tokenizer(), pairs(14)
    settings = {"alpha": 0.2, "temperature": 2.0, "steps": 6, "lr": 3e-3, "batch_size": 4, "packing": True,
                "device": "cpu"}  # fmt: skip
    student, other, teacher = qwen(), qwen(), llama(1)
    live = distill_language_model(student, tokenizer, data, teacher=teacher, top_k=7, **settings)
    stored = cache_teacher_tokens(
        teacher, tokenizer, data, tmp_path / "tokens", top_k=7, temperature=2.0, device="cpu"
    )  # fmt: skip
    del teacher
    read = distill_language_model(other, tokenizer, data, tmp_path / "run", teacher=stored, **settings)
    assert read.soft == pytest.approx(live.soft, rel=3e-3)  # stored in float16
    assert_same_weights(other, student, 1e-3)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["teacher"] == stored.fingerprint


def test_what_was_stored_is_refused_for_other_texts_and_temperatures(tmp_path):
    tokenizer, data = word_tokenizer(), pairs(6)
    stored = cache_teacher_tokens(llama(1), tokenizer, data, tmp_path, top_k=7, device="cpu")
    settings = {"teacher": stored, "steps": 1, "lr": 1e-3, "device": "cpu"}
    with pytest.raises(ValueError, match="texts was"):
        distill_language_model(qwen(), tokenizer, data[::-1], **settings)
    with pytest.raises(ValueError, match="temperature was 1.0, is 2.0"):
        distill_language_model(qwen(), tokenizer, data, temperature=2.0, **settings)
    with pytest.raises(ValueError, match="top_k=3 needs a model as teacher, to choose among its logits"):
        distill_language_model(qwen(), tokenizer, data, top_k=3, **settings)
    with pytest.raises(ValueError, match="on_policy=True needs a model as teacher"):
        distill_language_model(qwen(), tokenizer, data, on_policy=True, **settings)
    with pytest.raises(ValueError, match="top_k=3 needs a model as teacher, to choose among its"):
        distill_language_model(qwen(), tokenizer, data, top_k=3, steps=1, lr=1e-3)
    with pytest.raises(ValueError, match="top_k is 0; expected a whole number, at least 1"):
        distill_language_model(qwen(), tokenizer, data, teacher=llama(), top_k=0, steps=1, lr=1e-3)
