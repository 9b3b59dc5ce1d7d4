"""`GET /metrics/mesh`: the metrics of all gateways as one page, each series with a `gateway` label.

Prometheus' text format wants the series of one metric in one block under one HELP and one TYPE, so pages cannot just be joined.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import aiohttp
import psutil
from aiohttp import web

from quadrate.telemetry import log
from quadrate.telemetry.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quadrate.telemetry import Metrics

PEER_TIMEOUT_SECONDS = 2.0


class MeshMetrics:
    """Gathers the metrics of all gateways.

    Args:
        metrics: This gateway's own.
        peers: `host:http_port` of every gateway; a name with several addresses stands for all of them.
        host: The address this gateway listens on.
    """

    def __init__(self, metrics: Metrics, peers: Sequence[str], *, host: str) -> None:
        self._metrics = metrics
        self._peers = peers
        self._host = "127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else host  # noqa: S104 - compared, not bound
        self.http_port = 0
        """This gateway's own HTTP port, once it is known."""

    async def handle(self, _: web.Request) -> web.Response:
        """Answer GET /metrics/mesh. A gateway that cannot be asked is left out and named in the log."""
        pages = {self._own_name(): self._metrics.text().decode()}
        addresses = await asyncio.gather(*(_resolve(peer) for peer in self._peers))
        others = dict.fromkeys(address for found in addresses for address in found)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PEER_TIMEOUT_SECONDS)) as session:
            asked = [(host, port) for host, port in others if not self._is_own(host, port)]
            for (host, port), page in zip(asked, await asyncio.gather(*(_fetch(session, *one) for one in asked)), strict=True):
                if page is not None:
                    pages[_join(host, port)] = page
        own = next((_join(*one) for one in others if self._is_own(*one)), self._own_name())
        pages = {own if name == self._own_name() else name: page for name, page in pages.items()}
        return web.Response(text=merge(pages), headers={"content-type": CONTENT_TYPE})

    def _own_name(self) -> str:
        return _join(self._host, self.http_port)

    def _is_own(self, host: str, port: int) -> bool:
        return port == self.http_port and host in _own_addresses()


def merge(pages: Mapping[str, str]) -> str:
    """Return pages in Prometheus' text format as one, each series labelled with its page's name as `gateway`."""
    headers: dict[str, list[str]] = {}
    series: dict[str, list[str]] = {}
    for gateway, page in pages.items():
        label = f'gateway="{gateway}"'
        family = ""
        for line in page.splitlines():
            if line.startswith("# "):
                family = line.split(" ", 3)[2]
                known = headers.setdefault(family, [])
                if line not in known and not any(one.startswith(line[:7] + family + " ") for one in known):
                    known.append(line)
            elif line:
                series.setdefault(family, []).append(_labelled(line, label))
    blocks = ["\n".join((*headers.get(family, ()), *lines)) for family, lines in series.items()]
    return "\n".join((*blocks, ""))


def _labelled(line: str, label: str) -> str:
    """Put a label into a line such as `name{a="b"} 1` or `name 1`."""
    name, brace, rest = line.partition("{")
    if brace and " " not in name:
        return f"{name}{{{label},{rest}" if not rest.startswith("}") else f"{name}{{{label}{rest}"
    name, _, value = line.partition(" ")
    return f"{name}{{{label}}} {value}"


async def _resolve(peer: str) -> list[tuple[str, int]]:
    """Return every address of a `host:port`. One that has none is named in the log."""
    host, _, port = peer.rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as exc:
        log.warn("a gateway's name cannot be resolved", peer=peer, reason=str(exc))
        return []
    return list(dict.fromkeys((str(address[0]), int(port)) for *_, address in found))


async def _fetch(session: aiohttp.ClientSession, host: str, port: int) -> str | None:
    try:
        async with session.get(f"http://{_join(host, port)}/metrics") as answer:
            answer.raise_for_status()
            return await answer.text()
    except (aiohttp.ClientError, TimeoutError) as exc:
        log.warn("a gateway's metrics cannot be had", peer=_join(host, port), reason=type(exc).__name__)
        return None


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _own_addresses() -> set[str]:
    return {address.address for found in psutil.net_if_addrs().values() for address in found}
