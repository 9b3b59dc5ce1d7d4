"""Replicas that serve worse than their like: put aside for a while, never more than half of them.

Health says whether a worker believes that it serves. What it does is another thing: it may fail each request, or take ten times as long
as the others. Time is measured by the tokens that were ahead, its own included: under load all are slow, and long texts take long.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

FAILURES_IN_ROW = 5
LEAST_CALLS = 10
"""Of fewer calls in the last seconds nothing is concluded."""
FAILED_SHARE = 0.5
SLOWER = 4.0
"""So many times slower than the others…"""
SLOWER_SECONDS = 0.1
"""…and by so much a call, or it is not worth a word."""
OVERHEAD_TOKENS = 64
"""What a call of no tokens would count: it takes time, too."""
JUDGE_SECONDS = 1.0
"""How often records are looked at; at once where FAILURES_IN_ROW failed."""
KEPT = 0.8
"""What counts of the calls of JUDGE_SECONDS ago: five seconds count, roughly."""
FIRST_SECONDS, LONGEST_SECONDS = 5.0, 60.0
"""How long a replica is put aside at first; each time again twice as long, until it has done well for LONGEST_SECONDS."""


@dataclass(slots=True)
class Record:
    """What one replica has done in the last seconds, and what came of it."""

    calls: float = 0.0
    failed: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0
    failed_in_row: int = 0
    aside_until: float = 0.0
    """On the clock of time.monotonic."""
    aside_times: int = 0
    reason: str = ""
    """Why it is put aside; empty if it is not."""

    @property
    def usual_seconds(self) -> float:
        """How long a call took lately, on average; 0 if there was none."""
        return self.seconds / self.calls if self.calls else 0.0

    def answered(self, seconds: float, tokens_ahead: int) -> None:
        """Note an answer, good or not: it did what it was asked."""
        self.calls += 1
        self.seconds += seconds
        self.tokens += tokens_ahead + OVERHEAD_TOKENS
        self.failed_in_row = 0

    def failure(self) -> None:
        """Note a call that it failed."""
        self.calls += 1
        self.failed += 1
        self.failed_in_row += 1

    def forget(self) -> None:
        """Begin anew, with a replica that has just begun to serve. How often it was put aside is kept."""
        self.clear()
        self.failed_in_row = 0
        self.aside_until, self.reason = 0.0, ""

    def clear(self) -> None:
        """Drop what it did."""
        self.calls = self.failed = self.seconds = self.tokens = 0.0

    def age(self) -> None:
        """Let a second pass."""
        self.calls *= KEPT
        self.failed *= KEPT
        self.seconds *= KEPT
        self.tokens *= KEPT

    def put_aside(self, reason: str, now: float) -> float:
        """Put it aside from `now`; return for how many seconds."""
        if now - self.aside_until > LONGEST_SECONDS:
            self.aside_times = 0
        seconds = min(FIRST_SECONDS * 2.0**self.aside_times, LONGEST_SECONDS)
        self.aside_times += 1
        self.aside_until, self.reason = now + seconds, reason
        self.clear()
        return seconds

    def come_back(self, now: float) -> bool:
        """Take it in again if its time is over; one failure more and it goes again. Return whether it came."""
        if not self.reason or now < self.aside_until:
            return False
        self.reason = ""
        self.failed_in_row = FAILURES_IN_ROW - 1
        return True


def most_aside(count: int) -> int:
    """Return how many of so many replicas may be put aside at a time."""
    return count // 2


def fault(record: Record, others: Sequence[Record]) -> str:
    """Return what speaks against a replica beside its like; empty if nothing does."""
    if record.failed_in_row >= FAILURES_IN_ROW:
        return f"it failed {record.failed_in_row} requests in a row"
    if record.calls < LEAST_CALLS:
        return ""
    if record.failed / record.calls >= FAILED_SHARE:
        return f"it failed {record.failed / record.calls:.0%} of its requests"
    return _slowness(record, [other for other in others if other.calls - other.failed >= LEAST_CALLS])


def _slowness(record: Record, others: Sequence[Record]) -> str:
    if not others or not record.tokens:
        return ""
    usual = statistics.median(other.seconds / other.tokens for other in others)
    own = record.seconds / record.tokens
    lost_seconds = (own - usual) * record.tokens / (record.calls - record.failed)
    if own < SLOWER * usual or lost_seconds < SLOWER_SECONDS:
        return ""
    return f"it is {own / usual:.0f} times slower than the others" if usual else "it is slower than the others"
