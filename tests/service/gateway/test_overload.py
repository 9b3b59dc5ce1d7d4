"""Who goes first, and what becomes of requests that there is no room for, on every wire."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from google.api.httpbody_pb2 import HttpBody

from gateway.overload.gate import LEAST_REQUESTS, TARGET_SECONDS, Gate
from quadrate.errors import Overloaded
from quadrate.standing import Priority, Standing
from quadrate.testing.http_upstream import HttpUpstream
from quadrate.testing.worker import FakeWorker
from quadrate.v1 import embed_pb2, options_pb2, rerank_pb2
from tests.service.gateway.conftest import refused, routing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiohttp import web

    from quadrate.server import Call
    from tests.service.gateway.conftest import Door

BULK = (("x-quadrate-priority", "bulk"),)
KEYS = "api_keys: [{key: one-of-the-keys, name: one}, {key: another-of-the-keys, name: other}]\nallow_anonymous_without_api_keys: true"
FLOOD = 150
A_SECONDS_WORTH = 50
ONE, OTHER = (("authorization", "Bearer one-of-the-keys"),), (("authorization", "Bearer another-of-the-keys"),)


def texts(*contents: str) -> embed_pb2.EmbedRequest:
    """Return a native request."""
    return embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text=text) for text in contents])


async def stream(*contents: str) -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
    """Give items of a stream."""
    for text in contents:
        yield embed_pb2.EmbedStreamRequest(id=text, request=texts(text))


class Gates:
    """Holds a worker's answers back until they are let go."""

    def __init__(self, worker: FakeWorker) -> None:
        self.opened = asyncio.Event()
        worker.before = self._wait

    async def _wait(self, _: Any, __: Call) -> None:
        await self.opened.wait()


WIRES: dict[str, Callable[[Door, Any], Any]] = {
    "native": lambda door, metadata: door.embed.Embed(texts("cat"), metadata=metadata),
    "many inputs": lambda door, metadata: door.embed.Embed(texts(*["cat"] * 40), metadata=metadata),
    "openai": lambda door, metadata: door.post(door.openai.CreateEmbedding, {"model": "fake", "input": "cat"}, metadata=metadata),
    "cohere embed": lambda door, metadata: door.post(
        door.cohere.EmbedV2, {"model": "fake", "texts": ["cat"], "input_type": "search_document"}, metadata=metadata
    ),
    "cohere rerank": lambda door, metadata: door.post(
        door.cohere.RerankV2, {"model": "fake-rerank", "query": "cat", "documents": ["dog"]}, metadata=metadata
    ),
    "native rerank": lambda door, metadata: door.rerank.Rerank(
        rerank_pb2.RerankRequest(model="fake-rerank", query="cat", documents=[options_pb2.Input(text="dog")]), metadata=metadata
    ),
}


@pytest.mark.parametrize("wire", WIRES)
async def test_a_priority_that_is_asked_for_reaches_the_worker(door: Door, worker: FakeWorker, wire: str) -> None:
    """On every wire a request is interactive unless it asks to be bulk, and the worker is told."""
    await WIRES[wire](door, ())
    await WIRES[wire](door, BULK)
    assert [call.standing for call in worker.calls] == [Standing("anonymous"), Standing("anonymous", Priority.BULK)]


@pytest.mark.parametrize("wire", WIRES)
async def test_an_unknown_priority_is_refused(door: Door, worker: FakeWorker, wire: str) -> None:
    """A word that is none is a mistake of the caller's, who is told which there are."""
    failure = await refused(WIRES[wire](door, (("x-quadrate-priority", "urgent"),)))
    assert (failure.status, failure.param) == ("INVALID_ARGUMENT", "x-quadrate-priority")
    assert "interactive or bulk, not 'urgent'" in failure.message
    assert not worker.calls


@pytest.mark.parametrize("words", [("urgent", "bulk"), ("bulk", "interactive"), ("bulk", "bulk")])
async def test_two_priorities_are_none(door: Door, worker: FakeWorker, words: tuple[str, str]) -> None:
    """Whichever comes last: nobody can tell which was meant."""
    failure = await refused(door.embed.Embed(texts("cat"), metadata=tuple(("x-quadrate-priority", word) for word in words)))
    assert (failure.status, failure.param) == ("INVALID_ARGUMENT", "x-quadrate-priority")
    assert f"not '{','.join(words)}'" in failure.message
    assert not worker.calls


async def test_a_long_word_that_is_no_priority_is_told_in_part(door: Door) -> None:
    """A refusal is no longer for it than a line."""
    failure = await refused(door.embed.Embed(texts("cat"), metadata=(("x-quadrate-priority", "urgent!" * 500),)))
    assert len(failure.message) < 200
    assert f"not '{('urgent!' * 6)[:40]}…'" in failure.message


