"""Whether a request is let into the queue: by the seconds that what is before it will take, never by how many wait.

*Patience*: a burst may wait as long as the rules say. While a tenant is refused again and again, the queue is not a burst's any more and
would only make all of them late: what its requests may wait for shrinks then, half a second each second, to a tenth. So the queue is
short soon, nothing is lost by it, since a short queue keeps the runners as busy, and once the flood is over, so is the waiting.

What counts against patience is what waits. Against the queue timeout counts what runs, too: a request begins when a runner is free for it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from quadrate.errors import DeadlineExceeded, Overloaded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from quadrate.runtime.jobs import Batch, Job, Rules, Tenant, Text
    from quadrate.runtime.waiting import Line

MIN_RETRY_SECONDS = 0.05
PATIENCE_FACTOR = 10.0
"""A caller without a deadline may wait for its last text so many queue timeouts: otherwise such callers could fill the memory."""
CALM_SECONDS = 5.0
"""Who was not refused for so long has all patience again."""
SHRINKING = 0.5
"""Seconds of patience that a second of refusals takes. Less than 1, the speed at which a queue empties, so that a refusal can say truly
when there will be room."""
LEAST_PATIENCE = 0.1
"""The part of the queue timeout that is always left."""
ERROR = 0.05
"""By so much runs may take longer than predicted: who is let in is served in time all the same, and who comes back when told is let in."""


class Ahead(NamedTuple):
    """What goes before a text, in seconds."""

    start: float
    """Those until a runner is free for the text, what runs now included."""
    waiting: float
    """Those that all runners together would take over what waits."""


class Queue:
    """What waits and what runs at a moment, under the scheduler's lock.

    Args:
        lines: Those of short and of long texts.
        running: What runs now.
        rules: The scheduler's.
        now: The moment.
    """

    def __init__(self, lines: tuple[Line, Line], running: Iterable[Batch], rules: Rules, now: float) -> None:
        self.lines, self.rules, self.now = lines, rules, now
        self._left: tuple[list[float], list[float]] = ([], [])
        for batch in running:
            if not (batch.abandoned or batch.ended_ns):
                left = batch.predicted * batch.crowd - (now - batch.started)
                self._left[batch.is_long].append(max(0.0, left))

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self.lines[0] or self.lines[1])

    def ahead(self, text: Text) -> Ahead:
        """Estimate what goes before a text that has not been put in. Long texts run when short ones leave time."""
        short, long = self.lines
        runners, left = self.rules.runners, self._left[text.is_long]
        work = long.ahead(text) + short.seconds if text.is_long else short.ahead(text)
        runs = sum(self._left[False]) if text.is_long else 0.0
        return Ahead(_level(work + runs, left, runners), work / runners)


def admit(job: Job, texts: Sequence[Text], queue: Queue) -> None:
    """Refuse a request that cannot be served in time.

    The retry delay of a refusal is the time after which the same request would be let in, if nothing came meanwhile.

    Raises:
        Overloaded: What waits leaves it no room. Nothing of it runs.
        DeadlineExceeded: Even the idle worker would be too slow.
    """
    rules = queue.rules
    new = [text for text in texts if text.counted]
    is_learnt = job.lane.cost.runs > 0
    if not new or not (is_learnt or queue):
        return  # what it waits for is on its way already, or nothing is known of the model
    first = last = queue.ahead(new[0])
    if len(new) > 1:
        by_line = [[text for text in new if text.is_long is is_long] for is_long in (False, True)]
        first = min(queue.ahead(mine[0]) for mine in by_line if mine)
        last = max(queue.ahead(mine[-1]) for mine in by_line if mine)
    _admit_first(first, job.tenant, queue)
    most = PATIENCE_FACTOR * rules.queue_seconds
    if job.deadline is None:
        if last.start > most:
            raise _overloaded(
                f"The last text would wait {last.start:.1f} s, the limit is {most:.1f} s. Send less at once.", last.start - most
            )
        return
    if not is_learnt:
        return
    own, left = sum(text.seconds for text in new) / rules.runners, job.deadline - queue.now
    ready = last.start + own
    if ready <= left or last.start + sum(job.lane.cost.at_best(text.tokens, rules.runners) for text in new) <= left:
        return
    if not (queue or last.start):
        raise DeadlineExceeded(f"The answer would take {ready:.3f} s, which is more than the deadline leaves. Allow more time.")
    raise _overloaded(
        f"The answer would take {ready:.1f} s, the deadline is in {max(0.0, left):.1f} s. Send less at once, or allow more time.",
        ready - left,
    )


def _admit_first(first: Ahead, tenant: Tenant, queue: Queue) -> None:
    """Refuse what would wait too long for its first run."""
    most, allowed = (1 - ERROR) * queue.rules.queue_seconds, patience(tenant, queue.rules, queue.now)
    if first.start <= most and first.waiting <= allowed:
        return
    _note(tenant, queue.now)
    waits, limit = (first.waiting, allowed) if first.waiting > allowed else (first.start, most)
    raise _overloaded(
        f"The queue is {waits:.1f} s long, the limit is {limit:.1f} s now.", _until(first.start, min(allowed, most), queue.rules)
    )


def patience(tenant: Tenant, rules: Rules, now: float) -> float:
    """Return how many seconds what a tenant sends now may wait for its first run."""
    if now - tenant.refused_last > CALM_SECONDS:
        return rules.queue_seconds
    return max(LEAST_PATIENCE * rules.queue_seconds, rules.queue_seconds - SHRINKING * (now - tenant.refused_from))


def too_late(text: Text, queue: Queue) -> Overloaded:
    """Return the refusal of a request that was let in, waited too long and is not in the queue any more.

    Its time is that of a request like it that came now; and the queue was too long for its tenant, as with any other refusal.
    """
    rules, now = queue.rules, queue.now
    again = queue.ahead(dataclasses.replace(text, due=now + rules.queue_seconds))
    limit = min(patience(text.job.tenant, rules, now), (1 - ERROR) * rules.queue_seconds)
    _note(text.job.tenant, now)
    return _overloaded(f"No room came free within {rules.queue_seconds:.1f} s.", _until(again.start, limit, rules))


def _note(tenant: Tenant, now: float) -> None:
    """Remember that a tenant is refused."""
    if now - tenant.refused_last > CALM_SECONDS:
        tenant.refused_from = now
    tenant.refused_last = now


def _until(first: float, allowed: float, rules: Rules) -> float:
    """Return when a queue of `first` seconds will be as short as patience is then, which goes on to shrink; late rather than too soon."""
    if first <= allowed:
        return 0.0
    return min((first - allowed) / (1 - SHRINKING), first - LEAST_PATIENCE * rules.queue_seconds) + ERROR * first


def _level(work: float, left: list[float], runners: int) -> float:
    """Return when the first of the runners is free, if `work` goes to whichever is free first and some have so much `left` to do."""
    if len(left) < runners:
        left = [0.0] * (runners - len(left)) + left
    level, done = 0.0, 0.0
    for count, seconds in enumerate(sorted(left)):
        if count and work <= count * seconds - done:
            break
        done += seconds
        level = (work + done) / (count + 1)
    return level


def _overloaded(message: str, retry_after_seconds: float) -> Overloaded:
    return Overloaded(f"{message} Try again later.", retry_after_seconds=max(MIN_RETRY_SECONDS, retry_after_seconds))
