"""Reranking as the gateway serves it: the facade for Cohere, Jina and LiteLLM, and the native service."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from quadrate.testing.worker import FakeWorker, fake_card, fake_vector
from quadrate.v1 import model_pb2, options_pb2, rerank_pb2
from tests.service.gateway.conftest import refused, routing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.service.gateway.conftest import Door

DOCUMENTS = ["the cat", "the dog", "hello world", "mat"]
PAIR = model_pb2.PairLayout(prefix_ids=[2], infix_ids=[3], suffix_ids=[3])
TEMPLATED = model_pb2.PairLayout(
    prefix_ids=[2],
    suffix_ids=[3],
    query_template="{instruction} query : {query}",
    document_template="passage : {document}",
    instruction="the",
)


def native(*documents: str, query: str = "cat", **fields: Any) -> rerank_pb2.RerankRequest:
    """Return a native request."""
    inputs = [options_pb2.Input(text=document) for document in documents or DOCUMENTS]
    return rerank_pb2.RerankRequest(model="fake-rerank", query=query, documents=inputs, **fields)


@pytest.mark.parametrize("version", ["1", "2"])
async def test_results_come_best_first_in_the_shape_of_all(door: Door, worker: FakeWorker, version: str) -> None:
    """Indices, scores, meta and usage; both paths give the same but for the version."""
    method = door.cohere.RerankV1 if version == "1" else door.cohere.RerankV2
    answer = await door.post(method, {"model": "fake-rerank", "query": "cat", "documents": DOCUMENTS})
    (request,) = worker.received
    scores = [float(fake_vector(request.query_token_ids.ids) @ fake_vector(item.token_ids.ids)) for item in request.documents]
    assert [one["index"] for one in answer["results"]] == sorted(range(4), key=lambda place: -scores[place])
    assert [one["relevance_score"] for one in answer["results"]] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
    assert answer["model"] == "fake-rerank"
    assert answer["meta"]["api_version"] == {"version": version}
    assert answer["meta"]["billed_units"] == {"search_units": 1}
    assert answer["meta"]["tokens"]["input_tokens"] == answer["usage"]["total_tokens"] == 3 + 4 + 4 + 4 + 3
    assert "warnings" not in answer["meta"]
    assert all("document" not in one for one in answer["results"])


async def test_equal_scores_stand_by_index(door: Door) -> None:
    """The same document twice: the first stands first."""
    answer = await door.post(door.cohere.RerankV1, {"model": "fake-rerank", "query": "cat", "documents": ["dog", "mat", "dog", "dog"]})
    places = [one["index"] for one in answer["results"]]
    assert [place for place in places if place != 1] == [0, 2, 3]


@pytest.mark.parametrize(("fields", "count"), [({"top_n": 2}, 2), ({"top_k": 1}, 1), ({"top_n": 4}, 4), ({"top_n": 20}, 4)])
async def test_top_n_gives_the_best_so_many(door: Door, fields: dict[str, int], count: int) -> None:
    """More than there are gives all."""
    whole = await door.post(door.cohere.RerankV2, {"model": "fake-rerank", "query": "cat", "documents": DOCUMENTS})
    answer = await door.post(door.cohere.RerankV2, {"model": "fake-rerank", "query": "cat", "documents": DOCUMENTS, **fields})
    assert answer["results"] == whole["results"][:count]


async def test_documents_are_repeated_on_request(door: Door) -> None:
    """As `{"text": …}`, whether they came as strings or as objects."""
    documents = ["the cat", {"text": "the dog", "title": "x"}]
    body = {"model": "fake-rerank", "query": "cat", "documents": documents, "return_documents": True}
    answer = await door.post(door.cohere.RerankV1, body)
    assert {one["index"]: one["document"] for one in answer["results"]} == {0: {"text": "the cat"}, 1: {"text": "the dog"}}


async def test_long_documents_are_cut_and_named(door: Door, worker: FakeWorker) -> None:
    """Over the limit on tokens or on characters: cut on the right, and the warning says which; short ones are not touched."""
    documents = ["cat", "cat " * 40, "dog", "m" * 5000]
    answer = await door.post(
        door.cohere.RerankV2, {"model": "fake-rerank", "query": "cat", "documents": documents, "return_documents": True}
    )
    (warning,) = answer["meta"]["warnings"]
    assert warning.startswith("Documents 1, 3 were longer")
    assert [len(item.token_ids.ids) for item in worker.received[0].documents] == [1, 30, 1, 1]
    assert {one["index"]: one["document"]["text"] for one in answer["results"]}[1] == documents[1]


async def test_max_tokens_per_doc_cuts_each_document(door: Door, worker: FakeWorker) -> None:
    """Counted without special tokens; more than the model reads means the model's limit."""
    body = {"model": "fake-rerank", "query": "cat", "documents": ["the cat sat", "cat"], "max_tokens_per_doc": 2}
    answer = await door.post(door.cohere.RerankV2, body)
    assert [len(item.token_ids.ids) for item in worker.received[0].documents] == [2, 1]
    assert answer["meta"]["warnings"] == ["Document 0 was longer than the limit and cut; what was cut did not count towards the score."]
    await door.post(door.cohere.RerankV2, {**body, "max_tokens_per_doc": 4096})
    assert [len(item.token_ids.ids) for item in worker.received[1].documents] == [3, 1]


