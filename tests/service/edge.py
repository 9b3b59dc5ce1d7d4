"""Envoy with our configuration, and a gateway that stands in for ours behind it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from typing import TYPE_CHECKING, Any

import httpx
from google.api.httpbody_pb2 import HttpBody

from quadrate.cohere.v1 import cohere_pb2
from quadrate.config.edge import load_edge_settings
from quadrate.edge import command, render
from quadrate.health import Health
from quadrate.openai.v1 import openai_pb2
from quadrate.server import Server
from quadrate.telemetry import Telemetry
from quadrate.testing.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from quadrate.config.edge import EdgeSettings
    from quadrate.errors import QuadrateError
    from quadrate.server import Call

START_SECONDS = 20


class StandIn:
    """A gateway that fails as it is told, and remembers how it was called."""

    def __init__(self) -> None:
        self.failure: QuadrateError | None = None
        self.hangs = False
        self.has_tried = False
        self.calls: list[Call] = []

    async def answer(self, call: Call) -> HttpBody:
        """Answer, fail or hang."""
        self.calls.append(call)
        call.has_tried = self.has_tried
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return HttpBody(content_type="application/json", data=b'{"well": true}')


class _OpenAi:
    """quadrate.openai.v1.OpenAiService."""

    descriptor = openai_pb2.DESCRIPTOR.services_by_name["OpenAiService"]

    def __init__(self, gateway: StandIn) -> None:
        self._gateway = gateway

    async def create_embedding(self, _: HttpBody, call: Call) -> HttpBody:
        """POST /v1/embeddings."""
        return await self._gateway.answer(call)

    async def list_models(self, _: Any, call: Call) -> HttpBody:
        """GET /v1/models."""
        return await self._gateway.answer(call)

    async def retrieve_model(self, request: openai_pb2.RetrieveModelRequest, call: Call) -> HttpBody:
        """GET /v1/models/{model}."""
        call.log["model"] = request.model
        return await self._gateway.answer(call)


class _Cohere:
    """quadrate.cohere.v1.CohereService."""

    descriptor = cohere_pb2.DESCRIPTOR.services_by_name["CohereService"]

    def __init__(self, gateway: StandIn) -> None:
        self._gateway = gateway

    async def rerank_v1(self, _: HttpBody, call: Call) -> HttpBody:
        """POST /v1/rerank."""
        return await self._gateway.answer(call)

    async def rerank_v2(self, _: HttpBody, call: Call) -> HttpBody:
        """POST /v2/rerank."""
        return await self._gateway.answer(call)

    async def embed_v2(self, _: HttpBody, call: Call) -> HttpBody:
        """POST /v2/embed."""
        return await self._gateway.answer(call)


@contextlib.asynccontextmanager
async def envoy(settings: EdgeSettings, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Run Envoy and give a client of it, once it listens."""
    config = folder / "envoy.yaml"
    render(config, settings)
    with (folder / "envoy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command(config, settings), stdout=log, stderr=subprocess.STDOUT)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.port}", timeout=30) as client:
            await asyncio.wait_for(_listening(settings.port), START_SECONDS)
            yield client
    finally:
        process.terminate()
        assert await process.wait() == 0


async def _listening(port: int) -> None:
    """Wait until somebody listens on a port."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await writer.wait_closed()
            return
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def serving(gateway: StandIn) -> AsyncIterator[Server]:
    """Serve a stand-in on free ports."""
    health = Health()
    health.set("", serving=True)
    found = Server(
        telemetry=Telemetry.silent("router"),
        health=health,
        services=[_OpenAi(gateway), _Cohere(gateway)],
        host="127.0.0.1",
        port=0,
        http_port=0,
        readiness=lambda: (True, {}),
        drain_seconds=0.0,
    )
    await found.start()
    yield found
    await found.stop()


def before(*gateways: Server, **changes: Any) -> EdgeSettings:
    """Return the settings of an edge before gateways, on free ports. What is asked over HTTP goes to the first."""
    port, admin = free_ports(2)
    return load_edge_settings(
        port=port,
        admin=f"127.0.0.1:{admin}",
        gateways=tuple(f"127.0.0.1:{gateway.port}" for gateway in gateways),
        gateways_http=(f"127.0.0.1:{gateways[0].http_port}",),
        threads=1,
        **changes,
    )
