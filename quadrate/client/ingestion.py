"""Streaming ingestion: any number of texts through one EmbedStream, answers as they are ready, nothing lost when the stream breaks.

    source ──groups──▶ outbox ──sender──▶ stream ──▶ answers ──▶ the caller
                          ▲                             │
                          └── try again, one by one ◀───┘

A group is a few texts in one message of the stream. At most `groups_in_flight` of them are between the source and the caller, so that a
slow caller holds up the source and memory stays flat. A group that fails for good is sent again text by text, so that one bad text costs
its neighbours nothing; one that fails for the moment is sent again as it is, later. When the stream itself breaks, a new one is opened
and whatever was not answered goes into it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import grpc.aio

from quadrate.client.answers import Embedded, Provenance
from quadrate.client.failures import Outcome, from_item
from quadrate.client.requests import EmbedOptions, Text, dtype, one_input
from quadrate.client.retries import retryable
from quadrate.errors import InvalidArgument, QuadrateError, Unavailable
from quadrate.v1 import embed_pb2, embed_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from quadrate.client.connection import Connection, Deadline
    from quadrate.client.source import Source
    from quadrate.v1 import options_pb2

Item = tuple[Any, "Text"]


@dataclass(slots=True, eq=False)
class _Permit:
    """The room that a group takes, until the last of its texts is answered."""

    open_parts: int


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Texts that travel in one message, and how often they have."""

    ids: list[Any]
    inputs: list[options_pb2.Input]
    permit: _Permit
    attempt: int = 1


