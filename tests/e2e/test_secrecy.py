"""No key and no token is found anywhere afterwards: sent by every wire, in every form, rightly and wrongly, then looked for everywhere."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
import grpc.aio
import httpx
import psutil
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from quadrate.cli import keys
from quadrate.config.auth import digest
from quadrate.config.shipped import shipped
from quadrate.testing.issuer import Issuer
from quadrate.testing.otlp import Receiver
from quadrate.v1.embed_pb2 import EmbedRequest, EmbedStreamRequest
from quadrate.v1.embed_pb2_grpc import EmbedServiceStub
from quadrate.v1.options_pb2 import Input

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

    from tests.e2e.conftest import Mesh, StartMesh

pytestmark = pytest.mark.asyncio(loop_scope="module")

ARRIVAL_SECONDS = 30
"""Envoy sends its spans every 5 seconds and writes its log every second."""
TELLING = 12
"""So many characters of a secret are as bad as all of it, and appear nowhere by chance."""
EMBEDDING = {"model": "minilm", "input": "hello"}
BODIES: dict[str, Any] = {
    "/v1/embeddings": EMBEDDING,
    "/v1/rerank": {"model": "minilm-rerank", "query": "a", "documents": ["b"]},
    "/v2/rerank": {"model": "minilm-rerank", "query": "a", "documents": ["b"]},
    "/v2/embed": {"model": "minilm", "texts": ["a"], "input_type": "search_query", "embedding_types": ["float"]},
    "/quadrate/v1/embed": {"model": "minilm", "inputs": [{"text": "a"}]},
    "/quadrate/v1/rerank": {"model": "minilm-rerank", "query": "a", "documents": [{"text": "b"}]},
    "/quadrate/v1/tokenize": {"model": "minilm", "inputs": [{"text": "a"}]},
}
GETS = ("/v1/models", "/quadrate/v1/models", "/health/ready", "/health/live", "/metrics", "/openapi.json", "/nowhere", "/v1/embeddings")


class RawReceiver(Receiver):
    """A receiver that also keeps what came as it came: names, attributes, events, messages of statuses."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = bytearray()

    async def Export(self, request: ExportTraceServiceRequest, context: object) -> ExportTraceServiceResponse:  # noqa: N802
        """Keep both."""
        self.raw += request.SerializeToString()
        return await super().Export(request, context)


