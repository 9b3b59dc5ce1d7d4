"""Workers that are older, slower or wrong: the gateway leaves them, says why, and goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp

from quadrate.testing import worker as fakes
from quadrate.testing.worker import FakeWorker, fake_card
from quadrate.v1 import embed_pb2, model_pb2, options_pb2, rerank_pb2
from tests.service.gateway.conftest import Door, refused, routing

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def reranker() -> model_pb2.Model:
    """Return the card of a second model, so that the worker is like any other."""
    return fake_card("fake-rerank", model_pb2.TASK_RERANK)


def request(*texts: str, **fields: Any) -> embed_pb2.EmbedRequest:
    """Return a request."""
    return embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text=text) for text in texts], **fields)


def reasons(door: Door) -> set[str]:
    """Return why upstreams of the embedding model do not serve."""
    return {one["reason"] for one in door.gateway.readiness.report()[1]["upstreams"] if one["name"].startswith("fake@")}


async def test_a_tokenizer_that_is_not_the_cards_is_not_used(open_door: Callable[..., Any]) -> None:
    """Counts by another tokenizer would be wrong without a sign of it."""
    card = fake_card("fake", tokenizer_sha256="0" * 64)
    async with FakeWorker(card, reranker()) as worker, open_door(routing(worker)) as door:
        await door.until(lambda: any("its card says 000000000000" in reason for reason in reasons(door)))
        assert (await refused(door.embed.Embed(request("cat")))).status == "UNAVAILABLE"


async def test_a_tokenizer_that_cannot_be_read_is_told(open_door: Callable[..., Any]) -> None:
    """The reason stands in readiness."""
    worker = FakeWorker(fake_card("fake"), reranker(), tokenizer=b"{}")
    async with worker, open_door(routing(worker)) as door:
        await door.until(lambda: any(reason.startswith("its tokenizer cannot be read") for reason in reasons(door)))


async def test_a_model_whose_health_is_not_known_yet_is_asked_again(open_door: Callable[..., Any]) -> None:
    """A worker lists a model before its health does."""
    async with FakeWorker(fake_card("fake"), reranker()) as worker:
        late = fake_card("late")
        late.tokenizer_sha256 = worker.cards["fake"].tokenizer_sha256
        worker.cards["late"] = late
        async with open_door(f"embeddings: [{{model: late, upstream: {{type: grpc, url: 'grpc://{worker.target}'}}}}]") as door:
            await door.until(lambda: "does not know this model yet" in door.gateway.readiness.report()[1]["upstreams"][0]["reason"])
            worker.health.set("model/late", serving=True)
            await door.until_serving()


async def test_an_answer_of_the_wrong_length_is_a_fault(open_door: Callable[..., Any]) -> None:
    """Vectors are never handed to the wrong inputs."""
    async with FakeWorker() as worker, open_door(routing(worker)) as door:
        await door.until_serving()

        async def drop_one(received: Any, _: Any) -> None:
            del (received.inputs if isinstance(received, embed_pb2.EmbedRequest) else received.documents)[-1:]

        worker.before = drop_one
        assert (await refused(door.embed.Embed(request("cat", "dog")))).status == "INTERNAL"
        documents = [options_pb2.Input(text=text) for text in ("cat", "dog")]
        message = rerank_pb2.RerankRequest(model="fake-rerank", query="cat", documents=documents)
        assert (await refused(door.rerank.Rerank(message))).status == "INTERNAL"


async def test_a_worker_without_the_relay_is_called_directly(open_door: Callable[..., Any]) -> None:
    """An older worker serves EmbedService alone."""
    async with FakeWorker(with_relay=False) as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        for _ in range(3):
            await door.embed.Embed(request("cat"), timeout=5)
        assert {call.method for call in worker.calls} == {"quadrate.v1.EmbedService/Embed"}
        assert len(worker.received) == 3


async def test_many_inputs_go_by_a_call_of_their_own(open_door: Callable[..., Any]) -> None:
    """As do wishes about the vectors' length."""
    async with FakeWorker() as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        answer = await door.embed.Embed(request(*["cat"] * 500, normalize=False))
        assert [one.index for one in answer.embeddings] == list(range(500))
        assert worker.received[0].HasField("normalize")
        await door.embed.Embed(request("cat", normalize=True))
        assert not worker.received[1].HasField("normalize"), "as the card has it"


async def test_a_peer_whose_name_is_unknown_is_left_out_of_the_metrics(open_door: Callable[..., Any]) -> None:
    """The page has this gateway's own series."""
    async with FakeWorker() as worker, open_door(routing(worker), metrics_peers="no-such-host.invalid:1") as door:
        await door.until_serving()
        async with aiohttp.ClientSession() as session, session.get(f"{door.http}/metrics/mesh") as answer:
            assert answer.status == 200
            assert f'gateway="127.0.0.1:{door.gateway.server.http_port}"' in await answer.text()


async def test_a_worker_that_speaks_nonsense_is_asked_again(open_door: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reason is told, and once it speaks sense it serves."""
    sane = fakes._Models.list_models
    answers: list[Any] = []

    async def nonsense_at_first(*given: Any) -> Any:
        answers.append(given)
        return b"\xff\xff" if len(answers) <= 2 else await sane(*given)

    monkeypatch.setattr(fakes._Models, "list_models", nonsense_at_first)
    async with FakeWorker() as worker, open_door(routing(worker)) as door:
        await door.until(lambda: any("cannot be understood" in reason for reason in reasons(door)))
        await door.until_serving()