BAD: dict[str, tuple[Any, str, str | None, str]] = {
    "top_n 0": ({"top_n": 0}, "INVALID_ARGUMENT", "top_n", "invalid_value"),
    "top_n -1": ({"top_n": -1}, "INVALID_ARGUMENT", "top_n", "invalid_value"),
    "top_k 0": ({"top_k": 0}, "INVALID_ARGUMENT", "top_k", "invalid_value"),
    "top_n above max_top_k": ({"top_n": 21}, "INVALID_ARGUMENT", "top_n", "invalid_value"),
    "top_n and top_k": ({"top_n": 1, "top_k": 2}, "INVALID_ARGUMENT", "top_k", "invalid_value"),
    "no documents": ({"documents": []}, "INVALID_ARGUMENT", "documents", "empty_input"),
    "too many documents": ({"documents": ["cat"] * 51}, "INVALID_ARGUMENT", "documents", "too_many_inputs"),
    "empty document": ({"documents": ["cat", ""]}, "INVALID_ARGUMENT", "documents[1]", "empty_input"),
    "blank document": ({"documents": ["cat", " "]}, "INVALID_ARGUMENT", "documents[1]", "empty_input"),
    "empty text": ({"documents": [{"text": ""}]}, "INVALID_ARGUMENT", "documents[0].text", "empty_input"),
    "no text": ({"documents": [{"title": "x"}]}, "INVALID_ARGUMENT", "documents[0].text", "missing_required_parameter"),
    "NUL": ({"documents": ["a\0b"]}, "INVALID_ARGUMENT", "documents[0]", "invalid_value"),
    "NUL in the query": ({"query": "a\0b"}, "INVALID_ARGUMENT", "query", "invalid_value"),
    "empty query": ({"query": ""}, "INVALID_ARGUMENT", "query", "empty_input"),
    "blank query": ({"query": "  "}, "INVALID_ARGUMENT", "query", "empty_input"),
    "long query": ({"query": "cat " * 40}, "INVALID_ARGUMENT", "query", "context_length_exceeded"),
    "unknown model": ({"model": "x"}, "NOT_FOUND", "model", "model_not_found"),
    "model of the other task": ({"model": "fake"}, "NOT_FOUND", "model", "model_not_found"),
    "max_tokens_per_doc 0": ({"max_tokens_per_doc": 0}, "INVALID_ARGUMENT", "max_tokens_per_doc", "invalid_value"),
    "instruction": ({"instruction": "x"}, "INVALID_ARGUMENT", "instruction", "invalid_value"),
    "raw_scores": ({"raw_scores": "yes"}, "INVALID_ARGUMENT", "raw_scores", "invalid_type"),
    "malformed": (b"{", "INVALID_ARGUMENT", None, "invalid_json"),
    "duplicate key": (b'{"documents":[{"text":"a","text":"b"}]}', "INVALID_ARGUMENT", "text", "duplicate_key"),
}  # fmt: skip


@pytest.mark.parametrize("row", BAD.values(), ids=BAD.keys())
async def test_bad_input_is_refused_and_the_next_request_works(
    door: Door, worker: FakeWorker, row: tuple[Any, str, str | None, str]
) -> None:
    """Each row's status, param and code; nothing of it reached the worker, and a good request after it is served."""
    fields, status, param, code = row
    good = {"model": "fake-rerank", "query": "cat", "documents": DOCUMENTS}
    failure = await refused(door.post(door.cohere.RerankV2, fields if isinstance(fields, bytes) else {**good, **fields}))
    assert (failure.status, failure.body["param"], failure.body["code"]) == (status, param, code)
    assert worker.received == []
    assert len((await door.post(door.cohere.RerankV2, good))["results"]) == len(DOCUMENTS)


async def test_the_native_service_answers_with_usage_and_provenance(door: Door) -> None:
    """Documents as they were given, if asked for; tokens of the query and all documents; where the time went."""
    answer = await door.rerank.Rerank(native(return_documents=True, top_n=3))
    assert answer.model == "fake-rerank"
    assert [one.document.text for one in answer.results] == [DOCUMENTS[one.index] for one in answer.results]
    assert len(answer.results) == 3
    assert answer.usage.tokens == 18
    assert answer.usage.tokens_cut == 0
    assert answer.provenance.provider == "FakeExecutionProvider"
    assert 0 < answer.timings.tokenize_seconds < answer.timings.total_seconds


