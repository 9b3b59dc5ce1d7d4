"""What a limit is, as arithmetic: no store, no clock, no caller.

A *bucket* is the generic cell rate algorithm (GCRA, ITU-T I.371): all that is kept is the moment at which the bucket will be full again.
What was taken is the time until then; so one number tells what is left, how long to wait, and needs no task that refills anything.
A *day* is a sum from midnight to midnight, UTC. *Leases* are requests under way, each until it ends or its time is over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["bucket", "day", "leases"]

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
GRAIN_US = 1.0
"""Stores keep fractions of a microsecond only roughly: so much too early is in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One limit of one caller.

    Args:
        kind: How it counts.
        key: The name of its state in every store.
        name: What the file calls it: `requests`, `tokens_per_minute`, `tokens_per_day` or `concurrent_requests`.
        model: The alias that it holds for; empty: all of them.
        counts: What a request costs: itself, or its tokens.
        capacity: What may be taken at most.
        each: What taking one adds to the state: the microseconds in which a bucket regains one; 1 for a sum.
        largest: What one request may take of an untouched limit. More than `capacity` only in a share of a larger limit.
    """

    kind: Kind
    key: str
    name: str
    model: str = ""
    counts: Literal["requests", "tokens"]
    capacity: float
    each: float = 1.0
    largest: float

    def share(self, count: int) -> Rule:
        """Return the part of one gateway of `count`, when none of them knows of the others.

        It acts as if every other did as much as itself, so states keep their meaning: what was taken of the whole limit before is known in
        the share, too. A request that the whole limit would take passes where nothing is taken, and is then waited for the longer.
        """
        if self.kind == "leases":
            return replace(self, capacity=max(1.0, self.capacity // count))
        return replace(self, capacity=self.capacity / count, each=self.each * count)

    def level(self, state: float) -> float:
        """Return how much is taken, in what the rule counts."""
        return state / self.each

    def room(self, cost: float) -> float:
        """Return how much may be taken with a request of `cost` included."""
        return max(self.capacity, min(cost, self.largest))

    def fits(self, state: float, cost: float) -> bool:
        """Tell whether there is room. What costs nothing always fits."""
        return cost == 0 or state + cost * self.each <= self.room(cost) * self.each + GRAIN_US * (self.kind == "bucket")

    def wait_us(self, state: float, cost: float, now_us: float) -> float:
        """Return how long until a request that does not fit will, if nobody else takes anything. Nothing is known of leases: 0."""
        if self.kind == "day":
            return DAY_US - now_us % DAY_US
        if self.kind == "bucket":
            return max(state - (self.room(cost) - cost) * self.each, 0.0)
        return 0.0

    def reset_us(self, state: float, now_us: float) -> float:
        """Return how long until nothing of it is taken, if nobody takes anything."""
        if self.kind == "day":
            return DAY_US - now_us % DAY_US
        return max(state, 0.0)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a store says to a charge.

    Args:
        allowed: Whether all rules had room; only then anything was taken.
        now_us: The store's clock, in microseconds since 1970.
        states: What was taken of each rule before: a bucket's microseconds until it is full, a day's sum, a number of leases.
    """

    allowed: bool
    now_us: float
    states: Sequence[float]
