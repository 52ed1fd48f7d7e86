"""The final answer in a model's text, and whether it is right.

`final_answer` looks only at what follows the last `</think>`, for a thought may try answers and drop them. A
text with `<think>` and nothing that closes it holds no answer; one with neither is read as a whole. (R1's
template writes `<think>` into the prompt: put `"<think>\\n"` before a completion, and one cut off inside its
thought has no answer.) There the last statement of an answer counts, which is one of

1. a complete `\\boxed{…}`, braces nested at will; a last box that is not closed was cut off and gives none;
2. `#### …` (GSM8K) that reads as a number, counts or a formula; other such lines are headings;
3. what follows "Answer:", "the answer is", "答案：" and their like: a sentence, also in the next line, or a
   formula displayed there; `<answer>…</answer>`;
4. the text itself when it is nothing but a number, counts or a formula.

`verify_answer` compares two of them (`kdlib.language.answers.compare`):

1. What is written alike is equal, apart from layout, Unicode's or LaTeX's signs, and case in words.
2. Counts such as "6 chickens and 4 rabbits": as a mapping from names to numbers, all of it.
3. Numbers: exactly, as fractions. Units that both sides give must agree, and are converted (60 minutes is 1
   hour); a unit that one side leaves out is not missed; 50% is 50 (percent) or 1/2. Nor is a word such as
   "north" or "less" missed, but 5 miles north are not 5 miles south.
4. Everything else is taken apart by its brackets, commas and relations, and SymPy compares the formulas.
   Nothing is rounded: 0.333 is not 1/3. What cannot be read or decided is not equal.

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
_THOUGHT = re.compile(r"◁(/?)think▷|<(/?)(?:thinking|reasoning|thought)>|\[(/?)THINK\]")


def final_answer(text: str) -> str | None:
    """The answer that a completion, a solution or a bare answer gives; None where there is none.

    As it is written, but for blanks, Markdown's emphasis and the full stop around it.

    Raises:
        ValueError: what is no text.
    """
    _check("text", text)
    text = _tagged(text)
    if text.rfind(_OPEN) > text.rfind(_CLOSE):
        return None
    text = text.rpartition(_CLOSE)[2][-SEARCHED:].replace("\r\n", "\n")
    found = [statement for statement in (_boxed(text), _after_hashes(text), _after_cue(text)) if statement]
    return max(found, key=lambda statement: statement[0])[1] if found else _bare(text)


def has_format(text: str) -> bool:
    """Whether a completion closes its thought once, opens none but at its beginning, and then answers.

    The opening `<think>` may be missing: some templates write it into the prompt.
    """
    _check("text", text)
    text = _tagged(text)
    inside = text.lstrip().removeprefix(_OPEN)
    return text.count(_CLOSE) == 1 and _OPEN not in inside and final_answer(text) is not None


def verify_answer(text: str, reference: str) -> bool:
    """Whether the text's final answer is the reference's.

    Each may be an answer or give one, see `final_answer`. No answer is a wrong one.

    Raises:
        ValueError: what is no text; a reference without an answer.
    """
    _check("text", text)
    _check("reference", reference)
    expected = final_answer(reference) or reference.strip()
    if not 0 < len(expected) <= LONGEST:
        raise ValueError(
            f"reference: expected an answer of 1 to {LONGEST} characters, got {expected[:40]!r}"
            f" ({len(expected)} characters); give the answer alone, or after 'Answer:'"
        )
    answer = final_answer(text)
    return answer is not None and same_answer(answer, expected)


def _tagged(text: str) -> str:
    """The text with `<think>` for the names that other models give a thought."""
    return _THOUGHT.sub(lambda found: f"<{found[1] or found[2] or found[3] or ''}think>", text)


def _check(name: str, value: object) -> None:
    if not isinstance(value, str):
        hint = f"write str({name})" if isinstance(value, int | float) else "an answer that is missing is ''"
        raise ValueError(f"{name}: expected a text (str), got {value!r:.60} ({type(value).__name__}); {hint}")


# Statements of an answer: where the last of a kind stands, and what it says; None for one that was cut off.

_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*+\{|[ \t]++(?P<unbraced>[^\s{}$\\]{1,40}+))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def _boxed(text: str) -> tuple[int, str | None] | None:
    """The last box; of one in another the inner one."""
    for box in islice(reversed(list(_BOX.finditer(text))), _TRIES):
        if box["unbraced"]:
            return box.start(), _trimmed(box["unbraced"])
        depth = 1
        for brace in _BRACE.finditer(text, box.end(), box.end() + LONGEST + 1):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return box.start(), _trimmed(text[box.end() : brace.start()])
        return box.start(), None
    return None


def _after_hashes(text: str) -> tuple[int, str] | None:
    for found in islice(reversed(list(re.finditer(r"####(?!#)([^\n]{0,1100})", text))), _TRIES):
        if content := _bare(found[1]):
            return found.start(), content
    return None


_EMPHASIS = r"[*_]{0,3}\s{0,3}"
_CUES = [
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        # With a colon; in a line of its own; tags. What follows is an answer, whatever it says.
        rf"(?<![A-Za-z])(?:answer|ans\.?)(?: to [^.:\n]{{1,60}}?)?(?:\s{{1,3}}(?:is|are))?"
        rf"\s{{0,3}}{_EMPHASIS}[:：=|]"
        r"|^\W{0,8}(?:the\s)?(?:final\s|correct\s)?(?<!/)answer\W{0,8}\n|^\W{0,8}(?:final\s)?result\s{0,3}[*_]{0,3}[:：]"
        rf"|(?<![解回作问])答案?\s{{0,3}}[】\]]?\s{{0,3}}{_EMPHASIS}(?:(?:应该|应当|就)?(?:是|为|等于)?\s{{0,3}}{_EMPHASIS}[:：]|】|\n)"
        r"|【答案】|<answer>",
        # In a sentence. "The answer is clear" states none.
        r"\b(?:answer|(?:correct|right|best)\s(?:option|choice))(?: to [^.:\n]{1,60}?)?\s{1,3}"
        r"(?:is|are|equals|(?:would|must|should|will|could)\sbe)\b(?:\s(?:therefore|thus|hence|then|simply))?"
        r"|答案(?:应该|应当|就)?(?:是|为|等于)|(?:故|应|所以|因此)选",
    )
]
_FILL = re.compile(r"\s{0,3}[:：]?[*_\s]{0,20}")


def _after_cue(text: str) -> tuple[int, str] | None:
    cues = [
        (found.end(), found.start(), kind) for kind, cue in enumerate(_CUES) for found in cue.finditer(text)
    ]
    doubtful = None
    for end, start, kind in islice(sorted(cues, reverse=True), _TRIES):
        content = _content(text, _FILL.match(text, end).end())
        if content and (kind == 0 or is_answer(content)):
            return start, content
        doubtful = doubtful or (content and (-1, content))
    return doubtful


_DISPLAY = re.compile(
    r"\s*(?:\$\$(.+?)\$\$|\\\[(.+?)\\\]|```[a-z]*\n(.+?)```|\\begin\{([a-z]+\*?)\}(.+?)\\end\{)", re.DOTALL
)
_STOP = re.compile(r"(?:(?<!\.)[.?](?!\.)|(?<=[A-Za-z]{2})!)(?=\s|\*|\Z)|。|</answer>")
_SHORT = {
    "st", "mr", "mrs", "ms", "dr", "no", "nos", "rs", "sq", "cu", "ft", "in", "yd", "mi", "mt", "min",
    "max", "hr", "hrs", "sec", "lb", "lbs", "oz", "gal", "approx", "vs", "jr", "sr", "prof", "inc",
    "co", "ltd", "fig", "eq", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct",
    "nov", "dec",
}  # fmt: skip


def _content(text: str, start: int) -> str | None:
    """What an answer that begins there says: a display, or a sentence of its line."""
    end = start + LONGEST + 1
    if display := _DISPLAY.match(text, start, end):
        return _trimmed(next(part for part in (display[1], display[2], display[3], display[5]) if part))
    line = text[start:end].partition("\n")[0]
    whole, first = line, ""
    for stop in _STOP.finditer(line):
        first = first or line[: stop.start()]
        word = re.search(r"[A-Za-z.]*\Z", line[max(0, stop.start() - 12) : stop.start()])[0].lower()
        if (
            stop[0] != "."
            or stop.end() == len(line)
            or not (word in _SHORT or len(word) == 1 or "." in word.strip("."))
        ):
            whole = line[: stop.start()] + ("." if word in _SHORT or "." in word else "")
            break
    content = _trimmed(whole)
    if (
        content
        and re.search(r"\d", first)
        and not is_answer(content)
        and (shorter := _trimmed(first))
        and is_answer(shorter)
    ):
        return shorter  # "5 p.m. The train"
    return content


def _bare(text: str) -> str | None:
    text = text.strip()
    content = None if "\n" in text else _trimmed(text)
    return content if content and is_answer(content) else None


_END = re.compile(r"(?:[。,;；，\s]|(?<!\.)\.(?!\.)|(?<=[A-Za-z]{2})!)++\Z")


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
