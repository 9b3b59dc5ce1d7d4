"""A server over HTTP that is in doubt while it answers."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.upstreams.http.dialect import Dialect
from gateway.upstreams.http.exchange import Reply
from gateway.upstreams.http.meeting import Met
from gateway.upstreams.http.options import OverHttp
from gateway.upstreams.http.peer import HttpPeer
from gateway.upstreams.http.tokenizers import NamedTokenizers
from gateway.upstreams.peers import Lost
from quadrate.config.routing import EmbeddingRoute
from quadrate.errors import Unavailable
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
