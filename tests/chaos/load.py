"""Callers of a mesh, as many or as often as a test wants, and what became of each of their calls.

    async with Load(Rest(mesh.url), callers=16) as load:       # closed: each caller asks again as soon as it was answered
    async with Load(Rest(mesh.url), rate=200.0) as load:       # open: so many calls a second, whatever becomes of the others
        await load.calls(1_000)
        mesh.kill("embed_worker")
        await load.seconds(2)
    assert not load.failed, load.summary()

Seconds of an open load count from when a call was due, not from when the generator came to make it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import aiohttp
import grpc.aio

from quadrate.v1.embed_pb2 import EmbedRequest
from quadrate.v1.embed_pb2_grpc import EmbedServiceStub
from quadrate.v1.options_pb2 import Input
from quadrate.v1.rerank_pb2_grpc import RerankServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from quadrate.v1.rerank_pb2 import RerankRequest

OK = "OK"
_numbers = itertools.count(1)
CALL_SECONDS = 30.0
"""The deadline of each call."""
LONG_SECONDS = 120.0
"""How long a test waits for calls to be made before it gives up."""
MOST_IN_FLIGHT = 4_000
"""An open load makes no more calls at a time: what is due beyond that fails as `NOT_SENT`."""
SHOWN_FAILURES = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended.

    Args:
        status: `OK`, an HTTP code, a gRPC status, or the name of the exception where no answer came.
        error: What the answer said of the failure.
        headers: Of the answer; over gRPC initial and trailing metadata together. Names are lower case.
    """

    status: str
    error: str = ""
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """A call that was made.

    Args:
        caller: What made it, as Load was told.
        started: When it was made or due, by time.monotonic.
        seconds: How long it took until the whole answer was there.
        outcome: How it ended.
    """

    caller: str
    started: float
    seconds: float
    outcome: Outcome

    @property
    def ended(self) -> float:
        """When it ended, by time.monotonic."""
        return self.started + self.seconds


class Caller(Protocol):
    """One way of calling the mesh. An async context manager."""

    name: str

    async def __aenter__(self) -> Self:
        """Connect."""

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""

    async def call(self, number: int) -> Outcome:
        """Make one call; no two numbers are alike, whatever the load. It never raises but when cancelled."""


def text_of(number: int) -> str:
    """Return a short text that no other number has, so that nothing is answered from a cache or computed once for two."""
    return f"Call number {number} asks for a vector of its own."


class Rest:
    """POST with a JSON body.

    Args:
        url: Where the mesh is.
        path: Called there.
        body: The body of a call's number. Default: one short text for `minilm`.
        headers: Sent with every call, for example a key.
        connections: The most connections that are open at a time; calls beyond that wait. 0: without limit.
        name: Put on each call.
    """

    def __init__(
        self,
        url: str,
        path: str = "/v1/embeddings",
        *,
        body: Callable[[int], Any] | None = None,
        headers: Mapping[str, str] | None = None,
        connections: int = 0,
        name: str = "rest",
    ) -> None:
        self.name = name
        self._url = url + path
        self._body = body or (lambda number: {"model": "minilm", "input": text_of(number), "encoding_format": "base64"})
        self._headers = dict(headers or {})
        self._connections = connections

    async def __aenter__(self) -> Self:
        """Open a session."""
        connector = aiohttp.TCPConnector(limit=self._connections)
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self._session.close()

    async def call(self, number: int) -> Outcome:
        """Post one body."""
        try:
            async with self._session.post(self._url, json=self._body(number)) as answer:
                text = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Outcome(type(error).__name__, str(error))
        headers = {name.lower(): value for name, value in answer.headers.items()}
        if answer.status == 200:
            return Outcome(OK, headers=headers)
        return Outcome(str(answer.status), text.decode(errors="replace"), headers)


class Grpc:
    """A unary call of EmbedService or RerankService.

    Args:
        target: `host:port` of the edge, or of a gateway itself.
        request: The request of a call's number. Default: one short text for `minilm`.
        metadata: Sent with every call.
        name: Put on each call.
    """

    def __init__(
        self,
        target: str,
        *,
        request: Callable[[int], EmbedRequest | RerankRequest] | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        name: str = "grpc",
    ) -> None:
        self.name = name
        self._target = target
        self._request = request or (lambda number: EmbedRequest(model="minilm", inputs=[Input(text=text_of(number))]))
        self._metadata = tuple(metadata)

    async def __aenter__(self) -> Self:
        """Open a channel."""
        self._channel = grpc.aio.insecure_channel(self._target, options=(("grpc.use_local_subchannel_pool", 1),))
        self._embed, self._rerank = EmbedServiceStub(self._channel).Embed, RerankServiceStub(self._channel).Rerank
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self._channel.close(None)

    async def call(self, number: int) -> Outcome:
        """Make one call."""
        request = self._request(number)
        method: Any = self._embed if isinstance(request, EmbedRequest) else self._rerank
        call = method(request, timeout=CALL_SECONDS, metadata=self._metadata)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return Outcome(error.code().name, error.details() or "", _texts(error.initial_metadata(), error.trailing_metadata()))
        return Outcome(OK, headers=_texts(await call.initial_metadata(), await call.trailing_metadata()))


