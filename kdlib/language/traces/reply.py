"""The reply of an OpenAI-compatible server, read into the text that the model has written.

The same text arrives in several shapes:

- DeepSeek's API, and vLLM with a reasoning parser: the thought apart, as `reasoning_content` (in vLLM since
  0.11 as `reasoning`), the answer in `content`. Blank lines around the two are lost.
- vLLM without one, and `transformers serve` for Llama models: all that was written, in `content`, with
  `<think>` where the chat template does not write it.
- `transformers serve` for Qwen2 models takes every template for ChatML. With R1's, up to transformers 5.23,
  it leaves the end token in the text, and puts the prompt into `content` before or instead of an answer.
- Mistral's API and gateways: `content` as a list of parts, thoughts among them.

Servers also name the end differently: `stop`, `eos_token` (text-generation-inference), `eos`, `end_turn`,
`STOP`; and some do not say how many tokens it took.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil

from kdlib.language.server import SHOWN, Failure, Usage
from kdlib.language.traces.generate import Completion

__all__ = ["Reply", "read_reply", "tokens_by_bytes"]

_OPENING, _CLOSE = re.compile(r"\A\s*<think>\n?"), "</think>"
_TAGS = re.compile(r"\s*(?:<(?!/?think>)[^<>\s]{1,40}>\s*)+")
_END = re.compile(r"(?:<[|｜][^<>\s|｜]{1,40}[|｜]>|<eos>|</s>)\s*\Z")
_BYTES = 1.8  # a token; of 13 solutions by R1 of problems from MATH the least, half of them have over 2.6
# Words of what ended it: a limit; the model; something that may not happen again. "max_tokens", "endTurn".
_CUT = {"length", "max", "limit", "truncated"}
_ENDED = {"stop", "stopped", "eos", "end", "ended", "complete", "completed", "done"}
_PASSING = {"filter", "safety", "recitation", "refusal", "tool", "tools", "function", "error", "abort",
            "aborted", "cancelled", "resource", "overloaded"}  # fmt: skip
_THOUGHTS = {"thinking", "thought", "reasoning", "reasoning_content", "reasoning_text"}


@dataclass(frozen=True)
class Reply:
    """A usable reply."""

    completion: Completion  # the text as `Trace` has it: thought, </think>, answer, no opening <think>
    unclosed: bool  # whether a thought was opened and never closed, so that there is no answer
    usage: Usage
    model: str  # what the server says has written it; may be more exact than what was asked for
    counted: bool = False  # whether usage is counted here, for the server does not say it


def tokens_by_bytes(text: str) -> int:
    """About how many tokens a text takes, rather too many than too few."""
    return ceil(len(text.encode()) / _BYTES)


def read_reply(
    body: object, statement: str, limit: int | None = None, count: Callable[[str], int] = tokens_by_bytes
) -> Reply:
    """Read the body of a chat completion, decoded from JSON; the statement is the user's turn.

    Args:
        limit: tokens after which the text was to be cut off.
        count: tells the tokens of a text, where the server does not.

    Raises:
        Failure: it is none, is empty, or ended for another reason than the model's or the token limit's.
    """
    usage = _usage(body)
    message, reason = _message(body, usage)
    text, unclosed = _written(message, statement, usage)
    ended = _words(reason) & _ENDED and not _words(reason) & _CUT
    counted = not usage.get("output_tokens") and bool(text.strip())
    if counted:
        # What a limit has cut off took all that was allowed. The end is a token too.
        cut = limit is not None and _words(reason) & _CUT
        usage["output_tokens"] = limit if cut else min(count(text) + 1, limit or 10**9)
        usage.setdefault("input_tokens", count(statement))
    if not _words(reason) & (_ENDED | _CUT):
        fault = "reply" if _words(reason) & _PASSING else "shape"
        raise Failure(
            f"the reply ended for finish_reason {reason!r:.80}; expected stop, length, or a word like these",
            usage, fault,
        )  # fmt: skip
    if not text.strip():
        raise Failure("the reply is empty", usage)
    completion = Completion(text, usage["output_tokens"], finished=bool(ended))
    return Reply(completion, unclosed, usage, str(body.get("model")), counted)


def _words(reason: object) -> set[str]:
    text = reason if isinstance(reason, str) else ""
    return {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", text)}


def _usage(body: object) -> Usage:
    """What the server says; of a name only what is a number of tokens."""
    said = body.get("usage") if isinstance(body, Mapping) else None
    said = said if isinstance(said, Mapping) else {}

    def number(*names: str) -> int | None:
        values = (said.get(name) for name in names)
        values = (value for value in values if isinstance(value, int | float) and value is not True)
        return next((int(value) for value in values if value >= 0 and value == value // 1), None)

    inputs, outputs = number("prompt_tokens", "input_tokens"), number("completion_tokens", "output_tokens")
    total = number("total_tokens")
    if outputs is None and None not in (inputs, total) and total >= inputs:
        outputs = total - inputs
    found = {"input_tokens": inputs, "output_tokens": outputs}
    return {name: value for name, value in found.items() if value is not None}


def _message(body: object, usage: Usage) -> tuple[Mapping[str, object], object]:
    """The message of the first choice, and what ended it."""
    match body:
        case {"choices": [Mapping() as choice, *_]}:
            # In the order in which servers are likely to mean it; "text" is that of completions without chat.
            for name in ("message", "delta", "text"):
                message = choice.get(name)
                if isinstance(message, str):
                    message = {"content": message}
                if isinstance(message, Mapping):
                    return message, choice.get("finish_reason")
        case {"error": error} if error:
            raise Failure(f"the reply is an error: {error!s:.{SHOWN}}", usage)
    empty = not isinstance(body, Mapping) or body.get("choices") in ([], None) and "choices" in body
    raise Failure(
        "the reply has no choices with a message and a finish_reason", usage, "reply" if empty else "shape"
    )


def _written(message: Mapping[str, object], statement: str, usage: Usage) -> tuple[str, bool]:
    """The text after a prompt that ends in <think>, and whether the thought in it is known to be open."""
    try:
        parts = list(_parts(message.get("content")))
        fields = (message.get(name) for name in ("reasoning_content", "reasoning", "thinking"))
        apart = next(filter(None, ("".join(text for _, text in _parts(field)) for field in fields)), "")
    except TypeError as error:
        raise Failure(f"the reply's {error}; expected a text, or parts with a text", usage, "shape") from None
    # A lone half of a surrogate pair, which JSON can hold, cannot be written to a file.
    texts = [apart or "".join(text for inside, text in parts if inside)]
    texts += ["".join(text for inside, text in parts if not inside)]
    apart, content = (text.encode(errors="replace").decode() for text in texts)
    content = _END.sub("", _without_prompt(content, statement))
    thought = _OPENING.sub("", _END.sub("", apart)).strip("\n")
    whole = _OPENING.sub("", content)
    if not apart or (_CLOSE in whole and whole.lstrip().startswith(thought)):  # some send the thought twice
        return whole, whole != content and _CLOSE not in whole
    if not content.strip():
        return thought, True
    return f"{thought}\n{_CLOSE}\n\n" + content.lstrip("\n"), False


def _parts(content: object, thought: bool = False) -> Iterator[tuple[bool, str]]:
    """The texts in what a server sends for one, and whether each belongs to a thought.

    Raises:
        TypeError: a part that cannot be read, such as a picture.
    """
    if isinstance(content, str):
        yield thought, content
    elif isinstance(content, list):
        for part in content:
            yield from _parts(part, thought)
    elif isinstance(content, Mapping):
        inside = thought or content.get("type") in _THOUGHTS or content.get("thought") is True
        names = ("text", "thinking", "reasoning", "content", "value")
        name = next((name for name in names if name in content), None)
        if name is None:
            raise TypeError(f"content holds {dict(content)!r:.80}")
        yield from _parts(content[name], inside)
    elif content is not None:
        raise TypeError(f"content holds {content!r:.80}")


def _without_prompt(content: str, statement: str) -> str:
    """Without a prompt in front: tags, the statement whatever its blanks, tags."""
    if not _TAGS.match(content):
        return content
    spaced = r"\s*".join(map(re.escape, "".join(statement.split())))
    return re.sub(rf"\A{_TAGS.pattern}{spaced}{_TAGS.pattern}", "", content)
