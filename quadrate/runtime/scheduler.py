"""The queue before the sessions, and the threads that empty it.

    submit ──► waiting, in fair order ──► plan ──► run (one thread a core) ──► one wake-up of the event loop a batch

Nothing waits while a runner is free, and what waits gathers while all are busy. *Order*: by virtual time, in
which every request gets an equal share of the runners (start-time fair queueing, Goyal et al. 1996); a request's first few runs' worth
starts at once, the rest of a large one as its share allows. So ordinary requests go in order of arrival, and one of 2,048 texts takes turns
with them. *Bound*: a request whose first
text could not run within the queue's timeout, or whose last text could not be ready by its deadline, is refused at once. *Ends*: a request
ends by its answer, by its deadline, by its caller's leaving, or by its model's failure, and no path leaves it without an end.

Submitting and answering happen on the event loop's thread; everything marked so happens under the lock.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from quadrate.errors import DeadlineExceeded, Overloaded, QuadrateError, Unavailable
from quadrate.runtime import batching
from quadrate.runtime.jobs import Batch, Job, Text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from quadrate.runtime.jobs import Lane, Meter, Rules
    from quadrate.runtime.packing import Reading
    from quadrate.telemetry import Trace

NICENESS = 5
"""Runners yield to the event loop, and to the gateway and the edge on the same cores: an answer that is ready must not wait for a run."""
STUCK_FACTOR = 20.0
"""A run is stuck when it takes so many times longer than predicted, and longer than the scheduler's `stuck_seconds`."""
STOOD_STILL_SECONDS = 5.0
"""Two looks for stuck runs this far apart mean that the process itself stood still, and its runs with it."""
MIN_RETRY_SECONDS = 0.05
FREE_RUNS = 4
"""So many full runs' worth of each request start at once."""
PATIENCE_FACTOR = 10.0
"""A caller without a deadline may wait for its last text so many queue timeouts: otherwise such callers could fill the memory."""

_new_order = iter(range(1 << 62)).__next__


