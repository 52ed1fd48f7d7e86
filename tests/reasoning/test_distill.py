import torch
import torch.nn.functional as F
from small_models import llama, pairs, qwen, word_tokenizer
from transformers import get_cosine_schedule_with_warmup

from kdlib.losses import kd_loss
from kdlib.reasoning.distill import distill_language_model
from kdlib.reasoning.examples import EpochOrder, tokenize


def plain_loop(student, examples, steps, lr, batch_size, teacher=None, **options):
    """The same training written out: one example at a time, no padding, no Trainer."""
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, -(-steps // 20), steps)
    order, losses, epoch = EpochOrder([1] * len(examples), seed=0), [], 0
    while len(losses) < steps:
        order.set_epoch(epoch)
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
                        opinion = teacher(ids).logits[0, predicting]
                    loss = kd_loss(logits, opinion, labels, reduction="sum", **options)
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
