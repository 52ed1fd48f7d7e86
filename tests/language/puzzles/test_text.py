"""What is written is checked from the text alone: the statement is read back, every equation is evaluated."""

import random
import re
from operator import add, mul, sub

import pytest

from kdlib.language.problems import Problem
from kdlib.language.puzzles.make import make_puzzle
from kdlib.language.puzzles.puzzle import ANIMALS, Cage, Puzzle
from kdlib.language.puzzles.text import answer_text, problem, statement, written_solution

PAIR = Puzzle((Cage(("chickens", "rabbits"), 10, 28),))
CHAIN = Puzzle((*PAIR.cages, Cage(("ants", "spiders"), None, 28)))
RISING = Puzzle((*PAIR.cages, Cage(("ants", "spiders"), None, 46, more=3)))

NAMES = {word: a.name for a in ANIMALS.values() for word in (a.name, a.singular, a.chinese)}
ANY = "|".join(sorted(NAMES, key=len, reverse=True))
STEP = re.compile(r"(\d+) ?([+−×÷]) ?(\d+) ?= ?(\d+)")


def divide(a, b):
    assert a % b == 0
    return a // b


OPERATIONS = {"+": add, "−": sub, "×": mul, "÷": divide}


def puzzles(cages, more):
    """Animals named in any order, each of which may give the heads of the next cage."""
    rng = random.Random(f"{cages} {more}")
    for _ in range(60):
        told, heads, link = [], rng.randint(cages + 1, 400), None
        for left in range(cages, 0, -1):
            animals = rng.sample([name for name in ANIMALS if name != link], 2)
            first, second = (ANIMALS[name].legs for name in animals)
            if first == second:
                break
            besides = rng.choice((1, 2, 40)) if more and told else 0
            heads += besides
            last = rng.randint(left, heads - 1)
            feet = first * (heads - last) + second * last
            told.append(Cage(tuple(animals), None if told else heads, feet, more=besides))
            heads, link = last, animals[1]
        else:
            yield Puzzle(tuple(told))


def read_counts(text):
    """Numbers of animals that a text names: "6 chickens", "鸡6只"."""
    english = re.findall(rf"(\d+) ({ANY})\b", text)
    chinese = [(count, name) for name, count in re.findall(rf"({ANY})(\d+)只", text)]
    return {NAMES[name]: int(count) for count, name in english + chinese}


def conditions(text, language):
    """What a statement says about each cage: (names, heads, animal that gives others, feet)."""
    if language == "en":
        parts = re.findall(r"(?:A cage|Another) holds (.*?): (.*?)\.", text)
    else:
        parts = re.findall(r"笼子里有(.*?)：(.*?)。", text)
    read = []
    for names, facts in parts:
        names = [NAMES[name] for name in re.findall(ANY, names)]
        link = re.search(
            rf"as many heads as the ({ANY}),|(\d+) more heads? than ({ANY}),|头数和({ANY})的只数相同，"
            rf"|头数比({ANY})的只数多(\d+)，",
            facts,
        )
        if link:
            heads, link_name = int(link[2] or link[6] or 0), NAMES[link[1] or link[3] or link[4] or link[5]]
        else:
            heads, link_name = int(re.search(r"(\d+)(?: head|个头)", facts)[1]), None
        feet = int(re.search(r"(\d+)(?: feet| foot|只脚)", facts)[1])
        read.append((names, heads, link_name, feet))
    return read


def passages_of(thought, style, cages):
    """The part of a thought that is about each cage."""
    start = "Suppose all|假设" if style == "suppose" else r"x \+ y =|设"
    return re.split(rf"(?={start})", thought)[1:]


def letters_of(passage, names):
    """Which animal is x, which y: as the passage says, else as the question named them."""
    said = re.match(r"设(.*?)。", passage)
    if not said:
        return dict(zip("xy", names, strict=True))
    return {letter: NAMES[name] for name, letter in re.findall(rf"({ANY})([xy])只", said[0])}


