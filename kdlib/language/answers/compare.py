"""Whether two answers say the same: counts, words, or what `kdlib.language.answers.reading` takes apart."""

import re
from fractions import Fraction

from kdlib.language.answers.mathematics import same_mathematics
from kdlib.language.answers.normalise import NUMERAL, canonical, same_text
from kdlib.language.answers.reading import read
from kdlib.language.answers.units import measure

__all__ = ["is_answer", "same_answer"]


def is_answer(content: str) -> bool:
    """Whether a text is nothing but counts, a number with its unit, a formula, or several of them."""
    text = _bare(content)
    return _counts(text) is not None or read(text) is not None


def same_answer(answer: str, expected: str) -> bool:
    """Whether two answers of at most some thousand characters say the same.

    Texts that are written alike are; counts are compared as mappings; everything else by what it is worth.
    """
    answer, expected = _chosen(_bare(answer), _bare(expected))
    if same_text(answer, expected):
        return True
    if (counts := _counts(expected)) is not None:
        return _same_counts(_counts(answer), counts)
    one, other = read(answer), read(expected)
    return one is not None and other is not None and same_mathematics(one, other)


# What stands around an answer and is no part of it

_LEAD = re.compile(
    r"\A(?:(?:so|thus|therefore|hence|then|likely|simply|just|exactly|only|approx(?:imately)?|about|that)\b[.,]?\s?)*"
    r"(?:(?:it|that|this) is|there (?:are|were|is|was|will be)|(?:we|they|you|s?he) (?:ha(?:ve|s|d)|gets?)"
    r"|the (?:last )?cage holds|the [a-z' ]{1,60}? (?:is|are|was|were|equals)\b"
    r"|a total of|in total|equal to|equals|is|are|option|choice|no\.|number"
    r"|(?![\u4e00-\u9fff]*[不没非超除至最大小])[\u4e00-\u9fff]{1,8}(?:有|是|为|共|剩|需要?)(?=\s*[\d$\\-][^;,和]*\Z)"
    r"|第|一共|总共|大约|约|选项?|有|共有|是|为|共|还有)?[:：]?\s?",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r"\s*(?:[,;(]\s*(?:because|since|as|which|where|so|for|when|with|namely|i\.e\.|that is)\b.*"
    r"|(?<=[A-Za-z]);\s.*|(?<=[\w.})])\s\((?=[^()]*(?:\d\s*[-+*/×=]|(?<![\\A-Za-z])[A-Za-z]{3}))(?![^()]*(?:rejected|wrong|not|invalid))[^()]*\)"
    r"|\sin (?:the|this|that)(?: (?:last|second|third|other))? cage)\Z",
    re.IGNORECASE | re.DOTALL,
)
_MARKS = [
    (re.compile(pattern), instead)
    for pattern, instead in (
        ("[\u2600-\u27bf\u2b50-\u2b55\U0001f000-\U0001faff\ufe0f]", " "),  # pictures: a tick, a party
        (r"</?(?:b|i|u|em|strong|answer|span|p|br|sub|sup|code)\s*/?>", " "),
        (
            r"\\(?:begin|end)\s*\{(?:align|aligned|equation|gather|split|math|displaymath)\*?\}|(?<![\\&])&(?==)",
            " ",
        ),
        (r"\\[()\[\]]|\$\$", " "),
        (r"(?<!\\)\$(?=[^\s$])((?:[^$\\]|\\.)*+)(?<=\S)\$(?!\d)", r" \1 "),
        (r"(?<![\w)\]}])(?:\*\*\*|\*\*|__|~~?)|(?:\*\*\*|\*\*|__|~~?)(?![\w(\[{\\])|`+", " "),
        (r"(?<![\w*)\]}])\*(?=[^\s*])([^*]*+)(?<=\S)\*(?![\w*(])", r"\1"),
        (r"\A(?:\s|#|\|\s)+|(?:\s|\s\|)+\Z", ""),
    )
]


