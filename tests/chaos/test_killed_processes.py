"""Processes of a mesh that are killed or stand still under load: nobody notices."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.chaos.load import Grpc, Load, Rest

if TYPE_CHECKING:
    from tests.chaos.conftest import StartMesh


async def test_a_killed_gateway_loses_no_call(start_mesh: StartMesh) -> None:
    """Calls in flight at the killed gateway are made again at the other."""
    with start_mesh(gateways=2, embed_workers=1) as mesh:
        async with Load(Rest(mesh.url), Grpc(mesh.edge), callers=16) as load:
            await load.calls(200)
            for name in ("gateway", "gateway-2"):
                mesh.kill(name)
                await load.calls(200)
                mesh.start(name)
                await asyncio.to_thread(mesh.until_ready, name)
    assert not load.failed, load.summary()
