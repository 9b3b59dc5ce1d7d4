"""What is known of a request's tokens before they are counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """So many tokens at least, and so many at most."""

    least: int = 0
    most: int = 0


UNKNOWN = Bounds()
"""Of a request that may cost no tokens at all, since its answer may be known."""
