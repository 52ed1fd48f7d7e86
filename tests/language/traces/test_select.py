"""Which traces are kept, and pass rates, pass@k and majority votes against counting them all out."""

from fractions import Fraction
from itertools import combinations, permutations
from math import comb, factorial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.language.traces.file import Trace
from kdlib.language.traces.select import filter_traces, majority_vote, pass_at_k, trace_report


def trace(key="a", sample=0, text="t", tokens=5, *, finished=True, correct=True, well_formed=True):
    return Trace(key, f"statement of {key}", "4", sample, text, tokens, finished, correct, well_formed)


def answering(answer, key="a", sample=0):
    """A trace that gives an answer: "right", a wrong one, None for no answer, "cut" for one cut off."""
    text = "a thought\n</think>\n\n" + ("I do not know it." if answer is None else f"Answer: {answer}.")
    return trace(key, sample, text, finished=answer != "cut", correct=answer == "right")


MIXED = [
    trace("a", 0, "long and right", 9),
    trace("a", 1, "short", 5, correct=False),
    trace("b", 0, "equations x", 7),
    trace("a", 2, "x right", 6),
    trace("a", 3, "long and right", 9),
    trace("c", 0, "cut", 5, finished=False, correct=False, well_formed=False),
    trace("b", 1, "long and right", 7),
    trace("a", 4, "x also right", 6),
]


# --- filter ----------------------------------------------------------------------------------------


def places(kept):
    return [MIXED.index(t) for t in kept]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({}, [0, 2, 3, 6, 7]),
        ({"repeats": True}, [0, 2, 3, 4, 6, 7]),
        ({"correct": False}, [0, 1, 2, 3, 5, 6, 7]),
        ({"correct": False, "repeats": True}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"shortest": True}, [2, 3]),
        ({"shortest": True, "correct": False}, [1, 2, 5]),
        ({"style": lambda text: "x" not in text}, [0, 6]),
        ({"style": lambda text: "x" not in text, "repeats": True, "shortest": True}, [0, 6]),
        ({"style": lambda text: False}, []),
    ],
)
def test_what_passes_is_kept_in_its_order(arguments, expected):
    assert places(filter_traces(iter(MIXED), **arguments)) == expected


def test_an_equal_trace_twice_is_a_repeat_and_the_shortest_is_one():
    twice = [trace(), trace()]
    assert len(filter_traces(twice)) == 1
    assert len(filter_traces(twice, repeats=True)) == 2
    assert len(filter_traces(twice, repeats=True, shortest=True)) == 1


def test_style_sees_the_texts_of_correct_traces():
    seen = []
    filter_traces(MIXED, style=lambda text: seen.append(text) or True)
    assert seen == [t.text for t in MIXED if t.correct]


# --- report ----------------------------------------------------------------------------------------


def test_a_report_counts_what_it_says():
    report = trace_report(iter(MIXED))
    assert (report.traces, report.problems, report.correct, report.solved) == (8, 3, 6, 2)
    assert (report.malformed, report.truncated, report.repeats) == (1, 1, 1)
    assert report.pass_rate == 6 / 8
    assert report.mean_tokens == 54 / 8
    assert report.percentiles == {10: 5, 50: 6, 90: 9, 100: 9}


def test_percentiles_are_lengths_that_occur():
    report = trace_report([trace(sample=n, tokens=n) for n in range(1, 101)])
    assert report.percentiles == {10: 10, 50: 50, 90: 90, 100: 100}


def test_a_report_prints_as_a_table():
    assert str(trace_report(MIXED)).split("\n") == [
        "8 traces of 3 problems",
        "correct                6   75.0 %",
        "format failures        1   12.5 %",
        "truncated              1   12.5 %",
        "repeats                1   12.5 %",
        "problems solved        2   66.7 %",
        "tokens               6.8 on average",
        "                       6 median, 80 % from 5 to 9, at most 9",
    ]


# --- pass@k ----------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=7), min_size=1, max_size=4), st.integers(1, 3))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(problems, k):
    traces = [
        trace(str(key), number, correct=right)
        for key, group in enumerate(problems)
        for number, right in enumerate(group)
    ]
    shares = [Fraction(sum(map(any, combinations(g, k))), comb(len(g), k)) for g in problems]
    assert pass_at_k(iter(traces), k) == pytest.approx(float(sum(shares) / len(shares)), abs=1e-12)


