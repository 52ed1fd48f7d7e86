"""Traces from a teacher behind an OpenAI-compatible address: DeepSeek's API, vLLM, `transformers serve`.

    traces = collect_remote_traces(
        "https://api.deepseek.com", "deepseek-reasoner", problems, "traces.jsonl",
        key_variable="DEEPSEEK_API_KEY", prices=(0.55, 2.19), cost_budget=5.0,
    )

The prices are an example, R1's first: they change, and so does what a name such as "deepseek-reasoner" means.
For a model of one's own, vLLM is the server to choose. A small one needs no server: `collect_traces`.

The client of the package openai makes the requests, and repeats those that failed. It runs in a thread with
an event loop, so that all this can be called where a loop runs already, as in a notebook. Which request is
next, what it may cost and what is kept is decided in the calling thread, one thing after another.
"""

import asyncio
import os
import warnings
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import inf

from anyio.from_thread import start_blocking_portal
from tqdm.auto import tqdm

from kdlib.language.answers.final_answer import verify_answer
from kdlib.language.problems import Problem
from kdlib.language.traces.collect import Verifier, check_request, check_same_problems, judged_trace
from kdlib.language.traces.file import Trace, TraceFile
from kdlib.language.traces.server import Failure, Reply, Server, Usage
from kdlib.runtime import substream
from kdlib.storage import identity

__all__ = ["BudgetReached", "TracesMissing", "collect_remote_traces"]

_SET_BY_US = {"model", "messages", "temperature", "top_p", "max_tokens", "seed", "stream", "n"}
_LONGEST_PAUSE = 60.0  # seconds before a reply of no use is asked for again
_HOPELESS = 10  # problems in a row that fail one by one before all are given up
_TEMPLATE_TOKENS = 64  # more than a chat template adds to a statement


class BudgetReached(UserWarning):
    """Traces are missing because the budget has no room for another request."""


class TracesMissing(RuntimeError):
    """Requests failed for good. What arrived is kept; the same call asks for what is missing.

    Attributes:
        traces: what there is, in the order that `collect_remote_traces` returns.
        reasons: why there is no trace, by key and sample, of those that were asked for in vain.
    """

    def __init__(self, message: str, traces: Sequence[Trace], reasons: Mapping[tuple[str, int], str]) -> None:
        super().__init__(message)
        self.traces, self.reasons = list(traces), dict(reasons)


