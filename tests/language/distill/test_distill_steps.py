"""What a step is made of: micro-batches, padded vocabularies, completions by the student."""

import pytest
import torch
from small_models import WORDS, pairs, qwen, word_tokenizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kdlib.language.distill.batches import tokenize
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.trainer import DistillationTrainer, student_writes
from kdlib.losses.kd import soft_target_loss


def flat(parameters):
    """All gradients as one vector; those of vectors last, as Trainer groups them for weight decay."""
    return torch.cat([p.grad.flatten() for p in sorted(parameters, key=lambda p: p.dim() < 2)])


@pytest.fixture
def gradients():
    """The gradient of each step as the optimizer got it."""
    seen = []

    def note(optimizer, *_):
        seen.append(flat([p for group in optimizer.param_groups for p in group["params"]]))

    handle = register_optimizer_step_pre_hook(note)
    yield seen
    handle.remove()


def test_accumulation_changes_nothing(gradients, monkeypatch):
    def train(batch_size, accumulation):
        return distill_language_model(
            qwen().double(), word_tokenizer(), pairs(40), teacher=qwen(1).double(), batch_size=batch_size,
            accumulation=accumulation, steps=2, lr=1e-3, max_grad_norm=0.0, device="cpu",
        )  # fmt: skip

    histories = [train(32, 1), train(8, 4)]
    assert [len(gradients[0]), len(gradients)] == [qwen().num_parameters(), 4]
    for one, four in ((0, 2), (1, 3)):  # the second step has 8 examples: one micro-batch in place of four
        torch.testing.assert_close(gradients[one], gradients[four], atol=1e-12, rtol=1e-10)
    assert histories[0].tokens == histories[1].tokens

    # What the mean of the micro-batches' means would have been.
    def mean_of_means(trainer, model, inputs, return_outputs=False, num_items_in_batch=None):
        own = torch.tensor(len(inputs["targets"]))
        return right(trainer, model, inputs, num_items_in_batch=own) / 4

    right = DistillationTrainer.compute_loss
    monkeypatch.setattr(DistillationTrainer, "compute_loss", mean_of_means)
    train(8, 4)
    assert (gradients[4] - gradients[0]).norm() > 0.01 * gradients[0].norm()


def test_only_real_tokens_are_compared():
    """The teacher's logits beyond the tokens say nothing; the student learns not to choose its own."""
    settings = {"steps": 3, "lr": 1e-2, "batch_size": 8, "device": "cpu"}
    students = [qwen(vocabulary=66) for _ in range(3)]
    teachers = [qwen(1, vocabulary=72), qwen(1, vocabulary=72), qwen(1, vocabulary=60)]
    with torch.no_grad():
        for weights in (lambda model: model.model.embed_tokens.weight, lambda model: model.lm_head.weight):
            weights(teachers[1])[60:] = 9.0
            weights(teachers[2])[:] = weights(teachers[0])[:60]
        for teacher in teachers[1:]:
            teacher.model.layers.load_state_dict(teachers[0].model.layers.state_dict())
    curves = [
        distill_language_model(s, word_tokenizer(), pairs(16), teacher=t, **settings).loss
        for s, t in zip(students, teachers, strict=True)
    ]
    assert curves[0] == curves[1]
    assert curves[0] == pytest.approx(curves[2], abs=1e-6)
    before = qwen(vocabulary=66).lm_head.weight
    assert (students[0].lm_head.weight - before)[60:].abs().min() > 0


def written_by(student, monkeypatch):
    """Notes what the student writes: (whether in eval mode, prompts, sequences)."""
    notes, generate = [], type(student).generate

    def noting(model, *args, **options):
        written = generate(model, *args, **options)
        notes.append((not model.training, options["input_ids"], written))
        return written

    monkeypatch.setattr(type(student), "generate", noting)
    return notes


