"""Quadrate's own API: native REST, generated stubs, grpcurl, gRPC-Web; through the edge and directly, on every process."""

from __future__ import annotations

import json
import struct
import subprocess
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quadrate.v1 import embed_pb2, embed_pb2_grpc, model_pb2, model_pb2_grpc, options_pb2, rerank_pb2, rerank_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.e2e.conftest import Mesh, Ranking, Reference

Run = "Callable[..., Any]"
EVERY = ("edge", "gateway", "embed", "rerank")


def target_of(mesh: Mesh, name: str) -> str:
    """Return where a process speaks gRPC."""
    return mesh.edge if name == "edge" else mesh.target(name)


def texts(reference: Reference) -> list[options_pb2.Input]:
    """Return the texts as inputs."""
    return [options_pb2.Input(text=text) for text in reference.texts]


def test_native_rest_embeds(rest: httpx.Client, reference: Reference) -> None:
    """The transcoder prints snake_case, zeros included, and the vectors as float32."""
    answer = rest.post("/quadrate/v1/embed", json={"model": "minilm", "inputs": [{"text": text} for text in reference.texts]})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    reference.check([one["values"] for one in found["embeddings"]])
    assert [one["index"] for one in found["embeddings"]] == list(range(len(reference.texts)))
    assert found["usage"]["tokens"] == sum(one["usage"]["tokens"] for one in found["embeddings"])
    assert found["usage"]["tokens_cut"] == 0
    assert found["provenance"]["precision"] == "EXACT"
    assert found["provenance"]["provider"] == "CPUExecutionProvider"
    assert found["provenance"]["normalized"] is True
    assert {"tokenize_seconds", "queue_seconds", "inference_seconds", "total_seconds"} <= set(found["timings"])


def test_all_golden_texts_are_embedded_as_the_reference_does(rest: httpx.Client, whole_reference: Reference) -> None:
    """200 texts of every length and many scripts, cut on the right where they are too long, over native REST and OpenAI's."""
    inputs = [{"text": text} for text in whole_reference.texts]
    native = rest.post("/quadrate/v1/embed", json={"model": "minilm", "inputs": inputs, "truncation": "RIGHT"}).json()
    whole_reference.check([one["values"] for one in native["embeddings"]])
    assert native["usage"]["tokens_cut"] > 0
    openai = rest.post("/v1/embeddings", json={"model": "minilm", "input": whole_reference.texts, "truncate": "right"}).json()
    whole_reference.check([one["embedding"] for one in openai["data"]])


def test_native_rest_reranks(rest: httpx.Client, ranking: Ranking) -> None:
    """`document` is an object with `text`."""
    body = {
        "model": "minilm-rerank",
        "query": ranking.query,
        "documents": [{"text": text} for text in ranking.documents],
        "return_documents": True,
    }
    found = rest.post("/quadrate/v1/rerank", json=body).json()
    ranking.check([(result["index"], result["relevance_score"]) for result in found["results"]])
    assert [result["document"] for result in found["results"]] == [
        {"text": ranking.documents[result["index"]]} for result in found["results"]
    ]


def test_native_rest_says_what_models_there_are(rest: httpx.Client) -> None:
    """Cards, all of them or for one task."""
    assert [model["name"] for model in rest.get("/quadrate/v1/models").json()["models"]] == ["minilm", "minilm-rerank"]
    assert [model["name"] for model in rest.get("/quadrate/v1/models?task=TASK_RERANK").json()["models"]] == ["minilm-rerank"]
    card = rest.get("/quadrate/v1/models/minilm").json()["model"]
    assert (card["dimensions"], card["state"], card["task"]) == (384, "MODEL_STATE_READY", "TASK_EMBED")


def test_tokenising_tells_the_charge(rest: httpx.Client, reference: Reference) -> None:
    """Tokenize counts what Embed charges, text by text."""
    inputs = [{"text": text} for text in reference.texts]
    tokenized = rest.post("/quadrate/v1/tokenize", json={"model": "minilm", "inputs": inputs}).json()
    embedded = rest.post("/quadrate/v1/embed", json={"model": "minilm", "inputs": inputs}).json()
    assert tokenized["usage"] == embedded["usage"]
    assert [len(one["ids"]) for one in tokenized["tokenizations"]] == [one["usage"]["tokens"] for one in embedded["embeddings"]]


@pytest.mark.parametrize("name", ["edge", "gateway", "embed"])
def test_stubs_embed(name: str, mesh: Mesh, reference: Reference) -> None:
    """Gateway and worker serve the same contract, and the edge lets it through."""
    with grpc.insecure_channel(target_of(mesh, name)) as channel:
        request = embed_pb2.EmbedRequest(model="minilm", inputs=texts(reference))
        answer, call = embed_pb2_grpc.EmbedServiceStub(channel).Embed.with_call(request, timeout=30)
    reference.check([one.values for one in answer.embeddings])
    assert answer.model == "minilm"
    assert "x-request-id" in {key for key, _ in (*call.initial_metadata(), *call.trailing_metadata())}


@pytest.mark.parametrize("name", ["edge", "gateway", "rerank"])
def test_stubs_rerank(name: str, mesh: Mesh, ranking: Ranking) -> None:
    """The same for reranking."""
    documents = [options_pb2.Input(text=text) for text in ranking.documents]
    with grpc.insecure_channel(target_of(mesh, name)) as channel:
        request = rerank_pb2.RerankRequest(model="minilm-rerank", query=ranking.query, documents=documents)
        answer = rerank_pb2_grpc.RerankServiceStub(channel).Rerank(request, timeout=30)
    ranking.check([(result.index, result.relevance_score) for result in answer.results])


