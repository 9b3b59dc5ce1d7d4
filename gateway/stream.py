"""Streams of embedding requests: many at work at once, answered as they are done, never more in hand than a bound.

    reader ──(a permit for each)──► a task a request ──► done ──► writer ──(the permit goes back once the answer is taken)──►

A permit is held from before a request is read until its answer was taken by the transport. So a caller who stops reading stops our
reading, and memory holds at most IN_FLIGHT requests and answers of a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from quadrate.errors import Internal, InvalidArgument, QuadrateError
from quadrate.telemetry import log
from quadrate.v1 import embed_pb2, options_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from quadrate.server import Call

    Embed = Callable[[embed_pb2.EmbedRequest, Call], Awaitable[embed_pb2.EmbedResponse]]

IN_FLIGHT = 64
"""Requests of one stream that are at work or wait to be taken: enough to fill a batch of any worker several times over."""
MAX_ID_BYTES = 256


async def answer_stream(
    requests: AsyncIterator[embed_pb2.EmbedStreamRequest], embed: Embed, call: Call
) -> AsyncIterator[embed_pb2.EmbedStreamResponse]:
    """Give the answers to a stream's requests in order of completion; a request that fails is answered by its error."""
    stream = _Stream(embed, call)
    reader = asyncio.create_task(stream.read(requests))
    try:
        async for answer in stream.answers():
            yield answer
    finally:
        await _end(reader, *stream.at_work)
        call.log.update(inputs=stream.inputs, tokens=stream.tokens, items=stream.items, items_failed=stream.failed)


class _Stream:
    """One stream's permits, tasks and answers."""

    def __init__(self, embed: Embed, call: Call) -> None:
        self.at_work: set[asyncio.Task[None]] = set()
        self.items = self.failed = self.inputs = self.tokens = 0
        self._embed = embed
        self._call = call
        self._permits = asyncio.Semaphore(IN_FLIGHT)
        self._done: asyncio.Queue[embed_pb2.EmbedStreamResponse | Exception | None] = asyncio.Queue()

    async def read(self, requests: AsyncIterator[embed_pb2.EmbedStreamRequest]) -> None:
        """Start a task for each request as permits allow; say so when the last is done, or why reading ended."""
        try:
            await self._permits.acquire()
            async for request in requests:
                task = asyncio.create_task(self._work(request))
                self.at_work.add(task)
                task.add_done_callback(self.at_work.discard)
                await self._permits.acquire()
            while self.at_work:
                await asyncio.wait(self.at_work)
        except Exception as exc:  # noqa: BLE001 - whoever takes the answers raises it
            self._done.put_nowait(exc)
        else:
            self._done.put_nowait(None)

    async def answers(self) -> AsyncIterator[embed_pb2.EmbedStreamResponse]:
        """Give answers until the last; a permit is returned when the next answer is asked for."""
        while (answer := await self._done.get()) is not None:
            if isinstance(answer, Exception):
                raise answer
            yield answer
            self._permits.release()

    async def _work(self, request: embed_pb2.EmbedStreamRequest) -> None:
        call = replace(self._call, log={}, headers=[])
        answer = embed_pb2.EmbedStreamResponse(id=request.id)
        try:
            _check_id(request)
            answer.response.CopyFrom(await self._embed(request.request, call))
        except QuadrateError as exc:
            self.failed += 1
            answer.error.CopyFrom(_error(exc))
        except Exception as exc:  # noqa: BLE001 - one item must never end the stream; the log has the cause
            self.failed += 1
            log.error("unexpected failure in a stream", error=type(exc).__name__)
            answer.error.CopyFrom(_error(Internal(f"Something failed on our side. Quote the request id {call.request_id}.")))
        self._count(call)
        self._done.put_nowait(answer)

    def _count(self, call: Call) -> None:
        self.items += 1
        self.inputs += _number(call.log.get("inputs"))
        self.tokens += _number(call.log.get("tokens"))
        if "model" in call.log:
            self._call.log["model"] = call.log["model"]


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _check_id(request: embed_pb2.EmbedStreamRequest) -> None:
    if len(request.id.encode()) > MAX_ID_BYTES:
        raise InvalidArgument(f"id has more than {MAX_ID_BYTES} bytes. Use a shorter one.", param="id")


def _error(error: QuadrateError) -> options_pb2.Error:
    """Return an error as it is told inside a stream."""
    return options_pb2.Error(
        code=error.status.value[0],
        message=error.message,
        reason=error.reason,
        param=error.param or "",
        retryable=error.retryable,
        retry_after_seconds=error.retry_after_seconds,
    )
