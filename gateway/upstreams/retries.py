"""How often requests are tried again, so that a failure of some is not made a failure of all by those who try again."""

from __future__ import annotations

import math
import random
import time

MOST_TRIES = 4
"""How often a request is sent at most, the first time included."""
RATIO = 0.2
"""So many tries again each request allows…"""
FLOOR_PER_SECOND = 10.0
"""…and each second."""
WINDOW_SECONDS = 10.0
"""What was allowed and not used is forgotten over this time."""
FIRST_PAUSE_SECONDS = 0.025
LONGEST_PAUSE_SECONDS = 1.0


class RetryBudget:
    """Tries again that a model's requests may make together: a fifth of the requests of the last seconds, and ten a second besides."""

    def __init__(self) -> None:
        self._floor = FLOOR_PER_SECOND * WINDOW_SECONDS
        self._left = self._floor
        self._seen = time.monotonic()

    def deposit(self) -> None:
        """Count a request."""
        self._left += RATIO

    def withdraw(self) -> bool:
        """Take one; False if there is none left, and the failure is to be told."""
        now = time.monotonic()
        self._left = self._floor + (self._left - self._floor) * math.exp((self._seen - now) / WINDOW_SECONDS)
        self._seen = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def pause_seconds(number: int) -> float:
    """Return how long to wait before the try with this number, from 1: it doubles, and no two requests wait equally long."""
    longest = min(FIRST_PAUSE_SECONDS * 2**number, LONGEST_PAUSE_SECONDS)
    return random.uniform(longest / 2, longest)  # noqa: S311 - spreads tries, guards nothing
