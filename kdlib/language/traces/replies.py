"""What an OpenAI-compatible server replies, read into the text that the model has written.

The same text arrives in four shapes; here <think> and </think> are tokens of R1, written by the model or,
the first, by the chat template:

- DeepSeek's API, and vLLM with a reasoning parser: the thought apart, as `reasoning_content` (in vLLM since
  0.11 as `reasoning`), the answer in `content`. Blank lines around the two are lost.
- vLLM without one, and `transformers serve` for Llama models: all that was written, in `content`, with
  `<think>` where the template does not write it.
- `transformers serve` for Qwen2 models takes every template for ChatML. With R1's, up to transformers 5.23,
  it leaves the end token in the text, and puts the prompt into `content` before or instead of an answer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kdlib.language.traces.generate import Completion

__all__ = ["BadReply", "Reply", "Usage", "read_reply"]

_OPEN, _CLOSE = "<think>", "</think>"
_TAGS = re.compile(r"\s*(?:<(?!/?think>)[^<>\s]{1,40}>\s*)+")
_END = re.compile(r"(?:<[|｜][^<>\s|｜]{1,40}[|｜]>|<eos>|</s>)\s*\Z")


@dataclass(frozen=True)
class Usage:
    """Tokens that a server has counted, and charges for.

    Attributes:
        replies: how many replies they are of, usable or not.
        input_tokens: of the prompts.
        output_tokens: of what was written, thoughts included.
    """

    replies: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.replies + other.replies,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )

    def cost(self, prices: tuple[float, float]) -> float:
        """In dollars, with prices of input and output in dollars per million tokens."""
        return (self.input_tokens * prices[0] + self.output_tokens * prices[1]) / 1e6


@dataclass(frozen=True)
class Reply:
    """A usable reply.

    Attributes:
        completion: the text as `Trace` has it: thought, </think>, answer, without an opening <think>.
        unclosed: whether a thought was opened and never closed, so that there is no answer.
        usage: of this reply.
        model: what the server says has written it; may be more exact than what was asked for.
    """

    completion: Completion
    unclosed: bool
    usage: Usage
    model: str


class BadReply(ValueError):
    """A reply that holds no completion.

    Attributes:
        usage: what it cost nevertheless, as far as it says so.
    """

    def __init__(self, reason: str, usage: Usage | None = None) -> None:
        super().__init__(reason)
        self.usage = usage


def read_reply(body: object, statement: str) -> Reply:
    """Read the body of a chat completion.

    Args:
        body: the decoded JSON.
        statement: the user's turn that it answers.

    Raises:
        BadReply: it is none, is empty, ended for another reason than the model's or the token limit's, or
            does not say how many tokens it took.
    """
    usage = _usage(body)
    match body:
        case {"choices": [{"message": Mapping() as message, "finish_reason": reason}, *_]}:
            pass
        case {"error": error}:
            raise BadReply(f"the reply is an error: {error}", usage)
        case _:
            raise BadReply("the reply has no choices with a message and a finish_reason", usage)
    if reason not in ("stop", "length"):
        raise BadReply(f"the reply ended for finish_reason {reason!r}; expected stop or length", usage)
    if usage is None:
        raise BadReply("the reply has no usage of prompt_tokens and completion_tokens")
    text, unclosed = _written(message, statement)
    if not text.strip():
        raise BadReply("the reply is empty", usage)
    # A lone half of a surrogate pair, which JSON can hold, is no text.
    text = text.encode(errors="replace").decode()
    return Reply(
        Completion(text, usage.output_tokens, reason == "stop"), unclosed, usage, str(body.get("model"))
    )


def _usage(body: object) -> Usage | None:
    match body:
        case {"usage": {"prompt_tokens": int(before), "completion_tokens": int(after)}}:
            return Usage(1, max(0, before), max(0, after))
    return None


def _written(message: Mapping[str, object], statement: str) -> tuple[str, bool]:
    """The text after a prompt that ends in <think>, and whether the thought in it is known to be open."""
    content = _END.sub("", _without_prompt(_text(message, "content"), statement))
    thought = _text(message, "reasoning_content") or _text(message, "reasoning")
    thought, opened = _unopened(_END.sub("", thought))[0].strip("\n"), bool(thought)
    whole, opening = _unopened(content)
    if not opened or (_CLOSE in whole and whole.lstrip().startswith(thought)):  # some send the thought twice
        return whole, opening and _CLOSE not in whole
    if not content.strip():
        return thought, True
    return f"{thought}\n{_CLOSE}\n\n" + content.lstrip("\n"), False


def _unopened(text: str) -> tuple[str, bool]:
    """The text without an opening <think>, and whether it had one."""
    bare = text.lstrip()
    if not bare.startswith(_OPEN):
        return text, False
    return bare.removeprefix(_OPEN).removeprefix("\n"), True


def _without_prompt(content: str, statement: str) -> str:
    """Without a prompt in front: tags, the statement whatever its blanks, tags."""
    if not _TAGS.match(content):
        return content
    told = r"\s*".join(map(re.escape, "".join(statement.split())))
    return re.sub(rf"\A{_TAGS.pattern}{told}{_TAGS.pattern}", "", content)


def _text(message: Mapping[str, object], name: str) -> str:
    value = message.get(name)
    return value if isinstance(value, str) else ""
