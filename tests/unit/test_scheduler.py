"""The queue and its runners: order, bounds, and an end for everyone on every path."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import math
import threading
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quadrate.errors import DeadlineExceeded, Overloaded, QuadrateError, Unavailable
from quadrate.runtime import admission
from quadrate.runtime.batching import Limits
from quadrate.runtime.cost import CostModel, Shape
from quadrate.runtime.jobs import Batch, Lane, Rules, Text
from quadrate.runtime.packing import Reading
from quadrate.runtime.scheduler import Scheduler
from quadrate.standing import Priority, Standing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

LIMITS = Limits(tokens=64, texts=16)
SPEED = 1000.0
"""Tokens a second that the fake model is believed to do."""


class Clock:
    """Time that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 100.0
        self.step = 0.0
        """How far it moves each time somebody looks."""

    def __call__(self) -> float:
        """Return the time."""
        self.now += self.step
        return self.now


class FakeSession:
    """Answers each text with its first token. Runs wait at the gate, if it is shut."""

    provider = "FakeExecutionProvider"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.runs: list[tuple[list[int], bool]] = []
        self.long: list[bool] = []
        self.error: Exception | None = None
        self.missing_rows = 0

    def run(self, readings: Sequence[Reading], outputs: Sequence[str], *, wide: bool, is_long: bool = False) -> Mapping[str, Any]:
        """See Session."""
        self.long.append(is_long)
        self.runs.append(([int(reading.ids[0]) for reading in readings], wide))
        self.entered.release()
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        answered = readings[: len(readings) - self.missing_rows]
        return {name: [np.array([reading.ids[0]], np.float32) for reading in answered] for name in outputs}

    def close(self) -> None:
        """See Session."""


class Turnstile(threading.Event):
    """A gate that lets runs through one by one, until it is set."""

    def __init__(self) -> None:
        super().__init__()
        self._runs = threading.Semaphore(0)

    def let_one_through(self) -> None:
        """Let a run through, the one that waits or the next that comes."""
        self._runs.release()

    def set(self) -> None:
        """Let all through that come."""
        self._runs.release(1000)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait to be let through."""
        return self._runs.acquire(timeout=timeout)


class Notes:
    """A meter that remembers."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.drops: list[tuple[str, int]] = []

    def ran(self, batch: Batch) -> None:
        """See Meter."""
        self.batches.append(dataclasses.replace(batch))  # its texts do not stay with it

    def dropped(self, lane: Lane, reason: str, texts: int) -> None:
        """See Meter."""
        self.drops.append((reason, texts))


class Bench:
    """A scheduler on a fake clock with one fake model."""

    def __init__(self, **rules: Any) -> None:
        self.clock = Clock()
        self.session = FakeSession()
        self.notes = Notes()
        self.failed: list[Lane] = []
        self.lane = self.make_lane("fake", self.session)
        settings = {"limits": LIMITS, "runners": 1, **rules}
        self.scheduler = Scheduler(Rules(**settings), meter=self.notes, on_failure=self.failed.append, clock=self.clock)

    @staticmethod
    def make_lane(name: str, session: FakeSession) -> Lane:
        """Return a lane for a model."""
        return Lane(name, session, CostModel(Shape(1.0, 0.0), speed=SPEED))

    def run(
        self, first: int, *, count: int = 1, tokens: int = 10, deadline: float | None = None, tenant: str = "", **standing: Any
    ) -> asyncio.Task[list[int]]:
        """Send a request of `count` texts, which are answered by `first`, `first + 1` and so on."""
        return asyncio.create_task(self._run(first, count, tokens, deadline, Standing(tenant, **standing)))

    async def _run(self, first: int, count: int, tokens: int, deadline: float | None, standing: Standing) -> list[int]:
        readings = [Reading.of(np.full(tokens, first + place, np.int32)) for place in range(count)]
        job = await self.scheduler.run(self.lane, readings, outputs=["unit"], deadline=deadline, standing=standing)
        return [int(row[0][0]) for row in job.results if row is not None]

    def waiting(self) -> list[Text]:
        """Return what is held in the queue."""
        return [text for lane in self.scheduler._lanes for text in lane.line]

    async def until_entered(self, runs: int = 1) -> None:
        """Wait until so many more runs have begun."""
        for _ in range(runs):
            assert await asyncio.to_thread(self.session.entered.acquire, timeout=30)

    async def until_idle(self) -> None:
        """Wait until no runner holds a batch any more."""
        while any(lane.idle < self.scheduler._rules.runners for lane in self.scheduler._lanes):
            await asyncio.sleep(0)

    async def busy(self) -> asyncio.Task[list[int]]:
        """Shut the gate and let a run wait there."""
        self.session.gate.clear()
        task = self.run(0)
        await self.until_entered()
        return task


@asynccontextmanager
async def bench(**rules: Any) -> AsyncIterator[Bench]:
    """Give a bench and close it, which must end all threads."""
    made = Bench(**rules)
    try:
        yield made
    finally:
        made.session.gate.set()
        assert await made.scheduler.close()


async def test_each_text_gets_its_own_answer_whatever_its_company() -> None:
    """Each text gets its own answer whatever its company."""
    random = np.random.default_rng(3)
    async with bench(runners=3) as made:
        sizes = random.integers(1, 20, 60)
        tasks = [made.run(1000 * place, count=int(size), tokens=int(random.integers(1, 60))) for place, size in enumerate(sizes)]
        for place, (task, size) in enumerate(zip(tasks, sizes, strict=True)):
            assert await task == list(range(1000 * place, 1000 * place + size))
        assert sum(len(batch.texts) for batch in made.notes.batches) == sizes.sum()
        assert made.scheduler.runs == len(made.notes.batches)
        assert made.scheduler.queued() == {"fake": (0, 0.0)}


