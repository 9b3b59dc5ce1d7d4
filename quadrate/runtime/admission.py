"""Whether a request is let into the queue: by the seconds that what is before it will take, never by how many wait.

*Patience*: a burst may wait as long as the rules say. While a tenant is refused again and again, the queue is not a burst's any more and
would only make all of them late: what its requests may wait for shrinks then, half a second each second, to a tenth. So the queue is
short soon, nothing is lost by it, since a short queue keeps the runners as busy, and once the flood is over, so is the waiting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.errors import DeadlineExceeded, Overloaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quadrate.runtime.jobs import Job, Rules, Tenant, Text
    from quadrate.runtime.waiting import Line

    Lines = tuple[Line, Line]

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


def admit(job: Job, texts: Sequence[Text], lines: Lines, rules: Rules, now: float) -> None:
    """Refuse a request that cannot be served in time. `lines` are those of short and of long texts.

    The retry delay of a refusal is the time after which the same request would be let in, if nothing came meanwhile.

    Raises:
        Overloaded: What waits leaves it no room. Nothing of it runs.
        DeadlineExceeded: Even the idle worker would be too slow.
    """
    new = [text for text in texts if text.counted]
    is_learnt = job.lane.cost.runs > 0
    if not new or not (is_learnt or lines[0] or lines[1]):
        return  # what it waits for is on its way already, or nothing is known of the model
    first = last = wait(new[0], lines, rules)
    if len(new) > 1:
        by_line = [[text for text in new if text.is_long is is_long] for is_long in (False, True)]
        first = min(wait(mine[0], lines, rules) for mine in by_line if mine)
        last = max(wait(mine[-1], lines, rules) for mine in by_line if mine)
    if first > (allowed := patience(job.tenant, rules, now)):
        _note(job.tenant, now)
        raise _overloaded(f"The queue is {first:.1f} s long, the limit is {allowed:.1f} s now.", _until(first, allowed, rules))
    most = PATIENCE_FACTOR * rules.queue_seconds
    if job.deadline is None:
        if last > most:
            raise _overloaded(f"The last text would wait {last:.1f} s, the limit is {most:.1f} s. Send less at once.", last - most)
        return
    if not is_learnt:
        return
    ready, left = last + sum(text.seconds for text in new) / rules.runners, job.deadline - now
    if ready <= left:
        return
    if not (lines[0] or lines[1]):
        raise DeadlineExceeded(f"The answer would take {ready:.3f} s, which is more than the deadline leaves. Allow more time.")
    raise _overloaded(
        f"The answer would take {ready:.1f} s, the deadline is in {max(0.0, left):.1f} s. Send less at once, or allow more time.",
        ready - left,
    )


def patience(tenant: Tenant, rules: Rules, now: float) -> float:
    """Return how many seconds what a tenant sends now may wait for its first run."""
    if now - tenant.refused_last > CALM_SECONDS:
        return rules.queue_seconds
    return max(LEAST_PATIENCE * rules.queue_seconds, rules.queue_seconds - SHRINKING * (now - tenant.refused_from))


def _note(tenant: Tenant, now: float) -> None:
    """Remember that a tenant is refused."""
    if now - tenant.refused_last > CALM_SECONDS:
        tenant.refused_from = now
    tenant.refused_last = now


def _until(first: float, allowed: float, rules: Rules) -> float:
    """Return when a queue of `first` seconds will be as short as patience is then; it goes on to shrink."""
    return min((first - allowed) / (1 - SHRINKING), first - LEAST_PATIENCE * rules.queue_seconds)


def wait(text: Text, lines: Lines, rules: Rules) -> float:
    """Estimate in how many seconds a text will run that has not been put in. Long texts run when short ones leave time."""
    short, long = lines
    work = long.ahead(text) + short.seconds if text.is_long else short.ahead(text)
    return work / rules.runners


def until_room(text: Text, lines: Lines, rules: Rules) -> float:
    """Return after how many seconds one more text like this one would be let in, if nothing came meanwhile."""
    priority = text.job.tenant.priority
    waiting = lines[0].seconds_down_to(priority) + (lines[1].seconds_down_to(priority) if text.is_long else 0.0)
    return max(MIN_RETRY_SECONDS, waiting / rules.runners - rules.queue_seconds)


def _overloaded(message: str, retry_after_seconds: float) -> Overloaded:
    return Overloaded(f"{message} Try again later.", retry_after_seconds=max(MIN_RETRY_SECONDS, retry_after_seconds))
