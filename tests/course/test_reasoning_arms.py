"""The arms: what each reads, and that they spend alike."""

from dataclasses import replace

import pytest
from tiny_study import answered

from kdlib.course.studies import reasoning_arms as arms
from kdlib.course.studies.reasoning_arms import (
    ARMS,
    CHAINS,
    FURTHER,
    TINY,
    Stage,
    reading,
    style_of,
    teach_further,
    teach_student,
    tokens_a_step,
)
from kdlib.language.distill.batches import tokenize
from kdlib.language.models.small import tiny_model
from kdlib.language.puzzles.make import puzzle_splits
from kdlib.language.puzzles.text import statement, written_solution
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return puzzle_tokenizer()


@pytest.fixture(scope="module")
def chains():
    return TINY.chains().train


@pytest.fixture
def calls(monkeypatch):
    """What `distill_language_model` was asked to do."""
    made, original = [], arms.distill_language_model

    def spy(student, tokenizer, examples, output_dir=None, **settings):
        made.append({"examples": list(examples), "output_dir": output_dir, **settings})
        return original(student, tokenizer, examples, output_dir, **settings)

    monkeypatch.setattr(arms, "distill_language_model", spy)
    return made


# --- what they read -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kinds(chains):
    """Five traces of each chain, by what they are; the second chain has none that is right."""
    kinds = {}
    for number, puzzle in enumerate(chains):
        right, texts = number != 1, {s: written_solution(puzzle, s) for s in ("suppose", "equations")}
        kinds["suppose", number] = answered(puzzle, 0, texts["suppose"], tokens=70 + number, correct=right)
        kinds["again", number] = answered(puzzle, 1, texts["suppose"], tokens=70 + number, correct=right)
        kinds["equations", number] = answered(
            puzzle, 2, texts["equations"], tokens=74 - number, correct=right
        )
        kinds["wrong", number] = answered(puzzle, 3, "Suppose\n</think>\n\nAnswer: 1 ant.", correct=False)
        kinds["cut off", number] = answered(puzzle, 4, "Suppose all", finished=False, correct=False)
    return kinds


def expected(arm, kinds, chains):
    """Statements and texts, by their kinds."""
    others = [number for number in range(len(chains)) if number != 1]
    kept = {
        "unverified": [(kind, n) for kind, n in kinds if kind != "cut off"],
        # The first of equally short ones; equations are shorter from the fourth on (70 + 3 > 74 − 3).
        "shortest": [("suppose" if n <= 2 else "equations", n) for n in others],
    }.get(arm, [(kind, n) for kind, n in kinds if n != 1 and kind in ("suppose", "again", "equations")])
    return [(kinds[key].statement, kinds[key].text) for key in kept]


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "answers"])
def test_an_arm_reads_the_traces_that_its_name_says(arm, kinds, chains):
    assert reading(arm, chains, list(kinds.values())) == expected(arm, kinds, chains)


def test_answers_are_read_without_a_step_and_without_a_trace(chains):
    read = reading("answers", chains, [])
    assert [asked for asked, _ in read] == [statement(p) for p in chains]
    for puzzle, (_, text) in zip(chains, read, strict=True):
        whole = written_solution(puzzle)
        assert text == "\n</think>" + whole.partition("\n</think>")[2]


def test_an_unknown_arm_is_refused(chains, kinds):
    with pytest.raises(ValueError, match="arm must be one of answers, unverified, .*shortest; got 'verify'"):
        reading("verify", chains, list(kinds.values()))


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "answers"])
def test_nothing_to_read_is_refused_with_what_helps(arm, kinds, chains):
    useless = [trace for (kind, _), trace in kinds.items() if kind == "cut off"]
    message = f"no trace passes the filter of arm '{arm}'; collect more, or train the teacher longer"
    for traces in ([], useless):
        with pytest.raises(ValueError, match=message):
            reading(arm, chains, traces)


def test_the_styles_are_told_apart_and_answers_have_none(chains):
    pairs = puzzle_splits("pair", train=40, validation=0, test=0).train
    for puzzle in (*chains, *pairs):
        assert style_of(written_solution(puzzle, "suppose")) == "suppose"
        assert style_of(written_solution(puzzle, "equations")) == "equations"
        assert style_of(written_solution(puzzle, think=False)) is None


@pytest.mark.parametrize(
    "text",
    ["", "\n</think>\n\n", "</think> Suppose x + y = 4.", "8 × 4 = 32 feet, 32 − 4", "ants ants 12 heads y",
     "six axes, 0x10 and ax"],
)  # fmt: skip
def test_what_has_no_steps_of_either_style_has_no_style(text):
    assert style_of(text) is None


def test_a_text_that_was_cut_off_has_the_style_it_began_with():
    assert style_of("Suppose all are") == "suppose"
    assert style_of("2x + 4y = 28. x") == "equations"


def test_the_mean_length_is_that_of_the_examples_that_are_trained_on(tokenizer, chains):
    for arm_texts in (reading("answers", chains, []), [(statement(p), written_solution(p)) for p in chains]):
        lengths = [len(example) for example in tokenize(tokenizer, arm_texts)]
        assert tokens_a_step(tokenizer, arm_texts, 1) == pytest.approx(sum(lengths) / len(lengths))


# --- what they spend ----------------------------------------------------------------------------------------


def taught(tokenizer, arm, texts, recipe=TINY, **given):
    """Figures of a student taught, and the tokens that went through it in training."""
    student = tiny_model(tokenizer, width=16, layers=1)
    read = []

    def count(module, args, inputs):
        if module.training:
            read.append(int(inputs["attention_mask"].sum()))

    student.register_forward_pre_hook(count, with_kwargs=True)
    return teach_student(recipe, student, tokenizer, arm, texts, **given), sum(read)


