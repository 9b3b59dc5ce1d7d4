"""The way of a validated request to a worker, the same for every task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.upstreams.errand import Errand
    from gateway.upstreams.pool import Pool
    from quadrate.server import Call
    from quadrate.telemetry import Metrics


class Dispatch:
    """Sends errands to workers."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def send(self, pool: Pool, errand: Errand, call: Call) -> Any:
        """Return a worker's answer. Raises QuadrateError; then nothing was charged."""
        call.log["tokens"] = errand.tokens
        answer = await pool.send(errand, call)
        self._metrics.counter("router_tokens_total", pool.alias, errand.principal.name).inc(errand.tokens)
        return answer
