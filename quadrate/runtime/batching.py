"""Which of the waiting texts run together next: a pure function of their lengths, their deadlines and their order.

A run costs its tokens, a little for its start, and what attention pays for places that hold no token: it sees each text as long as the
longest of the run. Everything here is counted in tokens' worth, so that one plan serves every model and machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW = 64
"""How many waiting texts are looked at, and so the most that one run can have. The first of the order leads, unless a deadline presses."""


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


@dataclass(frozen=True, slots=True)
class Waste:
    """What a run costs beside its tokens, in tokens' worth. The defaults were measured on MiniLM (384 wide) with ONNX Runtime 1.31."""

    start: float = 11.0
    """Of each run."""
    place: float = 0.02
    """Of each place in the padded view, for moving it."""
    pair: float = 0.001
    """Of each pair of places of a text in the padded view, in the attention."""

    @classmethod
    def of(cls, width: int) -> Waste:
        """Return the waste of a model of this width: attention's share falls as its matrix products grow."""
        return cls(place=0.02 * 384 / width, pair=0.001 * 384 / width)


DEFAULT_WASTE = Waste()


def plan(
    waiting: Sequence[Waiting], limits: Limits, *, now: float, run_seconds: float, runners: int = 1, waste: Waste = DEFAULT_WASTE
) -> list[int]:
    """Return the places in `waiting` that run next, ascending; never empty unless `waiting` is.

    The first in order leads, or the one with the earliest deadline if it would be too late two runs from now. With it go those next to
    it in length, so many that the least is wasted for each token. If several runners are free, each takes its share, so that they end
    together.
    Cost: at most WINDOW² / 4 small steps.

    Args:
        waiting: Texts in fair order, at most WINDOW of them.
        limits: How large the run may be.
        now: The time, on the deadlines' clock.
        run_seconds: How long a full run takes, as predicted.
        runners: Runners that are free, this one among them.
        waste: What a run costs beside its tokens.
    """
    if not waiting:
        return []
    leader = _leader(waiting, now + 2 * run_seconds)
    share = math.ceil(sum(text.tokens for text in waiting) / runners)
    order = sorted(range(len(waiting)), key=lambda place: waiting[place].tokens)
    lengths = [waiting[place].tokens for place in order]
    first, last = _neighbours(lengths, order.index(leader), Limits(min(limits.tokens, share), limits.texts), waste)
    return sorted(order[first : last + 1])


def _leader(waiting: Sequence[Waiting], pressing: float) -> int:
    urgent = [(text.deadline, place) for place, text in enumerate(waiting) if text.deadline is not None and text.deadline < pressing]
    return min(urgent)[1] if urgent else 0


def _neighbours(lengths: Sequence[int], leader: int, limits: Limits, waste: Waste) -> tuple[int, int]:
    """Return the stretch of ascending `lengths` around the leader that wastes least for each token: its first and last place."""
    best, found = math.inf, (leader, leader)
    tokens_before = 0  # of the places from `first` to just before the leader
    for first in range(leader, max(-1, leader - limits.texts), -1):
        if first < leader:
            tokens_before += lengths[first]
        tokens = tokens_before
        for last in range(leader, min(len(lengths), first + limits.texts)):
            tokens += lengths[last]
            if tokens > limits.tokens and last > first:
                break
            texts, longest = last - first + 1, lengths[last]
            empty = texts * longest - tokens
            lost = (waste.start + empty * (waste.place + waste.pair * longest)) / tokens
            if lost < best:
                best, found = lost, (first, last)
        if tokens_before + lengths[leader] > limits.tokens:
            break
    return found
