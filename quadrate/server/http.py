"""The small HTTP server beside every gRPC server: metrics and health, for Prometheus, probes and people."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from quadrate.server.call import request_id
from quadrate.telemetry import log
from quadrate.telemetry.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from quadrate.telemetry import Metrics

HTTP_LINE_BYTES = 65_536
"""The longest request line and header that are read: the edge refuses headers over 32 KiB, and what it lets through must not fail here."""


def _is_news(record: logging.LogRecord) -> bool:
    """Tell whether what aiohttp logs says more than that somebody sent what is no HTTP; it writes a traceback with a piece of that."""
    return record.exc_info is None or not isinstance(record.exc_info[1], BadHttpMessage)


logging.getLogger("aiohttp.server").addFilter(_is_news)


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

    app = web.Application(middlewares=[_told_alike])
    app.add_routes([web.get("/health/live", live), web.get("/health/ready", ready), web.get("/metrics", text), *routes])
    return app


@web.middleware
async def _told_alike(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """Give every answer the request's id, and every error the form that it has elsewhere."""
    given = request_id({"x-request-id": request.headers.get("x-request-id", "")})
    response: web.StreamResponse
    try:
        response = await handler(request)
    except web.HTTPException as exc:
        response = _refusal(exc)
    except Exception as exc:  # noqa: BLE001 - the page says nothing of the cause, the log says where
        log.error("unexpected failure", path=request.path, error=type(exc).__name__, request_id=given)
        response = _error(
            500, f"Something failed on our side. Quote the request id {given} to the operator.", "server_error", "internal_error"
        )
    response.headers["x-request-id"] = given
    return response


def _refusal(exc: web.HTTPException) -> web.Response:
    if isinstance(exc, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(exc.allowed_methods))
        refused = _error(405, f"This path does not take this method; it takes {allowed}.", "invalid_request_error", "method_not_allowed")
        refused.headers["allow"] = allowed
        return refused
    if isinstance(exc, web.HTTPNotFound):
        return _error(404, "No such path on this port: health and metrics are here.", "invalid_request_error", "not_found")
    return _error(exc.status, f"{exc.reason}.", "invalid_request_error", "invalid_value")


def _error(status: int, message: str, kind: str, code: str) -> web.Response:
    return json_response({"error": {"message": message, "type": kind, "param": None, "code": code}}, status=status)


def json_response(body: Any, *, status: int = 200) -> web.Response:
    """Return `body` as JSON."""
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
