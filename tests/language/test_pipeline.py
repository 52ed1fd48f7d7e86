"""The stages on stand-ins of two checkpoints, of which the teacher knows one answer by heart."""

import json
from dataclasses import replace
from functools import wraps

import pytest
import torch
from accelerate import PartialState
from scipy import stats
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from kdlib.language import pipeline
from kdlib.language.models.load import load_checkpoint
from kdlib.language.models.tiny import TAUGHT, stand_in
from kdlib.language.pipeline import PipelineOptions, run_pipeline
from kdlib.language.puzzles.puzzle import Cage, Puzzle
from kdlib.language.puzzles.text import problem
from kdlib.language.traces.collect import collect_traces, load_traces
from kdlib.language.traces.file import Trace, open_traces

# The teacher knows the first only.
PROBLEMS = [TAUGHT] + [problem(Puzzle((Cage(("chickens", "rabbits"), 9, feet),))) for feet in (20, 24, 26)]
TEST = [problem(Puzzle((Cage(("ants", "spiders"), 8, feet),))) for feet in (50, 56, 60)]


def write(path, problems):
    rows = [{"key": p.key, "statement": p.statement, "answer": p.answer} for p in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    stand_in("Qwen-7B", folder / "teacher", teach=True)
    stand_in("Qwen-1.5B", folder / "student", seed=1)
    write(folder / "problems.jsonl", PROBLEMS)
    write(folder / "test.jsonl", TEST)
    return folder


def options(place, out, **changed):
    settings = {
        "student": str(place / "student"), "teacher": str(place / "teacher"), "out": str(out),
        "problems": str(place / "problems.jsonl"), "max_new_tokens": 60, "samples": 2, "steps": 4,
        "lr": 3e-3, "batch_size": 2, "accumulation": 1, "seed": 3,
    }  # fmt: skip
    return PipelineOptions(**{**settings, **changed})


def test_from_problems_to_a_tested_student(place, tmp_path, capsys):
    report = run_pipeline(options(place, tmp_path, test=str(place / "test.jsonl")))
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert (report["problems"], report["traces"], report["correct"], report["kept"]) == (4, 8, 2, 1)
    assert report["steps"] == 4 and report["last_loss"] < report["first_loss"]
    assert report["before"] == report["after"] == 0.0  # it has seen one puzzle, and not these
    assert report["difference"] == {"mean": 0.0, "half_width": 0.0, "problems": 3}
    (trained,) = [trace for trace in load_traces(tmp_path / "traces" / "00000.jsonl") if trace.correct][:1]
    assert trained.key == TAUGHT.key
    text = capsys.readouterr().out
    assert "8 traces of 4 problems" in text and "1 of 8 traces are kept" in text
    assert "0 of 3 test problems, 0.0%" in text and "4 steps, " in text
    assert "after − before: +0.0 points, 95 % interval [+0.0, +0.0] over 3 problems" in text
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "student").state_dict()
    before = AutoModelForCausalLM.from_pretrained(place / "student").state_dict()
    assert any(not torch.equal(weights[name], before[name]) for name in weights)


def test_the_student_learns_the_answer_and_its_folder_is_a_checkpoint(place, tmp_path):
    write(tmp_path / "one.jsonl", [TAUGHT])
    run_pipeline(
        options(place, tmp_path, problems=str(tmp_path / "one.jsonl"), steps=70, lr=1e-2)
    )
    student, tokenizer = load_checkpoint(tmp_path / "student")
    (trace,) = collect_traces(student, tokenizer, [TAUGHT], samples=1, temperature=0, max_new_tokens=60)
    assert trace.correct and trace.well_formed


