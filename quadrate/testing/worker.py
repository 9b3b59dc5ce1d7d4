"""A worker without a model: the services of quadrate.v1 over vectors that follow from the token ids alone.

It answers as a worker does, so that what stands before workers can be tested without weights. A test may make it slow, fail, or stop
serving, and reads what it was sent.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from quadrate.errors import ModelNotFound
from quadrate.health import Health
from quadrate.server import Server
from quadrate.server.relay import RelayService
from quadrate.telemetry import Telemetry
from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.v1 import embed_pb2, model_pb2, options_pb2, rerank_pb2
from quadrate.vectors import FLOAT32S, convert

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    import numpy.typing as npt

    from quadrate.config.tls import ServerTls
    from quadrate.server import Call

    Before = Callable[[Any, Call], Awaitable[None]]

WIDTH = 8
MAX_TOKENS = 32
_PIECE_BYTES = 2**20


def fake_card(name: str, task: model_pb2.Task = model_pb2.TASK_EMBED, **changes: Any) -> model_pb2.Model:
    """Return a model's card, as the fake worker serves it; `changes` replace what it says."""
    card = model_pb2.Model(
        name=name,
        served_name=f"fake/{name}",
        task=task,
        state=model_pb2.MODEL_STATE_READY,
        revision="sha256:000000000000",
        fingerprint="0000000000000000",
        dimensions=WIDTH if task == model_pb2.TASK_EMBED else None,
        max_tokens=MAX_TOKENS,
        pooling="mean" if task == model_pb2.TASK_EMBED else "cosine",
        normalized=True,
        outputs=[options_pb2.DENSE],
        precision=options_pb2.EXACT,
        provider="FakeExecutionProvider",
        created=1_700_000_000,
    )
    card.MergeFrom(model_pb2.Model(**changes))
    return card


def fake_vector(ids: Sequence[int], width: int = WIDTH) -> npt.NDArray[np.float32]:
    """Return the vector of content ids: float32[width], of length one, the same for the same ids anywhere."""
    seed = hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).digest()
    values = np.random.default_rng(np.frombuffer(seed, dtype=np.uint32)).standard_normal(width).astype(np.float32)
    return (values / np.linalg.norm(values)).astype(np.float32)


def fake_embedding(
    request: embed_pb2.EmbedRequest, ids: Sequence[int], width: int, *, multi_vector_width: int | None = None
) -> embed_pb2.Embedding:
    """Return the forms that a request asks for of content ids: a multi-vector has a row for each id, a sparse vector a weight of 1.

    Rows are as wide as the dense vector unless another width is given.
    """
    found = embed_pb2.Embedding()
    outputs = request.outputs or [options_pb2.DENSE]
    is_float32 = request.value_type in FLOAT32S
    if options_pb2.DENSE in outputs:
        vector = convert(fake_vector(ids, request.dimensions or width), request.value_type)
        found.MergeFrom(embed_pb2.Embedding(values=vector.tolist()) if is_float32 else embed_pb2.Embedding(packed_values=vector.tobytes()))
    if options_pb2.SPARSE in outputs:
        unique = sorted(set(ids))
        found.sparse.CopyFrom(embed_pb2.SparseVector(token_ids=unique, weights=[1.0] * len(unique)))
    if options_pb2.MULTI_VECTOR in outputs:
        rows = convert(np.stack([fake_vector([token], multi_vector_width or width) for token in ids]), request.value_type)
        found.multi_vector.CopyFrom(embed_pb2.MultiVector(rows=rows.shape[0], width=rows.shape[1]))
        if is_float32:
            found.multi_vector.values.extend(rows.ravel().tolist())
        else:
            found.multi_vector.packed_values = rows.tobytes()
    return found


