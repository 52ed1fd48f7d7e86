"""Traces from a teacher behind an OpenAI-compatible address: DeepSeek's API, vLLM, `transformers serve`.

    traces = collect_remote_traces(
        "https://api.deepseek.com", "deepseek-reasoner", problems, "traces.jsonl",
        key_variable="DEEPSEEK_API_KEY", prices=(0.55, 2.19), cost_budget=5.0,
    )

The prices are an example, R1's first: they change, and so does what a name such as "deepseek-reasoner" means.
"""

import os
import warnings
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from kdlib.arguments import check_counts, check_whole, is_number
from kdlib.language.answers.final_answer import verify_answer
from kdlib.language.collector import Collector
from kdlib.language.problems import Problem
from kdlib.language.server import Failure, Usage
from kdlib.language.traces.collect import Verifier, check_references, keep, missing_traces, wanted_traces
from kdlib.language.traces.file import Asked, Trace, TraceFile, open_traces
from kdlib.language.traces.reply import Reply, tokens_by_bytes
from kdlib.language.traces.server import ChatServer
from kdlib.runtime import substream
from kdlib.storage import identity

__all__ = ["BudgetReached", "TracesMissing", "collect_remote_traces"]

_SET_BY_US = {
    "model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stream", "n",
}  # fmt: skip
_TEMPLATE_TOKENS = 64  # more than a chat template adds to a statement


class BudgetReached(UserWarning):
    """Traces are missing because the budget has no room for another request."""


class TracesMissing(RuntimeError):
    """Requests failed for good: `traces` that there are, and `reasons` by key and sample why others are not.

    What arrived is kept; the same call asks for what is missing.
    """

    def __init__(self, message: str, traces: Sequence[Trace], reasons: Mapping[tuple[str, int], str]) -> None:
        super().__init__(message)
        self.traces, self.reasons = traces, reasons


