"""One model at one worker: what is known of it, and calls to it.

    away ──(serves)──► serving ──(renewed)──► serving
      ▲                   │
      └──────(away)───────┘

What is so is found out by a Follower, which says it here. Calls say in passing how the worker does: what it had no room for, how long it
took, and what it failed.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, cast

from gateway.overload.refusals import Refusals
from gateway.upstreams.outliers import Record
from gateway.upstreams.peers import Lost
from quadrate.errors import DeadlineExceeded, Internal, ModelNotFound, Overloaded, QuadrateError, Unavailable
from quadrate.server.call import standing_headers
from quadrate.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.upstreams.errand import Errand
    from gateway.upstreams.facts import Facts
    from gateway.upstreams.http.peer import HttpPeer
    from gateway.upstreams.peers import Peer
    from quadrate.config.routing import Route, Upstream
    from quadrate.server import Call
    from quadrate.telemetry import Metrics

    AnyPeer = Peer | HttpPeer


class TooSlow(DeadlineExceeded):
    """A worker that took longer than its route allows, while the caller still waits."""


class Replica:
    """One model at one worker.

    Args:
        route: Whose model it is.
        task: What the route's model is for, a number of model_pb2.Task.
        upstream: The entry of the routing file that names the worker.
        peer: The worker, or a server that speaks HTTP.
        other: The same server by another protocol, where it is not known which it speaks: the first that answers is taken.
        changed: Called when it begins or ceases to serve.
    """

    def __init__(
        self,
        *,
        route: Route,
        task: int,
        upstream: Upstream,
        peer: AnyPeer,
        metrics: Metrics,
        changed: Callable[[Replica], None],
        other: AnyPeer | None = None,
    ) -> None:
        self.route = route
        self.task = task
        self.upstream = upstream
        self.peer = peer
        self.peers: tuple[AnyPeer, ...] = (peer,) if other is None else (peer, other)
        """The server by each protocol that it may speak; `peer` is the one that it answered last."""
        self.protocol = "" if other is not None else peer.protocol
        """What it speaks: `grpc`, `http`, or nothing while that is not known."""
        self.facts: Facts | None = None
        """Set exactly while it serves."""
        self.former: Facts | None = None
        """What it said of itself before it loaded the model again; requests that were read by that are on their way."""
        self.reason = "not asked yet"
        """Why it does not serve."""
        self.remark = ""
        """What its worker says of the model besides, while it serves it: that it could not be loaded again, and why."""
        self.loaded: float | None = None
        """How much of the model, or of its next revision, its worker has loaded, from 0 to 1; None if it loads nothing."""
        self.refusals = Refusals()
        """What it had no room for lately."""
        self.record = Record()
        """How it has done lately."""
        self.answered_at = time.monotonic()
        """When it last gave an answer, or began to serve."""
        self.doubt = ""
        """Why it is not believed to answer, although its worker says that it serves; empty if it is."""
        self._under_way: set[asyncio.Task[Any]] = set()
        self._let_go: set[asyncio.Task[Any]] = set()
        self._metrics = metrics
        self._changed = changed
        self._timeout_seconds = upstream.timeout
        self._latency = metrics.histogram("router_upstream_latency_seconds", peer.target, route.model)

    @property
    def trouble(self) -> str:
        """Why others are asked rather than this one, although it serves; empty if nothing is wrong."""
        if self.peer.pulse.is_suspect:
            return f"it has not answered for {self.peer.pulse.silent_seconds:.1f} s"
        return self.doubt or self.record.reason

    @property
    def load(self) -> float:
        """What its worker has to do, by what it takes of the work."""
        return (self.peer.outstanding_tokens + 1) / self.upstream.weight

    def changed(self) -> None:
        """Tell that it serves otherwise than before."""
        self._changed(self)

    def serves(self, facts: Facts) -> None:
        """Take note that it serves from now on, and what requests are read by. What was held against it is forgotten."""
        self.facts, self.reason = facts, ""
        self.record.forget()
        self.answered_at, self.doubt = time.monotonic(), ""
        log.info("upstream serves", model=self.route.model, upstream=self.peer.target, revision=facts.card.revision)
        self.changed()

    def renewed(self, facts: Facts) -> None:
        """Take note that it has loaded the model again, and serves it."""
        self.facts, self.former = facts, self.facts
        log.info("upstream serves another revision", model=self.route.model, upstream=self.peer.target, revision=facts.card.revision)
        self.changed()

    def away(self, reason: str) -> None:
        """Take note of why it does not serve."""
        served, self.facts, self.loaded = self.facts is not None, None, None
        if served:  # otherwise the stream carries other models of the worker
            self.peer.retire()
        if served or reason != self.reason:
            log.warn("upstream is away", model=self.route.model, upstream=self.peer.target, reason=reason)
        self.reason = reason
        if served:
            self.changed()

    def fell_silent(self) -> None:
        """Take note that it does not answer, though it serves."""
        seconds = self.peer.pulse.silent_seconds
        self._metrics.counter("router_upstream_ejections_total", self.peer.target, self.route.model, "silent").inc()
        log.warn("upstream does not answer", model=self.route.model, upstream=self.peer.target, seconds=round(seconds, 2))

    def speaks(self, peer: AnyPeer) -> None:
        """Take note of the protocol that it speaks, which is that of one of its `peers`."""
        self.peer = peer
        if self.protocol != peer.protocol:
            self.protocol = peer.protocol
            log.info("upstream speaks", model=self.route.model, upstream=peer.target, protocol=peer.protocol)

    def doubted(self, reason: str) -> None:
        """Take note of why it is not believed to answer; empty if it is. Its next answer ends the doubt."""
        if self.doubt == reason:
            return
        self.doubt = reason
        log.warn(
            "upstream is in doubt" if reason else "upstream answers again", model=self.route.model, upstream=self.peer.target, reason=reason
        )
        self.changed()

    def let_go(self) -> None:
        """End what was asked here and is not answered, so that it may be asked elsewhere. Whose caller leaves ends anyway."""
        for task in self._under_way:
            if not task.cancelling():
                self._let_go.add(task)
                task.cancel()
        self._under_way.clear()

    async def send(self, errand: Errand, call: Call) -> Any:
        """Call the worker and return its answer.

        The caller's name, its deadline, its trace and its request id go along; if the caller leaves, the worker's call is cancelled.
        Raises QuadrateError: Lost if the worker was lost or let go, TooSlow if it took longer than the route allows.
        """
        timeout, peer = self._time_left(call), self.peer
        ahead = peer.outstanding_tokens = peer.outstanding_tokens + errand.tokens
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._under_way.add(task)
        started = time.perf_counter()
        try:
            if peer.gate is None:
                answer = await self._send(errand, call, timeout)
            else:
                async with peer.gate.place(call.standing, errand.tokens, timeout):
                    answer = await self._send(errand, call, self._time_left(call))
        except BaseException as exc:
            failure = self._failure(exc, errand, call, task)
            if failure is exc:
                raise
            raise failure from exc
        else:
            self._under_way.discard(task)  # what its answer brings about must not end it
            self.record.answered(time.perf_counter() - started, ahead)
            self.answered_at = time.monotonic()
            if self.doubt:
                self.doubted("")
            return answer
        finally:
            self._under_way.discard(task)
            peer.outstanding_tokens -= errand.tokens
            self._latency.observe(time.perf_counter() - started)

    async def _send(self, errand: Errand, call: Call, timeout: float | None) -> Any:  # noqa: ASYNC109 - it travels on
        with call.trace.stage("route", server=self.peer.target) as stage:
            metadata = (*stage.headers(), ("x-request-id", call.request_id), *standing_headers(call.standing))
            if self.facts is not None and errand.request.model != self.facts.card.name:  # its replicas may have other names for it
                errand.request.model = self.facts.card.name
            return await getattr(self.peer, errand.method)(errand.request, timeout=timeout, metadata=metadata)

    def _failure(self, exc: BaseException, errand: Errand, call: Call, task: asyncio.Task[Any]) -> BaseException:
        """Return what a failed call is to its caller, and note what it says of the worker."""
        was_let_go = task in self._let_go
        self._let_go.discard(task)
        if isinstance(exc, asyncio.CancelledError) and was_let_go and not task.uncancel():
            exc = Lost("The worker that serves this model does not answer. Try again.")
        if not isinstance(exc, QuadrateError):
            return exc
        self._metrics.counter("router_upstream_errors_total", self.peer.target, exc.status.name).inc()
        if isinstance(exc, ModelNotFound):  # it was unloaded a moment ago; callers know the route's model, and that exists
            return Unavailable(f"The worker has just unloaded the model '{self.route.model}'. Try again.", retry_after_seconds=1.0)
        if isinstance(exc, DeadlineExceeded):
            left = call.remaining_seconds()
            if left is not None and left <= 0:  # the caller's own: it says nothing of the worker
                return exc
            exc = TooSlow(exc.message)
        if isinstance(exc, Overloaded):
            left, wait = call.remaining_seconds(), exc.retry_after_seconds
            self.refusals.note(call.standing, tokens=errand.tokens, left_seconds=left, retry_after_seconds=wait)
        if isinstance(exc, Unavailable | Internal | TooSlow):
            self.record.failure()
        return exc

    def _time_left(self, call: Call) -> float | None:
        left = call.remaining_seconds()
        if left is not None and left <= 0:
            raise DeadlineExceeded("The deadline had passed before the request was sent to a worker. Allow more time.")
        if self._timeout_seconds is None:
            return left
        return self._timeout_seconds if left is None else min(left, self._timeout_seconds)
