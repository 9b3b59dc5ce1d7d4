"""A gateway over fake workers, called over real gRPC on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import orjson
import pytest
from google.api.httpbody_pb2 import HttpBody
from google.rpc import error_details_pb2, status_pb2

from gateway.process import Gateway
from quadrate.cohere.v1 import cohere_pb2_grpc
from quadrate.config.gateway import GatewaySettings
from quadrate.openai.v1 import openai_pb2_grpc
from quadrate.telemetry import Telemetry
from quadrate.testing.worker import FakeWorker
from quadrate.v1 import embed_pb2_grpc, model_pb2_grpc, rerank_pb2_grpc
from quadrate.wire.v1.status_pb2 import StatusExtension
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

KEY = "a-key-of-a-test"


@dataclass
class Refusal:
    """A failed call as its caller sees it."""

    status: str
    message: str
    reason: str
    param: str
    body: dict[str, Any]
    trailers: dict[str, Any]


@dataclass
class Door:
    """A running gateway and stubs for it."""

    gateway: Gateway
    telemetry: Telemetry
    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.embed = embed_pb2_grpc.EmbedServiceStub(self.channel)
        self.rerank = rerank_pb2_grpc.RerankServiceStub(self.channel)
        self.models = model_pb2_grpc.ModelServiceStub(self.channel)
        self.openai = openai_pb2_grpc.OpenAiServiceStub(self.channel)
        self.cohere = cohere_pb2_grpc.CohereServiceStub(self.channel)

    @property
    def http(self) -> str:
        """The address of its HTTP server."""
        return f"http://127.0.0.1:{self.gateway.server.http_port}"

    async def post(self, method: Callable[..., Any], body: Any, **options: Any) -> dict[str, Any]:
        """Send a JSON body to a facade's method and return the JSON of its answer."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        answer = await method(HttpBody(content_type="application/json", data=data), **options)
        assert answer.content_type == "application/json"
        return dict(orjson.loads(answer.data))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)

    async def until_serving(self, *aliases: str) -> None:
        """Wait until every replica of these models (default: of all enabled ones) serves."""
        pools = [pool for pool in self.gateway.routes.pools if pool.alias in aliases or (not aliases and pool.route.enabled)]
        await self.until(lambda: all(replica.facts for pool in pools for replica in pool.replicas))


def refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """Return what a caller reads from an error over gRPC, and the body that REST makes of it."""
    trailers = dict(error.trailing_metadata())
    packed = trailers.get("grpc-status-details-bin", b"")
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(packed).details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    extension = StatusExtension.FromString(packed)
    body = {
        "message": extension.error.message,
        "type": extension.error.type,
        "param": extension.error.param.string_value or None,
        "code": extension.error.code.string_value or None,
    }
    return Refusal(error.code().name, error.details() or "", info.reason, info.metadata.get("param", ""), body, trailers)


async def refused(awaitable: Any) -> Refusal:
    """Await a call that must fail, and return how it failed."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return refusal(caught.value)


ANYBODY = "allow_anonymous_without_api_keys: true"


@pytest.fixture
def open_door(tmp_path: Path) -> Callable[..., contextlib.AbstractAsyncContextManager[Door]]:
    """Return a function that starts a gateway with the given files and settings."""

    @asynccontextmanager
    async def start(routing: str, *, auth: str = ANYBODY, limits: str = "{}", **settings: Any) -> AsyncIterator[Door]:
        for name, text in (("routing", routing), ("auth", auth), ("rate_limits", limits)):
            (tmp_path / f"{name}.yaml").write_text(text)
        telemetry = Telemetry.silent("router")
        paths = {f"{name}_path": tmp_path / f"{name}.yaml" for name in ("routing", "auth", "rate_limits")}
        settings.setdefault("canary_interval_seconds", 0)  # tests count what workers are asked
        settings.setdefault("cache_max_bytes", 0)
        given = GatewaySettings(host="127.0.0.1", port=0, http_port=0, **paths, **settings)
        async with Gateway(given, telemetry) as gateway, grpc.aio.insecure_channel(f"127.0.0.1:{gateway.server.port}") as channel:
            yield Door(gateway, telemetry, channel)

    return start


def routing(*workers: FakeWorker, extra: str = "") -> str:
    """Return a routing file for the fake worker's two models on each of the workers."""
    first, *others = [f"grpc://{worker.target}" for worker in workers]
    replicas = f", replicas: [{', '.join(others)}]" if others else ""
    upstream = f"upstream: {{type: grpc, url: '{first}'{replicas}}}"
    return (
        f"embeddings:\n  - {{model: fake, served_name: fake/fake, {upstream}}}\n"
        f"rerank:\n  - {{model: fake-rerank, served_name: fake/fake-rerank, max_top_k: 20, {upstream}}}\n{extra}"
    )


@pytest.fixture
async def worker() -> AsyncIterator[FakeWorker]:
    """A fake worker with one embedding model and one reranker."""
    async with FakeWorker() as worker:
        yield worker


@pytest.fixture
async def door(open_door: Any, worker: FakeWorker) -> AsyncIterator[Door]:
    """A gateway over `worker`, both of whose models serve."""
    async with open_door(routing(worker)) as door:
        await door.until_serving()
        yield door


@pytest.fixture
async def redis_server(require_program: Callable[[str], str], tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A running Redis."""
    async with RedisServer(require_program("redis-server"), tmp_path) as server:
        yield server
