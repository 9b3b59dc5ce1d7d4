"""A server over HTTP that is in doubt while it answers, and one that is asked again after it answered wrongly."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson
import pytest

from gateway.upstreams.http import peer as http_peer
from gateway.upstreams.http.dialect import Dialect
from gateway.upstreams.http.exchange import Reply
from gateway.upstreams.http.meeting import Met, Refused
from gateway.upstreams.http.options import OverHttp
from gateway.upstreams.http.peer import HttpPeer
from gateway.upstreams.http.tokenizers import NamedTokenizers
from gateway.upstreams.peers import Lost
from quadrate.config.routing import EmbeddingRoute
from quadrate.errors import Unavailable, UpstreamFailed
from quadrate.v1 import embed_pb2, model_pb2, options_pb2

REQUEST = embed_pb2.EmbedRequest(inputs=[options_pb2.Input(text="cat")])


def made_peer() -> HttpPeer:
    """Return a peer that has not met its server."""
    route = EmbeddingRoute.model_validate({"model": "fake", "upstream": {"type": "openai", "url": "http://127.0.0.1:9"}})
    upstream, task = route.groups[0], model_pb2.TASK_EMBED
    target = upstream.targets[0]
    return HttpPeer(route=route, task=task, upstream=upstream, target=target, tokenizers=NamedTokenizers(), options=OverHttp())


async def test_an_answer_counts_though_the_server_is_asked_anew_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request may have failed, and what is known of the server be forgotten until it has answered again."""
    peer = made_peer()
    peer._dialect, peer._width, peer._met = Dialect("/v1/embeddings"), 2, Met(Dialect("/v1/embeddings"), 2, is_unit=True)
    await peer.facts()

    async def post(*_: Any, **__: Any) -> Reply:
        if peer._facts is None:
            raise Lost("It is away.")
        peer._facts = peer._met = None
        return Reply(200, orjson.dumps({"data": [{"index": 0, "embedding": [0.0, 1.0]}]}))

    monkeypatch.setattr(peer._exchange, "post", post)
    answer = await peer.embed(REQUEST, timeout=None, metadata=())
    assert list(answer.embeddings[0].values) == [0.0, 1.0]


async def test_a_server_that_nothing_is_known_of_is_not_asked() -> None:
    """Another replica may be."""
    with pytest.raises(Unavailable):
        await made_peer().embed(REQUEST, timeout=None, metadata=())


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """Return what a test says."""
        return self.now


class Server:
    """What a peer meets: it answers wrongly while it is told to, and counts how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: Unavailable | None = UpstreamFailed("It answers nonsense.")
        self.asked = 0
        monkeypatch.setattr(http_peer, "meet", self._meet)

    async def _meet(self, *_: Any, **__: Any) -> Met:
        self.asked += 1
        if self.told is not None:
            raise Refused(self.told.message, self.told)
        return Met(Dialect("/v1/embeddings"), 2, is_unit=True)


async def seconds_until_asked(peer: HttpPeer, server: Server, clock: Clock) -> float:
    """Ask a peer for its facts four times a second until its server is asked."""
    began, before = clock.now, server.asked
    while server.asked == before:
        with contextlib.suppress(Refused):
            await peer.facts()
        clock.now += 0.25
    return clock.now - 0.25 - began


async def test_a_server_that_answered_wrongly_is_asked_again_soon_and_less_often_if_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad answer may be of the moment; who answers so for hours may count what it is asked. A right answer begins it anew."""
    clock = Clock()
    monkeypatch.setattr(http_peer, "time", clock)
    peer, server = made_peer(), Server(monkeypatch)
    waits = [await seconds_until_asked(peer, server, clock) for _ in range(7)]
    assert waits[0] == 0.0
    assert [round(wait + 0.25, 2) for wait in waits[1:]] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    clock.now, server.told = clock.now + 5.0, None
    await peer.facts()
    peer._facts = peer._met = None
    server.told = UpstreamFailed("It answers nonsense.")
    assert await seconds_until_asked(peer, server, clock) == 0.0
    assert await seconds_until_asked(peer, server, clock) + 0.25 == 0.5


@pytest.mark.parametrize(("named", "waited"), [(2.0, 2.0), (60.0, 5.0)])
async def test_a_server_that_says_when_to_come_back_is_not_asked_before(
    monkeypatch: pytest.MonkeyPatch, named: float, waited: float
) -> None:
    """Up to the longest time for which servers are left alone."""
    clock = Clock()
    monkeypatch.setattr(http_peer, "time", clock)
    peer, server = made_peer(), Server(monkeypatch)
    server.told = Unavailable("It has no room.", retry_after_seconds=named)
    await seconds_until_asked(peer, server, clock)
    assert await seconds_until_asked(peer, server, clock) + 0.25 == waited