class Ingestion:
    """One run over one source. `answers` may be iterated once."""

    def __init__(
        self,
        connection: Connection,
        options: EmbedOptions,
        deadline: Deadline,
        *,
        texts_per_group: int,
        groups_in_flight: int,
    ) -> None:
        self._connection = connection
        self._options = options
        self._dtype = dtype(options.value_type)
        self._deadline = deadline
        self._texts_per_group = texts_per_group
        self._room = asyncio.Semaphore(groups_in_flight)
        self._outbox: asyncio.Queue[_Group | None] = asyncio.Queue()
        self._unanswered: dict[str, _Group] = {}
        self._settled: asyncio.Queue[Embedded | None] = asyncio.Queue(maxsize=texts_per_group)
        self._open_groups = 0
        self._source_ended = False
        self._sent = 0
        self._answered = 0
        self._provenance: Provenance | None = None

    async def answers(self, source: Source[Item]) -> AsyncGenerator[Embedded, None]:
        """Yield one answer for each item, in order of completion.

        Raises what the source raised, once what it gave before is answered; and the stream's own failure when it cannot be mended.
        """
        running = asyncio.create_task(self._run(source))
        try:
            while (embedded := await self._settled.get()) is not None:
                yield embedded
            await running
        finally:
            await _end(running)

    async def _run(self, source: Source[Item]) -> None:
        """Bring everything from the source through streams, until it is answered or a failure is final."""
        filling = asyncio.create_task(self._fill(source))
        try:
            failures = 0
            while not self._finished:
                answered_before = self._answered
                error = await self._one_stream()
                if self._finished:
                    break
                failures = failures + 1 if self._answered == answered_before else 1
                await self._connection.wait_before_retry(error, failures, self._deadline)
                self._send_again()
            await filling
        finally:
            await _end(filling)
            if not cast("asyncio.Task[None]", asyncio.current_task()).cancelling():  # otherwise nobody takes answers any more
                await self._settled.put(None)

    async def _one_stream(self) -> QuadrateError:
        """Run one stream to its end and return how it ended, if not everything was answered by then."""
        async with self._stream() as stream:
            outcome = Outcome(stream)
            try:
                async for answer in stream:
                    for embedded in self._settle(answer):
                        await self._settled.put(embedded)
            except grpc.aio.AioRpcError as failure:
                return outcome.error(failure)
        return Unavailable("The server ended the stream before everything was answered.")

    @property
    def _finished(self) -> bool:
        return self._source_ended and self._open_groups == 0

    async def _fill(self, source: Source[Item]) -> None:
        """Turn the source into groups, as fast as there is room for them."""
        try:
            while items := await source.take(self._texts_per_group):
                await self._room.acquire()
                self._open_groups += 1
                await self._admit(items)
        finally:
            self._source_ended = True
            self._end_if_finished()

    async def _admit(self, items: list[Item]) -> None:
        """Make a group of the items; one that is no text is answered here and now."""
        group = _Group([], [], _Permit(1))
        for name, text in items:
            try:
                group.inputs.append(one_input(text, param="text"))
                group.ids.append(name)
            except InvalidArgument as error:
                await self._settled.put(Embedded(name, error=error))
        if group.ids:
            self._outbox.put_nowait(group)
        else:
            self._close(group)

    @asynccontextmanager
    async def _stream(self) -> AsyncIterator[grpc.aio.StreamStreamCall[Any, embed_pb2.EmbedStreamResponse]]:
        """Open a stream with a sender; both are gone afterwards."""
        method: Any = embed_pb2_grpc.EmbedServiceStub(self._connection.channel).EmbedStream  # its types leave out writing by hand
        call = method(timeout=self._deadline.remaining_seconds(), metadata=self._connection.metadata)
        sender = asyncio.create_task(self._send(call))
        try:
            yield call
        finally:
            await _end(sender)
            call.cancel()

    async def _send(self, call: Any) -> None:
        while (group := await self._outbox.get()) is not None:
            self._sent += 1
            key = str(self._sent)
            self._unanswered[key] = group
            await call.write(embed_pb2.EmbedStreamRequest(id=key, request=self._options.request(group.inputs)))
        await call.done_writing()

    def _settle(self, answer: embed_pb2.EmbedStreamResponse) -> list[Embedded]:
        """Return what an answer settles. Nothing if it is to be tried again, or answers what is not known."""
        self._answered += 1
        group = self._unanswered.pop(answer.id, None)
        if group is None:
            return []
        if answer.HasField("response"):
            self._close(group)
            return self._rows(group, answer.response)
        error = from_item(answer.error)
        if self._tried_again(group, error):
            return []
        self._close(group)
        return [Embedded(name, error=error) for name in group.ids]

    def _rows(self, group: _Group, answer: embed_pb2.EmbedResponse) -> list[Embedded]:
        provenance = Provenance.of(answer.provenance)
        self._provenance = self._provenance or provenance
        provenance.check_comparable(self._provenance)
        rows = zip(group.ids, answer.embeddings, strict=True)
        return [Embedded.of(name, embedding, provenance, self._dtype) for name, embedding in rows]

    def _tried_again(self, group: _Group, error: QuadrateError) -> bool:
        """Put a group back, whole and later if its failure may pass, text by text at once if it is final and may be a neighbour's."""
        seconds = self._connection.wait_seconds(error, group.attempt)
        if seconds is not None and self._deadline.allows(seconds):
            again = _Group(group.ids, group.inputs, group.permit, group.attempt + 1)
            asyncio.get_running_loop().call_later(seconds, self._outbox.put_nowait, again)
            return True
        if len(group.ids) == 1 or retryable(error):
            return False
        group.permit.open_parts += len(group.ids) - 1
        for name, text in zip(group.ids, group.inputs, strict=True):
            self._outbox.put_nowait(_Group([name], [text], group.permit))
        return True

    def _close(self, group: _Group) -> None:
        group.permit.open_parts -= 1
        if group.permit.open_parts == 0:
            self._open_groups -= 1
            self._room.release()
            self._end_if_finished()

    def _end_if_finished(self) -> None:
        if self._finished:
            self._outbox.put_nowait(None)

    def _send_again(self) -> None:
        """Put back what a broken stream left unanswered."""
        unanswered, self._unanswered = self._unanswered, {}
        for group in unanswered.values():
            self._outbox.put_nowait(group)


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is gone."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
