"""Forks of a process that computes nothing: one that tells where it is until it is killed, and groups."""

import os
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import BinaryIO, Self

from torch.distributed import TCPStore

LIMIT = 100  # seconds for a group of processes, after which it hangs

Tell = Callable[[str], None]


def telling(work: Callable[[Tell], None], stand_still: tuple[str, int] | None) -> tuple[int, int]:
    """A fork that works, and the pipe's end that it tells its moments to; at one it may stop for good."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        os.close(reading)
        told = Counter()

        def tell(moment: str) -> None:
            os.write(writing, moment.encode() + b"\n")
            told[moment] += 1
            if (moment, told[moment]) == stand_still:
                time.sleep(600)  # until it is killed

        work(tell)
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


class InTwoParts:
    """A file, opened without a buffer, into which each write goes in two parts, cut where `middle` says."""

    def __init__(
        self, file: BinaryIO, middle: Callable[[int], int], between: Callable[[], None],
        after: Callable[[], None],
    ) -> None:  # fmt: skip
        self._file, self._middle, self._between, self._after = file, middle, between, after

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def write(self, content: bytes) -> int:
        middle = self._middle(len(content))
        self._file.write(content[:middle])
        self._between()
        self._file.write(content[middle:])
        self._after()
        return len(content)


def told_until(pipe: int, moment: str, count: int) -> bytes:
    """What a fork tells until it has told a moment so often, or has ended by itself."""
    told = b""
    deadline = time.monotonic() + 300
    while told.decode().split("\n").count(moment) < count and time.monotonic() < deadline:
        if select.select([pipe], [], [], 1)[0]:
            part = os.read(pipe, 4096)
            if not part:
                break
            told += part
    return told


def told_to_the_end(pipe: int) -> bytes:
    """What a fork still tells; the pipe is closed."""
    told = b""
    while part := os.read(pipe, 4096):
        told += part
    os.close(pipe)
    return told


def ended(child: int, pipe: int, *, kill: bool) -> tuple[bytes, int]:
    """What a fork still tells, and its status, once it is killed or has come to its end."""
    if kill:
        os.kill(child, signal.SIGKILL)
    told = told_to_the_end(pipe)
    _, status = os.waitpid(child, 0)
    return told, status


def group(processes: int, work: Callable[[int], None]) -> None:
    """Forks that work together, each with its rank, in the environment that torchrun sets.

    This process holds the store at which they meet, on a port that the system chooses, so that no port can be
    taken meanwhile.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            try:
                if processes > 1:
                    os.environ |= {
                        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                        "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(store.port),
                        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the parent's, as with torchrun
                    }  # fmt: skip
                work(rank)
                sys.stderr.flush()
                os._exit(0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        children.append(child)
    deadline, failed = time.monotonic() + LIMIT, None
    while children and failed is None:
        for child in list(children):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                children.remove(child)
                failed = "a process failed" if status else failed
        if time.monotonic() > deadline:
            failed = f"training with {processes} processes hangs"
        time.sleep(0.02)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if failed:
        raise SystemExit(failed)
