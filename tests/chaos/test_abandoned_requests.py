"""Callers who leave, on each wire: what they asked for is not computed."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

import aiohttp
import grpc.aio
import pytest

from quadrate.v1.embed_pb2 import EmbedRequest, EmbedStreamRequest
from quadrate.v1.embed_pb2_grpc import EmbedServiceStub
from quadrate.v1.options_pb2 import Input
from tests.chaos.load import text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.chaos.conftest import StartMesh
    from tests.chaos.mesh import ChaosMesh

SLOW = {"EMBED_NULL_RUN_MS": "100", "EMBED_MAX_BATCH_TOKENS": "32", "EMBED_THREADS": "1", "ROUTER_CACHE_MAX_BYTES": "0"}
"""Two texts take a tenth of a second."""
TEXTS = 100
PATIENCE_SECONDS = 0.5


def texts(wire: str) -> list[str]:
    """Return texts that no other wire sends: what is under way is not computed twice."""
    return [f"{wire}: {text_of(number)}" for number in range(TEXTS)]


def request(wire: str) -> EmbedRequest:
    """Return a request for all of them."""
    return EmbedRequest(model="minilm", inputs=[Input(text=text) for text in texts(wire)])


async def close_the_socket(mesh: ChaosMesh) -> None:
    """Ask over REST, and hang up."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS)) as session:
        with pytest.raises(TimeoutError):
            await session.post(f"{mesh.url}/v1/embeddings", json={"model": "minilm", "input": texts("rest")})


async def close_the_page(mesh: ChaosMesh) -> None:
    """Ask over gRPC-Web, and hang up."""
    message = request("web").SerializeToString()
    body, headers = struct.pack(">BI", 0, len(message)) + message, {"content-type": "application/grpc-web+proto"}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS), headers=headers) as session:
        with pytest.raises(TimeoutError):
            async with session.post(f"{mesh.url}/quadrate.v1.EmbedService/Embed", data=body) as answer:
                await answer.read()


async def cancel(mesh: ChaosMesh) -> None:
    """Ask over gRPC, and cancel the call."""
    async with grpc.aio.insecure_channel(mesh.edge) as channel:
        call = EmbedServiceStub(channel).Embed(request("cancel"), timeout=30)
        await asyncio.wait([asyncio.ensure_future(call.code())], timeout=PATIENCE_SECONDS)
        call.cancel()


async def let_the_deadline_pass(mesh: ChaosMesh) -> None:
    """Ask over gRPC with too short a deadline."""
    async with grpc.aio.insecure_channel(mesh.edge) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await EmbedServiceStub(channel).Embed(request("deadline"), timeout=PATIENCE_SECONDS)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def break_off_a_stream(mesh: ChaosMesh) -> None:
    """Begin to ask on a stream, and leave."""

    async def requests() -> AsyncIterator[EmbedStreamRequest]:
        yield EmbedStreamRequest(id="1", request=request("stream"))
        await asyncio.Event().wait()

    async with grpc.aio.insecure_channel(mesh.edge) as channel:
        stream = EmbedServiceStub(channel).EmbedStream(requests())
        await asyncio.wait([asyncio.ensure_future(stream.read())], timeout=PATIENCE_SECONDS)
        stream.cancel()


@pytest.mark.parametrize("leave", [close_the_socket, close_the_page, cancel, let_the_deadline_pass, break_off_a_stream])
async def test_work_whose_caller_has_gone_is_not_done(start_mesh: StartMesh, leave: Callable[[ChaosMesh], Awaitable[None]]) -> None:
    """The worker drops what it has not begun, or never takes it, and soon has nothing left to do."""
    with start_mesh(environment=SLOW) as mesh:
        computed = mesh.metric("embed_worker", "embed_documents_total")
        await leave(mesh)
        await asyncio.to_thread(
            mesh.until, lambda: mesh.metric("embed_worker", "embed_queue_tokens") == 0, "the worker still has work", seconds=3
        )
        assert mesh.metric("embed_worker", "embed_documents_total") - computed < TEXTS / 2
        assert mesh.metric("gateway", "router_upstream_outstanding_tokens") == 0