def _bare(answer: str) -> str:
    """The answer in canonical form, without Markdown, pictures, and the words around it."""
    for pattern, instead in _MARKS:
        answer = pattern.sub(instead, answer)
    answer = canonical(answer).strip()
    answer = _TAIL.sub("", answer)
    lead = _LEAD.match(answer)
    return answer[lead.end() :].strip() if lead.end() < len(answer) else answer


_CHOICE = re.compile(r"\(?([A-J])(?:[).:]\)?|\s*项)(?:\s(?!(?:or|and)\b|[&/或和]).*|\Z)", re.DOTALL)


def _chosen(*answers: str) -> list[str]:
    """Where one is the letter of a choice, the other's letter, too: of "(C) Paris" C."""
    letters = [re.fullmatch(r"\(?([A-Ja-j])\)?[.)]?", answer) for answer in answers]
    found = [_CHOICE.fullmatch(answer) for answer in answers]
    if not any(letters):
        return list(answers)
    return [
        letter[1] if letter else choice[1] if choice else answer
        for letter, choice, answer in zip(letters, found, answers, strict=True)
    ]


# Counts

_NOT_NAMES = {
    "or",
    "and",
    "half",
    "plus",
    "minus",
    "times",
    "over",
    "to",
    "than",
    "between",
    "but",
    "not",
    "if",
}


# The animals of the puzzles: an answer may be in the other language.
_ENGLISH = {
    "蛇": "snake", "鸡": "chicken", "鹤": "crane", "兔": "rabbit", "狗": "dog", "蚂蚁": "ant",
    "甲虫": "beetle", "蜘蛛": "spider", "螃蟹": "crab",
}  # fmt: skip


def _forms(name: str) -> set[str]:
    """What the singular of a name may be, with English endings taken off; animals in English, too."""
    name = name.lower().replace("metre", "meter")
    forms = {name}
    for ending, instead in (("s", ""), ("es", ""), ("ies", "y"), ("子", "")):
        if name.endswith(ending) and len(name) > len(ending):
            forms.add(name[: -len(ending)] + instead)
    return forms | {_ENGLISH[form] for form in forms if form in _ENGLISH}


_BETWEEN = re.compile(
    r"\s*+(?:[;、&]|,(?!\d{3}(?!\d))|\band\b|和)(?:\s*+(?:,|\band\b|和))*+\s*+", re.IGNORECASE
)
_NAME = r"(?P<name>[^\W\d_]+?(?:[ '-][^\W\d_]+){0,3}?)"
_COUNT = rf"(?P<count>[-]?{NUMERAL})"
_ITEMS = (
    re.compile(rf"{_COUNT}\s*[只条头匹个隻條頭]?\s*{_NAME}"),
    re.compile(rf"{_NAME}\s*(?:[:=]|\bis\b|\bare\b|有|是|为)?\s*{_COUNT}\s*[只条头匹个隻條頭]?"),
)


def _counts(answer: str) -> dict[str, Fraction] | None:
    """Names and numbers of a list of at least two; None if the text is no such list."""
    items = _BETWEEN.split(answer.replace("$", ""))
    if len(items) < 2:
        return None
    counts: dict[str, Fraction] = {}
    for item in items:
        found = next(filter(None, (pattern.fullmatch(item) for pattern in _ITEMS)), None)
        name = found and found["name"]
        if not name or name in counts or not _NOT_NAMES.isdisjoint(name.lower().split()):
            return None
        if len(name) < 2 and name.isascii() or (what := measure(name)) is None or what.units:
            return None
        counts[name] = Fraction(found["count"].replace(",", ""))
    return counts


def _same_counts(answer: dict[str, Fraction] | None, expected: dict[str, Fraction]) -> bool:
    if answer is None or len(answer) != len(expected):
        return False
    counts = {form: count for name, count in answer.items() for form in _forms(name)}
    return all(any(counts.get(form) == count for form in _forms(name)) for name, count in expected.items())
