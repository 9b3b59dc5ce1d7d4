"""Health that says what is: a worker that says it serves, and whose model does not answer."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway import canary
from quadrate.errors import Overloaded, Unavailable
from quadrate.standing import CANARY
from quadrate.testing.worker import FakeWorker, fake_card
from quadrate.v1 import embed_pb2, options_pb2
from tests.service.gateway.conftest import Door, routing

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST = embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text="hello world")])
OFTEN = {"canary_interval_seconds": 0.05}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let canaries be waited for no longer than a test."""
    monkeypatch.setattr(canary, "PATIENCE_SECONDS", 0.6)


class Stuck:
    """A model that answers while it is let."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.free.set()

    async def __call__(self, _: Any, __: Any) -> None:
        """Wait until it may answer."""
        await self.free.wait()


def lines(door: Door) -> dict[str, tuple[str, str]]:
    """Return status and reason by upstream and model."""
    return {line["name"]: (line["status"], line["reason"]) for line in door.gateway.readiness.report()[1]["upstreams"]}


async def check(door: Door, name: str) -> int:
    """Ask for a health status."""
    return int((await health_pb2_grpc.HealthStub(door.channel).Check(health_pb2.HealthCheckRequest(service=name))).status)


async def test_a_model_that_does_not_answer_is_not_said_to_serve(open_door: Callable[..., Any]) -> None:
    """Its worker says all the while that it serves. Nobody asks it but canaries; once it answers one, it serves again."""
    stuck = Stuck()
    async with FakeWorker(before=stuck) as worker, open_door(routing(worker), **OFTEN) as door:
        await door.until_serving()
        assert door.gateway.readiness.status == "ok"
        stuck.free.clear()
        await door.until(lambda: door.gateway.readiness.status == "unavailable")
        told = ("unavailable", "its model has not answered a canary within 1 s")
        await door.until(lambda: set(lines(door).values()) == {told})
        assert await check(door, "") == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await check(door, "model/fake") == health_pb2.HealthCheckResponse.NOT_SERVING
        stuck.free.set()
        await door.until(lambda: door.gateway.readiness.status == "ok")
        assert await check(door, "model/fake") == health_pb2.HealthCheckResponse.SERVING
        await door.embed.Embed(REQUEST)


async def test_others_are_asked_instead_of_a_model_in_doubt(open_door: Callable[..., Any]) -> None:
    """One of two workers is stuck: degraded, and every request goes to the other."""
    stuck = Stuck()
    async with FakeWorker(before=stuck) as bad, FakeWorker() as good, open_door(routing(bad, good), **OFTEN) as door:
        await door.until_serving()
        stuck.free.clear()
        await door.until(lambda: lines(door)[f"fake@{bad.target}"][0] == "unavailable")
        assert door.gateway.readiness.status == "degraded"
        for _ in range(20):
            await door.embed.Embed(REQUEST, timeout=5)
        asked = [call for call in bad.calls if call.standing.tenant != CANARY.tenant]
        assert not asked


async def test_the_next_group_serves_while_the_first_is_in_doubt(open_door: Callable[..., Any]) -> None:
    """And the first again when it answers."""
    stuck = Stuck()
    async with FakeWorker(before=stuck) as first, FakeWorker() as spare:
        file = (
            "embeddings:\n  - model: fake\n    upstreams:\n"
            f"      - {{type: grpc, url: 'grpc://{first.target}'}}\n"
            f"      - {{type: grpc, url: 'grpc://{spare.target}', priority: 1}}\n"
        )
        async with open_door(file, **OFTEN) as door:
            await door.until_serving()
            stuck.free.clear()
            await door.until(lambda: door.gateway.readiness.status == "degraded")
            await door.embed.Embed(REQUEST, timeout=5)
            stuck.free.set()
            await door.until(lambda: door.gateway.readiness.status == "ok")
            before = len(spare.received)
            await door.embed.Embed(REQUEST)
            assert [call for call in spare.calls[before:] if call.standing.tenant != CANARY.tenant] == []


async def test_a_model_that_answers_callers_is_not_asked(open_door: Callable[..., Any]) -> None:
    """Their answers are proof enough: no canary while they come, one soon after the last."""
    async with FakeWorker(fake_card("fake")) as worker:
        route = f"embeddings: [{{model: fake, upstream: {{type: grpc, url: 'grpc://{worker.target}'}}}}]"
        async with open_door(route, canary_interval_seconds=0.5) as door:
            await door.until_serving()
            until = time.monotonic() + 0.75
            while time.monotonic() < until:
                await door.embed.Embed(REQUEST)
            assert CANARY.tenant not in {call.standing.tenant for call in worker.calls}
            await door.until(lambda: worker.calls[-1].standing.tenant == CANARY.tenant)


async def test_a_worker_without_room_is_not_in_doubt(open_door: Callable[..., Any]) -> None:
    """It has much to do; refusing a canary is no sign that nothing is done."""

    async def full(_: Any, __: Any) -> None:
        raise Overloaded("The queue is full.", retry_after_seconds=0.1)

    async with FakeWorker(before=full) as worker, open_door(routing(worker), **OFTEN) as door:
        await door.until_serving()
        await door.until(lambda: len(worker.received) > 5)
        assert door.gateway.readiness.status == "ok"
        assert f'router_canaries_total{{model="fake",outcome="refused",upstream="{worker.target}"}}' in metrics(door)


async def test_a_model_that_fails_canaries_is_in_doubt_until_a_caller_is_answered(open_door: Callable[..., Any]) -> None:
    """Whoever is answered first ends the doubt."""
    sick = True

    async def fail(_: Any, call: Any) -> None:
        if sick and call.standing.tenant == CANARY.tenant:
            raise Unavailable("The model is ill.")

    async with FakeWorker(before=fail) as worker, open_door(routing(worker), **OFTEN) as door:
        await door.until_serving()
        await door.until(lambda: lines(door)[f"fake@{worker.target}"] == ("unavailable", "its model answered a canary with UNAVAILABLE"))
        async with asyncio.timeout(10):
            while lines(door)[f"fake@{worker.target}"][0] != "ok":
                await door.embed.Embed(REQUEST)


async def test_canaries_are_charged_to_nobody_and_can_be_switched_off(open_door: Callable[..., Any]) -> None:
    """They count under a name of their own, and no request, token or principal of callers has part of them."""
    async with FakeWorker() as worker, open_door(routing(worker), **OFTEN) as door:
        await door.until_serving()
        counted = f'router_canaries_total{{model="fake",outcome="answered",upstream="{worker.target}"}}'
        await door.until(lambda: counted in metrics(door))
        assert {call.standing.tenant for call in worker.calls} == {CANARY.tenant}
        assert "router_requests_total{" not in metrics(door)
        assert "router_tokens_total{" not in metrics(door)
    async with FakeWorker() as worker, open_door(routing(worker), canary_interval_seconds=0) as door:
        await door.until_serving()
        await door.embed.Embed(REQUEST)
        assert [call.standing.tenant for call in worker.calls] == ["anonymous"]


def metrics(door: Door) -> str:
    """Return the gateway's page."""
    return door.telemetry.metrics.text().decode()
