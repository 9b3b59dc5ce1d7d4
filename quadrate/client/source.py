"""Items from whatever a caller has (a list, a generator that reads a file, an async iterator), without holding up the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, Collection
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

ItemT = TypeVar("ItemT")

AHEAD = 256
"""Items that are read before they are asked for."""


class _End:
    """Stands behind the last item."""


class Source(Generic[ItemT]):
    """Reads items ahead, at most AHEAD of them, and hands over what is there. Use it with `async with`.

    An iterable that may block is read in one thread of its own. When the caller leaves early, that thread ends after the item it is
    reading.
    """

    def __init__(self, items: Iterable[ItemT] | AsyncIterable[ItemT]) -> None:
        self._items = items
        self._waiting: asyncio.Queue[ItemT | _End] = asyncio.Queue()
        self._room = asyncio.Semaphore(AHEAD)
        self._thread_room = threading.Semaphore(AHEAD)
        self._left = threading.Event()
        self._reader: asyncio.Task[None] | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._left.set()
        self._thread_room.release()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def take(self, most: int) -> list[ItemT]:
        """Wait for an item and return it with those that are there already, at most so many; an empty list at the end.

        Raises what the iterable raised, after everything it gave before has been taken.
        """
        taken: list[ItemT] = []
        while not self._ended and (not taken or not self._waiting.empty()) and len(taken) < most:
            item = await self._waiting.get()
            if isinstance(item, _End):
                self._ended = True
                break
            self._room.release()
            self._thread_room.release()
            taken.append(item)
        if not taken and self._reader is not None:
            await self._reader
        return taken

    async def _read(self) -> None:
        try:
            if isinstance(self._items, AsyncIterable):
                async for item in self._items:
                    await self._room.acquire()
                    self._waiting.put_nowait(item)
            elif isinstance(self._items, Collection):
                for item in self._items:
                    await self._room.acquire()
                    self._waiting.put_nowait(item)
            else:
                await asyncio.to_thread(self._read_in_thread, self._items, asyncio.get_running_loop())
        finally:
            self._waiting.put_nowait(_End())

    def _read_in_thread(self, items: Iterable[ItemT], loop: asyncio.AbstractEventLoop) -> None:
        for item in items:
            self._thread_room.acquire()
            if self._left.is_set():
                return
            loop.call_soon_threadsafe(self._waiting.put_nowait, item)
