"""Files that may be edited while a process runs: when they are others than before, and done being written.

Looked at is where a path leads, so that a link that is moved to another folder, as Kubernetes does it for a ConfigMap, is an edit, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SETTLE_SECONDS = 0.2
"""Files that are being written are left alone until they have rested so long."""
MOST_SETTLING_SECONDS = 5.0
"""Files that never rest are taken as they are: what is half there is refused by whoever reads it, or it is whole."""

Mark = tuple[int, int, int, int] | None
"""Which file a path leads to, and which state of it; None where there is none."""


class WatchedFiles:
    """Looks at files every few seconds, and whenever it is asked to.

    Args:
        paths: The files; one may come and go.
        interval_seconds: How often to look. 0: only when asked.
    """

    def __init__(self, paths: Sequence[Path], *, interval_seconds: float) -> None:
        self._paths = tuple(paths)
        self._interval_seconds = interval_seconds or None
        self._marks: Sequence[Mark] = ()
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Let `edited` return soon, whether files were edited or not."""
        self._asked.set()

    async def edited(self, *, or_the_same: bool) -> bool:
        """Wait until the files are others than at the last time, and rest. The first time, they are.

        Args:
            or_the_same: Return at the next look even if they are as they were.

        Returns:
            Whether somebody asked.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._interval_seconds)
            was_asked = self._asked.is_set()
            self._asked.clear()
            found = await self._look()
            if found != self._marks or or_the_same or was_asked:
                self._marks = await self._settled(found)
                return was_asked

    async def _look(self) -> Sequence[Mark]:
        return await asyncio.to_thread(lambda: [_mark(path) for path in self._paths])

    async def _settled(self, found: Sequence[Mark]) -> Sequence[Mark]:
        for _ in range(round(MOST_SETTLING_SECONDS / SETTLE_SECONDS)):
            before = found
            await asyncio.sleep(SETTLE_SECONDS)
            found = await self._look()
            if found == before:
                break
        return found


def refuse_empty(path: Path) -> None:
    """Raise ConfigError for a file without a word: so it is while somebody writes it, and it would take away every model or key."""
    with contextlib.suppress(OSError):
        if not path.stat().st_size:
            raise ConfigError(f"{path}: is empty; write {{}} if nothing is meant.")


def _mark(path: Path) -> Mark:
    try:
        found = os.stat(path)  # noqa: PTH116 - it is the plain numbers that are compared
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
