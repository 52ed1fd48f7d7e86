"""Puzzles in words: what is asked, the answer, and solutions written step by step in two styles.

"suppose" is the method of schools in China: suppose that all are chickens, and see how many feet are missing.
"equations" names the counts x, y, z, in the order of the question, and eliminates. Every step of arithmetic
is written `a op b = c` with op one of + − × ÷, so that a program can check it (`kdlib.language.answers.arithmetic`). In a
chain, the passage of a cage ends as soon as the animal is counted of which the next cage takes its heads.
English and Chinese.
"""

from typing import Literal

from kdlib.language.answers.final_answer import Problem
from kdlib.language.puzzles.puzzle import ANIMALS, Cage, Fact, Puzzle, count_of, listing
from kdlib.language.puzzles.solve import solve

__all__ = ["answer_text", "problem", "statement", "written_solution"]

Language = Literal["en", "zh"]
Style = Literal["suppose", "equations"]

LETTERS = "xyz"


def statement(puzzle: Puzzle, language: Language = "en") -> str:
    """What is asked, in one line.

    Raises:
        ValueError: for a language other than "en" and "zh".
    """
    _check_language(language)
    parts = []
    for position, cage in enumerate(puzzle.cages):
        if language == "en":
            parts.append(_cage_en(cage, puzzle.cages[position - 1] if position else None))
        else:
            parts.append(_cage_zh(cage, puzzle.cages[position - 1] if position else None))
    if language == "en":
        parts.append("How many of each in the last?" if puzzle.kind == "chain" else "How many of each?")
        return " ".join(parts)
    return "".join(parts) + ("最后一个笼子里各有几只？" if puzzle.kind == "chain" else "各有几只？")


def _cage_en(cage: Cage, before: Cage | None) -> str:
    feet = f"{cage.feet} {'foot' if cage.feet == 1 else 'feet'}"
    if before is not None:
        link = before.animals[-1]
        heads = f"as many heads as the {link}"
        if cage.more:
            heads = f"{cage.more} more {'head' if cage.more == 1 else 'heads'} than {link}"
        return f"Another holds {listing(cage.animals)}: {heads}, and {feet}."
    heads = f"{cage.heads} {'head' if cage.heads == 1 else 'heads'}"
    facts = f"{heads} and {feet}" if cage.fact is None else f"{heads}, {feet} and {_fact_en(cage.fact)}"
    return f"A cage holds {listing(cage.animals)}: {facts}."


def _fact_en(fact: Fact) -> str:
    if fact.more:
        more = ANIMALS[fact.first].singular if fact.more == 1 else fact.first
        return f"{fact.more} more {more} than {fact.second}"
    times = {1: "", 2: "twice "}.get(fact.times, f"{fact.times} times ")
    return f"{times}as many {fact.first} as {fact.second}"


def _cage_zh(cage: Cage, before: Cage | None) -> str:
    names = _listing_zh(cage)
    if before is not None:
        link = _zh(before.animals[-1])
        heads = f"头数比{link}的只数多{cage.more}" if cage.more else f"头数和{link}的只数相同"
        return f"另一个笼子里有{names}：{heads}，共{cage.feet}只脚。"
    fact = "" if cage.fact is None else f"，{_fact_zh(cage.fact)}"
    return f"笼子里有{names}：共{cage.heads}个头，{cage.feet}只脚{fact}。"


def _listing_zh(cage: Cage) -> str:
    names = [_zh(name) for name in cage.animals]
    return "、".join(names[:-1]) + "和" + names[-1]


def _fact_zh(fact: Fact) -> str:
    first, second = _zh(fact.first), _zh(fact.second)
    if fact.more:
        return f"{first}比{second}多{fact.more}只"
    return f"{first}和{second}一样多" if fact.times == 1 else f"{first}的只数是{second}的{fact.times}倍"


def _zh(name: str) -> str:
    return ANIMALS[name].chinese


