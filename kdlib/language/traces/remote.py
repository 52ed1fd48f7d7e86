"""Traces from a teacher behind an OpenAI-compatible address: DeepSeek's API, vLLM, `transformers serve`.

    traces = collect_remote_traces(
        "https://api.deepseek.com", "deepseek-reasoner", problems, "traces.jsonl",
        key_variable="DEEPSEEK_API_KEY", prices=(0.55, 2.19), cost_budget=5.0,
    )

The prices are an example, R1's first: they change, and so does what a name such as "deepseek-reasoner" means.
For a model of one's own, vLLM is the server to choose. Through `kdlib.language.traces.collect`, batch by batch in
this process, a small one needs no server.
"""

import ipaddress
import os
import queue
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from anyio.from_thread import start_blocking_portal
from tqdm.auto import tqdm

from kdlib.language.answers.final_answer import verify_answer
from kdlib.language.problems import Problem
from kdlib.language.traces.asking import Asker, Budget, Job, Teacher
from kdlib.language.traces.collect import Verifier, check_request, check_same_problems, judged_trace
from kdlib.language.traces.file import Trace, TraceFile
from kdlib.language.traces.generate import check_sampling
from kdlib.language.traces.replies import Reply, Usage
from kdlib.runtime import substream
from kdlib.storage import identity

__all__ = ["BudgetReached", "TracesMissing", "Usage", "collect_remote_traces"]

