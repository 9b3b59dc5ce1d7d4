"""How many gateways share the limits, as Redis last knew: what a gateway's share is a share of when Redis is away."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from gateway.quotas.script import Script
from gateway.redis import PREFIX

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from gateway.redis import SharedRedis

LISTED_SECONDS = 10.0
"""How long a gateway counts that no longer says so."""
KEY = f"{PREFIX}gateways"
_CENSUS = Script.read("census.lua")


class Census:
    """Counts gateways.

    Args:
        redis: Where they meet.
        told: How many there are, by the configuration; None: as many as are listed.
        at_least: As many are known of otherwise.
    """

    def __init__(self, redis: SharedRedis, *, told: int | None, at_least: int) -> None:
        self._redis = redis
        self._told = told
        self._listed = at_least
        self._at_least = at_least
        self._name = secrets.token_hex(8)

    @property
    def gateways(self) -> int:
        """How many there are, this one included."""
        return self._told or max(self._listed, self._at_least)

    async def answer(self) -> None:
        """Say that this gateway is here, and count. Raises RedisAway."""
        self._listed = await self._redis.call(lambda client: self._call(client, LISTED_SECONDS))

    async def leave(self) -> None:
        """Say that it goes. Raises RedisAway."""
        await self._redis.call(lambda client: self._call(client, 0.0))

    async def _call(self, client: Redis, seconds: float) -> int:
        return int(await client.eval(_CENSUS.text, 1, KEY, self._name, int(seconds * 1_000_000)))