def collect_remote_traces(
    url: str, model: str, problems: Sequence[Problem], path: str | os.PathLike | None = None, *,
    samples: int = 4, temperature: float = 0.6, top_p: float = 0.95, max_new_tokens: int = 32768,
    seed: int | None = 0, concurrency: int = 8, token_budget: int | None = None,
    cost_budget: float | None = None, prices: tuple[float, float] | None = None, retries: int = 8,
    timeout: float = 1800.0, key_variable: str | None = None,
    extra_body: Mapping[str, object] | None = None, tokenizer: PreTrainedTokenizerBase | None = None,
    verify: Verifier = verify_answer, progress: bool = False,
) -> list[Trace]:  # fmt: skip
    """Let a model behind an address answer each problem several times, and verify what it writes.

    The statement is the only message: R1 wants no system prompt. With a path each trace goes to a file as it
    arrives, together with what it cost, and a run that was killed or interrupted continues, as for
    `collect_traces`; only requests in flight are lost. The file is bound to the model's name and all else
    that shapes a text, not to the address.

    A request is repeated, after pauses that grow to 8 seconds or as long as Retry-After or the headers of a
    limit say (`x-ratelimit-reset-requests: 6m0s`; up to half an hour), on status 408, 409, 429 and from 500,
    after time-outs and broken connections; one whose reply is garbled or holds no text, with another seed. A
    request that is refused (400, 413, 422) costs only its own trace; one that is refused for max_tokens,
    top_p, seed or temperature is sent as the server wants it, and a warning names what it was not told.

    The run ends early when no request can succeed (401 to 404), when `concurrency` in a row got nothing from
    the server, when those of ten problems in a row were refused or got replies of no use, and, as long as no
    reply could be read, at the first whose shape says that none will be, or after ten; the message shows the
    first.

    Args:
        url: up to /v1: "http://localhost:8000/v1", "https://api.deepseek.com".
        model: its name there.
        problems, path, samples, verify, progress: as for `collect_traces`.
        temperature, top_p: likewise. DeepSeek's reasoner ignores them; `transformers serve` samples only if
            the model's generation_config says do_sample.
        max_new_tokens: of thought and answer together (sent as max_tokens); where a trace is cut off.
        seed: of the seeds sent, one for each trace; None sends none, for servers that refuse it. Not even
            with it are texts sure to be the same again.
        concurrency: requests in flight at once.
        token_budget: output tokens that may be spent, by all runs into this file together.
        cost_budget: dollars that may be spent, likewise; needs `prices`. Both stop before a request that
            could go beyond, if all in flight need max_new_tokens. Not known, and not counted, is what
            requests cost that failed, or were in flight when a run was killed.
        prices: dollars per million input and output tokens; with discounts (cached input) it costs less.
        retries: how often a request is repeated.
        timeout: seconds in which nothing arrives until a request counts as failed.
        key_variable: name of the environment variable that holds the key for this address. None sends none,
            whatever the environment holds: a key should reach only whom it is for.
        tokenizer: counts tokens where the server does not say how many there were. None takes one for each
            1.8 bytes, which is too many for most texts, so that a budget rather ends early.
        extra_body: more for each request, such as {"chat_template_kwargs": {"thinking": True}} for vLLM.

    Returns:
        The traces as `collect_traces`; fewer, with a warning `BudgetReached`, where the budget was reached.

    Raises:
        ValueError: as for `collect_traces`; an environment variable without a key; a key for an address that
            is neither https nor on this machine.
        TimeoutError, RuntimeError: as for `collect_traces`.
        TracesMissing: requests failed for good; it says why, and how to fix it.
    """
    wanted = wanted_traces(
        problems, samples, temperature, top_p, max_new_tokens=max_new_tokens, concurrency=concurrency
    )
    check_references(problems, verify)
    budgets = {"token_budget": token_budget, "cost_budget": cost_budget}
    _check_spending(prices, timeout=timeout, **budgets)
    check_counts(least=0, retries=retries)
    if seed is not None:
        check_whole("seed", seed)
    extra = _checked_extra(extra_body)
    sampling = {"temperature": float(temperature), "top_p": float(top_p)}
    parameters = {**sampling, "max_tokens": max_new_tokens, "extra_body": extra}
    count = tokens_by_bytes if tokenizer is None else lambda text: len(tokenizer.tokenize(text))
    server = ChatServer(str(url).rstrip("/"), model, key_variable, retries, timeout, parameters, count)
    settings = {
        "teacher": model, **sampling, "max_new_tokens": max_new_tokens, "seed": seed, "extra_body": extra,
        "verify": identity(verify),
    }  # fmt: skip
    with open_traces(path, settings) as file:
        waiting = deque(missing_traces(wanted, file))
        done = len(wanted) - len(waiting)
        spending = Spending(token_budget or inf, cost_budget or inf, prices or (0, 0))
        for note in file.notes:
            spending.add(note["usage"], note.get("counted", False))
        with tqdm(desc="traces", total=len(wanted), initial=done, disable=not progress) as bar:
            collector = TraceCollector(
                server=server, file=file, bar=bar, verify=verify, spending=spending, waiting=waiting,
                concurrency=concurrency, retries=retries, max_new_tokens=max_new_tokens, seed=seed,
                readable=bool(file.traces),
            )  # fmt: skip
            with server.connected() as portal:
                collector.collect(portal)
        traces = [file.traces[asked] for asked in wanted if asked in file.traces]
    if server.left_out:
        warnings.warn(
            f"the server refuses {' and '.join(server.left_out)}, which it was therefore not told: its own "
            "setting holds there, or chance",
            stacklevel=2,
        )
    where = "kept" if path is None else f"in {path}"
    have = f"{len(traces):,} of {len(wanted):,} traces are {where}; {spending} spent"
    if collector.failures:
        reasons = {(problem.key, sample): reason for (problem, sample), reason in collector.failures.items()}
        key, sample = next(iter(reasons))
        summary = collector.summary(f"sample {sample} of {key!r}")
        raise TracesMissing(f"{summary}. {have}; the same call asks for the others", traces, reasons)
    if waiting:
        given = " and ".join(f"{name}={value:,}" for name, value in budgets.items() if value is not None)
        warnings.warn(
            f"{given} has no room for another request of {max_new_tokens:,} output tokens: {have}. With a "
            "larger one the same call continues",
            BudgetReached,
            stacklevel=2,
        )
    return traces