def held_by_thought(thought, style, cages):
    """The counts that the passage of each cage finds, read from the text: not all of them but in the last."""
    held = []
    for passage, (names, *_) in zip(passages_of(thought, style, cages), cages, strict=True):
        if style == "equations":
            final = dict(re.findall(r"(?<!\d)([xy]) ?= ?[^=.。]*= ?(\d+)(?=[.。])", passage))
            found = [(final[x], name) for x, name in letters_of(passage, names).items() if x in final]
        else:
            found = re.findall(rf"= (\d+) ({ANY})\b", passage)
            found += [(n, name) for name, n in re.findall(rf"({ANY})有(?:[\d+−×÷]*=)?(\d+)只(?!脚)", passage)]
        held.append({NAMES[name]: int(count) for count, name in found})
    return held


def check_equations(thought, cages, held):
    """Both sides of every = are equal, x and y being what was found; returns how many were checked."""
    checked = 0
    passages = passages_of(thought, "equations", cages)
    for passage, (names, *_), counts in zip(passages, cages, held, strict=True):
        values = {letter: counts[name] for letter, name in letters_of(passage, names).items()}
        sentences = re.split(r"[.。] ?", re.sub(r"^设.*?。", "", passage))
        for sentence in filter(None, sentences):
            sides = [value_of(side, values) for side in sentence.split("=")]
            assert len(sides) > 1 and len(set(sides)) == 1, sentence
            checked += 1
    return checked


def value_of(expression, values):
    tokens = re.findall(r"\d+|[xy]|[+−×÷]", expression)
    result, operation, factor = None, None, None
    for token in [*tokens, "+"]:
        if token in OPERATIONS:
            result = factor if operation is None else OPERATIONS[operation](result, factor)
            operation, factor = token, None
        else:
            number = values[token] if token in values else int(token)
            factor = number if factor is None else factor * number  # 2x
    return result


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("style", ["suppose", "equations"])
@pytest.mark.parametrize(("cages", "more"), [(1, False), (2, False), (2, True), (4, False), (4, True)])
def test_every_step_is_true_and_leads_to_the_answer(cages, more, style, language):
    for puzzle in puzzles(cages, more):
        text, solution = statement(puzzle, language), written_solution(puzzle, style, language)
        thought, answer = solution.split("\n</think>\n\n")
        told = conditions(text, language)
        held = held_by_thought(thought, style, told)
        assert len(held) == len(puzzle.cages)

        # The counts fit everything that the statement says.
        sums = []
        for position, ((names, heads, link, feet), counts) in enumerate(zip(told, held, strict=True)):
            assert (link is None) == (position == 0)
            if link:
                assert link == told[position - 1][0][-1]  # the last of the cage before, as that was told
                assert (heads > 0) == more
                if heads:
                    sums.append((held[position - 1][link], "+", heads, held[position - 1][link] + heads))
                heads += held[position - 1][link]
            legs = {name: ANIMALS[name].legs for name in names}
            if position + 1 < len(told) and names[-1] == max(legs, key=legs.get):
                assert list(counts) == [names[-1]]  # what the next cage needs, and no more
                counts[names[0]] = heads - counts[names[-1]]
            assert sorted(counts) == sorted(names)
            assert sum(counts.values()) == heads
            assert sum(ANIMALS[name].legs * count for name, count in counts.items()) == feet
            assert min(counts.values()) >= 1
        reference = answer_text(puzzle, language)
        assert read_counts(answer) == read_counts(reference) == held[-1]
        assert answer == (f"Answer: {reference}." if language == "en" else f"答案：{reference}。")

        # Every step is true, and made of numbers that were known before.
        known = {*map(int, re.findall(r"\d+", text))}
        for names, *_ in told:
            legs = [ANIMALS[name].legs for name in names]
            known |= {*legs, max(legs) - min(legs)}
        steps = [(int(a), operation, int(b), int(c)) for a, operation, b, c in STEP.findall(thought)]
        assert len(steps) > len(told)
        for left, operation, right, result in steps:
            assert result == OPERATIONS[operation](left, right)
            assert {left, right} <= known
            known.add(result)
        assert sum(operation != "+" for _, operation, *_ in steps) == len(re.findall("[−×÷]", thought))
        assert [step for step in steps if step[1] == "+"] == sums
        if style == "equations":
            assert check_equations(thought, told, held) > 3 * len(told)