@dataclass
class Guarded:
    """A traced mesh that asks for keys.

    Args:
        good: Secrets that let a caller in: a plain key, a hashed one, both of one that changes over, a token.
        bad: Secrets that do not: expired, not yet valid, unknown, a forged token.
        told: What was answered to anybody, besides what is asked for when everything is looked through.
        command_lines: Those of all processes of the machine, as far as they were seen.
    """

    mesh: Mesh
    folder: Path
    receiver: RawReceiver
    good: dict[str, str]
    bad: dict[str, str]
    told: list[str] = field(default_factory=list)
    command_lines: set[str] = field(default_factory=set)

    @property
    def secrets(self) -> dict[str, str]:
        """All of them."""
        return self.good | self.bad


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def guarded_mesh(start_mesh: StartMesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """The mesh, its receiver of spans, and everybody's secrets."""
    folder, issuer = tmp_path_factory.mktemp("configs"), Issuer()
    shutil.copytree(shipped("configs"), folder, dirs_exist_ok=True)
    good = {name: keys.made() for name in ("plain", "hashed", "last", "next")} | {"token": issuer.token("carol")}
    bad = {name: keys.made() for name in ("expired", "early", "unknown")}
    bad |= {"old token": issuer.token("carol", exp=1_600_000_000), "forged token": Issuer().token("carol")}
    (folder / "jwks.json").write_bytes(issuer.jwks())
    (folder / "auth.yaml").write_text(_auth_file(folder, issuer, good, bad))
    limits = {"default": {"capacity": 10_000, "refill_rate": 10_000}, "per_api_key": {good["plain"]: {"capacity": 3, "refill_rate": 1}}}
    (folder / "rate_limits.yaml").write_text(json.dumps(limits))
    async with RawReceiver() as receiver:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200", "LOG_LEVEL": "TRACE"}
        environment["ROUTER_ROUTING_RELOAD_INTERVAL_SECONDS"] = "0.2"
        starting = start_mesh("--config", str(folder), environment=environment)
        mesh = await asyncio.to_thread(starting.__enter__)
        yield Guarded(mesh, folder, receiver, good, bad)
        await asyncio.to_thread(starting.__exit__, None, None, None)


def _auth_file(folder: Path, issuer: Issuer, good: dict[str, str], bad: dict[str, str]) -> str:
    return json.dumps(
        {
            "api_keys": [
                good["plain"],
                {"name": "hashed", "sha256": digest(good["hashed"])},
                {"name": "changing", "secrets": [{"key": good["last"]}, {"sha256": digest(good["next"])}]},
                {"name": "expired", "key": bad["expired"], "expires": "2020-01-01T00:00:00Z"},
                {"name": "early", "key": bad["early"], "not_before": "2999-01-01T00:00:00Z"},
            ],
            "jwt": {"issuer": issuer.name, "audience": issuer.audience, "jwks_path": str(folder / "jwks.json")},
        }
    )


def header_forms(secret: str, other: str) -> Iterator[dict[str, str]]:
    """Give every way in which a client may come to send a secret in its headers."""
    yield {"authorization": f"Bearer {secret}"}
    yield {"x-api-key": secret}
    yield {"authorization": f"bearer   {secret}", "x-api-key": secret}
    yield {"authorization": f"Bearer {secret}", "x-api-key": other}
    yield {"authorization": secret}
    yield {"authorization": f"Token {secret}"}
    yield {"authorization": "Basic " + base64.b64encode(f"user:{secret}".encode()).decode()}
    yield {"x-api-key": f"{secret}x"}
    yield {"api-key": secret, "cookie": f"key={secret}", "proxy-authorization": f"Bearer {secret}", "referer": f"http://x/?key={secret}"}


async def test_who_may_is_let_in_and_who_may_not_is_not(guarded_mesh: Guarded) -> None:
    """Over REST and gRPC, by both headers: otherwise looking for secrets would prove nothing."""
    async with (
        httpx.AsyncClient(base_url=guarded_mesh.mesh.url, timeout=30) as client,
        grpc.aio.insecure_channel(guarded_mesh.mesh.edge) as channel,
    ):
        stub = EmbedServiceStub(channel)
        for name, secret in guarded_mesh.secrets.items():
            allowed = name in guarded_mesh.good
            answer = await client.post("/v1/embeddings", json=EMBEDDING, headers={"authorization": f"Bearer {secret}"})
            assert (answer.status_code == 200) is allowed, (name, answer.text)
            code = await _code(
                stub.Embed(EmbedRequest(model="minilm", inputs=[Input(text="a")]), metadata=(("authorization", f"Bearer {secret}"),))
            )
            assert (code is grpc.StatusCode.OK) is allowed, (name, code)
        refused = await client.post("/v1/embeddings", json=EMBEDDING)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "missing_api_key")
        assert refused.headers["www-authenticate"] == "Bearer"


async def test_reflection_asks_for_a_key_and_health_does_not(guarded_mesh: Guarded) -> None:
    """At the edge and at the gateway's own port."""
    for target in (guarded_mesh.mesh.edge, guarded_mesh.mesh.target("gateway")):
        async with grpc.aio.insecure_channel(target) as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            question = reflection_pb2.ServerReflectionRequest(list_services="")
            assert await _code(_first(reflection.ServerReflectionInfo(iter([question])))) is grpc.StatusCode.UNAUTHENTICATED
            answer = await _first(reflection.ServerReflectionInfo(iter([question]), metadata=(("x-api-key", guarded_mesh.good["hashed"]),)))
            assert "quadrate.v1.EmbedService" in {service.name for service in answer.list_services_response.service}