def answer_text(puzzle: Puzzle, language: Language = "en") -> str:
    """What the last cage holds: "6 chickens and 4 rabbits", "鸡6只，兔4只".

    Raises:
        ValueError: if the puzzle has no single answer, or for a language other than "en" and "zh".
    """
    _check_language(language)
    return _answer(_counts(puzzle)[-1], language)


def _answer(counts: dict[str, int], language: Language) -> str:
    if language == "en":
        return listing([count_of(number, name) for name, number in counts.items()])
    return "，".join(f"{_zh(name)}{number}只" for name, number in counts.items())


def _counts(puzzle: Puzzle) -> tuple[dict[str, int], ...]:
    solution = solve(puzzle)
    if solution.status != "unique":
        raise ValueError(f"puzzle must have one answer; this one is {solution.status}: {solution.reason}")
    return solution.counts


def written_solution(
    puzzle: Puzzle, style: Style = "suppose", language: Language = "en", think: bool = True
) -> str:
    """What an assistant writes after the chat template's `<think>` and newline.

    Args:
        puzzle: with exactly one answer, whatever the numbers. A cage of three needs its third fact.
        style: "suppose" (all are of one kind) or "equations".
        language: "en" or "zh".
        think: whether the steps are written; without them the thought is empty, as in Qwen3's answers
            without reasoning.

    Returns:
        steps + "\\n</think>\\n\\n" + "Answer: 6 chickens and 4 rabbits."

    Raises:
        ValueError: if the puzzle has no single answer; if it has one only because its numbers are small (a
            third fact that is missing or says nothing new), for then no step leads to it; or for another
            style or language.
    """
    _check_language(language)
    if style not in ("suppose", "equations"):
        raise ValueError(f'style must be "suppose" or "equations"; got {style!r}')
    counts = _counts(puzzle)
    thought = ""
    if think:
        for cage in puzzle.cages:
            _check_steps(cage)
        write = _PASSAGES[style, puzzle.kind == "three", language]
        passages = []
        for position, (cage, held) in enumerate(zip(puzzle.cages, counts, strict=True)):
            heads = sum(held.values())
            if cage.more:
                passages.append(_more(heads - cage.more, cage.more, heads, language))
            # The animal with more legs is counted first; if its number is the one that goes on, that will do.
            both = position == len(puzzle.cages) - 1 or cage.animals[-1] != _by_legs(cage)[1]
            passages.append(write(cage, heads, held, both))
        thought = (" " if language == "en" else "").join(passages)
    end = "Answer: {}." if language == "en" else "答案：{}。"
    return f"{thought}\n</think>\n\n{end.format(_answer(counts[-1], language))}"


def _check_steps(cage: Cage) -> None:
    """Refuse a cage whose steps would divide by 0."""
    if len(cage.animals) == 2:
        settled = cage.legs[0] != cage.legs[1]
    else:
        settled = cage.fact is not None and cage.excess() != 0
    if not settled:
        raise ValueError(
            f"puzzle must be settled by its facts for its solution to be written; {listing(cage.animals)} "
            f"with fact = {cage.fact} have one answer only because the numbers are small"
        )


def problem(puzzle: Puzzle, language: Language = "en") -> Problem:
    """The puzzle as a model is asked it, with the reference answer; the key is the same in both languages."""
    return Problem(puzzle.key, statement(puzzle, language), answer_text(puzzle, language))


def _more(before: int, more: int, heads: int, language: Language) -> str:
    if language == "zh":
        return f"{before}+{more}={heads}个头。"
    return f"{before} + {more} = {heads} {'head' if heads == 1 else 'heads'}."


def _by_legs(cage: Cage) -> tuple[str, str]:
    """The two animals of a cage, fewer legs first: if all were these, feet would be missing, not over."""
    few, many = sorted(cage.animals, key=lambda name: ANIMALS[name].legs)
    return few, many


