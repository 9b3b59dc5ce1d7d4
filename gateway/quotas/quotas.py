"""How much each caller may use, as the rest of the gateway sees it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING, Self

from gateway.quotas.bounds import UNKNOWN
from gateway.quotas.census import Census
from gateway.quotas.charge import Charge
from gateway.quotas.headers import headers
from gateway.quotas.ledger import Ledger
from gateway.quotas.plan import Plans
from gateway.quotas.refusal import check_size, refusal
from gateway.quotas.rules import SECOND_US
from gateway.quotas.usage import Usage
from gateway.redis import RedisAway

if TYPE_CHECKING:
    from gateway.quotas.bounds import Bounds
    from gateway.quotas.ledger import Entry
    from gateway.redis import SharedRedis
    from quadrate.config.auth import AuthFile
    from quadrate.config.rate_limits import RateLimitsFile
    from quadrate.server import Call
    from quadrate.telemetry import Metrics

BEAT_SECONDS = 2.0
"""How often gateways are counted and use is handed over."""
REMEMBERED_SECONDS = 1.0
"""How long after a refusal, at least, requests of the same caller are looked at before they are tokenised, by what is known here."""
MOST_REMEMBERED = 10_000
PAUSE_SECONDS_PER_BYTE = 2e-6
"""How long after texts of such a caller were read no others are, not even to find out whether their answers are known. Reading takes about
a tenth of it (65 ms for 60,000 tokens)."""
LEASE_SPARE_SECONDS = 10.0
"""A request under way counts so long past its deadline if its gateway is lost and cannot say that it ended."""
_LONGEST_LEASE_SECONDS = 3600.0
_SMOOTHING = 0.1


class Quotas:
    """Charges requests. An async context manager: inside it, gateways are counted and use is handed over.

    Args:
        limits: What callers may use.
        auth: Whose keys there are: limits may be written for a key itself.
        redis: The store that gateways share; None: this one counts alone.
        gateways: How many gateways there are, if the configuration says so.
        gateways_at_least: As many are known of otherwise.
        metrics: Where refusals, refunds and tokens are counted.
    """

    def __init__(
        self,
        limits: RateLimitsFile,
        auth: AuthFile,
        *,
        redis: SharedRedis | None,
        metrics: Metrics,
        gateways: int | None = None,
        gateways_at_least: int = 1,
    ) -> None:
        self._plans = Plans(limits, auth)
        self._metrics = metrics
        self._census = Census(redis, told=gateways, at_least=gateways_at_least) if redis is not None else None
        self._ledger = Ledger(redis, lambda: self.gateways, metrics)
        self.usage = Usage(redis)
        self._refused_until: dict[str, float] = {}
        self._unread_until: dict[str, float] = {}
        self._typical_seconds = 0.1
        self._lease_prefix, self._lease_numbers = secrets.token_hex(6), itertools.count()
        self._task: asyncio.Task[None] | None = None
        metrics.gauge("router_quota_gateways").set_function(lambda: float(self.gateways))

    @property
    def gateways(self) -> int:
        """How many gateways share the limits."""
        return 1 if self._census is None else self._census.gateways

    def use(self, limits: RateLimitsFile, auth: AuthFile) -> None:
        """Let other limits hold from now on. What callers have used stays used."""
        self._plans = Plans(limits, auth)
        self._forget()

    def weight(self, name: str) -> float:
        """Return a caller's share of a busy mesh, beside that of others."""
        limit = self._plans.limit(name)
        return 1.0 if limit is None else limit.weight

    def was_refused(self, name: str) -> bool:
        """Whether a caller was refused a moment ago, so that its requests are looked at before work goes into them."""
        until = self._refused_until.get(name)
        if until is None:
            return False
        if time.monotonic() >= until:
            del self._refused_until[name]
            self._unread_until.pop(name, None)
            return False
        return True

    def may_look(self, name: str, call: Call) -> bool:
        """Whether texts of a caller who was refused a moment ago may be read, to find out whether their answers are known.

        If so, they count as read, and others are not for a while: a flood of them takes a tenth of a core's time.
        """
        now = time.monotonic()
        if now < self._unread_until.get(name, now):
            return False
        self._unread_until[name] = now + call.size_bytes * PAUSE_SECONDS_PER_BYTE
        return True

    def admit(self, name: str, alias: str, call: Call, bounds: Bounds = UNKNOWN) -> None:
        """Refuse a request of a caller who was refused a moment ago, if it is too much however few its tokens are. Raises QuotaExceeded.

        It goes by what this gateway knows; the charge has the last word. What is more than a limit ever holds is left to it, too.
        """
        plan = self._plans.of(name, alias)
        entry, costs = self._ledger.peek(plan), plan.costs(bounds.least)
        refused = [not rule.fits(state, cost) for rule, state, cost in zip(entry.rules, entry.reply.states, costs, strict=True)]
        if any(refused) and all(cost <= rule.largest for rule, cost in zip(entry.rules, costs, strict=True)):
            self._refuse(entry, costs, name, alias, call, at_most=plan.costs(bounds.most))

    async def charge(self, name: str, alias: str, tokens: int, call: Call) -> Charge:
        """Charge a request to a model, all its limits at once; the call ends the charge.

        Raises:
            QuotaExceeded: A limit has no room now. Nothing was charged.
            InvalidArgument: The request is more than a limit ever holds.
        """
        plan = self._plans.of(name, alias)
        if not plan.rules:
            call.charge = Charge(None, (), tokens, "", partial(self._end, name, alias))
            return call.charge
        costs = plan.costs(tokens)
        check_size(plan.rules, costs)
        lease = f"{self._lease_prefix}-{next(self._lease_numbers)}" if plan.has_leases else ""
        entry = await self._ledger.charge(plan, costs, lease, _lease_us(call) if lease else 0.0)
        if not entry.reply.allowed:
            self._remember(name, call)
            self._refuse(entry, costs, name, alias, call)
        call.charge = Charge(entry, costs, tokens, lease, partial(self._end, name, alias))
        return call.charge

    async def look(self, name: str, alias: str) -> Entry:
        """Return what a caller has taken of its limits for a model; an empty alias: of those for all models."""
        return await self._ledger.look(self._plans.of(name, alias))

    async def __aenter__(self) -> Self:
        await self._beat()
        self._task = asyncio.create_task(self._live())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._ledger.drain()
        with contextlib.suppress(RedisAway):
            await self.usage.hand_over()
            if self._census is not None:
                await self._census.leave()

    async def _live(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            await self._beat()

    async def _beat(self) -> None:
        with contextlib.suppress(RedisAway):
            if self._census is not None:
                await self._census.answer()
            await self.usage.hand_over()

    def _refuse(self, entry: Entry, costs: list[float], name: str, alias: str, call: Call, *, at_most: list[float] | None = None) -> None:
        """Raise QuotaExceeded, and count it."""
        error, limit = refusal(entry, costs, at_most=at_most or costs, typical_seconds=self._typical_seconds)
        call.log["limit"] = limit
        call.headers.extend(headers(entry.rules, entry.reply.states, entry.reply.now_us))
        self._metrics.counter("router_rate_limit_drops_total", name, limit).inc()
        self.usage.row(name, alias).refused += 1
        raise error

    def _remember(self, name: str, call: Call) -> None:
        """Take note that a caller was refused after its texts were read."""
        if len(self._refused_until) >= MOST_REMEMBERED:
            self._forget()
        now, pause = time.monotonic(), call.size_bytes * PAUSE_SECONDS_PER_BYTE
        self._refused_until[name] = now + max(REMEMBERED_SECONDS, pause)
        self._unread_until[name] = now + pause

    def _forget(self) -> None:
        self._refused_until.clear()
        self._unread_until.clear()

    def _end(self, name: str, alias: str, charge: Charge, failed: bool) -> None:  # noqa: FBT001 - the charge calls it
        row = self.usage.row(name, alias)
        if failed:
            row.failed += 1
            self._metrics.counter("router_quota_refunds_total", name).inc()
        else:
            row.requests += 1
            row.tokens += charge.tokens
            self._metrics.counter("router_tokens_total", alias, name).inc(charge.tokens)
        if charge.lease:
            self._typical_seconds += _SMOOTHING * (time.monotonic() - charge.started - self._typical_seconds)
        changes = charge.changes(failed=failed)
        if changes is not None and charge.entry is not None:
            self._ledger.settle(charge.entry, changes, charge.lease)


def _lease_us(call: Call) -> float:
    remaining = call.remaining_seconds()
    return (_LONGEST_LEASE_SECONDS if remaining is None else min(remaining + LEASE_SPARE_SECONDS, _LONGEST_LEASE_SECONDS)) * SECOND_US
