"""Finding out that something goes no further, without a clock: others are served meanwhile, and it stays where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TURNS = 20
"""So many answers to others are enough: what goes on takes a step with each of them."""


async def standstill(count: Callable[[], int], turn: Callable[[], Awaitable[object]]) -> int:
    """Return a count that stays the same while TURNS turns of something else are taken, all through the same parts."""
    before, turns = count(), 0
    while turns < TURNS:
        await turn()
        turns = turns + 1 if count() == before else 0
        before = count()
    return before
