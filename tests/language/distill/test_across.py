"""A teacher with other tokens in `distill_language_model`: against the ordinary loss, and against loops."""

import pytest
import torch
import torch.nn.functional as F
from small_models import llama, qwen
from tokenizers_of_all_kinds import CORPUS, byte_level, characters, unigram

from kdlib.language.distill import trainer
from kdlib.language.distill.alignment import align_tokens, share_classes
from kdlib.language.distill.batches import tokenize
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.hidden import HiddenMatch
from kdlib.language.models.token_bytes import TokenBytes
from kdlib.language.traces.file import Trace
from kdlib.losses.cross_tokenizer import Tokens, aligned_loss, uld_loss

TEXTS = [
    ("How many?", CORPUS[0].strip()), ("日本", "今有雉兔同笼 café"), ("a", "👩‍👩‍👧 naïve"),
    ("x", "Knowledge"), ("Tell", " of heads and feet"), ("A cage", ""),
]  # fmt: skip
COMMON = {"lr": 3e-3, "steps": 4, "batch_size": 4, "device": "cpu"}


def sized(make, tokenizer, seed=0):
    return make(seed, vocabulary=len(tokenizer)).double()


@pytest.mark.parametrize("settings", [
    {"alpha": 0.0}, {"alpha": 0.4, "temperature": 2.0, "divergence": "reverse", "accumulation": 2},
    {"alpha": 0.3, "divergence": "jsd", "beta": 0.2, "packing": True},
])  # fmt: skip
def test_with_the_same_tokenizer_a_run_is_the_ordinary_one(settings):
    tokenizer, runs = byte_level(), []
    for across in (None, "aligned"):
        student, teacher = sized(qwen, tokenizer), sized(llama, tokenizer, 1)
        history = distill_language_model(
            student, tokenizer, TEXTS, teacher=teacher, teacher_tokenizer=tokenizer, fused=False,
            across_tokenizers=across, **COMMON, **settings,
        )  # fmt: skip
        runs.append((history, torch.cat([p.flatten() for p in student.parameters()])))
    (plain, weights), (aligned, others) = runs
    assert aligned.tokens == plain.tokens
    for name in ("loss", "hard", "soft"):
        assert getattr(aligned, name) == pytest.approx(getattr(plain, name), rel=1e-5), name
    torch.testing.assert_close(others, weights, rtol=0, atol=1e-5)


def trace(text, finished):
    return Trace("key", "How many?", "3", 0, text, 5, finished, correct=True, well_formed=True)


def by_hand(kind, student, teacher, tokenizer, other):
    """Of all texts at once, one after the other without padding: the soft term's sum over groups."""
    sides, total = (TokenBytes(tokenizer), TokenBytes(other)), 0.0
    shared = share_classes(*sides)
    encoded = zip(TEXTS, tokenize(tokenizer, TEXTS), tokenize(other, TEXTS), strict=True)
    for (_, text), *pair in encoded:
        groups = align_tokens(text, *sides, ids=pair[0].completion[:-1], teacher_ids=pair[1].completion[:-1])
        made = []
        for model, example, name, classes in (
            (student, pair[0], "student", shared.student), (teacher, pair[1], "teacher", shared.teacher),
        ):  # fmt: skip
            ids = torch.tensor([example.prompt + example.completion])
            logits = model(ids).logits[0, len(example.prompt) - 1 : -1]
            numbers = [number for number, group in enumerate(groups) for _ in getattr(group, name)]
            firsts = [getattr(group, name)[0] for group in groups]
            numbers, firsts = [*numbers, len(groups)], [*firsts, len(example.completion) - 1]
            parts = (torch.tensor(part) for part in (example.completion, numbers, firsts, classes))
            made.append(Tokens(logits, *parts))
        if kind == "uld":
            total += uld_loss(*(side.logits[side.firsts] for side in made), reduction="sum")
        else:
            total += aligned_loss(*made, shared.count, reduction="sum")
    return total


@pytest.mark.parametrize("kind", ["aligned", "uld"])
@pytest.mark.parametrize("other", [characters, unigram, lambda: byte_level(350, bos=True)])
def test_a_step_is_that_of_a_loop_over_texts(kind, other):
    tokenizer, other = byte_level(), other()
    student, teacher = sized(qwen, tokenizer), sized(llama, other, 1)
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        soft = by_hand(kind, student, teacher, tokenizer, other)
        examples = tokenize(tokenizer, TEXTS)
        hard = sum(
            F.cross_entropy(
                student(torch.tensor([e.prompt + e.completion])).logits[0, len(e.prompt) - 1 : -1],
                torch.tensor(e.completion), reduction="sum",
            ) for e in examples
        )  # fmt: skip
    history = distill_language_model(
        student, tokenizer, TEXTS, teacher=teacher, teacher_tokenizer=other, across_tokenizers=kind,
        **{**COMMON, "steps": 1, "batch_size": 3, "accumulation": 2},
    )  # fmt: skip
    count = sum(len(e.completion) for e in examples)
    assert history.tokens == [count]
    assert history.soft == pytest.approx([soft.item() / count], rel=1e-5)
    assert history.loss == pytest.approx([(soft + hard).item() / 2 / count], rel=1e-5)
    # The teacher learns nothing, and holds no gradient.
    assert all(torch.equal(*both) for both in zip(before, teacher.parameters(), strict=True))
    assert all(p.grad is None for p in teacher.parameters()) and not teacher.training


