"""The requests of many callers on one stream to a worker, several to a message.

A call of its own costs this process and the worker twice what a message of an open stream does, and several requests may share a message.
While few are awaited each leaves at once; once many are, so that the worker has enough to do, they gather for a part of what answers take.
Requests of many inputs go by calls of their own (`peers`): a large answer would hold up the small ones behind it.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import grpc

from quadrate.client.failures import Outcome, from_item
from quadrate.errors import DeadlineExceeded
from quadrate.server.call import PRIORITY_HEADER, TENANT_HEADER, WEIGHT_HEADER
from quadrate.telemetry.traces import unsampled
from quadrate.v1 import relay_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from quadrate.v1.embed_pb2 import EmbedRequest, EmbedResponse

MOST_INPUTS = 32
"""Requests of more inputs are not relayed."""
BUSY = 8
"""From so many awaited answers on, requests gather before they are sent."""
LEAST_GATHER_SECONDS, MOST_GATHER_SECONDS = 0.004, 0.012
"""A gateway's process forwards at most about two requests a millisecond, so that eight are awaited only where answers take 4 ms and more:
gathering then costs a part of what a request takes anyway, and saves a quarter of the mesh's own work (docs/decisions.md)."""
GATHER_PART = 0.125
"""The part of what answers take that requests gather for, within those bounds: where a model is slow, more of them share a message."""
_LATEST = 0.05
"""The weight of the latest answer in how long answers take."""
MESSAGE_BYTES = 2**20
"""Requests that would make a message larger than this wait for the next one: a worker ends a stream that brings more than 8 MiB at once."""
_PATH = "/quadrate.v1.RelayService/Relay"
_HEADERS = {
    "x-request-id": "request_id",
    "traceparent": "traceparent",
    "tracestate": "tracestate",
    "baggage": "baggage",
    TENANT_HEADER: "tenant",
    PRIORITY_HEADER: "priority",
    WEIGHT_HEADER: "weight",
}
_READ: Mapping[str, Callable[[str], Any]] = {
    PRIORITY_HEADER: lambda word: relay_pb2.Priority.Value(f"PRIORITY_{word.upper()}"),
    WEIGHT_HEADER: float,
}
"""How values are told that are no strings. Few requests have them."""
_numbers = itertools.count(1)
_MOST_NUMBERS = 2**32


def gather_seconds(awaited: int, answer_seconds: float) -> float:
    """Return how long requests gather while so many answers are awaited, which take so long of late."""
    if awaited < BUSY:
        return 0.0
    return min(max(GATHER_PART * answer_seconds, LEAST_GATHER_SECONDS), MOST_GATHER_SECONDS)


