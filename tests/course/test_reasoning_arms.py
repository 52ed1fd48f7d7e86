"""The arms: what each reads, and that they spend alike."""

from dataclasses import replace

import pytest
from tiny_study import answered, same, weights

from kdlib.course.studies import reasoning_arms as arms
from kdlib.course.studies.reasoning_arms import (
    ARMS,
    CHAINS,
    LIVE,
    TINY,
    Stage,
    reading,
    style_of,
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
        "suppose": [(kind, n) for kind, n in kinds if n != 1 and kind in ("suppose", "again")],
        "equations": [("equations", n) for n in others],
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
    with pytest.raises(ValueError, match="arm must be one of answers, unverified, .*on-policy; got 'verify'"):
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
    read_by = {"answers": answers, "verified": solved, "suppose": solved[:4], "equations": solved[:6]}
    for arm, texts in read_by.items():
        figures, read = taught(tokenizer, arm, texts, tokens=budget)
        step = 4 * tokens_a_step(tokenizer, texts, 1)
        assert abs(read - budget) <= step
        assert abs(figures["tokens"] - read) <= step
        assert figures["written"] == 0 and figures["seconds"] > 0
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
    teacher = tiny_model(tokenizer, width=8, layers=1)
    for arm, given in (("verified", {}), ("on-policy", {"teacher": teacher})):
        figures, _ = taught(tokenizer, arm, [("A cage", "4")] * 4, tokens=1, **given)
        assert figures["steps"] == 1


def test_logits_are_the_teachers_at_the_recipes_temperature_and_weight(tokenizer, chains, calls):
    teacher = tiny_model(tokenizer, width=24, layers=1, family="llama", seed=2)
    before, recipe = weights(teacher), replace(TINY, temperature=2.0, alpha=0.25)
    texts = reading("answers", chains, [])
    taught(tokenizer, "logits", texts, recipe, teacher=teacher)
    taught(tokenizer, "verified", texts, recipe, teacher=teacher)
    logits, verified = calls
    assert (logits["teacher"], logits["temperature"], logits["alpha"]) == (teacher, 2.0, 0.25)
    assert not logits.keys() & {"on_policy"} and not verified.keys() & {"teacher", "alpha", "temperature"}
    assert same(weights(teacher), before)


@pytest.mark.parametrize("budget", ["steps", "compute"])
def test_on_policy_follows_a_share_of_the_budget_spent_on_texts(tokenizer, chains, calls, budget):
    teacher = tiny_model(tokenizer, width=24, layers=1, seed=2)
    texts = [(statement(p), written_solution(p)) for p in chains]
    tokens = round(9 * 4 * tokens_a_step(tokenizer, texts, 1))
    recipe = replace(TINY, max_new_tokens=7, student=Stage(9, 5e-3, 4))
    given = {"tokens": tokens} if budget == "compute" else {}
    figures, _ = taught(tokenizer, "on-policy", texts, recipe, teacher=teacher, seed=3, **given)
    first, second = calls
    assert first["examples"] == texts and "teacher" not in first and "on_policy" not in first
    assert first["steps"] == figures["steps"] == 6  # two thirds of nine
    assert figures["tokens"] == pytest.approx(tokens * 6 / 9, abs=1)
    assert second["examples"] == [asked for asked, _ in texts]
    assert second["on_policy"] and second["teacher"] is teacher and second["max_new_tokens"] == 7
    assert (second["steps"], second["lr"], second["batch_size"], second["seed"]) == (2, 1e-3, 3, 3)
    assert 2 * 3 <= figures["written"] <= 2 * 3 * 7


def test_what_cannot_be_taught_is_refused_before_anything_is_learnt(tokenizer, calls):
    given = {"texts": [("A", "4")], "tokens": 10}
    for arm in ("logits", "on-policy"):
        with pytest.raises(ValueError, match=f"arm '{arm}' needs a teacher; got None"):
            taught(tokenizer, arm, **given)
    assert not calls


@pytest.mark.parametrize("recipe", [CHAINS, LIVE], ids=["committed", "live"])
def test_the_student_is_at_least_five_times_smaller(tokenizer, recipe):
    student, teacher = (
        tiny_model(tokenizer, width=width, layers=recipe.layers, family=family).num_parameters()
        for width, family in (
            (recipe.student_width, recipe.student_family), (recipe.teacher_width, recipe.teacher_family)
        )
    )  # fmt: skip
    assert teacher >= 5 * student
