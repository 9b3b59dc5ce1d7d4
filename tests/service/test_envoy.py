"""Envoy with our configuration, before a stand-in gateway: the status shim, its own errors, what it strips, deadlines."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc.aio
import httpx
import pytest
from google.api.httpbody_pb2 import HttpBody

from quadrate.config.edge import EdgeSettings
from quadrate.errors import ERRORS, DeadlineExceeded, QuadrateError, Unavailable, UpstreamFailed
from quadrate.openai.v1 import openai_pb2_grpc
from quadrate.testing.ports import free_ports
from tests.service.edge import StandIn, before, envoy, serving

if TYPE_CHECKING:
    from pathlib import Path

    from quadrate.server import Server

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def client(edge: tuple[httpx.AsyncClient, Path]) -> httpx.AsyncClient:
    """A client of an edge before the stand-in."""
    return edge[0]


@pytest.fixture
def gateway(stand_in: tuple[Server, StandIn]) -> StandIn:
    """The stand-in, as new."""
    found = stand_in[1]
    found.failure, found.hangs, found.has_tried = None, False, False
    found.calls.clear()
    return found


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
async def test_every_error_of_ours_reaches_rest_whole(error: type[QuadrateError], client: httpx.AsyncClient, gateway: StandIn) -> None:
    """Status, body, `retry-after` and request id of each error, in OpenAI's shape and in Cohere's. It pins the status shim."""
    gateway.failure = error("This is why: ünï.", param="input[2]", retry_after_seconds=1.5)
    told = {"message": "This is why: ünï.", "type": error.type, "param": "input[2]", "code": gateway.failure.code}
    coheres = {"error": told, "message": told["message"]}
    for path, body in (("/v1/embeddings", {"error": told}), ("/v2/rerank", coheres), ("/v2/embed", coheres)):
        answer = await client.post(path, content=b"{}")
        assert answer.status_code == error.http_status
        assert answer.json() == body
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["retry-after"] == "2"
        assert answer.headers["x-request-id"] == gateway.calls[-1].request_id


async def test_what_is_null_is_printed(client: httpx.AsyncClient, gateway: StandIn) -> None:
    """`param` and `code` are always there, as OpenAI's clients expect."""
    gateway.failure = QuadrateError("Nobody is to blame.")
    error = (await client.post("/v1/embeddings", content=b"{}")).json()["error"]
    assert error == {"message": "Nobody is to blame.", "type": "server_error", "param": None, "code": None}


async def test_what_a_lost_gateway_says_is_tried_again_and_nothing_else(client: httpx.AsyncClient, gateway: StandIn) -> None:
    """A gateway that says UNAVAILABLE, or CANCELLED as one that just ends, is followed by three tries; a refusal is a refusal.

    So is the word of an upstream that answered nonsense: it would answer another gateway so, too.
    """
    for error in ERRORS:
        gateway.failure, _ = error("No."), gateway.calls.clear()
        await client.post("/v1/embeddings", content=b"{}")
        is_safe = error.status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) and error is not UpstreamFailed
        assert len(gateway.calls) == (4 if is_safe else 1), error


@pytest.mark.parametrize("error", [Unavailable, UpstreamFailed])
async def test_what_a_gateway_has_tried_elsewhere_is_not_tried_once_more(
    error: type[QuadrateError], client: httpx.AsyncClient, gateway: StandIn
) -> None:
    """Or four tries of the gateway would become sixteen, and its budget for them mean nothing; callers see nothing of the mark."""
    gateway.failure, gateway.has_tried = error("No."), True
    answer = await client.post("/v1/embeddings", content=b"{}")
    assert answer.status_code == error.http_status
    assert len(gateway.calls) == 1
    assert "x-envoy-ratelimited" not in answer.headers
    async with grpc.aio.insecure_channel(f"{client.base_url.host}:{client.base_url.port}") as channel:
        call = openai_pb2_grpc.OpenAiServiceStub(channel).CreateEmbedding(HttpBody(), timeout=10)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert "x-envoy-ratelimited" not in {key for key, _ in (*await call.initial_metadata(), *await call.trailing_metadata())}
    assert len(gateway.calls) == 2


