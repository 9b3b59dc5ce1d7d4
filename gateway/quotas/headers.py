"""`x-ratelimit-*`: what a caller has left, in the words of OpenAI's API."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gateway.quotas.rules import SECOND_US

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.quotas.rules import Rule

_SECOND_MS, _MINUTE_MS, _HOUR_MS = 1_000, 60_000, 3_600_000


def headers(rules: Sequence[Rule], states: Sequence[float], now_us: float) -> list[tuple[str, str]]:
    """Return limit, remaining and reset for requests and for tokens.

    Where several limits count the same, they are those of the one that has least left. `states` are what is taken with this request.
    """
    tightest: dict[str, tuple[float, Rule, float]] = {}
    for rule, state in zip(rules, states, strict=True):
        if rule.kind != "leases":
            left = rule.capacity - rule.level(state)
            if rule.counts not in tightest or left < tightest[rule.counts][0]:
                tightest[rule.counts] = (left, rule, state)
    found: list[tuple[str, str]] = []
    for counts, (left, rule, state) in tightest.items():
        found.append((f"x-ratelimit-limit-{counts}", str(int(rule.capacity))))
        found.append((f"x-ratelimit-remaining-{counts}", str(max(int(left + 1e-6), 0))))
        found.append((f"x-ratelimit-reset-{counts}", duration(rule.reset_us(state, now_us) / SECOND_US)))
    return found


def duration(seconds: float) -> str:
    """Return a time as OpenAI writes it, rounded up to a millisecond: `0s`, `12ms`, `1.5s`, `6m0s`, `23h59m1s`."""
    total = math.ceil(seconds * 1000 - 1e-6)
    if 0 < total < _SECOND_MS:
        return f"{total}ms"
    hours, rest = divmod(max(total, 0), _HOUR_MS)
    minutes, rest = divmod(rest, _MINUTE_MS)
    text = f"{rest // _SECOND_MS}" + (f".{rest % _SECOND_MS:03d}".rstrip("0") if rest % _SECOND_MS else "")
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{text}s"
