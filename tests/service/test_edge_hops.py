"""Proxies before the edge: from those that are named, and from nobody else, the edge takes the request's id and who called them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.processes import eventually
from tests.service.edge import StandIn, before, envoy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx

    from quadrate.server import Server

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Hop:
    """The edge as a proxy before it sees it, and what the edge wrote of each request."""

    def __init__(self, client: httpx.AsyncClient, log: Path, gateway: StandIn) -> None:
        self._client = client
        self._log = log
        self.gateway = gateway

    async def ask(self, headers: dict[str, str] | dict[bytes, bytes]) -> tuple[httpx.Response, dict[str, Any]]:
        """Send a request; return its answer and its line in the edge's log."""
        answer = await self._client.post("/v1/embeddings", content=b"{}", headers=headers)
        await eventually(lambda: bool(self._lines(answer)), "the edge wrote no line about the request")
        (line,) = self._lines(answer)
        return answer, line

    def _lines(self, answer: httpx.Response) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self._log.read_text().splitlines() if line.endswith("}")]
        return [line for line in found if line.get("request_id") == answer.headers["x-request-id"]]


async def hop(stand_in: tuple[Server, StandIn], folder: Path, trusted: str) -> AsyncIterator[Hop]:
    """Run an edge that trusts some networks."""
    async with envoy(before(stand_in[0], trusted_hops=trusted), folder) as client:
        yield Hop(client, folder / "envoy.log", stand_in[1])


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def trusted(stand_in: tuple[Server, StandIn], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hop]:
    """An edge that trusts this machine and a network."""
    async for found in hop(stand_in, tmp_path_factory.mktemp("trusted"), "10.1.0.0/16, 127.0.0.1"):
        yield found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def strange(stand_in: tuple[Server, StandIn], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hop]:
    """An edge that trusts others than this machine."""
    async for found in hop(stand_in, tmp_path_factory.mktemp("strange"), "10.1.0.0/16,fd00::/8"):
        yield found


@pytest.mark.parametrize("given", ["our-own/id:7", "~" * 128, "7c6b8f2e-5d8a-4d0b-8a51-0f6f5a3c9d11"])
async def test_a_trusted_hop_names_the_request(given: str, trusted: Hop) -> None:
    """Its id is answered, logged and handed on as it is, also one that looks like Envoy's own."""
    answer, line = await trusted.ask({"x-request-id": given})
    assert answer.headers["x-request-id"] == line["request_id"] == trusted.gateway.calls[-1].request_id == given


@pytest.mark.parametrize(
    "given",
    [b"two words", b"a\tb", b"x" * 129, "caf\u00e9".encode(), b"\xff", b""],
    ids=["space", "tab", "long", "letters beyond ASCII", "no text", "empty"],
)
async def test_an_id_that_cannot_be_one_is_made_anew_for_all(given: bytes, trusted: Hop) -> None:
    """The edge makes one where the gateway would, so that answer, edge and gateway say the same."""
    answer, line = await trusted.ask({b"x-request-id": given})
    assert re.fullmatch("[0-9a-f-]{36}", answer.headers["x-request-id"])
    assert answer.headers["x-request-id"] == line["request_id"] == trusted.gateway.calls[-1].request_id


@pytest.mark.parametrize(
    ("headers", "peer"),
    [
        ({}, "127.0.0.1"),
        ({"x-forwarded-for": "203.0.113.7"}, "203.0.113.7"),
        ({"x-forwarded-for": "6.6.6.6, 203.0.113.7, 10.1.2.3"}, "203.0.113.7"),
        ({"x-real-ip": "203.0.113.8"}, "203.0.113.8"),
        ({"x-forwarded-for": "203.0.113.7", "x-real-ip": "203.0.113.8"}, "203.0.113.7"),
        ({"x-forwarded-for": "nonsense"}, "127.0.0.1"),
    ],
    ids=["says nothing", "one", "a chain, its end trusted", "x-real-ip", "both", "no address"],
)
async def test_a_trusted_hop_names_its_caller(headers: dict[str, str], peer: str, trusted: Hop) -> None:
    """The last address that is no trusted hop; what the caller wrote before it proves nothing."""
    _, line = await trusted.ask(headers)
    assert line["metadata"]["peer"] == peer


async def test_a_trusted_hop_is_no_part_of_the_mesh(trusted: Hop) -> None:
    """What only the edge may say, it may not."""
    spoofed = {"x-envoy-original-path": "/spoof", "x-envoy-retry-on": "5xx", "x-envoy-max-retries": "9", "x-quadrate-principal": "root"}
    await trusted.ask(spoofed)
    seen = trusted.gateway.calls[-1].metadata
    assert seen["x-envoy-original-path"] == "/v1/embeddings"
    assert not {"x-envoy-retry-on", "x-envoy-max-retries", "x-quadrate-principal"} & set(seen)


async def test_nobody_else_is_believed(strange: Hop) -> None:
    """A caller beyond the named networks gets an id of the edge's, and is who it is."""
    told = {"x-request-id": "mine", "x-forwarded-for": "203.0.113.7", "x-real-ip": "203.0.113.8"}
    answer, line = await strange.ask(told)
    assert answer.headers["x-request-id"] == strange.gateway.calls[-1].request_id != "mine"
    assert line["metadata"]["peer"] == "127.0.0.1"
    assert "x-real-ip" not in strange.gateway.calls[-1].metadata