def _suppose_pair_en(cage: Cage, heads: int, held: dict[str, int], both: bool) -> str:
    few, many = _by_legs(cage)
    l, m = ANIMALS[few].legs, ANIMALS[many].legs  # noqa: E741
    base, gap = l * heads, m - l
    missing = cage.feet - base
    return (
        f"Suppose all are {few}: {heads} × {l} = {base} feet, {cage.feet} − {base} = {missing} missing, "
        f"{missing} ÷ {gap} = {count_of(held[many], many)}"
        + (f", {heads} − {held[many]} = {count_of(held[few], few)}." if both else ".")
    )


def _suppose_pair_zh(cage: Cage, heads: int, held: dict[str, int], both: bool) -> str:
    few, many = _by_legs(cage)
    l, m = ANIMALS[few].legs, ANIMALS[many].legs  # noqa: E741
    base, gap = l * heads, m - l
    missing = cage.feet - base
    return (
        f"假设{heads}只全是{_zh(few)}：{l}×{heads}={base}只脚。还差{cage.feet}−{base}={missing}只脚。"
        f"每只{_zh(many)}比{_zh(few)}多{m}−{l}={gap}只脚。"
        f"{_zh(many)}有{missing}÷{gap}={held[many]}只"
        + (f"，{_zh(few)}有{heads}−{held[many]}={held[few]}只。" if both else "。")
    )


def _terms(*pairs: tuple[int, str]) -> str:
    """2x + 4y, by letter; what is multiplied by 0 is left out, and a factor of 1."""
    pairs = sorted(pairs, key=lambda pair: pair[1])
    return " + ".join(f"{'' if factor == 1 else factor}{letter}" for factor, letter in pairs if factor)


def _equations_pair(cage: Cage, heads: int, held: dict[str, int], both: bool) -> list[str]:
    """The lines after the letters are introduced, the same in both languages."""
    letter = dict(zip(cage.animals, LETTERS, strict=False))
    few, many = _by_legs(cage)
    l, m, feet = ANIMALS[few].legs, ANIMALS[many].legs, cage.feet  # noqa: E741
    lines = [
        f"{_terms(*((1, letter[name]) for name in cage.animals))} = {heads}",
        f"{_terms(*((ANIMALS[name].legs, letter[name]) for name in cage.animals))} = {feet}",
    ]
    missing, gap = feet, m
    if l:
        base, missing, gap = l * heads, feet - l * heads, m - l
        lines.append(f"{heads} × {l} = {base}")  # feet that x + y have in either case
        lines.append(f"{gap}{letter[many]} = {feet} − {base} = {missing}")
    lines.append(f"{letter[many]} = {missing} ÷ {gap} = {held[many]}")
    if both:
        lines.append(f"{letter[few]} = {heads} − {held[many]} = {held[few]}")
    return lines


class _Groups:
    """A cage of three as a cage of groups and the third animal, step by step.

    Of first = times × second + more, the surplus is set aside; what remains of the first and the second is
    so many groups of one second with `times` of the first.
    """

    def __init__(self, cage: Cage, heads: int, held: dict[str, int]) -> None:
        fact = cage.fact
        self.first, self.second, self.third = fact.first, fact.second, cage.third()
        self.times, self.more = fact.times, fact.more
        self.first_legs, self.second_legs, self.third_legs = (
            ANIMALS[name].legs for name in (self.first, self.second, self.third)
        )
        self.more_feet = self.more * self.first_legs
        self.heads, self.feet = heads - self.more, cage.feet - self.more_feet  # without the surplus
        self.size = 1 + self.times
        self.times_feet = self.times * self.first_legs
        self.group_feet = self.second_legs + self.times_feet
        self.third_feet = self.third_legs * self.size  # of as many heads of the third
        self.base = self.third_legs * self.heads
        self.fewer = self.group_feet < self.third_feet
        # Which is subtracted from which, so that nothing becomes negative.
        self.feet_order = (self.base, self.feet) if self.fewer else (self.feet, self.base)
        self.group_order = (
            (self.third_feet, self.group_feet) if self.fewer else (self.group_feet, self.third_feet)
        )
        self.missing = self.feet_order[0] - self.feet_order[1]
        self.gap = self.group_order[0] - self.group_order[1]
        self.groups = held[self.second]
        self.held = held
        self.both = held[self.first] + held[self.second]


