"""What every call gets from the server, over a real channel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import grpc.aio
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from quadrate.errors import ConfigError, ModelNotFound, Overloaded
from quadrate.health import Health
from quadrate.server import Server
from quadrate.server.http import application
from quadrate.telemetry import Telemetry, log
from quadrate.v1 import embed_pb2, embed_pb2_grpc
from tests.chaos import http2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from quadrate.server import Call

SECRET = "what-the-user-wrote"  # noqa: S105 - a text that must not be logged
_CALL = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/quadrate.v1.EmbedService/Embed"),
    (b":authority", b"localhost"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)


class Echo:
    """An embed service whose answers and failures are chosen by the model's name."""

    descriptor = embed_pb2.DESCRIPTOR.services_by_name["EmbedService"]

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled = asyncio.Event()
        self.released = asyncio.Event()

    async def embed(self, request: embed_pb2.EmbedRequest, call: Call) -> embed_pb2.EmbedResponse | bytes:
        """Answer, or fail as the model's name says."""
        self.calls.append(call)
        if request.model == "missing":
            raise ModelNotFound("No model of this name; GET /v1/models lists them.", param="model")
        if request.model == "busy":
            raise Overloaded("Try later.", retry_after_seconds=1.5)
        if request.model == "broken":
            raise ValueError(SECRET)
        if request.model == "slow":
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if request.model == "bytes":
            return embed_pb2.EmbedResponse(model="from bytes").SerializeToString()
        if request.model == "headers":
            call.headers.append(("x-ratelimit-limit-requests", "60"))
        call.log["model"] = "known"
        return embed_pb2.EmbedResponse(model=request.model)

    async def embed_stream(
        self, requests: AsyncIterator[embed_pb2.EmbedStreamRequest], call: Call
    ) -> AsyncIterator[embed_pb2.EmbedStreamResponse]:
        """Answer each request under its id."""
        self.calls.append(call)
        async for request in requests:
            if request.id == "busy":
                raise Overloaded("Try later.")
            yield embed_pb2.EmbedStreamResponse(id=request.id)


@pytest.fixture
async def echo() -> Echo:
    """The service behind the server."""
    return Echo()


@pytest.fixture
async def log_path(tmp_path: Path) -> AsyncIterator[Path]:
    """Where the log goes during the test."""
    path = tmp_path / "log"
    with path.open("wb") as file:
        before = log.component, log.level, log._descriptor
        log._descriptor = file.fileno()
        yield path
        log.component, log.level, log._descriptor = before


@pytest.fixture
async def server(echo: Echo, log_path: Path) -> AsyncIterator[Server]:
    """A server on free ports."""
    health = Health()
    health.set("", serving=True)
    telemetry = Telemetry.silent("embed")
    async with Server(
        telemetry=telemetry,
        health=health,
        services=[echo],
        host="127.0.0.1",
        port=0,
        http_port=0,
        readiness=lambda: (True, {"status": "ok"}),
        drain_seconds=5.0,
    ) as started:
        yield started


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to it."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    """A stub of its service."""
    return embed_pb2_grpc.EmbedServiceStub(channel)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """Return how a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def request_lines(path: Path) -> list[dict[str, Any]]:
    """Return the canonical lines of a log."""
    return [line for line in map(orjson.loads, path.read_bytes().splitlines()) if line["message"] == "request"]


async def test_an_answer_may_be_a_message_or_its_bytes(stub: Any) -> None:
    """Both reach the caller alike."""
    assert (await stub.Embed(embed_pb2.EmbedRequest(model="a"))).model == "a"
    assert (await stub.Embed(embed_pb2.EmbedRequest(model="bytes"))).model == "from bytes"


async def test_every_answer_carries_the_request_id(stub: Any) -> None:
    """The caller's own id if it is sound, otherwise one of ours; on errors, too."""
    call = stub.Embed(embed_pb2.EmbedRequest(model="a"), metadata=(("x-request-id", "mine-1"),))
    await call
    assert ("x-request-id", "mine-1") in list(await call.trailing_metadata())
    error = await failure(stub.Embed(embed_pb2.EmbedRequest(model="missing"), metadata=(("x-request-id", "not sound"),)))
    made = dict(error.trailing_metadata())["x-request-id"]
    assert len(made) == 32


