"""TLS of our servers and of the edge: who may connect, whom a client believes, and certificates renewed while they serve."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import httpx
import pytest
from cryptography import x509
from google.api.httpbody_pb2 import HttpBody
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.upstreams import names
from gateway.upstreams.http.options import OverHttp
from gateway.upstreams.routes import Routes
from quadrate import edge
from quadrate.cli import certs
from quadrate.cli.authority import Authority
from quadrate.config.edge import EdgeSettings
from quadrate.config.routing import RoutingFile
from quadrate.config.tls import ClientTls, KeyPair, ServerTls
from quadrate.errors import ConfigError
from quadrate.health import Health
from quadrate.openai.v1 import openai_pb2, openai_pb2_grpc
from quadrate.server import Server
from quadrate.telemetry import Telemetry
from quadrate.testing.ports import free_port, free_ports
from quadrate.testing.worker import FakeWorker
from tests.processes import LONG_SECONDS, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from quadrate.server import Call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an authority and certificates of every role."""
    certs.make(tmp_path / "certs", (), days=30)
    return tmp_path / "certs"


def pair(folder: Path, name: str) -> KeyPair:
    """Return the certificate of a role and its key."""
    return KeyPair(folder / f"{name}.pem", folder / f"{name}-key.pem")


def serial(path: Path) -> int:
    """Return the serial number of a certificate."""
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


class OpenAi:
    """The part of quadrate.openai.v1.OpenAiService that is called here."""

    descriptor = openai_pb2.DESCRIPTOR.services_by_name["OpenAiService"]

    async def list_models(self, _: Any, _call: Call) -> HttpBody:
        """GET /v1/models."""
        return HttpBody(content_type="application/json", data=b'{"well": true}')

    create_embedding = retrieve_model = list_models


@contextlib.asynccontextmanager
async def serving(tls: ServerTls, telemetry: Telemetry | None = None) -> AsyncIterator[Server]:
    """Run a server that speaks TLS."""
    health = Health()
    health.set("", serving=True)
    server = Server(
        telemetry=telemetry or Telemetry.silent("router"),
        health=health,
        services=[OpenAi()],
        host="127.0.0.1",
        port=0,
        http_port=0,
        readiness=lambda: (True, {}),
        drain_seconds=0.0,
        tls=tls,
    )
    async with server:
        yield server


async def healthy(target: str, credentials: grpc.ChannelCredentials | None) -> bool:
    """Ask a server for its health over a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    opened = (
        grpc.aio.secure_channel(target, credentials, options=options) if credentials else grpc.aio.insecure_channel(target, options=options)
    )
    async with opened as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=LONG_SECONDS)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def shown(port: int, ca: Path) -> int:
    """Return the serial number of the certificate that a server shows to a new connection."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()
    return x509.load_der_x509_certificate(der).serial_number


async def test_a_server_that_asks_its_callers_for_a_certificate_serves_those_alone(folder: Path) -> None:
    """One of its authority is let in; none, or one of another authority, is not; nor is one who speaks no TLS."""
    others = folder.parent / "others"
    certs.make(others, (), days=30)
    async with serving(ServerTls(pair(folder, "gateway"), folder / "ca.pem")) as server:
        target = f"127.0.0.1:{server.port}"
        assert await healthy(target, ClientTls(folder / "ca.pem", pair(folder, "client")).credentials())
        for stranger in (
            ClientTls(folder / "ca.pem").credentials(),
            ClientTls(folder / "ca.pem", pair(others, "client")).credentials(),
            None,
        ):
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await healthy(target, stranger)
            assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_believes_no_other_authority_and_no_other_name(folder: Path) -> None:
    """A server of an unknown authority is not called, nor one whose certificate is for another host."""
    others = folder.parent / "others"
    certs.make(others, (), days=30)
    Authority.in_folder(folder).issue(folder, "elsewhere", ["elsewhere.example.com"], days=1)
    for name, ca in (("gateway", others / "ca.pem"), ("elsewhere", folder / "ca.pem")):
        async with serving(ServerTls(pair(folder, name))) as server:
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await healthy(f"127.0.0.1:{server.port}", ClientTls(ca).credentials())
            assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_readiness_says_why_a_worker_is_not_believed(folder: Path) -> None:
    """What went wrong in the handshake, and not just that nobody answers."""
    others = folder.parent / "others"
    certs.make(others, (), days=30)
    async with FakeWorker() as plain, serving(ServerTls(pair(folder, "worker"))) as strange:
        tls = ClientTls(others / "ca.pem")
        file = RoutingFile.model_validate(
            {
                "embeddings": [
                    {"model": name, "upstream": {"type": "grpc", "url": f"grpcs://{target}"}}
                    for name, target in (("plain", plain.target), ("strange", f"127.0.0.1:{strange.port}"))
                ]
            }
        )
        async with Routes(file, Telemetry.silent("router").metrics, over_http=OverHttp(tls=tls)) as routes:
            reasons = {pool.alias: pool.replicas[0] for pool in routes.pools}
            await eventually(lambda: "handshake" in reasons["plain"].reason and "handshake" in reasons["strange"].reason, "no reason")
            assert reasons["plain"].reason == "the TLS handshake failed: WRONG_VERSION_NUMBER"
            assert (
                reasons["strange"].reason == "the TLS handshake failed: CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate"
            )


