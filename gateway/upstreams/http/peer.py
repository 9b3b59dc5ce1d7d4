"""One model at one server that speaks HTTP, with the methods that the gateway calls on a worker's peer.

A worker tells its card; here it is made of what the route says and of what the first answer shows, which is asked for whenever the server
is met anew. From then on it serves until a request or a canary fails, and what is asked to make sure fails, too.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from grpc_health.v1.health_pb2 import HealthCheckResponse

from gateway.overload.gate import Gate
from gateway.upstreams.facts import Facts, PeerAway
from gateway.upstreams.http import answers
from gateway.upstreams.http.dialect import candidates, root_of
from gateway.upstreams.http.exchange import Exchange, failure, no_answer
from gateway.upstreams.http.meeting import Refused, meet
from gateway.upstreams.http.shapes import ShapeError, embeddings_body, read_scores, read_vectors, rerank_body
from gateway.upstreams.http.tokenizers import UPPER_BOUND
from quadrate.config.routing import EmbeddingRoute
from quadrate.errors import DeadlineExceeded, Unavailable
from quadrate.pairs import PairLayout
from quadrate.v1 import embed_pb2, model_pb2, options_pb2, rerank_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from gateway.upstreams.http.dialect import Dialect
    from gateway.upstreams.http.meeting import Met
    from gateway.upstreams.http.options import OverHttp
    from gateway.upstreams.http.shapes import Vectors
    from gateway.upstreams.http.tokenizers import NamedTokenizers
    from gateway.upstreams.peers import Metadata
    from quadrate.config.routing import Route, Upstream
    from quadrate.tokenizer import TextTokenizer

    Contents = Sequence[str] | Sequence[list[int]]

T = TypeVar("T")

MAX_ANSWER_BYTES = 64 * 2**20
"""What one answer may take."""
MEETING_SECONDS = 10.0
"""The time of the first answer, for which the server may have to load the model."""
CHECK_SECONDS = 5.0
"""The time of an answer that is to show that a server which failed can still serve."""
PAUSE_SECONDS = 1.0
"""The least time between two answers that are asked for to make sure."""
FIRST_REFUSED_SECONDS = 0.5
"""A server that is there and gives no right answer is left alone for so long: it may be a matter of the moment."""
REFUSED_PAUSE_SECONDS = 5.0
"""And no longer than so, each time twice as long as before: it may count what it is asked, or bill."""
PARTS_AT_ONCE = 4
"""Requests that one of ours may be at a time, where the server takes few texts in each."""
BLANK = PairLayout(prefix_ids=(0,) * 128)
"""How pairs are counted where no tokenizer tells: so much a reranker's template may put around the two."""
_FORWARDED = frozenset({"traceparent", "tracestate", "x-request-id"})
"""What goes along with a request. The caller's name and its baggage stay here: the server may be another's."""


class Steady:
    """The pulse of what cannot be asked whether it lives many times a second: it is never in doubt."""

    is_suspect = False
    is_stuck = False
    silent_seconds = 0.0

    def listen(self, listener: Callable[[], None]) -> None:
        """Tell `listener` nothing: nothing changes."""

    def unlisten(self, listener: Callable[[], None]) -> None:
        """Tell `listener` nothing any more."""