@pytest.mark.parametrize("method", ["logits", "cached", "on-policy"])
def test_each_method_trains_as_the_call_it_stands_for(place, tmp_path, method, monkeypatch):
    calls = []
    original = pipeline.distill_language_model

    @wraps(original)
    def noted(*, examples, **settings):
        calls.append((examples, settings))
        return original(examples=examples, **settings)

    monkeypatch.setattr(pipeline, "distill_language_model", noted)
    chosen = options(place, tmp_path, method=method, top_k=None if method == "on-policy" else 5)
    report = run_pipeline(chosen)
    ((examples, settings),) = calls
    assert settings["on_policy"] == (method == "on-policy")
    if method == "on-policy":
        assert [e.key for e in examples] == [p.key for p in PROBLEMS]
        assert settings["teacher"].config.stand_in_for.endswith("Qwen-7B")
    else:
        assert [trace.key for trace in examples] == [TAUGHT.key]
    if method == "cached":
        assert settings["teacher"].manifest["top_k"] == 5 and settings["top_k"] is None
        assert (tmp_path / "teacher_outputs" / "manifest.json").exists()
    if method == "logits":
        assert settings["top_k"] == 5
    assert report["steps"] == 4
    # On-policy the student writes, and nobody asks the teacher for answers.
    assert (tmp_path / "traces").exists() == (report["traces"] > 0) == (method != "on-policy")
    same = options(place, tmp_path, method=method, top_k=chosen.top_k)
    assert run_pipeline(same)["last_loss"] == report["last_loss"]


def test_with_lora_only_products_change_and_the_student_is_a_model_as_any_other(place, tmp_path):
    with pytest.raises(ValueError, match="lora"):  # at once, before the teacher writes
        run_pipeline(options(place, tmp_path, lora=0))
    assert not (tmp_path / "traces").exists()
    run_pipeline(options(place, tmp_path, lora=2))
    assert not (tmp_path / "student" / "adapter_config.json").exists()
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (place / "student", tmp_path / "student")
    )
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    products = {name for name in after if name.endswith("_proj.weight")}
    assert changed == products
    ranks = [torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) for name in products]
    assert max(ranks) <= 2


def test_cached_is_logits(place, tmp_path):
    losses = {}
    for method in ("logits", "cached"):
        chosen = options(place, tmp_path / method, method=method, top_k=20, alpha=0.3, temperature=2.0)
        losses[method] = run_pipeline(chosen)["last_loss"]
    assert losses["cached"] == pytest.approx(losses["logits"], rel=1e-3)  # stored in float16


def test_only_the_first_process_makes_stored_outputs_anew(place, tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def asked(*arguments, overwrite, **settings):
        raise Asked(overwrite)

    monkeypatch.setattr(pipeline, "cache_teacher_tokens", asked)
    for first, resume in ((True, False), (False, False), (True, True)):
        monkeypatch.setattr(PartialState, "is_main_process", first)
        with pytest.raises(Asked) as told:
            run_pipeline(options(place, tmp_path, method="cached", resume=resume))
        assert told.value.args == (first and not resume,)


def test_what_the_student_prompt_does_to_a_teacher_is_told_once(place, tmp_path):
    student, tokenizer = load_checkpoint(place / "student")
    tokenizer.chat_template = "<｜User｜>" + tokenizer.chat_template
    for part in (student, tokenizer):
        part.save_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match="chat template makes another prompt") as told:
        run_pipeline(options(place, tmp_path / "out", student=str(tmp_path / "base"), method="cached"))
    assert len([one for one in told if "another prompt" in str(one.message)]) == 1


def test_each_stage_goes_on_where_it_was(place, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "PART", 2)
    first = run_pipeline(options(place, tmp_path))
    parts = sorted((tmp_path / "traces").glob("*.jsonl"))
    assert [path.name for path in parts] == ["00000.jsonl", "00001.jsonl"]
    keys = [[trace.key for trace in load_traces(path)] for path in parts]
    assert [set(part) for part in keys] == [{p.key for p in PROBLEMS[:2]}, {p.key for p in PROBLEMS[2:]}]
    before = [path.read_bytes() for path in parts]
    parts[1].unlink()  # as if it had been killed after the first part, and before it had trained
    again = run_pipeline(options(place, tmp_path))
    assert [load_traces(path) for path in parts][0] == load_traces(parts[0])
    assert parts[0].read_bytes() == before[0]
    assert again["last_loss"] == first["last_loss"]


