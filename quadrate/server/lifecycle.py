"""A process that serves: it opens its ports first, answers, drains when told to stop, and goes."""

from __future__ import annotations

import asyncio
import gc
import signal
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import grpc
import grpc.aio
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quadrate.errors import ConfigError
from quadrate.server import reflection
from quadrate.server.certificates import RenewedCertificates
from quadrate.server.foreign import Foreign
from quadrate.server.handlers import Handlers
from quadrate.server.http import HTTP_LINE_BYTES, application
from quadrate.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from google.protobuf.descriptor import ServiceDescriptor

    from quadrate.config.tls import ServerTls
    from quadrate.health import Health
    from quadrate.telemetry import Telemetry

MAX_REQUEST_BYTES = 8 * 1024 * 1024 + 64 * 1024
"""The largest message that is taken in: a REST body of 8 MiB, where the edge stops, and what gRPC wraps around it."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""The largest message that is sent: 2,048 vectors of 4,096 values are half of it."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
    # The edge refuses headers over 32 KiB by 431; below that they must not fail here with a status that says nothing.
    ("grpc.max_metadata_size", 65_536),
    ("grpc.absolute_max_metadata_size", 98_304),
    # Two servers on one port would share its connections without a word; we want the second to fail.
    ("grpc.so_reuseport", 0),
    # Clients may ping an idle connection to know that we live.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

LAST_ANSWERS_SECONDS = 0.2
"""The time that the transport has for the last answers once every handler is done, and that a call on its way here has to begin."""

ResultT = TypeVar("ResultT")


class Service(Protocol):
    """A gRPC service: a descriptor, and for each of its RPCs a method of that name in snake case (see `handlers`)."""

    descriptor: ServiceDescriptor


class Server:
    """The gRPC server of one process with its HTTP server.

    Args:
        telemetry: Where calls are counted, logged and traced.
        health: The process's facts; all are said to have failed when draining begins.
        services: What is served.
        host: The address both servers listen on.
        port: gRPC. 0 takes a free one, which `port` then tells.
        http_port: HTTP. 0 likewise.
        readiness: Whether something can be served, and the JSON for GET /health/ready.
        http_routes: More HTTP routes.
        reflection_on: Whether clients may list and describe the services.
        reflection_guard: Who may: it is given a call's headers, and raises QuadrateError for those who may not. None: everybody.
        drain_seconds: How long calls in flight may go on after a signal to stop.
        notice_seconds: How long new calls are still taken after it was said that nothing serves: callers need a moment to hear of it.
        tls: How the gRPC port speaks TLS. None: it does not. The HTTP port never does.
    """

    def __init__(  # noqa: PLR0913 - a process has so many parts
        self,
        *,
        telemetry: Telemetry,
        health: Health,
        services: Sequence[Service],
        port: int,
        http_port: int,
        readiness: Callable[[], tuple[bool, dict[str, Any]]],
        http_routes: Iterable[web.AbstractRouteDef] = (),
        host: str = "0.0.0.0",  # noqa: S104 - containers; `quadrate up` says 127.0.0.1
        reflection_on: bool = True,
        reflection_guard: reflection.Guard | None = None,
        drain_seconds: float = 10.0,
        notice_seconds: float = 0.0,
        tls: ServerTls | None = None,
    ) -> None:
        self.port = port
        self.http_port = http_port
        self._host = host
        self._health = health
        self._services = services
        self._reflection_on = reflection_on
        self._reflection_guard = reflection_guard
        self._drain_seconds = drain_seconds
        self._notice_seconds = notice_seconds
        self._tls = tls
        self._handlers = Handlers(telemetry)
        self._telemetry = telemetry
        self._readiness = readiness
        self._ends = False
        self._grpc: grpc.aio.Server | None = None
        app = application(telemetry.metrics, self._ready, http_routes)
        self._http = web.AppRunner(
            app, access_log=None, handle_signals=False, max_line_size=HTTP_LINE_BYTES, max_field_size=HTTP_LINE_BYTES
        )
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Open both ports. Raises ConfigError if one is taken, or the certificate cannot be used."""
        server = grpc.aio.server(options=_OPTIONS)
        names = [service.descriptor.full_name for service in self._services]
        server.add_generic_rpc_handlers(tuple(self._handlers.of(service, service.descriptor) for service in self._services))
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, Foreign(server))
        if self._reflection_on:
            health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
            reflection.serve(server, (*names, health_name), self._reflection_guard)
        server.add_generic_rpc_handlers((self._handlers.of_nothing(),))
        self.port = _bind(server, self._host, self.port, self._credentials())
        self._grpc = server
        await server.start()
        await self._health.start()
        await self._start_http()
        log.info("listening", host=self._host, port=self.port, http_port=self.http_port, tls=self._tls is not None, services=names)

    def _credentials(self) -> grpc.ServerCredentials | None:
        if self._tls is None:
            return None
        metrics, name = self._telemetry.metrics, str(self._tls.pair.certificate)
        expires = metrics.gauge("quadrate_certificate_expires_timestamp_seconds", name)
        failures = metrics.counter("quadrate_certificate_failures_total", name)
        return RenewedCertificates(self._tls, loaded=expires.set, failed=failures.inc).credentials()

    async def _start_http(self) -> None:
        await self._http.setup()
        site = web.TCPSite(self._http, self._host, self.http_port)
        try:
            await site.start()
        except OSError as exc:
            await self.stop()
            raise ConfigError(_taken(self._host, self.http_port, "HTTP")) from exc
        sockets = site._server.sockets if isinstance(site._server, asyncio.Server) else getattr(site._server, "sockets", [])  # noqa: SLF001
        self.http_port = next(iter(sockets)).getsockname()[1]

    def ask_to_stop(self, reason: str) -> None:
        """Let `run` drain and return."""
        if not self._stopping.is_set():
            log.info("stopping", reason=reason)
            self._stopping.set()

    async def stop(self) -> None:
        """Say that nothing serves, take calls for `notice_seconds`, let those in flight finish within `drain_seconds`, close both ports."""
        self._ends = True
        self._health.fail_all("stopping")
        await self._health.stop()
        server, self._grpc = self._grpc, None  # who stops it twice waits for nothing
        if server is not None:
            await asyncio.sleep(self._notice_seconds)
            await self._drain(server)
        await self._http.cleanup()
        self._telemetry.traces.shutdown()

    def _ready(self) -> tuple[bool, dict[str, Any]]:
        """Return the report of readiness; once the end has begun it says so, as grpc.health.v1 does."""
        is_ready, report = self._readiness()
        return (False, {**report, "status": "unavailable", "reason": "stopping"}) if self._ends else (is_ready, report)

    async def _drain(self, server: grpc.aio.Server) -> None:
        """Refuse new calls and let those in flight finish. Watches and idle relays are not waited for: they would go on for ever."""
        stopped = asyncio.create_task(server.stop(self._drain_seconds))
        while not stopped.done():
            idle = asyncio.create_task(self._handlers.idle.wait())
            await asyncio.wait((stopped, idle), return_when=asyncio.FIRST_COMPLETED)
            idle.cancel()
            await asyncio.wait((stopped,), timeout=LAST_ANSWERS_SECONDS)
            if self._handlers.idle.is_set():
                break
        await server.stop(None)
        await stopped

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `ask_to_stop`, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask_to_stop, signal.Signals(number).name)
        # What stands now stands for good: collections need not walk it each time.
        gc.collect()
        gc.freeze()
        await self._stopping.wait()
        await self.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def run(main: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a process's main coroutine on uvloop where there is one."""
    try:
        import uvloop  # noqa: PLC0415 - not to be had on every platform
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def _bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as exc:
        raise ConfigError(_taken(host, port, "gRPC")) from exc
    if not bound:
        raise ConfigError(_taken(host, port, "gRPC"))
    return bound


def _taken(host: str, port: int, kind: str) -> str:
    return f"{kind} port {port} on {host} cannot be opened: another program may have it. Free it or configure another."