async def test_as_many_runs_at_once_as_runners() -> None:
    """As many runs at once as runners."""
    async with bench(runners=2) as made:
        first = await made.busy()
        second = made.run(7)
        await made.until_entered()
        assert [texts for texts, _ in made.session.runs] == [[0], [7]]
        made.session.gate.set()
        assert await asyncio.gather(first, second) == [[0], [7]]


async def test_a_lone_request_gets_all_cores_and_others_one() -> None:
    """A lone request gets all cores and others one."""
    async with bench(runners=2) as made:
        first = await made.busy()
        second = made.run(7)
        await made.until_entered()
        made.session.gate.set()
        await asyncio.gather(first, second)
        assert [wide for _, wide in made.session.runs] == [True, False]


@pytest.mark.parametrize(("speed", "runs"), [(SPEED, 2), (1e9, 1)])
async def test_free_runners_share_what_takes_longer_than_waking_them(speed: float, runs: int) -> None:
    """Six texts of 10 ms go to both free runners, six of 10 ns to one."""
    async with bench(runners=2) as made:
        made.lane.cost = CostModel(Shape(1.0, 0.0), speed=speed)
        assert await made.run(0, count=6) == [0, 1, 2, 3, 4, 5]
        assert len(made.session.runs) == runs


async def test_what_waits_gathers_while_the_runner_is_busy() -> None:
    """What waits gathers while the runner is busy."""
    async with bench() as made:
        first = await made.busy()
        others = [made.run(number) for number in range(1, 6)]
        await asyncio.sleep(0)
        made.session.gate.set()
        await asyncio.gather(first, *others)
        assert made.session.runs[1][0] == [1, 2, 3, 4, 5]


async def test_a_single_text_passes_between_those_of_a_large_request() -> None:
    """A single text passes between those of a large request."""
    async with bench() as made:
        first = await made.busy()
        many = made.run(1000, count=200, tokens=30)
        await asyncio.sleep(0)
        single = made.run(7, tokens=30)
        await asyncio.sleep(0)
        made.session.gate.set()
        await asyncio.gather(first, many, single)
        place = next(place for place, (texts, _) in enumerate(made.session.runs) if 7 in texts)
        assert place <= 6  # after the four runs that start at once
        assert len(made.session.runs) > 90


async def test_a_single_text_waits_for_no_more_than_the_free_runs_of_large_requests() -> None:
    """A single text behind many large requests waits for the runs of each that start at once, and not for those whose share comes later."""
    async with bench() as made:
        first = await made.busy()
        many = [made.run(1000 * number, count=100, tokens=30) for number in range(1, 9)]
        await asyncio.sleep(0)
        made.clock.now += 1
        single = made.run(7, tokens=30)
        await asyncio.sleep(0)
        made.clock.step = 0.001  # what comes into its share from now on comes after the single text
        made.session.gate.set()
        await asyncio.gather(first, single, *many)
        place = next(place for place, (texts, _) in enumerate(made.session.runs) if 7 in texts)
        assert place <= 8 * 4 + 8
        assert len(made.session.runs) > 300


async def test_a_request_of_mixed_lengths_runs_the_longest_first_and_is_answered_in_order() -> None:
    """A request of mixed lengths runs the longest first and is answered in order."""
    lengths = [3, 29, 11, 7, 30, 12, 4, 28, 10, 3]
    readings = [Reading.of(np.full(tokens, number, np.int32)) for number, tokens in enumerate(lengths)]
    async with bench(limits=Limits(tokens=32, texts=8)) as made:
        first = await made.busy()
        many = asyncio.create_task(made.scheduler.run(made.lane, readings, outputs=["unit"], deadline=None))
        await asyncio.sleep(0)
        made.session.gate.set()
        job, _ = await asyncio.gather(many, first)
    assert [int(row[0][0]) for row in job.results if row is not None] == list(range(len(lengths)))
    longest = [max(lengths[text] for text in texts) for texts, _ in made.session.runs[1:]]
    assert longest == sorted(longest, reverse=True)


async def test_two_large_requests_take_turns() -> None:
    """Two large requests take turns."""
    async with bench() as made:
        first = await made.busy()
        one, two = made.run(1000, count=40, tokens=30), made.run(2000, count=40, tokens=30)
        await asyncio.sleep(0)
        made.session.gate.set()
        await asyncio.gather(first, one, two)
        half = [text for texts, _ in made.session.runs[1:21] for text in texts]
        assert abs(sum(text < 2000 for text in half) - len(half) / 2) <= 2


async def test_models_share_the_runners_and_never_a_run() -> None:
    """Models share the runners and never a run."""
    async with bench() as made:
        other = made.make_lane("other", FakeSession())
        first = await made.busy()
        mine = [made.run(number) for number in (1, 2)]
        readings = [Reading.of(np.full(10, 9, np.int32))]
        theirs = asyncio.create_task(made.scheduler.run(other, readings, outputs=["unit"], deadline=None))
        await asyncio.sleep(0)
        made.session.gate.set()
        await asyncio.gather(first, *mine, theirs)
        assert {batch.lane.name: len(batch.texts) for batch in made.notes.batches[1:]} == {"fake": 2, "other": 1}


async def test_a_caller_who_leaves_is_not_worked_for() -> None:
    """A caller who leaves is not worked for."""
    async with bench() as made:
        first = await made.busy()
        gone, stays = made.run(5), made.run(6)
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        made.session.gate.set()
        assert await stays == [6]
        await first
        assert [texts for texts, _ in made.session.runs] == [[0], [6]]
        assert made.notes.drops == [("cancelled", 1)]


async def test_a_deadline_that_passes_ends_the_wait_and_the_work() -> None:
    """A deadline that passes ends the wait and the work."""
    async with bench() as made:
        first = await made.busy()
        late = made.run(5, deadline=made.clock.now + 0.05)
        with pytest.raises(DeadlineExceeded):
            await late
        made.clock.now += 1
        made.session.gate.set()
        await first
        assert await made.run(6) == [6]
        assert [texts for texts, _ in made.session.runs] == [[0], [6]]
        assert made.notes.drops == [("deadline", 1)]


