import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.language.answers import compare as quantities
from kdlib.language.answers import final_answer as answers
from kdlib.language.answers import mathematics
from kdlib.language.answers.final_answer import final_answer, first_wrong_step, has_format, verify_answer
from kdlib.language.puzzles.make import make_puzzle
from kdlib.language.puzzles.puzzle import ANIMALS
from kdlib.language.puzzles.solve import solve
from kdlib.language.puzzles.text import answer_text, written_solution

DATA = Path(__file__).parents[4] / "shared" / "data"
PAIR = "6 chickens and 4 rabbits"


def gsm8k() -> list[dict[str, str]]:
    path = DATA / "gsm8k" / "train_first2000.jsonl"
    if not path.is_file():
        pytest.skip("needs ../shared/data/gsm8k, which is not part of the repository")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def r1_traces(name: str) -> list[dict[str, str]]:
    path = DATA / "r1_traces" / name
    if not path.is_file():
        pytest.skip("needs ../shared/data/r1_traces, which is not part of the repository")
    return json.loads(path.read_text(encoding="utf-8"))


# Where an answer stands


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Suppose so.\n</think>\n\nAnswer: 6 chickens and 4 rabbits.", PAIR),
        ("<think>\nAnswer: 5\n</think>\nAnswer: 6.", "6"),
        ("Answer: 5\n</think>\nI do not know.", None),  # only inside the thought
        ("<think>\nThe answer is 12. \\boxed{12}", None),  # the thought is never closed
        ("</think>Answer: 1</think>Answer: 2", "2"),
        ("Answer: 1</think>Answer: 2</think>I am not sure.", None),
        (r"\boxed{3} or rather \boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{3}, no: \boxed{4", None),  # cut off
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed 7", "7"),
        (r"Answer: 5. So \boxed{6}. #### 7", "7"),  # the last statement counts
        ("We get \\boxed{12} in step one.\n\nAnswer: 24", "24"),
        ("Answer: 12. No: \\boxed{24}", "24"),
        ("\\boxed{24}. I hope the answer is clear.", "24"),
        ("◁think▷Answer: 5◁/think▷Answer: 6", "6"),
        ("<answer>42</answer>", "42"),
        ("<think>x</think>\n<answer>\n42\n</answer>\n\nI hope this helps!", "42"),
        ("<answer>\n42\n\n</answer>\n\nAnswer: 43", "43"),
        ("**Answer:**\n\n\\[\n\\frac{3}{4}\n\\]", r"\frac{3}{4}"),
        ("### Answer\n72 clips", "72 clips"),
        ("故选：C。", "C"),
        ("【答案】12", "12"),
        ("Answer: St. Louis. It lies there.", "St. Louis"),
        ("Answer: 5 p.m. The train leaves.", "5 p.m"),
        ("Answer: 5\n#### 7", "7"),
        ("#### Check\nAnswer: 5\n#### Result", "5"),  # headings
        ("48 + 24 = 72 clips.\n#### 1,234", "1,234"),
        ("**Final Answer:** 12 dollars", "12 dollars"),
        ("**Answer**: $12.50.", "$12.50"),
        ("Answer:\n\n12", "12"),
        ("Therefore the answer is $\\frac{1}{2}$. That was all.", r"\frac{1}{2}"),
        ("The answer to the question is 12.", "12"),
        ("Answer: 10. Answer: 12.", "12"),
        ("Answer: 10 or 12", "10 or 12"),
        ("答案：鸡6只，兔4只。", "鸡6只，兔4只"),
        ("所以最终答案是 12。", "12"),
        (" 6 chickens and 4 rabbits. ", PAIR),
        ("-1,234.5", "-1,234.5"),
        ("5!", "5!"),
        ("There are some chickens.", None),
        ("2 × 10 = 20 feet. 28 − 20 = 8", None),
        ("", None),
        ("Answer:", None),
        (r"\boxed{}", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("So 6.\n</think>\n\nAnswer: 6.", True),
        ("<think>\nSo 6.\n</think>\n\nAnswer: 6.", True),
        ("\n</think>\n\nAnswer: 6.", True),
        ("Answer: 6.", False),
        ("So.\n</think>\nAnswer: 5.\n</think>\nAnswer: 6.", False),
        ("So.\n<think>\nOr.\n</think>\nAnswer: 6.", False),
        ("<think><think></think>Answer: 6.", False),
        ("So.\n</think>\nAnswer: 6.<think>", False),
        ("So. Answer: 6.\n</think>\nWell.", False),
        ("◁think▷So.◁/think▷Answer: 6", True),
        ("<thinking>So.</thinking>Answer: 6", True),
        ("[THINK]So.[/THINK]Answer: 6[/THINK]", False),
        ("", False),
    ],
)
def test_format(text, right):
    assert has_format(text) is right