def _suppose_three_en(cage: Cage, heads: int, held: dict[str, int], both: bool) -> str:
    g = _Groups(cage, heads, held)
    lines = []
    if g.more:
        lines += [
            f"Set {g.more} {ANIMALS[g.first].singular if g.more == 1 else g.first} aside: "
            f"{heads} − {g.more} = {g.heads} heads",
            f"{g.first_legs} × {g.more} = {g.more_feet}",
            f"{cage.feet} − {g.more_feet} = {g.feet} feet",
        ]
    lines += [
        f"Group each {ANIMALS[g.second].singular} with {count_of(g.times, g.first)}: "
        f"1 + {g.times} = {g.size} heads",
        f"{g.first_legs} × {g.times} = {g.times_feet}",
        f"{g.second_legs} + {g.times_feet} = {g.group_feet} feet",
        f"Suppose all {g.heads} are {g.third}: {g.third_legs} × {g.heads} = {g.base} feet",
        f"{g.feet_order[0]} − {g.feet_order[1]} = {g.missing} are {'too many' if g.fewer else 'missing'}",
        f"{g.size} {g.third} have {g.third_legs} × {g.size} = {g.third_feet}",
        f"A group has {g.group_order[0]} − {g.group_order[1]} = {g.gap} {'fewer' if g.fewer else 'more'}",
        f"{g.missing} ÷ {g.gap} = {g.groups} {'group' if g.groups == 1 else 'groups'}, "
        f"so {count_of(g.groups, g.second)}",
        f"{g.groups} + {g.more} = {count_of(held[g.first], g.first)}"
        if g.more
        else f"{g.times} × {g.groups} = {count_of(held[g.first], g.first)}",
        f"{g.groups} + {held[g.first]} = {g.both}",
        f"{heads} − {g.both} = {count_of(held[g.third], g.third)}",
    ]
    return ". ".join(lines) + "."


def _suppose_three_zh(cage: Cage, heads: int, held: dict[str, int], both: bool) -> str:
    g = _Groups(cage, heads, held)
    first, second, third = _zh(g.first), _zh(g.second), _zh(g.third)
    text = ""
    if g.more:
        text = (
            f"先去掉{g.more}只{first}：剩{heads}−{g.more}={g.heads}个头。"
            f"{g.first_legs}×{g.more}={g.more_feet}，剩{cage.feet}−{g.more_feet}={g.feet}只脚。"
        )
    last = f"{g.groups}+{g.more}" if g.more else f"{g.times}×{g.groups}"
    return text + (
        f"把1只{second}和{g.times}只{first}看作一组：1+{g.times}={g.size}个头，"
        f"{g.first_legs}×{g.times}={g.times_feet}，{g.second_legs}+{g.times_feet}={g.group_feet}只脚。"
        f"假设{g.heads}只全是{third}：{g.third_legs}×{g.heads}={g.base}只脚。"
        f"{'多了' if g.fewer else '还差'}{g.feet_order[0]}−{g.feet_order[1]}={g.missing}只脚。"
        f"{g.size}只{third}有{g.third_legs}×{g.size}={g.third_feet}只脚。"
        f"每组{'少' if g.fewer else '多'}{g.group_order[0]}−{g.group_order[1]}={g.gap}只脚。"
        f"共{g.missing}÷{g.gap}={g.groups}组，{second}有{g.groups}只，{first}有{last}={held[g.first]}只。"
        f"{g.groups}+{held[g.first]}={g.both}，{third}有{heads}−{g.both}={held[g.third]}只。"
    )


