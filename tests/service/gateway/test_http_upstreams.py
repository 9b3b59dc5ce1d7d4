"""Models of servers that speak HTTP: what they are sent, what is made of their answers, and what of answers that are none."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gateway import canary
from gateway.upstreams.http import peer
from quadrate.testing.http_upstream import HttpUpstream
from quadrate.testing.ports import free_port
from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.testing.worker import WIDTH, FakeWorker, fake_card, fake_vector
from quadrate.tokenizer import TextTokenizer
from quadrate.v1 import embed_pb2, model_pb2, options_pb2, rerank_pb2
from tests.service.gateway.conftest import Door, refused, routing
from tests.service.gateway.test_routing import readiness

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

READER = TextTokenizer.from_json(letter_tokenizer(), max_tokens=512)
CONTENT = ("not_json", "not_a_number", "infinite", "null", "text", "few", "many", "twice", "outside")
WRONG = (*CONTENT, "page", "redirect", "encoded", "not_http")
MAT = "the cat sat on the mat "
"""Six tokens of the double's tokenizer."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let servers that refused be asked again at once."""
    monkeypatch.setattr(peer, "REFUSED_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(peer, "PAUSE_SECONDS", 0.1)


def over_http(upstream: HttpUpstream, *, route: str = "", entry: str = "", kind: str = "openai") -> str:
    """Return a routing file for one embedding model and one reranker at a server."""
    where = f"{{type: {kind}, url: '{upstream.url}'{entry}}}"
    return (
        f"embeddings: [{{model: far, served_name: fake/far{route}, upstream: {where}}}]\n"
        f"rerank: [{{model: far-rerank{route}, upstream: {where}}}]\n"
    )


def vector(text: str) -> np.ndarray[Any, Any]:
    """Return the vector that the double gives for a text."""
    return fake_vector(READER.encode([text])[0])


def texts(*contents: str, **more: Any) -> embed_pb2.EmbedRequest:
    """Return a native request."""
    return embed_pb2.EmbedRequest(model="far", inputs=[options_pb2.Input(text=text) for text in contents], **more)


def reasons(door: Door) -> set[str]:
    """Return why upstreams do not serve."""
    return {one["reason"] for one in door.gateway.readiness.report()[1]["upstreams"]}


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """Return a route's `tokenizer`, the double's own."""
    (tmp_path / "tokenizer.json").write_bytes(letter_tokenizer())
    return f", tokenizer: '{tmp_path}', max_tokens: 16"


@pytest.mark.parametrize("api", ["v1", "root", "tei"])
async def test_texts_go_out_and_vectors_come_back(open_door: Callable[..., Any], api: Any) -> None:
    """By each of the APIs, on every door, in the order of the texts; the paths are found out."""
    async with HttpUpstream(api=api) as upstream, open_door(over_http(upstream)) as door:
        await door.until_serving()
        answer = await door.post(door.openai.CreateEmbedding, {"model": "far", "input": ["cat", "the dog"]})
        assert np.allclose([item["embedding"] for item in answer["data"]], [vector("cat"), vector("the dog")])
        assert upstream.received[-1]["input"] == ["cat", "the dog"]
        native = await door.embed.Embed(texts("cat"))
        assert np.allclose(native.embeddings[0].values, vector("cat"))
        assert (native.provenance.provider, native.provenance.normalized) == ("HTTP", True)
        ranked = await door.post(door.cohere.RerankV2, {"model": "far-rerank", "query": "cat", "documents": ["dog", "cat"], "top_n": 1})
        assert [result["index"] for result in ranked["results"]] == [1]
        assert ranked["results"][0]["relevance_score"] == pytest.approx(1.0)
        status, report = await readiness(door)
        assert (status, report["status"]) == (200, "ok")
        assert {(one["type"], one["protocol"]) for one in report["upstreams"]} == {("openai", "http")}


async def test_the_upstream_s_own_count_corrects_the_charge(open_door: Callable[..., Any]) -> None:
    """Without a tokenizer an upper bound is charged first; the answer tells what the server read."""
    async with HttpUpstream() as upstream, open_door(over_http(upstream)) as door:
        await door.until_serving()
        answer = await door.embed.Embed(texts("cat", "the dog"))
        assert answer.usage.tokens == sum(READER.count(ids) for ids in READER.encode(["cat", "the dog"]))
        assert not answer.usage.HasField("estimated")


async def test_a_count_that_nobody_tells_is_marked_as_estimated(open_door: Callable[..., Any]) -> None:
    """It is the bytes of each text and eight more."""
    async with HttpUpstream(tells_usage=False) as upstream, open_door(over_http(upstream)) as door:
        await door.until_serving()
        answer = await door.embed.Embed(texts("cat", "the dog"))
        assert (answer.usage.tokens, answer.usage.estimated) == (3 + 8 + 7 + 8, True)
        long = await door.embed.Embed(texts("cat " * 5_000))
        assert long.usage.tokens == 20_000 + 8
        documents = [options_pb2.Input(text="dog")]
        ranked = await door.rerank.Rerank(rerank_pb2.RerankRequest(model="far-rerank", query="cat", documents=documents))
        assert ranked.usage.estimated
        assert ranked.usage.tokens >= len("cat") + len("dog")
        assert not ranked.results[0].HasField("usage")
        told = await door.post(door.openai.CreateEmbedding, {"model": "far", "input": "cat"})
        assert told["usage"] == {"prompt_tokens": 11, "total_tokens": 11, "tokens_cut": 0, "estimated": True}


async def test_a_named_tokenizer_counts_refuses_and_cuts(open_door: Callable[..., Any], tokenizer: str) -> None:
    """As a worker's would: exact counts, the limit by name, and texts that are cut where a token ends, behind the prompt."""
    route = f'{tokenizer}, prompts: {{query: "query: "}}'.replace("'}", "'}")
    file = over_http_embeddings_alone(route)
    async with HttpUpstream(tells_usage=False) as upstream, open_door(file(upstream)) as door:
        await door.until_serving()
        answer = await door.embed.Embed(texts("the cat sat", role=options_pb2.QUERY))
        assert upstream.received[-1]["input"] == ["query: the cat sat"]
        assert answer.usage.tokens == answer.embeddings[0].usage.tokens == 5 + 2
        assert not answer.usage.HasField("estimated")

        long = MAT * 4
        refusal = await refused(door.embed.Embed(texts(long)))
        assert (refusal.status, refusal.reason) == ("INVALID_ARGUMENT", "CONTEXT_LENGTH_EXCEEDED")
        cut = await door.embed.Embed(texts(long, truncation=options_pb2.RIGHT))
        assert upstream.received[-1]["input"] == [MAT * 2 + "the cat"]
        assert (cut.usage.tokens, cut.usage.tokens_cut) == (16, 10)
        await door.embed.Embed(texts(long, truncation=options_pb2.LEFT, role=options_pb2.QUERY))
        assert upstream.received[-1]["input"] == ["query: " + MAT * 2]

        read = await door.models.Tokenize(model_pb2.TokenizeRequest(model="far", inputs=[options_pb2.Input(text="cat")]))
        assert list(read.tokenizations[0].ids) == [2, *READER.encode(["cat"])[0], 3]


def over_http_embeddings_alone(route: str) -> Callable[[HttpUpstream], str]:
    """Return what makes a routing file of one embedding model."""
    return lambda upstream: f"embeddings: [{{model: far{route}, upstream: {{type: openai, url: '{upstream.url}'}}}}]\n"


async def test_pairs_are_counted_as_a_cross_encoder_reads_them(open_door: Callable[..., Any], tokenizer: str) -> None:
    """The query with each document, and what the tokenizer puts around the two."""
    async with HttpUpstream(tells_usage=False) as upstream, open_door(over_http(upstream, route=tokenizer)) as door:
        await door.until_serving()
        documents = [options_pb2.Input(text=text) for text in ("dog", "the mat")]
        answer = await door.rerank.Rerank(rerank_pb2.RerankRequest(model="far-rerank", query="cat", documents=documents))
        assert answer.usage.tokens == (1 + 1 + 3) + (1 + 2 + 3)
        long = options_pb2.Input(text=MAT * 4)
        message = rerank_pb2.RerankRequest(model="far-rerank", query="cat", documents=[long], truncation=options_pb2.RIGHT)
        answer = await door.rerank.Rerank(message)
        assert upstream.received[-1]["documents"] == [(MAT * 2).strip()]
        assert answer.usage.tokens_cut == 24 - 12


async def test_what_needs_a_count_is_refused_without_a_tokenizer(open_door: Callable[..., Any]) -> None:
    """Limits in tokens, tokenising and the tokenizer itself: nobody here could keep to them."""
    async with HttpUpstream() as upstream, open_door(over_http(upstream)) as door:
        await door.until_serving()
        message = rerank_pb2.RerankRequest(model="far-rerank", query="cat", documents=[options_pb2.Input(text="dog")], max_tokens_per_doc=5)
        assert (await refused(door.rerank.Rerank(message))).param == "max_tokens_per_doc"
        body = {"model": "far", "texts": ["cat"], "input_type": "search_query", "embedding_types": ["float"], "max_tokens": 5}
        assert (await refused(door.post(door.cohere.EmbedV2, body))).param == "max_tokens"
        told = await refused(door.models.Tokenize(model_pb2.TokenizeRequest(model="far", inputs=[options_pb2.Input(text="cat")])))
        assert told.status == "UNIMPLEMENTED"
        scores = rerank_pb2.RerankRequest(model="far-rerank", query="cat", documents=[options_pb2.Input(text="dog")], raw_scores=True)
        assert (await refused(door.rerank.Rerank(scores))).param == "raw_scores"


async def test_ids_are_sent_only_where_that_was_allowed(open_door: Callable[..., Any]) -> None:
    """What ids mean differs between servers, so that a wrong vector would be the answer."""
    ids = embed_pb2.EmbedRequest(model="far", inputs=[options_pb2.Input(token_ids=options_pb2.TokenIds(ids=[5, 6]))])
    async with HttpUpstream() as upstream:
        async with open_door(over_http(upstream)) as door:
            await door.until_serving()
            assert "Send texts" in (await refused(door.embed.Embed(ids))).message
        async with open_door(over_http(upstream, entry=", takes_token_ids: true")) as door:
            await door.until_serving()
            await door.embed.Embed(ids)
            assert upstream.received[-1]["input"] == [[5, 6]]
            ids.inputs.add(text="cat")
            assert "has both" in (await refused(door.embed.Embed(ids))).message


async def test_forms_are_made_here(open_door: Callable[..., Any]) -> None:
    """Cuts, lengths and value types are what a worker makes of the same vector."""
    async with HttpUpstream() as upstream, open_door(over_http_embeddings_alone(", matryoshka_dimensions: [4]")(upstream)) as door:
        await door.until_serving()
        found = await door.embed.Embed(texts("cat", dimensions=4))
        expected = vector("cat")[:4] / np.linalg.norm(vector("cat")[:4])
        assert np.allclose(found.embeddings[0].values, expected)
        packed = await door.embed.Embed(texts("cat", value_type=options_pb2.UBINARY))
        assert packed.embeddings[0].packed_values == np.packbits(vector("cat") > 0).tobytes()
        assert (await refused(door.embed.Embed(texts("cat", outputs=[options_pb2.SPARSE])))).param == "outputs"
        assert (await refused(door.embed.Embed(texts("cat", dimensions=5)))).param == "dimensions"


async def test_many_texts_go_in_several_requests(open_door: Callable[..., Any]) -> None:
    """No more at a time than the server takes, and back in order; tokens are summed."""
    words = [f"cat {number}" for number in range(11)]
    async with HttpUpstream(max_inputs=3) as upstream, open_door(over_http(upstream, entry=", max_inputs: 3")) as door:
        await door.until_serving()
        before = len(upstream.received)
        answer = await door.embed.Embed(texts(*words))
        assert np.allclose([item.values for item in answer.embeddings], [vector(word) for word in words])
        assert sorted(len(body["input"]) for body in upstream.received[before:]) == [2, 3, 3, 3]
        assert answer.usage.tokens == sum(READER.count(ids) for ids in READER.encode(words))


async def test_key_and_name_go_along_and_nothing_else(open_door: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream's key and its name of the model; the caller's own key, name and baggage stay here."""
    monkeypatch.setenv("FAR_KEY", "of-the-upstream")
    entry = ", api_key_env: FAR_KEY, model: text-embed-1"
    auth = "api_keys: [{key: of-the-caller-1, name: somebody}]"
    async with HttpUpstream(api_key="of-the-upstream", models=["text-embed-1"]) as upstream:
        async with open_door(over_http(upstream, entry=entry), auth=auth) as door:
            await door.until_serving()
            metadata = (("authorization", "Bearer of-the-caller-1"), ("x-request-id", "my-id"), ("baggage", "who=me"))
            await door.embed.Embed(texts("cat"), metadata=metadata)
        sent = upstream.seen[-1]
        assert (sent["authorization"], upstream.received[-1]["model"]) == ("Bearer of-the-upstream", "text-embed-1")
        assert sent["x-request-id"] == "my-id"
        assert "traceparent" in sent
        assert not any(word in repr(sent) for word in ("of-the-caller-1", "somebody", "who=me"))


@pytest.mark.parametrize("fault", [*WRONG, "narrow", "ragged"])
async def test_an_answer_that_is_none_is_a_502(open_door: Callable[..., Any], fault: Any) -> None:
    """Whatever is wrong, nothing of it reaches a caller, and a good answer is taken again afterwards."""
    async with HttpUpstream() as upstream, open_door(over_http(upstream)) as door:
        await door.until_serving()
        upstream.fault = fault
        refusal = await refused(door.embed.Embed(texts("cat", "dog")))
        assert (refusal.status, refusal.reason, refusal.body["code"]) == ("UNAVAILABLE", "UPSTREAM_ERROR", "upstream_error")
        upstream.fault = None
        await door.until_serving()
        assert np.allclose((await door.embed.Embed(texts("cat"))).embeddings[0].values, vector("cat"))


@pytest.mark.parametrize(
    ("change", "code", "expected"),
    [
        ({"fault": "page"}, "upstream_error", "is a page, not JSON"),
        ({"width": 2 * WIDTH}, "upstream_error", f"holds vectors of {2 * WIDTH} values where {WIDTH} are due"),
        ({"status": 401}, "upstream_error", "refused the gateway's key (HTTP 401)"),
        ({"status": 500}, "upstream_error", "failed (HTTP 500)"),
        ({"status": 503}, "unavailable", "cannot serve it now; try again later (HTTP 503)"),
    ],
)
async def test_what_is_wrong_with_a_server_is_told_as_long_as_it_lasts(
    open_door: Callable[..., Any], change: dict[str, Any], code: str, expected: str
) -> None:
    """The first caller hears of it by a request, those that follow by what the gateway knows, while there is nobody else to ask."""
    async with HttpUpstream() as upstream, open_door(over_http_embeddings_alone("")(upstream)) as door:
        await door.until_serving()
        before = {name: getattr(upstream, name) for name in change}
        for name, value in change.items():
            setattr(upstream, name, value)
        first = await refused(door.embed.Embed(texts("cat")))
        await door.until(lambda: not any(pool.serving for pool in door.gateway.routes.pools))
        asked = len(upstream.received)
        later = [await refused(door.embed.Embed(texts("cat"))) for _ in range(3)]
        assert [one.body["code"] for one in (first, *later)] == [code] * 4
        assert all(expected in one.message for one in (first, *later)), [one.message for one in later]
        assert not any(body["input"] == ["cat"] for body in upstream.received[asked:])
        for name, value in before.items():
            setattr(upstream, name, value)
        await door.until_serving()


@pytest.mark.parametrize("kind", ["openai", "infinity"])
async def test_a_server_that_never_took_our_key_is_a_502_that_nobody_tries_again(
    open_door: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """From the first request on, on every door; the key is not told, and the edge is told that another gateway would hear the same."""
    monkeypatch.setenv("QWEN3_API_KEY", "not-the-one")
    upstream = HttpUpstream(api_key="another", port=free_port())
    file = f"embeddings: [{{model: qwen3-far, upstream: {{type: {kind}, url: '{upstream.url}'}}}}]\n"
    async with upstream, open_door(file) as door:
        await door.until(lambda: any("401" in reason for reason in reasons(door)))
        message = embed_pb2.EmbedRequest(model="qwen3-far", inputs=[options_pb2.Input(text="cat")])
        native = await refused(door.embed.Embed(message))
        openai = await refused(door.post(door.openai.CreateEmbedding, {"model": "qwen3-far", "input": "cat"}))
    for refusal in (native, openai):
        assert refusal.body["code"] == "upstream_error"
        assert "refused the gateway's key (HTTP 401)" in refusal.message
        assert refusal.trailers["x-quadrate-http-status"] == "502"
        assert refusal.trailers["x-envoy-ratelimited"] == "true"
        assert "not-the-one" not in repr(refusal)


async def test_a_server_that_went_altogether_is_unavailable(open_door: Callable[..., Any]) -> None:
    """What it answered before counts no more: there is nobody to ask, which may pass."""
    async with contextlib.AsyncExitStack() as ends:
        upstream = await ends.enter_async_context(HttpUpstream())
        async with open_door(over_http_embeddings_alone("")(upstream)) as door:
            await door.until_serving()
            upstream.fault = "page"
            assert (await refused(door.embed.Embed(texts("cat")))).body["code"] == "upstream_error"
            await ends.aclose()
            await door.until(lambda: reasons(door) == {"cannot be reached"})
            assert (await refused(door.embed.Embed(texts("cat")))).body["code"] == "unavailable"


@pytest.mark.parametrize("fault", WRONG)
async def test_scores_that_are_none_are_a_502_too(open_door: Callable[..., Any], fault: Any) -> None:
    """Likewise for reranking."""
    message = rerank_pb2.RerankRequest(model="far-rerank", query="cat", documents=[options_pb2.Input(text=text) for text in ("cat", "dog")])
    async with HttpUpstream() as upstream, open_door(over_http(upstream)) as door:
        await door.until_serving()
        upstream.fault = fault
        assert (await refused(door.rerank.Rerank(message))).reason == "UPSTREAM_ERROR"


async def test_an_answer_without_an_end_is_a_502(open_door: Callable[..., Any]) -> None:
    """More bytes than any answer has are not read."""
    async with HttpUpstream() as upstream, open_door(over_http(upstream)) as door:
        await door.until_serving()
        upstream.fault = "endless"
        assert "more than 67108864 bytes" in (await refused(door.embed.Embed(texts("cat")))).message


async def test_a_slow_body_is_a_504_by_the_route_s_time(open_door: Callable[..., Any]) -> None:
    """The first byte does not count as an answer; the server sees that nobody waits any more."""
    async with HttpUpstream() as upstream, open_door(over_http(upstream, entry=", timeout_ms: 300")) as door:
        await door.until_serving()
        upstream.fault = "slow"
        assert (await refused(door.embed.Embed(texts("cat")))).status == "DEADLINE_EXCEEDED"
        await door.until(lambda: upstream.gone > 0)


async def test_who_leaves_is_not_worked_for(open_door: Callable[..., Any]) -> None:
    """A cancelled call closes the connection to the server."""
    async with HttpUpstream() as upstream, open_door(over_http(upstream)) as door:
        await door.until_serving()
        upstream.fault = "slow"
        before = len(upstream.received)
        call = door.embed.Embed(texts("cat"))
        await door.until(lambda: len(upstream.received) > before)
        call.cancel()
        await door.until(lambda: upstream.gone > 0)


@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [
        (400, "INVALID_ARGUMENT", "INVALID_VALUE"),
        (401, "UNAVAILABLE", "UPSTREAM_ERROR"),
        (404, "UNAVAILABLE", "UPSTREAM_ERROR"),
        (413, "INVALID_ARGUMENT", "INVALID_VALUE"),
        (422, "INVALID_ARGUMENT", "INVALID_VALUE"),
        (429, "RESOURCE_EXHAUSTED", "OVERLOADED"),
        (500, "UNAVAILABLE", "UPSTREAM_ERROR"),
        (502, "UNAVAILABLE", "UPSTREAM_ERROR"),
        (503, "UNAVAILABLE", "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
    ],
)
async def test_a_refusal_of_the_server_keeps_its_meaning_and_loses_its_words(
    open_door: Callable[..., Any], status: int, expected: str, reason: str
) -> None:
    """Its words may repeat the caller's text."""
    async with HttpUpstream() as upstream, open_door(over_http(upstream)) as door:
        await door.until_serving()
        upstream.status, upstream.headers = status, {"retry-after": "3"}
        refusal = await refused(door.embed.Embed(texts("a secret text")))
        assert (refusal.status, refusal.reason) == (expected, reason)
        assert "secret" not in repr(refusal)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"status": 401}, "it answers HTTP 401 at /v1/embeddings: is the key that api_key_env names the right one?"),
        ({"status": 503}, "it answers HTTP 503 at /v1/embeddings: told so by a test"),
        ({"fault": "page"}, "its answer at /v1/embeddings is a page, not JSON"),
        ({"fault": "not_http"}, "did not answer in HTTP"),
        ({"width": 2 * WIDTH}, f"its vectors have {2 * WIDTH} values, and had, or are to have, {WIDTH}"),
    ],
)
async def test_a_server_that_cannot_be_used_is_unavailable_with_the_reason(
    open_door: Callable[..., Any], change: dict[str, Any], expected: str
) -> None:
    """It is told in readiness, and the model serves as soon as the server does."""
    async with HttpUpstream() as upstream, open_door(over_http_embeddings_alone(f", dimensions: {WIDTH}")(upstream)) as door:
        before = {name: getattr(upstream, name) for name in change}
        for name, value in change.items():
            setattr(upstream, name, value)
        await door.until(lambda: any(expected in reason for reason in reasons(door)))
        assert (await refused(door.embed.Embed(texts("cat")))).status == "UNAVAILABLE"
        for name, value in before.items():
            setattr(upstream, name, value)
        await door.until_serving()


