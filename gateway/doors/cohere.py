"""The Cohere door: `POST /v1/rerank` and `/v2/rerank` in one superset of the shapes of Cohere v1 and v2, Jina and LiteLLM.

`POST /v2/embed` is served here, too; its shape is in `cohere_embed`. What those APIs have and a reranker of ours has no use for is taken
and has no effect: `priority`, `max_chunks_per_doc` (documents are read as one piece, and the answer says what was cut) and whatever
else stands beside `text` in a document. `rank_fields` would change what is scored, so anything but `["text"]` is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from gateway.doors import body, told
from gateway.doors.cohere_embed import form_embed, read_embed
from gateway.work import RerankWork
from quadrate.cohere.v1 import cohere_pb2
from quadrate.errors import EmptyInput, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.api.httpbody_pb2 import HttpBody

    from gateway.admission import Admission
    from gateway.embedding import Embedding
    from gateway.reranking import Reranking
    from quadrate.server import Call
    from quadrate.v1.rerank_pb2 import RerankResponse, RerankResult

DOCUMENTS_PER_SEARCH_UNIT = 100
"""Cohere's unit of billing: one query with up to so many documents."""


class CohereService:
    """quadrate.cohere.v1.CohereService."""

    descriptor = cohere_pb2.DESCRIPTOR.services_by_name["CohereService"]

    def __init__(self, admission: Admission, reranking: Reranking, embedding: Embedding) -> None:
        self._admission = admission
        self._reranking = reranking
        self._embedding = embedding

    async def rerank_v1(self, request: HttpBody, call: Call) -> HttpBody:
        """POST /v1/rerank."""
        return await self._rerank(request, call, "1")

    async def rerank_v2(self, request: HttpBody, call: Call) -> HttpBody:
        """POST /v2/rerank."""
        return await self._rerank(request, call, "2")

    async def embed_v2(self, request: HttpBody, call: Call) -> HttpBody:
        """POST /v2/embed."""
        principal = await self._admission.admit(call)
        with call.trace.stage("parse"):
            asked = read_embed(request.data)
        answer = await self._embedding.embed(asked.work, principal, call)
        with call.trace.stage("respond"):
            return told.http_body(form_embed(answer, asked, request_id=call.request_id))

    async def _rerank(self, request: HttpBody, call: Call, version: str) -> HttpBody:
        principal = await self._admission.admit(call)
        with call.trace.stage("parse"):
            work = read_rerank(request.data)
        answer = await self._reranking.rerank(work, principal, call)
        with call.trace.stage("respond"):
            data = form_rerank(answer, request_id=call.request_id, version=version, documents=len(work.documents))
            return told.http_body(data)


def read_rerank(data: bytes) -> RerankWork:
    """Return what a body asks for. Raises InvalidArgument, EmptyInput."""
    fields = body.read_object(data)
    model = body.required_text(fields, "model")
    query = body.required_text(fields, "query")
    _check_rank_fields(fields.get("rank_fields"))
    documents, name = _documents(fields)
    top_n, top_name = _top_n(fields)
    return RerankWork(
        model=model,
        query=query,
        documents=documents,
        name=name,
        top_n=top_n,
        top_name=top_name,
        return_documents=bool(body.flag(fields, "return_documents")),
        max_tokens_per_doc=body.integer(fields, "max_tokens_per_doc"),
        raw_scores=bool(body.flag(fields, "raw_scores")),
        instruction=body.text(fields, "instruction"),
        cut_documents=True,
    )


def form_rerank(answer: RerankResponse, *, request_id: str, version: str, documents: int) -> bytes:
    """Return the JSON of an answer."""
    scores = np.array([result.relevance_score for result in answer.results], dtype=np.float32)
    results = [_result(result, score) for result, score in zip(answer.results, scores, strict=True)]
    tokens = answer.usage.tokens
    meta: dict[str, Any] = {
        "api_version": {"version": version},
        "billed_units": {"search_units": -(-documents // DOCUMENTS_PER_SEARCH_UNIT)},
        "tokens": {"input_tokens": tokens},
    }
    if answer.warnings:
        meta["warnings"] = list(answer.warnings)
    reply = {
        "id": request_id,
        "model": answer.model,
        "results": results,
        "meta": meta,
        "usage": {"total_tokens": tokens, **told.usage(answer.usage)},
        "provenance": told.provenance(answer.provenance),
        "timings": told.timings(answer.timings),
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def _result(result: RerankResult, score: np.float32) -> dict[str, Any]:
    found: dict[str, Any] = {"index": result.index, "relevance_score": score}
    if result.HasField("usage"):
        found["usage"] = {"tokens": result.usage.tokens, "tokens_cut": result.usage.tokens_cut}
    return {**found, "document": {"text": result.document.text}} if result.HasField("document") else found


def _documents(fields: dict[str, Any]) -> tuple[list[str], Callable[[int], str]]:
    """Return the texts of `documents`, strings or objects with `text`, and what each is called."""
    value = fields.get("documents")
    if value is None:
        raise body.missing("documents")
    if type(value) is not list:
        raise body.wrong_type("documents", "an array of strings or of objects with text", value)
    if not value:
        raise EmptyInput("documents is an empty array. Send at least one.", param="documents")
    texts = [item if type(item) is str else _text(item, place) for place, item in enumerate(value)]
    return texts, lambda place: f"documents[{place}]" if type(value[place]) is str else f"documents[{place}].text"


def _text(item: Any, place: int) -> str:
    if type(item) is not dict:
        raise body.wrong_type(f"documents[{place}]", "a string or an object with text", item)
    if item.get("text") is None:
        raise InvalidArgument(
            f"documents[{place}] has no text, which is what is scored. Put the document's text there.",
            param=f"documents[{place}].text",
            code="missing_required_parameter",
        )
    if type(item["text"]) is not str:
        raise body.wrong_type(f"documents[{place}].text", "a string", item["text"])
    return str(item["text"])


def _top_n(fields: dict[str, Any]) -> tuple[int | None, str]:
    """Return how many results are wanted, and by which of its two names that was said."""
    top_n, top_k = body.integer(fields, "top_n"), body.integer(fields, "top_k")
    if top_n is not None and top_k is not None and top_n != top_k:
        raise InvalidArgument(f"top_n is {top_n} and top_k is {top_k}; they mean the same. Keep one.", param="top_k")
    return (top_n, "top_n") if top_n is not None or top_k is None else (top_k, "top_k")


def _check_rank_fields(value: Any) -> None:
    if value not in (None, [], ["text"]):
        raise InvalidArgument(
            "rank_fields is not served: each document is scored by its text alone. Join the fields into text, or send ['text'].",
            param="rank_fields",
        )
