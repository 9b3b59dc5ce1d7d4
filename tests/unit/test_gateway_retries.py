"""How often requests may be tried again, and how long they wait for it."""

from __future__ import annotations

import pytest

from gateway.upstreams import retries
from gateway.upstreams.retries import (
    FLOOR_PER_SECOND,
    WINDOW_SECONDS,
    RetryBudget,
    pause_seconds,
)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        """Return its time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the module."""
    found = Clock()
    monkeypatch.setattr(retries, "time", found)
    return found


def spend(budget: RetryBudget) -> int:
    """Take all that there is, and return how much it was."""
    count = 0
    while budget.withdraw():
        count += 1
    return count


def test_few_requests_may_all_be_tried_again(clock: Clock) -> None:
    """What ten a second come to over the window is there from the start."""
    assert spend(RetryBudget()) == FLOOR_PER_SECOND * WINDOW_SECONDS


def test_many_requests_allow_a_fifth_of_them(clock: Clock) -> None:
    """Beside what is there anyway."""
    budget = RetryBudget()
    for _ in range(1_000):
        budget.deposit()
    assert spend(budget) == pytest.approx(200 + FLOOR_PER_SECOND * WINDOW_SECONDS, abs=1)


def test_what_was_spent_comes_back_at_ten_a_second(clock: Clock) -> None:
    """At once after a second, all of it after some windows; never more."""
    budget = RetryBudget()
    spend(budget)
    clock.now += 1
    assert spend(budget) == pytest.approx(FLOOR_PER_SECOND, abs=1)
    clock.now += 1_000
    assert spend(budget) == pytest.approx(FLOOR_PER_SECOND * WINDOW_SECONDS, abs=1)


def test_what_was_not_used_is_forgotten(clock: Clock) -> None:
    """An hour of good weather is no reason for a storm."""
    budget = RetryBudget()
    for _ in range(100_000):
        budget.deposit()
    clock.now += 20 * WINDOW_SECONDS
    assert spend(budget) == pytest.approx(FLOOR_PER_SECOND * WINDOW_SECONDS, abs=1)


@pytest.mark.parametrize("number", range(1, 12))
def test_pauses_double_and_differ(number: int) -> None:
    """Up to a longest one; no two requests come back at the same time."""
    longest = min(retries.FIRST_PAUSE_SECONDS * 2**number, retries.LONGEST_PAUSE_SECONDS)
    found = [pause_seconds(number) for _ in range(50)]
    assert all(longest / 2 <= seconds <= longest for seconds in found)
    assert len(set(found)) > 40