async def test_a_server_that_dies_is_left_and_one_that_comes_back_serves(open_door: Callable[..., Any]) -> None:
    """Requests go to its replica meanwhile, and none fails."""
    port = free_port()
    async with HttpUpstream() as second, HttpUpstream(port=port) as first:
        file = over_http(second, entry=f", replicas: ['{first.url}']")
        async with open_door(file) as door:
            await door.until_serving()
            await first.__aexit__()
            for _ in range(20):
                await door.embed.Embed(texts("cat"))
            await door.until(lambda: "cannot be reached" in reasons(door))
            async with HttpUpstream(port=port):
                await door.until_serving()


async def test_our_worker_by_a_url_is_found_to_be_one(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """Files of an earlier deployment name workers so; they are spoken to over gRPC, and readiness says it."""
    file = (
        f"embeddings: [{{model: fake, upstream: {{type: infinity, url: 'http://{worker.target}', timeout_ms: 3000}}}}]\n"
        f"rerank: [{{model: fake-rerank, upstream: {{type: rerank, url: 'http://{worker.target}', timeout_seconds: 10}}}}]\n"
    )
    async with open_door(file) as door:
        await door.until_serving()
        await door.embed.Embed(embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text="cat")]))
        assert worker.received[-1].inputs[0].token_ids.ids
        lines = (await readiness(door))[1]["upstreams"]
        assert [(one["type"], one["protocol"]) for one in lines] == [("infinity", "grpc"), ("rerank", "grpc")]


