"""Who goes next where requests wait: interactive before bulk, tenants by weight, of one tenant who came first.

Between tenants, who has been given the least for its weight goes first (start-time fair queueing, as in quadrate.runtime.waiting, whose
texts know more of each other). Who comes back begins where the least served one stands.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING

from quadrate.standing import NOBODY, Priority, Standing

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from typing import TypeVar

    T = TypeVar("T")

on_behalf: ContextVar[Standing] = ContextVar("on_behalf", default=NOBODY)
"""For whom the current task works."""


class Waiter:
    """One who waits, with what it will cost."""

    __slots__ = ("cost", "future", "is_gone", "line")

    def __init__(self, cost: float, line: _Line) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.cost = cost
        self.line = line
        self.is_gone = False


class Lines:
    """Those who wait, one line for each tenant and priority. `len` counts them."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, Priority], _Line] = {}
        self._floor = dict.fromkeys(Priority, 0.0)
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, standing: Standing, cost: float) -> Waiter:
        """Put one behind the others of its tenant."""
        key = (standing.tenant, standing.priority)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(key, self._floor[standing.priority])
        line.weight = standing.weight
        waiter = Waiter(cost, line)
        line.waiting.append(waiter)
        line.cost += cost
        self._waiting += 1
        return waiter

    def first(self) -> Waiter | None:
        """Return who goes next; those who were cancelled, and have not found out yet, are let go of."""
        while self._lines:
            waiter = min(self._lines.values(), key=_Line.order).waiting[0]
            if not waiter.future.cancelled():
                return waiter
            self.remove(waiter)
        return None

    def serve(self, waiter: Waiter) -> None:
        """Let one go, and count what it costs for its tenant."""
        line = waiter.line
        self.remove(waiter)
        self._floor[line.priority] = max(self._floor[line.priority], line.used)
        line.used += waiter.cost / line.weight
        waiter.future.set_result(None)

    def remove(self, waiter: Waiter) -> None:
        """Let go of one who waits no more; the second time nothing happens."""
        line = waiter.line
        if waiter.is_gone:
            return
        waiter.is_gone = True
        line.waiting.remove(waiter)
        line.cost -= waiter.cost
        self._waiting -= 1
        if not line.waiting:
            del self._lines[line.key]

    def ahead(self, standing: Standing, cost: float) -> float:
        """Return the cost of what goes before a newcomer, of all that waits."""
        own = self._lines.get((standing.tenant, standing.priority))
        mine, used = (own.cost, own.used) if own is not None else (0.0, self._floor[standing.priority])
        level = used + (mine + cost) / standing.weight
        found = mine
        for line in self._lines.values():
            if line.priority < standing.priority:
                found += line.cost
            elif line.priority is standing.priority and line is not own:
                found += min(line.cost, max(0.0, level - line.used) * line.weight)
        return found


class _Line:
    """What one tenant has waiting of one priority."""

    __slots__ = ("cost", "key", "priority", "used", "waiting", "weight")

    def __init__(self, key: tuple[str, Priority], used: float) -> None:
        self.key = key
        self.priority = key[1]
        self.weight = 1.0
        self.used = used
        self.cost = 0.0
        self.waiting: deque[Waiter] = deque()

    def order(self) -> tuple[Priority, float]:
        """Return what the least of goes first."""
        return self.priority, self.used


class Turns:
    """Runs functions on threads, so many at a time; who waits is served in the order of Lines.

    Args:
        executor: The threads.
        at_once: How many functions are given to them at a time: as many as there are threads, so that nothing waits there.
    """

    def __init__(self, executor: Executor, at_once: int) -> None:
        self._executor = executor
        self._free = at_once
        self._lines = Lines()

    async def run(self, function: Callable[..., T], *arguments: object, cost: float) -> T:
        """Run a function when it is its turn, on behalf of `on_behalf`, and return what it returns.

        One whose caller leaves meanwhile runs to its end, and its turn with it.
        """
        if self._free and not self._lines:
            self._free -= 1
        else:
            await self._wait(cost)
        running = asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
        running.add_done_callback(self._done)
        return await asyncio.shield(running)

    async def _wait(self, cost: float) -> None:
        waiter = self._lines.add(on_behalf.get(), cost)
        self._next()
        try:
            await waiter.future
        except asyncio.CancelledError:
            if waiter.future.cancelled():
                self._lines.remove(waiter)
            else:
                self._give_back()
            raise

    def _done(self, running: asyncio.Future[T]) -> None:
        if not running.cancelled():
            running.exception()  # whoever waited may have gone
        self._give_back()

    def _give_back(self) -> None:
        self._free += 1
        self._next()

    def _next(self) -> None:
        while self._free and (waiter := self._lines.first()) is not None:
            self._free -= 1
            self._lines.serve(waiter)
