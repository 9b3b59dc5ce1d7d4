"""The routing table: names to models, and each model's replicas, of which the less loaded of two is taken."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any, Self

from gateway.peers import Peer
from gateway.replica import Facts, Replica
from gateway.tokenizers import Tokenizers
from quadrate.errors import ModelNotFound, PermissionDenied, Unavailable
from quadrate.v1 import model_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gateway.auth import Principal
    from quadrate.config.routing import Route, RoutingFile
    from quadrate.server import Call
    from quadrate.telemetry import Metrics
    from quadrate.tokenizer import TextTokenizer

EMBED, RERANK = model_pb2.TASK_EMBED, model_pb2.TASK_RERANK
_WHERE = {EMBED: "embeds texts: call POST /v1/embeddings or EmbedService", RERANK: "reranks: call POST /v1/rerank or RerankService"}
_LONGEST_NAME = 100


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

    async def send(self, method: str, request: Any, *, read_by: Facts, tokens: int, call: Call) -> Any:
        """Call a replica; if it is lost, try once more on another while the deadline lasts. Raises QuadrateError.

        `read_by` are the facts that the request's ids were made by: a replica that has come meanwhile may read text differently. So may
        one that loaded another revision meanwhile; it is told whose ids these are, and has the former engine ready for them a while.
        """
        request.tokenizer_sha256 = read_by.card.tokenizer_sha256
        first = self._pick(read_by)
        if first is None:
            raise self.unavailable()
        call.log["upstream"] = first.peer.target
        try:
            return await first.send(method, request, tokens=tokens, call=call)
        except Unavailable:
            second = self._pick(read_by, besides=first)
            if second is None:
                raise
        self._metrics.counter("router_upstream_retries_total", self.alias).inc()
        call.log["upstream"] = second.peer.target
        return await second.send(method, request, tokens=tokens, call=call)

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
