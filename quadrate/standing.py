"""On whose behalf work is done, and what it goes before: what gateway and workers share by."""

from __future__ import annotations

import enum
from typing import NamedTuple

LEAST_WEIGHT, MOST_WEIGHT = 0.01, 100.0
"""Weights of tenants lie between these."""


class Priority(enum.IntEnum):
    """Who goes first where requests wait: the lower number."""

    INTERACTIVE = 0
    """Somebody waits for the answer."""
    BULK = 1
    """Nobody does: it runs where interactive requests leave room."""

    @property
    def word(self) -> str:
        """What callers call it."""
        return self.name.lower()


BY_WORD = {priority.word: priority for priority in Priority}


class Standing(NamedTuple):
    """How a request stands among others.

    Attributes:
        tenant: On whose behalf; empty for nobody in particular, who is one tenant, too.
        priority: Whom it goes before.
        weight: Its tenant's part of a busy worker: one of weight 2 gets twice what one of weight 1 gets.
    """

    tenant: str = ""
    priority: Priority = Priority.INTERACTIVE
    weight: float = 1.0


CANARY = Standing(tenant="quadrate.canary")
"""How the requests stand by which a gateway finds out for itself whether a model answers, and what its card says."""
NOBODY = Standing()
"""How requests stand that say nothing of it."""


def bounded(weight: float) -> float:
    """Return a weight as it may be; what is no number is 1."""
    return min(MOST_WEIGHT, max(LEAST_WEIGHT, weight)) if weight == weight else 1.0  # noqa: PLR0124 - NaN alone differs from itself
