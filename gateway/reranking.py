"""Reranking, whatever the wire: validate everything, tokenise, route, call."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.reading import bounds, check_ids, check_reader, check_total, name_cut, not_counted, truncation_for
from gateway.upstreams.errand import Errand
from gateway.upstreams.table import RERANK
from gateway.work import check_contents
from quadrate.cuts import cut_text
from quadrate.errors import Internal, InvalidArgument
from quadrate.inputs import empty, refuse_nul
from quadrate.reranking import DocumentLimits, Question, RerankReader
from quadrate.v1 import options_pb2, rerank_pb2

if TYPE_CHECKING:
    from gateway.auth.principal import Principal
    from gateway.cache.recall import Recall
    from gateway.dispatch import Dispatch
    from gateway.quotas.bounds import Bounds
    from gateway.upstreams.facts import Facts
    from gateway.upstreams.pool import Pool
    from gateway.upstreams.routes import Routes
    from gateway.work import RerankWork
    from quadrate.pairs import PairLayout
    from quadrate.reranking import RerankTokens
    from quadrate.server import Call

_QUERY = "query"


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankLimits:
    """What one rerank request may ask for.

    Args:
        documents: How many documents.
        document_characters: The length of one document.
        document_tokens: Content tokens of one document; None: what the model reads.
        request_tokens: Tokens of the query and all documents.
    """

    documents: int
    document_characters: int
    document_tokens: int | None
    request_tokens: int


class Reranking:
    """Serves reranking over the routes."""

    def __init__(self, routes: Routes, dispatch: Dispatch, recall: Recall, limits: RerankLimits) -> None:
        self._routes = routes
        self._dispatch = dispatch
        self._recall = recall
        self._limits = limits

    async def rerank(self, work: RerankWork, principal: Principal, call: Call) -> rerank_pb2.RerankResponse:
        """Return the documents by relevance. Raises QuadrateError; then nothing was charged."""
        started = time.perf_counter()
        with call.trace.stage("validate"):
            pool = self._validate(work, principal, call)
            facts = pool.facts
        with call.trace.stage("tokenise"):
            reading_started = time.perf_counter()
            limits = self._document_limits(work, facts)
            tokens = await self._read(work, facts, limits)
            tokenize_seconds = time.perf_counter() - reading_started
        in_text = _goes_in_text(work, facts)
        texts = _texts(tokens, facts, limits.truncation) if in_text else None
        request = _request(work, facts, tokens, texts)
        errand = Errand(
            method="rerank",
            request=request,
            read_by=facts,
            tokens=tokens.total,
            principal=principal,
            counts=tokens.counts,
            in_text=in_text,
        )
        answer: rerank_pb2.RerankResponse = await self._recall.send(pool, errand, call)
        _complete(answer, work, facts, tokens)
        answer.timings.tokenize_seconds = tokenize_seconds
        answer.timings.total_seconds = time.perf_counter() - started
        return answer

    def _validate(self, work: RerankWork, principal: Principal, call: Call) -> Pool:
        pool = self._routes.find(RERANK, work.model, principal)
        call.log["model"] = pool.alias
        call.log["inputs"] = len(work.documents)
        self._dispatch.admit(pool, principal, call, lambda: _bounds(work, pool.facts, call))
        if not work.query:
            raise empty(_QUERY)
        if type(work.query) is str:
            refuse_nul(work.query, param=_QUERY)
        check_contents(work.documents, names="documents", name=work.name, limit=self._limits.documents)
        _check_top_n(work, pool)
        _check_form(work, pool.facts)
        check_reader(work.tokenizer_sha256, pool.facts)
        check_ids((work.query,), pool.facts, lambda _: "query_token_ids")
        check_ids(work.documents, pool.facts, work.name)
        return pool

    async def _read(self, work: RerankWork, facts: Facts, limits: DocumentLimits) -> RerankTokens:
        """Return the request as the model will read it, which is what it is charged for."""
        question = Question(query=work.query, documents=work.documents, name=work.name, instruction=work.instruction)
        tokens = await RerankReader(facts.tokenizer, facts.pair, facts.card.prompts).read(question, limits)
        check_total(tokens.total, self._limits.request_tokens, names="query and documents")
        return tokens

    def _document_limits(self, work: RerankWork, facts: Facts) -> DocumentLimits:
        """Return how long documents may be. Asking for so many tokens of each is asking for a cut."""
        asked = truncation_for(work.truncation, facts.card.truncation)
        wants_cut = work.cut_documents or work.max_tokens_per_doc is not None
        limits = [limit for limit in (work.max_tokens_per_doc, self._limits.document_tokens) if limit is not None]
        return DocumentLimits(
            characters=self._limits.document_characters,
            tokens=None if facts.is_estimate else min(limits, default=None),
            truncation=options_pb2.RIGHT if wants_cut and asked == options_pb2.NONE else asked,  # type: ignore[arg-type]  # an enum's number
        )


def _bounds(work: RerankWork, facts: Facts, call: Call) -> Bounds:
    """Return the bounds of pairs, or of the documents; a query that is read apart is no more than one text beside them."""
    pair, tokenizer = facts.pair, facts.tokenizer
    query = work.query if type(work.query) is str else " " * len(work.query)
    words = (query, work.instruction or "", *facts.card.prompts.values(), *_words(pair))
    special_count = pair.special_count + 1 if pair else tokenizer.special_count
    return bounds(len(work.documents), tokenizer, call, special_count=special_count, words=words)


def _words(pair: PairLayout | None) -> tuple[str, ...]:
    return () if pair is None else (pair.query_template, pair.document_template, pair.instruction)


def _check_top_n(work: RerankWork, pool: Pool) -> None:
    if work.top_n is None:
        return
    if work.top_n < 1:
        raise InvalidArgument(f"{work.top_name} is {work.top_n}; ask for at least 1, or leave it out for all.", param=work.top_name)
    if pool.max_top_n is not None and work.top_n > pool.max_top_n:
        raise InvalidArgument(
            f"{work.top_name} is {work.top_n}; '{pool.alias}' answers at most {pool.max_top_n}. Ask for fewer.", param=work.top_name
        )


def _check_form(work: RerankWork, facts: Facts) -> None:
    if work.raw_scores and facts.over_http:
        raise InvalidArgument(
            f"'{facts.card.name}' is served by a server over HTTP, which gives no raw scores. Leave raw_scores out.", param="raw_scores"
        )
    if work.max_tokens_per_doc is not None and facts.is_estimate:
        raise not_counted("max_tokens_per_doc")
    if work.max_tokens_per_doc is not None and work.max_tokens_per_doc < 1:
        raise InvalidArgument(f"max_tokens_per_doc is {work.max_tokens_per_doc}; ask for at least 1.", param="max_tokens_per_doc")
    if work.return_documents and any(type(document) is not str for document in work.documents):
        raise InvalidArgument(
            "return_documents cannot repeat documents that came as token ids. Send texts, or leave it out.", param="return_documents"
        )


def _goes_in_text(work: RerankWork, facts: Facts) -> bool:
    """Whether texts are sent. What only workers do, or came as ids, is sent as ids where there are workers."""
    if not facts.in_text or any(type(content) is not str for content in (work.query, *work.documents)):
        return False
    return facts.over_http or not (work.raw_scores or work.instruction)


def _request(work: RerankWork, facts: Facts, tokens: RerankTokens, texts: list[str] | None) -> rerank_pb2.RerankRequest:
    """Return what the worker is asked: with ids, which hold templates and instruction, or with texts that are cut already."""
    request = rerank_pb2.RerankRequest(model=facts.card.name)
    if texts is not None:
        request.query = str(work.query)
        request.documents.extend(options_pb2.Input(text=text) for text in texts)
    else:
        request.query_token_ids.ids.extend(tokens.query)
        request.documents.extend(options_pb2.Input(token_ids=options_pb2.TokenIds(ids=ids)) for ids in tokens.documents)
    if work.top_n is not None:
        request.top_n = min(work.top_n, len(request.documents))
    if work.raw_scores:
        request.raw_scores = True
    return request


def _texts(tokens: RerankTokens, facts: Facts, truncation: int) -> list[str]:
    """Return the documents as the model is to read them; one is cut where a token ends."""
    tokenizer, texts = facts.tokenizer, [str(document) for document in tokens.read]
    head = facts.pair.document_text("") if facts.pair else facts.card.prompts.get("document", "")
    around = len(tokenizer.encode([head])[0]) if head else 0  # the worker puts it there
    for place, removed in enumerate(tokens.cut):
        if removed and (room := len(tokens.documents[place]) - around) > 0:
            texts[place] = cut_text(texts[place], tokenizer.spans(texts[place]), room, truncation)
    return texts


def _complete(answer: rerank_pb2.RerankResponse, work: RerankWork, facts: Facts, tokens: RerankTokens) -> None:
    """Say in the answer what only the gateway knows."""
    expected = len(work.documents) if work.top_n is None else min(work.top_n, len(work.documents))
    if len(answer.results) != expected:
        raise Internal(f"A worker answered {len(answer.results)} results where {expected} were due.")
    answer.model = work.model
    if facts.pair and type(work.query) is str:
        answer.provenance.prompt = work.instruction or facts.pair.instruction
    for result in answer.results:
        if work.return_documents:
            result.document.text = str(work.documents[result.index])
        if not facts.is_estimate:
            result.usage.tokens, result.usage.tokens_cut = tokens.counts[result.index], tokens.cut[result.index]
    answer.usage.tokens_cut = sum(tokens.cut)
    if not facts.is_estimate:
        answer.usage.tokens = tokens.total
    if tokens.places_cut:
        cut = name_cut("Document", tokens.places_cut)
        answer.warnings.append(f"{cut} longer than the limit and cut; what was cut did not count towards the score.")
