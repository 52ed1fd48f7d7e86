"""The final answer in a model's text, and whether it is right.

Where an answer is looked for (`final_answer`), first that is found:

1. Thought: only what follows the last `</think>` counts, for a thought may try answers and drop them. A
   text with `<think>` and nothing that closes it holds no answer. A text with neither is read as a whole:
   it is a reference, or the text of a model that writes no thoughts. (R1's template writes `<think>` into
   the prompt: put `"<think>\\n"` before a completion, and one cut off inside its thought has no answer.)
2. The last complete `\\boxed{…}`, braces nested at will.
3. The last `#### …` (GSM8K) that reads as a number, counts or a formula; other such lines are headings.
4. The first sentence after the last "Answer:", "the answer is", "答案:" or "答案是", also when it stands in
   the next line.
5. The text itself when it is nothing but a number, counts or a formula.

How two answers are compared (`verify_answer`), first that applies to the reference:

1. Counts such as "6 chickens and 4 rabbits": as a mapping from names to numbers, all of it.
2. Numbers: exactly, as fractions. Different units are different answers; a unit that one side leaves out
   is not missed; 50% is 50 (percent) or 1/2.
3. Words: as words, apart from case and blanks.
4. Everything else is mathematics in LaTeX, which math-verify compares (`kdlib.reasoning.latex`).

No text is ever evaluated as code, and the cost is bounded whatever the text: only the last `SEARCHED`
characters are searched, and an answer has at most `LONGEST` characters.
"""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

from kdlib.reasoning.cages import ANIMALS
from kdlib.reasoning.characters import plain
from kdlib.reasoning.latex import same_mathematics
from kdlib.reasoning.steps import Step, arithmetic_steps, first_wrong_step

__all__ = [
    "LONGEST", "SEARCHED", "Problem", "Step",
    "arithmetic_steps", "final_answer", "first_wrong_step", "has_format", "verify_answer",
]  # fmt: skip

SEARCHED, LONGEST = 100_000, 1_000
_TRIES = 50  # answers looked at, from the last one backwards, before a text counts as one without
_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Problem:
    """What a model is asked, and the reference answer.

    Attributes:
        key: identity, so that no problem is both trained on and tested.
        statement: the user's turn.
        answer: anything that `verify_answer` takes as a reference: "6 chickens and 4 rabbits", "1,234",
            "\\frac{1}{2}", or a whole GSM8K solution with its "#### 1,234".
    """

    key: str
    statement: str
    answer: str


def final_answer(text: str) -> str | None:
    """The answer that a text gives, as it is written; None where there is none.

    Order of precedence: see the module's docstring. Cuts the characters around an answer that do not
    belong to it: blanks, Markdown's emphasis, the full stop.

    Args:
        text: a completion, a reference solution or a bare answer.
    """
    text = _after_thought(text)
    if text is None:
        return None
    text = text[-SEARCHED:].replace("\r\n", "\n")
    for found in (_boxed(text), _after_hashes(text), _after_cue(text), _bare(text)):
        if found is not None:
            return found
    return None


def has_format(text: str) -> bool:
    """Whether a completion closes its thought once, opens none but at its beginning, and then answers.

    Args:
        text: the completion, with the opening `<think>` or without it (where the template wrote it).
    """
    if text.count(_CLOSE) != 1 or text.count(_OPEN) > 1:
        return False
    if _OPEN in text and not text.lstrip().startswith(_OPEN):
        return False
    return final_answer(text) is not None


def verify_answer(text: str, reference: str) -> bool:
    """Whether the text's final answer is the reference's.

    Args:
        text: a completion or an answer, see `final_answer`. No answer is a wrong answer.
        reference: an answer, or a text that gives one.

    Raises:
        ValueError: for a reference that says nothing.
        ModuleNotFoundError: where mathematics in LaTeX has to be compared and math-verify is missing.
    """
    expected = final_answer(reference)
    if expected is None:
        expected = reference.strip()
    if not expected or len(expected) > LONGEST:
        raise ValueError(
            f"reference: expected an answer of 1 to {LONGEST} characters, got {expected[:40]!r}"
            f" ({len(expected)} characters); give the answer alone, or after 'Answer:'"
        )
    answer = final_answer(text)
    return answer is not None and _same(answer, expected)


def _same(answer: str, expected: str) -> bool:
    counts = _counts(expected)
    if counts is not None:
        return _same_counts(_counts(answer), counts)
    number, other = _number(expected), _number(answer)
    if number is not None and other is not None:
        return _same_number(other, number)
    if _words(answer) == _words(expected):
        return True
    if not (_is_formula(answer) and _is_formula(expected)):
        return False
    return same_mathematics(answer, expected)


