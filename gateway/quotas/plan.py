"""Which limits a caller's request to a model falls under, as the files say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from gateway.quotas.rules import SECOND_US, Rule
from gateway.redis import PREFIX
from quadrate.config.rate_limits import limits_by_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.quotas.rules import Kind
    from quadrate.config.auth import AuthFile
    from quadrate.config.rate_limits import Limit, ModelLimit, RateLimitsFile

ANONYMOUS = "anonymous"
"""The name of all who call without a key."""
MOST_PLANS = 10_000
"""Plans that are kept made. Callers by token may be any number."""
_MINUTE_US = 60 * SECOND_US


@dataclass(frozen=True, slots=True)
class Plan:
    """The rules of one caller's requests to one model.

    Args:
        rules: All of them; a request needs room in each.
        has_leases: Whether one of them counts requests under way.
    """

    rules: tuple[Rule, ...] = ()
    has_leases: bool = False
    _shares: dict[int, tuple[Rule, ...]] = field(default_factory=dict)

    def costs(self, tokens: int) -> list[float]:
        """Return what a request of so many tokens costs each rule."""
        return [1.0 if rule.counts == "requests" else float(tokens) for rule in self.rules]

    def share(self, count: int) -> tuple[Rule, ...]:
        """Return the rules of one gateway of `count`, when none of them knows of the others."""
        if count not in self._shares:
            self._shares.clear()
            self._shares[count] = tuple(rule.share(count) for rule in self.rules)
        return self._shares[count]


UNLIMITED = Plan()


class Plans:
    """The plans of all callers, made when they are first needed."""

    def __init__(self, limits: RateLimitsFile, auth: AuthFile) -> None:
        self._default = limits.default
        self._by_name = limits_by_name(limits, auth)
        if limits.anonymous is not None:
            self._by_name[ANONYMOUS] = limits.anonymous
        self._anonymous = limits.anonymous
        self._made: dict[tuple[str, str], Plan] = {}

    def limit(self, name: str) -> Limit | None:
        """Return what the file says of a caller; None if nothing."""
        return self._anonymous if name == ANONYMOUS else self._by_name.get(name, self._default)

    def of(self, name: str, alias: str) -> Plan:
        """Return the rules for a caller's requests to a model; an empty alias: those that hold for all models."""
        plan = self._made.get((name, alias))
        if plan is None:
            if len(self._made) >= MOST_PLANS:
                self._made.clear()
            plan = self._made[name, alias] = _plan(name, alias, self.limit(name))
        return plan


def _plan(name: str, alias: str, limit: Limit | None) -> Plan:
    if limit is None:
        return UNLIMITED
    rules = [*_rules(limit, name, ""), *(_rules(limit.models[alias], name, alias) if alias in limit.models else ())]
    return Plan(tuple(rules), any(rule.kind == "leases" for rule in rules)) if rules else UNLIMITED


def _rules(limit: ModelLimit, name: str, model: str) -> Iterator[Rule]:
    key = f"{PREFIX}quota:{quote(name, safe='')}:{quote(model, safe='')}"

    def rule(what: str, kind: Kind, counts: Literal["requests", "tokens"], most: int, each: float = 1.0) -> Rule:
        return Rule(kind=kind, key=f"{key}:{what}", name=what, model=model, counts=counts, capacity=most, largest=most, each=each)

    if limit.capacity is not None and limit.refill_rate is not None:
        yield rule("requests", "bucket", "requests", limit.capacity, SECOND_US / limit.refill_rate)
    if limit.tokens_per_minute is not None:
        yield rule("tokens_per_minute", "bucket", "tokens", limit.tokens_per_minute, _MINUTE_US / limit.tokens_per_minute)
    if limit.tokens_per_day is not None:
        yield rule("tokens_per_day", "day", "tokens", limit.tokens_per_day)
    if limit.concurrent_requests is not None:
        yield rule("concurrent_requests", "leases", "requests", limit.concurrent_requests)