async def test_a_text_that_cannot_be_ready_in_time_is_dropped_when_planned() -> None:
    """A text that cannot be ready in time is dropped when planned."""
    async with bench() as made:
        first = await made.busy()
        late = made.run(5, tokens=60, deadline=made.clock.now + 1000)
        await asyncio.sleep(0)
        made.clock.now += 999.99
        made.session.gate.set()
        with pytest.raises(DeadlineExceeded):
            await late
        await first
        assert [texts for texts, _ in made.session.runs] == [[0]]


async def test_nothing_of_a_large_request_runs_once_it_is_too_late() -> None:
    """Nothing of a large request runs once it is too late, and what it would have taken is counted no more."""
    async with bench() as made:
        first = await made.busy()
        late = made.run(5, count=200, tokens=60, deadline=made.clock.now + 1000)
        await asyncio.sleep(0)
        made.clock.now += 999.99
        made.session.gate.set()
        with pytest.raises(DeadlineExceeded):
            await late
        await first
        assert await made.run(6) == [6]
        assert [texts for texts, _ in made.session.runs] == [[0], [6]]
        assert made.scheduler.queued() == {"fake": (0, 0.0)}


async def test_a_large_request_whose_caller_leaves_holds_no_memory() -> None:
    """A large request whose caller leaves holds no memory, however much stands before its texts."""
    async with bench() as made:
        first = await made.busy()
        stays, gone = [made.run(number) for number in range(1, 100)], made.run(1000, count=500, tokens=60)
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert len(made.waiting()) == len(stays)
        made.session.gate.set()
        await asyncio.gather(first, *stays)


async def test_what_was_answered_is_freed_at_once() -> None:
    """What a request held is freed when it is answered, not when the garbage collector comes."""
    async with bench() as made:
        readings = [Reading.of(np.full(10, place, np.int32)) for place in range(40)]
        job = await made.scheduler.run(made.lane, readings, outputs=["unit"], deadline=None)
        kept = [weakref.ref(reading.ids) for reading in readings]
        assert len(job.batches) > 1
        gc.disable()
        try:
            del readings
            made.notes.batches.clear()
            await made.until_idle()
            assert not any(reference() is not None for reference in kept)
        finally:
            gc.enable()


async def test_a_meter_that_fails_keeps_nobody_from_the_answer() -> None:
    """A meter that fails keeps nobody from the answer."""
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    async with bench() as made:
        made.notes.batches = None  # type: ignore[assignment]  # appending to it raises
        assert await asyncio.wait_for(made.run(5), 10) == [5]
    assert isinstance(heard[0]["exception"], AttributeError)


async def test_who_waited_too_long_for_the_first_run_is_told_to_come_back() -> None:
    """Who waited too long for the first run is told to come back."""
    async with bench(queue_seconds=3.0) as made:
        first = await made.busy()
        waits = made.run(5)
        await asyncio.sleep(0)
        made.clock.now += 3.1
        made.session.gate.set()
        with pytest.raises(Overloaded, match=r"within 3\.0 s") as caught:
            await waits
        assert caught.value.retry_after_seconds
        await first
        assert made.notes.drops == [("queue_timeout", 1)]


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    """A full queue refuses at once and says when to come back."""
    async with bench(queue_seconds=2.0) as made:
        first = await made.busy()
        admitted = [made.run(number, tokens=60) for number in range(1, 60)]
        await asyncio.sleep(0)
        refused = [task for task in admitted if task.done()]
        assert 20 <= len(refused) <= 30  # 60 tokens at 1,000 a second, 2 seconds long
        for task in refused:
            error = task.exception()
            assert isinstance(error, Overloaded)
            assert error.retry_after_seconds is not None
            assert error.retry_after_seconds > 0
        made.session.gate.set()
        await asyncio.gather(first, *(task for task in admitted if task not in refused))


async def test_a_flood_right_after_the_start_is_refused_as_later_ones_are() -> None:
    """A model that was only seen to answer alone, far slower than assumed, lets in what it can do in time and refuses the rest at once."""
    async with bench(queue_seconds=10.0, runners=8) as made:
        for _ in range(4):
            made.lane.cost.learn([10], 0.5, wide=True)
        made.session.gate.clear()
        tasks = [made.run(number) for number in range(300)]
        await asyncio.sleep(0)
        refused = [task for task in tasks if task.done()]
        can_wait, can_run = 152, 8 * 6  # half a second each, eight at a time, 9.5 seconds; six of ten tokens in a run of 64
        assert 300 - (can_wait + can_run) <= len(refused) <= 300 - can_wait
        errors = [task.exception() for task in refused]
        assert all(isinstance(error, Overloaded) and error.retry_after_seconds for error in errors)
        made.session.gate.set()
        await asyncio.gather(*(task for task in tasks if task not in refused))


async def test_a_burst_right_after_the_start_that_can_be_served_is() -> None:
    """What a slow model can answer in time is let in, whatever comes first after its start."""
    async with bench(queue_seconds=10.0, runners=8) as made:
        for _ in range(4):
            made.lane.cost.learn([10], 0.5, wide=True)
        answers = await asyncio.gather(*(made.run(number) for number in range(150)))
        assert answers == [[number] for number in range(150)]


