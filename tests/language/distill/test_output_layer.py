"""The loss inside a model's forward, from its hidden states: against the same from all of its logits."""

from copy import deepcopy

import pytest
import torch
from small_models import SHAPE, llama, pairs, qwen, word_tokenizer
from torch import Tensor
from torch.utils._pytree import tree_map
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from kdlib.language.distill import trainer
from kdlib.language.distill.batches import collate, tokenize
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.forward import predictions
from kdlib.language.distill.output_layer import (
    FAMILIES,
    LARGE_VOCABULARY,
    at_output_layer,
    has_linear_output,
)
from kdlib.language.distill.teachers import ModelTeacher, cache_teacher_tokens

BOUNDED = {**SHAPE, "vocab_size": 60, "head_dim": 16}  # Gemma 2 bounds its logits by a tanh
SETTINGS = {"lr": 3e-3, "batch_size": 4, "accumulation": 2, "steps": 3, "device": "cpu"}


def of_family(name: str, **changed):
    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": 60, **changed}
    return {
        "llama": lambda: llama(vocabulary=60, **changed), "qwen2": lambda: qwen(vocabulary=60, **changed),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**shape)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16)),
    }[name]()  # fmt: skip


def batch_of(packing=None):
    return collate(tokenize(word_tokenizer(), pairs(6)), 0, packing)


