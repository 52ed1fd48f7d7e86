"""A server with an OpenAI-compatible address: whom a key may reach, what is repeated, when to ask again.

A server that is asked too often says when to come back: in Retry-After, or for each of its limits as
`x-ratelimit-reset-requests: 6m0s` (OpenAI, Groq), a moment (`anthropic-ratelimit-tokens-reset`) or seconds.

The client of the package openai makes the requests, and repeats those that failed. It runs in a thread with
an event loop, so that all this can be called where a loop runs already, as in a notebook. Which request is
next, what it may cost and what is kept is decided in the calling thread, one thing after another.
"""

import asyncio
import json
import os
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import ClassVar, Literal, TypeVar

import openai
from anyio.from_thread import BlockingPortal, start_blocking_portal

__all__ = ["SHOWN", "Failure", "Fault", "Server", "Usage", "pause"]

SHOWN = 400  # characters of what a server says
LONGEST_WAIT = 1800.0  # seconds until a server may be asked again; nobody waits for hours
_LONGEST_PAUSE = 8.0  # seconds before a reply of no use is asked for again, as the client's between retries
_CLIENT_WAITS = 120.0  # seconds that openai's client waits itself
_SECRET = 8  # characters that a key has at least; "EMPTY", vLLM's for none, may occur in texts
_BUSY = (429, 503, 529)
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400}

Fault = Literal["server", "reply", "shape", "request", "everything"]
Usage = dict[str, int]  # input_tokens and output_tokens, for which a server charges; empty if it is not known
Asked, Answer = TypeVar("Asked"), TypeVar("Answer")


class Failure(ValueError):
    """A request without a usable reply, and why.

    The fault of the "server" or network: the client has tried again. Of the "reply": asked again, it may be
    another. Of its "shape": each reply will have it. Of the "request": the same would happen again; of
    "everything": to any request. `reply` is the beginning of what came, where something came.
    """

    def __init__(self, reason: str, usage: Usage | None = None, fault: Fault = "reply") -> None:
        super().__init__(reason)
        self.usage, self.fault, self.reply = usage or {}, fault, ""


class Server:
    """A model behind an address.

    Raises:
        ValueError: an address that is none, or to which no key should go; a variable without a key.
    """

    REFUSED: ClassVar[str]  # what to do about a request that is refused

    def __init__(self, url: str, model: str, key_variable: str | None, retries: int, timeout: float) -> None:
        local = _checked(url, key_variable)
        self.url, self.model, self._key_variable, self._retries = url, model, key_variable, retries
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
    def headers(self) -> dict[str, object] | None:
        """What a request has to be given, so that it carries no key where there is none."""
        return None if self._key else {"Authorization": openai.Omit()}

    @contextmanager
    def connected(self) -> Iterator[BlockingPortal]:
        """A thread with an event loop, for `ask_each`."""
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self.client):
            yield portal

    def ask_each(
        self, portal: BlockingPortal, following: Callable[[Collection[Asked]], Asked | None],
        ask: Callable[[Asked], Awaitable[Answer]], receive: Callable[[Asked, Answer], None],
        keep: Callable[[Asked, Answer], None],
    ) -> None:  # fmt: skip
        """Ask for one thing after another, several at once.

        Args:
            following: of those in flight, what to ask for too, or None as long as these are enough.
            ask: makes a request, in the event loop.
            receive: is given each thing and its answer, in the calling thread.
            keep: likewise, of what arrived before an interruption: it is paid for.
        """
        flying = {}
        try:
            while True:
                while (asked := following(flying.values())) is not None:
                    flying[portal.start_task_soon(ask, asked)] = asked
                if not flying:
                    return
                # On Windows an interrupt is noticed between two waits only.
                done = futures.wait(flying, timeout=0.5, return_when=futures.FIRST_COMPLETED).done
                for future in done:
                    receive(flying.pop(future), future.result())
        except BaseException:
            for future, asked in flying.items():
                if not future.cancel():
                    with suppress(RuntimeError):
                        keep(asked, future.result())
            raise

    async def rest(self, times: int) -> None:
        """Before something is asked for again, of which replies were of no use so many times."""
        if times:
            await asyncio.sleep(min(_LONGEST_PAUSE, 2.0 ** (times - 1)))

    async def reply(
        self, send: Callable[[], Awaitable[object]], read: Callable[[object], Answer],
        give_way: Callable[[openai.APIStatusError], bool] = lambda error: False,
    ) -> Answer | Failure:  # fmt: skip
        """What `read` makes of the reply, from JSON. Nothing is raised: the errors of the client hold keys.

        Args:
            send: makes the request, by the client, and returns its raw response.
            read: raises a Failure where the reply is of no use.
            give_way: whether `send` will now leave out what a server refused by name.
        """
        text = await self._text(send, give_way)
        if isinstance(text, Failure):
            return text
        try:
            return read(json.loads(text))
        except Failure as found:
            failure = found
        except (ValueError, RecursionError) as error:
            # What is sent piece by piece, though nobody asked for it, will be so again.
            fault = "shape" if text.lstrip().startswith(("data:", "event:")) else "reply"
            failure = Failure(f"the reply is not JSON ({error}): {text[:80]!r}", fault=fault)
        failure.reply = text[:SHOWN]
        return failure

    async def _text(
        self, send: Callable[[], Awaitable[object]], give_way: Callable[[openai.APIStatusError], bool]
    ) -> str | Failure:
        waits, refusals = 0, {}
        while True:
            try:
                raw = await send()
                # A server that sends the key back would bring it into the file.
                return self._without_key(raw.http_response.content.decode("utf-8-sig", errors="replace"))
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
                if refusal.fault == "request" and give_way(error):
                    continue
                said = "; then, without that: ".join(refusals)
                return Failure(said, fault=refusal.fault)
            except openai.APIConnectionError as error:
                said = self._without_key(f"{error.message} {error.__cause__ or ''}")
                return Failure(said[:SHOWN], fault="server")

    def _refusal(self, error: openai.APIStatusError) -> Failure:
        said = self._without_key(f"{error.status_code}: {error.body or error.message}")[:SHOWN]
        # OpenAI sends status 429 when the money is used up.
        status = 402 if error.code == "insufficient_quota" else error.status_code
        if status >= 500 or status in (408, 409, 429):
            later = error.response.headers.get("retry-after")
            said += f", Retry-After: {later}" if later else ""
            return Failure(f"the server fails ({said})", fault="server")
        if status in (400, 413, 422):
            return Failure(f"the server refuses the request ({said}): {self.REFUSED}", fault="request")
        key = f"key_variable must name an environment variable with its key; it is {self._key_variable!r}"
        fixes = {401: key, 403: key, 402: "the account's balance or quota is used up"}
        address = (
            f"expected that {self.url} is an OpenAI-compatible address up to /v1, and {self.model!r} among "
            f"what {self.url}/models lists"
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