def test_a_problem_before_the_others_doubles_no_trace(place, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "PART", 2)
    first = run_pipeline(options(place, tmp_path, steps=1))
    # All move by one, out of their parts and into others; the last one also says something else now.
    other = replace(PROBLEMS[1], statement=PROBLEMS[1].statement + " Say how many.")
    write(tmp_path / "more.jsonl", [TEST[0], PROBLEMS[0], other, *PROBLEMS[2:]])
    more = {"problems": str(tmp_path / "more.jsonl"), "resume": False, "steps": 1}
    again = run_pipeline(options(place, tmp_path, **more))
    assert (first["problems"], first["traces"], first["correct"]) == (4, 8, 2)
    assert (again["problems"], again["traces"], again["correct"]) == (5, 10, 2)


def test_a_run_that_starts_anew_is_tested_anew(place, tmp_path, monkeypatch):
    chosen = {"test": str(place / "test.jsonl"), "steps": 1}
    run_pipeline(options(place, tmp_path, **chosen))
    before = (tmp_path / "test_before.jsonl").read_bytes()
    report = run_pipeline(options(place, tmp_path, **chosen, lr=1e-2, resume=False))
    assert report == json.loads((tmp_path / "report.json").read_text()) and "after" in report
    assert (tmp_path / "test_before.jsonl").read_bytes() == before  # the student before is the same
    # What is left of another run would be taken for this one's, if this one ends early.
    monkeypatch.setattr(pipeline, "_train", lambda *given: 1 / 0)
    for resume, there in ((True, True), (False, False)):
        with pytest.raises(ZeroDivisionError):
            run_pipeline(options(place, tmp_path, **chosen, resume=resume))
        names = ("report.json", "test_after.jsonl")
        assert [(tmp_path / name).exists() for name in names] == [there, there]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"alpha": 0.5}, "alpha=0.5; expected 1 without a teacher"),
        ({"alpha": 0.5, "method": "on-policy"}, "alpha=0.5; expected 0 on-policy"),
        ({"alpha": 2, "method": "logits"}, "alpha, the weight of the hard label, must lie in"),
        ({"lr": 0}, "lr"),
        ({"temperature": 0, "method": "logits"}, "temperature"),
        ({"batch_size": 0}, "batch_size"),
        ({"sampling_temperature": 0, "method": "on-policy"}, "sampling_temperature"),
    ],
)
def test_what_cannot_be_trained_is_told_before_a_model_is_loaded(
    place, tmp_path, monkeypatch, changed, message
):
    monkeypatch.setattr(pipeline, "load_checkpoint", lambda *given, **more: 1 / 0)
    with pytest.raises(ValueError, match=message):
        run_pipeline(options(place, tmp_path, **changed))


def test_traces_alone_are_enough(place, tmp_path, monkeypatch):
    run_pipeline(options(place, tmp_path / "first"))
    file = tmp_path / "first" / "traces" / "00000.jsonl"
    loaded, original = [], pipeline.load_checkpoint
    monkeypatch.setattr(
        pipeline, "load_checkpoint", lambda name, **more: loaded.append(name) or original(name, **more)
    )
    chosen = options(place, tmp_path / "second", problems=None, traces=str(file), teacher=None)
    report = run_pipeline(chosen)
    assert report["problems"] == 4 and report["kept"] == 1
    assert loaded == [str(place / "student")]


def test_wrong_answers_and_the_shortest(place, tmp_path):
    kept = {}
    for name in ("unverified", "shortest"):
        kept[name] = run_pipeline(
            options(place, tmp_path / name, **{name: True}, steps=1)
        )["kept"]
    assert kept["shortest"] == 1 < kept["unverified"] <= 8


