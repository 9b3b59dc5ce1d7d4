"""Calls of gRPC that nobody ought to make: good messages, and what is done to their bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.api.httpbody_pb2 import HttpBody
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from quadrate.framing import delimited, varint
from quadrate.v1.embed_pb2 import EmbedRequest, EmbedStreamRequest
from quadrate.v1.model_pb2 import GetModelRequest, GetTokenizerRequest, ListModelsRequest, TokenizeRequest
from quadrate.v1.options_pb2 import Input, TokenIds
from quadrate.v1.rerank_pb2 import RerankRequest
from tests.chaos.hostile import GOOD, Draw, changed

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message


@dataclass(frozen=True, slots=True)
class GrpcRequest:
    """A call of a gRPC method with any bytes for messages.

    Args:
        method: `/package.Service/Method`.
        messages: What is sent; more than one only where the method takes a stream.
        metadata: Sent with it; what a gRPC client lets through.
    """

    method: str
    messages: tuple[bytes, ...]
    metadata: tuple[tuple[str, str | bytes], ...] = ()


_INPUTS = [Input(text="hello"), Input(token_ids=TokenIds(ids=[7592, 2088]))]
_EMBEDDING = EmbedRequest(model="minilm", inputs=_INPUTS)
_BODY = {path: HttpBody(content_type="application/json", data=json.dumps(value).encode()) for path, value in GOOD.items()}
MESSAGES: dict[str, tuple[Message, ...]] = {
    "/quadrate.v1.EmbedService/Embed": (_EMBEDDING,),
    "/quadrate.v1.EmbedService/EmbedStream": tuple(EmbedStreamRequest(id=str(number), request=_EMBEDDING) for number in range(3)),
    "/quadrate.v1.RerankService/Rerank": (RerankRequest(model="minilm-rerank", query="which?", documents=_INPUTS, top_n=1),),
    "/quadrate.v1.ModelService/ListModels": (ListModelsRequest(),),
    "/quadrate.v1.ModelService/GetModel": (GetModelRequest(model="minilm"),),
    "/quadrate.v1.ModelService/Tokenize": (TokenizeRequest(model="minilm", inputs=_INPUTS),),
    "/quadrate.v1.ModelService/GetTokenizer": (GetTokenizerRequest(model="minilm"),),
    "/quadrate.openai.v1.OpenAiService/CreateEmbedding": (_BODY["/v1/embeddings"],),
    "/quadrate.openai.v1.OpenAiService/ListModels": (ListModelsRequest(),),
    "/quadrate.openai.v1.OpenAiService/RetrieveModel": (GetModelRequest(model="minilm"),),
    "/quadrate.cohere.v1.CohereService/RerankV1": (_BODY["/v1/rerank"],),
    "/quadrate.cohere.v1.CohereService/RerankV2": (_BODY["/v2/rerank"],),
    "/quadrate.cohere.v1.CohereService/EmbedV2": (_BODY["/v2/embed"],),
    "/grpc.health.v1.Health/Check": (HealthCheckRequest(service="quadrate.v1.EmbedService"),),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": (ServerReflectionRequest(list_services=""),),
    "/quadrate.v1.EmbedService/Nothing": (HealthCheckRequest(),),
}
"""Messages that are well understood, for each method."""
_METADATA: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("authorization", ("Bearer", "Bearer x", "Basic eA==", "Bearer " + "a" * 3_000)),
    ("x-api-key", ("a", "", "a b")),
    ("x-request-id", ("a" * 200, " ", "ok-1")),
    ("x-quadrate-priority", ("bulk", "x", "")),
    ("x-quadrate-weight", ("nan", "-inf", "1e308")),
    ("x-quadrate-tenant", ("%ff%fe", "a" * 2_000)),
    ("traceparent", ("00-" + "f" * 32 + "-" + "f" * 16 + "-01", "x")),
    ("baggage", ("a=" + "b" * 3_000,)),
    ("cache-control", ("no-store", "max-age=x")),
    ("x-envoy-original-path", ("/v1/embeddings",)),
)


def grpc_request(draw: Draw) -> GrpcRequest:
    """Return a call with hostile messages, metadata or both."""
    method = draw.choice(tuple(MESSAGES))
    messages = tuple(wire_garbage(draw, message.SerializeToString()) for message in MESSAGES[method])
    metadata: list[tuple[str, str | bytes]] = []
    for _ in range(draw.choice((0, 0, 1, 3))):
        name, values = draw.choice(_METADATA)
        metadata.append((name, draw.choice(values)))
    if draw.random() < 0.1:
        metadata.append((draw.choice(("a-bin", "grpc-trace-bin")), draw.randbytes(draw.choice((0, 1, 500)))))
    return GrpcRequest(method, messages, tuple(metadata))


def wire_garbage(draw: Draw, data: bytes) -> bytes:
    """Return a message of which something is wrong: bytes, fields that repeat, lengths that lie, groups, numbers too long, deep nesting."""
    return draw.choice(_WRONGS)(draw, data)


def _nested(levels: int) -> bytes:
    found = b""
    for _ in range(levels):
        found = delimited(2, found)
    return found


_WRONGS: tuple[Callable[[Draw, bytes], bytes], ...] = (
    lambda draw, data: data,
    lambda draw, data: data + data,
    lambda draw, data: data + delimited(draw.choice((1, 2, 3, 4, 99, 2**29 - 1)), draw.randbytes(draw.choice((0, 5, 3_000)))),
    lambda draw, data: data + varint(draw.randrange(1, 20) << 3 | draw.randrange(8)) + draw.randbytes(draw.choice((0, 1, 9))),
    lambda draw, data: data + varint(2 << 3 | 2) + b"\xff" * draw.choice((1, 5, 9, 12)),
    lambda draw, data: _nested(draw.choice((5, 90, 2_000))),
    lambda draw, data: draw.randbytes(draw.choice((1, 10, 1_000))),
    changed,
)
