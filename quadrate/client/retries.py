"""When a call is tried again, and how long is waited before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quadrate.errors import DeadlineExceeded, InvalidArgument

if TYPE_CHECKING:
    from quadrate.errors import QuadrateError


@dataclass(frozen=True, slots=True)
class Retries:
    """Exponential back-off with jitter, for failures that may pass.

    Args:
        attempts: How often a request is sent at most. 1 means no retry. With the other defaults eight of them take about nine seconds,
            in which a process that was lost is there again.
        first_wait_seconds: The wait before the second attempt; each further one is twice as long.
        longest_wait_seconds: No wait of ours is longer. A server may ask for more by RetryInfo, and is heard.
    """

    attempts: int = 8
    first_wait_seconds: float = 0.1
    longest_wait_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InvalidArgument(f"attempts is {self.attempts}; it must be 1 (no retry) or more.", param="attempts")

    def wait_seconds(self, error: QuadrateError, attempt: int, *, draw: float) -> float | None:
        """Return how long to wait after the `attempt`-th failure, from 1, or None if trying again is of no use.

        Args:
            error: How the attempt failed.
            attempt: Its number.
            draw: A random number from 0 to 1. Callers that failed together come back spread over half of our wait, and never
                before the server said.
        """
        if not retryable(error) or attempt >= self.attempts:
            return None
        backoff = min(self.first_wait_seconds * 2.0 ** (attempt - 1), self.longest_wait_seconds)
        return max(backoff / 2, error.retry_after_seconds or 0.0) + backoff / 2 * draw


def retryable(error: QuadrateError) -> bool:
    """Tell whether the same request may succeed a moment later. Not after a deadline: the caller's time is over."""
    return error.retryable and not isinstance(error, DeadlineExceeded)
