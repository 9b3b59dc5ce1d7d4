"""What there is to call: cards, states and tokenizers of the models behind the routes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.reading import check_ids, check_total, fit, prompt_for, tokenize, truncation_for
from gateway.work import check_contents
from quadrate.errors import Unimplemented
from quadrate.inputs import MAX_INPUTS
from quadrate.v1 import model_pb2, options_pb2

if TYPE_CHECKING:
    from gateway.auth.principal import Principal
    from gateway.upstreams.pool import Pool
    from gateway.upstreams.routes import Routes
    from gateway.work import EmbedWork
    from quadrate.server import Call
    from quadrate.tokenizer import TextTokenizer


class Models:
    """The catalogue as callers see it: what the routes allow, with what the workers say."""

    def __init__(self, routes: Routes, *, list_disabled: bool, max_request_tokens: int) -> None:
        self._routes = routes
        self._list_disabled = list_disabled
        self._max_request_tokens = max_request_tokens
        self._began = int(time.time())

    def cards(self, principal: Principal) -> list[model_pb2.Model]:
        """Return the cards of all models a caller may call, ordered by name."""
        return [self._card(pool) for pool in self._routes.visible(principal, with_disabled=self._list_disabled)]

    def card(self, name: str, principal: Principal) -> model_pb2.Model:
        """Return one card by alias or served name. Raises ModelNotFound, PermissionDenied."""
        return self._card(self._routes.any_task(name, principal))

    def tokenizer(self, name: str, principal: Principal) -> TextTokenizer:
        """Return a model's tokenizer. Raises ModelNotFound, PermissionDenied, Unavailable, Unimplemented."""
        pool = self._routes.any_task(name, principal)
        _check_known(pool)
        return pool.tokenizer

    async def tokenize(self, work: EmbedWork, principal: Principal, call: Call) -> model_pb2.TokenizeResponse:
        """Return the ids that embedding the inputs would read. Runs no model and charges nothing. Raises QuadrateError."""
        with call.trace.stage("validate"):
            pool = self._routes.any_task(work.model, principal)
            call.log["model"] = pool.alias
            call.log["inputs"] = len(work.contents)
            check_contents(work.contents, names=work.names, name=work.name, limit=MAX_INPUTS)
            _check_known(pool)
            check_ids(work.contents, pool.facts, work.name)
            prompt = prompt_for(pool.facts.card, work.reading)
        with call.trace.stage("tokenise"):
            truncation = truncation_for(work.reading.truncation, options_pb2.RIGHT)
            found = await tokenize(work.contents, prompt, pool.tokenizer, truncation=truncation, name=work.name)
            tokens = fit(found, work.contents, pool.tokenizer, truncation=truncation, name=work.name, prompt=prompt)
            check_total(tokens.total, self._max_request_tokens, names=work.names)
        call.log["tokens"] = tokens.total
        answer = model_pb2.TokenizeResponse(model=work.model)
        for place, content in enumerate(tokens.ids):
            ids = [*pool.tokenizer.prefix_ids, *content, *pool.tokenizer.suffix_ids]
            usage = options_pb2.Usage(tokens=len(ids), tokens_cut=tokens.cut.get(place, 0))
            answer.tokenizations.add(index=place, ids=ids, usage=usage)
        answer.usage.tokens = tokens.total
        answer.usage.tokens_cut = sum(tokens.cut.values())
        return answer

    def _card(self, pool: Pool) -> model_pb2.Model:
        """Return a model's card: as its worker gave it, under the route's names, with the state it has here.

        A model that no worker has loaded, or none yet, is as old as this gateway.
        """
        card = model_pb2.Model(task=pool.task, created=self._began)  # type: ignore[arg-type] # an enum's number
        if pool.known is not None:
            card.MergeFrom(pool.known.card)
        card.name = pool.alias
        card.served_name = pool.route.served_name or card.served_name
        card.state, card.state_reason = _state(pool)
        card.ClearField("load_progress")
        if progress := _progress(pool):
            card.load_progress = max(progress)
        return card


def _check_known(pool: Pool) -> None:
    if pool.facts.is_estimate and not pool.facts.card.tokenizer_sha256:
        raise Unimplemented(
            f"The tokenizer of '{pool.alias}', which a server over HTTP serves, is not known here. An operator may name it in the routes."
        )


def _progress(pool: Pool) -> list[float]:
    """Return how much each worker that loads a model has loaded of it."""
    return [replica.loaded for replica in pool.replicas if replica.loaded is not None]


def _state(pool: Pool) -> tuple[model_pb2.ModelState, str]:
    if not pool.route.enabled:
        return model_pb2.MODEL_STATE_DISABLED, "switched off in the routes"
    if pool.serving:
        return model_pb2.MODEL_STATE_READY, ""
    state = model_pb2.MODEL_STATE_LOADING if _progress(pool) else model_pb2.MODEL_STATE_UNAVAILABLE
    return state, "; ".join(dict.fromkeys(replica.reason for replica in pool.replicas))