def test_pass_at_1_is_the_pass_rate_and_many_samples_lose_no_digits():
    traces = [trace("a", n, correct=n < 3) for n in range(8)]
    assert pass_at_k(traces, 1) == pytest.approx(trace_report(traces).pass_rate)
    many = [trace("a", n, correct=n == 0) for n in range(3000)]
    assert pass_at_k(many, 1500) == pytest.approx(0.5, abs=1e-12)


# --- majority vote ---------------------------------------------------------------------------------


def voted(answers, k):
    """Share of the ordered choices of k whose most frequent answer, the first seen of equals, is right."""
    won = 0
    for chosen in permutations(answers, k):
        votes = [answer for answer in chosen if answer not in (None, "cut")]
        # max takes the first of equals, and dict.fromkeys keeps the order of first sight.
        won += bool(votes) and max(dict.fromkeys(votes), key=votes.count) == "right"
    return Fraction(won, factorial(len(answers)) // factorial(len(answers) - k))


ANSWERS = st.sampled_from(["right", "1 rabbit", "2 rabbits", "3", None, "cut"])


@settings(max_examples=60)
@given(st.lists(ANSWERS, min_size=1, max_size=7), st.data())
def test_a_majority_vote_is_the_mean_over_all_choices_in_all_orders(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    traces = [answering(answer, sample=n) for n, answer in enumerate(answers)]
    assert majority_vote(iter(traces), k) == pytest.approx(float(voted(answers, k)), abs=1e-12)


@pytest.mark.parametrize(
    "answers, k, expected",
    [
        (["right", "1", "1"], 3, 0),
        (["right", "right", "1"], 3, 1),
        (["right", "1"], 2, 1 / 2),  # a tie
        (["right", "1", "2"], 3, 1 / 3),
        (["right", None, None], 3, 1),  # no answer is no vote
        (["right", "cut", "cut"], 3, 1),
        ([None, None], 2, 0),
        (["right", "2 Rabbits", "2  rabbits"], 3, 0),  # written alike
    ],
)
def test_majority_votes_worked_out_by_hand(answers, k, expected):
    traces = [answering(answer, sample=n) for n, answer in enumerate(answers)]
    assert majority_vote(traces, k) == pytest.approx(expected)
    other = [answering("right", "b", n) for n in range(k)]
    assert majority_vote([*other, *traces], k) == pytest.approx((1 + expected) / 2)


def test_one_vote_is_pass_at_1_and_64_samples_are_quick_and_exact():
    traces = [answering(["right", "1", "2", None][n % 4 if n % 3 else 0], sample=n) for n in range(64)]
    assert majority_vote(traces, 1) == pytest.approx(pass_at_k(traces, 1))
    assert majority_vote(traces, 64) == 1
    assert 0.9 < majority_vote(traces, 32) < 1
    scattered = [answering("right" if n < 4 else str(n), sample=n) for n in range(64)]
    assert majority_vote(scattered, 64) == 1
    # With two of four right ones among 32 the vote is won; one right one is a tie with 31 others.
    none, one = (comb(60, 32 - j) * comb(4, j) / comb(64, 32) for j in (0, 1))
    assert majority_vote(scattered, 32) == pytest.approx(1 - none - one + one / 32, abs=1e-12)


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [pass_at_k, majority_vote])
def test_too_few_samples_are_refused(function):
    with pytest.raises(ValueError, match="k is 0; expected a whole number, at least 1"):
        function(MIXED, 0)
    with pytest.raises(ValueError, match="k is 3, but problem 'b' has 2 traces; expected"):
        function(MIXED, 3)
    with pytest.raises(ValueError, match="at least one trace"):
        function([], 1)


def test_a_report_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one trace; got none"):
        trace_report([])


@pytest.mark.parametrize(
    ("traces", "message"),
    [
        ("traces.jsonl", "traces is 'traces.jsonl'; expected traces: call load_traces with it"),
        (Path("traces.jsonl"), "traces is 'traces.jsonl'"),
        (None, "traces is None; expected a list of Trace"),
        (["a text"], r"traces\[0\] is 'a text'; expected a Trace, as collect_traces and load_traces give"),
        ([{"text": "a"}], r"traces\[0\] is {'text': 'a'}"),
    ],
)
@pytest.mark.parametrize(
    "call",
    [filter_traces, trace_report, lambda some: pass_at_k(some, 1), lambda some: majority_vote(some, 1)],
)
def test_what_are_no_traces_is_said(call, traces, message):
    with pytest.raises(ValueError, match=message):
        call(traces)


def test_a_fraction_of_a_sample_is_refused():
    for call in (pass_at_k, majority_vote):
        with pytest.raises(ValueError, match="k is 1.5; expected a whole number, at least 1"):
            call([], 1.5)