_SET_BY_US = ("model", "messages", "temperature", "top_p", "max_tokens", "seed", "stream", "n")


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

    The statement is the only message: R1 wants no system prompt. Thoughts are understood whether the server
    sends them apart or in the text, and `Trace.text` is the same for both (`kdlib.language.traces.replies`).

    With a path each trace goes to the file of `collect_traces` as it arrives, together with what it cost. A
    run that was killed at any moment continues when it is called again, as does one with more problems or
    more samples. Lost are the replies that had not arrived, and the few that were not yet verified. Replies
    are verified, and the file is written, in the calling thread; requests are made in another, so that this
    can be called where an event loop runs, as in a notebook. An interrupt (Ctrl-C) drops the requests in
    flight and keeps what has arrived.

    The file is bound to the name of the model, temperature, top_p, max_new_tokens, seed, extra_body, and the
    name of `verify`; not to the address, which changes whenever a server is started again. The name is taken
    at its word: "deepseek-reasoner" is whatever DeepSeek serves under it today. What each reply says of its
    model is in the file's notes.

    What may help is tried again, after 1, 2, 4, … 60 seconds (shortened at random) or what Retry-After says:
    status 408, 409, 425, 429 and from 500, time-outs, broken connections, replies that are not JSON or hold
    no text. A request that is refused (400, 413, 422) costs only its own trace. The run ends early when no
    request can succeed (401 to 404), or none does: `concurrency` in a row got nothing from the server, or
    those of ten problems in a row were refused or got replies of no use.

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
        retries: how often a request is tried again.
        timeout: seconds for one request, from the first byte sent to the last received.
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
        TracesMissing: requests failed for good; it says why, and how to mend it.
        RuntimeError: `verify` failed; it says on which trace. The other traces are kept.
    """
    problems = list(problems)
    check_request(problems, temperature, samples=samples, concurrency=concurrency)
    check_sampling(temperature, top_p, max_new_tokens)
    _check_limits(token_budget, cost_budget, prices, retries, timeout)
    extra = dict(extra_body or {})
    if clash := sorted(extra.keys() & set(_SET_BY_US)):
        raise ValueError(f"extra_body holds {', '.join(clash)}; expected the argument of that purpose")
    request = {"temperature": float(temperature), "top_p": float(top_p), "max_tokens": max_new_tokens}
    teacher = _teacher(url, model, key_variable, request | {"extra_body": extra}, timeout)
    settings = {
        "teacher": model, "temperature": float(temperature), "top_p": float(top_p),
        "max_new_tokens": max_new_tokens, "seed": seed, "extra_body": extra, "verify": identity(verify),
    }  # fmt: skip

    def seed_of(job: Job, bad: int) -> int | None:
        # 31 bits, which every server can hold. A reply that was no good is not asked for a second time.
        purpose = f"trace {job.problem.key}" + f" again {bad}" * bool(bad)
        return None if seed is None else substream(seed, purpose, job.sample) % 2**31

    wanted = [Job(problem, sample) for problem in problems for sample in range(samples)]
    with TraceFile(path, settings) as file:
        check_same_problems(problems, file)
        spent = sum((Usage(**note["usage"]) for note in file.notes), Usage())
        missing = [job for job in wanted if (job.problem.key, job.sample) not in file.traces]
        budget = Budget(spent, tokens=token_budget, dollars=cost_budget, prices=prices)
        arrived: queue.SimpleQueue = queue.SimpleQueue()
        asker = Asker(
            teacher, budget, concurrency=min(concurrency, len(missing)) or 1, retries=retries,
            max_new_tokens=max_new_tokens, seed_of=seed_of, received=lambda *reply: arrived.put(reply),
        )  # fmt: skip

        async def ask() -> None:
            try:
                await asker.ask(missing)
            finally:
                arrived.put(None)

        bar = tqdm(desc="traces", total=len(wanted), initial=len(wanted) - len(missing), disable=not progress)
        with bar:
            try:
                with start_blocking_portal() as portal:
                    asked = portal.start_task_soon(ask)
                    for job, reply, usage in _until_none(arrived):
                        _keep(file, teacher, job, reply, usage, verify)
                        spent += usage
                        bar.update(reply is not None)
                        bar.set_postfix_str(_told(spent, prices), refresh=False)
                    asked.result()
            except BaseException:
                # What has arrived is paid for.
                while not arrived.empty():
                    if (late := arrived.get()) is not None:
                        with suppress(RuntimeError):
                            _keep(file, teacher, *late, verify)
                raise
        traces = [
            file.traces[job.problem.key, job.sample]
            for job in wanted
            if (job.problem.key, job.sample) in file.traces
        ]
    have = f"{len(traces):,} of {len(wanted):,} traces are " + ("kept" if path is None else f"in {path}")
    if asker.given_up:
        raise TracesMissing(
            f"{_summary(asker)}. {have}; {_told(spent, prices)} spent; the same call asks for the others",
            traces, {(job.problem.key, job.sample): reason for job, reason in asker.given_up},
        )  # fmt: skip
    if asker.out_of_budget:
        limits = {"token_budget": token_budget, "cost_budget": cost_budget}
        limit = " and ".join(f"{name}={value:,}" for name, value in limits.items() if value is not None)
        warnings.warn(
            f"{limit} has no room for another request of {max_new_tokens:,} output tokens: {have}; "
            f"{_told(spent, prices)} spent. With a larger one the same call continues",
            BudgetReached,
            stacklevel=2,
        )
    return traces


def _keep(
    file: TraceFile, teacher: Teacher, job: Job, reply: Reply | None, usage: Usage, verify: Verifier
) -> None:
    """The trace and what it cost, in one piece; the cost also where there is no trace."""
    note: dict[str, object] = {"usage": vars(usage) | {}}
    traces = []
    try:
        if reply is not None:
            note["model"] = reply.model
            # A thought without an end is no answer, though it may read like one.
            before = "<think>\n" if reply.unclosed else ""
            traces.append(judged_trace(job.problem, job.sample, reply.completion, verify, before=before))
    finally:
        file.append(traces, [note])


def _until_none(arrived: queue.SimpleQueue) -> Iterator[tuple[Job, Reply | None, Usage]]:
    while True:
        try:
            # On Windows an interrupt is noticed between two waits only.
            item = arrived.get(timeout=0.5)
        except queue.Empty:
            continue
        if item is None:
            return
        yield item


def _told(spent: Usage, prices: tuple[float, float] | None) -> str:
    cost = "" if prices is None else f", ${spent.cost(prices):,.4f}"
    return f"{spent.input_tokens:,} input and {spent.output_tokens:,} output tokens{cost}"


def _summary(asker: Asker) -> str:
    reasons: dict[str, list[Job]] = {}
    for job, reason in asker.given_up:
        reasons.setdefault(reason, []).append(job)
    lines = [
        f"{reason} ({len(jobs)} times, first for sample {jobs[0].sample} of {jobs[0].problem.key!r})"
        for reason, jobs in list(reasons.items())[:3]
    ]
    more = f"; and {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
    start = f"stopped: {asker.stopped}. " if asker.stopped else ""
    return f"{start}{len(asker.given_up)} requests failed: {'; '.join(lines)}{more}"


def _check_limits(token_budget, cost_budget, prices, retries, timeout) -> None:
    for name, value in (("token_budget", token_budget), ("cost_budget", cost_budget), ("timeout", timeout)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0; got {value!r}")
    if retries < 0:
        raise ValueError(f"retries must be at least 0; got {retries!r}")
    if cost_budget is not None and prices is None:
        raise ValueError(
            f"cost_budget={cost_budget} needs prices=(input, output), in dollars per million tokens; got None"
        )
    if prices is not None and (len(prices) != 2 or not all(price >= 0 for price in prices)):
        raise ValueError(
            f"prices must be (input, output), in dollars per million tokens, at least 0; got {prices!r}"
        )


def _teacher(
    url: str, model: str, key_variable: str | None, request: Mapping[str, object], timeout: float
) -> Teacher:
    parts = urllib.parse.urlsplit(url)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # Not shown: there may be a key in it.
        raise ValueError("url must be scheme, host and path; got one with more, where no key belongs either")
    if parts.scheme not in ("http", "https") or not parts.hostname or url.endswith("/chat/completions"):
        raise ValueError(
            f"url must be an http or https address up to /v1, such as http://localhost:8000/v1; got {url!r}"
        )
    if not model:
        raise ValueError("model must be the name under which the server knows it; got an empty one")
    loopback = _is_loopback(parts.hostname)
    key = None
    if key_variable is not None:
        key = os.environ.get(key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"key_variable is {key_variable!r}, but that environment variable holds "
                f"{'no key' if not key else 'characters that no key has'}; set it to the key for "
                f"{parts.hostname}, or pass None where none is needed"
            )
        if parts.scheme == "http" and not loopback:
            raise ValueError(
                f"url {url} would carry the key of {key_variable} through the network unencrypted; expected "
                "https, or an address on this machine (an SSH tunnel ends there), or key_variable=None"
            )
    return Teacher(url.rstrip("/"), loopback, model, key, key_variable, request, timeout)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
