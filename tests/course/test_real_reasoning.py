"""The R1 recipe on a tiny Llama: every part runs, resumes, and both arms get the same problems and tokens."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_verifiable_tasks import SumsInStead

from kdlib.course.studies import real_reasoning
from kdlib.course.studies.real_reasoning import ARMS, RealReasoningRecipe, RealReasoningStudy, report
from kdlib.language.distill.scores import score_texts
from kdlib.language.models.small import tiny_model
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer

TINY = RealReasoningRecipe(
    tasks=("cages",), asked=("chain_sum",), problems=12, pool=16, validation=4, test=6, beyond=3, other=4,
    steps=6, batch_size=4, lrs=(1e-3, 3e-3), max_new_tokens=12, before_tokens=20, texts=5, context=16,
    precision="no",
)  # fmt: skip
TEXTS = [f"How many chickens and rabbits are in cage {n}? {n} × 2 = {2 * n} feet." for n in range(40)]
REAL = real_reasoning.distill_language_model


@pytest.fixture(scope="module", autouse=True)
def in_stead():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "reasoning_gym", SimpleNamespace(create_dataset=SumsInStead))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("real"), puzzle_tokenizer()
    tiny_model(tokenizer, width=16, layers=1, heads=2, family="llama").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def study(place):
    return RealReasoningStudy(place / "work", str(place / "model"), TINY, texts=TEXTS)


@pytest.fixture(scope="module")
def results(study):
    return study.results(range(2))


def test_both_arms_are_there_with_all_seeds_and_the_report_tells_of_them(study, results):
    assert json.loads(json.dumps(results))["seeds"] == 2
    found = results["learned"]["cages"]
    assert set(found["arms"]) == set(ARMS) and len(results["choices"]) == 4 and found["kept"] == [12, 12]
    assert all(0 < choice["validation_nll"] < 20 for choice in results["choices"])
    for column in found["arms"].values():
        assert {len(values) for values in column.values()} == {2}
        for asked, nll, by_text in zip(column["tasks"], column["nll"], column["nll_by_text"], strict=True):
            assert {name: run["correct"][1] for name, run in asked.items()} == {
                "cages": 6, "cages beyond": 3, "chain_sum": 4,
            }  # fmt: skip
            assert sum(by_text) / len(by_text) == pytest.approx(nll, abs=1e-4)
    assert results["before"]["tasks"].keys() == {"cages", "cages beyond", "chain_sum"}
    assert set(found["verdicts"]) == {"within", "beyond", "english"}
    text = report(results)
    for said in ("before", "verified", "chain_sum", "ENGLISH, verified against before"):
        assert said in text
    # Less is better: what a student has forgotten is a negative difference.
    forgot = sum(found["arms"]["verified"]["nll"]) / 2 - results["before"]["nll"]
    verdict = found["verdicts"]["english"]["verified against before"]
    assert verdict["difference"] == pytest.approx(-forgot, abs=1e-4)


def test_both_arms_of_a_seed_learn_from_the_same_problems(study):
    readings = study.readings("cages", 1)
    asked = {arm: [statement for statement, _ in texts] for arm, texts in readings.items()}
    assert asked["answers"] == asked["verified"] and len(set(asked["answers"])) == TINY.problems
    for (_, answer), (_, trace) in zip(*readings.values(), strict=True):
        assert trace.endswith(answer) and answer.startswith("Answer: ") and "Suppose" in trace
    assert set(study.drawn("cages", 0)) != set(study.drawn("cages", 1))
    held = {solved.problem.statement for solved in study.tasks["cages"].test}
    assert not held & set(asked["verified"])


def test_both_arms_get_as_many_tokens_and_begin_from_the_same_weights(study, tmp_path, monkeypatch):
    seen = {}

    def counted(student, tokenizer, examples, **how):
        arm = "verified" if "Suppose" in examples[0][1] else "answers"
        start, total = {name: value.clone() for name, value in student.state_dict().items()}, []

        def count(module, given, named):
            total.append(int(named["attention_mask"].sum()))

        hook = student.register_forward_pre_hook(count, with_kwargs=True)
        history = REAL(student, tokenizer, examples, **how)
        hook.remove()
        seen[arm] = total, start
        return history

    monkeypatch.setattr(real_reasoning, "distill_language_model", counted)
    again = replace(study, folder=tmp_path)
    runs = {arm: again.run(arm, "cages", 0, 1e-3, test=False) for arm in ARMS}
    read = {arm: sum(total) for arm, (total, _) in seen.items()}
    a_step = max(seen["answers"][0])
    assert abs(read["verified"] - read["answers"]) <= a_step
    for arm in ARMS:
        assert runs[arm]["tokens"] == pytest.approx(read[arm], abs=a_step)
        assert runs[arm]["steps"] == len(seen[arm][0])
    assert runs["verified"]["steps"] == TINY.steps < runs["answers"]["steps"]
    begun = [start for _, start in seen.values()]
    assert all(begun[0][name].equal(begun[1][name]) for name in begun[0])


def test_all_models_are_examined_in_the_precision_of_the_study(study, tmp_path, monkeypatch):
    seen, asked = [], real_reasoning.collect_traces

    def noted(model, *rest, **how):
        seen.append(model.dtype)
        return asked(model, *rest, **how)

    monkeypatch.setattr(real_reasoning, "collect_traces", noted)
    half = replace(study, folder=tmp_path, recipe=replace(TINY, precision="bf16"))
    half.before()
    half.run("verified", "cages", 0, 1e-3)
    half.run("verified", "cages", 0, 1e-3, test=False)
    assert seen == [torch.bfloat16] * 3 and half.loaded[0].dtype == torch.float32


def test_a_wrong_trace_is_not_learned_from(study, monkeypatch):
    first = study.drawn("cages", 0)[0]
    wrong = replace(first, trace=first.trace.replace("Answer: ", "Answer: 1"))
    drawn = [wrong, *study.drawn("cages", 0)[1:]]
    monkeypatch.setattr(RealReasoningStudy, "drawn", lambda *_: drawn)
    for arm in ARMS:
        asked = [statement for statement, _ in study.readings("cages", 0)[arm]]
        assert len(asked) == TINY.problems - 1 and first.problem.statement not in asked


def test_the_chosen_rate_is_the_best_on_validation_and_of_equal_ones_the_likeliest(study, monkeypatch):
    found = {1e-3: (0.5, 2.0), 3e-3: (0.5, 1.5), 1e-2: (0.25, 1.0)}

    def run(study, arm, task, seed, lr, *, test):
        assert (task, seed, test) == ("cages", 0, False)
        return {"lr": lr, **dict(zip(("validation", "validation_nll"), found[lr], strict=True))}

    monkeypatch.setattr(RealReasoningStudy, "run", run)
    wider = replace(study, recipe=replace(TINY, lrs=tuple(found)))
    assert wider.chosen("answers") == 3e-3
    found[1e-2] = (0.75, 3.0)
    assert wider.chosen("answers") == 1e-2


def test_a_run_is_what_its_name_says(study, results):
    run = study.run("verified", "cages", 1, study.chosen("verified"))
    student = study.start()
    REAL(student, study.tokenizer, study.readings("cages", 1)["verified"], steps=TINY.steps, lr=run["lr"],
         batch_size=TINY.batch_size, seed=1, adam_beta2=TINY.adam_beta2)  # fmt: skip
    again = score_texts(student, study.tokenizer, study.english)
    assert run["nll"] == pytest.approx(again.mean("nll"), rel=1e-5)
    assert run["nll"] != pytest.approx(results["before"]["nll"], rel=1e-3)


def test_what_is_finished_is_not_done_again(study, results, monkeypatch):
    monkeypatch.setattr(real_reasoning, "distill_language_model", None)
    monkeypatch.setattr(real_reasoning, "collect_traces", None)
    again = RealReasoningStudy(study.folder, study.checkpoint, TINY, texts=TEXTS)
    assert again.results(range(2)) == results


def test_problems_that_nothing_works_out_are_refused(study, monkeypatch):
    drawn = [replace(solved, trace=None) for solved in study.drawn("cages", 0)]
    monkeypatch.setattr(RealReasoningStudy, "drawn", lambda *_: drawn)
    with pytest.raises(ValueError, match="only be asked"):
        study.readings("cages", 0)


def test_the_command_writes_the_results_and_goes_on_with_what_is_there(place, tmp_path, monkeypatch, capsys):
    from kdlib.__main__ import main

    monkeypatch.setattr(real_reasoning, "SMOLLM2", TINY)
    monkeypatch.setattr(real_reasoning, "python_texts", lambda: TEXTS)
    given = ["real-reasoning", "--model", str(place / "model"), "--work", str(tmp_path), "--seeds", "2",
             "--quiet", "--asked", "--out", str(tmp_path / "out.json")]  # fmt: skip
    assert main(given) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["model"]["checkpoint"] == "model" and str(tmp_path) not in json.dumps(written)
    assert written["before"]["tasks"].keys() == {"cages", "cages beyond"}
    assert "WITHIN, verified against answers" in capsys.readouterr().out
    monkeypatch.setattr(real_reasoning, "distill_language_model", None)
    assert main(given) == 0
    with pytest.raises(SystemExit):
        main(["real-reasoning", "--seeds", "1"])
