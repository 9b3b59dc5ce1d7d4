"""Sends what client libraries refuse to send, and reads what comes back."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import grpc
import grpc.aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.chaos.hostile import HttpRequest
    from tests.chaos.hostile_rpc import GrpcRequest

ANSWER_SECONDS = 60.0
"""How long an answer is waited for: nothing that was sent whole may take so long."""
SILENT_SECONDS = 0.25
"""A connection on which so long nothing comes has said all that it has to say of garbage."""
_CLIENT_COULD_NOT_WRITE = "Internal error from Core"
"""What grpc's client makes of a stream that was answered while it was still writing, instead of the answer."""
_NO_BODY = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer.

    Args:
        status: The code.
        headers: Names in lower case; of several equal ones the last.
        body: The body, chunks put together.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Closed(Exception):
    """The connection was closed before a whole answer was there."""


class Http1:
    """One caller over HTTP/1.1, on one connection as long as that lasts. An async context manager.

    Args:
        host: Where to connect.
        port: Likewise.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        """Connect later, when something is to be sent."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        await self._close()

    async def ask(self, request: HttpRequest) -> Answer:
        """Send a request and return its answer. Raises Closed, TimeoutError."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                writer.write(request.wire(f"{self._host}:{self._port}"))
                answer = await read_answer(reader, method=request.method)
        except (OSError, Closed, TimeoutError):
            await self._close()
            raise
        if "close" in answer.headers.get("connection", "").lower():
            await self._close()
        return answer

    async def _close(self) -> None:
        if self._streams is not None:
            writer = self._streams[1]
            self._streams = None
            await _close(writer)


async def read_answer(reader: asyncio.StreamReader, *, method: str = "POST") -> Answer:
    """Read one answer, past interim ones. Raises Closed if the connection ends before it does, ValueError for what is no HTTP."""
    status = 100
    try:
        while status < 200:
            status, headers = _head(await reader.readuntil(b"\r\n\r\n"))
        return Answer(status, headers, await _body(reader, headers, is_empty=method == "HEAD" or status in _NO_BODY))
    except asyncio.IncompleteReadError as exc:
        raise Closed(f"after {len(exc.partial)} bytes") from None
    except ConnectionError as exc:
        raise Closed(str(exc)) from None


def _head(data: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = data.decode("latin-1").split("\r\n")
    version, code, *_ = first.split(" ")
    if version != "HTTP/1.1":
        raise ValueError(f"an answer begins with {first!r}")
    pairs = (line.partition(":") for line in lines if line)
    return int(code), {name.lower(): value.strip() for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str], *, is_empty: bool) -> bytes:
    if is_empty:
        return b""
    if headers.get("transfer-encoding") == "chunked":
        found = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            found += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
        return found
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return await reader.read()


async def send_garbage(host: str, port: int, data: bytes) -> bytes:
    """Send bytes on a connection of their own; return what came back until the other side closed it or fell silent."""
    reader, writer = await asyncio.open_connection(host, port)
    found = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        writer.write(data)
        while piece := await asyncio.wait_for(reader.read(65_536), SILENT_SECONDS):
            found += piece
    await _close(writer)
    return found


async def call_grpc(channel: grpc.aio.Channel, request: GrpcRequest) -> tuple[str, str]:
    """Make a call with these very bytes; return its status and what it says."""

    async def messages() -> AsyncIterator[bytes]:
        for message in request.messages:
            yield message

    method = request.method
    try:
        if method.endswith(("Stream", "Info")):
            stream = channel.stream_stream(method)(messages(), metadata=request.metadata, timeout=ANSWER_SECONDS)
            async for _ in stream:
                pass
        elif method.endswith("GetTokenizer"):
            async for _ in channel.unary_stream(method)(request.messages[0], metadata=request.metadata, timeout=ANSWER_SECONDS):
                pass
        else:
            await channel.unary_unary(method)(request.messages[0], metadata=request.metadata, timeout=ANSWER_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.details() == _CLIENT_COULD_NOT_WRITE:
            return "REFUSED", ""
        return error.code().name, error.details() or ""
    return "OK", ""


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