async def test_no_secret_is_found_anywhere(guarded_mesh: Guarded) -> None:
    """Logs at their most talkative, metrics, spans, errors, Envoy's own dumps, what the command prints, process lists, the state folder."""
    sent = await _send_everything(guarded_mesh)
    await _commands(guarded_mesh)
    await _break_the_file(guarded_mesh)
    await _all_has_arrived(guarded_mesh, sent)
    places = await _everywhere(guarded_mesh)
    assert {"logs", "spans", "metrics of 8085", "config_dump", "answers", "state folder", "quadrate keys list"} <= places.keys()
    assert all(places.values()), [name for name, text in places.items() if not text]
    assert '"principal":"hashed"' in places["logs"]
    found = {
        (kind, name): around
        for name, text in places.items()
        for kind, secret in guarded_mesh.secrets.items()
        if (around := _told(secret, text))
    }
    assert not found


async def _send_everything(guarded: Guarded) -> list[str]:
    """Send every secret by every wire in every form; return the ids of the requests that the edge must have logged."""
    ids: list[str] = []
    async with httpx.AsyncClient(base_url=guarded.mesh.url, timeout=30) as client, grpc.aio.insecure_channel(guarded.mesh.edge) as channel:
        for secret in guarded.secrets.values():
            await asyncio.gather(*(_rest(guarded, client, headers, ids) for headers in header_forms(secret, guarded.good["hashed"])))
            await _odd(guarded, client, secret, ids)
            await _grpc(guarded, channel, secret)
            await asyncio.to_thread(_raw_bytes, guarded, secret)
    async with grpc.aio.insecure_channel(guarded.mesh.target("gateway")) as channel:
        for secret in guarded.secrets.values():
            await _grpc(guarded, channel, secret)
    return ids


async def _rest(guarded: Guarded, client: httpx.AsyncClient, headers: dict[str, str], ids: list[str]) -> None:
    for path, body in BODIES.items():
        answer = await client.post(path, json=body, headers=headers)
        guarded.told.append(f"{answer.headers}{answer.text}")
        ids.append(answer.headers["x-request-id"])
    for path in GETS:
        answer = await client.get(path, headers=headers)
        guarded.told.append(f"{answer.headers}{answer.text if path != '/openapi.json' else ''}")


async def _odd(guarded: Guarded, client: httpx.AsyncClient, secret: str, ids: list[str]) -> None:
    """Put a secret where it does not belong: into the query, bodies that cannot be read, headers of gRPC-Web."""
    for path in (f"/v1/embeddings?key={quote(secret)}", f"/v1/models?api_key={quote(secret)}", f"/nowhere?token={quote(secret)}"):
        answer = await client.request("POST" if "embeddings" in path else "GET", path, json=EMBEDDING)
        guarded.told.append(f"{answer.headers}{answer.text}")
        ids.append(answer.headers["x-request-id"])
    header = {"authorization": f"Bearer {secret}"}
    for content in (b'{"model": "minilm", "input": "a", "input": "b"}', b"{", b'{"model": "minilm", "input": "a", "user": 7}'):
        answer = await client.post("/v1/embeddings", content=content, headers=header)
        guarded.told.append(f"{answer.headers}{answer.text}")
    web = header | {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    message = EmbedRequest(model="minilm", inputs=[Input(text="a")]).SerializeToString()
    frame = b"\x00" + len(message).to_bytes(4, "big") + message
    answer = await client.post("/quadrate.v1.EmbedService/Embed", content=frame, headers=web)
    guarded.told.append(f"{answer.headers}{answer.content!r}")


async def _grpc(guarded: Guarded, channel: grpc.aio.Channel, secret: str) -> None:
    stub, request = EmbedServiceStub(channel), EmbedRequest(model="minilm", inputs=[Input(text="a")])
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    for headers in header_forms(secret, guarded.good["hashed"]):
        metadata = tuple(headers.items())
        guarded.told.append(await _outcome(stub.Embed(request, metadata=metadata)))
        guarded.told.append(
            await _outcome(_first(stub.EmbedStream(iter([EmbedStreamRequest(id="1", request=request)]), metadata=metadata)))
        )
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        guarded.told.append(await _outcome(_first(reflection.ServerReflectionInfo(iter([question]), metadata=metadata))))
        guarded.told.append(await _outcome(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), metadata=metadata)))


