"""RerankService of a worker: reads the request, runs what the scoring wants read, scores, orders, answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from quadrate.errors import EmptyInput, Internal, InvalidArgument
from quadrate.inputs import refuse_nul
from quadrate.reranking import DocumentLimits, Question, RerankReader
from quadrate.runtime.scoring import ACTIVATIONS, SCORINGS, activation_of, order
from quadrate.v1 import options_pb2, rerank_pb2
from quadrate.v1.options_pb2 import NONE, RIGHT
from quadrate.worker.models import pooling_name, precision_of
from quadrate.worker.reading import card_truncation, check_inputs, given, resolve_truncation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from quadrate.config.worker import RerankSettings
    from quadrate.reranking import RerankTokens
    from quadrate.runtime.engine import Model, Result
    from quadrate.server import Call
    from quadrate.v1.rerank_pb2 import RerankRequest
    from quadrate.worker.catalogue import Catalogue


class RerankService:
    """Serves the catalogue's models, within the settings' limits."""

    descriptor = rerank_pb2.DESCRIPTOR.services_by_name["RerankService"]

    def __init__(self, catalogue: Catalogue, settings: RerankSettings) -> None:
        self._catalogue = catalogue
        self._settings = settings

    async def rerank(self, request: RerankRequest, call: Call) -> rerank_pb2.RerankResponse:
        """Return the documents by relevance. Raises QuadrateError."""
        arrived = time.perf_counter()
        engine = self._catalogue.engine(request.model, read_by=request.tokenizer_sha256)
        model = engine.model
        call.log.update(model=model.alias, inputs=len(request.documents))
        self._check(request)
        with call.trace.stage("tokenise"):
            tokens = await self._read(request, model)
        call.log["tokens"] = tokens.total
        tokenized = time.perf_counter()
        scoring = SCORINGS[model.card.scoring or ""]
        readings = scoring.readings(tokens.query, tokens.documents, tokenizer=model.tokenizer, pair=model.facts.pair)
        result = await engine.run(readings, [scoring.output], deadline=call.deadline, standing=call.standing, trace=call.trace)
        with call.trace.stage("respond"):
            raw = scoring.score(result.rows[scoring.output])
            scores = raw if request.raw_scores else ACTIVATIONS[activation_of(scoring, model.facts)](raw)
            answer = _answer(request, model, tokens, scores)
            _time(answer, result, tokenize_seconds=tokenized - arrived, total_seconds=time.perf_counter() - arrived)
            return answer

    def _check(self, request: RerankRequest) -> None:
        """Refuse what is wrong whatever the texts' tokens are."""
        if request.HasField("top_n") and request.top_n < 1:
            raise InvalidArgument(f"top_n is {request.top_n}; it must be at least 1. Leave it out for all documents.", param="top_n")
        if request.HasField("max_tokens_per_doc") and request.max_tokens_per_doc < 1:
            raise InvalidArgument(f"max_tokens_per_doc is {request.max_tokens_per_doc}; it must be at least 1.", param="max_tokens_per_doc")
        _check_query(request)
        check_inputs(request.documents, names="documents", limit=self._settings.max_documents)
        for place, document in enumerate(request.documents):
            if request.return_documents and document.HasField("token_ids"):
                raise InvalidArgument(
                    f"documents[{place}] is given as token ids and has no text to return. Send text, or leave return_documents out.",
                    param="return_documents",
                )

    async def _read(self, request: RerankRequest, model: Model) -> RerankTokens:
        """Return the request as the model reads it. Raises ContextLengthExceeded, EmptyInput, InvalidArgument."""
        tokenizer = model.tokenizer
        is_text = not request.HasField("query_token_ids")
        question = Question(
            query=request.query if is_text else given(request.query_token_ids, tokenizer, "query_token_ids"),
            query_name="query" if is_text else "query_token_ids",
            documents=[
                item.text if item.HasField("text") else given(item.token_ids, tokenizer, f"documents[{place}].token_ids")
                for place, item in enumerate(request.documents)
            ],
            name=lambda place: f"documents[{place}].{'text' if request.documents[place].HasField('text') else 'token_ids'}",
            instruction=request.instruction,
        )
        return await RerankReader(tokenizer, model.facts.pair, model.facts.prompts).read(question, self._limits(request, model))

    def _limits(self, request: RerankRequest, model: Model) -> DocumentLimits:
        """Return how long documents may be. Asking for so many tokens of each is asking for a cut."""
        limit = request.max_tokens_per_doc if request.HasField("max_tokens_per_doc") else None
        truncation = resolve_truncation(request.truncation, card_truncation(model))
        if limit is not None and truncation == NONE:
            truncation = RIGHT
        return DocumentLimits(characters=self._settings.max_document_length, tokens=limit, truncation=truncation)


def services(catalogue: Catalogue, settings: RerankSettings) -> list[RerankService]:
    """Return what a rerank worker serves besides its models' cards."""
    return [RerankService(catalogue, settings)]


def _check_query(request: RerankRequest) -> None:
    if request.query and request.HasField("query_token_ids"):
        raise InvalidArgument("query and query_token_ids are both set. Keep one.", param="query_token_ids")
    if not request.query and not request.HasField("query_token_ids"):
        raise EmptyInput("query is empty. Send what to look for.", param="query")
    refuse_nul(request.query, param="query")


def _answer(request: RerankRequest, model: Model, tokens: RerankTokens, scores: NDArray[np.float32]) -> rerank_pb2.RerankResponse:
    if not np.isfinite(scores).all():
        raise Internal(f"The model {model.alias} gave a score that is no number. Tell the operator; other documents may do.")
    answer = rerank_pb2.RerankResponse(model=request.model, provenance=_provenance(request, model))
    answer.usage.tokens, answer.usage.tokens_cut = tokens.total, sum(tokens.cut)
    places = order(scores).tolist()
    for place in places[: request.top_n] if request.HasField("top_n") else places:
        usage = options_pb2.Usage(tokens=tokens.counts[place], tokens_cut=tokens.cut[place])
        result = answer.results.add(index=place, relevance_score=float(scores[place]), usage=usage)
        if request.return_documents:
            result.document.text = request.documents[place].text
    answer.warnings.extend(_warnings(tokens))
    return answer


def _warnings(tokens: RerankTokens) -> Sequence[str]:
    return [
        f"documents[{place}] was cut by {tokens.cut[place]} tokens to {len(tokens.documents[place])}."
        if tokens.cut[place]
        else f"documents[{place}] was cut to the limit on characters."
        for place in tokens.places_cut
    ]


def _provenance(request: RerankRequest, model: Model) -> options_pb2.Provenance:
    """Say what made the scores; the prompt is the instruction that the query was read with."""
    pair = model.facts.pair
    return options_pb2.Provenance(
        revision=model.revision,
        prompt=(request.instruction or pair.instruction) if pair and not request.HasField("query_token_ids") else "",
        precision=precision_of(model),
        provider=model.session.provider,
        pooling=pooling_name(model),
        fingerprint=model.fingerprint,
    )


def _time(answer: rerank_pb2.RerankResponse, result: Result, *, tokenize_seconds: float, total_seconds: float) -> None:
    answer.timings.tokenize_seconds = tokenize_seconds
    answer.timings.queue_seconds = result.queue_seconds
    answer.timings.inference_seconds = result.inference_seconds
    answer.timings.total_seconds = total_seconds