def _equations_three(cage: Cage, heads: int, held: dict[str, int], both: bool) -> list[str]:
    g = _Groups(cage, heads, held)
    letter = dict(zip(cage.animals, LETTERS, strict=True))
    x, y, z = letter[g.second], letter[g.third], letter[g.first]  # x is kept, z is replaced, y eliminated
    lines = [
        f"{_terms(*((1, letter[name]) for name in cage.animals))} = {heads}",
        f"{_terms(*((ANIMALS[name].legs, letter[name]) for name in cage.animals))} = {cage.feet}",
        f"{z} = {x} + {g.more}" if g.more else f"{z} = {_terms((g.times, x))}",
    ]
    if g.more:
        lines += [
            f"{heads} − {g.more} = {g.heads}",
            f"{g.first_legs} × {g.more} = {g.more_feet}",
            f"{cage.feet} − {g.more_feet} = {g.feet}",
        ]
    lines += [
        f"1 + {g.times} = {g.size}, so {_terms((g.size, x), (1, y))} = {g.heads}",
        f"{g.first_legs} × {g.times} = {g.times_feet}",
        f"{g.second_legs} + {g.times_feet} = {g.group_feet}, "
        f"so {_terms((g.group_feet, x), (g.third_legs, y))} = {g.feet}",
    ]
    if g.third_legs:
        lines += [
            f"{g.third_legs} × {g.size} = {g.third_feet}",
            f"{g.third_legs} × {g.heads} = {g.base}, "
            f"so {_terms((g.third_feet, x), (g.third_legs, y))} = {g.base}",
            f"{g.group_order[0]} − {g.group_order[1]} = {g.gap}",
            f"{g.feet_order[0]} − {g.feet_order[1]} = {g.missing}, so {g.gap}{x} = {g.missing}",
        ]
    lines += [
        f"{x} = {g.missing} ÷ {g.gap} = {g.groups}",
        f"{z} = {g.groups} + {g.more} = {held[g.first]}"
        if g.more
        else f"{z} = {g.times} × {g.groups} = {held[g.first]}",
        f"{g.groups} + {held[g.first]} = {g.both}",
        f"{y} = {heads} − {g.both} = {held[g.third]}",
    ]
    return lines


def _equations_en(lines: list[str], cage: Cage) -> str:
    if len(cage.animals) == 2:  # x and y as they are named in the question
        return ". ".join(lines) + "."
    letters = listing([f"{letter} {name}" for letter, name in zip(LETTERS, cage.animals, strict=False)])
    return f"Let {letters}. " + ". ".join(lines) + "."


def _equations_zh(lines: list[str], cage: Cage) -> str:
    letters = "，".join(f"{_zh(name)}{letter}只" for letter, name in zip(LETTERS, cage.animals, strict=False))
    text = "。".join(lines).replace(", so ", "，所以").replace(" ", "")
    return f"设{letters}。{text}。"


# Called with a cage, its heads, what it holds, and whether both of its numbers are needed. Of a cage of three
# all always are: no other follows it.
_PASSAGES = {
    ("suppose", False, "en"): _suppose_pair_en,
    ("suppose", False, "zh"): _suppose_pair_zh,
    ("suppose", True, "en"): _suppose_three_en,
    ("suppose", True, "zh"): _suppose_three_zh,
    ("equations", False, "en"): lambda cage, *known: _equations_en(_equations_pair(cage, *known), cage),
    ("equations", False, "zh"): lambda cage, *known: _equations_zh(_equations_pair(cage, *known), cage),
    ("equations", True, "en"): lambda cage, *known: _equations_en(_equations_three(cage, *known), cage),
    ("equations", True, "zh"): lambda cage, *known: _equations_zh(_equations_three(cage, *known), cage),
}


def _check_language(language: str) -> None:
    if language not in ("en", "zh"):
        raise ValueError(f'language must be "en" or "zh"; got {language!r}')