async def test_a_worker_over_tls_is_called_by_its_name(folder: Path) -> None:
    """A whole gateway over a worker that asks for its certificate."""
    async with FakeWorker(tls=ServerTls(pair(folder, "worker"), folder / "ca.pem")) as worker:
        url = f"grpcs://localhost:{worker.target.rpartition(':')[2]}"
        file = RoutingFile.model_validate({"embeddings": [{"model": "fake", "upstream": {"type": "grpc", "url": url}}]})
        options = OverHttp(tls=ClientTls(folder / "ca.pem", pair(folder, "gateway")))
        async with Routes(file, Telemetry.silent("router").metrics, over_http=options) as routes:
            await eventually(lambda: routes.pools[0].replicas[0].facts is not None, "the worker is not found")


async def test_each_address_of_a_name_is_believed_for_the_name_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers behind a name show one certificate, which is for the name as written and for no address. One with another's is not called."""
    authority, name, port = Authority.in_folder(folder), "embed-workers.example.com", free_port()
    authority.issue(folder, "named", [name], days=1)
    authority.issue(folder, "elsewhere", ["elsewhere.example.com", "127.0.0.3"], days=1)

    async def resolve(_: str, __: int) -> tuple[str, ...]:
        return ("127.0.0.1", "127.0.0.2", "127.0.0.3")

    monkeypatch.setattr(names, "_resolve", resolve)
    upstream = {"type": "grpc", "url": f"grpcs://{name}:{port}"}
    file = RoutingFile.model_validate({"embeddings": [{"model": "fake", "upstream": upstream}]})
    options = OverHttp(tls=ClientTls(folder / "ca.pem", pair(folder, "gateway")))
    async with contextlib.AsyncExitStack() as workers:
        for host, shows in (("127.0.0.1", "named"), ("127.0.0.2", "named"), ("127.0.0.3", "elsewhere")):
            await workers.enter_async_context(FakeWorker(host=host, port=port, tls=ServerTls(pair(folder, shows), folder / "ca.pem")))
        async with Routes(file, Telemetry.silent("router").metrics, over_http=options) as routes:
            replicas = {replica.peer.target: replica for replica in routes.pools[0].replicas}
            assert replicas.keys() == {f"127.0.0.{number}:{port}" for number in (1, 2, 3)}
            *believed, stranger = (replicas[f"127.0.0.{number}:{port}"] for number in (1, 2, 3))
            await eventually(lambda: all(replica.facts is not None for replica in believed), "the workers are not found")
            await eventually(lambda: stranger.reason != "not asked yet", "no reason")
            assert stranger.reason == "its certificate is for another name than the one that it is called by"
            assert stranger.facts is None


def has_ipv6() -> bool:
    """Whether this machine can be called by an address of IPv6."""
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6"))])
async def test_an_address_over_tls_is_believed_for_itself(folder: Path, host: str) -> None:
    """A certificate may be for an address, of either kind."""
    Authority.in_folder(folder).issue(folder, "addressed", [host], days=1)
    async with FakeWorker(host=host, tls=ServerTls(pair(folder, "addressed"), folder / "ca.pem")) as worker:
        url = f"grpcs://{f'[{host}]' if ':' in host else host}:{worker.server.port}"
        file = RoutingFile.model_validate({"embeddings": [{"model": "fake", "upstream": {"type": "grpc", "url": url}}]})
        options = OverHttp(tls=ClientTls(folder / "ca.pem", pair(folder, "gateway")))
        async with Routes(file, Telemetry.silent("router").metrics, over_http=options) as routes:
            await eventually(lambda: routes.pools[0].replicas[0].facts is not None, "the worker is not found")


