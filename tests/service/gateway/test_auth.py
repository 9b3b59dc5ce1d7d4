"""Keys at a running gateway: what they open, and what takes effect while it runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from quadrate.errors import ConfigError
from quadrate.testing.issuer import Issuer
from quadrate.v1 import embed_pb2, model_pb2, options_pb2, rerank_pb2
from tests.service.gateway.conftest import Door, refusal, refused, routing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from quadrate.testing.worker import FakeWorker

    Metadata = Sequence[tuple[str, str]]

KEYS = """
api_keys:
  - {key: for-all, name: everyone}
  - {key: for-embed, name: indexer, tasks: [embed]}
  - {key: for-rerank, name: sorter, tasks: [rerank]}
  - {key: for-other, name: elsewhere, models: [other]}
"""
CAT = options_pb2.Input(text="cat")
EMBED = embed_pb2.EmbedRequest(model="fake", inputs=[CAT])
RERANK = rerank_pb2.RerankRequest(model="fake-rerank", query="cat", documents=[CAT])


def bearer(key: str) -> Metadata:
    """Return a key as metadata."""
    return (("authorization", f"Bearer {key}"),)


@pytest.fixture
async def keyed(open_door: Callable[..., Any], worker: FakeWorker) -> AsyncIterator[Door]:
    """A gateway that asks for keys."""
    async with open_door(routing(worker), auth=KEYS, routing_reload_interval_seconds=0) as door:
        await door.until_serving()
        yield door


async def streamed(door: Door, **headers: Any) -> Any:
    """Return the first answer on a stream. grpc.aio may tell an end that comes while it writes as an error of its own: then once more."""
    while True:
        try:
            return await door.embed.EmbedStream(iter([embed_pb2.EmbedStreamRequest(id="1", request=EMBED)]), **headers).read()
        except grpc.aio.AioRpcError as error:
            if error.details() != "Internal error from Core":
                raise


def everything(door: Door) -> dict[str, Callable[..., Any]]:
    """Return a call of every method, which takes metadata."""
    embedding, rerank = {"model": "fake", "input": "cat"}, {"model": "fake-rerank", "query": "cat", "documents": ["dog"]}
    texts = {"model": "fake", "texts": ["cat"], "input_type": "search_query", "embedding_types": ["float"]}
    return {
        "Embed": lambda **headers: door.embed.Embed(EMBED, **headers),
        "EmbedStream": lambda **headers: streamed(door, **headers),
        "Rerank": lambda **headers: door.rerank.Rerank(RERANK, **headers),
        "ListModels": lambda **headers: door.models.ListModels(model_pb2.ListModelsRequest(), **headers),
        "GetModel": lambda **headers: door.models.GetModel(model_pb2.GetModelRequest(model="fake"), **headers),
        "Tokenize": lambda **headers: door.models.Tokenize(model_pb2.TokenizeRequest(model="fake", inputs=[CAT]), **headers),
        "GetTokenizer": lambda **headers: door.models.GetTokenizer(model_pb2.GetTokenizerRequest(model="fake"), **headers).read(),
        "CreateEmbedding": lambda **headers: door.post(door.openai.CreateEmbedding, embedding, **headers),
        "EmbedV2": lambda **headers: door.post(door.cohere.EmbedV2, texts, **headers),
        "RerankV1": lambda **headers: door.post(door.cohere.RerankV1, rerank, **headers),
        "RerankV2": lambda **headers: door.post(door.cohere.RerankV2, rerank, **headers),
    }


async def test_no_method_answers_without_a_key(keyed: Door, worker: FakeWorker) -> None:
    """None, a wrong one, one in the wrong place; and the worker hears of none of it."""
    before = len(worker.calls)
    for name, call in everything(keyed).items():
        for metadata in ((), bearer("wrong"), (("authorization", "Basic Zm9yLWFsbDo="),), (("api-key", "for-all"),)):
            found = await refused(call(metadata=metadata))
            assert found.status == "UNAUTHENTICATED", (name, metadata)
            assert found.trailers["www-authenticate"] == "Bearer"
    assert len(worker.calls) == before
    for name, call in everything(keyed).items():
        assert await call(metadata=bearer("for-all")), name
        assert await call(metadata=(("x-api-key", "for-all"),)), name


async def test_a_key_opens_its_tasks_and_models_alone(keyed: Door) -> None:
    """Others are 403, and stand in no list."""
    for key, task in (("for-embed", "embed"), ("for-rerank", "rerank"), ("for-other", "")):
        for name, call in everything(keyed).items():
            of = "rerank" if name.startswith("Rerank") else "embed"
            if name == "ListModels":
                continue
            if name == "EmbedStream" and task != "embed":
                answer = await call(metadata=bearer(key))
                assert answer.error.reason == "PERMISSION_DENIED"
            elif of == task:
                assert await call(metadata=bearer(key)), (key, name)
            else:
                assert (await refused(call(metadata=bearer(key)))).status == "PERMISSION_DENIED", (key, name)
        listed = await keyed.models.ListModels(model_pb2.ListModelsRequest(), metadata=bearer(key))
        assert [model.name for model in listed.models] == {"embed": ["fake"], "rerank": ["fake-rerank"], "": []}[task]


async def test_a_key_that_may_not_is_told_what(keyed: Door) -> None:
    """The task, or the model."""
    assert "may not rerank" in (await refused(keyed.rerank.Rerank(RERANK, metadata=bearer("for-embed")))).message
    found = await refused(keyed.embed.Embed(EMBED, metadata=bearer("for-other")))
    assert "may not call the model 'fake'" in found.message
    assert found.param == "model"


async def test_keys_come_and_go_while_the_gateway_runs(keyed: Door) -> None:
    """An edited file takes effect at once for new calls, and for what an open stream still sends."""
    path = keyed.gateway.settings.auth_path
    stream = keyed.embed.EmbedStream(metadata=bearer("for-embed"))
    item = embed_pb2.EmbedStreamRequest(id="1", request=EMBED)
    await stream.write(item)
    assert (await stream.read()).response.embeddings
    path.write_text("api_keys: [{key: new-key, name: new}]")
    await keyed.gateway.reload.look(is_asked=True)
    await keyed.embed.Embed(EMBED, metadata=bearer("new-key"))
    assert (await refused(keyed.embed.Embed(EMBED, metadata=bearer("for-embed")))).reason == "INVALID_API_KEY"
    await stream.write(item)
    assert (await stream.read()).error.reason == "INVALID_API_KEY"
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


async def test_a_file_that_is_wrong_opens_and_closes_nothing(keyed: Door) -> None:
    """Keys that worked work on; a file of signing keys that is missing is such a mistake."""
    path = keyed.gateway.settings.auth_path
    for text in ("api_keys: [''", "api_keys: [{name: a}]", "jwt: {issuer: i, audience: a, jwks_path: /nowhere/jwks.json}"):
        path.write_text(text)
        await keyed.gateway.reload.look(is_asked=True)
        await keyed.embed.Embed(EMBED, metadata=bearer("for-all"))


async def test_tokens_open_what_their_claims_say(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """From the issuer's first fetch to a rotated key, over the wire."""
    async with Issuer() as issuer:
        auth = (
            f"jwt: {{issuer: '{issuer.name}', audience: {issuer.audience}, jwks_url: '{issuer.jwks_url}', tasks_claim: scope, "
            "models_claim: models}"
        )
        async with open_door(routing(worker), auth=auth) as door:
            await door.until_serving()
            token = issuer.token("alice", scope="embed", models=["fake", "fake-rerank"])
            await door.embed.Embed(EMBED, metadata=bearer(token))
            assert worker.calls[-1].standing.tenant == "jwt%3Aalice"
            assert (await refused(door.rerank.Rerank(RERANK, metadata=bearer(token)))).status == "PERMISSION_DENIED"
            found = await refused(door.embed.Embed(EMBED, metadata=bearer(issuer.token("alice"))))
            assert (found.status, "names nothing" in found.message) == ("PERMISSION_DENIED", True)
            found = await refused(door.embed.Embed(EMBED, metadata=bearer(issuer.token(exp=1))))
            assert (found.reason, found.trailers["www-authenticate"]) == ("TOKEN_EXPIRED", 'Bearer error="invalid_token"')


