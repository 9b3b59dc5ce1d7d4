"""Bad input: each row gets its status, type, param and code over REST and over gRPC, and the next good request works.

A row of a facade is one body, sent over REST and, as the same google.api.HttpBody, over gRPC. A native row is one JSON object, sent over
REST and, where such a message can be built at all, over gRPC.
"""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from quadrate.cohere.v1.cohere_pb2_grpc import CohereServiceStub
from quadrate.openai.v1.openai_pb2_grpc import OpenAiServiceStub
from quadrate.v1.embed_pb2 import EmbedRequest
from quadrate.v1.embed_pb2_grpc import EmbedServiceStub
from quadrate.v1.options_pb2 import Input
from quadrate.v1.rerank_pb2 import RerankRequest
from quadrate.v1.rerank_pb2_grpc import RerankServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Mesh

BODY_LIMIT_BYTES = 8_388_608
MODEL = {"model": "minilm"}
RERANK = {"model": "minilm-rerank", "query": "which fruit is red?"}
DOCUMENTS = {**RERANK, "documents": ["an apple", "a banana"]}
TEXTS = {**MODEL, "inputs": [{"text": "hello"}]}
PAIRS = {**RERANK, "documents": [{"text": "an apple"}, {"text": "a banana"}]}
LONG = "word " * 600
NOT_A_LEVEL = b"[" * 20_000 + b"]" * 20_000


@dataclass(frozen=True)
class Row:
    """One bad request.

    Args:
        name: What is wrong with it.
        body: The JSON, or the very bytes.
        param: The field that the error must name.
        code: The error's code; its upper case is the reason in gRPC.
        status: The HTTP status.
        over_grpc: False where no message can say this: JSON alone can be so wrong.
    """

    name: str
    body: Any
    param: str | None
    code: str
    status: int = 400
    over_grpc: bool = True
    data: bytes = field(init=False, default=b"")

    def __post_init__(self) -> None:
        data = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        object.__setattr__(self, "data", data)


GRPC_STATUS = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 501: "UNIMPLEMENTED"}

MALFORMED = (
    Row("no body", b"", None, "invalid_json"),
    Row("malformed", b'{"model": "minilm" "input"}', None, "invalid_json"),
    Row("cut off", b'{"model": "minilm", "input": "hel', None, "invalid_json"),
    Row("something after the end", b'{"model": "minilm", "input": "hello"} and more', None, "invalid_json"),
    Row("an array", b"[]", None, "invalid_json"),
    Row("a string", b'"hello"', None, "invalid_json"),
    Row("nested 20,000 deep", b'{"model": "minilm", "input": ' + NOT_A_LEVEL + b"}", None, "invalid_json"),
    Row("a lone surrogate", rb'{"model": "minilm", "input": "\ud800"}', None, "invalid_json"),
    Row("invalid UTF-8", b'{"model": "minilm", "input": "\xff\xfe"}', None, "invalid_json"),
    Row("a number beyond a double", b'{"model": "minilm", "input": [1e999]}', None, "invalid_json"),
    Row("NaN", b'{"model": "minilm", "input": "hello", "dimensions": NaN}', None, "invalid_json"),
)

