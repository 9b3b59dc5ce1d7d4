"""The one connection to Redis or Valkey that the gateway's parts share: `ROUTER_REDIS_URL`.

    here ──(a call fails or takes too long)──► away ──(a probe in the background could write)──► here

Nobody waits for a store that is away: calls fail at once, and whoever makes them goes on without it. The probe also runs while the store
is here, so that one that is lost is often noticed before a request pays for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Self, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterCrossSlotError, RedisError

from quadrate.errors import ConfigError
from quadrate.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quadrate.telemetry import Metrics

CONNECTIONS = 16
"""More calls than this at once wait for one another, no longer than the time of a call."""
FIRST_PROBE_SECONDS, LONGEST_PROBE_SECONDS = 0.05, 0.2
"""How soon a lost store is asked again, and how seldom it comes to be asked. A gateway that is not back yet grants its share beside
another that is and grants everything: so long as a probe takes to come."""
WATCH_SECONDS = 1.0
"""How often a store that is here is asked whether it still is."""
PREFIX = "quadrate:"
"""What the names of all our keys begin with."""
PROBE_KEYS = (f"{PREFIX}probe", f"{PREFIX}probe:other")
"""A cluster keeps them apart (slots 16268 and 4795)."""
CLUSTER = (
    "this Redis is a cluster, which keeps keys on several servers, and all limits of a request are charged in one step on one server: "
    "name one server, or one with replicas behind an address that follows the primary (docs/quotas.md)"
)
_PROBE_LIVES_MS = 10_000

Answer = TypeVar("Answer")


class RedisAway(Exception):
    """The store cannot be asked now. It never reaches a caller: whoever gets it goes on without the store."""


class SharedRedis:
    """Calls to one Redis or Valkey. An async context manager: inside it, a lost store is looked for.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads them. Never logged: it may hold a password.
        timeout_seconds: How long one call may take before the store counts as away.
        metrics: Gets `router_redis_up` and `router_redis_errors_total`.
    """

    def __init__(self, url: str, *, timeout_seconds: float, metrics: Metrics) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=None,  # `call` watches the time of all of it, once
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),  # a call may have been carried out although its answer was lost; and nobody has time to wait
            protocol=2,
            client_name="quadrate-router",
        )
        self._client = Redis.from_pool(pool)
        self._timeout_seconds = timeout_seconds
        self._metrics = metrics
        self._listeners: list[Callable[[], None]] = []
        self._lost = asyncio.Event()
        self._delay_seconds = FIRST_PROBE_SECONDS
        self._task: asyncio.Task[None] | None = None
        self.available = True
        """Whether calls are tried. True until the first one fails."""
        self.reason = ""
        """Why the store is away: the kind of the failure and its text, which hold no secret."""
        metrics.gauge("router_redis_up").set_function(lambda: float(self.available))

    def report(self) -> dict[str, str]:
        """Return what readiness says of it."""
        return {"status": "ok" if self.available else "away", "reason": self.reason}

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the store goes or comes back; `available` says which."""
        self._listeners.append(listener)

    async def call(self, work: Callable[[Redis], Awaitable[Answer]]) -> Answer:
        """Return what `work` gives for the client, within the time of a call.

        A call that is cancelled gives up its connection: shield one whose caller is less patient.

        Raises:
            RedisAway: The store is away (then at once), or was lost by this call, which may have been carried out nevertheless.
        """
        if not self.available:
            raise RedisAway(self.reason)
        try:
            return await self._within_time(work)
        except (RedisError, OSError, TimeoutError) as exc:
            self._lose(exc)
            raise RedisAway(self.reason) from exc

    async def __aenter__(self) -> Self:
        """Ask for the first time. Raises ConfigError for a cluster; one that is away now may be here later."""
        try:
            await self.call(_probe)
        except RedisAway as exc:
            if isinstance(exc.__cause__, ClusterCrossSlotError):
                await self._client.aclose()
                raise ConfigError(f"ROUTER_REDIS_URL: {CLUSTER}.") from exc
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._client.aclose()

    async def _within_time(self, work: Callable[[Redis], Awaitable[Answer]]) -> Answer:
        async with asyncio.timeout(self._timeout_seconds):
            return await work(self._client)

    async def _watch(self) -> None:
        while True:
            await self._while_here()
            await self._while_away()

    async def _while_here(self) -> None:
        """Ask now and then, until the store is lost."""
        while self.available:
            try:
                async with asyncio.timeout(WATCH_SECONDS):
                    await self._lost.wait()
            except TimeoutError:
                self._delay_seconds = FIRST_PROBE_SECONDS  # it was here for a while: what comes is a new loss
                with contextlib.suppress(RedisAway):
                    await self.call(_probe)

    async def _while_away(self) -> None:
        """Ask ever less often, until the store is back."""
        while not self.available:
            await asyncio.sleep(self._delay_seconds * random.uniform(0.75, 1.25))  # noqa: S311 - so that gateways do not ask in step
            self._delay_seconds = min(self._delay_seconds * 2, LONGEST_PROBE_SECONDS)
            try:
                await self._within_time(_probe)
            except (RedisError, OSError, TimeoutError) as exc:
                self.reason = _reason(exc)
            else:
                self._find()

    def _lose(self, exc: Exception) -> None:
        self._metrics.counter("router_redis_errors_total", type(exc).__name__).inc()
        if not self.available:
            return
        self.available, self.reason = False, _reason(exc)
        self._lost.set()
        log.warn("Redis is away; going on without it", reason=self.reason)
        self._tell()

    def _find(self) -> None:
        self.available, self.reason = True, ""
        self._lost.clear()
        log.info("Redis is back")
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


def _reason(exc: Exception) -> str:
    if isinstance(exc, ClusterCrossSlotError):
        return CLUSTER
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


async def _probe(client: Redis) -> None:
    """Write something, and name two keys at once: a store that is a cluster, can be read and not written, or is full, is of no use here."""
    pipeline = client.pipeline(transaction=False)
    pipeline.delete(*PROBE_KEYS)
    pipeline.set(PROBE_KEYS[0], b"", px=_PROBE_LIVES_MS)
    await pipeline.execute()