class Relay:
    """A worker's RelayService, on one stream that is opened when it is first needed and again after it was lost.

    `served` turns false when the worker turns out not to have the service.

    Args:
        channel: To the worker.
        heard: Called with each message from it.
    """

    def __init__(self, channel: grpc.aio.Channel, heard: Callable[[], None] = lambda: None) -> None:
        self.served = True
        self._heard = heard
        self._method = channel.stream_stream(
            _PATH,
            request_serializer=relay_pb2.RelayRequest.SerializeToString,
            response_deserializer=relay_pb2.RelayResponse.FromString,
        )
        self._stream: _Stream | None = None

    async def embed(self, request: EmbedRequest, timeout: float | None, metadata: tuple[tuple[str, str], ...]) -> EmbedResponse:  # noqa: ASYNC109
        """Send a request and wait for its answer. If the caller is cancelled, so is the worker's part.

        Raises QuadrateError as the worker told it, DeadlineExceeded after `timeout` seconds, grpc.aio.AioRpcError if the stream is lost.
        """
        stream = self._stream
        if stream is None or stream.over:
            # What it carries is traced, call by call; the stream itself lasts as long as this process.
            stream = self._stream = _Stream(self._method(None, metadata=(("traceparent", unsampled()),)), self._heard)
        try:
            return await stream.embed(request, timeout, metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self.served = False
            raise

    def retire(self) -> None:
        """Let the stream end with its last answer, so that a worker that drains need not wait for it. The next call opens another.

        The worker that comes next may have the service, even if this one has not.
        """
        self.served = True
        if self._stream is not None:
            self._stream.retire()
            self._stream = None


class _Stream:
    """One stream: what waits to be sent, and whose answers are awaited."""

    def __init__(self, call: grpc.aio.StreamStreamCall[Any, Any], heard: Callable[[], None]) -> None:
        self.over = False
        self._heard = heard
        self._call = call
        self._outcome = Outcome(call)
        self._awaited: dict[int, asyncio.Future[EmbedResponse]] = {}
        self._new: dict[int, relay_pb2.RelayedRequest] = {}
        self._cancelled: list[int] = []
        self._changed = asyncio.Event()
        self._retired = False
        self._answer_seconds = 0.0
        self._reader = asyncio.create_task(self._read())
        self._writer = asyncio.create_task(self._write())

    async def embed(self, request: EmbedRequest, timeout: float | None, metadata: tuple[tuple[str, str], ...]) -> EmbedResponse:  # noqa: ASYNC109
        """As `Relay.embed`."""
        loop = asyncio.get_running_loop()
        number = next(_numbers) % _MOST_NUMBERS
        future: asyncio.Future[EmbedResponse] = loop.create_future()
        headers: dict[str, Any] = {_HEADERS[name]: _READ[name](value) if name in _READ else value for name, value in metadata}
        self._new[number] = relay_pb2.RelayedRequest(id=number, embed=request, timeout_seconds=timeout, **headers)
        self._awaited[number] = future
        self._changed.set()
        timer = loop.call_later(timeout, _expire, future) if timeout is not None else None
        asked = loop.time()
        try:
            answer = await future
        except (asyncio.CancelledError, DeadlineExceeded):
            self._cancel(number)
            raise
        else:
            self._answer_seconds += _LATEST * (loop.time() - asked - self._answer_seconds)
            return answer
        finally:
            self._awaited.pop(number, None)
            if timer is not None:
                timer.cancel()

    def retire(self) -> None:
        """Close our side when nothing is awaited any more."""
        self._retired = True
        self._changed.set()

    def _cancel(self, number: int) -> None:
        if self.over or number not in self._awaited:
            return
        if self._new.pop(number, None) is None:
            self._cancelled.append(number)
        self._changed.set()

    async def _write(self) -> None:
        """Send what is there, and what has come meanwhile, until retired."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(gather_seconds(len(self._awaited), self._answer_seconds))
            self._changed.clear()
            new, self._new = self._new, {}
            cancelled, self._cancelled = self._cancelled, []
            try:
                for message in _messages(new, cancelled):
                    await self._call.write(message)
                if self._retired and not self._new and not self._awaited:
                    await self._call.done_writing()
                    return
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return  # the reader knows why

    async def _read(self) -> None:
        """Hand answers to those who wait, until the stream is over; then tell all who still wait why."""
        error = _lost()
        try:
            async for message in self._call:
                self._heard()
                for answer in message.responses:
                    self._answer(answer)
                if self._retired and not self._awaited:
                    self._changed.set()
        except grpc.aio.AioRpcError as failure:
            # However a stream breaks (INTERNAL, if while we write), those who wait were not answered and may ask elsewhere.
            if self._outcome.status(failure) is grpc.StatusCode.UNIMPLEMENTED:
                error = _lost(grpc.StatusCode.UNIMPLEMENTED)
        finally:
            self._end(error)

    def _answer(self, answer: relay_pb2.RelayedResponse) -> None:
        future = self._awaited.pop(answer.id, None)
        if future is None or future.done():
            return
        if answer.HasField("error"):
            future.set_exception(from_item(answer.error))
        else:
            future.set_result(answer.embed)

    def _end(self, error: grpc.aio.AioRpcError) -> None:
        self.over = True
        self._writer.cancel()
        for future in self._awaited.values():
            if not future.done():
                future.set_exception(error)
        self._awaited.clear()


def _messages(new: Mapping[int, relay_pb2.RelayedRequest], cancelled: Sequence[int]) -> Iterator[relay_pb2.RelayRequest]:
    """Yield what is to be said, in order, in as few messages as MESSAGE_BYTES allows. A larger request has one to itself."""
    message = relay_pb2.RelayRequest(cancelled_ids=cancelled)
    size = 0
    for request in new.values():
        length = request.ByteSize()
        if message.requests and size + length > MESSAGE_BYTES:
            yield message
            message, size = relay_pb2.RelayRequest(), 0
        message.requests.append(request)
        size += length
    if message.requests or message.cancelled_ids:
        yield message


def _lost(status: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> grpc.aio.AioRpcError:
    """Return the error of a stream that ended while answers were awaited."""
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(), details="the stream has ended", debug_error_string="")


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("The deadline passed before the answer was there. Allow more time, or send less at once."))