@pytest.mark.parametrize(("run_seconds", "texts"), [(1.0, 20), (0.017, 30)])
async def test_what_waits_is_priced_anew_once_runs_take_longer_than_believed(run_seconds: float, texts: int) -> None:
    """A queue that was let in by a wrong guess counts as what it takes once that is known, so that nobody is let in behind it."""
    async with bench(queue_seconds=2.0) as made:
        made.session.gate = turnstile = Turnstile()
        first = made.run(0)
        await made.until_entered()
        admitted = [made.run(number, tokens=60) for number in range(1, texts + 1)]
        await asyncio.sleep(0)
        assert made.scheduler.queued()["fake"][1] == pytest.approx(texts * 0.06)
        made.clock.now += run_seconds  # for ten tokens, which were believed to take 10 ms
        turnstile.let_one_through()
        await first
        await made.until_entered()
        waits = (texts - 1) * 6 * run_seconds
        assert made.scheduler.queued()["fake"][1] == pytest.approx(waits)
        with pytest.raises(Overloaded, match=f"The queue is {waits:.1f} s long") as refused:
            await made.run(texts + 1)
        assert refused.value.retry_after_seconds is not None
        turnstile.set()
        await asyncio.gather(*admitted)


async def test_a_large_request_in_the_queue_does_not_refuse_single_ones() -> None:
    """A large request in the queue does not refuse single ones."""
    async with bench(queue_seconds=2.0) as made:
        first = await made.busy()
        many = made.run(1000, count=300, tokens=60)
        await asyncio.sleep(0)
        single = made.run(7)
        await asyncio.sleep(0)
        assert not single.done()
        made.session.gate.set()
        await asyncio.gather(first, many, single)


async def test_a_deadline_that_cannot_be_kept_is_refused_at_once() -> None:
    """A deadline that cannot be kept is refused at once."""
    async with bench() as made:
        made.lane.cost.learn([10], 0.01)
        with pytest.raises(DeadlineExceeded, match="more than the deadline leaves"):
            await made.run(1000, count=2000, tokens=64, deadline=made.clock.now + 0.0001)
        assert made.session.runs == []
        first = await made.busy()
        second = made.run(7)
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="the deadline is in"):
            await made.run(1000, count=2000, tokens=64, deadline=made.clock.now + 1)
        made.session.gate.set()
        await asyncio.gather(first, second)


async def test_a_lone_text_that_all_cores_together_do_in_time_is_run() -> None:
    """What is let in because it goes on all cores is not let go of because one of them would take too long."""
    async with bench(runners=4) as made:
        made.lane.cost.learn([60], 60 / SPEED)
        made.lane.cost.learn([4000], 4000 / SPEED)
        assert await made.run(7, tokens=4000, deadline=made.clock.now + 2.0) == [7]
        assert made.session.runs == [([7], True)]


@pytest.mark.parametrize("has_run", [False, True])
async def test_a_length_that_was_never_run_is_tried_before_it_is_refused(*, has_run: bool) -> None:
    """What small runs tell does not refuse long texts for good: one is tried, and what it took decides from then on."""
    async with bench() as made:
        made.lane.cost.learn([10], 0.02)
        if has_run:
            made.lane.cost.learn([2000], 4.0)
        request = made.run(7, tokens=2000, deadline=made.clock.now + 1.5)
        if not has_run:
            assert await request == [7]
            return
        with pytest.raises(DeadlineExceeded, match="more than the deadline leaves"):
            await request
        assert made.session.runs == []


async def test_a_session_that_raises_fails_its_model_and_frees_every_waiter() -> None:
    """A session that raises fails its model and frees every waiter."""
    async with bench() as made:
        made.session.error = RuntimeError("out of memory")
        first = await made.busy()
        second, third = made.run(5), made.run(6, count=200)
        await asyncio.sleep(0)
        made.session.gate.set()
        for outcome in await asyncio.gather(first, second, third, return_exceptions=True):
            assert isinstance(outcome, Unavailable)
            assert outcome.retryable
        assert [lane.failed for lane in made.failed] == ["a run of 10 tokens raised RuntimeError: out of memory"]
        with pytest.raises(Unavailable):
            await made.run(7)
        assert [texts for texts, _ in made.session.runs] == [[0]]


async def test_a_stuck_run_fails_its_model_and_frees_every_waiter() -> None:
    """A stuck run fails its model and frees every waiter."""
    made = Bench(stuck_seconds=5.0)
    first = await made.busy()
    second = made.run(5)
    await asyncio.sleep(0)
    made.clock.now += 4.9
    made.scheduler.watch()
    assert not made.failed
    made.clock.now += 0.2
    made.scheduler.watch()
    for outcome in await asyncio.gather(first, second, return_exceptions=True):
        assert isinstance(outcome, Unavailable)
    assert len(made.failed) == 1
    assert not await made.scheduler.close(timeout_seconds=0.0)  # the process must leave without that thread
    made.session.gate.set()
    assert await made.scheduler.close()


async def test_a_process_that_stood_still_gives_its_runs_another_moment() -> None:
    """A process that was stopped and goes on gives its runs until the next look to end."""
    async with bench(stuck_seconds=5.0) as made:
        first = await made.busy()
        made.clock.now += 100
        made.scheduler.watch()
        assert not made.failed
        made.clock.now += 1
        made.session.gate.set()
        assert await first == [0]
        made.scheduler.watch()
        assert not made.failed


async def test_closing_frees_who_waits_and_refuses_who_comes() -> None:
    """Closing frees who waits and refuses who comes."""
    made = Bench()
    first = await made.busy()
    second = made.run(5)
    await asyncio.sleep(0)
    closing = asyncio.create_task(made.scheduler.close())
    outcomes = await asyncio.gather(first, second, return_exceptions=True)
    made.session.gate.set()
    assert await closing
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    with pytest.raises(QuadrateError):
        await made.run(6)


async def test_a_configured_delay_lets_an_idle_runner_gather() -> None:
    """A configured delay lets an idle runner gather."""
    async with bench(delay_seconds=0.02) as made:
        tasks = [made.run(1), made.run(2), made.run(3)]
        await asyncio.sleep(0)
        assert made.session.runs == []
        made.clock.now += 0.03
        assert await asyncio.gather(*tasks) == [[1], [2], [3]]
        assert len(made.session.runs) == 1