# Where an answer stands


def _after_thought(text: str) -> str | None:
    close, opened = text.rfind(_CLOSE), text.rfind(_OPEN)
    if opened > close:
        return None
    return text if close < 0 else text[close + len(_CLOSE) :]


_BRACES = re.compile(r"\\(?:boxed|fbox)\s*+\{|\\(?s:.)|[{}]")
_UNBRACED = re.compile(r"\\(?:boxed|fbox)[ \t]++([^\s{}$\\]{1,40}+)")


def _boxed(text: str) -> str | None:
    """One pass with a stack, so that any number of boxes left open costs no more than one."""
    open_braces, last = [], None
    for brace in _BRACES.finditer(text) if "\\boxed" in text or "\\fbox" in text else ():
        if brace[0] == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None:
                last = start, brace.start()
        elif brace[0][-1] == "{" and brace[0] != "\\{":
            open_braces.append(brace.end() if brace[0] != "{" else None)
    unbraced = _last(_UNBRACED.finditer(text))
    if unbraced is not None and (last is None or unbraced.start() > last[1]):
        return _trimmed(unbraced[1])
    if last is None or last[1] - last[0] > LONGEST:
        return None
    inner = _trimmed(text[slice(*last)])
    return inner if inner is None else _boxed(inner) or inner


def _last(found: Iterator[re.Match]) -> re.Match | None:
    return next(iter(deque(found, maxlen=1)), None)


def _after_hashes(text: str) -> str | None:
    lines = (line.rpartition("####")[2] for line in reversed(text.split("\n")) if "####" in line)
    for line in islice(lines, _TRIES):
        content = _trimmed(line) if len(line) <= LONGEST else None
        if content is not None and _is_answer(content):
            return content
    return None


_CUE = re.compile(
    r"(?:\banswer(?: to [^.:\n]{1,60}?)?(?:\s{1,3}(?:is|are)\b\s{0,3}[:：]?|\s{0,3}[*_]{0,3}\s{0,3}[:：=])"
    r"|答案?\s{0,3}[*_]{0,3}\s{0,3}(?:[:：是为]))[*_\s]{0,20}",
    re.IGNORECASE,
)
# The end of a sentence; a point inside a number is none, nor is the sign of a factorial.
_SENTENCE = re.compile(r"([^\n]*?)(?:(?:[.?]|(?<=[A-Za-z]{2})!)(?=\s|\*|\Z)|。|\n|\Z)")


def _after_cue(text: str) -> str | None:
    for cue in islice(reversed(list(_CUE.finditer(text))), _TRIES):
        sentence = _SENTENCE.match(text, cue.end(), cue.end() + LONGEST + 1)
        content = _trimmed(sentence[1]) if sentence is not None and len(sentence[1]) <= LONGEST else None
        if content is not None:
            return content
    return None


def _bare(text: str) -> str | None:
    content = text.strip()
    if not content or len(content) > LONGEST or "\n" in content:
        return None
    content = _trimmed(content)
    return content if content is not None and _is_answer(content) else None


_END = re.compile(r"(?:[.。,;；，\s]|(?<=[A-Za-z]{2})!)++\Z")


def _trimmed(answer: str) -> str | None:
    """Without blanks, emphasis, closing punctuation; $…$ and its like opened; None if nothing is left."""
    before = None
    while answer != before:
        before = answer
        answer = _END.sub("", answer.strip().strip("*`_")).strip()
        for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            inner = answer[len(left) : len(answer) - len(right)]
            if answer.startswith(left) and answer.endswith(right) and inner and left not in inner:
                answer = inner
    return answer or None


def _is_answer(content: str) -> bool:
    return _counts(content) is not None or _number(content) is not None or _is_formula(content)


# What an answer says


_DRESS = re.compile(r"\\(?:text[a-z]{0,3}|math(?:rm|bf|it|sf)|mbox|operatorname)\s*+\{([^{}]*+)\}")
_SHORT_FRACTION = re.compile(r"\\[dt]?frac\s*+([0-9])\s*+([0-9])")
_FRACTION = re.compile(r"\\[dt]?frac\s*+\{\s*+([-+]?[0-9.,]++)\s*+\}\s*+\{\s*+([0-9.,]++)\s*+\}")


