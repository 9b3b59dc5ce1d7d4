"""`GET /openapi.json`: docs/openapi.yaml as JSON."""

from __future__ import annotations

import functools

import orjson
import yaml
from aiohttp import web

from quadrate.config.shipped import shipped


async def serve(_: web.Request) -> web.Response:
    """Answer GET /openapi.json."""
    return web.Response(body=_document(), content_type="application/json")


@functools.cache
def _document() -> bytes:
    """Read the description when it is first asked for: most gateways never are, and reading it takes some tens of milliseconds."""
    return orjson.dumps(yaml.safe_load(shipped("openapi.yaml").read_text(encoding="utf-8")))
