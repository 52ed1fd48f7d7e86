"""The experiment from its folder: each piece made once, nothing learnt from the test, figures as counted."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_study import answered, same, weights
from transformers import PreTrainedTokenizerFast

from kdlib.course.studies import reasoning as experiment
from kdlib.course.studies import reasoning_arms
from kdlib.course.studies.reasoning import STYLES, ReasoningStudy
from kdlib.course.studies.reasoning_arms import CHAINS, TINY, reading, tokens_a_step
from kdlib.course.studies.records import unpack_bits
from kdlib.language.puzzles.make import PuzzleSplits
from kdlib.language.puzzles.text import statement, written_solution
from kdlib.language.traces.collect import load_traces
from kdlib.language.traces.generate import Writer

ARMS, SEEDS = ("answers", "verified"), (0, 1)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that share the work; sums of floats depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return ReasoningStudy(tmp_path_factory.mktemp("study"), TINY, problems=4)


@pytest.fixture(scope="module")
def runs(study):
    return study.runs(ARMS, SEEDS, workers=1)


def without_time(run):
    return {name: value for name, value in run.items() if name != "seconds"}


def logged(study):
    return [json.loads(line) for line in (study.folder / "runs.jsonl").read_text().splitlines()]


def refuse(*arguments, **options):
    raise AssertionError("made again")


# --- which problems -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [CHAINS, TINY], ids=["chains", "tiny"])
def test_no_problem_is_in_two_parts(recipe):
    splits = recipe.chains()
    sizes = {"train": recipe.pool, "validation": recipe.validation, "test": recipe.test,
             "beyond": recipe.beyond}  # fmt: skip
    for said in (lambda puzzle: puzzle.key, statement):
        groups = {name: set(map(said, group)) for name, group in vars(splits).items()}
        assert {name: len(group) for name, group in groups.items()} == sizes
        assert len(set.union(*groups.values())) == sum(sizes.values())
    assert splits == recipe.chains()
    for name, group in vars(splits).items():
        low, high = recipe.beyond_heads if name == "beyond" else recipe.heads
        for puzzle in group:
            assert puzzle.kind == "chain" and len(puzzle.cages) == 2
            assert low <= puzzle.cages[0].heads <= high


def test_fewer_problems_are_the_first_of_more_and_none_is_a_test_problem(study):
    held = {puzzle.key for part in ("validation", "test", "beyond") for puzzle in getattr(study.chains, part)}
    for seed in range(4):
        whole = study.drawn(seed, 8)
        assert set(whole) == set(study.chains.train)
        assert not held & {puzzle.key for puzzle in whole}
        assert study.drawn(seed) == whole[:4] == study.drawn(seed, 4)
        assert study.drawn(seed, 1) == whole[:1]
        assert study.drawn(seed, 8) == whole
    assert study.drawn(0, 8) != study.drawn(1, 8) != study.drawn(2, 8)


def test_the_bigger_pool_is_drawn_from_in_full():
    study = ReasoningStudy(None, CHAINS, problems=300)
    drawn = [set(study.drawn(seed)) for seed in range(3)]
    assert [len(problems) for problems in drawn] == [300] * 3
    assert drawn[0] <= set(study.chains.train)
    assert len(set.union(*drawn)) > 500  # of 800; three equal draws would make 300


@pytest.mark.parametrize("count", [0, 9, -1])
def test_more_problems_than_there_are_and_none_are_refused(study, count):
    with pytest.raises(ValueError, match=rf"count \(problems\) must be 1 to 8, .* pool; got {count}"):
        study.drawn(0, count)


# --- each piece once ----------------------------------------------------------------------------------------


def test_runs_are_by_arm_in_the_order_of_the_seeds(study, runs):
    assert list(runs) == list(ARMS)
    for arm, done in runs.items():
        assert [(run["arm"], run["seed"]) for run in done] == [(arm, seed) for seed in SEEDS]
    wanted = {"key", "arm", "seed", "steps", "tokens", "seconds", "accuracy", "correct", "beyond",
              "malformed", "answer_tokens", "truncated", *STYLES, "begins_suppose"}  # fmt: skip
    assert all(set(run) == wanted for done in runs.values() for run in done)


def test_a_run_is_taught_once_and_then_read(study, runs, monkeypatch):
    monkeypatch.setattr(reasoning_arms, "teach_student", refuse)
    monkeypatch.setattr(ReasoningStudy, "examine", refuse)
    lines = logged(study)
    again = replace(study)
    assert again.run("answers", 1) == runs["answers"][1]
    assert again.runs(ARMS, SEEDS, workers=1) == runs
    assert logged(study) == lines
    with pytest.raises(AssertionError, match="made again"):
        again.run("answers", 1, lr=1e-3)  # another run


def test_two_processes_come_to_what_one_does(study, runs, tmp_path):
    shutil.copytree(study.folder, tmp_path / "shared")
    for made in ("students", "base-0", "base-1"):
        shutil.rmtree(tmp_path / "shared" / made)
    for made in (tmp_path / "shared").glob("*.jsonl"):
        made.unlink()
    shared = replace(study, folder=tmp_path / "shared")
    done = shared.runs(ARMS, SEEDS, workers=2)
    assert {arm: [without_time(run) for run in found] for arm, found in done.items()} == {
        arm: [without_time(run) for run in found] for arm, found in runs.items()
    }
    assert sorted(run["key"] for run in logged(shared)) == sorted(run["key"] for run in logged(study))
    for arm in ARMS:
        assert same(weights(shared.student(arm, 1)), weights(study.student(arm, 1)))


def test_a_student_that_is_loaded_answers_as_the_figures_say(study, runs):
    for arm in ARMS:
        student = study.student(arm, 0)
        assert study.examine(student).items() <= runs[arm][0].items()
        place = study.folder / "students" / f"{arm}-0"
        assert PreTrainedTokenizerFast.from_pretrained(place).get_vocab() == study.tokenizer.get_vocab()
    assert not same(weights(study.student("answers", 0)), weights(study.student("verified", 0)))
    assert not same(weights(study.student("answers", 0)), weights(study.base(0)))


def test_bases_are_the_same_whichever_arm_was_taught_from_them(study, runs):
    start = weights(study.base(0))
    assert same(weights(replace(study).base(0)), start)
    assert not same(weights(study.base(1)), start)


def test_traces_are_read_from_their_file_and_fewer_are_the_first(study, runs, monkeypatch):
    traces = study.traces(0)
    asked = [(puzzle.key, sample) for puzzle in study.drawn(0) for sample in range(TINY.samples)]
    assert [(trace.key, trace.sample) for trace in traces] == asked
    assert any(trace.correct for trace in traces)
    assert {*load_traces(study.folder / "traces-0-1.jsonl")} == {*traces}
    monkeypatch.setattr(Writer, "write", refuse)
    assert replace(study).traces(0) == traces
    assert study.traces(0, count=2) == traces[: 2 * TINY.samples]
    with pytest.raises(AssertionError, match="made again"):
        study.traces(0, count=5)  # these must be written


def test_a_worse_teacher_lies_in_a_folder_of_its_own_and_shares_the_base(study, runs, monkeypatch):
    monkeypatch.setattr(experiment, "tiny_model", refuse)  # both bases are there
    before = weights(study.teacher())
    worse = study.teacher(0.05)
    assert json.loads((study.folder / "teacher-0.05" / "run.json").read_text())["steps"] == 6
    assert json.loads((study.folder / "teacher" / "run.json").read_text())["steps"] == 120
    assert same(weights(study.teacher()), before) and not same(weights(worse), before)
    assert same(weights(study.teacher(0.05)), weights(worse))
    monkeypatch.setattr(Writer, "write", refuse)
    with pytest.raises(AssertionError, match="made again"):
        study.traces(0, share=0.05)  # not those of the better one


def test_nothing_is_shown_unless_it_is_asked_for(study, runs, capfd):
    study.run("shortest", 0)
    study.student("shortest", 0)
    assert capfd.readouterr() == ("", "")


# --- what a run is told -------------------------------------------------------------------------------------


class Told(Exception):
    pass


@pytest.fixture
def told(study, runs, monkeypatch):
    """What `teach_student` would be given for a run."""

    def stop(recipe, student, tokenizer, arm, texts, **options):
        raise Told({"recipe": recipe, "student": student, "arm": arm, "texts": texts, **options})

    def ask(arm, seed=0, **options):
        with monkeypatch.context() as patched:
            patched.setattr(reasoning_arms, "teach_student", stop)
            with pytest.raises(Told) as raised:
                replace(study).run(arm, seed, **options)
        return raised.value.args[0]

    return ask


def test_every_arm_gets_the_base_of_its_seed_its_texts_and_the_budget_of_verified(study, told):
    traces, drawn = study.traces(0), study.drawn(0)
    start = weights(study.base(0))
    verified = reading("verified", drawn, traces)
    tokens = 6 * tokens_a_step(study.tokenizer, verified, 4)
    for arm in ("answers", "unverified", "verified", "shortest"):
        # Another rate: not one of the runs that are done.
        given = told(arm, lr=1e-4)
        assert same(weights(given["student"]), start)
        assert given["texts"] == reading(arm, drawn, traces)
        assert (given["arm"], given["tokens"]) == (arm, tokens)
        assert given["recipe"] == TINY and given["lr"] == 1e-4 and given["seed"] == 0


def test_options_reach_the_student(study, told):
    assert told("answers", budget="steps")["tokens"] is None
    half = told("verified", read=0.5)["tokens"]
    assert half == told("verified", lr=1e-4)["tokens"] / 2
    few = told("verified", count=2)
    assert few["texts"] == reading("verified", study.drawn(0, 2), study.traces(0, 2))


def test_a_student_goes_on_from_where_it_was_handed_over(study, runs, monkeypatch):
    given = {}

    def stop(recipe, student, tokenizer, way, texts, **options):
        given.update(way=way, start=weights(student), texts=texts, **options)
        return {"steps": 1, "seconds": 0.0}

    monkeypatch.setattr(reasoning_arms, "teach_further", stop)
    usual = study.run("on-policy", 0, after=1.0)
    assert same(given["start"], weights(study.student("verified", 0)))
    assert (given["way"], given["lr"], given["seed"]) == ("on-policy", None, 0)
    assert given["texts"] == reading("verified", study.drawn(0), study.traces(0))
    assert same(weights(given["teacher"]), weights(study.teacher()))
    assert usual["key"][0] == "on-policy-0-after=1.0" and "accuracy" in usual
    study.run("verified", 0, after=0.5, lr=1e-4)
    assert given["lr"] == 1e-4 and study.handed_over(0, 0.5)["steps"] == 3  # of six
    assert same(given["start"], weights(study.student("verified", 0, read=0.5)))
    assert study.handed_over(0, 1.0) == runs["verified"][0]


def test_a_choice_looks_at_validation_only(study, runs, monkeypatch):
    monkeypatch.setattr(
        reasoning_arms, "teach_student", lambda *given, **options: {"steps": 0, "seconds": 0.0}
    )
    looked, answers = [], ReasoningStudy.answers
    monkeypatch.setattr(
        ReasoningStudy, "answers",
        lambda self, model, puzzles: looked.append(puzzles) or answers(self, model, puzzles),
    )
    chosen = study.run("answers", 0, test=False, lr=2e-3)
    assert looked == [study.chains.validation]
    assert set(chosen) == {"key", "arm", "seed", "steps", "seconds", "validation"}
    assert study.run("answers", 0, test=False, lr=2e-3) == chosen and len(looked) == 1
    final = study.run("answers", 0, lr=2e-3)  # a run of its own
    assert looked[1:] == [[*study.chains.test, *study.chains.beyond]]
    assert "accuracy" in final and "validation" not in final


# --- what is measured ---------------------------------------------------------------------------------------


def answering(texts):
    """A stand-in for `collect_traces`: for each part its traces, in the order of the puzzles."""

    def collect(model, tokenizer, problems, **options):
        assert options["temperature"] == 0.0 and options["samples"] == 1
        return [texts[problem.key] for problem in problems]

    return collect


def test_figures_are_those_counted_by_hand(study, monkeypatch):
    test, beyond, validation = study.chains.test, study.chains.beyond, study.chains.validation
    answers = [
        answered(test[0], text=written_solution(test[0], "suppose"), tokens=80),
        answered(test[1], text=written_solution(test[1], "equations"), tokens=90),
        answered(test[2], text=written_solution(test[2], "suppose"), tokens=70, correct=False),
        answered(test[3], text="\n</think>\n\nno", tokens=5, correct=False, well_formed=False),
        answered(test[4], text="Suppose all", tokens=96, correct=False, well_formed=False, finished=False),
        *(answered(puzzle, correct=number == 0) for number, puzzle in enumerate(beyond)),
        *(answered(puzzle, correct=number != 0) for number, puzzle in enumerate(validation)),
    ]
    monkeypatch.setattr(experiment, "collect_traces", answering({trace.key: trace for trace in answers}))
    figures = study.examine(study.base(0))
    correct, first = figures.pop("correct"), figures.pop("begins_suppose")
    by_hand, said = [], study.tokenizer.convert_tokens_to_ids("Suppose")
    for puzzle in test:
        turn = [{"role": "user", "content": statement(puzzle)}]
        ids = study.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")
        by_hand.append(study.base(0)(**ids).logits[0, -1].softmax(-1)[said].item())
    assert first == pytest.approx(sum(by_hand) / 5, rel=1e-4)
    assert unpack_bits(*correct).tolist() == [True, True, False, False, False]
    assert figures == {
        "accuracy": 2 / 5, "beyond": 1 / 4, "answer_tokens": (80 + 90 + 70 + 5 + 96) / 5,
        "malformed": 2 / 5, "truncated": 1 / 5, "suppose": 3 / 5, "equations": 1 / 5,
    }  # fmt: skip
    assert study.examine(None, test=False) == {"validation": 2 / 3}


def test_votes_are_counted_over_samples_of_the_finished_student_and_kept(study, runs, monkeypatch):
    first, second = study.chains.test[:2]
    wrong = "\n</think>\n\nAnswer: 1 ant and 1 rabbit."
    samples = [
        *(answered(first, n, correct=n < 2, text=None if n < 2 else wrong, tokens=10) for n in range(3)),
        *(answered(second, n, correct=n < 1, text=None if n < 1 else wrong, tokens=20) for n in range(3)),
    ]
    asked = []

    def collect(model, tokenizer, problems, **options):
        asked.append((weights(model), problems, options))
        return samples

    monkeypatch.setattr(experiment, "collect_traces", collect)
    monkeypatch.setattr(experiment, "VOTES", (1, 2, 3))
    votes = study.votes("answers", 0, 0.9)
    assert votes["k"] == [1, 2, 3]
    # Two right of three, and one: some two of them hold a right one always, and in two of three cases.
    assert votes["pass"] == pytest.approx([(2 / 3 + 1 / 3) / 2, (1 + 2 / 3) / 2, 1])
    # Of two that differ the first counts, so half of the mixed pairs.
    assert votes["majority"] == pytest.approx([1 / 2, ((1 / 3 + 1 / 3) + 1 / 3) / 2, 1 / 2])
    assert votes["tokens"] == 15
    ((student, problems, options),) = asked
    assert same(student, weights(study.student("answers", 0)))
    assert [problem.key for problem in problems] == [puzzle.key for puzzle in study.chains.test]
    assert options["samples"] == 3 and options["temperature"] == 0.9 and options["max_new_tokens"] == 96
    assert replace(study).votes("answers", 0, 0.9) == votes and len(asked) == 1
    study.votes("answers", 0, 0.5)
    assert len(asked) == 2


def test_a_teacher_is_examined_by_its_most_probable_answers(study, runs):
    known = replace(study)
    known.__dict__["chains"] = PuzzleSplits((), (), study.chains.train, study.chains.test)
    figures, greedy = known.examine(study.teacher()), study.answers(study.teacher(), study.chains.train)
    assert [trace.sample for trace in greedy] == [0] * 8
    assert figures["accuracy"] == sum(trace.correct for trace in greedy) / 8 > 0
    assert figures["suppose"] + figures["equations"] == 1
    assert greedy == study.answers(study.teacher(), study.chains.train)


def test_no_jobs_are_done_at_once(study, runs):
    assert study.runs([], [0], workers=2) == {}
    study.prepare([], workers=2)


def test_another_budget_is_refused(study, runs):
    with pytest.raises(ValueError, match="budget must be \"steps\" or \"compute\"; got 'tokens'"):
        study.run("answers", 0, budget="tokens")
