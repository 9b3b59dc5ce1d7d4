"""Two gateways under load, one killed: no call is lost. And a mesh in the foreground, stopped: nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import grpc.aio
import httpx
import psutil
import pytest

from quadrate.v1.embed_pb2 import EmbedRequest
from quadrate.v1.embed_pb2_grpc import EmbedServiceStub
from quadrate.v1.options_pb2 import Input

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Mesh, Reference, StartMesh

REST_CALLERS = 16
GRPC_CALLERS = 8
CALLS_BETWEEN_KILLS = 300
KILLS = 2
STOP_SECONDS = 5


@pytest.fixture(scope="module")
def pair(start_mesh: StartMesh) -> Iterator[Mesh]:
    """A mesh with two gateways."""
    with start_mesh("--gateways", "2") as found:
        yield found


def status(mesh: Mesh) -> list[dict[str, object]]:
    """Return what `quadrate status` says of each process."""
    done = mesh.command("status", "--json", "--port", str(mesh.ports["port"]))
    rows: list[dict[str, object]] = json.loads(done.stdout)["processes"]
    return rows


class Load:
    """Callers that go on until they are told to stop, and what became of their calls."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.stopping = False
        self._made = asyncio.Condition()

    async def note(self, outcome: str) -> None:
        """Count one call."""
        async with self._made:
            self.outcomes[outcome] += 1
            self._made.notify_all()

    async def calls(self, count: int) -> None:
        """Wait for so many more calls."""
        goal = self.outcomes.total() + count
        async with self._made:
            await asyncio.wait_for(self._made.wait_for(lambda: self.outcomes.total() >= goal), 60)

    async def rest(self, client: httpx.AsyncClient) -> None:
        """Call over REST."""
        while not self.stopping:
            answer = await client.post("/v1/embeddings", json={"model": "minilm", "input": "hello"})
            await self.note("OK" if answer.status_code == 200 else f"{answer.status_code} {answer.text}")

    async def grpc(self, stub: EmbedServiceStub) -> None:
        """Call over gRPC."""
        while not self.stopping:
            try:
                await stub.Embed(EmbedRequest(model="minilm", inputs=[Input(text="hello")]), timeout=30)
                await self.note("OK")
            except grpc.aio.AioRpcError as error:
                await self.note(f"{error.code().name} {error.details()}")


async def test_a_killed_gateway_loses_no_call(pair: Mesh) -> None:
    """Calls in flight at the killed gateway are made again at the other, and the supervisor brings it back."""
    load = Load()
    async with httpx.AsyncClient(base_url=pair.url, timeout=30) as client, grpc.aio.insecure_channel(pair.edge) as channel:
        callers = [asyncio.create_task(load.rest(client)) for _ in range(REST_CALLERS)]
        callers += [asyncio.create_task(load.grpc(EmbedServiceStub(channel))) for _ in range(GRPC_CALLERS)]
        for number in range(KILLS):
            await load.calls(CALLS_BETWEEN_KILLS)
            await asyncio.to_thread(wait_until_ready, pair, restarts=number)
            gateways = [row for row in await asyncio.to_thread(status, pair) if row["role"] == "gateway"]
            os.kill(int(str(gateways[number % 2]["pid"])), signal.SIGKILL)
        await load.calls(CALLS_BETWEEN_KILLS)
        await asyncio.to_thread(wait_until_ready, pair, restarts=KILLS)
        load.stopping = True
        await asyncio.gather(*callers)
    assert load.outcomes.keys() == {"OK"}, load.outcomes


def wait_until_ready(mesh: Mesh, *, restarts: int) -> None:
    """Wait until the gateways have been started again so often, all answer, and the edge sends to all of them."""
    for _ in range(200):
        gateways = [row for row in status(mesh) if row["role"] == "gateway"]
        states = {row["state"] for row in gateways}
        if sum(int(str(row["restarts"])) for row in gateways) == restarts and states == {"ready"} and are_all_healthy(mesh):
            return
    pytest.fail(f"the gateways did not come back: {gateways}")


def are_all_healthy(mesh: Mesh) -> bool:
    """Whether Envoy finds nothing wrong with any gateway."""
    found = httpx.get(f"http://127.0.0.1:{mesh.ports['admin-port']}/clusters?format=json", timeout=10).json()
    cluster = next(cluster for cluster in found["cluster_statuses"] if cluster["name"] == "gateway")
    return all(host["health_status"] == {"eds_health_status": "HEALTHY"} for host in cluster["host_statuses"])


def test_the_metrics_of_both_gateways_are_one_page(pair: Mesh) -> None:
    """Each series says which gateway it is of."""
    text = httpx.get(f"{pair.url}/metrics", timeout=30).text
    for number in (0, 1):
        assert f'gateway="{pair.target("gateway", number=number, http=True)}"' in text


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_nothing_stays_behind(stop: signal.Signals, free_ports: dict[str, int], reference: Reference, tmp_path: Path) -> None:
    """In the foreground: the banner tells when it answers, the first answer is right, and a signal ends all within 5 seconds."""
    flags = [part for name, port in free_ports.items() for part in (f"--{name}", str(port))]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    line = [sys.executable, "-m", "quadrate.cli", "up", *flags]
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = ""
        while "Quadrate answers on" not in said:
            said += process.stdout.readline() or pytest.fail(f"the mesh did not start: {said}")
        body = {"model": "minilm", "input": reference.texts[0]}
        answer = httpx.post(f"http://127.0.0.1:{free_ports['port']}/v1/embeddings", json=body, timeout=30)
        reference.check([answer.json()["data"][0]["embedding"]], [0])
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 4
        if sys.platform == "linux":  # that the gateway interrupts nobody, and that it alone does so
            assert [os.sched_getscheduler(child.pid) == os.SCHED_BATCH for child in children] == [
                "gateway" in child.cmdline() for child in children
            ]
        process.send_signal(stop)
        process.wait(STOP_SECONDS)
    assert psutil.wait_procs(children, timeout=1)[1] == []
    for port in free_ports.values():
        socket.create_server(("127.0.0.1", port)).close()
