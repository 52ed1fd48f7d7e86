"""The final answer in a model's text, and whether it is right.

Where an answer is looked for (`final_answer`), first that is found:

1. Thought: only what follows the last `</think>` counts, for a thought may try answers and drop them. A
   text with `<think>` and nothing that closes it holds no answer; one with neither is read as a whole.
   (R1's template writes `<think>` into the prompt: put `"<think>\\n"` before a completion, and one cut off
   inside its thought has no answer.)
2. The last complete `\\boxed{…}`, braces nested at will.
3. The last `#### …` (GSM8K) that reads as a number, counts or a formula; other such lines are headings.
4. The first sentence after the last "Answer:", "the answer is", "答案:" or "答案是", also when it stands in
   the next line.
5. The text itself when it is nothing but a number, counts or a formula.

How two answers are compared (`verify_answer`; `kdlib.language.answers.compare`), first that applies:

1. Counts such as "6 chickens and 4 rabbits": as a mapping from names to numbers, all of it.
2. Numbers: exactly, as fractions. Different units are different answers; a unit that one side leaves out
   is not missed; 50% is 50 (percent) or 1/2.
3. Words: as words, apart from case and blanks.
4. Everything else is mathematics in LaTeX, which math-verify compares (`kdlib.language.answers.mathematics`).

No text is ever evaluated as code, and the cost is bounded whatever the text: only the last `SEARCHED`
characters are searched, and an answer has at most `LONGEST` characters.
"""

import re
from itertools import islice

from kdlib.language.answers.arithmetic import Step, arithmetic_steps, first_wrong_step
from kdlib.language.answers.compare import is_answer, same_answer

__all__ = [
    "LONGEST", "SEARCHED", "Step",
    "arithmetic_steps", "final_answer", "first_wrong_step", "has_format", "verify_answer",
]  # fmt: skip

SEARCHED, LONGEST = 100_000, 1_000
_TRIES = 50  # answers looked at, from the last one backwards, before a text counts as one without
_OPEN, _CLOSE = "<think>", "</think>"


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
    return _boxed(text) or _after_hashes(text) or _after_cue(text) or _bare(text)


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
    """
    expected = final_answer(reference) or reference.strip()
    if not expected or len(expected) > LONGEST:
        raise ValueError(
            f"reference: expected an answer of 1 to {LONGEST} characters, got {expected[:40]!r}"
            f" ({len(expected)} characters); give the answer alone, or after 'Answer:'"
        )
    answer = final_answer(text)
    return answer is not None and same_answer(answer, expected)


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
    unbraced = max(_UNBRACED.finditer(text), key=re.Match.start, default=None)
    if unbraced is not None and (last is None or unbraced.start() > last[1]):
        return _trimmed(unbraced[1])
    inner = _trimmed(text[slice(*last)]) if last else None
    return inner and (_boxed(inner) or inner)


def _after_hashes(text: str) -> str | None:
    lines = (line.rpartition("####")[2] for line in reversed(text.split("\n")) if "####" in line)
    for line in islice(lines, _TRIES):
        content = _trimmed(line)
        if content and is_answer(content):
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
        content = _trimmed(sentence[1]) if sentence else None
        if content:
            return content
    return None


def _bare(text: str) -> str | None:
    text = text.strip()
    content = None if "\n" in text else _trimmed(text)
    return content if content and is_answer(content) else None


_END = re.compile(r"(?:[.。,;；，\s]|(?<=[A-Za-z]{2})!)++\Z")


def _trimmed(answer: str) -> str | None:
    """Without blanks, emphasis, closing punctuation; $…$ and its like opened.

    None if nothing is left, or for more than an answer is long.
    """
    if len(answer) > LONGEST:
        return None
    before = None
    while answer != before:
        before = answer
        answer = _END.sub("", answer.strip().strip("*`_")).strip()
        for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            inner = answer[len(left) : len(answer) - len(right)]
            if answer.startswith(left) and answer.endswith(right) and inner and left not in inner:
                answer = inner
    return answer or None