EMBEDDINGS = (
    *MALFORMED,
    Row("a key twice", b'{"model": "minilm", "input": "hello", "input": "good bye"}', "input", "duplicate_key"),
    Row("no model", {"input": "hello"}, "model", "missing_required_parameter"),
    Row("no input", MODEL, "input", "missing_required_parameter"),
    Row("input null", {**MODEL, "input": None}, "input", "missing_required_parameter"),
    Row("an empty string", {**MODEL, "input": ""}, "input", "empty_input"),
    Row("blanks alone", {**MODEL, "input": "  "}, "input", "empty_input"),
    Row("an empty list", {**MODEL, "input": []}, "input", "empty_input"),
    Row("an empty string among good ones", {**MODEL, "input": ["hello", "", "you"]}, "input[1]", "empty_input"),
    Row("an empty list of ids among good ones", {**MODEL, "input": [[7592], []]}, "input[1]", "empty_input"),
    Row("a list over the limit", {**MODEL, "input": ["a"] * 2049}, "input", "too_many_inputs"),
    Row("a text too long", {**MODEL, "input": LONG}, "input", "context_length_exceeded"),
    Row("one of several too long", {**MODEL, "input": ["hello", LONG]}, "input[1]", "context_length_exceeded"),
    Row("too many token ids", {**MODEL, "input": [7592] * 600}, "input", "context_length_exceeded"),
    Row("a negative token id", {**MODEL, "input": [7592, -1]}, "input", "invalid_value"),
    Row("a token id too large", {**MODEL, "input": [[7592], [30_522]]}, "input[1]", "invalid_value"),
    Row("a token id beyond 32 bits", {**MODEL, "input": [2**40]}, "input", "invalid_value"),
    Row("a token id beyond 64 bits", {**MODEL, "input": [2**70]}, "input[0]", "invalid_type"),
    Row("a token id that is no integer", {**MODEL, "input": [1.5]}, "input[0]", "invalid_type"),
    Row("a token id that is a boolean", {**MODEL, "input": [True]}, "input[0]", "invalid_type"),
    Row("a token id that is a string", {**MODEL, "input": [[7592], ["a"]]}, "input[1][0]", "invalid_type"),
    Row("texts and ids mixed", {**MODEL, "input": ["hello", 7592]}, "input[1]", "invalid_type"),
    Row("null among texts", {**MODEL, "input": ["hello", None]}, "input[1]", "invalid_type"),
    Row("an object as input", {**MODEL, "input": {"text": "hello"}}, "input", "invalid_type"),
    Row("a number as model", {"model": 5, "input": "hello"}, "model", "invalid_type"),
    Row("a number as user", {**MODEL, "input": "hello", "user": 5}, "user", "invalid_type"),
    Row("an unknown model", {"model": "nope", "input": "hello"}, "model", "model_not_found", 404),
    Row("a model of the other task", {"model": "minilm-rerank", "input": "hello"}, "model", "model_not_found", 404),
    Row("an unknown encoding_format", {**MODEL, "input": "hello", "encoding_format": "hex"}, "encoding_format", "invalid_value"),
    Row("a number as encoding_format", {**MODEL, "input": "hello", "encoding_format": 1}, "encoding_format", "invalid_type"),
    Row("dimensions too large", {**MODEL, "input": "hello", "dimensions": 1000}, "dimensions", "invalid_value"),
    Row("dimensions on a model that cannot", {**MODEL, "input": "hello", "dimensions": 64}, "dimensions", "invalid_value"),
    Row("dimensions of 0", {**MODEL, "input": "hello", "dimensions": 0}, "dimensions", "invalid_value"),
    Row("dimensions beyond 64 bits", {**MODEL, "input": "hello", "dimensions": 2**70}, "dimensions", "invalid_type"),
    Row("dimensions as a string", {**MODEL, "input": "hello", "dimensions": "384"}, "dimensions", "invalid_type"),
    Row("a NUL character", {**MODEL, "input": "hel\0lo"}, "input", "invalid_value"),
    Row("a NUL character among good texts", {**MODEL, "input": ["hello", "\0"]}, "input[1]", "invalid_value"),
    Row("an unknown truncate", {**MODEL, "input": "hello", "truncate": "middle"}, "truncate", "invalid_value"),
    Row("an unknown prompt_name", {**MODEL, "input": "hello", "prompt_name": "nope"}, "prompt_name", "invalid_value"),
    Row("an unknown input_type", {**MODEL, "input": "hello", "input_type": "image"}, "input_type", "invalid_value"),
    Row("two ways to a prompt", {**MODEL, "input": "a", "input_type": "query", "prompt_name": "b"}, "prompt_name", "invalid_value"),
    Row("an instruction to a model that takes none", {**MODEL, "input": "hello", "instruction": "x"}, "instruction", "invalid_value"),
    Row("a number as instruction", {**MODEL, "input": "hello", "instruction": 5}, "instruction", "invalid_type"),
)

