"""The final answer in a model's text, and whether it is right.

`final_answer` looks for it in this order:

1. Thought: only what follows the last `</think>` counts, for a thought may try answers and drop them. A
   text with `<think>` and nothing that closes it holds no answer; one with neither is read as a whole.
   (R1's template writes `<think>` into the prompt: put `"<think>\\n"` before a completion, and one cut off
   inside its thought has no answer.)
2. The last complete `\\boxed{…}`, braces nested at will.
3. The last `#### …` (GSM8K) that reads as a number, counts or a formula; other such lines are headings.
4. The first sentence after the last "Answer:", "the answer is", "答案:" or "答案是", also in the next line.
5. The text itself when it is nothing but a number, counts or a formula.

`verify_answer` compares two of them (`kdlib.language.answers.compare`), by the first that applies:

1. Counts such as "6 chickens and 4 rabbits": as a mapping from names to numbers, all of it.
2. Numbers: exactly, as fractions. Different units are different answers; a unit that one side leaves out
   is not missed; 50% is 50 (percent) or 1/2.
3. Words: as words, apart from case and blanks.
4. Everything else is mathematics in LaTeX, which math-verify compares (`kdlib.language.answers.mathematics`).

No text is evaluated as code. The cost is bounded: the last `SEARCHED` characters are searched for an answer
of at most `LONGEST`.
"""

import re
from itertools import islice

from kdlib.language.answers.arithmetic import Step, arithmetic_steps, first_wrong_step
from kdlib.language.answers.compare import is_answer, same_answer

__all__ = ["Step", "arithmetic_steps", "final_answer", "first_wrong_step", "has_format", "verify_answer"]

SEARCHED, LONGEST = 100_000, 1_000
_TRIES = 50  # boxes, headings and cues looked at, from the last one backwards
_OPEN, _CLOSE = "<think>", "</think>"


def final_answer(text: str) -> str | None:
    """The answer that a completion, a solution or a bare answer gives; None where there is none.

    As it is written, but for blanks, Markdown's emphasis and the full stop around it.
    """
    if text.rfind(_OPEN) > text.rfind(_CLOSE):
        return None
    text = text.rpartition(_CLOSE)[2][-SEARCHED:].replace("\r\n", "\n")
    return _boxed(text) or _after_hashes(text) or _after_cue(text) or _bare(text)


def has_format(text: str) -> bool:
    """Whether a completion closes its thought once, opens none but at its beginning, and then answers.

    The opening `<think>` may be missing: some templates write it into the prompt.
    """
    inside = text.lstrip().removeprefix(_OPEN)
    return text.count(_CLOSE) == 1 and _OPEN not in inside and final_answer(text) is not None


def verify_answer(text: str, reference: str) -> bool:
    """Whether the text's final answer is the reference's.

    Each may be an answer or give one, see `final_answer`. No answer is a wrong one; a ValueError refuses a
    reference without any.
    """
    expected = final_answer(reference) or reference.strip()
    if not 0 < len(expected) <= LONGEST:
        raise ValueError(
            f"reference: expected an answer of 1 to {LONGEST} characters, got {expected[:40]!r}"
            f" ({len(expected)} characters); give the answer alone, or after 'Answer:'"
        )
    answer = final_answer(text)
    return answer is not None and same_answer(answer, expected)


# Where an answer stands. Each returns it trimmed, None where there is none.

_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*+\{|[ \t]++(?P<unbraced>[^\s{}$\\]{1,40}+))")


def _boxed(text: str) -> str | None:
    """The last box that is closed; of one in another the inner one."""
    for box in islice(reversed(list(_BOX.finditer(text))), _TRIES):
        if box["unbraced"]:
            return _trimmed(box["unbraced"])
        depth = 1
        for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, box.end(), box.end() + LONGEST + 1):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return _trimmed(text[box.end() : brace.start()])
    return None


def _after_hashes(text: str) -> str | None:
    lines = (line.rpartition("####")[2] for line in reversed(text.split("\n")) if "####" in line)
    return next(filter(None, map(_bare, islice(lines, _TRIES))), None)


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
