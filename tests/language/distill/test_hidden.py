"""Hidden states that a student matches, against loops over one example at a time."""

import pytest
import torch
from small_models import llama, pairs, qwen, word_tokenizer
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from kdlib.language.distill.batches import EpochOrder, tokenize
from kdlib.language.distill.distill import CHECKPOINTING, distill_language_model
from kdlib.language.distill.hidden import HiddenMatch, matched
from kdlib.losses.kd import kd_loss

QUICK = {"lr": 3e-3, "batch_size": 4, "device": "cpu"}
WIDE = {"hidden_size": 48, "num_hidden_layers": 3}


def models(**teacher):
    return qwen().double(), llama(1, **teacher).double()


def run(student, teacher, data, hidden, folder=None, **changed):
    settings = {"steps": 3, **QUICK, **changed}
    return distill_language_model(
        student, word_tokenizer(), data, folder, teacher=teacher, hidden=hidden, **settings
    )


def plain_loop(student, teacher, examples, match, first, steps, alpha):
    """The same training written out: hidden states as transformers gives them, no padding, no hooks."""
    maps = {pair: weight.clone().requires_grad_() for pair, weight in first.items()}
    student.train()
    optimizer = torch.optim.AdamW([
        {"params": [*student.parameters()]}, {"params": [*maps.values()], "lr": match.lr}
    ], QUICK["lr"], weight_decay=0.0)  # fmt: skip
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, steps)
    rows, losses, terms = [*EpochOrder([1] * len(examples), seed=0)], [], []
    for step in range(steps):
        loss, error, count = 0.0, 0.0, 0
        for row in rows[step * 4 : step * 4 + 4]:
            ids = torch.tensor([examples[row].prompt + examples[row].completion])
            places = range(len(examples[row].prompt) - 1, ids.shape[1] - 1)
            ours = student(ids, output_hidden_states=True)
            with torch.no_grad():
                theirs = teacher(ids, output_hidden_states=True)
            loss = loss + kd_loss(
                ours.logits[0, places], theirs.logits[0, places], torch.tensor(examples[row].completion),
                temperature=1.0, alpha=alpha, reduction="sum",
            )  # fmt: skip
            for place in places:
                for (s, t), weight in maps.items():
                    target = theirs.hidden_states[t][0, place]
                    found = weight @ ours.hidden_states[s][0, place]
                    error = error + ((found - target) ** 2).mean() / (target**2).mean() / len(maps)
            count += len(places)
        optimizer.zero_grad()
        ((loss + match.weight * error) / count).backward()
        torch.nn.utils.clip_grad_norm_([*student.parameters(), *maps.values()], 1.0)
        optimizer.step()
        schedule.step()
        losses.append((loss + match.weight * error).item() / count)
        terms.append(error.item() / count)
    return losses, terms


@pytest.mark.parametrize(
    ("options", "teacher"),
    [({"alpha": 0.3}, WIDE), ({"packing": True}, {}), ({"fused": True}, WIDE), ({CHECKPOINTING: True}, {})],
    ids=["padded", "packed", "fused", "checkpointing"],
)
def test_the_term_is_that_of_a_loop_over_hidden_states(options, teacher):
    # The last hidden states that transformers gives are normalised, so the last layers are not among these.
    match = HiddenMatch({1: 2, 0: 0} if teacher else {1: 1, 0: 1}, weight=0.7, lr=0.01)
    student, teacher = models(**teacher)
    other = qwen().double()
    with matched(match, other, teacher, 0) as term:
        pairs_of = {(s, t): term.projector[str(s)].weight.detach() for s, t in term.layers.items()}
    data = pairs(12)
    losses, terms = plain_loop(
        other, teacher, tokenize(word_tokenizer(), data), match, pairs_of, 3, options.get("alpha", 0.5)
    )
    history = run(student, teacher, data, match, **options)
    assert history.hidden == pytest.approx(terms, rel=1e-9)
    assert history.loss == pytest.approx(losses, rel=1e-9)
    assert history.layer_map == dict(sorted(match.layers.items()))
    for name, weight in other.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], weight, atol=1e-8, rtol=0)


def test_the_last_layer_is_taken_before_the_last_norm():
    student, teacher = models()
    data = pairs(4)
    history = run(student, teacher, data, HiddenMatch("last"), steps=1, lr=1e-12)
    errors = []
    for example in tokenize(word_tokenizer(), data):
        ids = torch.tensor([example.prompt + example.completion])
        states = []
        for model in (qwen().double(), llama(1).double()):
            model.model.norm = torch.nn.Identity()
            with torch.no_grad():
                states.append(model.model(ids).last_hidden_state[0, len(example.prompt) - 1 : -1])
        errors += [(((s - t) ** 2).sum() / (t**2).sum()).item() for s, t in zip(*states, strict=True)]
    assert history.hidden == pytest.approx([sum(errors) / len(errors)])
    assert history.layer_map == {2: 2}