@pytest.mark.parametrize("packing", [None, "rows"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("tied", [False, True])
def test_hidden_states_times_weights_are_the_logits(name, tied, packing):
    model, batch = of_family(name, tie_word_embeddings=tied).double(), batch_of(packing)
    assert has_linear_output(model)
    expected = predictions(model, batch)
    found = at_output_layer(model, batch, torch.nn.functional.linear)
    assert "forward" not in vars(model.lm_head)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_which_models_have_a_linear_output():
    assert not has_linear_output(Gemma2ForCausalLM(Gemma2Config(**BOUNDED)))
    classifier = Qwen2ForSequenceClassification(Qwen2Config(**SHAPE, vocab_size=60, pad_token_id=0))
    assert not has_linear_output(classifier)
    assert not has_linear_output(torch.nn.Linear(2, 2))
    spread = qwen()
    spread.hf_device_map = {"model": 0, "lm_head": 1}
    assert not has_linear_output(spread)
    spread.hf_device_map = {"": 0}
    assert has_linear_output(spread)
    quantised = qwen()
    quantised.lm_head = type("Linear8bit", (torch.nn.Linear,), {})(32, 60)
    assert not has_linear_output(quantised)


WAYS = {
    "texts": {"alpha": 1.0},
    "logits": {"alpha": 0.4, "temperature": 2.0},
    "logits, packed": {"alpha": 0.4, "packing": True},
    "reverse": {"alpha": 0.0, "divergence": "reverse"},
    "jsd": {"alpha": 0.3, "divergence": "jsd", "beta": 0.2},
    "skewed": {"alpha": 0.3, "divergence": "skew-reverse", "beta": 0.9},
    "adaptive": {"alpha": 0.0, "divergence": "akl"},
    "the largest of a live teacher": {"alpha": 0.3, "top_k": 7},
    "checkpointing": {"alpha": 0.3, "gradient_checkpointing": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", [qwen, llama])
def test_training_is_the_same(way, family):
    runs = []
    for fused in (False, True):
        student = family(vocabulary=70).double()
        teacher = qwen(1, vocabulary=64).double() if WAYS[way]["alpha"] < 1 else None
        history = distill_language_model(
            student, word_tokenizer(), pairs(24), teacher=teacher, fused=fused, **SETTINGS, **WAYS[way]
        )
        runs.append((history, student.state_dict()))
    (usual, weights), (fused, found) = runs
    for term in ("loss", "hard", "soft"):
        assert getattr(fused, term) == pytest.approx(getattr(usual, term), rel=1e-6)
    assert fused.tokens == usual.tokens
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, atol=1e-10, rtol=0)


def test_what_leaves_the_forward_in_half_precision_rounds_nothing():
    """FSDP2 casts it, and with it the slope that comes back."""

    def cast(module, inputs, output):
        output.logits = tree_map(Tensor.bfloat16, output.logits)
        return output

    runs = []
    for hooks in ([], [cast]):
        student = qwen()
        for hook in hooks:
            student.register_forward_hook(hook)
        history = distill_language_model(
            student, word_tokenizer(), pairs(24), teacher=llama(1), alpha=0.3, fused=True, **SETTINGS
        )
        runs.append((history, student.state_dict()))
    (usual, weights), (rounded, found) = runs
    assert (rounded.loss, rounded.hard, rounded.soft) == (usual.loss, usual.hard, usual.soft)
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def test_from_a_cache(tmp_path):
    tokenizer, data = word_tokenizer(), pairs(24)
    stored = cache_teacher_tokens(qwen(1), tokenizer, data, tmp_path, top_k=5)
    losses = []
    for fused in (False, True):
        history = distill_language_model(
            qwen().double(), tokenizer, data, teacher=stored, alpha=0.4, fused=fused, **SETTINGS
        )
        losses.append(history.loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_the_student_writes_with_an_opened_forward():
    histories = [
        distill_language_model(
            qwen(), word_tokenizer(), pairs(24), teacher=llama(1), on_policy=True, max_new_tokens=5,
            fused=fused, **SETTINGS,
        )
        for fused in (False, True)
    ]  # fmt: skip
    assert histories[1].tokens == histories[0].tokens
    assert histories[1].loss == pytest.approx(histories[0].loss, rel=1e-4)


def test_logits_are_never_all_there(monkeypatch):
    """The output layers give the loss, and hidden states; the loss makes logits, a few at a time."""
    student, teacher, given, called = qwen(), qwen(1), [], []
    for model in (student, teacher):
        model.lm_head.register_forward_hook(lambda module, inputs, output: given.append(output))
    original = trainer.linear_kd_loss

    def noted(*args, **options):
        called.append(args)
        return original(*args, **options)

    monkeypatch.setattr(trainer, "linear_kd_loss", noted)
    distill_language_model(student, word_tokenizer(), pairs(24), teacher=teacher, fused=True, **SETTINGS)
    assert len(called) == 6 and len(given) == 12
    for hidden, loss in zip(given[::2], given[1::2], strict=True):
        assert hidden.shape[1] == 32 and not hidden.requires_grad
        assert loss.dim() == 0 and loss.requires_grad
    assert all("forward" not in vars(model.lm_head) for model in (student, teacher))


def test_by_default_from_large_vocabularies_on(monkeypatch):
    words = word_tokenizer()
    chosen, counts = [], []
    monkeypatch.setattr(
        trainer, "at_output_layer", lambda *call: chosen.append(1) or at_output_layer(*call)
    )
    large = LARGE_VOCABULARY
    for student, teacher in (
        (qwen(vocabulary=large), llama(1, vocabulary=large)), (qwen(vocabulary=large - 1), llama(1)),
        (qwen(vocabulary=large), Gemma2ForCausalLM(Gemma2Config(**BOUNDED))),
    ):  # fmt: skip
        distill_language_model(student, words, pairs(8), teacher=teacher, **{**SETTINGS, "steps": 1})
        counts.append(len(chosen))
    assert counts[0] == counts[1] == counts[2] > 0


def test_a_model_without_a_linear_output_is_refused():
    bounded = Gemma2ForCausalLM(Gemma2Config(**BOUNDED))
    for student, teacher, name in ((bounded, qwen(), "student"), (qwen(), bounded, "teacher")):
        with pytest.raises(ValueError, match=f"fused=True with a {name} of type gemma2; expected one of ll"):
            distill_language_model(
                student, word_tokenizer(), pairs(8), teacher=teacher, fused=True, **SETTINGS
            )
    # The logits of such a teacher are no obstacle where they are not compared in full.
    distill_language_model(
        qwen(), word_tokenizer(), pairs(8), teacher=deepcopy(bounded), top_k=4, fused=True, **SETTINGS
    )


def test_a_teacher_up_to_its_output_layer():
    teacher, batch = llama(1), batch_of("rows")
    hidden, weight, bias = ModelTeacher(teacher.eval(), 60, None, 1.0, fused=True)(batch)
    assert not hidden.requires_grad
    logits = torch.nn.functional.linear(hidden, weight, bias)
    torch.testing.assert_close(logits, predictions(teacher, batch), atol=1e-6, rtol=1e-5)
