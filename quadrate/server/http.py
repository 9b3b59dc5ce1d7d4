"""The small HTTP server beside every gRPC server: metrics and health, for Prometheus, probes and people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from quadrate.telemetry.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from quadrate.telemetry import Metrics


def application(
    metrics: Metrics, readiness: Callable[[], tuple[bool, dict[str, Any]]], routes: Iterable[web.AbstractRouteDef] = ()
) -> web.Application:
    """Return the application.

    Args:
        metrics: What GET /metrics prints.
        readiness: Gives whether something can be served, and what GET /health/ready says; not ready answers 503.
        routes: More routes, as the process has them.
    """

    async def live(_: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def ready(_: web.Request) -> web.Response:
        serving, report = readiness()
        return json_response(report, status=200 if serving else 503)

    async def text(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"content-type": CONTENT_TYPE})

    app = web.Application()
    app.add_routes([web.get("/health/live", live), web.get("/health/ready", ready), web.get("/metrics", text), *routes])
    return app


def json_response(body: Any, *, status: int = 200) -> web.Response:
    """Return `body` as JSON."""
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