COHERE = {**MODEL, "input_type": "search_query"}
COHERE_TEXTS = {**COHERE, "texts": ["hello"]}
COHERE_EMBEDS = (
    *MALFORMED,
    Row("a key twice", b'{"model": "minilm", "texts": ["a"], "texts": ["b"]}', "texts", "duplicate_key"),
    Row("no model", {"input_type": "search_query", "texts": ["a"]}, "model", "missing_required_parameter"),
    Row("no input_type", {**MODEL, "texts": ["a"]}, "input_type", "missing_required_parameter"),
    Row("an unknown input_type", {**COHERE_TEXTS, "input_type": "image"}, "input_type", "invalid_value"),
    Row("no texts", COHERE, "texts", "missing_required_parameter"),
    Row("an empty list", {**COHERE, "texts": []}, "texts", "empty_input"),
    Row("an empty text among good ones", {**COHERE, "texts": ["hello", ""]}, "texts[1]", "empty_input"),
    Row("blanks alone", {**COHERE, "texts": [" "]}, "texts[0]", "empty_input"),
    Row("a string as texts", {**COHERE, "texts": "hello"}, "texts", "invalid_type"),
    Row("a number among texts", {**COHERE, "texts": ["hello", 5]}, "texts[1]", "invalid_type"),
    Row("a list over the limit", {**COHERE, "texts": ["a"] * 2049}, "texts", "too_many_inputs"),
    Row("a text too long, refused in words", {**COHERE, "texts": [LONG], "truncate": "NONE"}, "texts[0]", "context_length_exceeded"),
    Row("a NUL character", {**COHERE, "texts": ["hel\0lo"]}, "texts[0]", "invalid_value"),
    Row("texts and inputs", {**COHERE_TEXTS, "inputs": [{"content": []}]}, "inputs", "invalid_value"),
    Row("an image", {**COHERE, "images": ["data:image/png;base64,AAAA"]}, "images", "invalid_value"),
    Row(
        "an image among contents",
        {**COHERE, "inputs": [{"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "inputs[0].content[0]",
        "invalid_value",
    ),
    Row("an unknown embedding type", {**COHERE_TEXTS, "embedding_types": ["float", "int4"]}, "embedding_types[1]", "invalid_value"),
    Row("a string as embedding_types", {**COHERE_TEXTS, "embedding_types": "float"}, "embedding_types", "invalid_type"),
    Row("an output_dimension on a model that cannot", {**COHERE_TEXTS, "output_dimension": 64}, "output_dimension", "invalid_value"),
    Row("an output_dimension as a string", {**COHERE_TEXTS, "output_dimension": "64"}, "output_dimension", "invalid_type"),
    Row("an unknown truncate", {**COHERE_TEXTS, "truncate": "MIDDLE"}, "truncate", "invalid_value"),
    Row("max_tokens without room", {**COHERE_TEXTS, "max_tokens": 2}, "max_tokens", "invalid_value"),
    Row("an unknown model", {**COHERE_TEXTS, "model": "nope"}, "model", "model_not_found", 404),
    Row("a model of the other task", {**COHERE_TEXTS, "model": "minilm-rerank"}, "model", "model_not_found", 404),
)

RERANKS = (
    *MALFORMED,
    Row("a key twice", b'{"model": "minilm-rerank", "query": "a", "query": "b", "documents": ["c"]}', "query", "duplicate_key"),
    Row("no query", {"model": "minilm-rerank", "documents": ["a"]}, "query", "missing_required_parameter"),
    Row("an empty query", {**DOCUMENTS, "query": ""}, "query", "empty_input"),
    Row("a query too long", {**DOCUMENTS, "query": LONG}, "query", "context_length_exceeded"),
    Row("a number as query", {**DOCUMENTS, "query": 5}, "query", "invalid_type"),
    Row("documents left out", RERANK, "documents", "missing_required_parameter"),
    Row("no documents", {**RERANK, "documents": []}, "documents", "empty_input"),
    Row("documents as a string", {**RERANK, "documents": "an apple"}, "documents", "invalid_type"),
    Row("documents over the limit", {**RERANK, "documents": ["a"] * 51}, "documents", "too_many_inputs"),
    Row("an empty document", {**RERANK, "documents": ["a", ""]}, "documents[1]", "empty_input"),
    Row("an object with empty text", {**RERANK, "documents": ["a", {"text": ""}]}, "documents[1].text", "empty_input"),
    Row("an object without text", {**RERANK, "documents": [{"title": "a"}]}, "documents[0].text", "missing_required_parameter"),
    Row("an object whose text is a number", {**RERANK, "documents": [{"text": 5}]}, "documents[0].text", "invalid_type"),
    Row("a number as document", {**RERANK, "documents": ["a", 5]}, "documents[1]", "invalid_type"),
    Row("a NUL character", {**RERANK, "documents": ["a", "b\0"]}, "documents[1]", "invalid_value"),
    Row("top_n of 0", {**DOCUMENTS, "top_n": 0}, "top_n", "invalid_value"),
    Row("top_n of -1", {**DOCUMENTS, "top_n": -1}, "top_n", "invalid_value"),
    Row("top_k of 0", {**DOCUMENTS, "top_k": 0}, "top_k", "invalid_value"),
    Row("top_n above max_top_k", {**DOCUMENTS, "top_n": 51}, "top_n", "invalid_value"),
    Row("top_n beyond 64 bits", {**DOCUMENTS, "top_n": 2**70}, "top_n", "invalid_type"),
    Row("top_n as a string", {**DOCUMENTS, "top_n": "1"}, "top_n", "invalid_type"),
    Row("return_documents as a string", {**DOCUMENTS, "return_documents": "yes"}, "return_documents", "invalid_type"),
    Row("max_tokens_per_doc of 0", {**DOCUMENTS, "max_tokens_per_doc": 0}, "max_tokens_per_doc", "invalid_value"),
    Row("an unknown model", {**DOCUMENTS, "model": "nope"}, "model", "model_not_found", 404),
    Row("a model of the other task", {**DOCUMENTS, "model": "minilm"}, "model", "model_not_found", 404),
)

NATIVE_EMBEDS = (
    Row("no model", {"inputs": [{"text": "hello"}]}, "model", "missing_required_parameter"),
    Row("no inputs", MODEL, "inputs", "empty_input"),
    Row("an empty string", {**MODEL, "inputs": [{"text": ""}]}, "inputs[0].text", "empty_input"),
    Row("neither text nor ids", {**MODEL, "inputs": [{}]}, "inputs[0].text", "empty_input"),
    Row("an empty string among good ones", {**MODEL, "inputs": [{"text": "a"}, {"text": ""}]}, "inputs[1].text", "empty_input"),
    Row("no token ids", {**MODEL, "inputs": [{"token_ids": {"ids": []}}]}, "inputs[0].token_ids", "empty_input"),
    Row("a list over the limit", {**MODEL, "inputs": [{"text": "a"}] * 2049}, "inputs", "too_many_inputs"),
    Row("a text too long", {**MODEL, "inputs": [{"text": LONG}]}, "inputs[0].text", "context_length_exceeded"),
    Row(
        "a text too long, refused in words",
        {**MODEL, "inputs": [{"text": LONG}], "truncation": "NONE"},
        "inputs[0].text",
        "context_length_exceeded",
    ),
    Row("a negative token id", {**MODEL, "inputs": [{"token_ids": {"ids": [-1]}}]}, "inputs[0].token_ids", "invalid_value"),
    Row("a token id too large", {**MODEL, "inputs": [{"token_ids": {"ids": [30_522]}}]}, "inputs[0].token_ids", "invalid_value"),
    Row("an unknown model", {**TEXTS, "model": "nope"}, "model", "model_not_found", 404),
    Row("a model of the other task", {**TEXTS, "model": "minilm-rerank"}, "model", "model_not_found", 404),
    Row("dimensions on a model that cannot", {**TEXTS, "dimensions": 64}, "dimensions", "invalid_value"),
    Row("a NUL character", {**MODEL, "inputs": [{"text": "hel\0lo"}]}, "inputs[0].text", "invalid_value"),
    Row("a prompt and a prompt's name", {**TEXTS, "prompt": "a", "prompt_name": "b"}, "prompt", "invalid_value"),
    Row("an unknown number for an enum", {**TEXTS, "truncation": 9}, "truncation", "invalid_value"),
    Row("an output that the model does not give", {**TEXTS, "outputs": ["DENSE", "SPARSE"]}, "outputs", "invalid_value"),
    Row("an unknown number for an output", {**TEXTS, "outputs": [9]}, "outputs", "invalid_value"),
    Row("an unknown number for a value type", {**TEXTS, "value_type": 9}, "value_type", "invalid_value"),
    Row("int8 of vectors of any length", {**TEXTS, "value_type": "INT8", "normalize": False}, "value_type", "invalid_value"),
    Row("an instruction to a model that takes none", {**TEXTS, "instruction": "find cats"}, "instruction", "invalid_value"),
    Row("malformed", b'{"model": "minilm" "inputs"}', None, "invalid_value", over_grpc=False),
    Row("cut off", b'{"model": "minilm", "inputs": [{"text": "hel', None, "invalid_value", over_grpc=False),
    Row("an array", b"[]", None, "invalid_value", over_grpc=False),
    Row("nested 20,000 deep", b'{"model": "minilm", "inputs": ' + NOT_A_LEVEL + b"}", None, "invalid_value", over_grpc=False),
    Row("a lone surrogate", rb'{"model": "minilm", "inputs": [{"text": "\ud800"}]}', None, "invalid_value", over_grpc=False),
    Row("invalid UTF-8", b'{"model": "minilm", "inputs": [{"text": "\xff"}]}', None, "invalid_value", over_grpc=False),
    Row("strings as inputs", {**MODEL, "inputs": ["hello"]}, "inputs[0]", "invalid_value", over_grpc=False),
    Row("a number as model", {**TEXTS, "model": 5}, "model", "invalid_value", over_grpc=False),
    Row(
        "a token id beyond 64 bits",
        {**MODEL, "inputs": [{"token_ids": {"ids": [2**70]}}]},
        "inputs[0].token_ids.ids[0]",
        "invalid_value",
        over_grpc=False,
    ),
    Row(
        "a token id that is no integer",
        {**MODEL, "inputs": [{"token_ids": {"ids": [1.5]}}]},
        "inputs[0].token_ids.ids[0]",
        "invalid_value",
        over_grpc=False,
    ),
    Row("an unknown truncation", {**TEXTS, "truncation": "MIDDLE"}, "truncation", "invalid_value", over_grpc=False),
)

NATIVE_RERANKS = (
    Row("an empty query", {**PAIRS, "query": ""}, "query", "empty_input"),
    Row("no documents", RERANK, "documents", "empty_input"),
    Row("documents without text", {**RERANK, "documents": [{}]}, "documents[0].text", "empty_input"),
    Row("documents over the limit", {**RERANK, "documents": [{"text": "a"}] * 51}, "documents", "too_many_inputs"),
    Row("a document too long", {**RERANK, "documents": [{"text": LONG}]}, "documents[0].text", "context_length_exceeded"),
    Row("top_n of 0", {**PAIRS, "top_n": 0}, "top_n", "invalid_value"),
    Row("top_n of -1", {**PAIRS, "top_n": -1}, "top_n", "invalid_value"),
    Row("top_n above max_top_k", {**PAIRS, "top_n": 51}, "top_n", "invalid_value"),
    Row("an unknown model", {**PAIRS, "model": "nope"}, "model", "model_not_found", 404),
    Row("a model of the other task", {**PAIRS, "model": "minilm"}, "model", "model_not_found", 404),
    Row("strings as documents", {**RERANK, "documents": ["an apple"]}, "documents[0]", "invalid_value", over_grpc=False),
)


def cases(path: str, rows: tuple[Row, ...]) -> list[Any]:
    """Return the rows as parameters of a test, named by path and fault."""
    return [pytest.param(path, row, id=f"{path}: {row.name}") for row in rows]


@pytest.fixture(scope="module")
def channel(mesh: Mesh) -> Iterator[grpc.Channel]:
    """A channel to the edge."""
    with grpc.insecure_channel(mesh.edge, options=[("grpc.max_send_message_length", -1)]) as found:
        yield found


@pytest.fixture
def still_works(rest: httpx.Client) -> Iterator[None]:
    """Call the mesh rightly after the test: whatever was sent, the next good request is answered."""
    yield
    answer = rest.post("/v1/embeddings", json={**MODEL, "input": "hello"})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"][0]["embedding"]) == 384


@pytest.mark.usefixtures("still_works")
@pytest.mark.parametrize(
    ("path", "row"),
    [
        *cases("/v1/embeddings", EMBEDDINGS),
        *cases("/v1/rerank", RERANKS),
        *cases("/v2/rerank", RERANKS),
        *cases("/v2/embed", COHERE_EMBEDS),
        *cases("/quadrate/v1/embed", NATIVE_EMBEDS),
        *cases("/quadrate/v1/rerank", NATIVE_RERANKS),
    ],
)
def test_a_bad_body_is_refused_in_the_shape_of_its_api(path: str, row: Row, rest: httpx.Client, channel: grpc.Channel) -> None:
    """Status, type, param, code and a sentence over REST; status, reason and param over gRPC."""
    check_rest(path, row, rest.post(path, content=row.data, headers={"content-type": "application/json"}))
    if row.over_grpc:
        check_grpc(row, refused(channel, path, row))


def check_rest(path: str, row: Row, answer: httpx.Response) -> None:
    """Assert what a REST caller sees."""
    assert answer.status_code == row.status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    error = body["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", row.param, row.code), error
    assert len(error["message"]) > 20
    assert "Traceback" not in error["message"]
    is_coheres = path in {"/v1/rerank", "/v2/rerank", "/v2/embed"}
    assert body == ({"error": error, "message": error["message"]} if is_coheres else {"error": error})


def check_grpc(row: Row, error: grpc.RpcError) -> None:
    """Assert what a gRPC caller sees."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    assert error.code().name == GRPC_STATUS[row.status]
    assert (info.reason, info.metadata.get("param")) == (row.code.upper(), row.param)
    assert error.details() == status.message


def refused(channel: grpc.Channel, path: str, row: Row) -> grpc.RpcError:
    """Call the RPC behind a path with a row's body and return how it failed."""
    body = HttpBody(content_type="application/json", data=row.data)
    with pytest.raises(grpc.RpcError) as failure:
        match path:
            case "/v1/embeddings":
                OpenAiServiceStub(channel).CreateEmbedding(body, timeout=30)
            case "/v1/rerank":
                CohereServiceStub(channel).RerankV1(body, timeout=30)
            case "/v2/rerank":
                CohereServiceStub(channel).RerankV2(body, timeout=30)
            case "/v2/embed":
                CohereServiceStub(channel).EmbedV2(body, timeout=30)
            case "/quadrate/v1/embed":
                EmbedServiceStub(channel).Embed(json_format.ParseDict(row.body, EmbedRequest()), timeout=30)
            case _:
                RerankServiceStub(channel).Rerank(json_format.ParseDict(row.body, RerankRequest()), timeout=30)
    error: grpc.RpcError = failure.value
    return error


@pytest.mark.usefixtures("still_works")
@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        pytest.param("GET", "/nope", {}, 404, "not_found", id="unknown path"),
        pytest.param("POST", "/v1/embeddings/", {}, 404, "not_found", id="unknown path, a slash too many"),
        pytest.param("GET", "/metrics/mesh", {}, 404, "not_found", id="a path of the gateway's own port"),
        pytest.param("GET", "/v1/models/nope", {}, 404, "model_not_found", id="unknown model in a path"),
        pytest.param("GET", "/quadrate/v1/models/nope", {}, 404, "model_not_found", id="unknown model in a native path"),
        pytest.param("GET", "/v1/embeddings", {}, 405, "method_not_allowed", id="GET where POST is due"),
        pytest.param("PUT", "/v2/rerank", {}, 405, "method_not_allowed", id="PUT where POST is due"),
        pytest.param("GET", "/v2/embed", {}, 405, "method_not_allowed", id="GET where Cohere posts"),
        pytest.param("DELETE", "/v1/models", {}, 405, "method_not_allowed", id="DELETE where GET is due"),
        pytest.param("POST", "/health/ready", {}, 405, "method_not_allowed", id="POST where GET is due"),
        pytest.param("POST", "/v1/embeddings", {"content-type": "text/plain"}, 415, "unsupported_media_type", id="plain text"),
        pytest.param("POST", "/v2/rerank", {"content-type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type", id="a form"),
        pytest.param("POST", "/quadrate/v1/embed", {"content-encoding": "gzip"}, 415, "unsupported_media_type", id="compressed"),
        pytest.param("GET", "/v1/models", {"x-long": "a" * 100_000}, 431, "headers_too_large", id="a header of 100 kB"),
    ],
)
def test_what_http_itself_forbids_is_told_in_the_same_shape(
    method: str, path: str, headers: dict[str, str], status: int, code: str, rest: httpx.Client
) -> None:
    """Errors that Envoy makes look like ours."""
    answer = rest.request(method, path, headers=headers, content=b"{}" if method == "POST" else None)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert error["param"] == ("model" if code == "model_not_found" else None)
    if status == 405:
        assert set(answer.headers["allow"].split(", ")) in ({"POST"}, {"GET"}, {"GET", "HEAD"})


@pytest.mark.usefixtures("still_works")
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/rerank", "/v2/embed", "/quadrate/v1/embed"])
@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "in chunks"])
def test_a_body_over_the_limit_is_413(path: str, rest: httpx.Client, *, chunked: bool) -> None:
    """One byte more than 8 MiB is refused, whether its length is told before or not."""
    body = b'{"model": "minilm", "input": "' + b"a" * BODY_LIMIT_BYTES + b'"}'
    content = (body[start : start + 65_536] for start in range(0, len(body), 65_536)) if chunked else body
    try:
        answer = rest.post(path, content=content)
    except (httpx.WriteError, httpx.RemoteProtocolError):
        return  # The answer may be there before the body is sent, and the connection closed: HTTP/1.1 has no better way.
    assert answer.status_code == 413, answer.text
    assert answer.json()["error"]["code"] == "request_too_large"