async def test_a_renewed_certificate_is_shown_to_who_comes_next(folder: Path) -> None:
    """Calls that are open go on with the former one. Its end is a metric."""
    telemetry = Telemetry.silent("router")
    async with serving(ServerTls(pair(folder, "gateway"), None), telemetry) as server:
        credentials = ClientTls(folder / "ca.pem").credentials()
        async with grpc.aio.secure_channel(f"127.0.0.1:{server.port}", credentials) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=LONG_SECONDS)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            before = serial(folder / "gateway.pem")
            assert await shown(server.port, folder / "ca.pem") == before
            certs.make(folder, (), days=7)
            assert await shown(server.port, folder / "ca.pem") == serial(folder / "gateway.pem") != before
            assert not watch.done()
        text = telemetry.metrics.text().decode()
        line = next(row for row in text.splitlines() if row.startswith("quadrate_certificate_expires_timestamp_seconds{"))
        expires = x509.load_pem_x509_certificate((folder / "gateway.pem").read_bytes()).not_valid_after_utc
        assert float(line.split()[-1]) == expires.timestamp()


async def test_files_that_do_not_fit_together_change_nothing(folder: Path) -> None:
    """A certificate without its key, or no certificate at all, is counted, and the former one shown; once they fit, they are taken."""
    telemetry = Telemetry.silent("router")
    async with serving(ServerTls(pair(folder, "gateway"), None), telemetry) as server:
        before = serial(folder / "gateway.pem")
        shutil.copy(folder / "gateway-key.pem", folder / "former-key.pem")
        certs.make(folder, (), days=7)
        shutil.copy(folder / "gateway-key.pem", folder / "new-key.pem")
        shutil.copy(folder / "former-key.pem", folder / "gateway-key.pem")
        assert await shown(server.port, folder / "ca.pem") == before
        (folder / "gateway-key.pem").write_text("no key")
        assert await shown(server.port, folder / "ca.pem") == before
        text = telemetry.metrics.text().decode()
        assert f'quadrate_certificate_failures_total{{certificate="{folder}/gateway.pem"}} 2.0' in text
        shutil.copy(folder / "new-key.pem", folder / "gateway-key.pem")
        assert await shown(server.port, folder / "ca.pem") == serial(folder / "gateway.pem")


async def test_a_server_whose_files_cannot_be_used_does_not_start(folder: Path) -> None:
    """The error names the files and what is wrong with them."""
    (folder / "nonsense.pem").write_text("nonsense")
    for tls, said in (
        (ServerTls(KeyPair(folder / "gateway.pem", folder / "worker-key.pem")), "no certificate and its key"),
        (ServerTls(KeyPair(folder / "absent.pem", folder / "worker-key.pem")), "absent.pem cannot be read: No such file"),
        (ServerTls(pair(folder, "gateway"), folder / "nonsense.pem"), "holds no certificates of authorities"),
    ):
        with pytest.raises(ConfigError, match=said):
            async with serving(tls):
                pass


@contextlib.asynccontextmanager
async def edge_before(server: Server, folder: Path, **given: Any) -> AsyncIterator[EdgeSettings]:
    """Run Envoy with TLS on both of its sides."""
    port, admin = free_ports(2)
    settings = EdgeSettings(
        port=port,
        admin=f"127.0.0.1:{admin}",
        gateways=(f"127.0.0.1:{server.port}",),
        gateways_http=(f"127.0.0.1:{server.http_port}",),
        threads=1,
        tls_cert_path=folder / "edge.pem",
        tls_key_path=folder / "edge-key.pem",
        gateway_ca_path=folder / "ca.pem",
        gateway_cert_path=folder / "edge.pem",
        gateway_key_path=folder / "edge-key.pem",
        **given,
    )
    config = folder.parent / "envoy.yaml"
    edge.render(config, settings)
    with (folder.parent / "envoy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*edge.command(config, settings), stdout=log, stderr=log)
    try:
        async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(folder / "ca.pem"))) as client:
            async with asyncio.timeout(LONG_SECONDS):
                while not await answers(client, settings):
                    await asyncio.sleep(0.02)
        yield settings
    finally:
        process.terminate()
        assert await process.wait() == 0


