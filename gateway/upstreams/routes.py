"""The routes in force, and the workers behind them: taken up, followed, and let go as the routing file changes.

    apply(file) ── what stays is kept ── what is new is followed until it serves ── the table is switched ── what went is let go
                                         (WARM_UP_SECONDS at most)                 (at once)                (after its last request)

A pool whose route did not change is the very same object afterwards. So is a replica whose settings did not, whatever else its route says.
Nothing here refers to a pool that went but weakly: it lives as long as the requests that found it, and its workers are followed and its
connections open as long as it lives.
"""

from __future__ import annotations

import asyncio
import gc
from types import MappingProxyType
from typing import TYPE_CHECKING, Self
from weakref import WeakSet

from gateway.upstreams.follower import Follower
from gateway.upstreams.http.options import OverHttp
from gateway.upstreams.http.peer import HttpPeer
from gateway.upstreams.http.tokenizers import NamedTokenizers
from gateway.upstreams.names import Names
from gateway.upstreams.peers import Peer
from gateway.upstreams.pool import Pool
from gateway.upstreams.replica import Replica
from gateway.upstreams.table import EMBED, RERANK, Table
from gateway.upstreams.tokenizers import Tokenizers
from quadrate.config.tls import ClientTls
from quadrate.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pydantic import SecretStr

    from gateway.auth.principal import Principal
    from gateway.upstreams.replica import AnyPeer
    from gateway.upstreams.table import MoreNames
    from quadrate.config.routing import Route, RoutingFile, Upstream
    from quadrate.config.tls import Stamp
    from quadrate.telemetry import Metrics

    WorkerKey = tuple[str, str, Stamp | None, SecretStr | None]
    """Its address, the name it was found by, by which files it is called over TLS, and the key that it is sent."""

WARM_UP_SECONDS = 10.0
"""A model that is served now and would be served by others from now on has so long to be served by them before the switch."""
_TLS_SCHEMES = ("grpcs:", "https:")
RELEASE_SECONDS = 0.5
"""How often is looked whether the last request has left what went."""
COLLECT_EVERY = 60
"""Every so many looks objects that refer to each other are collected: a failed request's may, and hold its pool."""


