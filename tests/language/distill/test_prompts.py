"""A teacher behind its own prompt and behind the student's, against loops over one example at a time."""

import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small_models import TEMPLATE, llama, pairs, qwen, word_tokenizer

from kdlib.language.distill import trainer
from kdlib.language.distill.batches import TokenExample, tokenize
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.hidden import HiddenMatch
from kdlib.language.distill.prompts import OtherPrompts
from kdlib.language.distill.teachers import cache_teacher_tokens
from kdlib.language.traces.file import Trace

OWN = "<eos> <assistant> {% for message in messages %}{{ message.content }} <user> {% endfor %}"
NOTHING = {"lr": 1e-12, "steps": 1, "device": "cpu"}


def other_tokenizer(template=OWN):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def run(student, teacher, data, folder=None, *, theirs=None, **changed):
    settings = {"batch_size": len(data), **NOTHING, **changed}
    return distill_language_model(
        student, word_tokenizer(), data, folder, teacher=teacher,
        teacher_tokenizer=theirs or other_tokenizer(), **settings,
    )  # fmt: skip


def logs(model, example):
    """(n, V) log-probabilities that a model gives the n tokens of a completion."""
    ids = torch.tensor([[*example.prompt, *example.completion]])
    with torch.no_grad():
        return model(ids).logits[0, len(example.prompt) - 1 : -1, :60].log_softmax(-1)


def both(data):
    return zip(tokenize(word_tokenizer(), data), tokenize(other_tokenizer(), data), strict=True)


def mean_kl(rows):
    """Mean over tokens of KL(p‖q), from pairs of log-probabilities (log q, log p)."""
    rows = [F.kl_div(q, p, log_target=True, reduction="none").sum(-1) for q, p in rows]
    return torch.cat(rows).mean().item()


def test_undecided_it_says_how_far_the_student_prompt_moves_the_teacher():
    teacher, data = llama(1).double(), pairs(12)
    expected = mean_kl((logs(teacher, ours), logs(teacher, own)) for ours, own in both(data))
    told = (
        r"another prompt of 12 of 12 examples: from token 0 on it has '<eos> <assistant> .*' in the first of "
        rf"them, tokenizer's has '<user> .*'\. Behind .* the teacher is {expected:.3f} nats a token"
    )
    with pytest.warns(UserWarning, match=told):
        undecided = run(qwen().double(), teacher, data)
    chosen = run(qwen().double(), teacher, data, teacher_prompt="student")
    assert chosen.loss == undecided.loss and expected > 0.001


@pytest.mark.parametrize(
    "options", [{}, {"packing": True}, {"fused": True}, {"batch_size": 4, "accumulation": 3}],
    ids=["padded", "packed", "fused", "micro-batches"],
)  # fmt: skip
def test_behind_its_own_prompt_the_teacher_is_compared_on_the_same_tokens(options):
    student, teacher, data = qwen().double(), llama(1).double(), pairs(12)
    expected = mean_kl((logs(student, ours), logs(teacher, own)) for ours, own in both(data))
    behind_ours = mean_kl((logs(student, ours), logs(teacher, ours)) for ours, _ in both(data))
    history = run(student, teacher, data, teacher_prompt="own", alpha=0.0, **options)
    assert history.loss == pytest.approx([expected], rel=1e-6)
    assert abs(expected / behind_ours - 1) > 1e-4
    top = run(student, teacher, data, teacher_prompt="own", alpha=0.0, top_k=60)
    assert top.loss == pytest.approx([expected], rel=1e-6)


def test_hidden_states_are_those_behind_its_own_prompt():
    student, teacher, data = qwen().double(), llama(1).double(), pairs(8)
    errors = []
    for sides in both(data):
        states = []
        for model, example in zip((student, teacher), sides, strict=True):
            ids = torch.tensor([[*example.prompt, *example.completion]])
            found = model(ids, output_hidden_states=True).hidden_states[1]
            states.append(found[0, len(example.prompt) - 1 : -1].detach())
        errors.append((states[0] - states[1]).square().sum(-1) / states[1].square().sum(-1))
    history = run(student, teacher, data, teacher_prompt="own", hidden=HiddenMatch({1: 1}))
    assert history.hidden == pytest.approx([torch.cat(errors).mean().item()], rel=1e-9)


