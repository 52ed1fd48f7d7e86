"""Calls of `distill_language_model` that people get wrong, folders of other things, full disks."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from small_models import llama, pairs, qwen, word_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, TrainerState

from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.scores import score_texts
from kdlib.language.distill.teachers import cache_teacher_tokens
from kdlib.language.models.prune import block_importance, prune_layers
from kdlib.language.problems import Problem

NAN, INF = float("nan"), float("inf")
QUICK = {"steps": 2, "lr": 1e-3, "batch_size": 4, "device": "cpu"}


def refused(message, *args, examples=None, tokenizer=None, student=None, **arguments):
    settings = {"steps": 1, "lr": 1e-3, "device": "cpu", **arguments}
    with pytest.raises(ValueError, match=message):
        distill_language_model(
            student or qwen(), tokenizer or word_tokenizer(), examples or pairs(8), *args, **settings
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": NAN}, "temperature must be a positive finite number; got nan"),
        ({"temperature": "2"}, "temperature must be a positive finite number"),
        ({"beta": NAN}, "beta is nan; expected a number strictly between 0 and 1"),
        ({"beta": 1.0}, "beta is 1.0; expected"),
        ({"sampling_temperature": NAN}, "sampling_temperature is nan; expected a finite number above 0"),
        ({"sampling_temperature": -1}, "sampling_temperature is -1; expected"),
        ({"divergence": "kl"}, "divergence must be"),
        ({"alpha": NAN}, "alpha=nan; expected 1 without a teacher"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5; expected a whole number, at least 1"),
        ({"lr": INF}, "lr is inf; expected a finite number above 0"),
        ({"lr": NAN}, "lr is nan"),
        ({"lr": 0}, "lr is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": "1e-3"}, "lr is '1e-3'"),
        ({"seed": "a"}, "seed is 'a'; expected a whole number"),
        ({"seed": None}, "seed is None; expected a whole number"),
        ({"seed": -1}, "seed=-1; expected 0 to"),
        ({"steps": 1.0}, "steps is 1.0; expected a whole number, at least 1"),
        ({"steps": True}, "steps is True; expected a whole number, at least 1"),
        ({"steps": None, "epochs": INF}, "epochs is inf; expected a finite number above 0"),
        ({"steps": None, "epochs": "2"}, "epochs is '2'; expected a finite number above 0"),
        ({"save_steps": 2.5}, "save_steps is 2.5; expected a whole number, at least 1"),
        ({"accumulation": 1.5}, "accumulation is 1.5"),
        ({"packing": "no"}, "packing='no'; expected True or False"),
        ({"resume": 1}, "resume=1; expected True or False"),
        ({"fused": "yes"}, "fused='yes'; expected True or False"),
        ({"on_policy": "yes"}, "on_policy=.*yes.*; expected False, True or a share"),
        ({"teacher": "Qwen-7B"}, "teacher is 'Qwen-7B'; expected a model, such as load_checkpoint gives"),
        ({"student": "Qwen-1.5B"}, "student is 'Qwen-1.5B'; expected a model, such as load_checkpoint gives"),
        ({"examples": "traces.jsonl"}, "examples is 'traces.jsonl'; .*load_traces and load_problems"),
        ({"examples": Path("traces.jsonl")}, "examples is 'traces.jsonl'"),
        ({"examples": iter(pairs(2))}, "examples is .*; expected a list of traces"),
        ({"examples": ["a text"]}, r"examples\[0\] has no completion; expected a Trace or a pair"),
        ({"examples": [Problem("k", "w1", "w2")]}, r"examples\[0\] has no completion"),
        ({"examples": [{"prompt": "w1"}]}, "examples holds {'prompt': 'w1'}; expected a Trace or a pair"),
        ({"examples": [("w1", "w2 \ud83d")]}, "a completion of examples holds half a character"),
    ],
)  # fmt: skip
def test_an_argument_that_does_not_fit_is_named_even_where_it_is_not_used(arguments, message):
    refused(message, **arguments)


def test_a_path_where_texts_belong_is_named_by_all_that_take_texts(tmp_path):
    model, tokenizer = qwen(), word_tokenizer()
    for call in (
        lambda: score_texts(model, tokenizer, "traces.jsonl"),
        lambda: cache_teacher_tokens(model, tokenizer, "traces.jsonl", tmp_path, top_k=3, device="cpu"),
    ):
        with pytest.raises(ValueError, match=r"examples is 'traces.jsonl'; .*load_traces"):
            call()
    with pytest.raises(ValueError, match="texts is 'book.txt'; expected several texts"):
        block_importance(model, tokenizer, "book.txt")
    for call in (
        lambda: score_texts(model, tokenizer, pairs(2), batch_tokens=1.5),
        lambda: cache_teacher_tokens(model, tokenizer, pairs(2), tmp_path, device="cpu", batch_tokens=1.5),
    ):
        with pytest.raises(ValueError, match="batch_tokens is 1.5; expected a whole number, at least 1"):
            call()


@pytest.mark.parametrize("wrong", [None, "Qwen-7B"])
def test_what_is_no_model_is_called_that(wrong, tmp_path):
    tokenizer = word_tokenizer()
    for call in (
        lambda: score_texts(wrong, tokenizer, pairs(2)),
        lambda: cache_teacher_tokens(wrong, tokenizer, pairs(2), tmp_path),
        lambda: prune_layers(wrong, keep=[0]),
        lambda: block_importance(wrong, tokenizer, ["w1"]),
    ):
        with pytest.raises(ValueError, match=f"is {wrong!r}; expected a model, such as load_checkpoint"):
            call()


def test_a_device_that_is_not_here_is_named(tmp_path):
    with pytest.raises(ValueError, match="device is 'xpu:7', on which PyTorch cannot compute .* one of cpu"):
        cache_teacher_tokens(qwen(), word_tokenizer(), pairs(2), tmp_path, top_k=2, device="xpu:7")


# --- texts that are too long ------------------------------------------------------------------------


def gpt2(positions):
    """With learned positions: a longer text is an IndexError; models with rotary ones say nothing at all."""
    config = GPT2Config(vocab_size=60, n_positions=positions, n_embd=32, n_layer=1, n_head=2)
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize("model", [gpt2(16), qwen(max_position_embeddings=16)], ids=["gpt2", "qwen"])
def test_a_text_longer_than_the_positions_is_named(model, tmp_path):
    tokenizer = word_tokenizer()
    fits = ("w1 " * 4).strip(), ("w2 " * 8).strip()  # with template and end 16 tokens
    long = fits[0], ("w2 " * 9).strip()
    message = r"examples\[1\] takes 17 tokens, but {} has 16 positions; leave out or shorten the 1 of 2"
    refused(message.format("student"), student=model, examples=[fits, long])
    refused(message.format("teacher"), teacher=model, examples=[fits, long])
    for call in (
        lambda: score_texts(qwen(), tokenizer, [fits, long], teacher=model),
        lambda: cache_teacher_tokens(model, tokenizer, [fits, long], tmp_path, top_k=2, device="cpu"),
    ):
        with pytest.raises(ValueError, match=message.format("teacher")):
            call()
    refused(
        r"examples\[0\] takes 7 tokens beside max_new_tokens=10, but student has 16 positions", student=model,
        examples=[fits], teacher=llama(1), on_policy=True, max_new_tokens=10,
    )  # fmt: skip
    score_texts(model, tokenizer, [fits])


def test_stretched_positions_count_in_full():
    rope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
    model = qwen(max_position_embeddings=16, rope_parameters=rope)
    text = "w1", ("w2 " * 20).strip()
    score_texts(model, word_tokenizer(), [text])
    refused("but student has 32 positions", student=model, examples=[("w1", ("w2 " * 30).strip())])


# --- folders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content"),
    [("thesis.tex", "mine"), ("run.json", "[]"), ("run.json", "{"), ("run.json", '{"name": "mine"}'),
     ("checkpoint-7/model.safetensors", "mine")],
)  # fmt: skip
@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_with_other_files_is_left_alone(tmp_path, file, content, resume):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    name = file.partition("/")[0]
    message = f"output_dir '.*' holds files that are not distill_language_model's, such as {name}; choose"
    refused(message, tmp_path, resume=resume)
    assert os.listdir(tmp_path) == [name] and path.read_text() == content


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="cannot write .*/file .*expected a folder"):
        distill_language_model(qwen(), word_tokenizer(), pairs(8), tmp_path / "file", **QUICK)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def whole(folder):
    """A run as it should be, its loss and weights."""
    student = qwen()
    history = distill_language_model(student, word_tokenizer(), pairs(8), folder, save_steps=1, **QUICK)
    return history.loss, weights(student)


def assert_goes_on(folder, loss, expected):
    student = qwen()
    again = distill_language_model(student, word_tokenizer(), pairs(8), folder, save_steps=1, **QUICK)
    assert again.loss == loss
    assert all(torch.equal(value, expected[name]) for name, value in student.state_dict().items())
    assert not list(folder.glob(".*"))


def test_a_checkpoint_for_which_there_is_no_room_is_named_and_the_run_goes_on(tmp_path):
    """The second one, as `ulimit -f` would stop it: in the weights, which safetensors writes."""
    resource = pytest.importorskip("resource")
    loss, expected = whole(tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save, folder = TrainerState.save_to_json, tmp_path / "run"

    def then_no_room(state, path):
        save(state, path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", then_no_room)
        try:
            with pytest.raises(OSError, match="write .*checkpoint-2 .*larger than a file may") as raised:
                distill_language_model(
                    qwen(), word_tokenizer(), pairs(8), folder, save_steps=1, **QUICK
                )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.errno == errno.EFBIG
    assert sorted(os.listdir(folder)) == ["checkpoint-1", "run.json"]
    assert_goes_on(folder, loss, expected)


@pytest.mark.parametrize("part", ["optimizer.pt", "trainer_state.json", "model.safetensors"])
def test_whatever_of_a_checkpoint_cannot_be_written_nothing_of_it_stays(tmp_path, monkeypatch, part):
    """Another library each: torch.save, Python, and the trained model at the end."""
    loss, expected = whole(tmp_path / "whole")
    folder, written = tmp_path / "run", []

    def full(original):
        def save(first, target, *rest, **named):
            result = original(first, target, *rest, **named)
            written.append(Path(target).name)
            if Path(target).name == part and written.count(part) == 2:
                os.truncate(target, 10)
                if part == "optimizer.pt":
                    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return result

        return save

    with pytest.MonkeyPatch.context() as patch:
        if part == "model.safetensors":  # beside the checkpoints, when all steps are done
            def half(trainer, target=None, *, _internal_call=False):
                if not _internal_call:
                    (Path(target) / part).write_bytes(b"half")
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return original(trainer, target, _internal_call=_internal_call)

            from kdlib.language.distill.trainer import DistillationTrainer

            original = DistillationTrainer.save_model
            patch.setattr(DistillationTrainer, "save_model", half)
        else:
            patch.setattr(torch, "save", full(torch.save))
            patch.setattr(TrainerState, "save_to_json", full(TrainerState.save_to_json))
        with pytest.raises(OSError, match="cannot write .*: the disk is full.*Then start again"):
            distill_language_model(qwen(), word_tokenizer(), pairs(8), folder, save_steps=1, **QUICK)
    steps = ["checkpoint-1", "checkpoint-2"] if part == "model.safetensors" else ["checkpoint-1"]
    assert sorted(os.listdir(folder)) == [*steps, "run.json"]
    assert_goes_on(folder, loss, expected)


def test_the_trained_model_replaces_that_of_before_in_one_piece(tmp_path):
    whole(tmp_path)
    (tmp_path / ".model.part").mkdir()
    (tmp_path / ".model.part" / "model.safetensors").write_bytes(b"half")  # of a process that was killed
    before = (tmp_path / "model.safetensors").read_bytes()
    whole(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not (tmp_path / ".model.part").exists()
    shutil.rmtree(tmp_path)