def test_english_is_grammatical():
    one, many = "|".join(animal.singular for animal in ANIMALS.values()), "|".join(ANIMALS)
    wrong = re.compile(
        rf"\b1 (?:more )?(?:{many}|heads)\b|\b(?:[02-9]|\d\d+) (?:more )?(?:{one}|head)\b"
        r"|\bA [aeiou]|\bAn [^aeiou]|  |\.\.| \."
    )
    rng = random.Random(0)
    drawn = [make_puzzle(kind, rng=rng, heads=(2, 12)) for kind in ("pair", "chain") * 150]
    assert sum("1 more head than" in statement(puzzle) for puzzle in drawn) > 10
    for puzzle in drawn:
        for text in (statement(puzzle), written_solution(puzzle), written_solution(puzzle, "equations")):
            assert not wrong.search(text), text


def test_the_first_puzzle():
    assert statement(PAIR) == "A cage holds chickens and rabbits: 10 heads and 28 feet. How many of each?"
    assert answer_text(PAIR) == "6 chickens and 4 rabbits"
    assert written_solution(PAIR) == (
        "Suppose all are chickens: 10 × 2 = 20 feet, 28 − 20 = 8 missing, 8 ÷ 2 = 4 rabbits, "
        "10 − 4 = 6 chickens.\n</think>\n\nAnswer: 6 chickens and 4 rabbits."
    )
    assert written_solution(PAIR, "equations") == (
        "x + y = 10. 2x + 4y = 28. 10 × 2 = 20. 2y = 28 − 20 = 8. "
        "y = 8 ÷ 2 = 4. x = 10 − 4 = 6.\n</think>\n\nAnswer: 6 chickens and 4 rabbits."
    )
    assert statement(PAIR, "zh") == "笼子里有鸡和兔：共10个头，28只脚。各有几只？"
    assert answer_text(PAIR, "zh") == "鸡6只，兔4只"
    assert written_solution(PAIR, language="zh") == (
        "假设10只全是鸡：2×10=20只脚。还差28−20=8只脚。每只兔比鸡多4−2=2只脚。"
        "兔有8÷2=4只，鸡有10−4=6只。\n</think>\n\n答案：鸡6只，兔4只。"
    )


def test_a_chain():
    assert statement(CHAIN) == (
        "A cage holds chickens and rabbits: 10 heads and 28 feet. Another holds ants and spiders: as many "
        "heads as the rabbits, and 28 feet. How many of each in the last?"
    )
    assert answer_text(CHAIN) == "2 ants and 2 spiders"
    assert written_solution(CHAIN).split("\n")[0] == (
        "Suppose all are chickens: 10 × 2 = 20 feet, 28 − 20 = 8 missing, 8 ÷ 2 = 4 rabbits. "
        "Suppose all are ants: 4 × 6 = 24 feet, 28 − 24 = 4 missing, 4 ÷ 2 = 2 spiders, 4 − 2 = 2 ants."
    )
    # The animal with fewer legs goes on: it is counted too.
    first = Cage(("rabbits", "chickens"), 10, 28)
    assert written_solution(Puzzle((first, Cage(("ants", "spiders"), None, 40)))).split("\n")[0] == (
        "Suppose all are chickens: 10 × 2 = 20 feet, 28 − 20 = 8 missing, 8 ÷ 2 = 4 rabbits, "
        "10 − 4 = 6 chickens. "
        "Suppose all are ants: 6 × 6 = 36 feet, 40 − 36 = 4 missing, 4 ÷ 2 = 2 spiders, 6 − 2 = 4 ants."
    )


