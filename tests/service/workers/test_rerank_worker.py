"""The rerank worker over a real channel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from quadrate.runtime import scoring
from quadrate.v1 import model_pb2, options_pb2, rerank_pb2
from tests.service.workers.conftest import running
from tests.tiny_causal import INSTRUCTION

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = ("the mat", "hello world", "the cat sat", "dog")
IDS = options_pb2.TokenIds


def request(
    query: str = "the cat sat", documents: tuple[str, ...] = DOCUMENTS, model: str = "late", **changes: Any
) -> rerank_pb2.RerankRequest:
    """Return a request to order documents."""
    return rerank_pb2.RerankRequest(model=model, query=query, documents=[options_pb2.Input(text=text) for text in documents], **changes)


def is_same(one: rerank_pb2.RerankResponse, other: rerank_pb2.RerankResponse) -> bool:
    """Whether places and tokens are the same, and scores but for what the company in a run does to their last digits."""
    rows = [[(result.index, result.usage.tokens) for result in answer.results] for answer in (one, other)]
    scores = [[result.relevance_score for result in answer.results] for answer in (one, other)]
    return rows[0] == rows[1] and scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize("model", ["late", "cosine"])
async def test_documents_come_back_by_relevance(catalogue: Path, model: str) -> None:
    """The document that is the query comes first with the highest score; scores fall, lie between 0 and 1, and all is accounted for."""
    async with running("rerank", catalogue, "late", "cosine") as made:
        answer = await made.rerank.Rerank(request(model=model, return_documents=True))
    scores = [result.relevance_score for result in answer.results]
    assert answer.results[0].index == 2
    assert answer.results[0].document.text == "the cat sat"
    assert scores[0] == pytest.approx(1.0, abs=1e-5)
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert sorted(result.index for result in answer.results) == [0, 1, 2, 3]
    assert answer.usage.tokens == 5 + sum(result.usage.tokens for result in answer.results)
    assert answer.provenance.pooling == {"late": "late_interaction"}.get(model, model)
    assert answer.timings.total_seconds >= answer.timings.inference_seconds > 0


async def test_top_n_raw_scores_and_equal_documents(catalogue: Path) -> None:
    """`top_n` keeps the best, more than there are means all; raw scores go to 1; equal documents stand by index."""
    async with running("rerank", catalogue, "late") as made:
        best = await made.rerank.Rerank(request(top_n=1))
        every = await made.rerank.Rerank(request(top_n=99))
        raw = await made.rerank.Rerank(request(raw_scores=True))
        equal = await made.rerank.Rerank(request(documents=("dog", "mat", "dog", "mat", "dog")))
    assert [result.index for result in best.results] == [2]
    assert not best.results[0].HasField("document")
    assert len(every.results) == 4
    for one, two in zip(raw.results, every.results, strict=True):
        assert (1 + one.relevance_score) / 2 == pytest.approx(two.relevance_score, abs=1e-6)
    places = [result.index for result in equal.results]
    assert places in ([0, 2, 4, 1, 3], [1, 3, 0, 2, 4])


async def test_token_ids_are_read_as_their_text(catalogue: Path) -> None:
    """Query and documents as token ids give the scores of their texts."""
    async with running("rerank", catalogue, "late") as made:
        inputs = [options_pb2.Input(text=text) for text in ("the cat sat", *DOCUMENTS)]
        tokens = await made.models.Tokenize(model_pb2.TokenizeRequest(model="late", inputs=inputs))
        ids = [options_pb2.TokenIds(ids=list(entry.ids)[1:-1]) for entry in tokens.tokenizations]
        by_ids = await made.rerank.Rerank(
            rerank_pb2.RerankRequest(model="late", query_token_ids=ids[0], documents=[options_pb2.Input(token_ids=one) for one in ids[1:]])
        )
        by_text = await made.rerank.Rerank(request())
    assert [result.index for result in by_ids.results] == [result.index for result in by_text.results]
    assert by_ids.usage.tokens == by_text.usage.tokens


async def test_long_documents_are_refused_or_cut_and_named(catalogue: Path) -> None:
    """A long document is refused unless cutting was asked for; then the answer names it. The query is never cut."""
    long = ("dog", " ".join(["cat"] * 100))
    async with running("rerank", catalogue, "late") as made:
        with pytest.raises(grpc.aio.AioRpcError, match=r"documents\[1\]\.text has 102 tokens"):
            await made.rerank.Rerank(request(documents=long))
        cut = await made.rerank.Rerank(request(documents=long, truncation=options_pb2.RIGHT))
        short = await made.rerank.Rerank(request(documents=long, max_tokens_per_doc=10))
        with pytest.raises(grpc.aio.AioRpcError, match="query has 102 tokens"):
            await made.rerank.Rerank(request(query=long[1], truncation=options_pb2.RIGHT))
    assert list(cut.warnings) == ["documents[1] was cut by 54 tokens to 46."]
    assert cut.usage.tokens_cut == 54
    assert list(short.warnings) == ["documents[1] was cut by 90 tokens to 10."]


REFUSALS = [
    (request(documents=()), "INVALID_ARGUMENT", "EMPTY_INPUT", "documents"),
    (request(documents=("a",) * 51), "INVALID_ARGUMENT", "TOO_MANY_INPUTS", "documents"),
    (request(documents=("a", "")), "INVALID_ARGUMENT", "EMPTY_INPUT", "documents[1].text"),
    (request(documents=("a" * 4097,)), "INVALID_ARGUMENT", "CONTEXT_LENGTH_EXCEEDED", "documents[0].text"),
    (request(query=""), "INVALID_ARGUMENT", "EMPTY_INPUT", "query"),
    (request(query=" "), "INVALID_ARGUMENT", "EMPTY_INPUT", "query"),
    (request(query="a\0"), "INVALID_ARGUMENT", "INVALID_VALUE", "query"),
    (request(query_token_ids=IDS(ids=[5])), "INVALID_ARGUMENT", "INVALID_VALUE", "query_token_ids"),
    (request(query="", query_token_ids=IDS(ids=[-5])), "INVALID_ARGUMENT", "INVALID_VALUE", "query_token_ids"),
    (request(top_n=0), "INVALID_ARGUMENT", "INVALID_VALUE", "top_n"),
    (request(top_n=-1), "INVALID_ARGUMENT", "INVALID_VALUE", "top_n"),
    (request(max_tokens_per_doc=0), "INVALID_ARGUMENT", "INVALID_VALUE", "max_tokens_per_doc"),
    (request(instruction="be kind"), "INVALID_ARGUMENT", "INVALID_VALUE", "instruction"),
    (request(model="tiny"), "NOT_FOUND", "MODEL_NOT_FOUND", "model"),
    (
        rerank_pb2.RerankRequest(model="late", query="cat", documents=[options_pb2.Input(token_ids=IDS(ids=[5]))], return_documents=True),
        "INVALID_ARGUMENT",
        "INVALID_VALUE",
        "return_documents",
    ),
]


async def test_what_cannot_be_served_is_refused_and_the_next_request_works(catalogue: Path) -> None:
    """Each wrong request gets its status, reason and parameter, and the next good one is answered."""
    async with running("rerank", catalogue, "late") as made:
        for wrong, status, expected, param in REFUSALS:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await made.rerank.Rerank(wrong)
            info = error_details_pb2.ErrorInfo()
            rpc_status.from_call(caught.value).details[0].Unpack(info)  # type: ignore[arg-type]
            assert (caught.value.code().name, info.reason, info.metadata.get("param", "")) == (status, expected, param)
            assert len((await made.rerank.Rerank(request())).results) == 4


async def test_a_cross_encoder_reads_query_and_document_together(catalogue: Path) -> None:
    """Each pair is counted whole, relevance is the sigmoid of the raw score, and the card tells how it reads and what it makes of it."""
    async with running("rerank", catalogue, "cross") as made:
        answer = await made.rerank.Rerank(request(model="cross"))
        raw = await made.rerank.Rerank(request(model="cross", raw_scores=True))
        card = (await made.models.GetModel(model_pb2.GetModelRequest(model="cross"))).model
    tokens = {result.index: result.usage.tokens for result in answer.results}
    assert tokens == {0: 8, 1: 8, 2: 9, 3: 7}
    assert answer.usage.tokens == sum(tokens.values())
    assert [result.index for result in raw.results] == [result.index for result in answer.results]
    for one, two in zip(answer.results, raw.results, strict=True):
        assert one.relevance_score == pytest.approx(1 / (1 + math.exp(-two.relevance_score)), rel=1e-5)
    assert len({result.relevance_score for result in answer.results}) == 4
    assert answer.provenance.pooling == "cross_encoder"
    assert (list(card.pair.prefix_ids), list(card.pair.infix_ids), list(card.pair.suffix_ids)) == ([2], [3], [3])
    assert (card.activation, card.max_tokens) == ("sigmoid", 48)


async def test_a_folder_that_names_identity_gives_its_logits(catalogue: Path) -> None:
    """As ms-marco-MiniLM does: relevance may be any number, and is the raw score."""
    async with running("rerank", catalogue, "identity") as made:
        answer = await made.rerank.Rerank(request(model="identity"))
        raw = await made.rerank.Rerank(request(model="identity", raw_scores=True))
        card = (await made.models.GetModel(model_pb2.GetModelRequest(model="identity"))).model
    assert is_same(answer, raw)
    assert card.activation == "none"


async def test_a_pairs_document_is_cut_to_the_room_that_its_query_leaves(catalogue: Path) -> None:
    """By tokens or by characters, on the side that was asked for; a query that leaves no room is refused with its numbers."""
    long = ("dog", " ".join(["cat"] * 100))
    async with running("rerank", catalogue, "cross", max_document_length=500) as made:
        with pytest.raises(grpc.aio.AioRpcError, match=r"documents\[1\]\.text has 100 tokens; the query leaves room for 42 of the 48"):
            await made.rerank.Rerank(request(documents=long, model="cross"))
        cut = await made.rerank.Rerank(request(documents=long, model="cross", truncation=options_pb2.RIGHT))
        many = await made.rerank.Rerank(request(documents=("dog", "dog " * 200), model="cross", max_tokens_per_doc=4))
        with pytest.raises(grpc.aio.AioRpcError, match=r"query has 100 tokens and leaves no room .* a query may have 44\."):
            await made.rerank.Rerank(request(query=long[1], model="cross", truncation=options_pb2.RIGHT))
    assert list(cut.warnings) == ["documents[1] was cut by 58 tokens to 42."]
    assert {result.index: result.usage.tokens for result in cut.results} == {0: 7, 1: 48}
    assert cut.usage.tokens_cut == 58
    assert list(many.warnings) == ["documents[1] was cut by 121 tokens to 4."]


async def test_a_causal_reranker_takes_an_instruction(catalogue: Path) -> None:
    """The request's changes the score, an empty one is the card's, and provenance tells which it was; ids are the templates' own."""
    async with running("rerank", catalogue, "causal") as made:
        card = (await made.models.GetModel(model_pb2.GetModelRequest(model="causal"))).model
        own = await made.rerank.Rerank(request(model="causal"))
        same = await made.rerank.Rerank(request(model="causal", instruction=INSTRUCTION))
        other = await made.rerank.Rerank(request(model="causal", instruction="Find what is about bread"))
        texts = [card.pair.query_template.format(instruction=INSTRUCTION, query="the cat sat"), *(f" {text}" for text in DOCUMENTS)]
        tokens = await made.models.Tokenize(
            model_pb2.TokenizeRequest(model="causal", inputs=[options_pb2.Input(text=text) for text in texts])
        )
        query, *documents = [IDS(ids=one.ids) for one in tokens.tokenizations]
        by_ids = await made.rerank.Rerank(
            rerank_pb2.RerankRequest(
                model="causal", query_token_ids=query, documents=[options_pb2.Input(token_ids=one) for one in documents]
            )
        )
    assert is_same(own, same)
    assert is_same(own, by_ids)
    assert not is_same(own, other)
    assert all(0 < result.relevance_score < 1 for result in own.results)
    assert [own.provenance.prompt, other.provenance.prompt] == [INSTRUCTION, "Find what is about bread"]
    assert (card.activation, card.pooling, card.pair.instruction) == ("sigmoid", "causal", INSTRUCTION)


async def test_a_score_that_is_no_number_is_an_error_and_no_answer(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON has no word for it, and no place in an order is its."""
    async with running("rerank", catalogue, "cross") as made:
        monkeypatch.setitem(scoring.ACTIVATIONS, "sigmoid", lambda raw: raw * np.float32("nan"))  # type: ignore[arg-type]  # a plain dict
        with pytest.raises(grpc.aio.AioRpcError, match="gave a score that is no number") as caught:
            await made.rerank.Rerank(request(model="cross"))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert len((await made.rerank.Rerank(request(model="cross", raw_scores=True))).results) == 4