@pytest.mark.usefixtures("still_works")
def test_a_body_just_under_the_limit_is_read(rest: httpx.Client) -> None:
    """The limit is 8 MiB and not less: such a body reaches the gateway, which finds its text too long."""
    body = b'{"model": "minilm", "input": "' + b"a " * (BODY_LIMIT_BYTES // 2 - 100) + b'"}'
    answer = rest.post("/v1/embeddings", content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.usefixtures("still_works")
def test_a_message_over_the_limit_is_refused_over_grpc(channel: grpc.Channel) -> None:
    """The answer of gRPC itself to a message that is too large: RESOURCE_EXHAUSTED, the size and the limit named."""
    with pytest.raises(grpc.RpcError) as failure:
        EmbedServiceStub(channel).Embed(EmbedRequest(model="minilm", inputs=[Input(text="a" * 2 * BODY_LIMIT_BYTES)]), timeout=30)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(2 * BODY_LIMIT_BYTES)[:4] in failure.value.details()


@pytest.mark.usefixtures("still_works")
def test_metadata_of_100_kb_is_refused_over_grpc(channel: grpc.Channel) -> None:
    """A gRPC caller's oversized metadata fails its own call and nobody else's."""
    with pytest.raises(grpc.RpcError):
        EmbedServiceStub(channel).Embed(EmbedRequest(model="minilm"), timeout=30, metadata=(("x-long", "a" * 100_000),))


@pytest.mark.usefixtures("still_works")
def test_an_unknown_method_is_unimplemented_over_grpc(channel: grpc.Channel) -> None:
    """A service or method that is not there is UNIMPLEMENTED, as gRPC has it."""
    for method in ("/quadrate.v1.EmbedService/Nope", "/quadrate.v9.EmbedService/Embed", "/nope.Service/Nope"):
        with pytest.raises(grpc.RpcError) as failure:
            channel.unary_unary(method)(b"", timeout=30)
        assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED, method


@pytest.mark.usefixtures("still_works")
def test_top_n_above_the_number_of_documents_answers_all(rest: httpx.Client) -> None:
    """Asking for more than there are is no mistake."""
    answer = rest.post("/v2/rerank", json={**DOCUMENTS, "top_n": 50})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"]) == 2


@pytest.mark.usefixtures("still_works")
def test_json_under_curls_default_content_type_is_read(rest: httpx.Client) -> None:
    """`curl -d` says application/x-www-form-urlencoded of everything."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert rest.post("/v1/embeddings", content=json.dumps({**MODEL, "input": "hello"}), headers=headers).status_code == 200


@pytest.mark.usefixtures("still_works")
def test_unknown_query_parameters_are_ignored(rest: httpx.Client) -> None:
    """A parameter that means nothing changes nothing, and none takes the place of a path or a body."""
    plain = rest.get("/v1/models/minilm").json()
    assert rest.get("/v1/models/minilm?model=nope&a.b=c").json() == plain
    assert rest.post("/v1/embeddings?model=nope", json={**MODEL, "input": "hello"}).status_code == 200


@pytest.mark.usefixtures("still_works")
@pytest.mark.parametrize(("path", "body"), [("/v1/embeddings", {**MODEL, "input": "hello"}), ("/quadrate/v1/embed", TEXTS)])
def test_a_deadline_already_past_is_504(path: str, body: dict[str, Any], rest: httpx.Client) -> None:
    """A caller that has no time left is told so, in the shape of the others."""
    answer = rest.post(path, json=body, headers={"grpc-timeout": "1n"})
    assert answer.status_code == 504, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("timeout_error", None, "deadline_exceeded")


@pytest.mark.usefixtures("still_works")
def test_a_deadline_already_past_is_deadline_exceeded_over_grpc(channel: grpc.Channel) -> None:
    """The same over gRPC; the client's own clock may say so first."""
    with pytest.raises(grpc.RpcError) as failure:
        EmbedServiceStub(channel).Embed(json_format.ParseDict(TEXTS, EmbedRequest()), timeout=0.0005)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.usefixtures("still_works")
def test_a_body_that_breaks_off_harms_nobody(mesh: Mesh) -> None:
    """A caller that promises 1,000 bytes, sends 10 and goes, gets nothing and leaves nothing."""
    with socket.create_connection(("127.0.0.1", mesh.ports["port"]), timeout=10) as connection:
        connection.sendall(b'POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n{"model": ')
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""


@pytest.mark.usefixtures("still_works")
async def test_a_client_gone_half_way_harms_nobody(mesh: Mesh) -> None:
    """Callers that hang up while the model works free their places."""
    body = {**MODEL, "input": ["a word and another one " * 20] * 64}
    async with httpx.AsyncClient(base_url=mesh.url, timeout=30) as client:
        calls = [asyncio.create_task(client.post("/v1/embeddings", json=body)) for _ in range(8)]
        await client.get("/v1/models")  # By the time this is answered, the others have arrived.
        for call in calls:
            call.cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) or one.status_code == 200 for one in done)
        answer = await client.post("/v1/embeddings", json={**MODEL, "input": "hello"})
        assert answer.status_code == 200, answer.text
