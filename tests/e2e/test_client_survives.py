"""The Python client through a whole mesh whose gateway is killed under it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING

from quadrate.client import AsyncClient

if TYPE_CHECKING:
    from tests.e2e.conftest import Mesh, StartMesh

TEXTS = 400
KILL_AFTER = 100


def _pid(mesh: Mesh, process: str) -> int:
    status = json.loads(mesh.command("status", "--json", "--port", str(mesh.ports["port"])).stdout)
    return next(int(row["pid"]) for row in status["processes"] if row["name"] == process)


async def test_an_ingestion_outlives_the_gateway(start_mesh: StartMesh) -> None:
    """Killed in the middle of a stream, the gateway is started again and every text is answered once, right."""
    with start_mesh() as mesh:
        await _ingest(mesh)


async def _ingest(mesh: Mesh) -> None:
    texts = [f"text number {place} about the stars" for place in range(TEXTS)]
    async with AsyncClient(mesh.edge) as client:
        vectors = {}
        async for item in client.embed_stream(enumerate(texts), model="minilm", texts_per_message=4, timeout_seconds=60):
            assert item.id not in vectors
            vectors[item.id] = item.value()
            if len(vectors) == KILL_AFTER:
                os.kill(await asyncio.to_thread(_pid, mesh, "gateway"), signal.SIGKILL)
        assert sorted(vectors) == list(range(TEXTS))
        again = await client.embed(texts, model="minilm")
        assert min(float(again.vectors[place] @ vectors[place]) for place in range(TEXTS)) > 0.99999
