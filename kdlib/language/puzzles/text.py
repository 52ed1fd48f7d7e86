"""Puzzles in words, English and Chinese: what is asked, the answer, and solutions written step by step.

Two styles. "suppose" is the method of schools in China: suppose that all are chickens, and see how many feet
are missing. "equations" names the counts x and y, in the order of the question, and eliminates. Every step
of arithmetic is written `a op b = c` with op one of + − × ÷, so that `kdlib.language.answers.arithmetic` can
check it. In a chain, the passage of a cage ends when the animal is counted that gives heads to the next.
"""

from typing import Literal

from kdlib.language.problems import Problem
from kdlib.language.puzzles.puzzle import ANIMALS, Cage, Puzzle
from kdlib.language.puzzles.solve import solve

__all__ = ["Language", "Style", "answer_text", "problem", "statement", "written_solution"]

Language = Literal["en", "zh"]
Style = Literal["suppose", "equations"]


def statement(puzzle: Puzzle, language: Language = "en") -> str:
    """What is asked, in one line."""
    _check("language", language, ("en", "zh"))
    describe = _describe_en if language == "en" else _describe_zh
    links = [None, *(cage.animals[-1] for cage in puzzle.cages)]
    parts = [describe(cage, link) for cage, link in zip(puzzle.cages, links, strict=False)]
    chain = puzzle.kind == "chain"
    if language == "en":
        return " ".join(parts) + (" How many of each in the last?" if chain else " How many of each?")
    return "".join(parts) + ("最后一个笼子里各有几只？" if chain else "各有几只？")


def _describe_en(cage: Cage, link: str | None) -> str:
    """A cage; `link` is the animal of the cage before whose number it takes up."""
    holds = "holds {} and {}:".format(*cage.animals)
    feet = f"{cage.feet} {'foot' if cage.feet == 1 else 'feet'}"
    if link is None:
        return f"A cage {holds} {cage.heads} {_heads(cage.heads)} and {feet}."
    if cage.more:
        return f"Another {holds} {cage.more} more {_heads(cage.more)} than {link}, and {feet}."
    return f"Another {holds} as many heads as the {link}, and {feet}."


def _describe_zh(cage: Cage, link: str | None) -> str:
    names = "和".join(map(_zh, cage.animals))
    if link is None:
        return f"笼子里有{names}：共{cage.heads}个头，{cage.feet}只脚。"
    heads = f"头数比{_zh(link)}的只数多{cage.more}" if cage.more else f"头数和{_zh(link)}的只数相同"
    return f"另一个笼子里有{names}：{heads}，共{cage.feet}只脚。"


def _heads(number: int) -> str:
    return "head" if number == 1 else "heads"


def _zh(name: str) -> str:
    return ANIMALS[name].chinese


def answer_text(puzzle: Puzzle, language: Language = "en") -> str:
    """What the last cage holds, "6 chickens and 4 rabbits"; ValueError if there is no single answer."""
    _check("language", language, ("en", "zh"))
    counts = _counts(puzzle)[-1]
    if language == "en":
        return " and ".join(ANIMALS[name].counted(number) for name, number in counts.items())
    return "，".join(f"{_zh(name)}{number}只" for name, number in counts.items())


def _counts(puzzle: Puzzle) -> tuple[dict[str, int], ...]:
    solution = solve(puzzle)
    if solution.counts is None:
        raise ValueError(f"puzzle must have one answer; this one is {solution.status}: {solution.reason}")
    return solution.counts


def problem(puzzle: Puzzle, language: Language = "en") -> Problem:
    """The puzzle as a model is asked it, with the reference answer; the key is the same in both languages."""
    return Problem(puzzle.key, statement(puzzle, language), answer_text(puzzle, language))