class Routes:
    """All routes, and the connections to all workers. An async context manager: inside it, health is followed."""

    def __init__(
        self,
        file: RoutingFile,
        metrics: Metrics,
        *,
        over_http: OverHttp = OverHttp(),  # noqa: B008 - frozen
        more_names: MoreNames = MappingProxyType({}),
    ) -> None:
        self._metrics = metrics
        self._tls = over_http.tls or ClientTls()
        self._stamp = self._read_stamp = self._tls.stamp()
        """By which files of TLS the upstreams of the table in force are called, and those of the table that is being made."""
        self._over_http = over_http
        self._more_names = more_names
        self._named = NamedTokenizers(over_http.tokenizer_name)
        self._workers: dict[WorkerKey, Peer] = {}
        self._servers: set[HttpPeer] = set()
        self._listeners: list[Callable[[], None]] = []
        self._tokenizers = Tokenizers()
        self._names = Names(self.refresh)
        self._following: dict[Replica, asyncio.Task[None]] = {}
        self._beside: WeakSet[Pool] = WeakSet()
        """Pools that live and are not in the table: those that are being made ready, and those that requests still hold."""
        self._release: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._changed_once = asyncio.Event()
        self._file = file
        self._table = Table(())
        self._table = self._read(file)
        self._measure()

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The models of the table in force."""
        return self._table.pools

    @property
    def targets(self) -> set[str]:
        """The `host:port` of all workers that connections are open to, those that are being let go included."""
        return {peer.target for peer in self._peers()}

    def find(self, task: int, name: str, principal: Principal) -> Pool:
        """See Table."""
        return self._table.find(task, name, principal)

    def any_task(self, name: str, principal: Principal) -> Pool:
        """See Table."""
        return self._table.any_task(name, principal)

    def visible(self, principal: Principal, *, with_disabled: bool) -> Iterator[Pool]:
        """See Table."""
        return self._table.visible(principal, with_disabled=with_disabled)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a replica begins or ceases to serve, and when the table was switched."""
        self._listeners.append(listener)

    async def apply(self, file: RoutingFile, *, then: Callable[[], None] = lambda: None) -> None:
        """Let a routing file take effect, without a failed request.

        Models that are served now and move to other workers are served by those before the switch, or after WARM_UP_SECONDS.

        Args:
            file: What it says.
            then: Called at the switch: no request sees the new routes without what it does, or the other way round. What it raises is
                raised here, and the routes stay.
        """
        async with self._turn:
            try:
                table = self._read(file)
                new = [pool for pool in table.pools if pool not in self.pools]
                self._beside.update(new)
                self._follow(new)
                await self._warm_up(new)
                then()
                self._switch(file, table)
            finally:
                if self._release is None or self._release.done():
                    self._release = asyncio.create_task(self._release_unused())

    def _switch(self, file: RoutingFile, table: Table) -> None:
        before, self._file, self._table, self._stamp = self.pools, file, table, self._read_stamp
        self._names.keep({target for pool in table.pools for upstream in pool.route.groups for target in upstream.targets})
        self._beside.difference_update(table.pools)
        self._beside.update(pool for pool in before if pool not in table.pools)
        self._measure()
        self._tell()

    async def refresh(self) -> None:
        """As `apply` of the file in force, for addresses that have changed behind its names."""
        await self.apply(self._file)

    async def __aenter__(self) -> Self:
        await self._names.start()
        self._follow(self.pools)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._names.stop()
        tasks = [*self._following.values(), *([self._release] if self._release is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(peer.close() for peer in self._peers()))

    def _read(self, file: RoutingFile) -> Table:
        """Return the table of a file, made of the pools there are as far as they are what it says. Raises ConfigError for files of TLS."""
        self._read_stamp = self._tls.stamp()
        wanted = [(EMBED, route) for route in file.embeddings] + [(RERANK, route) for route in file.rerank]
        return Table((self._pool(route, task) for task, route in wanted), self._more_names)

    def _pool(self, route: Route, task: int) -> Pool:
        before = next((pool for pool in self.pools if (pool.task, pool.alias) == (task, route.model)), None)
        replicas = self._replicas(route, task, before.replicas if before is not None else ())
        if before is not None and before.route == route and list(before.replicas) == replicas:
            return before
        pool = Pool(route, task, replicas, self._metrics)
        pool.known = before.known if before is not None else None
        pool.update()
        return pool

    def _replicas(self, route: Route, task: int, before: Iterable[Replica]) -> list[Replica]:
        """Return a route's replicas: those there were, where they are still what it says."""
        found = []
        for upstream in route.groups:
            for target in upstream.targets:
                is_renewed = self._stamp != self._read_stamp and upstream.url_of(target).startswith(_TLS_SCHEMES)
                for address in self._addresses(upstream, target):
                    kept = next((one for one in before if one.peer.target == address and _is_of(one, route, upstream)), None)
                    found.append(self._replica(route, task, upstream, target, address) if kept is None or is_renewed else kept)
        return found

    def _addresses(self, upstream: Upstream, target: str) -> tuple[str, ...]:
        """Return where the workers behind a target are. A server over HTTP is one, whatever stands before it."""
        return self._names.of(target) if upstream.type == "grpc" else (target,)

    def _replica(self, route: Route, task: int, upstream: Upstream, target: str, address: str) -> Replica:
        peer, *others = self._ways(route, task, upstream, target, address)
        other = others[0] if others else None
        return Replica(route=route, task=task, upstream=upstream, peer=peer, other=other, metrics=self._metrics, changed=self._changed)

    def _ways(self, route: Route, task: int, upstream: Upstream, target: str, address: str) -> list[AnyPeer]:
        """Return how a server may be spoken to, the likeliest way first. A worker has one peer for all of its models."""
        if upstream.type == "grpc":
            is_secure = upstream.url_of(target).startswith(_TLS_SCHEMES)
            return [self._worker(target, address, is_secure=is_secure, api_key=upstream.api_key)]
        server = HttpPeer(route=route, task=task, upstream=upstream, target=target, tokenizers=self._named, options=self._over_http)
        self._servers.add(server)
        may_be_worker = upstream.type != "openai" and upstream.url_of(target).startswith("http:") and "/" not in target
        return (
            [self._worker(target, target, api_key=upstream.api_key), server]
            if may_be_worker and self._over_http.finds_protocol
            else [server]
        )

    def _worker(self, target: str, address: str, *, is_secure: bool = False, api_key: SecretStr | None = None) -> Peer:
        host = target.rpartition(":")[0].strip("[]")
        key = address, host, self._read_stamp if is_secure else None, api_key
        found = self._workers.get(key)
        if found is None:
            found = self._workers[key] = Peer(address, self._tls if is_secure else None, host=host, api_key=api_key)
        return found

    def _follow(self, pools: Iterable[Pool]) -> None:
        for pool in pools:
            for replica in pool.replicas if pool.route.enabled else ():
                if replica not in self._following:
                    self._following[replica] = asyncio.create_task(Follower(replica, self._tokenizers).run())

    async def _warm_up(self, new: Iterable[Pool]) -> None:
        """Wait until each new pool serves under whose names another serves now."""
        waited_for = [pool for pool in new if pool.route.enabled and self._serves_now(pool)]
        try:
            async with asyncio.timeout(WARM_UP_SECONDS):
                while not all(pool.serving for pool in waited_for):
                    self._changed_once.clear()
                    await self._changed_once.wait()
        except TimeoutError:
            late = [pool.alias for pool in waited_for if not pool.serving]
            log.warn("models are not served yet by the workers that they move to", models=late, seconds=WARM_UP_SECONDS)

    def _serves_now(self, pool: Pool) -> bool:
        found = (self._table.get(pool.task, name) for name in pool.route.names)
        return any(before is not None and before.route.enabled and before.serving for before in found)

    def _changed(self, replica: Replica) -> None:
        for pool in (*self.pools, *self._beside):
            if replica in pool.replicas:
                pool.update()
        self._changed_once.set()
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    async def _release_unused(self) -> None:
        """Let go of what went, each as soon as no request holds it any more."""
        looks = 0
        while await self._let_go() or self._beside:
            await asyncio.sleep(RELEASE_SECONDS)
            looks += 1
            if looks % COLLECT_EVERY == 0:
                gc.collect()

    async def _let_go(self) -> bool:
        """Stop following replicas and close peers that no pool has; return whether a peer is left that still owes an answer."""
        async with self._turn:
            used = {replica for pool in (*self.pools, *self._beside) for replica in pool.replicas}
            gone = [replica for replica in self._following if replica not in used]
            for task in (tasks := [self._following.pop(replica) for replica in gone]):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            unused = self._peers() - {peer for replica in used for peer in replica.peers}
            idle = [peer for peer in unused if not peer.outstanding_tokens]
            self._servers.difference_update(idle)
            self._workers = {key: peer for key, peer in self._workers.items() if peer not in idle}
            await asyncio.gather(*(peer.close() for peer in idle))
            for peer in idle:
                log.info("upstream let go", upstream=peer.target)
            for target in {peer.target for peer in idle} - self.targets:
                self._metrics.drop("upstream", target)
        return len(idle) < len(unused)

    def _peers(self) -> set[AnyPeer]:
        return {*self._workers.values(), *self._servers}

    def _measure(self) -> None:
        """Let gauges read what is so when they are asked."""
        pools = [pool for pool in self.pools if pool.route.enabled]
        for name in ("router_upstream_outstanding_tokens", "router_upstream_serving"):
            self._metrics.forget(name)
        for target in {replica.peer.target for pool in pools for replica in pool.replicas}:  # of what is switched off nobody need know
            peers = {peer for pool in self.pools for replica in pool.replicas for peer in replica.peers if peer.target == target}
            replicas = [replica for pool in pools for replica in pool.replicas if replica.peer.target == target]
            gauge = self._metrics.gauge("router_upstream_outstanding_tokens", target)
            gauge.set_function(lambda found=peers: float(sum(one.outstanding_tokens for one in found)))  # type: ignore[misc] # a default binds the loop's value
            gauge = self._metrics.gauge("router_upstream_serving", target)
            gauge.set_function(lambda found=replicas: float(bool(found) and all(one.facts for one in found)))  # type: ignore[misc] # as above


def _is_of(replica: Replica, route: Route, upstream: Upstream) -> bool:
    """Whether a replica of the same address is what an upstream of a route says, but for other addresses."""
    return _alone(replica.route, replica.upstream) == _alone(route, upstream)


def _alone(route: Route, upstream: Upstream) -> tuple[Route, Upstream]:
    others = {"upstream": None, "upstreams": ()}
    return route.model_copy(update=others), upstream.model_copy(update={"url": upstream.url.partition(":")[0], "replicas": ()})
