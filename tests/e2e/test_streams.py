"""EmbedStream through the edge: neither buffered, nor cut, nor ended by one bad item, nor growing memory for a slow reader."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import grpc.aio
import psutil
import pytest_asyncio

from quadrate.v1.embed_pb2 import EmbedRequest, EmbedStreamRequest, EmbedStreamResponse
from quadrate.v1.embed_pb2_grpc import EmbedServiceStub
from quadrate.v1.options_pb2 import Input

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.conftest import Mesh, Reference

MANY = 3_000
TEXTS_EACH = 16
PADDING = " " * 2_000
"""Blanks make a request large and cost the model nothing."""
STALLED_SECONDS = 2.0
GROWTH_BYTES = 64 * 2**20


@pytest_asyncio.fixture
async def stub(mesh: Mesh) -> AsyncIterator[EmbedServiceStub]:
    """A stub at the edge."""
    async with grpc.aio.insecure_channel(mesh.edge) as channel:
        yield EmbedServiceStub(channel)


def item(name: str, *texts: str, model: str = "minilm") -> EmbedStreamRequest:
    """Return one request of a stream."""
    return EmbedStreamRequest(id=name, request=EmbedRequest(model=model, inputs=[Input(text=text) for text in texts]))


async def test_the_first_answer_comes_before_the_last_request_is_sent(stub: EmbedServiceStub, reference: Reference) -> None:
    """Nothing on the way waits for the stream's end."""
    stream = stub.EmbedStream(timeout=60)
    for place, text in enumerate(reference.texts):
        await stream.write(item(str(place), text))
        answer = await stream.read()
        assert isinstance(answer, EmbedStreamResponse)
        assert answer.id == str(place)
        reference.check([answer.response.embeddings[0].values], [place])
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_answers_come_under_their_ids_and_bad_items_end_nothing(stub: EmbedServiceStub, reference: Reference) -> None:
    """Good items are answered right, bad ones by an error under their own id, whatever stands beside them."""
    good = [item(f"good-{place}", text) for place, text in enumerate(reference.texts)]
    bad = [item("empty", ""), item("unknown", "a", model="nope"), item("long", "word " * 600), item("none")]
    mixed = [one for pair in zip(bad, good, strict=False) for one in pair] + good[len(bad) :]
    answers = {answer.id: answer async for answer in stub.EmbedStream(iter(mixed), timeout=60)}
    assert set(answers) == {one.id for one in mixed}
    reference.check([answers[f"good-{place}"].response.embeddings[0].values for place in range(len(reference.texts))])
    reasons = {name: answers[name].error.reason for name in ("empty", "unknown", "long", "none")}
    assert reasons == {
        "empty": "EMPTY_INPUT",
        "unknown": "MODEL_NOT_FOUND",
        "long": "CONTEXT_LENGTH_EXCEEDED",
        "none": "EMPTY_INPUT",
    }
    assert answers["long"].error.param == "inputs[0].text"
    assert not answers["long"].error.retryable


def memory(mesh: Mesh) -> int:
    """Return the bytes that all processes of the mesh hold, as the kernel counts them."""
    ports = {f"{port}" for port in mesh.ports.values()}
    found = [process for process in psutil.process_iter(["environ", "cmdline"]) if belongs(process, ports)]
    assert len(found) >= 4
    return sum(process.memory_info().rss for process in found)


def belongs(process: psutil.Process, ports: set[str]) -> bool:
    """Whether a process is one of the mesh's: it was given one of its ports, or a file in its folder."""
    environment = process.info["environ"] or {}
    own = {environment.get(name) for name in ("ROUTER_PORT", "EMBED_PORT", "RERANK_PORT")}
    return bool(own & ports) or any(f"/quadrate/{port}/" in word for word in process.info["cmdline"] or [] for port in ports)


async def test_a_slow_reader_stops_the_server_and_grows_no_memory(mesh: Mesh, stub: EmbedServiceStub) -> None:
    """Who does not read is soon not read from: writes stall, the processes stay as large as they were, and then all is answered."""
    before = memory(mesh)
    stream = stub.EmbedStream(timeout=110)
    sent: list[str] = []
    progress = asyncio.Event()
    is_held = False

    async def write() -> None:
        while not is_held and len(sent) < MANY:
            sent.append(str(len(sent)))
            await stream.write(item(sent[-1], *(f"text {place}{PADDING}" for place in range(TEXTS_EACH))))
            progress.set()
        await stream.done_writing()

    writer = asyncio.create_task(write())
    with contextlib.suppress(TimeoutError):
        while not writer.done():
            progress.clear()
            await asyncio.wait_for(progress.wait(), STALLED_SECONDS)
    is_held = True
    assert len(sent) < MANY, "nothing held the writer back"
    assert memory(mesh) - before < GROWTH_BYTES
    answered = [answer.id async for answer in stream if answer.HasField("response")]
    await writer
    assert sorted(answered, key=int) == sent