def _undressed(answer: str) -> str:
    """Plain characters instead of LaTeX's, as far as words and numbers use them."""
    answer = plain(answer)
    answer = re.sub(r"(?<=\d)(?:\\[,!]|\{,\})(?=\d{3})", ",", answer)
    answer = re.sub(r"\\left\b|\\right\b|\\!", "", answer)
    answer = _DRESS.sub(r" \1 ", _DRESS.sub(r" \1 ", answer))
    answer = re.sub(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ\b)|\s*°", " degrees ", answer)
    answer = re.sub(r"\\([%$])", r"\1", answer)
    answer = re.sub(r"\\[,;: ]|~|\\q?quad\b", " ", answer)
    answer = _FRACTION.sub(r" \1/\2 ", _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", answer))
    return re.sub(r"\s+", " ", answer).strip()


def _words(answer: str) -> str:
    words = " ".join(_undressed(answer).replace("*", " ").split()).lower()
    return words[1:-1] if re.fullmatch(r"\([a-z]\)", words) else words


_NUMERAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?:\.[0-9]++)?|[0-9]++(?:\.[0-9]++)?|\.[0-9]++)"
_NUMBER = re.compile(
    rf"(?:(?P<label>[A-Za-z])\s?=\s?)?(?P<sign>[-+]?)\s?(?P<currency>[$€£¥]?)\s?(?P<inner>[-+]?)"
    rf"(?P<whole>{_NUMERAL})(?![0-9.])(?:\s?/\s?(?P<under>{_NUMERAL})|\s(?P<top>[0-9]++)\s?/\s?(?P<bottom>[0-9]++))?"
    r"(?P<rest>(?![0-9,./]).*+|)",
    re.DOTALL,
)
_LEAD = re.compile(
    r"(?:(?:so|thus|therefore|hence|then)\b,?\s)?"
    r"(?:(?:it|that|this) is|there (?:are|were|is|was)|(?:we|they|you) have|the (?:last )?cage holds"
    r"|is|are|有|共有|是)\s?",
    re.IGNORECASE,
)
_TIMES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12, "万": 10**4, "亿": 10**8,
}  # fmt: skip
# Words that make another number of the one before them, or another answer.
_NOT_UNITS = {
    "or", "and", "half", "plus", "minus", "times", "over", "divided", "to", "than", "between", "but", "not",
    "if", "mod", "sin", "cos", "tan", "log", "exp", "sqrt",
}  # fmt: skip
_UNITS = {
    "$": "dollar", "usd": "dollar", "€": "euro", "eur": "euro", "£": "pound", "¥": "yuan", "元": "yuan",
    "%": "percent",
    "mm": "millimeter", "cm": "centimeter", "km": "kilometer", "kg": "kilogram", "mg": "milligram",
    "ml": "milliliter", "hr": "hour", "hrs": "hour", "min": "minute", "mins": "minute", "sec": "second",
    "ft": "foot", "feet": "foot", "in": "inch", "mi": "mile", "lb": "pound", "lbs": "pound", "oz": "ounce",
    "am": "am", "pm": "pm", "只": "只", "个": "个",
}  # fmt: skip


@dataclass(frozen=True)
class _Number:
    value: Fraction
    unit: str | None
    label: str | None


def _fraction(*numerals: str | None) -> Fraction | None:
    """Top over bottom (1 if None); None for a denominator of zero."""
    top, bottom = (Fraction((numeral or "1").replace(",", "")) for numeral in numerals)
    return top / bottom if bottom else None


def _number(answer: str) -> _Number | None:
    text = _undressed(answer)
    lead = _LEAD.match(text)
    found = _NUMBER.fullmatch(text, lead.end() if lead else 0)
    if found is None or (found["sign"] and found["inner"]):
        return None
    value = _fraction(found["whole"], found["under"])
    if value is None:
        return None
    if found["top"] is not None:
        part = _fraction(found["top"], found["bottom"])
        if part is None or "." in found["whole"]:
            return None
        value += part
    scale, unit = _unit(found["rest"])
    if unit is None or (unit and found["currency"] and _UNITS[found["currency"]] not in _forms(unit)):
        return None
    if "-" in (found["sign"], found["inner"]):
        value = -value
    unit = unit or _UNITS.get(found["currency"])
    return _Number(value * scale, unit, found["label"])


_WORD = re.compile(r"[^\W\d_]++(?:['’.-][^\W\d_]*+)*+|[%$]")