async def test_another_mesh_that_never_took_our_key_is_a_502(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """As a server over HTTP is; once it is away, it is unavailable."""
    async with contextlib.AsyncExitStack() as ends:
        far = await ends.enter_async_context(open_door(routing(worker), auth="api_keys: [the-key-of-it]"))
        entry = f"{{type: grpc, url: 'grpc://127.0.0.1:{far.gateway.server.port}', model: fake, api_key: not-the-one}}"
        async with open_door(f"embeddings: [{{model: near, upstream: {entry}}}]\n") as door:
            await door.until(lambda: any("UNAUTHENTICATED" in reason for reason in reasons(door)))
            message = embed_pb2.EmbedRequest(model="near", inputs=[options_pb2.Input(text="cat")])
            refusal = await refused(door.embed.Embed(message))
            assert (refusal.body["code"], refusal.trailers["x-envoy-ratelimited"]) == ("upstream_error", "true")
            assert refusal.message == "The mesh that serves this model refused the gateway's key. Tell the operator."
            await ends.aclose()
            await door.until(lambda: reasons(door) == {"cannot be reached"})
            assert (await refused(door.embed.Embed(message))).body["code"] == "unavailable"


async def test_another_mesh_may_be_an_upstream_over_grpc(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """Under another name and with a key of ours: its tokenizer, its health and its answers come through."""
    async with open_door(routing(worker), auth="api_keys: [the-key-of-it]") as far:
        await far.until_serving()
        port = far.gateway.server.port
        entry = f"{{type: grpc, url: 'grpc://127.0.0.1:{port}', model: fake, api_key: the-key-of-it}}"
        ranking = f"{{type: grpc, url: 'grpc://127.0.0.1:{port}', api_key: the-key-of-it}}"
        file = f"embeddings: [{{model: near, upstream: {entry}}}]\nrerank: [{{model: fake-rerank, upstream: {ranking}}}]\n"
        async with open_door(file) as door:
            await door.until_serving()
            answer = await door.embed.Embed(embed_pb2.EmbedRequest(model="near", inputs=[options_pb2.Input(text="cat")]))
            assert np.allclose(answer.embeddings[0].values, vector("cat"))
            documents = [options_pb2.Input(text="cat")]
            await door.rerank.Rerank(rerank_pb2.RerankRequest(model="fake-rerank", query="cat", documents=documents))
            assert len(worker.received) >= 2


@pytest.mark.parametrize("is_counted", [True, False])
async def test_what_another_mesh_has_over_http_is_asked_in_texts_there(
    open_door: Callable[..., Any], tokenizer: str, *, is_counted: bool
) -> None:
    """Its card says so; it is counted as it is counted there."""
    route = tokenizer if is_counted else ""
    async with HttpUpstream() as upstream, open_door(over_http(upstream, route=route)) as far:
        await far.until_serving()
        where = f"{{type: grpc, url: 'grpc://127.0.0.1:{far.gateway.server.port}'}}"
        async with open_door(
            f"embeddings: [{{model: far, upstream: {where}}}]\nrerank: [{{model: far-rerank, upstream: {where}}}]\n"
        ) as door:
            await door.until_serving()
            answer = await door.embed.Embed(texts("cat"))
            assert np.allclose(answer.embeddings[0].values, vector("cat"))
            assert answer.usage.tokens == 1 + 2
            documents = [options_pb2.Input(text="the mat")]
            ranked = await door.rerank.Rerank(rerank_pb2.RerankRequest(model="far-rerank", query="cat", documents=documents))
            assert ranked.usage.tokens == (1 + 2 + 3 if is_counted else 3 + 4)


async def test_a_server_behind_the_older_names_is_found_to_speak_http(open_door: Callable[..., Any]) -> None:
    """It may be followed by a worker at the same address, and the other way round."""
    port = free_port()
    async with HttpUpstream(port=port) as upstream:
        file = f"embeddings: [{{model: fake, upstream: {{type: infinity, url: '{upstream.url}'}}}}]\n"
        async with open_door(file, canary_interval_seconds=0.2) as door:
            await door.until_serving()
            assert door.gateway.routes.pools[0].replicas[0].protocol == "http"
            await upstream.__aexit__()
            async with FakeWorker(port=port):
                await door.until(lambda: door.gateway.routes.pools[0].replicas[0].protocol == "grpc")
                await door.until_serving()
                await door.embed.Embed(embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text="cat")]))