def test_a_student_that_is_its_teacher_is_at_zero_and_stays_there():
    student = qwen(1).double()
    history = run(student, qwen(1).double(), pairs(8), HiddenMatch(weight=5.0), alpha=0.0)
    assert history.hidden == [0.0] * 3 and max(history.loss) < 1e-12
    assert history.layer_map == {1: 1, 2: 2}


def test_neither_micro_batches_nor_padding_change_the_term():
    runs = []
    for changed in ({}, {"batch_size": 3, "accumulation": 4}, {"packing": True}):
        student, teacher = models(**WIDE)
        settings = {"batch_size": 12, **changed}
        runs.append((run(student, teacher, pairs(12), HiddenMatch(), **settings), student.state_dict()))
    (history, weights), *others = runs
    for other, found in others:
        assert other.hidden == pytest.approx(history.hidden, rel=1e-12)
        assert other.loss == pytest.approx(history.loss, rel=1e-12)
        for name in weights:
            torch.testing.assert_close(found[name], weights[name], atol=1e-9, rtol=0)


def test_the_student_comes_closer_to_its_teacher_and_the_maps_are_thrown_away(tmp_path, capfd):
    student, teacher = qwen(), llama(1, **WIDE)
    history = run(student, teacher, pairs(16), HiddenMatch(weight=2.0), tmp_path, steps=30, progress=True)
    assert history.hidden[-1] < 0.8 * history.hidden[0]
    assert len(history.hard) == len(history.soft) == 30
    assert "layers of the student that learn from the teacher's: 1 from 2, 2 from 3" in capfd.readouterr().out
    plain = qwen()
    assert student.state_dict().keys() == plain.state_dict().keys()
    assert student._keys_to_ignore_on_save == plain._keys_to_ignore_on_save
    assert not student.model.layers[0]._forward_hooks and not teacher.model.layers[0]._forward_hooks
    for place in (tmp_path, tmp_path / "checkpoint-30"):
        loaded, told = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
        assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys"))
        assert all(torch.equal(w, student.state_dict()[name]) for name, w in loaded.state_dict().items())
    assert not (tmp_path / "hidden_projector.safetensors").exists()


def test_hidden_states_may_be_all_that_the_teacher_is_asked_for():
    """Beside the texts alone, and beside what the student writes."""
    student, teacher = qwen(), llama(1, vocabulary=60)
    texts = run(student, teacher, pairs(8), HiddenMatch("last"), alpha=1.0)
    assert texts.loss == pytest.approx([h + m for h, m in zip(texts.hard, texts.hidden, strict=True)])
    assert texts.soft == []
    written = run(qwen(), teacher, pairs(8), HiddenMatch("last"), on_policy=True, max_new_tokens=4)
    assert written.loss == pytest.approx([s + m for s, m in zip(written.soft, written.hidden, strict=True)])


def test_layers():
    def layer_map(layers, ours, theirs):
        student, teacher = (qwen(num_hidden_layers=number) for number in (ours, theirs))
        return HiddenMatch(layers).layer_map(student, teacher)

    assert layer_map("uniform", 4, 12) == {1: 3, 2: 6, 3: 9, 4: 12}  # TinyBERT's
    assert layer_map("uniform", 2, 3) == {1: 2, 2: 3}
    assert layer_map("uniform", 3, 2) == {1: 1, 2: 2, 3: 2}
    assert layer_map("last", 2, 5) == {2: 5}
    assert list(layer_map({2: 5, 0: 0}, 2, 5)) == [0, 2]


def test_refusals(tmp_path):
    student, teacher = models()
    for layers, told in (
        ("all", 'layers is \'all\'; expected "uniform"'), ({}, "layers is empty"),
        ({3: 1}, "layers names the student's layer 3; expected 0 to 2"),
        ({1: 3}, "layers names the teacher's layer 3; expected 0 to 2"),
        ({1: 1.5}, "a teacher's layer in layers is 1.5; expected a whole number, at least 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            HiddenMatch(layers).layer_map(student, teacher)
    for changed, told in (({"weight": 0}, "weight is 0"), ({"lr": "x"}, "lr is 'x'")):
        with pytest.raises(ValueError, match=told):
            HiddenMatch(**changed)
    with pytest.raises(ValueError, match="hidden is 'last'; expected a HiddenMatch"):
        run(student, teacher, pairs(4), "last")
    with pytest.raises(ValueError, match="hidden needs a model as teacher"):
        run(student, None, pairs(4), HiddenMatch())
    run(student, teacher, pairs(4), HiddenMatch({2: 1}), tmp_path, steps=1)
    fresh, _ = models()
    with pytest.raises(ValueError, match="another run: hidden was .*0.5"):
        run(fresh, teacher, pairs(4), HiddenMatch({2: 1}, weight=0.5), tmp_path, steps=1)