def _check_spending(prices: object, cost_budget: float | None, **more: float | None) -> None:
    for name, value in {**more, "cost_budget": cost_budget}.items():
        if value is not None and not (is_number(value) and value > 0):
            raise ValueError(f"{name} must be above 0; got {value!r}")
    told = isinstance(prices, Sequence) and len(prices) == 2
    told = told and all(is_number(price) and 0 <= price < inf for price in prices)
    if cost_budget is not None if prices is None else not told:
        raise ValueError(
            f"prices must be (input, output), in dollars per million tokens, at least 0; got {prices!r} with "
            f"cost_budget={cost_budget}"
        )


def _checked_extra(extra_body: object) -> dict[str, object]:
    if not (extra_body is None or isinstance(extra_body, Mapping)):
        raise ValueError(f"extra_body is {extra_body!r:.60}; expected names and values, as a dictionary")
    extra = dict(extra_body or {})
    if clash := sorted(extra.keys() & _SET_BY_US):
        raise ValueError(f"extra_body holds {', '.join(clash)}; expected the argument of that purpose")
    return extra


@dataclass
class Spending:
    """Output tokens and dollars to spend at most, the prices of input and output, and the tokens so far."""

    most_tokens: float
    most_dollars: float
    prices: tuple[float, float]
    tokens: Counter[str] = field(default_factory=Counter)  # input_tokens, output_tokens
    counted: bool = False  # whether some were counted here

    def add(self, usage: Usage, counted: bool) -> None:
        self.tokens.update(usage)
        self.counted = self.counted or counted

    def allows(self, inputs: int, outputs: int) -> bool:
        """Whether so many more tokens may be spent."""
        total = self.tokens + Counter(input_tokens=inputs, output_tokens=outputs)
        return total["output_tokens"] <= self.most_tokens and self._cost(total) <= self.most_dollars

    def _cost(self, tokens: Counter[str]) -> float:
        return (tokens["input_tokens"] * self.prices[0] + tokens["output_tokens"] * self.prices[1]) / 1e6

    def __str__(self) -> str:
        inputs, outputs = self.tokens["input_tokens"], self.tokens["output_tokens"]
        cost = f", ${self._cost(self.tokens):,.4f}" if any(self.prices) else ""
        about = "about " if self.counted else ""
        return f"{about}{inputs:,} input and {outputs:,} output tokens{cost}"


@dataclass(kw_only=True)
class TraceCollector(Collector[Asked, Reply]):
    """Puts traces into a file."""

    server: ChatServer
    file: TraceFile
    verify: Verifier
    spending: Spending
    max_new_tokens: int
    seed: int | None

    def has_room(self, asked: Collection[Asked]) -> bool:
        # A token of a byte-level tokenizer is at least one byte.
        inputs = sum(len(problem.statement.encode()) + _TEMPLATE_TOKENS for problem, _ in asked)
        return self.spending.allows(inputs, len(asked) * self.max_new_tokens)

    async def ask(self, asked: Asked, again: int) -> Reply | Failure:
        problem, sample = asked
        purpose, seed = f"trace {problem.key}" + (f" again {again}" if again else ""), None
        if self.seed is not None:
            seed = substream(self.seed, purpose, sample) % 2**31  # which every server can hold
        return await self.server.ask(problem.statement, seed)

    def topic(self, asked: Asked) -> Problem:
        return asked[0]

    def store(self, asked: Asked, outcome: Reply | Failure) -> None:
        """The trace and what it cost, in one piece; the cost also where there is no trace."""
        note = {"usage": outcome.usage}
        counted = isinstance(outcome, Reply) and outcome.counted
        self.spending.add(outcome.usage, counted)
        if isinstance(outcome, Reply):
            # A thought without an end is no answer, though it may read like one.
            before = "<think>\n" if outcome.unclosed else ""
            note |= {"model": outcome.model} | ({"counted": True} if counted else {})
            if self.server.left_out:
                note["left_out"] = self.server.left_out
            keep(self.file, [asked], [outcome.completion], self.verify, before=before, notes=[note])
        elif outcome.usage:
            self.file.append([], [note])
        self.bar.set_postfix_str(str(self.spending), refresh=False)
