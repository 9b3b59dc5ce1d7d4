"""EmbedStream: many requests at work at once, answered as they are done, never more in hand than a bound.

    reader ──(a permit for each)──► a task a request ──► done ──► writer ──(the permit goes back once the answer is taken)──►

A permit is held from before a request is read until its answer was taken by the transport. So a caller who stops reading stops our
reading, and memory holds at most IN_FLIGHT requests and answers of a stream.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from quadrate.errors import Internal, InvalidArgument, QuadrateError
from quadrate.framing import delimited
from quadrate.server import status
from quadrate.telemetry import log
from quadrate.v1 import embed_pb2
from quadrate.v1.options_pb2 import MULTI_VECTOR

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from quadrate.server.call import Call

    Embed = Callable[[embed_pb2.EmbedRequest, Call], Awaitable[embed_pb2.EmbedResponse | bytes]]

IN_FLIGHT = 64
"""Requests of one stream in hand: enough to fill the batches of every runner several times over."""
LARGE_IN_FLIGHT = 8
"""Of them, those whose answers may be as large as a message can be: multi-vectors. At most half a gigabyte of one stream, then."""
MAX_HELD_BYTES = 2 * 1024 * 1024
"""Reading pauses while requests of one stream in hand have more bytes than this; a single one may be as large as a message can be."""
MAX_ID_BYTES = 256
_RESPONSE = 2
"""The number of EmbedStreamResponse.response."""


async def in_order_of_completion(
    embed: Embed, requests: AsyncIterator[embed_pb2.EmbedStreamRequest], call: Call
) -> AsyncGenerator[bytes, None]:
    """Give the serialised EmbedStreamResponses; a request that fails is answered by its error, and the stream goes on."""
    stream = _Stream(embed, call)
    reader = asyncio.create_task(stream.read(requests))
    try:
        while (answer := await stream.done.get()) is not None:
            if isinstance(answer, Exception):
                raise answer
            written, is_large = answer
            yield written
            stream.give_back(is_large=is_large)
    finally:
        tasks = [reader, *stream.at_work]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        call.log.update(inputs=stream.inputs, tokens=stream.tokens, items=stream.items, items_failed=stream.failed)


class _Stream:
    """One stream's permits, tasks and answers."""

    def __init__(self, embed: Embed, call: Call) -> None:
        self.permits = asyncio.Semaphore(IN_FLIGHT)
        self.done: asyncio.Queue[tuple[bytes, bool] | Exception | None] = asyncio.Queue()
        self.at_work: set[asyncio.Task[None]] = set()
        self.items = self.failed = self.inputs = self.tokens = 0
        self._large_permits = asyncio.Semaphore(LARGE_IN_FLIGHT)
        self._held_bytes = 0
        self._eased = asyncio.Event()
        self._eased.set()
        self._embed = embed
        self._call = call

    def give_back(self, *, is_large: bool) -> None:
        """Let another request be read: an answer was taken."""
        self.permits.release()
        if is_large:
            self._large_permits.release()

    async def read(self, requests: AsyncIterator[embed_pb2.EmbedStreamRequest]) -> None:
        """Start a task for each request as permits allow; then None when the last is done, or what ended the reading."""
        try:
            await self.permits.acquire()
            async for request in requests:
                is_large = MULTI_VECTOR in request.request.outputs
                if is_large:
                    await self._large_permits.acquire()
                size_bytes = request.ByteSize()
                self._hold(size_bytes)
                task = asyncio.create_task(self._answer(request, size_bytes, is_large=is_large))
                self.at_work.add(task)
                task.add_done_callback(self.at_work.discard)
                await self._eased.wait()
                await self.permits.acquire()
            while self.at_work:
                await asyncio.wait(self.at_work)
        except Exception as error:  # noqa: BLE001 - whoever takes the answers raises it
            self.done.put_nowait(error)
        else:
            self.done.put_nowait(None)

    def _hold(self, size_bytes: int) -> None:
        """Count bytes of requests that came in hand, or less than none of those that leave."""
        self._held_bytes += size_bytes
        if self._held_bytes < MAX_HELD_BYTES:
            self._eased.set()
        else:
            self._eased.clear()

    async def _answer(self, request: embed_pb2.EmbedStreamRequest, size_bytes: int, *, is_large: bool) -> None:
        call = replace(self._call, log={}, headers=[], charge=None, place=None, size_bytes=size_bytes)
        head = embed_pb2.EmbedStreamResponse(id=request.id).SerializeToString()
        is_answered = False
        try:
            _check_id(request.id)
            found = await self._embed(request.request, call)
            answer = head + delimited(_RESPONSE, found if isinstance(found, bytes) else found.SerializeToString())
            is_answered = True
        except Exception as error:  # noqa: BLE001 - one item must never end the stream
            self.failed += 1
            answer = head + embed_pb2.EmbedStreamResponse(error=status.told(_ours(error, call))).SerializeToString()
        finally:
            for held in (call.charge, call.place):
                if held is not None:
                    held.close(failed=not is_answered)
            self._hold(-size_bytes)
        self.items += 1
        self._count(call)
        self.done.put_nowait((answer, is_large))

    def _count(self, call: Call) -> None:
        self.inputs += _number(call.log.get("inputs"))
        self.tokens += _number(call.log.get("tokens"))
        if "model" in call.log:
            self._call.log["model"] = call.log["model"]


def _check_id(name: str) -> None:
    if len(name.encode()) > MAX_ID_BYTES:
        raise InvalidArgument(f"id has more than {MAX_ID_BYTES} bytes. Use a shorter one.", param="id")


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _ours(error: Exception, call: Call) -> QuadrateError:
    """Return an error that can be told; one that is not ours is logged, and its text kept from the caller."""
    if isinstance(error, QuadrateError):
        return error
    log.error("unexpected failure in a stream", error=type(error).__name__)
    return Internal(f"Something failed on our side. Quote the request id {call.request_id} to the operator.")
