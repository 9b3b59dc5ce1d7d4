"""Waiting for what processes do, and seeing whether they live."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

LONG_SECONDS = 60.0
"""Longer than anything here takes."""


async def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds; `what` is said when it does not for too long."""
    until = time.monotonic() + LONG_SECONDS
    while not holds():
        assert time.monotonic() < until, what
        await asyncio.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not yet fetched by its parent does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
