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
from typing import TYPE_CHECKING

from quadrate.errors import DeadlineExceeded, Overloaded
from quadrate.turns import Lines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from quadrate.standing import Standing

TARGET_SECONDS = 1.0
"""A server is given what it answers in so long a time."""
LEAST_REQUESTS = 8
"""So many it is given in any case, unless it refuses them: enough to learn how fast it is."""
QUEUE_SECONDS = 5.0
"""The longest that a request may wait here, as estimated when it comes and in fact."""
MOST_WAITING = 4096
"""The most requests that wait here, should they come all at once before anything is known of the server's speed."""
MIN_RETRY_SECONDS = 0.05
_MEMORY_SECONDS = 3.0
"""What was answered so long ago weighs a third in the rate."""
_LESS, _MORE_EACH_SECOND, _LEAST_PART = 0.7, 1.05, 0.1
_ALL_AGAIN_SECONDS = 60.0
"""After so long without a refusal a server is given all of its bound again. More would be no number after some hours."""


class Gate:
    """The way to one server. What is given to it goes through `place`.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rate = _Rate()
        self._requests = 0
        self._tokens = 0.0
        self._part = 1.0
        """How much of the bound the server is given, after its refusals."""
        self._changed = clock()
        self._lines = Lines()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._lines)

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

    def _has_room(self, tokens: float) -> bool:
        if self._requests < max(1.0, LEAST_REQUESTS * self._part):
            return True
        return self._tokens + tokens <= TARGET_SECONDS * self._rate.tokens_per_second * self._part

    def _take(self, tokens: float) -> None:
        self._requests += 1
        self._tokens += tokens

    def _give_back(self, tokens: float, *, is_answered: bool) -> None:
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
            self._part = min(1.0, self._part * _MORE_EACH_SECOND ** min(passed, _ALL_AGAIN_SECONDS))

    async def _wait(self, standing: Standing, tokens: float, timeout_seconds: float | None) -> None:
        self._check_wait(standing, tokens, timeout_seconds)
        waiter = self._lines.add(standing, tokens)
        self._let_in()
        is_callers = timeout_seconds is not None and timeout_seconds <= QUEUE_SECONDS
        try:
            async with asyncio.timeout(timeout_seconds if is_callers else QUEUE_SECONDS):
                await waiter.future
        except (TimeoutError, asyncio.CancelledError) as exc:
            if waiter.future.cancelled():
                self._lines.remove(waiter)
            else:  # its place came in that moment
                self._give_back(tokens, is_answered=False)
            if not isinstance(exc, TimeoutError):
                raise
            if is_callers:
                raise DeadlineExceeded("The deadline passed before the server of this model had room. Allow more time.") from exc
            raise Overloaded(
                f"The server of this model had no room within {QUEUE_SECONDS:.1f} s. Try again later.",
                retry_after_seconds=max(MIN_RETRY_SECONDS, self._wait_seconds(standing, tokens) - QUEUE_SECONDS),
            ) from exc

    def _check_wait(self, standing: Standing, tokens: float, timeout_seconds: float | None) -> None:
        """Refuse what would wait too long, by the work that goes before it and the rate at which work is done."""
        wait = self._wait_seconds(standing, tokens)
        most = QUEUE_SECONDS if timeout_seconds is None else min(QUEUE_SECONDS, timeout_seconds)
        if wait > most or len(self._lines) >= MOST_WAITING:
            raise Overloaded(
                f"What waits for the server of this model takes {wait:.1f} s, the limit is {most:.1f} s. Try again later.",
                retry_after_seconds=max(MIN_RETRY_SECONDS, wait - most),
            )

    def _wait_seconds(self, standing: Standing, tokens: float) -> float:
        """Estimate how long what comes now would wait. One that has answered nothing yet may answer all at this moment."""
        rate = self._rate.tokens_per_second or self._rate.if_now(self._tokens)
        return self._lines.ahead(standing, tokens) / rate if rate else 0.0

    def _let_in(self) -> None:
        """Give places to those who are next, as long as there is room."""
        while (waiter := self._lines.first()) is not None and self._has_room(waiter.cost):
            self._lines.serve(waiter)
            self._take(waiter.cost)


class _Rate:
    """Tokens answered each second in which something was under way; older ones weigh less."""

    def __init__(self) -> None:
        self.tokens = 0.0
        self._seconds = 0.0

    @property
    def tokens_per_second(self) -> float:
        """The rate; 0 while it is not known."""
        return self.tokens / self._seconds if self._seconds else 0.0

    def if_now(self, tokens: float) -> float:
        """Return the rate there would be if so many tokens were answered at this moment; 0 if no time has passed."""
        return (self.tokens + tokens) / self._seconds if self._seconds else 0.0

    def busy(self, seconds: float) -> None:
        """Let time pass in which something was under way."""
        kept = math.exp(-seconds / _MEMORY_SECONDS)
        self.tokens *= kept
        self._seconds = self._seconds * kept + seconds