# What an answer says


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("Answer: 4 rabbits and 6 chickens.", PAIR),
        ("Answer: 6 Chickens, 4 rabbit.", PAIR),
        ("Answer: There are 6 chickens and 4 rabbits in the last cage!", PAIR),
        ("Answer: chickens: 6, rabbits: 4", PAIR),
        ("Answer: rabbits = 4 and chickens = 6", PAIR),
        (r"\boxed{6 \text{ chickens and } 4 \text{ rabbits}}", PAIR),
        ("答案:鸡６只,兔４只。", PAIR),
        ("答案：6只鸡和4只兔子。", "鸡6只，兔4只"),
        ("答案：兔有4只，鸡有6只", PAIR),
        ("Answer: 1 ant, 2 spiders and 3 crabs", "螃蟹3只，蚂蚁1只，蜘蛛2只"),
        ("Answer: 1,200 chickens and 4 rabbits", "1200 chickens, 4 rabbits"),
        ("#### 1,234", "1234"),
        ("Answer: １２３４", "1,234"),
        (r"\boxed{1{,}234}", "1234"),
        (r"\boxed{\$12}", "12 dollars"),
        ("Answer: $12.00", "12"),
        ("Answer: -$5", "−5"),
        ("Answer: 12 clips altogether in May.", "12"),
        ("Answer: 50%", "50"),
        ("Answer: 50%", "1/2"),
        (r"\boxed{50\%}", r"\frac12"),
        ("Answer: 0.5", r"\frac{1}{2}"),
        ("Answer: 3 1/2 hours", "3.5"),
        (r"\boxed{3\frac{1}{2}}", "7/2"),
        ("Answer: 3 million", "3,000,000"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{90^\circ}", "90"),
        ("Answer: Evelyn", r"\text{Evelyn}"),
        (r"\boxed{\text{(C)}}", "C"),
        (r"\boxed{\frac{\sqrt{3}}{2}}", r"\sqrt{3}/2"),
        (r"\boxed{(x-1)(x+1)}", "x^2 - 1"),
        (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"(3, \pi/2)"),
        (r"\boxed{2^{10}}", "1024"),
        (r"\boxed{1, -2}", "-2, 1"),
        (r"\boxed{5!}", "120"),
    ],
)
def test_right_answers(text, reference):
    assert verify_answer(text, reference)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("Answer: 4 chickens and 6 rabbits", PAIR),
        ("Answer: 6 chickens", PAIR),
        ("Answer: 6 chickens and 4 rabbits and 1 ant", PAIR),
        ("Answer: 6 chickens and 0 ants and 4 rabbits", PAIR),
        ("Answer: 6 chickens and 4 rabbits", "6 chickens, 4 rabbits and 0 ants"),
        ("Answer: 6 chickens and 4 cranes", PAIR),
        ("Answer: 6 chickens and 4 rabbits, or 4 chickens and 6 rabbits", PAIR),
        ("Answer: 6 chickens or 4 rabbits", PAIR),
        ("Answer: 6 chickens, 4 rabbits and 6 chickens", PAIR),
        ("Answer: 6 and 4", PAIR),
        ("答案：鸡4只，兔6只。", PAIR),
        ("Answer: -6 chickens and 4 rabbits", PAIR),
        ("2.4", "24"),
        ("2,4", "24"),
        ("1,23", "123"),
        ("24", "2.4"),
        ("Answer: 10 or 12", "12"),
        ("Answer: 10 or 12", "10"),
        ("Answer: 10, 12", "12"),
        ("Answer: 10 to 12", "12"),
        ("Answer: not 12", "12"),
        ("Answer: 12 and a half", "12"),
        ("Answer: 12 thousand", "12"),
        ("Answer: 12 dollars or less", "12"),
        ("Answer: less than 12", "12"),
        (r"\boxed{12 \text{ or } 13}", "12"),
        ("Answer: -12", "12"),
        ("Answer: 12 meters", "12 feet"),
        ("Answer: €12", "$12"),
        ("Answer: 0.33", r"\frac{1}{3}"),
        ("Answer: 0.5%", "50"),
        ("Answer: 12x", "12"),
        (r"\boxed{12\pi}", "12"),
        (r"\boxed{y = 5}", "x = 5"),
        (r"\boxed{5!}", "5"),
        (r"\boxed{1/0}", "0"),
        (r"\boxed{[1, 2)}", "[1, 2]"),
        (r"\boxed{(2, 1)}", "(1, 2)"),
        (r"\boxed{\text{dog}}", r"\text{god}"),
        ("Answer: 5\n</think>\n\nI forgot.", "5"),
        ("<think>\nAnswer: 5", "5"),
        ("no answer at all", "5"),
        ("", "5"),
    ],
)
def test_wrong_answers(text, reference):
    assert not verify_answer(text, reference)


