"""The routing table: names to models, and each model's replicas, of which the less loaded of two is taken."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

from gateway.upstreams.peers import Peer
from gateway.upstreams.pool import Pool
from gateway.upstreams.replica import Replica
from gateway.upstreams.tokenizers import Tokenizers
from quadrate.errors import ModelNotFound, PermissionDenied
from quadrate.v1 import model_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.auth.principal import Principal
    from quadrate.config.routing import Route, RoutingFile
    from quadrate.telemetry import Metrics

EMBED, RERANK = model_pb2.TASK_EMBED, model_pb2.TASK_RERANK
_WHERE = {EMBED: "embeds texts: call POST /v1/embeddings or EmbedService", RERANK: "reranks: call POST /v1/rerank or RerankService"}
_LONGEST_NAME = 100


class Routes:
    """All routes, and the connections to all workers. An async context manager: inside it, health is followed."""

    def __init__(self, file: RoutingFile, metrics: Metrics) -> None:
        self._metrics = metrics
        self._peers: dict[str, Peer] = {}
        self._listeners: list[Callable[[], None]] = []
        self._tokenizers = Tokenizers()
        self._tasks: list[asyncio.Task[None]] = []
        found = [self._pool(route, EMBED) for route in file.embeddings] + [self._pool(route, RERANK) for route in file.rerank]
        self.pools: tuple[Pool, ...] = tuple(found)
        self._by_name = {(pool.task, name): pool for pool in found for name in pool.route.names}
        self._measure()

    def find(self, task: int, name: str, principal: Principal) -> Pool:
        """Return the enabled model of a name for a task.

        Raises:
            ModelNotFound: There is none, it is switched off, or it is for another task.
            PermissionDenied: The caller may not call it.
        """
        pool = self._by_name.get((task, name))
        if pool is None or not pool.route.enabled:
            raise self._not_found(task, name, principal)
        if not principal.may_call(pool.alias):
            raise PermissionDenied(f"This API key may not call the model '{pool.alias}'.", param="model")
        return pool

    def any_task(self, name: str, principal: Principal) -> Pool:
        """As `find`, for a name alone; an embedding model goes before a reranker of the same name."""
        task = next((task for task in (EMBED, RERANK) if (task, name) in self._by_name), None)
        if task is None:
            raise self._unknown(name, [pool.alias for pool in self.visible(principal, with_disabled=False)])
        return self.find(task, name, principal)

    def visible(self, principal: Principal, *, with_disabled: bool) -> Iterator[Pool]:
        """Give the models that a caller may know of, ordered by name."""
        for pool in sorted(self.pools, key=lambda pool: pool.alias):
            if principal.may_call(pool.alias) and (pool.route.enabled or with_disabled):
                yield pool

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a replica begins or ceases to serve."""
        self._listeners.append(listener)

    async def __aenter__(self) -> Self:
        replicas = [replica for pool in self.pools if pool.route.enabled for replica in pool.replicas]
        self._tasks = [asyncio.create_task(replica.follow(self._tokenizers)) for replica in replicas]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks)
        await asyncio.gather(*(peer.close() for peer in self._peers.values()))

    def _pool(self, route: Route, task: int) -> Pool:
        replicas = [
            Replica(
                route=route,
                task=task,
                upstream=upstream,
                peer=self._peers.setdefault(target, Peer(target)) if target not in self._peers else self._peers[target],
                metrics=self._metrics,
                changed=self._changed,
            )
            for upstream in route.groups
            for target in upstream.targets
        ]
        return Pool(route, task, replicas, self._metrics)

    def _changed(self, replica: Replica) -> None:
        for pool in self.pools:
            if replica in pool.replicas:
                pool.update()
        for listener in self._listeners:
            listener()

    def _measure(self) -> None:
        """Let gauges read what is so when they are asked."""
        for peer in self._peers.values():
            replicas = [replica for pool in self.pools if pool.route.enabled for replica in pool.replicas if replica.peer is peer]
            gauge = self._metrics.gauge("router_upstream_outstanding_tokens", peer.target)
            gauge.set_function(lambda peer=peer: float(peer.outstanding_tokens))  # type: ignore[misc] # a default binds the loop's value
            gauge = self._metrics.gauge("router_upstream_serving", peer.target)
            gauge.set_function(lambda found=replicas: float(bool(found) and all(one.facts for one in found)))  # type: ignore[misc] # as above

    def _not_found(self, task: int, name: str, principal: Principal) -> ModelNotFound:
        other = RERANK if task == EMBED else EMBED
        if (other, name) in self._by_name and (task, name) not in self._by_name:
            return ModelNotFound(f"The model '{name}' {_WHERE[other]}.", param="model")
        return self._unknown(name, [pool.alias for pool in self.visible(principal, with_disabled=False) if pool.task == task])

    @staticmethod
    def _unknown(name: str, served: list[str]) -> ModelNotFound:
        shown = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"
        known = f"Models for this call: {', '.join(served)}." if served else "No model is served for this call."
        return ModelNotFound(f"The model '{shown}' does not exist here or is switched off. {known}", param="model")