async def test_the_native_service_refuses_long_documents_unless_told_to_cut(door: Door) -> None:
    """By tokens and by characters; the query is never cut."""
    for document in ("cat " * 40, "m" * 5000):
        failure = await refused(door.rerank.Rerank(native("dog", document)))
        assert (failure.reason, failure.param) == ("CONTEXT_LENGTH_EXCEEDED", "documents[1].text")
        answer = await door.rerank.Rerank(native("dog", document, truncation=options_pb2.RIGHT))
        assert list(answer.warnings) == ["Document 1 was longer than the limit and cut; what was cut did not count towards the score."]
    answer = await door.rerank.Rerank(native("cat " * 40, truncation=options_pb2.LEFT))
    assert answer.results[0].usage.tokens_cut == answer.usage.tokens_cut == 10
    failure = await refused(door.rerank.Rerank(native("dog", query="cat " * 40, truncation=options_pb2.RIGHT)))
    assert (failure.reason, failure.param) == ("CONTEXT_LENGTH_EXCEEDED", "query")


async def test_the_native_service_takes_token_ids(door: Door) -> None:
    """Ids of query and documents score as their texts do; they cannot be repeated, and both forms of a query are one too many."""
    ids = options_pb2.TokenIds(ids=[7])
    by_text = await door.rerank.Rerank(native("cat", "dog"))
    request = rerank_pb2.RerankRequest(
        model="fake-rerank", query_token_ids=ids, documents=[options_pb2.Input(token_ids=ids), options_pb2.Input(text="dog")]
    )
    by_ids = await door.rerank.Rerank(request)
    assert [(one.index, one.relevance_score) for one in by_ids.results] == [(one.index, one.relevance_score) for one in by_text.results]
    request.return_documents = True
    assert (await refused(door.rerank.Rerank(request))).param == "return_documents"
    request.return_documents = False
    request.query = "cat"
    assert (await refused(door.rerank.Rerank(request))).param == "query_token_ids"
    request.query = ""
    request.query_token_ids.ids.append(-1)
    assert (await refused(door.rerank.Rerank(request))).param == "query_token_ids"


async def test_raw_scores_are_the_workers_to_give(door: Door, worker: FakeWorker) -> None:
    """The wish travels on, and only when it was made."""
    await door.rerank.Rerank(native("cat", raw_scores=True))
    await door.rerank.Rerank(native("cat"))
    await door.post(door.cohere.RerankV2, {"model": "fake-rerank", "query": "cat", "documents": ["cat"], "raw_scores": True})
    assert [one.raw_scores for one in worker.received] == [True, False, True]


async def test_a_rerankers_prompts_are_put_before_texts(open_door: Callable[..., Any]) -> None:
    """The card's `query` prompt before the query, its `document` prompt before each document."""
    card = fake_card("fake-rerank", model_pb2.TASK_RERANK, prompts={"query": "query: ", "document": "passage: "})
    async with FakeWorker(fake_card("fake"), card) as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        await door.rerank.Rerank(native("dog"))
        (request,) = worker.received
        assert list(request.query_token_ids.ids) == [12, 14, 7]
        assert list(request.documents[0].token_ids.ids) == [13, 14, 8]


