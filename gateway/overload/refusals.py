"""What a worker has refused lately for want of room, so that it is not asked again before it may have some.

Workers know best what they can do in time: they count the milliseconds of what waits, fairly between tenants, and say of each refusal
after which time the same request would be let in. Until then the gateway refuses in the worker's place whatever of that tenant and
priority is no smaller and in no less of a hurry. A flood then costs the worker a request now and then, and its sender is told the same
truth sooner. Who asks for less, or has more time, is asked for, since that may fit.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from quadrate.standing import Priority, Standing

USUAL_SECONDS = 1.0
"""How long a refusal counts that does not say when to come back."""
LONGEST_SECONDS = 5.0
"""No refusal counts for longer, whatever it says: room may come from work that is cancelled."""
SLACK_FACTOR = 1.1
"""Requests whose deadline is farther away by less than this are in as much of a hurry."""
MOST_KNOWN = 4096
"""Tenants of which refusals are remembered; beyond them, those that are over are forgotten, and then the oldest."""


class _Refusal(NamedTuple):
    until: float
    tokens: int
    left_seconds: float

    def covers(self, tokens: int, left_seconds: float) -> bool:
        """Whether a request of so many tokens, whose caller waits so long, would be refused likewise."""
        return tokens >= self.tokens and left_seconds <= SLACK_FACTOR * self.left_seconds


class Refusals:
    """The refusals of one worker for one model.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[tuple[str, Priority], _Refusal] = {}

    def __bool__(self) -> bool:
        """Whether there may be any that counts."""
        return bool(self._known)

    def note(self, standing: Standing, *, tokens: int, left_seconds: float | None, retry_after_seconds: float | None) -> None:
        """Remember that a request was refused: how large it was, how long its caller would have waited, and what it was told."""
        now, key = self._clock(), (standing.tenant, standing.priority)
        wait = USUAL_SECONDS if retry_after_seconds is None else min(retry_after_seconds, LONGEST_SECONDS)
        new = _Refusal(now + wait, tokens, math.inf if left_seconds is None else left_seconds)
        before = self._known.get(key)
        if before is not None and before.until > now and before.covers(new.tokens, new.left_seconds):
            new = before._replace(until=max(before.until, new.until))
        if before is None and len(self._known) >= MOST_KNOWN:
            self._forget(now)
        self._known[key] = new

    def seconds(self, standing: Standing, *, tokens: int, left_seconds: float | None) -> float:
        """Return how long such a request need not be sent; 0 if it may be."""
        refusal = self._known.get((standing.tenant, standing.priority))
        if refusal is None or not refusal.covers(tokens, math.inf if left_seconds is None else left_seconds):
            return 0.0
        return min(max(0.0, refusal.until - self._clock()), LONGEST_SECONDS)  # sums of floats are a bit more

    def _forget(self, now: float) -> None:
        self._known = {key: refusal for key, refusal in self._known.items() if refusal.until > now}
        while len(self._known) >= MOST_KNOWN:
            del self._known[next(iter(self._known))]