def _raw_bytes(guarded: Guarded, secret: str) -> None:
    """Send headers that no client library would: bytes that are no UTF-8, two of one name, one that is too long, one that never ends."""
    body = json.dumps(EMBEDDING).encode()
    begin = b"POST /v1/embeddings HTTP/1.1\r\nhost: mesh\r\ncontent-type: application/json\r\n"
    length = b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
    for headers in (
        b"authorization: Bearer %b\xff\xfe\r\n" % secret.encode(),
        b"x-api-key: \xc3%b\r\n" % secret.encode(),
        b"x-api-key: %b\r\nx-api-key: other\r\n" % secret.encode(),
        b"authorization: Bearer %b\r\nauthorization: Bearer %b\r\n" % (secret.encode(), secret.encode()),
        b"authorization: Bearer %b%b\r\n" % (secret.encode(), b"x" * 40_000),
        b"x-api-key: %b\x00\r\n" % secret.encode(),
        b"x-api-key : %b\r\n" % secret.encode(),
    ):
        with socket.create_connection(("127.0.0.1", guarded.mesh.ports["port"]), timeout=30) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(begin + headers + length)
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(65_536):
                    guarded.told.append(part.decode("latin-1"))


async def _commands(guarded: Guarded) -> None:
    """Call by the command, with a good and with a wrong key, and look at all processes of the machine meanwhile."""
    mesh, file = guarded.mesh, guarded.folder / "key"
    file.write_text(guarded.good["hashed"])
    port = ("--port", str(mesh.ports["port"]))
    config = ("--config", str(guarded.folder))
    lines = [
        (("embed", "hello", "--url", mesh.edge), guarded.good["next"]),
        (("embed", "hello", "--url", mesh.edge, "--json"), guarded.bad["unknown"]),
        (("rerank", "a", "b", "--url", mesh.edge, "--key-file", str(file)), guarded.bad["unknown"]),
        (("smoke", mesh.url), guarded.good["hashed"]),
        (("smoke", mesh.url, "--json"), guarded.bad["expired"]),
        (("status", *port), ""),
        (("status", *port, "--json"), ""),
        (("logs", *port, "-n", "1000000"), ""),
        (("keys", "list", *config), ""),
        (("keys", "list", *config, "--json"), ""),
        (("config", "check", *config), ""),
        (("usage", "--gateway", f"http://{mesh.target('gateway', http=True)}", "--json"), ""),
    ]
    for arguments, key in lines:
        environment = {**os.environ, "XDG_STATE_HOME": str(mesh.state), **({"QUADRATE_API_KEY": key} if key else {})}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "quadrate.cli", *arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        watching = asyncio.create_task(_watch_processes(guarded))
        output, _ = await process.communicate()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        guarded.told.append(output.decode())


async def _watch_processes(guarded: Guarded) -> None:
    while True:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                guarded.command_lines.add(" ".join(process.cmdline()))
        await asyncio.sleep(0.2)


async def _break_the_file(guarded: Guarded) -> None:
    """Edit auth.yaml so that it cannot be used, with a key in the place of the mistake, and put it back; the gateway tells of both."""
    path = guarded.folder / "auth.yaml"
    good = path.read_text()
    for broken in (
        f"api_keys:\n  - {guarded.good['plain']}: 1\n",
        f"api_keys: [{guarded.good['plain']}",
        f"api_keys: *{guarded.good['plain']}\n",
    ):
        before = guarded.mesh.logs().count("configuration")
        path.write_text(broken)
        await _until(lambda before=before: guarded.mesh.logs().count("configuration") > before, "a broken file is told")  # type: ignore[misc]
        async with httpx.AsyncClient(timeout=30) as client:
            guarded.told.append((await client.get(f"{guarded.mesh.url}/health/ready")).text)
    path.write_text(good)