@pytest.fixture
def open_pairs(open_door: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that starts a gateway over a worker whose reranker reads pairs in a layout."""

    @asynccontextmanager
    async def start(pair: model_pb2.PairLayout) -> AsyncIterator[tuple[Door, FakeWorker]]:
        card = fake_card("fake-rerank", model_pb2.TASK_RERANK, pair=pair)
        async with FakeWorker(fake_card("fake"), card) as worker, open_door(routing(worker)) as door:
            await door.until_serving()
            yield door, worker

    return start


async def test_pairs_are_charged_as_they_are_read(open_pairs: Callable[..., Any]) -> None:
    """The query counts with each document, in all and for each result; what is sent are the texts' own ids."""
    async with open_pairs(PAIR) as (door, worker):
        answer = await door.rerank.Rerank(native("the dog", "mat", top_n=1))
        body = {"model": "fake-rerank", "query": "cat", "documents": ["the dog", "mat"], "return_documents": True}
        shown = await door.post(door.cohere.RerankV2, body)
    assert answer.usage.tokens == (3 + 1 + 2) + (3 + 1 + 1)
    assert answer.results[0].usage.tokens == {0: 6, 1: 5}[answer.results[0].index]
    assert [list(item.token_ids.ids) for item in worker.received[0].documents] == [[6, 8], [11]]
    assert shown["usage"] == {"total_tokens": 11, "tokens_cut": 0}
    assert {one["index"]: one["usage"] for one in shown["results"]} == {
        0: {"tokens": 6, "tokens_cut": 0},
        1: {"tokens": 5, "tokens_cut": 0},
    }
    assert shown["provenance"]["revision"] == "sha256:000000000000"
    assert 0 < shown["timings"]["tokenize_seconds"] < shown["timings"]["total_seconds"]


async def test_the_document_gets_the_room_that_the_query_leaves(open_pairs: Callable[..., Any]) -> None:
    """Of 32 tokens: cut and named on the rerank route, refused natively unless a cut was asked for; a query without room is refused."""
    async with open_pairs(PAIR) as (door, worker):
        query, documents = "cat " * 20, ["dog", "mat " * 12]
        body = {"model": "fake-rerank", "query": query, "documents": documents}
        shown = await door.post(door.cohere.RerankV1, body)
        assert shown["meta"]["warnings"][0].startswith("Document 1 was longer")
        assert shown["usage"] == {"total_tokens": 24 + 32, "tokens_cut": 3}
        assert [len(item.token_ids.ids) for item in worker.received[0].documents] == [1, 9]
        failure = await refused(door.rerank.Rerank(native(*documents, query=query)))
        assert (failure.reason, failure.param) == ("CONTEXT_LENGTH_EXCEEDED", "documents[1].text")
        answer = await door.rerank.Rerank(native(*documents, query=query, truncation=options_pb2.LEFT))
        assert answer.usage.tokens_cut == 3
        for long in (native(query="cat " * 29, truncation=options_pb2.RIGHT), native(query="cat " * 29)):
            failure = await refused(door.rerank.Rerank(long))
            assert (failure.reason, failure.param) == ("CONTEXT_LENGTH_EXCEEDED", "query")
            assert "query has 29 tokens" in failure.message


async def test_an_instruction_goes_into_the_querys_text(open_pairs: Callable[..., Any]) -> None:
    """The request's or else the card's, on both doors; the worker gets ids alone, and provenance tells it."""
    async with open_pairs(TEMPLATED) as (door, worker):
        own = await door.rerank.Rerank(native("dog"))
        asked = await door.rerank.Rerank(native("dog", instruction="hello world"))
        body = {"model": "fake-rerank", "query": "cat", "documents": ["dog"], "instruction": "hello world"}
        shown = await door.post(door.cohere.RerankV2, body)
        by_ids = rerank_pb2.RerankRequest(
            model="fake-rerank",
            query_token_ids=options_pb2.TokenIds(ids=[7]),
            documents=[options_pb2.Input(text="dog")],
            instruction="hello",
        )
        assert (await refused(door.rerank.Rerank(by_ids))).param == "instruction"
    assert [list(one.query_token_ids.ids) for one in worker.received] == [[6, 12, 14, 7], [4, 5, 12, 14, 7], [4, 5, 12, 14, 7]]
    assert [list(one.documents[0].token_ids.ids) for one in worker.received] == [[13, 14, 8]] * 3
    assert not any(one.HasField("instruction") for one in worker.received)
    assert [own.provenance.prompt, asked.provenance.prompt, shown["provenance"]["prompt"]] == ["the", "hello world", "hello world"]
    assert asked.usage.tokens == 5 + 3 + 2


async def test_a_card_that_says_wrongly_how_it_reads_is_not_served(open_door: Callable[..., Any]) -> None:
    """The replica stays away, and says why."""
    wrong = model_pb2.PairLayout(document_template="no place")
    async with FakeWorker(fake_card("fake-rerank", model_pb2.TASK_RERANK, pair=wrong)) as worker, open_door(routing(worker)) as door:
        replica = next(replica for pool in door.gateway.routes.pools if pool.alias == "fake-rerank" for replica in pool.replicas)
        await door.until(lambda: "reads a query and a document together" in replica.reason)
        assert replica.facts is None


async def test_limits_are_configured(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """RERANK_MAX_DOCUMENTS, RERANK_MAX_DOCUMENT_LENGTH and ROUTER_DOCUMENT_TOKEN_LIMIT."""
    settings = {"RERANK_MAX_DOCUMENTS": 2, "RERANK_MAX_DOCUMENT_LENGTH": 5, "document_token_limit": 1}
    async with open_door(routing(worker), **settings) as door:
        await door.until_serving()
        assert (await refused(door.rerank.Rerank(native("cat", "cat", "cat")))).reason == "TOO_MANY_INPUTS"
        assert (await refused(door.rerank.Rerank(native("cat", "catcat")))).param == "documents[1].text"
        assert (await refused(door.rerank.Rerank(native("the a")))).reason == "CONTEXT_LENGTH_EXCEEDED"