def test_on_policy_it_refuses_and_compares_behind_the_prompt_that_was_chosen(tmp_path, monkeypatch):
    student, teacher = qwen(vocabulary=90).double(), llama(1).double()  # 30 of the logits are of no token
    data = [text for text, _ in pairs(6)]
    for share in (True, 0.5):
        given = data if share is True else pairs(6)
        told = r'on-policy both must read .* nats a token .* teacher_prompt="own" .* teacher_prompt="student"'
        with pytest.raises(ValueError, match=told):
            run(student, teacher, given, tmp_path / "run", on_policy=share, max_new_tokens=5)
        assert not (tmp_path / "run").exists()
    written, write = [], trainer.write_completions
    noted = lambda *a, **k: written.append(write(*a, **k)) or written[-1]  # noqa: E731
    monkeypatch.setattr(trainer, "write_completions", noted)
    for chosen in ("own", "student"):
        history = run(student, teacher, data, on_policy=True, max_new_tokens=5, teacher_prompt=chosen)
        behind = [
            TokenExample(e.teacher_prompt if chosen == "own" else e.prompt, e.completion) for e in written[-1]
        ]
        rows = zip(written[-1], behind, strict=True)
        expected = mean_kl((logs(teacher, own), logs(student, ours)) for ours, own in rows)  # reverse
        assert history.loss == pytest.approx([expected], rel=1e-6)
    assert [e.completion for e in written[0]] == [e.completion for e in written[1]]


def test_where_both_render_the_same_nothing_is_said_or_refused():
    data = pairs(4)
    run(qwen(), llama(1), data, theirs=word_tokenizer())
    run(qwen(), llama(1), data, theirs=word_tokenizer(), on_policy=True, max_new_tokens=3)
    run(qwen(), llama(1), data, theirs=word_tokenizer(), teacher_prompt="own")
    base = other_tokenizer(None)  # without a template nothing says what the teacher would be asked
    run(qwen(), llama(1), data, theirs=base)
    ids = tokenize(word_tokenizer(), data)
    run(qwen(), llama(1), ids)
    found = OtherPrompts([TokenExample((7, 8, 9), (1,), teacher_prompt=(7, 8))], 3, word_tokenizer())
    told = "1 of 3 examples: from token 0 on it has 'w0 w1' in the first of them, tokenizer's has 'w0 w1 w2'"
    assert told in str(found)


def test_a_cache_holds_what_the_teacher_said_behind_the_student_prompt(tmp_path):
    teacher, data = llama(1), pairs(5)
    cached = cache_teacher_tokens(teacher, word_tokenizer(), data, tmp_path, top_k=8)
    advice = r"another prompt of 5 of 5 examples: .* a cache made with teacher_prompt=\"own\" holds"
    with pytest.warns(UserWarning, match=advice) as told:
        run(qwen(), cached, data)
    assert "nats" not in str(told[0].message)
    run(qwen(), cached, data, teacher_prompt="student")
    with pytest.raises(ValueError, match='teacher_prompt="own" with a cache .* prompts of "student"'):
        run(qwen(), cached, data, teacher_prompt="own")


def test_a_cache_behind_its_own_prompts_is_the_live_teacher_behind_them(tmp_path):
    teacher, data = llama(1), pairs(12)
    data[3] = (f"{data[3][0]} w1 w2 w3", data[3][1])  # prompts of several lengths
    store = partial(cache_teacher_tokens, teacher, word_tokenizer(), data, top_k=60, device="cpu",
                    teacher_tokenizer=other_tokenizer())  # fmt: skip
    expected = mean_kl((logs(teacher, ours), logs(teacher, own)) for ours, own in both(data))
    with pytest.warns(UserWarning, match=f"is {expected:.3f} nats a token") as told:
        store(tmp_path / "student")
    assert told[0].filename == __file__
    cached = store(tmp_path / "own", teacher_prompt="own")
    live = run(qwen(), teacher, data, teacher_prompt="own", alpha=0.0, top_k=60)
    for chosen in (None, "own"):
        history = run(qwen(), cached, data, teacher_prompt=chosen, alpha=0.0)
        assert history.loss == pytest.approx(live.loss, rel=1e-3)  # stored in float16
    other = run(qwen(), teacher, data, teacher_prompt="student", alpha=0.0, top_k=60)
    assert abs(other.loss[0] / live.loss[0] - 1) > 2e-3
    with pytest.raises(ValueError, match='teacher_prompt="student" with a cache .* prompts of "own"'):
        run(qwen(), cached, data, teacher_prompt="student")
    with pytest.raises(ValueError, match="teacher_prompts"):
        store(tmp_path / "own", teacher_prompt="student")
    for chosen in (None, "own"):
        with pytest.raises(ValueError, match="do not belong to this run: teacher_prompts was"):
            run(qwen(), cached, data, theirs=other_tokenizer("w1 " + OWN), teacher_prompt=chosen)
    same = cache_teacher_tokens(teacher, word_tokenizer(), data, tmp_path / "same", top_k=8, device="cpu",
                                teacher_tokenizer=word_tokenizer(), teacher_prompt="own")  # fmt: skip
    run(qwen(), same, data, theirs=word_tokenizer(), teacher_prompt="own")


