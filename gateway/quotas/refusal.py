"""What a caller is told whose limits are used up: which limit, and how long to wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.quotas.headers import duration
from gateway.quotas.rules import SECOND_US
from quadrate.errors import InvalidArgument, QuotaExceeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.quotas.ledger import Entry
    from gateway.quotas.rules import Rule

LEAST_WAIT_SECONDS = 0.001


def check_size(rules: Sequence[Rule], costs: Sequence[float]) -> None:
    """Refuse a request that is more than a limit holds when nothing is taken: no waiting would help. Raises InvalidArgument."""
    for rule, cost in zip(rules, costs, strict=True):
        if cost > rule.largest:
            raise InvalidArgument(
                f"This request has {cost:.0f} tokens, and the limit is {_allowance(rule)}: it can never pass as it is. "
                "Send fewer or shorter texts in one request.",
                code="request_exceeds_limit",
            )


def refusal(entry: Entry, costs: Sequence[float], *, at_most: Sequence[float], typical_seconds: float) -> tuple[QuotaExceeded, str]:
    """Return the error of a request that does not fit, and the limit that it must wait for longest.

    Waiting so long makes room, as far as is known, even if it costs `at_most`: other requests of the same caller may take it first. When
    requests under way will end is not known; `typical_seconds` is how long they took of late.
    """
    now_us = entry.reply.now_us
    waits = [
        (typical_seconds if rule.kind == "leases" else rule.wait_us(state, min(most, rule.largest), now_us) / SECOND_US, place)
        for place, (rule, state, cost, most) in enumerate(zip(entry.rules, entry.reply.states, costs, at_most, strict=True))
        if not rule.fits(state, cost)
    ]
    seconds, place = max(waits)
    seconds, rule = max(seconds, LEAST_WAIT_SECONDS), entry.rules[place]
    left = _left(rule, entry.reply.states[place], costs[place], is_exact=costs[place] == at_most[place])
    message = f"The limit is {_allowance(rule)}, {left}. Try again in {duration(seconds)}."
    return QuotaExceeded(message, retry_after_seconds=seconds), rule.name


def _allowance(rule: Rule) -> str:
    """Return a limit in words."""
    capacity = f"{rule.capacity:g}" if rule.capacity % 1 else f"{rule.capacity:.0f}"
    texts = {
        "requests": f"{capacity} requests at once and {SECOND_US / rule.each:g} a second",
        "tokens_per_minute": f"{capacity} tokens a minute",
        "tokens_per_day": f"{capacity} tokens a day (UTC)",
        "concurrent_requests": f"{capacity} requests at the same time",
    }
    return texts[rule.name] + (f" for the model '{rule.model}'" if rule.model else "")


def _left(rule: Rule, state: float, cost: float, *, is_exact: bool) -> str:
    left = max(int(rule.capacity - rule.level(state)), 0)
    if rule.counts == "tokens":
        return f"of which {left} are left, and this request has {'' if is_exact else 'at least '}{cost:.0f}"
    return "and as many are under way" if rule.kind == "leases" else "and all of them are used"