@pytest.mark.parametrize("name", ["edge", "gateway", "embed"])
def test_stubs_get_the_tokenizer(name: str, mesh: Mesh) -> None:
    """The tokenizer comes in pieces that join to the file whose hash the card tells."""
    with grpc.insecure_channel(target_of(mesh, name)) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        pieces = [piece.chunk for piece in stub.GetTokenizer(model_pb2.GetTokenizerRequest(model="minilm"), timeout=30)]
        card = stub.GetModel(model_pb2.GetModelRequest(model="minilm"), timeout=30).model
    assert json.loads(b"".join(pieces))["model"]["type"] == "WordPiece"
    assert card.vocabulary_size == 30_522


@pytest.mark.parametrize("name", EVERY)
def test_grpcurl_lists_and_describes(name: str, mesh: Mesh, require_program: Callable[[str], str]) -> None:
    """Reflection works on every port, Envoy's included."""
    target = target_of(mesh, name)
    services = grpcurl(require_program, target, "list").split()
    assert {"grpc.health.v1.Health", "quadrate.v1.ModelService"} <= set(services)
    assert ("quadrate.v1.EmbedService" in services) == (name != "rerank")
    service = "quadrate.v1.RerankService" if name == "rerank" else "quadrate.v1.EmbedService"
    assert f"{service} is a service" in grpcurl(require_program, target, "describe", service)


@pytest.mark.parametrize("name", ["edge", "gateway", "embed"])
def test_grpcurl_embeds(name: str, mesh: Mesh, reference: Reference, require_program: Callable[[str], str]) -> None:
    """The call that the issue names, as it is typed."""
    body = json.dumps({"model": "minilm", "inputs": [{"text": reference.texts[0]}]})
    answer = json.loads(grpcurl(require_program, target_of(mesh, name), "quadrate.v1.EmbedService/Embed", data=body))
    reference.check([answer["embeddings"][0]["values"]], [0])


@pytest.mark.parametrize("name", ["edge", "gateway", "rerank"])
def test_grpcurl_reranks(name: str, mesh: Mesh, ranking: Ranking, require_program: Callable[[str], str]) -> None:
    """The other call that the issue names."""
    body = json.dumps({"model": "minilm-rerank", "query": ranking.query, "documents": [{"text": text} for text in ranking.documents]})
    answer = json.loads(grpcurl(require_program, target_of(mesh, name), "quadrate.v1.RerankService/Rerank", data=body))
    ranking.check([(result["index"], result["relevanceScore"]) for result in answer["results"]])


def grpcurl(require_program: Callable[[str], str], target: str, *words: str, data: str | None = None) -> str:
    """Run grpcurl and return what it prints."""
    said = [] if data is None else ["-d", data]
    line = [require_program("grpcurl"), "-plaintext", "-emit-defaults", "-max-time", "30", *said, target, *words]
    return subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout


def web_frames(data: bytes) -> list[tuple[int, bytes]]:
    """Return the frames of a gRPC-Web body: a flag, 0 for a message and 128 for trailers, and the bytes."""
    frames = []
    while data:
        flag, length = struct.unpack_from(">BI", data)
        frames.append((flag, data[5 : 5 + length]))
        data = data[5 + length :]
    return frames


def call_web(rest: httpx.Client, method: str, message: bytes) -> httpx.Response:
    """Call a unary RPC as a browser does."""
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    return rest.post(f"/{method}", content=struct.pack(">BI", 0, len(message)) + message, headers=headers)


def test_grpc_web_embeds(rest: httpx.Client, reference: Reference) -> None:
    """A message frame and a trailers frame, over HTTP/1.1."""
    request = embed_pb2.EmbedRequest(model="minilm", inputs=texts(reference))
    answer = call_web(rest, "quadrate.v1.EmbedService/Embed", request.SerializeToString())
    assert answer.headers["content-type"] == "application/grpc-web+proto"
    (flag, message), (last, trailers) = web_frames(answer.content)
    assert (flag, last) == (0, 128)
    assert b"grpc-status:0" in trailers
    reference.check([one.values for one in embed_pb2.EmbedResponse.FromString(message).embeddings])


def test_grpc_web_tells_errors(rest: httpx.Client) -> None:
    """Status and sentence stand in the headers where there is no message."""
    answer = call_web(rest, "quadrate.v1.EmbedService/Embed", embed_pb2.EmbedRequest(model="nope").SerializeToString())
    assert answer.headers["grpc-status"] == "5"
    assert "nope" in answer.headers["grpc-message"]


@pytest.mark.parametrize("name", EVERY)
def test_health_is_told_per_service_and_per_model(name: str, mesh: Mesh) -> None:
    """Check answers for the process, its services and its models, and NOT_FOUND for anything else."""
    service, model = ("RerankService", "minilm-rerank") if name == "rerank" else ("EmbedService", "minilm")
    with grpc.insecure_channel(target_of(mesh, name)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for asked in ("", f"quadrate.v1.{service}", "quadrate.v1.ModelService", f"model/{model}"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=asked), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, asked
        with pytest.raises(grpc.RpcError) as failure:
            stub.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=10)
        assert failure.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", EVERY)
def test_health_is_watched(name: str, mesh: Mesh) -> None:
    """Watch answers at once and stays open until the caller leaves."""
    with grpc.insecure_channel(target_of(mesh, name)) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert watch.is_active()
        watch.cancel()


def test_grpc_health_probe_agrees(mesh: Mesh, require_program: Callable[[str], str]) -> None:
    """The probe of Kubernetes' older days, on every port."""
    probe = require_program("grpc_health_probe")
    for name in EVERY:
        subprocess.run([probe, f"-addr={target_of(mesh, name)}"], check=True, capture_output=True, timeout=30)
