"""`quadrate up --embed-workers 2` under load, its workers killed in turn: no call is lost, and each comes back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING

import httpx

from tests.chaos.load import Grpc, Load, Rest
from tests.processes import eventually

if TYPE_CHECKING:
    from tests.e2e.conftest import Mesh, Reference, StartMesh


def workers(mesh: Mesh) -> list[dict[str, object]]:
    """Return what `quadrate status` says of the embed workers."""
    done = mesh.command("status", "--json", "--port", str(mesh.ports["port"]))
    return [row for row in json.loads(done.stdout)["processes"] if row["role"] == "embed_worker"]


async def all_ready(mesh: Mesh) -> None:
    """Wait until every worker serves, in its own words and the gateway's."""
    await eventually(lambda: {row["state"] for row in workers(mesh)} == {"ready"}, "a worker did not come back")
    await eventually(lambda: mesh.command("status", "--port", str(mesh.ports["port"])).returncode == 0, "the gateway did not find it")


async def test_killed_workers_lose_no_call(start_mesh: StartMesh, reference: Reference) -> None:
    """With the real model: what was under way at the killed worker is answered by the other, and rightly."""
    with start_mesh("--embed-workers", "2") as mesh:
        assert len(workers(mesh)) == 2
        async with Load(Rest(mesh.url), Grpc(mesh.edge), callers=8) as load:
            for number in range(2):
                await load.calls(100)
                await asyncio.to_thread(asyncio.run, all_ready(mesh))
                os.kill(int(str(workers(mesh)[number]["pid"])), signal.SIGKILL)
                await load.calls(100)
        assert not load.failed, load.summary()
        await all_ready(mesh)
        assert sum(int(str(row["restarts"])) for row in workers(mesh)) == 2
        async with httpx.AsyncClient(base_url=mesh.url, timeout=30) as client:
            answer = (await client.post("/v1/embeddings", json={"model": "minilm", "input": list(reference.texts)})).json()
        reference.check([one["embedding"] for one in answer["data"]])