def test_a_thought_is_opened_where_the_template_opens_none_and_no_text_without_one(
    place, tmp_path, monkeypatch
):
    student, tokenizer = load_checkpoint(place / "student")
    tokenizer.chat_template = tokenizer.chat_template.replace("<think>\\n", "")
    for part in (student, tokenizer):
        part.save_pretrained(tmp_path / "base")
    texts = [" Suppose\n</think>\n\n6 chickens and 4 rabbits", "6 chickens and 4 rabbits"]
    with open_traces(tmp_path / "traces.jsonl", {}) as file:
        file.append([
            Trace(p.key, p.statement, p.answer, 0, text, 9, True, True, True)
            for p, text in zip(PROBLEMS, texts, strict=False)
        ])  # fmt: skip
    learned = []
    monkeypatch.setattr(pipeline, "_train", lambda *given: learned.extend(given[-1]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_pipeline(options(
            place, tmp_path, problems=None, traces=str(tmp_path / "traces.jsonl"), teacher=None,
            student=str(tmp_path / "base"),
        ))  # fmt: skip
    assert [trace.text for trace in learned] == [f"<think>\n{texts[0]}", texts[1]]


def test_a_base_takes_over_the_tokenizer_of_its_teacher(place, tmp_path):
    # As Qwen2.5 and R1's: the same numbers, other special tokens, and a template of its own.
    base = tmp_path / "base"
    stand_in("Qwen-1.5B", base, seed=1)
    text = (base / "tokenizer.json").read_text(encoding="utf-8")
    for theirs, ours in (("<｜User｜>", "<|im_start|>"), ("<｜Assistant｜>", "<|im_end|>")):
        assert theirs in text
        text = text.replace(theirs, ours)
    (base / "tokenizer.json").write_text(text, encoding="utf-8")
    run_pipeline(options(place, tmp_path, student=str(base), tokenizer="teacher", method="logits"))
    trained = PreTrainedTokenizerFast.from_pretrained(tmp_path / "student")
    teacher = PreTrainedTokenizerFast.from_pretrained(place / "teacher")
    assert trained.get_vocab() == teacher.get_vocab()
    assert trained.chat_template == teacher.chat_template
    for method in ("logits", "cached"):
        with pytest.raises(ValueError, match="teacher_tokenizer has token"):
            run_pipeline(options(place, tmp_path / method, student=str(base), method=method))
    text = text.replace('"▁chickens"', '"▁hens"').replace('"chickens"', '"hens"').replace(
        '" chickens"', '" hens"'
    )
    (base / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="'.*hens'"):
        run_pipeline(
            options(place, tmp_path / "hens", student=str(base), tokenizer="teacher", method="logits")
        )


def test_a_difference_is_paired():
    before, after = [n in (1, 4) for n in range(7)], [n in (0, 1, 4, 5, 6) for n in range(7)]
    report = pipeline._compared(before, after)  # three more, and none fewer
    mean = 3 / 7
    half = stats.ttest_1samp([1, 0, 0, 0, 0, 1, 1], 0).confidence_interval().high - mean
    assert report["difference"] == {
        "mean": pytest.approx(mean), "half_width": pytest.approx(half), "problems": 7
    }  # fmt: skip
    ends = [100 * (mean - half), 100 * (mean + half)]
    told = pipeline._gain(report["difference"])
    assert f"+42.9 points, 95 % interval [{ends[0]:+.1f}, {ends[1]:+.1f}] over 7 problems" in told


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"traces": "t"}, "problems is .*, traces is t and texts is None; expected one of the three"),
        ({"problems": None}, "problems is None, traces is None and texts is None"),
        ({"teacher": None}, "teacher is missing; without one expected traces or plain texts, method"),
        ({"teacher": None, "problems": None, "traces": "t", "method": "logits"}, "teacher is missing"),
        ({"problems": None, "traces": "t", "teacher": None, "tokenizer": "teacher"}, "teacher is missing"),
    ],
)
def test_options_that_do_not_fit_are_told(place, tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        options(place, tmp_path, **changed)


def test_a_quantised_teacher_is_not_spread(place, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "sharding", lambda: "fsdp2")
    with pytest.raises(ValueError, match="teacher_quantise packs weights, which FSDP2 cannot spread"):
        run_pipeline(options(place, tmp_path, teacher_quantise="nf4"))


def test_test_problems_that_are_trained_on_are_refused(place, tmp_path):
    with pytest.raises(ValueError, match="4 problems of .* are trained on too"):
        run_pipeline(options(place, tmp_path, test=str(place / "problems.jsonl")))
    assert not (tmp_path / "traces").exists()


def test_no_right_answer_at_all(place, tmp_path):
    write(tmp_path / "others.jsonl", PROBLEMS[1:])
    with pytest.raises(ValueError, match="none of the 6 traces is right; .*max_new_tokens=60"):
        run_pipeline(options(place, tmp_path, problems=str(tmp_path / "others.jsonl")))


@pytest.fixture
def book(tmp_path):
    rows = [{"text": f"{n} chickens and {12 - n} rabbits have {48 - 2 * n} feet."} for n in range(12)] * 2
    (tmp_path / "book.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(tmp_path / "book.jsonl")


@pytest.mark.parametrize("method", ["texts", "logits", "cached", "on-policy"])
def test_from_plain_texts_to_a_student_scored_on_those_held_back(place, book, tmp_path, method, capsys):
    prompt_tokens, top_k = (4, None) if method == "on-policy" else (1, 9)
    report = run_pipeline(options(
        place, tmp_path / "run", problems=None, texts=[book], method=method, context=12, steps=20,
        prompt_tokens=prompt_tokens, held_out=0.2, max_new_tokens=8, top_k=top_k, batch_size=4,
    ))  # fmt: skip
    text = capsys.readouterr().out
    assert "12 documents, " in text and "in pieces of up to 12; " in text and "are held back" in text
    assert "before: NLL " in text and "after: NLL " in text and ", KL to the teacher " in text
    assert report["documents"] == 12 and report["steps"] == 20
    better = "nll" if method == "texts" else "kl"
    assert report["texts_after"][better] < report["texts_before"][better]
    assert set(report["texts_after"]) == {"nll", "kl", "agreement"}
    assert report == json.loads((tmp_path / "run" / "report.json").read_text())


def test_plain_texts_need_no_teacher(place, book, tmp_path):
    report = run_pipeline(options(
        place, tmp_path / "run", teacher=None, problems=None, texts=[book], context=10_000, batch_size=4,
    ))  # fmt: skip
    assert set(report["texts_after"]) == {"nll"}


def test_sources_are_one_of_three_and_on_policy_needs_a_beginning():
    for wrong in ({}, {"problems": "p", "texts": ["t"]}, {"traces": "t", "texts": ["t"]}):
        with pytest.raises(ValueError, match="expected one of the three"):
            PipelineOptions(student="s", out="o", teacher="t", **wrong)
    with pytest.raises(ValueError, match="prompt_tokens=1; expected more on-policy"):
        PipelineOptions(student="s", out="o", teacher="t", texts=["t"], method="on-policy")


@pytest.mark.parametrize(
    "given", [{"method": "texts"}, {"method": "logits", "traces": None, "texts": ["t"]}]
)
def test_prompts_of_its_own_are_for_a_teacher_that_reads_prompts(given):
    with pytest.raises(ValueError, match='teacher_prompt="own" with .*; expected problems or traces'):
        PipelineOptions(**{"student": "s", "out": "o", "teacher": "t", "traces": "t", **given},
                        teacher_prompt="own")  # fmt: skip
