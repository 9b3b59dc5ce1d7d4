"""Limits counted in Redis or Valkey, for several gateways at once.

Charges of one turn of the event loop travel together, and those that come while an answer is awaited go with the next: so a request waits
for one round trip, and a busy gateway makes far fewer of them than it serves requests.

A trip whose answer never came may have been carried out, or may be yet: Redis reads what was sent to it while it stood still. Its charges
are given back before anything else is asked of Redis, those that took something and no others; each is so once, however often it is asked.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

from gateway.quotas.rules import Reply
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
"""Settlements that wait for their turn. More are let go: leases end by themselves, and what was to be given back is not."""


CHARGE, SETTLE = Script.read("charge.lua"), Script.read("settle.lua")


@dataclass(slots=True, eq=False)
class _Order:
    """One call of a script, and who waits for what it says."""

    script: Script
    keys: list[str]
    arguments: list[Any]
    future: asyncio.Future[Reply] | None = None
    undo: _Order | None = None
    """What gives back what a charge took whose caller has gone meanwhile, or whose answer was lost."""

    def number(self, trip: int, place: int) -> None:
        """Say which trip a charge is on, and as what; what undoes it looks for it there."""
        self.arguments[2:4] = trip, place
        if self.undo is not None:
            self.undo.arguments[2:4] = trip, place

    def date(self, charged_us: float) -> None:
        """Say when the charge was made that this changes: its answer came, so it need not be looked for."""
        self.arguments[1:4] = charged_us, 0, 0


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
        self._trip = 0
        self._unanswered: list[_Order] = []
        """What undoes the charges of a trip that is under way or was lost."""
        redis.listen(self._take_back)

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
        self._order(_Order(CHARGE, keys, [lease, lease_us, 0, 0, *chain.from_iterable(parts)], future, undo))
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None and future.result().allowed:  # it had just been carried out
                undo.date(future.result().now_us)
                self._order(undo)
            raise

    def settle(self, rules: Sequence[Rule], changes: Sequence[float], lease: str, charged_us: float) -> None:
        """Change what a charge took by so much of each rule, and end its leases, soon; nobody waits for it."""
        if self._redis.available and len(self._waiting) < MOST_WAITING:
            order = self._settlement(rules, changes, lease)
            order.date(charged_us)
            self._order(order)

    async def drain(self) -> None:
        """Wait until everything ordered is done."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def _order(self, order: _Order) -> None:
        self._waiting.append(order)
        self._begin()

    def _take_back(self) -> None:
        """Give back what a lost trip charged, as soon as Redis is there; until then others would wait for its leases."""
        if self._unanswered and self._redis.available:
            self._begin()

    def _begin(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._carry_out())

    async def _carry_out(self) -> None:
        try:
            while self._waiting or (self._unanswered and self._redis.available):
                orders = [order for order in self._waiting[:MOST_AT_ONCE] if order.future is None or not order.future.cancelled()]
                del self._waiting[:MOST_AT_ONCE]
                if not orders and not self._unanswered:
                    continue
                await self._carry(orders)
        finally:
            self._task = None

    async def _carry(self, orders: Sequence[_Order]) -> None:
        reason = "its answer could not be read"
        try:
            for order, reply in zip(orders, await self._redis.call(partial(self._run, orders)), strict=True):
                self._deliver(order, reply)
        except RedisAway as exc:
            reason = str(exc)
        finally:  # whatever happens, nobody waits for nothing
            for order in orders:
                if order.future is not None and not order.future.done():
                    order.future.set_exception(RedisAway(reason))

    def _deliver(self, order: _Order, reply: Any) -> None:
        if order.future is None:
            return
        found = Reply(reply[0] == 1, float(reply[1]), [float(state) for state in reply[2:]])
        if not order.future.cancelled():
            order.future.set_result(found)
        elif found.allowed and order.undo is not None:
            order.undo.date(found.now_us)
            self._waiting.append(order.undo)

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
        return _Order(SETTLE, [*(rule.key for rule in rules), self._mark], [lease, 0.0, 0, 0, *chain.from_iterable(parts)])


async def _send(orders: Sequence[_Order], client: Redis) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for order in orders:
        pipeline.evalsha(order.script.digest, len(order.keys), *order.keys, *order.arguments)
    return await pipeline.execute(raise_on_error=False)