def test_equal_compute_is_equally_many_tokens_read(tokenizer, chains):
    solved = [(statement(p), written_solution(p)) for p in chains]
    answers = reading("answers", chains, [])
    budget = round(6 * 4 * tokens_a_step(tokenizer, solved, 1))
    steps = {}
    # Of six texts an epoch's second step holds two.
    read_by = {"answers": answers, "verified": solved, "unverified": solved[:4], "shortest": solved[:6]}
    for arm, texts in read_by.items():
        figures, read = taught(tokenizer, arm, texts, tokens=budget)
        step = 4 * tokens_a_step(tokenizer, texts, 1)
        assert abs(read - budget) <= step
        assert abs(figures["tokens"] - read) <= step
        assert figures["seconds"] > 0
        steps[arm] = figures["steps"]
    assert steps["verified"] == 6 < steps["answers"]


def test_equal_steps_are_the_recipes_whatever_the_texts(tokenizer, chains, calls):
    for arm, texts in (("answers", reading("answers", chains, [])), ("verified", [("A cage", "4")])):
        figures, _ = taught(tokenizer, arm, texts)
        assert figures["steps"] == TINY.student.steps
    assert [call["steps"] for call in calls] == [6, 6]
    assert [call["lr"] for call in calls] == [7e-3, 5e-3]
    assert [call["batch_size"] for call in calls] == [4, 4]
    assert all(call["output_dir"] is None for call in calls)


def test_a_learning_rate_and_a_seed_that_are_given_count(tokenizer, calls):
    quick = replace(TINY, student=Stage(1, 5e-3, 2))
    for arm in ("answers", "verified"):
        taught(tokenizer, arm, [("A", "4")], quick, lr=2e-4, seed=8)
    assert {(call["lr"], call["seed"]) for call in calls} == {(2e-4, 8)}


def test_a_budget_smaller_than_a_step_is_a_step(tokenizer):
    figures, _ = taught(tokenizer, "verified", [("A cage", "4")] * 4, tokens=1)
    assert figures["steps"] == 1


# --- how they go on -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tokenizer):
    return tiny_model(tokenizer, width=24, layers=1, seed=2)


@pytest.fixture
def went_on(tokenizer, chains, teacher, calls):
    """For each way its figures, and what `distill_language_model` was asked to do."""
    texts = [(statement(p), written_solution(p)) for p in chains]
    recipe = replace(TINY, max_new_tokens=7, further=Stage(8, 1e-3, 3), on_policy_lr=3e-3)
    figures = {
        way: teach_further(recipe, tiny_model(tokenizer, width=16, layers=1), tokenizer, way, texts,
                           teacher=teacher, seed=3)
        for way in FURTHER
    }  # fmt: skip
    return texts, figures, dict(zip(FURTHER, calls, strict=True))


def test_ways_differ_in_whose_texts_and_what_is_compared(went_on, teacher):
    texts, _, asked = went_on
    for way, call in asked.items():
        prompts = [statement for statement, _ in texts]
        assert call["examples"] == (prompts if way == "on-policy" else texts)
        assert call.get("teacher") is (None if way == "verified" else teacher)
        assert call.get("on_policy", False) == FURTHER[way] and (call["batch_size"], call["seed"]) == (3, 3)
        assert call.get("divergence") == ("reverse" if FURTHER[way] else None)
        assert call["lr"] == (3e-3 if FURTHER[way] else 1e-3)
    assert asked["logits"]["alpha"] == 0 and "alpha" not in asked["verified"]


def test_the_price_of_writing_is_paid_with_steps(went_on):
    _, figures, _ = went_on
    # A third more for each token that is written too: 8 = 7 · (1 + 1/6) = 6 · (1 + 1/3), rounded.
    assert [figures[way]["steps"] for way in FURTHER] == [8, 8, 7, 6]
    assert {way: found["written"] > 0 for way, found in figures.items()} == {
        "verified": False, "logits": False, "mixture": True, "on-policy": True,
    }  # fmt: skip
    assert figures["on-policy"]["written"] == figures["on-policy"]["learnt"] == figures["on-policy"]["judged"]
    assert 0 < figures["mixture"]["written"] <= 3 * 3 * 7  # three of seven steps
    assert figures["mixture"]["written"] < figures["mixture"]["learnt"] == figures["mixture"]["judged"]
    assert figures["verified"]["judged"] == 0 < figures["logits"]["judged"] == figures["verified"]["learnt"]


def test_a_rate_that_is_given_counts_and_another_way_is_refused(tokenizer, chains, teacher, calls):
    texts = reading("answers", chains, [])
    student = tiny_model(tokenizer, width=16, layers=1)
    for way in ("verified", "on-policy"):
        teach_further(TINY, student, tokenizer, way, texts, teacher=teacher, lr=5e-4)
    assert [call["lr"] for call in calls] == [5e-4, 5e-4]
    with pytest.raises(ValueError, match="way must be one of verified, .*on-policy; got 'shortest'"):
        teach_further(TINY, student, tokenizer, "shortest", texts, teacher=teacher)


def test_the_student_is_at_least_five_times_smaller(tokenizer):
    recipe = CHAINS
    student, teacher = (
        tiny_model(tokenizer, width=width, layers=recipe.layers, family=family).num_parameters()
        for width, family in (
            (recipe.student_width, recipe.student_family), (recipe.teacher_width, recipe.teacher_family)
        )
    )  # fmt: skip
    assert teacher >= 5 * student