def test_on_policy_the_teacher_judges_each_token_that_the_student_wrote(gradients, monkeypatch):
    student, teacher = qwen(vocabulary=64).double(), qwen(1, vocabulary=72).double()
    notes = written_by(student, monkeypatch)
    with torch.no_grad():
        student.lm_head.weight[1] += student.lm_head.weight[1].sign() * 0.5  # some completions end early
    student.generation_config.top_k, student.generation_config.repetition_penalty = 1, 1.3
    fresh = qwen(vocabulary=64).double()
    fresh.load_state_dict(student.state_dict())
    statements = [statement for statement, _ in pairs(8)]
    history = distill_language_model(
        student, word_tokenizer(), statements, teacher=teacher, on_policy=True, max_new_tokens=6,
        temperature=1.5, steps=1, lr=1e-3, batch_size=3, accumulation=3, max_grad_norm=0.0, device="cpu",
    )  # fmt: skip

    loss, count, ends = 0.0, 0, []
    assert len(notes) == 3
    for in_eval_mode, prompts, sequences in notes:
        assert in_eval_mode
        for row in sequences.tolist():
            prompt, completion = row[: prompts.shape[1]], row[prompts.shape[1]:]
            prompt = prompt[prompt.index(WORDS.index("<user>")):]
            if 1 in completion:
                completion = completion[: completion.index(1) + 1]
            ends.append(completion[-1] == 1)
            assert max(completion) < 60
            ids = torch.tensor([prompt + completion])
            places = slice(len(prompt) - 1, -1)
            with torch.no_grad():
                teacher_logits = teacher(ids).logits[0, places, :60]
            logits = fresh(ids).logits[0, places, :60]
            loss = loss + soft_target_loss(
                logits, teacher_logits, temperature=1.5, divergence="reverse", reduction="sum"
            )
            count += len(completion)
    assert len(ends) == 8 and 0 < sum(ends) < 8  # some came to an end, some were cut off
    (loss / count).backward()
    torch.testing.assert_close(gradients[0], flat(fresh.parameters()), atol=1e-12, rtol=1e-8)
    assert history.tokens == [count]
    assert history.loss == pytest.approx([loss.item() / count])
    assert history.hard == history.soft == []


@pytest.mark.parametrize(("share", "writes"), [(0.5, [1, 3]), (0.25, [3]), (0.75, [1, 2, 3])])
def test_in_a_share_of_the_steps_the_student_writes_and_in_the_others_it_reads(share, writes, monkeypatch):
    student, teacher = qwen(vocabulary=64), qwen(1, vocabulary=64)
    notes, data = written_by(student, monkeypatch), pairs(4)
    read = sum(len(text.split()) + 1 for _, text in data)
    history = distill_language_model(
        student, word_tokenizer(), data, teacher=teacher, on_policy=share, max_new_tokens=50, steps=4,
        lr=1e-9, batch_size=4, device="cpu", alpha=0.0,
    )  # fmt: skip
    assert len(notes) == len(writes)
    assert [step for step in range(4) if student_writes(step, share)] == writes
    assert [step for step, tokens in enumerate(history.tokens) if tokens != read] == writes
    with torch.no_grad():  # what is read is compared by the same divergence as what is written
        total = count = 0.0
        for example in tokenize(word_tokenizer(), data):
            ids = torch.tensor([example.prompt + example.completion])
            places = slice(len(example.prompt) - 1, -1)
            zs, zt = (model(ids).logits[0, places, :60] for model in (student, teacher))
            total += soft_target_loss(zs, zt, temperature=1.0, divergence="reverse", reduction="sum").item()
            count += len(example.completion)
    assert history.loss[0] == pytest.approx(total / count, rel=1e-4)


def test_the_student_samples_from_its_own_distribution(monkeypatch):
    """Not the top k, and nothing penalised: first tokens come as often as the student says."""
    student = qwen(vocabulary=64)
    with torch.no_grad():
        student.lm_head.weight *= 10
    notes = written_by(student, monkeypatch)
    student.generation_config.top_k, student.generation_config.top_p = 5, 0.5
    distill_language_model(
        student, word_tokenizer(), ["w1"] * 6000, teacher=qwen(1), on_policy=True, max_new_tokens=1,
        sampling_temperature=2.0, steps=1, lr=1e-9, batch_size=6000, device="cpu",
    )  # fmt: skip
    (_, prompts, sequences), = notes
    with torch.no_grad():
        expected = torch.softmax(student(prompts[:1]).logits[0, -1, :60] / 2.0, -1)
    found = torch.bincount(sequences[:, -1], minlength=60) / 6000
    # Total variation; by chance alone 0.04. The first fifty tokens, a usual bound, would leave out more.
    assert expected.sort().values[:10].sum() > 0.06
    assert (found - expected).abs().sum() / 2 < 0.055


def test_completions_follow_from_seed_and_step(monkeypatch):
    def run(seed):
        student = qwen()
        notes = written_by(student, monkeypatch)
        distill_language_model(
            student, word_tokenizer(), ["w1 w2"] * 2, teacher=qwen(1), on_policy=True, max_new_tokens=8,
            steps=2, lr=1e-9, batch_size=1, accumulation=2, device="cpu", seed=seed,
        )  # fmt: skip
        monkeypatch.undo()
        return [tuple(sequences[0].tolist()) for _, _, sequences in notes]

    first = run(0)
    assert len(set(first)) == 4  # other numbers for each step and micro-batch
    torch.manual_seed(5)
    assert run(0) == first
    assert not set(run(1)) & set(first)