@pytest.mark.parametrize("step", [0.003, 0.006, 0.008, 0.009])
async def test_a_delay_that_ends_while_one_looks_is_not_slept_through(step: float) -> None:
    """A delay that ends between two looks at the clock is not slept through until somebody else comes."""
    async with bench(delay_seconds=0.02) as made:
        made.clock.step = step
        assert await asyncio.wait_for(made.run(1), 10) == [1]


async def test_a_session_that_leaves_a_text_out_fails_its_model() -> None:
    """A row too few is no answer for anybody: the model is failed at once, not after the watchdog's time."""
    async with bench() as made:
        made.session.missing_rows = 1
        with pytest.raises(Unavailable):
            await made.run(5)
        assert ["rows of" in lane.failed for lane in made.failed] == [True]


LONG = LIMITS.tokens + 1
"""Tokens of a text that is longer than a run may be."""


async def test_short_texts_never_wait_for_long_ones_to_end() -> None:
    """A short text runs at once though every runner is busy with a long one, even if there is but one; the session knows which is which."""
    for runners in (1, 2):
        async with bench(runners=runners) as made:
            made.session.gate.clear()
            long = [made.run(100 + number, tokens=LONG) for number in range(4)]
            await made.until_entered(runners)
            short = made.run(7)
            await made.until_entered()
            assert made.session.runs[-1][0] == [7]
            assert made.session.long == [*[True] * runners, False]
            made.session.gate.set()
            assert await short == [7]
            await asyncio.gather(*long)


async def test_long_texts_leave_a_runner_while_short_ones_run() -> None:
    """While short texts run, long ones have all runners but one, and run beside them; without any, they have all."""
    async with bench(runners=3) as made:
        short = await made.busy()
        long = [made.run(100 + number, tokens=LONG) for number in range(4)]
        await made.until_entered(2)
        assert (made.scheduler._long.running, made.scheduler._short.running) == (2, 1)
        made.session.gate.set()
        await asyncio.gather(short, *long)
    async with bench(runners=3) as made:
        made.session.gate.clear()
        long = [made.run(100 + number, tokens=LONG) for number in range(4)]
        await made.until_entered(3)
        assert made.scheduler._long.running == 3
        made.session.gate.set()
        await asyncio.gather(*long)


async def test_long_texts_run_however_many_short_ones_keep_coming() -> None:
    """Long texts run however many short ones keep coming."""
    async with bench() as made:
        first = await made.busy()
        long, short = made.run(100, tokens=LONG), [made.run(number, tokens=60) for number in range(1, 30)]
        await made.until_entered()
        assert made.session.runs[-1][0] == [100]
        made.session.gate.set()
        await asyncio.gather(first, long, *short)


async def test_long_texts_refuse_no_short_ones() -> None:
    """A queue full of long texts refuses long ones, and lets short ones in."""
    async with bench(queue_seconds=2.0) as made:
        made.session.gate.clear()
        long = [made.run(100 + number, tokens=400) for number in range(20)]  # 0.4 s each
        await made.until_entered()
        refused = [task for task in long if task.done()]
        assert refused
        assert all(isinstance(task.exception(), Overloaded) for task in refused)
        short = made.run(7)
        await made.until_entered()
        made.session.gate.set()
        assert await short == [7]
        await asyncio.gather(*(task for task in long if task not in refused))


async def test_the_nearest_deadline_of_a_tenant_goes_first() -> None:
    """The nearest deadline of a tenant goes first; requests in no hurry go in order of arrival."""
    async with bench() as made:
        first = await made.busy()
        tasks = [made.run(1, tokens=60), made.run(2, tokens=60, deadline=made.clock.now + 9), made.run(3, tokens=60)]
        tasks += [made.run(4, tokens=60, deadline=made.clock.now + 5), made.run(5, tokens=60, deadline=made.clock.now + 500)]
        await asyncio.sleep(0)
        made.session.gate.set()
        await asyncio.gather(first, *tasks)
        assert [texts for texts, _ in made.session.runs[1:]] == [[4], [2], [1], [3], [5]]


async def test_a_tenant_that_floods_slows_only_itself_down() -> None:
    """A tenant's single requests run next to each of another's that floods."""
    async with bench() as made:
        first = await made.busy()
        flood = [made.run(1000 + number, tokens=60, tenant="flood") for number in range(100)]
        await asyncio.sleep(0)
        quiet = [made.run(number, tokens=60, tenant="quiet") for number in range(1, 4)]
        await asyncio.sleep(0)
        made.session.gate.set()
        await asyncio.gather(first, *flood, *quiet)
        places = [place for place, (texts, _) in enumerate(made.session.runs) if texts[0] in (1, 2, 3)]
        assert max(places) <= 8


async def test_identical_texts_under_way_run_once() -> None:
    """Identical texts that wait or run are run once, and everyone is answered; their answers cannot be changed by one of them."""
    async with bench() as made:
        first = await made.busy()
        joins_a_run = made.run(0)
        waiting = [made.run(5), made.run(5, tenant="another"), made.run(5, deadline=made.clock.now + 5)]
        other = made.run(5, tokens=11)
        await asyncio.sleep(0)
        made.session.gate.set()
        assert await asyncio.gather(first, joins_a_run, *waiting, other) == [[0], [0], [5], [5], [5], [5]]
        assert [texts for texts, _ in made.session.runs] == [[0], [5, 5]]  # of 10 and of 11 tokens
        assert sum(len(batch.sharers) for batch in made.notes.batches) == 3
        assert not made.lane.flying
        readings = [Reading.of(np.full(10, 9, np.int32))] * 2
        job = await made.scheduler.run(made.lane, readings, outputs=["unit"], deadline=None)
        assert not any(row is not None and row[0].flags.writeable for row in job.results)
        assert made.session.runs[-1][0] == [9]


