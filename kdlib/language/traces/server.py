"""Requests to an OpenAI-compatible server: what it is asked, what it refuses, and when it may be asked again.

Servers do not all take the same parameters. OpenAI's reasoning models want `max_completion_tokens` instead of
`max_tokens` and no temperature; Anthropic's newer ones refuse `top_p` beside it; Mistral's API knows no
`seed`. A parameter that a server refuses by name is left out, or renamed, from then on.

A server that is asked too often says when to come back: in Retry-After, or for each of its limits as
`x-ratelimit-reset-requests: 6m0s` (OpenAI, Groq), a moment (`anthropic-ratelimit-tokens-reset`) or seconds.
"""

import asyncio
import json
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import openai

from kdlib.language.traces.reply import SHOWN, Failure, Reply, read_reply, tokens_by_bytes

__all__ = ["Server", "pause"]

LONGEST_WAIT = 1800.0  # seconds until a server may be asked again; nobody waits for hours
_CLIENT_WAITS = 120.0  # seconds that openai's client waits itself
_SECRET = 8  # characters that a key has at least; "EMPTY", vLLM's for none, may occur in texts
_BUSY = (429, 503, 529)
_NAMED = re.compile(r"\b(?:max_completion_tokens|max_tokens|top_p|seed|temperature)\b")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Server:
    """A model behind an address, as for `collect_remote_traces`; requests hold further `parameters`.

    Raises:
        ValueError: an address that is none, or to which no key should go; a variable without a key.
    """

    def __init__(
        self, url: str, model: str, key_variable: str | None, retries: int, timeout: float,
        parameters: Mapping[str, object], count: Callable[[str], int] = tokens_by_bytes,
    ) -> None:  # fmt: skip
        local = _checked(url, key_variable)
        self._url, self._key_variable, self._model, self._parameters = url, key_variable, model, parameters
        self._retries, self._count = retries, count
        self._left_out: tuple[str, ...] = ()
        self._key = key_variable and os.environ[key_variable].strip()
        self.client = openai.AsyncOpenAI(
            # Without one the client takes OPENAI_API_KEY from the environment, whatever server is asked.
            api_key=self._key or "none",
            base_url=url,
            max_retries=retries,
            timeout=openai.Timeout(timeout, connect=min(10.0, timeout)),
            # No proxy between a machine and itself, and no redirection: the key is for this address.
            http_client=openai.DefaultAsyncHttpxClient(
                trust_env=not local, follow_redirects=False, event_hooks={"response": [_say_when]}
            ),
        )
        # What OPENAI_ORG_ID and OPENAI_PROJECT_ID say is nobody else's business.
        self.client.organization = self.client.project = None

    @property
    def left_out(self) -> tuple[str, ...]:
        """What this server has refused to be told, and was not told any more."""
        return tuple(name for name in self._left_out if name != "max_tokens")  # which only has another name

    async def ask(self, statement: str, seed: int | None) -> Reply | Failure:
        """The reply to a statement. Failures are not raised: the client's errors hold the key."""
        left_out, waits, refusals = self._left_out, 0, {}
        while True:
            try:
                raw = await self._sent(statement, seed, left_out)
                break
            except openai.APIStatusError as error:
                refusal = self._refusal(error)
                wait = pause(error.response.headers) or 0.0
                # openai's client has not tried again where the wait is longer than it waits itself.
                ours = error.status_code in _BUSY and _CLIENT_WAITS < wait <= LONGEST_WAIT
                if ours and waits < self._retries:
                    waits += 1
                    await asyncio.sleep(wait)
                    continue
                refusals[str(refusal)] = refusal
                if refusal.fault == "request" and (name := self._unwanted(error, statement, seed, left_out)):
                    left_out = (*left_out, name)
                    continue
                said = "; then, without that: ".join(refusals)
                return Failure(said, fault=refusal.fault)
            except openai.APIConnectionError as error:
                said = self._without_key(f"{error.message} {error.__cause__ or ''}")
                return Failure(said[:SHOWN], fault="server")
        self._left_out = left_out  # it has helped
        # A server that sends the key back would bring it into the file.
        text = self._without_key(raw.http_response.content.decode("utf-8-sig", errors="replace"))
        try:
            return read_reply(json.loads(text), statement, self._parameters["max_tokens"], self._count)
        except Failure as failure:
            failure.reply = text[:SHOWN]
            return failure
        except (ValueError, RecursionError) as error:
            # What is sent piece by piece, though nobody asked for it, will be so again.
            fault = "shape" if text.lstrip().startswith(("data:", "event:")) else "reply"
            failure = Failure(f"the reply is not JSON ({error}): {text[:80]!r}", fault=fault)
            failure.reply = text[:SHOWN]
            return failure

    async def _sent(self, statement: str, seed: int | None, left_out: tuple[str, ...]) -> object:
        given = {**self._parameters, **({} if seed is None else {"seed": seed})}
        if "max_tokens" in left_out:
            given["max_completion_tokens"] = given["max_tokens"]
        return await self.client.chat.completions.with_raw_response.create(
            model=self._model,
            messages=[{"role": "user", "content": statement}],
            extra_headers=None if self._key else {"Authorization": openai.Omit()},
            **{name: value for name, value in given.items() if name not in left_out},
        )

    def _unwanted(
        self, error: openai.APIStatusError, statement: str, seed: int | None, left_out: tuple[str, ...]
    ) -> str | None:
        """The parameter that a server refuses by name, of those that it can be asked without."""
        said = f"{error.body or error.message}".replace(statement, "")
        named = {name.replace("max_completion_tokens", "max_tokens") for name in _NAMED.findall(said)}
        # Of two that exclude each other the first goes. A temperature of 0 is more than a wish.
        possible = ["max_tokens", "top_p", *["seed"] * (seed is not None)]
        possible += ["temperature"] * (self._parameters["temperature"] > 0)
        return next((name for name in possible if name in named and name not in left_out), None)

    def _refusal(self, error: openai.APIStatusError) -> Failure:
        said = self._without_key(f"{error.status_code}: {error.body or error.message}")[:SHOWN]
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


