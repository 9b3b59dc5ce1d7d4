"""RelayService: many calls on one stream, each served, counted, logged and traced as a call of its own.

Answers that are ready at the same time leave in one message; while many are under way they gather for a millisecond (see
gateway/upstreams/relay.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from quadrate.framing import delimited
from quadrate.server import status
from quadrate.server.call import PRIORITY_HEADER, TENANT_HEADER, WEIGHT_HEADER
from quadrate.standing import Priority
from quadrate.v1 import relay_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from quadrate.server.call import Call, Desk
    from quadrate.v1.embed_pb2 import EmbedRequest, EmbedResponse

    Embed = Callable[[EmbedRequest, Call], Awaitable[EmbedResponse | bytes]]

METHOD = "quadrate.v1.EmbedService/Embed"
"""What relayed calls are called in logs, metrics and traces: what they would be without the relay."""
BUSY = 8
"""From so many calls under way on, answers gather before they are sent."""
GATHER_SECONDS = 0.001
MAX_UNSENT_BYTES = 32 * 1024 * 1024
"""Reading pauses while more than this waits to be sent, so that a gateway that stops reading cannot fill our memory."""
_MAX_FRAME_BYTES = 4 * 1024 * 1024
_RESPONSES, _EMBED = 1, 2
"""The numbers of RelayResponse.responses and RelayedResponse.embed."""


class RelayService:
    """quadrate.v1.RelayService over a handler of EmbedService.Embed."""

    descriptor = relay_pb2.DESCRIPTOR.services_by_name["RelayService"]
    carries_calls = True
    """A stream lasts as long as its gateway: a process that is to end waits for the calls on it alone."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed

    async def relay(self, requests: AsyncIterator[relay_pb2.RelayRequest], call: Call) -> AsyncIterator[bytes]:
        """Serve what comes until the caller has closed its side and every answer has been sent."""
        if call.desk is None:
            raise TypeError("relayed calls are counted at the desk of the call that carries them")
        stream = _Stream(self._embed, call.desk)
        reader = asyncio.create_task(stream.read(requests))
        try:
            while frame := await stream.frame():
                yield frame
            await reader
        finally:
            reader.cancel()
            stream.cancel_all()


class _Stream:
    """One stream's calls under way and answers not yet sent."""

    def __init__(self, embed: Embed, desk: Desk) -> None:
        self._embed = embed
        self._desk = desk
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._answers: list[bytes] = []
        self._unsent_bytes = 0
        self._read_all = False
        self._changed = asyncio.Event()
        self._sent = asyncio.Event()

    async def read(self, requests: AsyncIterator[relay_pb2.RelayRequest]) -> None:
        """Begin what comes, drop what is cancelled."""
        try:
            async for message in requests:
                for request in message.requests:
                    task = asyncio.create_task(self._serve(request))
                    self._tasks[request.id] = task
                for number in message.cancelled_ids:
                    # Forgotten here: a task that has not begun ends without a line of it being run.
                    if (gone := self._tasks.pop(number, None)) is not None:
                        gone.cancel()
                while self._unsent_bytes > MAX_UNSENT_BYTES:
                    self._sent.clear()
                    await self._sent.wait()
        finally:
            self._read_all = True
            self._changed.set()

    async def frame(self) -> bytes:
        """Wait for answers and return those that are ready, as one message; empty when there will be no more."""
        while not self._answers:
            if self._read_all and not self._tasks:
                return b""
            self._changed.clear()
            await self._changed.wait()
        if len(self._tasks) >= BUSY:
            await asyncio.sleep(GATHER_SECONDS)
        taken, size = 0, 0
        while taken < len(self._answers) and size < _MAX_FRAME_BYTES:
            size += len(self._answers[taken])
            taken += 1
        parts, self._answers = self._answers[:taken], self._answers[taken:]
        self._unsent_bytes -= size
        self._sent.set()
        return b"".join(parts)

    def cancel_all(self) -> None:
        """Drop what is under way: the gateway has gone."""
        for task in self._tasks.values():
            task.cancel()

    async def _serve(self, request: relay_pb2.RelayedRequest) -> None:
        metadata = {name: value for name in ("traceparent", "tracestate", "baggage") if (value := getattr(request, name))}
        if request.request_id:
            metadata["x-request-id"] = request.request_id
        if request.tenant:
            metadata[TENANT_HEADER] = request.tenant
        if request.priority == relay_pb2.PRIORITY_BULK:
            metadata[PRIORITY_HEADER] = Priority.BULK.word
        if request.HasField("weight"):
            metadata[WEIGHT_HEADER] = repr(request.weight)
        remaining = request.timeout_seconds if request.HasField("timeout_seconds") else None
        call = self._desk.begin(METHOD, metadata, remaining)
        received = request.embed.ByteSize()
        try:
            answer = await self._embed(request.embed, call)
            body = answer if type(answer) is bytes else answer.SerializeToString()  # type: ignore[union-attr]  # bytes or a message
            self._desk.end(call, received, len(body))
            self._put(relay_pb2.RelayedResponse(id=request.id).SerializeToString(), delimited(_EMBED, body))
        except BaseException as exc:
            error = self._desk.end(call, received, 0, exc)
            if error is None or not isinstance(exc, Exception):
                raise
            self._put(relay_pb2.RelayedResponse(id=request.id, error=status.told(error)).SerializeToString())
        finally:
            self._tasks.pop(request.id, None)
            self._changed.set()

    def _put(self, *answer: bytes) -> None:
        framed = delimited(_RESPONSES, *answer)
        self._answers.append(framed)
        self._unsent_bytes += len(framed)
