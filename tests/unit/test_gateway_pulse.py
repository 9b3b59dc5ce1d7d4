"""When a worker counts as standing still, and when not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from gateway.upstreams import pulse
from gateway.upstreams.pulse import Pulse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all of it take a tenth of its time."""
    for name in ("PROBE_AFTER", "IDLE_PROBE", "SUSPECT", "STUCK", "TICK", "IDLE_TICK", "_LATE"):
        monkeypatch.setattr(pulse, f"{name}_SECONDS", getattr(pulse, f"{name}_SECONDS") / 10)


class Worker:
    """What is asked."""

    def __init__(self) -> None:
        self.runs = asyncio.Event()
        self.runs.set()
        self.asked = 0
        self.owes = True
        self.error: grpc.aio.AioRpcError | None = None
        self.changes: list[tuple[bool, bool]] = []

    async def answer(self) -> None:
        """Answer once it runs, or fail."""
        self.asked += 1
        if self.error is not None:
            raise self.error
        await self.runs.wait()

    async def until_asked(self, count: int) -> None:
        """Wait until it was asked so often in all."""
        await until(lambda: self.asked >= count)

    @contextlib.asynccontextmanager
    async def followed(self) -> AsyncIterator[Pulse]:
        """Give its pulse, and note each change."""
        found = Pulse(self.answer, lambda: self.owes)
        found.listen(lambda: self.changes.append((found.is_suspect, found.is_stuck)))
        yield found
        await found.close()


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("owes", [True, False])
async def test_a_worker_that_answers_is_never_suspected(*, owes: bool) -> None:
    """It is asked again and again, whether it has work or not."""
    worker = Worker()
    worker.owes = owes
    async with worker.followed():
        await until(lambda: worker.asked >= 5)
    assert not worker.changes


async def test_a_silent_worker_is_suspected_then_stuck_and_taken_back() -> None:
    """Each change is told once, and any sign of life ends it."""
    worker = Worker()
    async with worker.followed() as found:
        await until(lambda: worker.asked >= 1)
        worker.runs.clear()
        await until(lambda: found.is_suspect)
        assert found.silent_seconds >= pulse.SUSPECT_SECONDS
        await until(lambda: found.is_stuck)
        worker.runs.set()
        await until(lambda: not found.is_suspect)
        assert not found.is_stuck
        assert found.silent_seconds == 0
    assert worker.changes == [(True, False), (True, True), (False, False)]


async def test_answers_are_signs_of_life() -> None:
    """Whoever gives them need not answer when asked: a worker with much to do is not stuck. Who gives no more of them is."""
    worker, answers = Worker(), 0
    worker.runs.clear()

    def owes() -> bool:
        """Answer a caller while it owes an answer to who asks."""
        nonlocal answers
        if answers < 5 and found.silent_seconds >= pulse.SUSPECT_SECONDS / 3:
            answers += 1
            found.beat()
        return True

    found = Pulse(worker.answer, owes)
    found.listen(lambda: worker.changes.append((found.is_suspect, found.is_stuck)))
    await until(lambda: answers == 5)
    assert not worker.changes
    await until(lambda: found.is_stuck)
    await found.close()
    assert worker.asked == 1


async def test_our_own_standing_still_is_held_against_nobody() -> None:
    """An event loop that did not run heard nobody, and the worker answers as soon as it does."""
    worker = Worker()
    async with worker.followed():
        await until(lambda: worker.asked >= 1)
        time.sleep(3 * pulse.STUCK_SECONDS)  # noqa: ASYNC251 - blocking the loop is what is tested
        await until(lambda: worker.asked >= 3)
    assert not worker.changes


async def test_a_connection_that_breaks_is_no_silence() -> None:
    """Those who watch health tell of it, with the reason; a server that does not know the question has answered."""
    worker = Worker()
    async with worker.followed():
        for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED):
            worker.error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())
            await worker.until_asked(worker.asked + 3)
    assert not worker.changes


async def test_who_nobody_listens_to_is_not_asked() -> None:
    """A server may turn out to speak another protocol: it is not bothered with this one, until somebody listens again."""
    worker = Worker()
    found = Pulse(worker.answer, lambda: worker.owes)

    def listener() -> None:
        """Hear."""

    found.listen(listener)
    await until(lambda: worker.asked > 0)
    found.unlisten(listener)
    assert found._task is None
    found.listen(listener)
    asked = worker.asked
    await until(lambda: worker.asked > asked)
    await found.close()