@pytest.mark.parametrize("reference", ["", "  \n", "word " * 300])
def test_a_reference_that_says_nothing_is_refused(reference):
    with pytest.raises(ValueError, match="reference: expected an answer of 1 to 1000 characters"):
        verify_answer("5", reference)


@pytest.mark.parametrize("value", [None, 72, ["72"], b"72", float("nan")])
def test_what_is_no_text_is_named(value):
    with pytest.raises(ValueError, match=r"text: expected a text \(str\), got"):
        verify_answer(value, "72")
    with pytest.raises(ValueError, match=r"reference: expected a text \(str\), got"):
        verify_answer("72", value)
    with pytest.raises(ValueError, match="text: expected a text"):
        final_answer(value)
    with pytest.raises(ValueError, match="text: expected a text"):
        has_format(value)


def test_counts_numbers_and_words_need_no_process(monkeypatch):
    def fail(*_args, **_kwargs):
        raise AssertionError("a formula was compared")

    monkeypatch.setattr(mathematics, "_exchange", fail)
    assert verify_answer("Answer: 6 chickens and 4 rabbits", PAIR)
    assert not verify_answer("Answer: 7 chickens and 4 rabbits", PAIR)
    assert verify_answer("#### 1,234", "1234") and not verify_answer("#### 1,235", "1234")
    assert not verify_answer("Answer: some apples", "1234")


names = st.lists(st.sampled_from(sorted(ANIMALS)), min_size=2, max_size=3, unique=True)


@given(names, st.lists(st.integers(0, 10**6), min_size=3, max_size=3), st.randoms(), st.integers(-3, 3))
def test_counts_in_any_order_case_number_and_language(chosen, numbers, rng, change):
    counts = dict(zip(chosen, numbers, strict=False))

    def written(wrong: int) -> str:
        items = list(counts.items())
        items[0] = items[0][0], items[0][1] + wrong
        rng.shuffle(items)
        if rng.random() < 0.5:
            return "，".join(f"{ANIMALS[name].chinese}{number}只" for name, number in items)
        parts = [f"{number:,} {rng.choice([name, ANIMALS[name].singular])}" for name, number in items]
        text = ", ".join(parts[:-1]) + " and " + parts[-1]
        return rng.choice([text, text.upper(), text.title()])

    assert verify_answer(written(change), written(0)) is (change == 0)


@settings(max_examples=60)
@given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6))
def test_numbers_are_compared_exactly(one, other):
    top, bottom = one.numerator, one.denominator
    forms = [str(one), rf"\frac{{{top}}}{{{bottom}}}", f"{2 * top}/{2 * bottom}"]
    if one.denominator == 1:
        forms = [f"{one.numerator:,}", f"{one.numerator}.0", str(one).replace("-", "−")]
    for form in forms:
        assert verify_answer(f"Answer: {form}.", str(one))
        assert verify_answer(form, str(other)) is (one == other)