async def test_other_outputs_are_other_work() -> None:
    """The same text for other outputs is run for itself."""
    async with bench() as made:
        first = await made.busy()
        readings = [Reading.of(np.full(10, 5, np.int32))]
        jobs = [
            asyncio.create_task(made.scheduler.run(made.lane, readings, outputs=outputs, deadline=None))
            for outputs in (["unit"], ["unit", "other"])
        ]
        await asyncio.sleep(0)
        made.session.gate.set()
        await first
        assert [len(job.results[0] or ()) for job in await asyncio.gather(*jobs)] == [1, 2]
        assert made.session.runs[-1][0] == [5, 5]


async def test_who_leaves_takes_no_work_from_those_who_wait_for_the_same() -> None:
    """Who leaves takes no work from those who wait for the same, in whatever order they came and leave."""
    async with bench() as made:
        first = await made.busy()
        tasks = [made.run(5) for _ in range(4)]
        await asyncio.sleep(0)
        before = made.scheduler.queued()["fake"]
        for task in (tasks[0], tasks[2]):
            task.cancel()
        await asyncio.gather(tasks[0], tasks[2], return_exceptions=True)
        assert made.scheduler.queued()["fake"] == before
        tasks.append(made.run(5))
        await asyncio.sleep(0)
        made.session.gate.set()
        assert [await tasks[place] for place in (1, 3, 4)] == [[5], [5], [5]]
        assert [texts for texts, _ in made.session.runs] == [[0], [5]]
        await first
        assert not made.lane.flying
        assert made.scheduler.queued()["fake"] == (0, 0.0)


