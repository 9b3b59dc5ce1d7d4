"""Signs of life of one worker, so that one that stands still with its connections open is left within a second.

    heard ──(nothing for PROBE_AFTER_SECONDS while answers are due)──► asked ──(nothing for SUSPECT_SECONDS)──► suspect
      ▲                                                                  │                                        │
      └────────────────(anything at all comes from it)───────────────────┴────────────────────────────────────────┘

A suspect gets nothing new, and what it has is asked of others, as long as there are others: two cores with much to do may let a sound
worker wait as long. After STUCK_SECONDS it does not count as serving any more. Under load answers are the signs, and nothing is asked.
Time in which our own event loop did not run is not held against anybody.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PROBE_AFTER_SECONDS = 0.2
"""A worker that owes answers is asked after so long a silence."""
IDLE_PROBE_SECONDS = 1.0
"""A worker that owes none is asked as often."""
SUSPECT_SECONDS = 0.6
"""The time to answer. A worker's event loop takes a millisecond, and some tens where the cores are taken."""
STUCK_SECONDS = 3.0
"""After so long even the only worker of a model is given up."""
TICK_SECONDS = 0.1
IDLE_TICK_SECONDS = 0.25
_LATE_SECONDS = 0.1
"""A tick that comes later than this says that we ourselves did not run."""


class Pulse:
    """Whether a worker is heard.

    Args:
        ask: Makes the worker's event loop answer. May raise grpc.aio.AioRpcError.
        is_owing: Whether the worker owes answers now.
    """

    def __init__(self, ask: Callable[[], Awaitable[object]], is_owing: Callable[[], bool]) -> None:
        self.is_suspect = False
        """Whether it has been asked and nothing was heard for SUSPECT_SECONDS. Lasts until something is heard."""
        self.is_stuck = False
        """Likewise for STUCK_SECONDS."""
        self._ask = ask
        self._is_owing = is_owing
        self._heard = time.monotonic()
        self._asked: float | None = None
        self._excused = 0.0
        self._probe: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._listeners: set[Callable[[], None]] = set()

    def beat(self) -> None:
        """Note that something came from the worker."""
        self._heard = time.monotonic()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the worker becomes suspect, is stuck, or is heard again; and begin to follow it."""
        self._listeners.add(listener)
        if self._task is None:
            self._task = asyncio.create_task(self._follow())

    def unlisten(self, listener: Callable[[], None]) -> None:
        """Call it no more; a worker that nobody listens to is not asked any more."""
        self._listeners.discard(listener)
        if not self._listeners and self._task is not None:
            self._task.cancel()
            self._task = self._asked = None

    @property
    def silent_seconds(self) -> float:
        """How long the worker has owed a sign of life. 0 while it owes none."""
        if self._asked is None:
            return 0.0
        return max(time.monotonic() - max(self._asked, self._heard, self._excused), 0.0)

    async def close(self) -> None:
        """Follow it no more."""
        tasks = [task for task in (self._task, self._probe) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            pause = TICK_SECONDS if self.is_suspect or self._asked is not None or self._is_owing() else IDLE_TICK_SECONDS
            due = time.monotonic() + pause
            await asyncio.sleep(pause)
            now = time.monotonic()
            if now - due > _LATE_SECONDS:
                self._excused = now
            self._look(now)

    def _look(self, now: float) -> None:
        if self._asked is not None and self._heard > self._asked:
            self._asked = None
            self._set(suspect=False, stuck=False)
        silent = self.silent_seconds
        if silent >= SUSPECT_SECONDS:
            self._set(suspect=True, stuck=self.is_stuck or silent >= STUCK_SECONDS)
        pause = PROBE_AFTER_SECONDS if self._is_owing() else IDLE_PROBE_SECONDS
        if now - self._heard >= pause:
            self._asked = self._asked or now
            if self._probe is None or self._probe.done():  # one that is not answered yet goes on asking
                self._probe = asyncio.create_task(self._hear())

    async def _hear(self) -> None:
        try:
            await self._ask()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # an answer, if a strange one
                self.beat()
            elif not self.is_suspect:  # a connection that breaks is for those who watch it to tell
                self._asked = None
        else:
            self.beat()

    def _set(self, *, suspect: bool, stuck: bool) -> None:
        if (suspect, stuck) == (self.is_suspect, self.is_stuck):
            return
        self.is_suspect, self.is_stuck = suspect, stuck
        for listener in tuple(self._listeners):
            listener()
