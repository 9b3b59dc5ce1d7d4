"""Which of the waiting texts run together next: a pure function of their lengths, their deadlines and their order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW = 64
"""How many waiting texts are looked at. The first of the order is always taken, so nobody is passed by for ever."""


class Waiting(Protocol):
    """What the plan needs to know of a text."""

    @property
    def tokens(self) -> int:
        """Its length."""

    @property
    def deadline(self) -> float | None:
        """When its caller stops waiting; None if it did not say."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a run may be."""

    tokens: int
    """The most tokens; a longer text runs alone."""
    texts: int
    """The most texts."""


def plan(waiting: Sequence[Waiting], limits: Limits, *, now: float, run_seconds: float, runners: int = 1) -> list[int]:
    """Return the places in `waiting` that run next, ascending; never empty unless `waiting` is.

    The first in order leads, or the one with the earliest deadline if it would be too late two runs from now. The leader is joined by the
    texts most like it in length, while they fit: attention pays for the longest of a run. If several runners are free, each takes its
    share, so that they end together.

    Args:
        waiting: Texts in fair order, at most WINDOW of them.
        limits: How large the run may be.
        now: The time, on the deadlines' clock.
        run_seconds: How long a full run takes, as predicted.
        runners: Runners that are free, this one among them.
    """
    if not waiting:
        return []
    leader = _leader(waiting, now + 2 * run_seconds)
    budget = min(limits.tokens, max(waiting[leader].tokens, math.ceil(sum(text.tokens for text in waiting) / runners)))
    if sum(text.tokens for text in waiting) <= budget and len(waiting) <= limits.texts:
        return list(range(len(waiting)))
    return sorted(_join(waiting, leader, budget, limits.texts))


def _leader(waiting: Sequence[Waiting], pressing: float) -> int:
    urgent = [(text.deadline, place) for place, text in enumerate(waiting) if text.deadline is not None and text.deadline < pressing]
    return min(urgent)[1] if urgent else 0


def _join(waiting: Sequence[Waiting], leader: int, budget: int, texts: int) -> list[int]:
    """Return the leader and those nearest to it in length, going outwards through the order of lengths until nothing more fits."""
    order = sorted(range(len(waiting)), key=lambda place: (waiting[place].tokens, place))
    lengths = [waiting[place].tokens for place in order]
    middle = order.index(leader)
    chosen, room = [leader], budget - lengths[middle]
    below, above = middle - 1, middle + 1
    while len(chosen) < texts and (below >= 0 or above < len(order)):
        if above < len(order) and lengths[above] > room:
            above = len(order)  # nor does any after it fit
        elif above < len(order) and (below < 0 or lengths[below] * lengths[above] < lengths[middle] ** 2):  # the longer is nearer in ratio
            chosen.append(order[above])
            room -= lengths[above]
            above += 1
        elif below >= 0:
            if lengths[below] <= room:
                chosen.append(order[below])
                room -= lengths[below]
            below -= 1
    return chosen