async def test_failures_of_upstreams_do_not_count_against_a_gateway(tmp_path: Path) -> None:
    """A model whose server is broken, and callers with short deadlines, must not cost the others half of the gateways."""
    first, second = StandIn(), StandIn()
    async with serving(first) as one, serving(second) as other:
        settings = before(one, other)
        async with envoy(settings, tmp_path) as client:
            for error in (UpstreamFailed, DeadlineExceeded):
                first.failure = second.failure = error("No.")
                for _ in range(20):
                    await client.post("/v1/embeddings", content=b"{}")
            first.hangs = second.hangs = True
            for _ in range(8):
                await client.post("/v1/embeddings", content=b"{}", headers={"grpc-timeout": "50m"})
            async with httpx.AsyncClient(base_url=f"http://{settings.admin}") as door:
                stats = (await door.get("/stats?filter=cluster.gateway.outlier_detection.ejections_enforced_total")).text
    assert first.calls
    assert second.calls
    assert stats.strip().endswith(": 0"), stats


async def test_callers_cannot_pretend_to_be_the_edge(client: httpx.AsyncClient, gateway: StandIn) -> None:
    """Headers that the gateway believes are stripped from callers; names with underscores are dropped."""
    spoofed = {
        "x-envoy-original-path": "/spoof",
        "x-real-ip": "1.2.3.4",
        "x-request-id": "mine",
        "x-envoy-retry-on": "5xx",
        "x_principal": "root",
    }
    async with grpc.aio.insecure_channel(f"{client.base_url.host}:{client.base_url.port}") as channel:
        stub = openai_pb2_grpc.OpenAiServiceStub(channel)
        await stub.CreateEmbedding(HttpBody(), timeout=10, metadata=tuple(spoofed.items()))
    await client.post("/v1/embeddings", content=b"{}", headers=spoofed)
    native, rest = gateway.calls
    assert (native.surface, rest.surface) == ("grpc", "rest")
    assert rest.metadata["x-envoy-original-path"] == "/v1/embeddings"
    for call in (native, rest):
        assert call.request_id != "mine"
        assert not {"x-real-ip", "x-envoy-retry-on", "x_principal"} & set(call.metadata)


async def test_names_with_slashes_reach_the_gateway(client: httpx.AsyncClient, gateway: StandIn) -> None:
    """However they are written, and a query parameter does not take their place."""
    for path in ("a/b", "a%2Fb", "a/b?model=c"):
        assert (await client.get(f"/v1/models/{path}")).status_code == 200
        assert gateway.calls[-1].log["model"] == "a/b"


async def test_no_trace_of_grpc_or_envoy_is_left_in_an_answer(client: httpx.AsyncClient, gateway: StandIn) -> None:
    """REST callers see JSON and a request id, not the wires behind."""
    answer = await client.get("/v1/models")
    assert answer.json() == {"well": True}
    assert set(answer.headers) == {"content-type", "x-request-id", "content-length", "date", "server"}
    assert answer.headers["server"] == "quadrate"


@pytest.mark.parametrize(
    "headers", [{}, {"grpc-timeout": "1S"}, {"grpc-timeout": "1H"}], ids=["the edge's limit", "the caller's", "capped"]
)
async def test_who_hangs_is_given_up(headers: dict[str, str], client: httpx.AsyncClient, gateway: StandIn) -> None:
    """The caller's deadline, or the edge's own where that is earlier, ends in a 504 of our shape; a caller's travels on, capped."""
    gateway.hangs = True
    paths = ("/v1/embeddings", "/v2/rerank", "/v2/embed")
    answers = await asyncio.gather(*(client.post(path, content=b"{}", headers=headers) for path in paths))
    for path, answer in zip(paths, answers, strict=True):
        assert answer.status_code == 504
        body = answer.json()
        assert (body["error"]["type"], body["error"]["code"]) == ("timeout_error", "deadline_exceeded")
        assert ("message" in body) == (path != "/v1/embeddings")
    assert [call.deadline is not None for call in gateway.calls] == [bool(headers)] * len(paths)


