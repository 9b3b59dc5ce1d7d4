"""How much a server that cannot tell is given to do at a time, and who waits for it here.

A worker of ours refuses what it cannot do in time and shares fairly between tenants. A server that speaks HTTP may do neither: it would
take all it is sent into a queue of its own, in order of arrival. So its queue is kept here.

*How much.* As much as it answers in a second. What is under way, divided by what is answered each second, is how long an answer takes
(Little 1961); so the bound makes itself felt exactly where answers take longer than a second, whatever a second's worth is there. More
at a time lets a server that batches answer more each second, and so raises its bound; a server that is full answers no more of it, and
the rest waits here. A server that refuses is given less, by a third for each refusal, and gets a twentieth of that back each second.

*Who.* Interactive before bulk; between tenants who has been given the least for its weight; of one tenant, who came first. What would wait
too long, or beyond its caller's deadline, is refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from typing import TYPE_CHECKING

from quadrate.errors import DeadlineExceeded, Overloaded
from quadrate.standing import Priority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from quadrate.standing import Standing

TARGET_SECONDS = 1.0
"""A server is given what it answers in so long a time."""
LEAST_REQUESTS = 8
"""So many it is given in any case, unless it refuses them: enough to learn how fast it is."""
QUEUE_SECONDS = 5.0
"""The longest that a request may wait here, as estimated when it comes."""
MOST_WAITING = 4096
"""The most requests that wait here, while nothing is known of the server's speed."""
MIN_RETRY_SECONDS = 0.05
_MEMORY_SECONDS = 3.0
"""What was answered so long ago weighs a third in the rate."""
_LESS, _MORE_EACH_SECOND, _LEAST_PART = 0.7, 1.05, 0.1


