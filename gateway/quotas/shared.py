"""Limits counted in Redis or Valkey, for several gateways at once.

Charges of one turn of the event loop travel together, and those that come while an answer is awaited go with the next: so a request waits
for one round trip, and a busy gateway makes far fewer of them than it serves requests.

A trip whose answer never came may have been carried out, or may be yet: Redis reads what was sent to it while it stood still. Its charges
are given back before anything else is asked of Redis, those that took something and no others; each is so once, however often it is asked.

What ended requests give back waits for Redis while it is away, and is sent again where no answer came, in the same order and under the same
numbers: Redis makes each change once.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

from gateway.quotas.rules import SECOND_US, Reply
from gateway.quotas.script import Script
from gateway.redis import PREFIX, RedisAway

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio import Redis

    from gateway.quotas.rules import Rule
    from gateway.redis import SharedRedis

MOST_AT_ONCE = 128
"""Charges and settlements in one round trip: so many take Redis a few milliseconds, in which it does nothing else."""
MOST_WAITING = 20_000
"""Changes that wait for their turn, or for Redis. More are let go: leases end by themselves, and what was to be given back is not."""


CHARGE, SETTLE = Script.read("charge.lua"), Script.read("settle.lua")


@dataclass(slots=True, eq=False)
class _Order:
    """One call of a script, and who waits for what it says."""

    script: Script
    rules: Sequence[Rule]
    keys: list[str]
    arguments: list[Any]
    future: asyncio.Future[Reply] | None = None
    undo: _Order | None = None
    """What gives back what a charge took whose caller has gone meanwhile, or whose answer was lost."""
    ended: float = 0.0
    """When the request ended whose charge this changes, by the monotonic clock."""

    def number(self, trip: int, place: int) -> None:
        """Say which trip a charge is on, and as what; what undoes it looks for it there."""
        self.arguments[2:4] = trip, place
        if self.undo is not None:
            self.undo.arguments[2:4] = trip, place

    def date(self, charged_us: float, change: int) -> None:
        """Say when the charge was made that this changes: its answer came, so it need not be looked for. Changes are numbered."""
        self.arguments[1:4] = charged_us, 0, change
        self.ended = time.monotonic()

    def forget_what_is_regained(self) -> None:
        """Leave out buckets that have had the time to fill since the request ended: what others took meanwhile is not to be given back."""
        age_us = (time.monotonic() - self.ended) * SECOND_US
        for place, rule in enumerate(self.rules):
            if rule.kind == "bucket" and age_us >= rule.capacity * rule.each:
                self.arguments[5 + 3 * place] = 0.0


class SharedStore:
    """The state of every limit, in Redis, by its clock.

    Args:
        redis: The connection.
        forgotten: Called when the server does not know the scripts: it is another one than before, or has started anew.
    """

    def __init__(self, redis: SharedRedis, forgotten: Callable[[], None] = lambda: None) -> None:
        self._redis = redis
        self._forgotten = forgotten
        self._waiting: list[_Order] = []
        self._task: asyncio.Task[None] | None = None
        self._mark = f"{PREFIX}gateway:{secrets.token_hex(8)}"
        """Where Redis notes which charges of the last trip took something."""
        self._trip, self._changes = 0, itertools.count(1)
        self._unanswered: list[_Order] = []
        """What undoes the charges of a trip that is under way or was lost."""
        redis.listen(self._resume)

    async def charge(
        self, rules: Sequence[Rule], costs: Sequence[float], lease: str, lease_us: float, floors: Sequence[float] | None = None
    ) -> Reply:
        """Take the costs if every rule has room for its own, otherwise nothing. Leases of the request are called `lease`.

        `floors` are what is taken of each rule at least, whatever the store says: it may have lost what it knew. A caller that is
        cancelled while it waits is charged nothing. Raises RedisAway; then nothing is known.
        """
        parts = (
            (rule.kind, cost, rule.capacity, rule.each, floor)
            for rule, cost, floor in zip(rules, costs, floors or [0.0] * len(rules), strict=True)
        )
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        undo = self._settlement(rules, [-cost for cost in costs], lease)
        keys = [*(rule.key for rule in rules), self._mark]
        self._order(_Order(CHARGE, rules, keys, [lease, lease_us, 0, 0, *chain.from_iterable(parts)], future, undo))
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None and future.result().allowed:  # it had just been carried out
                self._change(undo, future.result().now_us)
            raise

    def settle(self, rules: Sequence[Rule], changes: Sequence[float], lease: str, charged_us: float) -> None:
        """Change what a charge took by so much of each rule, and end its leases: soon, or when Redis is back; nobody waits for it."""
        if len(self._waiting) < MOST_WAITING:
            self._change(self._settlement(rules, changes, lease), charged_us)

    async def drain(self) -> None:
        """Wait until everything ordered is done, or Redis is away."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def _change(self, order: _Order, charged_us: float) -> None:
        order.date(charged_us, next(self._changes))
        self._order(order)

    def _order(self, order: _Order) -> None:
        self._waiting.append(order)
        self._begin()

    def _resume(self) -> None:
        """Give back what a lost trip charged and what requests gave back meanwhile, as soon as Redis is there: others wait for it."""
        if self._redis.available:
            for order in self._waiting:
                if order.future is None:
                    order.forget_what_is_regained()
            if self._waiting or self._unanswered:
                self._begin()

    def _begin(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._carry_out())

    async def _carry_out(self) -> None:
        try:
            while self._redis.available and (self._waiting or self._unanswered):
                orders = [order for order in self._waiting[:MOST_AT_ONCE] if order.future is None or not order.future.cancelled()]
                del self._waiting[:MOST_AT_ONCE]
                if orders or self._unanswered:
                    await self._carry(orders)
        finally:
            self._task = None
            self._turn_away()

    async def _carry(self, orders: Sequence[_Order]) -> None:
        reason = "its answer could not be read"
        try:
            for order, reply in zip(orders, await self._redis.call(partial(self._run, orders)), strict=True):
                self._deliver(order, reply)
        except RedisAway as exc:
            reason = str(exc)
            self._waiting[:0] = [order for order in orders if order.future is None]
        finally:  # whatever happens, nobody waits for nothing
            _refuse(orders, reason)

    def _turn_away(self) -> None:
        """Let those go who wait for an answer, where none is to come. What is to be changed waits on."""
        _refuse(self._waiting, self._redis.reason)
        self._waiting = [order for order in self._waiting if order.future is None]

    def _deliver(self, order: _Order, reply: Any) -> None:
        if order.future is None:
            return
        found = Reply(reply[0] == 1, float(reply[1]), [float(state) for state in reply[2:]])
        if not order.future.cancelled():
            order.future.set_result(found)
        elif found.allowed and order.undo is not None:
            self._change(order.undo, found.now_us)

    async def _run(self, orders: Sequence[_Order], client: Redis) -> list[Any]:
        """Run each order's script and return what they say, after all that an earlier trip left to be undone."""
        if self._unanswered:
            await self._execute(self._unanswered, client)
        self._trip += 1
        for place, order in enumerate(orders):
            if order.undo is not None:
                order.number(self._trip, place)
        self._unanswered = [order.undo for order in orders if order.undo is not None]
        replies = await self._execute(orders, client)
        self._unanswered = []
        return replies

    async def _execute(self, orders: Sequence[_Order], client: Redis) -> list[Any]:
        """Run scripts in one round trip. A server that restarted gets them again."""
        replies = await _send(orders, client)
        unknown = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            self._forgotten()
            for script in (CHARGE, SETTLE):
                await client.script_load(script.text)
            for place, reply in zip(unknown, await _send([orders[place] for place in unknown], client), strict=True):
                replies[place] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def _settlement(self, rules: Sequence[Rule], changes: Sequence[float], lease: str) -> _Order:
        parts = ((rule.kind, change, rule.each) for rule, change in zip(rules, changes, strict=True))
        return _Order(SETTLE, rules, [*(rule.key for rule in rules), self._mark], [lease, 0.0, 0, 0, *chain.from_iterable(parts)])


def _refuse(orders: Sequence[_Order], reason: str) -> None:
    """Tell those who still wait that no answer comes."""
    for order in orders:
        if order.future is not None and not order.future.done():
            order.future.set_exception(RedisAway(reason))


async def _send(orders: Sequence[_Order], client: Redis) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for order in orders:
        pipeline.evalsha(order.script.digest, len(order.keys), *order.keys, *order.arguments)
    return await pipeline.execute(raise_on_error=False)
