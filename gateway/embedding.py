"""Embedding, whatever the wire: validate everything, tokenise, route, call."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.reading import as_texts, bounds, check_ids, check_reader, check_total, fit, not_counted, prompt_for, tokenize, truncation_for
from gateway.upstreams.errand import Errand
from gateway.upstreams.table import EMBED
from gateway.work import check_contents
from quadrate import forms
from quadrate.errors import Internal, InvalidArgument
from quadrate.inputs import MAX_INPUTS
from quadrate.v1 import embed_pb2, options_pb2
from quadrate.vectors import FLOAT32S, row_bytes

if TYPE_CHECKING:
    from gateway.auth.principal import Principal
    from gateway.cache.recall import Recall
    from gateway.dispatch import Dispatch
    from gateway.quotas.bounds import Bounds
    from gateway.reading import Tokens
    from gateway.upstreams.facts import Facts
    from gateway.upstreams.pool import Pool
    from gateway.upstreams.routes import Routes
    from gateway.work import EmbedWork
    from quadrate.forms import Wanted
    from quadrate.server import Call
    from quadrate.tokenizer import TextTokenizer
    from quadrate.v1.model_pb2 import Model

MAX_JSON_BYTES = 60 * 2**20
"""What multi-vectors may take in JSON. The edge holds the whole of it beside the message that it is made of."""
_FLOAT_CHARACTERS = 14
"""What a float32 takes in JSON at most, nearly always: -0.0123456789 and a comma."""


class Embedding:
    """Serves embeddings over the routes."""

    def __init__(self, routes: Routes, dispatch: Dispatch, recall: Recall, *, max_request_tokens: int) -> None:
        self._routes = routes
        self._dispatch = dispatch
        self._recall = recall
        self._max_request_tokens = max_request_tokens

    async def embed(self, work: EmbedWork, principal: Principal, call: Call) -> embed_pb2.EmbedResponse:
        """Return one embedding for each input, in order. Raises QuadrateError; then nothing was charged."""
        started = time.perf_counter()
        with call.trace.stage("validate"):
            pool = self._validate(work, principal, call)
            facts = pool.facts
            wanted = _wanted(work, facts.card)
            prompt = prompt_for(facts.card, work.reading)
        with call.trace.stage("tokenise"):
            tokens = await self._tokenize(work, facts, prompt)
        _check_json_size(tokens, wanted, facts.card, call)
        in_text = _goes_in_text(work, facts, wanted)
        request = _request(facts.card, wanted)
        if in_text:
            _add_texts(request, work, facts, prompt, tokens)
        else:
            _add_ids(request, tokens)
        errand = Errand(method="embed", request=request, read_by=facts, tokens=tokens.total, principal=principal, in_text=in_text)
        answer: embed_pb2.EmbedResponse = await self._recall.send(pool, errand, call)
        if in_text and not facts.is_estimate:
            _count(answer, tokens, facts.tokenizer)
        _complete(answer, work, prompt, tokens)
        answer.timings.total_seconds = time.perf_counter() - started
        return answer

    def _validate(self, work: EmbedWork, principal: Principal, call: Call) -> Pool:
        pool = self._routes.find(EMBED, work.model, principal)
        call.log["model"] = pool.alias
        call.log["inputs"] = len(work.contents)
        self._dispatch.admit(pool, principal, call, lambda: _bounds(work, pool.facts, call))
        check_contents(work.contents, names=work.names, name=work.name, limit=MAX_INPUTS)
        check_reader(work.tokenizer_sha256, pool.facts)
        check_ids(work.contents, pool.facts, work.name)
        return pool

    async def _tokenize(self, work: EmbedWork, facts: Facts, prompt: str) -> Tokens:
        started = time.perf_counter()
        truncation = truncation_for(work.reading.truncation, facts.card.truncation)
        limit = _content_limit(work, facts)
        found = await tokenize(work.contents, prompt, facts.tokenizer, truncation=truncation, name=work.name)
        tokens = fit(found, work.contents, facts.tokenizer, truncation=truncation, name=work.name, prompt=prompt, limit=limit)
        check_total(tokens.total, self._max_request_tokens, names=work.names)
        tokens.seconds = time.perf_counter() - started
        return tokens


def _bounds(work: EmbedWork, facts: Facts, call: Call) -> Bounds:
    reading, card = work.reading, facts.card
    words = (reading.prompt or "", reading.instruction or "", card.instruction_template, *card.prompts.values())
    return bounds(len(work.contents), facts.tokenizer, call, special_count=facts.tokenizer.special_count, words=words)


def _wanted(work: EmbedWork, card: Model) -> Wanted | None:
    """Return the form of the answer; None for whole dense vectors as the card has them. Raises InvalidArgument."""
    outputs = card.outputs or (options_pb2.DENSE,)  # a card that names none is of a server that knows no others
    if work.is_plain and options_pb2.DENSE in outputs:
        return None
    offer = forms.Offer(
        name=card.name,
        outputs=outputs,
        width=card.dimensions,
        matryoshka=card.matryoshka_dimensions,
        matryoshka_from=card.matryoshka_dimensions_from,
        normalized=card.normalized,
    )
    return forms.choose(
        offer,
        outputs=work.outputs,
        value_type=work.value_type,
        dimensions=work.dimensions,
        normalize=work.normalize,
        dimensions_name=work.dimensions_name,
    )


def _goes_in_text(work: EmbedWork, facts: Facts, wanted: Wanted | None) -> bool:
    """Whether texts are sent. What only workers give, or came as ids, is sent as ids where there are workers."""
    if not facts.in_text or any(type(content) is not str for content in work.contents):
        return False
    return facts.over_http or wanted is None or tuple(wanted.outputs) == (options_pb2.DENSE,)


def _add_ids(request: embed_pb2.EmbedRequest, tokens: Tokens) -> None:
    for ids in tokens.ids:
        request.inputs.add().token_ids.ids.extend(ids)


def _add_texts(request: embed_pb2.EmbedRequest, work: EmbedWork, facts: Facts, prompt: str, tokens: Tokens) -> None:
    truncation = truncation_for(work.reading.truncation, facts.card.truncation)
    for text in as_texts(work.contents, prompt, tokens, facts.tokenizer, truncation=truncation):
        request.inputs.add(text=text)


def _count(answer: embed_pb2.EmbedResponse, tokens: Tokens, tokenizer: TextTokenizer) -> None:
    """Put our own count into an answer to texts: it is what was charged."""
    for found, ids in zip(answer.embeddings, tokens.ids, strict=False):
        found.usage.tokens = tokenizer.count(ids)
    answer.usage.tokens = tokens.total


def _request(card: Model, wanted: Wanted | None) -> embed_pb2.EmbedRequest:
    """Return the request to a worker, without inputs; theirs have the prompt, so that nothing is left for it to decide."""
    request = embed_pb2.EmbedRequest(model=card.name, prompt="", truncation=options_pb2.NONE)
    if wanted is None:
        return request
    if not wanted.is_plain:
        request.outputs.extend(wanted.outputs)  # type: ignore[arg-type] # an enum's numbers
        request.value_type = wanted.value_type  # type: ignore[assignment] # an enum's number
    if wanted.dimensions is not None:
        request.dimensions = wanted.dimensions
    if wanted.normalize != card.normalized:
        request.normalize = wanted.normalize
    return request


def _content_limit(work: EmbedWork, facts: Facts) -> int | None:
    """Return the most content ids of each input, if the caller set a limit. Raises InvalidArgument for one that leaves no room."""
    if work.max_tokens is None:
        return None
    tokenizer = facts.tokenizer
    if facts.is_estimate:
        raise not_counted("max_tokens")
    if work.max_tokens <= tokenizer.special_count:
        raise InvalidArgument(
            f"max_tokens is {work.max_tokens}; special tokens are counted, so ask for at least {tokenizer.special_count + 1}.",
            param="max_tokens",
        )
    return work.max_tokens - tokenizer.special_count


def _check_json_size(tokens: Tokens, wanted: Wanted | None, card: Model, call: Call) -> None:
    """Refuse multi-vectors that would be too much as JSON. gRPC takes more, up to the worker's own limit."""
    if wanted is None or options_pb2.MULTI_VECTOR not in wanted.outputs or call.surface != "rest":
        return
    width = card.multi_vector_dimensions or card.dimensions  # a worker that does not tell the first has rows as wide as its vectors
    is_float32 = wanted.value_type in FLOAT32S
    size = tokens.total * (width * _FLOAT_CHARACTERS if is_float32 else row_bytes(width, wanted.value_type) * 4 // 3)
    if size > MAX_JSON_BYTES:
        raise InvalidArgument(
            f"The answer would have about {size} bytes of JSON; at most {MAX_JSON_BYTES} are sent. Send fewer or shorter inputs in one "
            "request, ask for a smaller value_type, or call over gRPC.",
            param="inputs",
            code="answer_too_large",
        )


def _complete(answer: embed_pb2.EmbedResponse, work: EmbedWork, prompt: str, tokens: Tokens) -> None:
    """Say in the answer what only the gateway knows."""
    if len(answer.embeddings) != len(work.contents):
        raise Internal(f"A worker answered {len(answer.embeddings)} embeddings to {len(work.contents)} inputs.")
    answer.model = work.model
    answer.provenance.prompt = prompt if prompt and any(type(content) is str for content in work.contents) else ""
    for position, cut in tokens.cut.items():
        answer.embeddings[position].usage.tokens_cut = cut
    answer.usage.tokens_cut = sum(tokens.cut.values())
    answer.timings.tokenize_seconds = tokens.seconds