class HttpPeer:
    """A model at a server.

    Args:
        route: The model's route.
        task: A number of model_pb2.Task.
        upstream: The entry that names the server.
        target: Which of the entry's targets.
        tokenizers: What the route's `tokenizer` is found by.
        options: What the gateway's settings say.
    """

    protocol: Literal["http"] = "http"

    def __init__(self, *, route: Route, task: int, upstream: Upstream, target: str, tokenizers: NamedTokenizers, options: OverHttp) -> None:
        self.target = target
        self.outstanding_tokens = 0
        """Tokens sent and not yet answered."""
        self.pulse = Steady()
        self.gate = Gate()
        self.takes_canaries = options.takes_canaries
        self._route = route
        self._task = task
        self._upstream = upstream
        self._url = upstream.url_of(target)
        self._model = upstream.model or route.served_name or route.model
        self._tokenizers = tokenizers
        self._options = options
        self._exchange = Exchange(root_of(self._url), api_key=upstream.api_key, tls=options.tls)
        self._dialect: Dialect | None = None
        self._met: Met | None = None
        self._facts: Facts | None = None
        self._width = route.dimensions if isinstance(route, EmbeddingRoute) else None
        self._answered = 0.0
        self._left_alone_until = 0.0
        self._refused_times = 0
        self._refusal: Refused | None = None
        self._doubt = asyncio.Event()

    @property
    def told(self) -> Unavailable | None:
        """What callers are told of a server that is there and answers with what is no answer, as long as it does; None if it does not."""
        return None if self._refusal is None else self._refusal.told

    def hold_to(self, width: int) -> None:
        """Take vectors of so many values from now on, as the model's workers give, and see whether the server has them."""
        if width != self._width:
            self._width = width
            self._doubt.set()

    async def models(self, *, max_age_seconds: float = 0.0) -> list[model_pb2.Model]:  # noqa: ARG002 - as a worker's peer has it
        """Return the model's card; a server that is new, or was lost, is asked for an answer first. Raises PeerAway, TokenizerError."""
        return [(await self.facts()).card]

    async def facts(self) -> Facts:
        """Return what requests are read by. Raises as `models`."""
        if self._facts is None:
            self._met = self._met or await self._meet(MEETING_SECONDS)
            reader = await self._tokenizers.of(self._route.tokenizer, self._route.max_tokens)
            if reader is UPPER_BOUND and not self._options.takes_estimates:
                raise PeerAway("its tokenizer is not known: set `tokenizer` in its route, or ROUTER_TOKENIZER_NAME")
            self._facts = _facts(self._route, self._task, self._upstream, self._met, reader)
        return self._facts

    async def health(self, service: str) -> AsyncGenerator[int, None]:  # noqa: ARG002 - as a worker's peer has it
        """Say that it serves; end with PeerAway when it does not any more."""
        try:
            yield HealthCheckResponse.SERVING
            while True:
                await self._make_sure()
        finally:
            self._facts = self._met = None

    async def embed(self, request: embed_pb2.EmbedRequest, *, timeout: float | None, metadata: Metadata) -> embed_pb2.EmbedResponse:  # noqa: ASYNC109 - it is the caller's
        """Embed texts, or ids where the server takes them. Raises QuadrateError."""
        if self._facts is None:
            raise _not_known()
        card = self._facts.card  # it may be in doubt, and asked for anew, by the time the answer is here
        contents, most = _contents(request), self._upstream.max_inputs
        parts = [contents[start : start + most] for start in range(0, len(contents), most)]
        deadline, headers, turn = _deadline(timeout), _headers(metadata), asyncio.Semaphore(PARTS_AT_ONCE)

        async def ask(part: Contents) -> Vectors:
            async with turn:
                return await self._vectors(part, deadline, headers)

        found = [await ask(parts[0])] if len(parts) == 1 else await _together([ask(part) for part in parts])
        rows = found[0].rows if len(found) == 1 else np.concatenate([one.rows for one in found])
        return answers.embeddings(request, card, rows, answers.total(one.tokens for one in found))

    async def rerank(self, request: rerank_pb2.RerankRequest, *, timeout: float | None, metadata: Metadata) -> rerank_pb2.RerankResponse:  # noqa: ASYNC109 - it is the caller's
        """Order documents that are texts. Raises QuadrateError."""
        texts = [document.text for document in request.documents]
        top_n = request.top_n if request.HasField("top_n") else None

        def read(data: bytes) -> rerank_pb2.RerankResponse:
            return answers.reranking(read_scores(data, len(texts), top_n))

        dialect = self._known_dialect()
        body = rerank_body(dialect.shape, self._model, request.query, texts, top_n)
        return await self._ask(dialect, body, read, _deadline(timeout), _headers(metadata))

    def retire(self) -> None:
        """Do nothing: what is under way may end as it will."""

    async def close(self) -> None:
        """Close its connections; what is under way fails."""
        await self._exchange.close()

    async def _vectors(self, contents: Contents, deadline: float | None, headers: Mapping[str, str]) -> Vectors:
        def read(data: bytes) -> Vectors:
            found = read_vectors(data, len(contents))
            if found.rows.shape[1] != self._width:
                raise ShapeError(f"holds vectors of {found.rows.shape[1]} values where {self._width} are due")
            return found

        return await self._ask(self._known_dialect(), embeddings_body(self._model, contents), read, deadline, headers)

    async def _ask(
        self, dialect: Dialect, body: bytes, read: Callable[[bytes], T], deadline: float | None, headers: Mapping[str, str]
    ) -> T:
        """Return what `read` makes of an answer. Raises QuadrateError, after which somebody makes sure that the server still serves."""
        try:
            reply = await self._exchange.post(dialect.path, body, deadline=deadline, headers=headers, most_bytes=MAX_ANSWER_BYTES)
            if not reply.is_ok:
                raise failure(reply)
            found = read(reply.data)
        except ShapeError as exc:
            self._doubt.set()
            raise no_answer(exc) from exc
        except (Unavailable, DeadlineExceeded):
            self._doubt.set()
            raise
        self._answered = time.monotonic()
        return found

    def _known_dialect(self) -> Dialect:
        if self._dialect is None:
            raise _not_known()
        return self._dialect

    async def _make_sure(self) -> None:
        """Wait until there is doubt, and see whether the server still answers. Raises PeerAway."""
        await self._doubt.wait()
        self._doubt.clear()
        started = time.monotonic()
        try:
            met = await self._meet(CHECK_SECONDS)
        except PeerAway as exc:
            if isinstance(exc, Refused) or self._answered < started:
                raise
        else:
            if self._met is not None and met.width != self._met.width:  # as it is held to since: its card is to say so
                raise PeerAway("its vectors are of another width than before")
        await asyncio.sleep(PAUSE_SECONDS)

    async def _meet(self, seconds: float) -> Met:
        """Have the server answer once. Raises PeerAway."""
        if self._refusal is not None and time.monotonic() < self._left_alone_until:
            raise Refused(str(self._refusal), self._refusal.told)
        known = (self._dialect,) if self._dialect is not None else candidates(self._url, _name(self._task))
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            met = await meet(self._exchange, known, task=self._task, model=self._model, width=self._width, deadline=deadline)
        except Refused as exc:
            self._dialect, self._refusal = None, exc
            pause = max(FIRST_REFUSED_SECONDS * 2.0**self._refused_times, exc.told.retry_after_seconds or 0.0)
            self._left_alone_until = time.monotonic() + min(pause, REFUSED_PAUSE_SECONDS)
            self._refused_times += pause < REFUSED_PAUSE_SECONDS
            raise
        except PeerAway:
            self._refusal = None
            raise
        self._dialect, self._width, self._refusal, self._refused_times = met.dialect, met.width, None, 0
        return met


