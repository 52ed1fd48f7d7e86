"""What a run leaves behind, in its folder and in the process, and what it refuses."""

import json
import os
import random

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from small_models import WORDS, llama, pairs, qwen, word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from kdlib.data import Examples
from kdlib.language.distill.distill import distill_language_model
from kdlib.training import fit

QUICK = {"steps": 2, "lr": 1e-3, "batch_size": 4, "device": "cpu"}


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_folder_holds_models_that_can_be_loaded_and_generate(tmp_path, caplog):
    student, teacher, folder, with_gradient = llama(), qwen(1), tmp_path / "run", []
    teacher.lm_head.register_forward_hook(lambda *call: with_gradient.append(call[-1].requires_grad))
    distill_language_model(
        student, word_tokenizer(), pairs(8), folder, teacher=teacher, save_steps=1, **QUICK
    )
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    for place in (folder, folder / "checkpoint-2"):
        loaded, read = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
        assert same(weights(loaded), weights(student))
        assert loaded.config.use_cache and student.config.use_cache
        settings = loaded.generation_config
        assert settings.pad_token_id == 0 and settings.eos_token_id in (1, [1])
        read.padding_side = "left"
        prompts = read.apply_chat_template(
            [[{"role": "user", "content": text}] for text in ("w1", "w1 w2 w3")], add_generation_prompt=True,
            padding=True, return_tensors="pt", return_dict=True,
        )  # fmt: skip
        assert loaded.generate(**prompts, max_new_tokens=3, do_sample=False).shape == (2, 9)
    # The teacher is nowhere in it.
    stored = load_file(folder / "checkpoint-2/model.safetensors")
    assert stored.keys() <= student.state_dict().keys()
    assert same(weights(teacher), weights(qwen(1))) and not teacher.training
    assert with_gradient == [False, False]
    assert caplog.text == ""


def test_without_a_folder_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    distill_language_model(qwen(), word_tokenizer(), pairs(8), **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_taken_up_without_a_step(tmp_path):
    students = [qwen(), qwen()]
    histories = [
        distill_language_model(student, word_tokenizer(), pairs(8), tmp_path, teacher=llama(1), **QUICK)
        for student in students
    ]
    assert histories[0].loss == histories[1].loss and histories[0].tokens == histories[1].tokens
    assert same(weights(students[0]), weights(students[1])) and not students[1].training


def test_another_run_is_refused(tmp_path):
    def train(student=None, data=None, **changed):
        return distill_language_model(
            student or qwen(), word_tokenizer(), data or pairs(8), tmp_path, **{**QUICK, **changed}
        )

    first = train(teacher=llama(1))
    for changed, name in (
        ({"data": pairs(8, seed=1)}, "examples was"),
        ({"teacher": llama(2)}, "teacher was"),
        ({"student": qwen(5)}, "student was"),
        ({"alpha": 0.1}, r"alpha was 0.5, is 0.1"),
        ({"temperature": 2.0}, "temperature was 1.0, is 2.0"),
        ({"divergence": "jsd"}, "divergence was forward, is jsd"),
        ({"steps": 3}, "steps was 2, is 3"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"weight_decay": 0.1}, "training_arguments was .* is .*'weight_decay': 0.1"),
        ({"on_policy": True, "max_new_tokens": 9}, "on_policy was None, is {"),
    ):
        with pytest.raises(ValueError, match=f"belongs to another run: .*{name}"):
            train(**{"teacher": llama(1), **changed})
    assert train(teacher=llama(1)).loss == first.loss
    assert train(resume=False).hard == []  # starts anew, as another run


def test_what_is_set_for_the_whole_process_is_put_back(capfd):
    images = Examples(torch.rand(8, 1, 8, 8), torch.arange(8) % 2, torch.arange(8))

    def fitted():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(64, 2))
        fit(net, images, epochs=2, lr=0.1, seed=0, device="cpu", precision="bf16")
        return weights(net)

    def distilled(precision="no", student=None):
        student = student or qwen()
        distill_language_model(student, word_tokenizer(), pairs(8), precision=precision, **QUICK)
        assert "forward" not in vars(student) and "_original_forward" not in vars(student)
        return weights(student)

    def state():
        shared = [dict(kind._shared_state) for kind in (PartialState, AcceleratorState, GradientState)]
        arrays = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
        return shared, arrays, dict(os.environ), logging.get_verbosity(), logging.is_progress_bar_enabled()

    fit_first, distilled_second = fitted(), distilled()
    student = qwen()
    logging.set_verbosity_info()
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    before = state()
    in_bf16 = distilled("bf16", student)
    assert state() == before
    logging.set_verbosity_warning()
    assert same(distilled(), distilled_second) and same(fitted(), fit_first)
    assert not same(in_bf16, distilled_second)
    assert capfd.readouterr().out == ""


