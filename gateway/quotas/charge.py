"""What one request was charged, from then until its answer is out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.quotas.headers import headers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.quotas.ledger import Entry


class Charge:
    """A charge that is held until its call ends: it stands if the call was answered, and is given back if not.

    Args:
        entry: What the store said, and by which rules. None: the caller has no limits.
        costs: What each rule was charged.
        tokens: What the request was charged in tokens.
        lease: What its places among the requests under way are called; empty: it takes none.
        ended: Called once at the end with the charge and whether the call failed.
    """

    __slots__ = ("_ended", "costs", "entry", "is_open", "lease", "started", "tokens", "tokens_charged")

    def __init__(self, entry: Entry | None, costs: Sequence[float], tokens: int, lease: str, ended: Callable[[Charge, bool], None]) -> None:
        self.entry = entry
        self.costs = costs
        self.tokens = self.tokens_charged = tokens
        self.lease = lease
        self.started = time.monotonic()
        self.is_open = True
        self._ended = ended

    def correct(self, tokens: int) -> None:
        """Say how many tokens it was in truth, where the charge was an estimate."""
        self.tokens = tokens

    def changes(self, *, failed: bool) -> list[float] | None:
        """Return what is to be changed of each rule at the end; None if nothing is."""
        if self.entry is None:
            return None
        if failed:
            return [-cost for cost in self.costs]
        more = self.tokens - self.tokens_charged
        if not more and not self.lease:
            return None
        return [float(more) if rule.counts == "tokens" else 0.0 for rule in self.entry.rules]

    def headers(self) -> list[tuple[str, str]]:
        """Return `x-ratelimit-*` as they are with this request."""
        if self.entry is None:
            return []
        reply, more = self.entry.reply, self.tokens - self.tokens_charged
        states = [
            state + (cost + (more if rule.counts == "tokens" else 0)) * rule.each
            for rule, state, cost in zip(self.entry.rules, reply.states, self.costs, strict=True)
        ]
        return headers(self.entry.rules, states, reply.now_us)

    def close(self, *, failed: bool) -> None:
        """End it, once."""
        if self.is_open:
            self.is_open = False
            self._ended(self, failed)