def collect_remote_traces(
    url: str,
    model: str,
    problems: Sequence[Problem],
    path: str | os.PathLike | None = None,
    *,
    samples: int = 4,
    temperature: float = 0.6,
    top_p: float = 0.95,
    max_new_tokens: int = 32768,
    seed: int | None = 0,
    concurrency: int = 8,
    token_budget: int | None = None,
    cost_budget: float | None = None,
    prices: tuple[float, float] | None = None,
    retries: int = 8,
    timeout: float = 1800.0,
    key_variable: str | None = None,
    extra_body: Mapping[str, object] | None = None,
    verify: Verifier = verify_answer,
    progress: bool = False,
) -> list[Trace]:
    """Let a model behind an address answer each problem several times, and verify what it writes.

    The statement is the only message: R1 wants no system prompt. `Trace.text` is the same whether the server
    sends thoughts apart or in the text.

    With a path each trace goes to the file of `collect_traces` as it arrives, together with what it cost. A
    run that was killed at any moment, or interrupted, continues when it is called again, as does one with
    more problems or samples; only requests in flight are lost. The file is bound to all that shapes a text,
    the model's name among it; not to the address, which changes whenever a server is started again. What
    each reply says of its model is in the file's notes.

    A request is repeated, after pauses that grow or as Retry-After says, on status 408, 409, 429 and from
    500, after time-outs and broken connections; one whose reply is garbled or holds no text, with another
    seed. A request that is refused (400, 413, 422) costs only its own trace. The run ends early when no
    request can succeed (401 to 404), when `concurrency` in a row got nothing from the server, or when those
    of ten problems in a row were refused or got replies of no use.

    Args:
        url: up to /v1: "http://localhost:8000/v1", "https://api.deepseek.com".
        model: its name there.
        problems: with different keys.
        path: the file; None keeps the traces in memory only.
        samples: of each problem.
        temperature, top_p: as for `collect_traces`. DeepSeek's reasoner ignores them; `transformers serve`
            samples only if the model's generation_config says do_sample.
        max_new_tokens: of thought and answer together (sent as max_tokens); where a trace is cut off.
        seed: of the seeds sent, one for each trace; servers that know none ignore it, some refuse it: None
            sends none. Not even with it are texts sure to be the same again.
        concurrency: requests in flight at once.
        token_budget: output tokens that may be spent, by all runs into this file together.
        cost_budget: dollars that may be spent, likewise; needs `prices`. Both stop before a request that
            could go beyond: all requests in flight are taken to need max_new_tokens. Not known, and not
            counted, is what requests cost that failed, or were in flight when a run was killed.
        prices: dollars per million input and output tokens; with discounts (cached input) it costs less.
        retries: how often a request is repeated.
        timeout: seconds in which nothing arrives until a request counts as failed.
        key_variable: name of the environment variable that holds the key for this address. None sends none,
            whatever the environment holds: a key should reach only whom it is for.
        extra_body: more for each request, such as {"chat_template_kwargs": {"thinking": True}} for vLLM.
        verify: as for `collect_traces`.
        progress: show a bar, with tokens and cost.

    Returns:
        The traces of these problems, as `collect_traces`; fewer where the budget was reached, which warns
        with `BudgetReached`.

    Raises:
        ValueError: an argument out of its range; equal keys; a problem that the file holds with another
            statement or answer; an environment variable without a key; a key for an address that is neither
            https nor on this machine.
        ForeignFile, DamagedFile: ValueErrors; see `TraceFile`.
        TimeoutError: another process is collecting into the file.
        TracesMissing: requests failed for good; it says why, and how to fix it.
        RuntimeError: `verify` failed; it says on which trace. The other traces are kept.
    """
    problems = list(problems)
    check_request(
        problems, samples, temperature, top_p, max_new_tokens=max_new_tokens, concurrency=concurrency
    )
    _check_limits(retries, timeout, token_budget, cost_budget, prices)
    limit = SpendingLimit(token_budget or inf, cost_budget or inf, prices)
    extra = dict(extra_body or {})
    if clash := sorted(extra.keys() & _SET_BY_US):
        raise ValueError(f"extra_body holds {', '.join(clash)}; expected the argument of that purpose")
    sampling = {"temperature": float(temperature), "top_p": float(top_p)}
    parameters = {**sampling, "max_tokens": max_new_tokens, "extra_body": extra}
    server = Server(url.rstrip("/"), model, key_variable, retries, timeout, parameters)
    settings = {
        "teacher": model, **sampling, "max_new_tokens": max_new_tokens, "seed": seed, "extra_body": extra,
        "verify": identity(verify),
    }  # fmt: skip
    wanted = [Request(problem, sample) for problem in problems for sample in range(samples)]
    with TraceFile(path, settings) as file:
        check_same_problems(problems, file)
        missing = [request for request in wanted if request.place not in file.traces]
        done = len(wanted) - len(missing)
        with tqdm(desc="traces", total=len(wanted), initial=done, disable=not progress) as bar:
            collector = Collector(
                server, file, limit, bar, concurrency, retries, max_new_tokens, seed, verify
            )
            collector.collect(missing)
        traces = [file.traces[request.place] for request in wanted if request.place in file.traces]
    have = (
        f"{len(traces):,} of {len(wanted):,} traces are {'kept' if path is None else f'in {path}'}; "
        f"{limit.told(collector.spent)} spent"
    )
    if collector.failures:
        raise TracesMissing(
            f"{collector.summary()}. {have}; the same call asks for the others", traces, collector.failures
        )
    if collector.out_of_budget:
        budgets = {"token_budget": token_budget, "cost_budget": cost_budget}
        given = " and ".join(f"{name}={value:,}" for name, value in budgets.items() if value is not None)
        warnings.warn(
            f"{given} has no room for another request of {max_new_tokens:,} output tokens: {have}. With a "
            "larger one the same call continues",
            BudgetReached,
            stacklevel=2,
        )
    return traces


