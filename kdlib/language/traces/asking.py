"""Many requests to one server: so many at once, each tried again when that may help, within a budget."""

import asyncio
import email.utils
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import openai

from kdlib.language.problems import Problem
from kdlib.language.traces.replies import BadReply, Reply, Usage, read_reply

__all__ = ["Asker", "Budget", "Job", "Teacher", "pause_before"]

_FIRST_PAUSE, _LONGEST_PAUSE, _LONGEST_RETRY_AFTER = 1.0, 60.0, 600.0  # seconds
_SECRET = 8  # characters that a key has at least; "EMPTY", vLLM's for none, may occur in texts
_HOPELESS = 10  # problems in a row that fail one by one before all are given up
_SHOWN = 400  # characters of what a server says
_TEMPLATE_TOKENS = 64  # more than a chat template adds to a statement


@dataclass(frozen=True)
class Job:
    """One sample of one problem."""

    problem: Problem
    sample: int


@dataclass(frozen=True)
class Teacher:
    """Who is asked, and how.

    Attributes:
        url: the address up to /v1. loopback: whether it is this machine's.
        model: as the server names it.
        key: sent as bearer token; None for none. Not in the repr.
        key_variable: the environment variable that it comes from.
        request: what every request holds beside model, messages and seed.
        timeout: seconds for one request.
    """

    url: str
    loopback: bool
    model: str
    key: str | None = field(repr=False)
    key_variable: str | None
    request: Mapping[str, object]
    timeout: float

    def client(self) -> openai.AsyncOpenAI:
        """A client that sends this key or none, to this address only, and tries nothing twice."""
        # No proxy between a machine and itself, and no redirection: the key is for this address.
        http = openai.DefaultAsyncHttpxClient(trust_env=not self.loopback, follow_redirects=False)
        client = openai.AsyncOpenAI(
            # Without one the client takes OPENAI_API_KEY from the environment, whoever is asked.
            api_key=self.key or "none",
            base_url=self.url,
            max_retries=0,
            # No answer for minutes is usual; `asyncio.timeout` ends the request as a whole.
            timeout=openai.Timeout(None, connect=min(10.0, self.timeout)),
            http_client=http,
        )
        # What OPENAI_ORG_ID and OPENAI_PROJECT_ID say is nobody else's business.
        client.organization = client.project = None
        return client

    def without_key(self, text: str) -> str:
        """The text as it may be shown and kept."""
        return text.replace(self.key, "[key]") if self.key and len(self.key) >= _SECRET else text


class Budget:
    """Tokens and dollars that may be spent.

    Before each request, the most it can cost is put aside; it is settled when the reply says what it did
    cost. A request that fails is settled with nothing, for nobody says what it cost.

    Args:
        spent: before.
        tokens: of output, at most; None for no limit.
        dollars: at most; None for no limit.
        prices: dollars per million input and output tokens.
    """

    def __init__(
        self,
        spent: Usage,
        *,
        tokens: int | None = None,
        dollars: float | None = None,
        prices: tuple[float, float] | None = None,
    ) -> None:
        self.spent, self._aside = spent, Usage()
        self._tokens, self._dollars, self._prices = tokens, dollars, prices
        self._settled = asyncio.Condition()

    def fits(self, most: Usage) -> bool:
        """Whether this much more may be spent, if all that is put aside is."""
        total = self.spent + self._aside + most
        if self._tokens is not None and total.output_tokens > self._tokens:
            return False
        return self._dollars is None or total.cost(self._prices) <= self._dollars

    async def put_aside(self, most: Usage) -> bool:
        """Put it aside, once there is room; False if there will never be."""
        async with self._settled:
            # Requests in flight mostly cost less than was put aside for them.
            await self._settled.wait_for(lambda: self.fits(most) or self._aside == Usage())
            if not self.fits(most):
                return False
            self._aside += most
            return True

    async def settle(self, most: Usage, usage: Usage) -> None:
        """Spend what a request did cost."""
        self._aside += Usage(-most.replies, -most.input_tokens, -most.output_tokens)
        self.spent += usage
        async with self._settled:
            self._settled.notify_all()