def test_a_teacher_of_words_teaches_a_student_of_bytes():
    """Soft labels alone lower what the student says of each text, and a resumed run goes on as it was."""
    tokenizer, other = characters(), byte_level()
    teacher = sized(llama, other, 1)
    distill_language_model(teacher, other, TEXTS[:5], **{**COMMON, "steps": 30, "lr": 1e-2})
    student = sized(qwen, tokenizer)
    history = distill_language_model(
        student, tokenizer, TEXTS[:5], teacher=teacher, teacher_tokenizer=other, alpha=0.0,
        across_tokenizers="aligned", **{**COMMON, "steps": 30, "lr": 1e-2},
    )  # fmt: skip
    assert sum(history.loss[-3:]) < 0.5 * sum(history.loss[:3])


@pytest.mark.parametrize("kind", ["aligned", "uld"])
def test_a_run_that_was_killed_goes_on(kind, tmp_path, monkeypatch):
    tokenizer, other, ends = byte_level(), characters(), []
    settings = {**COMMON, "steps": 5, "save_steps": 2, "across_tokenizers": kind, "teacher_tokenizer": other}

    def run(folder):
        student, teacher = sized(qwen, tokenizer), sized(llama, other, 1)
        history = distill_language_model(student, tokenizer, TEXTS, folder, teacher=teacher, **settings)
        return history.loss, torch.cat([p.detach().flatten() for p in student.parameters()])

    whole = run(tmp_path / "whole")
    step = trainer.DistillationTrainer.on_step_end

    def stop(self, args, state, control, **more):
        step(self, args, state, control, **more)
        ends.append(state.global_step)
        if state.global_step == 3:
            raise InterruptedError

    monkeypatch.setattr(trainer.DistillationTrainer, "on_step_end", stop)
    with pytest.raises(InterruptedError):
        run(tmp_path / "killed")
    monkeypatch.setattr(trainer.DistillationTrainer, "on_step_end", step)
    losses, weights = run(tmp_path / "killed")
    assert ends == [1, 2, 3] and losses == whole[0] and torch.equal(weights, whole[1])
    settings["across_tokenizers"] = "uld" if kind == "aligned" else "aligned"
    with pytest.raises(ValueError, match=f"belongs to another run: across_tokenizers .*{kind}"):
        run(tmp_path / "killed")
    settings["across_tokenizers"], other.chat_template = kind, f"Answer: {other.chat_template}"
    with pytest.raises(ValueError, match="belongs to another run: teacher "):
        run(tmp_path / "killed")


def test_unfinished_texts_have_no_end_to_compare():
    tokenizer, other = byte_level(), characters()
    traces = [trace("three heads", True), trace("thirty-", False)]
    teacher = sized(llama, other, 1)
    history = distill_language_model(
        sized(qwen, tokenizer), tokenizer, traces, teacher=teacher, teacher_tokenizer=other,
        across_tokenizers="aligned", **{**COMMON, "steps": 1},
    )  # fmt: skip
    assert history.tokens == [sum(len(e.completion) for e in tokenize(tokenizer, traces))]


@pytest.mark.parametrize(("changed", "message"), [
    ({"across_tokenizers": None}, 'tokenizer has .*across_tokenizers="aligned"'),
    ({"across_tokenizers": "gold"}, "across_tokenizers must be None, .aligned. or .uld.; got 'gold'"),
    ({"teacher_tokenizer": None}, "across_tokenizers='aligned' needs teacher_tokenizer"),
    ({"teacher": None, "alpha": 1.0}, "across_tokenizers='aligned' needs a model as teacher.*got None"),
    ({"on_policy": True}, "across_tokenizers='aligned' with on_policy=True"),
    ({"on_policy": 0.5, "top_k": 4}, "across_tokenizers='aligned' with .*top_k=4, on_policy=0.5"),
    ({"hidden": HiddenMatch()}, "across_tokenizers='aligned' with hidden="),
    ({"teacher_prompt": "student"}, "across_tokenizers='aligned' with teacher_prompt='student'"),
    ({"fused": True}, "across_tokenizers='aligned' with fused=True"),
    ({"across_tokenizers": "uld", "divergence": "reverse"}, "divergence='reverse' with across_tok"),
    ({"examples": tokenize(byte_level(), TEXTS)}, "examples are token ids; expected texts"),
    ({"examples": [trace("", False)]}, "a completion without text and end"),
    ({"examples": [("a", "b " * 300)]}, "examples.0. takes .* tokens, but teacher has 256 pos"),
    ({"teacher": llama(1, 100)}, "teacher has 100 logits, but tokenizer has tokens up to"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(changed, message):
    tokenizer, other = byte_level(), characters()
    arguments = {
        "examples": TEXTS, "teacher": llama(1, len(other)), "teacher_tokenizer": other,
        "across_tokenizers": "aligned", **changed,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        distill_language_model(
            qwen(0, len(tokenizer)), tokenizer, arguments.pop("examples"), **arguments, **COMMON
        )


def test_fsdp_is_refused(monkeypatch):
    for name, value in {"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    tokenizer, other = byte_level(), characters()
    with pytest.raises(ValueError, match="across_tokenizers='uld' under FSDP2"):
        distill_language_model(
            qwen(0, len(tokenizer)), tokenizer, TEXTS, teacher=llama(1, len(other)), teacher_tokenizer=other,
            across_tokenizers="uld", **COMMON,
        )  # fmt: skip
