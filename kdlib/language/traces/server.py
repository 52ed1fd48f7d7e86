"""One request to an OpenAI-compatible server, and its reply read into the text that the model has written.

The same text arrives in several shapes:

- DeepSeek's API, and vLLM with a reasoning parser: the thought apart, as `reasoning_content` (in vLLM since
  0.11 as `reasoning`), the answer in `content`. Blank lines around the two are lost.
- vLLM without one, and `transformers serve` for Llama models: all that was written, in `content`, with
  `<think>` where the chat template does not write it.
- `transformers serve` for Qwen2 models takes every template for ChatML. With R1's, up to transformers 5.23,
  it leaves the end token in the text, and puts the prompt into `content` before or instead of an answer.
"""

import json
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import openai

from kdlib.language.traces.generate import Completion

__all__ = ["Failure", "Reply", "Server", "Usage", "read_reply"]

_OPENING, _CLOSE = re.compile(r"\A\s*<think>\n?"), "</think>"
_TAGS = re.compile(r"\s*(?:<(?!/?think>)[^<>\s]{1,40}>\s*)+")
_END = re.compile(r"(?:<[|｜][^<>\s|｜]{1,40}[|｜]>|<eos>|</s>)\s*\Z")
_SECRET = 8  # characters that a key has at least; "EMPTY", vLLM's for none, may occur in texts
_SHOWN = 400  # characters of what a server says

Fault = Literal["server", "reply", "request", "everything"]
Usage = dict[str, int]  # input_tokens and output_tokens, for which a server charges; empty if it does not say


@dataclass(frozen=True)
class Reply:
    """A usable reply."""

    completion: Completion  # the text as `Trace` has it: thought, </think>, answer, no opening <think>
    unclosed: bool  # whether a thought was opened and never closed, so that there is no answer
    usage: Usage
    model: str  # what the server says has written it; may be more exact than what was asked for


class Failure(ValueError):
    """A request without a usable reply, and why.

    The fault of the "server" or network: the client has tried again. Of the "reply": another seed may help.
    Of the "request": the same would happen again; of "everything": to any request.
    """

    def __init__(self, reason: str, usage: Usage | None = None, fault: Fault = "reply") -> None:
        super().__init__(reason)
        self.usage, self.fault = usage or {}, fault


