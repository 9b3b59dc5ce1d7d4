"""The requests of many callers on one stream to a worker, several to a message.

A call of its own costs this process and the worker twice what a message of an open stream does, and several requests may share a message.
While few are awaited each leaves at once; once many are, so that the worker has enough to do, they gather for a millisecond. Requests of
many inputs go by calls of their own (`peers`): a large answer would hold up the small ones behind it.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import grpc

from quadrate.errors import BY_REASON, DeadlineExceeded, Internal, QuadrateError
from quadrate.v1 import relay_pb2

if TYPE_CHECKING:
    from quadrate.v1.embed_pb2 import EmbedRequest, EmbedResponse
    from quadrate.v1.options_pb2 import Error

MOST_INPUTS = 32
"""Requests of more inputs are not relayed."""
BUSY = 8
"""From so many awaited answers on, requests gather before they are sent."""
GATHER_SECONDS = 0.001
_PATH = "/quadrate.v1.RelayService/Relay"
_HEADERS = {"x-request-id": "request_id", "traceparent": "traceparent", "tracestate": "tracestate", "baggage": "baggage"}
_numbers = itertools.cycle(range(1, 2**32))


class Relay:
    """A worker's RelayService, on one stream that is opened when it is first needed and again after it was lost.

    `served` turns false when the worker turns out not to have the service.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.served = True
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
            stream = self._stream = _Stream(self._method(None))
        try:
            return await stream.embed(request, timeout, metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self.served = False
            raise

    def retire(self) -> None:
        """Let the stream end with its last answer, so that a worker that drains need not wait for it. The next call opens another."""
        if self._stream is not None:
            self._stream.retire()
            self._stream = None


class _Stream:
    """One stream: what waits to be sent, and whose answers are awaited."""

    def __init__(self, call: grpc.aio.StreamStreamCall[Any, Any]) -> None:
        self.over = False
        self._call = call
        self._awaited: dict[int, asyncio.Future[EmbedResponse]] = {}
        self._new: list[relay_pb2.RelayedRequest] = []
        self._cancelled: list[int] = []
        self._changed = asyncio.Event()
        self._retired = False
        self._reader = asyncio.create_task(self._read())
        self._writer = asyncio.create_task(self._write())

    async def embed(self, request: EmbedRequest, timeout: float | None, metadata: tuple[tuple[str, str], ...]) -> EmbedResponse:  # noqa: ASYNC109
        """As `Relay.embed`."""
        loop = asyncio.get_running_loop()
        number = next(_numbers)
        future: asyncio.Future[EmbedResponse] = loop.create_future()
        headers = {_HEADERS[name]: value for name, value in metadata}
        self._new.append(relay_pb2.RelayedRequest(id=number, embed=request, timeout_seconds=timeout, **headers))
        self._awaited[number] = future
        self._changed.set()
        timer = loop.call_later(timeout, _expire, future) if timeout is not None else None
        try:
            return await future
        except (asyncio.CancelledError, DeadlineExceeded):
            self._cancel(number)
            raise
        finally:
            self._awaited.pop(number, None)
            if timer is not None:
                timer.cancel()

    def retire(self) -> None:
        """Close our side when nothing is awaited any more."""
        self._retired = True
        self._changed.set()

    def _cancel(self, number: int) -> None:
        if not self.over and number in self._awaited:
            self._cancelled.append(number)
            self._changed.set()

    async def _write(self) -> None:
        """Send what is there, and what has come meanwhile, until retired."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(GATHER_SECONDS if len(self._awaited) >= BUSY else 0)
            self._changed.clear()
            new, self._new = self._new, []
            cancelled, self._cancelled = self._cancelled, []
            try:
                if new or cancelled:
                    await self._call.write(relay_pb2.RelayRequest(requests=new, cancelled_ids=cancelled))
                if self._retired and not self._new and not self._awaited:
                    await self._call.done_writing()
                    return
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return  # the reader knows why

    async def _read(self) -> None:
        """Hand answers to those who wait, until the stream is over; then tell all who still wait why."""
        try:
            async for message in self._call:
                for answer in message.responses:
                    self._answer(answer)
                if self._retired and not self._awaited:
                    self._changed.set()
            self._end(_lost())
        except grpc.aio.AioRpcError as error:
            # However a stream breaks (INTERNAL, if while we write), those who wait were not answered and may ask elsewhere.
            self._end(error if error.code() is grpc.StatusCode.UNIMPLEMENTED else _lost())
        except asyncio.CancelledError:
            self._end(_lost())
            raise

    def _answer(self, answer: relay_pb2.RelayedResponse) -> None:
        future = self._awaited.pop(answer.id, None)
        if future is None or future.done():
            return
        if answer.HasField("error"):
            future.set_exception(_error(answer.error))
        else:
            future.set_result(answer.embed)

    def _end(self, error: grpc.aio.AioRpcError) -> None:
        self.over = True
        self._writer.cancel()
        for future in self._awaited.values():
            if not future.done():
                future.set_exception(error)
        self._awaited.clear()


def _lost() -> grpc.aio.AioRpcError:
    """Return the error of a stream that ended while answers were awaited."""
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="the stream has ended", debug_error_string=""
    )


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("The deadline passed before the answer was there. Allow more time, or send less at once."))


def _error(told: Error) -> QuadrateError:
    kind = BY_REASON.get(told.reason, Internal)
    seconds = told.retry_after_seconds if told.HasField("retry_after_seconds") else None
    return kind(told.message, param=told.param or None, retry_after_seconds=seconds)
