"""The addresses behind the names of workers: each of them is a replica, and they change while we run.

In a cluster one name stands for all workers of a kind (a headless service), and workers come and go. A name is resolved every few seconds.
Nothing is taken from a name that cannot be resolved: a name server that is away ends no worker. Where a name has addresses of both kinds
those of IPv4 count alone, since they lead to the same workers twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING

from quadrate.errors import ConfigError
from quadrate.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    Resolve = Callable[[str, int], Awaitable[tuple[str, ...]]]

RESOLVE_SECONDS = 2.0
FIRST_SECONDS = 2.0
"""A gateway that starts waits so long for its names to be resolved."""


class Names:
    """Names that have been asked for, and what they stand for now.

    Args:
        changed: Awaited after any of them has come to stand for other addresses. May raise ConfigError: then it is tried again.
        resolve: Returns the addresses of a host, in a fixed order; none where it cannot be resolved.
    """

    def __init__(self, changed: Callable[[], Awaitable[None]], resolve: Resolve | None = None) -> None:
        self._changed = changed
        self._resolve = resolve or _resolve
        self._known: dict[str, tuple[str, ...]] = {}
        self._task: asyncio.Task[None] | None = None

    def of(self, target: str) -> tuple[str, ...]:
        """Return the `address:port` of each worker behind a `host:port`; itself if it is an address, or was never resolved."""
        if not is_name(target):
            return (target,)
        return self._known.setdefault(target, ()) or (target,)

    def keep(self, targets: Iterable[str]) -> None:
        """Forget the names that are not among these."""
        self._known = {target: self._known[target] for target in targets if target in self._known}

    async def start(self) -> None:
        """Resolve what was asked for so far, and go on every RESOLVE_SECONDS."""
        if self._known:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_SECONDS):
                    await self._look()
            await self._changed()
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Resolve nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        is_due = False
        while True:
            await asyncio.sleep(RESOLVE_SECONDS)
            is_due = await self._look() or is_due
            if not is_due:
                continue
            try:
                await self._changed()
                is_due = False
            except ConfigError as exc:
                log.warn("addresses have changed and cannot be used yet", reason=str(exc))

    async def _look(self) -> bool:
        """Resolve every name; tell whether any stands for other addresses than before."""
        has_changed = False
        for target in tuple(self._known):
            host, _, port = target.rpartition(":")
            addresses = await self._resolve(host, int(port))
            now = tuple(f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address in addresses)
            before = self._known.get(target)
            if now and before is not None and now != before:
                log.info("addresses of a name have changed", name=target, before=before, now=now)
                self._known[target] = now
                has_changed = True
        return has_changed


def is_name(target: str) -> bool:
    """Whether a `host:port` may stand for several workers. `localhost` has two addresses of one machine."""
    host = target.rpartition(":")[0].strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost"
    return False


async def _resolve(host: str, port: int) -> tuple[str, ...]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # a label that is empty or too long is no name either
        return ()
    for family in (socket.AF_INET, socket.AF_INET6):
        if addresses := sorted({str(address[0]) for kind, _, _, _, address in found if kind == family}):
            return tuple(addresses)
    return ()