@dataclass(frozen=True)
class Failed:
    """A request without a usable reply.

    Attributes:
        reason: what to show.
        fault: whose it is. Of the "server" or the network: to be tried again. Of the "reply": to be tried
            again, with another seed. Of the "request": the same would happen again. Of "everything": to any
            request.
        wait: seconds that the server wants to be left alone.
    """

    reason: str
    fault: Literal["server", "reply", "request", "everything"]
    wait: float | None = None


class Asker:
    """Asks a teacher for samples.

    Args:
        teacher: whom.
        budget: shared by all requests.
        concurrency: requests in flight, at most.
        retries: how often a request is tried again.
        seed_of: the seed of a job's request, given how many replies to it were no good; None for none.
        received: called with each reply: the job, the reply or None if it is of no use, and what it cost.

    Attributes:
        given_up: jobs and the reason of each.
        stopped: why no more requests were made; None if none was left.
        out_of_budget: whether that was it.
    """

    def __init__(
        self,
        teacher: Teacher,
        budget: Budget,
        *,
        concurrency: int,
        retries: int,
        max_new_tokens: int,
        seed_of: Callable[[Job, int], int | None],
        received: Callable[[Job, Reply | None, Usage], None],
    ) -> None:
        self._teacher, self._budget = teacher, budget
        self._concurrency, self._retries, self._max_new_tokens = concurrency, retries, max_new_tokens
        self._seed_of, self._received = seed_of, received
        self._stop = asyncio.Event()
        self._silences, self._hopeless = 0, set()
        self.given_up: list[tuple[Job, str]] = []
        self.stopped: str | None = None
        self.out_of_budget = False

    async def ask(self, jobs: Iterable[Job]) -> None:
        """Ask for all of them. What went wrong is in the attributes; nothing is raised for it."""
        left = iter(jobs)
        async with self._teacher.client() as client, asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._work(client, left))

    async def _work(self, client: openai.AsyncOpenAI, left: Iterator[Job]) -> None:
        while not self._stop.is_set() and (job := next(left, None)) is not None:
            failed = await self._one(client, job)
            if failed is None:
                self._silences, self._hopeless = 0, set()
                continue
            self.given_up.append((job, failed.reason))
            # A server that is gone fails every request; a problem that cannot be asked, each of its samples.
            if failed.fault == "server":
                self._silences += 1
            else:
                self._hopeless.add(job.problem.key)
            if failed.fault == "everything":
                self._end("no other request can succeed")
            elif self._silences >= self._concurrency:
                self._end(f"{self._silences} requests in a row got nothing from the server")
            elif len(self._hopeless) >= _HOPELESS:
                self._end(f"those of {_HOPELESS} problems in a row failed one by one")

    def _end(self, reason: str) -> None:
        self.stopped = self.stopped or reason
        self._stop.set()

    async def _one(self, client: openai.AsyncOpenAI, job: Job) -> Failed | None:
        """None where it succeeded, and where all stopped before it did."""
        bad = 0
        # A token of a byte-level tokenizer is at least one byte.
        most = Usage(1, len(job.problem.statement.encode()) + _TEMPLATE_TOKENS, self._max_new_tokens)
        for attempt in range(self._retries + 1):
            if not await self._budget.put_aside(most):
                self.out_of_budget = True
                self._end("the budget is used up")
                return None
            usage = Usage()
            try:
                if self._stop.is_set():
                    return None
                outcome, usage = await self._attempt(client, job, bad)
            finally:
                await self._budget.settle(most, usage)
            if isinstance(outcome, Reply):
                self._received(job, outcome, usage)
                return None
            if usage != Usage():
                self._received(job, None, usage)
            bad += outcome.fault == "reply"
            if outcome.fault in ("request", "everything"):
                return outcome
            if attempt < self._retries and await self._stopped_within(pause_before(attempt, outcome.wait)):
                return None
        return outcome

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stop.wait()
        except TimeoutError:
            return False

    async def _attempt(self, client: openai.AsyncOpenAI, job: Job, bad: int) -> tuple[Reply | Failed, Usage]:
        # Nothing is raised from here but what is no failure of a request: the errors of the client hold the
        # request, and that holds the key.
        teacher, seed = self._teacher, self._seed_of(job, bad)
        try:
            async with asyncio.timeout(teacher.timeout):
                raw = await client.chat.completions.with_raw_response.create(
                    model=teacher.model,
                    messages=[{"role": "user", "content": job.problem.statement}],
                    seed=openai.omit if seed is None else seed,
                    extra_headers=None if teacher.key else {"Authorization": openai.Omit()},
                    **teacher.request,
                )
        except TimeoutError:
            return Failed(f"no reply within {teacher.timeout:g} seconds", "server"), Usage()
        except openai.APIStatusError as error:
            return self._refusal(error), Usage()
        except openai.APIConnectionError as error:
            return Failed(self._shown(f"{error.message} {error.__cause__ or ''}".strip()), "server"), Usage()
        # A server that sends the key back would bring it into the file.
        text = teacher.without_key(raw.http_response.content.decode("utf-8-sig", errors="replace"))
        try:
            reply = read_reply(json.loads(text), job.problem.statement)
        except BadReply as error:
            return Failed(str(error)[:_SHOWN], "reply"), error.usage or Usage()
        except (ValueError, RecursionError) as error:
            return Failed(f"the reply is not JSON ({error}): {text[:80]!r}", "reply"), Usage()
        return reply, reply.usage

    def _shown(self, text: str) -> str:
        return self._teacher.without_key(text)[:_SHOWN]

    def _refusal(self, error: openai.APIStatusError) -> Failed:
        status, teacher = error.status_code, self._teacher
        said = self._shown(f"{status}: {_message(error)}")
        if error.code == "insufficient_quota":  # OpenAI's, with status 429
            status = 402
        match status:
            case 400 | 413 | 422:
                mend = (
                    "if the statement is too long, shorten it or lower max_new_tokens; if it refuses a "
                    "parameter, leave that out (seed=None sends no seed)"
                )
                return Failed(f"the server refuses the request ({said}): {mend}", "request")
            case 401 | 403 if teacher.key is None:
                mend = "it wants a key: put it into an environment variable and pass the name as key_variable"
            case 401 | 403:
                mend = f"see that the environment variable {teacher.key_variable} holds a key of this server"
            case 402:
                mend = "the account's balance or quota is used up"
            case 404:
                mend = (
                    f"expected that {teacher.url} is the address up to /v1, and model, {teacher.model!r}, "
                    f"one that {teacher.url}/models lists"
                )
            case _ if status >= 500 or status in (408, 409, 425, 429):
                wait = _retry_after(error.response.headers)
                if wait is not None and wait > _LONGEST_RETRY_AFTER:
                    return Failed(f"the server asks to wait {wait:,.0f} seconds ({said})", "everything")
                return Failed(f"the server fails ({said})", "server", wait)
            case _:
                mend = f"expected that {teacher.url} is the address of an OpenAI-compatible server up to /v1"
        return Failed(f"the server refuses ({said}): {mend}", "everything")


def pause_before(attempt: int, wait: float | None) -> float:
    """Seconds to wait before trying again: 1, 2, 4, … 60, of which a random half is left out.

    The random part keeps requests that failed together from coming back together (exponential backoff with
    jitter).

    Args:
        attempt: how many have failed before the last one.
        wait: what the server asks for; never less than that.
    """
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt, 30))
    return max(wait or 0.0, 0.0) + longest * random.uniform(0.5, 1.0)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """RFC 9110, section 10.2.3: seconds, or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _message(error: openai.APIStatusError) -> str:
    match error.body:
        case {"message": str(message)} | {"error": str(message)} | {"detail": str(message)} | str(message):
            return message or error.message
    return error.message if error.body is None else str(error.body)
