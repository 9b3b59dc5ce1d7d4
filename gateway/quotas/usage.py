"""Who used what, day by day: for people who look, and for bills. Nothing here limits anybody.

A gateway counts by itself and hands its counts to Redis every few seconds, where all gateways' counts meet and last. What was handed over
and not answered may be there or not; it is handed over again under the same number, and Redis adds each number once.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import secrets
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from gateway.quotas.script import Script
from gateway.redis import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from redis.asyncio import Redis

    from gateway.redis import SharedRedis

KEPT_DAYS = 35
MOST_ROWS = 20_000
"""Callers times models of one day that are told apart; the rest count together, as OTHERS."""
OTHERS = "(others)"
COUNTS = ("requests", "tokens", "failed", "refused")
_KEPT_SECONDS = KEPT_DAYS * 86_400
_ADD = Script.read("usage.lua")


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


@dataclass(frozen=True, slots=True)
class _Batch:
    """What was handed over and not answered.

    Args:
        number: Counted up with each batch of this gateway.
        days: The rows of each day.
    """

    number: int
    days: Mapping[dt.date, Rows]


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
        self._batch: _Batch | None = None
        self._batches = 0
        self._handed = f"{PREFIX}usage:from:{secrets.token_hex(8)}"
        """Where Redis keeps the number of the last batch that it added for us."""
        self._turn = asyncio.Lock()

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
        """Add what was counted here to Redis, once, whether its answer comes or not. Raises RedisAway; then it is tried the next time."""
        if self._redis is None:
            return
        async with self._turn:
            while self._batch is not None or self._days:
                if self._batch is None:
                    self._batches += 1
                    self._batch, self._days = _Batch(self._batches, self._days), {}
                await self._redis.call(partial(_add, self._handed, self._batch))
                self._batch = None

    async def read(self, day: dt.date) -> Rows:
        """Return what was used on a day, by everybody. Raises RedisAway."""
        if self._redis is None:
            return self.here(day)
        async with self._turn:
            rows = self.here(day)
            added, kept = await self._redis.call(partial(_read, self._handed, day))
            if self._batch is not None and self._batch.number <= added:  # its answer was lost, and it is among what is kept
                rows = _copy(self._days.get(day, {}))
        for field, count in kept.items():
            name, alias, counted = field.decode().split(" ")
            row = rows.setdefault((unquote(name), unquote(alias)), Row())
            setattr(row, counted, getattr(row, counted) + int(count))
        return rows

    def here(self, day: dt.date) -> Rows:
        """Return what was counted here on a day and is not known to be handed over."""
        rows = _copy(self._days.get(day, {}))
        if self._batch is not None:
            for key, row in self._batch.days.get(day, {}).items():
                rows.setdefault(key, Row()).add(row)
        return rows

    def _forget(self, day: dt.date) -> None:
        oldest = day - dt.timedelta(days=KEPT_DAYS)
        for past in [past for past in self._days if past < oldest]:
            del self._days[past]


def _copy(rows: Rows) -> Rows:
    return {key: Row(row.requests, row.tokens, row.failed, row.refused) for key, row in rows.items()}


async def _add(handed: str, batch: _Batch, client: Redis) -> None:
    keys, arguments = [handed], [str(batch.number), str(_KEPT_SECONDS)]
    for day, rows in batch.days.items():
        counts = list(_counts(rows))
        keys.append(_key(day))
        arguments += [str(len(counts)), *chain.from_iterable(counts)]
    await client.eval(_ADD.text, len(keys), *keys, *arguments)


def _counts(rows: Rows) -> Iterator[tuple[str, str]]:
    for (name, alias), row in rows.items():
        for counted in COUNTS:
            if getattr(row, counted):
                yield f"{quote(name, safe='')} {quote(alias, safe='')} {counted}", str(getattr(row, counted))


async def _read(handed: str, day: dt.date, client: Redis) -> tuple[int, Mapping[bytes, bytes]]:
    """Return the number of the last batch that was added, and what is kept of a day, as they are at one moment."""
    pipeline = client.pipeline(transaction=True)
    pipeline.get(handed)
    pipeline.hgetall(_key(day))
    added, kept = await pipeline.execute()
    return int(added or 0), kept


def _key(day: dt.date) -> str:
    return f"{PREFIX}usage:{day.isoformat()}"
