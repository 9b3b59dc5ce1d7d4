"""Mixed load for a long time: nothing fails that should not, and no process grows.

An hour by QUADRATE_CHAOS=full; less than a minute otherwise, which finds what leaks with every request.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from typing import TYPE_CHECKING, Any, Self

import grpc.aio

from quadrate.v1.embed_pb2 import EmbedRequest, EmbedStreamRequest
from quadrate.v1.embed_pb2_grpc import EmbedServiceStub
from quadrate.v1.options_pb2 import Input
from quadrate.v1.rerank_pb2 import RerankRequest
from tests.chaos.load import CALL_SECONDS, OK, Grpc, Load, Outcome, Rest, text_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.conftest import StartMesh
    from tests.chaos.load import Caller
    from tests.chaos.mesh import ChaosMesh

RATE = 20.0
"""Calls a second: what a model on two busy cores allows, so that queues come and go."""
BLOCK_SECONDS = 5.0
"""After so long all callers leave, and others connect."""
WORDS = ("stars", "are", "born", "in", "cold", "clouds", "of", "gas", "and", "dust", "bread", "rises", "because", "yeast", "makes", "it")
CACHE_BYTES = 2**20
"""What gateways remember of answers: so little that it is full soon, and what follows pushes out what was there."""
REFUSALS = {"429", "RESOURCE_EXHAUSTED"}
"""A machine that does other things, too, may have no room for a moment; those who are refused are told so, and nothing is lost."""
MOST_GROWTH = 1.05
MOST_NEW_DESCRIPTORS = 8
"""Connections that happen to be open at one look and not at another."""
SPARE_BYTES = 2 * 2**20
"""What a process may take more in any case: an allocator's arena, a table that doubled."""
ITEMS = 20


def grpc_status(code: int) -> str:
    """Return the name of a gRPC status by its number."""
    return next(status.name for status in grpc.StatusCode if status.value[0] == code)


def words(number: int, most: int) -> str:
    """Return a text of 1 to `most` words, another for each number."""
    chosen = random.Random(number)  # noqa: S311 - texts, not secrets
    return f"{text_of(number)} {' '.join(chosen.choices(WORDS, k=chosen.randint(1, most)))}"


class Expecting:
    """A caller that is to be refused in a certain way: that is well, and all else is not."""

    def __init__(self, way: Rest | Grpc, status: str) -> None:
        self.name = f"{way.name}, refused"
        self._way = way
        self._status = status

    async def __aenter__(self) -> Self:
        """Connect."""
        await self._way.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._way.__aexit__()

    async def call(self, number: int) -> Outcome:
        """Make a call."""
        outcome = await self._way.call(number)
        return Outcome(OK) if outcome.status == self._status else Outcome(f"not {self._status}: {outcome.status}", outcome.error)


class Leaving(Grpc):
    """A caller who does not wait for the answer."""

    async def call(self, number: int) -> Outcome:
        """Make a call and leave it a moment later, however far it is."""
        request = EmbedRequest(model="minilm", inputs=[Input(text=words(number, 100))])
        call = self._embed(request, timeout=CALL_SECONDS)
        await asyncio.wait([asyncio.ensure_future(call)], timeout=number % 10 / 1000)
        call.cancel()
        return Outcome(OK)


class Stream(Grpc):
    """Some texts on a stream, one of which is refused."""

    async def call(self, number: int) -> Outcome:
        """Send all, and wait for an answer to each."""
        stub: Any = EmbedServiceStub(self._channel)
        requests = [
            EmbedStreamRequest(id=str(item), request=EmbedRequest(model="minilm", inputs=[Input(text=words(number + item, 50))]))
            for item in range(ITEMS - 1)
        ]
        refused = EmbedStreamRequest(id="refused", request=EmbedRequest(model="frob", inputs=[Input(text="a text")]))
        try:
            answers = [answer async for answer in stub.EmbedStream(iter([*requests, refused]), timeout=CALL_SECONDS)]
        except grpc.aio.AioRpcError as error:
            return Outcome(error.code().name, error.details() or "")
        told = {answer.id: grpc_status(answer.error.code) for answer in answers if answer.HasField("error")}
        wrong = {item: status for item, status in told.items() if status not in REFUSALS and (item, status) != ("refused", "NOT_FOUND")}
        return Outcome(OK) if len(answers) == ITEMS and not wrong else Outcome("WRONG", f"{len(answers)} answers, wrong: {wrong}")


