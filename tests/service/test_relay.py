"""Many callers' requests on one stream between gateway and worker."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.upstreams import relay
from gateway.upstreams.peers import Peer
from gateway.upstreams.relay import BUSY, MOST_INPUTS
from quadrate.errors import Cancelled, DeadlineExceeded, InvalidArgument, Overloaded, Unavailable
from quadrate.health import Health
from quadrate.server import Call, Server
from quadrate.server.relay import METHOD, RelayService
from quadrate.telemetry import Metrics, Telemetry, Traces
from quadrate.v1 import embed_pb2, options_pb2, relay_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Echo:
    """An embed service that answers the model's name back, and waits or fails as the name says."""

    descriptor = embed_pb2.DESCRIPTOR.services_by_name["EmbedService"]

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.unary = 0
        self.ended: list[str] = []
        self.release = asyncio.Event()

    async def embed(self, request: embed_pb2.EmbedRequest, call: Call) -> embed_pb2.EmbedResponse:
        """Answer, wait or fail."""
        self.calls.append(call)
        try:
            if request.model.startswith("wait"):
                await self.release.wait()
        except asyncio.CancelledError:
            self.ended.append(request.model)
            raise
        if request.model == "busy":
            raise Overloaded("Later.", retry_after_seconds=0.5)
        if request.model == "wrong":
            raise InvalidArgument("No.", param="inputs[0]")
        return embed_pb2.EmbedResponse(model=request.model, embeddings=[embed_pb2.Embedding(index=0, values=[1.0])])

    async def embed_stream(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[bytes]:
        """Not used here."""
        async for _ in requests:
            yield b""


class OwnCalls(Echo):
    """Counts the calls that do not come by the relay."""

    async def embed(self, request: embed_pb2.EmbedRequest, call: Call) -> embed_pb2.EmbedResponse:
        """Count and answer."""
        self.unary += 1
        return await super().embed(request, call)


@pytest.fixture
async def telemetry() -> Telemetry:
    """Where the worker counts."""
    return Telemetry.silent("embed")


@pytest.fixture
async def echo() -> OwnCalls:
    """What answers."""
    return OwnCalls()


def worker(echo: Echo, telemetry: Telemetry, *, relays: bool = True) -> Server:
    """Return a server of `echo` that relays go around: only calls of their own are counted in `unary`."""
    services: list[Any] = [echo, RelayService(lambda request, call: Echo.embed(echo, request, call))] if relays else [echo]
    return Server(
        telemetry=telemetry,
        health=Health(),
        services=services,
        host="127.0.0.1",
        port=0,
        http_port=0,
        readiness=lambda: (True, {}),
        drain_seconds=30.0,
    )


@pytest.fixture
async def server(echo: OwnCalls, telemetry: Telemetry) -> AsyncIterator[Server]:
    """A worker with a relay."""
    async with worker(echo, telemetry) as started:
        yield started


@pytest.fixture
async def peer(server: Server) -> AsyncIterator[Peer]:
    """The gateway's side."""
    found = Peer(f"127.0.0.1:{server.port}")
    yield found
    await found.close()


async def embed(peer: Peer, model: str, *, timeout: float | None = 20.0, inputs: int = 1) -> embed_pb2.EmbedResponse:  # noqa: ASYNC109
    """Send one request."""
    request = embed_pb2.EmbedRequest(model=model, inputs=[options_pb2.Input(text="a")] * inputs)
    return await peer.embed(request, timeout=timeout, metadata=(("x-request-id", f"id-{model}"), ("traceparent", TRACEPARENT)))


async def until(condition: Any) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_each_caller_gets_its_own_answer(peer: Peer, echo: OwnCalls) -> None:
    """Hundreds at once, none by a call of its own, each under its own ids and trace."""
    names = [f"m{number}" for number in range(300)]
    answers = await asyncio.gather(*(embed(peer, name) for name in names))
    assert [answer.model for answer in answers] == names
    assert [answer.embeddings[0].values[0] for answer in answers] == [1.0] * 300
    assert echo.unary == 0
    assert {call.request_id for call in echo.calls} == {f"id-{name}" for name in names}
    assert {f"{call.trace.trace_id:032x}" for call in echo.calls} == {TRACEPARENT[3:35]}


async def test_the_stream_itself_is_not_traced(echo: OwnCalls) -> None:
    """It belongs to no request, and lasts as long as its gateway: each call that it carries has a span of its own."""
    spans = InMemorySpanExporter()
    telemetry = Telemetry("embed", Metrics("embed"), Traces("test", SimpleSpanProcessor(spans)))
    async with worker(echo, telemetry) as server:
        peer = Peer(f"127.0.0.1:{server.port}")
        await embed(peer, "a")
        await peer.close()
    assert [span.name for span in spans.get_finished_spans()] == [METHOD]


async def test_relayed_calls_count_as_calls_of_their_own(peer: Peer, telemetry: Telemetry) -> None:
    """Metrics cannot tell them from others, and a failed one says how it failed."""
    await embed(peer, "a")
    with pytest.raises(InvalidArgument):
        await embed(peer, "wrong")
    text = telemetry.metrics.text().decode()
    assert f'embed_requests_total{{method="{METHOD}",model="",status="OK"}} 1.0' in text
    assert f'embed_requests_total{{method="{METHOD}",model="",status="INVALID_ARGUMENT"}} 1.0' in text


async def test_an_error_comes_back_as_it_was_raised(peer: Peer) -> None:
    """Class, sentence, field and waiting time survive the way."""
    with pytest.raises(InvalidArgument, match="No") as caught:
        await embed(peer, "wrong")
    assert caught.value.param == "inputs[0]"
    with pytest.raises(Overloaded) as busy:
        await embed(peer, "busy")
    assert busy.value.retry_after_seconds == pytest.approx(0.5)


async def test_a_slow_answer_holds_up_no_other(peer: Peer, echo: OwnCalls) -> None:
    """Answers come in order of completion."""
    slow = asyncio.create_task(embed(peer, "wait"))
    await until(lambda: echo.calls)
    assert (await embed(peer, "quick")).model == "quick"
    assert not slow.done()
    echo.release.set()
    assert (await slow).model == "wait"


async def test_a_caller_who_goes_takes_its_work_along(peer: Peer, echo: OwnCalls) -> None:
    """Cancellation and the deadline both reach the worker."""
    leaving = asyncio.create_task(embed(peer, "wait-1"))
    await until(lambda: echo.calls)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await until(lambda: echo.ended == ["wait-1"])
    with pytest.raises((DeadlineExceeded, Cancelled)):
        await embed(peer, "wait-2", timeout=0.2)
    await until(lambda: echo.ended == ["wait-1", "wait-2"])
    assert echo.calls[1].deadline is not None


async def test_a_lost_worker_fails_everyone_at_once_and_is_found_again(echo: OwnCalls, telemetry: Telemetry) -> None:
    """Those who wait hear UNAVAILABLE, which may be tried elsewhere; a later call opens a new stream."""
    server = worker(echo, telemetry)
    server._drain_seconds = 0.0
    await server.start()
    peer = Peer(f"127.0.0.1:{server.port}")
    waiting = [asyncio.create_task(embed(peer, f"wait-{number}")) for number in range(BUSY + 2)]
    await until(lambda: len(echo.calls) == BUSY + 2)
    await server.stop()
    for task in waiting:
        with pytest.raises(Unavailable):
            await task
    again = worker(echo, telemetry)
    again.port = server.port
    async with again:
        answer = None
        async with asyncio.timeout(10):
            while answer is None:
                try:
                    answer = await embed(peer, "back")
                except Unavailable:
                    await asyncio.sleep(0.05)
        await peer.close()
    assert answer.model == "back"


async def test_a_retired_stream_ends_with_its_last_answer(peer: Peer, server: Server, echo: OwnCalls) -> None:
    """A worker that drains waits for answers, not for the stream; calls after that go by a new one."""
    last = asyncio.create_task(embed(peer, "wait"))
    await until(lambda: echo.calls)
    peer.retire()
    stopping = asyncio.create_task(server.stop())
    echo.release.set()
    assert (await last).model == "wait"
    await asyncio.wait_for(stopping, 5)


async def test_a_stream_that_nobody_uses_holds_up_no_end(peer: Peer, server: Server, echo: OwnCalls) -> None:
    """A gateway that does not hear that its worker is about to end keeps its stream open; the call on it alone is waited for."""
    await embed(peer, "before")
    last = asyncio.create_task(embed(peer, "wait"))
    await until(lambda: len(echo.calls) == 2)
    stopping = asyncio.create_task(server.stop())
    echo.release.set()
    assert (await last).model == "wait"
    await asyncio.wait_for(stopping, 5)  # drain_seconds is 30


async def test_a_large_request_goes_by_a_call_of_its_own(peer: Peer, echo: OwnCalls) -> None:
    """Its answer would hold up the small ones."""
    await embed(peer, "large", inputs=MOST_INPUTS + 1)
    assert echo.unary == 1


async def test_a_worker_without_a_relay_is_called_directly(echo: OwnCalls, telemetry: Telemetry) -> None:
    """Another gateway, for example, serves EmbedService alone."""
    async with worker(echo, telemetry, relays=False) as server:
        peer = Peer(f"127.0.0.1:{server.port}")
        assert (await embed(peer, "a")).model == "a"
        assert (await embed(peer, "b")).model == "b"
        await peer.close()
    assert echo.unary == 2


async def test_a_worker_without_a_relay_answers_all_who_come_meanwhile(echo: OwnCalls, telemetry: Telemetry) -> None:
    """Its refusal may arrive while a request is being written; nobody hears that the worker is lost."""

    async def later(peer: Peer, number: int) -> str:
        await asyncio.sleep(number * 0.0003)  # spreads the requests over the time that the refusal takes
        return (await embed(peer, f"m{number}")).model

    async with worker(echo, telemetry, relays=False) as server:
        for _ in range(10):
            peer = Peer(f"127.0.0.1:{server.port}")
            answers = await asyncio.gather(*(later(peer, number) for number in range(60)))
            assert answers == [f"m{number}" for number in range(60)]
            await peer.close()


async def test_a_worker_that_comes_back_may_have_learned_to_relay(server: Server, peer: Peer, echo: OwnCalls) -> None:
    """What was found out about a worker holds until it goes."""
    peer._relay.served = False
    await embed(peer, "a")
    peer.retire()
    await embed(peer, "b")
    assert echo.unary == 1


async def test_requests_whose_callers_go_at_once_are_not_sent(peer: Peer, echo: OwnCalls) -> None:
    """Those who leave while requests gather cost the worker nothing."""
    await embed(peer, "first")
    leaving = [asyncio.create_task(embed(peer, f"wait-{number}")) for number in range(20)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    await embed(peer, "last")
    assert [call.request_id for call in echo.calls] == ["id-first", "id-last"]


async def test_a_request_cancelled_in_the_message_that_brings_it_leaves_nothing_behind(server: Server) -> None:
    """The worker's part ends when the gateway closes its own; nothing of the request is waited for."""
    request = relay_pb2.RelayedRequest(id=1, embed=embed_pb2.EmbedRequest(model="wait"))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel, asyncio.timeout(5):
        stream = channel.stream_stream(
            "/quadrate.v1.RelayService/Relay",
            request_serializer=relay_pb2.RelayRequest.SerializeToString,
            response_deserializer=relay_pb2.RelayResponse.FromString,
        )(None)
        await stream.write(relay_pb2.RelayRequest(requests=[request], cancelled_ids=[1]))
        await stream.done_writing()
        assert [answer async for answer in stream] == []


async def test_large_requests_that_come_together_travel_apart(peer: Peer, echo: OwnCalls) -> None:
    """Together they would be more than a worker takes in one message, and the stream would end for everybody on it."""
    await embed(peer, "first")
    text = options_pb2.Input(text="a" * 700_000)
    requests = [embed_pb2.EmbedRequest(model=f"m{number}", inputs=[text]) for number in range(16)]
    answers = await asyncio.gather(*(peer.embed(request, timeout=20.0, metadata=()) for request in requests))
    assert [answer.model for answer in answers] == [request.model for request in requests]
    assert echo.unary == 0


async def test_an_answer_that_cannot_be_read_ends_the_stream_for_all(monkeypatch: pytest.MonkeyPatch, peer: Peer, echo: OwnCalls) -> None:
    """Nobody waits for his deadline because another's answer broke the reader, and the next call opens a new stream."""
    await embed(peer, "first")
    waiting = asyncio.create_task(embed(peer, "wait"))
    await until(lambda: len(echo.calls) == 2)
    stream = peer._relay._stream
    assert stream is not None
    with monkeypatch.context() as broken:
        broken.setattr(relay._Stream, "_answer", lambda *_: int(""))
        with pytest.raises(Unavailable):
            await embed(peer, "unreadable", timeout=5)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(ValueError, match="invalid literal"):
        await stream._reader
    assert (await embed(peer, "next")).model == "next"


def test_numbering_requests_takes_no_memory() -> None:
    """A gateway numbers thousands of requests a second for months."""
    tracemalloc.start()
    try:
        for _ in range(10_000):
            next(relay._numbers)
        assert tracemalloc.get_traced_memory()[0] < 10_000
    finally:
        tracemalloc.stop()