async def test_flags_switch_off_guesses(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """Without protocol detection the older names are HTTP alone; without estimates a model needs its tokenizer."""
    file = f"embeddings: [{{model: fake, upstream: {{type: infinity, url: 'http://{worker.target}'}}}}]\n"
    async with open_door(file, feature_flags="-protocol_detection") as door:
        await door.until(lambda: not reasons(door) & {"not asked yet", ""})
        assert door.gateway.routes.pools[0].replicas[0].protocol == "http"
    async with HttpUpstream() as upstream, open_door(over_http(upstream), feature_flags="estimated_tokens=off") as door:
        await door.until(lambda: any("its tokenizer is not known" in reason for reason in reasons(door)))


async def test_workers_and_a_server_may_stand_in_for_each_other(open_door: Callable[..., Any]) -> None:
    """A group over HTTP takes over from the workers and gives back; texts are sent, so that a request may go to either."""
    port = free_port()
    async with HttpUpstream() as upstream, FakeWorker(port=port) as worker:
        upstreams = f"[{{type: grpc, url: 'grpc://{worker.target}'}}, {{type: openai, url: '{upstream.url}', priority: 1}}]"
        async with open_door(f"embeddings: [{{model: fake, upstreams: {upstreams}}}]\n") as door:
            await door.until_serving()
            request = embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text="cat")])
            tokens = (await door.embed.Embed(request)).usage.tokens
            assert worker.received[-1].inputs[0].text == "cat"
            ids = embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(token_ids=options_pb2.TokenIds(ids=[5]))])
            await door.embed.Embed(ids)

            await worker.__aexit__()
            answers = await asyncio.gather(*(door.embed.Embed(request) for _ in range(8)))
            assert {answer.usage.tokens for answer in answers} == {tokens}
            assert all(np.allclose(answer.embeddings[0].values, vector("cat")) for answer in answers)
            async with FakeWorker(port=port) as again:
                await door.until_serving()
                await door.embed.Embed(request)
                assert again.received