class Server:
    """A model behind an address, as for `collect_remote_traces`; requests hold further `parameters`.

    Raises:
        ValueError: an address that is none, or to which no key should go; a variable without a key.
    """

    def __init__(
        self, url: str, model: str, key_variable: str | None, retries: int, timeout: float,
        parameters: Mapping[str, object],
    ) -> None:  # fmt: skip
        local = _checked(url, key_variable)
        self._url, self._key_variable, self._model, self._parameters = url, key_variable, model, parameters
        self._key = key_variable and os.environ[key_variable].strip()
        self.client = openai.AsyncOpenAI(
            # Without one the client takes OPENAI_API_KEY from the environment, whatever server is asked.
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
        """The reply to a statement. Failures are not raised: the client's errors hold the key."""
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
            said = self._without_key(f"{error.message} {error.__cause__ or ''}")
            return Failure(said[:_SHOWN], fault="server")
        # A server that sends the key back would bring it into the file.
        text = self._without_key(raw.http_response.content.decode("utf-8-sig", errors="replace"))
        try:
            return read_reply(json.loads(text), statement)
        except Failure as failure:
            return failure
        except (ValueError, RecursionError) as error:
            return Failure(f"the reply is not JSON ({error}): {text[:80]!r}")

    def _refusal(self, error: openai.APIStatusError) -> Failure:
        said = self._without_key(f"{error.status_code}: {error.body or error.message}")[:_SHOWN]
        # OpenAI sends status 429 when the money is used up.
        status = 402 if error.code == "insufficient_quota" else error.status_code
        if status >= 500 or status in (408, 409, 429):
            later = error.response.headers.get("retry-after")
            said += f", Retry-After: {later}" if later else ""
            return Failure(f"the server fails ({said})", fault="server")
        if status in (400, 413, 422):
            fix = "if it is too long, shorten it or lower max_new_tokens; seed=None sends no seed"
            return Failure(f"the server refuses the request ({said}): {fix}", fault="request")
        key = f"key_variable must name an environment variable with its key; it is {self._key_variable!r}"
        fixes = {401: key, 403: key, 402: "the account's balance or quota is used up"}
        address = (
            f"expected that {self._url} is an OpenAI-compatible address up to /v1, and {self._model!r} among "
            f"what {self._url}/models lists"
        )
        return Failure(f"the server refuses ({said}): {fixes.get(status, address)}", fault="everything")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= _SECRET else text


def _checked(url: str, key_variable: str | None) -> bool:
    """Whether the address is on this machine; a ValueError if it is none, or the key cannot go there."""
    parts = urllib.parse.urlsplit(url)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    whole = parts.scheme in ("http", "https") and parts.hostname and not url.endswith("/chat/completions")
    if not whole or bare != url:
        raise ValueError(
            "url must be an http or https address up to /v1, such as http://localhost:8000/v1, without user, "
            f"query and fragment (no key belongs there); got {bare}"
        )
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if key_variable is None:
        return local
    if parts.scheme == "http" and not local:
        raise ValueError(
            f"url {url} would carry the key of {key_variable} through the network unencrypted; expected "
            "https, or an address on this machine (an SSH tunnel ends there), or key_variable=None"
        )
    if not re.fullmatch("[!-~]+", os.environ.get(key_variable, "").strip()):
        raise ValueError(
            f"key_variable is {key_variable!r}, but that environment variable holds no key, of ASCII "
            f"characters without blanks; set it to the key for {parts.hostname}, or pass None"
        )
    return local


def read_reply(body: object, statement: str) -> Reply:
    """Read the body of a chat completion, decoded from JSON; the statement is the user's turn.

    Raises:
        Failure: it is none, is empty, ended for another reason than the model's or the token limit's, or
            does not say how many tokens it took.
    """
    usage: Usage = {}
    match body:
        case {"usage": {"prompt_tokens": int(inputs), "completion_tokens": int(outputs)}}:
            usage = {"input_tokens": inputs, "output_tokens": outputs}
    match body:
        case {"choices": [{"message": Mapping() as message, "finish_reason": reason}, *_]}:
            text, unclosed = _written(message, statement)
        case {"error": error}:
            raise Failure(f"the reply is an error: {error!s:.{_SHOWN}}", usage)
        case _:
            raise Failure("the reply has no choices with a message and a finish_reason", usage)
    if reason not in ("stop", "length"):
        raise Failure(f"the reply ended for finish_reason {reason!r:.80}; expected stop or length", usage)
    if not usage:
        raise Failure("the reply has no usage of prompt_tokens and completion_tokens")
    if not text.strip():
        raise Failure("the reply is empty", usage)
    completion = Completion(text, usage["output_tokens"], finished=reason == "stop")
    return Reply(completion, unclosed, usage, str(body.get("model")))


def _written(message: Mapping[str, object], statement: str) -> tuple[str, bool]:
    """The text after a prompt that ends in <think>, and whether the thought in it is known to be open."""
    content = _END.sub("", _without_prompt(_string(message, "content"), statement))
    apart = _string(message, "reasoning_content", "reasoning")
    thought = _OPENING.sub("", _END.sub("", apart)).strip("\n")
    whole = _OPENING.sub("", content)
    if not apart or (_CLOSE in whole and whole.lstrip().startswith(thought)):  # some send the thought twice
        return whole, whole != content and _CLOSE not in whole
    if not content.strip():
        return thought, True
    return f"{thought}\n{_CLOSE}\n\n" + content.lstrip("\n"), False


def _string(message: Mapping[str, object], *names: str) -> str:
    """The first text under one of these names."""
    texts = (message[name] for name in names if message.get(name) and isinstance(message[name], str))
    # A lone half of a surrogate pair, which JSON can hold, cannot be written to a file.
    return next(texts, "").encode(errors="replace").decode()


def _without_prompt(content: str, statement: str) -> str:
    """Without a prompt in front: tags, the statement whatever its blanks, tags."""
    if not _TAGS.match(content):
        return content
    spaced = r"\s*".join(map(re.escape, "".join(statement.split())))
    return re.sub(rf"\A{_TAGS.pattern}{spaced}{_TAGS.pattern}", "", content)
