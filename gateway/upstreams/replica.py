"""One model at one worker: whether it serves, and calls to it.

    away ──(the worker lists the model; its health says SERVING; its tokenizer is here)──► serving
      ▲                                                                                      │
      └──────────(health says something else, or the connection is lost)─────────────────────┘

A Watch stream is open as long as the connection is, so a worker that ends or stops serving is left at once. A model that is loaded again
serves all the while: its card is asked for every second.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from gateway.overload.refusals import Refusals
from gateway.upstreams.facts import Facts, PeerAway
from gateway.upstreams.http.answers import PROVIDER
from gateway.upstreams.http.peer import facts_of_card
from gateway.upstreams.outliers import Record
from gateway.upstreams.peers import Lost
from gateway.upstreams.tokenizers import TokenizerError
from quadrate.errors import DeadlineExceeded, Internal, ModelNotFound, Overloaded, QuadrateError, Unavailable
from quadrate.pairs import PairLayout
from quadrate.server.call import standing_headers
from quadrate.telemetry import log
from quadrate.v1 import model_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.upstreams.errand import Errand
    from gateway.upstreams.http.peer import HttpPeer
    from gateway.upstreams.peers import Peer
    from gateway.upstreams.tokenizers import Tokenizers
    from quadrate.config.routing import Route, Upstream
    from quadrate.server import Call
    from quadrate.telemetry import Metrics

    AnyPeer = Peer | HttpPeer

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0
REFRESH_SECONDS = 1.0
"""How often a serving model's card is asked for. Workers read ids of a former tokenizer for longer than that."""
_HTTP1 = "http1"
"""What gRPC says where somebody answers in HTTP/1: `Trying to connect an http1.x server`."""
_HANDSHAKE = re.compile(r"Tls handshake failed.*?OPENSSL_internal:([A-Z0-9_]+(: [a-z ]+)?)")
_NOT_REACHED = ("refused", "timed out", "timeout", "dns", "unreachable", "resolution", "no route")


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
        self.refusals = Refusals()
        """What it had no room for lately."""
        self.record = Record()
        """How it has done lately."""
        self.answered_at = time.monotonic()
        """When it last gave an answer, or began to serve."""
        self.doubt = ""
        """Why it is not believed to answer, although its worker says that it serves; empty if it is."""
        self._is_healthy = False
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

    async def follow(self, tokenizers: Tokenizers) -> None:
        """Keep `facts` true for as long as the task runs."""
        self.peer.pulse.listen(self._hear)
        try:
            await self._follow(tokenizers)
        finally:
            self.peer.pulse.unlisten(self._hear)

    def _hear(self) -> None:
        """Take note that the worker became silent, or is heard again."""
        pulse = self.peer.pulse
        if self.facts is not None and pulse.is_suspect and not pulse.is_stuck:
            self._metrics.counter("router_upstream_ejections_total", self.peer.target, self.route.model, "silent").inc()
            log.warn("upstream does not answer", model=self.route.model, upstream=self.peer.target, seconds=round(pulse.silent_seconds, 2))
        if self.facts is not None and pulse.is_stuck:
            self._away("it does not answer, though its connection is open")
        self.changed()

    async def _follow(self, tokenizers: Tokenizers) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                card = await self._find() if await self._meet() else None
                if card is not None and await self._watch(card.name, tokenizers):
                    pause = FIRST_PAUSE_SECONDS
            except grpc.aio.AioRpcError as exc:
                self._away(self._explain(exc))
            except (TokenizerError, PeerAway) as exc:
                self._away(str(exc))
            except Exception as exc:  # noqa: BLE001 - whatever a worker says, it is told and asked again
                self._away(f"what it answers cannot be understood ({type(exc).__name__})")
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads retries, guards nothing
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _meet(self) -> bool:
        """Find out which protocol the server speaks, if that is not sure; tell whether it answers."""
        if len(self.peers) == 1:
            return True
        reasons = []
        for peer in self.peers:
            try:
                await peer.models()
            except grpc.aio.AioRpcError as exc:
                reasons.append(self._explain(exc))
            except (TokenizerError, PeerAway) as exc:
                reasons.append(str(exc))
            else:
                self._speak(peer)
                return True
        over_grpc, over_http = reasons
        same = over_http == "cannot be reached"
        self._away(over_http if same else f"over HTTP {over_http}; and {over_grpc}")
        return False

    def _speak(self, peer: AnyPeer) -> None:
        if peer is not self.peer:
            self.peer.pulse.unlisten(self._hear)
            self.peer = peer
            peer.pulse.listen(self._hear)
        if self.protocol != peer.protocol:
            self.protocol = peer.protocol
            log.info("upstream speaks", model=self.route.model, upstream=peer.target, protocol=peer.protocol)

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
        with call.trace.stage("route", "client", **{"server.address": self.peer.target}) as stage:
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

    async def _find(self, *, max_age_seconds: float = 0.0) -> model_pb2.Model | None:
        """Return the worker's card of the route's model, by alias or else by served name."""
        cards = [card for card in await self.peer.models(max_age_seconds=max_age_seconds) if card.task == self.task]
        there = self.upstream.model if self.peer.protocol == "grpc" else ""  # an HttpPeer's card has the route's name
        alias, names = there or self.route.model, (there,) if there else self.route.names
        for card in (*cards, *(card for card in cards if card.served_name in names)):
            if card.name == alias or card.served_name in names:
                return card
        known = ", ".join(sorted(card.name for card in cards)) or "none"
        self._away(f"the worker does not have this model; its models for the task: {known}")
        return None

    async def _watch(self, name: str, tokenizers: Tokenizers) -> bool:
        """Follow the model's health until the worker forgets it or is lost; tell whether it was serving meanwhile."""
        served = False
        async with self._refreshed(tokenizers), contextlib.aclosing(self.peer.health(f"model/{name}")) as statuses:
            async for status in statuses:
                self._is_healthy = status == HealthCheckResponse.SERVING
                if status == HealthCheckResponse.SERVING:
                    served = await self._serve(tokenizers) or served
                elif status == HealthCheckResponse.SERVICE_UNKNOWN:
                    self._away("the worker's health does not know this model yet")
                    return served
                else:
                    await self._find_reason()
        self._away("its connection was closed")
        return served

    @contextlib.asynccontextmanager
    async def _refreshed(self, tokenizers: Tokenizers) -> AsyncIterator[None]:
        """Ask for the card of the model now and then, while it serves."""
        task = asyncio.create_task(self._refresh(tokenizers))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _refresh(self, tokenizers: Tokenizers) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            self.former = None
            try:
                if self.facts is not None:
                    await self._take_changes(self.facts, tokenizers)
                elif self._is_healthy:  # what it said a while ago could not be used
                    await self._serve(tokenizers)
            except grpc.aio.AioRpcError:
                continue  # the Watch tells if it is lost
            except (TokenizerError, PeerAway) as exc:
                self._away(str(exc))
            except Exception as exc:  # noqa: BLE001 - as in `follow`
                self._away(f"what it answers cannot be understood ({type(exc).__name__})")

    async def _take_changes(self, before: Facts, tokenizers: Tokenizers) -> None:
        card = await self._find(max_age_seconds=REFRESH_SECONDS / 2)
        if card is None or card.state != model_pb2.MODEL_STATE_READY or _lasting(card) == _lasting(before.card):
            return
        after = await self._read(card, tokenizers)
        if self.facts is before:  # the Watch may have told something newer meanwhile
            self.facts, self.former = after, before
            log.info("upstream serves another revision", model=self.route.model, upstream=self.peer.target, revision=card.revision)
            self._changed(self)

    async def _serve(self, tokenizers: Tokenizers) -> bool:
        card = await self._find()
        if card is None:
            return False
        self.facts = await self._read(card, tokenizers)
        self.reason = ""
        self.record.forget()
        self.answered_at, self.doubt = time.monotonic(), ""
        log.info("upstream serves", model=self.route.model, upstream=self.peer.target, revision=card.revision)
        self._changed(self)
        return True

    async def _read(self, card: model_pb2.Model, tokenizers: Tokenizers) -> Facts:
        """Return what requests for a card's model are read by. Raises TokenizerError, PeerAway, grpc.aio.AioRpcError."""
        if self.peer.protocol == "http":
            return await self.peer.facts()
        if card.provider == PROVIDER:  # another mesh, which has it from such a server
            return await facts_of_card(card, partial(tokenizers.of, card, self.peer))
        return Facts(card, await tokenizers.of(card, self.peer), _pair(card))

    async def _find_reason(self) -> None:
        self._away("its health says that it does not serve")
        card = await self._find()
        if card is not None and card.state_reason:
            self.reason = card.state_reason

    def _away(self, reason: str) -> None:
        served, self.facts = self.facts is not None, None
        if served:  # otherwise the stream carries other models of the worker
            self.peer.retire()
        if served or reason != self.reason:
            log.warn("upstream is away", model=self.route.model, upstream=self.peer.target, reason=reason)
        self.reason = reason
        if served:
            self._changed(self)

    def _explain(self, error: grpc.aio.AioRpcError) -> str:
        """Say why the worker cannot be asked."""
        text = error.details() or error.code().name
        unreached = error.code() is grpc.StatusCode.UNAVAILABLE and any(word in text.lower() for word in _NOT_REACHED)
        if unreached or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return "cannot be reached"
        if broken := _HANDSHAKE.search(text):
            return f"the TLS handshake failed: {broken[1]}"
        if _HTTP1 in text.lower():
            return "it does not speak quadrate.v1 over gRPC; if it is a server with an HTTP API, say type: openai"
        return f"{error.code().name}: {text[:200]}"


def _pair(card: model_pb2.Model) -> PairLayout | None:
    """Return how a card's model reads pairs. Raises TokenizerError."""
    try:
        return PairLayout.of(card.pair) if card.HasField("pair") else None
    except ValueError as exc:
        raise TokenizerError(f"its card says wrongly how it reads a query and a document together: {exc}") from exc


def _lasting(card: model_pb2.Model) -> model_pb2.Model:
    """Return a card without what changes while the next revision is loaded."""
    found = model_pb2.Model()
    found.CopyFrom(card)
    found.ClearField("state_reason")
    found.ClearField("load_progress")
    return found