def test_nothing_is_printed_but_a_progress_bar_that_was_asked_for(capfd):
    distill_language_model(qwen(), word_tokenizer(), pairs(8), **QUICK)
    assert capfd.readouterr() == ("", "")
    distill_language_model(qwen(), word_tokenizer(), pairs(8), progress=True, **QUICK)
    out, error = capfd.readouterr()
    assert out == "" and "steps:" in error and "/2 [" in error


def test_further_arguments_reach_trainer():
    def curve(**changed):
        return distill_language_model(qwen(), word_tokenizer(), pairs(12), epochs=1, lr=1e-2, batch_size=4,
                                      device="cpu", **changed).loss  # fmt: skip

    plain = curve()
    assert len(plain) == 3
    assert curve(gradient_checkpointing=True) == pytest.approx(plain, rel=1e-5)
    assert curve(lr_scheduler_type="constant", warmup_steps=0) != plain
    assert curve(precision="bf16") == pytest.approx(plain, rel=0.02)
    assert sum(curve(group_by_length=True)) != sum(plain)


def test_a_run_leaves_nothing_switched_on():
    student, seen = qwen(), []
    handle = student.model.layers[0].self_attn.register_forward_hook(lambda *_: seen.append(1))
    for checkpointing, forwards in ((True, 2), (False, 1)):  # with it, each step computes the layer twice
        seen.clear()
        distill_language_model(
            student, word_tokenizer(), pairs(8), steps=3, lr=1e-3, batch_size=4, device="cpu",
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        assert len(seen) == 3 * forwards
    handle.remove()


def test_the_student_learns_the_texts():
    data, student, tokenizer = pairs(6), qwen(hidden_size=64), word_tokenizer()
    history = distill_language_model(student, tokenizer, data, steps=80, lr=1e-2, batch_size=6, device="cpu")
    assert history.loss[-1] < 0.2 < 3 < history.loss[0]
    assert history.steps == 80 and history.tokens_trained == sum(history.tokens) and history.seconds > 0
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": data[0][0]}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    written = student.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False
    )
    assert " ".join(WORDS[i] for i in written[0, prompt.shape[1]:]) == f"{data[0][1]} <eos>"


def test_a_loss_that_is_not_finite_ends_the_run_and_no_checkpoint_holds_it(tmp_path):
    student, broken = qwen(), llama(1)
    with torch.no_grad():
        broken.lm_head.weight[3] = float("nan")
    with pytest.raises(FloatingPointError, match="the loss of step 1 is nan; try a smaller lr"):
        distill_language_model(
            student, word_tokenizer(), pairs(8), tmp_path, teacher=broken, save_steps=1, **QUICK
        )
    assert not list(tmp_path.glob("checkpoint-*")) and not student.training


def test_refusals():
    student, teacher = qwen(), llama(1)
    cases = [
        ({}, "steps is None and epochs is None"),
        ({"steps": 1, "epochs": 1}, "steps is 1 and epochs is 1"),
        ({"steps": 0}, "steps is 0; expected a whole number, at least 1"),
        ({"epochs": -1}, "epochs is -1; expected a finite number above 0"),
        ({"steps": 1, "batch_size": 1.5}, "batch_size is 1.5"),
        ({"steps": 1, "save_steps": 0}, "save_steps is 0"),
        ({"steps": 1, "alpha": 0.5}, "alpha=0.5; expected 1 without a teacher"),
        ({"steps": 1, "alpha": 2, "teacher": teacher}, r"alpha.*must lie in \[0, 1\]"),
        ({"steps": 1, "teacher": student}, "the same module"),
        ({"steps": 1, "temperature": 0.0, "teacher": teacher}, "temperature must be"),
        ({"steps": 1, "divergence": "kl", "teacher": teacher}, "divergence must be"),
        ({"steps": 1, "on_policy": True}, "on_policy=True needs a model as teacher"),
        ({"steps": 1, "on_policy": 1.5, "teacher": teacher}, "on_policy=1.5; expected False, True or"),
        ({"steps": 1, "on_policy": True, "teacher": teacher, "alpha": 0.5}, "0.5; expected 0 on-policy"),
        ({"steps": 1, "on_policy": True, "teacher": teacher, "max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"steps": 1, "on_policy": True, "teacher": teacher, "sampling_temperature": 0.0}, "ature is 0.0"),
        ({"steps": 1, "learning_rate": 1.0, "output": "x"}, "arguments holds learning_rate, output;"),
        ({"steps": 1, "teacher": llama(1, 50)}, "teacher has 50 logits"),
        ({"steps": 1, "teacher": teacher, "teacher_tokenizer": word_tokenizer(WORDS[:-1])}, "no token 59"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            distill_language_model(student, word_tokenizer(), pairs(8), lr=1e-3, device="cpu", **arguments)


def test_the_record_of_a_run_names_its_settings(tmp_path):
    distill_language_model(qwen(), word_tokenizer(), pairs(8), tmp_path, weight_decay=0.1, **QUICK)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["lr"] == 1e-3 and run["alpha"] == 1.0 and run["training_arguments"]["weight_decay"] == 0.1
