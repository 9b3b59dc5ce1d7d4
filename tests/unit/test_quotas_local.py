"""Limits counted in the process do what the model does, and keep to themselves what is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from gateway.quotas.local import LocalStore
from gateway.quotas.rules import SECOND_US, Rule
from tests.quota_model import StoreMachine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.quotas.rules import Reply


def bucket(key: str = "bucket", *, capacity: float = 10.0, each: float = 1000.0) -> Rule:
    """A bucket of requests."""
    return Rule(kind="bucket", key=key, name="requests", counts="requests", capacity=capacity, each=each, largest=capacity)


class Clocked:
    """The local store, by a clock of the test's."""

    def __init__(self) -> None:
        self.now_us = 0
        self.store = LocalStore(lambda: self.now_us / SECOND_US)

    def set_clock(self, now_us: int) -> None:
        """Let it be so late."""
        self.now_us = now_us

    def charge(self, rules: Sequence[Rule], costs: Sequence[float], lease: str, lease_us: float) -> Reply:
        """Charge the store."""
        return self.store.charge(rules, costs, lease, lease_us)

    def settle(self, rules: Sequence[Rule], changes: Sequence[float], lease: str, charged_us: float) -> None:
        """Settle with the store."""
        self.store.settle(rules, changes, lease, charged_us)

    def close(self) -> None:
        """Nothing is held."""


def test_the_store_in_the_process_does_what_the_model_does() -> None:
    """Whatever is charged, given back and corrected, in any order, with any limits, as time passes."""

    class Machine(StoreMachine):
        store = Clocked()

    run_state_machine_as_test(Machine, settings=settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck)))


@given(waits=st.lists(st.integers(0, 5_000), min_size=1, max_size=60), capacity=st.integers(1, 20), each=st.integers(100, 5_000))
def test_no_stretch_of_time_sees_more_than_the_bucket_and_what_it_regained(waits: list[int], capacity: int, each: int) -> None:
    """Between any two moments at most `capacity` pass and as many as were regained meanwhile."""
    clocked, rule, passed = Clocked(), bucket(capacity=capacity, each=float(each)), []
    for wait in waits:
        clocked.set_clock(clocked.now_us + wait)
        if clocked.charge([rule], [1.0], "", 0.0).allowed:
            passed.append(clocked.now_us)
    for first, start in enumerate(passed):
        for last, end in enumerate(passed[first:], first):
            assert last - first + 1 <= capacity + (end - start + 1) / each


@given(costs=st.lists(st.integers(1, 10), min_size=1, max_size=30), wait=st.integers(0, 20_000))
def test_waiting_as_long_as_told_is_enough_and_not_too_long(costs: list[int], wait: int) -> None:
    """After the wait that a refusal names the same request passes; two microseconds earlier it did not."""
    clocked, rule = Clocked(), bucket()
    for cost in costs:
        reply = clocked.charge([rule], [float(cost)], "", 0.0)
        if not reply.allowed:
            needed = rule.wait_us(reply.states[0], float(cost), reply.now_us)
            clocked.set_clock(int(reply.now_us + needed - 2))
            assert not clocked.charge([rule], [float(cost)], "", 0.0).allowed
            clocked.set_clock(int(reply.now_us + needed + 1))
            assert clocked.charge([rule], [float(cost)], "", 0.0).allowed
        clocked.set_clock(clocked.now_us + wait % 3_000)


@given(gateways=st.integers(1, 8), costs=st.lists(st.integers(1, 10), min_size=1, max_size=80))
def test_shares_of_gateways_that_do_not_know_of_each_other_keep_the_rate(gateways: int, costs: list[int]) -> None:
    """Together they grant at most the limit and one request each, however small the shares are."""
    stores, rule = [Clocked() for _ in range(gateways)], bucket(capacity=10.0, each=1000.0)
    share, granted = rule.share(gateways), 0
    for turn, cost in enumerate(costs):
        granted += cost * stores[turn % gateways].charge([share], [float(cost)], "", 0.0).allowed
    assert granted <= 10 + 10 * gateways


def test_a_share_starts_from_what_was_known_of_the_whole() -> None:
    """Half of the limit was used when the shared store went, so half of a share is left."""
    clocked, rule = Clocked(), bucket(capacity=20.0)
    clocked.store.learn([rule], [10 * rule.each], [0.0], "", 0.0)
    share = rule.share(2)
    granted = sum(clocked.charge([share], [1.0], "", 0.0).allowed for _ in range(20))
    assert granted == 5


def test_what_has_run_out_is_forgotten() -> None:
    """Callers by token may be any number; their buckets are kept while they say something."""
    clocked = Clocked()
    for number in range(20_000):
        clocked.set_clock(number * 10_000)
        clocked.charge([bucket(f"caller-{number}")], [1.0], "", 0.0)
    assert len(clocked.store._full_at) < 10_000


def test_callers_who_are_through_leave_nothing() -> None:
    """A limit of requests under way alone keeps nothing of a caller who has none: callers by token may be any number."""
    clocked = Clocked()
    for number in range(5_000):
        rule = Rule(kind="leases", key=f"caller-{number}", name="concurrent_requests", counts="requests", capacity=2, largest=2)
        if number % 2:
            clocked.charge([rule], [1.0], "lease", 1_000_000.0)
        else:
            clocked.store.learn([rule], [0.0], [1.0], "lease", 1_000_000.0)
        clocked.settle([rule], [0.0], "lease", clocked.now_us)
    assert not clocked.store._leases