async def answers(client: httpx.AsyncClient, settings: EdgeSettings) -> bool:
    """Tell whether the edge has found its gateway; one that asks callers for a certificate is asked by its admin interface."""
    url = f"http://{settings.admin}/clusters" if settings.tls_client_ca_path else f"https://127.0.0.1:{settings.port}/v1/models"
    with contextlib.suppress(httpx.TransportError, OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", settings.port)  # it listens after it has found its gateway
        writer.close()
        await writer.wait_closed()
        answer = await client.get(url)
        return answer.is_success and ("health_flags::healthy" in answer.text or "well" in answer.text)
    return False


async def test_the_edge_speaks_tls_to_callers_and_to_gateways_that_ask_for_its_certificate(folder: Path) -> None:
    """REST over HTTP/1.1 and HTTP/2, and gRPC; and nothing without TLS. The gateways' HTTP port is plain."""
    async with serving(ServerTls(pair(folder, "gateway"), folder / "ca.pem")) as server, edge_before(server, folder) as settings:
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        url = f"https://localhost:{settings.port}"
        async with httpx.AsyncClient(verify=context) as client:
            answer = await client.get(f"{url}/v1/models")
            assert (answer.json(), answer.headers["server"]) == ({"well": True}, "quadrate")
            assert (await client.get(f"{url}/health/ready")).status_code == 200
        async with grpc.aio.secure_channel(f"localhost:{settings.port}", ClientTls(folder / "ca.pem").credentials()) as channel:
            stub = openai_pb2_grpc.OpenAiServiceStub(channel)
            assert (await stub.ListModels(openai_pb2.ListModelsRequest(), timeout=LONG_SECONDS)).data
        async with httpx.AsyncClient() as plain:
            with pytest.raises(httpx.TransportError):
                await plain.get(f"http://localhost:{settings.port}/v1/models")


async def test_the_edge_lets_in_callers_of_its_authority_alone(folder: Path) -> None:
    """With EDGE_TLS_CLIENT_CA_PATH a caller without a certificate is not answered at all."""
    tls = ServerTls(pair(folder, "gateway"))
    async with serving(tls) as server, edge_before(server, folder, tls_client_ca_path=folder / "ca.pem") as settings:
        url = f"https://localhost:{settings.port}/v1/models"
        known = ClientTls(folder / "ca.pem", pair(folder, "client")).context()
        async with httpx.AsyncClient(verify=known) as client:
            assert (await client.get(url)).status_code == 200
        async with httpx.AsyncClient(verify=ClientTls(folder / "ca.pem").context()) as stranger:
            with pytest.raises((httpx.TransportError, ssl.SSLError)):  # the alert may come while the answer is awaited
                await stranger.get(url)


async def test_the_edge_does_not_call_a_gateway_of_another_name_or_authority(folder: Path) -> None:
    """What is at the gateway's address must prove that it is the gateway."""
    Authority.in_folder(folder).issue(folder, "elsewhere", ["elsewhere.example.com"], days=1)
    async with serving(ServerTls(pair(folder, "gateway"))) as server, edge_before(server, folder) as settings:
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        async with httpx.AsyncClient(verify=context, base_url=f"https://localhost:{settings.port}") as client:
            assert (await client.get("/v1/models")).status_code == 200
            port, http_port = server.port, server.http_port
            await server.stop()
            impostor = Server(
                telemetry=Telemetry.silent("router"),
                health=Health(),
                services=[OpenAi()],
                host="127.0.0.1",
                port=port,
                http_port=http_port,
                readiness=lambda: (True, {}),
                drain_seconds=0.0,
                tls=ServerTls(pair(folder, "elsewhere")),
            )
            async with impostor:
                assert (await client.get("/health/live")).status_code == 200
                refused = await client.get("/v1/models")
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")


async def test_the_edge_takes_up_renewed_certificates_without_a_failed_request(folder: Path) -> None:
    """Its own, the one it shows to gateways, and theirs: while requests go on."""
    async with serving(ServerTls(pair(folder, "gateway"), folder / "ca.pem")) as server, edge_before(server, folder) as settings:
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        before, statuses = serial(folder / "edge.pem"), []
        renewed = asyncio.Event()

        async def call() -> None:
            while not renewed.is_set():
                async with httpx.AsyncClient(verify=context) as client:  # a connection each
                    statuses.append((await client.get(f"https://localhost:{settings.port}/v1/models")).status_code)

        callers = [asyncio.create_task(call()) for _ in range(4)]
        assert await shown(settings.port, folder / "ca.pem") == before
        certs.make(folder, (), days=7)
        seen: set[int] = set()
        async with asyncio.timeout(LONG_SECONDS):
            while serial(folder / "edge.pem") not in seen:
                seen.add(await shown(settings.port, folder / "ca.pem"))
        count = len(statuses)
        await eventually_more(statuses, count + 20)
        renewed.set()
        await asyncio.gather(*callers)
        assert set(statuses) == {200}


async def eventually_more(statuses: list[int], count: int) -> None:
    """Wait until so many requests were answered."""
    await eventually(lambda: len(statuses) >= count, "requests go on")