class Load:
    """Calls that go on while the block lasts. An async context manager; at its end calls in flight are waited for.

    Args:
        ways: What makes the calls, in turn; `made` tells them apart by `caller`.
        callers: How many call at a time, each again as soon as it was answered.
        rate: Calls a second instead, made when they are due.
    """

    def __init__(self, *ways: Caller, callers: int = 8, rate: float | None = None) -> None:
        self.made: list[Made] = []
        """Every call that has ended, in that order."""
        self._ways = ways
        self._callers = callers
        self._rate = rate
        self._tasks: set[asyncio.Task[None]] = set()
        self._stack = contextlib.AsyncExitStack()
        self._stopping = asyncio.Event()
        self._progress = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Connect, and begin to call."""
        for way in self._ways:
            await self._stack.enter_async_context(way)
        self.began = time.monotonic()
        if self._rate is None:
            ways = (self._ways[place % len(self._ways)] for place in range(self._callers))
            self._main = [asyncio.create_task(self._again(way)) for way in ways]
        else:
            self._main = [asyncio.create_task(self._when_due(self._rate))]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Make no more calls, and wait for those in flight."""
        self._stopping.set()
        await asyncio.gather(*self._main)
        await asyncio.gather(*self._tasks)
        self.ended = time.monotonic()
        await self._stack.aclose()

    @property
    def failed(self) -> list[Made]:
        """The calls that did not end well."""
        return [made for made in self.made if made.outcome.status != OK]

    def since(self, moment: float, until: float = float("inf")) -> list[Made]:
        """Return the calls made from a moment on, by time.monotonic."""
        return [made for made in self.made if moment <= made.started < until]

    def statuses(self) -> Counter[str]:
        """Count the calls by status."""
        return Counter(made.outcome.status for made in self.made)

    def per_second(self) -> float:
        """Return how many calls ended well in each second of the block so far."""
        return self.statuses()[OK] / (getattr(self, "ended", time.monotonic()) - self.began)

    def summary(self) -> str:
        """Say in a few lines what became of the calls."""
        lines = [f"{made.started - self.began:7.3f} s {made.caller} {made.outcome.status} {made.outcome.error}" for made in self.failed]
        return "\n".join([f"{dict(self.statuses())}, {self.per_second():.0f}/s", *lines[:SHOWN_FAILURES]])

    async def calls(self, count: int) -> None:
        """Wait for so many more calls to end."""
        goal = len(self.made) + count
        await self.until(lambda: len(self.made) >= goal)

    async def seconds(self, count: float) -> None:
        """Go on for so many seconds."""
        await asyncio.wait(self._main, timeout=count)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds that is asked after each call."""
        async with asyncio.timeout(LONG_SECONDS):
            while not holds():
                self._progress.clear()
                await self._progress.wait()

    async def _again(self, way: Caller) -> None:
        while not self._stopping.is_set():
            await self._one(way, time.monotonic())

    async def _when_due(self, rate: float) -> None:
        count = 0
        while not self._stopping.is_set():
            due = self.began + count / rate
            if due > time.monotonic():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), due - time.monotonic())
                continue
            self._send(self._ways[count % len(self._ways)], due)
            count += 1
            if count % 50 == 0:  # answers must be read even while calls are overdue
                await asyncio.sleep(0)

    def _send(self, way: Caller, due: float) -> None:
        if len(self._tasks) >= MOST_IN_FLIGHT:
            self._note(Made(way.name, due, 0.0, Outcome("NOT_SENT", f"{MOST_IN_FLIGHT} calls were in flight")))
            return
        task = asyncio.create_task(self._one(way, due))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, way: Caller, started: float) -> None:
        outcome = await way.call(next(_numbers))
        self._note(Made(way.name, started, time.monotonic() - started, outcome))

    def _note(self, made: Made) -> None:
        self.made.append(made)
        self._progress.set()


def percentile(calls: Sequence[Made], percent: float) -> float:
    """Return the seconds within which so many percent of the calls ended. Raises ValueError where there are none."""
    if not calls:
        raise ValueError("there are no calls to take a percentile of")
    ordered = sorted(made.seconds for made in calls)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


def median(calls: Sequence[Made]) -> float:
    """Return the median of the calls' seconds."""
    return statistics.median(made.seconds for made in calls)


async def peak(*ways: Caller, callers: int = 16, seconds: float = 3.0) -> float:
    """Return how many calls a second are answered well when so many callers ask without a pause."""
    async with Load(*ways, callers=callers) as load:
        await load.seconds(seconds)
    return load.per_second()


def _texts(*several: Any) -> dict[str, str]:
    return {str(name): str(value) for metadata in several for name, value in metadata or ()}
