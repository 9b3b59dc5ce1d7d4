"""The native door: quadrate.v1 over gRPC, and over REST through the edge's transcoder."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from gateway.work import EmbedWork, Reading, RerankWork
from quadrate.errors import InvalidArgument
from quadrate.server.streams import in_order_of_completion
from quadrate.v1 import embed_pb2, model_pb2, rerank_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from gateway.admission import Admission
    from gateway.embedding import Embedding
    from gateway.models import Models
    from gateway.reranking import Reranking
    from gateway.work import Content, Name
    from quadrate.server import Call
    from quadrate.v1.options_pb2 import Input

_PIECE_BYTES = 2**20


class EmbedService:
    """quadrate.v1.EmbedService."""

    descriptor = embed_pb2.DESCRIPTOR.services_by_name["EmbedService"]

    def __init__(self, admission: Admission, embedding: Embedding) -> None:
        self._admission = admission
        self._embedding = embedding

    async def embed(self, request: embed_pb2.EmbedRequest, call: Call) -> bytes:
        """POST /quadrate/v1/embed."""
        principal = await self._admission.admit(call)
        answer = await self._embedding.embed(read_embed(request), principal, call)
        with call.trace.stage("respond"):
            return answer.SerializeToString()

    async def embed_stream(self, requests: AsyncIterator[embed_pb2.EmbedStreamRequest], call: Call) -> AsyncIterator[bytes]:
        """Answer each request of a stream when it is done."""
        await self._admission.admit_stream(call)

        async def embed(request: embed_pb2.EmbedRequest, item: Call) -> embed_pb2.EmbedResponse:
            principal = await self._admission.admit_item(item)
            return await self._embedding.embed(read_embed(request), principal, item)

        async with aclosing(in_order_of_completion(embed, requests, call)) as answers:
            async for answer in answers:
                yield answer


class RerankService:
    """quadrate.v1.RerankService."""

    descriptor = rerank_pb2.DESCRIPTOR.services_by_name["RerankService"]

    def __init__(self, admission: Admission, reranking: Reranking) -> None:
        self._admission = admission
        self._reranking = reranking

    async def rerank(self, request: rerank_pb2.RerankRequest, call: Call) -> bytes:
        """POST /quadrate/v1/rerank."""
        principal = await self._admission.admit(call)
        answer = await self._reranking.rerank(read_rerank(request), principal, call)
        with call.trace.stage("respond"):
            return answer.SerializeToString()


class ModelService:
    """quadrate.v1.ModelService."""

    descriptor = model_pb2.DESCRIPTOR.services_by_name["ModelService"]

    def __init__(self, admission: Admission, models: Models) -> None:
        self._admission = admission
        self._models = models

    async def list_models(self, request: model_pb2.ListModelsRequest, call: Call) -> model_pb2.ListModelsResponse:
        """GET /quadrate/v1/models."""
        cards = self._models.cards(await self._admission.admit(call))
        return model_pb2.ListModelsResponse(models=[card for card in cards if request.task in (0, card.task)])

    async def get_model(self, request: model_pb2.GetModelRequest, call: Call) -> model_pb2.GetModelResponse:
        """GET /quadrate/v1/models/{name}."""
        principal = await self._admission.admit(call)
        return model_pb2.GetModelResponse(model=self._models.card(_model(request.model), principal))

    async def tokenize(self, request: model_pb2.TokenizeRequest, call: Call) -> model_pb2.TokenizeResponse:
        """POST /quadrate/v1/tokenize."""
        principal = await self._admission.admit(call)
        contents, name = _contents(request.inputs, "inputs")
        work = EmbedWork(model=_model(request.model), contents=contents, name=name, names="inputs", reading=_reading(request))
        return await self._models.tokenize(work, principal, call)

    async def get_tokenizer(self, request: model_pb2.GetTokenizerRequest, call: Call) -> AsyncIterator[model_pb2.GetTokenizerResponse]:
        """Hand over a tokenizer.json in pieces."""
        source = self._models.tokenizer(_model(request.model), await self._admission.admit(call)).source
        for start in range(0, len(source), _PIECE_BYTES):
            yield model_pb2.GetTokenizerResponse(chunk=source[start : start + _PIECE_BYTES])


def read_embed(request: embed_pb2.EmbedRequest) -> EmbedWork:
    """Return what a message asks for. Raises InvalidArgument."""
    contents, name = _contents(request.inputs, "inputs")
    return EmbedWork(
        model=_model(request.model),
        contents=contents,
        name=name,
        names="inputs",
        tokenizer_sha256=request.tokenizer_sha256,
        reading=_reading(request),
        dimensions=request.dimensions if request.HasField("dimensions") else None,
        outputs=tuple(request.outputs),
        value_type=request.value_type,
        normalize=request.normalize if request.HasField("normalize") else None,
    )


def read_rerank(request: rerank_pb2.RerankRequest) -> RerankWork:
    """Return what a message asks for. Raises InvalidArgument."""
    if request.query and request.HasField("query_token_ids"):
        raise InvalidArgument("query and query_token_ids are both set. Keep one.", param="query_token_ids")
    documents, name = _contents(request.documents, "documents")
    return RerankWork(
        model=_model(request.model),
        query=list(request.query_token_ids.ids) if request.HasField("query_token_ids") else request.query,
        documents=documents,
        name=name,
        tokenizer_sha256=request.tokenizer_sha256,
        top_n=request.top_n if request.HasField("top_n") else None,
        return_documents=request.return_documents,
        max_tokens_per_doc=request.max_tokens_per_doc if request.HasField("max_tokens_per_doc") else None,
        truncation=request.truncation,
        raw_scores=request.raw_scores,
        instruction=request.instruction if request.HasField("instruction") else None,
    )


def _contents(inputs: Sequence[Input], field: str) -> tuple[list[Content], Name]:
    """Return what inputs hold, and what each is called. One with neither text nor ids is an empty text."""
    contents: list[Content] = [list(item.token_ids.ids) if item.HasField("token_ids") else item.text for item in inputs]
    return contents, lambda place: f"{field}[{place}].{'text' if type(contents[place]) is str else 'token_ids'}"


def _reading(request: embed_pb2.EmbedRequest | model_pb2.TokenizeRequest) -> Reading:
    instruction = request.instruction if isinstance(request, embed_pb2.EmbedRequest) and request.HasField("instruction") else None
    if not (request.role or request.truncation or request.HasField("prompt") or request.HasField("prompt_name") or instruction is not None):
        return _PLAIN
    return Reading(
        role=request.role,
        prompt=request.prompt if request.HasField("prompt") else None,
        prompt_name=request.prompt_name if request.HasField("prompt_name") else None,
        instruction=instruction,
        truncation=request.truncation,
    )


_PLAIN = Reading()


def _model(name: str) -> str:
    if not name:
        raise InvalidArgument("The request has no model, which is required.", param="model", code="missing_required_parameter")
    return name