async def _all_has_arrived(guarded: Guarded, ids: list[str]) -> None:
    """Wait until the last request stands in the edge's log, and its spans have come."""
    await _until(lambda: all(request in guarded.mesh.logs() for request in ids[-20:]), "the edge has logged everything")
    edges = len(guarded.receiver.spans.where(lambda span: span.service == "quadrate-edge"))
    async with httpx.AsyncClient(base_url=guarded.mesh.url) as client:
        await client.get("/v1/models", headers={"x-api-key": guarded.bad["unknown"]})
    await guarded.receiver.wait_for(
        lambda spans: len(spans.where(lambda span: span.service == "quadrate-edge")) > edges, timeout_seconds=ARRIVAL_SECONDS
    )


async def _everywhere(guarded: Guarded) -> dict[str, str]:
    """Return all that can be seen of the mesh, by where it was seen."""
    mesh, admin = guarded.mesh, f"http://127.0.0.1:{guarded.mesh.ports['admin-port']}"
    urls = {
        "metrics of 8085": f"{mesh.url}/metrics",
        **{f"metrics of {role}": f"http://{mesh.target(role, http=True)}/metrics" for role in ("gateway", "embed", "rerank")},
        **{f"readiness of {role}": f"http://{mesh.target(role, http=True)}/health/ready" for role in ("gateway", "embed", "rerank")},
        "usage": f"http://{mesh.target('gateway', http=True)}/usage",
        **{name: f"{admin}/{name}" for name in ("config_dump", "clusters", "stats", "server_info", "listeners", "certs", "runtime")},
    }
    async with httpx.AsyncClient(timeout=30) as client:
        places = {name: (await client.get(url)).text for name, url in urls.items()}
    files = [path for path in mesh.state.rglob("*") if path.is_file()]
    places["logs"] = mesh.logs()
    places["spans"] = bytes(guarded.receiver.raw).decode("latin-1")
    places["state folder"] = "".join(f"{path}\n{path.read_bytes().decode('latin-1')}" for path in files)
    places["answers"] = "\n".join(guarded.told)
    places["process list"] = "\n".join(guarded.command_lines)
    places["quadrate keys list"] = mesh.command("keys", "list", "--config", str(guarded.folder)).stdout
    return places


def _told(secret: str, text: str) -> str:
    """Return what stands around a secret, a telling part of it, or either in base64; empty if none is there. A token's head is none."""
    parts = [secret] if "." not in secret else secret.split(".")[1:]
    pieces = {part[start : start + TELLING] for part in parts for start in range(3, len(part) - TELLING + 1, TELLING)}
    encoded = {base64.b64encode(f"{' ' * pad}{part}".encode()).decode()[4:-4] for part in parts for pad in range(3)}
    place = next((text.find(piece) for piece in pieces | encoded if piece in text), None)
    return "" if place is None else text[max(0, place - 300) : place + 100]


async def _outcome(awaitable: Any) -> str:
    """Return all that a caller sees of a call: its answer, or its error with details and trailers."""
    try:
        return str(await awaitable)
    except grpc.aio.AioRpcError as exc:
        return f"{exc!r} {exc.initial_metadata()} {exc.trailing_metadata()} {exc.debug_error_string()}"


async def _code(awaitable: Any) -> grpc.StatusCode:
    try:
        await awaitable
    except grpc.aio.AioRpcError as exc:
        return exc.code()
    return grpc.StatusCode.OK


async def _first(call: Any) -> Any:
    async for answer in call:
        call.cancel()
        return answer
    return None


async def _until(holds: Any, what: str) -> None:
    async with asyncio.timeout(ARRIVAL_SECONDS):
        while not holds():
            await asyncio.sleep(0.1)
    assert holds(), what