async def test_a_server_of_another_width_stands_in_for_no_worker(open_door: Callable[..., Any]) -> None:
    """Whichever of them came first: its vectors would lie among theirs. Readiness says why, and callers hear that nobody is there."""
    wide = fake_card("fake", dimensions=2 * WIDTH)
    async with HttpUpstream() as upstream, FakeWorker(wide, starts_serving=False) as worker:
        upstreams = f"[{{type: grpc, url: 'grpc://{worker.target}'}}, {{type: openai, url: '{upstream.url}', priority: 1}}]"
        async with open_door(f"embeddings: [{{model: fake, upstreams: {upstreams}}}]\n") as door:
            await door.until(lambda: door.gateway.readiness.status == "degraded")
            worker.serve(serving=True)
            await door.until(lambda: f"its vectors have {WIDTH} values, and had, or are to have, {2 * WIDTH}" in reasons(door))
            request = embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text="cat")])
            assert len((await door.embed.Embed(request)).embeddings[0].values) == 2 * WIDTH
            worker.serve(serving=False)
            await door.until(lambda: door.gateway.readiness.status == "unavailable")
            assert (await refused(door.embed.Embed(request))).status == "UNAVAILABLE"


async def test_a_server_that_changes_its_width_with_the_workers_stands_in_for_them(open_door: Callable[..., Any]) -> None:
    """Both have another model now: what was known of the server is asked for anew."""
    narrow = fake_card("fake", dimensions=WIDTH // 2)
    async with HttpUpstream() as upstream, FakeWorker(narrow, starts_serving=False) as worker:
        upstreams = f"[{{type: grpc, url: 'grpc://{worker.target}'}}, {{type: openai, url: '{upstream.url}', priority: 1}}]"
        async with open_door(f"embeddings: [{{model: fake, upstreams: {upstreams}}}]\n", canary_interval_seconds=0) as door:
            await door.until(lambda: door.gateway.readiness.status == "degraded")
            upstream.fault = "narrow"
            worker.serve(serving=True)
            server = door.gateway.routes.pools[0].replicas[1]
            await door.until(lambda: server.facts is not None and server.facts.card.dimensions == WIDTH // 2)
            worker.serve(serving=False)
            await door.until(lambda: door.gateway.routes.pools[0].replicas[0].facts is None)
            request = embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text="cat")])
            assert len((await door.embed.Embed(request)).embeddings[0].values) == WIDTH // 2


