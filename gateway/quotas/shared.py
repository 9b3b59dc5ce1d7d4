"""Limits counted in Redis or Valkey, for several gateways at once.

Charges of one turn of the event loop travel together, and those that come while an answer is awaited go with the next: so a request waits
for one round trip, and a busy gateway makes far fewer of them than it serves requests.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

from gateway.quotas.rules import Reply
from gateway.quotas.script import Script
from gateway.redis import RedisAway

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
    """What gives back what a charge took whose caller has gone meanwhile."""


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
        undo = _settlement(rules, [-cost for cost in costs], lease)
        self._order(_Order(CHARGE, [rule.key for rule in rules], [lease, lease_us, *chain.from_iterable(parts)], future, undo))
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None and future.result().allowed:  # it had just been carried out
                undo.arguments[1] = future.result().now_us
                self._order(undo)
            raise

    def settle(self, rules: Sequence[Rule], changes: Sequence[float], lease: str, charged_us: float) -> None:
        """Change what a charge took by so much of each rule, and end its leases, soon; nobody waits for it."""
        if self._redis.available and len(self._waiting) < MOST_WAITING:
            order = _settlement(rules, changes, lease)
            order.arguments[1] = charged_us
            self._order(order)

    async def drain(self) -> None:
        """Wait until everything ordered is done."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def _order(self, order: _Order) -> None:
        self._waiting.append(order)
        if self._task is None:
            self._task = asyncio.create_task(self._carry_out())

    async def _carry_out(self) -> None:
        try:
            while self._waiting:
                orders = [order for order in self._waiting[:MOST_AT_ONCE] if order.future is None or not order.future.cancelled()]
                del self._waiting[:MOST_AT_ONCE]
                if not orders:
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
            order.undo.arguments[1] = found.now_us
            self._waiting.append(order.undo)

    async def _run(self, orders: Sequence[_Order], client: Redis) -> list[Any]:
        """Run each order's script and return what they say. A server that restarted gets the scripts again."""
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


def _settlement(rules: Sequence[Rule], changes: Sequence[float], lease: str) -> _Order:
    parts = ((rule.kind, change, rule.each) for rule, change in zip(rules, changes, strict=True))
    return _Order(SETTLE, [rule.key for rule in rules], [lease, 0.0, *chain.from_iterable(parts)])


async def _send(orders: Sequence[_Order], client: Redis) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for order in orders:
        pipeline.evalsha(order.script.digest, len(order.keys), *order.keys, *order.arguments)
    return await pipeline.execute(raise_on_error=False)