async def test_headers_of_a_good_answer_come_with_it(stub: Any) -> None:
    """Nothing goes ahead: an answer is there as a whole or not at all, so that one that is lost can be asked for again."""
    call = stub.Embed(embed_pb2.EmbedRequest(model="headers"))
    await call
    assert ("x-ratelimit-limit-requests", "60") in list(await call.trailing_metadata())
    assert list(await call.initial_metadata()) == []


async def test_an_error_is_a_status_with_details_and_nothing_before_it(stub: Any) -> None:
    """A trailers-only answer is what lets the transcoder keep its headers."""
    error = await failure(stub.Embed(embed_pb2.EmbedRequest(model="missing")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert list(error.initial_metadata()) == []
    details = rpc_status.from_call(error)  # type: ignore[arg-type]  # the stubs want the sync call's type
    assert details is not None
    assert details.message == error.details()


async def test_waiting_times_reach_the_caller(stub: Any) -> None:
    """`retry-after` and `retry-after-ms` travel with the refusal."""
    error = await failure(stub.Embed(embed_pb2.EmbedRequest(model="busy")))
    trailers = dict(error.trailing_metadata())
    assert (error.code(), trailers["retry-after"], trailers["retry-after-ms"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "2", "1500")


async def test_a_fault_of_ours_tells_the_caller_an_id_and_the_log_a_place(stub: Any, log_path: Path) -> None:
    """Neither tells the text of the exception, which may hold a user's."""
    error = await failure(stub.Embed(embed_pb2.EmbedRequest(model="broken"), metadata=(("x-request-id", "mine-2"),)))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "mine-2" in str(error.details())
    text = log_path.read_text()
    assert "ValueError" in text
    assert "test_server.py" in text
    assert SECRET not in text + str(error.details())


async def test_what_is_no_message_is_refused_in_our_words(channel: grpc.aio.Channel) -> None:
    """Invalid UTF-8 or random bytes are the caller's fault, not a fault of ours."""
    call = channel.unary_unary("/quadrate.v1.EmbedService/Embed")
    error = await failure(call(b"\x0a\x02\xff\xfe"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "UTF-8" in str(error.details())


@pytest.mark.parametrize(
    "method",
    [
        "/quadrate.v1.EmbedService/Embed",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
@pytest.mark.parametrize("messages", [(), (b"\xff",)], ids=["none", "unreadable"])
async def test_no_message_is_refused_at_once_by_every_service(
    method: str, messages: tuple[bytes, ...], channel: grpc.aio.Channel, log_path: Path
) -> None:
    """A call that ends without its message, and one whose message is none; left alone, grpc never answers the one, and logs the other."""

    async def sent() -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    if method.endswith("Info") and not messages:
        return  # a conversation in which nothing is asked ends well
    call = channel.stream_stream(method)(sent(), timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert b"Traceback" not in log_path.read_bytes()


async def test_headers_that_are_no_text_are_not_logged(server: Server, channel: grpc.aio.Channel, log_path: Path) -> None:
    """Grpc would write the whole of them, and a traceback each: a caller's key may be among them."""
    hello = http2.headers(1, [*_CALL, (b"authorization", b"Bearer " + SECRET.encode() + b"\xff")])
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(http2.PREFACE + http2.settings() + hello + http2.data(1, bytes(5)))
    while b"request" not in log_path.read_bytes():
        assert await asyncio.wait_for(reader.read(1024), 10)
    assert SECRET.encode() not in log_path.read_bytes()
    writer.close()


async def test_a_caller_who_goes_is_noticed(stub: Any, echo: Echo, log_path: Path) -> None:
    """Cancellation reaches the handler, and the log says how the call ended."""
    call = stub.Embed(embed_pb2.EmbedRequest(model="slow"), timeout=30)
    while not echo.calls:
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait_for(echo.cancelled.wait(), 5)
    while not request_lines(log_path):
        await asyncio.sleep(0)
    assert request_lines(log_path)[0]["metadata"]["status"] == "CANCELLED"


async def test_the_callers_deadline_is_known_to_the_handler(stub: Any, echo: Echo) -> None:
    """Remaining time is what the caller allowed, less the way."""
    await stub.Embed(embed_pb2.EmbedRequest(model="a"), timeout=20)
    await stub.Embed(embed_pb2.EmbedRequest(model="a"))
    remaining = echo.calls[0].remaining_seconds()
    assert remaining is not None
    assert 10 < remaining < 21, "gRPC rounds what it sends"
    assert echo.calls[1].deadline is None


async def test_a_stream_answers_each_request_and_ends_by_its_error(stub: Any) -> None:
    """A handler that raises ends the stream with its status."""

    async def requests() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
        for name in ("1", "2", "busy"):
            yield embed_pb2.EmbedStreamRequest(id=name)

    seen = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for answer in stub.EmbedStream(requests()):
            seen.append(answer.id)  # noqa: PERF401 - what came before the error counts
    assert seen == ["1", "2"]
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_each_request_has_one_canonical_line_and_counts_once(stub: Any, server: Server, log_path: Path) -> None:
    """The line says method, status, model, sizes and times; the metrics agree."""
    await stub.Embed(embed_pb2.EmbedRequest(model="a"))
    (line,) = request_lines(log_path)
    metadata = line["metadata"]
    assert (metadata["method"], metadata["status"], metadata["model"]) == ("quadrate.v1.EmbedService/Embed", "OK", "known")
    assert metadata["received_bytes"] > 0
    assert {"trace_id", "span_id", "request_id"} <= line.keys()
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{server.http_port}/metrics") as answer:
        text = await answer.text()
    assert 'embed_requests_total{method="quadrate.v1.EmbedService/Embed",model="known",status="OK"} 1.0' in text


async def test_services_are_listed_and_described_by_reflection(server: Server) -> None:
    """Reflection tells our services and health."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as plain:
        names = await asyncio.to_thread(lambda: list(ProtoReflectionDescriptorDatabase(plain).get_services()))
    assert {"quadrate.v1.EmbedService", "grpc.health.v1.Health"} <= set(names)


async def test_readiness_answers_503_when_nothing_can_be_served(echo: Echo) -> None:
    """The report goes out either way."""
    report = {"status": "unavailable"}
    server = Server(
        telemetry=Telemetry.silent("embed"),
        health=Health(),
        services=[echo],
        host="127.0.0.1",
        port=0,
        http_port=0,
        readiness=lambda: (False, report),
    )
    async with server, aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{server.http_port}/health/ready") as answer:
            assert (answer.status, await answer.json()) == (503, report)
        async with session.get(f"http://127.0.0.1:{server.http_port}/health/live") as answer:
            assert (answer.status, await answer.json()) == (200, {"status": "ok"})


async def test_a_port_that_is_taken_is_named(server: Server, echo: Echo) -> None:
    """Two servers never share a port without a word."""
    for ports in ({"port": server.port, "http_port": 0}, {"port": 0, "http_port": server.http_port}):
        second = Server(
            telemetry=Telemetry.silent("embed"),
            health=Health(),
            services=[echo],
            host="127.0.0.1",
            readiness=lambda: (True, {}),
            **ports,
        )
        with pytest.raises(ConfigError, match=str(max(ports.values()))):
            await second.start()


async def test_watchers_hear_of_changes_in_order_and_of_the_end(echo: Echo) -> None:
    """SERVING, NOT_SERVING and back arrive as they were stated; stopping says NOT_SERVING before the port closes."""
    health = Health()
    server = Server(
        telemetry=Telemetry.silent("embed"),
        health=health,
        services=[echo],
        host="127.0.0.1",
        port=0,
        http_port=0,
        readiness=lambda: (True, {}),
    )
    await server.start()
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="model/minilm"))
        seen = [(await watch.read()).status]
        for state in (True, False, True):
            health.set("model/minilm", serving=state, reason="the test says so")
            seen.append((await watch.read()).status)
        stopping = asyncio.create_task(server.stop())
        seen.append((await watch.read()).status)
        watch.cancel()
        await stopping
    unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert seen == [unknown, serving, not_serving, serving, not_serving]


async def test_calls_in_flight_finish_while_the_server_drains(server: Server, stub: Any, echo: Echo) -> None:
    """Stopping waits for the answer."""
    call = asyncio.ensure_future(stub.Embed(embed_pb2.EmbedRequest(model="slow")))
    while not echo.calls:
        await asyncio.sleep(0)
    stopping = asyncio.create_task(server.stop())
    echo.released.set()
    assert (await call).model == "slow"
    await stopping


async def test_no_call_holds_up_the_end_for_longer_than_it_may(server: Server, stub: Any, echo: Echo) -> None:
    """What is not answered within `drain_seconds` is cut off."""
    server._drain_seconds = 0.2
    call = asyncio.ensure_future(stub.Embed(embed_pb2.EmbedRequest(model="slow")))
    while not echo.calls:
        await asyncio.sleep(0)
    async with asyncio.timeout(3):
        await server.stop()
    assert (await failure(call)).code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


async def test_calls_are_taken_until_callers_had_time_to_hear_of_the_end(server: Server, channel: grpc.aio.Channel, stub: Any) -> None:
    """Health says NOT_SERVING at once, and whoever has not heard it yet is answered."""
    server._notice_seconds = 0.5
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    stopping = asyncio.create_task(server.stop())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (await stub.Embed(embed_pb2.EmbedRequest(model="late"))).model == "late"
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{server.http_port}/health/ready") as answer:
        report = await answer.json()
    assert (answer.status, report["status"], report["reason"]) == (503, "unavailable", "stopping")
    await stopping
    assert (await failure(stub.Embed(embed_pb2.EmbedRequest(model="too late")))).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_has_stopped_waits_for_nothing_more(server: Server) -> None:
    """`run` stops it after a signal, and whoever opened it does again."""
    await server.stop()
    server._notice_seconds = 60.0
    async with asyncio.timeout(5):
        await server.stop()


async def test_an_open_watch_does_not_hold_up_the_end(server: Server, channel: grpc.aio.Channel, stub: Any, echo: Echo) -> None:
    """Watchers are told that nothing serves and nobody waits for them; a call in flight is waited for all the same."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    call = asyncio.ensure_future(stub.Embed(embed_pb2.EmbedRequest(model="slow")))
    while not echo.calls:
        await asyncio.sleep(0)
    stopping = asyncio.create_task(server.stop())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert not stopping.done()
    echo.released.set()
    assert (await call).model == "slow"
    async with asyncio.timeout(3):  # drain_seconds is 5
        await stopping
    assert (await failure(watch.read())).code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("method", ["/quadrate.v1.EmbedService/Frob", "/quadrate.v1.RerankService/Rerank", "/frob.Frob/Frob"])
async def test_a_method_that_nobody_serves_is_told_as_every_error(method: str, channel: grpc.aio.Channel, log_path: Path) -> None:
    """With details, a request id, and a line in the log, whichever kind of call it is; its name is a caller's word and stands nowhere."""
    for call in (
        channel.unary_unary(method)(b"x", metadata=(("x-request-id", "frob-1"),)),
        channel.stream_unary(method)(iter([b"x"]), metadata=(("x-request-id", "frob-1"),)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call
        trailers = dict(failure.value.trailing_metadata())
        assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert rpc_status.from_call(failure.value).details
        assert trailers["x-request-id"] == "frob-1"
    lines = [line for line in map(orjson.loads, log_path.read_bytes().splitlines()) if line["message"] == "request"]
    assert [(line["metadata"]["method"], line["request_id"]) for line in lines] == [("unknown", "frob-1")] * 2


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/health/live", 200, None),
        ("GET", "/metrics", 200, None),
        ("GET", "/frob", 404, "not_found"),
        ("POST", "/metrics", 405, "method_not_allowed"),
        ("GET", "/broken", 500, "internal_error"),
    ],
)
async def test_the_http_port_answers_with_ids_and_errors_like_all_others(
    method: str, path: str, status: int, code: str | None, log_path: Path
) -> None:
    """The caller's id, or one that is made; an error in JSON, and nothing in it of what went wrong inside."""

    async def broken(_: web.Request) -> web.Response:
        raise ValueError(SECRET)

    app = application(Telemetry.silent("embed").metrics, lambda: (True, {}), [web.get("/broken", broken)])
    async with TestClient(TestServer(app)) as client:
        for given in ({"x-request-id": "mine"}, {}):
            answer = await client.request(method, path, headers=given)
            assert answer.status == status
            assert answer.headers["x-request-id"] == given.get("x-request-id", answer.headers["x-request-id"]) != ""
            if code is not None:
                error = (await answer.json())["error"]
                assert (error["code"], set(error)) == (code, {"message", "type", "param", "code"})
    assert SECRET not in log_path.read_text()
