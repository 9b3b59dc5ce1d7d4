"""What follows one model at one worker, and says whether it serves.

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
from functools import partial
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from gateway.upstreams.facts import Facts, PeerAway
from gateway.upstreams.http.answers import PROVIDER
from gateway.upstreams.http.peer import facts_of_card
from gateway.upstreams.tokenizers import TokenizerError
from quadrate.pairs import PairLayout
from quadrate.v1 import model_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.upstreams.replica import AnyPeer, Replica
    from gateway.upstreams.tokenizers import Tokenizers

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0
REFRESH_SECONDS = 1.0
"""How often a model's card is asked for. Workers read ids of a former tokenizer for longer than that."""
_HTTP1 = "http1"
"""What gRPC says where somebody answers in HTTP/1: `Trying to connect an http1.x server`."""
_HANDSHAKE = re.compile(r"Tls handshake failed.*?OPENSSL_internal:([A-Z0-9_]+(: [a-z ]+)?)")
_OTHER_NAME = "hostname verification check failed"
_NOT_REACHED = ("refused", "timed out", "timeout", "dns", "unreachable", "resolution", "no route")


class Follower:
    """Keeps true what a replica says of itself, for as long as it runs."""

    def __init__(self, replica: Replica, tokenizers: Tokenizers) -> None:
        self._replica = replica
        self._tokenizers = tokenizers
        self._is_healthy = False

    async def run(self) -> None:
        """Follow the worker until the task is cancelled."""
        self._replica.peer.pulse.listen(self._hear)
        try:
            await self._follow()
        finally:
            self._replica.peer.pulse.unlisten(self._hear)

    def _hear(self) -> None:
        """Take note that the worker became silent, or is heard again."""
        replica, pulse = self._replica, self._replica.peer.pulse
        if replica.facts is not None and pulse.is_suspect and not pulse.is_stuck:
            replica.fell_silent()
        if replica.facts is not None and pulse.is_stuck:
            replica.away("it does not answer, though its connection is open")
        replica.changed()

    async def _follow(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                card = await self._find() if await self._meet() else None
                if card is not None and await self._watch(card.name):
                    pause = FIRST_PAUSE_SECONDS
            except grpc.aio.AioRpcError as exc:
                self._replica.away(_explain(exc))
            except (TokenizerError, PeerAway) as exc:
                self._replica.away(str(exc))
            except Exception as exc:  # noqa: BLE001 - whatever a worker says, it is told and asked again
                self._replica.away(f"what it answers cannot be understood ({type(exc).__name__})")
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads retries, guards nothing
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _meet(self) -> bool:
        """Find out which protocol the server speaks, if that is not sure; tell whether it answers."""
        if len(self._replica.peers) == 1:
            return True
        reasons = []
        for peer in self._replica.peers:
            try:
                await peer.models()
            except grpc.aio.AioRpcError as exc:
                reasons.append(_explain(exc))
            except (TokenizerError, PeerAway) as exc:
                reasons.append(str(exc))
            else:
                self._speak(peer)
                return True
        over_grpc, over_http = reasons
        same = over_http == "cannot be reached"
        self._replica.away(over_http if same else f"over HTTP {over_http}; and {over_grpc}")
        return False

    def _speak(self, peer: AnyPeer) -> None:
        if peer is not self._replica.peer:
            self._replica.peer.pulse.unlisten(self._hear)
            peer.pulse.listen(self._hear)
        self._replica.speaks(peer)

    async def _find(self, *, max_age_seconds: float = 0.0) -> model_pb2.Model | None:
        """Return the worker's card of the route's model, by alias or else by served name."""
        cards = [card for card in await self._replica.peer.models(max_age_seconds=max_age_seconds) if card.task == self._replica.task]
        there = self._replica.upstream.model if self._replica.peer.protocol == "grpc" else ""  # an HttpPeer's card has the route's name
        alias, names = there or self._replica.route.model, (there,) if there else self._replica.route.names
        for card in (*cards, *(card for card in cards if card.served_name in names)):
            if card.name == alias or card.served_name in names:
                return card
        known = ", ".join(sorted(card.name for card in cards)) or "none"
        self._replica.away(f"the worker does not have this model; its models for the task: {known}")
        return None

    async def _watch(self, name: str) -> bool:
        """Follow the model's health until the worker forgets it or is lost; tell whether it was serving meanwhile."""
        served = False
        async with self._refreshed(), contextlib.aclosing(self._replica.peer.health(f"model/{name}")) as statuses:
            async for status in statuses:
                self._is_healthy = status == HealthCheckResponse.SERVING
                if status == HealthCheckResponse.SERVING:
                    served = await self._serve() or served
                elif status == HealthCheckResponse.SERVICE_UNKNOWN:
                    self._replica.away("the worker's health does not know this model yet")
                    return served
                else:
                    self._replica.away("its health says that it does not serve")
                    await self._find_reason()
        self._replica.away("its connection was closed")
        return served

    @contextlib.asynccontextmanager
    async def _refreshed(self) -> AsyncIterator[None]:
        """Ask for the card of the model now and then."""
        task = asyncio.create_task(self._refresh())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            self._replica.former = None
            try:
                if self._replica.facts is not None:
                    await self._take_changes(self._replica.facts)
                elif self._is_healthy:  # what it said a while ago could not be used
                    await self._serve()
                else:
                    await self._find_reason(max_age_seconds=REFRESH_SECONDS / 2)
            except grpc.aio.AioRpcError:
                continue  # the Watch tells if it is lost
            except (TokenizerError, PeerAway) as exc:
                self._replica.away(str(exc))
            except Exception as exc:  # noqa: BLE001 - as in `_follow`
                self._replica.away(f"what it answers cannot be understood ({type(exc).__name__})")

    async def _take_changes(self, before: Facts) -> None:
        card = await self._find(max_age_seconds=REFRESH_SECONDS / 2)
        self._replica.remark = "" if card is None else card.state_reason
        self._replica.loaded = _loaded(card)
        if card is None or card.state != model_pb2.MODEL_STATE_READY or _lasting(card) == _lasting(before.card):
            return
        after = await self._read(card)
        if self._replica.facts is before:  # the Watch may have told something newer meanwhile
            self._replica.renewed(after)

    async def _serve(self) -> bool:
        card = await self._find()
        if card is None:
            return False
        self._replica.remark, self._replica.loaded = card.state_reason, _loaded(card)
        self._replica.serves(await self._read(card))
        return True

    async def _read(self, card: model_pb2.Model) -> Facts:
        """Return what requests for a card's model are read by. Raises TokenizerError, PeerAway, grpc.aio.AioRpcError."""
        if self._replica.peer.protocol == "http":
            return await self._replica.peer.facts()
        if card.provider == PROVIDER:  # another mesh, which has it from such a server
            return await facts_of_card(card, partial(self._tokenizers.of, card, self._replica.peer))
        return Facts(card, await self._tokenizers.of(card, self._replica.peer), _pair(card))

    async def _find_reason(self, *, max_age_seconds: float = 0.0) -> None:
        """Ask why the model does not serve; health tells that it does not, and never that the reason is another one now."""
        card = await self._find(max_age_seconds=max_age_seconds)
        if card is not None and card.state_reason and not self._is_healthy:
            self._replica.away(card.state_reason)
            self._replica.loaded = _loaded(card)


def _loaded(card: model_pb2.Model | None) -> float | None:
    """Return how much of a model is loaded; None if it is not being loaded."""
    return card.load_progress if card is not None and card.HasField("load_progress") else None


def _explain(error: grpc.aio.AioRpcError) -> str:
    """Say why the worker cannot be asked."""
    text = error.details() or error.code().name
    unreached = error.code() is grpc.StatusCode.UNAVAILABLE and any(word in text.lower() for word in _NOT_REACHED)
    if unreached or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "cannot be reached"
    if broken := _HANDSHAKE.search(text):
        return f"the TLS handshake failed: {broken[1]}"
    if _OTHER_NAME in text.lower():
        return "its certificate is for another name than the one that it is called by"
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