def _unit(rest: str) -> tuple[int, str | None]:
    """What the number is to be multiplied by, and the unit's first word: "" without one, None if no unit."""
    scale = 1
    words = [word for word in re.split(r"[\s/]+|(?<=%)", rest) if word]
    if words and words[0].lower() in _TIMES:
        scale = _TIMES[words.pop(0).lower()]
    elif words and words[0][0] in "万亿":
        scale, words[0] = _TIMES[words[0][0]], words[0][1:]
        words = [word for word in words if word]
    if not words:
        return scale, ""
    first = words[0].lower().rstrip(".")
    known = first in _UNITS or not first.isascii()
    glued = not rest[0].isspace() and not known
    if glued or (not known and len(first) < 3) or len(words) > 12:
        return scale, None
    if any(word.lower() in _NOT_UNITS or _WORD.fullmatch(word) is None for word in words):
        return scale, None
    return scale, _UNITS.get(first, first)


def _same_number(answer: _Number, expected: _Number) -> bool:
    for one, other in ((answer.label, expected.label), (answer.unit, expected.unit)):
        if one is not None and other is not None and _forms(one).isdisjoint(_forms(other)):
            return False
    if answer.value == expected.value:
        return True
    if (answer.unit == "percent") == (expected.unit == "percent") or (answer.unit and expected.unit):
        return False
    percent, pure = (answer, expected) if answer.unit == "percent" else (expected, answer)
    return percent.value / 100 == pure.value


def _forms(name: str) -> set[str]:
    """What the singular of a name may be, with English endings taken off."""
    name = name.lower().replace("metre", "meter")
    forms = {name}
    for ending, instead in (("s", ""), ("es", ""), ("ies", "y"), ("子", "")):
        if name.endswith(ending) and len(name) > len(ending):
            forms.add(name[: -len(ending)] + instead)
    return forms


_BETWEEN = re.compile(
    r"\s*+(?:[;、&]|,(?!\d{3}(?!\d))|\band\b|和)(?:\s*+(?:,|\band\b|和))*+\s*+", re.IGNORECASE
)
_NAME = r"(?P<name>[^\W\d_]+?(?:[ '-][^\W\d_]+){0,3}?)"
_COUNT = rf"(?P<count>[-]?{_NUMERAL})"
_ITEMS = (
    re.compile(rf"{_COUNT}\s*[只条头匹个隻條頭]?\s*{_NAME}"),
    re.compile(rf"{_NAME}\s*(?:[:=]|\bis\b|\bare\b|有|是|为)?\s*{_COUNT}\s*[只条头匹个隻條頭]?"),
)
_TRAIL = re.compile(r"\sin (?:the|this|that)(?: (?:last|second|third|other))? cage$", re.IGNORECASE)


def _counts(answer: str) -> dict[str, Fraction] | None:
    """Names and numbers of a list of at least two; None if the text is no such list."""
    text = _TRAIL.sub("", _undressed(answer).replace("$", ""))
    lead = _LEAD.match(text)
    items = _BETWEEN.split(text[lead.end() if lead else 0 :])
    if len(items) < 2:
        return None
    counts: dict[str, Fraction] = {}
    for item in items:
        found = next(filter(None, (pattern.fullmatch(item) for pattern in _ITEMS)), None)
        if found is None or found["name"] in counts:
            return None
        if not _NOT_UNITS.isdisjoint(found["name"].lower().split()):
            return None
        counts[found["name"]] = Fraction(found["count"].replace(",", ""))
    return counts


def _same_counts(answer: Mapping[str, Fraction] | None, expected: Mapping[str, Fraction]) -> bool:
    if answer is None or len(answer) != len(expected):
        return False
    counts = {form: count for name, count in answer.items() for form in _languages(name)}
    return all(
        any(counts.get(form) == count for form in _languages(name)) for name, count in expected.items()
    )


_ENGLISH = {animal.chinese: animal.singular for animal in ANIMALS.values()}


def _languages(name: str) -> set[str]:
    """The forms of a name; of an animal's Chinese name those of the English one, too."""
    forms = _forms(name)
    return forms | {_ENGLISH[form] for form in forms if form in _ENGLISH}


_COMMAND = re.compile(r"\\[A-Za-z]++")


def _is_formula(answer: str) -> bool:
    """Whether a text may be mathematics in LaTeX: no word but commands, and something to compare."""
    text = _COMMAND.sub(" ", re.sub(r"\\(?:begin|end)\s*\{[a-z]+\*?\}", " ", _DRESS.sub(" ", plain(answer))))
    text = re.sub(r"\b(?:or|and)\b", " ", text)
    return text.isascii() and re.search(r"[A-Za-z]{3}", text) is None and re.search(r"\w", text) is not None
