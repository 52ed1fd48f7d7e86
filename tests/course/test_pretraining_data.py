"""What base models read: true sums and single cages, in range, never a chain."""

import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlib.course.studies.pretraining_data import pretraining_data, sums
from kdlib.course.studies.reasoning_arms import CHAINS, style_of
from kdlib.language.answers.arithmetic import arithmetic_steps, first_wrong_step
from kdlib.language.answers.final_answer import has_format, verify_answer
from kdlib.language.distill.distill import distill_language_model
from kdlib.language.models.small import tiny_model
from kdlib.language.puzzles.make import puzzle_splits
from kdlib.language.puzzles.text import answer_text, statement
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer

ANIMALS = ("chickens", "rabbits", "ants", "spiders")
SUM = re.compile(r"(\d+) ([+−×÷]) (\d+) = (\d+)")


def value(left, operator, right):
    left, right = int(left), int(right)
    if operator == "÷":
        return Fraction(left, right)
    return {"+": left + right, "−": left - right, "×": left * right}[operator]


@given(
    seed=st.integers(0, 50),
    heads=st.sampled_from([(2, 2), (2, 8), (9, 12), (2, 50)]),
    animals=st.sampled_from([ANIMALS, ("snakes", "crabs"), ("snakes", "chickens", "cranes")]),
)
def test_every_sum_is_true_and_asked_as_it_is_answered(seed, heads, animals):
    for asked, done in sums(8, heads=heads, animals=animals, seed=seed):
        found = SUM.findall(done)
        assert len(found) == 6
        for *left, result in found:
            assert value(*left) == int(result) >= 0
        assert asked == " " + ", ".join(" ".join(left) for *left, _ in found) + "?"
        assert done.endswith(f"\n</think>\n\nAnswer: {found[-1][-1]}.")


def test_sums_are_those_that_puzzles_of_the_range_are_made_of():
    rows = sums(300, heads=(2, 8), animals=ANIMALS, seed=0)
    found = [step for _, done in rows for step in SUM.findall(done)]
    assert len(found) == 300 * 6
    kinds = Counter(operator for _, operator, _, _ in found)
    # Two of five kinds are differences, weighted 8 and 4 of 16; the rest 2, 1 and 1.
    for operator, weight in (("×", 2), ("−", 12), ("÷", 1), ("+", 1)):
        assert kinds[operator] / len(found) == pytest.approx(weight / 16, abs=0.03)
    for left, operator, right, result in found:
        if operator == "×":
            assert 2 <= int(left) <= 8 and int(right) in (2, 4, 6)  # heads, legs of the fewer-legged
        elif operator == "÷":
            assert int(right) in (2, 4, 6) and 1 <= int(result) <= 7
        elif operator == "+":
            assert int(result) <= 8
        else:
            assert int(left) <= 8 * 8


def test_rows_follow_from_the_seed_and_more_rows_begin_with_fewer():
    given = {"heads": (2, 8), "animals": ANIMALS}
    rows = sums(20, **given, seed=1)
    assert rows == sums(20, **given, seed=1)
    assert rows[:5] == sums(5, **given, seed=1)
    assert not set(rows) & set(sums(20, **given, seed=2))


@pytest.fixture(scope="module")
def cages():
    return puzzle_splits("pair", train=25, validation=0, test=0, heads=(2, 8), animals=ANIMALS).train


def test_each_cage_comes_in_both_styles_and_without_steps_and_as_many_rows_of_sums(cages):
    lessons = pretraining_data(cages, heads=(2, 8), animals=ANIMALS, seed=0)
    assert len(lessons) == 6 * len(cages)
    assert lessons == pretraining_data(cages, heads=(2, 8), animals=ANIMALS, seed=0)
    by = Counter()
    for puzzle in cages:
        read = [text for asked, text in lessons if asked == statement(puzzle)]
        assert sorted(map(str, map(style_of, read))) == ["None", "equations", "suppose"]
        for text in read:
            assert verify_answer(text, answer_text(puzzle))
            assert has_format(text)
            assert first_wrong_step(text) is None
            by[style_of(text), bool(arithmetic_steps(text))] += 1
    assert by == {("suppose", True): 25, ("equations", True): 25, (None, False): 25}
    assert sum(len(SUM.findall(text)) == 6 and asked.endswith("?") and "cage" not in asked
               for asked, text in lessons) == 3 * len(cages)  # fmt: skip


def test_the_pretraining_of_the_recipe_holds_single_cages_only():
    recipe = CHAINS
    cages = recipe.cages()
    assert {puzzle.kind for puzzle in cages} == {"pair"}
    assert len({puzzle.key for puzzle in cages}) == len(cages) >= 80
    for puzzle in cages:
        assert len(puzzle.cages) == 1
        assert recipe.heads[0] <= puzzle.cages[0].heads <= recipe.heads[1]
        assert set(puzzle.cages[0].animals) <= set(recipe.animals)
    for asked, text in pretraining_data(cages, heads=recipe.heads, animals=recipe.animals, seed=0):
        assert "Another" not in asked + text and " more" not in asked


def test_every_text_is_written_in_known_tokens_and_can_be_learnt_from(cages):
    tokenizer = puzzle_tokenizer()
    lessons = pretraining_data(cages[:4], heads=(2, 8), animals=ANIMALS, seed=0)
    for asked, text in lessons:
        for part in (asked, text):
            ids = tokenizer(part)["input_ids"]
            assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == part
    model = tiny_model(tokenizer, width=16, layers=1)
    history = distill_language_model(
        model, tokenizer, lessons, steps=1, lr=1e-3, batch_size=len(lessons), device="cpu"
    )
    assert history.tokens == [sum(len(tokenizer(text)["input_ids"]) + 1 for _, text in lessons)]
