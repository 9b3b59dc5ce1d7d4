"""What a worker had no room for, and how long it need not be asked again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.overload.refusals import LONGEST_SECONDS, MOST_KNOWN, Refusals
from quadrate.standing import Priority, Standing

FLOOD = Standing("flood")


class Clock:
    """Time that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def refusals(clock: Clock, *, tokens: int = 10, left: float | None = 30.0, wait: float | None = 2.0) -> Refusals:
    """Return refusals of one request of the flood."""
    found = Refusals(clock)
    found.note(FLOOD, tokens=tokens, left_seconds=left, retry_after_seconds=wait)
    return found


def test_what_was_refused_is_not_asked_for_until_it_may_fit() -> None:
    """The same request is refused for as long as the worker said, and no longer."""
    clock = Clock()
    known = refusals(clock)
    assert known.seconds(FLOOD, tokens=10, left_seconds=30.0) == 2.0
    clock.now += 1.5
    assert known.seconds(FLOOD, tokens=10, left_seconds=30.0) == 0.5
    clock.now += 0.5
    assert known.seconds(FLOOD, tokens=10, left_seconds=30.0) == 0.0


def test_a_refusal_counts_for_one_tenant_and_one_priority() -> None:
    """Others are not refused for it, nor is what the same tenant sends in another priority."""
    known = refusals(Clock())
    assert not known.seconds(Standing("other"), tokens=10, left_seconds=30.0)
    assert not known.seconds(Standing("flood", Priority.BULK), tokens=10, left_seconds=30.0)
    assert known.seconds(Standing("flood", weight=2.0), tokens=10, left_seconds=30.0)


def test_less_work_and_more_time_are_asked_for() -> None:
    """A smaller request, or one whose caller waits longer, may fit where another did not."""
    known = refusals(Clock())
    assert not known.seconds(FLOOD, tokens=9, left_seconds=30.0)
    assert not known.seconds(FLOOD, tokens=10, left_seconds=60.0)
    assert not known.seconds(FLOOD, tokens=10, left_seconds=None)
    assert known.seconds(FLOOD, tokens=1_000, left_seconds=1.0)


def test_a_refused_large_request_hides_no_small_one_behind_it() -> None:
    """Of two refusals that say different things the newer counts: they are never mixed into one that nobody said."""
    known = refusals(Clock(), tokens=5, left=1.0)
    known.note(FLOOD, tokens=1_000, left_seconds=30.0, retry_after_seconds=1.0)
    assert not known.seconds(FLOOD, tokens=5, left_seconds=30.0)
    assert known.seconds(FLOOD, tokens=1_000, left_seconds=30.0)


def test_a_refusal_ends_soon_whatever_it_says() -> None:
    """A refusal that says nothing counts for a second, and none for longer than some."""
    assert refusals(Clock(), wait=None).seconds(FLOOD, tokens=10, left_seconds=30.0) == 1.0
    assert refusals(Clock(), wait=600.0).seconds(FLOOD, tokens=10, left_seconds=30.0) == LONGEST_SECONDS


def test_refusals_of_many_tenants_are_bounded() -> None:
    """However many tenants are refused, no more than so many are remembered."""
    known = refusals(Clock())
    for number in range(MOST_KNOWN + 100):
        known.note(Standing(f"tenant-{number}"), tokens=1, left_seconds=None, retry_after_seconds=1.0)
    assert len(known._known) == MOST_KNOWN
    assert known.seconds(Standing(f"tenant-{MOST_KNOWN + 99}"), tokens=1, left_seconds=None)


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(0.1, 60), st.floats(0.05, 10), st.floats(0, 3)), min_size=1, max_size=30))
def test_nothing_is_refused_that_was_not_refused_before(said: list[tuple[int, float, float, float]]) -> None:
    """What is refused is at least as large, and in about as much of a hurry, as something refused within the time that this said."""
    clock = Clock()
    known = Refusals(clock)
    for number, (tokens, left, wait, pause) in enumerate(said):
        seconds = known.seconds(FLOOD, tokens=tokens, left_seconds=left)
        if seconds:
            assert any(tokens >= other and left <= 1.1 * more * 1.0001 for other, more, _, _ in said[:number])
            assert seconds <= LONGEST_SECONDS
        known.note(FLOOD, tokens=tokens, left_seconds=left, retry_after_seconds=wait)
        clock.now += pause
