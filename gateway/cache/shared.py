"""What all gateways know: answers in the Redis or Valkey of `ROUTER_REDIS_URL`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.redis import PREFIX, RedisAway

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.redis import SharedRedis

PATIENCE_SECONDS = 0.01
"""How long a request waits for what others may know. Computing a short text takes about as long."""
FORMAT = 1
"""Counted up when values are written otherwise: gateways of two versions share no answers then."""
MOST_UNDER_WAY = 64
"""Batches of answers on their way to the store; more are not sent, so that a slow store cannot fill our memory."""


class Shared:
    """Values by key at a store that may be away, slow or full: then nothing is known there.

    Args:
        redis: The gateway's connection.
        live_seconds: How long the store keeps an answer. Its own `maxmemory` and a policy such as `allkeys-lru` bound what all take.
    """

    def __init__(self, redis: SharedRedis, *, live_seconds: int) -> None:
        self._redis = redis
        self._live_seconds = live_seconds
        self._under_way: set[asyncio.Task[None]] = set()

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return what is under each key, asked for in one round trip."""
        if not self._redis.available:
            return [None] * len(keys)
        asking = asyncio.ensure_future(self._get([_name(key) for key in keys]))
        try:
            return await asyncio.wait_for(asyncio.shield(asking), PATIENCE_SECONDS)
        except TimeoutError:
            return [None] * len(keys)

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Send values to the store in the background."""
        if not self._redis.available or len(self._under_way) >= MOST_UNDER_WAY:
            return
        task = asyncio.create_task(self._put({_name(key): value for key, value in entries.items()}))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _get(self, names: list[str]) -> list[bytes | None]:
        try:
            found = await self._redis.call(lambda client: client.mget(names))
        except RedisAway:
            return [None] * len(names)
        return [value if isinstance(value, bytes) else None for value in found]

    async def _put(self, entries: Mapping[str, bytes]) -> None:
        async def work(client: Redis) -> None:
            async with client.pipeline(transaction=False) as pipe:
                for name, value in entries.items():
                    pipe.set(name, value, ex=self._live_seconds)
                await pipe.execute()

        try:
            await self._redis.call(work)
        except RedisAway:
            return


def _name(key: bytes) -> str:
    return f"{PREFIX}cache:{FORMAT}:{key.hex()}"
