"""RerankService of a worker: reads the request, runs query and documents, scores, orders, answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from quadrate.errors import EmptyInput, InvalidArgument, Unimplemented
from quadrate.inputs import refuse_nul
from quadrate.runtime.packing import Reading
from quadrate.v1 import options_pb2, rerank_pb2
from quadrate.v1.options_pb2 import NONE, RIGHT
from quadrate.worker.models import pooling_name
from quadrate.worker.reading import card_truncation, check_inputs, read, read_query, resolve_truncation
from rerank_worker.scoring import SCORINGS, order, relevance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quadrate.config.worker import RerankSettings
    from quadrate.runtime.engine import Model, Result
    from quadrate.server import Call
    from quadrate.v1.rerank_pb2 import RerankRequest
    from quadrate.worker.catalogue import Catalogue
    from quadrate.worker.reading import Readings


class RerankService:
    """Serves the catalogue's models, within the settings' limits."""

    descriptor = rerank_pb2.DESCRIPTOR.services_by_name["RerankService"]

    def __init__(self, catalogue: Catalogue, settings: RerankSettings) -> None:
        self._catalogue = catalogue
        self._settings = settings

    async def rerank(self, request: RerankRequest, call: Call) -> rerank_pb2.RerankResponse:
        """Return the documents by relevance. Raises QuadrateError."""
        arrived = time.perf_counter()
        engine = self._catalogue.engine(request.model)
        model = engine.model
        call.log.update(model=model.alias, inputs=len(request.documents))
        self._check(request, model)
        with call.trace.stage("tokenise"):
            query, documents = await _read(request, model)
        tokens = len(query) + documents.tokens
        call.log["tokens"] = tokens
        tokenized = time.perf_counter()
        scoring = SCORINGS[model.card.scoring or ""]
        texts = list(map(Reading.of, [query, *documents.ids]))
        result = await engine.run(texts, [scoring.output], deadline=call.deadline, trace=call.trace)
        with call.trace.stage("respond"):
            rows = result.rows[scoring.output]
            raw = scoring.score(rows[0], rows[1:])
            answer = _answer(request, model, documents, raw if request.raw_scores else relevance(raw))
            answer.usage.tokens, answer.usage.tokens_cut = tokens, sum(documents.cut)
            _time(answer, result, tokenize_seconds=tokenized - arrived, total_seconds=time.perf_counter() - arrived)
            return answer

    def _check(self, request: RerankRequest, model: Model) -> None:
        """Refuse what is wrong whatever the texts' tokens are."""
        if request.HasField("instruction"):
            raise Unimplemented(f"instruction: {model.alias} takes none. Leave it out.", param="instruction")
        if request.HasField("top_n") and request.top_n < 1:
            raise InvalidArgument(f"top_n is {request.top_n}; it must be at least 1. Leave it out for all documents.", param="top_n")
        if request.HasField("max_tokens_per_doc") and request.max_tokens_per_doc < 1:
            raise InvalidArgument(f"max_tokens_per_doc is {request.max_tokens_per_doc}; it must be at least 1.", param="max_tokens_per_doc")
        _check_query(request)
        check_inputs(request.documents, names="documents", limit=self._settings.max_documents)
        may_cut = request.HasField("max_tokens_per_doc") or resolve_truncation(request.truncation, card_truncation(model)) != NONE
        limit = self._settings.max_document_length
        for place, document in enumerate(request.documents):
            if len(document.text) > limit and not may_cut:
                raise InvalidArgument(
                    f"documents[{place}].text has {len(document.text)} characters; at most {limit} are allowed. "
                    "Shorten it, or ask for truncation.",
                    param=f"documents[{place}].text",
                )
            if request.return_documents and document.HasField("token_ids"):
                raise InvalidArgument(
                    f"documents[{place}] is given as token ids and has no text to return. Send text, or leave return_documents out.",
                    param="return_documents",
                )


def services(catalogue: Catalogue, settings: RerankSettings) -> list[RerankService]:
    """Return what a rerank worker serves besides its models' cards."""
    return [RerankService(catalogue, settings)]


def _check_query(request: RerankRequest) -> None:
    if request.query and request.HasField("query_token_ids"):
        raise InvalidArgument("query and query_token_ids are both set. Keep one.", param="query_token_ids")
    if not request.query and not request.HasField("query_token_ids"):
        raise EmptyInput("query is empty. Send what to look for.", param="query")
    refuse_nul(request.query, param="query")


async def _read(request: RerankRequest, model: Model) -> tuple[NDArray[np.int32], Readings]:
    """Return the query and the documents as the model reads them. The query is never cut."""
    prompts = model.facts.prompts
    ids = request.query_token_ids if request.HasField("query_token_ids") else None
    query = await read_query(request.query, ids, model.tokenizer, prompt=prompts.get("query", ""))
    limit = request.max_tokens_per_doc if request.HasField("max_tokens_per_doc") else None
    truncation = resolve_truncation(request.truncation, card_truncation(model))
    if limit is not None and truncation == NONE:
        truncation = RIGHT
    documents = await read(
        request.documents, model.tokenizer, names="documents", prompt=prompts.get("document", ""), truncation=truncation, limit=limit
    )
    return query, documents


def _answer(request: RerankRequest, model: Model, documents: Readings, scores: NDArray[np.float32]) -> rerank_pb2.RerankResponse:
    answer = rerank_pb2.RerankResponse(model=request.model, provenance=_provenance(model))
    places = order(scores).tolist()
    for place in places[: request.top_n] if request.HasField("top_n") else places:
        usage = options_pb2.Usage(tokens=len(documents.ids[place]), tokens_cut=documents.cut[place])
        result = answer.results.add(index=place, relevance_score=float(scores[place]), usage=usage)
        if request.return_documents:
            result.document.text = request.documents[place].text
    for place, removed in enumerate(documents.cut):
        if removed:
            answer.warnings.append(f"documents[{place}] was cut by {removed} tokens to {len(documents.ids[place])}.")
    return answer


def _provenance(model: Model) -> options_pb2.Provenance:
    return options_pb2.Provenance(
        revision=model.revision,
        prompt="",
        precision=options_pb2.EXACT,
        provider=model.session.provider,
        pooling=pooling_name(model),
    )


def _time(answer: rerank_pb2.RerankResponse, result: Result, *, tokenize_seconds: float, total_seconds: float) -> None:
    answer.timings.tokenize_seconds = tokenize_seconds
    answer.timings.queue_seconds = result.queue_seconds
    answer.timings.inference_seconds = result.inference_seconds
    answer.timings.total_seconds = total_seconds