def test_a_chain_with_heads_besides():
    assert statement(RISING) == (
        "A cage holds chickens and rabbits: 10 heads and 28 feet. Another holds ants and spiders: 3 more "
        "heads than rabbits, and 46 feet. How many of each in the last?"
    )
    assert statement(RISING, "zh") == (
        "笼子里有鸡和兔：共10个头，28只脚。另一个笼子里有蚂蚁和蜘蛛：头数比兔的只数多3，共46只脚。"
        "最后一个笼子里各有几只？"
    )
    assert written_solution(RISING) == (
        "Suppose all are chickens: 10 × 2 = 20 feet, 28 − 20 = 8 missing, 8 ÷ 2 = 4 rabbits. "
        "4 + 3 = 7 heads. "
        "Suppose all are ants: 7 × 6 = 42 feet, 46 − 42 = 4 missing, 4 ÷ 2 = 2 spiders, 7 − 2 = 5 ants."
        "\n</think>\n\nAnswer: 5 ants and 2 spiders."
    )
    assert written_solution(RISING, "equations") == (
        "x + y = 10. 2x + 4y = 28. 10 × 2 = 20. 2y = 28 − 20 = 8. y = 8 ÷ 2 = 4. 4 + 3 = 7 heads. "
        "x + y = 7. 6x + 8y = 46. 7 × 6 = 42. 2y = 46 − 42 = 4. "
        "y = 4 ÷ 2 = 2. x = 7 − 2 = 5.\n</think>\n\nAnswer: 5 ants and 2 spiders."
    )
    assert written_solution(RISING, language="zh") == (
        "假设10只全是鸡：2×10=20只脚。还差28−20=8只脚。每只兔比鸡多4−2=2只脚。兔有8÷2=4只。4+3=7个头。"
        "假设7只全是蚂蚁：6×7=42只脚。还差46−42=4只脚。每只蜘蛛比蚂蚁多8−6=2只脚。"
        "蜘蛛有4÷2=2只，蚂蚁有7−2=5只。\n</think>\n\n答案：蚂蚁5只，蜘蛛2只。"
    )
    assert written_solution(RISING, "equations", "zh") == (
        "设鸡x只，兔y只。x+y=10。2x+4y=28。10×2=20。2y=28−20=8。y=8÷2=4。4+3=7个头。"
        "设蚂蚁x只，蜘蛛y只。x+y=7。6x+8y=46。7×6=42。2y=46−42=4。y=4÷2=2。x=7−2=5。"
        "\n</think>\n\n答案：蚂蚁5只，蜘蛛2只。"
    )
    # No rabbit, one ant.
    none = Puzzle((Cage(("chickens", "rabbits"), 10, 20), Cage(("ants", "spiders"), None, 6, more=1)))
    assert "1 more head than rabbits, and 6 feet" in statement(none)
    assert "0 ÷ 2 = 0 rabbits. 0 + 1 = 1 head. Suppose all are ants: 1 × 6" in written_solution(none)
    assert "兔有0÷2=0只。0+1=1个头。" in written_solution(none, language="zh")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_without_a_thought(language):
    answer = {"en": "Answer: 6 chickens and 4 rabbits.", "zh": "答案：鸡6只，兔4只。"}[language]
    for style in ("suppose", "equations"):
        assert written_solution(PAIR, style, language, think=False) == f"\n</think>\n\n{answer}"


def test_problem_has_one_key_in_both_languages():
    english, chinese = problem(PAIR), problem(PAIR, "zh")
    assert english == Problem(PAIR.key, statement(PAIR), "6 chickens and 4 rabbits")
    assert chinese == Problem(PAIR.key, statement(PAIR, "zh"), "鸡6只，兔4只")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statement(PAIR, "fr"), 'language must be "en" or "zh"; got \'fr\''),
        (lambda: answer_text(PAIR, None), "language must be"),
        (lambda: written_solution(PAIR, language="de"), "language must be"),
        (lambda: written_solution(PAIR, "guess"), 'style must be "suppose" or "equations"; got \'guess\''),
        (lambda: answer_text(Puzzle((Cage(("chickens", "rabbits"), 10, 27),))), "impossible.*27 is odd"),
        (lambda: written_solution(Puzzle((Cage(("dogs", "rabbits"), 2, 8),))), "ambiguous.*4 feet each"),
        (
            lambda: written_solution(
                Puzzle((Cage(("chickens", "rabbits"), 3, 6), Cage(("ants", "beetles"), None, 0)))
            ),
            "settled by its numbers.*ants and beetles",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
