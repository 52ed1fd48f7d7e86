"""The models of the reasoning study: where teacher and students start, and that a kill does not lose them."""

from dataclasses import replace

import pytest
import torch
from tiny_study import same, weights
from transformers import LlamaForCausalLM, Qwen2ForCausalLM

from kdlib.course.studies import reasoning
from kdlib.course.studies.reasoning import ReasoningStudy
from kdlib.course.studies.reasoning_arms import TINY, Stage
from kdlib.language.distill.trainer import DistillationTrainer
from kdlib.language.models.small import tiny_model
from kdlib.language.puzzles.text import statement, written_solution

QUICK = replace(TINY, student_pretraining=Stage(6, 1e-2, 4), teacher_pretraining=Stage(3, 1e-2, 4),
                teacher=Stage(4, 1e-2, 4), teacher_width=16)  # fmt: skip


@pytest.fixture
def calls(monkeypatch):
    """What `distill_language_model` was asked to do."""
    made, original = [], reasoning.distill_language_model

    def spy(student, tokenizer, examples, output_dir, **settings):
        made.append({"examples": list(examples), "output_dir": output_dir, **settings})
        return original(student, tokenizer, examples, output_dir, **settings)

    monkeypatch.setattr(reasoning, "distill_language_model", spy)
    return made


def test_the_base_of_a_seed_is_trained_once_and_seeds_have_their_own(tmp_path, calls):
    study = ReasoningStudy(tmp_path, QUICK)
    start = weights(study.base(4))
    assert same(weights(study.base(4)), start) and len(calls) == 1  # read, not trained
    assert same(weights(ReasoningStudy(tmp_path / "elsewhere", QUICK).base(4)), start)
    assert not same(weights(study.base(5)), start)
    assert [call["seed"] for call in calls] == [4, 4, 5]
    assert calls[-1]["examples"] == calls[0]["examples"]  # all seeds have read the same


def test_seeds_begin_with_weights_of_their_own(tmp_path):
    study = ReasoningStudy(tmp_path, replace(TINY, student_pretraining=Stage(1, 1e-12, 1)))
    for seed in (1, 2):
        learnt = weights(study.base(seed))
        for name, start in tiny_model(study.tokenizer, width=16, layers=1, seed=seed).state_dict().items():
            torch.testing.assert_close(learnt[name], start, rtol=0, atol=1e-6)


def test_the_teacher_reads_both_styles_and_a_worse_one_fewer_steps_of_the_same(tmp_path, calls):
    study = ReasoningStudy(tmp_path, QUICK)
    teacher, worse, worst = (study.teacher(share) for share in (1.0, 0.5, 0.01))
    student = study.base(0)
    assert (type(student), type(teacher)) == (Qwen2ForCausalLM, LlamaForCausalLM)
    assert (student.config.hidden_size, teacher.config.hidden_size) == (16, 16)
    base, *after, pretraining = calls
    assert base["output_dir"] == tmp_path / "teacher-base"  # one for all of them
    assert (base["steps"], pretraining["steps"]) == (3, 6)
    assert not any("Another" in asked for call in (base, pretraining) for asked, _ in call["examples"])
    assert [call["steps"] for call in after] == [4, 2, 1]
    assert after[0]["examples"] == after[1]["examples"] == [
        (statement(p), written_solution(p, "equations" if number % 2 else "suppose"))
        for number, p in enumerate(study.chains.train)
    ]
    assert not same(weights(teacher), weights(worse)) and not same(weights(worse), weights(worst))


class Killed(BaseException):
    pass


def kill_after(monkeypatch, steps):
    """Make the process die after so many steps; returns the list of the steps that were taken."""
    taken, end = [], DistillationTrainer.on_step_end

    def ending(trainer, *given, **more):
        end(trainer, *given, **more)
        taken.append(trainer.state.global_step)
        if len(taken) == steps:
            raise Killed

    monkeypatch.setattr(DistillationTrainer, "on_step_end", ending)
    return taken


def test_a_teacher_that_was_killed_in_pretraining_or_after_goes_on(tmp_path, monkeypatch):
    whole = weights(ReasoningStudy(tmp_path / "one", QUICK).teacher())
    study = ReasoningStudy(tmp_path / "two", QUICK)
    for steps in (2, 4):  # in pretraining; after two more there and two of the four on chains
        with monkeypatch.context() as patched:
            kill_after(patched, steps)
            with pytest.raises(Killed):
                study.teacher()
    assert (tmp_path / "two" / "teacher-base" / "finished").exists()
    taken = kill_after(monkeypatch, None)
    assert same(weights(study.teacher()), whole)
    assert taken == [2, 3, 4]
    # Killed again, between the last step and the mark.
    (tmp_path / "two" / "teacher" / "finished").unlink()
    (tmp_path / "two" / "teacher" / "model.safetensors").write_bytes(b"half")
    assert same(weights(study.teacher()), whole)
    assert len(taken) == 3