async def _together(asked: Sequence[Awaitable[Vectors]]) -> list[Vectors]:
    """Return all answers; when one fails, the others are given up. Raises its error."""
    tasks = [asyncio.ensure_future(one) for one in asked]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _not_known() -> Unavailable:
    return Unavailable("The server that serves this model is not known to serve it now. Try again.", retry_after_seconds=1.0)


def _name(task: int) -> Literal["embeddings", "rerank"]:
    return "embeddings" if task == model_pb2.TASK_EMBED else "rerank"


def _deadline(seconds: float | None) -> float | None:
    """Return when so many seconds are over, on the event loop's clock."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


def _headers(metadata: Metadata) -> dict[str, str]:
    return {name: value for name, value in metadata if name in _FORWARDED}


def _contents(request: embed_pb2.EmbedRequest) -> Contents:
    """Return texts, or lists of ids: what a request holds is all of one kind here, as its makers see to."""
    if request.inputs and request.inputs[0].HasField("token_ids"):
        return [list(item.token_ids.ids) for item in request.inputs]
    return [item.text for item in request.inputs]


def _facts(route: Route, task: int, upstream: Upstream, met: Met, reader: TextTokenizer) -> Facts:
    """Return what is known of a model from its route, its first answer and its tokenizer."""
    is_estimate = reader is UPPER_BOUND
    card = model_pb2.Model(
        name=route.model,
        served_name=route.served_name,
        task=task,  # type: ignore[arg-type] # an enum's number
        state=model_pb2.MODEL_STATE_READY,
        provider=answers.PROVIDER,
        truncation=options_pb2.NONE,
    )
    if not is_estimate:
        card.max_tokens = reader.max_tokens
        card.tokenizer_sha256 = reader.sha256
        card.vocabulary_size = reader.vocabulary_size
    if isinstance(route, EmbeddingRoute):
        _describe(card, route, met)
        return Facts(card, reader, over_http=True, in_text=True, takes_ids=upstream.takes_token_ids, is_estimate=is_estimate)
    pair = None if is_estimate else _pair(reader)
    if pair is None:
        return Facts(card, reader, BLANK, over_http=True, in_text=True, takes_ids=False, is_estimate=True)
    card.pair.CopyFrom(pair.message())
    return Facts(card, reader, pair, over_http=True, in_text=True, takes_ids=False)


async def facts_of_card(card: model_pb2.Model, tokenizer: Callable[[], Awaitable[TextTokenizer]]) -> Facts:
    """Return what is known of a model that another mesh has from a server over HTTP: as that mesh knows it, texts alone."""
    if not card.tokenizer_sha256:
        pair = BLANK if card.task == model_pb2.TASK_RERANK else None
        return Facts(card, UPPER_BOUND, pair, over_http=True, in_text=True, takes_ids=False, is_estimate=True)
    pair = PairLayout.of(card.pair) if card.HasField("pair") else None
    is_estimate = pair is None and card.task == model_pb2.TASK_RERANK
    reader = await tokenizer()
    return Facts(
        card, reader, pair or (BLANK if is_estimate else None), over_http=True, in_text=True, takes_ids=False, is_estimate=is_estimate
    )


def _pair(reader: TextTokenizer) -> PairLayout | None:
    """Return what a tokenizer puts around two texts that it reads together; None if it reads texts one by one."""
    try:
        return PairLayout.around(*reader.pair())
    except ValueError:
        return None


def _describe(card: model_pb2.Model, route: EmbeddingRoute, met: Met) -> None:
    """Put what embedding models have besides into a card."""
    card.dimensions = met.width or 0
    card.normalized = met.is_unit
    card.matryoshka_dimensions.extend(width for width in route.matryoshka_dimensions if width < card.dimensions)
    card.prompts.update(route.prompts)
    card.default_prompt_name = route.default_prompt_name
    card.instruction_template = route.instruction
    card.outputs.append(options_pb2.DENSE)