@pytest.mark.parametrize(
    "headers",
    [
        {"a-bin": "!!!"},
        {"grpc-trace-bin": "AA=="},
        {"grpc-status": "13"},
        {"grpc-message": "%"},
        {"grpc-encoding": "snappy"},
        {"grpc-accept-encoding": "?"},
        {"o'dd~name": "x"},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_headers_that_grpc_cannot_read_are_left_behind(headers: dict[str, str], client: httpx.AsyncClient, gateway: StandIn) -> None:
    """They mean nothing here; passed on, each would fail the call with a 500 that says nothing."""
    answer = await client.post("/v1/embeddings", json={}, headers=headers)
    assert answer.status_code == 200
    (call,) = gateway.calls
    assert not set(call.metadata) & {"grpc-status", "grpc-message", *(name for name in headers if not name.startswith("grpc"))}


@pytest.mark.parametrize("deadline", ["", "1", "S", "-1S", "1.5S", "123456789S", "1S,2S"])
async def test_a_deadline_that_cannot_be_read_is_the_callers_mistake(deadline: str, client: httpx.AsyncClient, gateway: StandIn) -> None:
    """400 in REST, INVALID_ARGUMENT in gRPC; the gateway would say INTERNAL."""
    answer = await client.post("/v1/embeddings", json={}, headers={"grpc-timeout": deadline})
    assert answer.status_code == 400
    assert "grpc-timeout" in answer.json()["error"]["message"]
    headers = {"grpc-timeout": deadline, "content-type": "application/grpc", "te": "trailers"}
    answer = await client.post("/quadrate.openai.v1.OpenAiService/CreateEmbedding", content=bytes(5), headers=headers)
    assert answer.headers["grpc-status"] == "3"
    assert not gateway.calls


@pytest.mark.parametrize(
    ("method", "path", "content_type", "status"),
    [
        ("GET", "/quadrate.openai.v1.OpenAiService/ListModels", "text/plain", 405),
        ("POST", "/quadrate.openai.v1.OpenAiService/ListModels", "application/json", 415),
        ("POST", "/quadrate.openai.v1.OpenAiService/ListModels", "application/grpc-web+json", 415),
        ("POST", "/quadrate.openai.v1.OpenAiService/ListModels", "application/grpc", 200),
        ("GET", "/v1/models", "application/grpc-web+proto", 415),
        ("GET", "/health/live", "application/grpc-web+proto", 415),
        ("POST", "/v1/embeddings", "application/grpc-web+json", 415),
    ],
)
async def test_what_is_no_grpc_does_not_count_against_a_gateway(
    method: str, path: str, content_type: str, status: int, client: httpx.AsyncClient, gateway: StandIn
) -> None:
    """A gateway would reset it, which the edge takes for a gateway that is gone: it would try three more times, and avoid the gateway."""
    answer = await client.request(method, path, headers={"content-type": content_type})
    assert answer.status_code == status
    assert answer.headers.get("grpc-status", "12") == "12"
    assert not gateway.calls


async def test_expectations_are_not_passed_on(client: httpx.AsyncClient) -> None:
    """What comes from the HTTP port needs nothing but 100-continue, which the edge answers by itself."""
    answer = await client.get("/health/live", headers={"expect": "what I want"})
    assert answer.status_code == 200
    assert (await client.get("/health/live", headers={"x-large": "a" * 30_000})).status_code == 200


async def test_even_a_protocol_that_is_refused_is_told_in_json(client: httpx.AsyncClient) -> None:
    """HTTP/1.0 has no place here; the answer looks like all others."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"GET /v1/models HTTP/1.0\r\n\r\n")
    answer = (await asyncio.wait_for(reader.read(), 10)).decode()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith("HTTP/1.1 426 ")
    assert "content-type: application/json" in answer
    assert '"type":"invalid_request_error"' in answer


async def test_without_a_gateway_all_is_told_in_its_own_shape(tmp_path: Path) -> None:
    """REST, rerank, readiness and gRPC each get their own kind of 503."""
    port, admin, nobody, nobody_http = free_ports(4)
    settings = EdgeSettings(
        port=port, admin=f"127.0.0.1:{admin}", gateways=(f"127.0.0.1:{nobody}",), gateways_http=(f"127.0.0.1:{nobody_http}",), threads=1
    )
    async with envoy(settings, tmp_path) as client:
        plain = await client.post("/v1/embeddings", content=b"{}")
        assert plain.status_code == 503
        assert plain.headers["retry-after"] == "1"
        error = plain.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("server_error", None, "unavailable")
        for path in ("/v1/rerank", "/v2/embed"):
            assert (await client.post(path, content=b"{}")).json() == {"error": error, "message": error["message"]}
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"], ready.json()["upstreams"][0]["name"]) == (503, "unavailable", "gateway")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await openai_pb2_grpc.OpenAiServiceStub(channel).CreateEmbedding(HttpBody(), timeout=10)
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "error" not in (failure.value.details() or "")[:7]
