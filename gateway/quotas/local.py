"""Limits counted in this process: all there is without Redis, and what goes on when Redis is away."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.quotas.rules import DAY_US, SECOND_US, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.quotas.rules import Rule

_FIRST_SWEEP = 4096
"""States that are kept before those that have run out are looked for."""


class LocalStore:
    """The state of every limit, in dictionaries. Nothing here waits, so every charge is atomic.

    Args:
        clock: Seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._full_at: dict[str, float] = {}
        self._days: dict[str, tuple[float, float]] = {}
        self._leases: dict[str, dict[str, float]] = {}
        self._sweep_at = _FIRST_SWEEP

    @property
    def now_us(self) -> float:
        """Microseconds since 1970."""
        return self._clock() * SECOND_US

    def charge(self, rules: Sequence[Rule], costs: Sequence[float], lease: str, lease_us: float) -> Reply:
        """Take the costs if every rule has room for its own, otherwise nothing. Leases of the request are called `lease`."""
        now_us = self.now_us
        states = [self._state(rule, now_us) for rule in rules]
        allowed = all(rule.fits(state, cost) for rule, state, cost in zip(rules, states, costs, strict=True))
        if allowed:
            for rule, state, cost in zip(rules, states, costs, strict=True):
                self._take(rule, state, cost, now_us, lease, lease_us)
        return Reply(allowed, now_us, states)

    def peek(self, rules: Sequence[Rule]) -> Reply:
        """Return what is taken, and take nothing."""
        return self.charge(rules, [0.0] * len(rules), "", 0.0)

    def keys(self) -> set[str]:
        """Return the buckets and days of which something is known."""
        return {*self._full_at, *self._days}

    def settle(self, rules: Sequence[Rule], changes: Sequence[float], lease: str, charged_us: float) -> None:
        """Change what a charge took by so much of each rule, with no question of room, and end its leases.

        A day's sum is changed only if the charge was made on the same day.
        """
        now_us = self.now_us
        for rule, change in zip(rules, changes, strict=True):
            if rule.kind == "leases":
                self._end(rule, lease)
            elif change and (rule.kind == "bucket" or charged_us // DAY_US == now_us // DAY_US):
                self._set(rule, max(self._state(rule, now_us) + change * rule.each, 0.0), now_us)

    def learn(self, rules: Sequence[Rule], states: Sequence[float], costs: Sequence[float], lease: str, lease_us: float) -> None:
        """Take over what another store says was taken before a charge of so much; 0 each for a charge that was refused."""
        now_us = self.now_us
        for rule, state, cost in zip(rules, states, costs, strict=True):
            if rule.kind != "leases":
                self._set(rule, state + cost * rule.each, now_us)
            elif cost:
                self._begin(rule, lease, now_us, lease_us)

    def _state(self, rule: Rule, now_us: float) -> float:
        if rule.kind == "bucket":
            return max(self._full_at.get(rule.key, 0.0) - now_us, 0.0)
        if rule.kind == "day":
            day, used = self._days.get(rule.key, (0.0, 0.0))
            return used if day == now_us // DAY_US else 0.0
        return float(self._held(rule, now_us))

    def _held(self, rule: Rule, now_us: float) -> int:
        leases = self._leases.get(rule.key)
        if leases is None:
            return 0
        if len(leases) >= rule.capacity:  # only then does it matter whether some have run out
            for lease in [lease for lease, until in leases.items() if until <= now_us]:
                del leases[lease]
        return len(leases)

    def _take(self, rule: Rule, state: float, cost: float, now_us: float, lease: str, lease_us: float) -> None:
        if not cost:
            return
        if rule.kind == "leases":
            self._begin(rule, lease, now_us, lease_us)
        else:
            self._set(rule, state + cost * rule.each, now_us)

    def _begin(self, rule: Rule, lease: str, now_us: float, lease_us: float) -> None:
        self._leases.setdefault(rule.key, {})[lease] = now_us + lease_us

    def _end(self, rule: Rule, lease: str) -> None:
        leases = self._leases.get(rule.key)
        if leases is not None:
            leases.pop(lease, None)
            if not leases:
                del self._leases[rule.key]

    def _set(self, rule: Rule, state: float, now_us: float) -> None:
        if rule.kind == "day":
            self._days[rule.key] = (now_us // DAY_US, state)
        else:
            self._full_at[rule.key] = now_us + state
        if len(self._full_at) + len(self._days) > self._sweep_at:
            self._sweep(now_us)

    def _sweep(self, now_us: float) -> None:
        """Forget what says nothing any more: callers by token may be many, and most of them gone."""
        today = now_us // DAY_US
        self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now_us}
        self._days = {key: state for key, state in self._days.items() if state[0] == today}
        self._sweep_at = max(_FIRST_SWEEP, 2 * (len(self._full_at) + len(self._days)))
