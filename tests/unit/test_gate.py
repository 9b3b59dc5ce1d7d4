"""The way to a server that cannot tell how much it can do: how much it gets, and who goes first where requests wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.overload import gate
from gateway.overload.gate import LEAST_REQUESTS, QUEUE_SECONDS, Gate
from quadrate.errors import DeadlineExceeded, Overloaded, QuadrateError
from quadrate.standing import NOBODY, Priority, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOKENS = 10


class Server:
    """A server behind a gate, on a clock of its own, which does so many requests at a time in so long each."""

    def __init__(self, *, seconds: float = 0.1, at_once: int = 4) -> None:
        self.now = 0.0
        self.gate = Gate(lambda: self.now)
        self.seconds = seconds
        self.at_once = at_once
        self.inside: list[tuple[str, asyncio.Future[None]]] = []
        self.served: list[str] = []
        self.refuses = False

    async def call(self, standing: Standing = NOBODY, tokens: int = TOKENS, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Send a request through the gate and wait for its answer."""
        async with self.gate.place(standing, tokens, timeout):
            if self.refuses:
                raise Overloaded("The server refuses.", retry_after_seconds=1.0)
            answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.inside.append((standing.tenant, answer))
            await answer

    async def step(self) -> None:
        """Let the time of one round of answers pass."""
        await settle()
        self.now += self.seconds
        done, self.inside = self.inside[: self.at_once], self.inside[self.at_once :]
        for name, answer in done:
            if not answer.done():
                answer.set_result(None)
            self.served.append(name)
        await settle()


async def settle() -> None:
    """Let all that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def sent(server: Server, count: int, standing: Standing = NOBODY) -> Iterator[list[asyncio.Task[None]]]:  # type: ignore[misc]
    """Send so many requests at once, and let go of those that are left at the end."""
    tasks = [asyncio.create_task(server.call(standing)) for _ in range(count)]
    await settle()
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_idle_server_is_asked_at_once() -> None:
    """What there is room for waits for nothing, not even for another turn of the event loop."""
    way = Gate(lambda: 0.0)
    place = way.place(NOBODY, TOKENS, None).__aenter__()
    with pytest.raises(StopIteration):
        place.send(None)


@pytest.mark.parametrize(("seconds", "at_once", "expected"), [(0.1, 4, 40), (0.1, 16, 160), (2.0, 4, LEAST_REQUESTS)])
async def test_a_server_gets_what_it_answers_in_a_second(seconds: float, at_once: int, expected: int) -> None:
    """However many wait, what is under way is a second's worth of answers; where that is few, a handful."""
    server = Server(seconds=seconds, at_once=at_once)
    async with sent(server, 3_000):
        for _ in range(120):
            await server.step()
        assert expected * 0.8 - 1 <= len(server.inside) <= expected * 1.1 + 1


async def test_a_server_that_refuses_gets_less_and_slowly_more_again() -> None:
    """After refusals fewer are sent, down to one; with time it gets as many as before."""
    server = Server()
    server.refuses = True
    for _ in range(20):
        with pytest.raises(Overloaded):
            await server.call()
    server.refuses = False
    async with sent(server, 100):
        assert len(server.inside) == 1
        for _ in range(1_000):
            await server.step()
    server.served.clear()
    async with sent(server, 100):
        assert len(server.inside) >= LEAST_REQUESTS


async def test_a_server_that_nobody_asked_for_a_day_is_asked_as_any() -> None:
    """What it refused before has no meaning any more, however long ago that was."""
    server = Server()
    server.refuses = True
    with pytest.raises(Overloaded):
        await server.call()
    server.refuses = False
    server.now += 86_400.0
    async with sent(server, 1):
        assert len(server.inside) == 1


async def test_interactive_requests_go_before_bulk() -> None:
    """Of those who wait, all that is interactive goes first."""
    server = Server(at_once=1)
    async with sent(server, 40, Standing("a", Priority.BULK)), sent(server, 10, Standing("b")):
        while len(server.served) < 25:
            await server.step()
    assert server.served[LEAST_REQUESTS : LEAST_REQUESTS + 10] == ["b"] * 10


@pytest.mark.parametrize("weight", [1.0, 3.0])
async def test_tenants_who_wait_share_by_weight(weight: float) -> None:
    """Of two who have much waiting, the one of three times the weight gets three times as much."""
    server = Server(at_once=1)
    async with sent(server, 40, Standing("one")), sent(server, 40, Standing("other", weight=weight)):
        while len(server.served) < LEAST_REQUESTS + 32:
            await server.step()
    counted = Counter(server.served[LEAST_REQUESTS:])
    assert counted["other"] / counted["one"] == pytest.approx(weight, rel=0.3)


