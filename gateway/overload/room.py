"""The gateway's own room: how many requests, and how many bytes of them, it has in hand at a time, and each caller's part of it.

A worker refuses what it cannot do in time; but requests take memory here before a worker has seen them, and while they wait for it. What
a caller may hold is a multiple of what is free (dynamic thresholds, Choudhury and Hahne 1998): alone it may take four fifths of all, and
the more is taken, the less is anybody's part. So nobody has to be told of beforehand, an idle gateway is anybody's, one who floods leaves
room for all others, and what is over the bound is refused at once.

Requests are refused; items of streams wait, and a stream that is not read on is slowed down by its transport. Streams themselves have a
room of their own: in that of their items, enough of them would leave no place for any item, and wait for ever.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from quadrate.errors import Overloaded
from quadrate.standing import Priority

if TYPE_CHECKING:
    from collections.abc import Callable

    from quadrate.standing import Standing

PARTS = {Priority.INTERACTIVE: 4.0, Priority.BULK: 1.0}
"""How many times what is free a caller of weight 1 may hold: four fifths of all if it is alone, with bulk half."""
ALWAYS_REQUESTS = 2
"""So many a caller may hold while anything is free, whatever its weight."""
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.05, 10.0
_FORGET = 0.95
"""Weight of earlier calls in how long they usually stay, at each new one."""


class Room:
    """So many requests and bytes at a time.

    Args:
        requests: The most requests.
        size_bytes: The most bytes of requests, as they came.
        clock: Monotonic seconds.
    """

    def __init__(self, *, requests: int, size_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.free_requests = requests
        self.free_bytes = size_bytes
        self._clock = clock
        self._held: dict[str, _Holding] = {}
        self._waiting: dict[Standing, dict[asyncio.Future[Place], int]] = {}
        """Items by the caller that they are of, in the order in which they came, with their bytes."""
        self._stay_seconds = 0.0

    def enter(self, standing: Standing, size_bytes: int) -> Place:
        """Take a place for a request. Raises Overloaded if the caller has its part, or nothing is free."""
        if not self._has_room(standing, size_bytes):
            raise self._full(standing)
        return self._take(standing, size_bytes)

    async def wait(self, standing: Standing, size_bytes: int) -> Place:
        """Take a place for an item of a stream, as soon as there is one for it; of a caller's several the first that came."""
        if standing not in self._waiting and self._has_room(standing, size_bytes):
            return self._take(standing, size_bytes)
        place: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(standing, {})[place] = size_bytes
        try:
            return await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._leave(standing, place)
                self._let_in()  # it may have kept others of its caller behind it
            else:
                place.result().close()
            raise

    def give_back(self, standing: Standing, size_bytes: int, entered: float) -> None:
        """Free a place that was taken at a time of the clock, and let in who waits for one."""
        stayed_seconds = self._clock() - entered
        self.free_requests += 1
        self.free_bytes += size_bytes
        held = self._held[standing.tenant]
        held.requests -= 1
        held.size_bytes -= size_bytes
        if not held.requests:
            del self._held[standing.tenant]
        self._stay_seconds = _FORGET * self._stay_seconds + (1 - _FORGET) * stayed_seconds if self._stay_seconds else stayed_seconds
        if self._waiting:
            self._let_in()

    def _has_room(self, standing: Standing, size_bytes: int) -> bool:
        if not self.free_requests or size_bytes > self.free_bytes:
            return False
        held = self._held.get(standing.tenant)
        if held is None:
            return True
        part = PARTS[standing.priority] * standing.weight
        has_bytes = not held.size_bytes or held.size_bytes + size_bytes <= part * self.free_bytes
        return has_bytes and held.requests < max(ALWAYS_REQUESTS, part * self.free_requests)

    def _take(self, standing: Standing, size_bytes: int) -> Place:
        self.free_requests -= 1
        self.free_bytes -= size_bytes
        held = self._held.get(standing.tenant)
        if held is None:
            held = self._held[standing.tenant] = _Holding()
        held.requests += 1
        held.size_bytes += size_bytes
        return Place(self, standing, size_bytes, self._clock())

    def _let_in(self) -> None:
        """Give places to those who wait, of each caller as many as there is room for."""
        for standing in tuple(self._waiting):
            while self.free_requests and (line := self._waiting.get(standing)):
                place, size_bytes = next(iter(line.items()))
                if not place.done():
                    if not self._has_room(standing, size_bytes):
                        break
                    place.set_result(self._take(standing, size_bytes))
                self._leave(standing, place)

    def _leave(self, standing: Standing, place: asyncio.Future[Place]) -> None:
        """Let an item wait no more; the second time nothing happens."""
        line = self._waiting.get(standing, {})
        line.pop(place, None)
        if not line:
            self._waiting.pop(standing, None)

    def _full(self, standing: Standing) -> Overloaded:
        """Return the error for who has to come back: about when the next of its own requests, or else of all, will have been answered."""
        held = self._held.get(standing.tenant)
        among = held.requests if held is not None else sum(one.requests for one in self._held.values())
        wait = min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, self._stay_seconds / max(1, among)))
        whose = "of this caller" if held is not None else "of all callers"
        return Overloaded(
            f"{among} requests {whose} are under way, and there is no room for more. Send fewer at once, or try again later.",
            retry_after_seconds=wait,
        )


class _Holding:
    """What one caller has in hand here."""

    __slots__ = ("requests", "size_bytes")

    def __init__(self) -> None:
        self.requests = 0
        self.size_bytes = 0


class Place:
    """A request's place, from when it was let in until `close`."""

    __slots__ = ("_entered", "_room", "_size_bytes", "_standing")

    def __init__(self, room: Room, standing: Standing, size_bytes: int, entered: float) -> None:
        self._room: Room | None = room
        self._standing = standing
        self._size_bytes = size_bytes
        self._entered = entered

    def close(self, *, failed: bool = False) -> None:  # noqa: ARG002 - as all that a call holds
        """Give it back; the second time nothing happens."""
        if self._room is not None:
            room, self._room = self._room, None
            room.give_back(self._standing, self._size_bytes, self._entered)