@pytest.mark.parametrize(("kind", "language"), [("pair", "zh"), ("chain", "en")])
def test_written_solutions_of_puzzles(kind, language):
    for seed in range(30):
        puzzle = make_puzzle(kind, rng=random.Random(seed))
        for style in ("suppose", "equations"):
            text = written_solution(puzzle, style, language)
            other = "zh" if language == "en" else "en"
            assert has_format(text) and first_wrong_step(text) is None
            assert verify_answer(text, answer_text(puzzle, language))
            assert verify_answer(text, answer_text(puzzle, other))
        counts = solve(puzzle).counts[-1]
        first, *rest = counts
        swapped = {first: counts[rest[-1]], **counts, rest[-1]: counts[first]}
        swapped[first] = counts[rest[-1]]
        wrong = " and ".join(f"{number} {name}" for name, number in swapped.items())
        assert verify_answer(wrong, answer_text(puzzle, language)) is (counts[first] == counts[rest[-1]])


# Real data


def test_every_reference_answer_of_gsm8k_is_found_and_verifies():
    rows = gsm8k()
    assert len(rows) == 2000
    for place, row in enumerate(rows):
        written = row["answer"].rpartition("#### ")[2]
        number = written.replace(",", "")
        assert final_answer(row["answer"]) == written
        assert verify_answer(row["answer"], row["answer"])
        if place % 10:
            continue
        assert verify_answer(f"So it is.\n</think>\n\nThe answer is **{number}**.", row["answer"])
        assert verify_answer(rf"\boxed{{\${number}}}", row["answer"])
        assert not verify_answer(f"Answer: {number}1", row["answer"])


# Checked by hand: a = −3 and b = 3; N = 2(m + 1)² < 100; 2π + √10 is not 0; ⌈16.5⌉; 20 − 14 days. All ten
# traces end in these, so that all ten are right.
RIGHT = ["0", "98", "4", "17", "6"]


@pytest.mark.parametrize("name", ["ollama_sample.json", "openrouter_sample.json"])
def test_real_traces_of_r1(name):
    traces = r1_traces(name)
    assert [trace["gtruth_answer"] for trace in traces] == RIGHT
    for trace, answer in zip(traces, RIGHT, strict=True):
        text = f"{trace['message_thinking']}</think>\n\n{trace['message_content']}"
        assert has_format(text) and final_answer(text) == answer
        assert [verify_answer(text, other) for other in RIGHT] == [other == answer for other in RIGHT]
        assert final_answer(f"<think>\n{trace['message_thinking']}") is None
        assert first_wrong_step(text) is None


# Hostile text

MANY = 1_000_000
HOSTILE = {
    "letters": "a" * MANY,
    "blanks": " " * MANY,
    "digits": "Answer: " + "1" * MANY,
    "open braces": "{" * MANY,
    "open boxes": r"\boxed{" * (MANY // 7),
    "100,000 nested braces": r"\boxed{" + "{" * 100_000 + "1" + "}" * 100_000 + "}",
    "100,000 nested boxes": r"\boxed{" * 100_000 + "}" * 100_000,
    "100,000 brackets": "(" * 100_000 + "1+1" + ")" * 100_000 + "=2",
    "answers": "Answer: " * (MANY // 8),
    "answer to": "answer to " * (MANY // 10),
    "hashes": "#" * MANY,
    "headings": "#### x\n" * (MANY // 7),
    "stars": "Answer: " + "*" * MANY,
    "thoughts": "</think>" * (MANY // 8),
    "returns": "1" + "\r" * MANY + "=",
    "lines": "\n" * MANY + "=",
    "equal signs": "=" * MANY,
    "wrong steps": "1+1=3. " * (MANY // 7),
    "a sum": "1+" * (MANY // 2) + "1=2",
    "long products": ("9" * 39 + ("*" + "9" * 39) * 90 + "=1. ") * 100,
    "long quotients": ("9" * 39 + ("/" + "7" * 39) * 90 + "=1. ") * 100,
    "words": "Answer: 6 " + "a " * 490,
    "names": "Answer: 6 " + "aa-" * 300 + "1",
    "items": "Answer: " + "6 aa and " * 100,
    "commas": "Answer: " + "1,111" * 190,
    "apostrophes": "Answer: 6 " + "aa'" * 300 + "1",
    "blanks in LaTeX": r"\boxed{\frac{" + " " * 900 + "}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_costs_bounded_time(text, monkeypatch):
    # The process with its time limit has tests of its own; here it must not be what bounds the time.
    monkeypatch.setattr(quantities, "same_mathematics", lambda *_: False)
    began = time.process_time()
    assert not verify_answer(text, PAIR) and not verify_answer(text, r"\sqrt{3}")
    answers.arithmetic_steps(text)
    assert time.process_time() - began < 2
