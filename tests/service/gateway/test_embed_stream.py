"""EmbedStream at the gateway: out of order, bounded, and no item ends the stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from quadrate.errors import Overloaded
from quadrate.server.streams import IN_FLIGHT, LARGE_IN_FLIGHT
from quadrate.testing.worker import FakeWorker, fake_card, fake_vector
from quadrate.v1 import embed_pb2, model_pb2, options_pb2, rerank_pb2
from tests.service.gateway.conftest import refused, routing
from tests.standstill import standstill

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.service.gateway.conftest import Door

RERANK = rerank_pb2.RerankRequest(model="fake-rerank", query="cat", documents=[options_pb2.Input(text="dog")])
"""What somebody else asks meanwhile."""


def item(name: str, text: str = "cat", model: str = "fake") -> embed_pb2.EmbedStreamRequest:
    """Return one request of a stream."""
    return embed_pb2.EmbedStreamRequest(id=name, request=embed_pb2.EmbedRequest(model=model, inputs=[options_pb2.Input(text=text)]))


async def sent(*items: embed_pb2.EmbedStreamRequest) -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
    """Give items."""
    for one in items:
        yield one


def embeds(worker: FakeWorker) -> int:
    """Return how many requests to embed a worker was sent."""
    return sum(isinstance(request, embed_pb2.EmbedRequest) for request in worker.received)


class Turnstile:
    """Lets a worker answer requests to embed one by one."""

    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker
        self._passes = asyncio.Semaphore(0)
        worker.before = self._wait

    async def _wait(self, request: Any, _: Any) -> None:
        if isinstance(request, embed_pb2.EmbedRequest):
            await self._passes.acquire()

    async def holds(self, door: Door, bound: int) -> None:
        """See that so many requests are at work, never more, while a few are answered."""
        for answered in range(5):
            await self._at_work(door, bound + answered)
            assert await standstill(lambda: embeds(self._worker), lambda: door.rerank.Rerank(RERANK)) == bound + answered
            self._passes.release()

    async def _at_work(self, door: Door, count: int) -> None:
        await door.until(lambda: embeds(self._worker) >= count)

    def open(self) -> None:
        """Let all others pass."""
        for _ in range(10 * IN_FLIGHT):
            self._passes.release()


async def test_answers_come_as_they_are_done(door: Door, worker: FakeWorker) -> None:
    """The first request is held back until the second was answered; each answer has its own id and vector."""
    answered = asyncio.Event()

    async def hold_cats(request: Any, _: Any) -> None:
        if list(request.inputs[0].token_ids.ids) == [7]:
            await answered.wait()

    worker.before = hold_cats
    names = []
    async for answer in door.embed.EmbedStream(sent(item("slow", "cat"), item("fast", "dog"))):
        names.append(answer.id)
        answered.set()
        expected = fake_vector([7] if answer.id == "slow" else [8])
        assert np.array_equal(np.float32(answer.response.embeddings[0].values), expected)
        assert answer.response.model == "fake"
        assert answer.response.usage.tokens == 3
    assert names == ["fast", "slow"]


async def test_a_bad_item_is_answered_and_the_stream_goes_on(door: Door, worker: FakeWorker) -> None:
    """Empty, unknown model, an id too long, refused by the worker: each by an error under its own id."""

    async def refuse_dogs(request: Any, _: Any) -> None:
        if list(request.inputs[0].token_ids.ids) == [8]:
            raise Overloaded("Full.", retry_after_seconds=1.5)

    worker.before = refuse_dogs
    items = [item("empty", ""), item("unknown", model="x"), item("i" * 257), item("full", "dog"), item("good")]
    found = {answer.id: answer async for answer in door.embed.EmbedStream(sent(*items))}
    assert len(found) == len(items)
    assert found["good"].response.embeddings
    assert (found["empty"].error.reason, found["empty"].error.param, found["empty"].error.code) == ("EMPTY_INPUT", "inputs[0].text", 3)
    assert not found["empty"].error.retryable
    assert found["unknown"].error.reason == "MODEL_NOT_FOUND"
    assert found["i" * 257].error.param == "id"
    full = found["full"].error
    assert (full.reason, full.retryable, full.retry_after_seconds) == ("OVERLOADED", True, 1.5)


async def test_a_reader_that_stops_stops_the_stream(open_door: Callable[..., Any]) -> None:
    """While nothing is read, no more is asked of the worker than the bound and the transport's windows; later all is answered."""
    many = 20 * IN_FLIGHT
    wide = fake_card("fake", dimensions=4096)
    async with FakeWorker(wide, fake_card("fake-rerank", model_pb2.TASK_RERANK)) as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        answers = aiter(door.embed.EmbedStream(sent(*(item(str(number)) for number in range(many)))))
        first = await anext(answers)
        asked = await standstill(lambda: embeds(worker), lambda: door.rerank.Rerank(RERANK))
        assert asked < many / 2, "the worker was asked for what nobody reads"
        assert {first.id} | {answer.id async for answer in answers} == {str(number) for number in range(many)}


async def test_no_more_than_the_bound_is_at_work(door: Door, worker: FakeWorker) -> None:
    """A caller who sends without end keeps IN_FLIGHT requests at work, not more; each answer makes room for one."""
    turnstile = Turnstile(worker)
    call = door.embed.EmbedStream(sent(*(item(str(number)) for number in range(3 * IN_FLIGHT))))
    await turnstile.holds(door, IN_FLIGHT)
    turnstile.open()
    assert len([answer async for answer in call]) == 3 * IN_FLIGHT


async def test_fewer_are_at_work_if_answers_are_large(open_door: Callable[..., Any]) -> None:
    """Each multi-vector answer may be as large as a message can be; dense requests behind them wait, and all are answered."""
    card = fake_card("fake", outputs=[options_pb2.DENSE, options_pb2.MULTI_VECTOR])
    rerank = fake_card("fake-rerank", model_pb2.TASK_RERANK)
    async with FakeWorker(card, rerank) as worker, open_door(routing(worker)) as door:
        turnstile = Turnstile(worker)
        await door.until_serving()
        large = [item(str(number)) for number in range(3 * LARGE_IN_FLIGHT)]
        for one in large:
            one.request.outputs.append(options_pb2.MULTI_VECTOR)
        call = door.embed.EmbedStream(sent(*large, item("dense")))
        await turnstile.holds(door, LARGE_IN_FLIGHT)
        turnstile.open()
        assert len([answer async for answer in call]) == len(large) + 1


async def test_a_caller_that_leaves_cancels_its_items(door: Door, worker: FakeWorker) -> None:
    """The workers' calls end with the stream."""
    cancelled = 0

    async def wait(_: Any, __: Any) -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise

    worker.before = wait
    call = door.embed.EmbedStream(sent(*(item(str(number)) for number in range(5))))
    await door.until(lambda: len(worker.received) == 5)
    call.cancel()
    await door.until(lambda: cancelled == 5)


async def test_an_empty_stream_ends_well(door: Door) -> None:
    """No requests, no answers, no error."""
    assert [answer async for answer in door.embed.EmbedStream(sent())] == []


async def test_a_stream_needs_a_key_where_one_is_needed(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """A stream is let in or refused as a whole."""
    async with open_door(routing(worker), auth="api_keys: [k]") as door:
        await door.until_serving()
        assert (await refused(door.embed.EmbedStream(sent(item("a"))).read())).status == "UNAUTHENTICATED"
        call = door.embed.EmbedStream(sent(item("a")), metadata=(("x-api-key", "k"),))
        assert [answer.id async for answer in call] == ["a"]
