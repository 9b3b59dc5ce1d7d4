"""What all gateways know: answers in the Redis or Valkey of `ROUTER_REDIS_URL`.

A value is a digest of 8 bytes and an answer's part; the digest is keyed by the entry's own key. What is cut short, of another version or
from somebody else's hand does not fit it and counts as unknown, until a fresh answer is written over it. It is no protection against
whoever means harm: all of it can be computed.
"""

from __future__ import annotations

import asyncio
from hashlib import blake2b
from typing import TYPE_CHECKING

from gateway.redis import PREFIX, RedisAway
from quadrate.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.redis import SharedRedis

PATIENCE_SECONDS = 0.01
"""How long a request waits for what others may know. Computing a short text takes about as long."""
FORMAT = 2
"""Counted up when values are written otherwise: gateways of two versions share no answers then."""
SEAL_BYTES = 8
"""What a value takes besides what it tells."""
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
        self._has_warned = False

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return what is under each key, asked for in one round trip."""
        if not self._redis.available:
            return [None] * len(keys)
        asking = asyncio.ensure_future(self._get(keys))
        try:
            return await asyncio.wait_for(asyncio.shield(asking), PATIENCE_SECONDS)
        except TimeoutError:
            return [None] * len(keys)

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Send values to the store in the background."""
        if not self._redis.available or len(self._under_way) >= MOST_UNDER_WAY:
            return
        task = asyncio.create_task(self._put({_name(key): seal(key, value) for key, value in entries.items()}))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        names = [_name(key) for key in keys]
        try:
            found = await self._redis.call(lambda client: client.mget(names))
        except RedisAway:
            return [None] * len(keys)
        values = [unseal(key, sealed) if isinstance(sealed, bytes) else None for key, sealed in zip(keys, found, strict=True)]
        if not self._has_warned and values.count(None) > found.count(None):
            self._has_warned = True
            log.warn("values at Redis under the cache's names are not as a gateway wrote them; they count as unknown, and are told of once")
        return values

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


def seal(key: bytes, value: bytes) -> bytes:
    """Return a value as the store has it."""
    return blake2b(value, key=key, digest_size=SEAL_BYTES).digest() + value


def unseal(key: bytes, sealed: bytes) -> bytes | None:
    """Return a value that the store has; None if it is not the one that was written under this key."""
    value = sealed[SEAL_BYTES:]
    return value if seal(key, value) == sealed else None


def _name(key: bytes) -> str:
    return f"{PREFIX}cache:{FORMAT}:{key.hex()}"