class FakeWorker:
    """A worker on free ports. An async context manager.

    Args:
        cards: Its models.
        tokenizer: The tokenizer.json of all of them.
        before: Awaited before each answer, with the request and the call; it may wait, or raise an error of ours.
        port: The gRPC port; 0 takes a free one.
        host: The address it listens on.
        starts_serving: Whether its models serve from the start.
        with_relay: Whether it serves RelayService, as every worker of this version does.
        tls: How it speaks TLS. None: not at all.
    """

    def __init__(
        self,
        *cards: model_pb2.Model,
        tokenizer: bytes | None = None,
        before: Before | None = None,
        port: int = 0,
        host: str = "127.0.0.1",
        starts_serving: bool = True,
        with_relay: bool = True,
        tls: ServerTls | None = None,
    ) -> None:
        self.tokenizer = tokenizer or letter_tokenizer()
        self.cards = {card.name: card for card in cards or (fake_card("fake"), fake_card("fake-rerank", model_pb2.TASK_RERANK))}
        for card in self.cards.values():
            card.tokenizer_sha256 = card.tokenizer_sha256 or hashlib.sha256(self.tokenizer).hexdigest()
        self._host = host
        self.before = before
        self.before_listing: Callable[[], Awaitable[object]] | None = None
        """Awaited before each list of its models."""
        self.received: list[Any] = []
        """Requests to embed and to rerank, in order of arrival."""
        self.calls: list[Call] = []
        """The calls of `received`."""
        self.health = Health()
        self.serve(serving=starts_serving)
        embed = _Embed(self)
        self.server = Server(
            telemetry=Telemetry.silent("embed"),
            health=self.health,
            services=[embed, _Rerank(self), _Models(self), *([RelayService(embed.embed)] if with_relay else [])],
            host=host,
            port=port,
            http_port=0,
            readiness=lambda: (True, {}),
            drain_seconds=0.0,
            tls=tls,
        )

    @property
    def target(self) -> str:
        """Its `host:port`."""
        return f"{self._host}:{self.server.port}"

    def serve(self, *, serving: bool) -> None:
        """State that its models serve, or do not."""
        for name in ("", *(f"model/{alias}" for alias in self.cards)):
            self.health.set(name, serving=serving, reason="told so by a test")

    def card(self, name: str) -> model_pb2.Model:
        """Return a card by alias or served name. Raises ModelNotFound."""
        for card in self.cards.values():
            if name in (card.name, card.served_name):
                return card
        raise ModelNotFound(f"The fake worker has no model '{name}'.", param="model")

    async def note(self, request: Any, call: Call) -> None:
        """Remember a request, and do what the test wants done before its answer."""
        self.received.append(request)
        self.calls.append(call)
        if self.before is not None:
            await self.before(request, call)

    async def __aenter__(self) -> Self:
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop()


class _Embed:
    descriptor = embed_pb2.DESCRIPTOR.services_by_name["EmbedService"]

    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker

    async def embed(self, request: embed_pb2.EmbedRequest, call: Call) -> embed_pb2.EmbedResponse:
        card = self._worker.card(request.model)
        await self._worker.note(request, call)
        answer = embed_pb2.EmbedResponse(model=request.model, provenance=_provenance(card))
        for place, item in enumerate(request.inputs):
            usage = options_pb2.Usage(tokens=len(item.token_ids.ids) + 2, tokens_cut=0)
            found = fake_embedding(request, item.token_ids.ids, card.dimensions, multi_vector_width=card.multi_vector_dimensions)
            answer.embeddings.add(index=place, usage=usage).MergeFrom(found)
        answer.usage.tokens = sum(found.usage.tokens for found in answer.embeddings)
        answer.timings.inference_seconds = 0.0
        return answer

    async def embed_stream(
        self, requests: AsyncIterator[embed_pb2.EmbedStreamRequest], call: Call
    ) -> AsyncIterator[embed_pb2.EmbedStreamResponse]:
        async for request in requests:
            yield embed_pb2.EmbedStreamResponse(id=request.id, response=await self.embed(request.request, call))


class _Rerank:
    descriptor = rerank_pb2.DESCRIPTOR.services_by_name["RerankService"]

    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker

    async def rerank(self, request: rerank_pb2.RerankRequest, call: Call) -> rerank_pb2.RerankResponse:
        card = self._worker.card(request.model)
        await self._worker.note(request, call)
        query = fake_vector(request.query_token_ids.ids)
        scores = [float(query @ fake_vector(item.token_ids.ids)) for item in request.documents]
        answer = rerank_pb2.RerankResponse(model=request.model, provenance=_provenance(card))
        ranked = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
        for place in ranked[: request.top_n or None]:
            usage = options_pb2.Usage(tokens=len(request.documents[place].token_ids.ids) + 2)
            answer.results.add(index=place, relevance_score=scores[place], usage=usage)
        answer.usage.tokens = sum(len(ids.ids) + 2 for ids in (request.query_token_ids, *(one.token_ids for one in request.documents)))
        return answer


class _Models:
    descriptor = model_pb2.DESCRIPTOR.services_by_name["ModelService"]

    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker

    async def list_models(self, _: model_pb2.ListModelsRequest, __: Call) -> model_pb2.ListModelsResponse:
        if self._worker.before_listing is not None:
            await self._worker.before_listing()
        return model_pb2.ListModelsResponse(models=list(self._worker.cards.values()))

    async def get_model(self, request: model_pb2.GetModelRequest, _: Call) -> model_pb2.GetModelResponse:
        return model_pb2.GetModelResponse(model=self._worker.card(request.model))

    async def tokenize(self, request: model_pb2.TokenizeRequest, _: Call) -> model_pb2.TokenizeResponse:
        return model_pb2.TokenizeResponse(model=request.model)

    async def get_tokenizer(self, request: model_pb2.GetTokenizerRequest, _: Call) -> AsyncIterator[model_pb2.GetTokenizerResponse]:
        self._worker.card(request.model)
        for start in range(0, len(self._worker.tokenizer), _PIECE_BYTES):
            yield model_pb2.GetTokenizerResponse(chunk=self._worker.tokenizer[start : start + _PIECE_BYTES])


def _provenance(card: model_pb2.Model) -> options_pb2.Provenance:
    return options_pb2.Provenance(
        revision=card.revision,
        precision=card.precision,
        provider=card.provider,
        pooling=card.pooling,
        normalized=card.normalized,
        fingerprint=card.fingerprint,
    )