async def test_an_issuer_that_is_away_at_the_start_is_waited_for(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """The gateway starts, keys work, and tokens are told to come again."""
    async with Issuer() as issuer:
        issuer.status = 503
        auth = f"{{api_keys: [a-key], jwt: {{issuer: '{issuer.name}', audience: {issuer.audience}, jwks_url: '{issuer.jwks_url}'}}}}"
        async with open_door(routing(worker), auth=auth) as door:
            await door.until_serving()
            await door.embed.Embed(EMBED, metadata=bearer("a-key"))
            found = await refused(door.embed.Embed(EMBED, metadata=bearer(issuer.token())))
            assert (found.status, found.trailers["retry-after"]) == ("UNAVAILABLE", "5")


@pytest.mark.parametrize(
    ("word", "without", "with_key"), [("keyed", False, True), ("open", True, True), ("true", True, True), ("off", False, False)]
)
async def test_reflection_asks_whom_it_is_told_to(
    word: str, *, without: bool, with_key: bool, open_door: Callable[..., Any], worker: FakeWorker
) -> None:
    """ROUTER_REFLECTION: whoever may call, everybody, nobody."""
    async with open_door(routing(worker), auth=KEYS, reflection=word) as door:
        stub = reflection_pb2_grpc.ServerReflectionStub(door.channel)
        for metadata, allowed in (((), without), (bearer("wrong"), without), (bearer("for-all"), with_key)):
            questions = [reflection_pb2.ServerReflectionRequest(list_services="")] if word != "off" else []
            call = stub.ServerReflectionInfo(iter(questions), metadata=metadata)
            try:
                answer = await asyncio.wait_for(call.read(), 10)
            except grpc.aio.AioRpcError as exc:
                found = refusal(exc)
                assert not allowed
                assert found.status == ("UNIMPLEMENTED" if word == "off" else "UNAUTHENTICATED")
                assert word == "off" or found.trailers["x-request-id"]
            else:
                assert allowed
                assert "quadrate.v1.EmbedService" in {service.name for service in answer.list_services_response.service}


async def test_a_gateway_with_a_bad_file_does_not_start(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """Closed or open by mistake would both be worse."""
    with pytest.raises(ConfigError, match="cannot stand beside api_keys"):
        async with open_door(
            routing(worker), auth="{allow_anonymous_without_api_keys: true, accept_any_key_as_anonymous: true, api_keys: [a]}"
        ):
            pass
