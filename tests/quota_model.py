"""What a store of limits must do, told the slow way: with fractions, and by what is left instead of when it will be full.

A state machine charges, gives back and lets time pass at random, and holds a store to this. It is the same for every store.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.quotas.rules import DAY_US, GRAIN_US, Rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.quotas.rules import Reply

START_US = 20_000 * DAY_US + DAY_US - 40_000_000
"""Forty seconds before a midnight, so that days end under way."""
TICK_US = 10
_RUNS = itertools.count()


class Store(Protocol):
    """A store whose clock the test moves."""

    def set_clock(self, now_us: int) -> None:
        """Let it be so late."""

    def charge(self, rules: Sequence[Rule], costs: Sequence[float], lease: str, lease_us: float) -> Reply:
        """As the stores have it."""

    def settle(self, rules: Sequence[Rule], changes: Sequence[float], lease: str, charged_us: float) -> None:
        """As the stores have it."""

    def close(self) -> None:
        """Let it go."""


@dataclass
class Model:
    """All limits of one caller, exactly."""

    rules: Sequence[Rule]
    now_us: int = START_US
    left: dict[str, Fraction] = field(default_factory=dict)
    used: dict[tuple[str, int], Fraction] = field(default_factory=dict)
    leases: dict[str, dict[str, float]] = field(default_factory=dict)

    def pass_time(self, by_us: int) -> None:
        """Refill the buckets and let leases run out."""
        self.now_us += by_us
        for one in self.rules:
            if one.kind == "bucket":
                self.left[one.key] = min(Fraction(one.capacity), self._left(one) + Fraction(by_us) / Fraction(one.each))
            if one.kind == "leases":
                self.leases[one.key] = {name: until for name, until in self.leases.get(one.key, {}).items() if until > self.now_us}

    def charge(self, costs: Sequence[float], lease: str, lease_us: float) -> bool:
        """Take all or nothing."""
        if not all(cost == 0 or self._left(one) + self._grain(one) >= cost for one, cost in zip(self.rules, costs, strict=True)):
            return False
        for one, cost in zip(self.rules, costs, strict=True):
            if one.kind == "leases" and cost:
                self.leases.setdefault(one.key, {})[lease] = self.now_us + lease_us
            else:
                self._change(one, cost)
        return True

    def settle(self, changes: Sequence[float], lease: str, charged_us: float) -> None:
        """Give back or take more."""
        for one, change in zip(self.rules, changes, strict=True):
            if one.kind == "leases":
                self.leases.get(one.key, {}).pop(lease, None)
            elif one.kind == "bucket" or int(charged_us) // DAY_US == self.now_us // DAY_US:
                self._change(one, change)

    def state(self, one: Rule) -> Fraction:
        """Return what a store should say is taken."""
        return (Fraction(one.capacity) - self._left(one)) * (Fraction(one.each) if one.kind == "bucket" else 1)

    def _left(self, one: Rule) -> Fraction:
        if one.kind == "bucket":
            return self.left.get(one.key, Fraction(one.capacity))
        if one.kind == "day":
            return Fraction(one.capacity) - self.used.get((one.key, self.now_us // DAY_US), Fraction(0))
        return Fraction(one.capacity) - len(self.leases.get(one.key, {}))

    def _change(self, one: Rule, by: float) -> None:
        if one.kind == "bucket":
            self.left[one.key] = min(Fraction(one.capacity), self._left(one) - Fraction(by))
        elif one.kind == "day":
            key = (one.key, self.now_us // DAY_US)
            self.used[key] = max(self.used.get(key, Fraction(0)) + Fraction(by), Fraction(0))

    @staticmethod
    def _grain(one: Rule) -> Fraction:
        return Fraction(GRAIN_US) / Fraction(one.each) if one.kind == "bucket" else Fraction(0)


@st.composite
def rules(draw: st.DrawFn) -> tuple[Rule, ...]:
    """Give one to four limits of any kinds."""
    found = []
    for place, kind in enumerate(draw(st.lists(st.sampled_from(["requests", "tokens", "day", "leases"]), min_size=1, max_size=4))):
        capacity = draw(st.integers(1, 50))
        each = float(draw(st.integers(1, 200)) * 1_000 * TICK_US) if kind in ("requests", "tokens") else 1.0
        found.append(
            Rule(
                kind="bucket" if kind in ("requests", "tokens") else kind,  # type: ignore[arg-type]  # one of the kinds
                key=f"quadrate:quota:{place}:{kind}",
                name=kind,
                counts="tokens" if kind in ("tokens", "day") else "requests",
                capacity=capacity,
                each=each,
                largest=capacity,
            )
        )
    return tuple(found)


@dataclass
class Held:
    """A charge that is not settled."""

    costs: list[float]
    lease: str
    charged_us: float


class StoreMachine(RuleBasedStateMachine):
    """Holds a store to the model."""

    store: ClassVar[Store]

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Held] = []
        self.number = 0
        self.model = Model(())

    @initialize(found=rules())
    def start(self, found: tuple[Rule, ...]) -> None:
        """Begin with a store that knows nothing of these limits."""
        run = next(_RUNS)
        self.model = Model(tuple(replace(one, key=f"{one.key}:{run}") for one in found))
        self.store.set_clock(START_US)

    @rule(ticks=st.one_of(st.integers(0, 100), st.integers(0, 1_000_000), st.sampled_from([10_000_000])))
    def time_passes(self, ticks: int) -> None:
        """From nothing to a hundred seconds."""
        self.model.pass_time(ticks * TICK_US)
        self.store.set_clock(self.model.now_us)

    @rule(tokens=st.integers(0, 60), lease_ticks=st.integers(1, 1_000_000))
    def charge(self, tokens: int, lease_ticks: int) -> None:
        """The store allows what the model allows, and both say the same of what was taken before."""
        self.number += 1
        lease, lease_us = f"lease-{self.number}", float(lease_ticks * TICK_US)
        costs = [float(tokens) if one.counts == "tokens" else 1.0 for one in self.model.rules]
        expected = [self.model.state(one) for one in self.model.rules]
        reply = self.store.charge(self.model.rules, costs, lease, lease_us)
        allowed = self.model.charge(costs, lease, lease_us)
        assert reply.allowed == allowed
        for one, state, exact in zip(self.model.rules, reply.states, expected, strict=True):
            if one.kind != "leases":  # those that have run out may be found later
                assert abs(state - float(exact)) < GRAIN_US
        if allowed:
            self.held.append(Held(costs, lease, reply.now_us))

    @rule(place=st.integers(0, 100))
    def give_back(self, place: int) -> None:
        """A request failed."""
        if self.held:
            one = self.held.pop(place % len(self.held))
            self._settle([-cost for cost in one.costs], one)

    @rule(place=st.integers(0, 100), more=st.integers(-20, 20))
    def correct(self, place: int, more: int) -> None:
        """A request ended, and was of other tokens than estimated: fewer, but not fewer than none, or more."""
        if self.held:
            one = self.held.pop(place % len(self.held))
            pairs = zip(self.model.rules, one.costs, strict=True)
            self._settle([max(float(more), -cost) if limit.counts == "tokens" else 0.0 for limit, cost in pairs], one)

    @invariant()
    def nothing_is_taken_twice(self) -> None:
        """What is under way never exceeds what may be."""
        for one in self.model.rules:
            if one.kind == "leases":
                assert len(self.model.leases.get(one.key, {})) <= one.capacity

    def _settle(self, changes: list[float], one: Held) -> None:
        self.store.settle(self.model.rules, changes, one.lease, one.charged_us)
        self.model.settle(changes, one.lease, one.charged_us)