async def test_streams_are_bulk_unless_they_say_otherwise(door: Door, worker: FakeWorker) -> None:
    """Streams bring what is to be stored; one that somebody waits for says so."""
    for metadata in ((), (("x-quadrate-priority", "interactive"),)):
        assert [answer.id async for answer in door.embed.EmbedStream(stream("cat"), metadata=metadata)] == ["cat"]
    assert [call.standing.priority for call in worker.calls] == [Priority.BULK, Priority.INTERACTIVE]


async def test_nobody_gives_themselves_weight_or_another_name(door: Door, worker: FakeWorker) -> None:
    """What a gateway tells workers of its callers it takes from none of them."""
    await door.embed.Embed(texts("cat"), metadata=(("x-quadrate-weight", "100"), ("x-quadrate-tenant", "somebody")))
    assert worker.calls[0].standing == Standing("anonymous")


@pytest.mark.parametrize("many", [False, True])
async def test_weights_of_the_limits_file_reach_the_worker(open_door: Any, worker: FakeWorker, *, many: bool) -> None:
    """The weight that a key has is told with its requests, over the relay and beside it."""
    limits = "per_api_key: {one: {weight: 2.5}}"
    async with open_door(routing(worker), auth=KEYS, limits=limits) as door:
        await door.until_serving()
        for metadata in (ONE, OTHER):
            await door.embed.Embed(texts(*["cat"] * (40 if many else 1)), metadata=metadata)
    assert [call.standing for call in worker.calls] == [Standing("one", weight=2.5), Standing("other")]


async def test_a_worker_without_room_is_not_asked_again_too_soon(open_door: Any, worker: FakeWorker) -> None:
    """What was refused a moment ago is refused without asking, to the same caller alone, until the time is over that it was told."""

    async def refuse_one(_: Any, call: Call) -> None:
        if call.standing.tenant == "one" and len(worker.calls) < 3:
            raise Overloaded("Full.", retry_after_seconds=0.4)

    worker.before = refuse_one
    async with open_door(routing(worker), auth=KEYS) as door:
        await door.until_serving()
        first = await refused(door.embed.Embed(texts("cat"), metadata=ONE))
        second = await refused(door.embed.Embed(texts("dog"), metadata=ONE))
        await door.embed.Embed(texts("dog"), metadata=OTHER)
        assert [call.standing.tenant for call in worker.calls] == ["one", "other"]
        for failure in (first, second):
            assert (failure.status, failure.reason, failure.body["code"]) == ("RESOURCE_EXHAUSTED", "OVERLOADED", "overloaded")
            assert 0 < int(failure.trailers["retry-after-ms"]) <= 401  # a float on its way
        await asyncio.sleep(int(second.trailers["retry-after-ms"]) / 1000)
        await door.embed.Embed(texts("dog"), metadata=ONE)
        assert [call.standing.tenant for call in worker.calls] == ["one", "other", "one"]
    assert door.telemetry.metrics.counter("router_overload_refusals_total", "fake", "interactive")._value.get() >= 1


async def test_another_replica_may_have_the_room(open_door: Any) -> None:
    """A request that one replica has no room for goes to the other, and no later one goes to the first."""

    async def refuse(_: Any, __: Call) -> None:
        raise Overloaded("Full.", retry_after_seconds=5.0)

    async with FakeWorker(before=refuse) as full, FakeWorker() as free, open_door(routing(full, free)) as door:
        await door.until_serving()
        await asyncio.gather(*(door.embed.Embed(texts(f"cat {number}")) for number in range(5)))
        asked = len(full.calls)
        for number in range(20):
            await door.embed.Embed(texts(f"dog {number}"))
        assert len(full.calls) == asked
        assert len(free.calls) == 25


async def test_one_caller_does_not_take_all_of_the_gateways_room(open_door: Any, worker: FakeWorker) -> None:
    """Who has its part under way is refused at once, and another is served; answered requests make room again."""
    gates = Gates(worker)
    async with open_door(routing(worker), auth=KEYS, max_requests_in_flight=10) as door, AsyncExitStack() as stack:
        await door.until_serving()
        stack.callback(gates.opened.set)
        waiting = [asyncio.ensure_future(door.embed.Embed(texts(f"cat {number}"), metadata=ONE)) for number in range(8)]
        await door.until(lambda: len(worker.calls) == 8)
        failure = await refused(door.embed.Embed(texts("one more"), metadata=ONE))
        assert (failure.reason, failure.body["type"]) == ("OVERLOADED", "overloaded_error")
        assert int(failure.trailers["retry-after-ms"]) > 0
        waiting.append(asyncio.ensure_future(door.embed.Embed(texts("dog"), metadata=OTHER)))
        await door.until(lambda: len(worker.calls) == 9)
        gates.opened.set()
        await asyncio.gather(*waiting)
        await door.embed.Embed(texts("one more"), metadata=ONE)


