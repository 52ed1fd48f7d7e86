"""One request to an OpenAI-compatible server, and its reply read into the text that the model has written.

The same text arrives in four shapes; here <think> and </think> are tokens of R1, written by the model or,
the first, by the chat template:

- DeepSeek's API, and vLLM with a reasoning parser: the thought apart, as `reasoning_content` (in vLLM since
  0.11 as `reasoning`), the answer in `content`. Blank lines around the two are lost.
- vLLM without one, and `transformers serve` for Llama models: all that was written, in `content`, with
  `<think>` where the template does not write it.
- `transformers serve` for Qwen2 models takes every template for ChatML. With R1's, up to transformers 5.23,
  it leaves the end token in the text, and puts the prompt into `content` before or instead of an answer.
"""

import ipaddress
import json
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import openai

from kdlib.language.traces.generate import Completion

__all__ = ["BadReply", "Failure", "Reply", "Server", "Usage", "read_reply"]

_OPEN, _CLOSE = "<think>", "</think>"
_TAGS = re.compile(r"\s*(?:<(?!/?think>)[^<>\s]{1,40}>\s*)+")
_END = re.compile(r"(?:<[|｜][^<>\s|｜]{1,40}[|｜]>|<eos>|</s>)\s*\Z")
_SECRET = 8  # characters that a key has at least; "EMPTY", vLLM's for none, may occur in texts
_SHOWN = 400  # characters of what a server says


@dataclass(frozen=True)
class Usage:
    """Tokens that a server has counted and charges for: of prompts, and of what was written."""

    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)

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
    """A reply without a completion; `usage` is what it cost nevertheless, None if it does not say."""

    def __init__(self, reason: str, usage: Usage | None = None) -> None:
        super().__init__(reason)
        self.usage = usage


@dataclass(frozen=True)
class Failure:
    """A request without a usable reply.

    Attributes:
        reason: what to show.
        fault: whose it is. Of the "server" or the network, which the client has tried again. Of the "reply":
            another seed may help. Of the "request": the same would happen again; of "everything": to any.
        usage: what it cost; None if nobody says.
    """

    reason: str
    fault: Literal["server", "reply", "request", "everything"]
    usage: Usage | None = None