def test_a_text_without_a_completion_measures_nothing(tmp_path):
    teacher, data = llama(1).double(), pairs(6)
    cut_off = Trace("k", data[0][0], "1", 0, "", 0, False, None, False)
    given = [cut_off, *data[1:], replace(cut_off, key="l")]
    expected = mean_kl((logs(teacher, ours), logs(teacher, own)) for ours, own in both(data[1:]))
    store = partial(cache_teacher_tokens, teacher, word_tokenizer(), top_k=8, device="cpu",
                    teacher_tokenizer=other_tokenizer())  # fmt: skip
    with pytest.warns(UserWarning, match=f"of 7 examples.* is {expected:.3f} nats a token"):
        store(given, tmp_path / "cache")
    with pytest.warns(UserWarning, match=f"of 7 examples.* is {expected:.3f} nats a token"):
        run(qwen().double(), teacher, given)


def test_what_has_no_room_is_not_measured(tmp_path):
    teacher, data = llama(1), pairs(4)
    long = other_tokenizer("w1 " * 250 + OWN)  # behind which no completion fits the teacher's 256 positions
    for call in (lambda: run(qwen(), teacher, data, theirs=long),
                 lambda: cache_teacher_tokens(teacher, word_tokenizer(), data, tmp_path, top_k=3,
                                              teacher_tokenizer=long, device="cpu")):  # fmt: skip
        with pytest.warns(UserWarning, match="another prompt of 4 of 4") as told:
            call()
        assert "nats" not in str(told[0].message)
    asked = [" ".join(["w1"] * 235)]  # on-policy there is room for 8 tokens, not for 64
    with pytest.raises(ValueError, match="on-policy both must read .* nats a token"):
        run(qwen(), teacher, asked, on_policy=True, max_new_tokens=8)


def test_a_teacher_that_nobody_asks_is_not_compared():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(qwen(), llama(1), pairs(4), alpha=1.0)


def test_token_ids_bring_prompts_of_the_teacher_s_own(tmp_path):
    teacher, data = llama(1).double(), pairs(6)
    ids = [replace(ours, teacher_prompt=own.prompt) for ours, own in both(data)]
    store = partial(cache_teacher_tokens, teacher, word_tokenizer(), ids, top_k=60, device="cpu")
    live = run(qwen().double(), teacher, ids, alpha=0.0)
    assert live.loss == run(qwen().double(), teacher, data, alpha=0.0, teacher_prompt="own").loss
    cached = run(qwen().double(), store(tmp_path / "own"), ids, alpha=0.0)
    assert cached.loss == pytest.approx(live.loss, rel=1e-3)
    plain = run(qwen().double(), teacher, ids, alpha=0.0, teacher_prompt="student")
    assert plain.loss == run(qwen().double(), teacher, data, alpha=0.0, teacher_prompt="student").loss
    stored = run(qwen().double(), store(tmp_path / "student", teacher_prompt="student"), ids, alpha=0.0,
                 teacher_prompt="student")  # fmt: skip
    assert stored.loss == pytest.approx(plain.loss, rel=1e-3)


def test_refusals_and_another_run(tmp_path):
    student, teacher, data = qwen(), llama(1), pairs(4)
    with pytest.raises(ValueError, match="teacher_prompt is 'both'; expected None"):
        run(student, teacher, data, teacher_prompt="both")
    ids = tokenize(word_tokenizer(), data)
    settings = {"teacher_prompt": "own", "batch_size": 4, **NOTHING}
    for examples, judge, theirs in ((data, teacher, None), (data, None, other_tokenizer()),
                                    (ids, teacher, other_tokenizer())):  # fmt: skip
        with pytest.raises(ValueError, match='teacher_prompt="own" needs a model as teacher, and texts'):
            distill_language_model(
                student, word_tokenizer(), examples, teacher=judge, teacher_tokenizer=theirs, **settings
            )
    with pytest.raises(ValueError, match="teacher_tokenizer has no chat_template"):
        run(student, teacher, data, theirs=other_tokenizer(None), teacher_prompt="own")
    with pytest.raises(ValueError, match="takes 3.. tokens, but teacher has 256 positions"):
        run(student, teacher, data, theirs=other_tokenizer("w1 " * 300 + OWN), teacher_prompt="own")
    plain = word_tokenizer()
    plain.chat_template = TEMPLATE.replace(" <think>", "")
    thoughts = [(statement, f"<think> {text}") for statement, text in data]
    with pytest.raises(ValueError, match="completion that begins with <think>"):
        distill_language_model(student, plain, thoughts, teacher=teacher, teacher_tokenizer=word_tokenizer(),
                               **settings)  # fmt: skip
    run(student, teacher, data, tmp_path, teacher_prompt="student")
    with pytest.raises(ValueError, match="belongs to another run: .*examples"):
        run(qwen(), teacher, data, tmp_path, teacher_prompt="own")