async def test_items_of_a_stream_wait_for_room(open_door: Any, worker: FakeWorker) -> None:
    """A stream is slowed down by what others have under way, and loses no item by it."""
    gates = Gates(worker)
    async with open_door(routing(worker), max_requests_in_flight=8) as door, AsyncExitStack() as stack:
        await door.until_serving()
        stack.callback(gates.opened.set)
        answers = door.embed.EmbedStream(stream(*(f"text {number}" for number in range(30))))
        await door.until(lambda: bool(worker.calls))
        await asyncio.sleep(0)
        assert len(worker.calls) < 8
        gates.opened.set()
        found = [answer async for answer in answers]
    assert len(found) == 30
    assert all(answer.HasField("response") for answer in found)


async def test_streams_leave_room_for_their_items(open_door: Any, worker: FakeWorker) -> None:
    """However many are open, and however little room there is."""
    async with open_door(routing(worker), max_requests_in_flight=4) as door:
        await door.until_serving()
        streams = [door.embed.EmbedStream() for _ in range(2)]
        item = embed_pb2.EmbedStreamRequest(id="a", request=texts("cat"))
        for one in streams:
            await one.write(item)
        async with asyncio.timeout(10):
            assert all([(await one.read()).HasField("response") for one in streams])
        for one in streams:
            await one.done_writing()


async def test_callers_who_leave_give_their_room_back(open_door: Any, worker: FakeWorker) -> None:
    """However calls end, by an answer, an error or the caller's leaving, their places are free again."""
    gates = Gates(worker)
    async with open_door(routing(worker), max_requests_in_flight=10) as door, AsyncExitStack() as stack:
        await door.until_serving()
        stack.callback(gates.opened.set)
        for _ in range(3):
            calls = [door.embed.Embed(texts(f"cat {number}")) for number in range(8)]
            await door.until(lambda: door.gateway.room.free_requests == 2)
            for call in calls:
                call.cancel()
            await door.until(lambda: door.gateway.room.free_requests == 10)
        await refused(door.embed.Embed(texts("")))
        await refused(door.openai.CreateEmbedding(HttpBody(content_type="application/json", data=b"{")))
        assert (door.gateway.room.free_requests, door.gateway.room.free_bytes) == (10, 256 * 2**20)


class SlowUpstream(HttpUpstream):
    """A server that takes all it is sent, and answers as many as it is told to; by its own clock each takes so long."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.seconds = 0.0
        self.inside = self.most = 0
        self._answers = asyncio.Semaphore(0)

    def answer(self, count: int, *, seconds: float) -> None:
        """Answer so many of what it has and gets, each after so long."""
        self.seconds = seconds
        for _ in range(count):
            self._answers.release()

    async def _answer(self, request: web.Request, form: Any, needed: str) -> web.StreamResponse:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            answer = await super()._answer(request, form, needed)
            await self._answers.acquire()
            self.now += self.seconds
            return answer
        finally:
            self.inside -= 1


async def until_received(door: Door, upstream: HttpUpstream, count: int) -> None:
    """Wait until a server has received so many requests."""
    await door.until(lambda: len(upstream.received) == count)


async def test_a_server_that_takes_all_it_is_sent_gets_what_it_can_do(open_door: Any) -> None:
    """The queue of a server that speaks HTTP is kept in the gateway, where one who asks for little goes before one who floods."""
    async with SlowUpstream() as upstream:
        upstream.answer(1, seconds=0.0)  # what it is asked to know it
        where = f"{{type: openai, url: '{upstream.url}'}}"
        async with open_door(f"embeddings: [{{model: fake, upstream: {where}}}]", auth=KEYS) as door:
            await door.until_serving()
            upstream.received.clear()
            gate = door.gateway.routes.pools[0].replicas[0].peer.gate = Gate(lambda: upstream.now)
            flood = [asyncio.ensure_future(door.embed.Embed(texts(f"cat {number:03}"), metadata=ONE)) for number in range(FLOOD)]
            await door.until(lambda: gate.waiting + len(upstream.received) == FLOOD)
            assert len(upstream.received) == LEAST_REQUESTS  # nothing is known of its speed
            other = asyncio.ensure_future(door.embed.Embed(texts("dog"), metadata=OTHER))
            await door.until(lambda: gate.waiting + len(upstream.received) == FLOOD + 1)
            for asked in (1, 2):  # one a second: a second's worth is less than the least
                upstream.answer(1, seconds=1.0)
                await until_received(door, upstream, LEAST_REQUESTS + asked)
            assert ["dog"] in [body["input"] for body in upstream.received[LEAST_REQUESTS:]]
            upstream.answer(60, seconds=TARGET_SECONDS / A_SECONDS_WORTH)
            await door.until(lambda: upstream.inside > LEAST_REQUESTS)
            upstream.answer(FLOOD, seconds=TARGET_SECONDS / A_SECONDS_WORTH)
            await asyncio.gather(other, *flood)
    assert upstream.most <= A_SECONDS_WORTH