def rerank_body(number: int) -> dict[str, Any]:
    """Return a query with 1 to 8 documents."""
    return {"model": "minilm-rerank", "query": words(number, 5), "documents": [words(number + item, 40) for item in range(number % 8 + 1)]}


def ways(mesh: ChaosMesh) -> tuple[Caller, ...]:
    """What callers do in a day: few and many texts, short and long ones, on every wire, and a good deal wrongly."""
    return (
        Rest(mesh.url),
        Rest(mesh.url, body=lambda n: {"model": "minilm", "input": [words(n + item, 40) for item in range(n % 16 + 1)]}, name="many"),
        Grpc(mesh.edge, request=lambda n: EmbedRequest(model="minilm", inputs=[Input(text=words(n, 180))])),
        Rest(mesh.url, "/v2/rerank", body=rerank_body, name="rerank"),
        Grpc(
            mesh.edge,
            request=lambda n: RerankRequest(model="minilm-rerank", query=words(n, 5), documents=[Input(text=words(n, 30))]),
            name="grpc rerank",
        ),
        Stream(mesh.edge, name="stream"),
        Leaving(mesh.edge, name="leaving"),
        Expecting(Rest(mesh.url, body=lambda n: {"model": "frob", "input": text_of(n)}), "404"),
        Expecting(Rest(mesh.url, body=lambda n: {"model": "minilm", "input": [text_of(n), ""]}), "400"),
        Expecting(Rest(mesh.url, headers={"authorization": "Bearer no-such-key"}), "401"),
        Expecting(Grpc(mesh.edge, request=lambda n: EmbedRequest(model="frob", inputs=[Input(text=text_of(n))])), "NOT_FOUND"),
        Expecting(Rest(mesh.url, "/quadrate/v1/embed", body=lambda n: {"inputs": n}), "400"),
    )


def taken(mesh: ChaosMesh) -> dict[str, tuple[int, int]]:
    """Return memory in bytes and open descriptors of each process."""
    return {name: (mesh.memory_bytes(name), mesh.descriptors(name)) for name in mesh.names}


async def test_no_process_grows_under_mixed_load(start_mesh: StartMesh, length: Callable[[float, float], float]) -> None:
    """Every kind of call, right and wrong, in ever new connections: what memory and descriptors were at first they are at the end."""
    warm_seconds, seconds = length(20.0, 300.0), length(30.0, 3600.0)
    shape = {"model": True, "rerank_workers": 1, "environment": {"ROUTER_CACHE_MAX_BYTES": str(CACHE_BYTES)}}
    with start_mesh(**shape, configs={"auth.yaml": "allow_anonymous_without_api_keys: true"}) as mesh:
        looks: list[dict[str, tuple[int, int]]] = []
        began = time.monotonic()
        while time.monotonic() - began < warm_seconds + seconds:
            async with Load(*ways(mesh), rate=RATE) as load:
                await load.seconds(BLOCK_SECONDS)
            refused = [made for made in load.failed if made.outcome.status in REFUSALS]
            assert len(refused) == len(load.failed) < len(load.made) / 2, load.summary()
            if time.monotonic() - began > warm_seconds:
                looks.append(taken(mesh))
        third = max(1, len(looks) // 3)
        for name in mesh.names:
            memory, later = (statistics.median(look[name][0] for look in part) for part in (looks[:third], looks[-third:]))
            assert later <= max(memory * MOST_GROWTH, memory + SPARE_BYTES), f"{name} grew from {memory:,.0f} to {later:,.0f} bytes"
            most = min(look[name][1] for look in looks[:third]) + MOST_NEW_DESCRIPTORS
            has_let_go = lambda name=name, most=most: mesh.descriptors(name) <= most  # noqa: E731 - asked until it is so
            await asyncio.to_thread(mesh.until, has_let_go, f"{name} keeps more than {most} descriptors open", seconds=30)