class Scheduler:
    """Runs the texts of all models of a process, on `rules.runners` threads.

    Args:
        rules: How it decides.
        meter: Hears what happened.
        on_failure: Called on the event loop's thread when a model has failed for good, with its lane.
        clock: Monotonic seconds.

    Made and closed on the event loop that awaits its answers.
    """

    def __init__(
        self, rules: Rules, *, meter: Meter, on_failure: Callable[[Lane], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rules = rules
        self._meter = meter
        self._on_failure = on_failure
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._waiting: list[Text] = []  # by start, then order
        self._waiting_seconds = 0.0
        self._virtual = 0.0
        self._idle = 0
        self._running: dict[int, Batch] = {}
        self._jobs: set[Job] = set()
        self._seen: dict[str, None] = {}
        self._closed = False
        self._watched = clock()
        self.runs = 0
        """Runs that have ended."""
        self._threads = [threading.Thread(target=self._serve, args=(slot,), name=f"runner-{slot}") for slot in range(rules.runners)]
        for thread in self._threads:
            thread.start()

    def queued(self) -> dict[str, tuple[int, float]]:
        """Return for each model that has waiting texts, or had any before, their tokens and the seconds they are predicted to take."""
        found = dict.fromkeys(self._seen, (0, 0.0))
        with self._changed:
            for text in self._waiting:
                if not text.job.over:
                    tokens, seconds = found[text.job.lane.name]
                    found[text.job.lane.name] = (tokens + text.tokens, seconds + text.seconds / self._rules.runners)
        return found

    async def run(
        self,
        lane: Lane,
        readings: Sequence[Reading],
        *,
        outputs: Sequence[str],
        deadline: float | None,
        tenant: str = "",
        trace: Trace | None = None,
    ) -> Job:
        """Run texts and return their job, whose `results` are then complete.

        Args:
            lane: The model.
            readings: At least one text.
            outputs: Which of the graph's outputs are wanted.
            deadline: When the caller stops waiting, on the clock; None if it did not say.
            tenant: On whose behalf.
            trace: The request's, for the batch spans that link to it.

        Raises:
            Overloaded: There is no room for it in time; nothing of it ran.
            DeadlineExceeded: The deadline passed.
            Unavailable: The model failed, or the process is going.
        """
        texts = len(readings)
        job = Job(lane, tuple(outputs), deadline, tenant, self._loop.create_future(), [None] * texts, self._clock(), trace, texts)
        self._submit(job, readings)
        timer = self._loop.call_later(max(0.0, deadline - self._clock()), self._expire, job) if deadline is not None else None
        try:
            await job.future
        except asyncio.CancelledError:
            self._end(job, "cancelled")
            raise
        finally:
            self._jobs.discard(job)
            if timer is not None:
                timer.cancel()
        return job

    def busy(self, lane: Lane) -> bool:
        """Whether a request of a model waits or a run of it goes on, be it for callers who have gone."""
        with self._changed:
            running = any(batch.lane is lane for batch in self._running.values())
        return running or any(job.lane is lane for job in self._jobs)

    def fail(self, lane: Lane, reason: str) -> None:
        """Take a model out of service for good: its callers get a retryable error now. Called on the event loop's thread."""
        if lane.failed:
            return
        lane.failed = reason
        for job in [job for job in self._jobs if job.lane is lane]:
            self._refuse(
                job, Unavailable(f"The model {lane.name} failed and its worker restarts. Try again.", retry_after_seconds=1.0), "failed"
            )
        self._on_failure(lane)

    def watch(self) -> None:
        """Look for stuck runs; to be called about once a second on the event loop's thread."""
        now = self._clock()
        before, self._watched = self._watched, now
        if now - before > STOOD_STILL_SECONDS:
            return
        with self._changed:
            running = list(self._running.values())
        for batch in running:
            allowed = max(self._rules.stuck_seconds, STUCK_FACTOR * batch.predicted)
            if now - batch.started > allowed:
                self.fail(batch.lane, f"a run of {batch.tokens} tokens takes longer than {allowed:.0f} s")

    async def close(self, *, timeout_seconds: float = 5.0) -> bool:
        """End what waits by an error and the threads after their run. Returns whether all have ended in time; a stuck one has not."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for job in list(self._jobs):
            self._refuse(job, Unavailable("The worker is stopping. Try again.", retry_after_seconds=1.0), "failed")
        return await asyncio.to_thread(self._join, self._clock() + timeout_seconds)

    def _join(self, until: float) -> bool:
        for thread in self._threads:
            thread.join(max(0.0, until - self._clock()))
        return not any(thread.is_alive() for thread in self._threads)

    # On the event loop's thread.

    def _submit(self, job: Job, readings: Sequence[Reading]) -> None:
        lane = job.lane
        if lane.failed or self._closed:
            raise Unavailable(f"The model {lane.name} does not run: its worker leaves and comes back. Try again.", retry_after_seconds=1.0)
        self._seen[lane.name] = None
        costs = [lane.cost.share(len(reading)) for reading in readings]
        with self._changed:
            starts = (self._virtual + np.maximum(0.0, np.cumsum(costs) - self._free_seconds(lane))).tolist()
            self._admit(job, starts[0], starts[-1], sum(costs))
            self._enqueue(job, readings, costs, starts)
            self._changed.notify(len(readings))
        self._jobs.add(job)

    def _free_seconds(self, lane: Lane) -> float:
        """Return how much work of a request starts at once."""
        return FREE_RUNS * lane.cost.share(self._rules.limits.tokens)

    def _admit(self, job: Job, first: float, last: float, own: float) -> None:
        """Refuse what cannot run in time: first and last text start at these virtual times, its work is `own` seconds. Under the lock."""
        wait = self._ahead(first)
        if wait > self._rules.queue_seconds:
            self._meter.dropped(job.lane, "overloaded", len(job.results))
            raise Overloaded(
                f"The queue is {wait:.1f} s long, the limit is {self._rules.queue_seconds:.1f} s. Try again later.",
                retry_after_seconds=max(MIN_RETRY_SECONDS, wait - self._rules.queue_seconds),
            )
        if job.deadline is None and self._ahead(last) > PATIENCE_FACTOR * self._rules.queue_seconds:
            self._meter.dropped(job.lane, "overloaded", len(job.results))
            raise Overloaded(
                "The queue is too long for so many texts. Send less at once, or try again later.", retry_after_seconds=wait + 1.0
            )
        ready = self._ahead(last) + own / self._rules.runners
        if job.deadline is not None and job.lane.cost.runs and self._clock() + ready > job.deadline:
            if not self._waiting:
                raise DeadlineExceeded(f"The answer would take {ready:.3f} s, which is more than the deadline leaves. Allow more time.")
            self._meter.dropped(job.lane, "overloaded", len(job.results))
            raise Overloaded(
                f"The answer would take {ready:.1f} s, the deadline is in {max(0.0, job.deadline - self._clock()):.1f} s. "
                "Send less at once, allow more time, or try again later.",
                retry_after_seconds=max(MIN_RETRY_SECONDS, self._waiting_seconds / self._rules.runners),
            )

    def _ahead(self, start: float) -> float:
        """Estimate how long what stands before a text with this virtual start takes. Under the lock."""
        if not self._waiting:
            return 0.0
        place = bisect.bisect_right(self._waiting, start, key=_start)
        return self._waiting_seconds * place / len(self._waiting) / self._rules.runners

    def _enqueue(self, job: Job, readings: Sequence[Reading], costs: Sequence[float], starts: Sequence[float]) -> None:
        """Put texts into the fair order. Under the lock."""
        order = _new_order()
        texts = [
            Text(job, place, reading, len(reading), cost, start, order)
            for place, (reading, cost, start) in enumerate(zip(readings, costs, starts, strict=True))
        ]
        if not self._waiting or self._waiting[-1].start <= texts[0].start:
            self._waiting.extend(texts)
        elif len(texts) == 1:
            bisect.insort_right(self._waiting, texts[0], key=_start)
        else:
            self._waiting.extend(texts)
            self._waiting.sort(key=lambda text: (text.start, text.order))
        job.waiting_seconds = sum(costs)
        self._waiting_seconds += job.waiting_seconds

    def _expire(self, job: Job) -> None:
        self._refuse(
            job, DeadlineExceeded("The deadline passed before the answer was there. Allow more time, or send less at once."), "deadline"
        )

    def _refuse(self, job: Job, error: QuadrateError, reason: str) -> None:
        if not job.future.done():
            job.future.set_exception(error)
        self._end(job, reason)

    def _end(self, job: Job, reason: str) -> None:
        """Let go of what of a job still waits; runners skip it."""
        with self._changed:
            dropped = 0 if job.over else sum(1 for result in job.results if result is None)
            job.over = True
            self._forget(job)
            if len(job.results) > batching.WINDOW:  # the window may not come to the last of them for long
                self._waiting = [text for text in self._waiting if text.job is not job]
        if dropped:
            self._meter.dropped(job.lane, reason, dropped)

    def _deliver(self, batch: Batch, finished: Sequence[Job]) -> None:
        self.runs += 1
        try:
            self._meter.ran(batch)
        finally:
            for job in finished:
                if not job.future.done():
                    job.future.set_result(None)
            batch.texts = []  # a job knows its batches: what both hold would otherwise wait for the garbage collector

    # On the runners' threads.

    def _serve(self, slot: int) -> None:
        _yield_to_others()
        while (batch := self._next(slot)) is not None:
            self._run(batch)
            with self._changed:
                del self._running[slot]
            del batch  # while this thread waits it must not keep a model that is to go

    def _next(self, slot: int) -> Batch | None:
        """Wait for work and take it; None when the scheduler closes."""
        with self._changed:
            while not self._closed:
                self._drop()
                gathering = self._gathering()
                if self._waiting and not gathering:
                    self._running[slot] = batch = self._take()
                    return batch
                self._idle += 1
                try:
                    self._changed.wait(gathering or None)
                finally:
                    self._idle -= 1
            return None

    def _gathering(self) -> float:
        """Return how many seconds to wait for more texts, 0 for none. Under the lock."""
        delay = self._rules.delay_seconds
        if not delay or not self._waiting or sum(text.tokens for text in self._waiting) >= self._rules.limits.tokens:
            return 0.0
        return max(0.0, min(text.job.submitted for text in self._waiting) + delay - self._clock())

    def _drop(self) -> None:
        """Take out what need not run any more, until nothing of it is in the window. Under the lock."""
        now = self._clock()
        while True:
            window = self._waiting[: batching.WINDOW]
            keep = [text for text in window if not (text.job.over or text.job.lane.broken or self._late(text, now))]
            if len(keep) == len(window):
                return
            self._waiting[: batching.WINDOW] = keep
            if not keep:  # a whole window was, so there may be many more
                self._waiting = [text for text in self._waiting if not (text.job.over or text.job.doomed or text.job.lane.broken)]

    def _late(self, text: Text, now: float) -> bool:
        """Whether a text can no longer be of use; its job is then ended by the right error. Under the lock."""
        job, limit = text.job, self._rules.queue_seconds
        if job.doomed:
            return True
        if job.deadline is not None and now + text.seconds > job.deadline:
            self._tell(self._expire, job)
        elif not job.begun and now - job.submitted > limit:
            wait = max(MIN_RETRY_SECONDS, limit / 4)
            error = Overloaded(f"No room came free within {limit:.1f} s. Try again later.", retry_after_seconds=wait)
            self._tell(self._refuse, job, error, "queue_timeout")
        else:
            return False
        job.doomed = True
        self._forget(job)
        return True

    def _forget(self, job: Job) -> None:
        """Count the waiting texts of a job no longer. Under the lock."""
        self._waiting_seconds -= job.waiting_seconds
        job.waiting_seconds = 0.0

    def _take(self) -> Batch:
        """Plan the next batch and take it out of the queue. Under the lock."""
        window = self._waiting[: batching.WINDOW]
        lane = window[0].job.lane
        mine = [text for text in window if text.job.lane is lane]
        now = self._clock()
        typical = lane.cost.share(self._rules.limits.tokens)
        chosen = batching.plan(mine, self._rules.limits, now=now, run_seconds=typical, runners=self._idle + 1, waste=lane.waste)
        texts = [mine[place] for place in chosen]
        taken = set(map(id, texts))
        self._waiting[: batching.WINDOW] = [text for text in window if id(text) not in taken]
        for text in texts:
            text.job.begun = True
            text.job.waiting_seconds -= text.seconds
            self._waiting_seconds -= text.seconds
        if not self._waiting:
            self._waiting_seconds = 0.0  # what rounding left
        self._virtual += sum(text.seconds for text in texts) / max(1, len(self._jobs))
        lone = self._rules.runners > 1 and not self._waiting and not self._running
        return Batch(lane, texts, lone, lane.cost.seconds([text.tokens for text in texts]), now, time.time_ns())

    def _run(self, batch: Batch) -> None:
        outputs = sorted({output for text in batch.texts for output in text.job.outputs})
        try:
            results = batch.lane.session.run([text.reading for text in batch.texts], outputs, wide=batch.wide)
            _check_rows(results, outputs, len(batch.texts))
        except Exception as error:  # noqa: BLE001 - whatever it is, the session is broken
            batch.lane.broken = True
            self._tell(self.fail, batch.lane, f"a run of {batch.tokens} tokens raised {type(error).__name__}: {error}")
            return
        batch.seconds = self._clock() - batch.started
        batch.ended_ns = time.time_ns()
        if not batch.wide:
            batch.lane.cost.learn(batch.lengths, batch.seconds)
        self._tell(self._deliver, batch, self._collect(batch, results))

    def _collect(self, batch: Batch, results: Mapping[str, Sequence[NDArray[np.float32]]]) -> list[Job]:
        """Hand each text's result to its job and return the jobs that are complete now."""
        finished = []
        with self._changed:
            for place, text in enumerate(batch.texts):
                job = text.job
                job.results[text.place] = tuple(results[output][place] for output in job.outputs)
                job.left -= 1
                job.queue_seconds = max(job.queue_seconds, batch.started - job.submitted)
                job.inference_seconds = max(job.inference_seconds, batch.seconds)
                if not job.batches or job.batches[-1] is not batch:
                    job.batches.append(batch)
                if not job.left:
                    finished.append(job)
        return finished

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        """Call on the event loop's thread. Once that is closed nobody waits any more."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)


def _start(text: Text) -> float:
    return text.start


def _check_rows(results: Mapping[str, Sequence[NDArray[np.float32]]], outputs: Sequence[str], texts: int) -> None:
    """Raise ValueError unless the session gave every output a row for each text."""
    for name in outputs:
        if len(results.get(name, ())) != texts:
            raise ValueError(f"{len(results.get(name, ()))} rows of {name} for {texts} texts")


def _yield_to_others() -> None:
    """Give this thread a lower priority, where threads have one of their own."""
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
