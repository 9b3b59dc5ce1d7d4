"""Embedding, whatever the wire: validate everything, tokenise, route, call."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.reading import check_ids, check_total, fit, prompt_for, tokenize, truncation_for
from gateway.routes import EMBED
from gateway.work import check_contents
from quadrate.errors import Internal, InvalidArgument, Unimplemented
from quadrate.inputs import MAX_INPUTS
from quadrate.v1 import embed_pb2, options_pb2

if TYPE_CHECKING:
    from gateway.auth import Principal
    from gateway.reading import Tokens
    from gateway.replica import Facts
    from gateway.routes import Pool, Routes
    from gateway.work import EmbedWork
    from quadrate.server import Call
    from quadrate.telemetry import Metrics
    from quadrate.v1.model_pb2 import Model

_DENSE = {0, options_pb2.DENSE}
_FLOAT32 = {0, options_pb2.FLOAT32}


class Embedding:
    """Serves embeddings over the routes."""

    def __init__(self, routes: Routes, metrics: Metrics, *, max_request_tokens: int) -> None:
        self._routes = routes
        self._metrics = metrics
        self._max_request_tokens = max_request_tokens

    async def embed(self, work: EmbedWork, principal: Principal, call: Call) -> embed_pb2.EmbedResponse:
        """Return one embedding for each input, in order. Raises QuadrateError; then nothing was charged."""
        started = time.perf_counter()
        with call.trace.stage("validate"):
            pool = self._validate(work, principal, call)
            facts = pool.facts
            prompt = prompt_for(facts.card, work.reading)
        with call.trace.stage("tokenise"):
            tokens = await self._tokenize(work, facts, prompt)
        call.log["tokens"] = tokens.total
        request = self._request(work, facts.card, tokens)
        answer: embed_pb2.EmbedResponse = await pool.send("embed", request, read_by=facts, tokens=tokens.total, call=call)
        _complete(answer, work, prompt, tokens)
        answer.timings.total_seconds = time.perf_counter() - started
        self._metrics.counter("router_tokens_total", pool.alias, principal.name).inc(tokens.total)
        return answer

    def _validate(self, work: EmbedWork, principal: Principal, call: Call) -> Pool:
        pool = self._routes.find(EMBED, work.model, principal)
        call.log["model"] = pool.alias
        call.log["inputs"] = len(work.contents)
        check_contents(work.contents, names=work.names, name=work.name, limit=MAX_INPUTS)
        check_ids(work.contents, pool.facts, work.name)
        _check_form(work, pool.facts.card)
        return pool

    async def _tokenize(self, work: EmbedWork, facts: Facts, prompt: str) -> Tokens:
        started = time.perf_counter()
        truncation = truncation_for(facts.card, work.reading.truncation)
        found = await tokenize(work.contents, prompt, facts.tokenizer, truncation=truncation, name=work.name)
        tokens = fit(found, facts.tokenizer, truncation=truncation, name=work.name)
        check_total(tokens.total, self._max_request_tokens, names=work.names)
        tokens.seconds = time.perf_counter() - started
        return tokens

    def _request(self, work: EmbedWork, card: Model, tokens: Tokens) -> embed_pb2.EmbedRequest:
        """Return the request to a worker: token ids alone, prompt included, so that nothing is left for it to decide."""
        inputs = [options_pb2.Input(token_ids=options_pb2.TokenIds(ids=ids)) for ids in tokens.ids]
        request = embed_pb2.EmbedRequest(model=card.name, inputs=inputs, prompt="", truncation=options_pb2.NONE)
        if work.dimensions is not None and work.dimensions != card.dimensions:
            request.dimensions = work.dimensions
        if work.normalize is not None and work.normalize != card.normalized:
            request.normalize = work.normalize
        return request


def _complete(answer: embed_pb2.EmbedResponse, work: EmbedWork, prompt: str, tokens: Tokens) -> None:
    """Say in the answer what only the gateway knows."""
    if len(answer.embeddings) != len(work.contents):
        raise Internal(f"A worker answered {len(answer.embeddings)} embeddings to {len(work.contents)} inputs.")
    answer.model = work.model
    answer.provenance.prompt = prompt
    for position, cut in tokens.cut.items():
        answer.embeddings[position].usage.tokens_cut = cut
    answer.usage.tokens_cut = sum(tokens.cut.values())
    answer.timings.tokenize_seconds = tokens.seconds


def _check_form(work: EmbedWork, card: Model) -> None:
    """Refuse forms of answers that the model or this version cannot give, and what has no meaning."""
    if not _DENSE.issuperset(work.outputs):
        raise Unimplemented("This version serves the output DENSE only. Leave outputs empty or ask for DENSE.", param="outputs")
    if work.value_type not in _FLOAT32:
        raise Unimplemented(
            "This version serves the value type FLOAT32 only. Leave value_type out, or ask for FLOAT32.", param="value_type"
        )
    if work.dimensions is not None:
        _check_dimensions(work.dimensions, card)
    if not options_pb2.Truncation.DESCRIPTOR.values_by_number.get(work.reading.truncation):
        raise InvalidArgument(f"truncation {work.reading.truncation} is not known; use NONE, LEFT or RIGHT.", param="truncation")


def _check_dimensions(asked: int, card: Model) -> None:
    if asked == card.dimensions or asked in card.matryoshka_dimensions:
        return
    if not card.matryoshka_dimensions:
        raise InvalidArgument(
            f"dimensions {asked} cannot be served: '{card.name}' was not trained for shorter vectors. "
            f"Leave dimensions out to get its {card.dimensions} values.",
            param="dimensions",
        )
    allowed = ", ".join(str(width) for width in sorted({*card.matryoshka_dimensions, card.dimensions}))
    raise InvalidArgument(f"dimensions {asked} is not one that '{card.name}' gives: {allowed}.", param="dimensions")
