"""Processes that are killed or stand still under load: no caller notices more than a pause."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from quadrate.client import AsyncClient
from tests.chaos.load import Grpc, Load, Rest, peak, percentile, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.chaos.conftest import StartMesh
    from tests.chaos.load import Made
    from tests.chaos.mesh import ChaosMesh

WORKERS = ("embed_worker", "embed_worker-2")
GATEWAYS = ("gateway", "gateway-2")
RUN_MILLISECONDS = "10"
"""How long each run of the model takes, so that there is always something to lose."""
RECOVERED_SECONDS = 2.0
"""After so long no caller may notice any more that a process was lost."""
STREAMED = 2_000
LEFT_SECONDS = 1.0
"""After so long nothing more is sent to a worker that stands still, and what it had has been asked elsewhere."""


def ways(mesh: ChaosMesh) -> tuple[Rest, Grpc]:
    """Both wires."""
    return Rest(mesh.url), Grpc(mesh.edge)


def usual(calls: list[Made]) -> float:
    """Return the seconds that count as usual beside these: three times their 99th percentile, and what a busy machine may take anyway."""
    return max(3 * percentile(calls, 99), 0.25)


async def test_a_worker_killed_again_and_again_loses_no_request(start_mesh: StartMesh, length: Callable[[int, int], int]) -> None:
    """Two workers at half of what they can do, one killed each time: no request fails, and two seconds later all is as before."""
    with start_mesh(embed_workers=2, environment={"EMBED_NULL_RUN_MS": RUN_MILLISECONDS}) as mesh:
        half = 0.5 * await peak(*ways(mesh))
        async with Load(*ways(mesh), rate=half) as load:
            await load.seconds(3)
            before = usual(load.made)
            recoveries = []
            for number in range(length(5, 10)):
                name = WORKERS[number % 2]
                mesh.kill(name)
                recovered = time.monotonic() + RECOVERED_SECONDS
                await load.seconds(RECOVERED_SECONDS + 1)
                recoveries.append(percentile(load.since(recovered, recovered + 1), 99))
                mesh.start(name)
                await asyncio.to_thread(mesh.until_ready, name, "gateway")
        assert not load.failed, load.summary()
        assert mesh.metric("gateway", "router_upstream_retries_total") > 0, "no request was under way at a worker that was killed"
    # Of so many seconds, one or two belong to whatever else the machine does.
    assert statistics.median(recoveries) <= before, recoveries


async def test_a_worker_that_stands_still_is_left_within_a_second(start_mesh: StartMesh) -> None:
    """SIGSTOP: its requests are asked of the other, none fails, and after SIGCONT it takes part again."""
    with start_mesh(embed_workers=2, environment={"EMBED_NULL_RUN_MS": RUN_MILLISECONDS}) as mesh:
        half = 0.5 * await peak(*ways(mesh))
        async with Load(*ways(mesh), rate=half) as load:
            await load.seconds(2)
            mesh.send(WORKERS[1], signal.SIGSTOP)
            stopped = time.monotonic()
            await load.seconds(4)
            report = mesh.readiness()
            mesh.send(WORKERS[1], signal.SIGCONT)
            await asyncio.to_thread(mesh.until_ready, "gateway")
            served = mesh.metric(WORKERS[1], "embed_requests_total", status="OK")
            await load.until(lambda: mesh.metric(WORKERS[1], "embed_requests_total", status="OK") > served)
        assert not load.failed, load.summary()
    assert report["status"] == "degraded"
    waiting = [made for made in load.since(stopped - 1, stopped + 4) if made.ended > stopped]
    assert max(made.ended for made in waiting if made.started <= stopped) - stopped < LEFT_SECONDS + usual(load.since(0, stopped))
    late = [made for made in load.since(stopped + LEFT_SECONDS, stopped + 4) if made.seconds > LEFT_SECONDS]
    assert not late, f"{len(late)} requests were sent to a worker that stood still for more than {LEFT_SECONDS} s"


async def test_the_only_worker_that_stands_still_is_said_to(start_mesh: StartMesh) -> None:
    """With nobody else to ask, requests wait a little and are refused as unavailable; readiness says why; SIGCONT mends it."""
    with start_mesh(embed_workers=1) as mesh:
        mesh.send("embed_worker", signal.SIGSTOP)
        async with Load(*ways(mesh), callers=2) as load:
            await load.until(lambda: len(load.failed) >= 2)
        assert set(load.statuses()) <= {"OK", "503", "UNAVAILABLE"}
        assert max(made.seconds for made in load.failed) < 10
        report = mesh.readiness()
        mesh.send("embed_worker", signal.SIGCONT)
        await asyncio.to_thread(mesh.until_ready, "gateway")
        async with Load(*ways(mesh), callers=2) as load:
            await load.calls(20)
        assert not load.failed, load.summary()
    assert report["status"] == "unavailable"
    assert "does not answer" in report["upstreams"][0]["reason"]


async def test_killed_gateways_lose_no_call(start_mesh: StartMesh, length: Callable[[int, int], int]) -> None:
    """Embeddings can be made again safely, so the edge asks the other gateway."""
    with start_mesh(gateways=2, embed_workers=1, environment={"EMBED_NULL_RUN_MS": RUN_MILLISECONDS}) as mesh:
        async with Load(*ways(mesh), callers=16) as load:
            await load.calls(200)
            for number in range(length(4, 20)):
                name = GATEWAYS[number % 2]
                mesh.kill(name)
                await load.calls(200)
                mesh.start(name)
                await asyncio.to_thread(mesh.until_ready, name)
                await asyncio.to_thread(mesh.until, lambda: are_healthy(mesh), "the edge does not take the gateway back")
        assert not load.failed, load.summary()


async def test_a_gateway_that_is_told_to_end_loses_no_call(start_mesh: StartMesh) -> None:
    """SIGTERM: it says that it does not serve, answers what it has, and goes; so does a worker."""
    with start_mesh(gateways=2, embed_workers=2, environment={"EMBED_NULL_RUN_MS": RUN_MILLISECONDS}) as mesh:
        async with Load(*ways(mesh), callers=16) as load:
            for name in ("gateway-2", "embed_worker-2", "gateway", "embed_worker"):
                await load.calls(200)
                assert await asyncio.to_thread(mesh.terminate, name) == 0
                await load.calls(200)
                mesh.start(name)
                await asyncio.to_thread(mesh.until_ready, name, *GATEWAYS)
                await asyncio.to_thread(mesh.until, lambda: are_healthy(mesh), "the edge does not take the gateway back")
        assert not load.failed, load.summary()


async def test_a_stream_goes_on_whoever_ends(start_mesh: StartMesh) -> None:
    """A worker is killed and a gateway told to end while a client ingests: each text is answered, and once."""
    with start_mesh(gateways=2, embed_workers=2, environment={"EMBED_NULL_RUN_MS": RUN_MILLISECONDS, "ROUTER_DRAIN_SECONDS": "1"}) as mesh:
        found: list[int] = []
        async with AsyncClient(mesh.edge) as client:
            async for answer in client.embed_stream(_paced(lambda: len(found)), model="minilm"):
                assert answer.error is None
                found.append(answer.id)
                if len(found) == STREAMED // 4:
                    mesh.kill("embed_worker")
                if len(found) == STREAMED // 2:
                    ending = asyncio.create_task(asyncio.to_thread(mesh.terminate, "gateway"))
        assert await ending == 0
    assert sorted(found) == list(range(STREAMED))


async def _paced(answered: Callable[[], int]) -> AsyncIterator[tuple[int, str]]:
    """Give texts, never many more than were answered: the stream is still open when something happens to it."""
    for number in range(STREAMED):
        while number - answered() > 200:
            await asyncio.sleep(0.01)
        yield number, text_of(number)


@pytest.mark.parametrize("name", GATEWAYS)
async def test_a_gateway_that_stands_still_is_left(start_mesh: StartMesh, name: str) -> None:
    """The edge asks each gateway how it is; one that does not say gets nothing new, and what it has is asked of the other."""
    with start_mesh(gateways=2, embed_workers=1) as mesh:
        async with Load(*ways(mesh), callers=8) as load:
            await load.calls(100)
            mesh.send(name, signal.SIGSTOP)
            await load.seconds(6)
            mesh.send(name, signal.SIGCONT)
            await load.calls(100)
        assert not load.failed, load.summary()


def are_healthy(mesh: ChaosMesh) -> bool:
    """Whether Envoy sends to every gateway."""
    found = httpx.get(f"{mesh.admin}/clusters?format=json", timeout=10).json()
    cluster = next(cluster for cluster in found["cluster_statuses"] if cluster["name"] == "gateway")
    return all(host["health_status"] == {"eds_health_status": "HEALTHY"} for host in cluster["host_statuses"])
