"""Who used what, day by day: for people who look, and for bills. Nothing here limits anybody.

A gateway counts by itself and hands its counts to Redis every few seconds, where all gateways' counts meet and last.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from gateway.redis import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from redis.asyncio import Redis

    from gateway.redis import SharedRedis

KEPT_DAYS = 35
MOST_ROWS = 20_000
"""Callers times models of one day that are told apart; the rest count together, as OTHERS."""
OTHERS = "(others)"
COUNTS = ("requests", "tokens", "failed", "refused")


@dataclass(slots=True)
class Row:
    """What one caller used of one model on one day.

    Args:
        requests: Those that were answered.
        tokens: What they were charged.
        failed: Requests that failed or were given up, and cost nothing.
        refused: Requests that a limit refused.
    """

    requests: int = 0
    tokens: int = 0
    failed: int = 0
    refused: int = 0

    def add(self, other: Row) -> None:
        """Add another's counts."""
        self.requests += other.requests
        self.tokens += other.tokens
        self.failed += other.failed
        self.refused += other.refused


Rows = dict[tuple[str, str], Row]
"""Rows by the caller's name and the model's alias."""


def today() -> dt.date:
    """Return the day it is, UTC."""
    return dt.datetime.now(dt.UTC).date()


class Usage:
    """Counts use.

    Args:
        redis: Where counts meet; None: they stay here, as long as the process lives.
        clock: Gives the day.
    """

    def __init__(self, redis: SharedRedis | None, clock: Callable[[], dt.date] = today) -> None:
        self._redis = redis
        self._clock = clock
        self._days: dict[dt.date, Rows] = {}
        """What was not handed over yet; without Redis everything."""

    @property
    def is_shared(self) -> bool:
        """Whether the counts of all gateways meet."""
        return self._redis is not None

    def row(self, name: str, alias: str) -> Row:
        """Return the row to add to."""
        day = self._clock()
        rows = self._days.get(day)
        if rows is None:
            rows = self._days[day] = {}
            self._forget(day)
        row = rows.get((name, alias))
        if row is None:
            key = (name, alias) if len(rows) < MOST_ROWS else (OTHERS, alias)
            row = rows.setdefault(key, Row())
        return row

    async def hand_over(self) -> None:
        """Add what was counted here to Redis. Raises RedisAway; then it stays here for the next time."""
        if self._redis is None or not self._days:
            return
        days, self._days = self._days, {}
        try:
            await self._redis.call(lambda client: _add(client, days))
        except BaseException:
            for day, rows in days.items():
                for (name, alias), row in rows.items():
                    self._days.setdefault(day, {}).setdefault((name, alias), Row()).add(row)
            raise

    async def read(self, day: dt.date) -> Rows:
        """Return what was used on a day, by everybody. Raises RedisAway."""
        rows = self.here(day)
        if self._redis is not None:
            kept: Mapping[Any, Any] = await self._redis.call(lambda client: client.hgetall(_key(day)))
            for field, count in kept.items():
                name, alias, counted = field.decode().split(" ")
                row = rows.setdefault((unquote(name), unquote(alias)), Row())
                setattr(row, counted, getattr(row, counted) + int(count))
        return rows

    def here(self, day: dt.date) -> Rows:
        """Return what was counted here on a day and not handed over."""
        return {key: Row(row.requests, row.tokens, row.failed, row.refused) for key, row in self._days.get(day, {}).items()}

    def _forget(self, day: dt.date) -> None:
        oldest = day - dt.timedelta(days=KEPT_DAYS)
        for past in [past for past in self._days if past < oldest]:
            del self._days[past]


async def _add(client: Redis, days: Mapping[dt.date, Rows]) -> None:
    pipeline = client.pipeline(transaction=True)
    for day, rows in days.items():
        for (name, alias), row in rows.items():
            for counted in COUNTS:
                if getattr(row, counted):
                    pipeline.hincrby(_key(day), f"{quote(name, safe='')} {quote(alias, safe='')} {counted}", getattr(row, counted))
        pipeline.expire(_key(day), KEPT_DAYS * 86_400)
    await pipeline.execute()


def _key(day: dt.date) -> str:
    return f"{PREFIX}usage:{day.isoformat()}"
