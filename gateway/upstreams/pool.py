"""One model's replicas, of which the less loaded of two is taken."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from quadrate.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.upstreams.errand import Errand
    from gateway.upstreams.replica import Facts, Replica
    from quadrate.config.routing import Route
    from quadrate.server import Call
    from quadrate.telemetry import Metrics
    from quadrate.tokenizer import TextTokenizer


class Pool:
    """A route's model: its replicas, and what is known of it."""

    def __init__(self, route: Route, task: int, replicas: Sequence[Replica], metrics: Metrics) -> None:
        self.route = route
        self.task = task
        self.alias = route.model
        self.replicas = replicas
        self.known: Facts | None = None
        """Facts of a replica that serves, or of the last that did."""
        self._serving: list[Replica] = []
        self._metrics = metrics

    @property
    def serving(self) -> bool:
        """Whether a request has a chance now."""
        return bool(self._serving)

    @property
    def facts(self) -> Facts:
        """The card and tokenizer that requests are read by. Raises Unavailable if no replica ever served."""
        if self.known is None:
            raise self.unavailable()
        return self.known

    @property
    def tokenizer(self) -> TextTokenizer:
        """As `facts`."""
        return self.facts.tokenizer

    @property
    def max_top_n(self) -> int | None:
        """The largest `top_n` that the route allows; None for an embedding model."""
        return getattr(self.route, "max_top_k", None)

    def update(self) -> None:
        """Take note of which replicas serve: those of the first priority that has any."""
        serving = [replica for replica in self.replicas if replica.facts is not None]
        first = min((replica.upstream.priority for replica in serving), default=0)
        self._serving = [replica for replica in serving if replica.upstream.priority == first]
        if self._serving:
            self.known = self._serving[0].facts
            # Ids of one tokenizer mean nothing to another: those that read text differently wait until the others are gone.
            self._serving = [replica for replica in self._serving if _reads_alike(replica.facts, self.known)]

    async def send(self, errand: Errand, call: Call) -> Any:
        """Call a replica; if it is lost, try once more on another while the deadline lasts. Raises QuadrateError.

        A replica that has come since the ids were made may read text differently. So may one that loaded another revision meanwhile; it
        is told whose ids these are, and has the former engine ready for them a while.
        """
        errand.request.tokenizer_sha256 = errand.read_by.card.tokenizer_sha256
        first = self._pick(errand.read_by)
        if first is None:
            raise self.unavailable()
        call.log["upstream"] = first.peer.target
        try:
            return await first.send(errand, call)
        except Unavailable:
            second = self._pick(errand.read_by, besides=first)
            if second is None:
                raise
        self._metrics.counter("router_upstream_retries_total", self.alias).inc()
        call.log["upstream"] = second.peer.target
        return await second.send(errand, call)

    def unavailable(self) -> Unavailable:
        """Return the error for a model that nobody serves now."""
        return Unavailable(
            f"No worker serves the model '{self.alias}' at the moment. Try again; /health/ready says why.", retry_after_seconds=1.0
        )

    def _pick(self, read_by: Facts, besides: Replica | None = None) -> Replica | None:
        others = [replica for replica in self._serving if replica is not besides]
        serving = [replica for replica in others if _reads_alike(replica.facts, read_by)]
        serving = serving or [replica for replica in others if _reads_alike(replica.former, read_by)]
        if len(serving) <= 1:
            return serving[0] if serving else None
        one, other = random.sample(serving, 2)
        return one if one.peer.outstanding_tokens <= other.peer.outstanding_tokens else other


def _reads_alike(one: Facts | None, other: Facts | None) -> bool:
    return one is not None and other is not None and one.tokenizer is other.tokenizer and one.pair == other.pair
