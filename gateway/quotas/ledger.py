"""Which store counts: the shared one while it is there, and otherwise this gateway's part of every limit.

The local store always knows what the shared one last said, so a caller that had nothing left when Redis went has nothing left here
either. When Redis comes back, perhaps empty, it is told with the next charge what was taken meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.quotas.local import LocalStore
from gateway.quotas.shared import SharedStore
from gateway.redis import RedisAway

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.quotas.plan import Plan
    from gateway.quotas.rules import Reply, Rule
    from gateway.redis import SharedRedis
    from quadrate.telemetry import Metrics


@dataclass(frozen=True, slots=True)
class Entry:
    """What was charged or found, and where.

    Args:
        reply: What the store said.
        rules: The rules it went by.
        is_shared: Whether the shared store said it.
    """

    reply: Reply
    rules: Sequence[Rule]
    is_shared: bool = False


class Ledger:
    """Charges plans at the store that counts now.

    Args:
        redis: The shared store's connection; None: this gateway counts alone.
        gateways: Gives how many gateways share the limits, as far as is known.
        metrics: Gets `router_quota_local_charges_total`.
    """

    def __init__(self, redis: SharedRedis | None, gateways: Callable[[], int], metrics: Metrics) -> None:
        self.local = LocalStore()
        self._redis = redis
        self._shared = SharedStore(redis, self._distrust) if redis is not None else None
        self._losses = 0
        self._gateways = gateways
        self._local_charges = metrics.counter("router_quota_local_charges_total")
        self._unshared: set[str] = set()
        """Keys of rules of which this gateway may know more than Redis does."""
        if redis is not None:
            redis.listen(self._distrust)

    async def charge(self, plan: Plan, costs: Sequence[float], lease: str, lease_us: float) -> Entry:
        """Take the costs at the store that counts now, if all rules have room."""
        if self._shared is not None and self._redis is not None and self._redis.available:
            try:
                return await self._charge_shared(self._shared, plan, costs, lease, lease_us)
            except RedisAway:
                pass  # from now on as below
        return self._charge_here(plan, costs, lease, lease_us)

    def settle(self, entry: Entry, changes: Sequence[float], lease: str) -> None:
        """Change what a charge took by so much of each rule, and end its leases."""
        self.local.settle(entry.rules, changes, lease, entry.reply.now_us)
        if self._shared is not None and entry.is_shared:
            self._shared.settle(entry.rules, changes, lease, entry.reply.now_us)

    def peek(self, plan: Plan) -> Entry:
        """Return what this gateway knows to be taken, without asking anybody."""
        rules = self._rules_here(plan)
        return Entry(self.local.peek(rules), rules)

    async def look(self, plan: Plan) -> Entry:
        """Return what is taken, as the store says that counts now."""
        return await self.charge(plan, [0.0] * len(plan.rules), "", 0.0)

    async def drain(self) -> None:
        """Wait until what was ordered of the shared store is done."""
        if self._shared is not None:
            await self._shared.drain()

    async def _charge_shared(self, shared: SharedStore, plan: Plan, costs: Sequence[float], lease: str, lease_us: float) -> Entry:
        floors, losses = self._floors(plan) if self._unshared or plan.has_leases else None, self._losses
        reply = await shared.charge(plan.rules, costs, lease, lease_us, floors)
        if losses != self._losses:  # it knew nothing when it was asked: what is known here, and this, is told with the next charge
            if reply.allowed:
                self.local.settle(plan.rules, costs, "", reply.now_us)
            return Entry(reply, plan.rules, is_shared=True)
        if self._unshared and reply.allowed:
            self._unshared.difference_update(rule.key for rule in plan.rules)
        self.local.learn(plan.rules, reply.states, costs if reply.allowed else [0.0] * len(costs), lease, lease_us)
        return Entry(reply, plan.rules, is_shared=True)

    def _charge_here(self, plan: Plan, costs: Sequence[float], lease: str, lease_us: float) -> Entry:
        rules = self._rules_here(plan)
        reply = self.local.charge(rules, costs, lease, lease_us)
        if self._redis is not None:
            self._local_charges.inc()
            self._unshared.update(rule.key for rule in rules)
        return Entry(reply, rules)

    def _distrust(self) -> None:
        """Take note that Redis may have forgotten everything: it went or came, or is another one."""
        self._losses += 1
        self._unshared = self.local.keys()

    def _rules_here(self, plan: Plan) -> Sequence[Rule]:
        return plan.rules if self._redis is None or self._redis.available else plan.share(self._gateways())

    def _floors(self, plan: Plan) -> list[float]:
        """Return what is known here to be taken at least: requests under way, and what Redis may not know."""
        states = self.local.peek(plan.rules).states
        return [
            state if rule.kind == "leases" or rule.key in self._unshared else 0.0 for rule, state in zip(plan.rules, states, strict=True)
        ]