class Server:
    """A model behind an address.

    Args:
        url: up to /v1.
        model: as the server names it.
        key_variable: the environment variable of the key, None for none.
        retries: how often the client repeats a request.
        timeout: seconds in which nothing arrives until a request counts as failed.
        parameters: what every request holds beside model, messages and seed.

    Raises:
        ValueError: an address that is none, or to which no key should go; a variable without a key.
    """

    def __init__(
        self, url: str, model: str, key_variable: str | None, retries: int, timeout: float,
        parameters: Mapping[str, object],
    ) -> None:  # fmt: skip
        parts = urllib.parse.urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            # Not shown: there may be a key in it.
            raise ValueError("url must be scheme, host and path; got more, where no key belongs either")
        if parts.scheme not in ("http", "https") or not parts.hostname or url.endswith("/chat/completions"):
            raise ValueError(
                "url must be an http or https address up to /v1, such as http://localhost:8000/v1; "
                f"got {url!r}"
            )
        if not model:
            raise ValueError("model must be the name under which the server knows it; got an empty one")
        local = _is_loopback(parts.hostname)
        if key_variable is not None and parts.scheme == "http" and not local:
            raise ValueError(
                f"url {url} would carry the key of {key_variable} through the network unencrypted; expected "
                "https, or an address on this machine (an SSH tunnel ends there), or key_variable=None"
            )
        self._url, self._model, self._key_variable, self._parameters = url, model, key_variable, parameters
        self._key = None if key_variable is None else _key(key_variable, parts.hostname)
        self.client = openai.AsyncOpenAI(
            # Without one the client takes OPENAI_API_KEY from the environment, whoever is asked.
            api_key=self._key or "none",
            base_url=url,
            max_retries=retries,
            timeout=openai.Timeout(timeout, connect=min(10.0, timeout)),
            # No proxy between a machine and itself, and no redirection: the key is for this address.
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not local, follow_redirects=False),
        )
        # What OPENAI_ORG_ID and OPENAI_PROJECT_ID say is nobody else's business.
        self.client.organization = self.client.project = None

    async def ask(self, statement: str, seed: int | None) -> Reply | Failure:
        """The reply to a statement. The client's errors are not raised: they hold the key."""
        try:
            raw = await self.client.chat.completions.with_raw_response.create(
                model=self._model,
                messages=[{"role": "user", "content": statement}],
                seed=openai.omit if seed is None else seed,
                extra_headers=None if self._key else {"Authorization": openai.Omit()},
                **self._parameters,
            )
        except openai.APIStatusError as error:
            return self._refusal(error)
        except openai.APIConnectionError as error:
            return Failure(self._without_key(f"{error.message} {error.__cause__ or ''}")[:_SHOWN], "server")
        # A server that sends the key back would bring it into the file.
        text = self._without_key(raw.http_response.content.decode("utf-8-sig", errors="replace"))
        try:
            return read_reply(json.loads(text), statement)
        except BadReply as error:
            return Failure(str(error)[:_SHOWN], "reply", error.usage)
        except (ValueError, RecursionError) as error:
            return Failure(f"the reply is not JSON ({error}): {text[:80]!r}", "reply")

    def _refusal(self, error: openai.APIStatusError) -> Failure:
        # OpenAI sends status 429 when the money is used up.
        status = 402 if error.code == "insufficient_quota" else error.status_code
        said = self._without_key(f"{error.status_code}: {error.body or error.message}")[:_SHOWN]
        if status >= 500 or status in (408, 409, 429):
            later = error.response.headers.get("retry-after")
            said += f", Retry-After: {later}" if later else ""
            return Failure(f"the server fails ({said})", "server")
        if status in (400, 413, 422):
            fix = (
                "if the statement is too long, shorten it or lower max_new_tokens; if it refuses a "
                "parameter, leave that out (seed=None sends no seed)"
            )
            return Failure(f"the server refuses the request ({said}): {fix}", "request")
        if status in (401, 403) and self._key is None:
            fix = "it wants a key: put it into an environment variable and pass the name as key_variable"
        elif status in (401, 403):
            fix = f"see that the environment variable {self._key_variable} holds a key of this server"
        elif status == 402:
            fix = "the account's balance or quota is used up"
        else:
            fix = (
                f"expected that {self._url} is the address of an OpenAI-compatible server up to /v1, and "
                f"model, {self._model!r}, one that {self._url}/models lists"
            )
        return Failure(f"the server refuses ({said}): {fix}", "everything")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= _SECRET else text


def _key(key_variable: str, host: str) -> str:
    key = os.environ.get(key_variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"key_variable is {key_variable!r}, but that environment variable holds "
            f"{'characters that no key has' if key else 'no key'}; set it to the key for {host}, or pass "
            "None where none is needed"
        )
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_reply(body: object, statement: str) -> Reply:
    """Read the body of a chat completion.

    Args:
        body: the decoded JSON.
        statement: the user's turn that it answers.

    Raises:
        BadReply: it is none, is empty, ended for another reason than the model's or the token limit's, or
            does not say how many tokens it took.
    """
    usage = None
    match body:
        case {"usage": {"prompt_tokens": int(before), "completion_tokens": int(after)}}:
            usage = Usage(max(0, before), max(0, after))
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
    # A lone half of a surrogate pair, which JSON can hold, cannot be written to a file.
    text = text.encode(errors="replace").decode()
    completion = Completion(text, usage.output_tokens, finished=reason == "stop")
    return Reply(completion, unclosed, usage, str(body.get("model")))


def _written(message: Mapping[str, object], statement: str) -> tuple[str, bool]:
    """The text after a prompt that ends in <think>, and whether the thought in it is known to be open."""

    content, *thoughts = (
        value if isinstance(value := message.get(name), str) else ""
        for name in ("content", "reasoning_content", "reasoning")
    )
    content = _END.sub("", _without_prompt(content, statement))
    apart = any(thoughts)
    thought = _unopened(_END.sub("", next(filter(None, thoughts), "")))[0].strip("\n")
    whole, opened = _unopened(content)
    if not apart or (_CLOSE in whole and whole.lstrip().startswith(thought)):  # some send the thought twice
        return whole, opened and _CLOSE not in whole
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
    spaced = r"\s*".join(map(re.escape, "".join(statement.split())))
    return re.sub(rf"\A{_TAGS.pattern}{spaced}{_TAGS.pattern}", "", content)