async def test_one_who_asks_seldom_does_not_wait_behind_one_who_floods() -> None:
    """A newcomer is among the next to go, whatever another has waiting."""
    server = Server(at_once=1)
    async with sent(server, 45, Standing("flood")):
        for _ in range(10):
            await server.step()
        async with sent(server, 1, Standing("quiet")):
            before = len(server.served) + len(server.inside)
            while "quiet" not in server.served:
                await server.step()
    assert server.served.index("quiet") <= before + 2


async def test_what_would_wait_too_long_is_refused_and_told_truly_when_to_come_back() -> None:
    """Once the queue is as long as it may be newcomers are refused; after the time they are told they are let in."""
    server = Server(at_once=1)
    async with sent(server, LEAST_REQUESTS):
        for _ in range(LEAST_REQUESTS):
            await server.step()
    refusals: list[Overloaded] = []
    async with contextlib.AsyncExitStack() as stack:
        while not refusals:
            tasks = await stack.enter_async_context(sent(server, 1))
            refusals += [error for task in tasks if task.done() and isinstance(error := task.exception(), Overloaded)]
        assert server.gate.waiting * 0.1 == pytest.approx(QUEUE_SECONDS, abs=0.3)
        told = refusals[0].retry_after_seconds
        assert told is not None
        for _ in range(max(1, round(told / server.seconds + 0.5))):
            await server.step()
        (again,) = await stack.enter_async_context(sent(server, 1))
        assert not again.done()


async def test_a_server_that_has_answered_nothing_yet_gets_a_bounded_queue() -> None:
    """A slow server's first flood is refused before its first answer; what might still be answered in time waits."""
    server = Server(seconds=4.0, at_once=8)
    async with sent(server, LEAST_REQUESTS + 20) as first:
        server.now += 2.0
        async with sent(server, 400) as later:
            refused = [task for task in later if task.done()]
            assert not any(task.done() for task in first)
            assert 350 < len(refused) < 400
            for task in refused:
                error = task.exception()
                assert isinstance(error, Overloaded)
                assert error.retry_after_seconds is not None
                assert error.retry_after_seconds > 0


async def test_nobody_waits_longer_than_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was let in while nothing was known, and has no place in time after all, is refused then, whether or not it has a deadline."""
    monkeypatch.setattr(gate, "QUEUE_SECONDS", 0.05)
    server = Server()
    async with sent(server, LEAST_REQUESTS), asyncio.timeout(10):
        for timeout in (None, 60.0):
            with pytest.raises(Overloaded, match="no room within") as refused:
                await server.call(timeout=timeout)
            assert refused.value.retry_after_seconds is not None
        with pytest.raises(DeadlineExceeded):
            await server.call(timeout=0.01)
    assert server.gate.waiting == 0


async def test_a_deadline_ends_the_wait() -> None:
    """Who waited in vain is told so; once it is known how long it takes, who cannot wait so long is told at once."""
    server = Server(at_once=1)
    async with sent(server, LEAST_REQUESTS + 30):
        with pytest.raises(DeadlineExceeded):
            await server.call(timeout=0.01)
        await server.step()
        with pytest.raises(Overloaded):
            await server.call(timeout=0.01)


@given(st.lists(st.sampled_from(["call", "bulk", "cancel", "step", "refuse"]), max_size=120))
def test_every_place_comes_back(events: list[str]) -> None:
    """Whatever is called, cancelled, answered and refused, nothing is under way or waits once all have gone."""

    async def run() -> None:
        server = Server(at_once=2)
        tasks: list[asyncio.Task[None]] = []
        acts: dict[str, Callable[[], object]] = {
            "call": lambda: tasks.append(asyncio.create_task(server.call())),
            "bulk": lambda: tasks.append(asyncio.create_task(server.call(Standing("b", Priority.BULK), 30))),
            "cancel": lambda: tasks and tasks[len(tasks) // 2].cancel(),
            "refuse": lambda: setattr(server, "refuses", not server.refuses),
        }
        for event in events:
            if event == "step":
                await server.step()
            else:
                acts[event]()
                await settle() if len(tasks) % 3 else None
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(result is None or isinstance(result, QuadrateError | asyncio.CancelledError) for result in results)
        assert (server.gate._requests, server.gate._tokens, server.gate.waiting) == (0, 0, 0)

    asyncio.run(run())
