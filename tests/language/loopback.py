"""HTTP servers on this machine for tests: one that is told what to answer, and one that spoils another's.

Both run in a thread with an event loop, on a port that the system chooses.
"""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

END = b"\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """What a client has sent; the number counts from 0."""

    number: int
    path: str
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> dict:
        return json.loads(self.content)

    @property
    def statement(self) -> str:
        return self.body["messages"][-1]["content"]


@dataclass(frozen=True)
class Response:
    """What goes back: a `share` of it, then the connection breaks."""

    content: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    share: float = 1.0

    def bytes(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} -", f"content-length: {len(self.content)}"]
        lines += ["content-type: application/json", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join(lines).encode() + END + self.content


Answer = Callable[[Request], Awaitable[Response]]


class Server:
    """Answers each request with what a coroutine function returns; to be used in a `with` statement.

    Attributes:
        requests: all so far. in_flight: those not yet answered. peak: the most there were at once.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.requests: list[Request] = []
        self.in_flight = self.peak = 0
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.Task] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> "Server":
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(started)))
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._end = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._end.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(asyncio.current_task())
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has left, or the test is over
        finally:
            self._connections.discard(asyncio.current_task())
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, *lines = (await reader.readuntil(END)).decode().strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        request = Request(len(self.requests), first.split()[1], headers, content)
        self.requests.append(request)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            response = await self._answer(request)
            whole = response.bytes()
            sent = whole[: round(response.share * len(whole))]
            writer.write(sent)
            await writer.drain()
        finally:
            self.in_flight -= 1
        return len(sent) == len(whole)


def completion(
    content: str | None, *, thought: str | None = None, field: str = "reasoning_content",
    finish: str = "stop", tokens: int = 7, prompt: int = 5,
) -> dict:  # fmt: skip
    """A chat completion as DeepSeek and vLLM send it."""
    usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + (tokens or 0)}
    message = {"role": "assistant", "content": content}
    if thought is not None:
        message[field] = thought
    return {
        "id": "1", "object": "chat.completion", "created": 1, "model": "taught-1",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": usage,
    }  # fmt: skip


def as_json(body: object, status: int = 200, **headers: str) -> Response:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Response(json.dumps(body).encode(), status, named)


def always(body: object, status: int = 200, **headers: str) -> Answer:
    async def answer(request: Request) -> Response:
        return as_json(body, status, **headers)

    return answer


def fault(kind: str, response: Response) -> Response:
    """What becomes of a response."""
    whole = response.content
    match kind:
        case "dropped":
            return Response(whole, share=0.0)
        case "broken off":
            return Response(whole, share=0.7)
        case "error":
            return as_json({"error": {"message": "out of memory"}}, 500)
        case "overloaded":
            return as_json({"error": {"message": "try later"}}, 503)
        case "limited":
            return as_json({"error": {"message": "too many requests"}}, 429, Retry_After="0")
        case "garbage":
            return Response(b"<html>\xff\xfe bad gateway")
        case "nothing":
            return Response(b"")
        case "truncated":
            return Response(whole[: len(whole) // 2])
        case "no choices":
            return as_json({**json.loads(whole), "choices": []})
        case "null":
            return as_json(completion(None))
    raise ValueError(kind)


FAULTS = (
    "dropped", "broken off", "error", "overloaded", "limited", "garbage", "nothing", "truncated",
    "no choices", "null",
)  # fmt: skip


def between(port: int, kind_of: Callable[[Request], str | None]) -> Answer:
    """Hands requests on to a server of this machine, and spoils what it answers where a kind is named."""

    async def answer(request: Request) -> Response:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            head = f"POST {request.path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(request.content)}"
            writer.write(head.encode() + END + request.content)
            head, _, content = (await reader.read()).partition(END)
            response = Response(content, int(head.split()[1]))
        finally:
            writer.transport.abort()
        kind = kind_of(request)
        return response if kind is None else fault(kind, response)

    return answer
