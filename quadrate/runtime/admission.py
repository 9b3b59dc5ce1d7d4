"""Whether a request is let into the queue: by the seconds that what is before it will take, never by how many wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.errors import DeadlineExceeded, Overloaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quadrate.runtime.jobs import Job, Rules, Text
    from quadrate.runtime.waiting import Line

    Lines = tuple[Line, Line]

MIN_RETRY_SECONDS = 0.05
PATIENCE_FACTOR = 10.0
"""A caller without a deadline may wait for its last text so many queue timeouts: otherwise such callers could fill the memory."""


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
    if first > rules.queue_seconds:
        raise _overloaded(f"The queue is {first:.1f} s long, the limit is {rules.queue_seconds:.1f} s.", first - rules.queue_seconds)
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


def wait(text: Text, lines: Lines, rules: Rules) -> float:
    """Estimate in how many seconds a text will run that has not been put in. Long texts run when short ones leave time."""
    short, long = lines
    work = long.ahead(text) + short.seconds if text.is_long else short.ahead(text)
    return work / rules.runners


def until_room(text: Text, lines: Lines, rules: Rules) -> float:
    """Return after how many seconds one more text like this one would be let in, if nothing came meanwhile."""
    waiting = sum(line.seconds for line in lines) if text.is_long else lines[0].seconds
    return max(MIN_RETRY_SECONDS, waiting / rules.runners - rules.queue_seconds)


def _overloaded(message: str, retry_after_seconds: float) -> Overloaded:
    return Overloaded(f"{message} Try again later.", retry_after_seconds=max(MIN_RETRY_SECONDS, retry_after_seconds))
