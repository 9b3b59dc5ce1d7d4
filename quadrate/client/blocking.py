"""The client for code without asyncio: every method of `AsyncClient`, run on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Self, TypedDict, TypeVar, Unpack

from quadrate.client.asynchronous import AsyncClient

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
    from pathlib import Path

    from quadrate.client.retries import Retries

P = ParamSpec("P")
T = TypeVar("T")


def _waiting(method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Client, P], T]:
    """Return the method that waits for the coroutine of `AsyncClient`."""

    @wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._wait(method(self._client, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Client, P], Generator[T, None, None]]:
    """Return the generator that waits for each item of the asynchronous one of `AsyncClient`."""

    @wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        answers = method(self._client, *args, **kwargs)
        one_at_a_time = asyncio.Lock()  # after Ctrl-C a step may still be ending when the generator is closed
        try:
            while (answer := self._wait(_next(answers, one_at_a_time))) is not None:
                yield answer
        finally:
            self._wait(_close(answers, one_at_a_time))

    return call


class Settings(TypedDict, total=False):
    """The arguments of `AsyncClient` besides the target."""

    api_key: str | None
    timeout_seconds: float | None
    retries: Retries | None
    texts_per_request: int
    requests_in_flight: int
    priority: Literal["interactive", "bulk"] | None
    certificates: Path | None
    identity: tuple[Path, Path] | None


class Client:
    """Calls a gateway or a worker, from any thread. Use it with `with`, or call `close`. Arguments are those of `AsyncClient`."""

    def __init__(self, target: str = "localhost:8085", **settings: Unpack[Settings]) -> None:
        self._client = AsyncClient(target, **settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="quadrate-client", daemon=True)
        self._thread.start()

    embed = _waiting(AsyncClient.embed)
    embed_stream = _iterating(AsyncClient.embed_stream)
    rerank = _waiting(AsyncClient.rerank)
    tokenize = _waiting(AsyncClient.tokenize)
    models = _waiting(AsyncClient.models)
    model = _waiting(AsyncClient.model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread. Closing twice does nothing."""
        if self._loop.is_closed():
            return
        self._wait(self._client.close())
        self._wait(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return the coroutine's result. Ctrl-C while waiting cancels the call."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()


async def _next(answers: AsyncGenerator[T, None], one_at_a_time: asyncio.Lock) -> T | None:
    async with one_at_a_time:
        return await anext(answers, None)


async def _close(answers: AsyncGenerator[T, None], one_at_a_time: asyncio.Lock) -> None:
    async with one_at_a_time:
        await answers.aclose()
