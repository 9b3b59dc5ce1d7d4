"""What tests of the edge share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from tests.service.edge import StandIn, before, envoy, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx
    import pytest

    from quadrate.server import Server


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stand_in() -> AsyncIterator[tuple[Server, StandIn]]:
    """A gateway that a module's tests share, and its server."""
    gateway = StandIn()
    async with serving(gateway) as server:
        yield server, gateway


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def edge(stand_in: tuple[Server, StandIn], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[httpx.AsyncClient, Path]]:
    """A client of an edge before it, and the edge's log. It waits two seconds for an answer."""
    folder = tmp_path_factory.mktemp("edge")
    async with envoy(before(stand_in[0], request_timeout_seconds=2), folder) as client:
        yield client, folder / "envoy.log"
