"""Many things asked of a server, several at once: what is asked for again, what is given up, when all is."""

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from anyio.from_thread import BlockingPortal
from tqdm.auto import tqdm

from kdlib.language.server import Failure, Server

__all__ = ["Collector"]

_HOPELESS = 10  # things in a row that fail one by one, or first replies of no use, before all are given up
Asked, Answer = TypeVar("Asked", bound=Hashable), TypeVar("Answer")


@dataclass(kw_only=True)
class Collector(ABC, Generic[Asked, Answer]):
    """Asks a server for what is waiting, and hands on what arrives.

    It stops when no request can succeed, when `concurrency` in a row got nothing from the server, when ten
    things in a row were refused or got replies of no use, and, as long as no reply could be read, at the
    first whose shape says that none will be, or after ten.
    """

    server: Server
    bar: tqdm
    waiting: deque[Asked]
    concurrency: int
    retries: int
    readable: bool  # whether a reply could be read, by this run or one before
    failures: dict[Asked, str] = field(default_factory=dict)  # why requests were given up
    useless: Counter[Asked] = field(default_factory=Counter)  # replies of no use, that are asked again
    unreadable: int = 0  # replies that could not be read
    shown: str = ""  # the first that could not
    # Since the last reply: requests without an answer, and things that failed one by one.
    unanswered: int = 0
    hopeless: set[Hashable] = field(default_factory=set)
    stopped: bool = False

    @abstractmethod
    def has_room(self, asked: Collection[Asked]) -> bool:
        """Whether the budget allows for all these, most of them in flight."""

    @abstractmethod
    async def ask(self, asked: Asked, again: int) -> Answer | Failure:
        """Make a request, in the event loop; `again` times there was a reply of no use."""

    @abstractmethod
    def store(self, asked: Asked, outcome: Answer | Failure) -> None:
        """Keep what has arrived, and what it cost."""

    def topic(self, asked: Asked) -> Hashable:
        """What is hopeless together, as samples of one problem are."""
        return asked

    def collect(self, portal: BlockingPortal) -> None:
        """Ask as far as the budget goes and there is hope."""
        self.server.ask_each(portal, self._following, self._ask, self._receive, self.store)

    def _following(self, flying: Collection[Asked]) -> Asked | None:
        if not self.waiting or self.stopped or len(flying) >= self.concurrency:
            return None
        # What is in flight mostly costs less than it may, so that there can be room later.
        return self.waiting.popleft() if self.has_room([self.waiting[0], *flying]) else None

    async def _ask(self, asked: Asked) -> Answer | Failure:
        again = self.useless[asked]
        await self.server.rest(again)
        return await self.ask(asked, again)

    def _receive(self, asked: Asked, outcome: Answer | Failure) -> None:
        self.store(asked, outcome)
        if not isinstance(outcome, Failure):
            self.bar.update()
            self.unanswered, self.hopeless, self.readable = 0, set(), True
            return
        self.shown = self.shown or outcome.reply
        self.unreadable += outcome.fault in ("reply", "shape")
        # What cannot be read from the start is paid for without end.
        never = not self.readable and (outcome.fault == "shape" or self.unreadable >= _HOPELESS)
        if outcome.fault == "reply" and self.useless[asked] < self.retries and not never:
            self.useless[asked] += 1
            self.waiting.appendleft(asked)
        else:
            self.failures[asked] = str(outcome)
            # A server that is gone fails every request; what cannot be asked, each of its samples.
            if outcome.fault == "server":
                self.unanswered += 1
            else:
                self.hopeless.add(self.topic(asked))
            gone = self.unanswered >= self.concurrency or len(self.hopeless) >= _HOPELESS
            self.stopped = self.stopped or gone or never or outcome.fault == "everything"

    def summary(self, first: str) -> str:
        """How many requests failed, the first of them by its name, and the most frequent reasons."""
        reasons = Counter(self.failures.values()).most_common(3)
        told = "; ".join(f"{reason} ({count} times)" for reason, count in reasons)
        early = "stopped early: " if self.stopped else ""
        shown = f". The first reply of no use begins: {self.shown!r}" if self.shown else ""
        return f"{early}{len(self.failures)} requests failed, first for {first}: {told}{shown}"
