"""Canaries: a short request to each model at each worker that has not answered for a while, over the way that all requests take.

A worker may say that it serves, and answer when its health is asked for, while its model does not answer any more. As long as callers are
answered, that is proof enough and nothing is asked; where nobody asks, or nobody is answered, a canary is. A model that does not answer
it is in doubt: readiness says so, others are asked instead where there are others, and canaries go on until one is answered.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import TYPE_CHECKING, Literal, Self
from weakref import WeakKeyDictionary

from gateway.auth.principal import Principal
from gateway.upstreams.errand import Errand
from gateway.upstreams.table import EMBED
from quadrate.errors import DeadlineExceeded, Overloaded, QuadrateError
from quadrate.reranking import DocumentLimits, Question, RerankReader
from quadrate.server import Call
from quadrate.standing import CANARY
from quadrate.telemetry.traces import unsampled
from quadrate.v1 import embed_pb2, options_pb2, rerank_pb2

if TYPE_CHECKING:
    from gateway.upstreams.facts import Facts
    from gateway.upstreams.replica import Replica
    from gateway.upstreams.routes import Routes
    from quadrate.telemetry import Telemetry
    from quadrate.v1.embed_pb2 import EmbedRequest, EmbedResponse
    from quadrate.v1.rerank_pb2 import RerankRequest, RerankResponse

TICK_SECONDS = 1.0
PATIENCE_SECONDS = 3.0
"""How long a canary is waited for."""
PATIENCE_FACTOR = 10.0
"""Where answers take long, a canary is waited for so many times as long as they took lately: it may stand behind one."""
KEYED_SILENCE_SECONDS = 300.0
"""A server that is sent a key counts or bills what it is asked: nothing is, before so long a silence, unless there is doubt already."""
LATE_SECONDS = 0.1
"""A canary whose time was found to be over so much later says more of the gateway than of the model."""
TEXT = "A model serves while it answers."
_PRINCIPAL = Principal(CANARY.tenant)


class Canaries:
    """Asks models that have not answered for a while. An async context manager: inside it, they are looked at.

    Args:
        routes: Whose models.
        telemetry: Where it is counted.
        interval_seconds: After how long without an answer a model is asked. 0: never.
    """

    def __init__(self, routes: Routes, telemetry: Telemetry, *, interval_seconds: float) -> None:
        self._routes = routes
        self._telemetry = telemetry
        self._interval_seconds = interval_seconds
        self._under_way: dict[Replica, asyncio.Task[None]] = {}
        self._asked: WeakKeyDictionary[Replica, float] = WeakKeyDictionary()
        """When those were asked last that are sent a key."""
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._interval_seconds:
            self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._under_way.values(), *([self._watcher] if self._watcher is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(TICK_SECONDS, self._interval_seconds))
            now = time.monotonic()
            for replica in (replica for pool in self._routes.pools if pool.route.enabled for replica in pool.replicas):
                is_asked = replica.peer.takes_canaries and replica not in self._under_way
                if replica.facts is not None and is_asked and self._is_due(replica, now):
                    self._under_way[replica] = asyncio.create_task(self._ask(replica, replica.facts))

    def _is_due(self, replica: Replica, now: float) -> bool:
        if replica.upstream.api_key is None or replica.doubt:
            return now - replica.answered_at >= self._interval_seconds
        if now - max(replica.answered_at, self._asked.get(replica, 0.0)) < max(self._interval_seconds, KEYED_SILENCE_SECONDS):
            return False
        self._asked[replica] = now
        return True

    async def _ask(self, replica: Replica, facts: Facts) -> None:
        """Send a canary, and tell what came of it."""
        try:
            outcome = await self._outcome(replica, facts)
        except Exception as error:  # noqa: BLE001 - a card that canaries cannot be made from must not end them all
            outcome = "failed"
            replica.doubted(f"a canary could not be sent ({type(error).__name__})")
        finally:
            del self._under_way[replica]
        self._telemetry.metrics.counter("router_canaries_total", replica.peer.target, replica.route.model, outcome).inc()

    async def _outcome(self, replica: Replica, facts: Facts) -> str:
        started = time.monotonic()
        patience = max(PATIENCE_SECONDS, PATIENCE_FACTOR * replica.record.usual_seconds)
        try:
            answer = await replica.send(await errand_of(replica.task, facts), self._call(started + patience))
        except Overloaded:  # it has much to do: whether it does that, the answers to others tell
            return "refused"
        except QuadrateError as error:
            return self._failed(replica, facts, _why(error, patience), started, patience)
        if not _is_answer(answer):
            replica.doubted("its model answers a canary with numbers that are none")
            return "failed"
        return "answered"

    @staticmethod
    def _failed(replica: Replica, facts: Facts, why: str, started: float, patience_seconds: float) -> str:
        """Doubt a replica, unless it was away or answered others meanwhile, or it is this process that stood still."""
        is_late = time.monotonic() > started + patience_seconds + LATE_SECONDS
        if replica.facts is facts and replica.answered_at < started and not is_late:
            replica.doubted(why)
        return "failed"

    def _call(self, deadline: float) -> Call:
        """Return a call that is neither traced nor counted."""
        trace = self._telemetry.traces.begin({"traceparent": unsampled()})
        return Call("canary", {}, f"canary-{random.getrandbits(64):016x}", deadline, trace, standing=CANARY)


async def errand_of(task: int, facts: Facts) -> Errand:
    """Return the shortest errand that a model takes."""
    if task == EMBED:
        ids = facts.tokenizer.encode([TEXT])[0][:1]
        outputs = [] if options_pb2.DENSE in (facts.card.outputs or (options_pb2.DENSE,)) else facts.card.outputs[:1]
        embed = embed_pb2.EmbedRequest(model=facts.card.name, prompt="", truncation=options_pb2.NONE, outputs=outputs)
        if facts.in_text:
            embed.inputs.add(text=TEXT)
        else:
            embed.inputs.add(token_ids=options_pb2.TokenIds(ids=ids))
        return _errand("embed", embed, facts, len(ids) + facts.tokenizer.special_count)
    question = Question(query=TEXT, documents=[TEXT], name=str)
    limits = DocumentLimits(characters=len(TEXT), tokens=None, truncation=options_pb2.RIGHT)
    tokens = await RerankReader(facts.tokenizer, facts.pair, facts.card.prompts).read(question, limits)
    if facts.in_text:
        texts = rerank_pb2.RerankRequest(model=facts.card.name, query=TEXT, documents=[options_pb2.Input(text=TEXT)])
        return _errand("rerank", texts, facts, tokens.total)
    rerank = rerank_pb2.RerankRequest(model=facts.card.name, query_token_ids=options_pb2.TokenIds(ids=tokens.query))
    rerank.documents.add(token_ids=options_pb2.TokenIds(ids=tokens.documents[0]))
    return _errand("rerank", rerank, facts, tokens.total)


def _errand(method: Literal["embed", "rerank"], request: EmbedRequest | RerankRequest, facts: Facts, tokens: int) -> Errand:
    if not facts.in_text:
        request.tokenizer_sha256 = facts.card.tokenizer_sha256
    return Errand(method=method, request=request, read_by=facts, tokens=tokens, principal=_PRINCIPAL, in_text=facts.in_text)


def _is_answer(answer: EmbedResponse | RerankResponse) -> bool:
    """Whether a canary's answer is one: as many results as asked for, of finite numbers."""
    if isinstance(answer, rerank_pb2.RerankResponse):
        return len(answer.results) == 1 and math.isfinite(answer.results[0].relevance_score)
    return len(answer.embeddings) == 1 and all(map(math.isfinite, answer.embeddings[0].values))


def _why(error: QuadrateError, patience_seconds: float) -> str:
    if isinstance(error, DeadlineExceeded):
        return f"its model has not answered a canary within {patience_seconds:.0f} s"
    return f"its model answered a canary with {error.reason}"