def written_solution(
    puzzle: Puzzle, style: Style = "suppose", language: Language = "en", think: bool = True
) -> str:
    """What an assistant writes after the chat template's `<think>` and newline: steps, `</think>`, answer.

    Args:
        think: False leaves the thought empty, as Qwen3 does when it answers without reasoning.

    Raises:
        ValueError: if the puzzle has no single answer, or one to which no step leads (no heads, to share
            between animals of equal legs).
    """
    _check("style", style, ("suppose", "equations"))
    answer = answer_text(puzzle, language)
    thought = _thought(puzzle, style, language) if think else ""
    if language == "en":
        return f"{thought}\n</think>\n\nAnswer: {answer}."
    return f"{thought}\n</think>\n\n答案：{answer}。"


def _thought(puzzle: Puzzle, style: Style, language: Language) -> str:
    write = _suppose if style == "suppose" else _equations
    passages = []
    for cage, held in zip(puzzle.cages, _counts(puzzle), strict=True):
        heads = sum(held.values())
        few, many = cage.by_legs()
        if few.legs == many.legs:
            raise ValueError(
                "puzzle must be settled by its numbers for its solution to be written; "
                f"{few.name} and {many.name} have as many feet as each other"
            )
        if cage.more:
            equal = f"{heads - cage.more} + {cage.more} = {heads}"
            passages.append(f"{equal} {_heads(heads)}." if language == "en" else f"{equal}个头。")
        # The animal with more legs is counted first; if its number is the one that goes on, that will do.
        both = cage is puzzle.cages[-1] or cage.animals[-1] != many.name
        passages.append(write(cage, heads, held, both, language))
    return " ".join(passages) if language == "en" else "".join(passages).replace(" ", "")


def _suppose(cage: Cage, heads: int, held: dict[str, int], both: bool, language: Language) -> str:
    """Suppose all are of the animal with fewer legs: then feet are missing, and never too many."""
    few, many = cage.by_legs()
    of_few, of_many = held[few.name], held[many.name]
    base, gap = few.legs * heads, many.legs - few.legs
    missing = cage.feet - base
    if language == "en":
        text = (
            f"Suppose all are {few.name}: {heads} × {few.legs} = {base} feet, "
            f"{cage.feet} − {base} = {missing} missing, {missing} ÷ {gap} = {many.counted(of_many)}"
        )
        return f"{text}, {heads} − {of_many} = {few.counted(of_few)}." if both else f"{text}."
    text = (
        f"假设{heads}只全是{few.chinese}：{few.legs}×{heads}={base}只脚。还差{cage.feet}−{base}={missing}只脚。"
        f"每只{many.chinese}比{few.chinese}多{many.legs}−{few.legs}={gap}只脚。"
        f"{many.chinese}有{missing}÷{gap}={of_many}只"
    )
    return f"{text}，{few.chinese}有{heads}−{of_many}={of_few}只。" if both else f"{text}。"


def _equations(cage: Cage, heads: int, held: dict[str, int], both: bool, language: Language) -> str:
    """x and y as they are named in the question; the sum of heads is taken from that of feet."""
    few, many = cage.by_legs()
    letters = dict(zip(cage.animals, "xy", strict=True))
    x, y, of_few, of_many = letters[few.name], letters[many.name], held[few.name], held[many.name]
    base, gap = few.legs * heads, many.legs - few.legs
    missing = cage.feet - base
    terms = [f"{ANIMALS[name].legs}{letter}" for name, letter in letters.items() if ANIMALS[name].legs]
    lines = [f"x + y = {heads}", f"{' + '.join(terms)} = {cage.feet}"]
    if few.legs:  # feet that x + y have in either case
        lines += [f"{heads} × {few.legs} = {base}", f"{gap}{y} = {cage.feet} − {base} = {missing}"]
    lines.append(f"{y} = {missing} ÷ {gap} = {of_many}")
    if both:
        lines.append(f"{x} = {heads} − {of_many} = {of_few}")
    if language == "en":
        return ". ".join(lines) + "."
    named = "，".join(f"{_zh(name)}{letter}只" for name, letter in letters.items())
    return f"设{named}。" + "。".join(lines) + "。"


def _check(argument: str, value: str, allowed: tuple[str, str]) -> None:
    if value not in allowed:
        raise ValueError(f'{argument} must be "{allowed[0]}" or "{allowed[1]}"; got {value!r}')
