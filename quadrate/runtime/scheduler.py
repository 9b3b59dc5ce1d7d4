"""The queue before the sessions, and the threads that empty it.

    submit ──► short texts, in fair order ──► plan ──► run (one thread a core) ────────┐
          └──► long texts, in fair order  ──► plan ──► run (threads that give way) ────┴──► one wake-up of the event loop a batch

Nothing waits while a runner is free, and what waits gathers while all are busy. *Order*: see `quadrate.runtime.waiting`. *Long texts*
have threads of their own, which the kernel lets run when short texts leave it time: a short text waits for a runner among its like, and
never until a long one ends (but for the largest models in OpenVINO, see there). While short texts wait or run, long ones have all runners
but one, and always one. *Identical texts* that wait or run at the same time are run once; each stands in the order by itself, and whichever
comes first brings the answer to all. *Bound*: see `quadrate.runtime.admission`: what cannot be served in time is refused. *Ends*: a request
ends by its answer, by its deadline, by its caller's leaving, or by its model's failure, and no path leaves it without an end.

Submitting and answering happen on the event loop's thread; everything marked so happens under the lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING

from quadrate.cores import give_way
from quadrate.errors import DeadlineExceeded, Overloaded, QuadrateError, Unavailable
from quadrate.runtime import admission, batching
from quadrate.runtime.jobs import LONG, NICENESS, SHORT, Batch, Job, Text
from quadrate.runtime.waiting import Line, Tenants
from quadrate.standing import NOBODY, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from quadrate.runtime.jobs import Lane, Meter, Rules, TextKey
    from quadrate.runtime.packing import Reading
    from quadrate.telemetry import Trace

STUCK_FACTOR = 20.0
"""A run is stuck when it takes so many times longer than predicted, and longer than the scheduler's `stuck_seconds`."""
STOOD_STILL_SECONDS = 5.0
"""Two looks for stuck runs this far apart mean that the process itself stood still, and its runs with it."""
FREE_RUNS = 4
"""So many full runs' worth of each request start at once."""
COMPANY_FACTOR = 1.25
"""How much longer a run may take, as predicted, for texts that go along with those it is for."""
LEAST_SHARED_SECONDS = 1e-4
"""What waits is shared among free runners if it takes longer than this: waking one of them takes about as long."""
DRAIN_STEP_SECONDS = 0.02
MISPRICED_FACTOR = 1.5
"""Where a run shows that its model's texts take so many times more or less than was believed, those that wait are priced anew: else the
first flood after a start would be let in by what was believed before it…"""
PRICE_SECONDS = 0.5
"""…no more often than this, since all of them are looked at."""


class _Lane:
    """The runners for short texts, or those for long ones. Under the lock."""

    def __init__(self, lock: threading.Lock, *, is_long: bool) -> None:
        self.is_long = is_long
        self.line = Line(is_long)
        self.changed = threading.Condition(lock)
        self.idle = 0
        self.running = 0


