"""Health as named facts, told over grpc.health.v1.

Names: empty for the process, `quadrate.v1.EmbedService` and its like for a service, `model/<alias>` for a model.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from grpc_health.v1 import health, health_pb2

from quadrate.telemetry import log

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@dataclass(frozen=True, slots=True)
class Fact:
    """Whether something serves, and if not, why."""

    serving: bool
    reason: str = ""


class Health:
    """The facts of one process. Belongs to the event loop that serves; `set` is called there only.

    A change reaches every open Watch in the order in which changes were made.
    """

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs do not know the aio module
        self._facts: dict[str, Fact] = {}
        self._changes: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self._teller: asyncio.Task[None] | None = None
        self.set("", serving=False, reason="starting")

    def set(self, name: str, *, serving: bool, reason: str = "") -> None:
        """State a fact. Stating it again changes nothing."""
        fact = Fact(serving, "" if serving else reason)
        before = self._facts.get(name)
        if before == fact:
            return
        self._facts[name] = fact
        if before is not None and before.serving != serving:
            log.info("health changed", name=name or "process", serving=serving, reason=fact.reason)
        self._changes.put_nowait((name, _SERVING if serving else _NOT_SERVING))

    def forget(self, name: str) -> None:
        """State nothing about something any more: those who watch hear that it is unknown. Forgetting what is not known changes nothing."""
        if self._facts.pop(name, None) is not None:
            self._changes.put_nowait((name, _UNKNOWN))

    def fail_all(self, reason: str) -> None:
        """State that nothing serves any more."""
        for name in self._facts:
            self.set(name, serving=False, reason=reason)

    async def start(self) -> None:
        """Begin to tell what is stated to those who watch; what has been stated so far is told first."""
        await self._tell_waiting()
        self._teller = asyncio.create_task(self._tell())

    async def stop(self) -> None:
        """Tell what is left and stop."""
        if self._teller is not None:
            self._teller.cancel()
            await asyncio.gather(self._teller, return_exceptions=True)
            await self._tell_waiting()

    async def _tell(self) -> None:
        while True:
            await self._tell_one(*await self._changes.get())

    async def _tell_waiting(self) -> None:
        while not self._changes.empty():
            await self._tell_one(*self._changes.get_nowait())

    async def _tell_one(self, name: str, status: int) -> None:
        await self.servicer.set(name, status)