async def _say_when(response: object) -> None:
    """Tell openai's client in the one header that it reads how long a server wants to be left alone."""
    if response.status_code in _BUSY and (wait := pause(response.headers)) is not None:
        response.headers.pop("retry-after-ms", None)
        response.headers["retry-after"] = f"{wait:.10g}"


def pause(headers: Mapping[str, str]) -> float | None:
    """Seconds until a server may be asked again, by the headers of its refusal; None if it does not say.

    Of several limits those count that are used up, and of these the one that lasts longest.
    """
    said = {name.lower(): value for name, value in headers.items()}
    for name, unit in (("retry-after-ms", "ms"), ("retry-after", "")):
        if name in said and (wait := _seconds(said[name] + unit)) is not None:
            return wait
    resets = {
        name: wait for name, value in said.items()
        if re.search("rate-?limit.*reset", name) and (wait := _seconds(value)) is not None
    }  # fmt: skip
    used_up = [wait for name, wait in resets.items() if said.get(name.replace("reset", "remaining")) == "0"]
    return max(used_up or resets.values(), default=None)


def _seconds(text: str) -> float | None:
    """A number of seconds, a duration such as 6m0s, or how long it is to a moment in time."""
    text = text.strip()
    with suppress(ValueError):
        number = float(text)
        if not 0 <= number < 1e15:
            return None
        if number < 1e9:
            return number
        # Else it would be years: seconds or milliseconds since 1970.
        return max(0.0, (number / 1000 if number > 1e11 else number) - time.time())
    found = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)", text)
    if found and "".join(map("".join, found)) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in found)
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(ValueError):
            moment = read(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return max(0.0, moment.timestamp() - time.time())
    return None
