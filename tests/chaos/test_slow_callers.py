"""Callers that do not read, do not send, or do nothing at all: others are served as if they were not there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
from typing import TYPE_CHECKING

import pytest

from tests.chaos.hostile import HttpRequest
from tests.chaos.load import Grpc, Load, Rest
from tests.chaos.wires import read_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.chaos.conftest import StartMesh
    from tests.chaos.mesh import ChaosMesh

IDLE = 10_000
AT_ONCE = 500
"""Connections that are opened at a time: fewer than the listener's queue holds."""
SMALL_BYTES = 4_096
"""What a slow reader's socket takes in before the sender must wait."""
SPARE_DESCRIPTORS = 1_000
MEMORY_PER_CONNECTION_BYTES = 32 * 1024
_TEXTS = {"model": "minilm", "input": [f"text number {number}" for number in range(512)]}
LARGE = HttpRequest("POST", "/v1/embeddings", ((b"content-type", b"application/json"),), json.dumps(_TEXTS).encode())
"""Its answer has two megabytes."""


@pytest.fixture
def descriptors() -> Iterator[int]:
    """Allow this process and those it starts as many open files as the system does, and tell how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def where(mesh: ChaosMesh) -> tuple[str, int]:
    """Return the edge's host and port."""
    host, port = mesh.edge.split(":")
    return host, int(port)


async def open_many(count: int, first: bytes, mesh: ChaosMesh) -> list[socket.socket]:
    """Open connections and send the same on each."""
    found = []
    loop = asyncio.get_running_loop()

    async def one() -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BYTES)
        await loop.sock_connect(connection, where(mesh))
        if first:
            await loop.sock_sendall(connection, first)
        return connection

    for start in range(0, count, AT_ONCE):
        found += await asyncio.gather(*(one() for _ in range(min(AT_ONCE, count - start))))
    return found


def close_all(connections: list[socket.socket]) -> None:
    """Close them."""
    for connection in connections:
        connection.close()


async def test_ten_thousand_idle_connections_take_nothing_from_others(start_mesh: StartMesh, descriptors: int) -> None:
    """All of them are accepted, cost little, and others go on; what they held is given back."""
    if descriptors < IDLE + SPARE_DESCRIPTORS:
        pytest.skip(f"needs {IDLE + SPARE_DESCRIPTORS} open files, and the system allows {descriptors} (ulimit -Hn).")
    with start_mesh(gateways=1, embed_workers=1) as mesh:
        at_rest, memory = mesh.descriptors("envoy"), mesh.memory_bytes("envoy")
        async with Load(Rest(mesh.url), Grpc(mesh.edge), callers=4) as load:
            await load.calls(100)
            connections = await open_many(IDLE, b"", mesh)
            await load.calls(200)
            await asyncio.to_thread(mesh.until, lambda: mesh.descriptors("envoy") >= at_rest + IDLE, "the edge did not accept all of them")
            assert mesh.memory_bytes("envoy") - memory < IDLE * MEMORY_PER_CONNECTION_BYTES
            async with Load(Rest(mesh.url, name="new"), callers=1) as late:  # on a connection that is not there yet
                await late.calls(20)
            close_all(connections)
            await load.calls(100)
        await asyncio.to_thread(mesh.until, lambda: mesh.descriptors("envoy") < at_rest + 100, "the edge kept descriptors")
    assert not load.failed, load.summary()
    assert not late.failed, late.summary()


HALF = {
    "nothing": b"",
    "half a request line": b"POST /v1/embed",
    "half of its headers": LARGE.wire("a")[:60],
    "half of a body": LARGE.wire("a")[:1_000],
    "half a preface": b"PRI * HTTP/2.0\r\n",
    "a preface alone": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


async def test_half_open_sockets_take_nothing_from_others(start_mesh: StartMesh, length: Callable[[int, int], int]) -> None:
    """Half a request, half its headers, half a body, and no end: the edge waits for them alone, and no gateway hears of them."""
    with start_mesh(gateways=1, embed_workers=1) as mesh:
        at_rest = mesh.descriptors("gateway")
        async with Load(Rest(mesh.url), Grpc(mesh.edge), callers=4) as load:
            await load.calls(100)
            connections = [one for first in HALF.values() for one in await open_many(length(100, 1_000), first, mesh)]
            for connection in connections[::2]:
                connection.shutdown(socket.SHUT_WR)
            await load.seconds(length(3.0, 70.0))
            assert mesh.descriptors("gateway") <= at_rest + 50
            close_all(connections)
            await load.calls(50)
    assert not load.failed, load.summary()


async def test_unfinished_headers_are_waited_for_no_longer_than_ten_seconds(start_mesh: StartMesh) -> None:
    """Then the caller is told 408, and the connection is closed."""
    with start_mesh(gateways=1, embed_workers=1) as mesh:
        reader, writer = await asyncio.open_connection(*where(mesh))
        writer.write(HALF["half of its headers"])
        answer = await asyncio.wait_for(read_answer(reader), 15)
        assert answer.status == 408
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_slow_readers_take_nothing_from_others(start_mesh: StartMesh, length: Callable[[int, int], int]) -> None:
    """Callers that ask for large answers and read none of them: others are served, memory stays bounded, and it is given back."""
    with start_mesh(gateways=1, embed_workers=1) as mesh:
        async with Load(Rest(mesh.url), Grpc(mesh.edge), callers=4) as load:
            await load.calls(100)
            connections = await open_many(length(40, 400), LARGE.wire(mesh.edge), mesh)
            await load.seconds(length(10.0, 60.0))
            held = mesh.memory_bytes("envoy"), mesh.memory_bytes("gateway")
            close_all(connections)
            await load.calls(100)
    assert not load.failed, load.summary()
    assert held[0] < 2**30, "the edge's heap has a limit of a gigabyte"
    assert held[1] < 2**29


async def test_a_caller_who_half_closes_counts_as_gone(start_mesh: StartMesh) -> None:
    """Envoy knows no half-closed HTTP: the connection ends at once, answered or not, and nothing is kept for it."""
    with start_mesh(gateways=1, embed_workers=1) as mesh:
        reader, writer = await asyncio.open_connection(*where(mesh))
        writer.write(LARGE.wire(mesh.edge))
        writer.write_eof()
        with contextlib.suppress(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 10)
        writer.close()
        async with Load(Rest(mesh.url), callers=1) as load:
            await load.calls(10)
    assert not load.failed, load.summary()