class Scheduler:
    """Runs the texts of all models of a process, on `rules.runners` threads, and on as many for long texts.

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
        self._lock = threading.Lock()
        self._short, self._long = self._lanes = (_Lane(self._lock, is_long=SHORT), _Lane(self._lock, is_long=LONG))
        self._tenants = Tenants()
        self._running: dict[int, Batch] = {}
        self._jobs: set[Job] = set()
        self._seen: dict[str, None] = {}
        self._closed = False
        self._watched = clock()
        self.runs = 0
        """Runs that have ended."""
        self._threads: list[threading.Thread] = []
        for lane in self._lanes:
            for _ in range(rules.runners):
                self._begin_runner(lane)

    def queued(self) -> dict[str, tuple[int, float]]:
        """Return for each model that has waiting texts, or had any before, their tokens and the seconds they are predicted to take."""
        found = dict.fromkeys(self._seen, (0, 0.0))
        with self._lock:
            for text in (text for lane in self._lanes for text in lane.line):
                if text.counted and not text.out and not text.job.over:
                    tokens, seconds = found[text.lane.name]
                    found[text.lane.name] = (tokens + text.tokens, seconds + text.seconds / self._rules.runners)
        return found

    async def run(
        self,
        lane: Lane,
        readings: Sequence[Reading],
        *,
        outputs: Sequence[str],
        deadline: float | None,
        standing: Standing = NOBODY,
        trace: Trace | None = None,
    ) -> Job:
        """Run texts and return their job, whose `results` are then complete.

        Args:
            lane: The model.
            readings: At least one text.
            outputs: Which of the graph's outputs are wanted.
            deadline: When the caller stops waiting, on the clock; None if it did not say.
            standing: On whose behalf, and what it goes before.
            trace: The request's, for the batch spans that link to it.

        Raises:
            Overloaded: There is no room for it in time; nothing of it ran.
            DeadlineExceeded: The deadline passed.
            Unavailable: The model failed, or the process is going.
        """
        if lane.failed or self._closed:
            raise Unavailable(f"The model {lane.name} does not run: its worker leaves and comes back. Try again.", retry_after_seconds=1.0)
        texts, whose = len(readings), self._tenants.of(standing)
        job = Job(lane, tuple(outputs), deadline, whose, self._loop.create_future(), [None] * texts, self._clock(), trace, texts)
        try:
            self._submit(job, readings)
            await self._answer(job)
        finally:
            whose.jobs -= 1
            self._jobs.discard(job)
            job.twinned.clear()
        return job

    async def _answer(self, job: Job) -> None:
        """Wait for a job's end, at the latest until its deadline."""
        timer = None
        if job.deadline is not None:
            timer = self._loop.call_later(max(0.0, job.deadline - self._clock()), self._expire, job)
        try:
            await job.future
        except asyncio.CancelledError:
            self._end(job, "cancelled")
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def busy(self, lane: Lane) -> bool:
        """Whether a request of a model waits or a run of it goes on, be it for callers who have gone."""
        with self._lock:
            running = any(batch.lane is lane for batch in self._running.values())
        return running or any(job.lane is lane for job in self._jobs)

    async def drain(self, lane: Lane) -> None:
        """Wait until nothing of a model waits or runs; whoever calls sees to it that nothing new comes."""
        while self.busy(lane):  # noqa: ASYNC110 - what a cancelled caller had begun ends on a thread, unannounced
            await asyncio.sleep(DRAIN_STEP_SECONDS)

    def fail(self, lane: Lane, reason: str) -> None:
        """Take a model out of service for good: its callers get a retryable error now. Called on the event loop's thread."""
        if lane.failed:
            return
        lane.failed, lane.broken = reason, True
        for job in [job for job in self._jobs if job.lane is lane]:
            self._refuse(
                job, Unavailable(f"The model {lane.name} failed and its worker restarts. Try again.", retry_after_seconds=1.0), "failed"
            )
        lane.flying.clear()
        self._on_failure(lane)

    def watch(self) -> None:
        """Look for stuck runs; to be called about once a second on the event loop's thread.

        The model of one is failed, and another thread takes its runner's place.
        """
        now = self._clock()
        before, self._watched = self._watched, now
        if now - before > STOOD_STILL_SECONDS:
            return
        with self._lock:
            running = [batch for batch in self._running.values() if not (batch.abandoned or batch.ended_ns)]
        for batch in running:
            allowed = max(self._rules.stuck_seconds, STUCK_FACTOR * batch.predicted)
            if now - batch.started > allowed:
                self._abandon(batch)
                self.fail(batch.lane, f"a run of {batch.tokens} tokens takes longer than {allowed:.0f} s")

    def _abandon(self, batch: Batch) -> None:
        lane = self._lanes[batch.is_long]
        with self._lock:
            batch.abandoned = True
            lane.running -= 1
        self._begin_runner(lane)

    async def close(self, *, timeout_seconds: float = 5.0) -> bool:
        """End what waits by an error and the threads after their run. Returns whether all have ended in time; a stuck one has not."""
        with self._lock:
            self._closed = True
            for lane in self._lanes:
                lane.changed.notify_all()
        for job in list(self._jobs):
            self._refuse(job, Unavailable("The worker is stopping. Try again.", retry_after_seconds=1.0), "failed")
        return await asyncio.to_thread(self._join, self._clock() + timeout_seconds)

    def _join(self, until: float) -> bool:
        for thread in self._threads:
            thread.join(max(0.0, until - self._clock()))
        return not any(thread.is_alive() for thread in self._threads)

    def _begin_runner(self, lane: _Lane) -> None:
        slot = len(self._threads)
        thread = threading.Thread(target=self._serve, args=(slot, lane), name=f"{'long-' if lane.is_long else ''}runner-{slot}")
        self._threads.append(thread)
        thread.start()

    # On the event loop's thread.

    def _submit(self, job: Job, readings: Sequence[Reading]) -> None:
        self._seen[job.lane.name] = None
        with self._lock:
            new: dict[TextKey, Text] = {}
            texts = self._texts(job, readings, new)
            try:
                admission.admit(job, texts, self._queue(self._clock()))
            except Overloaded:
                self._meter.dropped(job.lane, "overloaded", len(job.results))
                raise
            job.lane.flying.update(new)
            self._enqueue(job, texts)
        self._jobs.add(job)

    def _texts(self, job: Job, readings: Sequence[Reading], new: dict[TextKey, Text]) -> list[Text]:
        """Make a job's texts: those whose work nobody waits for yet are `new`, the others are counted no more. Under the lock.

        The longest come first, whatever their order in the request, which is answered when all have run: so its runs have texts of like
        lengths, and the short ones at the end let the runners end together.
        """
        lane, outputs, clock, flying = job.lane, job.outputs, job.tenant.clock, job.lane.flying
        share, limits, is_long = lane.cost.share, self._rules.limits, self._rules.is_long
        due = job.submitted + self._rules.queue_seconds
        if job.deadline is not None and job.deadline < due:
            due = job.deadline
        free = FREE_RUNS * share(limits.tokens, limits) if len(readings) > 1 else math.inf
        taken, texts = 0.0, []
        shares: dict[int, float] = {}
        lengths = [len(reading) for reading in readings]
        for place in sorted(range(len(readings)), key=lengths.__getitem__, reverse=True):
            reading, tokens = readings[place], lengths[place]
            key = (outputs, reading.second, reading.ids.tobytes())
            seconds = shares.get(tokens) or shares.setdefault(tokens, share(tokens, limits))
            first = flying.get(key) or new.get(key)
            counted = first is None or (first.job.over and not first.out)
            if counted:
                taken += seconds
            start = clock if taken <= free else clock + taken - free
            text = Text(job, lane, place, reading, tokens, seconds, is_long(tokens), start, due, key, counted)
            if counted:
                new[key] = text
            texts.append(text)
        return texts

    def _enqueue(self, job: Job, texts: Sequence[Text]) -> None:
        """Put texts into the fair order; one whose work already runs only waits for the answer. Under the lock."""
        if not (self._short.line.has(job.tenant) or self._long.line.has(job.tenant)):
            self._tenants.lift(job.tenant)
        for text in texts:
            if text.counted:
                job.waiting_seconds[text.is_long] += text.seconds
            else:
                self._join_twins(text)
        for lane in self._lanes:
            mine = [text for text in texts if text.is_long is lane.is_long and not text.out]
            if mine:
                lane.line.add(job.tenant, mine)
                lane.changed.notify(len(mine))

    @staticmethod
    def _join_twins(text: Text) -> None:
        """Let a text wait for the work of one that was there before. Under the lock."""
        first = text.lane.flying[text.key]
        if first.twins is None:
            first.twins = [first]
            first.job.twinned.append(first)
        first.twins.append(text)
        text.twins = first.twins
        text.job.twinned.append(text)
        text.out = first.out
        text.job.begun |= first.out

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
        with self._lock:
            dropped = 0 if job.over else sum(1 for result in job.results if result is None)
            job.over = True
            self._forget(job)
            if len(job.results) > batching.WINDOW:  # the window may not come to the last of them for long
                for lane in self._lanes:
                    lane.line.remove(job)
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
            batch.texts, batch.sharers = [], []  # a job knows its batches: what both hold would otherwise wait for the garbage collector

    # On the runners' threads.

    def _serve(self, slot: int, lane: _Lane) -> None:
        give_way(NICENESS[lane.is_long])
        while (batch := self._next(slot, lane)) is not None:
            self._run(batch)
            with self._lock:
                del self._running[slot]
                if batch.abandoned:
                    return
                lane.running -= 1
                if not lane.running and self._long.line:
                    self._long.changed.notify_all()
            del batch  # while this thread waits it must not keep a model that is to go

    def _next(self, slot: int, lane: _Lane) -> Batch | None:
        """Wait for work and take it; None when the scheduler closes."""
        with lane.changed:
            while not self._closed:
                gathering = self._gathering(lane)
                if lane.line and not gathering and lane.running < self._most_at_once(lane):
                    window = _once(lane.line.window(self._rules.limits.window, self._clock(), self._is_late))
                    if window:
                        self._running[slot] = batch = self._take(lane, window)
                        return batch
                lane.idle += 1
                try:
                    lane.changed.wait(gathering or None)
                finally:
                    lane.idle -= 1
            return None

    def _most_at_once(self, lane: _Lane) -> int:
        """Return how many runs of a lane may go on now. Under the lock."""
        runners = self._rules.runners
        return max(1, runners - 1) if lane.is_long and (self._short.line or self._short.running) else runners

    def _gathering(self, lane: _Lane) -> float:
        """Return how many seconds to wait for more texts, 0 for none. Under the lock."""
        delay = self._rules.delay_seconds
        if not delay or lane.is_long or not lane.line or sum(text.tokens for text in lane.line) >= self._rules.limits.tokens:
            return 0.0
        return max(0.0, min(text.job.submitted for text in lane.line) + delay - self._clock())

    def _is_late(self, text: Text) -> bool:
        """Whether a text can no longer be of use; its job is then ended by the right error. Under the lock."""
        job, now = text.job, self._clock()
        if job.doomed:
            return True
        cores = 1 if self._running else self._rules.runners
        if job.deadline is not None and now + min(text.seconds, text.lane.cost.at_best(text.tokens, cores)) > job.deadline:
            self._tell(self._expire, job)
        elif not job.begun and now - job.submitted > self._rules.queue_seconds:
            self._forget(job)
            self._tell(self._refuse, job, admission.too_late(text, self._queue(now)), "queue_timeout")
        else:
            return False
        job.doomed = True
        self._forget(job)
        return True

    def _queue(self, now: float) -> admission.Queue:
        """Return what waits and what runs. Under the lock."""
        return admission.Queue((self._short.line, self._long.line), self._running.values(), self._rules, now)

    def _forget(self, job: Job) -> None:
        """Count the waiting texts of a job no longer; what others wait for, too, is counted for one of them. Under the lock."""
        for lane in self._lanes:
            lane.line.recount(job.tenant, -job.waiting_seconds[lane.is_long])
        job.waiting_seconds = [0.0, 0.0]
        for text in job.twinned:
            if text.counted and not text.out:
                self._pass_on(text)

    def _pass_on(self, text: Text) -> None:
        """Count a text's work for another who waits for it, if there is one. Under the lock."""
        text.counted = False
        heir = next((twin for twin in text.group if not (twin.out or twin.job.over or twin.job.doomed or twin.job is text.job)), None)
        if heir is None:
            return
        heir.counted = True
        text.lane.flying[text.key] = heir
        heir.job.waiting_seconds[heir.is_long] += heir.seconds
        self._lanes[heir.is_long].line.recount(heir.job.tenant, heir.seconds)

    def _take(self, lane: _Lane, window: Sequence[Text]) -> Batch:
        """Plan the next batch and take it out of the queue. Under the lock."""
        model = window[0].lane
        free = min(lane.idle + 1, self._most_at_once(lane) - lane.running)
        if sum(text.seconds for text in window) < LEAST_SHARED_SECONDS:
            free = 1
        mine, others = self._abreast(lane, window)
        places = batching.plan(mine, self._rules.limits, runners=free, waste=model.waste)
        for place in batching.passed_over(places):
            mine[place].skips += 1
        texts = [mine[place] for place in places]
        if others and free == 1:
            texts += self._company(texts, others)
        self._tenants.charge(texts)
        for text in texts:
            self._take_out(text)
        for each in self._lanes:
            each.line.sweep()
        alone = not self._running and not any(each.line for each in self._lanes)
        lane.running += 1
        crowd = max(1.0, (self._short.running + self._long.running) / self._rules.runners)
        wide = alone and self._rules.runners > 1
        predicted = model.cost.seconds([text.tokens for text in texts], wide=wide)
        return Batch(model, texts, lane.is_long, wide, crowd, predicted, self._clock(), time.time_ns())

    def _abreast(self, lane: _Lane, window: Sequence[Text]) -> tuple[Sequence[Text], Sequence[Text]]:
        """Split a window into what may run with its first text, and what may only if that costs no time. Under the lock.

        The latter are texts of a lower priority, and those of tenants who flood, unless the first is such a tenant's itself: who sends
        little waits for the end of a run of theirs, and has then no second one to wait for in its own.
        """
        first = window[0].job.tenant
        tenants = {text.job.tenant for text in window}
        if len(tenants) == 1:
            return window, ()
        much = FREE_RUNS * self._rules.limits.tokens * window[0].seconds / window[0].tokens
        floods = lane.line.seconds_of(first) > much
        with_it = {tenant for tenant in tenants if tenant.priority is first.priority and (floods or lane.line.seconds_of(tenant) <= much)}
        mine = [text for text in window if text.job.tenant in with_it]
        return mine, [text for text in window if text.job.tenant not in with_it]

    def _company(self, texts: Sequence[Text], others: Sequence[Text]) -> list[Text]:
        """Return those of the others that may go along, since a run hardly takes longer for them. Under the lock.

        So a GPU, on which small runs take as long as large ones, has room for bulk however many interactive requests come.
        """
        model, limits = texts[0].lane, self._rules.limits
        lengths = [text.tokens for text in texts]
        tokens, longest = sum(lengths), max(lengths)
        allowed = COMPANY_FACTOR * model.cost.seconds(lengths)
        found: list[Text] = []
        for text in others:
            if text.lane is not model or text.tokens > longest:
                continue
            tokens += text.tokens
            lengths.append(text.tokens)
            if tokens > limits.tokens or len(lengths) > limits.texts or model.cost.seconds(lengths) > allowed:
                break
            found.append(text)
        return found

    def _take_out(self, text: Text) -> None:
        """Let all who wait for a text's work wait for its run. Under the lock."""
        for twin in text.group:
            twin.out = True
            twin.job.begun = True
            if twin.counted:
                twin.job.waiting_seconds[twin.is_long] -= twin.seconds
                self._lanes[twin.is_long].line.recount(twin.job.tenant, -twin.seconds)

    def _run(self, batch: Batch) -> None:
        outputs = sorted({output for text in batch.texts for output in text.job.outputs})
        try:
            results = batch.lane.session.run([text.reading for text in batch.texts], outputs, wide=batch.wide, is_long=batch.is_long)
            _check_rows(results, outputs, len(batch.texts))
        except Exception as error:  # noqa: BLE001 - whatever it is, the session is broken
            batch.lane.broken = True
            self._tell(self.fail, batch.lane, f"a run of {batch.tokens} tokens raised {type(error).__name__}: {error}")
            return
        batch.seconds = self._clock() - batch.started
        batch.ended_ns = time.time_ns()
        batch.lane.cost.learn(batch.lengths, batch.seconds / batch.crowd, wide=batch.wide)
        self._reprice(batch)
        self._tell(self._deliver, batch, self._collect(batch, results))

    def _reprice(self, batch: Batch) -> None:
        """Price what waits anew, if what has just run was priced wrongly."""
        lane, text, now, limits = batch.lane, batch.texts[-1], self._clock(), self._rules.limits
        ratio = text.seconds / lane.cost.share(text.tokens, limits)
        if 1 / MISPRICED_FACTOR < ratio < MISPRICED_FACTOR or now < lane.priced + PRICE_SECONDS:
            return
        lane.priced = now
        with self._lock:
            for each in self._lanes:
                each.line.price(lane, limits)

    def _collect(self, batch: Batch, results: Mapping[str, Sequence[NDArray[np.float32]]]) -> list[Job]:
        """Hand each text's result to those who wait for it and return the jobs that are complete now."""
        finished: list[Job] = []
        with self._lock:
            for place, text in enumerate(batch.texts):
                text.lane.flying.pop(text.key, None)
                rows = tuple(results[output][place] for output in text.job.outputs)
                if text.twins is None:
                    self._give(batch, text, rows, finished)
                    continue
                for row in rows:
                    row.flags.writeable = False
                waiting = [twin for twin in text.twins if not twin.job.over]
                text.twins.clear()
                for twin in waiting:
                    self._give(batch, twin, rows, finished)
                batch.sharers += [twin.job for twin in waiting if twin is not text]
        return finished

    @staticmethod
    def _give(batch: Batch, text: Text, rows: tuple[NDArray[np.float32], ...], finished: list[Job]) -> None:
        job = text.job
        job.results[text.place] = rows
        job.left -= 1
        job.queue_seconds = max(job.queue_seconds, batch.started - job.submitted)
        job.inference_seconds = max(job.inference_seconds, batch.seconds)
        if not job.batches or job.batches[-1] is not batch:
            job.batches.append(batch)
        if not job.left:
            finished.append(job)

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        """Call on the event loop's thread. Once that is closed nobody waits any more."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)


def _once(texts: list[Text]) -> list[Text]:
    """Return of those who wait for the same work the first."""
    firsts: dict[int, Text] = {}
    for text in texts:
        firsts.setdefault(id(text if text.twins is None else text.twins), text)
    return list(firsts.values())


def _check_rows(results: Mapping[str, Sequence[NDArray[np.float32]]], outputs: Sequence[str], texts: int) -> None:
    """Raise ValueError unless the session gave every output a row for each text."""
    for name in outputs:
        if len(results.get(name, ())) != texts:
            raise ValueError(f"{len(results.get(name, ()))} rows of {name} for {texts} texts")
