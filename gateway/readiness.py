"""Whether the gateway can serve: one line for each upstream, for `/health/ready`, `grpc.health.v1` and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.upstreams.table import EMBED, RERANK
from quadrate.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gateway.upstreams.pool import Pool
    from gateway.upstreams.replica import Replica
    from gateway.upstreams.routes import Routes
    from quadrate.health import Health
    from quadrate.telemetry import Metrics

SERVICES = {
    "quadrate.v1.EmbedService": (EMBED,),
    "quadrate.openai.v1.OpenAiService": (EMBED,),
    "quadrate.v1.RerankService": (RERANK,),
    "quadrate.cohere.v1.CohereService": (RERANK, EMBED),
}
"""The services that serve while a model for one of their tasks does. ModelService needs none."""


class Readiness:
    """Follows the routes and states what is so.

    *ok*: every upstream of every enabled model serves, and nothing speaks against it. *degraded*: some do not, and a model can be served.
    *unavailable*: no enabled model can be served. A model whose every upstream is in doubt (`gateway.canary`) cannot.
    """

    def __init__(self, routes: Routes, health: Health, metrics: Metrics) -> None:
        self._routes = routes
        self._health = health
        self._metrics = metrics
        self._before = "unavailable"
        self._names: set[str] = set()
        self._details: dict[str, Callable[[], Any]] = {}
        health.set("quadrate.v1.ModelService", serving=True)
        self.update()
        routes.listen(self.update)

    def explain(self, name: str, report: Callable[[], Any]) -> None:
        """Let the report say more under a name, whatever `report` returns then. It changes nothing of the status."""
        self._details[name] = report

    @property
    def _pools(self) -> list[Pool]:
        return [pool for pool in self._routes.pools if pool.route.enabled]

    @property
    def status(self) -> str:
        """The state in one word."""
        if not any(map(_serves, self._pools)):
            return "unavailable"
        whole = all(replica.facts is not None and not replica.trouble for pool in self._pools for replica in pool.replicas)
        return "ok" if whole else "degraded"

    def report(self) -> tuple[bool, dict[str, Any]]:
        """Return whether something can be served, and what GET /health/ready says."""
        status = self.status
        details = {name: report() for name, report in self._details.items()}
        return status != "unavailable", {"status": status, "upstreams": list(_lines(self._pools)), **details}

    def update(self) -> None:
        """State what is so now over grpc.health.v1, and count when it left ok."""
        status = self.status
        if status != self._before:
            if self._before == "ok":
                self._metrics.counter("router_readiness_degraded_total", status).inc()
            log.info("readiness changed", before=self._before, now=status)
            self._before = status
        names = {f"model/{pool.alias}" for pool in self._pools}
        for name in self._names - names:
            self._health.forget(name)
        self._names = names
        for pool in self._pools:
            self._health.set(f"model/{pool.alias}", serving=_serves(pool), reason="no upstream serves it")
        for service, tasks in SERVICES.items():
            serving = any(_serves(pool) for pool in self._pools if pool.task in tasks)
            self._health.set(service, serving=serving, reason="no model for it is served")
        self._health.set("", serving=status != "unavailable", reason="no enabled model can be served")


def _serves(pool: Pool) -> bool:
    return any(replica.facts is not None and not replica.doubt for replica in pool.replicas)


def _status(replica: Replica) -> str:
    """A replica that is put aside for a while, or has just fallen silent, is asked if nobody else is there: *degraded*."""
    if replica.facts is None or replica.doubt:
        return "unavailable"
    return "degraded" if replica.trouble else "ok"


def _lines(pools: Sequence[Pool]) -> list[Mapping[str, str]]:
    return [
        {
            "name": f"{pool.alias}@{replica.peer.target}",
            "type": replica.upstream.type,
            "protocol": replica.protocol,
            "status": _status(replica),
            "reason": replica.reason or replica.trouble or replica.remark,
        }
        for pool in pools
        for replica in pool.replicas
    ]
