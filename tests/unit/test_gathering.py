"""How long requests gather before they leave on the relay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.upstreams.relay import BUSY, GATHER_PART, LEAST_GATHER_SECONDS, MOST_GATHER_SECONDS, gather_seconds

SECONDS = st.floats(min_value=0, max_value=60)


@given(st.integers(min_value=0, max_value=BUSY - 1), SECONDS)
def test_a_request_with_little_company_leaves_at_once(awaited: int, answer_seconds: float) -> None:
    """However slow the model is."""
    assert gather_seconds(awaited, answer_seconds) == 0


@given(st.integers(min_value=BUSY, max_value=10_000), SECONDS)
def test_gathering_is_a_part_of_what_answers_take(awaited: int, answer_seconds: float) -> None:
    """And stays within its bounds, so that a fast model is not slowed down and a slow one's callers hardly notice."""
    found = gather_seconds(awaited, answer_seconds)
    assert LEAST_GATHER_SECONDS <= found <= MOST_GATHER_SECONDS
    assert found in {LEAST_GATHER_SECONDS, MOST_GATHER_SECONDS, GATHER_PART * answer_seconds}