class Gate:
    """The way to one server. What is given to it goes through `place`.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rate = _Rate()
        self._requests = 0
        self._tokens = 0
        self._part = 1.0
        """How much of the bound the server is given, after its refusals."""
        self._changed = clock()
        self._lines: dict[tuple[str, Priority], _Line] = {}
        self._floor = dict.fromkeys(Priority, 0.0)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(len(line.waiting) for line in self._lines.values())

    @contextlib.asynccontextmanager
    async def place(self, standing: Standing, tokens: int, timeout_seconds: float | None) -> AsyncIterator[None]:
        """Hold a request's place at the server, from when there is one.

        Raises Overloaded at once if it would wait too long, DeadlineExceeded if it did. An Overloaded that comes out of the block is the
        server's: it is given less from then on.
        """
        self._pass_time()
        if self._lines or not self._has_room(tokens):
            await self._wait(standing, tokens, timeout_seconds)
        else:
            self._take(tokens)
        is_answered = False
        try:
            yield
            is_answered = True
        except Overloaded:
            self._part = max(_LEAST_PART, _LESS * self._part)
            raise
        finally:
            self._give_back(tokens, is_answered=is_answered)

    def _has_room(self, tokens: int) -> bool:
        if self._requests < max(1.0, LEAST_REQUESTS * self._part):
            return True
        return self._tokens + tokens <= TARGET_SECONDS * self._rate.tokens_per_second * self._part

    def _take(self, tokens: int) -> None:
        self._requests += 1
        self._tokens += tokens

    def _give_back(self, tokens: int, *, is_answered: bool) -> None:
        self._pass_time()
        self._requests -= 1
        self._tokens -= tokens
        if is_answered:
            self._rate.tokens += tokens
        self._let_in()

    def _pass_time(self) -> None:
        """Take note of the time since the last change: of it the server was busy if anything was under way."""
        now = self._clock()
        passed, self._changed = now - self._changed, now
        if self._requests:
            self._rate.busy(passed)
        if self._part < 1.0:
            self._part = min(1.0, self._part * _MORE_EACH_SECOND**passed)

    async def _wait(self, standing: Standing, tokens: int, timeout_seconds: float | None) -> None:
        self._check_wait(standing, tokens, timeout_seconds)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), tokens)
        line = self._line(standing)
        line.add(waiter)
        self._let_in()
        try:
            async with asyncio.timeout(timeout_seconds):
                await waiter.future
        except (TimeoutError, asyncio.CancelledError) as exc:
            self._leave(line, waiter)
            if isinstance(exc, TimeoutError):
                raise DeadlineExceeded("The deadline passed before the server of this model had room. Allow more time.") from exc
            raise

    def _leave(self, line: _Line, waiter: _Waiter) -> None:
        """Let go of one who waits no more, or of the place that it was given in that moment."""
        if waiter.future.done() and not waiter.future.cancelled():
            self._give_back(waiter.tokens, is_answered=False)
        else:
            line.remove(waiter)
            if not line.waiting:
                self._lines.pop(line.key, None)

    def _check_wait(self, standing: Standing, tokens: int, timeout_seconds: float | None) -> None:
        """Refuse what would wait too long, by the work that goes before it and the rate at which work is done."""
        rate = self._rate.tokens_per_second
        wait = self._ahead(standing, tokens) / rate if rate else 0.0
        most = QUEUE_SECONDS if timeout_seconds is None else min(QUEUE_SECONDS, timeout_seconds)
        if wait > most or self.waiting >= MOST_WAITING:
            raise Overloaded(
                f"What waits for the server of this model takes {wait:.1f} s, the limit is {most:.1f} s. Try again later.",
                retry_after_seconds=max(MIN_RETRY_SECONDS, wait - most),
            )

    def _ahead(self, standing: Standing, tokens: int) -> float:
        """Return how many tokens go before those of a newcomer, of what waits."""
        own = self._lines.get((standing.tenant, standing.priority))
        mine = own.tokens if own is not None else 0
        level = (own.used if own is not None else self._floor[standing.priority]) + (mine + tokens) / standing.weight
        found = float(mine)
        for line in self._lines.values():
            if line.priority < standing.priority:
                found += line.tokens
            elif line.priority is standing.priority and line is not own:
                found += min(line.tokens, max(0.0, level - line.used) * line.weight)
        return found

    def _line(self, standing: Standing) -> _Line:
        """Return a tenant's line. One that had nothing waiting begins where the least served one stands."""
        key = (standing.tenant, standing.priority)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(key, self._floor[standing.priority])
        line.weight = standing.weight
        return line

    def _let_in(self) -> None:
        """Give places to those who are next, as long as there is room."""
        while self._lines:
            line = min(self._lines.values(), key=_Line.order)
            waiter = line.waiting[0]
            if not self._has_room(waiter.tokens):
                return
            line.remove(waiter)
            self._floor[line.priority] = max(self._floor[line.priority], line.used)
            line.used += waiter.tokens / line.weight
            if not line.waiting:
                del self._lines[line.key]
            self._take(waiter.tokens)
            waiter.future.set_result(None)


class _Waiter:
    """One request that waits."""

    __slots__ = ("future", "tokens")

    def __init__(self, future: asyncio.Future[None], tokens: int) -> None:
        self.future = future
        self.tokens = tokens


class _Line:
    """What one tenant has waiting of one priority."""

    def __init__(self, key: tuple[str, Priority], used: float) -> None:
        self.key = key
        self.priority = key[1]
        self.weight = 1.0
        self.used = used
        self.tokens = 0
        self.waiting: deque[_Waiter] = deque()

    def order(self) -> tuple[Priority, float]:
        """Return what the least of goes first."""
        return self.priority, self.used

    def add(self, waiter: _Waiter) -> None:
        """Put one behind the others."""
        self.waiting.append(waiter)
        self.tokens += waiter.tokens

    def remove(self, waiter: _Waiter) -> None:
        """Take one out."""
        self.waiting.remove(waiter)
        self.tokens -= waiter.tokens


class _Rate:
    """Tokens answered each second in which something was under way; older ones weigh less."""

    def __init__(self) -> None:
        self.tokens = 0.0
        self._seconds = 0.0

    @property
    def tokens_per_second(self) -> float:
        """The rate; 0 while it is not known."""
        return self.tokens / self._seconds if self._seconds else 0.0

    def busy(self, seconds: float) -> None:
        """Let time pass in which something was under way."""
        kept = math.exp(-seconds / _MEMORY_SECONDS)
        self.tokens *= kept
        self._seconds = self._seconds * kept + seconds