async def test_servers_of_two_widths_are_not_one_model(open_door: Callable[..., Any]) -> None:
    """Which of them is the right one nobody says, so the first that answers is."""
    async with HttpUpstream() as one, HttpUpstream() as other:
        other.fault = "narrow"
        entries = f"[{{type: openai, url: '{one.url}'}}, {{type: openai, url: '{other.url}', priority: 1}}]"
        async with open_door(f"embeddings: [{{model: far, upstreams: {entries}}}]\n") as door:
            await door.until(lambda: any("and had, or are to have" in reason for reason in reasons(door)))
            assert door.gateway.readiness.status == "degraded"


async def test_a_tokenizer_that_cannot_be_had_is_told(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """By its name, and the reason; the default for all routes as well as one route's."""
    async with HttpUpstream() as upstream:
        async with open_door(over_http_embeddings_alone(f", tokenizer: '{tmp_path}/none/tokenizer.json'")(upstream)) as door:
            await door.until(lambda: any("cannot be had" in reason and "none/tokenizer.json" in reason for reason in reasons(door)))
        (tmp_path / "tokenizer.json").write_text("{}")
        async with open_door(over_http(upstream), tokenizer_name=str(tmp_path)) as door:
            await door.until(lambda: any("not a tokenizer.json" in reason for reason in reasons(door)))


async def test_a_server_that_is_sent_a_key_is_left_in_peace(open_door: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It may bill each request. It is asked after a long silence, whatever it answers then, and while it is in doubt."""
    async with HttpUpstream() as own, HttpUpstream(api_key="of-the-upstream") as paid:
        entries = f"[{{type: openai, url: '{own.url}'}}, {{type: openai, url: '{paid.url}', api_key: of-the-upstream}}]"
        async with open_door(f"embeddings: [{{model: far, upstreams: {entries}}}]\n", canary_interval_seconds=0.05) as door:
            await door.until(lambda: all(replica.facts is not None for replica in door.gateway.routes.pools[0].replicas))
            before = len(paid.received)
            goal = len(own.received) + 10
            await door.until(lambda: len(own.received) > goal)
            assert len(paid.received) == before
            paid.status = 429
            monkeypatch.setattr(canary, "KEYED_SILENCE_SECONDS", 0.01)
            await door.until(lambda: len(paid.received) > before)
            monkeypatch.setattr(canary, "KEYED_SILENCE_SECONDS", 300.0)
            before, goal = len(paid.received), len(own.received) + 10
            await door.until(lambda: len(own.received) > goal)
            assert len(paid.received) <= before + 1  # one may have been on its way
            paid.status = None
            replica = door.gateway.routes.pools[0].replicas[1]
            replica.doubted("told so by a test")
            await door.until(lambda: not replica.doubt)


async def test_canaries_reach_servers_over_http(open_door: Callable[..., Any]) -> None:
    """A server whose inference stands still is found out while nobody asks."""
    async with HttpUpstream() as upstream, open_door(over_http(upstream), canary_interval_seconds=0.1) as door:
        await door.until_serving()
        before = len(upstream.received)
        await door.until(lambda: len(upstream.received) > before + 2)
        assert door.gateway.readiness.status == "ok"