async def test_once_all_have_left_the_same_text_runs_anew() -> None:
    """Once all who waited for a text have left, it does not run; who asks for it later is answered."""
    async with bench() as made:
        first = await made.busy()
        gone = [made.run(5), made.run(5)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        again = made.run(5)
        await asyncio.sleep(0)
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
        made.session.gate.set()
        await first
        assert await made.run(6) == [6]
        assert await made.run(5) == [5]
        assert [texts for texts, _ in made.session.runs] == [[0], [6], [5]]
        assert not made.lane.flying


async def test_an_urgent_twin_brings_the_work_forward() -> None:
    """Work that two wait for runs when the first of them comes to it, and both are answered."""
    async with bench() as made:
        first = await made.busy()
        patient = [made.run(number, tokens=60) for number in range(1, 10)]
        urgent = made.run(9, tokens=60, deadline=made.clock.now + 5)
        await asyncio.sleep(0)
        made.session.gate.set()
        await asyncio.gather(first, urgent, *patient)
        assert [texts[0] for texts, _ in made.session.runs[:3]] == [0, 9, 1]


async def test_two_models_of_one_name_share_no_answers() -> None:
    """A new revision beside the old one runs its own texts: lanes are told apart by what they are, not by name."""
    async with bench() as made:
        first = await made.busy()
        session = FakeSession()
        new = made.make_lane("fake", session)
        readings = [Reading.of(np.full(10, 0, np.int32))]
        other = asyncio.create_task(made.scheduler.run(new, readings, outputs=["unit"], deadline=None))
        await asyncio.sleep(0)
        made.session.gate.set()
        await asyncio.gather(first, other)
        assert len(session.runs) == len(made.session.runs) == 1


async def test_a_model_is_drained_when_nothing_of_it_waits_or_runs() -> None:
    """A model is drained when nothing of it waits or runs, be it for callers who have gone."""
    async with bench() as made:
        first = await made.busy()
        second = made.run(5)
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        drained = asyncio.create_task(made.scheduler.drain(made.lane))
        done, _ = await asyncio.wait([drained], timeout=0.05)
        assert not done
        made.session.gate.set()
        await second
        await asyncio.wait_for(drained, 10)
        assert not made.scheduler.busy(made.lane)


async def test_a_stuck_model_leaves_the_others_their_runners() -> None:
    """A stuck run takes no runner from other models: another thread takes its place, and the stuck one leaves when it returns."""
    async with bench(stuck_seconds=5.0) as made:
        stuck = await made.busy()
        other = made.make_lane("other", FakeSession())
        readings = [Reading.of(np.full(10, 9, np.int32))]
        waits = asyncio.create_task(made.scheduler.run(other, readings, outputs=["unit"], deadline=None))
        await asyncio.sleep(0)
        for _ in range(2):
            made.clock.now += 4
            made.scheduler.watch()
        with pytest.raises(Unavailable):
            await stuck
        assert int((await waits).results[0][0][0]) == 9  # type: ignore[index]  # it has an answer
        assert made.scheduler.busy(made.lane)
        made.session.gate.set()
        await asyncio.wait_for(made.scheduler.drain(made.lane), 10)


async def test_a_refusal_says_when_there_will_be_room() -> None:
    """A refusal says when there will be room: after that time, with that much done, the same request is let in."""
    async with bench(queue_seconds=2.0) as made:
        first = await made.busy()
        admitted = [made.run(number, tokens=60) for number in range(1, 60)]
        await asyncio.sleep(0)
        refused = next(task for task in admitted if task.done())
        error = refused.exception()
        assert isinstance(error, Overloaded)
        ahead, running = made.scheduler.queued()["fake"][1], 0.01
        most = (1 - admission.ERROR) * 2.0
        told = (ahead + running - most) / (1 - admission.SHRINKING) + admission.ERROR * (ahead + running)
        assert error.retry_after_seconds == pytest.approx(told, abs=0.01)
        made.lane.cost.runs = 1
        late = made.run(1000, count=20, tokens=60, deadline=made.clock.now + 1.0)
        await asyncio.sleep(0)
        error = late.exception()
        assert isinstance(error, Overloaded)
        assert error.retry_after_seconds == pytest.approx(ahead + 20 * 0.06 - 1.0, abs=0.07)
        made.session.gate.set()
        await asyncio.gather(first, *admitted, return_exceptions=True)


async def test_an_interactive_text_waits_for_no_bulk_but_what_runs() -> None:
    """However much bulk waits, an interactive text is in the next run."""
    async with bench() as made:
        first = await made.busy()
        bulk = [made.run(1000 + number, tokens=60, tenant="same", priority=Priority.BULK) for number in range(100)]
        await asyncio.sleep(0)
        interactive = made.run(7, tokens=60, tenant="same")
        await asyncio.sleep(0)
        made.session.gate.set()
        await asyncio.gather(first, interactive, *bulk)
        assert made.session.runs[1][0] == [7]


async def test_a_run_of_interactive_texts_takes_bulk_along_only_as_far_as_that_costs_no_time() -> None:
    """Where runs take by their tokens, a run of interactive texts grows by a quarter at most; where they all take the same, it fills up."""
    for seconds_of, expected in ((lambda tokens: tokens / SPEED, 2), (lambda _: 0.05, 5)):
        async with bench() as made:
            for tokens in (10, 20, 40, 64):
                for _ in range(30):
                    made.lane.cost.learn([tokens], seconds_of(tokens))
            first = await made.busy()
            bulk = [made.run(1000 + number, tokens=8, tenant="bulk", priority=Priority.BULK) for number in range(20)]
            interactive = made.run(7, tokens=32)
            await asyncio.sleep(0)
            made.session.gate.set()
            await asyncio.gather(first, interactive, *bulk)
            texts, _ = made.session.runs[1]
            assert texts[0] == 7
            assert len(texts) == expected


async def test_who_sends_little_shares_its_run_with_no_flood() -> None:
    """A text of a quiet tenant runs with those of others who send little, and with the flood's only as far as that costs no time."""
    async with bench() as made:
        for tokens in (10, 20, 40, 64):
            for _ in range(30):
                made.lane.cost.learn([tokens], tokens / SPEED)
        made.session.gate.clear()
        first = made.run(0, tenant="flood")
        await made.until_entered()
        flood = [made.run(1000 + number, tokens=10, tenant="flood") for number in range(100)]
        await asyncio.sleep(0)
        quiet = [made.run(number, tokens=10, tenant=f"quiet-{number}") for number in (1, 2, 3)]
        await asyncio.sleep(0)
        made.session.gate.set()
        await asyncio.gather(first, *flood, *quiet)
    runs = [texts for texts, _ in made.session.runs[1:]]
    (own,) = [texts for texts in runs if 1 in texts]
    assert {1, 2, 3} <= set(own)
    assert len(own) == 3
    assert max(len(texts) for texts in runs) == 6


async def test_tenants_of_twice_the_weight_get_twice_as_much_done() -> None:
    """Of two tenants who flood, the one of weight 3 gets three quarters of the runs."""
    async with bench() as made:
        first = await made.busy()
        tasks = [
            made.run(1000 * number + place, tokens=60, tenant=name, weight=weight)
            for number, (name, weight) in enumerate((("light", 1.0), ("heavy", 3.0)), start=1)
            for place in range(40)
        ]
        await asyncio.sleep(0)
        made.session.gate.set()
        await asyncio.gather(first, *tasks)
        heavy = [texts[0] >= 2000 for texts, _ in made.session.runs[1:41]]
        assert 28 <= sum(heavy) <= 32


async def test_patience_shrinks_while_a_tenant_is_refused_and_comes_back() -> None:
    """Who is refused for long may wait for ever less, down to a tenth; once not refused for a while, for as long as before."""
    async with bench(queue_seconds=10.0) as made:
        tenant, rules = made.scheduler._tenants.of(Standing("flood")), made.scheduler._rules
        assert admission.patience(tenant, rules, made.clock.now) == 10.0
        found = []
        for _ in range(25):
            made.clock.now += 1.0
            admission._note(tenant, made.clock.now)
            found.append(admission.patience(tenant, rules, made.clock.now))
        assert found == sorted(found, reverse=True)
        assert found[10] == pytest.approx(5.0)
        assert found[-1] == pytest.approx(1.0)
        made.clock.now += admission.CALM_SECONDS + 0.1
        assert admission.patience(tenant, rules, made.clock.now) == 10.0


class OneByOne:
    """Callers of a worker whose runs take one text each. Who is refused comes again exactly when told."""

    def __init__(self, made: Bench, *, predicted: float, takes: float, tokens: int = 8) -> None:
        self.made, self.takes, self.tokens = made, takes, tokens
        for _ in range(5):
            made.lane.cost.learn([8], predicted)
        made.session.gate = self.turnstile = Turnstile()
        self.let_in: list[asyncio.Task[list[int]]] = []
        self.ended = 0
        self.run_ends = math.inf
        self.refusals: list[list[float]] = []
        self.untrue: list[tuple[int, float]] = []

    async def come(self, callers: int) -> None:
        """Let them come at once and go on until all are let in and every run has ended."""
        now = self.made.clock.now
        coming = [(now + 0.001 * caller, caller, -1) for caller in range(callers)]
        self.refusals = [[] for _ in range(callers)]
        while coming or self.run_ends < math.inf:
            coming.sort()
            if coming and coming[0][0] < self.run_ends:
                self.made.clock.now, caller, let_in_before = coming.pop(0)
                if again := await self.ask(caller, let_in_before):
                    coming.append(again)
            else:
                await self.end_run()

    async def ask(self, caller: int, let_in_before: int) -> tuple[float, int, int] | None:
        """Let a caller ask once; returns when it asks again, if it is refused."""
        task = self.made.run(caller, tokens=self.tokens)
        await asyncio.sleep(0)
        if not task.done():
            self.let_in.append(task)
            if self.run_ends == math.inf:
                await self.begin_run()
            return None
        error = task.exception()
        assert isinstance(error, Overloaded)
        assert error.retry_after_seconds is not None
        if let_in_before == len(self.let_in):
            self.untrue.append((caller, self.made.clock.now))
        self.refusals[caller].append(error.retry_after_seconds)
        return self.made.clock.now + error.retry_after_seconds, caller, len(self.let_in)

    async def begin_run(self) -> None:
        """Wait for a run that begins now."""
        while not self.made.session.entered.acquire(blocking=False):
            assert not [drop for drop in self.made.notes.drops if drop[0] == "queue_timeout"]
            await asyncio.sleep(0)
        self.run_ends = self.made.clock.now + self.takes

    async def end_run(self) -> None:
        """End the run that goes on, and wait for the next if there is one."""
        self.made.clock.now = self.run_ends
        self.run_ends = math.inf
        self.turnstile.let_one_through()
        self.ended += 1
        while self.made.scheduler.runs < self.ended:
            await asyncio.sleep(0)
        if self.ended < len(self.let_in):
            await self.begin_run()


@pytest.mark.parametrize("takes", [1.5, 1.51, 1.55])
@pytest.mark.parametrize("callers", [3, 4, 6, 12])
async def test_who_is_let_in_is_served_and_who_comes_back_when_told_is_let_in(callers: int, takes: float) -> None:
    """Runs are nearly as long as patience, and a little longer than predicted: all wait as told, nobody is dropped, all are served."""
    async with bench(queue_seconds=4.0, limits=Limits(tokens=8, texts=16)) as made:
        line = OneByOne(made, predicted=1.5, takes=takes)
        await line.come(callers)
        assert not [drop for drop in made.notes.drops if drop[0] == "queue_timeout"]
        assert line.untrue == []
        assert sorted(await asyncio.gather(*line.let_in)) == [[caller] for caller in range(callers)]


async def test_a_text_that_fills_a_run_counts_as_a_whole_one() -> None:
    """A run takes 1.5 s however little it carries, and holds one text: five of six can begin in time, though earlier runs carried more."""
    async with bench(queue_seconds=6.5, limits=Limits(tokens=8, texts=16)) as made:
        made.lane.cost.learn([2], 1.5)
        line = OneByOne(made, predicted=1.5, takes=1.5, tokens=5)
        await line.come(6)
        assert [len(refused) > 0 for refused in line.refusals] == [False] * 5 + [True]
        assert not [drop for drop in made.notes.drops if drop[0] == "queue_timeout"]
        assert line.untrue == []
        assert sorted(await asyncio.gather(*line.let_in)) == [[caller] for caller in range(6)]


async def test_who_is_dropped_after_all_is_told_as_truly_as_others() -> None:
    """Bulk that waited in vain, since ever more came that goes before it, is let in after the time that the refusal says."""
    async with bench(queue_seconds=3.0) as made:
        for _ in range(5):
            made.lane.cost.learn([60], 1.0)
        made.session.gate = turnstile = Turnstile()
        first = made.run(0, tokens=60)
        await made.until_entered()
        bulk = made.run(1, tokens=60, priority=Priority.BULK)
        await asyncio.sleep(0)
        admission._note(made.scheduler._tenants.of(Standing(priority=Priority.BULK)), made.clock.now)  # its patience shrinks
        before = []
        for runs in (3, 1):
            made.clock.now += 0.9
            before += [made.run(10 * runs + number, tokens=60) for number in range(3)]
            await asyncio.sleep(0)
            made.clock.now += 0.1
            turnstile.let_one_through()
            for _ in range(runs - 1):
                await made.until_entered()
                made.clock.now += 1.0
                turnstile.let_one_through()
            await made.until_entered()
        with pytest.raises(Overloaded, match="No room came free") as caught:
            await bulk
        assert caught.value.retry_after_seconds is not None
        runs, rest = divmod(caught.value.retry_after_seconds, 1.0)
        for _ in range(int(runs)):
            made.clock.now += 1.0
            turnstile.let_one_through()
            await made.until_entered()
        made.clock.now += rest
        again = made.run(1, tokens=60, priority=Priority.BULK)
        await asyncio.sleep(0)
        assert not again.done()
        turnstile.set()
        await asyncio.gather(first, *before, again)


@pytest.mark.parametrize("refused_seconds", [0.0, 3.0, 8.0, 30.0])
async def test_a_refusal_is_true_although_patience_shrinks(refused_seconds: float) -> None:
    """After the time that a refusal says the same request is let in, if nothing came meanwhile, however long refusals have gone on."""
    async with bench(queue_seconds=10.0) as made:
        tenant, rules = made.scheduler._tenants.of(Standing("flood")), made.scheduler._rules
        admission._note(tenant, made.clock.now)
        while made.clock.now < 100 + refused_seconds:
            made.clock.now += 0.5
            admission._note(tenant, made.clock.now)
        for first in (10.5, 12.0, 20.0):
            now = made.clock.now
            told = admission._until(first, admission.patience(tenant, rules, now), rules)
            assert told > 0
            assert first - told <= admission.patience(tenant, rules, now + told) + 1e-9


async def test_the_queue_of_a_flood_is_short_after_a_while_and_never_empty() -> None:
    """Ten times what can be done, for a minute: the queue that is left is a second long, and there was work at every moment."""
    async with bench(queue_seconds=10.0) as made:
        first = await made.busy()
        made.lane.cost.runs = 1
        flood = []
        for step in range(600):
            made.clock.now += 0.1
            flood += [made.run(step * 100 + number, tokens=50) for number in range(20)]  # 1 s of work each 0.1 s
            await asyncio.sleep(0)
            assert 0 < made.scheduler.queued()["fake"][1] <= 10.1
            for _ in range(2):  # 0.1 s of work is done
                made.scheduler._end(next(text.job for text in made.waiting() if not text.job.over), "cancelled")
        assert 0.8 <= made.scheduler.queued()["fake"][1] <= 1.1
        made.session.gate.set()
        for task in flood:
            task.cancel()
        await asyncio.gather(first, *flood, return_exceptions=True)