def _check_limits(
    retries: int, timeout: float, token_budget: int | None, cost_budget: float | None,
    prices: tuple[float, float] | None,
) -> None:  # fmt: skip
    for name, value in (("token_budget", token_budget), ("cost_budget", cost_budget), ("timeout", timeout)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0; got {value!r}")
    if retries < 0:
        raise ValueError(f"retries must be at least 0; got {retries!r}")
    if (prices is None and cost_budget is not None) or (
        prices is not None and (len(prices) != 2 or not all(price >= 0 for price in prices))
    ):
        raise ValueError(
            f"prices must be (input, output), in dollars per million tokens, at least 0; got {prices!r}"
            + f" with cost_budget={cost_budget}" * (prices is None)
        )


@dataclass(frozen=True)
class Request:
    """One sample of one problem, to be asked for; `garbled` counts the replies to it that were of no use."""

    problem: Problem
    sample: int
    garbled: int = 0

    @property
    def place(self) -> tuple[str, int]:
        """Key and sample, as in `TraceFile.traces`."""
        return self.problem.key, self.sample


@dataclass(frozen=True)
class SpendingLimit:
    """Output tokens and dollars to spend at most, and the prices of input and output."""

    tokens: float
    dollars: float
    prices: tuple[float, float] | None

    def allows(self, usage: Usage) -> bool:
        """Whether this much may be spent in all."""
        return usage.output_tokens <= self.tokens and usage.cost(self.prices or (0, 0)) <= self.dollars

    def told(self, usage: Usage) -> str:
        """Tokens and, where prices are known, dollars, for people."""
        cost = f", ${usage.cost(self.prices):,.4f}" if self.prices else ""
        return f"{usage.input_tokens:,} input and {usage.output_tokens:,} output tokens{cost}"


class Collector:
    """Asks a server for traces, several at once, and puts what arrives into a file.

    Args: as of `collect_remote_traces`.

    Attributes:
        spent: by all runs into the file.
        failures: why requests were given up, by key and sample.
        stopped: why no more requests were made though some failed; None if there was no reason.
        out_of_budget: whether requests are left for which there is no money.
    """

    def __init__(
        self, server: Server, file: TraceFile, limit: SpendingLimit, bar: tqdm, concurrency: int,
        retries: int, max_new_tokens: int, seed: int | None, verify: Verifier,
    ) -> None:  # fmt: skip
        self._server, self._file, self._limit, self._bar = server, file, limit, bar
        self._concurrency, self._retries, self._verify = concurrency, retries, verify
        self._max_new_tokens, self._seed = max_new_tokens, seed
        self._unanswered, self._hopeless = 0, set()
        usages = (note["usage"] for note in file.notes)
        self.spent = sum((Usage(u["input_tokens"], u["output_tokens"]) for u in usages), Usage())
        self.failures: dict[tuple[str, int], str] = {}
        self.stopped: str | None = None
        self.out_of_budget = False

    def collect(self, requests: Sequence[Request]) -> None:
        """Ask for all of them; what went wrong is in the attributes."""
        waiting, flying = deque(requests), {}
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self._server.client):
            try:
                while flying or (waiting and not self.stopped):
                    while self._may_start(waiting, flying.values()):
                        request = waiting.popleft()
                        flying[portal.start_task_soon(self._ask, request)] = request
                    if not flying:
                        self.out_of_budget = True
                        return
                    # On Windows an interrupt is noticed between two waits only.
                    wait(flying, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in [future for future in flying if future.done()]:
                        self._receive(flying.pop(future), future.result(), waiting)
            except BaseException:
                self._rescue(flying)
                raise

    def _may_start(self, waiting: Sequence[Request], flying: Collection[Request]) -> bool:
        if not waiting or self.stopped or len(flying) >= self._concurrency:
            return False
        # What is in flight mostly costs less than it may, so that there can be room later.
        return self._limit.allows(sum(map(self._most, [waiting[0], *flying]), self.spent))

    def _most(self, request: Request) -> Usage:
        # A token of a byte-level tokenizer is at least one byte.
        return Usage(len(request.problem.statement.encode()) + _TEMPLATE_TOKENS, self._max_new_tokens)

    async def _ask(self, request: Request) -> Reply | Failure:
        if request.garbled:
            await asyncio.sleep(min(_LONGEST_PAUSE, 2.0 ** (request.garbled - 1)))
        seed = None
        if self._seed is not None:
            purpose = f"trace {request.problem.key}" + f" again {request.garbled}" * bool(request.garbled)
            seed = substream(self._seed, purpose, request.sample) % 2**31  # which every server can hold
        return await self._server.ask(request.problem.statement, seed)

    def _receive(self, request: Request, outcome: Reply | Failure, waiting: deque[Request]) -> None:
        self._keep(request, outcome)
        self._bar.set_postfix_str(self._limit.told(self.spent), refresh=False)
        if isinstance(outcome, Reply):
            self._bar.update()
            self._unanswered, self._hopeless = 0, set()
        elif outcome.fault == "reply" and request.garbled < self._retries:
            waiting.appendleft(replace(request, garbled=request.garbled + 1))
        else:
            self._give_up(request, outcome)

    def _give_up(self, request: Request, failure: Failure) -> None:
        self.failures[request.place] = failure.reason
        # A server that is gone fails every request; a problem that cannot be asked, each of its samples.
        if failure.fault == "server":
            self._unanswered += 1
        else:
            self._hopeless.add(request.problem.key)
        if self.stopped:
            return
        if failure.fault == "everything":
            self.stopped = "no other request can succeed"
        elif self._unanswered >= self._concurrency:
            self.stopped = f"{self._unanswered} requests in a row got nothing from the server"
        elif len(self._hopeless) >= _HOPELESS:
            self.stopped = f"those of {_HOPELESS} problems in a row failed one by one"

    def _keep(self, request: Request, outcome: Reply | Failure) -> None:
        """The trace and what it cost, in one piece; the cost also where there is no trace."""
        if outcome.usage is None:
            return
        self.spent += outcome.usage
        note: dict[str, object] = {"usage": asdict(outcome.usage)}
        traces = []
        try:
            if isinstance(outcome, Reply):
                note["model"] = outcome.model
                # A thought without an end is no answer, though it may read like one.
                before = "<think>\n" if outcome.unclosed else ""
                place = request.problem, request.sample
                traces.append(judged_trace(*place, outcome.completion, self._verify, before=before))
        finally:
            self._file.append(traces, [note])

    def _rescue(self, flying: Mapping[Future, Request]) -> None:
        """Keep what has arrived, which is paid for, and drop the other requests."""
        for future, request in flying.items():
            if not future.cancel():
                with suppress(RuntimeError):
                    self._keep(request, future.result())

    def summary(self) -> str:
        """What failed, how often and why."""
        reasons: dict[str, list[tuple[str, int]]] = {}
        for place, reason in self.failures.items():
            reasons.setdefault(reason, []).append(place)
        lines = [
            f"{reason} ({len(places)} times, first for sample {places[0][1]} of {places[0][0]!r})"
            for reason, places in list(reasons.items())[:3]
        ]
        more = f"; and {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
        start = f"stopped: {self.stopped}. " if self.stopped else ""
        return f"{start}{len(self.failures)} requests failed: {'; '.join(lines)}{more}"
