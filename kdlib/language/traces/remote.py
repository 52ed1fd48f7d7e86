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
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import inf

from anyio.from_thread import start_blocking_portal
from tqdm.auto import tqdm

from kdlib.language.answers.final_answer import verify_answer
from kdlib.language.problems import Problem
from kdlib.language.traces.collect import Verifier, keep, missing_traces, wanted_traces
from kdlib.language.traces.file import Asked, Trace, TraceFile, open_traces
from kdlib.language.traces.server import Failure, Reply, Server, Usage
from kdlib.runtime import substream
from kdlib.storage import identity

__all__ = ["BudgetReached", "TracesMissing", "collect_remote_traces"]

_SET_BY_US = {"model", "messages", "temperature", "top_p", "max_tokens", "seed", "stream", "n"}
_LONGEST_PAUSE = 8.0  # seconds before a reply of no use is asked for again, as for the client's own retries
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
    each reply says about its model is in the file's notes.

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
        ForeignFile, DamagedFile: ValueErrors; see `open_traces`.
        TimeoutError: another process is collecting into the file.
        TracesMissing: requests failed for good; it says why, and how to fix it.
        RuntimeError: `verify` failed; it says on which trace. The other traces are kept.
    """
    wanted = wanted_traces(
        problems, samples, temperature, top_p, max_new_tokens=max_new_tokens, concurrency=concurrency
    )
    budgets = {"token_budget": token_budget, "cost_budget": cost_budget}
    for name, value in {**budgets, "timeout": timeout}.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0; got {value!r}")
    if retries < 0:
        raise ValueError(f"retries must be at least 0; got {retries!r}")
    if cost_budget is not None if prices is None else len(prices) != 2 or min(prices) < 0:
        raise ValueError(
            f"prices must be (input, output), in dollars per million tokens, at least 0; got {prices!r} with "
            f"cost_budget={cost_budget}"
        )
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
    with open_traces(path, settings) as file:
        waiting = deque(missing_traces(wanted, file))
        done = len(wanted) - len(waiting)
        spent = sum((Usage(**note["usage"]) for note in file.notes), Usage())
        spending = Spending(token_budget or inf, cost_budget or inf, prices, spent)
        with tqdm(desc="traces", total=len(wanted), initial=done, disable=not progress) as bar:
            collector = Collector(
                server, file, spending, bar, waiting, concurrency, retries, max_new_tokens, seed, verify
            )
            collector.collect()
        traces = [file.traces[asked] for asked in wanted if asked in file.traces]
    have = (
        f"{len(traces):,} of {len(wanted):,} traces are {'kept' if path is None else f'in {path}'}; "
        f"{spending} spent"
    )
    if collector.failures:
        reasons = {(problem.key, sample): why for (problem, sample), why in collector.failures.items()}
        message = f"{collector.summary()}. {have}; the same call asks for the others"
        raise TracesMissing(message, traces, reasons)
    if len(traces) < len(wanted):
        given = " and ".join(f"{name}={value:,}" for name, value in budgets.items() if value is not None)
        warnings.warn(
            f"{given} has no room for another request of {max_new_tokens:,} output tokens: {have}. With a "
            "larger one the same call continues",
            BudgetReached,
            stacklevel=2,
        )
    return traces


@dataclass
class Spending:
    """Output tokens and dollars to spend at most, the prices of input and output, and what has been spent."""

    tokens: float
    dollars: float
    prices: tuple[float, float] | None
    spent: Usage

    def allows(self, more: Iterable[Usage]) -> bool:
        """Whether so much more may be spent."""
        total = sum(more, self.spent)
        return total.output_tokens <= self.tokens and total.cost(self.prices or (0, 0)) <= self.dollars

    def __str__(self) -> str:
        cost = f", ${self.spent.cost(self.prices):,.4f}" if self.prices else ""
        return f"{self.spent.input_tokens:,} input and {self.spent.output_tokens:,} output tokens{cost}"


@dataclass
class Collector:
    """Asks a server for traces, several at once, and puts what arrives into a file.

    Attributes:
        waiting: what is to be asked for yet; the others are as of `collect_remote_traces`.
        failures: why requests were given up.
    """

    server: Server
    file: TraceFile
    spending: Spending
    bar: tqdm
    waiting: deque[Asked]
    concurrency: int
    retries: int
    max_new_tokens: int
    seed: int | None
    verify: Verifier
    failures: dict[Asked, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._useless: Counter[Asked] = Counter()  # replies that held no text
        # Since the last reply: requests without an answer, and problems that failed one by one.
        self._unanswered, self._hopeless = 0, set()
        self._stopped = False

    def collect(self) -> None:
        """Ask for all that is waiting, as far as the budget goes and there is hope."""
        flying: dict[Future, Asked] = {}
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self.server.client):
            try:
                while True:
                    while self._may_start(flying.values()):
                        asked = self.waiting.popleft()
                        flying[portal.start_task_soon(self._ask, asked)] = asked
                    if not flying:
                        return
                    # On Windows an interrupt is noticed between two waits only.
                    wait(flying, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in [future for future in flying if future.done()]:
                        self._receive(flying.pop(future), future.result())
            except BaseException:
                # What has arrived is paid for.
                for future, asked in flying.items():
                    if not future.cancel():
                        with suppress(RuntimeError):
                            self._store(asked, future.result())
                raise

    def _may_start(self, flying: Collection[Asked]) -> bool:
        if not self.waiting or self._stopped or len(flying) >= self.concurrency:
            return False
        # What is in flight mostly costs less than it may, so that there can be room later. A token of a
        # byte-level tokenizer is at least one byte.
        return self.spending.allows(
            Usage(len(problem.statement.encode()) + _TEMPLATE_TOKENS, self.max_new_tokens)
            for problem, _ in [self.waiting[0], *flying]
        )

    async def _ask(self, asked: Asked) -> Reply | Failure:
        problem, sample = asked
        purpose, seed = f"trace {problem.key}", None
        if again := self._useless[asked]:
            purpose += f" again {again}"
            await asyncio.sleep(min(_LONGEST_PAUSE, 2.0 ** (again - 1)))
        if self.seed is not None:
            seed = substream(self.seed, purpose, sample) % 2**31  # which every server can hold
        return await self.server.ask(problem.statement, seed)

    def _receive(self, asked: Asked, outcome: Reply | Failure) -> None:
        self._store(asked, outcome)
        self.bar.set_postfix_str(str(self.spending), refresh=False)
        if isinstance(outcome, Reply):
            self.bar.update()
            self._unanswered, self._hopeless = 0, set()
            return
        if outcome.fault == "reply" and self._useless[asked] < self.retries:
            self._useless[asked] += 1
            self.waiting.appendleft(asked)
            return
        self.failures[asked] = str(outcome)
        # A server that is gone fails every request; a problem that cannot be asked, each of its samples.
        if outcome.fault == "server":
            self._unanswered += 1
        else:
            self._hopeless.add(asked[0])
        if (
            outcome.fault == "everything"
            or self._unanswered >= self.concurrency
            or len(self._hopeless) >= _HOPELESS
        ):
            self._stopped = True

    def _store(self, asked: Asked, outcome: Reply | Failure) -> None:
        """The trace and what it cost, in one piece; the cost also where there is no trace."""
        if outcome.usage is None:
            return
        self.spending.spent += outcome.usage
        note = {"usage": asdict(outcome.usage)}
        if isinstance(outcome, Failure):
            self.file.append([], [note])
            return
        # A thought without an end is no answer, though it may read like one.
        before = "<think>\n" if outcome.unclosed else ""
        notes = [{**note, "model": outcome.model}]
        keep(self.file, [asked], [outcome.completion], self.verify, before=before, notes=notes)

    def summary(self) -> str:
        """What failed, how often and why."""
        first = {reason: asked for asked, reason in reversed(self.failures.items())}
        told = [
            f"{reason} ({count} times, first for sample {first[reason][1]} of {first[reason][0].key!r})"
            for reason, count in Counter(self.failures.values()).most_common(3)
        ]
        early = "stopped early: " if self._stopped else ""
        return f"{early}{len(self.failures)} requests failed: {'; '.join(told)}"
