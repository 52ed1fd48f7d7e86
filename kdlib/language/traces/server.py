"""Requests for chat completions: what a server is asked, and what it refuses to be told.

Servers do not all take the same parameters. OpenAI's reasoning models want `max_completion_tokens` instead of
`max_tokens` and no temperature; Anthropic's newer ones refuse `top_p` beside it; Mistral's API knows no
`seed`. A parameter that a server refuses by name is left out, or renamed, from then on.
"""

import re
from collections.abc import Callable, Mapping

import openai

from kdlib.language.server import Failure, Server
from kdlib.language.traces.reply import Reply, read_reply, tokens_by_bytes

__all__ = ["ChatServer"]

_NAMED = re.compile(r"\b(?:max_completion_tokens|max_tokens|top_p|seed|temperature)\b")


class ChatServer(Server):
    """A model that answers, as for `collect_remote_traces`; requests hold further `parameters`."""

    REFUSED = "if it is too long, shorten it or lower max_new_tokens; seed=None sends no seed"

    def __init__(
        self, url: str, model: str, key_variable: str | None, retries: int, timeout: float,
        parameters: Mapping[str, object], count: Callable[[str], int] = tokens_by_bytes,
    ) -> None:  # fmt: skip
        super().__init__(url, model, key_variable, retries, timeout)
        self._parameters, self._count = parameters, count
        self._left_out: tuple[str, ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """What this server has refused to be told, and was not told any more."""
        return tuple(name for name in self._left_out if name != "max_tokens")  # which only has another name

    async def ask(self, statement: str, seed: int | None) -> Reply | Failure:
        """The reply to a statement."""
        left_out = self._left_out

        def give_way(error: openai.APIStatusError) -> bool:
            nonlocal left_out
            if name := self._unwanted(error, statement, seed, left_out):
                left_out = (*left_out, name)
            return name is not None

        def read(body: object) -> Reply:
            self._left_out = left_out  # it has helped
            return read_reply(body, statement, self._parameters["max_tokens"], self._count)

        return await self.reply(lambda: self._sent(statement, seed, left_out), read, give_way)

    async def _sent(self, statement: str, seed: int | None, left_out: tuple[str, ...]) -> object:
        given = {**self._parameters, **({} if seed is None else {"seed": seed})}
        if "max_tokens" in left_out:
            given["max_completion_tokens"] = given["max_tokens"]
        return await self.client.chat.completions.with_raw_response.create(
            model=self.model,
            messages=[{"role": "user", "content": statement}],
            extra_headers=self.headers,
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
